//! What callers ask for, and where it goes.

use super::{Session, UNKNOWN};
use crate::claims::{ClaimRef, LinkId};
use crate::link::{Ask, Outcome, Place, Query};
use crate::router::WorkerId;
use lockring_proto::{Fence, Time};
use lockring_ring::{CellId, NamespaceSeed, hash_key};

impl Session {
    /// Claims a key. A ring must be known.
    pub fn acquire(&mut self, now: Time, ask: &Ask<'_>) -> ClaimRef {
        let cell = self.cell(self.own_seed(), ask.key);
        let at = self.link_for(now, cell);
        let link = &mut self.contacts[at.index()].link;
        let slot = link.acquire(&mut self.shared, now, cell.0, ask);
        self.shared.claims.name(slot)
    }

    /// Takes up a hold that an earlier process of the session has left, once the worker has
    /// confirmed it: [`Outcome::Granted`] follows, or [`super::NotGranted::NotHeld`]. A ring must
    /// be known.
    pub fn adopt(&mut self, now: Time, token: u64, key: &[u8], fence: Fence) -> ClaimRef {
        let cell = self.cell(self.own_seed(), key);
        let at = self.link_for(now, cell);
        let link = &mut self.contacts[at.index()].link;
        let slot = link.adopt(&mut self.shared, now, token, (cell.0, key, fence));
        self.shared.claims.name(slot)
    }

    /// Whether this claim is held.
    pub fn is_held(&self, claim: ClaimRef) -> bool {
        self.shared.claims.is_held(claim)
    }

    /// The link that a claim is on.
    pub fn link_of(&self, claim: ClaimRef) -> Option<LinkId> {
        let slot = self.shared.claims.slot_of(claim)?;
        Some(self.shared.claims[slot].link)
    }

    /// The request that made a claim, for tests that follow it to the worker.
    #[cfg(feature = "testing")]
    pub fn request_of(&self, claim: ClaimRef) -> Option<u64> {
        let slot = self.shared.claims.slot_of(claim)?;
        let claim = &self.shared.claims[slot];
        Some(claim.unsettled().unwrap_or(claim.id))
    }

    /// Gives a hold back; what follows is told under `token`. `false`: it is not held any more (it
    /// was lost, and told so).
    pub fn release(&mut self, now: Time, claim: ClaimRef, token: u64) -> bool {
        let Some((slot, at)) = self.held(claim) else { return false };
        self.contacts[at.index()].link.release(&mut self.shared, now, slot, token);
        true
    }

    /// Gives a hold back, and nobody wants to know how that ends.
    pub fn release_quietly(&mut self, now: Time, claim: ClaimRef) {
        if let Some((slot, at)) = self.held(claim) {
            self.contacts[at.index()].link.begin_release(&mut self.shared, now, slot, false);
        }
    }

    fn held(&self, claim: ClaimRef) -> Option<(u32, LinkId)> {
        let claims = &self.shared.claims;
        let slot = claims.slot_of(claim).filter(|&slot| claims[slot].is_held())?;
        Some((slot, claims[slot].link))
    }

    /// Gives a claim up, whether it is granted by now or not. `false`: there is nothing to undo.
    /// [`Outcome::Cancelled`] follows when the worker has confirmed it.
    pub fn cancel(&mut self, now: Time, claim: ClaimRef) -> bool {
        let Some(slot) = self.shared.claims.slot_of(claim) else { return false };
        let at = self.shared.claims[slot].link;
        self.contacts[at.index()].link.cancel(&mut self.shared, now, slot)
    }

    /// Asks the worker of a key, or gives it an order. A ring must be known.
    pub fn query(&mut self, now: Time, token: u64, query: Query) {
        let (Query::Inspect(place) | Query::Force(place)) = &query else {
            panic!("a listing is asked of a worker, not of a key's")
        };
        let Place { namespace, key } = place;
        let other = || NamespaceSeed::of(namespace);
        let seed = if namespace.is_empty() { self.own_seed() } else { other() };
        let cell = self.cell(seed, key);
        let at = self.link_for(now, cell);
        let link = &mut self.contacts[at.index()].link;
        link.query(&mut self.shared, now, token, (Some(cell.0), query));
    }

    /// Asks a worker.
    pub fn query_at(&mut self, now: Time, token: u64, worker: WorkerId, query: Query) {
        if self.is_gone(Some(worker)) {
            return self.shared.outcomes.push(Outcome::Moved { token });
        }
        let at = self.link_to(now, worker);
        let link = &mut self.contacts[at.index()].link;
        link.query(&mut self.shared, now, token, (None, query));
    }

    fn own_seed(&self) -> NamespaceSeed {
        self.seed.expect("a session that knows a ring was welcomed")
    }

    /// The cell of a key.
    pub(super) fn cell(&self, seed: NamespaceSeed, key: &[u8]) -> CellId {
        let ring = self.shared.ring.as_ref().expect("a ring is known before anything is asked for");
        ring.bits().cell(hash_key(seed, key).position)
    }

    /// The link to the worker of a cell.
    #[inline]
    pub(super) fn link_for(&mut self, now: Time, cell: CellId) -> LinkId {
        match self.links[usize::from(cell.0)] {
            UNKNOWN => self.make_link_for(now, cell),
            number => LinkId::nth(usize::from(number)),
        }
    }

    #[cold]
    fn make_link_for(&mut self, now: Time, cell: CellId) -> LinkId {
        let ring = self.shared.ring.as_ref().expect("a cell is one of a ring");
        let worker = ring.worker_of(cell).expect("every cell of a ring has a worker");
        let at = self.link_to(now, worker);
        self.links[usize::from(cell.0)] = at.index() as u16;
        at
    }
}
