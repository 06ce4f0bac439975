//! Links that have ended and have something left, in the order in which it is freed; and links
//! whose process has left something to be freed.

use super::{Leaving, Link, Links};
use crate::cells::Process;
use crate::event::{ConnId, LinkIndex};
use crate::mutant::mutant;
use lockring_proto::{Time, limits};
use std::collections::{VecDeque, btree_map};
use std::time::Duration;

/// Thin holds of dead links, for which nobody waits, are freed at one a microsecond at most;
/// whoever asks for one of their keys frees it. That leaves most of a worker's time to the living,
/// also in the eyes of the system's scheduler: a thread that never sleeps is made to wait for
/// others, for milliseconds at a time.
const MICROS_PER_THIN: u64 = 1;

/// How many may be freed in a row after a pause, in slices as ever: a few are freed at once, and a
/// late timer costs no time.
const ALLOWANCE_MAX: u64 = 1 << 14;

#[derive(Clone)]
pub(crate) struct Dying {
    /// Links whose rich holds and waiters are being freed, slice by slice.
    any: VecDeque<LinkIndex>,
    /// Links that come after those, as they have only thin holds left.
    thin: VecDeque<LinkIndex>,
    /// Thin holds of theirs that may be freed now, as counted at `allowed_at`.
    allowance: u32,
    allowed_at: Time,
}

impl Dying {
    pub(super) fn new(now: Time) -> Self {
        Self {
            any: VecDeque::new(),
            thin: VecDeque::new(),
            allowance: ALLOWANCE_MAX as u32,
            allowed_at: now,
        }
    }

    /// More may be freed as time passes.
    pub(crate) fn allow(&mut self, now: Time, unbounded: bool) {
        let elapsed = now.since(self.allowed_at).as_micros() as u64 / MICROS_PER_THIN;
        self.allowance = ALLOWANCE_MAX.min(u64::from(self.allowance) + elapsed) as u32;
        self.allowed_at = now;
        if unbounded {
            self.allowance = u32::MAX;
        }
    }

    /// How many thin holds may be freed now.
    pub(crate) fn allowance(&self) -> u32 {
        self.allowance
    }

    pub(crate) fn freed_thin(&mut self, count: u32) {
        self.allowance -= count;
    }

    /// The link whose rich holds and waiters are freed next.
    pub(crate) fn first(&self) -> Option<LinkIndex> {
        self.any.front().copied()
    }

    /// It has none left, but thin ones.
    pub(crate) fn keep_thin(&mut self, link: LinkIndex) {
        self.thin.push_back(link);
    }

    pub(crate) fn pop_first(&mut self) {
        self.any.pop_front();
    }

    /// The link whose thin holds are freed next.
    pub(crate) fn first_thin(&self) -> Option<LinkIndex> {
        self.thin.front().copied()
    }

    pub(crate) fn pop_first_thin(&mut self) {
        self.thin.pop_front();
    }

    /// What a wave of deaths has filled is not kept for ever.
    pub(crate) fn give_back(&mut self) {
        for queue in [&mut self.any, &mut self.thin] {
            if queue.is_empty() && queue.capacity() > 1 << 12 {
                *queue = VecDeque::new();
            }
        }
    }

    /// All of them, in their turn.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn iter(&self) -> impl Iterator<Item = LinkIndex> + '_ {
        self.any.iter().chain(&self.thin).copied()
    }
}

/// Whether a request is in the range of a process. Of one that was not heard all are.
pub(crate) fn is_its_own(process: Process, request: u64) -> bool {
    let after = process.ids_after;
    let most = if after == 0 { limits::FIRST_PROCESS_IDS } else { limits::IDS_PER_PROCESS };
    let is_in_range = after < request && request - after <= most;
    !process.is_heard() || is_in_range
}

