//! An exhaustive search through the heart of the cluster's protocol: the machines of three nodes
//! and the log's state as production has them, one key, two clients; whatever order messages come
//! in, whenever each node applies the next entry, and whatever breaks, up to the bounds below.
//!
//! It is here, and not in the core, as the core knows nothing of the log, and this package has the
//! core for its tests anyway.
//!
//! What is left out, so that it ends:
//! - Time stands still: leases of nodes end and go on as events, those of sessions never end. What
//!   follows from clocks is for the simulators. So are takeovers: an entry that would lose the cell
//!   is none, and a queue's deadlines.
//! - A turn of a worker has one event, whatever is due is done at its end, and what it has for its
//!   peers is sent then. An entry that does not concern a node is applied by it at once.
//! - A connection between nodes keeps its order; when it breaks, what was under way may still come,
//!   in its order, before or after what the next one carries, or never. That also repeats messages.
//! - What goes between clients and nodes comes at once, but for as many requests and answers as the
//!   bounds let take their time. Clients do what the library's do: they ask again by a newer ring
//!   if the cell has another epoch by it, look at no answer but that of whom they asked last, and
//!   let a request wait that names a newer ring than its node has. They are written by hand here.
//! - States that are beyond the number of messages under way at one time are not looked at.
//!
//! A state has the machines by all that they do by (`Machine::cluster_view`), each of which is kept
//! once; so what an event makes of one is computed once, too.

#![allow(clippy::print_stdout, reason = "how many states there are is what it is run for")]

mod logs;
mod machines;
mod names;
mod protocol;
mod reached;
mod world;

use crate::cluster;
use lockring_core::Mutant;
use logs::Kind::{self, Attach, Boot, Detach, Down, Drop, Switch, Synced};
use protocol::{Bounds, Bug, Protocol};
use reached::Step;
use stateright::{Checker, HasDiscoveries, Model};

const HELD_TWICE: &str = "no key is held twice";
const FENCES: &str = "fences grow";

/// Two clients acquire the key, one of which releases it; nothing breaks, and the log goes on with
/// these entries, `changes` of them.
fn calm(kinds: &[Kind], changes: u8) -> Bounds {
    Bounds {
        kinds: kinds.to_vec(),
        changes,
        in_order: false,
        crashes: 0,
        breaks: 0,
        leases: 0,
        delays: 0,
        flight: 2,
        acquires: [1, 1],
        releases: [1, 0],
        members: 2,
    }
}

/// The log goes on with one entry after the other of just these kinds; nobody releases.
fn script(kinds: &[Kind], members: u8) -> Bounds {
    let changes = kinds.len() as u8;
    Bounds { in_order: true, releases: [0, 0], members, ..calm(kinds, changes) }
}

/// Looks at all states, and says how many there are.
fn holds(bounds: Bounds, must: &[Step]) -> usize {
    let what = format!("{bounds:?}");
    let model = Protocol::new(bounds, Bug::None);
    let checker = model.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    for (name, path) in checker.discoveries() {
        let is_failure = checker.model().property(name).expectation.discovery_is_failure();
        assert!(!is_failure, "{name}: {:#?}", path.into_actions());
    }
    assert!(checker.is_done(), "{what}: not all was looked at");
    let missing = checker.model().reached.missing(must);
    assert!(missing.is_empty(), "{what}: never {missing:?}");
    let states = checker.unique_state_count();
    println!("{states} states, depth {}: {what}", checker.max_depth());
    states
}

#[test]
fn nothing_is_granted_twice_while_connections_break() {
    let bounds = Bounds { breaks: 1, ..calm(&[Down, Drop], 1) };
    let must = [Step::Break, Step::Promoted, Step::Dropped, Step::Again, Step::AfterSwitch];
    assert!(holds(bounds, &must) > 10_000);
}

