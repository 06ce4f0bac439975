//! The runner over a log that takes everything at once.

mod cuts;

use super::*;
use crate::cluster::{NodeSpec, Process};
use crate::testing::Rules;
use lockring_ring::{BootId, CellBits};

const CELLS: u32 = 1 << 9;

/// A cluster whose learners are synced in the next step, with every entry judged.
struct Run {
    rules: Rules,
    runner: Runner,
    next: u64,
    now: Time,
    /// Most learners of a node, and of an owner, at any time.
    most: usize,
    leases_over: bool,
}

fn process(boot: u64) -> Process {
    Process { boot: BootId(boot), workers: 2, addresses: Vec::new() }
}

impl Run {
    fn new(nodes: u64) -> Self {
        let rules = Rules::new(State::new(CellBits::new(9).unwrap()));
        let (runner, now) = (Runner::default(), Time(1));
        let mut run = Self { rules, runner, next: 0, now, most: 0, leases_over: true };
        (1..=nodes).for_each(|node| run.join(node));
        run
    }

    fn join(&mut self, boot: u64) {
        self.join_in(boot, None);
    }

    fn join_in(&mut self, boot: u64, zone: Option<&str>) {
        let (process, zone) = (process(boot), zone.map(str::to_owned));
        let spec = NodeSpec { weight: 1, zone, host: boot.to_string(), process };
        self.put(&Entry::Join(spec));
    }

    fn put(&mut self, entry: &Entry) {
        self.next += 1;
        self.rules.apply(Index(self.next), entry).unwrap();
    }

    fn state(&self) -> &State {
        self.rules.state()
    }

    fn look(&mut self) -> Vec<Entry> {
        let over = self.leases_over;
        let state = self.rules.state().clone();
        self.runner.look(self.now, &state, &[], |_| over)
    }

    /// One look, and then all learners are synced. Whether anything was to be done.
    fn step(&mut self) -> bool {
        let entries = self.look();
        entries.iter().for_each(|entry| self.put(entry));
        let traffic = Traffic::of(self.state(), &[]);
        let most = traffic.to.values().chain(traffic.from.values()).copied().max();
        self.most = self.most.max(most.unwrap_or_default());
        let said = |(id, cell): (CellId, &Cell)| {
            cell.learner.map(|_| change(id, cell, Step::Synced)).or_else(|| {
                cell.grace.filter(|_| cell.loss.is_none())?;
                Some(change(id, cell, Step::Recovered))
            })
        };
        let said: Vec<CellChange> = self.state().cells().filter_map(said).collect();
        for batch in said.chunks(BATCH_CELLS_MAX) {
            self.put(&Entry::Cells(batch.to_vec()));
        }
        !entries.is_empty()
    }

    fn converge(&mut self) -> usize {
        (0..200).find(|_| !self.step()).expect("a plan comes to an end")
    }

    /// How many cells each node owns, and backs up.
    fn shares(&self) -> Vec<(u32, u32)> {
        let shares = self.state().layout().unwrap().shares();
        shares.iter().map(|share| (share.owned, share.backed)).collect()
    }
}

#[test]
fn joins_share_the_cells_and_every_one_has_a_backup() {
    let mut run = Run::new(1);
    assert!(!run.step(), "a node alone has nothing to do");
    run.join(2);
    run.converge();
    assert_eq!(run.shares(), [(256, 256), (256, 256)]);
    run.join(3);
    run.converge();
    let shares = run.shares();
    for (owned, backed) in shares {
        assert!((170..=171).contains(&owned) && (168..=174).contains(&backed), "{owned} {backed}");
    }
    assert_eq!(run.most, UNDER_WAY_MAX, "caps are used, and kept");
    assert!(run.state().cells().all(|(_, cell)| cell.backups.len() == 1));
}

#[test]
fn no_cell_is_bare_while_it_moves() {
    let mut run = Run::new(3);
    run.converge();
    run.join(4);
    while run.step() {
        assert!(run.state().cells().all(|(_, cell)| !cell.backups.is_empty()));
    }
    assert!(run.shares().iter().all(|(owned, _)| *owned == CELLS / 4));
}

#[test]
fn a_newcomer_is_a_backup_first_and_a_leaving_node_gives_its_own_away_first() {
    let mut run = Run::new(2);
    run.converge();
    run.join(3);
    let entries = run.look();
    let Entry::Cells(first) = &entries[0] else { panic!("{entries:?}") };
    let owner = |change: &CellChange| run.state().cell(change.cell).unwrap().owner.node;
    let target = |change: &CellChange| run.runner.targets[usize::from(change.cell.0)].owner;
    assert!(first.iter().all(|change| owner(change) == target(change)));
    run.converge();
    run.put(&Entry::Leave(NodeId(1)));
    let entries = run.look();
    let Entry::Cells(first) = &entries[0] else { panic!("{entries:?}") };
    let owner = |change: &CellChange| run.state().cell(change.cell).unwrap().owner.node;
    assert!(first.iter().all(|change| owner(change) == NodeId(1)));
    run.converge();
    assert_eq!(run.state().nodes().len(), 2, "it is removed when it is in nothing");
    assert_eq!(run.shares(), [(256, 256), (256, 256)]);
}

