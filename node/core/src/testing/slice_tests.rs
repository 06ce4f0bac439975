//! Nothing is ever done for long: what touches much is cut into slices and pages.

use super::view_tests::World;
use crate::{Action, Event, Time};
use lockring_proto::{Claim, ListCursor, Namespace, Operation, Reply, Request, Wait};
use std::collections::BTreeSet;

/// More than any slice or page looks at.
const MANY: u64 = 600;

fn with_sessions(count: u64) -> World {
    let mut world = World::new();
    for conn in 1..=count {
        world.open(conn);
    }
    world
}

#[test]
fn pages_of_sessions_are_bounded_and_name_each_once() {
    let world = with_sessions(MANY);
    let (mut names, mut pages, mut from) = (BTreeSet::new(), 0, Some(0));
    while let Some(at) = from {
        let (page, next) = world.machine.list_sessions(world.now, at, 1000);
        assert!(page.len() <= 256, "{} in one page", page.len());
        names.extend(page.into_iter().map(|seen| seen.name));
        (pages, from) = (pages + 1, next);
    }
    assert_eq!((names.len(), pages), (MANY as usize, 3));
    let (page, next) = world.machine.list_sessions(world.now, 7, 3);
    assert_eq!(page.len(), 3);
    assert_eq!(next, Some(10));
}

#[test]
fn a_session_that_ended_is_in_no_page() {
    let mut world = with_sessions(3);
    world.walk_to(Time(6_000_000));
    // Two renew, the third is left to die.
    for conn in [1, 3] {
        world.acquire(conn, conn, "k", Claim::SHARED);
    }
    world.walk_to(Time(11_000_000));
    let (page, next) = world.machine.list_sessions(world.now, 0, 10);
    let names: Vec<&str> = page.iter().map(|seen| seen.name.as_str()).collect();
    assert_eq!((names, next), (vec!["c1", "c3"], None));
}

#[test]
fn a_listing_that_finds_nothing_stops_in_time() {
    let mut world = with_sessions(1);
    for number in 0..2 * MANY {
        world.acquire(1, 1 + number, &format!("key{number}"), Claim::EXCLUSIVE);
    }
    let first = world.machine.list_all(world.now, &ListCursor::default(), 90, b"other/");
    let (rows, Some(next)) = first else { panic!("all keys in one page: {first:?}") };
    assert!(rows.is_empty());
    assert!(next.from < 512, "a key costs more than one look: {next:?}");
}

#[test]
fn a_key_of_several_namespaces_is_listed_for_each() {
    let mut world = World::new();
    let namespaces = ["a", "b", "c"].map(|name| Namespace::new(name).unwrap());
    for (conn, namespace) in (1..).zip(namespaces) {
        world.open_in(conn, namespace);
        for number in 0..40 {
            world.acquire(conn, 1 + number, &format!("key{number}"), Claim::EXCLUSIVE);
        }
    }
    let (mut listed, mut cursor) = (BTreeSet::new(), Some(ListCursor::default()));
    while let Some(at) = cursor {
        let (rows, next) = world.machine.list_all(world.now, &at, 1, b"");
        listed.extend(rows.into_iter().map(|(namespace, row)| (namespace, row.key)));
        cursor = next;
    }
    assert_eq!(listed.len(), 3 * 40);
}

#[test]
fn leases_that_end_together_end_in_slices() {
    let mut world = with_sessions(MANY);
    world.acquire(1, 1, "k", Claim::EXCLUSIVE);
    // Ticks, as otherwise the machine would take the silence for a stall of its own.
    world.walk_to(Time(10_090_000));
    assert_eq!(world.machine.stats().expired_links, 0);
    world.now = Time(10_110_000);
    world.run(Event::Tick);
    assert_eq!(world.machine.stats().expired_links, 256);
    assert_eq!(world.machine.next_deadline(), Some(world.now), "the rest is due at once");
    for _ in 0..2 {
        world.run(Event::Tick);
    }
    assert_eq!(world.machine.stats().expired_links, MANY);
    assert_eq!((world.machine.stats().links, world.machine.stats().holds), (0, 0));
}

