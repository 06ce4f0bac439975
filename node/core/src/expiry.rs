//! What happens by itself: waits that time out, leases that end, grace that is over. All of it in
//! bounded slices, so that a session's death never delays the living for longer than a slice.

use crate::batch::{Asker, Planned};
use crate::event::{Action, CloseReason, ConnId};
use crate::machine::Machine;
use crate::mutant::{mutant, note};
use crate::record::{Entry, LinkChain};
use crate::slab::NIL;
use crate::table::Place;
use lockring_proto::Reply;
use lockring_proto::Time;
use std::collections::{VecDeque, btree_map};
use std::time::Duration;

/// Thin holds of dead links, for which nobody waits, are freed at one a microsecond at most;
/// whoever asks for one of their keys frees it. That leaves most of a worker's time to the living,
/// also in the eyes of the system's scheduler: a thread that never sleeps is made to wait for
/// others, for milliseconds at a time.
const MICROS_PER_THIN: u64 = 1;

/// So many may be freed in a row after a pause, in slices as ever: a few are freed at once, and a
/// late timer costs no time.
pub(crate) const ALLOWANCE_MAX: u64 = 1 << 14;

/// Leases that end, or turn out to be renewed, in one go.
const LEASE_SLICE: usize = 256;

/// Thin holds whose memory is touched ahead in one go: what fits in the nearest caches.
const TOUCHED: u32 = 64;

impl Machine {
    pub(crate) fn tick(&mut self, now: Time, out: &mut Vec<Action>) {
        self.time_out_waits(now, out);
        if now >= self.no_expiry_before {
            self.expire_leases(now, out);
        }
        self.free_dying(now, out);
        self.serve_queues(now, out);
        self.tell_drain(out);
    }

    fn time_out_waits(&mut self, now: Time, out: &mut Vec<Action>) {
        self.spent = 0;
        while !self.slice_is_over() {
            self.charge(1);
            let Some(&(deadline, entry)) = self.waits.first() else {
                return;
            };
            if deadline > now {
                return;
            }
            let waiter = self.entries.get(entry);
            let (record, link, id) = (waiter.record, waiter.link, waiter.request);
            let asked_on = waiter.asked_on;
            let reason = self.blocked(now, record);
            let place = self.place_of(record);
            self.stats.timeouts += 1;
            self.drop_waiter(place, entry);
            let reply = Reply::TimedOut { id, version: self.version.0, reason };
            self.answer(link, asked_on, reply, out);
            self.pump(now, place, record, out);
        }
    }

    fn expire_leases(&mut self, now: Time, out: &mut Vec<Action>) {
        let lease_now = self.lease_now(now);
        for _ in 0..LEASE_SLICE {
            let Some(&(armed, link)) = self.leases.first() else {
                return;
            };
            if armed >= lease_now {
                return;
            }
            let known = self.links.get_mut(link);
            if known.deadline >= lease_now {
                // It was renewed since: move it to where its deadline is now.
                known.armed = known.deadline;
                let rearmed = (known.deadline, link);
                self.leases.remove(&(armed, link));
                self.leases.insert(rearmed);
            } else {
                self.begin_expiry(link, out);
            }
        }
    }

    /// More leases were due than one go looks at.
    pub(crate) fn leases_are_due(&self) -> bool {
        let lease_now = self.lease_now(self.last_seen);
        self.last_seen >= self.no_expiry_before
            && self.leases.first().is_some_and(|&(armed, _)| armed < lease_now)
    }

    /// Ends a link: it is unknown from now on, and its holds and waiters will be freed.
    pub(crate) fn begin_expiry(&mut self, link: u32, out: &mut Vec<Action>) {
        if self.links.get(link).dying {
            return;
        }
        if mutant!(self, DeathNotTold) {
            self.links.get_mut(link).conn = None;
        }
        self.hang_up(link, CloseReason::Expired, out);
        self.stats.expired_links += 1;
        note!(self, note_dead(link, true));
        self.start_dying(link);
    }

    pub(crate) fn start_dying(&mut self, link: u32) {
        let known = self.links.get_mut(link);
        known.dying = true;
        known.comparison = None;
        known.leaving = None;
        let (session, armed, ttl) = (known.session, known.armed, known.ttl);
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
        self.dying.push_back(link);
    }

