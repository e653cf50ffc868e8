//! What a user asks for, checked and made into the next revision's content.

use crate::registry::action::{ActionEntry, KeyValue, Kind, Limits, Revision};
use crate::store::code::is_hash;

use super::{RegistryError, RegistryLimits};

const NAME_MAX: usize = 256;
const TIMEOUT_MIN_MS: u64 = 100;
const LOGS_MAX_MB: u64 = 10;
/// Parameters and annotations together, as JSON.
pub const MAX_METADATA_BYTES: usize = 1 << 20;
/// `main` is a name, not a place to keep data.
const MAIN_MAX_BYTES: usize = 1024;
const IMAGE_MAX_BYTES: usize = 512;
/// Sets the concurrency like `limits.concurrency`, for clients that only know annotations.
const MAX_CONCURRENT: &str = "max-concurrent";

/// The built-in actions that `main` of kind `builtin:1` can name.
pub const BUILTINS: [&str; 7] = ["echo", "sleep", "cpu", "note", "fail", "fail-init", "hang-init"];

/// What to set; the rest stays as it was, or gets its default in a new action.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ActionChange {
    pub kind: Option<Kind>,
    pub main: Option<String>,
    pub code: Option<CodeRef>,
    /// Of kind `blackbox`.
    pub image: Option<String>,
    pub limits: LimitsChange,
    /// Replaces all of them.
    pub parameters: Option<Vec<KeyValue>>,
    /// Sets these; other annotations stay, as OpenWhisk has it.
    pub annotations: Option<Vec<KeyValue>>,
}

/// Code that lies in the `CodeStore`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodeRef {
    /// blake3, hex.
    pub hash: String,
    pub bytes: u64,
}

/// As `Limits`, each of them optional.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LimitsChange {
    pub memory: Option<u64>,
    pub timeout: Option<u64>,
    pub concurrency: Option<u32>,
    pub logs: Option<u64>,
}

impl ActionChange {
    /// The entry after this change. `before` is the live entry, if there is one; `revision` the new one's.
    pub(super) fn apply(
        self,
        (namespace, name): (&str, &str),
        before: Option<&ActionEntry>,
        revision: Revision,
        now_ms: u64,
    ) -> Result<ActionEntry, RegistryError> {
        let kind = self.kind.or(before.map(|b| b.kind)).ok_or(RegistryError::KindMissing)?;
        let concurrency = match (self.limits.concurrency, &self.annotations) {
            (Some(given), _) => Some(given),
            (None, Some(annotations)) => concurrency_of(annotations)?,
            (None, None) => None,
        };
        let old = before.map(|b| b.limits.clone()).unwrap_or_default();
        let limits = Limits {
            memory: self.limits.memory.unwrap_or(old.memory),
            timeout: self.limits.timeout.unwrap_or(old.timeout),
            concurrency: concurrency.unwrap_or(old.concurrency),
            logs: self.limits.logs.unwrap_or(old.logs),
            further: old.further,
        };
        let old_code = before.and_then(|b| Some(CodeRef { hash: b.code_hash.clone()?, bytes: b.code_bytes }));
        // Built-in actions ship with the node: code of an earlier kind would only be kept for nothing.
        let code = self.code.or(old_code).filter(|_| kind != Kind::Builtin);
        let kind_changed = before.is_some_and(|b| b.kind != kind);
        let old_image = before.filter(|_| kind == Kind::Blackbox).and_then(|b| b.image.clone());
        let old_main = before.filter(|_| !kind_changed).map(|b| b.main.clone());
        Ok(ActionEntry {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            revision,
            deleted: false,
            version: before.map_or_else(|| "0.0.1".to_owned(), |b| next_version(&b.version)),
            kind,
            main: self.main.or(old_main).unwrap_or_default(),
            code_bytes: code.as_ref().map_or(0, |code| code.bytes),
            code_hash: code.map(|code| code.hash),
            image: self.image.or(old_image),
            limits,
            parameters: self.parameters.or(before.map(|b| b.parameters.clone())).unwrap_or_default(),
            annotations: merged(before.map(|b| b.annotations.as_slice()).unwrap_or_default(), self.annotations),
            updated_ms: now_ms,
            further: before.map(|b| b.further.clone()).unwrap_or_default(),
        })
    }
}

