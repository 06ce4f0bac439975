//! The one door: what an op does to the locks of its cell.

use super::cell::Spot;
use super::holds::Holds;
use super::op::{Change, Definition, LinkRecord, Op, Source};
use super::record::{
    Entry, EntryIndex, INLINE_KEY, LinkChain, QueueChain, Record, RecordIndex, Rich, RichIndex,
    Shape, Thin,
};
use super::slab::{Index as _, List, NIL, Slab};
use super::{CellIndex, Holdings, Locks, claim_bytes};
use crate::event::{ConnId, LinkIndex};
use lockring_proto::{Claim, Digest, Fence, Time};
use std::time::Duration;

/// A hold that an op of others has moved from a thin record to a rich one or back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turned {
    pub(crate) record: RecordIndex,
    pub(crate) link: LinkIndex,
    pub(crate) request: u64,
    pub(crate) fence: Fence,
}

/// Who claims, by its link and its number there.
#[derive(Clone, Copy)]
struct Claimant {
    link: LinkIndex,
    request: u64,
}

/// Time from the zero of the owner's clock on.
fn instant(since: Duration) -> Time {
    Time(0).after(since)
}

/// The side record of a key that has one.
fn rich_mut<'a>(
    records: &Slab<Record>,
    riches: &'a mut Slab<Rich>,
    record: RecordIndex,
) -> &'a mut Rich {
    let Shape::Rich(rich) = records.get(record).shape() else { panic!("{record:?} is thin") };
    riches.get_mut(rich)
}

impl Locks {
    /// Carries out an op where it finds what it changes. What it leaves is in its simplest form.
    #[inline(always)]
    pub(crate) fn apply(&mut self, spot: Spot, op: &Op<'_>) -> Option<Turned> {
        self.note_op(spot, op);
        match op.change {
            Change::Granted { link, request, source: Source::Asked { key, claim }, since }
                if spot.record == RecordIndex::NIL
                    && claim == Claim::EXCLUSIVE
                    && key.len() <= INLINE_KEY =>
            {
                self.grant_thin(spot, Thin { link, request, fence: op.number }, key, since);
                None
            }
            Change::Ended { fence, .. }
                if let Shape::Thin(thin) = self.records.get(spot.record).shape() =>
            {
                assert!(thin.fence == fence, "{fence} does not hold {:?}", spot.record);
                self.end_thin(spot, thin, op.number);
                None
            }
            _ => self.apply_rich(spot, op),
        }
    }

    /// The same, if the key has more than a thin record before it or after it.
    #[inline(never)]
    fn apply_rich(&mut self, spot: Spot, op: &Op<'_>) -> Option<Turned> {
        self.cells[spot.cell.0 as usize].last = op.number;
        match op.change {
            Change::Granted { link, request, source: Source::Asked { key, claim }, since } => {
                let by = Claimant { link, request };
                self.grant_rich(spot, by, op.number, (key, claim), since)
            }
            Change::Granted {
                link,
                request,
                source: Source::Reclaimed { key, claim, fence },
                since,
            } => {
                let thin = Thin { link, request, fence };
                self.reclaim(spot, (thin, op.number), (key, claim), since)
            }
            Change::Granted { link, request, source: Source::Queue, since } => {
                let entry = self.entry_at(spot, Claimant { link, request });
                self.step_out(entry);
                self.make_holder(spot.cell, entry, op.number, since);
                self.simplify(spot)
            }
            Change::Ended { fence, .. } => self.end_rich(spot, fence),
            Change::Queued { link, request, key, claim, since, patience } => {
                let by = Claimant { link, request };
                self.queue(spot, by, (key, claim), since, patience)
            }
            Change::Left { link, request, .. } => {
                let entry = self.entry_at(spot, Claimant { link, request });
                self.step_out(entry);
                self.forget(entry);
                self.simplify(spot)
            }
        }
    }

