//! A newer ring: whose cells are another worker's by it, and what goes there.

use super::{Contact, LinkId, Session, Stage, UNKNOWN};
use crate::claims::State;
use crate::link::{Link, Outcome, Stuck, ToldLost};
use crate::router::{Ring, WorkerId};
use lockring_proto::{HoldId, Time};
use lockring_ring::{CellId, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A claim between two links.
struct Travelling {
    slot: u32,
    /// Until when it is believed, if it is a hold.
    believed: Time,
}

impl Session {
    /// A ring that a worker has sent, once all of it is in.
    pub(super) fn take_ring(&mut self, now: Time) {
        let Some(ring) = self.shared.fetch.take() else { return };
        match ring.and_then(|ring| ring.fits(self.shared.ring.as_deref())) {
            Ok(ring) => {
                let ring = Arc::new(ring);
                if self.ring_is(now, Arc::clone(&ring)) {
                    self.shared.outcomes.push(Outcome::Ring(ring));
                }
            }
            Err(error) => self.shared.outcomes.push(Outcome::BadRing(error)),
        }
        for number in 0..self.contacts.len() {
            self.serve_parked(now, LinkId::nth(number));
        }
    }

    /// Asks for a ring that is wanted, if nobody is asked for it.
    pub(super) fn pursue_ring(&mut self, now: Time) {
        let Self { shared, contacts, .. } = self;
        let up = contacts.iter().enumerate().filter(|(_, one)| !one.is_over() && one.link.is_up());
        let up = up.map(|(number, _)| LinkId::nth(number));
        if let Some(at) = shared.fetch.next(shared.version, up) {
            contacts[at.index()].link.ask_for_ring(shared, now);
        }
    }

    /// What a worker has not carried out goes where its cell is by now.
    pub(super) fn serve_parked(&mut self, now: Time, at: LinkId) {
        if !self.link(at).has_parked() {
            return;
        }
        if self.link(at).parks_query() {
            self.move_queries(now, at);
        }
        self.contacts[at.index()].link.serve_parked(&mut self.shared, now);
    }

    /// A ring is known, by whomever. If it is newer, what is another worker's by it goes there;
    /// what waited for it is sent. `false`: it is not newer.
    pub fn ring_is(&mut self, now: Time, ring: Arc<Ring>) -> bool {
        if let Some(known) = &self.shared.ring
            && (known.version() >= ring.version() || known.bits() != ring.bits())
        {
            return false;
        }
        self.shared.version = ring.version().0;
        let cells = ring.bits().cells() as usize;
        let before = self.shared.ring.replace(ring);
        self.links.clear();
        self.links.resize(cells, UNKNOWN);
        let is_first = before.is_none();
        let moved = before.map_or_else(BTreeSet::new, |before| self.moved_cells(&before));
        let ring = self.shared.ring.as_ref();
        let gaining: BTreeSet<WorkerId> =
            moved.iter().filter_map(|&cell| ring?.worker_of(cell)).collect();
        for number in 0..self.contacts.len() {
            let gone = self.is_gone(self.contacts[number].link.worker());
            self.contacts[number].gone |= gone;
        }
        let claims = self.take_out(now, &moved);
        self.take_in(now, claims);
        for number in 0..self.contacts.len() {
            self.move_queries(now, LinkId::nth(number));
            let Contact { link, .. } = &mut self.contacts[number];
            if is_first || link.worker().is_some_and(|worker| gaining.contains(&worker)) {
                link.gains_cells(self.shared.version);
            }
            link.credit_deferred(&mut self.shared, now);
            link.digests_again(now);
            link.serve_parked(&mut self.shared, now);
        }
        self.end_links(now);
        self.keep_two_nodes(now);
        true
    }

    /// The cells whose claims another worker has by this ring, or the same anew. Of others it is
    /// noted since when their owner has had them, though it has raised their epoch.
    fn moved_cells(&mut self, before: &Ring) -> BTreeSet<CellId> {
        let Some(ring) = self.shared.ring.clone() else { return BTreeSet::new() };
        let (mut moved, mut kept_since) = (BTreeSet::new(), BTreeMap::new());
        for cell in (0..self.links.len() as u32).map(|cell| CellId(cell as u16)) {
            let since = self.shared.kept_since.get(&cell).copied();
            if before.since(cell) == ring.since(cell)
                && before.worker_of(cell) == ring.worker_of(cell)
            {
                kept_since.extend(since.map(|since| (cell, since)));
            } else if is_raised(before, &ring, cell) {
                let since = since.or(before.since(cell).map(|since| since.0));
                kept_since.extend(since.map(|since| (cell, since)));
            } else {
                moved.insert(cell);
            }
        }
        self.shared.kept_since = kept_since;
        moved
    }

    /// Whether the ring has no such worker.
    pub(super) fn is_gone(&self, worker: Option<WorkerId>) -> bool {
        let (Some(ring), Some(WorkerId { node, worker })) = (&self.shared.ring, worker) else {
            return false;
        };
        ring.node(node).is_none_or(|node| worker >= node.workers)
    }

    /// Takes what is claimed of these cells off its links, in the order of the requests.
    fn take_out(&mut self, now: Time, cells: &BTreeSet<CellId>) -> Vec<Travelling> {
        for Contact { link, .. } in &mut self.contacts {
            link.notice_lapse(&mut self.shared, now);
        }
        let claims = &self.shared.claims;
        let mut slots: Vec<u32> = claims.of_cells(cells).collect();
        slots.sort_unstable_by_key(|&slot| claims[slot].id);
        let mut travelling = Vec::with_capacity(slots.len());
        for slot in slots {
            let at = self.shared.claims[slot].link;
            let link = &mut self.contacts[at.index()].link;
            let believed = link.take_out(&mut self.shared, slot);
            travelling.push(Travelling { slot, believed });
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

    /// Queries of a link about keys go where their cells are too.
    fn move_queries(&mut self, now: Time, at: LinkId) {
        let Some(ring) = self.shared.ring.clone() else { return };
        let link = &mut self.contacts[at.index()].link;
        let worker = link.worker();
        for query in link.take_queries(|cell| ring.worker_of(CellId(cell)) == worker) {
            let Some(cell) = query.1.cell() else { continue };
            let at = self.link_for(now, CellId(cell));
            let link = &mut self.contacts[at.index()].link;
            link.take_query(&mut self.shared, now, query);
        }
    }

    /// Links to workers that the ring has no more are over.
    fn end_links(&mut self, now: Time) {
        for number in 0..self.contacts.len() {
            let gone = self.is_gone(self.contacts[number].link.worker());
            if gone && !self.contacts[number].is_over() {
                self.end_link(now, LinkId::nth(number));
            }
        }
        self.note_company(now);
    }

    /// Nothing comes on a link that is over any more: [`Outcome::LinkOver`] was heard.
    pub fn forget(&mut self, at: LinkId) {
        let contact = &mut self.contacts[at.index()];
        assert!(contact.is_over(), "{at:?} is not over");
        contact.stage = Stage::Free;
    }

    /// One node alone may be cut off, or gone, with whatever it knows of the ring.
    fn keep_two_nodes(&mut self, now: Time) {
        let Some(ring) = self.shared.ring.clone() else { return };
        let linked: BTreeSet<NodeId> = self
            .contacts
            .iter()
            .filter(|one| !one.is_over())
            .filter_map(|one| Some(one.link.worker()?.node))
            .collect();
        let others: Vec<NodeId> =
            ring.nodes().iter().map(|node| node.id).filter(|id| !linked.contains(id)).collect();
        if linked.len() == 1 && !others.is_empty() {
            let node = others[(self.draw() % others.len() as u64) as usize];
            self.link_to(now, WorkerId { node, worker: 0 });
        }
    }

    /// A worker is silent about something: whoever has the copy of the cell knows of a newer ring
    /// first, if that is why.
    pub(super) fn ask_backups(&mut self, now: Time) {
        for at in self.links() {
            let Some(stuck) = self.contacts[at.index()].link.take_stuck() else { continue };
            let node = |link: &Link| link.worker().map(|worker| worker.node);
            let asked = node(self.link(at));
            let cell = match stuck {
                Stuck::Cell(cell) => Some(cell),
                Stuck::Any => self.shared.claims.of_link(at).map(|claim| claim.cell).next(),
            };
            let ring = self.shared.ring.clone();
            let backup = cell.and_then(|cell| ring?.backup_of(CellId(cell)));
            let backup = backup.map(|worker| self.link_to(now, worker));
            let is_other = |&other: &LinkId| {
                let link = self.link(other);
                link.is_up() && node(link) != asked && !self.shared.fetch.is_asked(other)
            };
            let whom = backup.or_else(|| self.links().find(is_other));
            let Some(whom) = whom.filter(|&whom| self.link(whom).is_up()) else { continue };
            if self.shared.fetch.is_idle() {
                self.contacts[whom.index()].link.ask_for_ring(&mut self.shared, now);
            }
        }
    }

    /// Holds that some worker has told as lost, on whichever link they are by now.
    pub(super) fn lose_told(&mut self, now: Time) {
        if self.shared.told_lost.is_empty() {
            return;
        }
        let told = std::mem::take(&mut self.shared.told_lost);
        let mut told: BTreeMap<HoldId, ToldLost> =
            told.into_iter().map(|told| (told.hold, told)).collect();
        let cells = told.keys().map(|hold| CellId(hold.cell)).collect();
        let slots: Vec<u32> = self.shared.claims.of_cells(&cells).collect();
        let mut asked = BTreeSet::new();
        for slot in slots {
            let claim = &self.shared.claims[slot];
            if let State::Acquiring | State::Confirming { .. } = claim.state {
                asked.insert(claim.cell);
            }
            let (link, hold) = (claim.link, claim.hold_id());
            if let Some(ToldLost { reason, .. }) = hold.and_then(|hold| told.remove(&hold)) {
                self.contacts[link.index()].link.lose(&mut self.shared, slot, reason);
            }
        }
        // Others will not be told as granted any more.
        told.retain(|hold, _| asked.contains(&hold.cell));
        for (hold, ToldLost { by, .. }) in told {
            self.shared.lost_early.insert(hold, (by, now));
        }
    }
}

/// Whether the owner of a cell has raised its epoch, and that is all that has happened to it:
/// whatever takes a cell away, or takes the owner's memory, makes an epoch of its own.
fn is_raised(before: &Ring, after: &Ring, cell: CellId) -> bool {
    let of = |ring: &Ring| {
        let worker = ring.worker_of(cell)?;
        let boot = ring.node(worker.node)?.boot;
        Some((worker, boot, ring.takeover(cell)?))
    };
    let epoch = |ring: &Ring| ring.epoch(cell).map_or(0, |epoch| epoch.0);
    of(before).is_some() && of(before) == of(after) && epoch(after) == epoch(before) + 1
}
