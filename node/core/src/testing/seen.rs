//! What tests may see and do of a machine: its log, its leases, its clock.

use crate::machine::Machine;
use crate::{Mutant, Time};
use lockring_proto::{Claim, Digest, Fence, SessionId};
use lockring_ring::{CellId, NamespaceSeed};
use std::cell::Cell;
use std::time::Duration;

/// One line of a machine's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A link began.
    Began {
        /// Its session.
        session: SessionId,
    },
    /// A link ended; its holds and waiters are about to be freed.
    Dead {
        /// Its session.
        session: SessionId,
        /// By its lease, not by its own wish.
        expired: bool,
    },
    /// A claim came in line.
    Queued {
        /// Its session.
        session: SessionId,
        /// Its request.
        request: u64,
        /// Its key.
        key: Vec<u8>,
        /// What it claims.
        claim: Claim,
    },
    /// A claim left the line, to be granted or not.
    Left {
        /// Its session.
        session: SessionId,
        /// Its request.
        request: u64,
        /// Its key.
        key: Vec<u8>,
    },
    /// A claim was granted.
    Granted {
        /// Its session.
        session: SessionId,
        /// Its request.
        request: u64,
        /// Its key.
        key: Vec<u8>,
        /// What it claimed.
        claim: Claim,
        /// The fence.
        fence: Fence,
        /// Its link was alive.
        alive: bool,
    },
    /// A hold ended, for whatever reason.
    Freed {
        /// Its session.
        session: SessionId,
        /// Its key.
        key: Vec<u8>,
        /// Its fence.
        fence: Fence,
    },
}

/// The log, if anybody reads it, and what the wall clock did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    notes: Option<Vec<Note>>,
    wall_jumps: Duration,
    /// Keys compared so far.
    probes: Cell<u64>,
}

impl Machine {
    /// The machine with a seeded bug.
    #[must_use]
    pub fn with_mutant(mut self, mutant: Option<Mutant>) -> Self {
        self.mutant = mutant;
        self
    }

    /// The machine with a log, which its reader must empty by [`Machine::take_notes`].
    #[must_use]
    pub fn with_notes(mut self) -> Self {
        self.seen.notes = Some(Vec::new());
        self
    }

    /// The log since it was last taken.
    pub fn take_notes(&mut self) -> Vec<Note> {
        self.seen.notes.as_mut().map_or_else(Vec::new, std::mem::take)
    }

    /// The wall clock of the machine's host jumps forward. No decision may depend on it, so this
    /// changes nothing, but for the mutant that shows that it would be noticed.
    pub fn wall_clock_jumps(&mut self, by: Duration) {
        self.seen.wall_jumps += by;
    }

    /// The lease clock's idea of now: that of the wall clock with the mutant, else as it is.
    pub(crate) fn wall_clock(&self, now: Time) -> Time {
        let follows = self.mutant == Some(Mutant::WallClock);
        if follows { now.after(self.seen.wall_jumps) } else { now }
    }

    /// The keys whose queue is not worked off yet, each after its namespace.
    pub fn unserved(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.unserved.iter().map(|&record| {
            let record = self.records.get(record);
            (self.namespace_name(self.namespace(record)), self.key(record))
        })
    }

    /// Slots of all slabs that have memory.
    #[cfg(test)]
    pub(crate) fn resident(&self) -> usize {
        self.records.resident()
            + self.riches.resident()
            + self.entries.resident()
            + self.links.resident()
    }

    /// How many keys were compared so far to find those asked for.
    pub fn probes(&self) -> u64 {
        self.seen.probes.get()
    }

    pub(crate) fn note_probed(&self) {
        self.seen.probes.set(self.seen.probes.get() + 1);
    }

    /// Winds the operation counter of a cell of this worker forward, to see it run out.
    pub fn wind_counter(&mut self, cell: CellId, to: u64) {
        let cell = &mut self.cells[(cell.0 >> self.worker_shift) as usize];
        assert!(to >= cell.counter, "a counter never goes back: {} to {to}", cell.counter);
        cell.counter = to;
    }

    /// Whether a cell's counter is used up, so that nothing is granted there until its epoch is
    /// raised.
    pub fn has_used_up_cell(&self) -> bool {
        self.cells.iter().any(|cell| cell.counter >= Fence::COUNTER_LAST)
    }

    /// Until when the link of a session is honoured, by the clock the machine is run on, if no
    /// stall lengthens it. `None`: there is no such link, or it is dying.
    pub fn honours_until(&self, session: SessionId) -> Option<Time> {
        let link = self.links.get(*self.sessions.get(&session)?);
        Some(link.deadline.after(self.lag))
    }

    /// What the machine believes a session to hold here.
    pub fn digest_of(&self, session: SessionId) -> Option<Digest> {
        self.sessions.get(&session).map(|&link| self.links.get(link).digest)
    }

    /// The ring version that made the epoch of a key's cell.
    pub fn owned_since(&self, seed: NamespaceSeed, key: &[u8]) -> Option<u64> {
        self.place(seed, key).map(|place| self.cell(place).since.0)
    }

    fn note(&mut self, note: impl FnOnce(&Self) -> Note) {
        if self.seen.notes.is_some() {
            let note = note(self);
            self.seen.notes.get_or_insert_default().push(note);
        }
    }

    fn session_of(&self, link: u32) -> SessionId {
        self.links.get(link).session
    }

    fn key_of(&self, record: u32) -> Vec<u8> {
        self.key(self.records.get(record)).to_vec()
    }

    pub(crate) fn note_began(&mut self, link: u32) {
        self.note(|machine| Note::Began { session: machine.session_of(link) });
    }

    pub(crate) fn note_dead(&mut self, link: u32, expired: bool) {
        self.note(|machine| Note::Dead { session: machine.session_of(link), expired });
    }

    pub(crate) fn note_queued(&mut self, entry: u32) {
        self.note(|machine| {
            let entry = machine.entries.get(entry);
            let (session, key) = (machine.session_of(entry.link), machine.key_of(entry.record));
            Note::Queued { session, request: entry.request, key, claim: entry.claim }
        });
    }

    pub(crate) fn note_left(&mut self, entry: u32) {
        self.note(|machine| {
            let entry = machine.entries.get(entry);
            let (session, key) = (machine.session_of(entry.link), machine.key_of(entry.record));
            Note::Left { session, request: entry.request, key }
        });
    }

    pub(crate) fn note_granted(&mut self, now: Time, entry: u32) {
        self.note(|machine| {
            let entry = machine.entries.get(entry);
            Note::Granted {
                session: machine.session_of(entry.link),
                request: entry.request,
                key: machine.key_of(entry.record),
                claim: entry.claim,
                fence: entry.fence.expect("granted under a fence"),
                alive: machine.is_alive(now, entry.link),
            }
        });
    }

    pub(crate) fn note_granted_thin(&mut self, record: u32, request: u64) {
        self.note(|machine| {
            let found = machine.records.get(record);
            let (session, key) = (machine.session_of(found.link()), machine.key_of(record));
            let (claim, fence) = (Claim::Exclusive, found.fence);
            Note::Granted { session, request, key, claim, fence, alive: true }
        });
    }

    pub(crate) fn note_freed(&mut self, record: u32, fence: Fence) {
        self.note(|machine| {
            let found = machine.records.get(record);
            let link = if found.is_rich() {
                let entry = machine.entry_by_fence(record, fence).expect("a hold to free");
                machine.entries.get(entry).link
            } else {
                found.link()
            };
            let (session, key) = (machine.session_of(link), machine.key_of(record));
            Note::Freed { session, key, fence }
        });
    }
}