impl Links {
    /// A link has no session any more.
    pub(crate) fn begin_dying(&mut self, link: LinkIndex) {
        let known = self.links.get_mut(link);
        known.comparison = None;
        known.before.leaving = None;
        let (session, armed, ttl) = (known.who.session, known.lease.armed, known.lease.ttl);
        self.leases.remove(&(armed, link));
        self.leaving.remove(&link);
        self.unconfirmed.retain(|&(.., its)| its != link);
        if let btree_map::Entry::Occupied(mut count) = self.ttls.entry(ttl) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        if self.sessions.get(&session) == Some(&link) {
            self.sessions.remove(&session);
        }
        self.dying.any.push_back(link);
    }

    /// When links have something left that may be freed then.
    pub(crate) fn freeing_due(&self, slice: u32) -> Option<Time> {
        if !self.dying.any.is_empty() || !self.leaving.is_empty() {
            return Some(self.clock.last_seen);
        }
        self.dying.thin.front()?;
        if self.dying.allowance > 0 {
            return Some(self.clock.last_seen);
        }
        let slice = u64::from(slice) * MICROS_PER_THIN;
        Some(self.dying.allowed_at.after(Duration::from_micros(slice)))
    }

    /// Takes a link out that has nothing left: the goodbye it has to be answered, if any.
    pub(crate) fn remove(&mut self, link: LinkIndex) -> Option<(ConnId, u64)> {
        let goodbye = self.links.get(link).goodbye;
        self.close_account(link);
        self.links.remove(link);
        goodbye
    }

    /// The process of a link goes, and leaves holds in which the one before it may still believe:
    /// they stay until it surely does not, and no longer.
    pub(crate) fn leave(&mut self, link: LinkIndex, until: Time, entries: u32) {
        self.end_lease_at(link, until);
        self.let_waiters_go(link, Leaving { all: true, entries });
    }

    /// Waiters of a process before have no owner any more, and are looked for.
    pub(super) fn let_waiters_go(&mut self, link: LinkIndex, leaving: Leaving) {
        self.links.get_mut(link).before.leaving = Some(leaving);
        self.leaving.insert(link);
    }

    /// A link with waiters without an owner to be looked for.
    pub(crate) fn first_leaving(&self) -> Option<LinkIndex> {
        self.leaving.first().copied()
    }

    pub(crate) fn is_leaving(&self, link: LinkIndex) -> bool {
        self.links.get(link).before.leaving.is_some()
    }

    /// Counts an entry of a link that is looked at for that; `false`: there is none any more.
    pub(crate) fn look_at_leaving(&mut self, link: LinkIndex, has_entry: bool) -> bool {
        let leaving = &mut self.links.get_mut(link).before.leaving;
        let left = leaving.as_mut().filter(|leaving| leaving.entries > 0 && has_entry);
        if let Some(left) = left {
            left.entries -= 1;
            return true;
        }
        *leaving = None;
        self.leaving.remove(&link);
        false
    }

    /// Whether a waiter of a link that was last asked for on this connection is of a process that
    /// said goodbye, or whose session another has taken up: its grant would be held for nobody.
    /// What is asked for on the connection in force is its process's, also past the end of its
    /// range.
    pub(crate) fn is_nobodys(&self, link: LinkIndex, request: u64, asked_on: ConnId) -> bool {
        let Link { before, conn, .. } = self.links.get(link);
        let is_of_another = *conn != Some(asked_on)
            && !is_its_own(before.process, request)
            && !mutant!(self, IdsIgnored);
        is_of_another || before.leaving.is_some_and(|leaving| leaving.all)
    }

    /// On which connection a waiter that has come with a cell is answered: that of its process, if
    /// there is one.
    pub(crate) fn answered_on(&self, link: LinkIndex, request: u64) -> ConnId {
        let Link { before, conn, .. } = self.links.get(link);
        conn.filter(|_| is_its_own(before.process, request)).unwrap_or_default()
    }

    /// Whose a link is.
    pub(crate) fn process(&self, link: LinkIndex) -> Process {
        self.links.get(link).before.process
    }

    pub(crate) fn frees_without_bound(&self) -> bool {
        mutant!(self, UnboundedExpiry)
    }
}
