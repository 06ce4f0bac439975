//! What is held, asked for and ended goes with its cell from node to node.

use super::world::{Heard, KEY, World, is_lost, until};
use super::{at, busy, hears};
use crate::link::{Loss, Outcome, Place, Query};
use crate::session::{ClientMutant, Dial, ReceiveError};
use lockring_proto::{
    Digest, Fence, HelloReply, HoldId, LostReason, Push, Refusal, RefusalKind, Reply, Welcome,
    codec,
};
use lockring_ring::Epoch;
use std::time::Duration;

#[test]
fn a_hold_that_moves_makes_the_lease_of_others_neither_longer_nor_shorter() {
    let mut world = World::of(2, 10_000);
    let other = world.other();
    let (moved, ..) = world.holds(KEY);
    world.log.moves(world.cell(other), 2);
    world.takes_ring();
    world.got(2);
    // Node 2 has something that is believed from 5 s on; node 1 is silent since 0 s.
    world.after(5000);
    let stays = world.asks(2, other);
    let id = world.acquired(2);
    world.says(2, &Reply::Granted { id, version: 2, fence: Fence::new(Epoch(2), 1) });
    assert_eq!((world.believed(stays), world.believed(moved)), (until(at(5000)), until(at(0))));
    world.log.moves(world.cell(KEY), 2);
    world.told();
    world.takes_ring();
    let (link, bound) = (world.at(2), until(at(0)));
    assert!(world.told().contains(&Outcome::Follows { claim: moved, link, until: bound }));
    assert_eq!((world.believed(stays), world.believed(moved)), (until(at(5000)), bound));
    // It is to be renewed where it is now at once, and lapses alone if that is in vain.
    assert!(world.session.next_deadline() <= Some(world.now));
    world.tick(0);
    world.renewal(2);
    world.now = bound;
    world.tick(0);
    assert!(is_lost(&world.told(), moved, Loss::Lapsed));
    assert!(world.session.is_held(stays));
}

#[test]
fn a_renewal_counts_for_a_cell_once_that_has_arrived_and_its_ring_is_known() {
    let mut world = World::of(2, 10_000);
    let (claim, ..) = world.holds(KEY);
    world.got(2);
    world.log.moves(world.cell(KEY), 2);
    world.takes_ring();
    world.tick(1000);
    let id = world.renewal(2);
    // The cell is still on its way: node 2 has all that it has gained up to version 1.
    world.renews(2, id, (2, 1));
    assert_eq!(world.believed(claim), until(at(0)));
    // So it is asked again soon. It has arrived, but the node knows of a ring that we do not.
    world.tick(199);
    assert!(!world.got(2).iter().any(|heard| matches!(heard, Heard::Renew { .. })));
    world.tick(1);
    let (id, sent) = (world.renewal(2), world.now);
    world.told();
    world.log.moves(world.cell(world.other()), 2);
    world.renews(2, id, (3, 3));
    assert_eq!(
        world.believed(claim),
        until(at(0)),
        "of whose is what by version 3 we know nothing"
    );
    world.takes_ring();
    assert_eq!(world.believed(claim), until(sent));
    let link = world.at(2);
    assert!(world.told().contains(&Outcome::Settled { claim, link }));
    // From now on every answer counts for it.
    world.after(100);
    world.asks(2, KEY);
    let id = world.acquired(2);
    world.says(2, &Reply::Busy { id, version: 3, reason: busy() });
    assert!(world.believed(claim) > until(sent));
}

#[test]
fn what_has_lapsed_before_the_ring_is_known_stays_so() {
    let mut world = World::of(2, 10_000);
    let (claim, ..) = world.holds(KEY);
    world.got(1);
    world.tick(4000);
    let id = world.renewal(1);
    world.log.moves(world.cell(world.other()), 2);
    world.renews(1, id, (2, 2));
    assert_eq!(world.believed(claim), until(at(0)));
    world.now = until(at(0));
    world.takes_ring();
    assert!(is_lost(&world.told(), claim, Loss::Lapsed));
}

