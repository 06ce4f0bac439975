//! How a session follows the ring: links, compares and digests of one version, what it asks for and
//! of whom, and cells that begin anew.

use super::at;
use super::world::{Heard, KEY, World, is_lost, until};
use crate::link::{Loss, NotGranted, Outcome};
use crate::router::WorkerId;
use lockring_proto::{Claim, Digest, Fence, HoldId, Reply, RingChunk, codec, limits};
use lockring_ring::{Diff, Epoch, NodeId, RingVersion};
use std::time::Duration;

#[test]
fn numbers_of_links_are_used_again_and_never_too_early() {
    let mut world = World::of(3, 10_000);
    let third = world.session.link_to(world.now, WorkerId { node: NodeId(3), worker: 0 });
    world.connect(true);
    let shrinks = |world: &mut World| {
        world.log.boots.pop();
        world.log.version += 1;
        world.takes_ring();
    };
    let grows = |world: &mut World, boot| {
        world.log.boots.push(boot);
        world.log.version += 1;
        world.takes_ring();
        world.session.link_to(world.now, WorkerId { node: NodeId(3), worker: 0 })
    };
    shrinks(&mut world);
    assert!(world.told().contains(&Outcome::LinkOver { link: third }));
    // What still comes on it is of nobody; and nobody has its number.
    let mut late = Vec::new();
    codec::encode_frame(&Reply::Moved { id: 1, version: 9 }, &mut late);
    assert_eq!(world.session.receive(world.now, third, &late), Ok(late.len()));
    let again = grows(&mut world, 301);
    assert_ne!(again, third);
    shrinks(&mut world);
    let astray = world.session.astray;
    world.session.forget(third);
    assert_eq!(grows(&mut world, 302), third);
    assert!(world.session.astray >= astray && astray > 0, "its hellos outdo those of before");
    // Whatever comes and goes, there are no more than were ever there at once.
    for boot in 303..400 {
        shrinks(&mut world);
        for told in world.told() {
            if let Outcome::LinkOver { link } = told {
                world.session.forget(link);
            }
        }
        grows(&mut world, boot);
    }
    assert!(world.session.links().count() <= 4);
}

#[test]
fn a_compare_is_of_one_ring_and_so_is_a_digest() {
    let mut world = World::of(2, 10_000);
    let (claim, fence, _) = world.holds(KEY);
    let cell = world.cell(KEY);
    world.got(1);
    let wrong = Digest { count: 1, xor: 1 };
    let renew = |world: &mut World, version| {
        world.tick(3400);
        let id = world.renewal(1);
        world.says(1, &Reply::Renewed { id, version, settled: version, digest: wrong });
    };
    let compare = |world: &mut World| {
        world.got(1).into_iter().find_map(|heard| match heard {
            Heard::Compare { id, version, .. } => Some((id, version)),
            _ => None,
        })
    };
    // Of another version than ours they may differ as they like.
    world.log.moves(world.cell(world.other()), 2);
    for _ in 0..2 {
        renew(&mut world, 2);
        assert_eq!(compare(&mut world), None);
    }
    world.takes_ring();
    assert_eq!(world.session.next_deadline(), Some(world.now), "it is asked again by this one");
    renew(&mut world, 2);
    renew(&mut world, 2);
    let (id, version) = compare(&mut world).expect("two differ in a row");
    assert_eq!(version, 2);
    // Away and back: of what has come here since the list was made it says nothing.
    world.log.moves(cell, 2);
    world.log.moves(cell, 1);
    world.takes_ring();
    let lost = vec![HoldId { cell, fence }];
    world.says(1, &Reply::Compared { id, version: 2, lost });
    assert!(world.session.is_held(claim));
}

