//! One node's control plane, told what happens.

use super::*;
use crate::cluster::{CellChange, Process, ProposalId, RoundId, Step};
use lockring_ring::{BootId, CellBits};

const SECOND: Duration = Duration::from_secs(1);

fn at(ms: u64) -> Time {
    Time(ms * 1000)
}

fn spec(boot: u64) -> NodeSpec {
    let process = Process { boot: BootId(boot), workers: 2, addresses: Vec::new() };
    NodeSpec { weight: 1, zone: None, host: boot.to_string(), process }
}

/// A node with the id 1, and what its log has committed.
struct Node {
    control: Control,
    index: u64,
}

impl Node {
    fn new(mutant: Option<Mutant>) -> Self {
        let state = State::new(CellBits::new(1).unwrap()).with_mutant(mutant);
        let control = Control::new(at(0), NodeId(1), (spec(1), None), Entry::Join(spec(1)), state);
        Self { control, index: 0 }
    }

    /// It leads two nodes in term 1, and the workers do by all that they were told.
    fn leading(mutant: Option<Mutant>) -> Self {
        let mut node = Self::new(mutant);
        node.tell(0, LogEvent::Elected { term: Term(1), before: None });
        node.commit(0, Entry::Blank);
        node.commit(0, Entry::Join(spec(1)));
        node.commit(0, Entry::Join(spec(2)));
        node.applied(0);
        node
    }

    fn handle(&mut self, ms: u64, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        self.control.handle(at(ms), event, &mut out);
        out
    }

    fn tell(&mut self, ms: u64, event: LogEvent) -> Vec<Action> {
        self.handle(ms, Event::Log(event))
    }

    fn commit(&mut self, ms: u64, entry: Entry) -> Vec<Action> {
        self.index += 1;
        self.tell(ms, LogEvent::Committed { index: Index(self.index), term: Term(1), entry })
    }

    fn applied(&mut self, ms: u64) {
        for worker in 0..2 {
            self.handle(ms, Event::worker(worker, WorkerEvent::Applied(Index(self.index))));
        }
    }

    fn hear(&mut self, ms: u64, from: u32, message: Message) -> Vec<Action> {
        self.handle(ms, Event::Received(NodeId(from), message))
    }

    /// The index to which the lease of node 2 is bound.
    fn bound(&mut self, boot: u64) -> Option<Index> {
        let heartbeat = Message::Heartbeat { boot: BootId(boot), renewal: 1 };
        let mut out = self.hear(200, 2, heartbeat);
        let round = out.iter().find_map(|action| match action {
            Action::Confirm(round) => Some(*round),
            _ => None,
        });
        let committed = Index(self.index);
        out.extend(self.tell(201, LogEvent::RoundDone { round: round?, committed }));
        out.iter().find_map(|action| match action {
            Action::Send(NodeId(2), Message::Renewed { bound, .. }) => Some(*bound),
            _ => None,
        })
    }
}

fn proposes(actions: &[Action]) -> Vec<&Entry> {
    let proposed = actions.iter().filter_map(|action| match action {
        Action::Propose(_, entry) => Some(entry),
        _ => None,
    });
    proposed.collect()
}

fn boot(node: u32, before: u64, boot: u64) -> Entry {
    let (node, before, process) = (NodeId(node), BootId(before), spec(boot).process);
    Entry::Boot { node, before, process, is_over: false }
}

/// Two processes over one data directory and a copy of it: they would else take the node from each
/// other for ever.
#[test]
fn a_process_in_whose_place_another_has_begun_ends() {
    for is_told_whole in [false, true] {
        let mut node = Node::new(None);
        node.tell(0, LogEvent::Follows(NodeId(2)));
        node.commit(0, Entry::Join(spec(1)));
        node.commit(0, Entry::Join(spec(2)));
        let mut state = node.control.state().clone();
        let told = if is_told_whole {
            state.apply(Index(3), &boot(1, 1, 9));
            node.tell(0, LogEvent::Restored { term: Term(1), state: Box::new(state) })
        } else {
            node.commit(0, boot(1, 1, 9))
        };
        assert!(told.contains(&Action::Removed), "{told:?}");
        let asks = |it: &Action| matches!(it, Action::Send(_, Message::Propose(_)));
        assert!(!told.iter().any(asks), "{told:?}");
        assert_eq!(node.handle(5000, Event::Tick), [], "it asks for nothing more");
        assert_eq!(node.control.next_deadline(), Time::NEVER);
    }
}

