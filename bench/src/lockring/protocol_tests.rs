//! Our own group against nodes in memory that speak our frames, in virtual time: an honest one, one
//! that grants twice, one whose fences fall, and ones that lose holds. What the group makes of
//! their bytes goes through the safety check as it does in a run.

use super::*;
use crate::board::{Board, Phase};
use crate::caller_group::{CallerGroup, Pacing, Work};
use crate::choices::KeyDist;
use crate::keys::KeyChooser;
use crate::safety::{Guarantees, SafetyCheck};
use lockring_client::proto::{
    BootId, Digest, Fence, HelloReply, HoldId, LostReason, NodeAddress, NodeId, NodeInfo,
    Operation, PROTOCOL, Push, Reply, Request, Welcome, codec,
};
use lockring_client::ring::{CellBits, Epoch, RingTable, RingVersion};
use lockring_client::router::Ring;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

const WORKERS: u16 = 2;
const KEYS: u32 = 6;
const CALLERS: u32 = 16;
const STEP: u64 = 10_000;

/// How a node misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Every fourth claim of a busy key is granted all the same.
    GrantsTwice,
    /// Every fourth fence is the first there ever was.
    FencesFall,
    /// Every fourth release finds nothing.
    ForgetsHolds,
}

/// Who waits for a key, by request id; the first one holds it.
type Line = VecDeque<u64>;

/// One worker of a node.
struct Worker {
    fault: Fault,
    lines: BTreeMap<Vec<u8>, Line>,
    fence: u64,
    operations: u64,
}

impl Worker {
    fn new(fault: Fault) -> Self {
        Self { fault, lines: BTreeMap::new(), fence: 0, operations: 0 }
    }

    /// Whether this is one of the operations that its fault spoils.
    fn errs(&mut self, fault: Fault) -> bool {
        self.operations += 1;
        self.fault == fault && self.operations.is_multiple_of(4)
    }

    /// Answers every request in `bytes`.
    fn answer(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut replies = Vec::new();
        let mut rest = bytes;
        while let Some((body, after)) = codec::split_frame(rest).unwrap() {
            let request: Request<'_> = codec::decode_frame(body).unwrap();
            match request {
                Request::Keyed { id, operation: Operation::Acquire { .. }, key, .. } => {
                    self.acquire(id, key, &mut replies);
                }
                Request::Keyed { id, operation: Operation::Release { .. }, key, .. } => {
                    self.release(id, key, &mut replies);
                }
                Request::Renew { id, .. } => {
                    let renewed =
                        Reply::Renewed { id, version: 1, settled: 1, digest: Digest::default() };
                    codec::encode_frame(&renewed, &mut replies);
                }
                other => panic!("a group does not send {other:?}"),
            }
            rest = after;
        }
        assert!(rest.is_empty(), "a group sends whole frames");
        replies
    }

    fn acquire(&mut self, id: u64, key: &[u8], replies: &mut Vec<u8>) {
        let twice = self.errs(Fault::GrantsTwice);
        let line = self.lines.entry(key.to_vec()).or_default();
        let free = line.is_empty();
        if free || !twice {
            line.push_back(id);
        }
        if free || twice {
            self.grant(id, replies);
        }
    }

    fn grant(&mut self, id: u64, replies: &mut Vec<u8>) {
        self.fence += 1;
        let counted = if self.errs(Fault::FencesFall) { 1 } else { self.fence };
        let fence = Fence(1 << 40 | counted);
        codec::encode_frame(&Reply::Granted { id, version: 1, fence }, replies);
    }

    fn release(&mut self, id: u64, key: &[u8], replies: &mut Vec<u8>) {
        let line = self.lines.get_mut(key).unwrap();
        line.pop_front();
        let next = line.front().copied();
        let reply = match self.errs(Fault::ForgetsHolds) {
            true => Reply::NotHeld { id, version: 1 },
            false => Reply::Released { id, version: 1 },
        };
        codec::encode_frame(&reply, replies);
        if let Some(next) = next {
            self.grant(next, replies);
        }
    }
}

fn ring() -> Arc<Ring> {
    let addresses = vec![NodeAddress { host: String::new(), port: 1 }];
    let node = NodeInfo { id: NodeId(7), addresses, workers: WORKERS, boot: BootId(1) };
    let bits = CellBits::new(4).unwrap();
    let table = RingTable::founded(RingVersion(1), bits, node, Epoch(1)).unwrap();
    Arc::new(Ring::new(table).unwrap())
}

/// A session that every worker has welcomed.
fn session() -> Session {
    let now = session_time(Time(0));
    let mut session = Session::new(config(Duration::from_secs(10)).unwrap(), now, 0);
    session.ring_is(now, ring());
    for worker in 0..WORKERS {
        let link = match worker {
            0 => LinkId::FIRST,
            _ => session.link_to(now, WorkerId { node: NodeId(7), worker }),
        };
        session.connected(now, link);
        session.outgoing(link).clear();
        let welcome = Welcome {
            protocol: PROTOCOL,
            fresh: true,
            incarnation: 1,
            ttl_ms: 10_000,
            ring_version: 1,
            node: 7,
            boot: 1,
            worker,
            namespace: "default".to_owned(),
        };
        let mut bytes = Vec::new();
        codec::encode_frame(&HelloReply::Welcome(welcome), &mut bytes);
        assert_eq!(session.receive(now, link, &bytes).unwrap(), bytes.len());
        session.outcomes().clear();
    }
    session
}

