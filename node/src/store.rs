//! What a node must not forget: who it is, how often it started, and how high its epochs went.
//!
//! Everything is one small record in a redb file, written whole in one durable transaction. Its
//! promise is that the epoch floor never goes back, for a fence that repeats can break a client's
//! data. Three things guard it:
//! - the record carries a checksum of its own, and the whole file is checked when it is opened;
//! - commits are in two phases, so that damage is an error and never a step back to the commit
//!   before;
//! - `state.mark` beside it holds the revision reached, written after each commit: it tells when
//!   the file was lost or put back from an older copy.
//!
//! What cannot be seen from here is a data directory restored from an old copy as a whole.

mod record;

#[cfg(test)]
pub(crate) use record::{sealed, unsealed};

use crate::authority::CA_KEY;
use crate::data_dir::{self, FileError, SECRET};
use crate::endpoint::EndpointKeys;
use lockring_control::{Entry, EpochsUsedUp, Grace, State, next_epoch};
use lockring_proto::limits;
use lockring_ring::Epoch;
use record::Record;
use redb::backends::InMemoryBackend;
use redb::{Database, DatabaseError, Durability, ReadableDatabase, StorageError, TableDefinition};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const STATE: &str = "state.redb";
const MARK: &str = "state.mark";
const LOCK: &str = "lock";

const TABLE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("node");
const KEY: &str = "record";

/// The durable facts of a node. Holds the lock of the data directory while it lives. Its calls
/// wait for the disk.
pub struct Store {
    // Before the lock, so that it is closed before another process may open it.
    opened: Mutex<Opened>,
    place: Place,
}

/// Where a store keeps its record.
enum Place {
    /// In a data directory, which is locked.
    Directory { dir: PathBuf, _lock: File },
    /// In memory: gone with the process.
    Memory,
}

/// The database, and what its mark says.
struct Opened {
    /// `None` after a write that failed, as the database then refuses every other: it is opened
    /// anew, and checked, before the next.
    database: Option<Database>,
    /// The revision of the mark; `None` if it could not be written.
    marked: Option<u64>,
    /// The highest revision that was read or written.
    revision: u64,
    /// To what the longest TTL shall be lowered. It is no part of the record, as a life that has
    /// ended intends nothing; after a write that failed it is void.
    intent: Option<Duration>,
}

/// What a start of the node begins from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// This is the first start: there was no earlier life.
    pub first: bool,
    /// The life before ended clean; false on the first start.
    pub was_clean: bool,
    /// What is durable, with this life in it: every epoch granted under must be at least its floor,
    /// which no earlier life used.
    pub state: State,
    /// What this life owes to those before it.
    pub grace: Option<Grace>,
    /// The node's id in its cluster.
    pub node: u32,
    /// The cluster's id.
    pub cluster: [u8; 16],
    /// The keys of the node's endpoints.
    pub keys: EndpointKeys,
}

/// What [`Store::recover`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Under which name the former state is kept, if there was any.
    pub kept: Option<PathBuf>,
    /// The next start grants above this epoch.
    pub epoch_floor: u32,
    /// The next start grants when a lease of this length has ended.
    pub longest_ttl: Duration,
    /// What the former state said, if it could be read.
    pub former: Option<Former>,
}

