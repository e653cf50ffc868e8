//! How durations, sizes and addresses are written in files and variables.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const KIB: u64 = 1024;
const SIZE_UNITS: [(&str, u64); 8] = [
    ("B", 1),
    ("KB", 1_000),
    ("KiB", KIB),
    ("MB", 1_000_000),
    ("MiB", KIB * KIB),
    ("GB", 1_000_000_000),
    ("GiB", KIB * KIB * KIB),
    ("TiB", KIB * KIB * KIB * KIB),
];
const TIME_UNITS: [(&str, u64); 6] =
    [("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000), ("us", 1)];

/// A number of bytes, written `512MiB` (1024s) or `512MB` (1000s).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl ByteSize {
    pub const fn mib(mebibytes: u64) -> Self {
        Self(mebibytes * KIB * KIB)
    }

    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Whole megabytes as actions' limits count them (1,048,576 bytes).
    pub const fn as_mb(self) -> u64 {
        self.0 / (KIB * KIB)
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a size: write a number and its unit, such as \"512MiB\" or \"4GiB\"");
        let (number, unit) = split_number(text).ok_or_else(wrong)?;
        let factor = SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(wrong)?.1;
        number.checked_mul(factor).map(Self).ok_or_else(|| format!("`{text}` is more than 2^64 bytes"))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |(_, factor): &&(&str, u64)| self.0 >= *factor && self.0.is_multiple_of(*factor);
        let (unit, factor) = SIZE_UNITS.iter().filter(whole).max_by_key(|(_, factor)| *factor).unwrap_or(&("B", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text("a size such as \"512MiB\"", str::parse))
    }
}

/// `5s`, `250ms`, `1h30m`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("`{text}` is not a duration: write a number and its unit, such as \"250ms\", \"5s\" or \"10m\"");
    let mut rest = text;
    let mut total_us = 0u64;
    let mut largest_left = u64::MAX;
    while !rest.is_empty() || largest_left == u64::MAX {
        let (number, after) = split_number(rest).ok_or_else(wrong)?;
        let unit_end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let factor = TIME_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?.1;
        if factor >= largest_left {
            return Err(wrong());
        }
        let part = number.checked_mul(factor).and_then(|us| total_us.checked_add(us));
        total_us = part.ok_or_else(|| format!("`{text}` is too long a time"))?;
        largest_left = factor;
        rest = next;
    }
    Ok(Duration::from_micros(total_us))
}

pub(super) fn format_duration(value: Duration) -> String {
    let us = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
    let (unit, factor) = TIME_UNITS.iter().find(|(_, f)| us >= *f && us.is_multiple_of(*f)).unwrap_or(&("s", 1));
    format!("{}{unit}", us / factor)
}

/// For `#[serde(with)]`.
pub(super) mod duration {
    use super::*;

    pub(in crate::config) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_duration(*value))
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        deserializer.deserialize_str(Text("a duration such as \"5s\"", parse_duration))
    }
}

/// For `#[serde(with)]`.
pub(super) mod socket_addr {
    use std::net::SocketAddr;

    use super::*;

    pub(in crate::config) fn serialize<S: Serializer>(value: &SocketAddr, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
        deserializer.deserialize_str(Text("an address such as \"127.0.0.1:7411\"", parse))
    }

    fn parse(text: &str) -> Result<SocketAddr, String> {
        text.parse().map_err(|_| {
            format!("`{text}` is not an address: write an IP address and a port, such as \"127.0.0.1:7411\" or \"[::1]:7411\"")
        })
    }
}

/// For `#[serde(with)]`.
pub(super) mod socket_addr_option {
    use std::net::SocketAddr;

    use super::*;

    pub(in crate::config) fn serialize<S: Serializer>(
        value: &Option<SocketAddr>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(address) => serializer.collect_str(address),
            None => serializer.serialize_none(),
        }
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<SocketAddr>, D::Error> {
        socket_addr::deserialize(deserializer).map(Some)
    }
}

/// Digits, then what follows them.
fn split_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number = text[..end].parse().ok()?;
    Some((number, text[end..].trim_start()))
}

/// A value written as text: what is expected, and how it is read.
struct Text<T>(&'static str, fn(&str) -> Result<T, String>);

impl<T> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.1)(text).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn durations_are_read_with_their_units() {
        for (text, us) in [
            ("250ms", 250_000),
            ("5s", 5_000_000),
            ("10m", 600_000_000),
            ("1h30m", 5_400_000_000),
            ("7d", 604_800_000_000),
            ("0s", 0),
            ("9us", 9),
        ] {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_micros(us), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused_with_the_text() {
        for text in ["", "5", "s", "-5s", "5 parsecs", "1.5s", "5s5s", "1m2h", "99999999999999d", "5s "] {
            let error = parse_duration(text).unwrap_err();
            assert!(error.contains(&format!("`{text}`")), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in [
            ("4GiB", 4 << 30),
            ("512MB", 512_000_000),
            ("512MiB", 512 << 20),
            ("1 mib", 1 << 20),
            ("7B", 7),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(text.parse::<ByteSize>().unwrap(), ByteSize(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_the_text() {
        for text in ["", "512", "MB", "-1MB", "1.5GiB", "512 parrots", "99999999999999TiB"] {
            let error = text.parse::<ByteSize>().unwrap_err();
            assert!(error.contains(&format!("`{text}`")), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for us in [0, 1, 1_500, 250_000, 5_000_000, 90_000_000, 86_400_000_000] {
            let value = Duration::from_micros(us);
            assert_eq!(parse_duration(&format_duration(value)).unwrap(), value);
        }
        for bytes in [0, 1, 1024, 1_000_000, 100 << 20, 1 << 30, 3 << 29] {
            assert_eq!(ByteSize(bytes).to_string().parse::<ByteSize>().unwrap(), ByteSize(bytes));
        }
        assert_eq!(ByteSize::mib(100).to_string(), "100MiB");
    }
}
