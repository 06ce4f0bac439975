//! Sessions that another process has taken up, whose cells move; and what happens between two
//! slices of an entry.

use super::promoted::promoted;
use super::*;

/// The process that has taken session 7 up says this at the next owner.
enum Says {
    Goodbye,
    Compare,
}

/// A process has taken a session up, and met the next owner while that had nothing of it. Its next
/// hello there is numbered. Who had the session before is cut off, and believes in its hold.
fn spares_what_came_along(says: &Says, is_forgotten: bool) {
    let (mut owner, mut copy) = pair(None);
    owner.acquire(7, b"key", Wait::No);
    settle(&mut owner, &mut copy);
    assert_eq!(owner.answers().len(), 1);
    // Another process has it now, and says so to both.
    owner.open_with(7, (0, 1000), &client());
    copy.open_with(7, (0, 1000), &client());
    settle(&mut owner, &mut copy);
    if is_forgotten {
        // Its connection there breaks: nothing is kept of a link that has nothing.
        let link = copy.links[&ConnId(7)];
        copy.run(Event::Closed { conn: ConnId(7), link });
    }
    promoted(&mut copy);
    if is_forgotten {
        copy.open_with(7, (2, 1000), &client());
    }
    match says {
        Says::Goodbye => {
            copy.give(7, &[Request::Goodbye { id: 1001 }]);
        }
        Says::Compare => {
            let version = copy.machine.version().0;
            let (after, through, holds) = (None, None, Vec::new());
            let compare = Request::Compare { id: 1002, version, upto: 1001, after, through, holds };
            copy.give(7, &[compare]);
        }
    }
    for _ in 0..4 {
        copy.run(Event::Tick);
    }
    copy.hello(8, 1);
    copy.answers();
    copy.acquire(8, b"key", Wait::No);
    let answers = copy.answers();
    assert!(matches!(answers[..], [Reply::Busy { .. }]), "it is believed in: {answers:?}");
}

#[test]
fn control_a_goodbye_spares_when_the_link_is_kept() {
    spares_what_came_along(&Says::Goodbye, false);
}

#[test]
fn control_a_compare_spares_when_the_link_is_kept() {
    spares_what_came_along(&Says::Compare, false);
}

#[test]
fn a_goodbye_of_a_successor_that_was_met_before_spares_what_came_along() {
    spares_what_came_along(&Says::Goodbye, true);
}

#[test]
fn a_compare_of_a_successor_that_was_met_before_spares_what_came_along() {
    spares_what_came_along(&Says::Compare, true);
}

/// A process has taken a session up and said so to the next owner already. What the process before
/// waits for comes along later: nobody would hear of a grant.
#[test]
fn who_waited_before_a_session_was_taken_up_is_not_granted_when_it_comes_along_later() {
    for is_met_before in [false, true] {
        let (mut owner, mut copy) = pair(None);
        owner.acquire(7, b"key", Wait::No);
        settle(&mut owner, &mut copy);
        let [Reply::Granted { fence, .. }] = owner.answers()[..] else { panic!("it is free") };
        owner.hello(8, 1);
        let gone = owner.acquire(8, b"key", Wait::Forever);
        owner.hello(9, 1);
        let of_next = owner.acquire(9, b"key", Wait::Forever);
        settle(&mut owner, &mut copy);
        if is_met_before {
            copy.open_with(8, (0, 1000), &client());
            copy.give(8, &[Request::Renew { id: 1001 }]);
        }
        promoted(&mut copy);
        if !is_met_before {
            copy.open_with(8, (0, 1000), &client());
        }
        copy.hello(7, 1);
        copy.hello(9, 1);
        for _ in 0..4 {
            copy.run(Event::Tick);
        }
        copy.answers();
        copy.ask(7, b"key", Operation::Release { fence });
        copy.machine.audit().unwrap();
        let to_gone =
            copy.answers().iter().any(|reply| is_granted(std::slice::from_ref(reply), gone));
        copy.id = of_next - 1;
        copy.acquire(9, b"key", Wait::Forever);
        let answers = copy.answers();
        assert!(!to_gone, "met before: {is_met_before}: granted to a process that is gone");
        assert!(is_granted(&answers, of_next), "met before: {is_met_before}: {answers:?}");
    }
}

