//! Every log that the bounds allow, as a tree: what an entry makes is computed once.

use super::names::{CELL, NODES, Process};
use crate::cluster::{
    Applied, CellChange, Entry, Index, Mutant, NodeSpec, Process as Spec, State, Step,
};
use crate::testing::Rules;
use lockring_ring::{AttachId, CellBits, Member};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// A log, by its last entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogId(pub u32);

/// What an entry is about. Takeovers are not modelled: a cell is never lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Attach,
    Synced,
    Switch,
    Drop,
    Detach,
    Bump,
    Down,
    Up,
    Boot,
}

/// An entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Change {
    /// Decided on what the cell was as of this entry.
    Cell(u64, Move),
    Down(Process),
    Up(Process),
    Boot(Process),
}

/// [`Step`], by the model's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Move {
    Attach(Process),
    Synced,
    Switch(Process),
    Drop(Process),
    Detach,
    Bump,
}

impl Change {
    pub fn kind(self) -> Kind {
        match self {
            Self::Cell(_, Move::Attach(_)) => Kind::Attach,
            Self::Cell(_, Move::Synced) => Kind::Synced,
            Self::Cell(_, Move::Switch(_)) => Kind::Switch,
            Self::Cell(_, Move::Drop(_)) => Kind::Drop,
            Self::Cell(_, Move::Detach) => Kind::Detach,
            Self::Cell(_, Move::Bump) => Kind::Bump,
            Self::Down(_) => Kind::Down,
            Self::Up(_) => Kind::Up,
            Self::Boot(_) => Kind::Boot,
        }
    }

    fn entry(self, state: &State) -> Entry {
        match self {
            Self::Down(it) => Entry::Down(it.id(), it.boot()),
            Self::Up(it) => Entry::Up(it.id(), it.boot()),
            Self::Boot(it) => {
                let before = state.nodes()[&it.id()].spec.process.boot;
                Entry::Boot { node: it.id(), before, process: spec(it).process, is_over: true }
            }
            Self::Cell(revision, its) => {
                let step = match its {
                    Move::Attach(it) => Step::Attach(it.id(), it.boot()),
                    Move::Synced => Step::Synced,
                    Move::Switch(it) => Step::Switch(it.id()),
                    Move::Drop(it) => Step::Drop(it.id()),
                    Move::Detach => Step::Detach,
                    Move::Bump => Step::Bump,
                };
                Entry::Cells(vec![CellChange { cell: CELL, revision: Index(revision), step }])
            }
        }
    }
}

fn spec(it: Process) -> NodeSpec {
    let process = Spec { boot: it.boot(), workers: 1, addresses: Vec::new() };
    NodeSpec { weight: 1, zone: None, host: it.node.to_string(), process }
}

/// Who says that a learner has everything.
pub type Said = (Process, AttachId);

/// A log.
pub struct Log {
    pub state: State,
    /// What the last entry did.
    pub change: Option<Change>,
    pub applied: Applied,
    /// Itself, after all that it goes on from.
    pub path: Vec<LogId>,
    /// The log with which its ring version began.
    pub ring: LogId,
    /// Whether the last entry keeps the rules of every log.
    pub is_lawful: bool,
    rules: Rules,
}

impl Log {
    pub fn version(&self) -> u64 {
        self.state.version().0
    }

    /// The version of the ring in which the epoch of the cell began.
    pub fn since(&self) -> u64 {
        self.state.cell(CELL).expect("the log has cells").since.0
    }

    pub fn owner(&self) -> Member {
        self.state.cell(CELL).expect("the log has cells").owner
    }

    pub fn revision(&self) -> u64 {
        self.state.cell(CELL).expect("the log has cells").revision.0
    }
}

/// An entry that could be next: what it leads to, and who has to have said so.
pub struct Next {
    pub change: Change,
    pub log: LogId,
    pub needs: Option<Said>,
}

#[derive(Default)]
struct Tables {
    logs: Vec<Arc<Log>>,
    after: BTreeMap<(LogId, Change), Option<LogId>>,
    next: BTreeMap<LogId, Arc<Vec<Next>>>,
}

/// All logs so far.
pub struct Logs {
    tables: Mutex<Tables>,
    kinds: Vec<Kind>,
}

