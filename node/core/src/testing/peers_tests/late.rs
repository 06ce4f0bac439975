//! Connections that break, and what is late by one that did.

use super::answers::{are_equal, at_the_last_number};
use super::*;

/// An answered grant, a whole cell of before it that comes late, and the owner dies: what the copy
/// says to another who asks.
fn a_late_whole_cell(mutant: Option<Mutant>) -> Vec<Reply> {
    let (mut owner, mut copy) = pair(mutant);
    let keys: Vec<Vec<u8>> = (0..5).map(|n| key_in(&owner, CELLS[0], n)).collect();
    // Makes the owner send it whole.
    copy.cluster(ClusterEvent::Lease(Time(0)));
    owner.acquire(7, &keys[0], Wait::No);
    copy.hears(OWNER, &owner.messages());
    owner.hears(COPY, &copy.messages());
    copy.cluster(ClusterEvent::Lease(Time::NEVER));
    owner.hears(COPY, &copy.messages()); // ready
    copy.hears(OWNER, &owner.messages()); // offer
    owner.hears(COPY, &copy.messages()); // needs whole
    let late = owner.messages(); // whole, by a connection that breaks
    reconnect(&mut owner, &mut copy);
    settle(&mut owner, &mut copy);
    owner.answers();
    let answered = owner.acquire(7, &keys[1], Wait::No);
    settle(&mut owner, &mut copy);
    assert!(is_granted(&owner.answers(), answered));
    // A lapse of the copy's lease: it misses an op, and sees the next.
    copy.cluster(ClusterEvent::Lease(Time(0)));
    owner.acquire(7, &keys[2], Wait::No);
    copy.hears(OWNER, &owner.messages());
    copy.cluster(ClusterEvent::Lease(Time::NEVER));
    owner.acquire(7, &keys[3], Wait::No);
    copy.hears(OWNER, &owner.messages());
    // What was under way on the old connection comes.
    copy.hears(OWNER, &late);
    // The owner dies.
    copy.become_all(&membership(3, COPY, &[]));
    copy.hello(8, 1);
    copy.answers();
    copy.acquire(8, &keys[1], Wait::No);
    copy.answers()
}

#[test]
fn a_late_whole_cell_takes_no_answered_ops_away() {
    let answers = a_late_whole_cell(None);
    assert!(!matches!(answers[..], [Reply::Granted { .. }]), "granted twice: {answers:?}");
    let answers = a_late_whole_cell(Some(Mutant::TakesLateFrames));
    assert!(matches!(answers[..], [Reply::Granted { .. }]), "not noticed: {answers:?}");
}

#[test]
fn a_link_that_is_gone_is_not_remembered_for_a_late_frame() {
    let (mut owner, mut copy) = pair(None);
    for session in 20..30 {
        owner.hello(session, 1);
        owner.acquire(session, b"key", Wait::No);
        let late = owner.messages(); // by a connection that breaks
        reconnect(&mut owner, &mut copy);
        settle(&mut owner, &mut copy);
        owner.give(session, &[Request::Goodbye { id: 600 }]);
        for _ in 0..2 {
            owner.run(Event::Tick);
            settle(&mut owner, &mut copy);
        }
        assert_eq!(copy.machine.links_of_copies(), 0, "{session} is gone");
        copy.hears(OWNER, &late);
        assert_eq!(owner.messages().len() + copy.messages().len(), 0, "nobody waits for it");
        assert_eq!(copy.machine.links_of_copies(), 0, "{session} came late");
    }
}

#[test]
fn connections_to_a_peer_that_had_no_copy_for_a_while_are_later_ones() {
    let (mut owner, mut copy) = pair(None);
    owner.acquire(7, b"key", Wait::No);
    reconnect(&mut owner, &mut copy);
    settle(&mut owner, &mut copy);
    owner.acquire(7, b"late", Wait::No);
    let late = owner.messages();
    for (epoch, backups) in [(3, vec![]), (4, vec![COPY])] {
        owner.become_all(&membership(epoch, OWNER, &backups));
        copy.become_all(&membership(epoch, OWNER, &backups));
    }
    owner.answers();
    let id = owner.acquire(7, b"other", Wait::No);
    settle(&mut owner, &mut copy);
    assert!(is_granted(&owner.answers(), id));
    owner.give(7, &[Request::Goodbye { id: 600 }]);
    for _ in 0..2 {
        owner.run(Event::Tick);
        settle(&mut owner, &mut copy);
    }
    copy.hears(OWNER, &late);
    assert_eq!(copy.machine.links_of_copies(), 0);
}

#[test]
fn at_the_last_number_a_late_whole_cell_takes_nothing_away() {
    let (mut owner, mut copy, key) = at_the_last_number();
    owner.acquire(8, &key, Wait::Forever);
    let late = owner.messages();
    reconnect(&mut owner, &mut copy);
    settle(&mut owner, &mut copy);
    owner.answers();
    let queued = owner.acquire(9, &key, Wait::Forever);
    settle(&mut owner, &mut copy);
    assert!(matches!(owner.answers()[..], [Reply::Queued { id, .. }] if id == queued));
    // The next life of its node may have been told of by then.
    let (node, boot) = (OWNER.node, BootId(9));
    copy.cluster(ClusterEvent::Node { node, boot, workers: 1 });
    copy.hears(OWNER, &late);
    assert!(are_equal(&owner, &copy), "the copy has nothing of {queued}");
}

#[test]
fn a_cell_that_can_be_taken_again_is_offered_by_the_next_connection() {
    let (mut owner, mut copy) = pair(None);
    copy.cluster(ClusterEvent::Lease(Time(0)));
    let id = owner.acquire(7, b"key", Wait::No);
    settle(&mut owner, &mut copy);
    copy.cluster(ClusterEvent::Lease(Time::NEVER));
    assert_eq!(copy.messages().len(), 1, "it says that it can take it, and nobody hears it");
    settle(&mut owner, &mut copy);
    assert_eq!(owner.answers(), []);
    reconnect(&mut owner, &mut copy);
    settle(&mut owner, &mut copy);
    assert!(is_granted(&owner.answers(), id));
}

#[test]
fn connections_of_processes_that_are_over_are_forgotten() {
    let (mut owner, mut copy) = pair(None);
    owner.acquire(7, b"key", Wait::No);
    settle(&mut owner, &mut copy);
    let node = OWNER.node;
    let up = |copy: &mut Worker, boot| {
        copy.cluster(ClusterEvent::Node { node, boot: BootId(boot), workers: 1 });
        copy.machine.peers_of_copies()
    };
    assert_eq!(up(&mut copy, 8), 1, "it still has cells here");
    copy.become_all(&membership(3, COPY, &[]));
    assert_eq!(up(&mut copy, 9), 0);
}