/// It asks until the log has it, and for nothing after.
#[test]
fn a_process_that_has_stopped_asks_for_nothing_more() {
    let mut node = Node::new(None);
    node.tell(0, LogEvent::Follows(NodeId(2)));
    node.commit(0, Entry::Join(spec(1)));
    node.applied(0);
    let ring = node.control.state().version();
    let stopped = Entry::Stopped { node: NodeId(1), boot: BootId(1), ring };
    let asked = node.handle(10, Event::Ended);
    assert!(asked.contains(&Action::Send(NodeId(2), Message::Propose(stopped.clone()))));
    assert_eq!(node.handle(15, Event::Tick), [], "not at once again");
    let told = node.commit(20, stopped);
    assert!(told.contains(&Action::Stopped), "{told:?}");
    let asks = |it: &Action| matches!(it, Action::Send(_, Message::Propose(_)));
    assert!(!told.iter().any(asks), "{told:?}");
    assert_eq!(node.handle(5000, Event::Tick), []);
}

/// One that the log never had says so, whatever it has.
#[test]
fn a_process_that_begins_is_none_in_whose_place_another_is() {
    let mut node = Node::new(None);
    node.tell(0, LogEvent::Follows(NodeId(2)));
    node.commit(0, Entry::Join(spec(7)));
    node.commit(0, Entry::Join(spec(2)));
    let asked = node.commit(300, boot(1, 7, 8));
    let asked = [asked, node.handle(600, Event::Tick)].concat();
    let begins = Action::Send(NodeId(2), Message::Propose(boot(1, 8, 1)));
    assert!(asked.contains(&begins), "{asked:?}");
}

#[test]
fn a_log_is_founded_by_its_first_leader_once_it_knows_that_it_is_empty() {
    let mut node = Node::new(None);
    assert_eq!(proposes(&node.handle(0, Event::Tick)), [] as [&Entry; 0]);
    let elected = node.tell(0, LogEvent::Elected { term: Term(1), before: None });
    assert_eq!(proposes(&elected), [] as [&Entry; 0], "it has not applied all that there is");
    let join = Event::Asked(Entry::Join(spec(2)));
    assert_eq!(proposes(&node.handle(0, join)), [] as [&Entry; 0], "the founder is the first");
    let actions = node.commit(0, Entry::Blank);
    assert_eq!(proposes(&actions), [&Entry::Join(spec(1))]);
    let Some(Action::Propose(id, _)) = actions.iter().find(|it| matches!(it, Action::Propose(..)))
    else {
        panic!("{actions:?}")
    };
    assert_eq!(proposes(&node.tell(1, LogEvent::Failed(*id))), [] as [&Entry; 0], "a pause");
    assert_eq!(proposes(&node.handle(101, Event::Tick)), [&Entry::Join(spec(1))]);
    assert!(ProposalId(1) <= *id);
}

#[test]
fn workers_are_told_what_is_theirs_and_a_snapshot_tells_it_whole() {
    let mut node = Node::new(None);
    let told = node.commit(0, Entry::Join(spec(1)));
    let is_told = |action: &Action| match action {
        Action::Memberships { index, whole, cells } => Some((*index, *whole, cells.len())),
        _ => None,
    };
    assert_eq!(told.iter().find_map(is_told), Some((Index(1), false, 2)));
    let mut state = node.control.state().clone();
    state.apply(Index(2), &Entry::Join(spec(2)));
    state.apply(Index(3), &Entry::Down(NodeId(2), BootId(2)));
    let restored = LogEvent::Restored { term: Term(1), state: Box::new(state) };
    let told = node.tell(0, restored.clone());
    assert_eq!(told.iter().find_map(is_told), Some((Index(3), true, 2)));
    assert!(node.tell(0, restored).iter().find_map(is_told).is_none(), "once");
}

