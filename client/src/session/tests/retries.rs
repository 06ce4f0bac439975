//! Requests that everybody refuses for now: how often they come again, and until when.

use super::world::{Heard, KEY, World};
use crate::link::{Ask, NotGranted, Outcome, Query};
use lockring_proto::{Claim, Refusal, RefusalKind, Reply};
use std::time::Duration;

/// Answers every copy of a claim by `Moved`, or by a refusal that passes, until its caller is told
/// something: the times of the copies, in milliseconds, and when that was.
fn refused(world: &mut World, wait: Option<Duration>, drains: bool) -> (Vec<u64>, u64, NotGranted) {
    let ask = Ask { token: 1, key: KEY, wanted: Claim::EXCLUSIVE, wait };
    world.session.acquire(world.now, &ask);
    let mut copies = Vec::new();
    for ms in 0..60_000 {
        for heard in world.got(1) {
            match heard {
                Heard::Acquire { id, .. } if drains => {
                    copies.push(ms);
                    let (kind, message) = (RefusalKind::Draining, String::new());
                    let refusal = Box::new(Refusal { kind, message });
                    world.says(1, &Reply::Refused { id, refusal });
                }
                Heard::Acquire { id, .. } => {
                    copies.push(ms);
                    world.says(1, &Reply::Moved { id, version: 1 });
                }
                Heard::Renew { id } => world.renews(1, id, (1, 1)),
                _ => {}
            }
        }
        for told in world.told() {
            if let Outcome::NotGranted { token: 1, reason, .. } = told {
                return (copies, ms, reason);
            }
        }
        world.tick(1);
    }
    panic!("nobody is told anything: {copies:?}")
}

/// A node that drains, or is away, is waited out.
#[test]
fn a_claim_that_waits_is_tried_for_as_long_as_its_caller_waits() {
    for drains in [false, true] {
        let is_it = |reason: &NotGranted| match reason {
            NotGranted::Moved => !drains,
            NotGranted::Refused(refusal) => drains && refusal.kind == RefusalKind::Draining,
            _ => false,
        };
        let wait = Some(Duration::from_secs(8));
        let (copies, told, reason) = refused(&mut World::of(1, 10_000), wait, drains);
        assert!((8000..9500).contains(&told) && is_it(&reason), "{told}: {reason:?}");
        assert!(copies.iter().any(|&ms| ms > 7000), "{copies:?}");
        let mut world = World::of(1, 10_000);
        let patience = world.session.shared.config.unreachable_after.as_millis() as u64;
        let (_, told, reason) = refused(&mut world, None, drains);
        assert!((patience..patience + 1000).contains(&told) && is_it(&reason), "{told}");
    }
    let (_, told, reason) = refused(&mut World::of(1, 10_000), Some(Duration::ZERO), false);
    assert!((2000..2600).contains(&told) && reason == NotGranted::Moved, "{told}: {reason:?}");
}

/// A node that serves nobody is not asked by all as often as they can.
#[test]
fn what_is_refused_again_comes_again_after_pauses_that_grow_and_are_everybodys_own() {
    let pauses = |session: u8| {
        let mut world = World::of(1, 10_000);
        world.session.shared.config.session.0[0] = session;
        let (copies, ..) = refused(&mut world, Some(Duration::from_secs(8)), false);
        copies.windows(2).map(|pair| pair[1] - pair[0]).collect::<Vec<u64>>()
    };
    let all: Vec<Vec<u64>> = (0..20).map(pauses).collect();
    for pauses in &all {
        for (&pause, most) in pauses.iter().zip([100, 200, 400].into_iter().chain([500].repeat(99)))
        {
            assert!((most / 2..=most + 1).contains(&pause), "{pauses:?}");
        }
        assert!(pauses.len() > 12, "{pauses:?}");
    }
    for nth in 0..6 {
        let mut of_all: Vec<u64> = all.iter().map(|pauses| pauses[nth]).collect();
        of_all.sort_unstable();
        of_all.dedup();
        assert!(of_all.len() > 8, "{nth}: {of_all:?}");
    }
}

/// The wait for a grant has no part in it.
#[test]
fn a_claim_that_has_queued_for_long_is_waited_for_when_its_node_drains() {
    let mut world = World::of(1, 10_000);
    world.asks(1, KEY);
    let id = world.acquired(1);
    world.says(1, &Reply::Queued { id, ahead: 1, version: 1 });
    let patience = world.session.shared.config.unreachable_after;
    for _ in 0..patience.as_secs() + 5 {
        world.tick(1000);
        for heard in world.got(1) {
            if let Heard::Renew { id } = heard {
                world.renews(1, id, (1, 1));
            }
        }
    }
    let (kind, message) = (RefusalKind::Draining, String::new());
    world.says(1, &Reply::Refused { id, refusal: Box::new(Refusal { kind, message }) });
    world.told();
    world.tick(100);
    assert_eq!((world.acquired(1), world.told()), (id, Vec::new()));
}

#[test]
fn a_question_that_nobody_serves_is_told_so_in_time() {
    let mut world = World::of(1, 10_000);
    world.session.query(world.now, 9, Query::Force(KEY.to_vec().into()));
    for ms in 0..3000 {
        for heard in world.got(1) {
            if let Heard::Force { id } = heard {
                world.says(1, &Reply::Moved { id, version: 1 });
            }
        }
        if world.told().contains(&Outcome::Moved { token: 9 }) {
            return assert!(ms >= 2000, "{ms}");
        }
        world.tick(1);
    }
    panic!("nobody is told")
}
