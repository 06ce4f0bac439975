//! A redb file that is never taken for newer than it is.
//!
//! Three things see to it:
//! - the whole file is checked when it is opened;
//! - commits are in two phases, so that damage is an error and never a step back to the commit
//!   before;
//! - a mark beside it holds the revision reached, written after each commit: it tells when the
//!   file was lost or put back from an older copy.
//!
//! What cannot be seen from here is a data directory restored from an old copy as a whole.

use super::StoreError;
use super::record::{decode_mark, encode_mark};
use crate::data_dir::{self, FileError, SECRET};
use redb::backends::InMemoryBackend;
use redb::{Database, DatabaseError, Durability, StorageBackend, StorageError, WriteTransaction};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};

/// What is kept in a file, and under which names.
pub(crate) struct Kind {
    /// The name of the file.
    pub(crate) file: &'static str,
    /// The name of its mark.
    pub(crate) mark: &'static str,
    /// The revision that its last commit has made.
    pub(crate) revision: fn(&Database, &Path) -> Result<u64, StoreError>,
}

/// An open file. Its calls wait for the disk.
pub(crate) struct Vault {
    kind: &'static Kind,
    /// `None`: in memory, gone with the process.
    dir: Option<PathBuf>,
    /// `None` after a write that failed, as the database then refuses every other: it is opened
    /// anew, and checked, before the next.
    pub(super) database: Option<Database>,
    /// The revision of the mark; `None` if it could not be written.
    marked: Option<u64>,
    /// The highest revision that was read or written.
    revision: u64,
}

impl Vault {
    /// Opens what is there; `None` if nothing is, and nothing says that it should be.
    ///
    /// # Errors
    /// When it cannot be used, is damaged, older than it was, or gone.
    pub(crate) fn open(dir: &Path, kind: &'static Kind) -> Result<Option<Self>, StoreError> {
        let (path, mark) = (dir.join(kind.file), dir.join(kind.mark));
        let mark = decode_mark(&data_dir::read(&mark, SECRET)?.unwrap_or_default());
        let there = path.try_exists().map_err(FileError::new("read", &path))?;
        if !there {
            let is_gone =
                || corrupt(&path, &format_args!("it is gone, but {} is there", kind.mark));
            return mark.map_or(Ok(None), |_| Err(is_gone()));
        }
        let database = open_checked(&path, kind)?;
        let revision = (kind.revision)(&database, &path)?;
        if mark.is_some_and(|mark| revision < mark) {
            return Err(corrupt(&path, &"it is older than it was"));
        }
        let (dir, database) = (Some(dir.to_owned()), Some(database));
        Ok(Some(Self { kind, dir, database, marked: mark, revision }))
    }

    /// Opens a file that may be older than it was, to look at, if that can be done.
    pub(crate) fn open_older(dir: &Path, kind: &'static Kind) -> Option<Self> {
        let path = dir.join(kind.file);
        let database = open_checked(&path, kind).ok()?;
        let revision = (kind.revision)(&database, &path).ok()?;
        let (dir, marked) = (Some(dir.to_owned()), None);
        Some(Self { kind, dir, database: Some(database), marked, revision })
    }

    /// Makes a file, in place of whatever there is, with its first content.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn create(
        dir: &Path,
        kind: &'static Kind,
        content: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<Self, StoreError> {
        let path = dir.join(kind.file);
        // Under another name first, so that one under its own name is always whole.
        let temporary = path.with_extension("redb.new");
        let file = FileError::new("write", &temporary);
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(true).mode(SECRET);
        let opened = options.open(&temporary).map_err(file)?;
        let database = Database::builder().create_file(opened);
        let database = database.map_err(|error| failed(&path, error))?;
        write(&database, content).map_err(|error| failed(&path, error))?;
        fs::rename(&temporary, &path).map_err(FileError::new("write", &path))?;
        data_dir::sync_dir(dir)?;
        let revision = (kind.revision)(&database, &path)?;
        let (dir, database) = (Some(dir.to_owned()), Some(database));
        Ok(Self { kind, dir, database, marked: None, revision })
    }

