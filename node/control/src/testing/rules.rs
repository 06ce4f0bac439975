//! What holds of every entry whatever was proposed, by the states before and after it alone.

use crate::cluster::{
    Applied, Before, Cell, CellChange, Entry, Floors, Index, Life, Loss, State, Step,
};
use lockring_proto::limits::{NODE_LEASE, honoured};
use lockring_ring::{AttachId, CellId, Member, RingVersion};
use std::collections::{BTreeMap, BTreeSet};

/// What was seen to happen, counted by name.
pub type Seen = BTreeMap<&'static str, u64>;

/// Judges one log, entry by entry.
#[derive(Clone, Debug)]
pub struct Rules {
    state: State,
    /// Every attachment so far.
    attached: BTreeSet<AttachId>,
    /// More than one node has been there, or the log is not the cluster's first.
    was_shared: bool,
    /// What happened.
    pub seen: Seen,
}

/// A rule that was broken.
type Broken = String;

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(what()) }
}

impl Rules {
    /// For a log that begins with this state.
    pub fn new(state: State) -> Self {
        Self { state, attached: BTreeSet::new(), was_shared: false, seen: Seen::new() }
    }

    /// The state after every entry so far.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Counts something.
    pub fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    /// Applies the next entry, and says which rule that broke.
    ///
    /// # Errors
    /// When it broke one.
    pub fn apply(&mut self, index: Index, entry: &Entry) -> Result<Applied, Broken> {
        let before = self.state.clone();
        let applied = self.state.apply(index, entry);
        self.count(name(entry));
        if applied.void {
            self.count("void entry");
            ensure(applied.before.is_empty(), || format!("{entry:?} is void and did something"))?;
        }
        (0..applied.refused).for_each(|_| self.count("refused change"));
        let follows_others = |floors: &Floors| floors.before == Before::Unknown;
        self.was_shared |= self.state.nodes().len() > 1
            || matches!(entry, Entry::Recover(_, floors) if follows_others(floors));
        for (id, cell) in self.state.clone().cells() {
            match before.cell(id).filter(|before| *before != cell) {
                Some(old) => self.cell(entry, (id, old, cell))?,
                None => self.unchanged(&before, (id, cell))?,
            }
            self.lives(id, cell)?;
        }
        self.version(&before, entry)?;
        self.longest(&before, entry)?;
        Ok(applied)
    }

    fn unchanged(&mut self, before: &State, (id, cell): (CellId, &Cell)) -> Result<(), Broken> {
        if before.cell(id).is_none() {
            self.attached.insert(cell.owner.attach);
            let applied = self.state.applied();
            ensure(cell.revision == applied, || format!("{id}: no revision in {cell:?}"))?;
        }
        Ok(())
    }

    /// One cell that an entry changed.
    fn cell(
        &mut self,
        entry: &Entry,
        (id, old, new): (CellId, &Cell, &Cell),
    ) -> Result<(), Broken> {
        let what = |rule: &str| format!("{id}: {rule}: {entry:?} made {new:?} of {old:?}");
        ensure(new.revision == self.state.applied(), || what("the revision stands still"))?;
        if let Entry::Cells(changes) = entry {
            let fits = |change: &CellChange| change.cell == id && change.revision == old.revision;
            ensure(changes.iter().any(fits), || what("decided on another revision"))?;
        }
        let (was, is) = (old.epoch.0, new.epoch.0);
        let owner_changed = old.owner != new.owner;
        ensure(is == was || is == was + 1, || what("epochs grow by one"))?;
        ensure(!owner_changed || is > was, || what("two owners of one epoch"))?;
        if is > was {
            ensure(new.learner.is_none(), || what("a learner outlives its epoch"))?;
            ensure(new.since == self.state.version(), || what("since is not the version"))?;
        }
        let taken_over = old.loss.is_some() && new.loss.is_none() && is > was;
        if owner_changed && !taken_over {
            ensure(old.backups.contains(&new.owner), || what("promoted without a synced copy"))?;
        }
        if taken_over {
            let shared = if self.was_shared { NODE_LEASE } else { std::time::Duration::ZERO };
            let least = honoured(self.state.longest().ttl + shared);
            let is_long = new.grace.is_some_and(|grace| grace >= least);
            let is_empty = old.loss == Some(Loss::Empty) && old.grace.is_none();
            ensure(is_long || is_empty, || what("a short grace"))?;
        }
        for member in new.members().filter(|member| !old.members().any(|m| m == *member)) {
            ensure(self.attached.insert(member.attach), || what("an attachment twice"))?;
        }
        let enters = |member: &&Member| !old.backups.contains(member) && old.owner != **member;
        for backup in new.backups.iter().filter(enters) {
            let synced = is_step(entry, id, |step| *step == Step::Synced);
            let learnt = old.learner.as_ref() == Some(backup);
            ensure(synced && learnt, || what("a copy that nobody said to be synced"))?;
        }
        self.count_cell(entry, old, new);
        Ok(())
    }

