//! Queues of rich keys: coming in line, being granted from it, and the way back to a thin record.

use crate::accounts::claim_bytes;
use crate::event::{Action, ConnId};
use crate::machine::Machine;
use crate::mutant::{mutant, note};
use crate::record::{Entry, Kind, LinkChain, QueueChain, Rich};
use crate::secret::Secret;
use crate::slab::NIL;
use crate::table::Place;
use lockring_proto::Time;
use lockring_proto::{Claim, Fence, Reply};

fn request_hash(secret: Secret, entry: &Entry) -> u64 {
    secret.pair(entry.link, entry.request)
}

fn fence_hash(secret: Secret, entry: &Entry) -> u64 {
    secret.pair(entry.record, entry.fence.expect("indexed by its fence").0)
}

impl Machine {
    /// The hold or waiter that a request of a link made on a rich key.
    pub(crate) fn entry_by_request(&self, link: u32, request: u64) -> Option<u32> {
        if mutant!(self, NoRequestId) {
            return None;
        }
        let is_it = |index| {
            let entry = self.entries.get(index);
            entry.link == link && entry.request == request
        };
        self.by_request.find(self.secret.pair(link, request), is_it)
    }

    /// The hold of a rich key with this fence.
    pub(crate) fn entry_by_fence(&self, record: u32, fence: Fence) -> Option<u32> {
        let is_it = |index| {
            let entry = self.entries.get(index);
            entry.record == record && entry.fence == Some(fence)
        };
        self.by_fence.find(self.secret.pair(record, fence.0), is_it)
    }

    /// Enters a new entry in its link's list and in the index by request.
    pub(crate) fn remember(&mut self, index: u32) {
        let Entry { link, record, .. } = *self.entries.get(index);
        self.unsettle(link);
        let bytes = claim_bytes(self.key(self.records.get(record)));
        let known = self.links.get_mut(link);
        known.rich_bytes += bytes;
        known.used = true;
        known.entries.push_back::<Entry, LinkChain>(&mut self.entries, index);
        let hash = request_hash(self.secret, self.entries.get(index));
        self.by_request.insert(hash, index);
    }

    /// Drops an entry that is in no queue any more.
    pub(crate) fn forget(&mut self, index: u32) {
        let entry = self.entries.get(index);
        let (link, hash) = (entry.link, request_hash(self.secret, entry));
        let bytes = claim_bytes(self.key(self.records.get(entry.record)));
        self.by_request.remove(hash, index);
        self.unsettle(link);
        let known = self.links.get_mut(link);
        known.rich_bytes -= bytes;
        known.entries.remove::<Entry, LinkChain>(&mut self.entries, index);
        self.entries.remove(index);
    }

    /// Puts a new entry at the end of its key's queue.
    pub(crate) fn line_up(&mut self, index: u32) {
        let entry = self.entries.get(index);
        if entry.deadline != Time::NEVER {
            self.waits.insert((entry.deadline, index));
        }
        self.links.get_mut(entry.link).waiters += 1;
        let rich = self.records.get(entry.record).rich();
        let queue = &mut self.riches.get_mut(rich).waiters;
        queue.push_back::<Entry, QueueChain>(&mut self.entries, index);
        self.stats.enqueued += 1;
        note!(self, note_queued(index));
        self.stats.waiters += 1;
    }

    /// Takes a waiter out of its queue. It is still remembered.
    fn step_out(&mut self, index: u32) {
        note!(self, note_left(index));
        let entry = self.entries.get(index);
        assert!(entry.fence.is_none(), "a holder is in no queue: {entry:?}");
        if entry.deadline != Time::NEVER {
            self.waits.remove(&(entry.deadline, index));
        }
        self.links.get_mut(entry.link).waiters -= 1;
        let rich = self.records.get(entry.record).rich();
        let queue = &mut self.riches.get_mut(rich).waiters;
        queue.remove::<Entry, QueueChain>(&mut self.entries, index);
        self.stats.waiters -= 1;
    }