#[test]
fn a_lease_covers_what_the_node_has_become_and_what_was_taken_from_it() {
    let mut node = Node::leading(None);
    assert_eq!(node.bound(2), Some(Index(3)), "its own entry");
    let boot = boot(2, 2, 9);
    node.commit(0, boot.clone());
    assert_eq!(Node::leading(None).bound(9), None, "no process of the log's");
    let mut node = Node::leading(None);
    node.commit(0, boot.clone());
    assert_eq!(node.bound(9), Some(Index(4)));
    let mut node = Node::leading(None);
    node.commit(0, Entry::Down(NodeId(2), BootId(2)));
    assert_eq!(node.bound(2), None, "it is taken for dead");
    let mut node = Node::leading(Some(Mutant::BoundByTakenAlone));
    node.commit(0, boot);
    assert_eq!(node.bound(9), Some(Index(0)), "the seeded bug is seen");
}

#[test]
fn a_lease_grows_when_every_worker_does_by_what_it_is_bound_to() {
    let mut node = Node::new(None);
    node.tell(0, LogEvent::Follows(NodeId(2)));
    node.commit(0, Entry::Join(spec(1)));
    let renewed = |renewal| Message::Renewed { boot: BootId(1), renewal, bound: Index(1) };
    let grows = |actions: Vec<Action>| {
        actions.iter().find_map(|action| match action {
            Action::Lease(until) => Some(*until),
            _ => None,
        })
    };
    node.handle(50, Event::Tick);
    assert_eq!(grows(node.hear(60, 2, renewed(2))), None);
    node.handle(60, Event::worker(0, WorkerEvent::Applied(Index(1))));
    assert_eq!(grows(node.hear(61, 2, renewed(2))), None, "one worker does not");
    node.handle(62, Event::worker(1, WorkerEvent::Applied(Index(1))));
    assert_eq!(grows(node.hear(63, 2, renewed(2))), Some(at(50 + 2970)), "from its send");
    let other = Message::Renewed { boot: BootId(8), renewal: 1, bound: Index(0) };
    assert_eq!(grows(node.hear(64, 2, other)), None, "another process'");
}

#[test]
fn a_silent_copy_is_dropped_if_the_leader_hears_its_node() {
    let mut node = Node::leading(None);
    let change = |node: &Node, step| {
        let revision = node.control.state().cell(CellId(0)).unwrap().revision;
        Entry::Cells(vec![CellChange { cell: CellId(0), revision, step }])
    };
    let attach = change(&node, Step::Attach(NodeId(2), BootId(2)));
    node.commit(0, attach);
    let synced = change(&node, Step::Synced);
    node.commit(0, synced);
    let drop = change(&node, Step::Drop(NodeId(2)));
    let silent = Event::worker(0, WorkerEvent::Silent(CellId(0), NodeId(2)));
    node.handle(25, Event::Tick);
    node.hear(30, 2, Message::Heartbeat { boot: BootId(2), renewal: 1 });
    node.handle(40, silent.clone());
    let actions = node.handle(50, Event::Tick);
    assert!(proposes(&actions).contains(&&drop), "{actions:?}");
    let mut node = Node::leading(None);
    let actions = node.handle(900, silent);
    assert_eq!(proposes(&actions), [] as [&Entry; 0], "it is the judge's");
}

