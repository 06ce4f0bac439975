//! What a session says last.

use super::world::{Heard, KEY, World};
use crate::link::Loss;
use std::time::Duration;

/// As `Driver::bid_farewell` does it, when the runtime ends while the session is being closed.
fn last_words(close_before: bool) {
    let mut world = World::of(2, 10_000);
    let (claim, ..) = world.holds(KEY);
    world.log.moves(world.cell(KEY), 2);
    world.takes_ring();
    (1..=2).for_each(|node| drop(world.got(node)));
    world.session.release(world.now, claim, 9);
    if close_before {
        world.session.close(world.now, (true, Duration::from_secs(2)), Loss::Closed);
        assert!(!world.session.is_closed(world.now));
        world.tick(100);
    }
    // Node 2 is silent: it crashes, or its answer is lost.
    let begun = world.now;
    let within = Duration::from_millis(750);
    world.session.close(begun, (true, within), Loss::RuntimeEnded);
    assert!(world.session.has_last_words(world.now, true, Duration::from_secs(5)));
    let is_goodbye = |heard: &Heard| matches!(heard, Heard::Goodbye { .. });
    let mut said = false;
    // Then the thread is not waited for any more.
    while !said && world.now < begun.after(within) {
        let _closed = world.session.is_closed(world.now);
        said = world.got(1).iter().any(is_goodbye);
        world.now = world.session.next_deadline().expect("it waits").min(begun.after(within));
        world.tick(0);
    }
    assert!(said, "node 1 has heard no goodbye within {within:?}");
}

#[test]
fn a_session_whose_runtime_ends_says_goodbye() {
    last_words(false);
}

#[test]
fn a_session_whose_runtime_ends_while_it_is_being_closed_says_goodbye() {
    last_words(true);
}
