//! Schedules that a review found by hand, each of which lost or repeated something once.

use super::*;

#[test]
fn an_answer_of_all_cells_outlives_the_copy_that_it_waits_for() {
    let (mut owner, mut copy) = pair(None);
    copy.cluster(ClusterEvent::Lease(Time(0)));
    owner.acquire(7, b"key", Wait::No);
    settle(&mut owner, &mut copy);
    let requests = [Request::Compare {
        id: 50,
        version: 99,
        upto: 99,
        after: None,
        through: None,
        holds: Vec::new(),
    }];
    owner.give(7, &requests);
    settle(&mut owner, &mut copy);
    assert!(!owner.answers().iter().any(|it| matches!(it, Reply::Compared { .. })));
    owner.become_all(&membership(3, OWNER, &[]));
    assert!(owner.answers().iter().any(|it| matches!(it, Reply::Compared { .. })));
}

#[test]
fn nothing_is_synced_by_what_an_earlier_attachment_acknowledged() {
    let (mut owner, mut copy) = (Worker::new(OWNER, None), Worker::new(COPY, None));
    let learner = |attach| {
        let mut its = membership(2, OWNER, &[]);
        its.learner = Some(Member { attach: AttachId(attach), ..member(COPY) });
        its
    };
    for it in [&mut owner, &mut copy] {
        // The lane stays, as there is another cell.
        it.become_one(CELLS[1], &membership(2, OWNER, &[COPY]));
        it.become_one(CELLS[0], &learner(5));
    }
    owner.hello(7, 1);
    let (one, two) = (key_in(&owner, CELLS[0], 0), key_in(&owner, CELLS[0], 1));
    let first = owner.messages();
    owner.acquire(7, &one, Wait::No);
    let second = owner.messages();
    copy.hears(OWNER, &first);
    let acks = copy.messages();
    owner.hears(COPY, &acks);
    // The snapshot is acknowledged; the op before that is under way.
    copy.hears(OWNER, &second);
    let late_ack = copy.messages();
    assert!(!owner.said.iter().any(|it| matches!(it, Action::Synced { .. })));
    // The log detaches it, the owner answers alone, and the log attaches it anew.
    owner.become_one(CELLS[0], &membership(2, OWNER, &[]));
    owner.answers();
    let id = owner.acquire(7, &two, Wait::No);
    assert!(is_granted(&owner.answers(), id), "granted alone");
    owner.become_one(CELLS[0], &learner(9));
    let _not_delivered = owner.messages();
    owner.hears(COPY, &late_ack);
    let said: Vec<_> = owner.said.iter().filter(|it| matches!(it, Action::Synced { .. })).collect();
    assert!(said.is_empty(), "said before attachment 9 had anything: {said:?}");
}

#[test]
fn what_follows_the_last_number_is_copied() {
    let (mut owner, mut copy) = (Worker::new(OWNER, None), Worker::new(COPY, None));
    owner.become_all(&membership(2, OWNER, &[]));
    owner.hello(7, 1);
    let key = key_in(&owner, CELLS[0], 0);
    owner.machine.wind_counter(CELLS[0], Fence::COUNTER_LAST - 1);
    let id = owner.acquire(7, &key, Wait::No);
    let its = membership(2, OWNER, &[COPY]);
    owner.become_all(&its);
    copy.become_all(&its);
    settle(&mut owner, &mut copy);
    let answers = owner.answers();
    assert_eq!(owner.machine.contents(CELLS[0], false), copy.machine.contents(CELLS[0], true));
    let Reply::Granted { fence, .. } = answers[0] else { panic!("{id}: {answers:?}") };
    owner.ask(7, &key, Operation::Release { fence });
    settle(&mut owner, &mut copy);
    assert!(matches!(owner.answers()[..], [Reply::Released { .. }]));
    assert_eq!(owner.machine.contents(CELLS[0], false), copy.machine.contents(CELLS[0], true));
}

fn of_namespace(namespace: &str) -> Identity {
    Identity { namespace: Namespace::new(namespace).unwrap(), ..client() }
}

