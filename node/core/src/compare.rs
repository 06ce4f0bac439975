//! What a client holds against what its link holds here, hold by hold.
//!
//! A long list comes in several frames. The link's own holds are gathered and sorted once, at the
//! first of them, and kept until the last: to do so for each frame would cost as much for every
//! few thousand holds as for all of them. What is kept is never more than the link's own holds.

use crate::batch::Asker;
use crate::event::Action;
use crate::machine::Machine;
use crate::slab::NIL;
use lockring_proto::Time;
use lockring_proto::{HoldId, RefusalKind, Reply, limits};

/// One frame of a compare.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    /// Holds of later requests are no orphans.
    pub(crate) upto: u64,
    pub(crate) after: Option<HoldId>,
    pub(crate) through: Option<HoldId>,
    pub(crate) holds: &'a [HoldId],
}

/// A hold of a link, as it was gathered. By the time it is looked at it may have ended.
#[derive(Clone, Copy)]
struct Held {
    id: HoldId,
    record: u32,
    request: u64,
}

/// The holds of a link, gathered for a compare of which more frames may come.
#[derive(Clone)]
pub(crate) struct Comparison {
    upto: u64,
    /// The next frame begins after this hold.
    after: Option<HoldId>,
    /// Sorted.
    ours: Vec<Held>,
    /// The first of them that is after `after`.
    next: usize,
}

#[cfg(any(test, feature = "testing"))]
impl Comparison {
    /// How far it looks, where it goes on, and what is left of it.
    pub(crate) fn left(&self) -> (u64, Option<HoldId>, Vec<HoldId>) {
        let left = self.ours[self.next..].iter().map(|held| held.id);
        (self.upto, self.after, left.collect())
    }
}

impl Machine {
    /// Ends holds of the link that the client does not know, and finds those the worker does not.
    pub(crate) fn compare(
        &mut self,
        now: Time,
        asker: Asker,
        part: &Part<'_>,
        out: &mut Vec<Action>,
    ) {
        let theirs = part.holds;
        if theirs.len() > limits::HOLDS_PER_FRAME || !theirs.is_sorted() {
            let message = "the holds of a compare come in ascending order, at most 4096 a frame";
            return self.refuse(asker, RefusalKind::Malformed, message, out);
        }
        let spared = self.is_spared(now, asker.link);
        let mut comparison = self.gathered(asker.link, part);
        let ours = &comparison.ours[comparison.next..];
        let end = part
            .through
            .map_or(ours.len(), |through| ours.partition_point(|held| held.id <= through));
        let ours = &ours[..end];
        let lost: Vec<HoldId> = theirs
            .iter()
            .copied()
            .filter(|id| ours.binary_search_by_key(id, |held| held.id).is_err())
            .collect();
        for held in ours {
            let later = held.request > part.upto;
            let known = later || theirs.binary_search(&held.id).is_ok();
            if !known && !spared && self.still_holds(asker.link, held) {
                self.stats.orphans += 1;
                self.stats.releases += 1;
                self.end_hold(now, held.record, held.id.fence, out);
            }
        }
        if part.through.is_some() {
            comparison.after = part.through;
            comparison.next += end;
            self.links.get_mut(asker.link).comparison = Some(Box::new(comparison));
        }
        self.stats.lost += lost.len() as u64;
        let reply = Reply::Compared { id: asker.id, version: self.version.0, lost };
        out.push(Action::Reply { conn: asker.conn, reply });
    }

    /// What the link holds, up to where a frame begins: as it was gathered for the frame before, if
    /// this one goes on where that one ended, else as it is now.
    fn gathered(&mut self, link: u32, part: &Part<'_>) -> Comparison {
        let before = self.links.get_mut(link).comparison.take();
        if let Some(before) = before
            && part.after.is_some()
            && (before.upto, before.after) == (part.upto, part.after)
        {
            return *before;
        }
        let mut ours = self.holds_of(link);
        ours.sort_unstable_by_key(|held| held.id);
        let next = part.after.map_or(0, |after| ours.partition_point(|held| held.id <= after));
        Comparison { upto: part.upto, after: part.after, ours, next }
    }

    /// Whether what was gathered is still so: the hold may have ended since, and its record be free
    /// or another key's by now.
    fn still_holds(&self, link: u32, held: &Held) -> bool {
        let Held { id, record, .. } = *held;
        !self.records.get(record).is_free()
            && self.held_by(record, id.fence) == Some(link)
            && self.hold_id(self.place_of(record), id.fence) == id
    }

    /// Everything a link holds.
    fn holds_of(&self, link: u32) -> Vec<Held> {
        let link = self.links.get(link);
        let mut holds = Vec::with_capacity(link.digest.count as usize);
        for index in link.thin.iter() {
            let record = self.records.get(index);
            let id = self.hold_id(self.place_of(index), record.fence);
            holds.push(Held { id, record: index, request: record.request() });
        }
        let mut at = link.entries.head;
        while at != NIL {
            let entry = self.entries.get(at);
            if let Some(fence) = entry.fence {
                let id = self.hold_id(self.place_of(entry.record), fence);
                holds.push(Held { id, record: entry.record, request: entry.request });
            }
            at = entry.link_next;
        }
        holds
    }
}
