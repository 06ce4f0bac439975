//! What a new owner makes of what it has from the one before.

use super::*;

/// The copy of a pair, with a hold of session 7 and what else was asked, as the owner.
pub(super) fn promoted(copy: &mut Worker) {
    copy.become_all(&membership(3, COPY, &[]));
    copy.answers();
}

#[test]
fn who_waits_times_out_at_the_next_owner() {
    let (mut owner, mut copy) = pair(None);
    owner.hello(8, 1);
    owner.acquire(7, b"key", Wait::No);
    let queued = owner.acquire(8, b"key", Wait::Millis(1000));
    settle(&mut owner, &mut copy);
    assert_eq!(owner.answers().len(), 2);
    copy.now = Time(700_000);
    promoted(&mut copy);
    copy.hello(8, 1);
    copy.id = queued - 1;
    copy.acquire(8, b"key", Wait::Millis(1000));
    assert!(matches!(copy.answers()[..], [Reply::Queued { .. }]));
    copy.walk(Time(1_650_000));
    assert_eq!(copy.answers(), [], "it waits anew from the promotion on");
    copy.walk(Time(1_750_000));
    assert!(matches!(copy.answers()[..], [Reply::TimedOut { id, .. }] if id == queued));
    copy.machine.audit().unwrap();
}

#[test]
fn what_comes_to_a_link_that_is_there_makes_its_lease_longer() {
    let (mut owner, mut copy) = pair(None);
    copy.hello(7, 1);
    // So that it is kept.
    copy.acquire(7, b"other", Wait::No);
    copy.ask(7, b"other", Operation::Inspect { namespace: "" });
    owner.acquire(7, b"key", Wait::No);
    settle(&mut owner, &mut copy);
    copy.walk(Time(9_900_000));
    promoted(&mut copy);
    copy.walk(Time(12_000_000));
    copy.hello(8, 1);
    copy.acquire(8, b"key", Wait::No);
    assert!(matches!(copy.answers()[..], [Reply::Busy { .. }]), "it may still be believed in");
}

/// The client may not know that the cell has moved, and go on hearing the owner before: then what
/// it says here of its own accord makes nothing shorter.
#[test]
fn a_renewal_after_a_promotion_makes_no_lease_shorter() {
    let (mut owner, mut copy) = pair(None);
    copy.hello(7, 1);
    // So that it is kept.
    copy.acquire(7, b"other", Wait::No);
    owner.acquire(7, b"key", Wait::No);
    settle(&mut owner, &mut copy);
    copy.walk(Time(1_000_000));
    promoted(&mut copy);
    copy.walk(Time(1_100_000));
    assert_eq!(copy.give(7, &[Request::Renew { id: 600 }]), 1);
    copy.answers();
    // The owner before has answered the last renewal as its lease ended, 3 s after the promotion.
    copy.walk(Time(1_000_000).after(limits::inherited(Duration::from_secs(10))));
    copy.hello(8, 1);
    copy.acquire(8, b"key", Wait::No);
    assert!(matches!(copy.answers()[..], [Reply::Busy { .. }]), "it may still be believed in");
    copy.walk(Time(15_000_000));
    let id = copy.acquire(8, b"key", Wait::No);
    assert!(is_granted(&copy.answers(), id));
}

#[test]
fn what_a_dead_link_has_left_is_freed_by_the_next_owner() {
    assert!(is_freed_by_the_next_owner(None));
    assert!(!is_freed_by_the_next_owner(Some(Mutant::DeadLinkRevived)));
}

fn is_freed_by_the_next_owner(mutant: Option<Mutant>) -> bool {
    let (mut owner, mut copy) = pair(mutant);
    owner.acquire(7, b"key", Wait::No);
    settle(&mut owner, &mut copy);
    owner.answers();
    owner.give(7, &[Request::Goodbye { id: 600 }]);
    copy.hears(OWNER, &owner.messages());
    promoted(&mut copy);
    let frees = frees_all(&mut copy);
    copy.hello(7, 2);
    let id = copy.acquire(7, b"key", Wait::No);
    frees && is_granted(&copy.answers(), id)
}

/// Whether all is freed by the next ticks, without a lease that ends.
fn frees_all(it: &mut Worker) -> bool {
    for _ in 0..4 {
        it.run(Event::Tick);
    }
    CELLS.into_iter().all(|cell| it.machine.contents(cell, false).1.is_empty())
}

#[test]
fn a_copy_that_comes_after_a_death_knows_of_it() {
    let (mut owner, mut copy) = (Worker::new(OWNER, None), Worker::new(COPY, None));
    owner.become_all(&membership(2, OWNER, &[]));
    owner.hello(7, 1);
    owner.acquire(7, b"key", Wait::No);
    owner.give(7, &[Request::Goodbye { id: 600 }]);
    for it in [&mut owner, &mut copy] {
        it.become_all(&membership(2, OWNER, &[COPY]));
    }
    settle(&mut owner, &mut copy);
    assert_eq!(copy.machine.links_of_copies(), 1);
    promoted(&mut copy);
    assert!(frees_all(&mut copy));
}

#[test]
fn an_owner_that_was_a_copy_for_a_while_knows_who_had_died() {
    let (mut owner, _) = pair(None);
    owner.acquire(7, b"key", Wait::No);
    owner.give(7, &[Request::Goodbye { id: 600 }]);
    owner.become_all(&membership(3, COPY, &[OWNER]));
    assert_eq!(owner.machine.links_of_copies(), 1);
    owner.become_all(&membership(4, OWNER, &[]));
    assert!(frees_all(&mut owner));
}