#[test]
fn a_session_id_in_two_namespaces_is_two_sessions() {
    let (mut owner, mut copy) = pair(None);
    owner.open(9, 1, &of_namespace("one"));
    copy.open(9, 1, &of_namespace("two"));
    for n in 0..6 {
        owner.acquire(9, format!("key {n}").as_bytes(), Wait::No);
    }
    settle(&mut owner, &mut copy);
    assert_eq!(owner.answers().len(), 6);
    copy.become_all(&membership(3, COPY, &[]));
    copy.machine.audit().unwrap();
    // Somebody else in the namespace of the holder.
    copy.open(10, 1, &of_namespace("one"));
    copy.acquire(10, b"key 0", Wait::No);
    let answers = copy.answers();
    assert!(!matches!(answers[..], [Reply::Granted { .. }]), "granted twice: {answers:?}");
}

#[test]
fn a_takeover_after_entries_that_were_skipped_has_its_grace() {
    let mut owner = Worker::new(OWNER, None);
    owner.become_all(&membership(2, OWNER, &[]));
    owner.hello(7, 1);
    // Another had it under epoch 3 and granted; a snapshot of the log says only what is.
    let mut its = membership(4, OWNER, &[]);
    its.grace = Some(Duration::from_secs(13));
    its.owner.attach = AttachId(77);
    owner.become_all(&its);
    owner.acquire(7, b"key", Wait::No);
    let answers = owner.answers();
    assert!(!matches!(answers[..], [Reply::Granted { .. }]), "granted in grace: {answers:?}");
}

#[test]
fn a_copy_that_is_promoted_in_a_grace_keeps_what_it_has() {
    let (mut owner, mut copy) = pair(None);
    owner.acquire(7, b"key", Wait::No);
    settle(&mut owner, &mut copy);
    assert_eq!(owner.answers().len(), 1);
    let mut its = membership(3, COPY, &[]);
    its.grace = Some(Duration::from_secs(13));
    copy.become_all(&its);
    let has = CELLS.map(|cell| copy.machine.contents(cell, false).1.len());
    assert_eq!(has.iter().sum::<usize>(), 1, "the hold that was answered is gone");
}

#[test]
fn a_goodbye_is_answered_before_its_connection_is_closed() {
    let (mut owner, mut copy) = pair(None);
    owner.acquire(7, b"key", Wait::No);
    settle(&mut owner, &mut copy);
    owner.said.clear();
    owner.give(7, &[Request::Goodbye { id: 60 }]);
    for _ in 0..5 {
        owner.run(Event::Tick);
        settle(&mut owner, &mut copy);
    }
    let closed = owner.said.iter().position(|it| matches!(it, Action::Close { .. }));
    let answered = owner.said.iter().position(|it| matches!(it, Action::Reply { .. }));
    assert!(answered < closed, "{:?}", owner.said);
}

#[test]
fn links_that_died_while_nobody_told_of_them_are_forgotten() {
    let (mut owner, mut copy) = pair(None);
    owner.acquire(7, b"key", Wait::No);
    settle(&mut owner, &mut copy);
    for round in 0..5_u8 {
        let e = 3 + 2 * u32::from(round);
        owner.become_all(&membership(e, OWNER, &[]));
        owner.give(7, &[Request::Goodbye { id: 600 }]);
        owner.run(Event::Tick);
        owner.become_all(&membership(e + 1, OWNER, &[COPY]));
        // By a snapshot, or in one batch.
        copy.become_all(&membership(e + 1, OWNER, &[COPY]));
        settle(&mut owner, &mut copy);
        owner.hello(7, 1);
        owner.acquire(7, b"key", Wait::No);
        settle(&mut owner, &mut copy);
    }
    assert_eq!(copy.machine.links_of_copies(), 1);
}

#[test]
fn a_session_id_of_two_identities_is_two_sessions() {
    let (mut owner, mut copy) = pair(None);
    copy.open(7, 1, &Identity { name: "other".to_owned(), ..client() });
    owner.acquire(7, b"key", Wait::No);
    settle(&mut owner, &mut copy);
    owner.answers();
    copy.become_all(&membership(3, COPY, &[]));
    let held = |it: &Worker| CELLS.map(|cell| it.machine.contents(cell, false).1);
    let before = held(&copy);
    let fence = before.iter().flat_map(|its| its.values()).next().expect("it is held").0[0].1;
    copy.ask(7, b"key", Operation::Release { fence });
    assert_eq!(held(&copy), before, "the hold is another's");
    assert!(matches!(copy.answers()[..], [Reply::NotHeld { .. }]));
}

