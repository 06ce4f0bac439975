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
    // The client may have learnt of another since, but the worker has not.
    assert_eq!((it.give(7, &[of_version(4, 4)]), paused(&mut it)), (1, vec![]));
    assert!(it.answers().iter().all(moved));
    it.become_all(&membership(3, COPY, &[]));
    assert_eq!((it.give(7, &[of_version(5, 4)]), paused(&mut it)), (0, vec![ConnId(7)]));
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

/// A worker that takes cells one by one, with a session.
fn in_slices(mutant: Option<Mutant>) -> Worker {
    let limits = Limits { expiry_slice: 1, ..Limits::default() };
    let mut it = Worker::made(OWNER, mutant, limits);
    it.hello(7, 1);
    it.said.clear();
    it
}

/// The first of two cells that one entry changes is taken, or the second.
fn takes_one(it: &mut Worker, its: &Membership, from: usize) {
    let changed = CELLS.map(|cell| (cell, Some(its.clone())));
    let event = ClusterEvent::Memberships { changed: &changed[from..], version: its.since };
    assert_eq!(it.run(Event::Cluster(event)), 1);
}

/// Two cells come by one entry, each by a slice of its own, and a request for the first comes
/// between.
#[test]
fn a_cell_is_served_once_all_of_the_entry_that_gave_it_is_taken() {
    for mutant in [None, Some(Mutant::ServesByOlderRing)] {
        let mut it = in_slices(mutant);
        let its = membership(3, OWNER, &[]);
        takes_one(&mut it, &its, 0);
        let key = key_in(&it, CELLS[0], 0);
        let operation = Operation::Acquire { claim: Claim::EXCLUSIVE, wait: Wait::No };
        let requests = [Request::Keyed { id: 1, version: 3, operation, key: &key }];
        let is_served = it.give(7, &requests) == 1;
        assert_eq!(is_served, mutant.is_some(), "no answer names the version that gave it");
        assert_eq!(paused(&mut it).is_empty(), is_served);
        takes_one(&mut it, &its, 1);
        it.walk(it.now);
        assert_eq!(resumed(&mut it).is_empty(), is_served);
        it.give(7, &requests);
        let answered = |said: &Action| {
            matches!(said, Action::Reply { reply: Reply::Granted { version: 3, .. }, .. })
        };
        assert!(it.said.iter().any(answered), "{:?}", it.said);
    }
}

/// An owner that lags may have lost a cell and have it again by the ring of a request. What it
/// answers by its own would be taken for an answer from before.
#[test]
fn an_owner_carries_out_nothing_of_a_newer_ring_than_it_knows() {
    for mutant in [None, Some(Mutant::ServesByOlderRing)] {
        let mut it = Worker::made(OWNER, mutant, Limits::default());
        it.become_all(&membership(3, OWNER, &[]));
        it.hello(7, 1);
        it.said.clear();
        let is_served = it.give(7, &[of_version(1, 5)]) == 1;
        assert_eq!((is_served, paused(&mut it).is_empty()), (mutant.is_some(), is_served));
        it.answers();
        it.become_all(&membership(5, OWNER, &[]));
        it.walk(it.now);
        it.give(7, &[of_version(1, 5)]);
        let answers = it.answers();
        assert!(matches!(answers[..], [Reply::Granted { version: 5, .. }]), "{answers:?}");
        if mutant.is_some() {
            continue;
        }
        // A ring that does not come is not waited for for ever, whoever has the cell by this one.
        assert_eq!((it.give(7, &[of_version(2, u64::MAX)]), paused(&mut it).len()), (0, 1));
        it.walk(it.now.after(PATIENCE));
        assert_eq!(it.give(7, &[of_version(2, u64::MAX)]), 1);
        assert!(matches!(it.answers()[..], [Reply::Moved { version: 5, .. }]));
    }
}

/// A cell whose copies were never equal is taken away, or begins anew, by an entry of which the
/// rest is still to be taken: a renewal between is answered by the ring before, by which the cell
/// has not arrived.
#[test]
fn what_has_not_arrived_is_not_settled_while_an_entry_takes_it_away() {
    let in_part = Some(Mutant::SettledInPart);
    for (owner, mutant) in [(COPY, None), (OWNER, None), (COPY, in_part), (OWNER, in_part)] {
        let mut it = in_slices(mutant);
        it.become_one(CELLS[0], &membership(3, OWNER, &[COPY]));
        it.become_one(CELLS[1], &membership(3, OWNER, &[]));
        let settled = |it: &mut Worker| {
            it.give(7, &[Request::Renew { id: 1 }]);
            match it.answers()[..] {
                [Reply::Renewed { version, settled, .. }] => (version, settled),
                ref other => panic!("{other:?}"),
            }
        };
        assert_eq!(settled(&mut it), (3, 2));
        let copies = if owner == OWNER { &[COPY][..] } else { &[] };
        let its = membership(4, owner, copies);
        takes_one(&mut it, &its, 0);
        assert_eq!(settled(&mut it), (3, if mutant.is_some() { 3 } else { 2 }));
        takes_one(&mut it, &its, 1);
        let arrived = if owner == OWNER { 3 } else { 4 };
        assert_eq!(settled(&mut it), (4, arrived));
    }
}

/// Who is sent away between two slices is told of the ring that is coming: it would come back at
/// once otherwise, and be put off.
#[test]
fn who_is_sent_away_is_told_of_the_ring_that_is_coming() {
    let mut it = in_slices(None);
    it.become_all(&membership(3, OWNER, &[COPY]));
    let key = key_in(&it, CELLS[0], 0);
    let operation = Operation::Acquire { claim: Claim::EXCLUSIVE, wait: Wait::No };
    let asks = |id| [Request::Keyed { id, version: 3, operation, key: &key }];
    it.give(7, &asks(1));
    assert_eq!(it.answers(), [], "it waits for the copy");
    takes_one(&mut it, &membership(4, COPY, &[]), 0);
    assert_eq!(it.answers(), [Reply::Moved { id: 1, version: 4 }]);
    it.give(7, &asks(2));
    assert_eq!(it.answers(), [Reply::Moved { id: 2, version: 4 }]);
}

/// A node is gone: those who have lost a copy by it have nothing to do for that but to forget it.
#[test]
fn cells_that_lose_a_copy_are_taken_together_whatever_is_in_them() {
    let limits = Limits { expiry_slice: 40, ..Limits::default() };
    let mut it = Worker::made(OWNER, None, limits);
    it.hello(7, 1);
    let takes = |it: &mut Worker, its: &Membership| {
        let changed = CELLS.map(|cell| (cell, Some(its.clone())));
        let event = ClusterEvent::Memberships { changed: &changed, version: its.since };
        it.run(Event::Cluster(event))
    };
    it.become_all(&membership(3, OWNER, &[COPY]));
    for number in 0..100_u32 {
        it.acquire(7, &number.to_le_bytes(), Wait::No);
    }
    assert_eq!(takes(&mut it, &membership(3, OWNER, &[])), 2);
    it.machine.audit().unwrap();
    let again = membership(3, OWNER, &[COPY]);
    assert_eq!(takes(&mut it, &again), 1, "what is offered is looked through");
}