#[test]
fn what_goes_away_and_comes_back_is_not_counted_by_old_answers() {
    let mut world = World::of(2, 10_000);
    let (held, ..) = world.holds(KEY);
    let waits = world.asks(2, KEY);
    let first = world.acquired(1);
    world.tick(4000);
    let renewal = world.renewal(1);
    // Both moves are learnt of at once: the worker is the same, the epoch is not.
    let cell = world.cell(KEY);
    world.log.moves(cell, 2);
    world.log.moves(cell, 1);
    world.takes_ring();
    assert!(world.got(1).contains(&Heard::Acquire { id: first, version: 3 }), "it is asked again");
    world.renews(1, renewal, (1, 1));
    assert_eq!(world.believed(held), until(at(0)), "the renewal was of the time before");
    // Nor does an old refusal settle what is asked again, or an old grant count from that.
    world.says(1, &Reply::Busy { id: first, version: 1, reason: busy() });
    world.told();
    world.says(1, &Reply::Granted { id: first, version: 1, fence: Fence::new(Epoch(1), 99) });
    assert_eq!(world.believed(waits), until(at(0)), "from the first copy of its request");
    world.tick(200);
    let (id, sent) = (world.renewal(1), world.now);
    world.renews(1, id, (3, 3));
    assert_eq!((world.believed(held), world.believed(waits)), (until(sent), until(sent)));
}

#[test]
fn ends_that_nobody_serves_yet_are_sent_until_somebody_does() {
    let mut world = World::of(2, 10_000);
    let (held, fence, _) = world.holds(KEY);
    let waits = world.asks(2, KEY);
    let target = world.acquired(1);
    world.session.release(world.now, held, 1);
    world.session.cancel(world.now, waits);
    let ids = |world: &mut World, node| -> (u64, u64) {
        let got = world.got(node);
        let of = |is: &dyn Fn(&Heard) -> Option<u64>| got.iter().find_map(is).expect("it is sent");
        let release = of(&|heard| match *heard {
            Heard::Release { id, fence: of } if of == fence => Some(id),
            _ => None,
        });
        let cancel = of(&|heard| match *heard {
            Heard::Cancel { id, target: of } if of == target => Some(id),
            _ => None,
        });
        (release, cancel)
    };
    let (release, cancel) = ids(&mut world, 1);
    for id in [release, cancel] {
        world.says(1, &Reply::Moved { id, version: 1 });
    }
    assert!(world.told().is_empty(), "nothing has ended");
    world.tick(200);
    assert_eq!(ids(&mut world, 1), (release, cancel));
    // The cell turns out to be another's: there they go, at once.
    for id in [release, cancel] {
        world.says(1, &Reply::Moved { id, version: 2 });
    }
    world.log.moves(world.cell(KEY), 2);
    world.takes_ring();
    assert_eq!(ids(&mut world, 2), (release, cancel));
    world.says(2, &Reply::Released { id: release, version: 2 });
    world.says(2, &Reply::Cancelled { id: cancel, version: 2 });
    assert_eq!(world.told(), [Outcome::Released { token: 1 }, Outcome::Cancelled { token: 2 }]);
}

#[test]
fn an_order_by_force_that_a_deposed_owner_refuses_may_have_been_carried_out() {
    for (kind, is_sure) in [(RefusalKind::Unavailable, false), (RefusalKind::Denied, true)] {
        let mut world = World::of(2, 10_000);
        let key = Place { namespace: String::new(), key: KEY.to_vec() };
        world.session.query(world.now, 9, Query::Force(key));
        let Some(&Heard::Force { id }) = world.got(1).last() else { panic!("it is sent") };
        let refusal = Box::new(Refusal { kind, message: "no".to_owned() });
        let refused = Reply::Refused { id, refusal };
        world.says(1, &refused);
        let link = world.at(1);
        let answer = Outcome::Answer { token: 9, reply: refused };
        let told = if is_sure { answer } else { Outcome::NoAnswer { token: 9, link } };
        assert!(world.told().contains(&told), "{kind:?}");
    }
}

#[test]
fn a_renewal_that_is_refused_leaves_what_has_come_to_be_settled_soon() {
    let mut world = World::of(2, 10_000);
    world.holds(KEY);
    world.log.moves(world.cell(KEY), 2);
    world.takes_ring();
    world.tick(0);
    let id = world.renewal(2);
    let refusal = Refusal { kind: RefusalKind::Quota, message: "no".to_owned() };
    world.says(2, &Reply::Refused { id, refusal: Box::new(refusal) });
    world.tick(100);
    assert!(!world.got(2).iter().any(|heard| matches!(heard, Heard::Renew { .. })), "at once");
    world.tick(100);
    world.renewal(2);
}

