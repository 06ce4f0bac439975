//! openraft's own tests of a storage, and what they do not look at: starts, and disks that fail.

mod disk;

use super::types::{LogId, StorageError, Vote};
use super::*;
use crate::store::{LOG, count};
use disk::Disk;
use lockring_control::cluster::{Entry, Index, Unreadable};
use lockring_ring::{CellBits, NodeId};
use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::testing::{StoreBuilder, Suite};
use openraft::{CommittedLeaderId, EntryPayload, RaftLogReader, RaftSnapshotBuilder};
use std::collections::BTreeMap;
use std::time::Duration;

struct Files;

impl StoreBuilder<Types, LogStore, StateMachine, tempfile::TempDir> for Files {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError> {
        let dir = tempfile::tempdir().expect("a directory");
        let vault = Vault::create(dir.path(), &LOG, count).expect("a file");
        let (events, _) = mpsc::unbounded_channel();
        let opened = open(vault, ME, bits(), Arc::default(), events);
        let (log, machine, _) = opened.expect("a log");
        Ok((dir, log, machine))
    }
}

#[test]
fn the_storage_is_as_openraft_wants_it() {
    Suite::test_all(Files).expect("it is");
}

const ME: NodeId = NodeId(1);

fn bits() -> CellBits {
    CellBits::new(2).expect("a number of cells")
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term, 1), index)
}

fn entry(term: u64, index: u64) -> openraft::Entry<Types> {
    let ttl = Duration::from_secs(60 + index);
    let payload = EntryPayload::Normal(Entry::RaiseLongestTtl { ttl, by: format!("{index}") });
    openraft::Entry { log_id: id(term, index), payload }
}

type Opened = (LogStore, StateMachine, mpsc::UnboundedReceiver<LogEvent>);

fn vault(disk: &Disk) -> Vault {
    Vault::over(disk.clone(), &LOG, count).expect("a file")
}

fn opened(disk: &Disk) -> Opened {
    let (events, told) = mpsc::unbounded_channel();
    let opened = open(vault(disk), ME, bits(), Arc::default(), events);
    let (log, machine, _) = opened.expect("a log");
    (log, machine, told)
}

/// What was told to be durable.
#[derive(Clone, Debug, Default)]
struct Promised {
    vote: Option<Vote>,
    entries: BTreeMap<u64, LogId>,
    /// The last entry of the last snapshot.
    snapshot: Option<LogId>,
}

/// What openraft does in some order; what was promised until the disk failed, and whether it did.
async fn works(log: &mut LogStore, machine: &mut StateMachine, its: &mut Promised) -> bool {
    for term in 1..4 {
        let vote = Vote::new_committed(term, 1);
        if log.save_vote(&vote).await.is_err() {
            return false;
        }
        its.vote = Some(vote);
        let first = its.entries.last_key_value().map_or(0, |(&last, _)| last + 1);
        for from in [first, first + 3] {
            let more: Vec<_> = (from..from + 3).map(|index| entry(term, index)).collect();
            if log.blocking_append(more.clone()).await.is_err() {
                return false;
            }
            its.entries.extend(more.iter().map(|entry| (entry.log_id.index, entry.log_id)));
        }
        // Another leader has others from there on.
        if log.truncate(id(term, first + 5)).await.is_err() {
            return false;
        }
        its.entries.remove(&(first + 5));
        let committed = Some(id(term, first + 3));
        let applied = (first..=first + 3).map(|index| entry(term, index));
        machine.apply(applied).await.expect("it is in memory");
        if machine.get_snapshot_builder().await.build_snapshot().await.is_err() {
            return false;
        }
        its.snapshot = committed;
        let purged = id(term, first + 2);
        if log.purge(purged).await.is_err() {
            return false;
        }
        its.entries = its.entries.split_off(&(purged.index + 1));
    }
    true
}

/// Whether all that was promised is there. What was under way may be there too.
async fn keeps(opened: Opened, its: &Promised) {
    let (mut log, mut machine, mut told) = opened;
    let vote = log.read_vote().await.unwrap();
    assert!(vote >= its.vote, "{its:?}");
    let leads_on = vote.is_some_and(|vote| vote.committed);
    assert!(!leads_on, "a process that begins leads in a term of its own");
    let state = log.get_log_state().await.unwrap();
    let entries = log.try_get_log_entries(0..).await.unwrap();
    let there: BTreeMap<u64, LogId> =
        entries.iter().map(|entry| (entry.log_id.index, entry.log_id)).collect();
    let purged = state.last_purged_log_id.map_or(0, |id| id.index + 1);
    for (index, id) in its.entries.range(purged..) {
        let is_cut = there.keys().next_back() < Some(index) && is_last(its, *index);
        assert!(there.get(index) == Some(id) || is_cut, "entry {index}: {its:?}, {there:?}");
    }
    let (applied, _) = machine.applied_state().await.unwrap();
    assert!(applied >= its.snapshot, "{its:?}");
    let restored = told.try_recv().ok();
    assert_eq!(restored.is_some(), applied.is_some());
    if let (Some(LogEvent::Restored { state, .. }), Some(applied)) = (restored, applied) {
        assert_eq!(state.applied(), Index(applied.index + 1));
        assert_eq!(*state, made_by(applied.index));
    }
}

