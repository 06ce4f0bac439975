//! What tests may see and do of a machine.

use super::replica::Replica;
use super::rng::Trace;
use super::{audit, view};
use crate::locks::{CellIndex, Change, Note, Source};
use crate::machine::Machine;
use crate::worker::Worker;
use crate::{Mutant, Time};
use lockring_proto::{Digest, Fence, SessionId};
use lockring_ring::{CellId, NamespaceSeed};
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::time::Duration;

/// Keys with their holders, by fence, and waiters, by request.
pub type Contents = BTreeMap<Vec<u8>, (Vec<(SessionId, Fence)>, Vec<(SessionId, u64)>)>;

impl Machine {
    /// The machine with a seeded bug.
    #[must_use]
    pub fn with_mutant(mut self, mutant: Option<Mutant>) -> Self {
        let worker = &mut self.worker;
        (worker.mutant, worker.locks.mutant, worker.links.mutant) = (mutant, mutant, mutant);
        (worker.copies.mutant, self.rounds.mutant) = (mutant, mutant);
        if mutant == Some(Mutant::RestartWithoutGrace) {
            while let Some(cell) = worker.cells.due(Time::NEVER) {
                worker.cells.serve(cell, worker.locks.standing_mut(cell));
            }
        }
        self
    }

    /// The machine with a reader of its stream, who must empty it by [`Machine::take_notes`].
    #[must_use]
    pub fn with_notes(mut self) -> Self {
        self.worker.locks.listen();
        self
    }

    /// The stream since it was last taken.
    pub fn take_notes(&mut self) -> Vec<Note> {
        self.worker.locks.take_notes()
    }

    /// A worker that has the same cells, and knows nothing.
    pub fn replica(&self) -> Replica {
        Replica::new(&self.worker.config)
    }

    /// What the ops have made, in 64 bits.
    pub fn locks_fingerprint(&self) -> u64 {
        self.worker.locks.fingerprint()
    }

    /// The cell of a key, whoever has it.
    pub fn cell_of(&self, namespace: &str, key: &[u8]) -> CellId {
        let hash = lockring_ring::hash_key(NamespaceSeed::of(namespace), key);
        self.worker.config.cell_bits.cell(hash.position)
    }

    /// What a cell has, by key: holders and waiters, each by its session; with the number of its
    /// last op. As this worker owns it, or as its copy.
    pub fn contents(&self, cell: CellId, copy: bool) -> (Fence, Contents) {
        let Worker { locks, copies, links, .. } = &self.worker;
        let of = if copy { copies.locks() } else { locks };
        let cell = of.layout().find(cell).expect("a cell of this worker");
        let session =
            |link| if copy { copies.shadow(link).session } else { links.who(link).session };
        let mut contents = Contents::new();
        of.rebuild(cell, Time(0), |_, op| match op.change {
            Change::Granted { link, source: Source::Asked { key, .. }, .. } => {
                contents.entry(key.to_vec()).or_default().0.push((session(link), op.number));
            }
            Change::Queued { link, request, key, .. } => {
                contents.entry(key.to_vec()).or_default().1.push((session(link), request));
            }
            other => panic!("{other:?}"),
        });
        (of.last(cell), contents)
    }

    /// The cells of which it has a copy, each with the number of the last op that came to it.
    pub fn copied(&self) -> Vec<(CellId, Fence)> {
        let copies = &self.worker.copies;
        let all = (0..self.cells()).map(CellIndex).filter(|&cell| copies.of(cell).is_some());
        all.map(|cell| (copies.id(cell), copies.locks().last(cell))).collect()
    }

    /// How many links it knows by its copies.
    pub fn links_of_copies(&self) -> usize {
        self.worker.copies.link_count()
    }

    /// Of how many workers it knows by which connection they have sent frames.
    pub fn peers_of_copies(&self) -> usize {
        self.worker.copies.heard_count()
    }

    /// Looks at all inner invariants.
    ///
    /// # Errors
    /// With what does not add up.
    pub fn audit(&self) -> Result<(), String> {
        audit::audit(&self.worker)?;
        self.rounds.audit()
    }

    /// The logical state.
    pub fn view(&self) -> view::View {
        view::view(&self.worker)
    }

    /// The logical state in 64 bits.
    pub fn fingerprint(&self) -> u64 {
        let mut trace = Trace::default();
        self.view().hash(&mut trace);
        trace.finish()
    }