/// The process before had numbered its requests higher: each process that takes a session up begins
/// anywhere.
#[test]
fn what_a_process_before_has_left_is_an_orphan_whatever_its_number() {
    for of_hold in [500, 1001 + limits::IDS_PER_PROCESS] {
        let (mut owner, mut copy) = pair(None);
        owner.id = of_hold - 1;
        owner.acquire(7, b"key", Wait::No);
        settle(&mut owner, &mut copy);
        assert_eq!(owner.answers().len(), 1);
        owner.open_with(7, (0, 1000), &client());
        let mut id = 1000;
        // It lives on, for as long as what it has found may be believed in, and longer.
        for _ in 0..20 {
            owner.walk(owner.now.after(Duration::from_secs(3)));
            id += 1;
            owner.give(7, &[Request::Renew { id }]);
            settle(&mut owner, &mut copy);
        }
        let version = owner.machine.version().0;
        let (after, through, holds) = (None, None, Vec::new());
        let upto = id + 1;
        owner.give(7, &[Request::Compare { id: id + 2, version, upto, after, through, holds }]);
        settle(&mut owner, &mut copy);
        owner.hello(8, 1);
        owner.answers();
        let asked = owner.acquire(8, b"key", Wait::No);
        settle(&mut owner, &mut copy);
        let answers = owner.answers();
        assert!(is_granted(&answers, asked), "request {of_hold}: {answers:?}");
    }
}

/// A cell has come by an entry of which the rest is still to be taken, and its queue goes on.
#[test]
fn a_grant_between_two_slices_names_no_ring_from_before_the_cell_was_here() {
    let mut owner = Worker::new(OWNER, None);
    let limits = Limits { expiry_slice: 1, ..Limits::default() };
    let mut copy = Worker::made(COPY, None, limits);
    let its = membership(2, OWNER, &[COPY]);
    owner.become_all(&its);
    copy.become_all(&its);
    settle(&mut owner, &mut copy);
    owner.hello(7, 1);
    owner.hello(8, 1);
    let key = key_in(&owner, CELLS[0], 0);
    owner.acquire(7, &key, Wait::No);
    let waits = owner.acquire(8, &key, Wait::Forever);
    settle(&mut owner, &mut copy);
    assert_eq!(owner.answers().len(), 2);
    // The holder goes; its hold is freed by a tick that does not come any more.
    owner.give(7, &[Request::Goodbye { id: 600 }]);
    copy.hears(OWNER, &owner.messages());
    copy.hello(8, 1);
    copy.give(8, &[Request::Renew { id: 601 }]);
    copy.answers();
    let changed = CELLS.map(|cell| (cell, Some(membership(3, COPY, &[]))));
    let part = |changed| ClusterEvent::Memberships { changed, version: RingVersion(3) };
    assert_eq!(copy.run(Event::Cluster(part(&changed))), 1);
    for _ in 0..8 {
        copy.run(Event::Tick);
    }
    let early = copy.answers();
    assert_eq!(copy.run(Event::Cluster(part(&changed[1..]))), 1);
    for _ in 0..8 {
        copy.run(Event::Tick);
    }
    let late = copy.answers();
    for reply in early.iter().chain(&late) {
        let Reply::Granted { id, version, .. } = *reply else { panic!("{reply:?}") };
        assert_eq!(id, waits);
        assert!(version >= 3, "the cell is here since 3: {early:?}, {late:?}");
    }
    assert_eq!(early.len() + late.len(), 1);
}

/// A copy that cannot follow yet is offered the cell anew, which looks through all of it.
#[test]
fn cells_that_are_offered_anew_are_taken_in_slices_also_when_another_copy_goes() {
    let limits = Limits { expiry_slice: 40, ..Limits::default() };
    let mut owner = Worker::made(OWNER, None, limits);
    owner.cluster(ClusterEvent::Node { node: THIRD.node, boot: THIRD.boot, workers: 1 });
    owner.cluster(ClusterEvent::PeerConnected(THIRD));
    owner.hello(7, 1);
    let mut copy = Worker::new(COPY, None);
    owner.become_all(&membership(3, OWNER, &[COPY, THIRD]));
    for number in 0..100_u32 {
        owner.acquire(7, &number.to_le_bytes(), Wait::No);
    }
    // It has not heard of its part in the cells.
    for _ in 0..3 {
        goes_round(&mut owner, &mut copy, COPY);
    }
    let changed = CELLS.map(|cell| (cell, Some(membership(3, OWNER, &[COPY]))));
    let event = ClusterEvent::Memberships { changed: &changed, version: RingVersion(3) };
    let taken = owner.run(Event::Cluster(event));
    let offered: usize = owner.messages_for(COPY).iter().map(Vec::len).sum();
    assert_eq!(taken, 1, "{offered} bytes are offered");
}

