//! The lease clock, and when leases end by it.

use super::Links;
use crate::event::LinkIndex;
use crate::mutant::mutant;
use lockring_proto::{Time, limits};
use std::time::Duration;

/// While there are links the machine wants to be told the time this often, so that a longer silence
/// is a stall of the worker and not of its clients.
pub(crate) const BEAT: Duration = Duration::from_millis(25);

/// A silence longer than a beat by more than this is a stall.
const STALL: Duration = Duration::from_millis(50);

/// A clock that stands still while the worker does: what clients sent meanwhile is still in the
/// sockets.
#[derive(Clone)]
pub(crate) struct LeaseClock {
    /// Sum of all stalls: the lease clock is `now` minus this.
    pub(super) lag: Duration,
    pub(super) last_seen: Time,
    /// After a stall nothing expires before this, so that the sockets are read first.
    pub(super) no_expiry_before: Time,
    #[cfg(any(test, feature = "testing"))]
    pub(crate) wall_jumps: Duration,
}

impl LeaseClock {
    pub(super) fn new(now: Time) -> Self {
        Self {
            lag: Duration::ZERO,
            last_seen: now,
            no_expiry_before: now,
            #[cfg(any(test, feature = "testing"))]
            wall_jumps: Duration::ZERO,
        }
    }
}

/// A lease.
#[derive(Clone)]
pub(crate) struct Lease {
    /// Never changes: what was promised at the first hello can still be believed.
    pub(crate) ttl: Duration,
    /// Its end, on the lease clock.
    pub(crate) deadline: Time,
    /// Where it stands among all leases: no later than `deadline`.
    pub(crate) armed: Time,
}

/// A lease that was due.
pub(crate) enum Due {
    /// It was renewed since.
    Renewed,
    Ended(LinkIndex),
}

impl Links {
    /// Notices a stall of the worker.
    #[inline]
    pub(crate) fn observe(&mut self, now: Time) -> bool {
        let clock = &mut self.clock;
        assert!(now >= clock.last_seen, "time went back from {} to {now}", clock.last_seen);
        let silence = now.since(clock.last_seen);
        clock.last_seen = now;
        let stalled = silence > BEAT + STALL && self.links.len() > 0;
        if !stalled || mutant!(self, ExpireOnWaking) {
            return false;
        }
        clock.lag += silence;
        clock.no_expiry_before = now.after(BEAT);
        true
    }

    /// The clock that leases are counted on: stalls of the worker are left out of it.
    #[inline]
    pub(crate) fn lease_now(&self, now: Time) -> Time {
        #[cfg(any(test, feature = "testing"))]
        let now = if mutant!(self, WallClock) { now.after(self.clock.wall_jumps) } else { now };
        Time(now.0.saturating_sub(self.clock.lag.as_micros() as u64))
    }

    /// The last time that was seen.
    pub(crate) fn last_seen(&self) -> Time {
        self.clock.last_seen
    }

    /// When the machine wants to be told the time again.
    pub(crate) fn next_beat(&self) -> Option<Time> {
        (self.links.len() > 0).then(|| self.clock.last_seen.after(BEAT))
    }

    /// Counts the lease of a link anew from the receipt of what it sent. One that runs for longer,
    /// as its client may still hear an owner before, stays as it is.
    #[inline]
    pub(crate) fn renew(&mut self, now: Time, link: LinkIndex) {
        let lease_now = self.lease_now(now);
        let shortens = mutant!(self, RenewalShortens);
        let lease = &mut self.links.get_mut(link).lease;
        let before = if shortens { Time(0) } else { lease.deadline };
        lease.deadline = before.max(lease_now.after(limits::honoured(lease.ttl)));
    }

    pub(crate) fn is_in_lease(&self, now: Time, link: LinkIndex) -> bool {
        self.links.get(link).lease.deadline >= self.lease_now(now)
    }

    /// What is left of a lease.
    pub(crate) fn lease_left(&self, now: Time, link: LinkIndex) -> Duration {
        self.links.get(link).lease.deadline.since(self.lease_now(now))
    }

    /// The next lease that is due, if leases may end now.
    pub(crate) fn next_due(&mut self, now: Time) -> Option<Due> {
        let lease_now = self.lease_now(now);
        let &(armed, link) = self.leases.first()?;
        if armed >= lease_now || now < self.clock.no_expiry_before {
            return None;
        }
        let lease = &mut self.links.get_mut(link).lease;
        if lease.deadline < lease_now {
            return Some(Due::Ended(link));
        }
        // Move it to where its deadline is now.
        lease.armed = lease.deadline;
        let rearmed = (lease.deadline, link);
        self.leases.remove(&(armed, link));
        self.leases.insert(rearmed);
        Some(Due::Renewed)
    }

    /// More leases were due than one go looks at.
    pub(crate) fn leases_are_due(&self) -> bool {
        let last_seen = self.clock.last_seen;
        let lease_now = self.lease_now(last_seen);
        last_seen >= self.clock.no_expiry_before
            && self.leases.first().is_some_and(|&(armed, _)| armed < lease_now)
    }

    /// Whether a process before the one in force may still believe in holds of this link.
    pub(crate) fn is_spared(&self, now: Time, link: LinkIndex) -> bool {
        self.spared_until(now, link).is_some()
    }

    /// Until when that is, on the lease clock.
    pub(crate) fn spared_until(&self, now: Time, link: LinkIndex) -> Option<Time> {
        let spared = self.links.get(link).before.spared_until?;
        (spared >= self.lease_now(now) && !mutant!(self, SuccessorFrees)).then_some(spared)
    }

    /// The lease of a link ends then, and not before.
    pub(super) fn end_lease_at(&mut self, link: LinkIndex, until: Time) {
        let lease = &mut self.links.get_mut(link).lease;
        let armed = std::mem::replace(&mut lease.armed, until);
        lease.deadline = until;
        self.leases.remove(&(armed, link));
        self.leases.insert((until, link));
    }
}
