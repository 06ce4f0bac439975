//! Processes that have a session one after the other: what belongs to whom, at whichever owner.

use super::promoted::promoted;
use super::*;

/// Where a process that has taken a session up begins to number.
const SUCCESSOR: u64 = limits::FIRST_PROCESS_IDS + 1000;

fn open_on(it: &mut Worker, conn: u64, session: u8, process: (u64, u64)) {
    it.open_on(conn, session, process, &client());
}

fn give_on(it: &mut Worker, conn: u64, requests: &[Request<'_>]) -> usize {
    let conn = ConnId(conn);
    it.run(Event::Requests { conn, link: it.links[&conn], requests })
}

fn ask_on(it: &mut Worker, conn: u64, id: u64, key: &[u8], operation: Operation<'_>) {
    let version = it.machine.version().0;
    give_on(it, conn, &[Request::Keyed { id, version, operation, key }]);
}

const LOCK: Claim = Claim::EXCLUSIVE;

fn waits() -> Operation<'static> {
    Operation::Acquire { claim: LOCK, wait: Wait::Forever }
}

fn tries() -> Operation<'static> {
    Operation::Acquire { claim: LOCK, wait: Wait::No }
}

fn empty_compare(id: u64, version: u64, upto: u64) -> Request<'static> {
    Request::Compare { id, version, upto, after: None, through: None, holds: Vec::new() }
}

fn alone() -> Worker {
    let mut it = Worker::new(OWNER, None);
    it.become_all(&membership(3, OWNER, &[]));
    it
}

#[test]
fn who_is_within_its_range_is_granted_in_turn() {
    past_its_range(1000 + limits::IDS_PER_PROCESS);
}

#[test]
fn who_has_used_up_its_range_is_granted_in_turn_or_refused() {
    past_its_range(1000 + limits::IDS_PER_PROCESS + 1);
}

fn past_its_range(id: u64) {
    let mut it = alone();
    it.hello(7, 1);
    ask_on(&mut it, 7, 1, b"key", tries());
    let [Reply::Granted { fence, .. }] = it.answers()[..] else { panic!("it is free") };
    open_on(&mut it, 8, 8, (0, 1000));
    ask_on(&mut it, 8, id, b"key", waits());
    let first = it.answers();
    ask_on(&mut it, 7, 2, b"key", Operation::Release { fence });
    for _ in 0..4 {
        it.run(Event::Tick);
    }
    let then = it.answers();
    let refused = matches!(first[..], [Reply::Refused { .. }]);
    let granted =
        then.iter().any(|reply| matches!(reply, Reply::Granted { id: its, .. } if *its == id));
    assert!(refused || granted, "it waits for ever: {first:?}, {then:?}");
}

#[test]
fn a_grant_under_way_within_the_range_is_no_orphan() {
    grant_under_way(1000 + limits::IDS_PER_PROCESS);
}

#[test]
fn a_grant_under_way_to_who_has_used_up_its_range_is_no_orphan() {
    grant_under_way(1000 + limits::IDS_PER_PROCESS + 1);
}

fn grant_under_way(id: u64) {
    let mut it = alone();
    open_on(&mut it, 8, 8, (0, 1000));
    ask_on(&mut it, 8, id, b"key", tries());
    // The answer is under way, and so is the list, which does not have it: `upto` says so.
    let granted = matches!(it.answers()[..], [Reply::Granted { .. }]);
    give_on(&mut it, 8, &[empty_compare(id + 1, 3, id - 1)]);
    it.answers();
    it.hello(9, 1);
    ask_on(&mut it, 9, 1, b"key", tries());
    let answers = it.answers();
    let twice = granted && matches!(answers[..], [Reply::Granted { .. }]);
    assert!(!twice, "two holders: {answers:?}");
}

/// The process that has begun the session was cut off, and another took it up. The late one is
/// numbered above, and outdoes it: what the other waited for is nobody's.
#[test]
fn a_waiter_of_a_successor_that_was_outdone_by_who_began_the_session_is_not_granted() {
    let mut it = alone();
    it.hello(9, 1);
    ask_on(&mut it, 9, 1, b"key", tries());
    let [Reply::Granted { fence, .. }] = it.answers()[..] else { panic!("it is free") };
    open_on(&mut it, 70, 7, (1, 0));
    ask_on(&mut it, 70, 1, b"other", tries());
    open_on(&mut it, 71, 7, (0, SUCCESSOR));
    ask_on(&mut it, 71, SUCCESSOR + 1, b"key", waits());
    // It had stood without a word of the node before.
    open_on(&mut it, 72, 7, (3, 0));
    it.hello(10, 1);
    ask_on(&mut it, 10, 1, b"key", waits());
    for _ in 0..4 {
        it.run(Event::Tick);
    }
    it.answers();
    ask_on(&mut it, 9, 2, b"key", Operation::Release { fence });
    let answers = it.answers();
    assert!(
        answers.iter().any(|reply| matches!(reply, Reply::Granted { .. })),
        "the one behind is granted: {answers:?}"
    );
}