#[test]
fn a_session_with_a_longer_ttl_waits_for_the_log() {
    let mut node = Node::leading(None);
    let asked = |ttl| Event::worker(1, WorkerEvent::TtlAsked { ttl, by: "a".to_owned() });
    let confirms = |actions: &[Action]| {
        let of = |action: &Action| match action {
            Action::ConfirmTtl(worker, ttl) => Some((*worker, *ttl)),
            _ => None,
        };
        actions.iter().filter_map(of).collect::<Vec<_>>()
    };
    assert_eq!(confirms(&node.handle(0, asked(10 * SECOND))), [(1, 10 * SECOND)]);
    let actions = node.handle(0, asked(20 * SECOND));
    let raise = Entry::RaiseLongestTtl { ttl: 20 * SECOND, by: "a".to_owned() };
    assert!(confirms(&actions).is_empty() && proposes(&actions).contains(&&raise));
    let all = |ttl| vec![(0, ttl), (1, ttl)];
    assert_eq!(confirms(&node.commit(1, raise)), all(20 * SECOND));
    let intend = Entry::IntendLongestTtl(12 * SECOND);
    assert_eq!(confirms(&node.commit(2, intend)), all(12 * SECOND), "no more than that");
    assert_eq!(confirms(&node.handle(2, asked(20 * SECOND))), [], "who has more asks");
    let refused = node.handle(2003, Event::Tick);
    let is_refusal =
        |action: &Action| matches!(action, Action::RefuseTtl(1, why) if why.contains("20"));
    assert!(refused.iter().any(is_refusal), "{refused:?}");
}

#[test]
fn a_statement_is_made_by_workers_that_know_of_the_intent_and_of_the_whole_window() {
    let mut node = Node::new(None);
    node.tell(0, LogEvent::Follows(NodeId(2)));
    node.commit(0, Entry::Join(spec(1)));
    let ask = |round, after| Message::AskTtl { round, window: SECOND, after: Index(after) };
    let stated = |actions: &[Action]| {
        actions.iter().find_map(|action| match action {
            Action::Send(NodeId(2), Message::TtlStated { longest, .. }) => Some(*longest),
            _ => None,
        })
    };
    let asks = |actions: &[Action]| actions.iter().any(|it| matches!(it, Action::AskTtl { .. }));
    assert!(!asks(&node.hear(2000, 2, ask(1, 1))), "the workers do not do by it yet");
    node.applied(2000);
    assert_eq!(stated(&node.hear(999, 2, ask(1, 1))), Some(None), "it began within the window");
    assert!(asks(&node.hear(2000, 2, ask(1, 1))));
    assert!(!asks(&node.hear(2001, 2, ask(1, 1))), "once");
    let says = |worker, longest| {
        let by = String::new();
        Event::worker(worker, WorkerEvent::TtlStated { round: 1, longest, by })
    };
    assert_eq!(stated(&node.handle(2002, says(0, Some(SECOND)))), None);
    assert_eq!(stated(&node.handle(2003, says(1, Some(2 * SECOND)))), Some(Some(2 * SECOND)));
    assert!(asks(&node.hear(2004, 2, ask(2, 1))));
    let says = |worker, longest| {
        let by = String::new();
        Event::worker(worker, WorkerEvent::TtlStated { round: 2, longest, by })
    };
    node.handle(2005, says(0, None));
    assert_eq!(stated(&node.handle(2006, says(1, Some(SECOND)))), Some(None), "one cannot say");
}

#[test]
fn a_question_about_a_node_goes_by_another_and_back() {
    let mut node = Node::new(None);
    let life = Life { node: NodeId(3), boot: BootId(3) };
    let sent = |actions: Vec<Action>| {
        actions
            .into_iter()
            .filter_map(|action| match action {
                Action::Send(to, message) => Some((to, message)),
                _ => None,
            })
            .collect::<Vec<_>>()
    };
    let (leader, number) = (NodeId(2), 7);
    let ping = sent(node.hear(0, 2, Message::Probe(life, number)));
    assert_eq!(ping, [(NodeId(3), Message::Ping(leader, number))]);
    let pong = sent(node.hear(0, 3, Message::Ping(leader, number)));
    assert_eq!(pong, [(NodeId(3), Message::Pong(leader, number, BootId(1)))]);
    let alive = sent(node.hear(0, 3, Message::Pong(leader, number, BootId(3))));
    assert_eq!(alive, [(leader, Message::Alive(life, number))]);
    assert!(RoundId(0) < RoundId(1));
}

fn round(actions: &[Action]) -> Option<RoundId> {
    actions.iter().find_map(|action| match action {
        Action::Confirm(round) => Some(*round),
        _ => None,
    })
}

