//! The thread that writes.

use super::bytes;
use super::types::{LogId, Meta, Types, Vote};
use crate::control::health::Health;
use crate::store::{self, StoreError, Vault, corrupt, unreadable};
use lockring_control::cluster::Unreadable;
use openraft::storage::LogFlushed;
use redb::{ReadableDatabase, ReadableTable, TableDefinition, TableError, WriteTransaction};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Pause after the first write that failed; it doubles up to the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_LONGEST: Duration = Duration::from_secs(5);

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const KEPT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("kept");
const VOTE: &str = "vote";
const PURGED: &str = "purged";
const META: &str = "snapshot meta";
const STATE: &str = "snapshot state";

/// What is to be written.
pub(super) enum Change {
    Vote(Vote),
    Append(Vec<openraft::Entry<Types>>),
    /// From this entry on there is none.
    Truncate(u64),
    /// Up to this one there is none.
    Purge(LogId),
    /// A state, which follows from the log up to some entry.
    Snapshot(Meta, Vec<u8>),
}

/// Who is told that it is durable.
enum Done {
    Raft(LogFlushed<Types>),
    Caller(oneshot::Sender<io::Result<()>>),
    Nobody,
}

impl Done {
    fn tell(self, result: io::Result<()>) {
        match self {
            Self::Raft(flushed) => flushed.log_io_completed(result),
            Self::Nobody => {}
            Self::Caller(caller) => {
                let _it_may_have_gone = caller.send(result);
            }
        }
    }
}

/// A way to the thread. It ends with the last of them.
#[derive(Clone)]
pub(super) struct Writer(mpsc::Sender<(Change, Done)>);

impl Writer {
    /// Writes, and returns once that is durable.
    pub(super) async fn write(&self, change: Change) -> io::Result<()> {
        let (done, is_done) = oneshot::channel();
        self.send(change, Done::Caller(done));
        is_done.await.unwrap_or_else(|_| Err(over()))
    }

    /// Writes, and tells openraft once that is durable.
    pub(super) fn append(&self, entries: Vec<openraft::Entry<Types>>, flushed: LogFlushed<Types>) {
        self.send(Change::Append(entries), Done::Raft(flushed));
    }

    /// Forgets entries up to this one, some time.
    pub(super) fn purge(&self, upto: LogId) {
        self.send(Change::Purge(upto), Done::Nobody);
    }

    fn send(&self, change: Change, done: Done) {
        if let Err(mpsc::SendError((_, done))) = self.0.send((change, done)) {
            done.tell(Err(over()));
        }
    }
}

fn over() -> io::Error {
    io::Error::other("the thread that writes the cluster's log has ended")
}

/// What a file has.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) log: KeptLog,
    pub(super) snapshot: Option<(Meta, Vec<u8>)>,
}

#[derive(Default)]
pub(super) struct KeptLog {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    pub(super) entries: BTreeMap<u64, openraft::Entry<Types>>,
}

/// Begins to write, in a thread that ends with its last writer.
///
/// # Errors
/// When the system gives no thread.
pub(super) fn start(
    vault: Vault,
    health: Arc<Health>,
) -> Result<(Writer, JoinHandle<()>), StoreError> {
    let (sender, inbox) = mpsc::channel();
    let thread = std::thread::Builder::new().name("log".to_owned());
    let it = WriterThread { vault, inbox, health };
    let thread = thread.spawn(move || it.run()).map_err(StoreError::NoThread)?;
    Ok((Writer(sender), thread))
}

/// What there is.
///
/// # Errors
/// When the file cannot be read, or says what cannot be.
pub(super) fn read(vault: &mut Vault) -> Result<Kept, StoreError> {
    let path = vault.path();
    let transaction = vault.database()?.begin_read();
    let transaction = transaction.map_err(|error| unreadable(&path, error.into()))?;
    let mut kept = Kept::default();
    match transaction.open_table(KEPT) {
        Ok(values) => {
            let value = |key: &str| -> Result<Option<Vec<u8>>, StoreError> {
                let value = values.get(key).map_err(|error| unreadable(&path, error.into()))?;
                Ok(value.map(|value| value.value().to_vec()))
            };
            kept.log.vote = readable(&path, value(VOTE)?, bytes::to_vote)?;
            kept.log.purged = readable(&path, value(PURGED)?, bytes::to_id)?;
            kept.snapshot = readable(&path, value(META)?, bytes::to_meta)?.zip(value(STATE)?);
        }
        Err(TableError::TableDoesNotExist(_)) => {}
        Err(error) => return Err(unreadable(&path, error.into())),
    }
    let entries = match transaction.open_table(LOG) {
        Ok(entries) => entries,
        Err(TableError::TableDoesNotExist(_)) => return Ok(kept),
        Err(error) => return Err(unreadable(&path, error.into())),
    };
    if kept.log.purged.is_some() && kept.snapshot.is_none() {
        return Err(corrupt(&path, &"what its first entries made is gone"));
    }
    let mut next = kept.log.purged.map_or(0, |purged| purged.index + 1);
    for entry in entries.iter().map_err(|error| unreadable(&path, error.into()))? {
        let (index, entry) = entry.map_err(|error| unreadable(&path, error.into()))?;
        let index = index.value();
        if next != index {
            return Err(corrupt(&path, &format_args!("entries before its {index}th are gone")));
        }
        next = index + 1;
        let entry = bytes::to_entry(entry.value()).and_then(|entry| match entry.log_id.index {
            its if its == index => Ok(entry),
            _ => Err(Unreadable::Unsound("an entry at the place of another")),
        });
        kept.log.entries.insert(index, entry.map_err(|why| no_such(&path, why))?);
    }
    Ok(kept)
}