#[test]
fn the_holds_of_one_link_are_freed_in_slices() {
    let mut world = with_sessions(2);
    for number in 0..MANY {
        world.acquire(1, 1 + number, &format!("key{number}"), Claim::EXCLUSIVE);
    }
    world.outlive(2);
    let mut left = Vec::new();
    while world.machine.stats().links > 1 {
        world.run(Event::Tick);
        world.machine.audit().unwrap();
        left.push(world.machine.stats().holds);
    }
    assert_eq!(left, [MANY - 256 + 1, MANY - 512 + 1, 1]);
}

/// Holds that nobody waits for are freed at a pace; one that somebody waits for comes first.
#[test]
fn what_nobody_waits_for_takes_its_time() {
    const HOLDS: u64 = 30_000;
    let mut world = with_sessions(2);
    for number in 0..HOLDS {
        world.acquire(1, 1 + number, &format!("key{number}"), Claim::EXCLUSIVE);
    }
    world.acquire(2, 1, "key7", Claim::EXCLUSIVE);
    world.outlive(2);
    let mut ticks = 0;
    while world.machine.next_deadline() == Some(world.now) || ticks == 0 {
        world.run(Event::Tick);
        ticks += 1;
        let at_once = world.machine.stats().grants_queued;
        assert_eq!(at_once, 1, "who waits has it after the first slice");
    }
    // The waiter has two holds of its own, one of them of a key of the dead.
    assert_eq!(world.machine.stats().holds, HOLDS + 1 - (1 << 14));
    assert_eq!(ticks, (1 << 14) / 256 + 1);
    let due = world.machine.next_deadline().unwrap();
    assert_eq!(due, Time(world.now.0 + 256));
    // A timer that rings late loses nothing.
    world.now = Time(world.now.0 + 1500);
    while world.machine.next_deadline() <= Some(world.now) {
        world.run(Event::Tick);
    }
    assert_eq!(world.machine.stats().holds, HOLDS + 1 - (1 << 14) - 1500);
    world.now = Time(world.now.0 + 20_000);
    while world.machine.next_deadline() <= Some(world.now) {
        world.run(Event::Tick);
    }
    assert_eq!((world.machine.stats().holds, world.machine.stats().links), (2, 1));
}

/// Whoever asks for a lock of the dead has it at once, long before its turn to be freed.
#[test]
fn a_lock_of_the_dead_is_free_for_whoever_asks() {
    const HOLDS: u64 = 20_000;
    let mut world = with_sessions(3);
    for (conn, number) in (0..2 * HOLDS).map(|number| (1 + number / HOLDS, number)) {
        world.acquire(conn, 1 + number, &format!("key{number}"), Claim::EXCLUSIVE);
    }
    world.outlive(3);
    world.run(Event::Tick);
    while world.machine.next_deadline() == Some(world.now) {
        world.run(Event::Tick);
    }
    let before = world.machine.stats().holds;
    assert!(before > HOLDS, "most of the second's are left: {before}");
    let key = format!("key{}", 2 * HOLDS - 1);
    let actions = world.acquire(3, 2, &key, Claim::EXCLUSIVE);
    assert!(
        matches!(actions[..], [Action::Reply { reply: Reply::Granted { .. }, .. }]),
        "{actions:?}"
    );
    // One hold ended, another began.
    assert_eq!(world.machine.stats().holds, before);
    world.machine.audit().unwrap();
    while world.machine.stats().links > 1 {
        world.now = world.machine.next_deadline().unwrap();
        world.run(Event::Tick);
    }
    assert_eq!(world.machine.stats().holds, 2);
}

