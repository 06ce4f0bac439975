//! Entries, one by one, and in any order.

use crate::cluster::*;
use crate::testing::{Rules, Seen};
use lockring_core::testing::Rng;
use lockring_proto::NodeAddress;
use lockring_ring::{AttachId, BootId, CellBits, CellId, Epoch, NodeId, RingVersion};
use std::borrow::Borrow;
use std::time::Duration;

const CELL: CellId = CellId(0);
const SECOND: Duration = Duration::from_secs(1);

fn process(boot: u64) -> Process {
    let addresses = vec![NodeAddress { host: format!("h{boot}"), port: 7400 }];
    Process { boot: BootId(boot), workers: 1, addresses }
}

fn spec(boot: u64) -> NodeSpec {
    NodeSpec { weight: 1, zone: None, host: format!("h{boot}"), process: process(boot) }
}

/// A log of its own, whose every entry is judged.
struct Written {
    rules: Rules,
    next: u64,
}

impl Written {
    /// A process ends with nothing held, having done by every entry.
    fn stops(&mut self, node: u32, boot: u64) -> Applied {
        let (node, boot) = (NodeId(node), BootId(boot));
        self.put(Entry::Stopped { node, boot, ring: self.state().version() })
    }

    fn new() -> Self {
        Self::over(State::new(CellBits::new(1).unwrap()))
    }

    fn over(state: State) -> Self {
        Self { rules: Rules::new(state), next: 1 }
    }

    /// Nodes 1, 2, ... with boots 10, 20, ...
    fn with_nodes(count: u64) -> Self {
        let mut log = Self::new();
        (1..=count).for_each(|node| assert!(!log.put(Entry::Join(spec(node * 10))).void));
        log
    }

    fn put(&mut self, entry: impl Borrow<Entry>) -> Applied {
        self.next += 1;
        self.rules.apply(Index(self.next), entry.borrow()).unwrap()
    }

    fn state(&self) -> &State {
        self.rules.state()
    }

    fn cell(&self) -> &Cell {
        self.state().cell(CELL).unwrap()
    }

    /// A step of the first cell, decided on its present state; whether it was taken.
    fn step(&mut self, step: Step) -> bool {
        let change = CellChange { cell: CELL, revision: self.cell().revision, step };
        self.put(Entry::Cells(vec![change])).refused == 0
    }

    /// A node gets a copy of the first cell.
    fn copy_at(&mut self, node: u32) {
        assert!(self.step(Step::Attach(NodeId(node), BootId(u64::from(node) * 10))));
        assert!(self.step(Step::Synced));
    }
}

#[test]
fn a_cell_moves_by_attach_synced_switch_and_drop() {
    let mut log = Written::with_nodes(3);
    assert_eq!((log.cell().owner.node, log.cell().epoch), (NodeId(1), Epoch(1)));
    assert_eq!(log.state().version(), RingVersion(3), "each address is a version");
    assert!(log.step(Step::Attach(NodeId(2), BootId(20))));
    assert!(!log.step(Step::Attach(NodeId(3), BootId(30))), "one learner at a time");
    assert_eq!(log.state().version(), RingVersion(3), "clients see no learner");
    assert!(log.step(Step::Synced));
    assert_eq!(log.state().version(), RingVersion(4), "but a backup");
    log.copy_at(3);
    assert_eq!(log.state().version(), RingVersion(4), "only the first");
    assert!(log.step(Step::Switch(NodeId(3))));
    let cell = log.cell();
    assert_eq!((cell.owner.node, cell.epoch, cell.since), (NodeId(3), Epoch(2), RingVersion(5)));
    let backups: Vec<u32> = cell.backups.iter().map(|backup| backup.node.0).collect();
    assert_eq!(backups, [2, 1], "the owner before stays until it is dropped");
    assert!(log.step(Step::Drop(NodeId(2))));
    assert!(!log.step(Step::Drop(NodeId(2))) && !log.step(Step::Switch(NodeId(2))));
    assert_eq!(log.cell().backups.len(), 1);
}

