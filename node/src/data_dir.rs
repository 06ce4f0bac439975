//! The data directory: made for its owner alone, and every file in it written whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Mode of keys, bundles and whatever else is secret.
pub(crate) const SECRET: u32 = 0o600;
/// Mode of certificates, which anyone may know.
pub(crate) const PUBLIC: u32 = 0o644;

/// A file or directory that could not be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}{}", path.display(), remedy(source))]
pub struct FileError {
    /// What was tried, as `read`.
    pub action: &'static str,
    /// With which file.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl FileError {
    pub(crate) fn new(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { action, path, source }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; give the user that runs the node access to it, or choose another data directory"
        }
        io::ErrorKind::ReadOnlyFilesystem => "; choose a data directory on a writable file system",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space and start again"
        }
        io::ErrorKind::NotADirectory => {
            "; a file is in the way: move it, or choose another data directory"
        }
        io::ErrorKind::AlreadyExists => {
            "; a file is in the way and is never overwritten: move it, or choose another name"
        }
        _ => "",
    }
}

/// Makes the data directory if there is none, for its owner alone (0700). One that others can
/// enter is used as it is, since an operator may have meant it, but logged.
///
/// # Errors
/// When it can neither be used nor made.
pub fn prepare(dir: &Path) -> Result<(), FileError> {
    let error = |action| FileError::new(action, dir);
    match fs::metadata(dir) {
        Ok(found) if found.is_dir() => {
            if found.mode() & 0o077 != 0 {
                let mode = format_args!("{:o}", found.mode() & 0o777).to_string();
                tracing::warn!(dir = %dir.display(), mode, "others can enter the data directory; \
                     chmod 700 keeps its keys to the node");
            }
            Ok(())
        }
        Ok(_) => Err(error("use the data directory")(io::ErrorKind::NotADirectory.into())),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            let parent = parent(dir);
            fs::create_dir_all(parent).map_err(error("create the data directory"))?;
            DirBuilder::new()
                .mode(0o700)
                .create(dir)
                .map_err(error("create the data directory"))?;
            sync_dir(parent)
        }
        Err(cause) => Err(error("use the data directory")(cause)),
    }
}

/// Writes a file whole: to a new file beside it, made durable, then renamed over the name. A
/// reader, or the next start after a crash, sees all of it or none.
pub(crate) fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let temporary = temporary_name(path).map_err(FileError::new("write", path))?;
    let written = write_new(&temporary, bytes, mode)
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(FileError::new("write", path));
    if written.is_err() {
        // The first error is the one to tell; what is left over is only a stray temporary file.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    sync_dir(parent(path))
}

/// Removes what a crash has left of writing this file, whose only writer is the caller. What cannot
/// be removed is only in the way of nobody.
pub(crate) fn remove_halves(dir: &Path, name: &str) {
    let begins = format!(".{name}.");
    let all = fs::read_dir(dir).into_iter().flatten().flatten();
    let is_half = |entry: &fs::DirEntry| {
        let its = entry.file_name();
        its.to_str().is_some_and(|its| its.starts_with(&begins) && its.ends_with(".tmp"))
    };
    for half in all.filter(is_half) {
        let _it_stays = fs::remove_file(half.path());
    }
}

/// Writes a file that only its owner may read, whole, under a name that nothing has yet.
///
/// # Errors
/// When something has the name, or it cannot be written.
pub fn write_new_secret(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let temporary = temporary_name(path).map_err(FileError::new("write", path))?;
    // A second name, unlike a rename, never takes the place of another file.
    let written = write_new(&temporary, bytes, SECRET)
        .and_then(|()| fs::hard_link(&temporary, path))
        .map_err(FileError::new("write", path));
    let _stray_at_worst = fs::remove_file(&temporary);
    written?;
    sync_dir(parent(path))
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    // `create_new` is O_EXCL: a file or link planted under this name is never written through.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn temporary_name(path: &Path) -> io::Result<PathBuf> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(io::Error::from)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(path.with_file_name(format!(".{name}.{:016x}.tmp", u64::from_le_bytes(random))))
}

/// Makes a rename, creation or removal in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), FileError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(FileError::new("sync", dir))
}

/// Reads a file; `None` if there is none. A secret that others can read is logged.
pub(crate) fn read(path: &Path, mode: u32) -> Result<Option<Vec<u8>>, FileError> {
    match fs::read(path) {
        Ok(bytes) => {
            let actual = fs::metadata(path).map_err(FileError::new("read", path))?.mode();
            if mode == SECRET && actual & 0o077 != 0 {
                tracing::warn!(file = %path.display(), "others can read this secret; chmod 600 it");
            }
            Ok(Some(bytes))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::new("read", path)(error)),
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn makes_a_private_directory_with_its_parents() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("a/b/data");
        prepare(&dir).unwrap();
        assert_eq!(mode(&dir), 0o700);
        prepare(&dir).unwrap();
    }

    #[test]
    fn a_file_in_the_way_is_named_with_a_remedy() {
        let base = tempfile::tempdir().unwrap();
        let file = base.path().join("data");
        fs::write(&file, "x").unwrap();
        for dir in [file.clone(), file.join("below")] {
            let message = prepare(&dir).unwrap_err().to_string();
            assert!(message.contains("data") && message.contains("in the way"), "{message}");
        }
    }

    #[test]
    fn written_files_have_their_mode_and_leave_no_temporary() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("secret");
        write(&path, b"one", SECRET).unwrap();
        write(&path, b"two", SECRET).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(read(&path, SECRET).unwrap().unwrap(), b"two");
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_new_secret_takes_no_file_s_place() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("secret");
        write_new_secret(&path, b"one").unwrap();
        assert_eq!(mode(&path), 0o600);
        let message = write_new_secret(&path, b"two").unwrap_err().to_string();
        assert!(message.contains("secret") && message.contains("never overwritten"), "{message}");
        assert_eq!(read(&path, SECRET).unwrap().unwrap(), b"one");
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_leaves_no_temporary() {
        let base = tempfile::tempdir().unwrap();
        let taken = base.path().join("taken");
        fs::create_dir(&taken).unwrap();
        let message = write(&taken, b"x", SECRET).unwrap_err().to_string();
        assert!(message.starts_with("cannot write") && message.contains("taken"), "{message}");
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_file_is_none_and_a_directory_an_error() {
        let base = tempfile::tempdir().unwrap();
        assert!(read(&base.path().join("none"), PUBLIC).unwrap().is_none());
        assert!(read(base.path(), PUBLIC).is_err());
    }

    #[test]
    fn remedies_follow_the_kind_of_error() {
        for (kind, word) in [
            (io::ErrorKind::PermissionDenied, "access"),
            (io::ErrorKind::ReadOnlyFilesystem, "writable file system"),
            (io::ErrorKind::StorageFull, "space"),
        ] {
            let message = FileError::new("write", Path::new("/x"))(kind.into()).to_string();
            assert!(message.contains("/x") && message.contains(word), "{message}");
        }
    }
}