/// A peak of sessions, holds and waiters leaves no memory behind.
#[test]
fn memory_of_a_past_peak_is_given_back() {
    const PEAK: u64 = 100_000;
    let mut world = with_sessions(PEAK / 2);
    for id in 1..=PEAK {
        let conn = 2 + id % (PEAK / 2 - 1);
        world.acquire(conn, 2 * id, &format!("key{id}"), Claim::EXCLUSIVE);
        world.acquire(1, 2 * id + 1, &format!("key{}", id / 2), Claim::SHARED);
    }
    world.machine.audit().unwrap();
    let peak = world.machine.resident();
    assert!(peak > 3 * PEAK as usize, "{peak} slots");
    let bytes = world.machine.stats().bytes;
    world.outlive(2);
    while world.machine.stats().links > 1 {
        world.now = world.machine.next_deadline().unwrap().max(world.now);
        world.run(Event::Tick);
    }
    world.machine.audit().unwrap();
    let left = world.machine.resident();
    // A page of each slab that is in use, and one in reserve.
    assert!(left <= 4 * 2 * (1 << 14), "{left} slots of {peak} are kept");
    assert!(world.machine.stats().bytes * 1000 < bytes);
}

/// A long key goes with its last hold, and the page it lay in with the last of many.
#[test]
fn keys_whose_memory_is_given_back_are_not_looked_at() {
    const HOLDS: u64 = 60_000;
    let mut world = with_sessions(1);
    let key = |number| format!("{number:0>64}");
    for number in 0..HOLDS {
        world.acquire(1, 1 + number, &key(number), Claim::EXCLUSIVE);
    }
    for number in 0..HOLDS {
        let key = key(number);
        let operation = Operation::Cancel { target: 1 + number };
        let id = HOLDS + 1 + number;
        world.ask(1, &Request::Keyed { id, version: 1, operation, key: key.as_bytes() });
    }
    world.machine.audit().unwrap();
    assert_eq!(world.machine.stats().keys, 0);
}

/// A batch finds its records before it runs: one of them may give the memory of another back.
#[test]
fn what_a_batch_frees_is_not_looked_at_by_its_next() {
    const HOLDS: u64 = 60_000;
    let mut world = with_sessions(1);
    let key = |number| format!("key {number}");
    for number in 0..HOLDS {
        world.acquire(1, 1 + number, &key(number), Claim::EXCLUSIVE);
    }
    let mut id = HOLDS;
    for number in (0..HOLDS).rev() {
        let key = key(number);
        let first = id + 1;
        let acquire = Operation::Acquire { claim: Claim::EXCLUSIVE, wait: Wait::No };
        let batch = [
            Operation::Cancel { target: 1 + number },
            acquire,
            Operation::Inspect { namespace: "" },
            Operation::Cancel { target: first + 1 },
        ];
        id += batch.len() as u64;
        let requests: Vec<Request<'_>> = (first..)
            .zip(batch)
            .map(|(id, operation)| Request::Keyed {
                id,
                version: 1,
                operation,
                key: key.as_bytes(),
            })
            .collect();
        let (_, taken) = world.turn(1, &requests);
        assert_eq!(taken, 4);
    }
    world.machine.audit().unwrap();
    assert_eq!(world.machine.stats().keys, 0);
}

/// Who says goodbye and has nothing does not wait behind the holds of the dead.
#[test]
fn a_goodbye_with_nothing_held_is_answered_at_once() {
    const HOLDS: u64 = 30_000;
    let mut world = with_sessions(3);
    for number in 0..HOLDS {
        world.acquire(1, 1 + number, &format!("key{number}"), Claim::EXCLUSIVE);
    }
    world.outlive(3);
    world.run(Event::Tick);
    while world.machine.next_deadline() == Some(world.now) {
        world.run(Event::Tick);
    }
    assert!(world.machine.stats().holds > HOLDS / 4, "much of the dead is left");
    world.ask(3, &Request::Goodbye { id: 1 << 31 });
    world.open(4);
    world.ask(4, &Request::Goodbye { id: 1 });
    world.run(Event::Tick);
    let actions = world.run(Event::Tick);
    assert!(world.machine.stats().links <= 2, "{actions:?}");
}
