//! In which order answers leave, and on whose word.

use super::*;
use lockring_proto::Push;

/// What clients were told: ids of answers, 0 for an end.
fn told(it: &mut Worker) -> Vec<u64> {
    it.take(|said| match said {
        Action::Reply { reply, .. } => Some(reply.id()),
        Action::Push { push: Push::Lost { .. }, .. } => Some(0),
        _ => None,
    })
}

#[test]
fn what_waits_for_a_cell_anew_leaves_in_its_order() {
    let (mut owner, mut copy) = pair(None);
    owner.open(9, 1, &operator());
    let keys: Vec<Vec<u8>> = (0..2).map(|n| key_in(&owner, CELLS[0], n)).collect();
    copy.cluster(ClusterEvent::Lease(Time(0)));
    let first = owner.acquire(7, &keys[0], Wait::No);
    let one = owner.messages();
    let granted = owner.acquire(7, &keys[1], Wait::No);
    let two = owner.messages();
    copy.hears(OWNER, &one);
    owner.hears(COPY, &copy.messages());
    // The copy has refused the first frame, and the second is under way.
    let forced = owner.ask(9, &keys[1], Operation::Force { namespace: "" });
    copy.hears(OWNER, &two);
    owner.hears(COPY, &copy.messages());
    copy.cluster(ClusterEvent::Lease(Time::NEVER));
    settle(&mut owner, &mut copy);
    assert_eq!(told(&mut owner), [first, granted, 0, forced]);
}

#[test]
fn what_is_looked_at_anew_leaves_in_its_order() {
    let (mut owner, mut copy) = pair(None);
    owner.open(9, 1, &operator());
    let key = key_in(&owner, CELLS[0], 0);
    owner.cluster(ClusterEvent::Lease(Time(1000)));
    let granted = owner.acquire(7, &key, Wait::No);
    let one = owner.messages();
    let forced = owner.ask(9, &key, Operation::Force { namespace: "" });
    owner.messages();
    owner.now = Time(2000);
    copy.hears(OWNER, &one);
    owner.hears(COPY, &copy.messages());
    // Nothing leaves past the lease. The copy is dropped, and there is a lease again.
    owner.become_all(&membership(2, OWNER, &[]));
    assert_eq!(told(&mut owner), []);
    owner.cluster(ClusterEvent::Lease(Time::NEVER));
    assert_eq!(told(&mut owner), [granted, 0, forced]);
}

#[test]
fn every_copy_is_asked_to_show_what_an_answer_shows() {
    let (mut owner, mut copy, mut third) = three();
    let its = membership(2, OWNER, &[COPY, THIRD]);
    for it in [&mut owner, &mut copy, &mut third] {
        it.become_one(CELLS[0], &its);
    }
    for it in [&mut owner, &mut copy] {
        it.become_one(CELLS[1], &membership(2, OWNER, &[COPY]));
    }
    let (key, other) = (key_in(&owner, CELLS[0], 0), key_in(&owner, CELLS[1], 0));
    let id = owner.acquire(7, &key, Wait::No);
    settle_three(&mut owner, &mut copy, &mut third);
    assert!(is_granted(&owner.answers(), id));
    // The log drops the third, and has the copy follow the owner, who is taken for dead. Only the
    // copy knows. There the hold is ended by force, and the key is another's.
    copy.become_one(CELLS[0], &membership(3, COPY, &[]));
    copy.open(9, 1, &operator());
    copy.ask(9, &key, Operation::Force { namespace: "" });
    copy.hello(8, 1);
    copy.answers();
    copy.acquire(8, &key, Wait::No);
    assert!(matches!(copy.answers()[..], [Reply::Granted { .. }]));
    // A retry at the owner, with something for the other cell in the same turn.
    owner.id = id - 1;
    owner.acquire(7, &key, Wait::No);
    owner.id = 100;
    owner.acquire(7, &other, Wait::No);
    owner.flush();
    for _ in 0..5 {
        goes_round(&mut owner, &mut third, THIRD);
        goes_round(&mut owner, &mut copy, COPY);
    }
    let answers = owner.answers();
    assert!(!answers.iter().any(|it| it.id() == id), "held twice: {answers:?}");
}

