//! Claiming a key.

use crate::accounts::{Amounts, THIN_BYTES, claim_bytes};
use crate::batch::Asker;
use crate::event::{Action, push_reply};
use crate::machine::Machine;
use crate::mutant::{mutant, note};
use crate::record::{Entry, INLINE_KEY, Kind, Record, Rich};
use crate::slab::NIL;
use crate::table::Place;
use lockring_proto::Time;
use lockring_proto::{BlockedReason, Claim, Fence, RefusalKind, Reply, Wait, limits};
use std::time::Duration;

const EPOCH_USED_UP: &str =
    "the cell's operation counter is used up and its epoch is not raised yet: retry";

/// A request for a key: who asks, for what, and how patiently.
#[derive(Clone, Copy)]
pub(crate) struct Ask<'a> {
    pub(crate) asker: Asker,
    pub(crate) place: Place,
    pub(crate) key: &'a [u8],
    pub(crate) claim: Claim,
    pub(crate) wait: Wait,
}

impl Machine {
    #[inline(always)]
    pub(crate) fn acquire(&mut self, now: Time, ask: &Ask<'_>, out: &mut Vec<Action>) {
        let Ask { asker, place, key, claim, wait } = *ask;
        let namespace = self.links.get(asker.link).namespace;
        match self.find(place, namespace, key) {
            None => self.acquire_free(now, ask, out),
            Some(index) => {
                let record = self.records.get(index);
                if !record.is_rich() {
                    if self.links.get(record.link()).dying {
                        // Its turn to be freed has not come yet; for this key it has now.
                        let fence = record.fence;
                        self.stats.expired_holds += 1;
                        self.end_hold_at(now, place, index, fence, out);
                        return self.acquire_free(now, ask, out);
                    }
                    if self.is_retry(record, asker) {
                        let fence = record.fence;
                        self.stats.retries += 1;
                        return self.reply_granted(asker, fence, out);
                    }
                    if wait == Wait::No && Kind::of(claim) == Kind::Modes {
                        let reason = BlockedReason::Held { fence: record.fence, waiters: 0 };
                        return self.reply_busy(asker, reason, out);
                    }
                }
                self.acquire_used(now, ask, index, out);
            }
        }
    }

    /// Whether a thin hold was made by this very request.
    fn is_retry(&self, record: &Record, asker: Asker) -> bool {
        if mutant!(self, NamesakeHold) {
            return self.links.get(record.link()).name == self.links.get(asker.link).name;
        }
        record.link() == asker.link && record.request() == asker.id && !mutant!(self, NoRequestId)
    }

    /// The key is free.
    #[inline]
    fn acquire_free(&mut self, now: Time, ask: &Ask<'_>, out: &mut Vec<Action>) {
        let Ask { asker, place, key, claim, .. } = *ask;
        let grace = self.grace_left(now);
        if claim != Claim::Exclusive || key.len() > INLINE_KEY || grace.is_some() {
            return self.acquire_free_rich(now, ask, out);
        }
        if self.links.get(asker.link).digest.count >= self.cap
            && let Some(refused) = self.over_quota(asker.link, Amounts::hold(THIN_BYTES))
        {
            return self.refuse(asker, RefusalKind::Quota, refused, out);
        }
        if self.draining {
            return self.refuse_draining(asker, out);
        }
        let Some(fence) = self.number(place) else {
            return self.refuse(asker, RefusalKind::Unavailable, EPOCH_USED_UP, out);
        };
        let index = self.records.claim();
        let record = self.records.get_mut(index);
        record.set_key(key);
        record.make_thin(asker.link, fence, asker.id, now);
        self.cell_mut(place).table.insert(place.tag, index);
        let id = self.hold_id(place, fence);
        let link = self.links.get_mut(asker.link);
        link.thin.push(&mut self.records, index);
        link.digest.add(id);
        link.used = true;
        self.stats.grants += 1;
        self.stats.holds += 1;
        note!(self, note_granted_thin(index, asker.id));
        self.reply_granted(asker, fence, out);
    }