/// What a node accepts from its own users.
pub(super) fn check_entry(entry: &ActionEntry, limits: &RegistryLimits) -> Result<(), RegistryError> {
    check_shape(entry)?;
    let range = |limit, value, min, max, unit| {
        if (min..=max).contains(&value) {
            Ok(())
        } else {
            Err(RegistryError::OutOfRange { limit, value, min, max, unit })
        }
    };
    let asked = &entry.limits;
    range("memory", asked.memory, limits.memory_min_mb, limits.memory_max_mb, "MB")?;
    range("timeout", asked.timeout, TIMEOUT_MIN_MS, limits.timeout_max_ms, "ms")?;
    range("concurrency", asked.concurrency.into(), 1, limits.concurrency_max.into(), "activations")?;
    range("logs", asked.logs, 0, LOGS_MAX_MB, "MB")?;
    if entry.kind == Kind::ActionLoop && asked.concurrency > 1 {
        return Err(RegistryError::NotConcurrent { kind: entry.kind, concurrency: asked.concurrency });
    }
    if entry.kind == Kind::Builtin {
        if !entry.main.is_empty() && !BUILTINS.contains(&entry.main.as_str()) {
            return Err(RegistryError::UnknownBuiltin { main: entry.main.clone() });
        }
    } else if entry.kind != Kind::Blackbox && (entry.code_hash.is_none() || entry.code_bytes == 0) {
        return Err(RegistryError::CodeMissing { kind: entry.kind });
    }
    if entry.image.is_some() != (entry.kind == Kind::Blackbox) {
        return Err(RegistryError::ImageAndKind { kind: entry.kind });
    }
    if entry.code_bytes > limits.code_max_bytes {
        return Err(RegistryError::CodeTooLarge { bytes: entry.code_bytes, limit: limits.code_max_bytes });
    }
    Ok(())
}

/// What a node accepts from its peers too, whose limits may be configured otherwise: nothing that breaks
/// its own bounds or paths.
pub(super) fn check_shape(entry: &ActionEntry) -> Result<(), RegistryError> {
    check_name("namespace", &entry.namespace)?;
    check_name("action name", &entry.name)?;
    if entry.main.len() > MAIN_MAX_BYTES {
        return Err(RegistryError::MainTooLong { bytes: entry.main.len(), limit: MAIN_MAX_BYTES });
    }
    if let Some(hash) = entry.code_hash.as_deref().filter(|hash| !is_hash(hash)) {
        return Err(RegistryError::BadCodeHash { hash: hash.chars().take(80).collect() });
    }
    if let Some(image) = entry.image.as_deref().filter(|image| !is_image(image)) {
        return Err(RegistryError::BadImage { image: image.chars().take(IMAGE_MAX_BYTES).collect() });
    }
    let metadata = serde_json::to_vec(&(&entry.parameters, &entry.annotations));
    let bytes = metadata.map_or(usize::MAX, |json| json.len());
    if bytes > MAX_METADATA_BYTES {
        return Err(RegistryError::MetadataTooLarge { bytes, limit: MAX_METADATA_BYTES });
    }
    Ok(())
}

/// The characters of image names: `host:port/path/name:tag@digest`. The engine checks the rest.
fn is_image(image: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | ':' | '@');
    let fits = image.len() <= IMAGE_MAX_BYTES && image.starts_with(|c: char| c.is_ascii_alphanumeric());
    fits && !image.contains("..") && image.chars().all(plain)
}

/// OpenWhisk's entity names.
pub fn check_name(what: &'static str, name: &str) -> Result<(), RegistryError> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let fits = name.len() <= NAME_MAX
        && name.starts_with(word)
        && !name.ends_with(' ')
        && name.chars().all(|c| word(c) || matches!(c, '@' | ' ' | '.' | '-'));
    if fits { Ok(()) } else { Err(RegistryError::BadName { what, name: name.chars().take(NAME_MAX + 1).collect() }) }
}

fn concurrency_of(annotations: &[KeyValue]) -> Result<Option<u32>, RegistryError> {
    // Of several with one key the last counts, as it does in OpenWhisk.
    let Some(annotation) = annotations.iter().rev().find(|annotation| annotation.key == MAX_CONCURRENT) else {
        return Ok(None);
    };
    let number = match &annotation.value {
        serde_json::Value::String(text) => text.parse().ok(),
        value => value.as_u64().and_then(|number| u32::try_from(number).ok()),
    };
    let bad = || RegistryError::BadAnnotation { key: MAX_CONCURRENT, value: annotation.value.to_string() };
    number.map(Some).ok_or_else(bad)
}

fn merged(old: &[KeyValue], new: Option<Vec<KeyValue>>) -> Vec<KeyValue> {
    let mut all: Vec<KeyValue> = Vec::with_capacity(old.len());
    for annotation in old.iter().cloned().chain(new.unwrap_or_default()) {
        match all.iter_mut().find(|known| known.key == annotation.key) {
            Some(known) => known.value = annotation.value,
            None => all.push(annotation),
        }
    }
    all
}

/// `0.0.1` to `0.0.2`. A version that isn't three numbers came from a peer; it starts again.
fn next_version(version: &str) -> String {
    let raised = version.rsplit_once('.').and_then(|(rest, patch)| {
        let patch: u64 = patch.parse().ok()?;
        Some(format!("{rest}.{}", patch.checked_add(1)?))
    });
    raised.unwrap_or_else(|| "0.0.1".to_owned())
}