/// The same, of a hold: who began the session does not know it, and lives on for long.
#[test]
fn a_hold_of_a_successor_that_was_outdone_by_who_began_the_session_is_an_orphan() {
    let mut it = alone();
    open_on(&mut it, 70, 7, (1, 0));
    ask_on(&mut it, 70, 1, b"other", tries());
    open_on(&mut it, 71, 7, (0, SUCCESSOR));
    ask_on(&mut it, 71, SUCCESSOR + 1, b"key", tries());
    open_on(&mut it, 72, 7, (3, 0));
    for id in 2..40 {
        it.walk(it.now.after(Duration::from_secs(3)));
        give_on(&mut it, 72, &[Request::Renew { id }]);
    }
    let version = it.machine.version().0;
    give_on(&mut it, 72, &[empty_compare(41, version, 40)]);
    it.hello(8, 1);
    it.answers();
    ask_on(&mut it, 8, 1, b"key", tries());
    let answers = it.answers();
    assert!(matches!(answers[..], [Reply::Granted { .. }]), "after two minutes: {answers:?}");
}

/// Control: both have taken it up.
#[test]
fn a_hold_of_a_successor_that_was_outdone_by_another_is_an_orphan() {
    let mut it = alone();
    open_on(&mut it, 70, 7, (1, 5000));
    ask_on(&mut it, 70, 5001, b"other", tries());
    open_on(&mut it, 71, 7, (0, SUCCESSOR));
    ask_on(&mut it, 71, SUCCESSOR + 1, b"key", tries());
    open_on(&mut it, 72, 7, (3, 5000));
    for id in 5002..5040 {
        it.walk(it.now.after(Duration::from_secs(3)));
        give_on(&mut it, 72, &[Request::Renew { id }]);
    }
    let version = it.machine.version().0;
    give_on(&mut it, 72, &[empty_compare(5041, version, 5040)]);
    it.hello(8, 1);
    it.answers();
    ask_on(&mut it, 8, 1, b"key", tries());
    let answers = it.answers();
    assert!(matches!(answers[..], [Reply::Granted { .. }]), "after two minutes: {answers:?}");
}

enum Meets {
    /// The next owner knew it before the cell came.
    Before,
    /// It comes there after that.
    After,
}

fn goodbye_of_who_began(meets: &Meets, its: u64) {
    let (mut owner, mut copy) = (Worker::new(OWNER, None), Worker::new(COPY, None));
    let membership = membership(2, OWNER, &[COPY]);
    owner.become_all(&membership);
    copy.become_all(&membership);
    settle(&mut owner, &mut copy);
    open_on(&mut owner, 70, 7, (1, its));
    if let Meets::Before = meets {
        open_on(&mut copy, 70, 7, (1, its));
        give_on(&mut copy, 70, &[Request::Renew { id: its + 1 }]);
    }
    // Another takes the session up, and is granted a key.
    open_on(&mut owner, 71, 7, (0, SUCCESSOR));
    ask_on(&mut owner, 71, SUCCESSOR + 1, b"key", tries());
    settle(&mut owner, &mut copy);
    assert!(matches!(owner.answers()[..], [Reply::Granted { .. }]));
    // The owner is gone before its word that the session is another's has come to the first.
    promoted(&mut copy);
    if let Meets::After = meets {
        open_on(&mut copy, 70, 7, (2, its));
    }
    give_on(&mut copy, 70, &[Request::Goodbye { id: its + 2 }]);
    for _ in 0..4 {
        copy.run(Event::Tick);
    }
    copy.hello(8, 1);
    copy.answers();
    ask_on(&mut copy, 8, 1, b"key", tries());
    let answers = copy.answers();
    assert!(matches!(answers[..], [Reply::Busy { .. }]), "it is believed in: {answers:?}");
}

#[test]
fn a_goodbye_of_who_began_the_session_spares_what_its_successor_holds_and_came_along() {
    goodbye_of_who_began(&Meets::Before, 0);
}

#[test]
fn a_late_goodbye_of_who_began_the_session_spares_what_its_successor_holds() {
    goodbye_of_who_began(&Meets::After, 0);
}