#[test]
fn an_answer_waits_for_what_a_copy_was_sent_anew_while_another_was_slow() {
    let (mut owner, mut copy, mut third) = three();
    for it in [&mut owner, &mut copy, &mut third] {
        it.become_all(&membership(2, OWNER, &[COPY, THIRD]));
    }
    settle_three(&mut owner, &mut copy, &mut third);
    let id = owner.acquire(7, b"key", Wait::No);
    let slow = owner.messages_for(THIRD);
    // One refuses the frame, and is sent the whole cell, which is under way.
    copy.cluster(ClusterEvent::Lease(Time(0)));
    goes_round(&mut owner, &mut copy, COPY);
    copy.cluster(ClusterEvent::Lease(Time::NEVER));
    owner.hears(COPY, &copy.messages());
    goes_round(&mut owner, &mut copy, COPY);
    let whole = owner.messages_for(COPY);
    assert_eq!(whole.len(), 1);
    third.hears(OWNER, &slow);
    owner.hears(THIRD, &third.messages());
    assert_eq!(owner.answers(), [], "one of the copies has nothing of it");
    copy.hears(OWNER, &whole);
    owner.hears(COPY, &copy.messages());
    assert!(is_granted(&owner.answers(), id));
}

#[test]
fn what_was_to_leave_past_the_lease_is_for_the_next_owner_to_answer() {
    let (mut owner, mut copy) = pair(None);
    owner.cluster(ClusterEvent::Lease(Time(1000)));
    let id = owner.acquire(7, b"key", Wait::No);
    owner.now = Time(2000);
    settle(&mut owner, &mut copy);
    owner.become_all(&membership(3, COPY, &[OWNER]));
    owner.cluster(ClusterEvent::Lease(Time::NEVER));
    let answers = owner.answers();
    assert!(matches!(answers[..], [Reply::Moved { id: of, .. }] if of == id), "{answers:?}");
}

#[test]
fn a_learner_that_was_waited_for_is_so_after_every_entry() {
    let (mut owner, mut copy) = (Worker::new(OWNER, None), Worker::new(COPY, None));
    let its = Membership { learner: Some(member(COPY)), ..membership(2, OWNER, &[]) };
    for it in [&mut owner, &mut copy] {
        it.become_all(&its);
    }
    settle(&mut owner, &mut copy);
    owner.hello(7, 1);
    // It may be a member by an entry that its owner has not applied yet.
    owner.become_all(&its);
    let id = owner.acquire(7, b"key", Wait::No);
    let frames = owner.messages();
    assert_eq!(owner.answers(), []);
    copy.hears(OWNER, &frames);
    owner.hears(COPY, &copy.messages());
    assert!(is_granted(&owner.answers(), id));
}

/// An owner whose cell has come to its last number, with a hold, and its copy.
pub(super) fn at_the_last_number() -> (Worker, Worker, Vec<u8>) {
    let (mut owner, mut copy) = (Worker::new(OWNER, None), Worker::new(COPY, None));
    owner.become_all(&membership(2, OWNER, &[]));
    let key = key_in(&owner, CELLS[0], 0);
    owner.machine.wind_counter(CELLS[0], Fence::COUNTER_LAST - 1);
    for session in 7..10 {
        owner.hello(session, 1);
    }
    let id = owner.acquire(7, &key, Wait::No);
    assert!(is_granted(&owner.answers(), id));
    let its = membership(2, OWNER, &[COPY]);
    owner.become_all(&its);
    copy.become_all(&its);
    settle(&mut owner, &mut copy);
    assert!(are_equal(&owner, &copy));
    (owner, copy, key)
}

pub(super) fn are_equal(owner: &Worker, copy: &Worker) -> bool {
    CELLS
        .iter()
        .all(|&cell| owner.machine.contents(cell, false) == copy.machine.contents(cell, true))
}

#[test]
fn at_the_last_number_a_copy_that_missed_a_whole_cell_is_not_taken_to_have_it() {
    let (mut owner, mut copy, key) = at_the_last_number();
    copy.cluster(ClusterEvent::Lease(Time(0)));
    let queued = owner.acquire(8, &key, Wait::Forever);
    settle(&mut owner, &mut copy);
    assert_eq!(owner.answers(), []);
    copy.cluster(ClusterEvent::Lease(Time::NEVER));
    settle(&mut owner, &mut copy);
    assert!(matches!(owner.answers()[..], [Reply::Queued { id, .. }] if id == queued));
    assert!(are_equal(&owner, &copy), "the copy has nothing of {queued}");
}