    /// The session ends here by its own wish; the answer leaves when all of it is freed.
    pub(crate) fn goodbye(&mut self, now: Time, asker: Asker, out: &mut Vec<Action>) {
        if let Some(until) = self.spared_until(now, asker.link)
            && self.links.get(asker.link).digest.count > 0
        {
            return self.leave(asker, until, out);
        }
        let link = self.links.get_mut(asker.link);
        link.goodbye = Some((asker.conn, asker.id));
        link.conn = None;
        note!(self, note_dead(asker.link, false));
        self.start_dying(asker.link);
    }

    /// The process goes, and leaves holds in which the one before it may still believe: they stay
    /// until it surely does not, and no longer.
    fn leave(&mut self, asker: Asker, until: Time, out: &mut Vec<Action>) {
        out.push(Action::Reply { conn: asker.conn, reply: Reply::Goodbye { id: asker.id } });
        self.hang_up(asker.link, CloseReason::Goodbye, out);
        let link = self.links.get_mut(asker.link);
        let armed = std::mem::replace(&mut link.armed, until);
        link.deadline = until;
        (link.leaving, link.waiters_from) = (Some(link.entries.len), ConnId(u64::MAX));
        self.leases.remove(&(armed, asker.link));
        self.leases.insert((link.armed, asker.link));
        self.leaving.insert(asker.link);
    }

    /// Frees a slice of the waiters of links that left.
    fn free_leaving(&mut self, now: Time, out: &mut Vec<Action>) {
        while !self.slice_is_over()
            && let Some(&index) = self.leaving.first()
        {
            self.charge(1);
            self.free_one_leaving(now, index, out);
        }
    }

    /// Looks at one entry of a link that left, and at most once at each: it is freed if it is a
    /// waiter of nobody's.
    pub(crate) fn free_one_leaving(&mut self, now: Time, index: u32, out: &mut Vec<Action>) {
        let head = self.links.get(index).entries.head;
        let goes = head != NIL && self.entries.get(head).fence.is_none() && self.is_nobodys(head);
        let link = self.links.get_mut(index);
        let left = link.leaving.filter(|&left| left > 0 && head != NIL);
        link.leaving = left.map(|left| left - 1);
        if left.is_none() {
            self.leaving.remove(&index);
        } else if !goes {
            // Every entry comes to the head once.
            link.entries.remove::<Entry, LinkChain>(&mut self.entries, head);
            link.entries.push_back::<Entry, LinkChain>(&mut self.entries, head);
        } else {
            self.free_waiter(now, head, out);
        }
    }

    /// Frees a slice of what dead links have left, what others may wait for before all the rest.
    fn free_dying(&mut self, now: Time, out: &mut Vec<Action>) {
        let elapsed = now.since(self.allowed_at).as_micros() as u64 / MICROS_PER_THIN;
        self.allowance = ALLOWANCE_MAX.min(u64::from(self.allowance) + elapsed) as u32;
        self.allowed_at = now;
        self.spent = 0;
        self.free_leaving(now, out);
        let unbounded = mutant!(self, UnboundedExpiry);
        if unbounded {
            self.allowance = u32::MAX;
        }
        while (!self.slice_is_over() || unbounded)
            && let Some(&link) = self.dying.front()
        {
            if self.free_entry(now, link, out) {
                self.charge(1);
                continue;
            }
            self.dying.pop_front();
            if self.links.get(link).thin.len() > 0 {
                self.dying_thin.push_back(link);
            } else {
                // It does not wait behind those who have more.
                self.charge(1);
                self.bury(link, out);
            }
        }
        for queue in [&mut self.dying, &mut self.dying_thin] {
            // What a wave of deaths has filled is not kept for ever.
            if queue.is_empty() && queue.capacity() > 1 << 12 {
                *queue = VecDeque::new();
            }
        }
        while (!self.slice_is_over() || unbounded)
            && let Some(&link) = self.dying_thin.front()
        {
            if self.links.get(link).thin.len() == 0 {
                self.dying_thin.pop_front();
                self.bury(link, out);
            } else if self.allowance == 0 {
                return;
            } else {
                let left = self.config.limits.expiry_slice.saturating_sub(self.spent);
                let most = if unbounded { TOUCHED } else { left.min(self.allowance) };
                let freed = self.free_thin(now, link, most, out);
                self.charge(freed);
                self.allowance -= freed;
            }
        }
    }

