//! openraft's own tests of a storage, and what they do not look at: starts, and disks that fail.

mod disk;

use super::types::{LogId, StorageError, Vote};
use super::*;
use disk::Disk;
use lockring_control::cluster::{Entry, Index, State};
use lockring_ring::CellBits;
use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::testing::{StoreBuilder, Suite};
use openraft::{CommittedLeaderId, EntryPayload, RaftLogReader, RaftSnapshotBuilder};
use std::collections::BTreeMap;
use std::time::Duration;

struct Files;

impl StoreBuilder<Types, LogStore, StateMachine, tempfile::TempDir> for Files {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError> {
        let dir = tempfile::tempdir().expect("a directory");
        let database = redb::Database::create(dir.path().join("raft.redb")).expect("a file");
        let (log, machine) = open(database, bits(), mpsc::unbounded_channel().0).expect("a log");
        Ok((dir, log, machine))
    }
}

#[test]
fn the_storage_is_as_openraft_wants_it() {
    Suite::test_all(Files).expect("it is");
}

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

fn opened(disk: &Disk) -> Opened {
    let database = redb::Builder::new().create_with_backend(disk.clone()).expect("a file");
    let (events, told) = mpsc::unbounded_channel();
    let (log, machine) = open(database, bits(), events).expect("a log");
    (log, machine, told)
}

/// What was told to be durable.
#[derive(Clone, Debug, Default)]
struct Promised {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
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
        if log.save_committed(committed).await.is_err() {
            return false;
        }
        its.committed = committed;
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
        its.purged = Some(purged);
        its.entries = its.entries.split_off(&(purged.index + 1));
    }
    true
}

/// Whether all that was promised is there. What was under way may be there too.
async fn keeps(opened: Opened, its: &Promised) {
    let (mut log, mut machine, mut told) = opened;
    assert!(log.read_vote().await.unwrap() >= its.vote, "{its:?}");
    assert!(log.read_committed().await.unwrap() >= its.committed, "{its:?}");
    let state = log.get_log_state().await.unwrap();
    assert!(state.last_purged_log_id >= its.purged, "{its:?}");
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

#[tokio::test]
async fn what_was_promised_survives_a_crash_at_any_write() {
    let mut crashes = 0;
    for left in 0.. {
        let disk = Disk::default();
        let (mut log, mut machine, _told) = opened(&disk);
        let mut its = Promised::default();
        disk.fails_after(left);
        let is_done = works(&mut log, &mut machine, &mut its).await;
        drop((log, machine));
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

/// After a failure nothing is written any more, and whoever asks is told so.
#[tokio::test]
async fn a_disk_that_works_again_is_not_written_behind_a_gap() {
    let disk = Disk::default();
    let (mut log, mut machine, _told) = opened(&disk);
    disk.fails_after(0);
    assert!(log.blocking_append([entry(1, 0)]).await.is_err());
    disk.fails_after(u64::MAX);
    assert!(log.blocking_append([entry(1, 1)]).await.is_err());
    assert!(log.save_vote(&Vote::new(7, 1)).await.is_err());
    assert!(machine.get_snapshot_builder().await.build_snapshot().await.is_err());
    drop((log, machine));
    let (mut log, ..) = opened(&disk);
    assert!(log.try_get_log_entries(0..).await.unwrap().is_empty());
    assert!(log.blocking_append([entry(1, 0)]).await.is_ok());
}

#[tokio::test]
async fn a_file_that_was_changed_is_not_opened() {
    let disk = Disk::default();
    let database = redb::Builder::new().create_with_backend(disk.clone()).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let name = redb::TableDefinition::<u64, &[u8]>::new("log");
        let mut table = transaction.open_table(name).unwrap();
        table.insert(3, &b"no entry"[..]).unwrap();
    }
    transaction.commit().unwrap();
    let why = open(database, bits(), mpsc::unbounded_channel().0).err().expect("it is none");
    assert!(why.to_string().starts_with("an entry in the cluster's log cannot be read: it is"));
}
