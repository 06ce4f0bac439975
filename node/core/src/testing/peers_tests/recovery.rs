//! Cells that were taken over without a copy, and what their clients reclaim.

use super::*;
use lockring_proto::{LostReason, Push};

const GRACE: Duration = Duration::from_secs(13);

fn taken_over(epoch: u32, owner: PeerWorker, backups: &[PeerWorker]) -> Membership {
    Membership { grace: Some(GRACE), ..membership(epoch, owner, backups) }
}

fn fence(epoch: u32, counter: u64) -> Fence {
    Fence::new(Epoch(epoch), counter)
}

fn reclaim(it: &mut Worker, session: u8, key: &[u8], told: (Fence, u64, Claim)) -> u64 {
    let (fence, request, claim) = told;
    it.ask(session, key, Operation::Reclaim { fence, request, claim })
}

fn is_confirmed(replies: &[Reply]) -> bool {
    matches!(replies, [Reply::Confirmed { .. }])
}

/// An owner in the grace of a takeover, alone, with a session.
fn recovering() -> Worker {
    let mut owner = Worker::new(OWNER, None);
    owner.become_all(&taken_over(3, OWNER, &[]));
    owner.hello(7, 1);
    owner
}

fn recovered(it: &mut Worker) -> Vec<Epoch> {
    it.take(|said| if let Action::Recovered { epoch, .. } = said { Some(*epoch) } else { None })
}

#[test]
fn what_was_reclaimed_is_in_the_copies_and_goes_on_at_the_next_owner() {
    let (mut owner, mut copy) = (recovering(), Worker::new(COPY, None));
    let (one, two) = (fence(1, 9), fence(2, 4));
    reclaim(&mut owner, 7, b"before", (one, 70, Claim::EXCLUSIVE));
    reclaim(&mut owner, 7, b"shared", (two, 71, Claim::SHARED));
    owner.acquire(7, b"queued", Wait::Forever);
    owner.answers();
    // It gets all of it at once, and then op by op.
    for it in [&mut owner, &mut copy] {
        it.become_all(&taken_over(3, OWNER, &[COPY]));
    }
    settle(&mut owner, &mut copy);
    owner.hello(8, 1);
    for (key, fence, claim) in [
        (b"after".as_slice(), fence(1, 2), Claim::EXCLUSIVE),
        (b"shared", fence(1, 1), Claim::SHARED),
        (b"queued", fence(2, 9), Claim::EXCLUSIVE),
        (b"a key of more bytes than a record has", fence(1, 8), Claim::EXCLUSIVE),
        (b"permits", fence(1, 7), Claim::Permits { permits: 2, capacity: 3 }),
    ] {
        reclaim(&mut owner, 8, key, (fence, 80 + fence.counter(), claim));
        assert_eq!(owner.answers(), [], "the copy has not acknowledged it");
        settle(&mut owner, &mut copy);
        assert!(is_confirmed(&owner.answers()));
    }
    for cell in CELLS {
        assert_eq!(owner.machine.contents(cell, false), copy.machine.contents(cell, true));
    }
    copy.machine.audit().unwrap();
    // The owner is lost within the grace, and the copy has one of its own.
    copy.become_all(&taken_over(4, COPY, &[]));
    copy.machine.audit().unwrap();
    copy.hello(7, 1);
    copy.hello(8, 1);
    copy.said.clear();
    reclaim(&mut copy, 7, b"before", (one, 70, Claim::EXCLUSIVE));
    assert!(is_confirmed(&copy.answers()));
    reclaim(&mut copy, 8, b"shared", (two, 90, Claim::SHARED));
    assert!(matches!(copy.answers()[..], [Reply::NotHeld { .. }]), "it is another's");
    copy.ask(8, b"queued", Operation::Release { fence: fence(2, 9) });
    assert!(matches!(copy.answers()[..], [Reply::Released { .. }]), "and grants nothing new");
    // Who waited at the owner before is served as it opens.
    for second in 1..=14 {
        copy.walk(Time(second * 1_000_000));
        for session in [7, 8] {
            copy.ask(session, b"alive", Operation::Confirm { fence: one });
        }
    }
    let granted = |it: &Reply| matches!(it, Reply::Granted { .. });
    assert_eq!(copy.answers().into_iter().filter(granted).count(), 0, "asked on no connection");
    let held: usize = CELLS.map(|cell| copy.machine.contents(cell, false).1.len()).iter().sum();
    assert_eq!((held, recovered(&mut copy)), (6, vec![Epoch(4), Epoch(4)]));
    copy.machine.audit().unwrap();
}

