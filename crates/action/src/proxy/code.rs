//! Puts the code that came with `/init` into the container's folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::engine::general_purpose::STANDARD;
use base64::read::DecoderReader;

use crate::contract::InitRequest;

const EXECUTABLE: u32 = 0o755;
const READABLE: u32 = 0o644;

/// Writes the code as an executable file.
pub(super) fn write_executable(init: &InitRequest<'_>, path: &Path) -> Result<(), String> {
    if init.code.as_str().is_empty() {
        return Err("`code` is empty: give the executable, in base64 with `binary` true, or a script".to_owned());
    }
    let mut file = create(path, EXECUTABLE)?;
    copy(init, &mut file).map_err(|e| write_error(path, &e))
}

/// Writes the code as source text.
pub(super) fn write_source(init: &InitRequest<'_>, path: &Path) -> Result<(), String> {
    if init.code.as_str().is_empty() {
        return Err("`code` is empty: give the source text".to_owned());
    }
    let mut source = Vec::new();
    copy(init, &mut source).map_err(|e| write_error(path, &e))?;
    if source.starts_with(b"PK\x03\x04") {
        return Err("the code is a zip archive, which is not supported: give a single source file".to_owned());
    }
    if let Err(e) = std::str::from_utf8(&source) {
        return Err(format!("the code is not UTF-8 text ({e}): give the source, not a compiled or packed form"));
    }
    create(path, READABLE)?.write_all(&source).map_err(|e| write_error(path, &e))
}

/// Writes a file of our own beside it.
pub(super) fn write_file(path: &Path, text: &str) -> Result<(), String> {
    create(path, READABLE)?.write_all(text.as_bytes()).map_err(|e| write_error(path, &e))
}

fn create(path: &Path, mode: u32) -> Result<File, String> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(write_error(path, &e)),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(|e| write_error(path, &e))
}

/// Piece by piece: the code may be almost as large as the container's memory.
fn copy(init: &InitRequest<'_>, to: &mut impl Write) -> io::Result<()> {
    let code = init.code.as_str().as_bytes();
    if !init.binary() {
        return to.write_all(code);
    }
    let mut decoder = DecoderReader::new(code, &STANDARD);
    let mut chunk = vec![0; 64 * 1024];
    loop {
        match decoder.read(&mut chunk)? {
            0 => return Ok(()),
            bytes => to.write_all(&chunk[..bytes])?,
        }
    }
}

fn write_error(path: &Path, error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::InvalidData {
        return format!("`binary` is true and the code is not base64: {error}");
    }
    format!(
        "cannot write the code to {}: {error}; check the container's folder and its limit on file sizes",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn init(json: &str) -> InitRequest<'_> {
        InitRequest::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn base64_becomes_an_executable_file_and_replaces_one_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("exec");
        fs::write(&path, "old").unwrap();
        write_executable(&init(r#"{"value":{"code":"IyEvYmluL3NoCg==","binary":true}}"#), &path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "#!/bin/sh\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, EXECUTABLE);
    }

    #[test]
    fn what_is_no_code_is_refused_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("source");
        for (json, expected) in [
            (r#"{"value":{"code":""}}"#, "empty"),
            (r#"{"value":{"code":"!!!","binary":true}}"#, "not base64"),
            (r#"{"value":{"code":"UEsDBAo=","binary":true}}"#, "zip archive"),
            (r#"{"value":{"code":"gIGC","binary":true}}"#, "not UTF-8"),
        ] {
            let error = write_source(&init(json), &path).unwrap_err();
            assert!(error.contains(expected), "{json}: {error}");
        }
        assert!(write_executable(&init(r#"{"value":{}}"#), &path).unwrap_err().contains("empty"));
    }
}