/// What has come with a cell may be that of a process before, and is spared once more, with all
/// that the worker has of the session: it is compared again after that, while a claim keeps waiting
/// too.
#[test]
fn who_has_gained_a_cell_is_compared_with_again() {
    let mut world = World::of(2, 10_000);
    let other = world.cell(world.other());
    world.log.moves(other, 2);
    world.takes_ring();
    world.asks(1, KEY);
    let mut sent = Vec::new();
    while world.now < at(40_000) {
        world.tick(100);
        if world.now == at(8_000) {
            world.log.moves(other, 1);
            world.takes_ring();
        }
        let version = world.log.version;
        for node in [1, 2] {
            for heard in world.got(node) {
                let reply = match heard {
                    Heard::Acquire { id, .. } => Reply::Queued { id, version, ahead: 0 },
                    Heard::Compare { id, .. } => {
                        sent.extend((node == 1).then_some(world.now));
                        Reply::Compared { id, version, lost: Vec::new() }
                    }
                    Heard::Renew { id } => {
                        let digest = match node {
                            1 => Digest { count: 1, xor: 7 },
                            _ => world.session.digest(world.at(node)),
                        };
                        Reply::Renewed { id, version, settled: version, digest }
                    }
                    _ => continue,
                };
                world.says(node, &reply);
            }
        }
    }
    let until = at(8_000).after(limits::inherited(Duration::from_secs(10)));
    assert!(sent.iter().any(|&sent| sent >= until), "{sent:?}, spared until {until:?}");
}

/// The parts of an answer to a request for the ring.
fn ring_parts(id: u64, parts: Vec<RingChunk>) -> Vec<Reply> {
    parts.into_iter().map(|chunk| Reply::Ring { id, chunk: Box::new(chunk) }).collect()
}

fn ring_asked(got: &[Heard]) -> Option<(u64, u64)> {
    got.iter().find_map(|heard| match *heard {
        Heard::GetRing { id, known } => Some((id, known)),
        _ => None,
    })
}

#[test]
fn what_has_changed_of_the_ring_is_enough_and_one_is_asked_for_it() {
    let mut world = World::of(2, 10_000);
    let (old, cell) = (world.log.table(), world.cell(KEY));
    world.log.moves(cell, 2);
    world.pushes_ring(1, 2);
    world.pushes_ring(2, 2);
    let (one, two) = (world.got(1), world.got(2));
    let (id, known) = ring_asked(&one).expect("it is asked for");
    assert_eq!((known, ring_asked(&two)), (1, None));
    let change = Diff::between(&old, &world.log.table()).unwrap();
    for reply in ring_parts(id, RingChunk::change(&change)) {
        world.says(1, &reply);
    }
    assert_eq!(world.session.ring(), Some(&world.log.ring()));
    // The one who is asked has none, and the other is gone before it answers: a third is asked.
    world.pushes_ring(2, 3);
    assert!(ring_asked(&world.got(2)).is_some());
    let second = world.at(2);
    world.session.down(world.now, second);
    let (id, known) = ring_asked(&world.got(1)).expect("somebody else is asked");
    world.says(1, &Reply::NoNewerRing { id, version: 2 });
    assert_eq!((known, ring_asked(&world.got(1))), (2, None), "not again and again");
    world.log.moves(cell, 1);
    world.pushes_ring(1, 3);
    let (id, _) = ring_asked(&world.got(1)).expect("it has it now");
    // A change of another version than is known is none, and no error.
    world.log.moves(cell, 2);
    let newest = world.log.table();
    let late = Diff::between(&old, &newest).unwrap();
    for reply in ring_parts(id, RingChunk::change(&late)) {
        world.says(1, &reply);
    }
    assert_eq!(world.session.ring().unwrap().version(), RingVersion(2));
}

#[test]
fn a_worker_that_is_silent_has_its_backup_asked() {
    let mut world = World::of(3, 10_000);
    let nodes: Vec<NodeId> =
        world.session.links().filter_map(|link| Some(world.session.worker(link)?.node)).collect();
    assert_eq!(nodes.len(), 2, "one node alone may be cut off: {nodes:?}");
    world.session.link_to(world.now, WorkerId { node: NodeId(2), worker: 0 });
    world.connect(true);
    world.got(2);
    world.asks(1, KEY);
    let id = world.acquired(1);
    world.tick(199);
    assert_eq!(ring_asked(&world.got(2)), None);
    world.tick(1);
    let (ring, _) = ring_asked(&world.got(2)).expect("the backup is asked");
    world.says(2, &Reply::NoNewerRing { id: ring, version: 1 });
    // Who waits in a queue was answered.
    world.says(1, &Reply::Queued { id, version: 1, ahead: 1 });
    world.tick(200);
    world.tick(200);
    assert_eq!(ring_asked(&world.got(2)), None);
}