/// What is told of a former state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Former {
    /// The longest session TTL that may still be alive somewhere.
    pub longest_ttl: Duration,
    /// Whose session it was, for people.
    pub longest_by: String,
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
    /// The last epoch has been reached.
    #[error(
        "the epochs of this node are used up (the floor is {0}): start a new cluster in an empty \
         data directory, and have whatever checks fencing tokens forget the old ones"
    )]
    EpochsUsedUp(u32),
    /// The system gives no randomness for the keys of a new node.
    #[error("the system gives no random numbers: {0}")]
    NoRandomness(getrandom::Error),
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
        let (state, mark) = (data_dir.join(STATE), data_dir.join(MARK));
        let mark = record::decode_mark(&data_dir::read(&mark, SECRET)?.unwrap_or_default());
        let there = state.try_exists().map_err(FileError::new("read", &state))?;
        let database = match (there, mark) {
            (true, _) => open_checked(&state)?,
            // An authority without a state is one that lost it: made anew it would repeat fences.
            (false, None) if data_dir.join(CA_KEY).symlink_metadata().is_ok() => {
                return Err(corrupt(&state, &format_args!("it is gone, but {CA_KEY} is there")));
            }
            (false, None) => create(&state, &Record::new().map_err(StoreError::NoRandomness)?)?,
            (false, Some(_)) => {
                return Err(corrupt(&state, &format_args!("it is gone, but {MARK} is there")));
            }
        };
        let revision = read(&database, &state)?.revision;
        if mark.is_some_and(|mark| revision < mark) {
            return Err(corrupt(&state, &"it is older than it was"));
        }
        let opened =
            Mutex::new(Opened { database: Some(database), marked: mark, revision, intent: None });
        let place = Place::Directory { dir: data_dir.to_owned(), _lock: lock };
        let store = Self { opened, place };
        store.commit(&Entry::Blank)?;
        Ok(store)
    }

    /// A store in memory, for a node that nobody will miss.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub(crate) fn in_memory() -> Result<Self, StoreError> {
        let record = Record::new().map_err(StoreError::NoRandomness)?;
        let memory = Path::new("memory");
        let database = Database::builder()
            .create_with_backend(InMemoryBackend::new())
            .map_err(|error| failed(memory, error))?;
        write(&database, &record).map_err(|error| failed(memory, error))?;
        let revision = record.revision;
        let opened =
            Opened { database: Some(database), marked: Some(revision), revision, intent: None };
        Ok(Self { opened: Mutex::new(opened), place: Place::Memory })
    }

    /// Makes a new store in place of a damaged, lost or outdated one, whose file is kept beside it.
    /// The next start grants nothing until a lease of `longest_ttl` has surely ended (`None`: of
    /// the longest that the former state tells of, else of the longest there can be), and only
    /// above `epoch_floor`, which what can still be read only ever raises.
    ///
    /// # Errors
    /// When another process has the directory, it cannot be written, or the floor is too high.
    pub fn recover(
        data_dir: &Path,
        epoch_floor: u32,
        longest_ttl: Option<Duration>,
    ) -> Result<Recovered, StoreError> {
        next_epoch(Epoch(epoch_floor)).map_err(used_up)?;
        data_dir::prepare(data_dir)?;
        let _lock = lock(data_dir)?;
        let state = data_dir.join(STATE);
        let there = state.try_exists().map_err(FileError::new("read", &state))?;
        let readable = if there {
            open_checked(&state).and_then(|database| read(&database, &state)).ok()
        } else {
            None
        };
        let former = readable.as_ref().map(|record| Former {
            longest_ttl: Duration::from_millis(record.longest_ttl_ms),
            longest_by: record.longest_by.clone(),
        });
        let told = former.as_ref().map(|former| former.longest_ttl);
        let longest_ttl = longest_ttl.or(told).unwrap_or(limits::TTL_MAX);
        let before = match readable {
            Some(record) => record,
            None => Record::new().map_err(StoreError::NoRandomness)?,
        };
        let record = before.recovered(epoch_floor, longest_ttl);
        // A second name for the file: at no moment is there none under the first.
        let kept = there.then(|| keep(&state)).transpose()?;
        create(&state, &record)?;
        let mark = record::encode_mark(record.revision);
        data_dir::write(&data_dir.join(MARK), &mark, SECRET)?;
        Ok(Recovered { kept, epoch_floor: record.epoch_floor, longest_ttl, former })
    }

    /// Begins a life of the node: one durable transaction counts the start, raises the epoch
    /// floor and takes back the clean stop.
    ///
    /// # Errors
    /// When the epochs are used up, or the write fails.
    pub(crate) fn boot(&self) -> Result<Boot, StoreError> {
        let (before, state, record) = self.apply(&Entry::NodeBoot)?;
        let former = before.state(None);
        Ok(Boot {
            first: before.boot == 0,
            was_clean: before.clean,
            state,
            grace: former.grace(),
            node: record.node,
            cluster: record.cluster,
            keys: record.keys,
        })
    }

    /// Makes an entry durable, and returns the state with it: the store is the log of a cluster of
    /// one. Costs no write if it changes nothing that must be durable; yet the database is opened
    /// if it must be, and the mark written if it is behind.
    ///
    /// # Errors
    /// When the epochs are used up, or the write fails: it may have taken effect then.
    pub(crate) fn commit(&self, entry: &Entry) -> Result<State, StoreError> {
        self.apply(entry).map(|(_, state, _)| state)
    }

    /// Applies an entry in one durable transaction: the record before it, the state and the record
    /// after it.
    fn apply(&self, entry: &Entry) -> Result<(Record, State, Record), StoreError> {
        let path = self.path();
        // A panic in a holder left no half-made change: a transaction is all or nothing.
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let intent = opened.intent.take();
        let database = opened.open(&path)?;
        let before = read(database, &path)?;
        let mut state = before.state(intent);
        state.apply(entry).map_err(used_up)?;
        let after = before.clone().with(&state);
        if after != before
            && let Err(error) = write(database, &after)
        {
            opened.database = None;
            return Err(failed(&path, error));
        }
        opened.revision = after.revision;
        if opened.marked != Some(after.revision) {
            self.write_mark(after.revision)?;
            opened.marked = Some(after.revision);
        }
        opened.intent = state.intent;
        // What is kept of whose TTL it is may be less than was told.
        Ok((before, after.state(state.intent), after))
    }

    #[cfg(test)]
    fn read(&self) -> Result<Record, StoreError> {
        let state = self.path();
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        read(opened.open(&state)?, &state)
    }

    fn path(&self) -> PathBuf {
        match &self.place {
            Place::Directory { dir, .. } => dir.join(STATE),
            Place::Memory => PathBuf::from("memory"),
        }
    }

    fn write_mark(&self, revision: u64) -> Result<(), StoreError> {
        match &self.place {
            Place::Directory { dir, .. } => {
                Ok(data_dir::write(&dir.join(MARK), &record::encode_mark(revision), SECRET)?)
            }
            Place::Memory => Ok(()),
        }
    }
}