/// The news that a round is done may come when the term in which it was asked for is over.
#[test]
fn a_round_of_an_earlier_term_confirms_nothing_of_a_later_one() {
    let mut node = Node::leading(None);
    let heartbeat = |renewal| Message::Heartbeat { boot: BootId(2), renewal };
    let first = round(&node.hear(200, 2, heartbeat(1))).unwrap();
    node.tell(201, LogEvent::Deposed);
    node.tell(300, LogEvent::Elected { term: Term(3), before: Some(NodeId(2)) });
    node.index += 1;
    let (index, entry) = (Index(node.index), Entry::Blank);
    node.tell(300, LogEvent::Committed { index, term: Term(3), entry });
    let second = round(&node.hear(400, 2, heartbeat(2))).unwrap();
    let late = node.tell(401, LogEvent::RoundDone { round: first, committed: Index(0) });
    let is_renewed = |action: &Action| matches!(action, Action::Send(_, Message::Renewed { .. }));
    assert!(!late.iter().any(is_renewed), "{first:?} {second:?} {late:?}");
    let done = node.tell(402, LogEvent::RoundDone { round: second, committed: index });
    assert!(done.iter().any(is_renewed), "{done:?}");
}

/// A node with the id 1 that leads two, of which it has all of these cells.
fn leading_cells(bits: u8) -> Node {
    let state = State::new(CellBits::new(bits).unwrap());
    let control = Control::new(at(0), NodeId(1), (spec(1), None), Entry::Join(spec(1)), state);
    let mut node = Node { control, index: 0 };
    node.tell(0, LogEvent::Elected { term: Term(1), before: None });
    for entry in [Entry::Blank, Entry::Join(spec(1)), Entry::Join(spec(2))] {
        node.commit(0, entry);
    }
    node.applied(0);
    node
}

fn dropped(actions: &[Action]) -> usize {
    let of = |entry: &&Entry| match entry {
        Entry::Cells(changes) => {
            changes.iter().filter(|change| change.step == Step::Drop(NodeId(2))).count()
        }
        _ => 0,
    };
    proposes(actions).iter().map(of).sum()
}

#[test]
fn all_cells_whose_copy_is_silent_are_dropped_together() {
    let mut node = leading_cells(9);
    let mut out = Vec::new();
    for ms in (0..500).step_by(25) {
        out.extend(node.hear(ms, 2, Message::Heartbeat { boot: BootId(2), renewal: ms }));
    }
    for cell in 0..512 {
        let silent = WorkerEvent::Silent(CellId(cell), NodeId(2));
        out.extend(node.handle(500, Event::worker(usize::from(cell % 2), silent)));
    }
    out.extend(node.handle(550, Event::Tick));
    assert_eq!(dropped(&out), 512);
}

#[test]
fn a_death_is_proposed_however_much_is_to_be_moved() {
    let mut node = leading_cells(1);
    for ms in (0..500).step_by(25) {
        node.hear(ms, 2, Message::Heartbeat { boot: BootId(2), renewal: ms });
    }
    // Nothing of what is proposed is agreed for a while.
    for number in 0..100 {
        let change = CellChange { cell: CellId(0), revision: Index(number), step: Step::Bump };
        node.handle(500, Event::Asked(Entry::Cells(vec![change])));
    }
    let mut out = Vec::new();
    for ms in (500..1000).step_by(25) {
        out.extend(node.handle(ms, Event::Tick));
    }
    let down = Entry::Down(NodeId(2), BootId(2));
    assert!(proposes(&out).contains(&&down), "{:?}", proposes(&out));
}

#[test]
fn who_waits_for_a_longer_ttl_is_refused_in_time_also_while_nobody_leads() {
    let mut node = Node::new(None);
    node.commit(0, Entry::Join(spec(1)));
    let (ttl, by) = (20 * SECOND, "a".to_owned());
    node.handle(0, Event::worker(1, WorkerEvent::TtlAsked { ttl, by }));
    let told = node.handle(2000, Event::Tick);
    assert!(told.iter().any(|action| matches!(action, Action::RefuseTtl(1, _))), "{told:?}");
}
