//! The cells of other owners of which this worker has a copy: kept by the ops that the owners send,
//! apart from the worker's own locks. Links of copies are shadows: they have no session, no lease
//! and no account here until a cell is promoted.

#[cfg(any(test, feature = "testing"))]
mod shown;

use super::frame::{
    CellNews, CellPart, Item, LinkNews, LinkOrigin, Malformed, NamedChange, NamedSource, Process,
    Reader, WorkerLife,
};
use super::message::Refusal;
use super::standing::Standing;
use crate::config::Config;
use crate::event::{LinkIndex, PeerWorker};
use crate::locks::slab::Index as _;
use crate::locks::{
    CellIndex, Change, Death, Definition, LinkRecord, Locks, Op, Place, Planned, RecordIndex,
    Source, Unfit,
};
use crate::mutant::mutant;
use lockring_proto::{Fence, SessionId, Time};
use lockring_ring::{AttachId, BootId, CellId, Epoch, NamespaceSeed, RingVersion};
use std::collections::BTreeMap;
use std::time::Duration;

/// Who a shadow is, for the time when it gets a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shadow {
    pub(crate) session: SessionId,
    pub(crate) ttl: Duration,
    pub(crate) namespace: Box<str>,
    pub(crate) name: Box<str>,
    pub(crate) label: Box<str>,
    pub(crate) called: LinkOrigin,
    pub(crate) process: Process,
    pub(crate) dead: bool,
    /// No owner will name it again.
    gone: bool,
    /// Among the namespaces of the copies.
    at: u16,
}

/// The copy of a cell, as the last entry of the log that was applied here has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    pub(crate) epoch: Epoch,
    pub(crate) owner: PeerWorker,
    /// This node's own part.
    pub(crate) mine: AttachId,
    /// It has all that the owner of this epoch has answered by.
    pub(crate) synced: bool,
}

/// What a frame says of one of its cells, as far as it has been read.
struct Reading {
    cell: CellIndex,
    /// By which its ops are numbered.
    standing: Standing,
    /// The number of the op before the next.
    last: Fence,
    refused: Option<Refusal>,
    part: CellPart,
    /// What links were called in an offer, and how they are called now.
    renamed: BTreeMap<LinkIndex, LinkIndex>,
}

/// All copies of a worker.
#[derive(Clone)]
pub(crate) struct Copies {
    locks: Locks,
    /// By cell; empty without any.
    cells: Vec<Option<Copy>>,
    /// Workers whose cells have copies here, each with how many.
    owners: BTreeMap<WorkerLife, u32>,
    links: BTreeMap<LinkOrigin, LinkIndex>,
    shadows: BTreeMap<LinkIndex, Shadow>,
    /// Namespaces by index, each with how many shadows it has.
    namespaces: Vec<(Box<str>, u32)>,
    /// Peers that were told of a cell that it cannot be taken yet, under which epoch and
    /// attachment.
    later: BTreeMap<CellIndex, (PeerWorker, Epoch, AttachId)>,
    /// The last connection by which each worker has sent a frame.
    heard: BTreeMap<WorkerLife, u64>,
    #[cfg(any(test, feature = "testing"))]
    pub(crate) mutant: Option<crate::Mutant>,
}