#[test]
fn what_is_held_of_a_cell_that_begins_anew_is_reclaimed() {
    let mut world = World::of(2, 10_000);
    let (claim, fence, request) = world.holds(KEY);
    world.got(2);
    let cell = world.cell(KEY);
    let reclaim = |got: &[Heard]| {
        got.iter().find_map(|heard| match *heard {
            Heard::Reclaim { id, fence: of, request: by, claim: Claim::EXCLUSIVE }
                if (of, by) == (fence, request) =>
            {
                Some(id)
            }
            _ => None,
        })
    };
    world.log.is_taken_over(cell, 2);
    world.after(1000);
    world.takes_ring();
    let id = reclaim(&world.got(2)).expect("it is reclaimed at once");
    assert_eq!(world.session.digest(world.at(2)), Digest::default(), "nobody has it yet");
    // Until that is answered nothing counts for it.
    world.tick(3400);
    let renewal = world.renewal(2);
    world.renews(2, renewal, (2, 2));
    assert_eq!(world.believed(claim), until(at(0)));
    let wanted = Claim::EXCLUSIVE;
    world.says(2, &Reply::Confirmed { id, version: 2, claim: wanted });
    assert!(world.believed(claim) > until(at(0)));
    assert_eq!(world.session.digest(world.at(2)).count, 1);
    // A move of the cell takes it along; only the next that begins anew asks for it again.
    world.log.moves(cell, 1);
    world.takes_ring();
    assert_eq!(reclaim(&world.got(1)), None);
    world.log.is_taken_over(cell, 2);
    world.takes_ring();
    let id = reclaim(&world.got(2)).expect("it is reclaimed again");
    world.says(2, &Reply::NotHeld { id, version: 4 });
    assert!(is_lost(&world.told(), claim, Loss::SessionEnded));
}

/// The worker may know of a hold again before its answer has come, and must not take it for one
/// that nobody knows.
#[test]
fn what_is_being_reclaimed_is_listed_and_lost_only_if_the_answer_says_so() {
    let mut world = World::of(2, 10_000);
    let (claim, fence, _) = world.holds(KEY);
    world.got(2);
    let cell = world.cell(KEY);
    world.log.is_taken_over(cell, 2);
    world.takes_ring();
    let got = world.got(2);
    let &[Heard::Reclaim { id, .. }] = &got[..] else { panic!("{got:?}") };
    // Twice in a row it has what is not known here.
    let digest = Digest { count: 1, xor: 5 };
    for span in [3400, 3400] {
        world.tick(span);
        let renewal = world.renewal(2);
        world.says(2, &Reply::Renewed { id: renewal, version: 2, settled: 2, digest });
    }
    let got = world.got(2);
    let listed = got.iter().find_map(|heard| match heard {
        Heard::Compare { id, holds, .. } => Some((*id, holds.clone())),
        _ => None,
    });
    let (compare, holds) = listed.expect("it is compared");
    let hold = HoldId { cell, fence };
    assert_eq!(holds, [hold]);
    world.says(2, &Reply::Compared { id: compare, version: 2, lost: vec![hold] });
    assert!(world.session.is_held(claim), "the reclaim is not answered");
    world.says(2, &Reply::NotHeld { id, version: 2 });
    assert!(is_lost(&world.told(), claim, Loss::SessionEnded));
}

