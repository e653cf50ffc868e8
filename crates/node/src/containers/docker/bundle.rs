//! An image's files out of the running program: its executable and the libraries it maps, as a tar archive.
//!
//! So an engine without any registry can run containers of ours, with nothing built or downloaded.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::spec::PROGRAM;

/// Some programs ask who they are.
const USERS: &str = "root:x:0:0:root:/:/none\naction:x:65532:65532:action:/tmp:/none\n";
const ELF_INTERPRETER: u32 = 3;
const LONGEST_INTERPRETER: usize = 4096;

/// What goes where, in the archive's order.
#[derive(Debug)]
pub(super) struct Bundle {
    files: BTreeMap<PathBuf, PathBuf>,
    links: BTreeMap<PathBuf, PathBuf>,
    digest: String,
}

impl Bundle {
    /// Reads all of it once. Blocks.
    pub(super) fn of(binary: &Path) -> io::Result<Self> {
        let mut files = BTreeMap::from([(PathBuf::from(PROGRAM), binary.to_owned())]);
        let mut links = BTreeMap::new();
        let libraries = mapped_libraries()?;
        for library in &libraries {
            files.insert(library.clone(), library.clone());
        }
        if let Some(loader) = elf_interpreter(binary)? {
            // The kernel wants it at this very path, which on most hosts leads over a link.
            files.insert(loader.clone(), loader.canonicalize()?);
        }
        for folder in libraries.iter().filter_map(|library| library.parent()).collect::<BTreeSet<_>>() {
            links.extend(links_to(&libraries, folder)?);
        }
        links.retain(|link, _| !files.contains_key(link));
        let mut bundle = Self { files, links, digest: String::new() };
        let mut digest = Digest(blake3::Hasher::new());
        bundle.write(&mut digest)?;
        bundle.digest = digest.0.finalize().to_hex()[..16].to_owned();
        Ok(bundle)
    }

    /// Names the content.
    pub(super) fn digest(&self) -> &str {
        &self.digest
    }

    /// The same bytes for the same content. Blocks.
    pub(super) fn write(&self, to: impl Write) -> io::Result<()> {
        let mut archive = tar::Builder::new(to);
        let mut folders = BTreeSet::from([PathBuf::from("/tmp"), PathBuf::from("/run/embermesh")]);
        folders.insert(PathBuf::from("/etc"));
        let within = self.files.keys().chain(self.links.keys()).filter_map(|path| path.parent());
        folders.extend(within.map(Path::to_owned));
        let all: BTreeSet<PathBuf> = folders.iter().flat_map(|folder| folder.ancestors()).map(Path::to_owned).collect();
        for folder in all.iter().filter(|folder| folder.parent().is_some()) {
            let mut header = header(tar::EntryType::Directory, if folder.ends_with("tmp") { 0o1777 } else { 0o755 }, 0);
            archive.append_data(&mut header, relative(folder), io::empty())?;
        }
        let mut header_of_users = header(tar::EntryType::Regular, 0o644, USERS.len() as u64);
        archive.append_data(&mut header_of_users, "etc/passwd", USERS.as_bytes())?;
        for (path, source) in &self.files {
            let file = File::open(source).map_err(|error| named(&error, source))?;
            let bytes = file.metadata()?.len();
            archive.append_data(
                &mut header(tar::EntryType::Regular, 0o755, bytes),
                relative(path),
                file.take(bytes),
            )?;
        }
        for (path, target) in &self.links {
            archive.append_link(&mut header(tar::EntryType::Symlink, 0o777, 0), relative(path), target)?;
        }
        archive.finish()
    }
}

/// The root file system of an image that has only this program in it, as a tar archive. Blocks.
pub fn executable_archive(binary: &Path) -> io::Result<Vec<u8>> {
    let mut archive = Vec::new();
    Bundle::of(binary)?.write(&mut archive)?;
    Ok(archive)
}