#[test]
fn a_cell_opens_by_itself_at_the_end_of_its_grace_and_not_before() {
    let mut owner = Worker::new(OWNER, None);
    owner.become_all(&taken_over(3, OWNER, &[]));
    assert_eq!(owner.machine.next_deadline(), Some(Time(0).after(GRACE)), "nobody is there");
    owner.walk(Time(GRACE.as_micros() as u64 - 1));
    assert_eq!(recovered(&mut owner), []);
    // What is said again of it, and another copy, make it no longer.
    owner.become_all(&taken_over(3, OWNER, &[COPY]));
    owner.become_all(&taken_over(3, OWNER, &[]));
    owner.walk(Time(0).after(GRACE));
    assert_eq!(recovered(&mut owner), [Epoch(3), Epoch(3)]);
    owner.walk(Time(0).after(GRACE * 3));
    assert_eq!(recovered(&mut owner), [], "once");
    assert_eq!(owner.machine.next_deadline(), None);
    // A new epoch in which the log has not heard of that.
    owner.become_all(&taken_over(4, OWNER, &[]));
    assert_eq!(recovered(&mut owner), [Epoch(4), Epoch(4)]);
    owner.hello(7, 1);
    let id = owner.acquire(7, b"key", Wait::No);
    assert!(is_granted(&owner.answers(), id));
}

#[test]
fn a_second_takeover_by_the_same_process_keeps_what_was_reclaimed_and_takes_its_time() {
    let mut owner = recovering();
    reclaim(&mut owner, 7, b"key", (fence(1, 9), 70, Claim::EXCLUSIVE));
    assert!(is_confirmed(&owner.answers()));
    let half = Time(0).after(GRACE / 2);
    let renew = |it: &mut Worker| it.ask(7, b"key", Operation::Confirm { fence: fence(1, 9) });
    owner.walk(half);
    renew(&mut owner);
    owner.become_all(&taken_over(5, OWNER, &[]));
    owner.walk(Time(0).after(GRACE));
    renew(&mut owner);
    assert_eq!(owner.answers().iter().filter(|it| is_confirmed(&[(*it).clone()])).count(), 2);
    // Of the epoch between, which was another's.
    reclaim(&mut owner, 7, b"between", (fence(4, 1), 71, Claim::EXCLUSIVE));
    assert!(is_confirmed(&owner.answers()));
    owner.walk(Time(half.after(GRACE).0 - 1));
    assert_eq!(recovered(&mut owner), []);
    owner.walk(half.after(GRACE));
    assert_eq!(recovered(&mut owner), [Epoch(5), Epoch(5)]);
}

#[test]
fn quotas_let_in_what_is_reclaimed_and_nothing_beside_it() {
    let mut owner = Worker::with_limits(OWNER, Limits { holds_per_link: 2, ..Limits::default() });
    owner.become_all(&taken_over(3, OWNER, &[]));
    owner.hello(7, 1);
    for number in 1..=5 {
        let key = format!("key {number}");
        reclaim(&mut owner, 7, key.as_bytes(), (fence(1, number), number, Claim::EXCLUSIVE));
        assert!(is_confirmed(&owner.answers()));
    }
    owner.run(Event::Memory { full: true });
    reclaim(&mut owner, 7, b"more", (fence(1, 9), 90, Claim::EXCLUSIVE));
    assert!(matches!(owner.answers()[..], [Reply::Refused { .. }]), "the node has to live");
    owner.run(Event::Memory { full: false });
    reclaim(&mut owner, 7, b"more", (fence(1, 9), 90, Claim::EXCLUSIVE));
    assert!(is_confirmed(&owner.answers()));
    for second in 1..=14 {
        owner.walk(Time(second * 1_000_000));
        owner.ask(7, b"more", Operation::Confirm { fence: fence(1, 9) });
    }
    owner.answers();
    owner.acquire(7, b"new", Wait::No);
    assert!(matches!(owner.answers()[..], [Reply::Refused { .. }]));
    owner.machine.audit().unwrap();
}

fn permits(permits: u32) -> Claim {
    Claim::Permits { permits, capacity: 3 }
}