    /// All that the machine does by, also as one of a cluster, as text: two with equal ones
    /// go on alike. Unlike the view it has what is only kept for peers: lanes, frames and copies.
    pub fn cluster_view(&self) -> String {
        let Self {
            worker: Worker { cells, copies, links, locks, peers, config, .. }, rounds, ..
        } = self;
        let numbers: Vec<_> =
            links.named().map(|(link, turn)| (link, turn, locks.number_of(link))).collect();
        let every = (0..locks.layout().cells()).map(CellIndex);
        let last: Vec<_> = every.map(|cell| (locks.last(cell), locks.number(cell))).collect();
        let me = (config.node, config.boot);
        let (view, copies) = (self.view(), copies.shown());
        format!("{me:?} {view:?} {cells:?} {numbers:?} {last:?} {peers:?} {rounds:?} {copies}")
    }

    /// The wall clock of the machine's host jumps forward. No decision may depend on it, so this
    /// changes nothing, but for the mutant that shows that it would be noticed.
    pub fn wall_clock_jumps(&mut self, by: Duration) {
        self.worker.links.wall_clock_jumps(by);
    }

    /// The keys whose queue is not worked off yet, or cannot be as their cell recovers, each after
    /// its namespace.
    pub fn unserved(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let worker = &self.worker;
        let recovers = |&(cell, _): &_| worker.cells.role(cell) != crate::cells::Role::Serving;
        let parked = worker.queues.parked().filter(recovers).map(|(_, record)| record);
        worker.queues.unserved().chain(parked).map(|record| {
            let namespace = worker.locks.namespace(record);
            (worker.links.books().namespace_name(namespace), worker.locks.key(record))
        })
    }

    /// Slots of all slabs that have memory.
    #[cfg(test)]
    pub(crate) fn resident(&self) -> usize {
        self.worker.locks.resident() + self.worker.links.resident()
    }

    /// How many keys were compared so far to find those asked for.
    pub fn probes(&self) -> u64 {
        self.worker.locks.probes()
    }

    /// Cell and tag of a key, if its cell is this worker's.
    #[cfg(test)]
    pub(crate) fn place(&self, seed: NamespaceSeed, key: &[u8]) -> Option<(u32, u32)> {
        self.worker.locks.place(seed, key).map(|place| (place.cell.0, place.tag))
    }

    /// Winds the operation counter of a cell of this worker forward, to see it run out.
    pub fn wind_counter(&mut self, cell: CellId, to: u64) {
        let locks = &mut self.worker.locks;
        let cell = locks.layout().find(cell).expect("a cell of this worker");
        let counter = locks.number(cell).counter();
        assert!(to >= counter, "a counter never goes back: {counter} to {to}");
        locks.standing_mut(cell).wind(to);
    }

    /// Takes a cell of this worker as if there had been ops up to this number of its epoch, and
    /// nothing were left of them.
    pub fn skip_ops(&mut self, cell: CellId, to: u64) {
        let locks = &mut self.worker.locks;
        let cell = locks.layout().find(cell).expect("a cell of this worker");
        let number = locks.number(cell);
        assert!(to >= number.counter(), "a counter never goes back: {number} to {to}");
        locks.set_last(cell, Fence::new(number.epoch(), to));
    }

    /// Whether a cell's counter is used up, so that nothing is granted there until its epoch is
    /// raised.
    pub fn has_used_up_cell(&self) -> bool {
        let locks = &self.worker.locks;
        let mut cells = (0..self.cells()).map(CellIndex);
        cells.any(|cell| locks.number(cell).counter() >= Fence::COUNTER_LAST)
    }

    /// Until when the link of a session is honoured, by the clock the machine is run on, if no
    /// stall lengthens it. `None`: there is no such link, or it is dying.
    pub fn honours_until(&self, session: SessionId) -> Option<Time> {
        let links = &self.worker.links;
        Some(links.deadline(links.find_session(session)?).after(links.clock().0))
    }

    /// Whether the lease of a link, by its number in the stream, lasts now; `None`: there is no
    /// such link any more.
    pub fn is_in_lease(&self, now: Time, link: u64) -> Option<bool> {
        let Worker { links, locks, .. } = &self.worker;
        let (link, _) = links.named().find(|&(its, _)| locks.number_of(its) == link)?;
        Some(links.is_in_lease(now, link))
    }

    /// What the machine believes a session to hold here.
    pub fn digest_of(&self, session: SessionId) -> Option<Digest> {
        let link = self.worker.links.find_session(session)?;
        Some(self.worker.locks.digest(link))
    }

    /// The ring version that made the epoch of a key's cell; `None`: the worker does not have it.
    pub fn owned_since(&self, seed: NamespaceSeed, key: &[u8]) -> Option<u64> {
        let cell = self.worker.locks.place(seed, key)?.cell;
        let is_here = self.worker.cells.role(cell) != crate::cells::Role::None;
        is_here.then_some(())?;
        Some(self.worker.cells.since(cell, self.worker.locks.standing(cell)).0)
    }
}