impl Copies {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            locks: Locks::new(config, &Standing::new(config.epoch, config.ring_version)),
            cells: Vec::new(),
            owners: BTreeMap::new(),
            links: BTreeMap::new(),
            shadows: BTreeMap::new(),
            namespaces: Vec::new(),
            later: BTreeMap::new(),
            heard: BTreeMap::new(),
            #[cfg(any(test, feature = "testing"))]
            mutant: None,
        }
    }

    pub(crate) fn of(&self, cell: CellIndex) -> Option<&Copy> {
        self.cells.get(cell.0 as usize)?.as_ref()
    }

    fn of_mut(&mut self, cell: CellIndex) -> Option<&mut Copy> {
        self.cells.get_mut(cell.0 as usize)?.as_mut()
    }

    pub(crate) fn locks(&self) -> &Locks {
        &self.locks
    }

    pub(crate) fn shadow(&self, link: LinkIndex) -> &Shadow {
        &self.shadows[&link]
    }

    /// The longest TTL of a link of any copy; zero without one.
    pub(crate) fn longest_ttl(&self) -> Duration {
        self.shadows.values().map(|shadow| shadow.ttl).max().unwrap_or_default()
    }

    /// This worker has a copy of a cell under this epoch. Whoever was told before that it cannot be
    /// taken yet is to be told that it can.
    pub(crate) fn keep(
        &mut self,
        cell: CellIndex,
        epoch: Epoch,
        owner: PeerWorker,
        mine: AttachId,
    ) -> Option<PeerWorker> {
        let same = |before: &Copy| before.epoch == epoch && before.mine == mine;
        let before = self.of(cell).filter(|before| same(before));
        let synced = before.is_some_and(|before| before.synced);
        if self.cells.is_empty() {
            self.cells.resize_with(self.locks.layout().cells() as usize, || None);
        }
        *self.owners.entry(owner.into()).or_default() += 1;
        let copy = Copy { epoch, owner, mine, synced };
        if let Some(before) = self.cells[cell.0 as usize].replace(copy) {
            self.owns_less(before.owner.into());
        }
        // What was refused may follow from an entry that is still to be applied.
        self.later.get(&cell).filter(|&&(_, at, by)| (at, by) <= (epoch, mine))?;
        let (peer, ..) = self.later.remove(&cell)?;
        Some(peer).filter(|&peer| peer == owner)
    }

    /// This worker has no copy of a cell any more.
    pub(crate) fn drop_cell(&mut self, cell: CellIndex) {
        if let Some(before) = self.cells.get_mut(cell.0 as usize).and_then(Option::take) {
            self.locks.clear(cell, |_, _, _| {});
            self.forget_unused();
            self.owns_less(before.owner.into());
        }
    }

    /// A worker owns one cell less that has a copy here. After the last, it does not tell of ends
    /// of links any more.
    fn owns_less(&mut self, owner: WorkerLife) {
        let cells = self.owners.get_mut(&owner).expect("owners of copies are counted");
        *cells -= 1;
        if *cells == 0 {
            self.owners.remove(&owner);
            self.ended(owner);
        }
    }

    /// What this worker had of a cell as its owner follows, op by op.
    pub(crate) fn make_room(&mut self, cell: CellIndex) {
        self.locks.clear(cell, |_, _, _| {});
    }

    /// An op that makes what this worker had, of a link that it has had itself.
    pub(crate) fn put(
        &mut self,
        by: WorkerLife,
        news: &LinkNews<'_>,
        dead: bool,
        (cell, tag): (CellIndex, u32),
        op: Op<'_>,
    ) {
        self.define(by, news);
        let link = self.links[&LinkOrigin { by, number: news.number }];
        let op = Op { change: op.change.with_link(link), ..op };
        if let Err(unfit) = self.locks.replay(cell, tag, &op) {
            panic!("what was owned of {cell:?} does not fit itself: {unfit:?}, {op:?}");
        }
        if dead {
            self.locks.apply_link(link, LinkRecord::Dead(Death::Expired));
        }
        let shadow = self.shadows.get_mut(&link).expect("a link has a shadow");
        // This worker is the only one that would name it, and it does not any more.
        (shadow.dead, shadow.gone) = (dead, true);
    }

    /// All that was put stands for the ops up to this one.
    pub(crate) fn set_last(&mut self, cell: CellIndex, last: Fence) {
        self.locks.set_last(cell, last);
        self.forget_unused();
    }

    /// Nobody counts what shadows have; those go that have nothing left and will not be named.
    fn forget_unused(&mut self) {
        while let Some(link) = self.locks.next_changed() {
            self.forget(link);
        }
    }

    /// Copies whose owner is to be told that they can be taken, as the node may answer again.
    pub(crate) fn take_later(&mut self) -> Vec<(PeerWorker, CellIndex)> {
        let cells = &self.cells;
        let is_known = |cell: &CellIndex, &mut (_, at, by): &mut (PeerWorker, Epoch, AttachId)| {
            let copy = cells.get(cell.0 as usize).and_then(Option::as_ref);
            copy.is_some_and(|copy| (at, by) <= (copy.epoch, copy.mine))
        };
        let known = self.later.extract_if(.., is_known);
        known.map(|(cell, (peer, ..))| (peer, cell)).collect()
    }

    /// Whether a frame that comes by this connection is to be taken in. What is still under way on
    /// an earlier one is not, once the next is heard: the owner has sent again there all that it
    /// goes on from, and has forgotten what was acknowledged before.
    pub(crate) fn hears(&mut self, from: WorkerLife, connection: u64) -> bool {
        let last = self.heard.entry(from).or_default();
        let is_late = connection < *last;
        *last = connection.max(*last);
        !is_late || mutant!(self, TakesLateFrames)
    }

    /// Takes in a frame: the positions of cells that were not taken.
    ///
    /// # Errors
    /// When the frame is none: what it said until there is taken.
    pub(crate) fn receive(
        &mut self,
        (now, leased): (Time, bool),
        from: PeerWorker,
        mut frame: Reader<'_>,
    ) -> Result<Vec<(u16, Refusal)>, Malformed> {
        let mut items = Vec::new();
        while !frame.is_empty() {
            items.push(frame.item()?);
        }
        let mut readings: Vec<Reading> = Vec::new();
        self.touch(from.into(), &items);
        for item in items {
            self.take(now, leased, from, item, &mut readings)?;
        }
        self.forget_unused();
        if !self.owners.contains_key(&from.into()) {
            // It has told of links, but all of its cells were refused.
            self.ended(from.into());
        }
        let refused = |(at, reading): (u16, &Reading)| Some((at, reading.refused?));
        Ok((0..).zip(&readings).filter_map(refused).collect())
    }

    /// Takes in one record of a frame.
    #[inline]
    fn take(
        &mut self,
        now: Time,
        leased: bool,
        from: PeerWorker,
        item: Item<'_>,
        readings: &mut Vec<Reading>,
    ) -> Result<(), Malformed> {
        match item {
            Item::Anew => self.ended(from.into()),
            Item::Link(news) => self.define(from.into(), &news),
            Item::Dead { number, death } => {
                // A frame that comes again may tell of one that is gone.
                if let Some(&link) = self.links.get(&LinkOrigin { by: from.into(), number }) {
                    self.locks.apply_link(link, LinkRecord::Dead(death));
                    self.shadows.get_mut(&link).expect("a link has a shadow").dead = true;
                }
            }
            Item::Gone { number } => {
                if let Some(&link) = self.links.get(&LinkOrigin { by: from.into(), number }) {
                    self.shadows.get_mut(&link).expect("a link has a shadow").gone = true;
                    self.forget(link);
                }
            }
            Item::Cell(news) => {
                if readings.len() > usize::from(u16::MAX) {
                    return Err(Malformed);
                }
                let reading = self.begin(leased, from, &news)?;
                readings.push(reading);
            }
            Item::Was { name, number } => {
                let reading = readings.last_mut().ok_or(Malformed)?;
                self.rename(reading, name, LinkOrigin { by: from.into(), number });
            }
            Item::Op { position, tag, fence, change } => {
                let reading = readings.get_mut(position).ok_or(Malformed)?;
                self.op((now, from.into()), reading, tag, fence, &change)?;
            }
            Item::End { position } => {
                let reading = readings.get_mut(position).ok_or(Malformed)?;
                self.end(reading);
            }
        }
        Ok(())
    }

    /// Reads what the ops of a frame will need, all of it before the first is carried out.
    fn touch(&self, by: WorkerLife, items: &[Item<'_>]) {
        let mut cells: Vec<CellIndex> = Vec::new();
        let mut plan = Vec::new();
        let mut link = None;
        for item in items {
            match *item {
                Item::Cell(news) => cells.extend(self.locks.layout().find_named(news.cell)),
                Item::Op { position, tag, change, .. } => {
                    let number = match change {
                        NamedChange::Granted { link, .. }
                        | NamedChange::Queued { link, .. }
                        | NamedChange::Left { link, .. } => Some(link),
                        NamedChange::Ended { .. } => None,
                    };
                    let name = number.map(|number| LinkOrigin { by, number });
                    link = link.or_else(|| self.links.get(&name?).copied());
                    let Some(&cell) = cells.get(position) else { return };
                    let guess = RecordIndex::NIL;
                    plan.push(Planned::at(Some(Place { cell, tag, guess })));
                }
                _ => {}
            }
        }
        let synced = cells.iter().filter(|&&cell| self.of(cell).is_some_and(|copy| copy.synced));
        std::hint::black_box(synced.count());
        let link = link.or_else(|| self.links.values().next().copied());
        if let Some(link) = link.filter(|_| plan.len() > 1) {
            self.locks.touch(link, &mut plan);
        }
    }

    fn namespace(&mut self, name: &str) -> u16 {
        let found = self.namespaces.iter().position(|(known, _)| **known == *name);
        let free = || self.namespaces.iter().position(|&(_, shadows)| shadows == 0);
        let at = found.or_else(free).unwrap_or_else(|| {
            self.namespaces.push((name.into(), 0));
            self.namespaces.len() - 1
        });
        self.namespaces[at].0 = name.into();
        self.namespaces[at].1 += 1;
        u16::try_from(at).expect("nodes have told of more namespaces than there can be")
    }

    fn define(&mut self, by: WorkerLife, news: &LinkNews<'_>) {
        let called = LinkOrigin { by, number: news.number };
        if let Some(link) = self.links.get(&called) {
            // It may have owned no cell that has a copy here for a while.
            let shadow = self.shadows.get_mut(link).expect("a link has a shadow");
            (shadow.gone, shadow.process) = (false, news.process);
            return;
        }
        let namespace = self.namespace(news.namespace);
        let link = self.locks.define(Definition {
            number: news.number,
            session: news.session,
            ttl: news.ttl,
            namespace,
            seed: NamespaceSeed::of(news.namespace),
        });
        self.links.insert(called, link);
        let shadow = Shadow {
            session: news.session,
            ttl: news.ttl,
            namespace: news.namespace.into(),
            name: news.name.into(),
            label: news.label.into(),
            called,
            process: news.process,
            dead: false,
            gone: false,
            at: namespace,
        };
        self.shadows.insert(link, shadow);
    }

    /// A shadow goes that will not be named again, once nothing is left of it.
    fn forget(&mut self, link: LinkIndex) {
        let used = self.locks.used_by(link);
        let is_gone = self.shadows.get(&link).is_some_and(|shadow| shadow.gone);
        if !is_gone || used.holds > 0 || used.waiters > 0 {
            return;
        }
        let shadow = self.shadows.remove(&link).expect("it was looked up");
        self.namespaces[usize::from(shadow.at)].1 -= 1;
        self.links.remove(&shadow.called);
        self.locks.apply_link(link, LinkRecord::Dead(Death::Left));
        self.locks.drop_link(link);
    }

    /// A process is over: nothing new comes from it.
    pub(crate) fn is_over(&mut self, boot: BootId) {
        // While a cell is still its, what is late of it is not to be taken for what is next.
        self.heard.retain(|life, _| life.boot != boot || self.owners.contains_key(life));
    }

    /// A worker names no link any more: those that are not used go, others once they are not.
    fn ended(&mut self, by: WorkerLife) {
        let all = LinkOrigin { by, number: 0 }..=LinkOrigin { by, number: u64::MAX };
        let links = self.links.range(all);
        for link in links.map(|(_, &link)| link).collect::<Vec<_>>() {
            self.shadows.get_mut(&link).expect("a link has a shadow").gone = true;
            self.forget(link);
        }
    }

    /// Whether what a frame says of a cell can be taken.
    fn begin(
        &mut self,
        leased: bool,
        from: PeerWorker,
        news: &CellNews,
    ) -> Result<Reading, Malformed> {
        let cell = self.locks.layout().find_named(news.cell).ok_or(Malformed)?;
        let refused = self.refuses(leased, from, cell, news);
        let standing = Standing::new(news.epoch, RingVersion(1));
        let (last, part) = (news.last, news.part);
        if part == CellPart::Whole && refused.is_none() && !self.is_known(cell, last, part) {
            self.locks.clear(cell, |_, _, _| {});
        }
        let renamed = BTreeMap::new();
        Ok(Reading { cell, standing, last, refused, part, renamed })
    }

    /// Whether a copy has what is up to an op: whatever comes twice is known. A counter that has
    /// come to its end does not tell ops apart: whole cells are sent, and may have been missed.
    fn is_known(&self, cell: CellIndex, upto: Fence, part: CellPart) -> bool {
        let last = self.locks.last(cell);
        let is_told_apart = part == CellPart::Ops || last.counter() < Fence::COUNTER_LAST;
        self.of(cell).is_some_and(|copy| copy.synced)
            && (last > upto || last == upto && is_told_apart)
    }

    fn refuses(
        &mut self,
        leased: bool,
        from: PeerWorker,
        cell: CellIndex,
        news: &CellNews,
    ) -> Option<Refusal> {
        // The entry that it is sent by may still come.
        let is_known = |copy: &&Copy| (news.epoch, news.attach) <= (copy.epoch, copy.mine);
        let Some(copy) = self.of(cell).filter(|copy| is_known(copy) && leased) else {
            // A former owner may still ask, after the one that is to be told.
            let asks = (from, news.epoch, news.attach);
            let first = self.later.entry(cell).or_insert(asks);
            if (first.1, first.2) <= (asks.1, asks.2) {
                *first = asks;
            }
            return Some(Refusal::Later);
        };
        let is_by_owner = (from, news.epoch) == (copy.owner, copy.epoch);
        if news.attach != copy.mine || !is_by_owner && !mutant!(self, AcksOldEpoch) {
            return Some(Refusal::Stale);
        }
        let last = self.locks.last(cell);
        if self.is_known(cell, news.last, news.part) {
            return None;
        }
        let counters_only = mutant!(self, CountersCompared);
        let equal = last == news.last || counters_only && last.counter() == news.last.counter();
        // A counter that has come to its end does not tell ops apart.
        let taken = match news.part {
            CellPart::Ops => false,
            CellPart::Offer => equal && last.counter() < Fence::COUNTER_LAST,
            CellPart::Whole => true,
        };
        // From here on nothing is taken as known: something is missing.
        self.of_mut(cell).expect("it was looked up").synced = false;
        (!taken).then_some(Refusal::NeedsWhole)
    }

    fn rename(&mut self, reading: &mut Reading, was: LinkOrigin, is: LinkOrigin) {
        let Some(&is) = self.links.get(&is) else { return self.distrust(reading) };
        if let Some(&was) = self.links.get(&was) {
            reading.renamed.insert(was, is);
        }
    }

    #[inline]
    fn op(
        &mut self,
        (now, by): (Time, WorkerLife),
        reading: &mut Reading,
        tag: u32,
        fence: Option<Fence>,
        change: &NamedChange<'_>,
    ) -> Result<(), Malformed> {
        let is_whole = reading.part == CellPart::Whole;
        let number = if is_whole {
            fence.unwrap_or_default()
        } else {
            reading.last = reading.standing.next(reading.last).map_err(|_| Malformed)?;
            reading.last
        };
        if reading.refused.is_some() {
            return Ok(());
        }
        let is_known = if is_whole {
            self.is_known(reading.cell, reading.last, CellPart::Whole)
        } else {
            number <= self.locks.last(reading.cell) && !mutant!(self, OpTwice)
        };
        if is_known {
            return Ok(());
        }
        // A link is not known if its owner had no copy here for a while: a whole cell tells of it.
        let Some(change) = self.changed(now, by, change) else {
            self.distrust(reading);
            return Ok(());
        };
        if let Err(Unfit(why)) = self.locks.replay(reading.cell, tag, &Op { number, change }) {
            assert!(!why.is_empty(), "an error has words");
            self.distrust(reading);
        }
        Ok(())
    }

    /// What was sent of a cell does not fit what is here: the whole cell is needed.
    fn distrust(&mut self, reading: &mut Reading) {
        reading.refused = Some(Refusal::NeedsWhole);
        if let Some(copy) = self.of_mut(reading.cell) {
            copy.synced = false;
        }
    }

    /// A change as it is among the copies, if its link is known.
    fn changed<'a>(
        &self,
        now: Time,
        by: WorkerLife,
        change: &NamedChange<'a>,
    ) -> Option<Change<'a>> {
        let link = |number| self.links.get(&LinkOrigin { by, number }).copied();
        let now = now.since(Time(0));
        let other = if mutant!(self, HandoffForgetsRequests) { 1 << 46 } else { 0 };
        Some(match *change {
            NamedChange::Granted { link: by, request, source, age } => {
                let source = match source {
                    NamedSource::Asked { key, claim } => Source::Asked { key, claim },
                    NamedSource::Queue => Source::Queue,
                    NamedSource::Reclaimed { key, claim, fence } => {
                        Source::Reclaimed { key, claim, fence }
                    }
                };
                let since = now.saturating_sub(age);
                Change::Granted { link: link(by)?, request: request | other, source, since }
            }
            NamedChange::Ended { fence, cause } => Change::Ended { fence, cause },
            NamedChange::Queued { link: by, request, key, claim, age, patience } => {
                let since = now.saturating_sub(age);
                let (link, request) = (link(by)?, request | other);
                Change::Queued { link, request, key, claim, since, patience }
            }
            NamedChange::Left { link: by, request, cause } => {
                Change::Left { link: link(by)?, request: request | other, cause }
            }
        })
    }

    /// An offer or a whole cell is over: if it was taken, the copy is equal from now on.
    fn end(&mut self, reading: &mut Reading) {
        let part = std::mem::replace(&mut reading.part, CellPart::Ops);
        let copy = self.cells.get_mut(reading.cell.0 as usize).and_then(Option::as_mut);
        let copy = copy.filter(|copy| !copy.synced);
        let Some(copy) = copy.filter(|_| reading.refused.is_none() && part != CellPart::Ops) else {
            return;
        };
        if part == CellPart::Whole {
            self.locks.set_last(reading.cell, reading.last);
        } else if !self.locks.relink(reading.cell, &reading.renamed) {
            reading.refused = Some(Refusal::NeedsWhole);
            return;
        }
        copy.synced = true;
    }

    pub(crate) fn id(&self, cell: CellIndex) -> CellId {
        self.locks.cell_id(cell)
    }
}
