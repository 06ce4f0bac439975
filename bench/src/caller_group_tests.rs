//! The group against servers in memory, in virtual time: an honest one, one that grants twice, one
//! whose fences fall, and ones that fail.

use super::*;
use crate::choices::KeyDist;
use crate::keys::Key;
use crate::safety::{Guarantees, SafetyCheck};
use std::collections::HashMap;

/// How a server misbehaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// Every fourth busy key is granted all the same.
    GrantsTwice,
    /// Every fourth fence is that of the grant before.
    FencesFall,
    /// Every fourth operation fails.
    Fails,
}

/// A server and the connection to it in one: commands are queued, [`FakeServer::receive`] answers.
struct FakeServer {
    fault: Fault,
    asked: Vec<(Slot, Key, bool)>,
    holders: HashMap<Key, Slot>,
    fence: u64,
    operations: u64,
}

impl FakeServer {
    fn new(fault: Fault) -> Self {
        Self { fault, asked: Vec::new(), holders: HashMap::new(), fence: 0, operations: 0 }
    }

    fn answer(&mut self, slot: Slot, key: Key, acquire: bool) -> Answer {
        self.operations += 1;
        let faulty = self.operations.is_multiple_of(4);
        if !acquire {
            if self.holders.get(&key) == Some(&slot) {
                self.holders.remove(&key);
            }
            return Answer::Released { slot };
        }
        if faulty && self.fault == Fault::Fails {
            return Answer::Failed { slot };
        }
        let twice = faulty && self.fault == Fault::GrantsTwice;
        if self.holders.contains_key(&key) && !twice {
            return Answer::Busy { slot };
        }
        self.holders.insert(key, slot);
        self.fence += u64::from(!(faulty && self.fault == Fault::FencesFall));
        Answer::Granted { slot, fence: Some(self.fence) }
    }
}

impl Protocol for FakeServer {
    fn acquire(&mut self, _now: Time, slot: Slot, key: &Key, out: &mut Vec<u8>) {
        self.asked.push((slot, *key, true));
        out.push(b'a');
    }

    fn release(
        &mut self,
        _now: Time,
        slot: Slot,
        key: &Key,
        fence: Option<u64>,
        out: &mut Vec<u8>,
    ) {
        assert!(fence.is_some(), "a release names the fence of its grant");
        self.asked.push((slot, *key, false));
        out.push(b'r');
    }

    fn receive(
        &mut self,
        _now: Time,
        bytes: &[u8],
        answers: &mut Vec<Answer>,
    ) -> Result<(), Broken> {
        // The bytes are the commands themselves: what was sent is answered, and only that.
        for (slot, key, acquire) in self.asked.drain(..bytes.len()).collect::<Vec<_>>() {
            answers.push(self.answer(slot, key, acquire));
        }
        Ok(())
    }

    fn failure(&self) -> Option<&str> {
        Some("out of order")
    }
}

const STEP: u64 = 10_000;

/// A group with its board and a clock that moves by hand.
struct World {
    group: CallerGroup<FakeServer>,
    board: Board,
    now: Time,
}

impl World {
    fn new(fault: Fault, callers: u32, work: Work) -> Self {
        let safety = SafetyCheck::new(Guarantees::FENCED, 100);
        let mut board = Board::new(safety);
        board.begin_round();
        let group = CallerGroup::new(FakeServer::new(fault), work, 1000, callers);
        Self { group, board, now: Time(0) }
    }

    /// Turns with a round trip of one step.
    fn run(&mut self, phase: Phase, steps: u32) {
        for _ in 0..steps {
            self.group.turn(self.now, phase, &mut self.board);
            let sent = std::mem::take(self.group.out());
            self.now.0 += STEP;
            self.group.receive(self.now, &sent, &mut self.board).unwrap();
        }
    }

    /// Pauses and lets everything under way come to its end.
    fn finish(&mut self) {
        self.run(Phase::Paused, 3000);
        assert!(self.group.is_quiet(), "{:?}", self.board);
        assert_eq!(self.board.outstanding, 0);
        assert!(self.group.protocol.holders.is_empty());
        assert_eq!(self.group.next_deadline(), None);
    }

    fn found(&mut self) -> (u64, u64) {
        let safety = &mut self.board.safety;
        (safety.double_grants().unwrap(), safety.fence_regressions().unwrap())
    }
}

fn pairs(keys: u32, pacing: Pacing, hold: Duration) -> Work {
    Work::Pairs { chooser: KeyChooser::new(keys, KeyDist::Uniform, 1), pacing, hold }
}

fn closed(keys: u32, hold_us: u64) -> Work {
    pairs(keys, Pacing::Closed, Duration::from_micros(hold_us))
}