#[test]
fn what_is_being_given_back_or_has_lapsed_is_not_reclaimed() {
    let mut world = World::of(2, 10_000);
    let (claim, fence, _) = world.holds(KEY);
    world.got(2);
    world.log.is_taken_over(world.cell(KEY), 2);
    world.takes_ring();
    assert!(matches!(world.got(2)[..], [Heard::Reclaim { .. }]));
    world.session.release(world.now, claim, 7);
    let got = world.got(2);
    let &[Heard::Release { id, fence: of }] = &got[..] else { panic!("{got:?}") };
    assert_eq!(of, fence);
    // A new connection repeats the release, and the claim no more.
    let second = world.at(2);
    world.session.down(world.now, second);
    world.tick(100);
    world.connect(false);
    assert_eq!(world.got(2), [Heard::Release { id, fence }]);
    world.says(2, &Reply::NotHeld { id, version: 2 });
    let ended = Outcome::NotHeld { token: 7, maybe_released: true };
    assert!(world.told().contains(&ended));
    // By our clock the next one is over when its cell begins anew.
    let second = world.at(2);
    let old = world.asks(1, KEY);
    let id = world.acquired(2);
    world.says(2, &Reply::Granted { id, version: 2, fence: Fence::new(Epoch(2), id) });
    world.now = world.session.valid_until(second);
    world.log.is_taken_over(world.cell(KEY), 1);
    world.takes_ring();
    assert!(is_lost(&world.told(), old, Loss::Lapsed));
    assert!(!world.got(1).iter().any(|heard| matches!(heard, Heard::Reclaim { .. })));
}

/// What a cell was granted before it began anew, and told of after, is in nobody's memory.
#[test]
fn a_grant_of_before_a_takeover_is_none() {
    let mut world = World::of(2, 10_000);
    let claim = world.asks(1, KEY);
    let id = world.acquired(1);
    world.log.is_taken_over(world.cell(KEY), 1);
    world.takes_ring();
    assert_eq!(world.got(1), [Heard::Acquire { id, version: 2 }]);
    world.says(1, &Reply::Granted { id, version: 1, fence: Fence::new(Epoch(1), 5) });
    assert!(!world.session.is_held(claim));
    world.says(1, &Reply::Granted { id, version: 2, fence: Fence::new(Epoch(2), 1) });
    assert!(world.session.is_held(claim));
    let refused =
        |told: &Outcome| matches!(told, Outcome::NotGranted { reason: NotGranted::TooLate, .. });
    assert!(!world.told().iter().any(refused));
}

/// The parts of the newest ring: its nodes, and its cells.
fn two_parts(world: &World) -> [RingChunk; 2] {
    let whole = RingChunk::whole(&world.log.table()).remove(0);
    let (mut nodes, mut cells) = (whole.clone(), whole);
    (nodes.last, nodes.runs) = (false, Vec::new());
    (cells.part, cells.nodes) = (1, Vec::new());
    [nodes, cells]
}

fn sends_part(world: &mut World, node: u32, id: u64, part: RingChunk) {
    world.says(node, &Reply::Ring { id, chunk: Box::new(part) });
}

/// Two nodes, both connected, of which the first has told of a newer ring and was asked for it.
fn asked_for_ring() -> (World, u64) {
    let mut world = World::of(2, 10_000);
    world.session.link_to(world.now, WorkerId { node: NodeId(2), worker: 0 });
    world.connect(true);
    for node in [1, 2] {
        world.got(node);
    }
    world.log.moves(world.cell(KEY), 2);
    world.pushes_ring(1, 2);
    let (id, _) = ring_asked(&world.got(1)).expect("it is asked for");
    (world, id)
}

fn version(world: &World) -> u64 {
    world.session.ring().unwrap().version().0
}

#[test]
fn a_ring_is_waited_for_while_its_parts_come() {
    let (mut world, id) = asked_for_ring();
    let [nodes, cells] = two_parts(&world);
    world.tick(150);
    sends_part(&mut world, 1, id, nodes);
    for _ in 0..3 {
        world.tick(60);
        assert_eq!(ring_asked(&world.got(2)), None, "the next part may come");
    }
    sends_part(&mut world, 1, id, cells);
    assert_eq!(version(&world), 2);
}

