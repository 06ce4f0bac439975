//! Copies that say nothing.

use super::*;

fn silent(it: &mut Worker) -> Vec<(CellId, NodeId)> {
    let is_silent = |said: &Action| match *said {
        Action::Silent { cell, node } => Some((cell, node)),
        _ => None,
    };
    it.take(is_silent)
}

/// Flushes as a worker does, until then; what it has said meanwhile, and when.
fn run_until(it: &mut Worker, ms: u64) -> Vec<(u64, CellId, NodeId)> {
    let mut said = Vec::new();
    while it.now < Time(ms * 1000) {
        it.walk(it.now.after(Duration::from_millis(10)));
        it.flush();
        let (now, its) = (it.now.0 / 1000, silent(it));
        said.extend(its.into_iter().map(|(cell, node)| (now, cell, node)));
    }
    said
}

#[test]
fn a_copy_that_says_nothing_is_reported_while_something_waits_for_it() {
    let (mut owner, mut copy) = pair(None);
    settle(&mut owner, &mut copy);
    assert_eq!(run_until(&mut owner, 2000), [], "nothing waits");
    let key = key_in(&owner, CELLS[0], 0);
    let id = owner.acquire(7, &key, Wait::No);
    let said = run_until(&mut owner, 3350);
    assert!(said.iter().all(|&(_, cell, node)| (cell, node) == (CELLS[0], COPY.node)), "{said:?}");
    let times: Vec<u64> = said.iter().map(|&(at, ..)| at).collect();
    assert!(matches!(times[..], [2500..2700, 3000..3350]), "{times:?}");
    // It answers: the frame is known to have come, and all is well.
    settle(&mut owner, &mut copy);
    reconnect(&mut owner, &mut copy);
    settle(&mut owner, &mut copy);
    assert!(is_granted(&owner.answers(), id));
    assert_eq!(run_until(&mut owner, 5000), []);
}

#[test]
fn a_copy_that_takes_nothing_is_reported_for_the_cells_that_wait() {
    let (mut owner, mut copy) = pair(None);
    settle(&mut owner, &mut copy);
    copy.cluster(ClusterEvent::Lease(Time(0)));
    let key = key_in(&owner, CELLS[1], 0);
    owner.acquire(7, &key, Wait::No);
    settle(&mut owner, &mut copy);
    let said = run_until(&mut owner, 800);
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!((said[0].1, said[0].2), (CELLS[1], COPY.node));
    // It is dropped: whoever waited for it is answered, and there is nobody to speak of.
    owner.become_all(&membership(2, OWNER, &[]));
    assert_eq!(owner.answers().len(), 1);
    assert_eq!(run_until(&mut owner, 3000), []);
}

#[test]
fn many_silent_copies_are_told_of_a_slice_at_a_time() {
    let limits = Limits { expiry_slice: 1, ..Limits::default() };
    let mut owner = Worker::with_limits(OWNER, limits);
    owner.become_all(&membership(2, OWNER, &[COPY]));
    owner.flush();
    while owner.now < Time(700_000) {
        let at = owner.machine.next_deadline().expect("somebody is waited for");
        owner.now = owner.now.max(at);
        owner.run(Event::Tick);
        owner.flush();
        assert!(silent(&mut owner).len() <= 1);
        if owner.machine.next_deadline() != Some(owner.now) {
            owner.now = owner.now.after(Duration::from_millis(1));
        }
    }
}
