//! The way down, step by step.

use super::*;
use crate::cluster::{NodeSpec, Process, Status};
use lockring_ring::{BootId, CellBits};

const SECOND: Duration = Duration::from_secs(1);

fn at(ms: u64) -> Time {
    Time(ms * 1000)
}

/// Two nodes, and a longest TTL of a minute.
fn two(mutant: Option<Mutant>) -> State {
    let mut state = State::new(CellBits::new(1).unwrap()).with_mutant(mutant);
    for boot in 1..=2 {
        let process = Process { boot: BootId(boot), workers: 1, addresses: Vec::new() };
        let spec = NodeSpec { weight: 1, zone: None, host: boot.to_string(), process };
        put(&mut state, &Entry::Join(spec));
    }
    put(&mut state, &Entry::RaiseLongestTtl { ttl: 60 * SECOND, by: "a".to_owned() });
    state
}

fn put(state: &mut State, entry: &Entry) {
    state.apply(Index(state.applied().0 + 1), entry);
}

/// No lease has ended yet.
fn runs(_: Life) -> Time {
    Time::NEVER
}

/// The round and the entry of a question to both nodes.
fn asked(wants: &[Want]) -> (u64, Index) {
    let [
        Want::Send(NodeId(1), Message::AskTtl { round, window, after }),
        Want::Send(NodeId(2), second),
    ] = wants
    else {
        panic!("{wants:?}")
    };
    assert_eq!(*window, Duration::from_millis(63_630));
    assert_eq!(*second, Message::AskTtl { round: *round, window: *window, after: *after });
    (*round, *after)
}

fn state_all(lowering: &mut Lowering, round: u64, ttls: [Option<u64>; 2]) {
    for (node, ttl) in (1..).map(NodeId).zip(ttls) {
        let longest = ttl.map(Duration::from_secs);
        lowering.stated(node, Statement { round, longest, by: format!("{ttl:?}") });
    }
}

/// A lowering whose first round has led to an intent.
fn intended(state: &mut State) -> Lowering {
    let mut lowering = Lowering::new(at(0), 7);
    assert_eq!(lowering.look(at(2999), state, runs), [], "it settles first");
    let (round, after) = asked(&lowering.look(at(3000), state, runs));
    assert_eq!((round, after), (8, Index(0)));
    state_all(&mut lowering, round - 1, [Some(0), Some(0)]);
    assert_eq!(lowering.look(at(3100), state, runs), [], "of another round");
    state_all(&mut lowering, round, [Some(0), Some(30)]);
    let intent = Entry::IntendLongestTtl(30 * SECOND);
    assert_eq!(lowering.look(at(3200), state, runs), [Want::Propose(intent.clone())]);
    put(state, &intent);
    lowering
}

#[test]
fn it_falls_when_all_have_stated_twice() {
    let mut state = two(None);
    let mut lowering = intended(&mut state);
    let (round, after) = asked(&lowering.look(at(3300), &state, runs));
    assert_eq!(after, state.longest().intent.unwrap().at, "after they knew of it");
    lowering.stated(NodeId(1), Statement { round, longest: Some(SECOND), by: String::new() });
    assert_eq!(lowering.look(at(3400), &state, runs), [], "one has not stated");
    state_all(&mut lowering, round, [Some(1), Some(30)]);
    let lower = Entry::LowerLongestTtl { intent: after, by: "Some(30)".to_owned() };
    assert_eq!(lowering.look(at(3500), &state, runs), [Want::Propose(lower.clone())]);
    put(&mut state, &lower);
    assert_eq!(state.longest().ttl, 30 * SECOND);
}