/// A group with its node and a clock that moves by hand.
struct World {
    group: CallerGroup<LockringProtocol>,
    workers: Vec<Worker>,
    board: Board,
    now: Time,
}

impl World {
    fn new(fault: Fault) -> Self {
        let protocol = LockringProtocol::over(session(), CALLERS);
        let chooser = KeyChooser::new(KEYS, KeyDist::Uniform, 1);
        let hold = Duration::from_nanos(2 * STEP);
        let work = Work::Pairs { chooser, pacing: Pacing::Closed, hold };
        let mut board = Board::new(SafetyCheck::new(Guarantees::FENCED, KEYS));
        board.begin_round();
        Self {
            group: CallerGroup::new(protocol, work, 0, CALLERS),
            workers: (0..WORKERS).map(|_| Worker::new(fault)).collect(),
            board,
            now: Time(0),
        }
    }

    /// Turns with a round trip of one step. The replies of a worker come in two cuts.
    fn run(&mut self, phase: Phase, steps: u32) -> Result<(), Broken> {
        for _ in 0..steps {
            self.group.turn(self.now, phase, &mut self.board);
            self.now.0 += STEP;
            for (number, worker) in self.workers.iter_mut().enumerate() {
                let sent = std::mem::take(self.group.protocol_mut().outgoing(number));
                let replies = worker.answer(&sent);
                self.group.protocol_mut().read_from(number);
                self.group.receive(self.now, &replies[..replies.len() / 2], &mut self.board)?;
                let taken = self.group.protocol_mut().taken();
                self.group.receive(self.now, &replies[taken..], &mut self.board)?;
                assert_eq!(self.group.protocol_mut().taken(), replies.len() - taken);
            }
        }
        Ok(())
    }

    fn found(&mut self) -> (u64, u64) {
        let safety = &mut self.board.safety;
        (safety.double_grants().unwrap(), safety.fence_regressions().unwrap())
    }
}

#[test]
fn an_honest_node_is_found_clean_over_both_of_its_workers() {
    let mut world = World::new(Fault::None);
    world.run(Phase::Running, 500).unwrap();
    world.run(Phase::Paused, 100).unwrap();
    assert!(world.group.is_quiet() && world.board.pairs > 500, "{:?}", world.board);
    assert_eq!((world.board.errors, world.found()), (0, (0, 0)));
    assert!(world.workers.iter().all(|worker| worker.fence > 0), "both have work");
}

#[test]
fn a_node_that_grants_twice_is_found_out() {
    let mut world = World::new(Fault::GrantsTwice);
    world.run(Phase::Running, 100).unwrap();
    let (double_grants, fence_regressions) = world.found();
    assert!(double_grants > 10 && fence_regressions == 0, "{:?}", world.found());
}

#[test]
fn a_node_whose_fences_fall_is_found_out() {
    let mut world = World::new(Fault::FencesFall);
    world.run(Phase::Running, 200).unwrap();
    let (double_grants, fence_regressions) = world.found();
    assert!(double_grants == 0 && fence_regressions > 10, "{:?}", world.found());
}

#[test]
fn a_release_of_what_is_not_held_is_an_error_of_the_run() {
    let mut world = World::new(Fault::ForgetsHolds);
    world.run(Phase::Running, 200).unwrap();
    assert!(world.board.errors > 10, "{:?}", world.board);
    assert_eq!(world.board.first_error.as_deref(), Some("a hold was lost"));
}

#[test]
fn a_lost_hold_ends_the_group() {
    let mut world = World::new(Fault::None);
    world.run(Phase::Running, 1).unwrap();
    // Every hold of the first worker: its fences count up from one.
    let holds = (0..16).flat_map(|cell| {
        (1..=u64::from(CALLERS)).map(move |fence| HoldId { cell, fence: Fence(1 << 40 | fence) })
    });
    let mut bytes = Vec::new();
    let lost = Push::Lost { reason: LostReason::Forced, holds: holds.collect() };
    codec::encode_frame(&lost, &mut bytes);
    let protocol = world.group.protocol_mut();
    assert_eq!(protocol.pushed(world.now, 0, &bytes).unwrap(), bytes.len());
    protocol.read_from(0);
    let told = world.group.receive(world.now, &[], &mut world.board).unwrap_err();
    assert!(told.0.contains("lost"), "{told}");
}

#[test]
fn bytes_that_are_no_frames_end_the_group() {
    let mut world = World::new(Fault::None);
    world.group.protocol_mut().read_from(1);
    assert!(world.group.receive(Time(0), &[0xff; 64], &mut world.board).is_err());
}
