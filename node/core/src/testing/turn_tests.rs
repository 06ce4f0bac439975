//! What a turn may cost, counted in work: nobody holds the worker up, whatever is asked.

use super::view_tests::World;
use crate::{Action, Event};
use lockring_proto::{Claim, Fence, HoldId, ListCursor, Operation, Push, Reply, Request, Wait};
use lockring_ring::Epoch;

/// What a turn may cost by default, and what a tick may do.
const TURN: u64 = 256;
const SLICE: u64 = 256;

fn acquire(id: u64, claim: Claim, key: &[u8]) -> Request<'_> {
    Request::Keyed {
        id,
        version: 1,
        operation: Operation::Acquire { claim, wait: Wait::Forever },
        key,
    }
}

/// As many turns as are needed: what came of them, and how many there were.
fn turns(world: &mut World, conn: u64, requests: &[Request<'_>]) -> (Vec<Action>, u64) {
    let (mut all, mut rest, mut count) = (Vec::new(), requests, 0);
    while !rest.is_empty() {
        let (mut actions, taken) = world.turn(conn, rest);
        world.machine.audit().unwrap();
        all.append(&mut actions);
        (rest, count) = (&rest[taken..], count + 1);
    }
    (all, count)
}

/// Connection 1 holds this many keys; connection 2 is there.
fn holding(count: u64) -> World {
    let mut world = World::new();
    world.open(1);
    world.open(2);
    for number in 0..count {
        world.acquire(1, 1 + number, &format!("key{number}"), Claim::EXCLUSIVE);
    }
    world
}

/// Connections 2 and more wait with shared claims for what connection 1 holds.
fn awaited(waiters: u64) -> World {
    let mut world = World::new();
    world.open(1);
    world.open(2);
    world.acquire(1, 1, "k", Claim::EXCLUSIVE);
    for id in 1..=waiters {
        world.acquire(2, id, "k", Claim::SHARED);
    }
    world
}

fn granted(world: &World) -> u64 {
    world.machine.stats().grants_queued
}

#[test]
fn cheap_requests_share_turns() {
    let mut world = World::new();
    world.open(1);
    let keys: Vec<String> = (0..3 * TURN).map(|number| format!("key{number}")).collect();
    let requests: Vec<Request<'_>> =
        (1..).zip(&keys).map(|(id, key)| acquire(id, Claim::EXCLUSIVE, key.as_bytes())).collect();
    let (actions, count) = turns(&mut world, 1, &requests);
    assert_eq!((actions.len() as u64, count), (3 * TURN, 3));
}

#[test]
fn listings_and_the_ring_are_dear() {
    let mut world = holding(2000);
    let list = Request::List {
        id: 9000,
        namespace: "",
        cursor: ListCursor::default(),
        rows: 90,
        prefix: b"none",
    };
    let (_, count) = turns(&mut world, 2, &vec![list; 40]);
    assert_eq!(count, 40, "each looks at as much as a turn may cost");
    let (_, count) = turns(&mut world, 2, &vec![Request::GetRing { id: 9001, known: 0 }; 40]);
    assert_eq!(count, 40);
    let inspect = Request::Keyed {
        id: 9002,
        version: 1,
        operation: Operation::Inspect { namespace: "" },
        key: b"key1",
    };
    let (_, count) = turns(&mut world, 2, &vec![inspect; TURN as usize]);
    assert_eq!(count, 3);
}

#[test]
fn answers_are_paid_by_their_bytes() {
    let mut world = World::new();
    world.open(1);
    for number in 0..90 {
        world.acquire(1, 1 + number, &format!("{number:0500}"), Claim::EXCLUSIVE);
    }
    let cursor = ListCursor::default();
    let list = Request::List { id: 9000, namespace: "", cursor, rows: 90, prefix: b"" };
    let (actions, count) = turns(&mut world, 1, &vec![list; 20]);
    assert_eq!(actions.len(), 20);
    assert!(count >= 10, "20 listings of 48 KB each in {count} turns");
}

#[test]
fn a_long_queue_is_granted_in_slices_and_newcomers_stay_behind() {
    let mut world = awaited(4 * SLICE);
    let release = Request::Keyed {
        id: 2,
        version: 1,
        operation: Operation::Release { fence: fence(1) },
        key: b"k",
    };
    turns(&mut world, 1, &[release]);
    assert_eq!(granted(&world), SLICE);
    let newcomer = world.acquire(1, 3, "k", Claim::SHARED);
    assert!(format!("{newcomer:?}").contains("Queued"), "{newcomer:?}");
    for slices in 2..=4 {
        assert_eq!(world.machine.next_deadline(), Some(world.now), "the rest is due at once");
        world.run(Event::Tick);
        world.machine.audit().unwrap();
        assert_eq!(granted(&world), slices * SLICE);
    }
    world.run(Event::Tick);
    assert_eq!(granted(&world), 4 * SLICE + 1, "the newcomer is the last");
    assert_ne!(world.machine.next_deadline(), Some(world.now));
}

#[test]
fn two_long_queues_are_served_in_turn() {
    let mut world = World::new();
    world.open(1);
    world.open(2);
    for (id, key) in [(1, "k"), (2, "j")] {
        world.acquire(1, id, key, Claim::EXCLUSIVE);
        for number in 0..4 * SLICE {
            world.acquire(2, number * 4 + id, key, Claim::SHARED);
        }
    }
    for (id, key) in [(3, "k"), (4, "j")] {
        for counter in 1..20 {
            let (version, fence) = (1, fence(counter));
            world.turn(
                1,
                &[Request::Keyed {
                    id,
                    version,
                    operation: Operation::Release { fence },
                    key: key.as_bytes(),
                }],
            );
        }
    }
    let served = |world: &World, key: &str| {
        let key = ("default".to_owned(), key.as_bytes().to_vec());
        world.machine.view().keys[&key].holders.len() as u64
    };
    assert_eq!((served(&world, "k"), served(&world, "j")), (SLICE, SLICE));
    for _ in 0..2 {
        world.run(Event::Tick);
    }
    assert_eq!((served(&world, "k"), served(&world, "j")), (2 * SLICE, 2 * SLICE));
}

/// Waiters that died with their link, and are at the head of a queue.
#[test]
fn dead_heads_are_dropped_in_slices() {
    let mut world = awaited(4 * SLICE);
    world.open(3);
    world.walk_to(crate::Time(5_000_000));
    world.acquire(1, 2, "other", Claim::EXCLUSIVE);
    world.acquire(3, 1, "k", Claim::EXCLUSIVE);
    world.walk_to(crate::Time(10_090_000));
    world.now = crate::Time(10_110_000);
    let release = Request::Keyed {
        id: 3,
        version: 1,
        operation: Operation::Release { fence: fence(1) },
        key: b"k",
    };
    turns(&mut world, 1, &[release]);
    assert_eq!(world.machine.stats().dead_waiters, SLICE);
    let mut before = SLICE;
    while granted(&world) == 0 {
        world.run(Event::Tick);
        let dead = world.machine.stats().dead_waiters;
        // A slice of each thing that a tick does.
        assert!(dead - before <= 3 * SLICE, "{} in one tick", dead - before);
        before = dead;
    }
    assert_eq!(before, 4 * SLICE);
}

#[test]
fn many_holds_are_forced_in_several_turns_and_later_ones_stay() {
    let mut world = World::new();
    for conn in 1..=3 {
        world.open(conn);
    }
    for id in 1..=4 * TURN {
        world.acquire(1, id, "k", Claim::SHARED);
    }
    let force = [Request::Keyed {
        id: 1,
        version: 1,
        operation: Operation::Force { namespace: "" },
        key: b"k",
    }];
    let (first, taken) = world.turn(2, &force);
    let [Action::Push { push: Push::Lost { holds, .. }, .. }] = &first[..] else {
        panic!("each push has its holder look through all it holds: {} of them", first.len())
    };
    assert!(holds.len() as u64 <= TURN && taken == 0, "{} at once", holds.len());
    world.acquire(3, 1, "k", Claim::SHARED);
    let (actions, count) = turns(&mut world, 2, &force);
    let Some(Action::Reply { reply: Reply::Forced { ended, .. }, .. }) = actions.last() else {
        panic!("not answered: {:?}", actions.last())
    };
    assert_eq!((u64::from(*ended), world.machine.stats().holds), (4 * TURN, 1));
    assert!(count >= 7, "the rest in {count} turns");
}

fn fence(counter: u64) -> Fence {
    Fence::new(Epoch(1), counter)
}

fn compare(id: u64, upto: u64, holds: Vec<HoldId>) -> [Request<'static>; 1] {
    [Request::Compare { id, version: 1, upto, after: None, through: None, holds }]
}

#[test]
fn compares_over_many_holds_take_many_turns() {
    const HOLDS: u64 = 8 * TURN;
    let mut world = holding(HOLDS);
    let frames: Vec<Request<'_>> =
        (0..5).flat_map(|id| compare(HOLDS + 1 + id, 0, Vec::new())).collect();
    let (actions, count) = turns(&mut world, 1, &frames);
    assert_eq!(actions.len(), 5);
    // To gather and sort one costs as much as two requests.
    assert!(count >= 5 * 2 * HOLDS / TURN, "{count} turns for 5 looks at {HOLDS} holds");
    assert_eq!(world.machine.stats().holds, HOLDS, "all were made after those that are settled");
}

/// What the link holds, by its view.
fn held(world: &World) -> Vec<HoldId> {
    let bits = lockring_ring::CellBits::new(1).unwrap();
    let seed = lockring_ring::NamespaceSeed::of("default");
    let mut holds: Vec<HoldId> = Vec::new();
    for ((_, key), view) in world.machine.view().keys {
        let cell = bits.cell(lockring_ring::hash_key(seed, &key).position).0;
        holds.extend(view.holders.iter().map(|holder| HoldId { cell, fence: holder.fence }));
    }
    holds.sort_unstable();
    holds
}

/// While the holds are gathered they turn from thin to rich and back, end and begin.
#[test]
fn a_compare_sees_what_is_there_all_the_time() {
    const HOLDS: u64 = 3 * TURN;
    let mut world = holding(HOLDS);
    let listed = held(&world);
    let frame = compare(9 * HOLDS, HOLDS, listed[..4000.min(listed.len())].to_vec());
    let (mut id, mut actions) = (0, Vec::new());
    loop {
        let (mut came, taken) = world.turn(1, &frame);
        actions.append(&mut came);
        if taken == 1 {
            break;
        }
        // Others are queued for some from all over, and leave again; that is what turns them.
        for number in (0..HOLDS).step_by(97) {
            id += 1;
            let key = format!("key{number}");
            world.acquire(2, id, &key, Claim::EXCLUSIVE);
            if number % 2 == 0 {
                let cancel = Request::Keyed {
                    id: 1 << 20,
                    version: 1,
                    key: key.as_bytes(),
                    operation: Operation::Cancel { target: id },
                };
                world.turn(2, &[cancel]);
            }
        }
        world.machine.audit().unwrap();
    }
    let Some(Action::Reply { reply: Reply::Compared { lost, .. }, .. }) = actions.pop() else {
        panic!("{actions:?}")
    };
    assert_eq!(lost, []);
    assert_eq!(world.machine.stats().orphans, 0);
}

/// While the holds of a session that was taken up are gathered, those who waited for the process
/// before are looked for among them.
#[test]
fn a_compare_of_a_successor_misses_nothing_while_waiters_leave() {
    const HOLDS: u64 = 3 * TURN;
    let mut world = World::new();
    world.open(1);
    for number in 0..HOLDS {
        world.acquire(1, 1 + number, &format!("key{number}"), Claim::SHARED);
    }
    let listed = held(&world);
    world.take_up(1, 9);
    let frame = compare(9 * HOLDS, HOLDS, listed);
    let mut actions = Vec::new();
    loop {
        let (mut came, taken) = world.turn(9, &frame);
        actions.append(&mut came);
        if taken == 1 {
            break;
        }
        world.run(Event::Tick);
        world.machine.audit().unwrap();
    }
    let Some(Action::Reply { reply: Reply::Compared { lost, .. }, .. }) = actions.pop() else {
        panic!("{actions:?}")
    };
    assert_eq!(lost.len(), 0, "of {HOLDS} that are held");
}

#[test]
fn orphans_are_ended_over_turns_and_later_holds_are_none() {
    const HOLDS: u64 = 3 * TURN;
    let mut world = holding(HOLDS);
    let frame = compare(9 * HOLDS, HOLDS, Vec::new());
    let mut later = HOLDS;
    let mut count = 0;
    loop {
        let before = world.machine.stats().orphans;
        let (_, taken) = world.turn(1, &frame);
        let ended = world.machine.stats().orphans - before;
        assert!(ended <= TURN, "{ended} in one turn");
        world.machine.audit().unwrap();
        count += 1;
        if taken == 1 {
            break;
        }
        later += 1;
        let key = format!("later{later}");
        // Not on the connection that waits for its compare: as of another process of the session.
        world.acquire(1, later, &key, Claim::EXCLUSIVE);
    }
    assert_eq!(world.machine.stats().orphans, HOLDS);
    assert_eq!(world.machine.stats().holds, later - HOLDS);
    assert!(count > 6, "{count} turns");
}

#[test]
fn those_who_are_told_of_a_drain_are_told_in_slices() {
    let mut world = World::new();
    for conn in 1..=3 * SLICE {
        world.open(conn);
    }
    let mut told = 0;
    let mut actions = world.run(Event::Drain);
    for _ in 0..4 {
        assert!(actions.len() as u64 <= SLICE);
        told += actions.len() as u64;
        actions = world.run(Event::Tick);
    }
    assert_eq!(told, 3 * SLICE);
}

/// Who is refused leaves no trace: least of all in what somebody else's hold costs.
#[test]
fn a_claim_that_may_not_wait_leaves_the_hold_as_it_is() {
    let mut world = holding(1);
    let bytes = world.machine.stats().bytes;
    world.machine.worker.config.limits.waiters_per_key = 0;
    let refused = world.acquire(2, 1, "key0", Claim::EXCLUSIVE);
    assert!(format!("{refused:?}").contains("no more may"), "{refused:?}");
    world.machine.audit().unwrap();
    assert_eq!(world.machine.stats().bytes, bytes);
}
