//! Whether a session is over, and the leases of its links: what its task and its handles share.

use crate::hold::Lease;
use crate::session::{LinkId, Loss};
use lockring_proto::Refusal;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

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
    /// By link: the lease that counts now.
    leases: Mutex<Vec<Arc<Lease>>>,
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
        for lease in self.leases().iter() {
            lease.end(loss);
        }
    }

    /// A link has a new lease.
    pub(crate) fn begins(&self, link: LinkId, lease: &Arc<Lease>) {
        let mut leases = self.leases();
        match leases.get_mut(link.index()) {
            Some(known) => *known = Arc::clone(lease),
            None => leases.push(Arc::clone(lease)),
        }
        // Read while the lease is in the list: either this sees the end, or that finds the lease.
        if let Some(over) = self.over.get() {
            lease.end(over.loss);
        }
    }

    fn leases(&self) -> MutexGuard<'_, Vec<Arc<Lease>>> {
        // The lock guards pointers alone: a panic cannot have left them half changed.
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
