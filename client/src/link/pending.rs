//! What is unanswered on a link.

use super::IdHasher;
use super::query::Asked;
use hashbrown::HashMap;
use lockring_proto::Time;
use std::hash::BuildHasherDefault;

/// What an unanswered request id belongs to.
#[derive(Debug)]
pub(super) enum Pending {
    Claim(u32),
    /// A claim that is queued: its answer comes when its turn has come.
    Waiting(u32),
    /// A hold of which a cell that was taken over is told.
    Reclaim {
        slot: u32,
        sent: Option<Time>,
    },
    Query(Box<Asked>),
    /// The end of the session here.
    Goodbye,
    Renew {
        sent: Time,
    },
    /// By the ring of this version.
    Compare {
        sent: Time,
        version: u64,
    },
    GetRing {
        sent: Time,
    },
}

/// The requests of a link that are unanswered.
#[derive(Debug, Default)]
pub(super) struct Unanswered {
    by_id: HashMap<u64, Pending, BuildHasherDefault<IdHasher>>,
    /// How many of them are queued claims, which owe nobody an answer.
    waiting: usize,
}

impl Unanswered {
    #[inline]
    pub(super) fn insert(&mut self, id: u64, pending: Pending) {
        self.waiting += usize::from(matches!(pending, Pending::Waiting(_)));
        let before = self.by_id.insert(id, pending);
        assert!(before.is_none(), "request {id} is unanswered already");
    }

    #[inline]
    pub(super) fn remove(&mut self, id: u64) -> Option<Pending> {
        let pending = self.by_id.remove(&id);
        self.waiting -= usize::from(matches!(pending, Some(Pending::Waiting(_))));
        pending
    }

    #[inline]
    pub(super) fn get(&self, id: u64) -> Option<&Pending> {
        self.by_id.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Pending> {
        self.by_id.get_mut(&id)
    }

    /// The claim whose request this is.
    #[inline]
    pub(super) fn claim(&self, id: u64) -> Option<u32> {
        match self.by_id.get(&id) {
            Some(&(Pending::Claim(slot) | Pending::Waiting(slot))) => Some(slot),
            _ => None,
        }
    }

    /// A claim is queued.
    pub(super) fn waits(&mut self, id: u64) {
        if let Some(pending) = self.by_id.get_mut(&id)
            && let Pending::Claim(slot) = *pending
        {
            *pending = Pending::Waiting(slot);
            self.waiting += 1;
        }
    }

    /// A claim is sent again, and an answer is owed for that.
    pub(super) fn is_asked_again(&mut self, id: u64) {
        if let Some(pending) = self.by_id.get_mut(&id)
            && let Pending::Waiting(slot) = *pending
        {
            *pending = Pending::Claim(slot);
            self.waiting -= 1;
        }
    }

    /// Whether the worker owes an answer.
    pub(super) fn is_owed_any(&self) -> bool {
        self.by_id.len() > self.waiting
    }

    /// The first request up to this id, of those that are `asked`, to which an answer is owed.
    pub(super) fn first_owed(
        &self,
        upto: u64,
        asked: impl Fn(u64, &Pending) -> bool,
    ) -> Option<u64> {
        let owed = self.by_id.iter().filter(|(_, one)| !matches!(one, Pending::Waiting(_)));
        owed.filter(|&(&id, one)| id <= upto && asked(id, one)).map(|(&id, _)| id).min()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Pending> {
        self.by_id.values()
    }

    #[cfg(feature = "testing")]
    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// The ids of these, in the order in which they were given.
    pub(super) fn ids(&self, which: impl Fn(u64, &Pending) -> bool) -> Vec<u64> {
        let found = self.by_id.iter().filter(|(id, pending)| which(**id, pending));
        let mut ids: Vec<u64> = found.map(|(&id, _)| id).collect();
        ids.sort_unstable();
        ids
    }

    /// Takes these out, in the order of their ids.
    pub(super) fn take(&mut self, which: impl Fn(u64, &Pending) -> bool) -> Vec<(u64, Pending)> {
        let ids = self.ids(which).into_iter();
        let taken = ids.filter_map(|id| self.remove(id).map(|pending| (id, pending)));
        taken.collect()
    }
}
