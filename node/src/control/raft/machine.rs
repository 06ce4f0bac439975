//! The state that the log makes, for snapshots of it.

use super::types::{IoError, LogId, Membership, Meta, StorageError, Types};
use super::writer::{Change, Kept, Writer, no_such};
use crate::store::StoreError;
use lockring_control::cluster::{
    Entry, Index, LogEvent, State, Term, state_from_bytes, state_to_bytes,
};
use lockring_ring::CellBits;
use openraft::storage::RaftStateMachine;
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot};
use std::io::Cursor;
use std::path::Path;
use tokio::sync::mpsc;

/// What an entry says to the state. Who votes is nothing to it, but every place has something.
fn said(payload: EntryPayload<Types>) -> Entry {
    match payload {
        EntryPayload::Blank | EntryPayload::Membership(_) => Entry::Blank,
        EntryPayload::Normal(entry) => entry,
    }
}

/// The state that all entries make.
pub(super) fn state_of(bits: CellBits, kept: &Kept, path: &Path) -> Result<State, StoreError> {
    let (mut state, mut last) = (State::new(bits), None);
    if let Some((meta, bytes)) = &kept.snapshot {
        state = state_from_bytes(bytes).map_err(|why| no_such(path, why))?;
        last = meta.last_log_id.map(|id| id.index);
    }
    let after = kept.log.entries.values().filter(|entry| Some(entry.log_id.index) > last);
    for entry in after {
        state.apply(index_of(entry.log_id), &said(entry.payload.clone()));
    }
    Ok(state)
}

/// The state after the entries that are known to be committed, and who is told of these.
pub struct StateMachine {
    state: State,
    applied: Option<LogId>,
    membership: Membership,
    snapshot: Option<(Meta, Vec<u8>)>,
    writer: Writer,
    events: mpsc::UnboundedSender<LogEvent>,
}

/// A place in openraft's log, which begins with 0, as the state counts it.
fn index_of(id: LogId) -> Index {
    Index(id.index + 1)
}

impl StateMachine {
    pub(super) fn new(
        bits: CellBits,
        snapshot: Option<(Meta, Vec<u8>)>,
        path: &Path,
        writer: Writer,
        events: mpsc::UnboundedSender<LogEvent>,
    ) -> Result<Self, StoreError> {
        let (state, membership) = (State::new(bits), Membership::default());
        let mut it = Self { state, applied: None, membership, snapshot: None, writer, events };
        if let Some((meta, bytes)) = snapshot {
            let state = state_from_bytes(&bytes).map_err(|why| no_such(path, why))?;
            it.restore(&meta, state);
            it.snapshot = Some((meta, bytes));
        }
        Ok(it)
    }

    fn restore(&mut self, meta: &Meta, state: State) {
        let term = Term(meta.last_log_id.map_or(0, |id| id.leader_id.term));
        self.tell(LogEvent::Restored { term, state: Box::new(state.clone()) });
        (self.state, self.applied) = (state, meta.last_log_id);
        self.membership = meta.last_membership.clone();
    }

    fn tell(&self, event: LogEvent) {
        let _the_node_is_stopping = self.events.send(event);
    }

    fn apply_one(&mut self, entry: openraft::Entry<Types>) {
        let id = entry.log_id;
        self.applied = Some(id);
        if let EntryPayload::Membership(members) = &entry.payload {
            self.membership = Membership::new(Some(id), members.clone());
        }
        let entry = said(entry.payload);
        let (index, term) = (index_of(id), Term(id.leader_id.term));
        self.state.apply(index, &entry);
        self.tell(LogEvent::Committed { index, term, entry });
    }

    fn current(&self) -> Option<Snapshot<Types>> {
        let (meta, bytes) = self.snapshot.clone()?;
        Some(Snapshot { meta, snapshot: Box::new(Cursor::new(bytes)) })
    }
}

/// A state, and where to keep it.
pub struct Builder {
    meta: Meta,
    bytes: Vec<u8>,
    writer: Writer,
}

impl RaftSnapshotBuilder<Types> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError> {
        let (meta, bytes) = (self.meta.clone(), self.bytes.clone());
        let written = self.writer.write(Change::Snapshot(meta.clone(), bytes.clone())).await;
        let signature = Some(meta.signature());
        written.map_err(|error| IoError::write_snapshot(signature, &error))?;
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(bytes)) })
    }
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), StorageError> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<()>, StorageError>
    where
        I: IntoIterator<Item = openraft::Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        Ok(entries.into_iter().map(|entry| self.apply_one(entry)).collect())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let applied = self.applied.map_or_else(String::new, |id| id.to_string());
        let meta = Meta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
            snapshot_id: applied,
        };
        let bytes = state_to_bytes(&self.state);
        self.snapshot = Some((meta.clone(), bytes.clone()));
        Builder { meta, bytes, writer: self.writer.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &Meta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let (bytes, signature) = (snapshot.into_inner(), Some(meta.signature()));
        let state = state_from_bytes(&bytes);
        let state = state.map_err(|error| IoError::read_snapshot(signature.clone(), &error))?;
        let written = self.writer.write(Change::Snapshot(meta.clone(), bytes.clone())).await;
        written.map_err(|error| IoError::write_snapshot(signature, &error))?;
        self.restore(meta, state);
        self.snapshot = Some((meta.clone(), bytes));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError> {
        Ok(self.current())
    }
}