/// A worker takes a great entry in slices, or lags, while its clients learn of one ring after
/// another: what they ask by each waits for its own, and their renewals behind all of them.
#[test]
fn a_connection_waits_no_longer_for_many_rings_than_for_one() {
    let mut it = Worker::new(OWNER, None);
    it.become_all(&membership(3, OWNER, &[]));
    it.hello(7, 1);
    it.said.clear();
    let operation = Operation::Acquire { claim: Claim::EXCLUSIVE, wait: Wait::No };
    let asks = (1..=8).map(|id| Request::Keyed { id, version: 3 + id, operation, key: b"key" });
    let requests: Vec<Request<'_>> = asks.chain([Request::Renew { id: 9 }]).collect();
    let mut rest = &requests[..];
    while !rest.is_empty() {
        rest = &rest[it.give(7, rest)..];
        if !rest.is_empty() {
            let paused = it.take(|said| matches!(said, Action::Pause(_)).then_some(()));
            assert_eq!(paused.len(), 1);
            let resumes = |said: &Action| matches!(said, Action::Resume(_)).then_some(());
            while it.take(resumes).is_empty() {
                let at = it.machine.next_deadline().unwrap();
                it.walk(at.max(it.now));
            }
        }
    }
    let waited = it.now.since(Time(0));
    assert!(waited <= Duration::from_millis(250), "the renewal was answered after {waited:?}");
}

/// What a link has to be looked through after a process has taken its session up is not all there
/// yet: the cell comes in the next slice.
#[test]
fn who_waited_before_a_session_was_taken_up_between_two_slices_is_not_granted() {
    let mut owner = Worker::new(OWNER, None);
    let limits = Limits { expiry_slice: 1, ..Limits::default() };
    let mut copy = Worker::made(COPY, None, limits);
    let its = membership(2, OWNER, &[COPY]);
    owner.become_all(&its);
    copy.become_all(&its);
    settle(&mut owner, &mut copy);
    let keys = CELLS.map(|cell| key_in(&owner, cell, 0));
    owner.hello(7, 1);
    owner.hello(8, 1);
    for key in &keys {
        owner.acquire(7, key, Wait::No);
        owner.acquire(8, key, Wait::Forever);
    }
    settle(&mut owner, &mut copy);
    owner.answers();
    owner.give(7, &[Request::Goodbye { id: 600 }]);
    copy.hears(OWNER, &owner.messages());
    let changed = CELLS.map(|cell| (cell, Some(membership(3, COPY, &[]))));
    let part = |changed| ClusterEvent::Memberships { changed, version: RingVersion(3) };
    assert_eq!(copy.run(Event::Cluster(part(&changed))), 1);
    copy.open_with(8, (0, 1000), &client());
    for _ in 0..20 {
        copy.run(Event::Tick);
    }
    assert_eq!(copy.run(Event::Cluster(part(&changed[1..]))), 1);
    for _ in 0..20 {
        copy.run(Event::Tick);
    }
    let answers = copy.answers();
    assert_eq!(answers, [], "granted to a process that is gone");
}

/// The hello of a process that has taken a session up is under way for as long as it takes it to
/// ask the owner for a key, and the key's cell to come.
#[test]
fn who_asks_the_owner_while_its_hello_is_under_way_to_the_next_keeps_its_place() {
    for hello_comes_first in [true, false] {
        let (mut owner, mut copy) = pair(None);
        owner.acquire(7, b"key", Wait::No);
        settle(&mut owner, &mut copy);
        let [Reply::Granted { fence, .. }] = owner.answers()[..] else { panic!("it is free") };
        owner.open_with(8, (0, 1000), &client());
        // The hello to the copy leaves here.
        let says = (0, 1000);
        if hello_comes_first {
            copy.open_with(8, says, &client());
        }
        owner.id = 1000;
        let its = owner.acquire(8, b"key", Wait::Forever);
        owner.hello(9, 1);
        let of_next = owner.acquire(9, b"key", Wait::Forever);
        settle(&mut owner, &mut copy);
        promoted(&mut copy);
        if !hello_comes_first {
            copy.open_with(8, says, &client());
        }
        copy.hello(7, 1);
        copy.hello(9, 1);
        for _ in 0..4 {
            copy.run(Event::Tick);
        }
        copy.ask(7, b"key", Operation::Release { fence });
        copy.answers();
        copy.id = its - 1;
        copy.acquire(8, b"key", Wait::Forever);
        let answers = copy.answers();
        copy.id = of_next - 1;
        copy.acquire(9, b"key", Wait::Forever);
        let of_others = copy.answers();
        assert!(is_granted(&answers, its), "{hello_comes_first}: {answers:?}, {of_others:?}");
    }
}