fn readable<T>(
    path: &Path,
    bytes: Option<Vec<u8>>,
    read: impl Fn(&[u8]) -> Result<T, Unreadable>,
) -> Result<Option<T>, StoreError> {
    bytes.map(|bytes| read(&bytes)).transpose().map_err(|why| no_such(path, why))
}

/// Something in the file is not what it should be.
pub(super) fn no_such(path: &Path, why: Unreadable) -> StoreError {
    match why {
        Unreadable::Format(_) => StoreError::Later { path: path.to_owned(), why: why.to_string() },
        Unreadable::Garbled | Unreadable::Unsound(_) => corrupt(path, &why),
    }
}

/// What is to be written in one go.
#[derive(Default)]
struct Batch {
    changes: Vec<Change>,
    done: Vec<Done>,
}

impl Batch {
    fn add(&mut self, (change, done): (Change, Done)) {
        self.changes.push(change);
        self.done.push(done);
    }
}

struct WriterThread {
    vault: Vault,
    inbox: mpsc::Receiver<(Change, Done)>,
    health: Arc<Health>,
}

impl WriterThread {
    /// Writes what has gathered, in one transaction, until nobody can ask for more.
    fn run(mut self) {
        while let Ok(first) = self.inbox.recv() {
            let mut batch = Batch::default();
            std::iter::once(first).chain(self.inbox.try_iter()).for_each(|it| batch.add(it));
            let written = self.write(&mut batch);
            for done in batch.done {
                let why = |why: &String| io::Error::other(why.clone());
                done.tell(written.as_ref().copied().map_err(why));
            }
        }
    }

    /// Writes until it succeeds; what comes meanwhile goes with it. What an attempt that failed
    /// has done all the same is done again.
    fn write(&mut self, batch: &mut Batch) -> Result<(), String> {
        let mut pause = PAUSE_FIRST;
        loop {
            let change = |transaction: &WriteTransaction| write(transaction, &batch.changes);
            let Err(error) = self.vault.commit(change) else {
                self.health.works();
                return Ok(());
            };
            self.health.fails(&error);
            if !self.wait(pause, batch) {
                return Err(error.to_string());
            }
            pause = (pause * 2).min(PAUSE_LONGEST);
        }
    }

    /// Lets a pause pass, a short one if somebody new waits; `false`: nobody can ask any more.
    fn wait(&self, pause: Duration, batch: &mut Batch) -> bool {
        let mut until = Instant::now() + pause;
        loop {
            match self.inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(more) => {
                    batch.add(more);
                    until = until.min(Instant::now() + PAUSE_FIRST);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => return true,
                Err(mpsc::RecvTimeoutError::Disconnected) => return false,
            }
        }
    }
}

fn write(transaction: &WriteTransaction, changes: &[Change]) -> Result<(), redb::Error> {
    store::count(transaction)?;
    let mut log = transaction.open_table(LOG)?;
    let mut kept = transaction.open_table(KEPT)?;
    for change in changes {
        match change {
            Change::Vote(vote) => drop(kept.insert(VOTE, &*bytes::of_vote(vote))?),
            Change::Append(entries) => {
                for entry in entries {
                    log.insert(entry.log_id.index, &*bytes::of_entry(entry))?;
                }
            }
            &Change::Truncate(from) => log.retain_in(from.., |_, _| false)?,
            Change::Purge(upto) => {
                kept.insert(PURGED, &*bytes::of_id(*upto))?;
                log.retain_in(..=upto.index, |_, _| false)?;
            }
            Change::Snapshot(meta, state) => {
                kept.insert(META, &*bytes::of_meta(meta))?;
                kept.insert(STATE, &**state)?;
            }
        }
    }
    Ok(())
}
