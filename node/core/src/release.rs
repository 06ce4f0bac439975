//! Ending holds: by fence, by the request that made them, by force.

use crate::batch::{Asker, Named};
use crate::event::{Action, push_reply};
use crate::machine::Machine;
use crate::mutant::{mutant, note};
use crate::slab::NIL;
use crate::table::Place;
use lockring_proto::Time;
use lockring_proto::{Claim, Fence, LostReason, Push, Reply};

impl Machine {
    pub(crate) fn release(
        &mut self,
        now: Time,
        asker: Asker,
        place: Place,
        key: &[u8],
        fence: Fence,
        out: &mut Vec<Action>,
    ) {
        let namespace = self.links.get(asker.link).namespace;
        let released = match self.find(place, namespace, key) {
            Some(index) if self.held_by(index, fence) == Some(asker.link) => {
                self.stats.releases += 1;
                self.end_hold_at(now, place, index, fence, out);
                true
            }
            Some(index) if mutant!(self, ReleaseWithoutFence) => {
                self.stats.releases += 1;
                self.end_any(now, place, index, out)
            }
            _ => false,
        };
        let (id, version) = (asker.id, self.version.0);
        if released {
            push_reply(out, asker.conn, || Reply::Released { id, version });
        } else {
            push_reply(out, asker.conn, || Reply::NotHeld { id, version });
        }
    }

    fn end_any(&mut self, now: Time, place: Place, index: u32, out: &mut Vec<Action>) -> bool {
        let record = self.records.get(index);
        let fence = if record.is_rich() {
            let head = self.rich_of(index).holders.head;
            if head == NIL { None } else { self.entries.get(head).fence }
        } else {
            Some(record.fence)
        };
        if let Some(fence) = fence {
            self.end_hold_at(now, place, index, fence, out);
        }
        fence.is_some()
    }

    /// The link that holds a key under this fence.
    #[inline]
    pub(crate) fn held_by(&self, index: u32, fence: Fence) -> Option<u32> {
        let record = self.records.get(index);
        if !record.is_rich() {
            return (record.fence == fence).then_some(record.link());
        }
        self.entry_by_fence(index, fence).map(|entry| self.entries.get(entry).link)
    }

    /// Says whether the link holds a key under this fence, and as what.
    pub(crate) fn confirm(
        &self,
        asker: Asker,
        place: Place,
        key: &[u8],
        fence: Fence,
        out: &mut Vec<Action>,
    ) {
        let namespace = self.links.get(asker.link).namespace;
        let (id, version) = (asker.id, self.version.0);
        let index = self.find(place, namespace, key);
        let reply = match index.filter(|&index| self.held_by(index, fence) == Some(asker.link)) {
            Some(index) => Reply::Confirmed { id, version, claim: self.claim_of(index, fence) },
            None => Reply::NotHeld { id, version },
        };
        out.push(Action::Reply { conn: asker.conn, reply });
    }

    /// What the hold of a key with this fence, which exists, was claimed as.
    fn claim_of(&self, index: u32, fence: Fence) -> Claim {
        if !self.records.get(index).is_rich() {
            return Claim::Exclusive;
        }
        let entry = self.entry_by_fence(index, fence).expect("the hold was found");
        self.entries.get(entry).claim
    }

    pub(crate) fn end_hold(&mut self, now: Time, index: u32, fence: Fence, out: &mut Vec<Action>) {
        let place = self.place_of(index);
        self.end_hold_at(now, place, index, fence, out);
    }

    /// Ends the hold of a key with this fence, which exists, and grants to whoever is next.
    #[inline]
    pub(crate) fn end_hold_at(
        &mut self,
        now: Time,
        place: Place,
        index: u32,
        fence: Fence,
        out: &mut Vec<Action>,
    ) {
        note!(self, note_freed(index, fence));
        self.count(place);
        let record = self.records.get(index);
        if record.is_rich() {
            let entry = self.entry_by_fence(index, fence).expect("the hold was found");
            self.ungrant(place, entry);
            return self.pump(now, place, index, out);
        }
        let id = self.hold_id(place, fence);
        let link = self.links.get_mut(record.link());
        link.digest.remove(id);
        link.thin.remove(&mut self.records, index);
        self.stats.holds -= 1;
        self.free_record(place, index);
    }

    pub(crate) fn cancel(
        &mut self,
        now: Time,
        asker: Asker,
        place: Place,
        key: &[u8],
        target: u64,
        out: &mut Vec<Action>,
    ) {
        let namespace = self.links.get(asker.link).namespace;
        let undone = match self.find(place, namespace, key) {
            Some(index) if self.records.get(index).is_rich() => {
                self.cancel_entry(now, asker.link, place, index, target, out)
            }
            Some(index) => {
                let record = self.records.get(index);
                let its = record.link() == asker.link && record.request() == target;
                if its {
                    let fence = record.fence;
                    self.stats.releases += 1;
                    self.end_hold_at(now, place, index, fence, out);
                }
                its
            }
            None => false,
        };
        let (id, version) = (asker.id, self.version.0);
        let reply =
            if undone { Reply::Cancelled { id, version } } else { Reply::NotHeld { id, version } };
        out.push(Action::Reply { conn: asker.conn, reply });
    }

    fn cancel_entry(
        &mut self,
        now: Time,
        link: u32,
        place: Place,
        index: u32,
        target: u64,
        out: &mut Vec<Action>,
    ) -> bool {
        let Some(entry) = self.entry_by_request(link, target) else {
            return false;
        };
        let found = self.entries.get(entry);
        if found.record != index {
            return false;
        }
        if let Some(fence) = found.fence {
            self.stats.releases += 1;
            self.end_hold_at(now, place, index, fence, out);
        } else {
            self.stats.cancelled_waiters += 1;
            self.drop_waiter(place, entry);
            self.pump(now, place, index, out);
        }
        true
    }

    /// Ends every hold of a key and tells the holders. The next fence is higher than all of them,
    /// as every operation takes the next number.
    pub(crate) fn force(
        &mut self,
        now: Time,
        asker: Asker,
        place: Place,
        named: &Named<'_>,
        out: &mut Vec<Action>,
    ) {
        let mut ended = 0;
        if let Some(index) = self.find_named(asker.link, place, named) {
            for (link, fence) in self.holders(index) {
                ended += 1;
                self.stats.forced += 1;
                if let Some(conn) = self.links.get(link).conn {
                    let holds = vec![self.hold_id(place, fence)];
                    let push = Push::Lost { reason: LostReason::Forced, holds };
                    out.push(Action::Push { conn, push });
                }
                // Those in line are granted only when the last is gone, or as far as they fit.
                self.end_hold_at(now, place, index, fence, out);
            }
        }
        let reply = Reply::Forced { id: asker.id, version: self.version.0, ended };
        out.push(Action::Reply { conn: asker.conn, reply });
    }

    /// Links and fences of the holders of a key, in the order of their grants.
    fn holders(&self, index: u32) -> Vec<(u32, Fence)> {
        let record = self.records.get(index);
        if !record.is_rich() {
            return vec![(record.link(), record.fence)];
        }
        let mut holders = Vec::new();
        let mut at = self.riches.get(record.rich()).holders.head;
        while at != NIL {
            let entry = self.entries.get(at);
            holders.push((entry.link, entry.fence.expect("a holder has a fence")));
            at = entry.queue_next;
        }
        holders
    }
}
