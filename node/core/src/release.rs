//! Ending holds: by fence, by the request that made them, by force.

use crate::batch::{Asker, Named};
use crate::event::{Action, ConnId, push_reply};
use crate::machine::Machine;
use crate::mutant::{mutant, note};
use crate::slab::NIL;
use crate::table::Place;
use crate::turn::{PER_FORCED, Progress};
use lockring_proto::Time;
use lockring_proto::{Claim, Fence, HoldId, LostReason, Push, Reply, limits};

/// A release by force of more holders than a turn ends.
#[derive(Clone, Copy)]
pub(crate) struct Forcing {
    /// The request.
    id: u64,
    /// Later holds are no business of it.
    last: Fence,
    ended: u32,
}

/// Tells a holder. One that loses many is told of them together, as it looks through all that it
/// holds for each push.
fn tell_forced(conn: ConnId, hold: HoldId, out: &mut Vec<Action>) {
    const FORCED: LostReason = LostReason::Forced;
    if let Some(Action::Push { conn: last, push: Push::Lost { reason: FORCED, holds } }) =
        out.last_mut()
        && *last == conn
        && holds.len() < limits::HOLDS_PER_FRAME
    {
        return holds.push(hold);
    }
    let push = Push::Lost { reason: FORCED, holds: vec![hold] };
    out.push(Action::Push { conn, push });
}

impl Machine {
    #[inline(always)]
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
        let first = self.first_holder(index);
        if let Some((_, fence)) = first {
            self.end_hold_at(now, place, index, fence, out);
        }
        first.is_some()
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
        let holder = record.link();
        let link = self.links.get_mut(holder);
        link.digest.remove(id);
        link.thin.remove(&mut self.records, index);
        if !link.unsettled {
            self.unsettle(holder);
        }
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

    /// Ends every hold of a key that there was when it was asked for, and tells the holders. The
    /// next fence is higher than all of them, as every operation takes the next number.
    pub(crate) fn force(
        &mut self,
        now: Time,
        asker: Asker,
        place: Place,
        named: &Named<'_>,
        out: &mut Vec<Action>,
    ) -> Progress {
        let mut forcing = match self.links.get_mut(asker.link).forcing.take() {
            Some(before) if before.id == asker.id => before,
            _ => {
                let found = self.find_named(asker.link, place, named);
                let last = found.and_then(|index| self.last_fence(index)).unwrap_or_default();
                Forcing { id: asker.id, last, ended: 0 }
            }
        };
        // The holders stand in the order of their grants.
        while let Some(index) = self.find_named(asker.link, place, named)
            && let Some((link, fence)) = self.first_holder(index)
            && fence <= forcing.last
        {
            if self.turn_is_over() {
                self.links.get_mut(asker.link).forcing = Some(forcing);
                return Progress::More;
            }
            self.charge(PER_FORCED);
            forcing.ended += 1;
            self.stats.forced += 1;
            if let Some(conn) = self.links.get(link).conn {
                tell_forced(conn, self.hold_id(place, fence), out);
            }
            // Those in line are granted only when the last is gone, or as far as they fit.
            self.end_hold_at(now, place, index, fence, out);
        }
        let (id, version, ended) = (asker.id, self.version.0, forcing.ended);
        out.push(Action::Reply { conn: asker.conn, reply: Reply::Forced { id, version, ended } });
        Progress::Done
    }

    /// Link and fence of the first holder of a key.
    fn first_holder(&self, index: u32) -> Option<(u32, Fence)> {
        let record = self.records.get(index);
        if !record.is_rich() {
            return Some((record.link(), record.fence));
        }
        let head = self.rich_of(index).holders.head;
        (head != NIL).then(|| self.entries.get(head)).and_then(|it| Some((it.link, it.fence?)))
    }

    /// The highest fence among the holders of a key.
    fn last_fence(&self, index: u32) -> Option<Fence> {
        let record = self.records.get(index);
        if !record.is_rich() {
            return Some(record.fence);
        }
        let tail = self.rich_of(index).holders.tail;
        if tail == NIL { None } else { self.entries.get(tail).fence }
    }
}