    /// One in memory, for a node that nobody will miss.
    pub(crate) fn in_memory(
        kind: &'static Kind,
        content: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Self {
        Self::over(InMemoryBackend::new(), kind, content).expect("memory takes everything")
    }

    /// One over anything that keeps bytes.
    pub(crate) fn over(
        backend: impl StorageBackend,
        kind: &'static Kind,
        content: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<Self, StoreError> {
        let path = Path::new("memory");
        let database = Database::builder().create_with_backend(backend);
        let database = database.map_err(|error| failed(path, error))?;
        write(&database, content).map_err(|error| failed(path, error))?;
        let revision = (kind.revision)(&database, path)?;
        let marked = Some(revision);
        Ok(Self { kind, dir: None, database: Some(database), marked, revision })
    }

    /// How often it was written.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// The file, for messages.
    pub(crate) fn path(&self) -> PathBuf {
        let memory = || PathBuf::from("memory");
        self.dir.as_ref().map_or_else(memory, |dir| dir.join(self.kind.file))
    }

    /// The database, opened anew if a write had failed.
    ///
    /// # Errors
    /// When it cannot be opened, or is older than it was.
    pub(crate) fn database(&mut self) -> Result<&Database, StoreError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => {
                let path = self.path();
                let database = open_checked(&path, self.kind)?;
                if (self.kind.revision)(&database, &path)? < self.revision {
                    return Err(corrupt(&path, &"it is older than it was"));
                }
                database
            }
        };
        Ok(self.database.insert(database))
    }

    /// Changes the content durably, and then the mark. What `change` writes has the next revision.
    ///
    /// # Errors
    /// When that fails: it may have taken effect then.
    pub(crate) fn commit(
        &mut self,
        change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        let path = self.path();
        let database = self.database()?;
        if let Err(error) = write(database, change) {
            self.database = None;
            return Err(failed(&path, error));
        }
        self.revision = (self.kind.revision)(self.database()?, &path)?;
        self.mark()
    }

    /// Writes the mark if it is behind.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn mark(&mut self) -> Result<(), StoreError> {
        if self.marked != Some(self.revision) {
            if let Some(dir) = &self.dir {
                data_dir::write(&dir.join(self.kind.mark), &encode_mark(self.revision), SECRET)?;
            }
            self.marked = Some(self.revision);
        }
        Ok(())
    }
}

/// Gives a file another name beside its own, one that is not in use; `None` if there is no file.
///
/// # Errors
/// When it cannot be given one.
pub(crate) fn keep(path: &Path) -> Result<Option<PathBuf>, StoreError> {
    let mut number = 1;
    loop {
        let kept = path.with_extension(format!("redb.before-{number}"));
        match fs::hard_link(path, &kept) {
            Ok(()) => return Ok(Some(kept)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(FileError::new("write", &kept)(error).into()),
        }
    }
}

fn write(
    database: &Database,
    change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    transaction.set_two_phase_commit(true);
    change(&transaction)?;
    transaction.commit()?;
    Ok(())
}

/// Opens a file that may be anything. The database trusts parts of its file and may panic where
/// they are damaged; that is an error of the file here, and the database is given up with it.
fn open_checked(path: &Path, kind: &Kind) -> Result<Database, StoreError> {
    let open = || -> Result<Database, StoreError> {
        let mut database = Database::open(path).map_err(|error| open_error(path, error))?;
        match database.check_integrity() {
            Ok(true) => {}
            Ok(false) => return Err(corrupt(path, &"its structure did not hold together")),
            Err(error) => return Err(open_error(path, error)),
        }
        (kind.revision)(&database, path)?;
        Ok(database)
    };
    panic::catch_unwind(AssertUnwindSafe(open))
        .unwrap_or_else(|_| Err(corrupt(path, &"the database cannot make sense of it")))
}

fn open_error(path: &Path, error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => {
            StoreError::Locked(path.parent().unwrap_or(path).to_owned())
        }
        DatabaseError::Storage(StorageError::Io(error)) => match error.kind() {
            io::ErrorKind::InvalidData
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::UnexpectedEof => corrupt(path, &error),
            _ => FileError::new("open", path)(error).into(),
        },
        other => corrupt(path, &other),
    }
}

pub(crate) fn corrupt(path: &Path, why: &dyn std::fmt::Display) -> StoreError {
    StoreError::Corrupt { path: path.to_owned(), why: why.to_string() }
}

/// What a read says.
pub(crate) fn unreadable(path: &Path, error: redb::Error) -> StoreError {
    match error {
        redb::Error::Io(error) => FileError::new("read", path)(error).into(),
        other => corrupt(path, &other),
    }
}

fn failed(path: &Path, error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::Io(error) => FileError::new("write", path)(error).into(),
        other => StoreError::Failed { path: path.to_owned(), why: other.to_string() },
    }
}
