//! What an answer counts for that is refused, late, or of another ring than the one that is known.

use super::world::{Heard, KEY, World, until};
use super::{at, busy};
use crate::link::Outcome;
use lockring_proto::{Fence, Refusal, RefusalKind, Reply};
use lockring_ring::Epoch;

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
    let granted = told.iter().position(|told| {
        matches!(told, Outcome::Granted { until: Some(by_itself), .. } if *by_itself == until(at(0)))
    });
    assert!(granted.is_some(), "{told:?}");
    assert!(!told.iter().any(|told| matches!(told, Outcome::Follows { .. })), "{told:?}");
}
