//! What a node must not forget: who it is, and its log.
//!
//! Who it is, which process of it began last, and how its log begins are one small record in a redb
//! file; the log is another file. Both are *vaults*, which are never taken for newer than they are,
//! for a fence that repeats can break a client's data.

mod record;
mod vault;

pub(crate) use record::{Record, sealed, unsealed};
pub(crate) use vault::{Kind, Vault, corrupt, keep, unreadable};

use crate::authority::CA_KEY;
use crate::data_dir::{self, FileError, SECRET};
use crate::endpoint::EndpointKeys;
use lockring_control::cluster::Floors;
use lockring_ring::BootId;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const LOCK: &str = "lock";

/// Who the node is.
pub(crate) const STATE: Kind =
    Kind { file: "state.redb", mark: "state.mark", revision: state_revision };

/// The log of its cluster.
pub(crate) const LOG: Kind = Kind { file: "log.redb", mark: "log.mark", revision: log_revision };

const TABLE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("node");
const KEY: &str = "record";

/// How often the log was written.
const REVISION: TableDefinition<'_, (), u64> = TableDefinition::new("revision");

/// The durable facts of a node. Holds the lock of the data directory while it lives. Its calls
/// wait for the disk.
pub struct Store {
    // Before the lock, so that it is closed before another process may open it.
    vault: Vault,
    record: Record,
    place: Place,
}

/// Where a store keeps its files.
enum Place {
    /// In a data directory, which is locked.
    Directory { dir: PathBuf, lock: File },
    /// In memory: gone with the process.
    Memory,
}

impl Place {
    /// The file system and the file that the lock is.
    fn of_lock(&self) -> Result<(u64, u64), StoreError> {
        let Self::Directory { dir, lock } = self else { return Ok((0, 0)) };
        let found = lock.metadata().map_err(FileError::new("read", &dir.join(LOCK)))?;
        Ok((found.dev(), found.ino()))
    }
}

/// What a process of the node begins from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// The node's id in its cluster, unless its log says another.
    pub node: u32,
    /// The cluster's id.
    pub cluster: [u8; 16],
    /// The keys of the node's endpoints.
    pub keys: EndpointKeys,
    /// This process.
    pub boot: BootId,
    /// The process that had the directory before, and is over, as its lock shows. Of a copied
    /// directory it may run on.
    pub after: Option<BootId>,
    /// What was before the log, if something was.
    pub floors: Option<Floors>,
}

/// Why the store cannot be used. A write that failed may have taken effect all the same; each is
/// safe to repeat, and to be found done by the next start.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the data directory.
    #[error(
        "the data directory {} is in use by another lockring process: stop that one, or give \
         this node a data directory of its own", .0.display()
    )]
    Locked(PathBuf),
    /// The user that runs the node may not write, or nobody may.
    #[error(transparent)]
    NotWritable(FileError),
    /// A file could not be used for another reason.
    #[error(transparent)]
    File(FileError),
    /// The file is not what was written.
    #[error(
        "{} is damaged: {why}. An older copy of it must not be used, as fencing tokens could \
         repeat. Run `lockring recover --data-dir {} --epoch-floor N` with an N above the epoch \
         of every fencing token seen: the token divided by 2^40",
        path.display(), path.parent().unwrap_or(path).display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The file is of a later version of the program.
    #[error(
        "{}: {why}. Run a version as new as the one that wrote it",
        path.display()
    )]
    Later {
        /// The file.
        path: PathBuf,
        /// Which version that is.
        why: String,
    },
    /// The last epoch has been reached.
    #[error(
        "the epochs of this node are used up (the floor is {0}): start a new cluster in an empty \
         data directory, and have whatever checks fencing tokens forget the old ones"
    )]
    EpochsUsedUp(u32),
    /// The system gives no randomness for the keys of a new node.
    #[error("the system gives no random numbers: {0}")]
    NoRandomness(getrandom::Error),
    /// The system gives no thread to write with.
    #[error("the system gives no thread: {0}")]
    NoThread(io::Error),
    /// The database failed while writing.
    #[error("cannot write {}: {why}; check the disk, then start the node again", path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// What the database said.
        why: String,
    },
}

impl StoreError {
    /// What the system said, without what it was about: for clients, who cannot see files.
    pub fn cause(&self) -> String {
        match self {
            Self::NotWritable(error) | Self::File(error) => {
                let text = error.source.to_string();
                text.split(" (os error").next().unwrap_or_default().to_owned()
            }
            Self::Failed { why, .. } | Self::Corrupt { why, .. } => why.clone(),
            other => other.to_string(),
        }
    }
}

impl From<FileError> for StoreError {
    fn from(error: FileError) -> Self {
        match error.source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::NotWritable(error)
            }
            _ => Self::File(error),
        }
    }
}