#[test]
fn a_release_that_was_sent_on_may_have_ended_the_hold() {
    let mut world = World::of(2, 10_000);
    let (held, ..) = world.holds(KEY);
    world.session.release(world.now, held, 1);
    let heard = world.got(1);
    let released = |heard: &Heard| match *heard {
        Heard::Release { id, .. } => Some(id),
        _ => None,
    };
    let id = heard.iter().find_map(released).expect("it is sent");
    // A deposed owner has carried it out, and could not say so in time; it is the owner again.
    world.says(1, &Reply::Moved { id, version: 1 });
    world.tick(200);
    world.says(1, &Reply::NotHeld { id, version: 1 });
    assert_eq!(world.told(), [Outcome::NotHeld { token: 1, maybe_released: true }]);
}

#[test]
fn an_order_by_force_follows_its_cell_once_it_was_not_carried_out() {
    let mut world = World::of(2, 10_000);
    let key = Place { namespace: String::new(), key: KEY.to_vec() };
    world.session.query(world.now, 9, Query::Force(key));
    let Some(&Heard::Force { id }) = world.got(1).last() else { panic!("it is sent") };
    world.log.moves(world.cell(KEY), 2);
    world.takes_ring();
    assert!(!world.got(2).contains(&Heard::Force { id }), "it may have been carried out");
    world.says(1, &Reply::Moved { id, version: 2 });
    assert!(world.got(2).contains(&Heard::Force { id }));
    // Nobody serves it, for as long as what nodes know of the ring may be apart.
    for _ in 0..11 {
        world.says(2, &Reply::Moved { id, version: 2 });
        world.tick(200);
    }
    assert!(world.told().contains(&Outcome::Moved { token: 9 }));
}

#[test]
fn a_hold_is_not_taken_for_one_of_the_process_in_the_place_of_its_own() {
    let mut world = World::of(2, 10_000);
    let (claim, ..) = world.holds(KEY);
    let first = world.at(1);
    world.session.down(world.now, first);
    // The node is killed and comes back. What it had is another's, but the ring that says so comes
    // later: the hold is neither lost nor this process's.
    world.log.boots[0] = 101;
    world.log.version += 1;
    world.tick(100);
    world.connect(true);
    assert!(world.session.is_held(claim));
    world.takes_ring();
    world.tick(3300);
    let id = world.renewal(1);
    world.renews(1, id, (2, 2));
    assert_eq!(world.believed(claim), until(at(0)));
    world.log.moves(world.cell(KEY), 2);
    world.takes_ring();
    world.tick(0);
    let (id, sent) = (world.renewal(2), world.now);
    world.renews(2, id, (3, 3));
    assert_eq!(world.believed(claim), until(sent));
}

#[test]
fn a_process_that_the_ring_has_replaced_is_refused() {
    let mut world = World::of(2, 10_000);
    let first = world.at(1);
    world.session.down(world.now, first);
    (world.log.boots[0], world.log.version) = (101, 2);
    world.takes_ring();
    world.after(100);
    let link = world.session.next_dial(world.now).unwrap().link;
    world.session.connected(world.now, link);
    let mut bytes = Vec::new();
    let old = Welcome { boot: 100, ..world.welcome(link, false) };
    codec::encode_frame(&HelloReply::Welcome(old), &mut bytes);
    let refused = world.session.receive(world.now, link, &bytes);
    assert!(matches!(refused, Err(ReceiveError::Unexpected(_))), "{refused:?}");
}

#[test]
fn a_fresh_welcome_ends_what_was_here_and_not_what_has_come_since() {
    let mut world = World::of(2, 10_000);
    let other = world.other();
    world.log.moves(world.cell(other), 2);
    world.takes_ring();
    let own = world.asks(2, other);
    let id = world.acquired(2);
    world.says(2, &Reply::Granted { id, version: 2, fence: Fence::new(Epoch(2), 1) });
    let (comes, fence, _) = world.holds(KEY);
    let asked = world.asks(3, KEY);
    let old = world.acquired(1);
    let second = world.at(2);
    world.session.down(world.now, second);
    world.log.moves(world.cell(KEY), 2);
    world.takes_ring();
    world.tick(100);
    world.connect(true);
    let told = world.told();
    assert!(is_lost(&told, own, Loss::SessionEnded), "{told:?}");
    assert!(world.session.is_held(comes));
    let got = world.got(2);
    assert!(got.contains(&Heard::Acquire { id: old, version: 3 }), "{got:?}");
    assert_eq!(world.session.request_of(asked), Some(old));
    // Whether it has what has come is looked at with the first renewal.
    world.tick(0);
    let id = world.renewal(2);
    let digest = Digest::default();
    world.says(2, &Reply::Renewed { id, version: 3, settled: 3, digest });
    let cell = world.cell(KEY);
    let asks = world.got(2);
    let holds = vec![HoldId { cell, fence }];
    let is_it = |heard: &Heard| match heard {
        Heard::Compare { version, holds: its, .. } => (*version, its) == (3, &holds),
        _ => false,
    };
    assert!(asks.iter().any(is_it), "{asks:?}");
}

