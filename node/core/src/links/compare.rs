//! The holds of a link, gathered and sorted, for a compare that goes on over several turns and
//! frames.

use super::dying::is_its_own;
use crate::cells::Process;
use crate::locks::RecordIndex;
use lockring_proto::HoldId;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Holds sorted in one go: no more than a turn gathers, so that it takes no longer than a slice.
const RUN: usize = 256;

/// One frame of a compare.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    /// The ring version that the list is made by.
    pub(crate) version: u64,
    /// Holds of later requests are no orphans.
    pub(crate) upto: u64,
    /// Whose list it is.
    pub(crate) process: Process,
    pub(crate) after: Option<HoldId>,
    pub(crate) through: Option<HoldId>,
    pub(crate) holds: &'a [HoldId],
}

/// A hold of a link, as it was gathered. By the time it is looked at it may have ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Held {
    pub(crate) id: HoldId,
    pub(crate) record: RecordIndex,
    pub(crate) request: u64,
}

/// What is still to be gathered, as it was at the beginning: thin holds below a position, and a
/// number of rich ones.
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

/// What is to be gathered next.
pub(crate) enum Gather {
    /// The thin hold at this position.
    Thin(u32),
    /// The first rich one.
    Entry,
}

/// What a step of a walk has come to.
pub(crate) enum Step {
    Nothing,
    /// A hold that the client does not know, and should.
    Orphan(Held),
    /// The end of the frame.
    End,
}

impl Comparison {
    /// Of a link with these numbers of thin and rich holds, for a frame by its request.
    pub(crate) fn new(part: &Part<'_>, id: u64, thin: u32, entries: u32) -> Self {
        Self {
            upto: part.upto,
            after: part.after,
            gathering: Some(Gathering { thin, entries }),
            fresh: Vec::new(),
            runs: Vec::new(),
            firsts: BinaryHeap::new(),
            walk: Some(Walk { id, ..Walk::default() }),
        }
    }

    /// Whether a frame goes on where the one before ended, or is that one.
    pub(crate) fn goes_on(&self, part: &Part<'_>, id: u64) -> bool {
        (self.upto, self.after) == (part.upto, part.after)
            && match &self.walk {
                Some(walk) => walk.id == id,
                None => part.after.is_some(),
            }
    }

    pub(crate) fn is_gathering(&self) -> bool {
        self.gathering.is_some()
    }

    /// What is to be gathered next of a link that now has this many thin holds, and a rich one or
    /// none; `None` when all is.
    pub(crate) fn next_to_gather(&mut self, thin: u32, has_entry: bool) -> Option<Gather> {
        let gathering = self.gathering.as_mut()?;
        gathering.thin = gathering.thin.min(thin);
        if gathering.thin > 0 {
            gathering.thin -= 1;
            return Some(Gather::Thin(gathering.thin));
        }
        if gathering.entries > 0 && has_entry {
            gathering.entries -= 1;
            return Some(Gather::Entry);
        }
        self.gathering = None;
        self.sort();
        None
    }

    /// Walks both lists for a step.
    pub(crate) fn step(&mut self, part: &Part<'_>, id: u64) -> Step {
        let within = |id: &HoldId| part.through.is_none_or(|through| *id <= through);
        let ours = self.first().filter(within);
        let walk = self.walk.get_or_insert_default();
        walk.id = id;
        let theirs = part.holds.get(walk.done).copied();
        match (ours, theirs) {
            (None, None) => return Step::End,
            (Some(ours), _) if theirs.is_none_or(|theirs| ours < theirs) => {
                let held = self.pop();
                // Those before the first frame do not concern it.
                let asked = self.after.is_none_or(|after| ours > after);
                // Under a later id than that of the compare, the process has asked for nothing yet.
                let is_of_another = held.request > id && !is_its_own(part.process, held.request);
                if asked && (held.request <= part.upto || is_of_another) {
                    return Step::Orphan(held);
                }
            }
            (Some(ours), Some(theirs)) if ours == theirs => {
                walk.held = true;
                self.pop();
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
        Step::Nothing
    }

    /// The end of a frame: what the client holds and the worker does not.
    pub(crate) fn finish(&mut self, part: &Part<'_>) -> Vec<HoldId> {
        self.after = part.through;
        self.walk.take().unwrap_or_default().lost
    }

    pub(crate) fn add(&mut self, held: Held) {
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