impl Logs {
    /// A log with all nodes, of which the first has every cell: that is number 0.
    pub fn new(kinds: &[Kind], mutant: Option<Mutant>) -> Self {
        let state = State::new(CellBits::new(1).expect("two cells")).with_mutant(mutant);
        let mut rules = Rules::new(state);
        for node in 0..NODES {
            let entry = Entry::Join(spec(Process { node, life: 0 }));
            rules.apply(Index(u64::from(node) + 1), &entry).expect("a join keeps the rules");
        }
        let log = Log {
            state: rules.state().clone(),
            change: None,
            applied: Applied::default(),
            path: vec![LogId(0)],
            ring: LogId(0),
            is_lawful: true,
            rules,
        };
        let tables = Tables { logs: vec![Arc::new(log)], ..Tables::default() };
        Self { tables: Mutex::new(tables), kinds: kinds.to_vec() }
    }

    pub fn get(&self, log: LogId) -> Arc<Log> {
        let tables = self.tables.lock().expect("nobody panics here");
        Arc::clone(&tables.logs[log.0 as usize])
    }

    /// A log goes on with an entry; `None`: that does nothing, or loses the cell.
    pub fn after(&self, log: LogId, change: Change) -> Option<LogId> {
        if let Some(known) = self.tables.lock().expect("as above").after.get(&(log, change)) {
            return *known;
        }
        let before = self.get(log);
        let entry = change.entry(&before.state);
        let mut rules = before.rules.clone();
        let mut state = before.state.clone();
        let index = Index(state.applied().0 + 1);
        let applied = state.apply(index, &entry);
        let is_lost = state.cell(CELL).is_none_or(|cell| cell.loss.is_some());
        let mut tables = self.tables.lock().expect("as above");
        let next = (!applied.void && !is_lost).then(|| {
            let id = LogId(tables.logs.len() as u32);
            let is_new = state.version() > before.state.version();
            let path = before.path.iter().copied().chain([id]).collect();
            let is_lawful = rules.apply(index, &entry).is_ok();
            let ring = if is_new { id } else { before.ring };
            let change = Some(change);
            let log = Log { state, change, applied, path, ring, is_lawful, rules };
            tables.logs.push(Arc::new(log));
            id
        });
        *tables.after.entry((log, change)).or_insert(next)
    }

    /// What can be next, also what was decided on an earlier state of the cell: production refuses
    /// that, and so nothing of it is here.
    pub fn next(&self, log: LogId) -> Arc<Vec<Next>> {
        if let Some(known) = self.tables.lock().expect("as above").next.get(&log) {
            return Arc::clone(known);
        }
        let head = self.get(log);
        let mut found: Vec<(Change, Option<Said>)> = Vec::new();
        for &then in &head.path {
            self.decided_on(&self.get(then), &mut found);
        }
        for node in head.state.nodes() {
            let it = Process::of(*node.0, node.1.spec.process.boot);
            found.push((Change::Down(it), None));
            found.push((Change::Up(it), None));
        }
        let allowed = found.into_iter().filter(|(change, _)| self.kinds.contains(&change.kind()));
        let next = allowed.filter_map(|(change, needs)| {
            Some(Next { change, log: self.after(log, change)?, needs })
        });
        let next = Arc::new(next.collect::<Vec<Next>>());
        self.tables.lock().expect("as above").next.insert(log, Arc::clone(&next));
        next
    }

    /// What can be decided on the cell as one log has it.
    fn decided_on(&self, then: &Log, found: &mut Vec<(Change, Option<Said>)>) {
        let cell = then.state.cell(CELL).expect("the log has cells");
        let process = |member: &Member| Process::of(member.node, member.boot);
        let owner = process(&cell.owner);
        let said = cell.learner.map(|learner| (owner, learner.attach));
        let mut moves = vec![(Move::Synced, said), (Move::Detach, None), (Move::Bump, None)];
        for node in then.state.nodes() {
            let it = Process::of(*node.0, node.1.spec.process.boot);
            moves.push((Move::Attach(it), None));
        }
        for backup in &cell.backups {
            moves.push((Move::Switch(process(backup)), None));
            moves.push((Move::Drop(process(backup)), None));
        }
        for (its, needs) in moves {
            let change = Change::Cell(cell.revision.0, its);
            let is_sure = its != Move::Synced || needs.is_some();
            if is_sure && !found.iter().any(|(known, _)| *known == change) {
                found.push((change, needs));
            }
        }
    }
}
