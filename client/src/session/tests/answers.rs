//! What an answer counts for that is refused, late, or of another ring than the one that is known.

use super::world::{Heard, KEY, World, until};
use super::{at, busy};
use crate::link::{Ask, NotGranted, Outcome};
use lockring_proto::{
    Claim, Fence, HoldId, LostReason, Push, Refusal, RefusalKind, Reply, Time, codec, limits,
};
use lockring_ring::Epoch;
use std::time::{Duration, Instant};

/// What is refused was answered by no ring that could be named: nothing counts from it, and what
/// counts from others is as it was.
#[test]
fn a_refusal_makes_no_lease_longer_and_keeps_none_from_it() {
    let mut world = World::of(2, 10_000);
    let (claim, ..) = world.holds(KEY);
    world.after(10);
    world.asks(7, world.other());
    let id = world.acquired(1);
    let refusal = Refusal { kind: RefusalKind::Denied, message: "no".to_owned() };
    world.says(1, &Reply::Refused { id, refusal: Box::new(refusal.clone()) });
    assert_eq!(world.believed(claim), until(at(0)));
    // A renewal is answered by a newer ring, which comes then.
    world.tick(4000);
    let (id, sent) = (world.renewal(1), world.now);
    world.log.moves(world.cell(world.other()), 2);
    world.renews(1, id, (2, 2));
    world.takes_ring();
    assert_eq!(world.believed(claim), until(sent));
}

#[test]
fn answers_of_rings_that_are_not_known_count_each_for_its_own() {
    let mut world = World::of(2, 10_000);
    let (claim, ..) = world.holds(KEY);
    let answered = |world: &mut World, version| {
        world.after(1);
        world.asks(2, KEY);
        let id = world.acquired(1);
        world.says(1, &Reply::Busy { id, version, reason: busy() });
        world.now
    };
    let knows = |world: &mut World, version| {
        world.log.version = version;
        world.takes_ring();
    };
    answered(&mut world, 200);
    let second = answered(&mut world, 2);
    assert_eq!(world.believed(claim), until(at(0)));
    knows(&mut world, 2);
    assert_eq!(world.believed(claim), until(second));
    // Of a great many the newest are kept.
    let newest = (3..=150).map(|version| answered(&mut world, version)).last().unwrap();
    knows(&mut world, 10);
    assert_eq!(world.believed(claim), until(second));
    knows(&mut world, 150);
    assert_eq!(world.believed(claim), until(newest));
}

#[test]
fn who_gives_something_back_is_told_if_that_is_refused() {
    let mut world = World::of(2, 10_000);
    let (held, fence, _) = world.holds(KEY);
    let waits = world.asks(2, KEY);
    let target = world.acquired(1);
    world.session.release(world.now, held, 1);
    world.session.cancel(world.now, waits);
    let refusal = Refusal { kind: RefusalKind::Denied, message: "no".to_owned() };
    for heard in world.got(1) {
        match heard {
            Heard::Release { id, fence: of } if of == fence => {
                world.says(1, &Reply::Refused { id, refusal: Box::new(refusal.clone()) });
            }
            Heard::Cancel { id, target: of } if of == target => {
                world.says(1, &Reply::Refused { id, refusal: Box::new(refusal.clone()) });
            }
            other => panic!("{other:?}"),
        }
    }
    let told = [1, 2].map(|token| Outcome::NotEnded { token, refusal: refusal.clone() });
    assert_eq!(world.told(), told);
}