    /// Drops a waiter, numbered as an operation of the cell. The caller pumps the queue.
    pub(crate) fn drop_waiter(&mut self, place: Place, index: u32) {
        self.step_out(index);
        self.forget(index);
        self.count(place);
    }

    /// Makes an entry that stands in no queue a holder. `false`: the cell's epoch is used up.
    pub(crate) fn grant(&mut self, now: Time, place: Place, index: u32) -> bool {
        let Some(fence) = self.number(place) else {
            return false;
        };
        let entry = self.entries.get_mut(index);
        entry.fence = Some(fence);
        entry.since = now;
        entry.deadline = Time::NEVER;
        let (link, claim, rich) = (entry.link, entry.claim, self.records.get(entry.record).rich());
        let rich = self.riches.get_mut(rich);
        rich.take(claim);
        rich.holders.push_back::<Entry, QueueChain>(&mut self.entries, index);
        self.remember_fence(index);
        let id = self.hold_id(place, fence);
        self.unsettle(link);
        self.links.get_mut(link).digest.add(id);
        self.stats.grants += 1;
        self.stats.holds += 1;
        note!(self, note_granted(now, index));
        true
    }

    fn remember_fence(&mut self, index: u32) {
        let hash = fence_hash(self.secret, self.entries.get(index));
        self.by_fence.insert(hash, index);
    }

    /// Takes a holder off its key, and forgets it. The caller numbers, counts and pumps.
    pub(crate) fn ungrant(&mut self, place: Place, index: u32) {
        let entry = self.entries.get(index);
        let fence = entry.fence.expect("only a holder has a hold to end");
        let (link, claim, hash) = (entry.link, entry.claim, fence_hash(self.secret, entry));
        let rich = self.riches.get_mut(self.records.get(entry.record).rich());
        rich.give(claim);
        rich.holders.remove::<Entry, QueueChain>(&mut self.entries, index);
        self.by_fence.remove(hash, index);
        let id = self.hold_id(place, fence);
        self.links.get_mut(link).digest.remove(id);
        self.stats.holds -= 1;
        self.forget(index);
    }

    /// Grants from the head of the queue for as long as the head fits, then lets the record
    /// settle. Every change of a rich key ends here. A slice of the queue at most: the next ticks
    /// go on.
    pub(crate) fn pump(&mut self, now: Time, place: Place, record: u32, out: &mut Vec<Action>) {
        if self.grace_left(now).is_none() {
            let mut left = self.config.limits.expiry_slice;
            while let Some(dead_before) = self.pump_one(now, place, record, out) {
                if dead_before && mutant!(self, LostWakeup) {
                    break;
                }
                self.charge(1);
                left -= 1;
                if left == 0 {
                    self.unserved.insert(record);
                    break;
                }
            }
        }
        self.settle(place, record);
    }

    /// One step of a pump: `None` when the head does not fit or nobody is in line, else whether
    /// the head was dead rather than granted.
    fn pump_one(
        &mut self,
        now: Time,
        place: Place,
        record: u32,
        out: &mut Vec<Action>,
    ) -> Option<bool> {
        let head = self.rich_of(record).waiters.head;
        if head == NIL {
            return None;
        }
        let (link, claim) = (self.entries.get(head).link, self.entries.get(head).claim);
        // Looked at again now: its lease may have ended while it waited.
        let dead = !self.is_alive(now, link) && !mutant!(self, GrantWithoutSessionCheck);
        if dead {
            self.begin_expiry(link, out);
        }
        if dead || self.is_nobodys(head) {
            self.drop_waiter(place, head);
            self.stats.dead_waiters += 1;
            if mutant!(self, SlipPastExpired) {
                self.slip_in(now, place, record, out);
            }
            return Some(true);
        }
        if !self.rich_of(record).fits(claim) {
            return None;
        }
        self.grant_head(now, place, head, out).then_some(false)
    }

    pub(crate) fn slip_in(&mut self, now: Time, place: Place, record: u32, out: &mut Vec<Action>) {
        let head = self.rich_of(record).waiters.head;
        if head == NIL {
            return;
        }
        let (link, claim) = (self.entries.get(head).link, self.entries.get(head).claim);
        if claim == Claim::Shared && self.is_alive(now, link) {
            self.grant_head(now, place, head, out);
        }
    }