/// One of two workers of the owner's process, with its cell.
fn one_of_two(worker: u16) -> (PeerWorker, Worker) {
    let its = PeerWorker { worker, ..OWNER };
    let others = CELLS.into_iter().filter(|cell| cell.0 % 2 == worker).collect();
    let of = Config { workers: 2, worker, others, ..config(Limits::default()) };
    let machine = Machine::new(Config { node: 1, boot: 1, ..of }, Time(0));
    let mut it = Worker { machine, now: Time(0), said: Vec::new(), links: BTreeMap::new(), id: 0 };
    let (node, boot) = (COPY.node, COPY.boot);
    it.cluster(ClusterEvent::Node { node, boot, workers: 1 });
    it.cluster(ClusterEvent::Node { node: NodeId(1), boot: BootId(1), workers: 2 });
    it.cluster(ClusterEvent::PeerConnected(COPY));
    it.become_one(CellId(worker), &membership(2, OWNER, &[COPY]));
    (its, it)
}

#[test]
fn two_workers_of_a_process_may_call_their_links_the_same() {
    let mut copy = Worker::new(COPY, None);
    copy.cluster(ClusterEvent::Node { node: OWNER.node, boot: OWNER.boot, workers: 2 });
    copy.become_all(&membership(2, OWNER, &[COPY]));
    for worker in [0, 1] {
        let (its, mut owner) = one_of_two(worker);
        copy.cluster(ClusterEvent::PeerConnected(its));
        let session = 7 + worker as u8;
        owner.hello(session, 1);
        let cell = CellId(worker);
        let key = key_in(&owner, cell, 0);
        let id = owner.acquire(session, &key, Wait::No);
        for _ in 0..4 {
            copy.hears(its, &owner.messages());
            owner.hears(COPY, &copy.messages());
        }
        assert!(is_granted(&owner.answers(), id));
        assert_eq!(owner.machine.contents(cell, false), copy.machine.contents(cell, true));
        copy.machine.audit().unwrap();
    }
}

#[test]
fn who_is_queued_in_a_grace_that_goes_to_a_copy_is_granted_after_it() {
    let (mut owner, mut copy) = (Worker::new(OWNER, None), Worker::new(COPY, None));
    let grace = Some(Duration::from_secs(5));
    let its = Membership { grace, ..membership(2, OWNER, &[COPY]) };
    owner.become_all(&its);
    copy.become_all(&its);
    owner.hello(7, 1);
    let id = owner.acquire(7, b"key", Wait::Forever);
    settle(&mut owner, &mut copy);
    assert!(matches!(owner.answers()[..], [Reply::Queued { .. }]));
    copy.become_all(&Membership { grace, ..membership(3, COPY, &[]) });
    copy.hello(7, 2);
    assert_eq!(copy.acquire(7, b"key", Wait::Forever), id);
    for _ in 0..4 {
        copy.run(Event::Tick);
    }
    assert!(matches!(copy.answers()[..], [Reply::Queued { .. }]));
    copy.now = Time(0).after(Duration::from_secs(5));
    for _ in 0..4 {
        copy.run(Event::Tick);
    }
    assert!(is_granted(&copy.answers(), id));
    copy.machine.audit().unwrap();
}

#[test]
fn an_end_by_force_is_told_when_the_copy_knows_it() {
    let (mut owner, mut copy) = pair(None);
    let granted = owner.acquire(7, b"key", Wait::No);
    owner.open(9, 1, &operator());
    let forced = owner.ask(9, b"key", Operation::Force { namespace: "" });
    let pushes =
        |it: &Worker| it.said.iter().filter(|said| matches!(said, Action::Push { .. })).count();
    assert_eq!((owner.answers(), pushes(&owner)), (vec![], 0));
    // The grant is told before its end, whatever comes between.
    settle(&mut owner, &mut copy);
    assert_eq!(pushes(&owner), 1);
    let told: Vec<u64> = owner.answers().iter().map(Reply::id).collect();
    assert_eq!(told, [granted, forced]);
}