/// A truncation may have been carried out without having been told.
fn is_last(its: &Promised, index: u64) -> bool {
    its.entries.keys().next_back() == Some(&index)
}

fn made_by(last: u64) -> State {
    let mut state = State::new(bits());
    for index in 0..=last {
        let EntryPayload::Normal(entry) = entry(0, index).payload else { unreachable!() };
        state.apply(Index(index + 1), &entry);
    }
    state
}

/// All of it until the disk has failed, which is waited for no longer than it takes to see that.
async fn works_until_it_fails(disk: &Disk, its: &mut Promised) -> bool {
    let health = Arc::new(Health::default());
    let (events, _) = mpsc::unbounded_channel();
    let opened = Vault::over(disk.clone(), &LOG, |_| Ok(()));
    let opened = opened.and_then(|vault| open(vault, ME, bits(), Arc::clone(&health), events));
    let Ok((mut log, mut machine, _)) = opened else { return false };
    let failed = async {
        while health.cause().is_none() {
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
    };
    tokio::select! {
        biased;
        is_done = works(&mut log, &mut machine, its) => is_done,
        () = failed => false,
    }
}

#[tokio::test]
async fn what_was_promised_survives_a_crash_at_any_write() {
    let mut crashes = 0;
    for left in 0.. {
        let disk = Disk::default();
        drop(vault(&disk));
        let mut its = Promised::default();
        disk.fails_after(left);
        let is_done = works_until_it_fails(&disk, &mut its).await;
        for seed in 0..4 {
            keeps(opened(&disk.after_a_crash(seed)), &its).await;
        }
        if is_done {
            break;
        }
        crashes += 1;
    }
    assert!(crashes > 50, "{crashes} crashes");
}

/// What could not be written is written once it can be, with all that came after it, and nothing
/// is told to be durable before.
#[tokio::test]
async fn what_failed_is_written_once_it_can_be() {
    let dir = tempfile::tempdir().unwrap();
    let (events, _) = mpsc::unbounded_channel();
    let health = Arc::new(Health::default());
    let vault = Vault::create(dir.path(), &LOG, count).unwrap();
    let opened = open(vault, ME, bits(), Arc::clone(&health), events).unwrap();
    let (mut log, machine, writing) = opened;
    log.blocking_append([entry(1, 0)]).await.unwrap();
    let mark = dir.path().join(LOG.mark);
    std::fs::remove_file(&mark).unwrap();
    std::fs::create_dir(&mark).unwrap();
    let mut other = log.clone();
    let writes = async {
        other.blocking_append([entry(1, 1)]).await.unwrap();
        other.save_vote(&Vote::new(7, 1)).await.unwrap();
    };
    let mends = async {
        while health.failures() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(health.cause().is_some());
        assert_eq!(log.read_vote().await.unwrap(), None);
        std::fs::remove_dir(&mark).unwrap();
    };
    tokio::join!(writes, mends);
    assert!(health.cause().is_none());
    drop((log, other, machine));
    writing.join().unwrap();
    let mut vault = Vault::open(dir.path(), &LOG).unwrap().unwrap();
    let state = writer::read(&mut vault).unwrap();
    assert_eq!(state.log.vote, Some(Vote::new(7, 1)));
    assert_eq!(state.log.entries.keys().copied().collect::<Vec<_>>(), [0, 1]);
}

#[tokio::test]
async fn a_file_that_was_changed_is_not_opened() {
    let put = |key: u64, bytes: &'static [u8]| {
        let disk = Disk::default();
        let mut vault = vault(&disk);
        let name = redb::TableDefinition::<u64, &[u8]>::new("log");
        let changed = vault.commit(|transaction| {
            transaction.open_table(name)?.insert(key, bytes)?;
            count(transaction)
        });
        changed.unwrap();
        let events = mpsc::unbounded_channel().0;
        open(vault, ME, bits(), Arc::default(), events).err().expect("it is none")
    };
    let why = put(0, b"no entry");
    assert!(why.to_string().starts_with("memory is damaged: it is cut short"), "{why}");
    let why = put(3, b"no entry");
    assert!(why.to_string().contains("entries before its 3th are gone"), "{why}");
    // One of a later version is not damaged.
    let why = writer::no_such(std::path::Path::new("log"), Unreadable::Format(9));
    assert!(why.to_string().contains("as new as the one that wrote it"), "{why}");
}