#[test]
fn a_change_that_was_decided_on_another_state_is_void_and_the_others_are_not() {
    let mut log = Written::with_nodes(3);
    let (first, second) = (log.cell().revision, CellId(1));
    log.copy_at(2);
    let attach = Step::Attach(NodeId(3), BootId(30));
    let old = CellChange { cell: CELL, revision: first, step: attach };
    let other = CellChange { cell: second, revision: first, step: attach };
    let applied = log.put(Entry::Cells(vec![old, other, other]));
    assert_eq!(applied.refused, 2, "the first is old, the third comes after the second");
    assert_eq!(log.cell().learner, None);
    assert!(log.state().cell(second).unwrap().learner.is_some());
    let unknown = CellChange { cell: CellId(2), ..old };
    assert!(log.put(Entry::Cells(vec![unknown; 1])).void);
    assert!(log.put(Entry::Cells(vec![other; BATCH_CELLS_MAX + 1])).void);
}

#[test]
fn the_loss_of_a_node_promotes_drops_and_loses_by_one_entry() {
    let mut log = Written::with_nodes(3);
    log.copy_at(2);
    let attach = Step::Attach(NodeId(3), BootId(30));
    assert!(log.step(attach));
    log.put(Entry::Down(NodeId(1), BootId(10)));
    let cell = log.cell();
    assert_eq!((cell.owner.node, cell.epoch, cell.learner), (NodeId(2), Epoch(2), None));
    assert!(cell.backups.is_empty());
    // The other cell had no copy.
    let lost = log.state().cell(CellId(1)).unwrap();
    assert_eq!((lost.loss, lost.epoch), (Some(Loss::Down), Epoch(1)));
    // The process was alive: what nobody has taken over is its own again, the rest is not.
    log.put(Entry::Up(NodeId(1), BootId(10)));
    assert_eq!(log.state().cell(CellId(1)).unwrap().loss, None);
    assert_eq!(log.cell().owner.node, NodeId(2));
    log.put(Entry::Down(NodeId(3), BootId(30)));
    log.copy_at(1);
    log.put(Entry::Boot {
        node: NodeId(1),
        before: BootId(10),
        process: process(11),
        is_over: true,
    });
    assert!(log.cell().backups.is_empty());
    let lost = log.state().cell(CellId(1)).unwrap();
    assert_eq!((lost.loss, lost.owner.boot), (Some(Loss::Over), BootId(10)));
}

#[test]
fn a_lost_cell_is_taken_over_by_a_process_that_is_up_and_opens_after_the_grace() {
    let mut log = Written::with_nodes(2);
    let takeover = Step::Takeover(NodeId(2), BootId(20));
    assert!(!log.step(takeover), "it is not lost");
    let cell = log.cell().clone();
    log.put(Entry::Down(NodeId(1), BootId(10)));
    let late = CellChange { cell: CELL, revision: cell.revision, step: takeover };
    assert!(log.put(Entry::Cells(vec![late])).void);
    assert!(!log.step(Step::Takeover(NodeId(1), BootId(10))), "it is down");
    assert!(!log.step(Step::Bump) && !log.step(Step::Recovered));
    assert!(log.step(takeover));
    let grace = Duration::from_millis(13_130);
    assert_eq!((log.cell().epoch, log.cell().grace), (Epoch(2), Some(grace)));
    // A copy that follows an owner in its grace does not know when that began.
    assert!(log.put(Entry::Up(NodeId(1), BootId(10))).refused == 0);
    log.copy_at(1);
    log.put(Entry::Down(NodeId(2), BootId(20)));
    assert_eq!((log.cell().owner.node, log.cell().grace), (NodeId(1), Some(grace)));
    assert!(log.step(Step::Recovered));
    assert_eq!(log.cell().grace, None);
}

/// A copy of a data directory is no proof that whoever has the other one has ended.
#[test]
fn a_process_may_run_on_though_another_has_begun_as_its_node() {
    let mut log = Written::with_nodes(2);
    let boot = |before, boot, is_over| {
        let (before, process) = (BootId(before), process(boot));
        Entry::Boot { node: NodeId(1), before, process, is_over }
    };
    log.put(boot(10, 11, false));
    assert_eq!(log.cell().loss, Some(Loss::Down), "until its lease has ended");
    assert!(log.put(Entry::Up(NodeId(1), BootId(10))).void, "it is none of the log's any more");
    log.put(boot(11, 12, true));
    assert_eq!(log.cell().loss, Some(Loss::Down), "that was another process");
    let mut log = Written::with_nodes(2);
    log.put(Entry::Down(NodeId(1), BootId(10)));
    log.put(boot(10, 11, true));
    assert_eq!(log.cell().loss, Some(Loss::Over), "as is known later");
}

