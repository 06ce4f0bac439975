//! Requests of a newer ring than a worker knows.

use super::*;

const PATIENCE: Duration = Duration::from_millis(200);

/// A worker without a cell, of version 2, with a session.
fn without_cells() -> Worker {
    let mut it = Worker::new(OWNER, None);
    it.become_all(&membership(2, COPY, &[]));
    it.hello(7, 1);
    it.said.clear();
    it
}

fn of_version(id: u64, version: u64) -> Request<'static> {
    let operation = Operation::Acquire { claim: Claim::EXCLUSIVE, wait: Wait::No };
    Request::Keyed { id, version, operation, key: b"key" }
}

fn paused(it: &mut Worker) -> Vec<ConnId> {
    it.take(|said| if let Action::Pause(conn) = said { Some(*conn) } else { None })
}

fn resumed(it: &mut Worker) -> Vec<ConnId> {
    it.take(|said| if let Action::Resume(conn) = said { Some(*conn) } else { None })
}

#[test]
fn a_request_of_a_newer_ring_waits_for_it_and_so_does_all_behind_it() {
    let mut it = without_cells();
    let requests = [Request::Renew { id: 1 }, of_version(2, 3), Request::Renew { id: 3 }];
    assert_eq!(it.give(7, &requests), 1);
    assert_eq!(paused(&mut it), [ConnId(7)]);
    assert!(matches!(it.answers()[..], [Reply::Renewed { .. }]));
    // Given again too early it still waits, and that is not said again.
    assert_eq!((it.give(7, &requests[1..]), paused(&mut it)), (0, vec![]));
    it.walk(Time(100_000));
    assert_eq!(resumed(&mut it), []);
    it.become_all(&membership(3, OWNER, &[]));
    it.walk(it.now);
    assert_eq!(resumed(&mut it), [ConnId(7)]);
    assert_eq!(it.give(7, &requests[1..]), 2);
    assert!(matches!(it.answers()[..], [Reply::Granted { id: 2, .. }, Reply::Renewed { .. }]));
    // An older ring than the worker knows, of a cell that it has lost.
    it.become_all(&membership(4, COPY, &[]));
    it.answers();
    assert_eq!(it.give(7, &[of_version(4, 4)]), 1);
    assert!(matches!(it.answers()[..], [Reply::Moved { .. }]));
}

#[test]
fn a_ring_that_does_not_come_is_waited_for_once() {
    let mut it = without_cells();
    let requests = [of_version(1, 3), of_version(2, 3), of_version(3, 2)];
    assert_eq!(it.give(7, &requests), 0);
    it.walk(Time(PATIENCE.as_micros() as u64 - 1));
    assert_eq!(resumed(&mut it), []);
    it.walk(Time(0).after(PATIENCE));
    assert_eq!((paused(&mut it), resumed(&mut it)), (vec![ConnId(7)], vec![ConnId(7)]));
    assert_eq!(it.give(7, &requests), 3);
    let moved = |reply: &Reply| matches!(reply, Reply::Moved { version: 2, .. });
    assert!(it.answers().iter().all(moved));
    // The client has learnt of another since.
    assert_eq!((it.give(7, &[of_version(4, 4)]), paused(&mut it)), (0, vec![ConnId(7)]));
    it.run(Event::Closed { conn: ConnId(7), link: it.links[&ConnId(7)] });
    it.walk(Time(1_000_000));
    assert_eq!(resumed(&mut it), [], "it is gone");
}

#[test]
fn who_has_waited_in_vain_does_not_wait_for_less() {
    let mut it = without_cells();
    assert_eq!(it.give(7, &[of_version(1, 5)]), 0);
    it.walk(Time(0).after(PATIENCE));
    assert_eq!((paused(&mut it), resumed(&mut it)), (vec![ConnId(7)], vec![ConnId(7)]));
    let requests = [of_version(1, 5), of_version(2, 3), of_version(3, 4), of_version(4, 5)];
    assert_eq!((it.give(7, &requests), paused(&mut it)), (4, vec![]));
    assert!(it.answers().iter().all(|it| matches!(it, Reply::Moved { version: 2, .. })));
}

#[test]
fn alone_a_node_waits_for_nobody() {
    let config = Config { others: CELLS.into_iter().collect(), ..config(Limits::default()) };
    let machine = Machine::new(config, Time(0));
    let (said, links) = (Vec::new(), BTreeMap::new());
    let mut it = Worker { machine, now: Time(0), said, links, id: 0 };
    it.hello(7, 1);
    assert_eq!(it.give(7, &[of_version(1, 3)]), 1);
    assert!(matches!(it.answers()[..], [Reply::Moved { .. }]));
}

/// Two cells come by one entry, each by a slice of its own, and a request for the first comes
/// between.
#[test]
fn a_cell_is_served_once_all_of_the_entry_that_gave_it_is_taken() {
    for mutant in [None, Some(Mutant::ServesInPart)] {
        let limits = Limits { expiry_slice: 1, ..Limits::default() };
        let mut it = Worker::made(OWNER, mutant, limits);
        it.hello(7, 1);
        it.said.clear();
        let its = membership(3, OWNER, &[]);
        let changed = CELLS.map(|cell| (cell, Some(its.clone())));
        let event = |changed| ClusterEvent::Memberships { changed, version: its.since };
        assert_eq!(it.run(Event::Cluster(event(&changed))), 1);
        let key = key_in(&it, CELLS[0], 0);
        let operation = Operation::Acquire { claim: Claim::EXCLUSIVE, wait: Wait::No };
        let requests = [Request::Keyed { id: 1, version: 3, operation, key: &key }];
        let is_served = it.give(7, &requests) == 1;
        assert_eq!(is_served, mutant.is_some(), "no answer names the version that gave it");
        assert_eq!(paused(&mut it).is_empty(), is_served);
        assert_eq!(it.run(Event::Cluster(event(&changed[1..]))), 1);
        it.walk(it.now);
        assert_eq!(resumed(&mut it).is_empty(), is_served);
        it.give(7, &requests);
        let answered = |said: &Action| {
            matches!(said, Action::Reply { reply: Reply::Granted { version: 3, .. }, .. })
        };
        assert!(it.said.iter().any(answered), "{:?}", it.said);
    }
}