#[test]
fn nothing_is_granted_twice_by_who_comes_and_goes() {
    let kinds = [Attach, Detach, Synced, Switch, Drop];
    let bounds = Bounds { flight: 1, acquires: [1, 0], releases: [0, 0], ..calm(&kinds, 3) };
    let must = [
        Step::Synced,
        Step::Detached,
        Step::Switched,
        Step::Dropped,
        Step::Moved,
        Step::Later,
        Step::Whole,
        Step::Ready,
    ];
    assert!(holds(bounds, &must) > 10_000);
}

#[test]
fn nothing_is_granted_twice_while_processes_crash_and_leases_end() {
    let flight = Bounds { flight: 1, releases: [0, 0], ..calm(&[Down], 1) };
    let crash = Bounds { crashes: 1, ..flight.clone() };
    assert!(holds(crash, &[Step::Crash, Step::Promoted, Step::Again]) > 10_000);
    let lease = Bounds { leases: 1, flight: 2, releases: [1, 0], ..flight };
    assert!(holds(lease, &[Step::LeaseEnds, Step::Promoted, Step::Later]) > 10_000);
}

/// `MODEL=large` looks at more than five million states, in some minutes.
#[test]
fn nothing_is_granted_twice_in_larger_bounds() {
    if std::env::var("MODEL").as_deref() != Ok("large") {
        println!("MODEL=large is not set");
        return;
    }
    let flight = |kinds, changes| Bounds { flight: 1, releases: [0, 0], ..calm(kinds, changes) };
    let crash = Bounds { crashes: 1, ..flight(&[Down, Drop, Attach, Synced], 2) };
    let switch = Bounds { leases: 1, ..flight(&[Switch, Down], 2) };
    let boot = Bounds { crashes: 1, releases: [1, 0], ..flight(&[Boot, Down, Drop], 3) };
    let all = [
        holds(crash, &[Step::Crash, Step::Promoted, Step::Dropped, Step::Synced]),
        holds(switch, &[Step::LeaseEnds, Step::Switched, Step::Promoted, Step::AfterSwitch]),
        holds(boot, &[Step::Crash, Step::Promoted, Step::Dropped]),
    ];
    assert!(all.iter().sum::<usize>() > 5_000_000, "{all:?}");
}

/// The bugs that removing one mechanism of the protocol makes, each with what the log does when it
/// shows.
fn bugs() -> Vec<(Bug, Bounds)> {
    let twice = Bounds { acquires: [2, 1], delays: 1, ..calm(&[Switch], 1) };
    let old = [Down, Attach, Synced, Switch];
    let stale = [Attach, Detach, Attach, Synced, Down];
    let cut = Bounds { breaks: 1, ..calm(&[Down], 1) };
    vec![
        (Bug::Core(Mutant::AnswerBeforeRound), calm(&[Down], 1)),
        (Bug::Core(Mutant::AcksOldEpoch), Bounds { flight: 1, ..script(&old, 2) }),
        (Bug::Core(Mutant::DropsCopyAlone), cut),
        (Bug::Core(Mutant::NoSyncRound), script(&[Switch, Down], 3)),
        (Bug::Core(Mutant::LearnerNotWaited), script(&[Attach, Synced, Down], 1)),
        (Bug::Log(cluster::Mutant::LearnerPromoted), script(&[Drop, Attach, Down], 2)),
        (Bug::Log(cluster::Mutant::CompareIgnored), Bounds { flight: 1, ..script(&stale, 1) }),
        (Bug::IdIgnored, twice),
    ]
}

/// How many states were looked at before one showed that a key is held twice, or a token goes back.
fn killed(bug: Bug, bounds: Bounds) -> usize {
    let model = Protocol::new(bounds, bug);
    let either = HasDiscoveries::AnyOf([HELD_TWICE, FENCES].into());
    let checker = model.checker().finish_when(either).spawn_bfs().join();
    let found = checker.discoveries();
    let by = [HELD_TWICE, FENCES].into_iter().find(|name| found.contains_key(name));
    let states = checker.unique_state_count();
    println!("{bug:?}: {by:?} after {states} states");
    assert!(by.is_some(), "{bug:?} is alive after {states} states");
    states
}

#[test]
fn each_mechanism_that_is_removed_is_missed() {
    for (bug, bounds) in bugs() {
        killed(bug, bounds);
    }
}