impl Opened {
    fn open(&mut self, state: &Path) -> Result<&Database, StoreError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => {
                let database = open_checked(state)?;
                if read(&database, state)?.revision < self.revision {
                    return Err(corrupt(state, &"it is older than it was"));
                }
                database
            }
        };
        Ok(self.database.insert(database))
    }
}

fn used_up(EpochsUsedUp(floor): EpochsUsedUp) -> StoreError {
    StoreError::EpochsUsedUp(floor.0)
}

fn lock(dir: &Path) -> Result<File, StoreError> {
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

/// Gives the state another name beside its own, one that is not in use.
fn keep(state: &Path) -> Result<PathBuf, StoreError> {
    let mut number = 1;
    loop {
        let kept = state.with_extension(format!("redb.before-{number}"));
        match fs::hard_link(state, &kept) {
            Ok(()) => return Ok(kept),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(FileError::new("write", &kept)(error).into()),
        }
    }
}

/// Makes the file under another name first, so that one under its own name is always whole.
fn create(state: &Path, record: &Record) -> Result<Database, StoreError> {
    let temporary = state.with_extension("redb.new");
    let file = FileError::new("write", &temporary);
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(true).mode(SECRET);
    let opened = options.open(&temporary).map_err(file)?;
    let database = Database::builder().create_file(opened).map_err(|error| failed(state, error))?;
    write(&database, record).map_err(|error| failed(state, error))?;
    fs::rename(&temporary, state).map_err(FileError::new("write", state))?;
    data_dir::sync_dir(state.parent().unwrap_or(Path::new(".")))?;
    Ok(database)
}

/// Opens a file that may be anything. The database trusts parts of its file and may panic where
/// they are damaged; that is an error of the file here, and the database is given up with it.
fn open_checked(state: &Path) -> Result<Database, StoreError> {
    let open = || -> Result<Database, StoreError> {
        let mut database = Database::open(state).map_err(|error| open_error(state, error))?;
        match database.check_integrity() {
            Ok(true) => {}
            Ok(false) => return Err(corrupt(state, &"its structure did not hold together")),
            Err(error) => return Err(open_error(state, error)),
        }
        read(&database, state)?;
        Ok(database)
    };
    panic::catch_unwind(AssertUnwindSafe(open))
        .unwrap_or_else(|_| Err(corrupt(state, &"the database cannot make sense of it")))
}

fn open_error(state: &Path, error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => {
            StoreError::Locked(state.parent().unwrap_or(state).to_owned())
        }
        DatabaseError::Storage(StorageError::Io(error)) => match error.kind() {
            io::ErrorKind::InvalidData
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::UnexpectedEof => corrupt(state, &error),
            _ => FileError::new("open", state)(error).into(),
        },
        other => corrupt(state, &other),
    }
}

fn corrupt(state: &Path, why: &dyn std::fmt::Display) -> StoreError {
    StoreError::Corrupt { path: state.to_owned(), why: why.to_string() }
}

fn failed(state: &Path, error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::Io(error) => FileError::new("write", state)(error).into(),
        other => StoreError::Failed { path: state.to_owned(), why: other.to_string() },
    }
}

fn read(database: &Database, state: &Path) -> Result<Record, StoreError> {
    let bytes = || -> Result<Option<Vec<u8>>, redb::Error> {
        let table = database.begin_read()?.open_table(TABLE)?;
        Ok(table.get(KEY)?.map(|bytes| bytes.value().to_vec()))
    };
    let bytes = bytes().map_err(|error| match error {
        redb::Error::Io(error) => FileError::new("read", state)(error).into(),
        other => corrupt(state, &other),
    })?;
    let bytes = bytes.ok_or_else(|| corrupt(state, &"its record is gone"))?;
    Record::decode(&bytes).map_err(|why| corrupt(state, &why))
}

fn write(database: &Database, record: &Record) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    transaction.set_two_phase_commit(true);
    transaction.open_table(TABLE)?.insert(KEY, record.encode().as_slice())?;
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests;
