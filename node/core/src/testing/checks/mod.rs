//! The promises, one small checker each, and each with a history that it must refuse. The numbers
//! are those of the list of invariants in the design notes.

mod attention;
mod exact;
mod exclusion;
mod fences;
mod leases;
mod listing;
mod news;
mod requests;
mod rest;
mod waiters;

pub use attention::Attention;
pub use exact::Exact;
pub use exclusion::{Capacity, Exclusion};
pub use fences::{Fences, Numbered, Phantoms, Resource};
pub use leases::{Leases, NoLoss, Orphans};
pub use listing::Listing;
pub use news::News;
pub use requests::{Cancels, Linear, Once, Releases, Routing};
pub use rest::{Conservation, Rest};
pub use waiters::{DeadSessions, Fifo, Passed, Waiters};

use super::recorder::Check;

/// Every promise, where it is seen what workers do: [`Fifo`] looks at the queues themselves, and
/// [`Passed`] is for want of that.
pub fn all() -> Vec<Box<dyn Check>> {
    vec![
        Box::new(Exclusion),
        Box::new(Capacity),
        Box::new(Fences::default()),
        Box::new(Numbered::default()),
        Box::new(Phantoms::default()),
        Box::new(Resource::default()),
        Box::new(Leases),
        Box::new(NoLoss::default()),
        Box::new(Orphans::default()),
        Box::new(News::default()),
        Box::new(Listing::default()),
        Box::new(Linear::default()),
        Box::new(Exact::default()),
        Box::new(Releases::default()),
        Box::new(Once::default()),
        Box::new(Cancels::default()),
        Box::new(Routing),
        Box::new(DeadSessions),
        Box::new(Waiters::default()),
        Box::new(Fifo::default()),
        Box::new(Attention::default()),
        Box::new(Conservation),
        Box::new(Rest),
    ]
}

/// Those of them that can be seen by what clients do and are answered. What a worker does may be in
/// vain, where its cells may be another's by then.
pub fn of_clusters() -> Vec<Box<dyn Check>> {
    vec![
        Box::new(Exclusion),
        Box::new(Fences::of_answers()),
        Box::new(Phantoms::default()),
        Box::new(Resource::default()),
        Box::new(Leases),
        Box::new(NoLoss::default()),
        Box::new(Linear::default()),
        Box::new(Exact::default()),
        Box::new(Releases::default()),
        Box::new(Once::default()),
        Box::new(Passed::default()),
        Box::new(Rest),
    ]
}

#[cfg(test)]
pub(crate) mod history {
    //! Hand-made histories: one key, exclusive claims, sessions `a` and `b`, times in milliseconds.

    use crate::Time;
    use crate::testing::{Check, Fact, KeyId, Recorder, Token};
    use lockring_proto::{Claim, Fence, SessionId};

    pub(crate) const K: KeyId = KeyId(0);
    pub(crate) const A: SessionId = SessionId([1; 16]);
    pub(crate) const B: SessionId = SessionId([2; 16]);
    pub(crate) const X: Claim = Claim::EXCLUSIVE;
    pub(crate) const T: Token = Token(1);

    pub(crate) fn asked(session: SessionId) -> Fact {
        Fact::Asked { session, token: T, key: K, claim: X, patient: true }
    }

    pub(crate) fn granted(session: SessionId, fence: u64) -> Fact {
        let fence = Fence(fence);
        Fact::Granted { session, request: fence.0, key: K, claim: X, fence, alive: true }
    }

    pub(crate) fn held(session: SessionId, fence: u64) -> Fact {
        Fact::Held { session, worker: 0, token: T, key: K, claim: X, fence: Fence(fence) }
    }

    pub(crate) fn believes(session: SessionId, until_ms: u64) -> Fact {
        let until = Time(until_ms * 1000);
        Fact::Believes { session, worker: 0, until, honoured: None }
    }

    pub(crate) fn freed(session: SessionId, fence: u64) -> Fact {
        Fact::Freed { session, key: K, fence: Fence(fence), forced: false }
    }

    pub(crate) fn queued(session: SessionId, request: u64) -> Fact {
        Fact::Queued { session, request, key: K, claim: X }
    }

    pub(crate) fn left(session: SessionId, request: u64) -> Fact {
        Fact::Left { session, request, key: K }
    }

    pub(crate) fn giving(session: SessionId) -> Fact {
        Fact::Giving { session, token: T }
    }

    pub(crate) fn released(session: SessionId) -> Fact {
        Fact::Released { session, token: T }
    }

    pub(crate) fn booted() -> Fact {
        Fact::Booted { keys: [K].into() }
    }

    pub(crate) fn turn() -> Fact {
        Fact::Turn { worker: 0, grace: false, unserved: Vec::new() }
    }

    /// What `check` says of a history, one fact each millisecond.
    pub(crate) fn judge(check: impl Check + 'static, facts: &[Fact]) -> Option<String> {
        let mut recorder = Recorder::new(vec![Box::new(check)]);
        for (ms, fact) in facts.iter().enumerate() {
            recorder.record(Time(ms as u64 * 1000), fact);
        }
        recorder.violation().map(|violation| violation.what.clone())
    }

    /// `good` passes, `bad` does not.
    pub(crate) fn tells_apart<C: Check + 'static>(
        check: impl Fn() -> C,
        good: &[Fact],
        bad: &[Fact],
    ) {
        assert_eq!(judge(check(), good), None);
        assert!(judge(check(), bad).is_some(), "not refused: {bad:?}");
    }
}