#[test]
fn a_goodbye_of_a_successor_spares_what_the_next_one_holds() {
    goodbye_of_who_began(&Meets::Before, 5000);
    goodbye_of_who_began(&Meets::After, 5000);
}

/// A compare of a session that was just taken up looks for waiters without an owner, and whoever is
/// behind is granted by the ring before.
#[test]
fn a_compare_between_two_slices_grants_nothing_of_a_cell_that_has_come() {
    let mut owner = Worker::new(OWNER, None);
    let limits = Limits { expiry_slice: 1, ..Limits::default() };
    let mut copy = Worker::made(COPY, None, limits);
    let its = membership(2, OWNER, &[COPY]);
    owner.become_all(&its);
    copy.become_all(&its);
    settle(&mut owner, &mut copy);
    for session in 7..10 {
        owner.hello(session, 1);
    }
    let key = key_in(&owner, CELLS[0], 0);
    let shared = Operation::Acquire { claim: Claim::SHARED, wait: Wait::Forever };
    ask_on(&mut owner, 7, 1, &key, shared);
    ask_on(&mut owner, 8, 1, &key, waits());
    ask_on(&mut owner, 9, 1, &key, shared);
    settle(&mut owner, &mut copy);
    let answers = owner.answers();
    assert!(matches!(answers[1..], [Reply::Queued { .. }, Reply::Queued { .. }]), "{answers:?}");
    copy.hello(9, 1);
    copy.give(9, &[Request::Renew { id: 600 }]);
    copy.answers();
    let changed = CELLS.map(|cell| (cell, Some(membership(3, COPY, &[]))));
    let part = |changed| ClusterEvent::Memberships { changed, version: RingVersion(3) };
    assert_eq!(copy.run(Event::Cluster(part(&changed))), 1);
    // Another has taken session 8 up.
    open_on(&mut copy, 80, 8, (0, 1000));
    let version = copy.machine.version().0;
    let mut left = 50;
    while give_on(&mut copy, 80, &[empty_compare(1001, version, 1000)]) == 0 {
        left -= 1;
        assert!(left > 0);
    }
    let early = copy.answers();
    assert_eq!(copy.run(Event::Cluster(part(&changed[1..]))), 1);
    for _ in 0..8 {
        copy.run(Event::Tick);
    }
    let late = copy.answers();
    for reply in early.iter().chain(&late) {
        if let Reply::Granted { version, .. } = *reply {
            assert!(version >= 3, "the cell is here since 3: {early:?}, {late:?}");
        }
    }
    let all = early.iter().chain(&late);
    assert_eq!(all.filter(|it| matches!(it, Reply::Granted { .. })).count(), 1);
}

/// A process that has taken the session up is known at the next owner; another takes it up at the
/// owner and queues there, while its hello to the next owner is under way.
#[test]
fn who_asks_the_owner_keeps_its_place_whoever_had_met_the_next_owner() {
    for before in [0, 5000] {
        let (mut owner, mut copy) = pair(None);
        owner.acquire(7, b"key", Wait::No);
        settle(&mut owner, &mut copy);
        let [Reply::Granted { fence, .. }] = owner.answers()[..] else { panic!("it is free") };
        open_on(&mut owner, 80, 8, (1, before));
        open_on(&mut copy, 80, 8, (1, before));
        give_on(&mut copy, 80, &[Request::Renew { id: before + 1 }]);
        open_on(&mut owner, 81, 8, (0, SUCCESSOR));
        let its = SUCCESSOR + 1;
        ask_on(&mut owner, 81, its, b"key", waits());
        owner.hello(9, 1);
        ask_on(&mut owner, 9, 2, b"key", waits());
        settle(&mut owner, &mut copy);
        promoted(&mut copy);
        for _ in 0..4 {
            copy.run(Event::Tick);
        }
        // Its hello comes now.
        open_on(&mut copy, 81, 8, (0, SUCCESSOR));
        ask_on(&mut copy, 81, its, b"key", waits());
        copy.hello(7, 1);
        copy.hello(9, 1);
        ask_on(&mut copy, 9, 2, b"key", waits());
        copy.answers();
        ask_on(&mut copy, 7, 100, b"key", Operation::Release { fence });
        let answers = copy.answers();
        let granted = answers.iter().find_map(|reply| match reply {
            Reply::Granted { id, .. } => Some(*id),
            _ => None,
        });
        assert_eq!(granted, Some(its), "before: {before}: {answers:?}");
    }
}