/// A node is gone that had copies of this worker's cells, and has left a full lane. What it owned
/// comes here slice by slice; nobody has to wait for its copies meanwhile.
#[test]
fn a_worker_takes_requests_on_once_no_cell_has_a_copy_at_a_node_that_is_gone() {
    let limits = Limits { expiry_slice: 1, ..Limits::default() };
    let mut it = Worker::made(OWNER, None, limits);
    it.become_one(CELLS[0], &membership(3, OWNER, &[COPY]));
    it.become_one(CELLS[1], &membership(3, COPY, &[OWNER]));
    it.hello(7, 1);
    let mut n = 0_u32;
    while !it.machine.takes_nothing_on() {
        n += 1;
        let key = key_in(&it, CELLS[0], (n % 8) as usize);
        it.acquire(7, &key, Wait::No);
        it.flush();
        it.said.clear();
        assert!(n < 2000);
    }
    let lost = (CELLS[0], Some(membership(3, OWNER, &[])));
    let comes = (CELLS[1], Some(membership(4, OWNER, &[])));
    let changed = [lost, comes];
    let event = ClusterEvent::Memberships { changed: &changed, version: RingVersion(4) };
    assert_eq!(it.run(Event::Cluster(event)), 1);
    assert!(!it.machine.takes_nothing_on(), "nothing of this worker is copied to anybody");
}

/// The next owner has restarted since the process that has taken the session up met it first: its
/// hello is numbered, and begins the session there.
#[test]
fn a_goodbye_of_a_successor_to_an_owner_that_has_restarted_spares_what_came_along() {
    let (mut owner, mut copy) = pair(None);
    owner.acquire(7, b"key", Wait::No);
    settle(&mut owner, &mut copy);
    assert_eq!(owner.answers().len(), 1);
    owner.open_with(7, (0, 1000), &client());
    settle(&mut owner, &mut copy);
    copy.open_with(7, (2, 1000), &client());
    promoted(&mut copy);
    copy.give(7, &[Request::Goodbye { id: 1001 }]);
    for _ in 0..4 {
        copy.run(Event::Tick);
    }
    copy.hello(8, 1);
    copy.answers();
    copy.acquire(8, b"key", Wait::No);
    let answers = copy.answers();
    assert!(matches!(answers[..], [Reply::Busy { .. }]), "it is believed in: {answers:?}");
}

/// As the shell of today does it (`WorkerState::sort` and `Conns::close`): a connection that the
/// machine has closed has no link any more, and that it is gone is not said.
#[test]
fn nothing_is_remembered_of_connections_that_the_worker_has_closed() {
    let its = config(Limits::default());
    let machine = Machine::new(its, Time(0));
    let (said, links) = (Vec::new(), BTreeMap::new());
    let mut it = Worker { machine, now: Time(0), said, links, id: 0 };
    for incarnation in 1..=100 {
        let conn = ConnId(incarnation);
        it.open_on(incarnation, 7, (incarnation, 0), &client());
        let operation = Operation::Acquire { claim: Claim::EXCLUSIVE, wait: Wait::No };
        let requests = [Request::Keyed { id: 1, version: u64::MAX, operation, key: b"key" }];
        let link = it.links[&conn];
        assert_eq!(it.run(Event::Requests { conn, link, requests: &requests }), 0);
        it.walk(it.now.after(Duration::from_millis(300)));
    }
    let closed = it.take(|said| matches!(said, Action::Close { .. }).then_some(()));
    assert_eq!(closed.len(), 99);
    let last = ConnId(100);
    it.run(Event::Closed { conn: last, link: it.links[&last] });
    assert!(it.machine.worker.awaiting.is_empty());
}