/// The tag that the engine gives an image made of it. Blocks.
pub fn executable_digest(binary: &Path) -> io::Result<String> {
    Ok(Bundle::of(binary)?.digest)
}

struct Digest(blake3::Hasher);

impl Write for Digest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn header(kind: tar::EntryType, mode: u32, bytes: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(bytes);
    header.set_mtime(0);
    header
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

fn named(error: &io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// The shared libraries of this process.
fn mapped_libraries() -> io::Result<BTreeSet<PathBuf>> {
    let own = fs::read_link("/proc/self/exe")?;
    let maps = fs::read_to_string("/proc/self/maps")?;
    let executable = maps.lines().filter(|line| line.split_ascii_whitespace().nth(1).is_some_and(|m| m.contains('x')));
    let paths = executable.filter_map(|line| Some(PathBuf::from(&line[line.find('/')?..])));
    Ok(paths.filter(|path| *path != own && !path.to_string_lossy().ends_with(" (deleted)")).collect())
}

/// Links in `folder` under which programs look for these libraries.
fn links_to(libraries: &BTreeSet<PathBuf>, folder: &Path) -> io::Result<BTreeMap<PathBuf, PathBuf>> {
    let mut links = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_symlink()
            && let Ok(target) = entry.path().canonicalize()
            && libraries.contains(&target)
        {
            links.insert(entry.path(), target);
        }
    }
    Ok(links)
}

/// The loader that an executable names; none when it is linked statically.
fn elf_interpreter(binary: &Path) -> io::Result<Option<PathBuf>> {
    let mut file = File::open(binary).map_err(|error| named(&error, binary))?;
    let mut start = [0; 64];
    file.read_exact(&mut start)?;
    let odd = || io::Error::other(format!("{} is no executable for a 64-bit little-endian machine", binary.display()));
    if !start.starts_with(b"\x7fELF\x02\x01") {
        return Err(odd());
    }
    let word = |bytes: &[u8], at: usize| bytes[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or(0);
    let half = |at: usize| usize::from(u16::from_le_bytes([start[at], start[at + 1]]));
    let (table, size, count) = (word(&start, 32), half(54), half(56));
    if size < 56 {
        return Err(odd());
    }
    let mut headers = vec![0; size * count];
    file.seek(SeekFrom::Start(table))?;
    file.read_exact(&mut headers)?;
    let Some(found) = headers.chunks_exact(size).find(|header| header[..4] == ELF_INTERPRETER.to_le_bytes()) else {
        return Ok(None);
    };
    let length = usize::try_from(word(found, 32)).unwrap_or(usize::MAX).min(LONGEST_INTERPRETER);
    let mut path = vec![0; length];
    file.seek(SeekFrom::Start(word(found, 8)))?;
    file.read_exact(&mut path)?;
    let path = String::from_utf8(path).map_err(|_| odd())?;
    Ok(Some(PathBuf::from(path.trim_end_matches('\0'))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn this_program_and_its_loader_are_in_the_archive_and_it_is_always_the_same() {
        let bundle = Bundle::of(Path::new("/proc/self/exe")).unwrap();
        let mut first = Vec::new();
        bundle.write(&mut first).unwrap();
        assert_eq!(Bundle::of(Path::new("/proc/self/exe")).unwrap().digest(), bundle.digest());
        let mut archive = tar::Archive::new(first.as_slice());
        let names: Vec<_> = archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().into_owned()).collect();
        let loader = elf_interpreter(Path::new("/proc/self/exe")).unwrap().unwrap();
        for wanted in [Path::new(PROGRAM), &loader, Path::new("/etc/passwd")] {
            assert!(names.iter().any(|name| name == relative(wanted)), "{} in {names:?}", wanted.display());
        }
        assert!(names.iter().any(|name| name.to_string_lossy().contains("libc")), "{names:?}");
    }

    #[test]
    fn what_is_no_executable_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), [b'x'; 100]).unwrap();
        assert!(elf_interpreter(file.path()).unwrap_err().to_string().contains("no executable"));
    }
}