/// The hold is with the next owner.
#[test]
fn a_deposed_owner_tells_of_no_end() {
    assert!(!is_told_by_the_deposed(None));
    assert!(is_told_by_the_deposed(Some(Mutant::DeposedTells)));
}

fn is_told_by_the_deposed(mutant: Option<Mutant>) -> bool {
    let (mut owner, mut copy) = pair(mutant);
    owner.acquire(7, b"other", Wait::No);
    settle(&mut owner, &mut copy);
    owner.said.clear();
    owner.open(9, 1, &operator());
    owner.ask(9, b"other", Operation::Force { namespace: "" });
    owner.become_all(&membership(3, COPY, &[]));
    assert!(matches!(owner.answers()[..], [Reply::Refused { .. }]));
    owner.said.iter().any(|said| matches!(said, Action::Push { .. }))
}

#[test]
fn an_answer_waits_for_a_copy_that_refuses_its_cell_in_an_earlier_frame() {
    let (mut owner, mut copy, mut third) = three();
    let its = membership(2, OWNER, &[COPY, THIRD]);
    for it in [&mut owner, &mut copy, &mut third] {
        it.become_all(&its);
    }
    settle_three(&mut owner, &mut copy, &mut third);
    copy.cluster(ClusterEvent::Lease(Time(0)));
    let (one, other) = (key_in(&owner, CELLS[0], 0), key_in(&owner, CELLS[1], 0));
    owner.acquire(7, &one, Wait::No);
    owner.flush();
    // By the frame of the next turn it says what there is, and only one copy is asked to show it.
    owner.acquire(7, &one, Wait::No);
    owner.acquire(7, &other, Wait::No);
    owner.flush();
    goes_round(&mut owner, &mut third, THIRD);
    goes_round(&mut owner, &mut copy, COPY);
    assert_eq!(owner.answers(), [], "one of the copies has nothing of it");
    copy.cluster(ClusterEvent::Lease(Time::NEVER));
    owner.hears(COPY, &copy.messages());
    settle_three(&mut owner, &mut copy, &mut third);
    assert_eq!(owner.answers().len(), 3);
}

#[test]
fn an_answer_of_all_cells_waits_for_those_that_were_sent_anew() {
    let (mut owner, mut copy) = pair(None);
    let [held, other] = CELLS.map(|cell| key_in(&owner, cell, 0));
    owner.acquire(7, &held, Wait::No);
    settle(&mut owner, &mut copy);
    owner.hello(8, 1);
    owner.answers();
    // Of one cell the copy misses an op, of the other it is only asked to show what there is.
    copy.cluster(ClusterEvent::Lease(Time(0)));
    let id = owner.acquire(7, &other, Wait::No);
    owner.acquire(8, &held, Wait::No);
    copy.hears(OWNER, &owner.messages());
    owner.hears(COPY, &copy.messages());
    // It ends nothing, as it looks at nothing.
    let (version, upto, holds) = (99, 0, Vec::new());
    let compare = Request::Compare { id: 50, version, upto, after: None, through: None, holds };
    owner.give(7, &[compare]);
    let compares = |answers: &[Reply]| answers.iter().any(|it| it.id() == 50);
    copy.cluster(ClusterEvent::Lease(Time::NEVER));
    let ready = copy.messages();
    assert_eq!(ready.len(), 2, "both cells can be taken again");
    // They begin anew in a frame each, and only the first is acknowledged.
    let frames: Vec<_> = ready
        .iter()
        .map(|ready| {
            owner.hears(COPY, std::slice::from_ref(ready));
            owner.messages()
        })
        .collect();
    copy.hears(OWNER, &frames[0]);
    owner.hears(COPY, &copy.messages());
    let answers = owner.answers();
    assert!(!compares(&answers), "an op of {id} has no copy: {answers:?}");
    copy.hears(OWNER, &frames[1]);
    owner.hears(COPY, &copy.messages());
    settle(&mut owner, &mut copy);
    assert!(compares(&owner.answers()));
}