#[test]
fn what_the_dead_have_left_bars_nobody() {
    let mut owner = recovering();
    owner.hello(8, 1);
    owner.hello(9, 1);
    reclaim(&mut owner, 8, b"key", (fence(2, 9), 80, Claim::EXCLUSIVE));
    reclaim(&mut owner, 8, b"permits", (fence(2, 9), 81, permits(2)));
    reclaim(&mut owner, 9, b"permits", (fence(2, 8), 90, permits(1)));
    let confirmed = |it: &&Reply| is_confirmed(std::slice::from_ref(it));
    assert_eq!(owner.answers().iter().filter(confirmed).count(), 3);
    // It is dead at once; what it has is freed by and by.
    owner.give(8, &[Request::Goodbye { id: 600 }]);
    owner.answers();
    for (key, claim) in [(b"key".as_slice(), Claim::EXCLUSIVE), (b"permits", permits(1))] {
        let request = owner.id + 100;
        reclaim(&mut owner, 7, key, (fence(1, 1), request, claim));
        assert!(is_confirmed(&owner.answers()), "the dead bar {claim:?}");
    }
    owner.ask(9, b"permits", Operation::Confirm { fence: fence(2, 8) });
    assert!(is_confirmed(&owner.answers()));
    owner.machine.audit().unwrap();
}

#[test]
fn who_does_not_get_in_outranks_nobody() {
    let mut owner = recovering();
    owner.hello(8, 1);
    reclaim(&mut owner, 8, b"permits", (fence(2, 9), 80, permits(2)));
    reclaim(&mut owner, 8, b"permits", (fence(1, 1), 81, permits(1)));
    owner.said.clear();
    // The higher leaves it no room, whatever becomes of the lower.
    reclaim(&mut owner, 7, b"permits", (fence(1, 5), 70, permits(2)));
    assert!(matches!(owner.answers()[..], [Reply::NotHeld { .. }]));
    owner.ask(8, b"permits", Operation::Confirm { fence: fence(1, 1) });
    assert!(is_confirmed(&owner.answers()));
    // With room for it, it takes the place of the lower.
    reclaim(&mut owner, 7, b"permits", (fence(1, 5), 70, permits(1)));
    assert!(is_confirmed(&owner.answers()));
}

#[test]
fn who_knows_an_epoch_before_the_one_of_a_grace_is_sent_on() {
    let mut owner = recovering();
    owner.become_all(&taken_over(5, OWNER, &[]));
    let is_sent_on = |owner: &mut Worker, session, version| {
        owner.id += 1;
        let operation = Operation::Inspect { namespace: "" };
        owner.give(session, &[Request::Keyed { id: owner.id, version, operation, key: b"key" }]);
        matches!(owner.answers()[..], [Reply::Moved { .. }])
    };
    assert_eq!([3, 4, 5].map(|version| is_sent_on(&mut owner, 7, version)), [true, true, false]);
    owner.walk(Time(0).after(GRACE));
    owner.hello(8, 1);
    assert_eq!([3, 4, 5].map(|version| is_sent_on(&mut owner, 8, version)), [true, true, false]);
}

#[test]
fn a_hold_that_outranks_many_makes_room_over_several_turns() {
    const MANY: u64 = 500;
    let mut owner = recovering();
    owner.hello(8, 1);
    for number in 1..=MANY {
        reclaim(&mut owner, 7, b"key", (fence(1, number), number, Claim::SHARED));
    }
    owner.said.clear();
    let (fence, request, claim) = (fence(1, MANY + 1), 1, Claim::EXCLUSIVE);
    let operation = Operation::Reclaim { fence, request, claim };
    let version = owner.machine.version().0;
    let requests = [Request::Keyed { id: 900, version, operation, key: b"key" }];
    let mut turns = 0;
    while owner.answers().is_empty() {
        owner.give(8, &requests);
        turns += 1;
        owner.machine.audit().unwrap();
    }
    assert!((10..200).contains(&turns), "{turns} turns");
    let lost = owner.said.iter().filter_map(|action| match action {
        Action::Push { push: Push::Lost { reason: LostReason::Outranked, holds }, .. } => {
            Some(holds.len() as u64)
        }
        _ => None,
    });
    assert_eq!(lost.sum::<u64>(), MANY);
}

/// How far a renewal says that cells have arrived.
fn settled(it: &mut Worker) -> u64 {
    it.give(7, &[Request::Renew { id: 500 }]);
    match it.answers()[..] {
        [Reply::Renewed { settled, .. }] => settled,
        ref other => panic!("{other:?}"),
    }
}