#[test]
fn a_hold_under_no_fence_at_all_is_reclaimed_and_copied() {
    let (mut owner, mut copy) = (Worker::new(OWNER, None), Worker::new(COPY, None));
    let its = Membership { grace: Some(Duration::from_secs(13)), ..membership(3, OWNER, &[COPY]) };
    owner.become_all(&its);
    copy.become_all(&its);
    settle(&mut owner, &mut copy);
    owner.hello(7, 1);
    owner.hello(8, 1);
    for (session, fence, claim) in [
        (7, Fence(0), Claim::EXCLUSIVE),
        (8, Fence(0), Claim::EXCLUSIVE),
        (8, Fence(1), Claim::SHARED),
        (7, Fence(0), Claim::SHARED),
        (7, Fence(u64::MAX), Claim::SHARED),
        (7, Fence(1 << 63), Claim::Permits { permits: 1, capacity: 2 }),
        (7, Fence((1 << 40) + 5), Claim::Permits { permits: 1, capacity: 2 }),
        (8, Fence((1 << 40) - 1), Claim::Permits { permits: 2, capacity: 2 }),
    ] {
        for key in [b"key".as_slice(), b"a key of more bytes than a record has"] {
            owner.id += 1;
            let request = owner.id + 1000;
            owner.ask(session, key, Operation::Reclaim { fence, request, claim });
            owner.machine.audit().unwrap();
            settle(&mut owner, &mut copy);
            copy.machine.audit().unwrap();
            for cell in CELLS {
                assert_eq!(owner.machine.contents(cell, false), copy.machine.contents(cell, true));
            }
        }
    }
    copy.become_all(&membership(4, COPY, &[]));
    copy.machine.audit().unwrap();
}

#[test]
fn an_order_by_force_is_not_carried_out_by_two_owners() {
    let (mut owner, _) = pair(None);
    owner.open(9, 1, &operator());
    let key = key_in(&owner, CELLS[0], 0);
    let granted = owner.acquire(7, &key, Wait::No);
    let released = owner.acquire(7, &key_in(&owner, CELLS[0], 1), Wait::No);
    let forced = owner.ask(9, &key, Operation::Force { namespace: "" });
    // Nothing of it has come to the copy when that becomes the owner.
    owner.become_all(&membership(2, COPY, &[]));
    let answers = owner.answers();
    let of = |id| answers.iter().find(|it| it.id() == id).expect("everybody is answered");
    assert!(matches!(of(granted), Reply::Moved { .. }), "{answers:?}");
    assert!(matches!(of(released), Reply::Moved { .. }), "{answers:?}");
    assert!(matches!(of(forced), Reply::Refused { .. }), "{answers:?}");
}

#[test]
fn an_order_by_force_that_is_half_carried_out_is_not_sent_on_either() {
    let limits = Limits { turn_price: 40, ..Limits::default() };
    let mut owner = Worker::with_limits(OWNER, limits);
    owner.become_all(&membership(2, OWNER, &[COPY]));
    owner.hello(7, 1);
    owner.open(9, 1, &operator());
    let key = key_in(&owner, CELLS[0], 0);
    for _ in 0..100 {
        owner.ask(7, &key, Operation::Acquire { claim: Claim::SHARED, wait: Wait::No });
    }
    let operation = Operation::Force { namespace: "" };
    let [order, next] =
        [200, 201].map(|id| Request::Keyed { id, version: 2, operation, key: &key });
    assert_eq!(owner.give(9, std::slice::from_ref(&order)), 0, "there is more than one turn to do");
    owner.become_all(&membership(3, COPY, &[]));
    owner.answers();
    assert_eq!(owner.give(9, &[order]), 1);
    let answers = owner.answers();
    assert!(matches!(answers[..], [Reply::Refused { id: 200, .. }]), "{answers:?}");
    // Another one has not begun.
    owner.give(9, &[next]);
    assert!(matches!(owner.answers()[..], [Reply::Moved { id: 201, .. }]));
}