    /// When dead links have something left that may be freed then.
    pub(crate) fn freeing_due(&self) -> Option<Time> {
        if !self.dying.is_empty() || !self.leaving.is_empty() {
            return Some(self.last_seen);
        }
        self.dying_thin.front()?;
        if self.allowance > 0 {
            return Some(self.last_seen);
        }
        let slice = u64::from(self.config.limits.expiry_slice) * MICROS_PER_THIN;
        Some(self.allowed_at.after(Duration::from_micros(slice)))
    }

    /// Drops a link that has nothing left.
    fn bury(&mut self, link: u32, out: &mut Vec<Action>) {
        let known = self.links.get(link);
        if let Some((conn, id)) = known.goodbye {
            out.push(Action::Reply { conn, reply: Reply::Goodbye { id } });
            out.push(Action::Close { conn, reason: CloseReason::Goodbye });
        }
        let (digest, entries) = (known.digest, known.entries.len);
        assert!(
            digest.count == 0 && entries == 0,
            "link {link} is freed with {digest:?} and {entries} entries"
        );
        self.close_account(link);
        self.links.remove(link);
    }

    /// Frees one rich hold or waiter of a dead link; `false` when there is none left.
    fn free_entry(&mut self, now: Time, link: u32, out: &mut Vec<Action>) -> bool {
        let entry = self.links.get(link).entries.head;
        if entry == NIL {
            return false;
        }
        let found = self.entries.get(entry);
        let (record, fence) = (found.record, found.fence);
        if let Some(fence) = fence {
            let place = self.place_of(record);
            self.stats.expired_holds += 1;
            self.end_hold_at(now, place, record, fence, out);
            return true;
        }
        self.free_waiter(now, entry, out);
        true
    }

    /// Drops a waiter of a dead link, or of one that left.
    fn free_waiter(&mut self, now: Time, entry: u32, out: &mut Vec<Action>) {
        let record = self.entries.get(entry).record;
        let place = self.place_of(record);
        self.stats.dead_waiters += 1;
        let first = self.rich_of(record).waiters.head == entry;
        self.drop_waiter(place, entry);
        if first && mutant!(self, SlipPastExpired) {
            self.slip_in(now, place, record, out);
        }
        self.pump(now, place, record, out);
    }

    /// Frees up to `most` thin holds of a dead link, the latest first, as one batch whose memory is
    /// touched ahead; says how many.
    fn free_thin(&mut self, now: Time, link: u32, most: u32, out: &mut Vec<Action>) -> u32 {
        let mut plan = std::mem::take(&mut self.plan);
        plan.clear();
        let thin = &self.links.get(link).thin;
        plan.extend((0..most.min(TOUCHED)).map_while(|back| {
            let guess = thin.nth_last(back)?;
            Some(Planned::at(Some(Place { guess, ..self.place_of(guess) })))
        }));
        self.touch(link, &mut plan);
        for place in plan.iter().filter_map(|planned| planned.place) {
            self.stats.expired_holds += 1;
            let fence = self.records.get(place.guess).fence;
            self.end_hold_at(now, place, place.guess, fence, out);
        }
        let freed = plan.len() as u32;
        self.plan = plan;
        freed
    }

    /// Serves a slice of the queues that are not worked off, each in its turn.
    fn serve_queues(&mut self, now: Time, out: &mut Vec<Action>) {
        self.spent = 0;
        while !self.slice_is_over()
            && let Some(&at) = self.raised.first()
        {
            self.charge(1);
            match self.starved.range((at, 0)..=(at, NIL)).next().copied() {
                Some(starved) => {
                    self.starved.remove(&starved);
                    self.unserved.insert(starved.1);
                }
                None => {
                    self.raised.remove(&at);
                }
            }
        }
        if self.grace_left(now).is_some() {
            return;
        }
        while !self.slice_is_over() {
            let next = self.unserved.range(self.serve_next..).next();
            let Some(&record) = next.or_else(|| self.unserved.first()) else { return };
            self.unserved.remove(&record);
            self.serve_next = record.wrapping_add(1);
            self.charge(1);
            // Somebody left the line since, and the next one's hold made the record thin.
            if self.records.get(record).is_rich() {
                let place = self.place_of(record);
                self.pump(now, place, record, out);
            }
        }
    }
}
