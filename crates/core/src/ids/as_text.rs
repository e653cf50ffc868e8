//! Names that are written as people see them.

use serde::de::{Deserialize, Deserializer, Error};
use serde::{Serialize, Serializer};

use super::{ActionId, ActivationId};

impl Serialize for ActivationId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ActivationId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let number = u128::from_str_radix(&text, 16);
        number.map(Self).map_err(|_| D::Error::custom(format!("`{text}` is no activation id: 32 hex digits")))
    }
}

impl Serialize for ActionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ActionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (namespace, name) =
            text.split_once('/').ok_or_else(|| D::Error::custom(format!("`{text}` is no NAMESPACE/ACTION")))?;
        Ok(Self::new(namespace, name))
    }
}