#[test]
fn an_arrival_waits_for_the_copies_that_stay() {
    let mut owner = Worker::new(OWNER, None);
    owner.cluster(ClusterEvent::Node { node: THIRD.node, boot: THIRD.boot, workers: 1 });
    owner.become_all(&membership(5, OWNER, &[COPY, THIRD]));
    owner.hello(7, 1);
    owner.become_all(&membership(5, OWNER, &[COPY]));
    owner.give(7, &[Request::Renew { id: 500 }]);
    assert!(matches!(owner.answers()[..], [Reply::Renewed { settled: 4, .. }]));
}

#[test]
fn an_acknowledgement_by_an_earlier_connection_is_none() {
    let (mut owner, mut copy) = pair(None);
    let id = owner.acquire(7, b"key", Wait::No);
    copy.hears(OWNER, &owner.messages());
    let late = copy.messages();
    reconnect(&mut owner, &mut copy);
    owner.hears(COPY, &late);
    assert_eq!(owner.answers(), []);
    settle(&mut owner, &mut copy);
    assert!(is_granted(&owner.answers(), id));
}

/// A session that waits for a longer TTL to be agreed has nothing, unless it has that from others.
#[test]
fn who_is_refused_a_ttl_keeps_what_came_from_the_owner_before() {
    let (mut owner, _) = pair(None);
    let longest_ttl = Duration::from_secs(5);
    let others = CELLS.into_iter().collect();
    let mut copy = Worker::of(COPY, None, Config { longest_ttl, others, ..config_of(COPY) });
    for it in [&mut owner, &mut copy] {
        it.become_all(&membership(3, OWNER, &[COPY]));
    }
    owner.acquire(7, b"key", Wait::No);
    settle(&mut owner, &mut copy);
    assert_eq!(owner.answers().len(), 1);
    copy.hello(7, 1);
    assert!(copy.links.is_empty(), "it waits");
    copy.become_all(&membership(4, COPY, &[]));
    copy.run(Event::TtlFailed("nobody leads"));
    for _ in 0..4 {
        copy.run(Event::Tick);
    }
    copy.run(Event::LongestTtl(Duration::from_secs(10)));
    copy.hello(8, 1);
    copy.answers();
    copy.acquire(8, b"key", Wait::No);
    let answers = copy.answers();
    assert!(matches!(answers[..], [Reply::Busy { .. }]), "it is believed in: {answers:?}");
}

/// The owner before has known of two processes of the session, and this one has met the second.
#[test]
fn a_successor_that_leaves_the_next_owner_leaves_what_the_process_before_may_believe_in() {
    let (mut owner, mut copy) = pair(None);
    owner.acquire(7, b"key", Wait::No);
    settle(&mut owner, &mut copy);
    owner.answers();
    owner.hello(7, 0);
    copy.hello(7, 0);
    promoted(&mut copy);
    copy.give(7, &[Request::Goodbye { id: 600 }]);
    for _ in 0..4 {
        copy.run(Event::Tick);
    }
    copy.hello(8, 1);
    copy.answers();
    copy.acquire(8, b"key", Wait::No);
    let answers = copy.answers();
    assert!(matches!(answers[..], [Reply::Busy { .. }]), "it is believed in: {answers:?}");
    copy.walk(Time(13_500_000));
    copy.hello(9, 1);
    let id = copy.acquire(9, b"key", Wait::No);
    assert!(is_granted(&copy.answers(), id));
    copy.machine.audit().unwrap();
}

/// A process has taken a session up, and asked; the cell moves, and it comes along.
fn keeps_its_place(mutant: Option<Mutant>) -> bool {
    let (mut owner, mut copy) = pair(mutant);
    owner.acquire(7, b"key", Wait::No);
    settle(&mut owner, &mut copy);
    let [Reply::Granted { fence, .. }] = owner.answers()[..] else { panic!("it is free") };
    owner.hello(8, 1);
    owner.acquire(8, b"key", Wait::Forever);
    settle(&mut owner, &mut copy);
    owner.open_with(8, (0, 1000), &client());
    owner.id = 1000;
    let its = owner.acquire(8, b"key", Wait::Forever);
    owner.hello(9, 1);
    let of_next = owner.acquire(9, b"key", Wait::Forever);
    settle(&mut owner, &mut copy);
    promoted(&mut copy);
    copy.open_with(8, (0, 1000), &client());
    copy.hello(7, 1);
    copy.hello(9, 1);
    for _ in 0..4 {
        copy.run(Event::Tick);
    }
    copy.ask(7, b"key", Operation::Release { fence });
    copy.machine.audit().unwrap();
    copy.answers();
    // What was asked before a connection stood is asked again on it.
    copy.id = its - 1;
    copy.acquire(8, b"key", Wait::Forever);
    let is_its = is_granted(&copy.answers(), its);
    copy.id = of_next - 1;
    copy.acquire(9, b"key", Wait::Forever);
    assert!(!is_granted(&copy.answers(), of_next), "it is behind");
    is_its
}

#[test]
fn who_has_taken_a_session_up_keeps_its_place_at_the_next_owner() {
    assert!(keeps_its_place(None));
    assert!(!keeps_its_place(Some(Mutant::IdsIgnored)));
}