#[test]
fn a_release_goes_on_as_long_as_its_hold_was_believed_and_says_what_whoever_has_it_honours() {
    let mut world = World::of(2, 10_000);
    let other = world.other();
    let (held, ..) = world.holds(KEY);
    world.log.moves(world.cell(other), 2);
    world.takes_ring();
    world.after(5000);
    world.asks(2, other);
    let id = world.acquired(2);
    world.says(2, &Reply::Granted { id, version: 2, fence: Fence::new(Epoch(2), 1) });
    let second = world.at(2);
    world.session.down(world.now, second);
    // Node 2 has the cell, and with it the hold, from whenever it may have come on.
    world.after(1000);
    world.session.release(world.now, held, 9);
    world.log.moves(world.cell(KEY), 2);
    world.takes_ring();
    let came = world.now;
    let unconfirmed = |world: &mut World| {
        world.session.tick(world.now);
        let told = world.told().into_iter();
        let is_it = |told| match told {
            Outcome::Unconfirmed { token: 9, held_for } => Some(held_for),
            _ => None,
        };
        told.filter_map(is_it).next()
    };
    world.now = Time(until(at(0)).0 - 1);
    assert_eq!(unconfirmed(&mut world), None);
    world.now = until(at(0));
    let honoured = came.after(limits::inherited(Duration::from_secs(10)));
    assert_eq!(unconfirmed(&mut world), Some(honoured.since(world.now)));
}

#[test]
fn a_hold_that_is_taken_up_is_held_in_the_epoch_in_which_that_is_confirmed() {
    let mut world = World::of(2, 10_000);
    let cell = world.cell(KEY);
    world.log.is_taken_over(cell, 1);
    world.takes_ring();
    world.got(1);
    let fence = Fence::new(Epoch(1), 5);
    let shown = world.session.adopt(world.now, 1, KEY, fence);
    let id = world.session.request_of(shown).unwrap();
    let claim = Claim::EXCLUSIVE;
    world.says(1, &Reply::Confirmed { id, version: 2, claim });
    assert!(world.session.is_held(shown));
    // It has been reclaimed before, and goes with its cell as it is.
    world.got(2);
    world.log.moves(cell, 2);
    world.takes_ring();
    let got = world.got(2);
    assert!(!got.iter().any(|heard| matches!(heard, Heard::Reclaim { .. })), "{got:?}");
}

#[test]
fn a_token_is_not_confirmed_by_who_had_its_cell_before() {
    let mut world = World::of(2, 10_000);
    let cell = world.cell(KEY);
    let shown = world.session.adopt(world.now, 1, KEY, Fence::new(Epoch(1), 5));
    let id = world.session.request_of(shown).unwrap();
    world.log.moves(cell, 2);
    world.log.is_taken_over(cell, 1);
    world.takes_ring();
    let claim = Claim::EXCLUSIVE;
    world.says(1, &Reply::Confirmed { id, version: 1, claim });
    assert!(!world.session.is_held(shown), "nobody may know of it any more");
    world.says(1, &Reply::NotHeld { id, version: 3 });
    let reason = NotGranted::NotHeld;
    let link = world.at(1);
    assert!(world.told().contains(&Outcome::NotGranted { token: 1, link, reason }));
}

/// Whoever takes a grant in hand has what it is believed by with it.
#[test]
fn a_grant_that_is_believed_by_itself_says_so() {
    let mut world = World::of(2, 10_000);
    world.asks(1, KEY);
    let id = world.acquired(1);
    world.log.moves(world.cell(KEY), 2);
    world.log.moves(world.cell(KEY), 1);
    world.takes_ring();
    world.after(1000);
    world.got(1);
    world.told();
    world.says(1, &Reply::Granted { id, version: 1, fence: Fence::new(Epoch(1), 7) });
    let told = world.told();
    let by_itself = told.iter().find_map(|told| match told {
        Outcome::Granted { until, .. } => Some(*until),
        _ => None,
    });
    assert_eq!(by_itself, Some(Some(until(at(0)))), "{told:?}");
    assert!(!told.iter().any(|told| matches!(told, Outcome::Follows { .. })), "{told:?}");
}

