//! Reads the file and the environment into one [`NodeConfig`], and says exactly what is wrong with either.

use std::fmt;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::{NodeConfig, keys};

const PREFIX: &str = "EMBERMESH_";
/// Variables of the command line, not of the configuration.
const OTHER_VARIABLES: [&str; 5] =
    ["EMBERMESH_API", "EMBERMESH_AUTH", "EMBERMESH_CONFIG", "EMBERMESH_LOG", "EMBERMESH_OUTPUT"];

/// Why there is no configuration to start with.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "configuration file {path} can't be read ({source}): check the path given with --config, and its permissions"
    )]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{path}:{line}: {message}")]
    Syntax { path: PathBuf, line: usize, message: String },
    #[error("{path}:{line}: unknown key `{key}`{}", hint(.suggestion.as_deref(), .known))]
    UnknownKey { path: PathBuf, line: usize, key: String, suggestion: Option<String>, known: String },
    #[error("environment variable {name} names no key of the configuration{}", hint(.suggestion.as_deref(), ""))]
    UnknownVariable { name: String, suggestion: Option<String> },
    #[error("environment variable {name}: {message}")]
    BadVariable { name: String, message: String },
    #[error("the configuration does not hold together:{}", Problems(.0))]
    Invalid(Vec<String>),
}

impl NodeConfig {
    /// Defaults, overridden by the file, overridden by the environment. Not yet validated: flags come first.
    pub fn load(path: Option<&Path>, env: impl Iterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let mut table = match path {
            Some(path) => read_file(path)?,
            None => Table::new(),
        };
        for (name, text) in env {
            if let Some((section, key)) = key_of_variable(&name)? {
                set(&mut table, section, key, value_of_variable(&name, section, key, &text)?);
            }
        }
        // Each part has been read once by itself, so that this can't fail for a reason of the user's.
        Value::Table(table).try_into().map_err(|e: toml::de::Error| ConfigError::Invalid(vec![e.message().to_owned()]))
    }
}

fn read_file(path: &Path) -> Result<Table, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    let syntax = |error: toml::de::Error| ConfigError::Syntax {
        path: path.to_owned(),
        line: line_of(&text, error.span()),
        message: error.message().trim().to_owned(),
    };
    let document = DeTable::parse(&text).map_err(syntax)?;
    check_keys(path, &text, document.get_ref())?;
    // For the types and the values, with their lines.
    toml::from_str::<NodeConfig>(&text).map_err(syntax)?;
    toml::from_str(&text).map_err(syntax)
}

fn check_keys(path: &Path, text: &str, document: &DeTable<'_>) -> Result<(), ConfigError> {
    let unknown = |key: String, at: Range<usize>, suggestion, known: &[&str]| ConfigError::UnknownKey {
        path: path.to_owned(),
        line: line_of(text, Some(at)),
        key,
        suggestion,
        known: known.join(", "),
    };
    for (name, value) in document {
        let section = name.get_ref().as_ref();
        if !keys::top().contains(&section) {
            let near = suggestion("", section, keys::top());
            return Err(unknown(section.to_owned(), name.span(), near, keys::top()));
        }
        let (Some(known), DeValue::Table(entries)) = (keys::of_section(section), value.get_ref()) else {
            continue;
        };
        if let Some(key) = entries.keys().find(|key| !known.contains(&key.get_ref().as_ref())) {
            let name: &Spanned<_> = key;
            let key = name.get_ref().as_ref();
            let near = suggestion(section, key, known);
            return Err(unknown(format!("{section}.{key}"), name.span(), near, known));
        }
    }
    Ok(())
}

/// The same key in another section, the nearest one here, or the nearest anywhere.
fn suggestion(section: &str, key: &str, here: &[&'static str]) -> Option<String> {
    let full = |section: &str, key: &str| if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
    if let Some((other, key)) = keys::all().find(|(_, known)| *known == key) {
        return Some(full(other, key));
    }
    if let Some(near) = keys::nearest(key, here) {
        return Some(full(section, near));
    }
    let near = keys::nearest(key, keys::all().map(|(_, known)| known))?;
    keys::all().find(|(_, known)| *known == near).map(|(other, known)| full(other, known))
}

/// The (section, key) that a variable sets; none when it isn't ours.
fn key_of_variable(name: &str) -> Result<Option<(&'static str, &'static str)>, ConfigError> {
    if !name.starts_with(PREFIX) || OTHER_VARIABLES.contains(&name) || is_kubernetes_service(name) {
        return Ok(None);
    }
    match keys::all().find(|(section, key)| variable(section, key) == name) {
        Some(found) => Ok(Some(found)),
        None => {
            let variables = keys::all().map(|(section, key)| variable(section, key));
            Err(ConfigError::UnknownVariable { name: name.to_owned(), suggestion: keys::nearest(name, variables) })
        }
    }
}

fn variable(section: &str, key: &str) -> String {
    let separator = if section.is_empty() { "" } else { "_" };
    format!("{PREFIX}{section}{separator}{key}").to_uppercase()
}

/// Kubernetes sets variables named after each service, such as `EMBERMESH_SERVICE_HOST`, in every pod.
fn is_kubernetes_service(name: &str) -> bool {
    let digit_after_port = name.split("_PORT_").skip(1).any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT") || name.ends_with("_PORT") || digit_after_port
}

/// A variable is text: it becomes the first of string, number or truth value, and list that its key takes.
fn value_of_variable(name: &str, section: &str, key: &str, text: &str) -> Result<Value, ConfigError> {
    let literal = format!("v = {}", text.trim()).parse::<Table>().ok().and_then(|mut table| table.remove("v"));
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let list = Value::Array(items.map(|item| Value::String(item.to_owned())).collect());
    let mut message = None;
    for value in [Some(Value::String(text.to_owned())), literal, Some(list)].into_iter().flatten() {
        let mut alone = Table::new();
        set(&mut alone, section, key, value.clone());
        match Value::Table(alone).try_into::<NodeConfig>() {
            Ok(_) => return Ok(value),
            // The first reading's complaint is about the text as it was written.
            Err(error) => message = message.or(Some(error.message().trim().to_owned())),
        }
    }
    Err(ConfigError::BadVariable { name: name.to_owned(), message: message.unwrap_or_default() })
}

fn set(table: &mut Table, section: &str, key: &str, value: Value) {
    if section.is_empty() {
        table.insert(key.to_owned(), value);
        return;
    }
    let entry = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(section) = entry {
        section.insert(key.to_owned(), value);
    }
}

fn line_of(text: &str, span: Option<Range<usize>>) -> usize {
    let start = span.map_or(0, |span| span.start).min(text.len());
    text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count() + 1
}

fn hint(suggestion: Option<&str>, known: &str) -> String {
    match (suggestion, known) {
        (Some(near), _) => format!(": did you mean `{near}`?"),
        (None, "") => ": remove it, or see the configuration reference".to_owned(),
        (None, known) => format!(": use one of {known}"),
    }
}

struct Problems<'a>(&'a [String]);

impl fmt::Display for Problems<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [one] => write!(f, " {one}"),
            all => all.iter().try_for_each(|problem| write!(f, "\n  - {problem}")),
        }
    }
}
