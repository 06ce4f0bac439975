//! What a client holds against what its link holds here, hold by hold, in slices.
//!
//! A list comes in frames, in ascending order. At the first of them the link's own holds are
//! gathered, sorted piece by piece; both lists are then walked as one merges them, frame by frame.
//! What exceeds a turn waits for the next: the frame is not taken, and given again. Meanwhile holds
//! begin and end:
//! - one that is there all the time is gathered, for thin holds are walked from the last to the
//!   first, and one that is taken out has the last put into its place; a hold that turns from thin
//!   to rich or back is gathered as it does. One that is gathered twice does no harm;
//! - one that ended is looked for before it is ended as an orphan;
//! - one that began since was made by a request after those that the client has settled.

use crate::batch::Asker;
use crate::event::Action;
use crate::machine::Machine;
use crate::record::{Entry, LinkChain};
use crate::slab::NIL;
use crate::turn::{PER_GATHERED, PER_ORPHAN, Progress};
use lockring_proto::Time;
use lockring_proto::{Fence, HoldId, RefusalKind, Reply, limits};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Holds sorted in one go: no more than a turn gathers, so that it takes no longer than a slice.
const RUN: usize = 256;

/// Steps of a walk that cost as much as one operation.
const STEPS_PER_PRICE: u32 = 4;

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
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    id: HoldId,
    record: u32,
    request: u64,
}

/// What is still to be gathered, as it was at the beginning: thin holds below a position, and so
/// many rich ones.
#[derive(Clone, Copy)]
struct Gathering {
    thin: u32,
    entries: u32,
}

/// Where the walk of one frame is.
#[derive(Clone, Default)]
struct Walk {
    /// The frame, by its request.
    id: u64,
    /// How many of its holds are done with.
    done: usize,
    /// The next of them is held.
    held: bool,
    lost: Vec<HoldId>,
}

/// The holds of a link, gathered for a compare of which more frames may come.
#[derive(Clone)]
pub(crate) struct Comparison {
    upto: u64,
    /// The next frame begins after this hold.
    after: Option<HoldId>,
    gathering: Option<Gathering>,
    /// Gathered and not sorted yet.
    fresh: Vec<Held>,
    /// Each sorted, the first last.
    runs: Vec<Vec<Held>>,
    /// The first of each run.
    firsts: BinaryHeap<Reverse<(HoldId, u32)>>,
    walk: Option<Walk>,
}

impl Comparison {
    fn new(part: &Part<'_>, gathering: Gathering) -> Self {
        Self {
            upto: part.upto,
            after: part.after,
            gathering: Some(gathering),
            fresh: Vec::new(),
            runs: Vec::new(),
            firsts: BinaryHeap::new(),
            walk: None,
        }
    }

    fn add(&mut self, held: Held) {
        self.fresh.push(held);
        if self.fresh.len() == RUN {
            self.sort();
        }
    }

    fn sort(&mut self) {
        let mut run = std::mem::take(&mut self.fresh);
        run.sort_unstable_by(|one, other| other.cmp(one));
        if let Some(first) = run.last() {
            self.firsts.push(Reverse((first.id, self.runs.len() as u32)));
            self.runs.push(run);
        }
    }

    fn first(&self) -> Option<HoldId> {
        self.firsts.peek().map(|Reverse((id, _))| *id)
    }

    fn pop(&mut self) -> Held {
        let mut top = self.firsts.peek_mut().expect("a first was seen");
        let Reverse((_, at)) = *top;
        let run = &mut self.runs[at as usize];
        let held = run.pop().expect("a run that is named has a first");
        match run.last() {
            Some(next) => *top = Reverse((next.id, at)),
            None => {
                *run = Vec::new();
                std::collections::binary_heap::PeekMut::pop(top);
            }
        }
        held
    }
}

#[cfg(any(test, feature = "testing"))]
impl Comparison {
    /// How far it looks, where it goes on, and what is left of it.
    pub(crate) fn left(&self) -> (u64, Option<HoldId>, Vec<HoldId>) {
        let left = self.runs.iter().flatten().chain(&self.fresh).map(|held| held.id);
        let mut left: Vec<HoldId> = left.collect();
        left.sort_unstable();
        (self.upto, self.after, left)
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
    ) -> Progress {
        if part.holds.len() > limits::HOLDS_PER_FRAME || !part.holds.is_sorted() {
            let message = "the holds of a compare come in ascending order, at most 4096 a frame";
            self.refuse(asker, RefusalKind::Malformed, message, out);
            return Progress::Done;
        }
        // Both turn the list of the link's entries, each to see all of them once.
        while self.links.get(asker.link).leaving.is_some() {
            if self.turn_is_over() {
                return Progress::More;
            }
            self.charge(PER_GATHERED);
            self.free_one_leaving(now, asker.link, out);
        }
        let mut comparison = self.comparison_for(asker, part);
        let progress = match self.gather(asker.link, &mut comparison) {
            Progress::Done => self.walk(now, asker, part, &mut comparison, out),
            other => other,
        };
        if progress == Progress::More || part.through.is_some() {
            self.links.get_mut(asker.link).comparison = Some(comparison);
        }
        progress
    }

