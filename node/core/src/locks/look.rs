//! What may be seen of the locks.

use super::record::{Entry, EntryIndex, Kind, LinkChain, RecordIndex, Rich, Shape, Thin};
use super::slab::Index as _;
use super::{Locks, THIN_BYTES, Used};
use crate::event::{ConnId, LinkIndex};
use lockring_proto::{Claim, Digest, Fence, Time};
use lockring_ring::NamespaceSeed;

/// Holders of one key that are looked at in one go.
pub(crate) const HOLDERS_LOOKED_AT: u32 = 64;

/// A hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holder {
    pub(crate) link: LinkIndex,
    pub(crate) claim: Claim,
    pub(crate) fence: Fence,
    /// To the second if it is a plain exclusive hold.
    pub(crate) since: Time,
}

/// What a link has.
impl Locks {
    #[inline(always)]
    pub(crate) fn namespace_of(&self, link: LinkIndex) -> u16 {
        self.holdings.get(link).namespace
    }

    /// Its number among all links that this worker ever had.
    pub(crate) fn number_of(&self, link: LinkIndex) -> u64 {
        self.holdings.get(link).number
    }

    /// What its keys are hashed with.
    pub(crate) fn seed_of(&self, link: LinkIndex) -> NamespaceSeed {
        self.seeds[usize::from(self.namespace_of(link))]
    }

    #[inline(always)]
    pub(crate) fn is_dead(&self, link: LinkIndex) -> bool {
        self.holdings.get(link).dead
    }

    /// Whether it has ever held something, or waited for it.
    pub(crate) fn was_used(&self, link: LinkIndex) -> bool {
        self.holdings.get(link).used
    }

    pub(crate) fn digest(&self, link: LinkIndex) -> Digest {
        self.holdings.get(link).digest
    }

    #[inline(always)]
    pub(crate) fn hold_count(&self, link: LinkIndex) -> u64 {
        self.holdings.get(link).digest.count
    }

    pub(crate) fn waiter_count(&self, link: LinkIndex) -> u32 {
        self.holdings.get(link).waiters
    }

    pub(crate) fn used_by(&self, link: LinkIndex) -> Used {
        let holdings = self.holdings.get(link);
        Used {
            holds: holdings.digest.count,
            waiters: u64::from(holdings.waiters),
            bytes: u64::from(holdings.thin.len()) * THIN_BYTES + holdings.rich_bytes,
        }
    }

    /// Notes that what a link has is to be looked at again.
    #[inline(always)]
    pub(crate) fn mark_changed(&mut self, link: LinkIndex) {
        self.holdings.get_mut(link).note_change(link, &mut self.changed);
    }

    /// A link that has changed since it was last asked for here. Some may not exist any more.
    pub(crate) fn next_changed(&mut self) -> Option<LinkIndex> {
        while let Some(link) = self.changed.pop() {
            if let Some(holdings) = self.holdings.find_mut(link)
                && std::mem::take(&mut holdings.changed)
            {
                return Some(link);
            }
        }
        None
    }

    pub(crate) fn thin_count(&self, link: LinkIndex) -> u32 {
        self.holdings.get(link).thin.len()
    }

    /// The thin hold of a link at a position.
    pub(crate) fn thin_at(&self, link: LinkIndex, position: u32) -> RecordIndex {
        self.holdings.get(link).thin.get(position)
    }

    /// The thin hold that is `back` before the last; `None` before the first.
    pub(crate) fn nth_last_thin(&self, link: LinkIndex, back: u32) -> Option<RecordIndex> {
        self.holdings.get(link).thin.nth_last(back)
    }

    /// Rich holds and waiters of a link.
    pub(crate) fn entry_count(&self, link: LinkIndex) -> u32 {
        self.holdings.get(link).entries.len
    }

    pub(crate) fn first_entry(&self, link: LinkIndex) -> Option<EntryIndex> {
        some(self.holdings.get(link).entries.head)
    }

    /// The one that was made last, or turned last.
    pub(crate) fn last_entry(&self, link: LinkIndex) -> Option<EntryIndex> {
        some(self.holdings.get(link).entries.tail)
    }

    /// Puts the first entry of a link behind the others: the order says nothing, and whoever turns
    /// the list so sees all of them.
    pub(crate) fn turn_entries(&mut self, link: LinkIndex) {
        let list = &mut self.holdings.get_mut(link).entries;
        let head = list.head;
        list.remove::<Entry, LinkChain>(&mut self.entries, head);
        list.push_back::<Entry, LinkChain>(&mut self.entries, head);
    }
}