/// A process may ask for more than its range has: what is asked for on its connection is its own.
#[test]
fn who_has_used_up_its_range_waits_and_holds_on() {
    let past = 1000 + limits::IDS_PER_PROCESS;
    let (mut owner, mut copy) = pair(None);
    let mut settled = |owner: &mut Worker| {
        settle(owner, &mut copy);
        owner.answers()
    };
    owner.acquire(7, b"key", Wait::No);
    let [Reply::Granted { fence, .. }] = settled(&mut owner)[..] else { panic!("it is free") };
    owner.open_with(8, (0, 1000), &client());
    owner.id = past;
    let waits = owner.acquire(8, b"key", Wait::Forever);
    let holds = owner.acquire(8, b"other", Wait::No);
    settled(&mut owner);
    owner.ask(7, b"key", Operation::Release { fence });
    let answers = settled(&mut owner);
    assert!(answers.iter().any(|reply| is_granted(std::slice::from_ref(reply), waits)));
    // The process before could believe in nothing. Both grants are under way to this one.
    for seconds in [6, 12] {
        owner.walk(Time(seconds * 1_000_000));
        owner.give(8, &[Request::Renew { id: holds + seconds }]);
    }
    let version = owner.machine.version().0;
    let (after, through, holds) = (None, None, Vec::new());
    let (id, upto) = (past + 20, past);
    owner.give(8, &[Request::Compare { id, version, upto, after, through, holds }]);
    settled(&mut owner);
    assert_eq!(owner.machine.stats().holds, 2);
}

/// What is said to everybody once the first holder has let go.
fn answers_to_release(owner: &mut Worker, copy: &mut Worker, fence: Fence) -> Vec<Reply> {
    settle(owner, copy);
    owner.answers();
    owner.ask(7, b"key", Operation::Release { fence });
    owner.walk(owner.now);
    settle(owner, copy);
    owner.answers()
}

/// The process that has begun a session is back, after another had it for a while.
#[test]
fn what_another_process_waited_for_is_not_granted_to_the_first_that_is_back() {
    let (mut owner, mut copy) = pair(None);
    owner.acquire(7, b"key", Wait::No);
    settle(&mut owner, &mut copy);
    let [Reply::Granted { fence, .. }] = owner.answers()[..] else { panic!("it is free") };
    owner.hello(8, 1);
    owner.open_with(8, (0, limits::FIRST_PROCESS_IDS), &client());
    owner.id = limits::FIRST_PROCESS_IDS;
    owner.acquire(8, b"key", Wait::Forever);
    owner.id = 10;
    owner.hello(9, 1);
    let next = owner.acquire(9, b"key", Wait::Forever);
    // On a connection of its own, which the shell numbers above the others.
    owner.open_on(88, 8, (9, 0), &client());
    let answers = answers_to_release(&mut owner, &mut copy, fence);
    assert!(
        answers.iter().any(|reply| is_granted(std::slice::from_ref(reply), next)),
        "{answers:?}"
    );
}

/// Who has begun a session may go on for as long as it likes: past what others have, it is itself.
#[test]
fn the_first_process_keeps_its_place_whatever_it_has_asked_for() {
    let (mut owner, mut copy) = pair(None);
    owner.acquire(7, b"key", Wait::No);
    settle(&mut owner, &mut copy);
    let [Reply::Granted { fence, .. }] = owner.answers()[..] else { panic!("it is free") };
    owner.hello(8, 1);
    owner.id = limits::FIRST_PROCESS_IDS - 1;
    let its = owner.acquire(8, b"key", Wait::Forever);
    owner.id = 10;
    owner.hello(9, 1);
    let behind = owner.acquire(9, b"key", Wait::Forever);
    // Its connection breaks, and it has not asked again on the next.
    owner.open_on(88, 8, (9, 0), &client());
    let answers = answers_to_release(&mut owner, &mut copy, fence);
    assert!(!answers.iter().any(|reply| is_granted(std::slice::from_ref(reply), behind)));
    let holders = owner.machine.contents(owner.machine.cell_of("default", b"key"), false).1;
    assert_eq!(holders[&b"key"[..]].0[0].0, SessionId([8; 16]), "{its}: {holders:?}");
}
