//! Whether a session is over, and the leases of its links: what its task and its handles share.

use crate::hold::Lease;
use crate::session::{LinkId, Loss};
use lockring_proto::Refusal;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// How a session ended.
#[derive(Debug)]
pub(crate) struct Over {
    pub(crate) loss: Loss,
    pub(crate) refusal: Option<Refusal>,
}

/// What becomes of a session.
#[derive(Debug, Default)]
pub(crate) struct Fate {
    over: OnceLock<Over>,
    leases: Mutex<Leases>,
}

#[derive(Debug, Default)]
struct Leases {
    /// By link: the lease that counts now.
    of_links: Vec<Arc<Lease>>,
    /// Those of holds that have come from another link, while there are any.
    apart: Vec<Weak<Lease>>,
}

impl Fate {
    /// How it ended, if it has.
    pub(crate) fn over(&self) -> Option<&Over> {
        self.over.get()
    }

    /// It ends, with everything held in it. `false`: it has ended before, one way or the other, and
    /// everybody was told.
    pub(crate) fn ends(&self, over: Over) -> bool {
        let loss = over.loss;
        let first = self.over.set(over).is_ok();
        if first {
            self.end_leases(loss);
        }
        first
    }

    /// Everything that is held in it is lost.
    pub(crate) fn end_leases(&self, loss: Loss) {
        let all: Vec<Arc<Lease>> = {
            let leases = self.leases();
            let apart = leases.apart.iter().filter_map(Weak::upgrade);
            leases.of_links.iter().cloned().chain(apart).collect()
        };
        all.iter().for_each(|lease| lease.end(loss));
    }

    /// A link has a new lease.
    pub(crate) fn begins(&self, link: LinkId, lease: &Arc<Lease>) {
        let mut leases = self.leases();
        match leases.of_links.get_mut(link.index()) {
            Some(known) => *known = Arc::clone(lease),
            None => leases.of_links.push(Arc::clone(lease)),
        }
        self.ends_with_session(lease, leases);
    }

    /// Holds have a lease of their own for a while.
    pub(crate) fn begins_apart(&self, lease: &Arc<Lease>) {
        let mut leases = self.leases();
        leases.apart.retain(|lease| lease.strong_count() > 0);
        leases.apart.push(Arc::downgrade(lease));
        self.ends_with_session(lease, leases);
    }

    fn ends_with_session(&self, lease: &Lease, in_list: MutexGuard<'_, Leases>) {
        // Read while the lease is in the list: either this sees the end, or that finds the lease.
        let over = self.over.get();
        drop(in_list);
        if let Some(over) = over {
            lease.end(over.loss);
        }
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        // The lock guards pointers alone: a panic cannot have left them half changed.
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