#[test]
fn an_id_that_was_given_up_is_forgotten_once_its_process_has_answered_the_next() {
    let mut world = World::of(2, 10_000);
    world.asks(1, KEY);
    let mut id = world.acquired(1);
    for _ in 0..5 {
        world.says(1, &Reply::Queued { id, version: 1, ahead: 1 });
        let first = world.at(1);
        world.session.down(world.now, first);
        world.tick(1500);
        world.connect(true);
        let before = std::mem::replace(&mut id, world.acquired(1));
        assert!(id > before);
    }
    // What was given up last nobody has answered for since.
    world.got(2);
    world.log.moves(world.cell(KEY), 2);
    world.takes_ring();
    let got = world.got(2);
    let cancels = got.iter().filter(|heard| matches!(heard, Heard::Cancel { .. })).count();
    assert_eq!(cancels, 1, "{got:?}");
}

#[test]
fn a_loss_is_remembered_only_while_a_grant_may_come_that_it_ends() {
    let mut world = World::of(2, 10_000);
    let cell = world.cell(KEY);
    let loses = |world: &mut World, counter| {
        let holds = vec![HoldId { cell, fence: Fence::new(Epoch(1), counter) }];
        let mut bytes = Vec::new();
        codec::encode_frame(&Push::Lost { reason: LostReason::Forced, holds }, &mut bytes);
        let first = world.at(1);
        world.session.receive_pushes(world.now, first, &bytes).unwrap();
        world.session.shared.lost_early.len()
    };
    world.asks(1, world.other());
    assert_eq!(loses(&mut world, 5), 0, "nobody waits for anything of this cell");
    world.asks(2, KEY);
    assert_eq!(loses(&mut world, 6), 1);
    // What was granted before a renewal was sent is told before it is answered.
    world.tick(4000);
    let id = world.renewal(1);
    world.renews(1, id, (1, 1));
    assert_eq!(world.session.shared.lost_early.len(), 0);
}

/// The cell has been away and back: the worker is asked twice under one id.
#[test]
fn a_refusal_of_the_copy_of_before_has_the_newer_one_undone() {
    let mut world = World::of(2, 10_000);
    world.asks(1, KEY);
    let cell = world.cell(KEY);
    world.log.moves(cell, 2);
    world.log.moves(cell, 1);
    world.takes_ring();
    let id = world.acquired(1);
    let refusal = Refusal { kind: RefusalKind::Quota, message: "no".to_owned() };
    world.says(1, &Reply::Refused { id, refusal: Box::new(refusal.clone()) });
    let (link, reason) = (world.at(1), NotGranted::Refused(refusal));
    assert!(world.told().contains(&Outcome::NotGranted { token: 1, link, reason }));
    let got = world.got(1);
    assert!(matches!(got[..], [Heard::Cancel { target, .. }] if target == id), "{got:?}");
}

/// The owner of a cell raises its epoch, and some worker of it has not heard so yet.
#[test]
fn an_answer_of_before_the_owner_has_raised_the_epoch_is_one() {
    for asked_before in [true, false] {
        let mut world = World::of(2, 10_000);
        let cell = world.cell(KEY);
        for (version, raises) in [(1, 1), (2, 3), (4, 0)] {
            let mut id = 0;
            if asked_before {
                world.asks(version, KEY);
                id = world.acquired(1);
            }
            for _ in 0..raises {
                world.log.raises(cell);
                world.takes_ring();
                assert_eq!(world.got(1), [], "it is asked once");
            }
            if !asked_before {
                world.asks(version, KEY);
                id = world.acquired(1);
            }
            world.says(1, &Reply::Busy { id, version: 1, reason: busy() });
            let (link, reason) = (world.at(1), NotGranted::Busy(busy()));
            let told = Outcome::NotGranted { token: version, link, reason };
            assert!(world.told().contains(&told), "{version}");
        }
        // It goes away and comes back: what was answered before is not the last word.
        world.asks(9, KEY);
        let id = world.acquired(1);
        world.log.moves(cell, 2);
        world.log.moves(cell, 1);
        world.takes_ring();
        assert_eq!(world.acquired(1), id, "it is asked again");
        world.says(1, &Reply::Busy { id, version: 4, reason: busy() });
        assert_eq!(world.told(), []);
    }
}