    /// Takes in what the stream says of a link.
    pub(crate) fn apply_link(&mut self, link: LinkIndex, record: LinkRecord) {
        self.note_link(link, record);
        match record {
            LinkRecord::Defined(_) => {}
            LinkRecord::Dead(_) => self.holdings.get_mut(link).dead = true,
        }
    }

    /// Makes room for a new link, whose definition is applied with it.
    pub(crate) fn define(&mut self, definition: Definition) -> LinkIndex {
        let Definition { number, namespace, seed, .. } = definition;
        let at = usize::from(namespace);
        self.seeds.resize(self.seeds.len().max(at + 1), seed);
        self.seeds[at] = seed;
        let link = self.holdings.insert(Holdings {
            thin: Holds::default(),
            entries: List::default(),
            waiters: 0,
            namespace,
            dead: false,
            used: false,
            changed: false,
            digest: Digest::default(),
            rich_bytes: 0,
            number,
            next_free: NIL,
        });
        self.mark_changed(link);
        self.apply_link(link, LinkRecord::Defined(definition));
        link
    }

    /// Drops a dead link that has nothing left: there is nothing to say of it any more.
    pub(crate) fn drop_link(&mut self, link: LinkIndex) {
        let Holdings { dead, digest, entries, .. } = self.holdings.get(link);
        assert!(
            *dead && digest.count == 0 && entries.len == 0,
            "{link:?} is dropped with {digest:?} and {} entries",
            entries.len
        );
        self.holdings.remove(link);
    }

    #[inline(always)]
    fn grant_thin(&mut self, spot: Spot, thin: Thin, key: &[u8], since: Duration) {
        let index = self.records.claim();
        let record = self.records.get_mut(index);
        record.set_key(key);
        record.make_thin(thin, since);
        let cell = &mut self.cells[spot.cell.0 as usize];
        cell.last = thin.fence;
        cell.table.insert(spot.tag, index.0);
        let id = self.hold_id(spot.cell, thin.fence);
        let holdings = self.holdings.get_mut(thin.link);
        holdings.thin.push(&mut self.records, index);
        holdings.digest.add(id);
        holdings.used = true;
        holdings.note_change(thin.link, &mut self.changed);
    }

    #[inline(always)]
    fn end_thin(&mut self, spot: Spot, thin: Thin, number: Fence) {
        let id = self.hold_id(spot.cell, thin.fence);
        let holdings = self.holdings.get_mut(thin.link);
        holdings.digest.remove(id);
        holdings.thin.remove(&mut self.records, spot.record);
        holdings.note_change(thin.link, &mut self.changed);
        let cell = &mut self.cells[spot.cell.0 as usize];
        cell.last = number;
        cell.table.remove(spot.tag, spot.record.0);
        self.records.remove(spot.record);
    }

    fn grant_rich(
        &mut self,
        spot: Spot,
        by: Claimant,
        fence: Fence,
        (key, claim): (&[u8], Claim),
        since: Duration,
    ) -> Option<Turned> {
        let (record, turned) = self.rich_record(spot, by.link, (key, claim), since);
        let entry = self.new_entry(record, by, claim, since);
        self.make_holder(spot.cell, entry, fence, since);
        turned
    }

    /// A hold under a fence that is not the number of its op.
    fn reclaim(
        &mut self,
        spot: Spot,
        (hold, number): (Thin, Fence),
        (key, claim): (&[u8], Claim),
        since: Duration,
    ) -> Option<Turned> {
        let Thin { link, request, fence } = hold;
        let is_free = spot.record == RecordIndex::NIL;
        if is_free && claim == Claim::EXCLUSIVE && key.len() <= INLINE_KEY {
            self.grant_thin(spot, hold, key, since);
            self.cells[spot.cell.0 as usize].last = number;
            return None;
        }
        self.grant_rich(spot, Claimant { link, request }, fence, (key, claim), since)
    }