    fn count_cell(&mut self, entry: &Entry, old: &Cell, new: &Cell) {
        let by_log = matches!(entry, Entry::Down(..) | Entry::Boot { .. } | Entry::Stopped { .. });
        if by_log && new.epoch > old.epoch {
            self.count("promotion");
        }
        if old.loss.is_none() && new.loss.is_some() {
            self.count("lost cell");
        }
        if old.loss.is_some() && new.loss.is_none() {
            self.count(if new.epoch > old.epoch { "taken over" } else { "regained" });
        }
        if old.learner.is_some() && new.learner.is_none() && new.epoch > old.epoch {
            self.count("learner of an old epoch cleared");
        }
        let steps = [
            (old.learner.is_none() && new.learner.is_some(), "attached"),
            (old.backups.len() < new.backups.len(), "synced"),
            (!by_log && old.backups.len() > new.backups.len(), "dropped"),
            (!by_log && old.loss.is_none() && old.owner != new.owner, "switched"),
            (old.grace.is_some() && new.grace.is_none(), "recovered"),
            (old.owner == new.owner && old.epoch < new.epoch, "bumped"),
        ];
        steps.iter().filter(|(is, _)| *is).for_each(|(_, name)| self.count(name));
    }

    /// Everybody in a cell is a present process; only the owner of a lost one may be another.
    fn lives(&self, id: CellId, cell: &Cell) -> Result<(), Broken> {
        let is_up =
            |member: &&Member| !self.state.is_up(Life { node: member.node, boot: member.boot });
        let gone = cell.members().filter(is_up);
        let gone: Vec<&Member> = gone.collect();
        let is_owner = gone.iter().all(|member| **member == cell.owner);
        let fits = gone.is_empty() || (cell.loss.is_some() && is_owner);
        ensure(fits, || format!("{id}: {gone:?} are no more, in {cell:?}"))?;
        let lost = cell.loss.is_none() || cell.members().count() == 1;
        ensure(lost && cell.backups.len() <= 2, || format!("{id}: {cell:?} is no cell"))
    }

    fn version(&mut self, before: &State, entry: &Entry) -> Result<(), Broken> {
        let (old, new) = (before.ring(), self.state.ring());
        if let (None, Some(_), Entry::Recover(_, floors)) = (&old, &new, entry) {
            let grown = self.state.version() > floors.version;
            return ensure(grown, || format!("{:?} is not new", self.state.version()));
        }
        let mut same = old.clone();
        if let (Some(same), Some(new)) = (&mut same, &new)
            && new.version() > same.version()
        {
            same.advance(new.version()).map_err(|error| error.to_string())?;
        }
        let grows = u64::from(same != new);
        ensure(self.state.version() == RingVersion(before.version().0 + grows), || {
            format!("{entry:?} led from {:?} to {:?}", before.version(), self.state.version())
        })?;
        self.count(if grows > 0 { "new ring version" } else { "unseen by clients" });
        Ok(())
    }

    fn longest(&mut self, before: &State, entry: &Entry) -> Result<(), Broken> {
        let (old, new) = (before.longest(), self.state.longest());
        if new.ttl >= old.ttl {
            return Ok(());
        }
        let stands = match (entry, old.intent) {
            (Entry::LowerLongestTtl { intent, .. }, Some(stands)) => {
                *intent == stands.at && stands.ttl == new.ttl
            }
            _ => false,
        };
        ensure(stands, || format!("{entry:?} lowered {old:?} to {new:?}"))?;
        self.count("longest TTL lowered");
        Ok(())
    }
}

fn is_step(entry: &Entry, cell: CellId, is: impl Fn(&Step) -> bool) -> bool {
    let Entry::Cells(changes) = entry else { return false };
    changes.iter().any(|change| change.cell == cell && is(&change.step))
}

fn name(entry: &Entry) -> &'static str {
    match entry {
        Entry::Blank => "entry: blank",
        Entry::Join(_) => "entry: join",
        Entry::Recover(..) => "entry: recover",
        Entry::Boot { .. } => "entry: boot",
        Entry::Down(..) => "entry: down",
        Entry::Up(..) => "entry: up",
        Entry::Stopped { .. } => "entry: stopped",
        Entry::Leave(_) => "entry: leave",
        Entry::Remove(_) => "entry: remove",
        Entry::Weight { .. } => "entry: weight",
        Entry::Cells(_) => "entry: cells",
        Entry::RaiseLongestTtl { .. } => "entry: raise TTL",
        Entry::IntendLongestTtl(_) => "entry: intend TTL",
        Entry::LowerLongestTtl { .. } => "entry: lower TTL",
        Entry::Policy { .. } => "entry: policy",
    }
}
