//! The thread that writes.

use super::bytes;
use super::types::{LogId, Meta, OpenError, Types, Vote};
use lockring_control::cluster::Unreadable;
use openraft::storage::LogFlushed;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc;
use tokio::sync::oneshot;

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const KEPT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("kept");
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";
const META: &str = "snapshot meta";
const STATE: &str = "snapshot state";

/// What is to be written.
pub(super) enum Change {
    Vote(Vote),
    Committed(Option<LogId>),
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
}

impl Done {
    fn tell(self, result: io::Result<()>) {
        match self {
            Self::Raft(flushed) => flushed.log_io_completed(result),
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

/// Reads what there is, and begins to write.
pub(super) fn open(database: Database) -> Result<(Writer, Kept), OpenError> {
    let kept = read(&database)?;
    let (sender, changes) = mpsc::channel();
    let thread = std::thread::Builder::new().name("log".to_owned());
    let run = move || run(&database, &changes);
    let _it_ends_with_its_senders = thread.spawn(run).map_err(OpenError::Thread)?;
    Ok((Writer(sender), kept))
}

fn read(database: &Database) -> Result<Kept, OpenError> {
    let tables = || -> Result<Kept, redb::Error> {
        let transaction = database.begin_write()?;
        transaction.open_table(LOG)?;
        transaction.open_table(KEPT)?;
        transaction.commit()?;
        Ok(Kept::default())
    };
    let mut kept = tables()?;
    let transaction = database.begin_read().map_err(redb::Error::from)?;
    let values = transaction.open_table(KEPT).map_err(redb::Error::from)?;
    let value = |key: &str| -> Result<Option<Vec<u8>>, redb::Error> {
        Ok(values.get(key)?.map(|value| value.value().to_vec()))
    };
    kept.log.vote = readable("the vote", value(VOTE)?.as_deref(), bytes::to_vote)?;
    kept.log.committed = readable("a place", value(COMMITTED)?.as_deref(), bytes::to_id)?;
    kept.log.purged = readable("a place", value(PURGED)?.as_deref(), bytes::to_id)?;
    let meta = readable("the snapshot", value(META)?.as_deref(), bytes::to_meta)?;
    kept.snapshot = meta.zip(value(STATE)?);
    let entries = transaction.open_table(LOG).map_err(redb::Error::from)?;
    let mut next = kept.log.purged.map(|purged| purged.index + 1);
    for entry in entries.iter().map_err(redb::Error::from)? {
        let (index, entry) = entry.map_err(redb::Error::from)?;
        let index = index.value();
        if next.is_some_and(|next| next != index) {
            return Err(OpenError::Hole(index));
        }
        next = Some(index + 1);
        let entry = bytes::to_entry(entry.value()).and_then(|entry| match entry.log_id.index {
            its if its == index => Ok(entry),
            _ => Err(Unreadable::Unsound("an entry at the place of another")),
        });
        let what = "an entry";
        kept.log.entries.insert(index, entry.map_err(|why| OpenError::Unreadable { what, why })?);
    }
    Ok(kept)
}

fn readable<T>(
    what: &'static str,
    bytes: Option<&[u8]>,
    read: impl Fn(&[u8]) -> Result<T, Unreadable>,
) -> Result<Option<T>, OpenError> {
    let value = bytes.map(read).transpose();
    value.map_err(|why| OpenError::Unreadable { what, why })
}

/// Writes what has gathered, in one transaction, until nobody can ask for more. After a failure
/// nothing more is written: what would follow might stand without what it follows from.
fn run(database: &Database, changes: &mpsc::Receiver<(Change, Done)>) {
    let mut failed: Option<String> = None;
    while let Ok(first) = changes.recv() {
        let (changes, done): (Vec<Change>, Vec<Done>) =
            std::iter::once(first).chain(changes.try_iter()).unzip();
        if failed.is_none() {
            failed = write(database, &changes).err().map(|error| error.to_string());
        }
        for done in done {
            done.tell(match &failed {
                None => Ok(()),
                Some(why) => Err(io::Error::other(why.clone())),
            });
        }
    }
}

/// Durably, as redb commits unless it is told otherwise.
fn write(database: &Database, changes: &[Change]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut log = transaction.open_table(LOG)?;
        let mut kept = transaction.open_table(KEPT)?;
        for change in changes {
            match change {
                Change::Vote(vote) => drop(kept.insert(VOTE, &*bytes::of_vote(vote))?),
                Change::Committed(Some(id)) => drop(kept.insert(COMMITTED, &*bytes::of_id(*id))?),
                Change::Committed(None) => drop(kept.remove(COMMITTED)?),
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
    }
    transaction.commit()?;
    Ok(())
}