    fn queue(
        &mut self,
        spot: Spot,
        by: Claimant,
        (key, claim): (&[u8], Claim),
        since: Duration,
        patience: Option<Duration>,
    ) -> Option<Turned> {
        let (record, turned) = self.rich_record(spot, by.link, (key, claim), since);
        let index = self.new_entry(record, by, claim, since);
        let entry = self.entries.get_mut(index);
        entry.patience = patience.map_or(Time::NEVER, instant).0;
        self.holdings.get_mut(by.link).waiters += 1;
        let queue = &mut rich_mut(&self.records, &mut self.riches, record).waiters;
        queue.push_back::<Entry, QueueChain>(&mut self.entries, index);
        turned
    }

    /// The record of a key that is to be rich, and the hold that has turned for it.
    fn rich_record(
        &mut self,
        spot: Spot,
        link: LinkIndex,
        (key, claim): (&[u8], Claim),
        now: Duration,
    ) -> (RecordIndex, Option<Turned>) {
        if spot.record != RecordIndex::NIL {
            return (spot.record, self.expand(spot.record, now));
        }
        let namespace = self.holdings.get(link).namespace;
        let rich = self.riches.insert(Rich::new(key, namespace, claim));
        let index = self.records.claim();
        let record = self.records.get_mut(index);
        record.set_key(key);
        record.make_rich(rich);
        self.cells[spot.cell.0 as usize].table.insert(spot.tag, index.0);
        (index, None)
    }

    /// Turns a thin record rich: the holder becomes an entry.
    fn expand(&mut self, index: RecordIndex, now: Duration) -> Option<Turned> {
        let record = self.records.get(index);
        let Shape::Thin(Thin { link, request, fence }) = record.shape() else { return None };
        let since = record.since(instant(now));
        let key = record.inline_key().expect("a thin record has a short key");
        let holdings = self.holdings.get_mut(link);
        let rich = Rich::new(key, holdings.namespace, Claim::EXCLUSIVE);
        holdings.thin.remove(&mut self.records, index);
        let rich = self.riches.insert(rich);
        self.records.get_mut(index).make_rich(rich);
        let by = Claimant { link, request };
        let entry = self.new_entry(index, by, Claim::EXCLUSIVE, Duration::ZERO);
        self.hold(entry, fence, since);
        Some(Turned { record: index, link, request, fence })
    }

    /// Brings a rich record to its simplest form: gone when nobody uses it, thin when it is one
    /// exclusive holder of a short key and nobody is queued.
    fn simplify(&mut self, spot: Spot) -> Option<Turned> {
        let Shape::Rich(rich_index) = self.records.get(spot.record).shape() else { return None };
        let rich = self.riches.get(rich_index);
        if rich.waiters.len > 0 {
            return None;
        }
        if rich.holders.len == 0 {
            self.cells[spot.cell.0 as usize].table.remove(spot.tag, spot.record.0);
            self.records.remove(spot.record);
            self.riches.remove(rich_index);
            return None;
        }
        rich.is_simple().then(|| self.make_thin(spot.record, rich_index))
    }

    fn make_thin(&mut self, index: RecordIndex, rich: RichIndex) -> Turned {
        let holder = self.riches.get(rich).holders.head;
        let Entry { link, request, fence, since, .. } = *self.entries.get(holder);
        let fence = fence.expect("a holder has a fence");
        self.by_fence.remove(self.secret.pair(index.0, fence.0), holder.0);
        self.forget(holder);
        self.riches.remove(rich);
        let record = self.records.get_mut(index);
        record.make_thin(Thin { link, request, fence }, since.since(Time(0)));
        self.holdings.get_mut(link).thin.push(&mut self.records, index);
        Turned { record: index, link, request, fence }
    }