#[test]
fn a_node_that_was_always_alone_owes_nothing_to_an_owner_that_was_deposed() {
    let mut log = Written::with_nodes(1);
    log.put(Entry::Boot {
        node: NodeId(1),
        before: BootId(10),
        process: process(11),
        is_over: true,
    });
    assert!(log.step(Step::Takeover(NodeId(1), BootId(11))));
    assert_eq!(log.cell().grace, Some(Duration::from_millis(10_100)));
}

#[test]
fn what_comes_again_or_late_is_void() {
    let mut log = Written::with_nodes(2);
    assert!(log.put(Entry::Join(spec(20))).void, "the node is there");
    let boot = |before, boot| Entry::Boot {
        node: NodeId(2),
        before: BootId(before),
        process: process(boot),
        is_over: true,
    };
    assert!(!log.put(boot(20, 21)).void && log.put(boot(20, 21)).void);
    assert!(!log.put(boot(21, 22)).void && log.put(boot(20, 21)).void);
    assert!(log.put(Entry::Down(NodeId(2), BootId(21))).void, "that life is over");
    assert!(log.put(Entry::Up(NodeId(2), BootId(22))).void, "it is up");
    assert!(log.put(Entry::Remove(NodeId(2))).void, "it stays");
    assert!(!log.put(Entry::Leave(NodeId(2))).void && log.put(Entry::Leave(NodeId(2))).void);
    assert!(!log.put(Entry::Remove(NodeId(2))).void && log.put(Entry::Remove(NodeId(2))).void);
    assert!(log.put(Entry::Join(spec(20))).void, "that process has been a node");
    assert!(!log.put(Entry::Join(spec(30))).void);
    assert!(log.state().nodes().contains_key(&NodeId(3)), "no id comes twice");
    let weight = |revision| Entry::Weight { node: NodeId(3), revision, weight: 5 };
    let revision = log.state().nodes()[&NodeId(3)].revision;
    assert!(!log.put(weight(revision)).void && log.put(weight(revision)).void);
    let policy = Entry::Policy { replicas: Replicas::None, revision: Index(0) };
    assert!(!log.put(policy.clone()).void && log.put(policy).void);
}

#[test]
fn processes_that_cannot_be_are_refused() {
    let mut log = Written::new();
    for (boot, workers) in [(0, 1), (1, 0), (1, 3), (1, 512)] {
        let process = Process { workers, ..process(boot) };
        assert!(log.put(Entry::Join(NodeSpec { process, ..spec(1) })).void);
    }
}

#[test]
fn the_last_epoch_is_refused() {
    let floors = Floors {
        epoch: Epoch(Epoch::LAST.0 - 3),
        version: RingVersion(70),
        node: NodeId(7),
        attach: AttachId(700),
        longest_ttl: 60 * SECOND,
        longest_by: "w".to_owned(),
        before: Before::Unknown,
    };
    let mut log = Written::new();
    log.put(Entry::Recover(spec(10), floors));
    assert_eq!(log.state().version(), RingVersion(71));
    assert_eq!(log.cell().loss, Some(Loss::Unknown));
    assert!(log.state().memberships(Life { node: NodeId(7), boot: BootId(10) }).is_empty());
    assert!(log.step(Step::Takeover(NodeId(7), BootId(10))));
    assert_eq!(log.cell().grace, Some(Duration::from_millis(63_630)));
    assert!(log.step(Step::Recovered) && log.step(Step::Bump) && !log.step(Step::Bump));
    assert_eq!(log.cell().epoch.0, Epoch::LAST.0 - 1);
    log.put(Entry::Join(spec(80)));
    let attach = Step::Attach(NodeId(8), BootId(80));
    assert!(log.step(attach) && log.step(Step::Synced));
    log.put(Entry::Down(NodeId(7), BootId(10)));
    assert_eq!(log.cell().loss, Some(Loss::Down), "there is no epoch for the copy");
    assert!(!log.step(Step::Takeover(NodeId(8), BootId(80))));
}

