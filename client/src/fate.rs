//! Whether a session is over, and the leases of its links: what its task and its handles share.

use crate::hold::Lease;
use crate::session::{LinkId, Loss};
use lockring_proto::{Refusal, Time};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// How a session ended.
#[derive(Debug)]
pub(crate) struct Over {
    pub(crate) loss: Loss,
    pub(crate) refusal: Option<Refusal>,
}

/// Fewer leases that nobody is under any more are not worth looking for.
const SWEEP_MIN: usize = 64;

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
    apart: Apart,
}

/// The leases of holds that are believed by themselves: those which are so until the same time
/// share one, as holds of a link do that move with their cells, however many there are.
#[derive(Debug, Default)]
struct Apart {
    by_until: BTreeMap<Time, Weak<Lease>>,
    /// At so many of them those that nobody is under any more are taken out.
    sweep_at: usize,
}

impl Apart {
    fn find(&self, until: Time) -> Option<Arc<Lease>> {
        self.by_until.get(&until)?.upgrade().filter(|lease| lease.loss().is_none())
    }

    fn insert(&mut self, until: Time, lease: &Arc<Lease>) {
        if self.by_until.len() >= self.sweep_at {
            self.by_until.retain(|_, lease| lease.strong_count() > 0);
            // As many have to come as were left before all are looked at again.
            self.sweep_at = SWEEP_MIN.max(2 * self.by_until.len());
        }
        self.by_until.insert(until, Arc::downgrade(lease));
    }
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
            let apart = leases.apart.by_until.values().filter_map(Weak::upgrade);
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

    /// The lease of holds that are believed by themselves until then: the one that there is, or a
    /// new one.
    pub(crate) fn apart(&self, until: Time, new: impl FnOnce() -> Arc<Lease>) -> Arc<Lease> {
        let mut leases = self.leases();
        leases.apart.find(until).unwrap_or_else(|| {
            let lease = new();
            leases.apart.insert(until, &lease);
            self.ends_with_session(&lease, leases);
            lease
        })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn lease(until: Time) -> Arc<Lease> {
        Lease::new(Clock::BootTime, until)
    }

    #[test]
    fn holds_that_are_believed_until_one_time_share_a_lease() {
        let fate = Fate::default();
        let mut made = 0;
        let leases: Vec<Arc<Lease>> = (0..300)
            .map(|hold| {
                // They come in any order, as their cells do.
                let until = Time(hold % 3);
                fate.apart(until, || {
                    made += 1;
                    lease(until)
                })
            })
            .collect();
        assert_eq!(made, 3);
        leases[1].end(Loss::Lapsed);
        let after = fate.apart(Time(1), || lease(Time(1)));
        assert!(after.loss().is_none() && leases[0].loss().is_none(), "none joins what is over");
        fate.end_leases(Loss::Closed);
        assert!(leases.iter().chain([&after]).all(|lease| lease.loss().is_some()));
    }

    #[test]
    fn leases_cost_the_same_each_however_many_there_are() {
        const LEASES: u64 = 10_000;
        let (mut apart, mut kept, mut looked_at) = (Apart::default(), Vec::new(), 0);
        for until in 0..LEASES {
            let (before, known) = (apart.sweep_at, apart.by_until.len() as u64);
            kept.push(lease(Time(until)));
            apart.insert(Time(until), kept.last().unwrap());
            looked_at += if apart.sweep_at == before { 0 } else { known };
        }
        assert!(looked_at <= 2 * LEASES, "{looked_at} for {LEASES}");
        // Those that are no more are forgotten, as others come.
        kept.truncate(10);
        for until in LEASES..4 * LEASES {
            apart.insert(Time(until), &lease(Time(until)));
        }
        assert!(apart.by_until.len() <= SWEEP_MIN, "{}", apart.by_until.len());
    }
}
