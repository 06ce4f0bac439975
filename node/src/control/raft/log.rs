//! Votes and entries.

use super::types::{IoError, LogId, StorageError, Types, Vote};
use super::writer::{Change, KeptLog, Writer};
use lockring_ring::NodeId;
use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use std::fmt::Debug;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, MutexGuard};

/// The log: what is in memory is what is on the disk, or is being written there.
#[derive(Clone)]
pub struct LogStore {
    log: Arc<Mutex<KeptLog>>,
    writer: Writer,
}

impl LogStore {
    /// That of a process which begins. If this node led, it does so no more: openraft would have it
    /// lead on in the same term, in which what was there before cannot be told from what is new. It
    /// is as if it had stood for the next term and had ended at once.
    pub(super) fn new(mut log: KeptLog, me: NodeId, writer: Writer) -> Self {
        let led = |vote: &Vote| vote.committed && vote.leader_id.node_id == u64::from(me.0);
        if let Some(vote) = log.vote.filter(led) {
            log.vote = Some(Vote::new(vote.leader_id.term + 1, u64::from(me.0)));
        }
        Self { log: Arc::new(Mutex::new(log)), writer }
    }

    fn log(&self) -> MutexGuard<'_, KeptLog> {
        self.log.lock().expect("nobody panics with it")
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<openraft::Entry<Types>>, StorageError> {
        let (from, to) = (range.start_bound().cloned(), range.end_bound().cloned());
        Ok(self.log().entries.range((from, to)).map(|(_, entry)| entry.clone()).collect())
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        let log = self.log();
        let last = log.entries.last_key_value().map(|(_, entry)| entry.log_id);
        Ok(LogState { last_purged_log_id: log.purged, last_log_id: last.or(log.purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let written = self.writer.write(Change::Vote(*vote)).await;
        written.map_err(|error| IoError::write_vote(&error))?;
        self.log().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.log().vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        // Whoever starts hears of it from the leader, so that it need not be on the disk.
        self.log().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.log().committed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<Types>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = openraft::Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries.into_iter().collect();
        self.log().entries.extend(entries.iter().map(|entry| (entry.log_id.index, entry.clone())));
        self.writer.append(entries, callback);
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.log().entries.split_off(&log_id.index);
        let written = self.writer.write(Change::Truncate(log_id.index)).await;
        Ok(written.map_err(|error| IoError::write_logs(&error))?)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        {
            let mut log = self.log();
            log.purged = Some(log_id);
            log.entries = log.entries.split_off(&(log_id.index + 1));
        }
        // It need not be durable, and openraft does nothing else while it waits.
        self.writer.purge(log_id);
        Ok(())
    }
}