    /// What the link holds, up to where a frame begins: as it was gathered for the frame before, if
    /// this one goes on where that one ended, or is that one; else it is to be gathered.
    fn comparison_for(&mut self, asker: Asker, part: &Part<'_>) -> Box<Comparison> {
        let link = self.links.get_mut(asker.link);
        if let Some(before) = link.comparison.take() {
            let same = (before.upto, before.after) == (part.upto, part.after);
            let goes_on = match &before.walk {
                Some(walk) => walk.id == asker.id,
                None => part.after.is_some(),
            };
            if same && goes_on {
                return before;
            }
        }
        let gathering = Gathering { thin: link.thin.len(), entries: link.entries.len };
        let mut comparison = Box::new(Comparison::new(part, gathering));
        comparison.walk = Some(Walk { id: asker.id, ..Walk::default() });
        comparison
    }

    /// Gathers for as long as the turn lasts.
    fn gather(&mut self, link: u32, comparison: &mut Comparison) -> Progress {
        while let Some(gathering) = &mut comparison.gathering {
            if self.turn_is_over() {
                return Progress::More;
            }
            let known = self.links.get_mut(link);
            gathering.thin = gathering.thin.min(known.thin.len());
            let head = known.entries.head;
            if gathering.thin > 0 {
                gathering.thin -= 1;
                let index = known.thin.get(gathering.thin);
                self.charge(PER_GATHERED);
                comparison.add(self.held_thin(index));
            } else if gathering.entries > 0 && head != NIL {
                // Every entry comes to the head once.
                gathering.entries -= 1;
                known.entries.remove::<Entry, LinkChain>(&mut self.entries, head);
                known.entries.push_back::<Entry, LinkChain>(&mut self.entries, head);
                self.charge(PER_GATHERED);
                if let Some(held) = self.held_rich(head) {
                    comparison.add(held);
                }
            } else {
                comparison.gathering = None;
                comparison.sort();
            }
        }
        Progress::Done
    }

    fn held_thin(&self, index: u32) -> Held {
        let record = self.records.get(index);
        let id = self.hold_id(self.place_of(index), record.fence);
        Held { id, record: index, request: record.request() }
    }

    fn held_rich(&self, entry: u32) -> Option<Held> {
        let entry = self.entries.get(entry);
        let id = self.hold_id(self.place_of(entry.record), entry.fence?);
        Some(Held { id, record: entry.record, request: entry.request })
    }

    /// A hold of a link whose holds are being gathered turns from thin to rich or back, and may be
    /// where the gathering has been already.
    pub(crate) fn gather_turning(&mut self, link: u32, record: u32, fence: Fence, request: u64) {
        if self.links.get(link).comparison.is_none() {
            return;
        }
        let id = self.hold_id(self.place_of(record), fence);
        let comparison = &mut self.links.get_mut(link).comparison;
        if let Some(comparison) = comparison.as_mut().filter(|it| it.gathering.is_some()) {
            comparison.add(Held { id, record, request });
        }
    }

    /// Walks both lists for as long as the turn lasts, and answers at the end of the frame.
    fn walk(
        &mut self,
        now: Time,
        asker: Asker,
        part: &Part<'_>,
        comparison: &mut Comparison,
        out: &mut Vec<Action>,
    ) -> Progress {
        let spared = self.is_spared(now, asker.link);
        let mut walk = comparison.walk.take().unwrap_or_default();
        walk.id = asker.id;
        let within = |id: &HoldId| part.through.is_none_or(|through| *id <= through);
        let mut steps = 0;
        loop {
            steps += 1;
            if steps % STEPS_PER_PRICE == 0 {
                self.charge(1);
                if self.turn_is_over() {
                    comparison.walk = Some(walk);
                    return Progress::More;
                }
            }
            let ours = comparison.first().filter(within);
            let theirs = part.holds.get(walk.done).copied();
            match (ours, theirs) {
                (None, None) => break,
                (Some(ours), _) if theirs.is_none_or(|theirs| ours < theirs) => {
                    let held = comparison.pop();
                    // Those before the first frame are none of its business.
                    let asked = comparison.after.is_none_or(|after| ours > after);
                    if asked && held.request <= part.upto && !spared {
                        self.end_orphan(now, asker.link, &held, out);
                    }
                }
                (Some(ours), Some(theirs)) if ours == theirs => {
                    comparison.pop();
                    walk.held = true;
                }
                (_, Some(theirs)) => {
                    if !walk.held {
                        walk.lost.push(theirs);
                    }
                    walk.done += 1;
                    // One that is named twice is as often held as the first time.
                    walk.held &= part.holds.get(walk.done) == Some(&theirs);
                }
                (Some(_), None) => unreachable!("it is before the end of theirs"),
            }
        }
        comparison.after = part.through;
        self.stats.lost += walk.lost.len() as u64;
        self.charge(walk.lost.len() as u32 / STEPS_PER_PRICE);
        let reply = Reply::Compared { id: asker.id, version: self.version.0, lost: walk.lost };
        out.push(Action::Reply { conn: asker.conn, reply });
        Progress::Done
    }

    fn end_orphan(&mut self, now: Time, link: u32, held: &Held, out: &mut Vec<Action>) {
        if self.still_holds(link, held) {
            self.charge(PER_ORPHAN);
            self.stats.orphans += 1;
            self.stats.releases += 1;
            self.end_hold(now, held.record, held.id.fence, out);
        }
    }

    /// Whether what was gathered is still so: the hold may have ended since, and its record be free
    /// or another key's by now.
    fn still_holds(&self, link: u32, held: &Held) -> bool {
        let Held { id, record, .. } = *held;
        self.records.find(record).is_some_and(|record| !record.is_free())
            && self.held_by(record, id.fence) == Some(link)
            && self.hold_id(self.place_of(record), id.fence) == id
    }
}