/// Nobody believes in anything of a process that ended with nothing held: whoever follows grants
/// at once. What it owed itself to those before it, it leaves to them.
#[test]
fn what_is_left_with_nothing_held_is_taken_over_without_a_grace() {
    let mut log = Written::with_nodes(1);
    let [stopped, next] = [10, 11].map(|boot| Life { node: NodeId(1), boot: BootId(boot) });
    let boot = |log: &mut Written, before: BootId, boot: u64| {
        let process = process(boot);
        log.put(Entry::Boot { node: NodeId(1), before, process, is_over: true })
    };
    assert!(log.stops(next.node.0, next.boot.0).void, "that is no process of it");
    assert!(!log.stops(stopped.node.0, stopped.boot.0).void);
    assert_eq!((log.cell().loss, log.state().is_up(stopped)), (Some(Loss::Empty), false));
    assert!(log.stops(stopped.node.0, stopped.boot.0).void, "it has");
    boot(&mut log, stopped.boot, 11);
    assert_eq!(log.cell().loss, Some(Loss::Empty));
    assert!(log.step(Step::Takeover(next.node, next.boot)));
    assert_eq!((log.cell().loss, log.cell().grace), (None, None));
    // The next one crashes, and its successor stops within the grace.
    boot(&mut log, next.boot, 12);
    assert!(log.step(Step::Takeover(NodeId(1), BootId(12))));
    assert!(log.cell().grace.is_some());
    assert!(!log.stops(1, 12).void);
    assert_eq!(log.cell().loss, Some(Loss::Over));
    boot(&mut log, BootId(12), 13);
    assert!(log.step(Step::Takeover(NodeId(1), BootId(13))));
    assert!(log.cell().grace.is_some(), "somebody may believe in what the first one granted");
}

/// Who is taken for dead may stop as well; what its copies have taken over is theirs.
#[test]
fn who_stops_leaves_its_copies_what_they_have() {
    let mut log = Written::with_nodes(2);
    assert!(log.step(Step::Attach(NodeId(2), BootId(20))) && log.step(Step::Synced));
    log.stops(1, 10);
    let cell = log.cell();
    assert_eq!((cell.owner.node, cell.loss, cell.grace), (NodeId(2), None, None));
    log.put(Entry::Down(NodeId(2), BootId(20)));
    assert_eq!(log.cell().loss, Some(Loss::Down));
    log.stops(2, 20);
    assert_eq!(log.cell().loss, Some(Loss::Empty), "that it was down says nothing of holds");
}

/// Of a cell that it was given at the end, and had not heard of, it says nothing.
#[test]
fn who_stops_says_nothing_of_what_it_had_not_heard() {
    let mut log = Written::with_nodes(2);
    assert!(log.step(Step::Attach(NodeId(2), BootId(20))) && log.step(Step::Synced));
    let ring = log.state().version();
    log.put(Entry::Down(NodeId(1), BootId(10)));
    log.put(Entry::Stopped { node: NodeId(2), boot: BootId(20), ring });
    assert_eq!((log.cell().owner.node, log.cell().loss), (NodeId(2), Some(Loss::Over)));
}

/// A log may begin over what one node had by itself.
#[test]
fn what_a_log_follows_says_how_long_is_waited() {
    let begun = |before| {
        let floors = Floors {
            epoch: Epoch(4),
            version: RingVersion(4),
            node: NodeId(1),
            attach: AttachId(1),
            longest_ttl: 60 * SECOND,
            longest_by: "w".to_owned(),
            before,
        };
        let mut log = Written::new();
        log.put(Entry::Recover(spec(10), floors));
        assert_eq!(log.state().longest().by, "w");
        let loss = log.cell().loss;
        assert!(log.step(Step::Takeover(NodeId(1), BootId(10))));
        assert_eq!(log.cell().epoch, Epoch(5));
        (loss, log.cell().grace)
    };
    let waits = |ms| Some(Duration::from_millis(ms));
    assert_eq!(begun(Before::Unknown), (Some(Loss::Unknown), waits(63_630)));
    assert_eq!(begun(Before::One), (Some(Loss::Over), waits(60_600)));
    assert_eq!(begun(Before::Nothing), (Some(Loss::Empty), None));
}