/// What a key has.
impl Locks {
    #[inline(always)]
    pub(crate) fn shape(&self, record: RecordIndex) -> Shape {
        self.records.get(record).shape()
    }

    /// Keys in use.
    pub(crate) fn key_count(&self) -> u32 {
        self.records.len()
    }

    /// The first record from here on that is in memory.
    pub(crate) fn next_resident(&self, from: u32) -> Option<RecordIndex> {
        self.records.next_resident(from)
    }

    /// Whether a record, which may be out of date, is free. What it held is still in it.
    pub(crate) fn is_free(&self, record: RecordIndex) -> bool {
        self.records.find(record).is_none_or(super::record::Record::is_free)
    }

    pub(super) fn rich_of(&self, record: RecordIndex) -> Option<&Rich> {
        match self.shape(record) {
            Shape::Thin(_) => None,
            Shape::Rich(rich) => Some(self.riches.get(rich)),
        }
    }

    pub(crate) fn kind(&self, record: RecordIndex) -> Kind {
        self.rich_of(record).map_or(Kind::Modes, Rich::kind)
    }

    /// Whether a claim fits beside the holders of a key.
    pub(crate) fn fits(&self, record: RecordIndex, claim: Claim) -> bool {
        self.rich_of(record).is_some_and(|rich| rich.fits(claim))
    }

    pub(crate) fn holder_count(&self, record: RecordIndex) -> u32 {
        self.rich_of(record).map_or(1, |rich| rich.holders.len)
    }

    pub(crate) fn queue_len(&self, record: RecordIndex) -> u32 {
        self.rich_of(record).map_or(0, |rich| rich.waiters.len)
    }

    /// The head of the queue of a key, which may have gone with its last hold or waiter, and its
    /// memory too.
    pub(crate) fn first_waiter(&self, record: RecordIndex) -> Option<EntryIndex> {
        if self.is_free(record) {
            return None;
        }
        some(self.rich_of(record)?.waiters.head)
    }

    /// The queue of a key.
    pub(crate) fn waiters(&self, record: RecordIndex) -> impl Iterator<Item = &Entry> {
        let mut next = self.first_waiter(record);
        std::iter::from_fn(move || {
            let entry = self.entries.get(next?);
            next = some(entry.queue_next);
            Some(entry)
        })
    }