impl Store {
    /// Opens the store of a data directory, both made if missing, and locks the directory.
    ///
    /// # Errors
    /// When another process has it, or it cannot be written, or is damaged.
    pub(crate) fn open(data_dir: &Path) -> Result<Self, StoreError> {
        data_dir::prepare(data_dir)?;
        let lock = lock(data_dir)?;
        for kind in [&STATE, &LOG] {
            data_dir::remove_halves(data_dir, kind.mark);
        }
        let mut vault = match Vault::open(data_dir, &STATE)? {
            Some(vault) => vault,
            // An authority without a state is one that lost it: made anew it would repeat fences.
            None if data_dir.join(CA_KEY).symlink_metadata().is_ok() => {
                let why = format_args!("it is gone, but {CA_KEY} is there");
                return Err(corrupt(&data_dir.join(STATE.file), &why));
            }
            None => {
                let record = Record::new().map_err(StoreError::NoRandomness)?;
                Vault::create(data_dir, &STATE, |transaction| put(transaction, &record))?
            }
        };
        vault.mark()?;
        let path = vault.path();
        let record = read(vault.database()?, &path)?;
        let place = Place::Directory { dir: data_dir.to_owned(), lock };
        Ok(Self { vault, record, place })
    }

    /// A store in memory, for a node that nobody will miss.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub(crate) fn in_memory() -> Result<Self, StoreError> {
        let record = Record::new().map_err(StoreError::NoRandomness)?;
        let vault = Vault::in_memory(&STATE, |transaction| put(transaction, &record));
        Ok(Self { vault, record, place: Place::Memory })
    }

    /// Begins a process of the node, over this log: it is the last one of this directory from here
    /// on, and no older log is taken for it.
    ///
    /// # Errors
    /// When the write fails.
    pub(crate) fn begin(&mut self, boot: BootId, log: &Vault) -> Result<Boot, StoreError> {
        let here = self.place.of_lock()?;
        let is_here = self.record.place == here;
        let before = self.record.boot;
        let log = log.revision();
        self.change(|record| (record.boot, record.place, record.log) = (boot.0, here, log))?;
        let Record { node, cluster, keys, floors, .. } = self.record.clone();
        let after = (is_here && before != 0).then_some(BootId(before));
        Ok(Boot { node, cluster, keys, boot, after, floors })
    }

    /// The log of the node: what there is of it, or an empty one.
    ///
    /// # Errors
    /// When it cannot be used, or is damaged, lost, or older than it was.
    pub(crate) fn log(&mut self) -> Result<Vault, StoreError> {
        let Place::Directory { dir, .. } = &self.place else {
            return Ok(Vault::in_memory(&LOG, count));
        };
        let mut log = match Vault::open(dir, &LOG)? {
            Some(log) => log,
            None if self.record.is_logged => {
                return Err(corrupt(&dir.join(LOG.file), &"it is gone"));
            }
            None => Vault::create(dir, &LOG, count)?,
        };
        log.mark()?;
        if log.revision() < self.record.log {
            return Err(corrupt(&log.path(), &"it is older than it was"));
        }
        if !self.record.is_logged {
            self.change(|record| record.is_logged = true)?;
        }
        Ok(log)
    }

    fn change(&mut self, change: impl FnOnce(&mut Record)) -> Result<(), StoreError> {
        let mut next = self.record.clone();
        change(&mut next);
        next.revision += 1;
        self.vault.commit(|transaction| put(transaction, &next))?;
        self.record = next;
        Ok(())
    }
}

/// Replaces the record of a directory that nobody has, or makes one.
///
/// # Errors
/// When another process has it, or it cannot be written.
pub(crate) fn replace(dir: &Path, record: &Record) -> Result<(), StoreError> {
    let mut vault = Vault::create(dir, &STATE, |transaction| put(transaction, record))?;
    vault.mark()
}

/// Locks a directory until what is returned is dropped.
///
/// # Errors
/// When another process has it, or it cannot be locked.
pub(crate) fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join(LOCK);
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(false).mode(SECRET);
    let file = options.open(&path).map_err(FileError::new("write", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(FileError::new("lock", &path)(error).into()),
    }
}

fn put(transaction: &WriteTransaction, record: &Record) -> Result<(), redb::Error> {
    transaction.open_table(TABLE)?.insert(KEY, record.encode().as_slice())?;
    Ok(())
}

/// The record of a file.
///
/// # Errors
/// When there is none, or none that was written so.
pub(crate) fn read(database: &Database, path: &Path) -> Result<Record, StoreError> {
    let bytes = || -> Result<Option<Vec<u8>>, redb::Error> {
        let table = database.begin_read()?.open_table(TABLE)?;
        Ok(table.get(KEY)?.map(|bytes| bytes.value().to_vec()))
    };
    let bytes = bytes().map_err(|error| unreadable(path, error))?;
    let bytes = bytes.ok_or_else(|| corrupt(path, &"its record is gone"))?;
    Record::decode(&bytes).map_err(|why| corrupt(path, &why))
}

fn state_revision(database: &Database, path: &Path) -> Result<u64, StoreError> {
    Ok(read(database, path)?.revision)
}

fn log_revision(database: &Database, path: &Path) -> Result<u64, StoreError> {
    let revision = || -> Result<Option<u64>, redb::Error> {
        let table = database.begin_read()?.open_table(REVISION)?;
        Ok(table.get(())?.map(|revision| revision.value()))
    };
    let revision = revision().map_err(|error| unreadable(path, error))?;
    revision.ok_or_else(|| corrupt(path, &"it was never written"))
}

/// The log is being written.
pub(crate) fn count(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(REVISION)?;
    let revision = table.get(())?.map_or(0, |revision| revision.value());
    table.insert((), revision + 1)?;
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