    fn acquire_free_rich(&mut self, now: Time, ask: &Ask<'_>, out: &mut Vec<Action>) {
        let Ask { asker, place, key, claim, wait } = *ask;
        if let (Some(left), Wait::No) = (self.grace_left(now), wait) {
            let reason = BlockedReason::Grace { left_ms: left.as_millis() as u64 };
            return self.reply_busy(asker, reason, out);
        }
        if let Claim::Permits { permits, capacity } = claim
            && (capacity > limits::CAPACITY_MAX || !(1..=capacity).contains(&permits))
        {
            let message =
                format!("{permits} permits of {capacity}: claim 1 to all, of at most 2^30");
            return self.refuse(asker, RefusalKind::Malformed, message, out);
        }
        if self.draining {
            return self.refuse_draining(asker, out);
        }
        let namespace = self.links.get(asker.link).namespace;
        let rich = self.riches.insert(Rich::new(key, namespace, Kind::of(claim)));
        let index = self.records.claim();
        let record = self.records.get_mut(index);
        record.set_key(key);
        record.make_rich(rich);
        self.cell_mut(place).table.insert(place.tag, index);
        self.acquire_used(now, ask, index, out);
        // A refusal may have left it empty.
        self.settle(place, index);
    }

    /// The key has a record.
    fn acquire_used(&mut self, now: Time, ask: &Ask<'_>, index: u32, out: &mut Vec<Action>) {
        let Ask { asker, place, claim, wait, .. } = *ask;
        if let Some(entry) = self.entry_by_request(asker.link, asker.id) {
            return self.acquire_again(asker, index, entry, out);
        }
        if let Some(conflict) = self.kind_conflict(index, claim) {
            return self.refuse(asker, RefusalKind::KindConflict, conflict, out);
        }
        if self.draining {
            return self.refuse_draining(asker, out);
        }
        let free_now = self.records.get(index).is_rich() && {
            let rich = self.rich_of(index);
            rich.waiters.len == 0 && rich.fits(claim) && self.grace_left(now).is_none()
        };
        if free_now {
            let more = Amounts::hold(claim_bytes(ask.key));
            if let Some(refused) = self.over_quota(asker.link, more) {
                return self.refuse(asker, RefusalKind::Quota, refused, out);
            }
            let entry = self.new_entry(now, ask, index, Time::NEVER);
            if !self.grant(now, place, entry) {
                self.forget(entry);
                return self.refuse(asker, RefusalKind::Unavailable, EPOCH_USED_UP, out);
            }
            let fence = self.entries.get(entry).fence.expect("just granted");
            return self.reply_granted(asker, fence, out);
        }
        let deadline = match wait {
            Wait::No => {
                let reason = self.blocked(now, index);
                return self.reply_busy(asker, reason, out);
            }
            Wait::Forever => Time::NEVER,
            Wait::Millis(ms) => now.after(Duration::from_millis(ms)),
        };
        self.enqueue(now, ask, index, deadline, out);
    }

    /// A copy of a request finds what the first one made.
    fn acquire_again(&mut self, asker: Asker, index: u32, entry: u32, out: &mut Vec<Action>) {
        let found = self.entries.get(entry);
        if found.record != index {
            let message = format!("request id {} is in use for another key", asker.id);
            return self.refuse(asker, RefusalKind::Malformed, message, out);
        }
        let fence = found.fence;
        self.stats.retries += 1;
        self.entries.get_mut(entry).asked_on = asker.conn;
        match fence {
            Some(fence) => self.reply_granted(asker, fence, out),
            None => {
                let ahead = self.rich_of(index).waiters.len.saturating_sub(1);
                self.reply_queued(asker, ahead, out);
            }
        }
    }

    fn enqueue(
        &mut self,
        now: Time,
        ask: &Ask<'_>,
        index: u32,
        deadline: Time,
        out: &mut Vec<Action>,
    ) {
        let asker = ask.asker;
        let more = Amounts::waiter(claim_bytes(ask.key));
        if let Some(refused) = self.over_quota(asker.link, more) {
            return self.refuse(asker, RefusalKind::Quota, refused, out);
        }
        let is_rich = self.records.get(index).is_rich();
        let ahead = if is_rich { self.rich_of(index).waiters.len } else { 0 };
        if ahead >= self.config.limits.waiters_per_key {
            let message = format!("{ahead} claims wait for this key, and no more may");
            return self.refuse(asker, RefusalKind::Quota, message, out);
        }
        if !is_rich {
            self.enrich(now, index);
        }
        let entry = self.new_entry(now, ask, index, deadline);
        self.line_up(entry);
        self.count(ask.place);
        if self.grace_left(now).is_some() {
            self.unserved.insert(index);
        }
        self.reply_queued(asker, ahead, out);
    }