#[test]
fn an_id_that_was_given_up_is_cancelled_where_it_may_be_known() {
    let mut world = World::of(2, 10_000);
    world.asks(1, KEY);
    let old = world.acquired(1);
    let first = world.at(1);
    world.session.down(world.now, first);
    world.tick(100);
    world.connect(true);
    let new = world.acquired(1);
    assert!(new > old, "a stale copy may be under way");
    // The same process cannot know the old one: whoever had a copy of the cell can.
    world.got(2);
    world.log.moves(world.cell(KEY), 2);
    world.takes_ring();
    let got = world.got(2);
    assert!(
        matches!(got[..], [Heard::Cancel { target, .. }, Heard::Acquire { id, .. }]
            if (target, id) == (old, new)),
        "{got:?}"
    );
}

/// Node 1 has forgotten nothing of what has moved, and node 2 may not have heard of it yet.
#[test]
fn a_goodbye_waits_for_what_was_asked_before_of_another_worker() {
    for is_answered in [true, false] {
        let mut world = World::of(2, 10_000);
        let (claim, fence, _) = world.holds(KEY);
        world.log.moves(world.cell(KEY), 2);
        world.takes_ring();
        (1..=2).for_each(|node| drop(world.got(node)));
        world.session.release(world.now, claim, 9);
        world.session.close(world.now, (true, Duration::from_secs(2)), Loss::Closed);
        assert!(!world.session.is_closed(world.now));
        let is_goodbye = |heard: &Heard| matches!(heard, Heard::Goodbye { .. });
        let got = world.got(2);
        assert!(matches!(got[..], [Heard::Release { fence: its, .. }] if its == fence), "{got:?}");
        assert!(!world.got(1).iter().any(is_goodbye));
        let Heard::Release { id, .. } = got[0] else { panic!("{got:?}") };
        if is_answered {
            world.says(2, &Reply::Released { id, version: 2 });
        } else {
            // It walks from one deadline to the next.
            let begun = world.now;
            while world.now < begun.after(Duration::from_millis(1500)) {
                assert!(!world.session.is_closed(world.now));
                assert!(!world.got(1).iter().chain(&world.got(2)).any(is_goodbye));
                world.now = world.session.next_deadline().expect("it waits");
                world.tick(0);
            }
            assert_eq!(world.now, begun.after(Duration::from_millis(1500)));
        }
        assert!(!world.session.is_closed(world.now));
        for node in [1, 2] {
            let goodbye = world.got(node);
            let [Heard::Goodbye { id }] = goodbye[..] else { panic!("{goodbye:?}") };
            world.says(node, &Reply::Goodbye { id });
        }
        assert!(world.session.is_closed(world.now));
    }
}

#[test]
fn a_loss_is_heard_on_whichever_link_it_comes() {
    let mut world = World::of(2, 10_000);
    let (claim, fence, _) = world.holds(KEY);
    let cell = world.cell(KEY);
    world.log.moves(cell, 2);
    world.takes_ring();
    let asked = world.asks(2, KEY);
    let id = world.acquired(2);
    let early = Fence::new(Epoch(2), 7);
    let holds = [fence, early].map(|fence| HoldId { cell, fence }).to_vec();
    let mut bytes = Vec::new();
    codec::encode_frame(&Push::Lost { reason: LostReason::Forced, holds }, &mut bytes);
    let first = world.at(1);
    world.session.receive_pushes(world.now, first, &bytes).unwrap();
    assert!(is_lost(&world.told(), claim, Loss::Forced));
    // One that is told as granted later is lost then, whoever tells that.
    world.says(2, &Reply::Granted { id, version: 2, fence: early });
    assert!(is_lost(&world.told(), asked, Loss::Forced));
}