#[test]
fn a_ring_that_is_late_is_taken_all_the_same() {
    // The only one who has it takes its time.
    let mut world = World::of(1, 10_000);
    world.got(1);
    world.log.version += 1;
    world.pushes_ring(1, 2);
    let (id, _) = ring_asked(&world.got(1)).expect("it is asked for");
    let [nodes, cells] = two_parts(&world);
    for part in [nodes, cells] {
        for _ in 0..5 {
            world.tick(100);
        }
        assert_eq!(ring_asked(&world.got(1)), None, "an answer is owed");
        sends_part(&mut world, 1, id, part);
    }
    assert_eq!(version(&world), 2);
    // Of two who do so, whoever is done first counts: the parts of each are put together by
    // themselves.
    let (mut world, first) = asked_for_ring();
    let [nodes, cells] = two_parts(&world);
    world.tick(100);
    sends_part(&mut world, 1, first, nodes.clone());
    for _ in 0..6 {
        world.tick(100);
    }
    let (second, _) = ring_asked(&world.got(2)).expect("somebody else is asked");
    sends_part(&mut world, 2, second, nodes);
    sends_part(&mut world, 1, first, cells);
    assert_eq!(version(&world), 2);
}

#[test]
fn a_change_of_a_ring_that_is_known_no_more_is_asked_for_again() {
    let mut world = World::of(2, 10_000);
    world.got(1);
    let old = world.log.table();
    world.log.moves(world.cell(KEY), 2);
    let second = world.log.ring();
    world.log.moves(world.cell(world.other()), 2);
    let change = Diff::between(&old, &world.log.table()).unwrap();
    world.pushes_ring(1, 3);
    let (id, known) = ring_asked(&world.got(1)).expect("it is asked for");
    assert_eq!(known, 1);
    assert!(world.session.ring_is(world.now, second), "another session has learnt of it");
    let mut parts = ring_parts(id, RingChunk::change(&change));
    world.says(1, &parts.remove(0));
    assert!(parts.is_empty());
    let asked = ring_asked(&world.got(1)).map(|(_, known)| known);
    assert_eq!((version(&world), asked), (2, Some(2)));
}

#[test]
fn an_answer_says_nothing_of_what_was_told_after_the_question() {
    let mut world = World::of(2, 10_000);
    world.session.link_to(world.now, WorkerId { node: NodeId(2), worker: 0 });
    world.connect(true);
    world.got(2);
    world.asks(5, KEY);
    let acquire = world.acquired(1);
    world.tick(200);
    let (id, _) = ring_asked(&world.got(2)).expect("the backup is asked");
    // It has none yet, hears of one, and says both; the answer comes last.
    world.log.moves(world.cell(KEY), 2);
    world.pushes_ring(2, 2);
    world.says(2, &Reply::NoNewerRing { id, version: 1 });
    assert!(ring_asked(&world.got(2)).is_some(), "it has it by now");
    world.says(1, &Reply::Moved { id: acquire, version: 2 });
    world.takes_ring();
    let got = world.got(2);
    assert!(got.contains(&Heard::Acquire { id: acquire, version: 2 }), "{got:?}");
}

#[test]
fn what_a_link_has_told_is_forgotten_with_its_connection() {
    let (mut world, _) = asked_for_ring();
    let first = world.at(1);
    world.session.down(world.now, first);
    let (id, _) = ring_asked(&world.got(2)).expect("somebody else is asked");
    world.says(2, &Reply::NoNewerRing { id, version: 1 });
    // On its next connection the first tells of none, is asked, and has none.
    world.log.version = 1;
    world.tick(100);
    world.connect(false);
    let (id, _) = ring_asked(&world.got(1)).expect("it is wanted");
    world.says(1, &Reply::NoNewerRing { id, version: 1 });
    world.pushes_ring(2, 2);
    assert!(ring_asked(&world.got(2)).is_some(), "the other has it now");
}

#[test]
fn who_tells_of_a_ring_that_it_has_not_keeps_nobody_from_those_of_others() {
    let mut world = World::of(2, 10_000);
    world.got(1);
    world.got(2);
    world.pushes_ring(1, u64::MAX);
    let (id, _) = ring_asked(&world.got(1)).expect("it is asked");
    world.says(1, &Reply::NoNewerRing { id, version: 1 });
    world.pushes_ring(1, u64::MAX);
    assert_eq!(ring_asked(&world.got(1)), None, "once");
    world.log.moves(world.cell(KEY), 2);
    world.pushes_ring(2, 2);
    assert!(ring_asked(&world.got(2)).is_some(), "the other has one");
}