#[test]
fn a_closed_loop_keeps_every_caller_at_work() {
    let mut world = World::new(Fault::None, 1, closed(100, 0));
    world.run(Phase::Running, 100);
    // One caller alone: a step for the acquire, a step for the release.
    assert_eq!((world.board.grants, world.board.pairs), (50, 50));
    let acquire = world.board.acquire.quantiles().unwrap();
    assert!((acquire.p50_us - 10.0).abs() < 0.1 && (acquire.max_us - 10.0).abs() < 0.1);
    world.finish();
    assert_eq!(world.found(), (0, 0));
}

#[test]
fn an_honest_server_is_found_honest_under_contention() {
    for hold_us in [0, 35] {
        let mut world = World::new(Fault::None, 16, closed(4, hold_us));
        world.run(Phase::Running, 5000);
        assert!(world.board.pairs > 1000, "{}", world.board.pairs);
        // Callers that found a key busy waited at least one pause.
        assert!(world.board.acquire.quantiles().unwrap().max_us > 150.0);
        world.finish();
        assert_eq!((world.found(), world.board.errors), ((0, 0), 0));
    }
}

#[test]
fn a_server_that_grants_twice_is_caught() {
    for hold_us in [0, 35] {
        let mut world = World::new(Fault::GrantsTwice, 16, closed(4, hold_us));
        world.run(Phase::Running, 1000);
        let (double_grants, fence_regressions) = world.found();
        assert!(double_grants > 10, "hold {hold_us}: {double_grants}");
        assert_eq!(fence_regressions, 0);
    }
}

#[test]
fn a_server_whose_fences_fall_is_caught() {
    let mut world = World::new(Fault::FencesFall, 4, closed(1, 0));
    world.run(Phase::Running, 1000);
    world.finish();
    let (double_grants, fence_regressions) = world.found();
    assert_eq!(double_grants, 0);
    assert!(fence_regressions > 10, "{fence_regressions}");
}

#[test]
fn failures_are_counted_and_survived() {
    let mut world = World::new(Fault::Fails, 4, closed(100, 0));
    world.run(Phase::Running, 1000);
    world.finish();
    assert!(world.board.errors > 5 && world.board.pairs > 5, "{:?}", world.board.errors);
    assert_eq!(world.board.first_error.as_deref(), Some("out of order"));
    assert_eq!(world.found(), (0, 0));
}

#[test]
fn a_hold_lasts_as_long_as_asked() {
    let mut world = World::new(Fault::None, 1, closed(100, 50));
    // Acquire 1 step, hold 5, release 1.
    world.run(Phase::Running, 7 * 10);
    assert_eq!(world.board.pairs, 10);
    world.finish();
}

#[test]
fn an_open_loop_counts_from_the_intended_start() {
    // One start per step and one caller, who needs two steps for a pair: it falls behind.
    let pacing = Pacing::Open { interval_ns: STEP, offset_ns: 0 };
    let mut world = World::new(Fault::None, 1, pairs(100, pacing, Duration::ZERO));
    world.run(Phase::Running, 100);
    assert_eq!(world.board.pairs, 50);
    let acquire = world.board.acquire.quantiles().unwrap();
    assert!((acquire.max_us / 500.0 - 1.0).abs() < 0.01, "{acquire:?}");
    world.finish();
    // The backlog of a round does not burden the next.
    world.board.begin_round();
    world.run(Phase::Running, 10);
    assert!(world.board.acquire.quantiles().unwrap().max_us < 70.0);
}

#[test]
fn an_open_loop_that_keeps_up_starts_on_time() {
    let pacing = Pacing::Open { interval_ns: 4 * STEP, offset_ns: 3 * STEP };
    let mut world = World::new(Fault::None, 8, pairs(100, pacing, Duration::ZERO));
    world.run(Phase::Running, 3);
    assert_eq!((world.board.grants, world.group.next_deadline()), (0, Some(Time(3 * STEP))));
    world.run(Phase::Running, 80);
    assert_eq!(world.board.grants, 20);
    assert!(world.board.acquire.quantiles().unwrap().max_us < 10.1);
}

#[test]
fn a_fill_holds_every_key_once() {
    let mut world = World::new(Fault::None, 8, Work::Fill { next: 10, end: 95 });
    world.run(Phase::Running, 20);
    assert!(world.group.is_quiet());
    assert_eq!((world.board.grants, world.board.pairs, world.found()), (85, 0, (0, 0)));
    assert_eq!(world.group.protocol.holders.len(), 85);
}

#[test]
fn an_answer_nobody_waits_for_ends_the_group() {
    let mut world = World::new(Fault::None, 2, closed(100, 0));
    world.run(Phase::Running, 1);
    let stray = Answer::Released { slot: Slot(7) };
    assert!(world.group.apply(world.now, stray, &mut world.board).is_err());
    let early = Answer::Released { slot: Slot(0) };
    assert!(world.group.apply(world.now, early, &mut world.board).is_err());
}