#[test]
fn who_holds_is_told_of_jeopardy_before_the_loss_also_of_what_has_moved() {
    let mut world = World::of(2, 10_000);
    let other = world.other();
    let (stays, ..) = world.holds(other);
    let (moved, ..) = world.holds(KEY);
    world.log.moves(world.cell(KEY), 2);
    world.takes_ring();
    // From now on both nodes are silent. Meanwhile node 1 has answered once more.
    world.tick(3400);
    let (id, sent) = (world.renewal(1), world.now);
    world.renews(1, id, (2, 2));
    let (first, second) = (world.at(1), world.at(2));
    world.session.down(world.now, first);
    world.session.down(world.now, second);
    let mut told = Vec::new();
    while world.now < until(sent) {
        world.tick(50);
        told.extend(world.told().into_iter().filter_map(|told| match told {
            Outcome::Jeopardy { link, until } => Some((link, until, None)),
            Outcome::Lost { claim, link, .. } => Some((link, world.now, Some(claim))),
            _ => None,
        }));
    }
    let [early, lost, late, last] = told[..] else { panic!("{told:?}") };
    assert_eq!((early.0, early.1, early.2), (second, until(at(0)), None));
    assert_eq!((lost.0, lost.2), (second, Some(moved)));
    assert_eq!((late.0, late.1, late.2), (first, until(sent), None));
    assert_eq!((last.0, last.2), (first, Some(stays)));
}

/// What the client believes of a hold whose cell has gone to node 2, which renews by the ring of
/// `version` with all up to `settled`: whether that is more than it was.
fn is_believed_longer(mutant: Option<ClientMutant>, (version, settled): (u64, u64)) -> bool {
    let mut world = World::of(2, 10_000).with(mutant);
    let (claim, ..) = world.holds(KEY);
    world.got(2);
    world.log.moves(world.cell(KEY), 2);
    world.takes_ring();
    world.tick(1000);
    let id = world.renewal(2);
    world.renews(2, id, (version, settled));
    world.believed(claim) > until(at(0))
}

/// A hold at node 1 is believed by what that says of a ring in which the cell may be another's.
fn is_believed_by_an_unknown_ring(mutant: Option<ClientMutant>) -> bool {
    let mut world = World::of(2, 10_000).with(mutant);
    let (claim, ..) = world.holds(KEY);
    world.tick(4000);
    let id = world.renewal(1);
    world.renews(1, id, (2, 2));
    world.believed(claim) > until(at(0))
}

/// A hold that came while its new link was down is held after a fresh welcome there.
fn is_kept_by_a_fresh_welcome(mutant: Option<ClientMutant>) -> bool {
    let mut world = World::of(2, 10_000).with(mutant);
    let (claim, ..) = world.holds(KEY);
    let second = world.at(2);
    world.session.down(world.now, second);
    world.log.moves(world.cell(KEY), 2);
    world.takes_ring();
    world.tick(100);
    world.connect(true);
    world.session.is_held(claim)
}

/// Each of these rules is seen to be broken where it is left out.
#[test]
fn seeded_bugs_of_what_counts_for_what_has_moved_are_noticed() {
    assert!(is_believed_longer(None, (2, 2)) && !is_believed_longer(None, (2, 1)));
    assert!(is_believed_longer(Some(ClientMutant::CreditSyncing), (2, 1)));
    assert!(!is_believed_by_an_unknown_ring(None));
    assert!(is_believed_by_an_unknown_ring(Some(ClientMutant::CreditUnknownRing)));
    assert!(is_kept_by_a_fresh_welcome(None));
    assert!(!is_kept_by_a_fresh_welcome(Some(ClientMutant::FreshDropsMovedIn)));
}

#[test]
fn a_worker_that_breaks_off_after_each_welcome_is_dialled_after_pauses_that_grow() {
    let mut world = World::of(1, 10_000);
    let mut dials = 0;
    for _ in 0..1000 {
        let link = world.at(1);
        world.session.down(world.now, link);
        while let Some(Dial { link, .. }) = world.session.next_dial(world.now) {
            dials += 1;
            world.session.connected(world.now, link);
            world.session.outgoing(link).clear();
            let welcome = world.welcome(link, false);
            hears(&mut world.session, world.now, link, welcome);
        }
        world.after(1);
    }
    assert!(dials < 20, "{dials} within a second");
}