    fn grant_head(&mut self, now: Time, place: Place, head: u32, out: &mut Vec<Action>) -> bool {
        if !self.cell(place).has_numbers() {
            self.starved.insert((place.at, self.entries.get(head).record));
            return false;
        }
        self.step_out(head);
        assert!(self.grant(now, place, head), "the counter had room");
        self.stats.grants_queued += 1;
        let entry = self.entries.get(head);
        let fence = entry.fence.expect("just granted");
        let reply = Reply::Granted { id: entry.request, version: self.version.0, fence };
        self.answer(entry.link, entry.asked_on, reply, out);
        true
    }

    /// Whether a waiter is of a process that said goodbye, or whose session another has taken up:
    /// its grant would be held for nobody.
    pub(crate) fn is_nobodys(&self, waiter: u32) -> bool {
        let entry = self.entries.get(waiter);
        let link = self.links.get(entry.link);
        link.leaving.is_some() && entry.asked_on < link.waiters_from
    }

    /// Answers a claim that was in line, unless its connection has been replaced since.
    pub(crate) fn answer(&self, link: u32, asked_on: ConnId, reply: Reply, out: &mut Vec<Action>) {
        if self.links.get(link).conn == Some(asked_on) {
            out.push(Action::Reply { conn: asked_on, reply });
        }
    }

    /// Turns a thin record rich: the holder becomes an entry. Its link is alive: whoever asks for
    /// a thin hold of a dead one frees it.
    pub(crate) fn enrich(&mut self, now: Time, index: u32) {
        let record = self.records.get(index);
        let (link, fence, request) = (record.link(), record.fence, record.request());
        assert!(!self.links.get(link).dying, "link {link} is dead and comes to hold more");
        let since = record.since(now);
        let key = record.inline_key().expect("a thin record has a short key");
        let mut side = Rich::new(key, self.links.get(link).namespace, Kind::Modes);
        side.exclusive = true;
        self.links.get_mut(link).thin.remove(&mut self.records, index);
        let entry = self.entries.insert(Entry {
            record: index,
            link,
            request,
            asked_on: ConnId(0),
            claim: Claim::Exclusive,
            fence: Some(fence),
            since,
            deadline: Time::NEVER,
            queue_prev: NIL,
            queue_next: NIL,
            link_prev: NIL,
            link_next: NIL,
        });
        side.holders.push_back::<Entry, QueueChain>(&mut self.entries, entry);
        let rich = self.riches.insert(side);
        self.records.get_mut(index).make_rich(rich);
        self.remember(entry);
        self.remember_fence(entry);
        self.gather_turning(link, index, fence, request);
    }

    /// Brings a rich record to its simplest form: gone when nobody uses it, thin when it is one
    /// exclusive holder of a short key and nobody in line.
    pub(crate) fn settle(&mut self, place: Place, index: u32) {
        let record = self.records.get(index);
        if !record.is_rich() {
            return;
        }
        let rich_index = record.rich();
        let rich = self.riches.get(rich_index);
        if rich.waiters.len > 0 {
            return;
        }
        if rich.holders.len == 0 {
            self.free_record(place, index);
            self.riches.remove(rich_index);
        } else if rich.exclusive && rich.long_key.is_none() {
            self.thin_out(index, rich_index);
        }
    }

    fn thin_out(&mut self, index: u32, rich_index: u32) {
        let holder = self.riches.get(rich_index).holders.head;
        let entry = self.entries.get(holder).clone();
        let hash = fence_hash(self.secret, &entry);
        self.by_fence.remove(hash, holder);
        self.forget(holder);
        self.riches.remove(rich_index);
        let fence = entry.fence.expect("a holder has a fence");
        self.records.get_mut(index).make_thin(entry.link, fence, entry.request, entry.since);
        self.links.get_mut(entry.link).thin.push(&mut self.records, index);
        self.gather_turning(entry.link, index, fence, entry.request);
    }
}