#[test]
fn lost_cells_are_taken_over_when_no_lease_of_their_owner_can_run() {
    let mut run = Run::new(2);
    run.converge();
    run.put(&Entry::Down(NodeId(1), BootId(1)));
    run.put(&Entry::Up(NodeId(1), BootId(1)));
    run.put(&Entry::Down(NodeId(2), BootId(2)));
    run.leases_over = false;
    assert_eq!(run.look(), [], "node 2 may still answer");
    run.leases_over = true;
    run.converge();
    assert_eq!(run.shares(), [(CELLS, 0), (0, 0)]);
    assert_eq!(run.rules.seen["taken over"], u64::from(CELLS));
    // A process that is known to be over is not waited for.
    run.leases_over = false;
    run.put(&Entry::Boot {
        node: NodeId(1),
        before: BootId(1),
        process: process(9),
        is_over: true,
    });
    run.converge();
    assert!(run.state().cells().all(|(_, cell)| cell.owner.boot == BootId(9)));
}

#[test]
fn copies_follow_the_policy() {
    let mut run = Run::new(3);
    run.converge();
    run.put(&Entry::Policy { replicas: Replicas::None, revision: Index(0) });
    run.converge();
    assert!(run.state().cells().all(|(_, cell)| cell.backups.is_empty()));
    run.join(4);
    run.converge();
    assert!(run.shares().iter().all(|share| *share == (CELLS / 4, 0)));
}

#[test]
fn a_learner_that_is_stuck_is_given_up_and_tried_again_later() {
    let mut run = Run::new(2);
    let entries = run.look();
    entries.iter().for_each(|entry| run.put(entry));
    assert_eq!(run.look(), [], "all caps are used");
    run.now = run.now.after(STUCK);
    let entries = run.look();
    assert_eq!(run.runner.stuck as usize, UNDER_WAY_MAX);
    entries.iter().for_each(|entry| run.put(entry));
    assert!(run.state().cells().all(|(_, cell)| cell.learner.is_none()));
    assert_eq!(run.look(), [], "this owner and this copy are not tried for a while");
    run.now = run.now.after(SHUNNED);
    run.converge();
    assert!(run.state().cells().all(|(_, cell)| cell.backups.len() == 1));
}

#[test]
fn a_cell_in_its_grace_gets_a_copy_and_no_other_owner() {
    let mut run = Run::new(1);
    run.put(&Entry::Boot {
        node: NodeId(1),
        before: BootId(1),
        process: process(9),
        is_over: true,
    });
    let entries = run.look();
    entries.iter().for_each(|entry| run.put(entry));
    run.join(2);
    for _ in 0..40 {
        for entry in run.look() {
            run.put(&entry);
        }
        let learners = run.state().cells().filter(|(_, cell)| cell.learner.is_some());
        let synced: Vec<_> = learners.map(|(id, cell)| change(id, cell, Step::Synced)).collect();
        synced.chunks(BATCH_CELLS_MAX).for_each(|all| run.put(&Entry::Cells(all.to_vec())));
    }
    assert_eq!(run.shares(), [(CELLS, 0), (0, CELLS)]);
    run.step();
    run.converge();
    assert_eq!(run.shares(), [(256, 256), (256, 256)]);
}

#[test]
fn what_is_proposed_counts_for_the_caps_before_it_is_agreed() {
    let mut run = Run::new(2);
    let mut under_way = Vec::new();
    let state = run.rules.state().clone();
    for _ in 0..3 {
        for entry in run.runner.look(run.now, &state, &under_way, |_| true) {
            let Entry::Cells(changes) = entry else { panic!("{entry:?}") };
            under_way.extend(changes);
        }
    }
    assert_eq!(under_way.len(), UNDER_WAY_MAX);
}

/// A new leader has no targets of the one before.
#[test]
fn a_new_leader_moves_nothing_of_what_is_where_it_shall_be() {
    for nodes in 2..8 {
        let mut run = Run::new(nodes);
        let settles = |run: &mut Run| {
            run.converge();
            run.runner = Runner::default();
            assert_eq!(run.look(), [], "{nodes} nodes");
        };
        settles(&mut run);
        run.put(&Entry::Down(NodeId(1), BootId(1)));
        settles(&mut run);
        run.put(&Entry::Up(NodeId(1), BootId(1)));
        run.converge();
        run.put(&Entry::Leave(NodeId(2)));
        settles(&mut run);
        let (node, weight) = (NodeId(1), 3);
        let revision = run.state().nodes()[&node].revision;
        run.put(&Entry::Weight { node, revision, weight });
        settles(&mut run);
    }
}