#[test]
fn a_renewal_waits_no_longer_than_a_lease_while_the_worker_learns_ring_after_ring() {
    let mut it = Worker::new(OWNER, None);
    it.become_all(&membership(3, OWNER, &[]));
    it.hello(7, 1);
    it.said.clear();
    let requests = [
        Request::Keyed { id: 1, version: 100, operation: tries(), key: b"key" },
        Request::Renew { id: 2 },
    ];
    let mut rest = &requests[..];
    let mut version = 3;
    let mut told = Time(0);
    while !rest.is_empty() && version < 100 {
        rest = &rest[it.give(7, rest)..];
        if rest.is_empty() {
            break;
        }
        let resumes = |said: &Action| matches!(said, Action::Resume(_)).then_some(());
        while it.take(resumes).is_empty() {
            let at = it.machine.next_deadline().unwrap();
            it.walk(at.max(it.now));
            if it.now.since(told) >= Duration::from_millis(150) {
                told = it.now;
                version += 1;
                // An entry that changes nothing here.
                let event =
                    ClusterEvent::Memberships { changed: &[], version: RingVersion(version) };
                it.cluster(event);
            }
        }
    }
    let waited = it.now.since(Time(0));
    assert!(waited <= Duration::from_secs(1), "the renewal was answered after {waited:?}");
}

/// The owner is gone before it has let the waiter of the process before go. The next one grants to
/// it at once, and its hold is spared when the process in force says hello.
#[test]
fn who_waited_before_a_session_was_taken_up_is_not_granted_before_the_hello_comes() {
    let (mut owner, mut copy) = pair(None);
    owner.acquire(7, b"key", Wait::No);
    settle(&mut owner, &mut copy);
    let [Reply::Granted { fence, .. }] = owner.answers()[..] else { panic!("it is free") };
    open_on(&mut owner, 80, 8, (1, 0));
    ask_on(&mut owner, 80, 1, b"key", waits());
    owner.hello(9, 1);
    ask_on(&mut owner, 9, 1, b"key", waits());
    open_on(&mut owner, 81, 8, (0, SUCCESSOR));
    ask_on(&mut owner, 81, SUCCESSOR + 1, b"other", tries());
    settle(&mut owner, &mut copy);
    promoted(&mut copy);
    copy.hello(7, 1);
    copy.hello(9, 1);
    ask_on(&mut copy, 9, 1, b"key", waits());
    ask_on(&mut copy, 7, 100, b"key", Operation::Release { fence });
    for _ in 0..4 {
        copy.run(Event::Tick);
    }
    open_on(&mut copy, 81, 8, (1, SUCCESSOR));
    give_on(&mut copy, 81, &[empty_compare(SUCCESSOR + 3, 3, SUCCESSOR + 2)]);
    for _ in 0..4 {
        copy.run(Event::Tick);
    }
    let answers = copy.answers();
    assert!(
        answers.iter().any(|reply| matches!(reply, Reply::Granted { .. })),
        "the one behind is granted: {answers:?}"
    );
}

/// A session with many holds is taken up again and again: what it has is looked through anew each
/// time. What a dead session has left, and others wait for, is freed all the same.
#[test]
fn the_dead_are_freed_when_nobody_says_hello() {
    dead_beside_hellos(1);
}

#[test]
fn the_dead_are_freed_while_a_session_is_taken_up_again_and_again() {
    dead_beside_hellos(1000);
}

fn dead_beside_hellos(hellos: u64) {
    let limits = Limits { expiry_slice: 64, ..Limits::default() };
    let mut it = Worker::made(OWNER, None, limits);
    it.become_all(&membership(3, OWNER, &[]));
    let shared = Operation::Acquire { claim: Claim::SHARED, wait: Wait::No };
    open_on(&mut it, 70, 7, (0, 1000));
    for n in 0..1000_u64 {
        ask_on(&mut it, 70, 1001 + n, &n.to_le_bytes(), shared);
    }
    it.hello(8, 1);
    ask_on(&mut it, 8, 1, b"key", tries());
    it.hello(9, 1);
    ask_on(&mut it, 9, 1, b"key", waits());
    it.answers();
    give_on(&mut it, 8, &[Request::Goodbye { id: 2 }]);
    let mut granted = false;
    for n in 0..hellos {
        open_on(&mut it, 100 + n, 7, (0, 1000 + (n % 2)));
        // A thousand entries take 16 slices of 64.
        for _ in 0..15 {
            it.run(Event::Tick);
        }
        let answers = it.answers();
        granted |= answers.iter().any(|reply| matches!(reply, Reply::Granted { .. }));
    }
    if hellos == 1 {
        for _ in 0..15 {
            it.run(Event::Tick);
        }
        granted |= it.answers().iter().any(|reply| matches!(reply, Reply::Granted { .. }));
    }
    assert!(granted, "after {hellos} hellos and as many times 15 slices");
}