#[test]
fn a_log_begins_anew_once() {
    let floors = Floors {
        epoch: Epoch(1),
        version: RingVersion(1),
        node: NodeId(1),
        attach: AttachId(1),
        longest_ttl: SECOND,
        longest_by: String::new(),
        before: Before::Unknown,
    };
    let mut log = Written::with_nodes(1);
    assert!(log.put(Entry::Recover(spec(20), floors)).void);
}

#[test]
fn the_longest_ttl_falls_by_the_intent_that_stands() {
    let mut log = Written::with_nodes(1);
    let raise = |ttl| Entry::RaiseLongestTtl { ttl, by: "a".to_owned() };
    let lower = |intent| Entry::LowerLongestTtl { intent, by: String::new() };
    log.put(raise(60 * SECOND));
    log.put(Entry::IntendLongestTtl(20 * SECOND));
    let first = log.state().longest().intent.unwrap().at;
    assert_eq!(log.state().longest().ceiling(), 20 * SECOND);
    log.put(raise(30 * SECOND));
    assert_eq!(log.state().longest().ceiling(), 60 * SECOND, "somebody came");
    assert!(log.put(lower(first)).void);
    log.put(Entry::IntendLongestTtl(15 * SECOND));
    let second = log.state().longest().intent.unwrap().at;
    assert!(log.put(lower(first)).void && !log.put(lower(second)).void);
    assert_eq!(log.state().longest().ttl, 15 * SECOND);
    assert!(log.put(Entry::IntendLongestTtl(20 * SECOND)).void);
}

#[test]
fn a_process_is_told_what_changed_for_it() {
    let mut log = Written::with_nodes(2);
    let (one, two) =
        (Life { node: NodeId(1), boot: BootId(10) }, Life { node: NodeId(2), boot: BootId(20) });
    let change = CellChange {
        cell: CELL,
        revision: log.cell().revision,
        step: Step::Attach(NodeId(2), BootId(20)),
    };
    let applied = log.put(Entry::Cells(vec![change]));
    let told = applied.memberships(log.state(), two);
    assert_eq!(told, [(CELL, log.cell().membership(two.node, two.boot))]);
    let applied = log.put(Entry::Down(NodeId(2), BootId(20)));
    assert_eq!(applied.memberships(log.state(), two), [(CELL, None)]);
    assert_eq!(applied.memberships(log.state(), one).len(), 1);
    let taken = |node| log.state().nodes()[&NodeId(node)].taken;
    assert_eq!((taken(1), taken(2)), (Index(0), log.state().applied()));
    let stranger = Life { boot: BootId(9), ..one };
    assert!(log.state().memberships(stranger).is_empty());
    assert_eq!(log.state().memberships(one).len(), 2);
}

/// A step of some cell that may fit: mostly decided on what is, sometimes on what was.
fn any_change(rng: &mut Rng, state: &State, old: &State) -> CellChange {
    let nodes: Vec<(NodeId, BootId)> =
        state.nodes().iter().map(|(&id, node)| (id, node.spec.process.boot)).collect();
    let &(node, boot) = rng.pick(&nodes);
    let cell = CellId(rng.range(0, 4) as u16);
    let seen = if rng.percent(85) { state } else { old };
    let step = match rng.range(0, 12) {
        0..3 => Step::Attach(node, boot),
        3..6 => Step::Synced,
        6 => Step::Switch(node),
        7 => Step::Drop(node),
        8 => Step::Detach,
        9 => Step::Takeover(node, boot),
        10 => Step::Recovered,
        _ => Step::Bump,
    };
    let revision = seen.cell(cell).or(state.cell(cell)).unwrap().revision;
    CellChange { cell, revision, step }
}

