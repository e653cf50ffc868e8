//! A call's query: few parameters, each with its own type; a wrong one is named, an unknown one ignored.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use super::error::ApiError;

/// The most that a list answers; `limit=0` asks for it.
const MAX_LIMIT: u64 = 200;
const DEFAULT_LIMIT: u64 = 30;

#[derive(Debug, Clone, Copy)]
pub(super) struct Query<'a>(&'a str);

/// Which part of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) limit: usize,
    pub(super) skip: usize,
}

impl<'a> Query<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self(text)
    }

    /// The parameter's value, the last if it comes several times; empty if it has none.
    pub(super) fn text(&self, name: &'static str) -> Result<Option<Cow<'a, str>>, ApiError> {
        let mut pairs = self.0.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let Some((_, value)) = pairs.rfind(|(key, _)| *key == name) else {
            return Ok(None);
        };
        decoded(value).map(Some).ok_or_else(|| bad(name, value, "UTF-8 text with `%` written as `%25`".to_owned()))
    }

    pub(super) fn flag(&self, name: &'static str, default: bool) -> Result<bool, ApiError> {
        let Some(value) = self.text(name)? else {
            return Ok(default);
        };
        match value.as_ref() {
            "true" | "yes" | "on" => Ok(true),
            "false" | "no" | "off" => Ok(false),
            other => Err(bad(name, other, "true or false".to_owned())),
        }
    }

    pub(super) fn number(&self, name: &'static str, range: RangeInclusive<u64>) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.text(name)? else {
            return Ok(None);
        };
        let plain = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
        let number = value.parse().ok().filter(|number| plain && range.contains(number));
        let expected = || match *range.end() {
            u64::MAX => format!("a whole number, {} or more", range.start()),
            end => format!("a whole number from {} to {end}", range.start()),
        };
        number.map(Some).ok_or_else(|| bad(name, &value, expected()))
    }

    /// `limit` and `skip`.
    pub(super) fn page(&self) -> Result<Page, ApiError> {
        let limit = match self.number("limit", 0..=MAX_LIMIT)?.unwrap_or(DEFAULT_LIMIT) {
            0 => MAX_LIMIT,
            limit => limit,
        };
        let skip = self.number("skip", 0..=u64::MAX)?.unwrap_or(0);
        Ok(Page {
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            skip: usize::try_from(skip).unwrap_or(usize::MAX),
        })
    }
}

fn bad(name: &'static str, value: &str, expected: String) -> ApiError {
    ApiError::BadQuery { name, value: value.chars().take(100).collect(), expected }
}

/// `+` and `%XX` made into what they stand for; `None` if that is no text.
fn decoded(value: &str) -> Option<Cow<'_, str>> {
    if !value.contains(['%', '+']) {
        return Some(Cow::Borrowed(value));
    }
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => hex(rest.next()?)? << 4 | hex(rest.next()?)?,
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn values_are_decoded_and_the_last_one_counts() {
        let query = Query::new("name=a%20b+c%C3%BC&blocking=false&blocking=true&empty&x=1=2");
        assert_eq!(query.text("name").unwrap().unwrap(), "a b cü");
        assert!(query.flag("blocking", false).unwrap());
        assert_eq!(query.text("empty").unwrap().unwrap(), "");
        assert_eq!(query.text("x").unwrap().unwrap(), "1=2");
        assert_eq!(query.text("other").unwrap(), None);
        assert!(Query::new("").flag("blocking", true).unwrap());
    }

    #[test]
    fn a_wrong_value_is_an_error_that_names_the_parameter_and_the_value() {
        for (query, name, value) in [
            ("limit=201", "limit", "201"),
            ("limit=-1", "limit", "-1"),
            ("limit=%2B5", "limit", "+5"),
            ("limit=", "limit", "``"),
            ("skip=x", "skip", "x"),
            ("skip=99999999999999999999", "skip", "99999999999999999999"),
            ("limit=%zz", "limit", "%zz"),
            ("limit=%ff", "limit", "%ff"),
            ("limit=5%", "limit", "5%"),
        ] {
            let error = Query::new(query).page().unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}`")) && error.contains(value), "{query}: {error}");
        }
        let error = Query::new("blocking=1").flag("blocking", false).unwrap_err().to_string();
        assert!(error.contains("`blocking`") && error.contains("`1`") && error.contains("true or false"), "{error}");
        let error = Query::new("timeout=60001").number("timeout", 1..=60_000).unwrap_err().to_string();
        assert!(error.contains("from 1 to 60000"), "{error}");
    }

    #[test]
    fn a_page_has_thirty_unless_asked_otherwise_and_zero_means_the_most() {
        let page = |query| Query::new(query).page().unwrap();
        assert_eq!(page(""), Page { limit: 30, skip: 0 });
        assert_eq!(page("limit=0&skip=7"), Page { limit: 200, skip: 7 });
        assert_eq!(page("limit=200"), Page { limit: 200, skip: 0 });
    }
}