    fn new_entry(&mut self, now: Time, ask: &Ask<'_>, record: u32, deadline: Time) -> u32 {
        let Ask { asker, claim, .. } = *ask;
        let entry = self.entries.insert(Entry {
            record,
            link: asker.link,
            request: asker.id,
            asked_on: asker.conn,
            claim,
            fence: None,
            since: now,
            deadline,
            queue_prev: NIL,
            queue_next: NIL,
            link_prev: NIL,
            link_next: NIL,
        });
        self.remember(entry);
        entry
    }

    /// Why the claim cannot go with what the key is used as, if so.
    fn kind_conflict(&self, index: u32, claim: Claim) -> Option<String> {
        let record = self.records.get(index);
        let in_force =
            if record.is_rich() { self.riches.get(record.rich()).kind } else { Kind::Modes };
        if let Claim::Permits { permits, capacity } = claim
            && (permits == 0 || permits > capacity)
        {
            return Some(format!("{permits} permits of {capacity} cannot be claimed"));
        }
        if Kind::of(claim) == in_force {
            return None;
        }
        Some(match in_force {
            Kind::Modes => "the key is in use as a lock, not as a semaphore".to_owned(),
            Kind::Permits { capacity } => match claim {
                Claim::Permits { capacity: asked, .. } => {
                    format!("the key is a semaphore of capacity {capacity}, not {asked}")
                }
                _ => format!("the key is in use as a semaphore of capacity {capacity}"),
            },
        })
    }

    /// How long nothing is granted yet, because an earlier life of the node may have granted it.
    #[inline]
    pub(crate) fn grace_left(&self, now: Time) -> Option<Duration> {
        let opens_at = self.config.opens_at?;
        (now < opens_at && !mutant!(self, RestartWithoutGrace)).then(|| opens_at.since(now))
    }

    fn refuse_draining(&mut self, asker: Asker, out: &mut Vec<Action>) {
        self.refuse(asker, RefusalKind::Draining, "this node is stopping: ask another", out);
    }

    #[inline]
    pub(crate) fn reply_granted(&self, asker: Asker, fence: Fence, out: &mut Vec<Action>) {
        let (id, version) = (asker.id, self.version.0);
        push_reply(out, asker.conn, || Reply::Granted { id, version, fence });
    }

    fn reply_queued(&self, asker: Asker, ahead: u32, out: &mut Vec<Action>) {
        let reply = Reply::Queued { id: asker.id, version: self.version.0, ahead };
        out.push(Action::Reply { conn: asker.conn, reply });
    }

    fn reply_busy(&mut self, asker: Asker, reason: BlockedReason, out: &mut Vec<Action>) {
        self.stats.busy += 1;
        let reply = Reply::Busy { id: asker.id, version: self.version.0, reason };
        out.push(Action::Reply { conn: asker.conn, reply });
    }

    /// Why a claim on this key would have to wait.
    pub(crate) fn blocked(&self, now: Time, index: u32) -> BlockedReason {
        let record = self.records.get(index);
        if !record.is_rich() {
            return BlockedReason::Held { fence: record.fence, waiters: 0 };
        }
        let rich = self.riches.get(record.rich());
        let waiters = rich.waiters.len;
        if rich.holders.len > 0 {
            // Holders stand in the order of their grants, so the last has the highest fence.
            let fence = self.entries.get(rich.holders.tail).fence;
            return BlockedReason::Held { fence: fence.expect("a holder has a fence"), waiters };
        }
        match self.grace_left(now) {
            Some(left) => BlockedReason::Grace { left_ms: left.as_millis() as u64 },
            None => BlockedReason::Queue { waiters },
        }
    }
}
