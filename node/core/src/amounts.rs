//! Amounts of what is limited.

/// How much there is of what is limited, at one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Amounts {
    /// Sessions.
    pub sessions: u64,
    /// Holds.
    pub holds: u64,
    /// Queued claims.
    pub waiters: u64,
    /// Bytes of memory for all of it: an estimate from above.
    pub bytes: u64,
}

impl Amounts {
    /// A hold of this size, in bytes.
    pub(crate) fn hold(bytes: u64) -> Self {
        Self { holds: 1, bytes, ..Self::default() }
    }

    /// A queued claim of this size, in bytes.
    pub(crate) fn waiter(bytes: u64) -> Self {
        Self { waiters: 1, bytes, ..Self::default() }
    }

    pub(crate) fn change(&mut self, before: Self, now: Self) {
        let one = |all: &mut u64, before: u64, now: u64| {
            assert!(*all >= before, "{all} is less than the {before} of one");
            *all = *all - before + now;
        };
        one(&mut self.sessions, before.sessions, now.sessions);
        one(&mut self.holds, before.holds, now.holds);
        one(&mut self.waiters, before.waiters, now.waiters);
        one(&mut self.bytes, before.bytes, now.bytes);
    }

    /// The limit that does not allow for more, if so: how much, and of what.
    pub(crate) fn exceeded(&self, more: Self, limit: &Self) -> Option<String> {
        let one = |used: u64, more: u64, limit: u64, what: &str| {
            let over = more > 0 && used.saturating_add(more) > limit;
            over.then(|| format!("its limit of {limit} {what}"))
        };
        one(self.sessions, more.sessions, limit.sessions, "sessions")
            .or_else(|| one(self.holds, more.holds, limit.holds, "holds"))
            .or_else(|| one(self.waiters, more.waiters, limit.waiters, "queued claims"))
            .or_else(|| one(self.bytes, more.bytes, limit.bytes, "bytes"))
    }

    /// How many more thin holds a limit allows for.
    pub(crate) fn room(&self, limit: &Self, thin_bytes: u64) -> u64 {
        let holds = limit.holds.saturating_sub(self.holds);
        holds.min(limit.bytes.saturating_sub(self.bytes) / thin_bytes)
    }
}