    /// A new entry in its link's list and in the index by request. It holds nothing, and is in no
    /// queue.
    fn new_entry(
        &mut self,
        record: RecordIndex,
        by: Claimant,
        claim: Claim,
        since: Duration,
    ) -> EntryIndex {
        let Claimant { link, request } = by;
        let index = self.entries.insert(Entry {
            record,
            link,
            request,
            asked_on: ConnId(0),
            claim,
            fence: None,
            since: instant(since),
            patience: Time::NEVER.0,
            queue_prev: EntryIndex::NIL,
            queue_next: EntryIndex::NIL,
            link_prev: EntryIndex::NIL,
            link_next: EntryIndex::NIL,
        });
        let bytes = claim_bytes(self.key(record));
        let holdings = self.holdings.get_mut(link);
        holdings.rich_bytes += bytes;
        holdings.used = true;
        holdings.entries.push_back::<Entry, LinkChain>(&mut self.entries, index);
        self.mark_changed(link);
        self.by_request.insert(self.secret.pair(link.0, request), index.0);
        index
    }

    /// Drops an entry that is in no queue any more.
    fn forget(&mut self, index: EntryIndex) {
        let Entry { record, link, request, .. } = *self.entries.get(index);
        let bytes = claim_bytes(self.key(record));
        self.by_request.remove(self.secret.pair(link.0, request), index.0);
        let holdings = self.holdings.get_mut(link);
        holdings.rich_bytes -= bytes;
        holdings.entries.remove::<Entry, LinkChain>(&mut self.entries, index);
        self.mark_changed(link);
        self.entries.remove(index);
    }

    /// Takes a waiter out of its queue. It is still in its link's list.
    fn step_out(&mut self, index: EntryIndex) {
        let Entry { record, link, fence, .. } = *self.entries.get(index);
        assert!(fence.is_none(), "a holder is in no queue: {index:?} of {record:?}");
        self.holdings.get_mut(link).waiters -= 1;
        self.mark_changed(link);
        let queue = &mut rich_mut(&self.records, &mut self.riches, record).waiters;
        queue.remove::<Entry, QueueChain>(&mut self.entries, index);
    }

    /// Makes an entry that is in no queue a holder.
    fn make_holder(&mut self, cell: CellIndex, index: EntryIndex, fence: Fence, since: Duration) {
        self.hold(index, fence, instant(since));
        let link = self.entries.get(index).link;
        let id = self.hold_id(cell, fence);
        self.holdings.get_mut(link).digest.add(id);
        self.mark_changed(link);
    }

    /// Puts an entry among the holders of its key.
    fn hold(&mut self, index: EntryIndex, fence: Fence, since: Time) {
        let entry = self.entries.get_mut(index);
        (entry.fence, entry.since, entry.patience) = (Some(fence), since, Time::NEVER.0);
        let (record, claim) = (entry.record, entry.claim);
        let rich = rich_mut(&self.records, &mut self.riches, record);
        rich.take(claim);
        rich.holders.push_back::<Entry, QueueChain>(&mut self.entries, index);
        self.by_fence.insert(self.secret.pair(record.0, fence.0), index.0);
    }

    fn end_rich(&mut self, spot: Spot, fence: Fence) -> Option<Turned> {
        let index = if spot.entry == EntryIndex::NIL {
            self.entry_by_fence(spot.record, fence).expect("the hold was found")
        } else {
            spot.entry
        };
        let Entry { record, link, claim, .. } = *self.entries.get(index);
        let rich = rich_mut(&self.records, &mut self.riches, record);
        rich.give(claim);
        rich.holders.remove::<Entry, QueueChain>(&mut self.entries, index);
        self.by_fence.remove(self.secret.pair(record.0, fence.0), index.0);
        let id = self.hold_id(spot.cell, fence);
        self.holdings.get_mut(link).digest.remove(id);
        self.forget(index);
        self.simplify(spot)
    }

    fn entry_at(&self, spot: Spot, by: Claimant) -> EntryIndex {
        if spot.entry != EntryIndex::NIL {
            return spot.entry;
        }
        self.entry_by_request(by.link, by.request).expect("the waiter was found")
    }
}
