//! The keys that exist, taken from the structs themselves, and the nearest one to a mistyped key.

use serde::de::value::Error;
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::forward_to_deserialize_any;

use super::{
    DockerSection, EngineSection, GossipSection, LimitsSection, ListenSection, NodeConfig, NodeSection,
    ProtocolSection, StoreSection,
};

/// Sections, and keys that stand outside any.
pub(super) fn top() -> &'static [&'static str] {
    fields::<NodeConfig>()
}

/// Keys of a section; `None` when it isn't one.
pub(super) fn of_section(name: &str) -> Option<&'static [&'static str]> {
    Some(match name {
        "node" => fields::<NodeSection>(),
        "listen" => fields::<ListenSection>(),
        "engine" => fields::<EngineSection>(),
        "docker" => fields::<DockerSection>(),
        "protocol" => fields::<ProtocolSection>(),
        "gossip" => fields::<GossipSection>(),
        "limits" => fields::<LimitsSection>(),
        "store" => fields::<StoreSection>(),
        _ => return None,
    })
}

/// All keys as (section, key); the section is empty for those at the top.
pub(super) fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    top().iter().flat_map(|name| match of_section(name) {
        Some(keys) => keys.iter().map(|key| (*name, *key)).collect(),
        None => vec![("", *name)],
    })
}

/// The candidate that a reader would take for `name`, if one is near.
pub fn nearest<S: AsRef<str>>(name: &str, candidates: impl IntoIterator<Item = S>) -> Option<S> {
    const NEAR: f64 = 0.75;
    let name = name.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&name, &candidate.as_ref().to_lowercase()), candidate))
        .filter(|(score, _)| *score >= NEAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// The field names that a struct's `Deserialize` asks for.
fn fields<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    let mut found: &'static [&'static str] = &[];
    // Always an error: the names are all that is wanted.
    let _ = T::deserialize(Introspect(&mut found));
    found
}

struct Introspect<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Introspect<'_> {
    type Error = Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Error> {
        *self.0 = fields;
        Err(de::Error::custom("only the names are read"))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Error> {
        Err(de::Error::custom("not a struct"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_at_the_top_but_join_is_a_section() {
        let outside: Vec<_> = top().iter().filter(|name| of_section(name).is_none()).collect();
        assert_eq!(outside, [&"join"]);
        assert!(all().any(|key| key == ("protocol", "max_lease_age")));
        assert!(all().count() > 35);
    }

    #[test]
    fn a_near_key_is_found_and_a_far_one_is_not() {
        let keys = of_section("protocol").unwrap_or_default();
        assert_eq!(nearest("max_lease_ag", keys), Some(&"max_lease_age"));
        assert_eq!(nearest("idle-timeout", keys), Some(&"idle_timeout"));
        assert_eq!(nearest("zzzzqqq", keys), None);
    }
}