fn any_entry(rng: &mut Rng, state: &State, old: &State, boots: &mut u64) -> Entry {
    let nodes: Vec<(NodeId, &NodeState)> = state.nodes().iter().map(|(&id, n)| (id, n)).collect();
    let mut fresh = || {
        *boots += 1;
        *boots
    };
    if nodes.is_empty() {
        let version = RingVersion(rng.range(1, 90));
        let floors = Floors {
            epoch: Epoch(40),
            version,
            node: NodeId(9),
            attach: AttachId(900),
            longest_ttl: 20 * SECOND,
            longest_by: String::new(),
            before: *rng.pick(&[Before::Unknown, Before::One, Before::Nothing]),
        };
        let boot = fresh();
        return match rng.percent(50) {
            true => Entry::Recover(spec(boot), floors),
            false => Entry::Join(spec(boot)),
        };
    }
    let &(node, known) = rng.pick(&nodes);
    let boot = known.spec.process.boot;
    let ttl = rng.range(10, 30) as u32 * SECOND;
    match rng.range(0, 30) {
        0 if nodes.len() < 5 => Entry::Join(spec(fresh())),
        1 => {
            Entry::Boot { node, before: boot, process: process(fresh()), is_over: rng.percent(50) }
        }
        2 => Entry::Down(node, boot),
        3 | 4 => Entry::Up(node, boot),
        5 => Entry::Leave(node),
        6 => Entry::Remove(node),
        7 => Entry::Weight { node, revision: known.revision, weight: rng.range(0, 9) as u32 },
        8 => Entry::RaiseLongestTtl { ttl, by: String::new() },
        9 => Entry::IntendLongestTtl(ttl),
        10 => {
            let intent = old.longest().intent.map_or(Index(1), |intent| intent.at);
            Entry::LowerLongestTtl { intent, by: String::new() }
        }
        11 => Entry::Policy { replicas: Replicas::One, revision: state.replicas().1 },
        12 => Entry::Blank,
        13 => Entry::Stopped { node, boot, ring: state.version() },
        _ => {
            let count = rng.range(1, 4);
            Entry::Cells((0..count).map(|_| any_change(rng, state, old)).collect())
        }
    }
}

/// A log of any entries, of which some come again, judged one by one.
fn walk(seed: u64, mutant: Option<Mutant>) -> Result<Seen, String> {
    let mut rng = Rng::new(seed);
    let state = State::new(CellBits::new(2).unwrap()).with_mutant(mutant);
    let mut rules = Rules::new(state.clone());
    let (mut old, mut twin, mut boots) = (state.clone(), state, 100);
    let mut written: Vec<Entry> = Vec::new();
    for index in 1..150 {
        let entry = match written.is_empty() || rng.percent(90) {
            true => any_entry(&mut rng, rules.state(), &old, &mut boots),
            false => rng.pick(&written).clone(),
        };
        // Indexes of a log have gaps: not all of its records are ours.
        let applied = rules.apply(Index(index * 2), &entry)?;
        if twin.apply(Index(index * 2), &entry) != applied || twin != *rules.state() {
            return Err(format!("{entry:?} is not the same twice"));
        }
        written.push(entry);
        if rng.percent(20) {
            old = rules.state().clone();
        }
    }
    Ok(rules.seen)
}

#[test]
fn every_entry_in_any_order_keeps_the_rules() {
    let mut seen = Seen::new();
    for seed in 0..400 {
        let walked = walk(seed, None).unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
        walked.into_iter().for_each(|(what, times)| *seen.entry(what).or_default() += times);
    }
    for what in [
        "promotion",
        "lost cell",
        "taken over",
        "regained",
        "attached",
        "synced",
        "dropped",
        "switched",
        "recovered",
        "bumped",
        "refused change",
        "void entry",
        "entry: recover",
        "entry: join",
        "entry: boot",
        "entry: down",
        "entry: up",
        "entry: stopped",
        "entry: leave",
        "entry: remove",
        "entry: weight",
        "entry: cells",
        "entry: raise TTL",
        "entry: intend TTL",
        "entry: lower TTL",
        "longest TTL lowered",
        "new ring version",
        "unseen by clients",
        "learner of an old epoch cleared",
    ] {
        assert!(seen.get(what).is_some_and(|times| *times > 10), "{what} is rare: {seen:?}");
    }
}

#[test]
fn the_rules_notice_seeded_bugs_of_the_state_machine() {
    for mutant in [
        Mutant::CompareIgnored,
        Mutant::LearnerSurvives,
        Mutant::LearnerPromoted,
        Mutant::BootIgnored,
        Mutant::GraceWithoutLease,
        Mutant::RecoverRepeatsVersions,
        Mutant::StopForgetsGrace,
        Mutant::LoweredInOneEntry,
    ] {
        let killed = (0..400).find_map(|seed| walk(seed, Some(mutant)).err());
        assert!(killed.is_some(), "{mutant:?} lives");
    }
}