/// What renewals say while a promoted owner waits for its copy, and what when that is equal.
fn settled_around_a_promotion(mutant: Option<Mutant>) -> [u64; 4] {
    let (mut owner, mut copy) = (Worker::new(OWNER, mutant), Worker::new(COPY, mutant));
    owner.become_all(&membership(2, OWNER, &[]));
    owner.hello(7, 1);
    let alone = settled(&mut owner);
    let its = membership(5, OWNER, &[COPY]);
    owner.become_all(&its);
    let syncing = settled(&mut owner);
    copy.become_all(&its);
    let frames = owner.messages();
    copy.hears(OWNER, &frames);
    let acks = copy.messages();
    let under_way = settled(&mut owner);
    owner.hears(COPY, &acks);
    settle(&mut owner, &mut copy);
    [alone, syncing, under_way, settled(&mut owner)]
}

#[test]
fn a_renewal_says_how_far_cells_have_arrived() {
    assert_eq!(settled_around_a_promotion(None), [2, 4, 4, 5]);
    let noticed = settled_around_a_promotion(Some(Mutant::SettledWhileSyncing));
    assert_eq!(noticed, [2, 5, 5, 5]);
}

#[test]
fn what_does_not_hold_an_arrival_up() {
    let (mut owner, mut copy) = pair(None);
    settle(&mut owner, &mut copy);
    assert_eq!(settled(&mut owner), 2);
    // A copy that falls behind, one that is gone, one that is attached, and what is lost again.
    copy.cluster(ClusterEvent::Lease(Time(0)));
    owner.acquire(7, b"key", Wait::No);
    settle(&mut owner, &mut copy);
    assert_eq!(settled(&mut owner), 2);
    owner.become_all(&membership(3, OWNER, &[COPY]));
    assert_eq!(settled(&mut owner), 2, "it is not equal");
    owner.become_all(&membership(3, OWNER, &[]));
    owner.answers();
    assert_eq!(settled(&mut owner), 3);
    let mut its = membership(3, OWNER, &[]);
    its.learner = Some(member(COPY));
    owner.become_all(&its);
    assert_eq!(settled(&mut owner), 3);
    owner.become_all(&membership(4, OWNER, &[COPY]));
    assert_eq!(settled(&mut owner), 3);
    owner.become_all(&membership(5, COPY, &[]));
    owner.answers();
    assert_eq!(settled(&mut owner), 5);
    // One that recovers says itself what is reclaimed.
    owner.become_all(&taken_over(6, OWNER, &[]));
    assert_eq!(settled(&mut owner), 6);
}

/// A session renews, its connection breaks, and another stands: whether its link is as it was.
fn is_kept(of_cells: &[CellId], renews: bool, away: Duration) -> bool {
    let mut it = Worker::new(OWNER, None);
    it.become_of(of_cells, &membership(2, OWNER, &[]));
    it.hello(7, 1);
    if renews {
        it.give(7, &[Request::Renew { id: 1 }]);
        let settled = RingVersion(2).0;
        let answers = it.answers();
        assert!(
            matches!(answers[..], [Reply::Renewed { settled: its, .. }] if its == settled),
            "all that is here by the ring has arrived, or is lost: {answers:?}"
        );
    }
    it.run(Event::Closed { conn: ConnId(7), link: it.links[&ConnId(7)] });
    it.walk(it.now.after(away));
    it.said.clear();
    it.hello(7, 2);
    let welcomes = it.take(|said| match said {
        Action::Welcome { reply, .. } => Some(reply.clone()),
        _ => None,
    });
    match &*welcomes[0] {
        lockring_proto::HelloReply::Welcome(welcome) => !welcome.fresh,
        refused => panic!("{refused:?}"),
    }
}

/// The ring says that a cell is this worker's whose last copy was lost with the process before. Who
/// holds something in it counts on the lease of its link here, as renewals say that nothing is on
/// its way; and would take a fresh welcome for the end of that.
#[test]
fn a_link_is_kept_on_which_holds_of_a_lost_cell_may_count() {
    let soon = Duration::from_millis(50);
    assert!(is_kept(&CELLS[..1], true, soon), "the other cell may be lost");
    // A lease that is over is over, and where all cells are here nothing is kept of nothing; nor
    // where nobody was told of any lease.
    assert!(!is_kept(&CELLS[..1], true, Duration::from_secs(11)));
    assert!(!is_kept(&CELLS, true, soon));
    assert!(!is_kept(&CELLS[..1], false, soon));
}
