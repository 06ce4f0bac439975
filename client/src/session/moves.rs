//! A newer ring: whose cells are another worker's by it, and what goes there.

use super::{Contact, Session, UNKNOWN};
use crate::link::{Loss, Outcome};
use crate::router::{Ring, WorkerId};
use lockring_proto::{BootId, Time};
use lockring_ring::{CellId, NodeId};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A claim between two links.
struct Travelling {
    slot: u32,
    /// Until when it is believed, if it is a hold.
    believed: Time,
}

impl Session {
    /// A ring that a worker has sent, once all of it is in.
    pub(super) fn take_ring(&mut self, now: Time, at: super::LinkId) {
        let Some(ring) = self.contacts[at.index()].link.take_ring() else { return };
        match ring.and_then(|ring| ring.fits(self.ring.as_deref())) {
            Ok(ring) => {
                let ring = Arc::new(ring);
                if self.ring_is(now, Arc::clone(&ring)) {
                    self.shared.outcomes.push(Outcome::Ring(ring));
                }
            }
            Err(error) => self.shared.outcomes.push(Outcome::BadRing(error)),
        }
        self.contacts[at.index()].link.ring_is_newest(&mut self.shared, now);
    }

    /// A ring is known, by whomever. If it is newer, what is another worker's by it goes there;
    /// what waited for it is sent. `false`: it is not newer.
    pub fn ring_is(&mut self, now: Time, ring: Arc<Ring>) -> bool {
        if let Some(known) = &self.ring
            && (known.version() >= ring.version() || known.bits() != ring.bits())
        {
            return false;
        }
        self.shared.version = ring.version().0;
        let cells = ring.bits().cells() as usize;
        let before = self.ring.replace(ring);
        self.links.clear();
        self.links.resize(cells, UNKNOWN);
        let moved = before.map_or_else(BTreeSet::new, |before| self.moved_cells(&before));
        for number in 0..self.contacts.len() {
            self.contacts[number].gone = self.is_gone(self.contacts[number].link.worker());
        }
        let claims = self.take_out(now, &moved);
        self.take_in(now, claims);
        self.move_queries(now);
        for Contact { link, gone, .. } in &mut self.contacts {
            link.ring_is_newer(&mut self.shared, now);
            if *gone {
                link.is_gone(&mut self.shared);
            }
        }
        true
    }

    /// The cells that another worker grants for than by the ring before.
    fn moved_cells(&mut self, before: &Ring) -> BTreeSet<CellId> {
        let Some(ring) = &self.ring else { return BTreeSet::new() };
        (0..self.links.len() as u32)
            .map(|cell| CellId(cell as u16))
            .filter(|&cell| before.worker_of(cell) != ring.worker_of(cell))
            .collect()
    }

    /// Whether the ring has no such worker.
    pub(super) fn is_gone(&self, worker: Option<WorkerId>) -> bool {
        let (Some(ring), Some(WorkerId { node, worker })) = (&self.ring, worker) else {
            return false;
        };
        ring.node(node).is_none_or(|node| worker >= node.workers)
    }

    /// Whether the process at the other end of a link has ended, and another runs in its place: it
    /// has no memory, and what was held there is gone.
    fn process_has_ended(&self, at: super::LinkId) -> bool {
        let (Some(ring), Some(met)) = (&self.ring, self.link(at).welcome()) else { return false };
        ring.node(NodeId(met.node)).is_some_and(|node| node.boot != BootId(met.boot))
    }

    /// Takes what is claimed of these cells off its links, in the order of the requests.
    fn take_out(&mut self, now: Time, cells: &BTreeSet<CellId>) -> Vec<Travelling> {
        let claims = &self.shared.claims;
        let mut slots: Vec<u32> = claims.of_cells(cells).collect();
        slots.sort_unstable_by_key(|&slot| claims[slot].id);
        let mut travelling = Vec::with_capacity(slots.len());
        for slot in slots {
            let at = self.shared.claims[slot].link;
            let is_lost = self.shared.claims[slot].is_held() && self.process_has_ended(at);
            let link = &mut self.contacts[at.index()].link;
            link.notice_lapse(&mut self.shared, now);
            if is_lost && self.shared.claims[slot].is_held() {
                link.lose(&mut self.shared, slot, Loss::SessionEnded);
            } else {
                link.take_out(&mut self.shared, slot);
                travelling.push(Travelling { slot, believed: link.valid_until() });
            }
        }
        travelling
    }

    /// Puts claims on the links to the workers of their cells.
    fn take_in(&mut self, now: Time, claims: Vec<Travelling>) {
        for Travelling { slot, believed } in claims {
            let at = self.link_for(now, CellId(self.shared.claims[slot].cell));
            let link = &mut self.contacts[at.index()].link;
            link.take_in(&mut self.shared, now, slot, believed);
        }
    }

    /// Queries about keys go where their cells are too.
    fn move_queries(&mut self, now: Time) {
        let Some(ring) = self.ring.clone() else { return };
        for number in 0..self.contacts.len() {
            let link = &mut self.contacts[number].link;
            let worker = link.worker();
            for query in link.take_queries(|cell| ring.worker_of(CellId(cell)) == worker) {
                let Some(cell) = query.1.cell() else { continue };
                let at = self.link_for(now, CellId(cell));
                let link = &mut self.contacts[at.index()].link;
                link.take_query(&mut self.shared, now, query);
            }
        }
    }
}