#[test]
fn who_has_more_or_says_nothing_in_time_ends_the_intent() {
    for ttls in [[Some(1), Some(31)], [Some(1), None]] {
        let mut state = two(None);
        let mut lowering = intended(&mut state);
        let (round, _) = asked(&lowering.look(at(3300), &state, runs));
        state_all(&mut lowering, round, ttls);
        let raise = Entry::RaiseLongestTtl { ttl: 60 * SECOND, by: "a".to_owned() };
        assert_eq!(lowering.look(at(3400), &state, runs), [Want::Propose(raise)]);
    }
    let mut state = two(None);
    let mut lowering = intended(&mut state);
    let (round, _) = asked(&lowering.look(at(3300), &state, runs));
    lowering.stated(NodeId(1), Statement { round, longest: Some(SECOND), by: String::new() });
    assert!(matches!(lowering.look(at(3500), &state, runs)[..], [Want::Send(NodeId(2), _)]));
    lowering.look(at(4300), &state, runs);
    state_all(&mut lowering, round, [Some(1), Some(1)]);
    let late = lowering.look(at(4301), &state, runs);
    assert!(matches!(late[..], [Want::Propose(Entry::RaiseLongestTtl { .. })]), "{late:?}");
}

#[test]
fn a_node_that_is_down_owes_no_statement_once_nobody_can_believe_in_what_it_had() {
    for (ended, owes) in [(3000, false), (4000, true)] {
        let mut state = two(None);
        put(&mut state, &Entry::Down(NodeId(2), BootId(2)));
        assert_eq!(state.nodes()[&NodeId(2)].status, Status::Down);
        let mut lowering = Lowering::new(at(0), 7);
        let now = at(3000 + 63_630);
        let (round, _) = asked(&lowering.look(now, &state, |_| at(ended)));
        lowering.stated(NodeId(1), Statement { round, longest: Some(SECOND), by: String::new() });
        let wants = lowering.look(now, &state, |_| at(ended));
        assert_eq!(wants.is_empty(), owes, "{wants:?}");
    }
}

#[test]
fn nothing_is_lowered_while_a_cell_is_lost_or_takes_claims_of_earlier_holds() {
    let mut state = two(None);
    let mut lowering = Lowering::new(at(0), 7);
    put(&mut state, &Entry::Down(NodeId(1), BootId(1)));
    assert_eq!(lowering.look(at(3000), &state, runs), []);
    put(&mut state, &Entry::Up(NodeId(1), BootId(1)));
    let (round, _) = asked(&lowering.look(at(3000), &state, runs));
    state_all(&mut lowering, round, [Some(0), Some(0)]);
    lowering.look(at(3100), &state, runs);
    put(&mut state, &Entry::IntendLongestTtl(30 * SECOND));
    let (round, _) = asked(&lowering.look(at(3200), &state, runs));
    state_all(&mut lowering, round, [Some(0), Some(0)]);
    put(&mut state, &Entry::Down(NodeId(1), BootId(1)));
    let wants = lowering.look(at(3300), &state, runs);
    assert!(matches!(wants[..], [Want::Propose(Entry::RaiseLongestTtl { .. })]), "{wants:?}");
}

/// Of a node that was always alone what is gone is believed in by nobody.
#[test]
fn who_is_alone_states_what_there_is() {
    let mut state = State::new(CellBits::new(1).unwrap());
    let process = Process { boot: BootId(1), workers: 1, addresses: Vec::new() };
    let spec = NodeSpec { weight: 1, zone: None, host: String::new(), process };
    put(&mut state, &Entry::Join(spec));
    put(&mut state, &Entry::RaiseLongestTtl { ttl: 3600 * SECOND, by: "a".to_owned() });
    let wants = Lowering::new(at(0), 7).look(at(3000), &state, runs);
    let [Want::Send(NodeId(1), Message::AskTtl { window, .. })] = wants[..] else {
        panic!("{wants:?}")
    };
    assert_eq!(window, Duration::ZERO);
}

#[test]
fn a_lowering_that_does_not_ask_again_is_seen() {
    let lowers = |mutant| {
        let mut state = two(mutant);
        put(&mut state, &Entry::IntendLongestTtl(30 * SECOND));
        let wants = Lowering::new(at(0), 7).look(at(0), &state, runs);
        wants.iter().any(|want| matches!(want, Want::Propose(Entry::LowerLongestTtl { .. })))
    };
    assert!(!lowers(None) && lowers(Some(Mutant::LoweredUnasked)));
}