/// How long a worker's word takes in which it carries out nothing of what it is asked, claim by
/// claim; and then what is due each time something happens. So many sessions hear it in turn, each
/// of which has so many claims.
fn moved(sessions: u32, claims: u32, version: u64) -> Duration {
    let mut worlds: Vec<World> = (0..sessions).map(|_| World::of(1, 10_000)).collect();
    let asked: Vec<Vec<Heard>> = worlds
        .iter_mut()
        .map(|world| {
            for key in 0..claims {
                world.asks(1, &key.to_be_bytes());
            }
            let got = world.got(1);
            got.into_iter().filter(|heard| matches!(heard, Heard::Acquire { .. })).collect()
        })
        .collect();
    let begun = Instant::now();
    for nth in 0..claims as usize {
        for (world, asked) in worlds.iter_mut().zip(&asked) {
            let Heard::Acquire { id, .. } = asked[nth] else {
                unreachable!("nothing else is left")
            };
            world.says(1, &Reply::Moved { id, version });
            world.session.next_deadline();
            world.tick(0);
        }
    }
    begun.elapsed()
}

#[test]
fn claims_that_wait_for_a_ring_cost_the_same_each_however_many_there_are() {
    // They wait for one that is on its way, or nobody knows of one.
    for version in [2, 1] {
        // As many claims in all, and more than fit a cache, so that both find memory as slow.
        let time =
            |sessions, claims| (0..3).map(|_| moved(sessions, claims, version)).min().unwrap();
        let (few, many) = (time(32, 1000), time(1, 32_000));
        // The square of it would be 32 times as much.
        assert!(many < few * 4, "{few:?} for 32 times 1000, {many:?} for 32000 at once");
    }
}

/// Claims that time out, or are given up, while there is no connection.
#[test]
fn what_no_worker_has_heard_of_leaves_nothing_behind() {
    let mut world = World::of(1, 10_000);
    let link = world.at(1);
    world.session.down(world.now, link);
    world.told();
    for token in 0..100 {
        let wait = Some(Duration::from_secs(1));
        let ask = Ask { token, key: KEY, wanted: Claim::EXCLUSIVE, wait };
        let claim = world.session.acquire(world.now, &ask);
        if token % 2 == 0 {
            world.session.cancel(world.now, claim);
            assert_eq!(world.session.shared.claims.slots(), 1, "{token}");
            assert_eq!(world.told(), [Outcome::Cancelled { token }]);
            continue;
        }
        world.tick(1_250);
        let told = world.told();
        let is_over =
            |told: &Outcome| matches!(told, Outcome::NotGranted { token: of, .. } if *of == token);
        assert!(told.iter().any(is_over), "{told:?}");
    }
    assert_eq!(world.session.shared.claims.slots(), 1);
    world.connect(false);
    let got = world.got(1);
    assert!(!got.iter().any(|got| matches!(got, Heard::Cancel { .. })), "{got:?}");
}

/// A worker that has got a cell answers nothing yet, as its copies do not.
#[test]
fn what_is_tried_again_is_sent_once_until_that_is_answered() {
    let mut world = World::of(1, 10_000);
    let ask = Ask { token: 1, key: KEY, wanted: Claim::EXCLUSIVE, wait: Some(Duration::ZERO) };
    world.session.acquire(world.now, &ask);
    let id = world.acquired(1);
    world.says(1, &Reply::Moved { id, version: 1 });
    let mut copies = 0;
    for _ in 0..5 {
        world.tick(200);
        let is_copy = |got: &&Heard| matches!(got, Heard::Acquire { id: of, .. } if *of == id);
        copies += world.got(1).iter().filter(is_copy).count();
    }
    assert_eq!(copies, 1, "the key may be free again by the second, when the first was told busy");
    world.says(1, &Reply::Moved { id, version: 1 });
    world.tick(200);
    assert_eq!(world.acquired(1), id);
}
