//! Requests that a worker has not carried out, as their cell is another's: they wait for the ring.

use super::pending::Pending;
use super::{Link, Shared};
use lockring_proto::Time;
use std::collections::BTreeMap;

/// The requests of a link that wait for a newer ring.
#[derive(Debug, Default)]
pub(super) struct Parked {
    /// Each with the version that the worker has.
    versions: BTreeMap<u64, u64>,
    /// Those that have come since they were looked at last.
    come: Vec<u64>,
    /// By what they were looked at last: the version that was known, and the one up to which none
    /// was to be hoped for. Until that is another, those which were left stay.
    by: (u64, u64),
}

impl Parked {
    pub(super) fn contains(&self, id: u64) -> bool {
        self.versions.contains_key(&id)
    }

    pub(super) fn insert(&mut self, id: u64, version: u64) {
        self.versions.insert(id, version);
        self.come.push(id);
    }

    pub(super) fn remove(&mut self, id: u64) {
        self.versions.remove(&id);
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.versions.is_empty()
    }

    /// Those to be looked at by this, in their order.
    fn due(&mut self, by: (u64, u64)) -> Vec<(u64, u64)> {
        let come = std::mem::take(&mut self.come);
        if self.by != by {
            self.by = by;
            return self.versions.iter().map(|(&id, &version)| (id, version)).collect();
        }
        come.into_iter().filter_map(|id| Some((id, *self.versions.get(&id)?))).collect()
    }
}

impl Link {
    /// Whether requests wait for a ring, or have since they were looked at.
    #[inline]
    pub(crate) fn has_parked(&self) -> bool {
        !self.parked.is_empty() || !self.parked.come.is_empty()
    }

    /// Whether a query has not been carried out that was not looked at since.
    pub(crate) fn parks_query(&self) -> bool {
        let is_query = |id: &u64| matches!(self.pending.get(*id), Some(Pending::Query(_)));
        self.parked.come.iter().any(is_query)
    }

    /// What a worker has not carried out is sent again, if a newer ring is known than it was sent
    /// by; it waits for that, if the worker knows one; or it is tried again in a while.
    pub(crate) fn serve_parked(&mut self, shared: &mut Shared, now: Time) {
        for (id, version) in self.parked.due((shared.version, shared.fetch.refused(self.id))) {
            let routed = match self.pending.get(id) {
                Some(&(Pending::Claim(slot) | Pending::Waiting(slot))) => {
                    shared.claims[slot].way.routed
                }
                Some(Pending::Query(query)) => query.routed,
                _ => shared.version,
            };
            if routed < shared.version {
                self.parked.remove(id);
                self.send(shared, now, id);
            } else if version <= shared.version || !shared.fetch.may_come(version, self.id) {
                self.parked.remove(id);
                self.unserved(shared, now, id);
            }
        }
    }
}