    /// The holders of a key, newest first; their times are seen from `now`.
    pub(crate) fn holders(
        &self,
        record: RecordIndex,
        now: Time,
    ) -> impl Iterator<Item = Holder> + '_ {
        let (mut only, mut next) = match self.shape(record) {
            Shape::Thin(Thin { link, fence, .. }) => {
                let since = self.records.get(record).since(now);
                (Some(Holder { link, claim: Claim::EXCLUSIVE, fence, since }), None)
            }
            Shape::Rich(rich) => (None, some(self.riches.get(rich).holders.tail)),
        };
        std::iter::from_fn(move || {
            if let Some(only) = only.take() {
                return Some(only);
            }
            let &Entry { link, claim, fence, since, queue_prev, .. } = self.entries.get(next?);
            next = some(queue_prev);
            Some(Holder { link, claim, fence: fence.expect("it holds"), since })
        })
    }

    /// Link and fence of the first holder of a key.
    pub(crate) fn first_holder(&self, record: RecordIndex) -> Option<(LinkIndex, Fence)> {
        match self.shape(record) {
            Shape::Thin(thin) => Some((thin.link, thin.fence)),
            Shape::Rich(rich) => {
                let head = self.entries.get(some(self.riches.get(rich).holders.head)?);
                Some((head.link, head.fence?))
            }
        }
    }

    /// The fence of the last holder of a key. It is the highest, but among holders that were
    /// reclaimed, who are in the order in which they were.
    pub(crate) fn last_fence(&self, record: RecordIndex) -> Option<Fence> {
        match self.shape(record) {
            Shape::Thin(thin) => Some(thin.fence),
            Shape::Rich(rich) => self.entries.get(some(self.riches.get(rich).holders.tail)?).fence,
        }
    }

    /// Whether a key is used as what is claimed, and it goes beside the holders.
    pub(crate) fn takes(&self, record: RecordIndex, claim: Claim) -> bool {
        self.kind(record) == Kind::of(claim) && self.fits(record, claim)
    }

    /// A holder, and its fence, that a claim under a fence, which a key does not take, cannot be
    /// beside, as far as is looked: a dead one, else one that has a higher fence, if the claim has
    /// to give way to those that have, else the one with the lowest. `None`: the key is not held.
    pub(crate) fn rival(
        &self,
        record: RecordIndex,
        (claim, fence): (Claim, Fence),
    ) -> Option<(LinkIndex, Fence)> {
        let Some(rich) = self.rich_of(record) else { return self.first_holder(record) };
        let looked = self.chain(rich.holders.head).take(HOLDERS_LOOKED_AT as usize);
        let rivals = looked.filter(|holder| match (claim, holder.claim) {
            (Claim::Mode(mode), Claim::Mode(other)) => !mode.fits_beside(other),
            _ => true,
        });
        let mut rivals: Vec<(Fence, LinkIndex, Claim)> =
            rivals.filter_map(|holder| Some((holder.fence?, holder.link, holder.claim))).collect();
        rivals.sort_unstable();
        let dead = rivals.iter().find(|&&(_, link, _)| self.is_dead(link));
        // What of the key is left to the claim, if it goes beside others at all.
        let mut room = match claim {
            Claim::Permits { permits, .. } if Kind::of(claim) == rich.kind() => {
                rich.capacity().saturating_sub(permits)
            }
            _ => 0,
        };
        let barring = rivals.iter().rev().take_while(|&&(its, ..)| its > fence).find(|rival| {
            let takes = if let Claim::Permits { permits, .. } = rival.2 { permits } else { 1 };
            let bars = takes > room;
            room = room.saturating_sub(takes);
            bars
        });
        let found = dead.or(barring).or_else(|| rivals.first());
        found.map(|&(fence, link, _)| (link, fence))
    }

    /// The link that holds a key under this fence, as what, and its entry if it has one.
    #[inline(always)]
    pub(crate) fn held(
        &self,
        record: RecordIndex,
        fence: Fence,
    ) -> Option<(LinkIndex, Claim, EntryIndex)> {
        match self.records.get(record).shape() {
            Shape::Thin(thin) => {
                (thin.fence == fence).then_some((thin.link, Claim::EXCLUSIVE, EntryIndex::NIL))
            }
            Shape::Rich(_) => {
                let index = self.entry_by_fence(record, fence)?;
                let entry = self.entries.get(index);
                Some((entry.link, entry.claim, index))
            }
        }
    }

    pub(crate) fn entry(&self, index: EntryIndex) -> &Entry {
        self.entries.get(index)
    }

    /// When a waiter gives up.
    pub(crate) fn deadline(&self, index: EntryIndex) -> Time {
        let entry = self.entries.get(index);
        Time(entry.since.0.saturating_add(entry.patience))
    }

    /// The hold or waiter that a request of a link made on a rich key.
    pub(crate) fn entry_by_request(&self, link: LinkIndex, request: u64) -> Option<EntryIndex> {
        let is_it = |index| {
            let entry = self.entries.get(EntryIndex(index));
            entry.link == link && entry.request == request
        };
        self.by_request.find(self.secret.pair(link.0, request), is_it).map(EntryIndex)
    }

    /// The hold of a rich key with this fence.
    pub(super) fn entry_by_fence(&self, record: RecordIndex, fence: Fence) -> Option<EntryIndex> {
        let is_it = |index| {
            let entry = self.entries.get(EntryIndex(index));
            entry.record == record && entry.fence == Some(fence)
        };
        self.by_fence.find(self.secret.pair(record.0, fence.0), is_it).map(EntryIndex)
    }

    /// The connection that a claim is answered on. It is no lock state: a copy answers nobody.
    pub(crate) fn answer_on(&mut self, entry: EntryIndex, conn: ConnId) {
        self.entries.get_mut(entry).asked_on = conn;
    }

    /// A retry makes a claim anew, beside the door.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn seeded_change(&mut self, entry: EntryIndex, now: Time) {
        if self.mutant == Some(crate::Mutant::ChangeBesideTheDoor) {
            self.entries.get_mut(entry).since = Time(now.0 + 1);
        }
    }
}

/// An index, if it is one.
fn some(index: EntryIndex) -> Option<EntryIndex> {
    (index != EntryIndex::NIL).then_some(index)
}
