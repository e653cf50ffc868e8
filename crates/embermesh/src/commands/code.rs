//! An action's code on its way to the node: what kind it is and how it travels.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::CommandError;

/// The node takes no more.
pub(super) const MAX_CODE_BYTES: u64 = 48 << 20;

pub(super) const KINDS: &str = "python:default, nodejs:default, native:default (an executable made with the SDK), actionloop:default \
     (an ActionLoop executable) or builtin:1";

pub(super) const BLACKBOX: &str = "blackbox";
const BUILTIN: &str = "builtin:";
const ELF_MAGIC: &[u8] = b"\x7fELF";

/// The `exec` object of an action: `file` is a path, or `builtin:NAME`.
pub(super) fn exec(file: &str, kind: Option<&str>, main: Option<&str>) -> Result<Value, CommandError> {
    if let Some(builtin) = file.strip_prefix(BUILTIN) {
        return builtin_exec(builtin, kind, main);
    }
    let bytes = read(Path::new(file))?;
    let kind = match kind.or_else(|| kind_of(file, &bytes)) {
        Some(kind) => kind,
        None => {
            return Err(CommandError::Usage(format!("`{file}` does not tell its kind: give --kind {KINDS}")));
        }
    };
    let mut exec = json!({ "kind": kind });
    set_code(&mut exec, bytes);
    if let Some(main) = main {
        exec["main"] = main.into();
    }
    Ok(exec)
}

/// The same of an action that an image runs; its code is the image's own affair.
pub(super) fn image_exec(image: &str, file: Option<&str>, main: Option<&str>) -> Result<Value, CommandError> {
    let mut exec = json!({ "kind": BLACKBOX, "image": image });
    if let Some(file) = file {
        set_code(&mut exec, read(Path::new(file))?);
    }
    if let Some(main) = main {
        exec["main"] = main.into();
    }
    Ok(exec)
}

fn builtin_exec(name: &str, kind: Option<&str>, main: Option<&str>) -> Result<Value, CommandError> {
    if let Some(kind) = kind.filter(|kind| !kind.starts_with(BUILTIN)) {
        return Err(CommandError::Usage(format!(
            "`{BUILTIN}{name}` ships with Embermesh and has no kind `{kind}`; for a file of that name write ./{BUILTIN}{name}"
        )));
    }
    if main.is_some() || name.is_empty() {
        return Err(CommandError::Usage(format!("write {BUILTIN}NAME without --main, e.g. {BUILTIN}echo")));
    }
    Ok(json!({ "kind": kind.unwrap_or("builtin:1"), "main": name }))
}

fn kind_of(file: &str, bytes: &[u8]) -> Option<&'static str> {
    let ending = Path::new(file).extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    match ending.as_deref() {
        Some("py") => Some("python:default"),
        Some("js" | "mjs" | "cjs") => Some("nodejs:default"),
        _ if bytes.starts_with(ELF_MAGIC) => Some("native:default"),
        _ => None,
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CommandError> {
    let shown = path.display();
    let failed = |e: std::io::Error| CommandError::Input(format!("`{shown}` can't be read: {e}"));
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too large, whatever its length said before.
    File::open(path).map_err(failed)?.take(MAX_CODE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.is_empty() {
        return Err(CommandError::Input(format!("`{shown}` is empty: an action needs code")));
    }
    if bytes.len() as u64 > MAX_CODE_BYTES {
        return Err(CommandError::Input(format!(
            "`{shown}` is larger than {} MB, the most an action's code may have: leave out what it can fetch or build",
            MAX_CODE_BYTES >> 20
        )));
    }
    Ok(bytes)
}

fn set_code(exec: &mut Value, bytes: Vec<u8>) {
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => {
            exec["code"] = text.into();
            exec["binary"] = false.into();
        }
        Ok(text) => set_binary(exec, text.as_bytes()),
        Err(e) => set_binary(exec, e.as_bytes()),
    }
}

fn set_binary(exec: &mut Value, bytes: &[u8]) {
    exec["code"] = BASE64_STANDARD.encode(bytes).into();
    exec["binary"] = true.into();
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::commands::Exit;

    fn file(name: &str, content: &[u8]) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let path = path.to_str().unwrap().to_owned();
        (folder, path)
    }

    #[test]
    fn the_file_tells_the_kind() {
        let cases: [(&str, &[u8], &str); 6] = [
            ("a.py", b"def main(args): return {}", "python:default"),
            ("a.js", b"function main() {}", "nodejs:default"),
            ("a.MJS", b"export {}", "nodejs:default"),
            ("a.cjs", b"exports.main = 1", "nodejs:default"),
            ("hello", b"\x7fELF\x02\x01\x01\x00", "native:default"),
            ("hello.bin", b"\x7fELF\x02\x01\x01\x00", "native:default"),
        ];
        for (name, content, kind) in cases {
            let (_folder, path) = file(name, content);
            assert_eq!(exec(&path, None, None).unwrap()["kind"], kind, "{name}");
            assert_eq!(exec(&path, Some("actionloop:default"), None).unwrap()["kind"], "actionloop:default");
        }
    }

    #[test]
    fn a_file_that_tells_no_kind_is_a_usage_error_that_lists_them() {
        let (_folder, path) = file("hello.sh", b"#!/bin/sh\n");
        let error = exec(&path, None, None).unwrap_err();
        assert_eq!(error.exit(), Exit::Usage);
        for kind in ["python:default", "nodejs:default", "native:default", "actionloop:default", "builtin:1"] {
            assert!(error.to_string().contains(kind), "{error}");
        }
    }

    #[test]
    fn source_travels_as_text_and_everything_else_in_base64() {
        let (_folder, path) = file("a.py", "print('ü')".as_bytes());
        assert_eq!(
            exec(&path, None, Some("f")).unwrap(),
            json!({"kind": "python:default", "code": "print('ü')", "binary": false, "main": "f"})
        );
        for content in [b"\x7fELF\x00".as_slice(), b"PK\xff\xfe"] {
            let (_folder, path) = file("a.js", content);
            let exec = exec(&path, None, None).unwrap();
            assert_eq!(exec["binary"], true);
            assert_eq!(BASE64_STANDARD.decode(exec["code"].as_str().unwrap()).unwrap(), content);
        }
    }

    #[test]
    fn a_builtin_has_a_name_and_no_code() {
        assert_eq!(exec("builtin:echo", None, None).unwrap(), json!({"kind": "builtin:1", "main": "echo"}));
        for error in [
            exec("builtin:", None, None),
            exec("builtin:echo", Some("python:3"), None),
            exec("builtin:echo", None, Some("x")),
        ] {
            assert_eq!(error.unwrap_err().exit(), Exit::Usage);
        }
    }

    #[test]
    fn code_that_is_missing_empty_or_over_48_mb_is_refused_before_it_is_sent() {
        let (folder, path) = file("a.py", b"");
        assert!(exec(&path, None, None).unwrap_err().to_string().contains("empty"));
        let missing = folder.path().join("b.py");
        let error = exec(missing.to_str().unwrap(), None, None).unwrap_err();
        assert!(error.to_string().contains("b.py") && error.exit() == Exit::Failure, "{error}");

        let large = File::create(folder.path().join("c.py")).unwrap();
        large.set_len(MAX_CODE_BYTES + 1).unwrap();
        let error = exec(folder.path().join("c.py").to_str().unwrap(), None, None).unwrap_err();
        assert!(error.to_string().contains("larger than 48 MB"), "{error}");
        large.set_len(MAX_CODE_BYTES).unwrap();
        assert!(exec(folder.path().join("c.py").to_str().unwrap(), None, None).is_ok());
    }
}
