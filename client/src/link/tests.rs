//! A link against a worker made by hand: the times and orders that no network brings about.

use super::*;
use crate::claims::{ClaimRef, LinkId};
use crate::session::Session;
use crate::session::tests::{config, hears, met, welcome_of};
use lockring_proto::{
    BlockedReason, Claim, Fence, HelloReply, Operation, Refusal, RefusalKind, Reply, Request,
    Welcome,
};
use lockring_ring::Epoch;

const S: u64 = 1_000_000;

fn at(millis: u64) -> Time {
    Time(millis * 1000)
}

const L: LinkId = LinkId::FIRST;

fn fence(counter: u64) -> Fence {
    Fence::new(Epoch(1), counter)
}

/// A session of one link.
fn link(ttl: u64, patience: u64) -> Session {
    met(config(ttl, patience), 1)
}

fn welcome(link: &mut Session, now: Time, fresh: bool) {
    let welcome = welcome_of(link, L, 1, fresh);
    hears(link, now, L, welcome);
}

/// A connection from `sent` on, welcomed at `now`.
fn connect(link: &mut Session, sent: Time, now: Time, fresh: bool) {
    link.down(sent, L);
    link.connected(sent, L);
    link.outgoing(L).clear();
    welcome(link, now, fresh);
}

fn says(link: &mut Session, now: Time, reply: &Reply) {
    let mut bytes = Vec::new();
    codec::encode_frame(reply, &mut bytes);
    link.receive(now, L, &bytes).unwrap();
}

fn ask(link: &mut Session, now: Time, token: u64, key: &[u8], wait: Option<Duration>) -> ClaimRef {
    link.acquire(now, &Ask { token, key, wanted: Claim::EXCLUSIVE, wait })
}

/// What it has to send, and forgets: the keys of acquires with their ids.
fn acquires(link: &mut Session) -> Vec<(u64, Vec<u8>)> {
    let out = std::mem::take(link.outgoing(L));
    let mut found = Vec::new();
    let rest = codec::decode_frames(&out, |request: Request<'_>| {
        if let Request::Keyed { id, operation: Operation::Acquire { .. }, key, .. } = request {
            found.push((id, key.to_vec()));
        }
    });
    assert!(rest.unwrap().is_empty());
    found
}

/// What was said to callers, and is forgotten.
fn told(link: &mut Session) -> Vec<(u64, Option<NotGranted>)> {
    std::mem::take(link.outcomes())
        .into_iter()
        .filter_map(|outcome| match outcome {
            Outcome::Granted { token, .. } => Some((token, None)),
            Outcome::NotGranted { token, reason, .. } => Some((token, Some(reason))),
            _ => None,
        })
        .collect()
}

#[test]
fn claims_are_made_anew_in_the_order_in_which_they_were_asked_for() {
    let mut link = link(10_000, 30_000);
    connect(&mut link, at(0), at(1), true);
    // The slots of these two are used again, last one first.
    for (token, key) in [(1, b"x"), (2, b"y")] {
        ask(&mut link, at(1), token, key, Some(Duration::ZERO));
    }
    for (id, _) in acquires(&mut link) {
        let reason = BlockedReason::Queue { waiters: 1 };
        says(&mut link, at(2), &Reply::Busy { id, version: 1, reason });
    }
    for (token, key) in [(3, b"k"), (4, b"k"), (5, b"k")] {
        ask(&mut link, at(3), token, key, None);
    }
    let claims = &link.first().1.claims;
    let slots: Vec<u64> = (0..claims.slots()).map(|slot| claims[slot].token).collect();
    assert_ne!(slots, [3, 4, 5], "the slots are in another order than the claims");
    let first = acquires(&mut link);
    connect(&mut link, at(4), at(5), true);
    let again = acquires(&mut link);
    assert!(again[0].0 > first[2].0, "under new ids");
    for (at_, (id, _)) in again.iter().enumerate() {
        says(
            &mut link,
            at(6),
            &Reply::Granted { id: *id, version: 1, fence: fence(at_ as u64 + 1) },
        );
    }
    let granted: Vec<u64> = told(&mut link).into_iter().skip(2).map(|(token, _)| token).collect();
    assert_eq!(granted, [3, 4, 5]);
}

#[test]
fn a_call_waits_its_full_time_for_contact_however_long_that_is_gone() {
    let mut link = link(10_000, 3000);
    connect(&mut link, at(0), at(1), true);
    link.down(at(100), L);
    // Silence since 1 ms; asked just before three seconds of it are over.
    ask(&mut link, at(2984), 1, b"k", None);
    link.query(at(2984), 2, Query::Inspect(b"k".to_vec().into()));
    link.tick(at(3001));
    assert!(told(&mut link).is_empty() && link.outcomes().is_empty(), "after 17 ms");
    link.next_dial(at(3001));
    // After three seconds without anybody the seeds are tried too.
    assert_eq!(link.next_deadline(), Some(at(3100)));
    link.tick(at(3100));
    link.next_dial(at(3100));
    assert_eq!(link.next_deadline(), Some(at(5984)));
    link.tick(at(5984));
    assert!(link.outcomes().iter().any(|told| matches!(told, Outcome::NoAnswer { token: 2, .. })));
    assert_eq!(told(&mut link), [(1, Some(NotGranted::Unreachable))]);
}

#[test]
fn a_claim_with_a_wait_of_its_own_waits_for_contact_as_long() {
    let mut link = link(10_000, 3000);
    ask(&mut link, at(0), 1, b"k", Some(Duration::from_secs(30)));
    link.tick(at(29_000));
    assert!(told(&mut link).is_empty());
    link.tick(at(30_250));
    assert_eq!(told(&mut link), [(1, Some(NotGranted::TimedOut(None)))]);
}

#[test]
fn a_node_that_stops_is_waited_out_by_who_waits() {
    let mut link = link(10_000, 3000);
    connect(&mut link, at(0), at(1), true);
    ask(&mut link, at(1), 1, b"now", Some(Duration::ZERO));
    ask(&mut link, at(1), 2, b"soon", Some(Duration::from_secs(30)));
    ask(&mut link, at(1), 3, b"any", None);
    let refusal = Refusal { kind: RefusalKind::Draining, message: "stopping".to_owned() };
    for (id, _) in acquires(&mut link) {
        let refusal = Box::new(refusal.clone());
        says(&mut link, at(2), &Reply::Refused { id, refusal });
    }
    assert_eq!(told(&mut link), [(1, Some(NotGranted::Refused(refusal.clone())))]);
    // It is asked again now and then, and on the next connection at once.
    link.tick(at(300));
    assert_eq!(acquires(&mut link).len(), 2);
    // Without a wait of its own the limit for contact holds.
    link.tick(at(3002));
    assert_eq!(told(&mut link), [(3, Some(NotGranted::Refused(refusal)))]);
    connect(&mut link, at(4000), at(4001), true);
    let (id, key) = acquires(&mut link).remove(0);
    assert_eq!(key, b"soon");
    says(&mut link, at(4002), &Reply::Granted { id, version: 1, fence: fence(1) });
    assert_eq!(told(&mut link), [(2, None)]);
}

#[test]
fn a_release_that_nobody_answers_ends_with_the_lease_or_with_the_patience() {
    for (ttl, patience, over) in [(2000, 30_000, 2000 - 20 - 50), (60_000, 3000, 4000)] {
        let mut link = link(ttl, patience);
        connect(&mut link, at(0), at(0), true);
        let claim = ask(&mut link, at(0), 1, b"k", None);
        says(&mut link, at(0), &Reply::Granted { id: 1, version: 1, fence: fence(1) });
        link.down(at(10), L);
        link.outcomes().clear();
        assert!(link.release(at(1000), claim, 9));
        link.tick(at(over - 1));
        assert!(link.outcomes().is_empty());
        link.tick(at(over));
        let honoured = limits::honoured(Duration::from_millis(ttl));
        let held_for = at(10).after(honoured).since(at(over));
        assert_eq!(*link.outcomes(), [Outcome::Unconfirmed { token: 9, held_for }]);
        // It goes on: the next connection gives it back.
        connect(&mut link, at(over + 1), at(over + 2), false);
        assert!(link.first().0.is_owed_answers() && !link.outgoing(L).is_empty());
    }
}

#[test]
fn a_connection_is_not_given_up_before_a_slow_path_can_answer() {
    let mut link = link(10_000, 30_000);
    connect(&mut link, at(0), at(4000), true);
    assert_eq!(link.first().0.round_trip(), Duration::from_secs(4));
    link.tick(at(4000));
    assert!(link.first().0.times.renewing.is_some());
    assert!(
        !link.first().0.is_silent(at(4000 + 7999)),
        "a third of the TTL is less than a round trip"
    );
    assert!(link.first().0.is_silent(at(4000 + 8000)));
    assert!(!link.first().0.is_too_slow());
    // One hello that nobody answers is given up too.
    link.down(at(13_000), L);
    link.connected(at(13_000), L);
    assert!(link.first().0.is_silent(at(23_000)) && !link.first().0.is_silent(at(22_999)));
}

#[test]
fn a_grant_that_comes_after_its_lease_is_none() {
    let mut link = link(1000, 30_000);
    connect(&mut link, at(0), at(1200), true);
    assert!(link.first().0.is_too_slow());
    ask(&mut link, at(1200), 1, b"k", None);
    says(&mut link, at(2400), &Reply::Granted { id: 1, version: 1, fence: fence(1) });
    assert_eq!(told(&mut link), [(1, Some(NotGranted::TooLate))]);
    assert!(link.first().0.is_owed_answers(), "it is being given back");
}

/// A token that is taken up twice is one hold: released by one, the other must not go on believing.
#[test]
fn a_hold_that_is_taken_up_twice_is_the_later_ones() {
    let mut link = link(10_000, 30_000);
    connect(&mut link, at(0), at(1), false);
    let claim = Claim::EXCLUSIVE;
    let first = link.adopt(at(1), 1, b"k", fence(9));
    says(&mut link, at(2), &Reply::Confirmed { id: 1, version: 1, claim });
    let (it, shared) = link.first();
    it.send_renewal(shared, at(3));
    let digest = link.digest(L);
    let second = link.adopt(at(3), 2, b"k", fence(9));
    link.outcomes().clear();
    says(&mut link, at(4), &Reply::Confirmed { id: 3, version: 1, claim });
    let reason = Loss::HandedOver;
    assert_eq!(
        std::mem::take(link.outcomes()),
        [
            Outcome::Lost { token: 1, claim: first, link: L, reason },
            Outcome::Granted { token: 2, claim: second, link: L, fence: fence(9), until: None },
        ]
    );
    assert!(!link.is_held(first) && link.is_held(second));
    // To the worker nothing has changed.
    says(&mut link, at(5), &Reply::Renewed { id: 2, version: 1, settled: 1, digest });
    assert_eq!((link.digest(L), link.first().0.compares.mismatches), (digest, 0));
}

#[test]
fn a_ring_version_at_its_end_is_no_panic() {
    let mut link = link(10_000, 30_000);
    link.connected(at(0), L);
    link.first().1.version = u64::MAX;
    welcome(&mut link, at(1), true);
    ask(&mut link, at(1), 1, b"k", None);
    says(&mut link, at(2), &Reply::Moved { id: 1, version: u64::MAX });
}

#[test]
fn answers_that_do_not_fit_are_errors_and_never_a_panic() {
    let version = 1;
    let replies = |id| {
        [
            Reply::Granted { id, version, fence: fence(1) },
            Reply::Released { id, version },
            Reply::NotHeld { id, version },
            Reply::Cancelled { id, version },
            Reply::Confirmed { id, version, claim: Claim::SHARED },
            Reply::Moved { id, version: u64::MAX },
            Reply::Busy { id, version, reason: BlockedReason::Queue { waiters: 0 } },
            Reply::Queued { id, version: u64::MAX, ahead: u32::MAX },
            Reply::Compared { id, version, lost: Vec::new() },
            Reply::Goodbye { id },
        ]
    };
    let mut unexpected = 0;
    for first in 0..10 {
        for second in 0..10 {
            let mut link = link(10_000, 30_000);
            connect(&mut link, at(0), at(1), true);
            // Something of each kind is unanswered: a claim, a cancel, a token, a query, a renewal.
            let claim = ask(&mut link, at(1), 1, b"a", None);
            ask(&mut link, at(1), 2, b"b", None);
            link.cancel(at(1), claim);
            link.adopt(at(1), 3, b"c", fence(9));
            link.query(at(1), 4, Query::Inspect(b"d".to_vec().into()));
            link.tick(at(4000));
            for id in 1..=7 {
                for reply in [&replies(id)[first], &replies(id)[second]] {
                    let mut bytes = Vec::new();
                    codec::encode_frame(reply, &mut bytes);
                    unexpected += usize::from(link.receive(at(4001), L, &bytes).is_err());
                }
            }
        }
    }
    assert!(unexpected > 0);
}

#[test]
fn a_welcome_of_another_worker_than_the_one_dialled_is_refused() {
    let mut link = link(10_000, 30_000);
    connect(&mut link, at(0), at(1), true);
    ask(&mut link, at(1), 1, b"k", None);
    says(&mut link, at(2), &Reply::Granted { id: 1, version: 1, fence: fence(1) });
    link.down(Time(3 * S), L);
    link.connected(Time(3 * S), L);
    let mut bytes = Vec::new();
    let other = Welcome {
        protocol: 1,
        fresh: true,
        incarnation: 2,
        ttl_ms: u64::MAX,
        ring_version: u64::MAX,
        node: 1,
        boot: 1,
        worker: 3,
        namespace: "default".to_owned(),
    };
    codec::encode_frame(&HelloReply::Welcome(other), &mut bytes);
    assert!(matches!(link.receive(Time(3 * S), L, &bytes), Err(ReceiveError::Unexpected(_))));
    assert_eq!(link.digest(L).count, 1, "what is held at the right one is still held");
}

/// Answers what is asked for until then; a renewal with a hold that this side does not know.
/// Returns when compares were sent.
fn compares(link: &mut Session, from: Time, until: Time) -> Vec<Time> {
    let mut sent = Vec::new();
    let mut now = from;
    while now < until {
        link.tick(now);
        loop {
            let mut replies = Vec::new();
            let out = std::mem::take(link.outgoing(L));
            codec::decode_frames(&out, |request: Request<'_>| match request {
                Request::Renew { id } => {
                    let digest = Digest { count: 1, xor: 7 };
                    replies.push(Reply::Renewed { id, version: 1, settled: 1, digest });
                }
                Request::Compare { id, .. } => {
                    sent.push(now);
                    replies.push(Reply::Compared { id, version: 1, lost: Vec::new() });
                }
                _ => {}
            })
            .unwrap();
            if replies.is_empty() {
                break;
            }
            for reply in replies {
                says(link, now, &reply);
            }
        }
        now = now.after(Duration::from_millis(100));
    }
    sent
}

/// The worker spares what the process before may believe in after each connection of its
/// successor's: what it has spared last is compared once more, also while a claim keeps waiting.
#[test]
fn a_successor_compares_again_when_the_last_belief_has_ended() {
    let mut link = link(10_000, 30_000);
    link.down(at(0), L);
    link.connected(at(0), L);
    link.outgoing(L).clear();
    welcome(&mut link, at(1), false);
    ask(&mut link, at(1), 1, b"held", None);
    says(&mut link, at(2), &Reply::Granted { id: 1, version: 1, fence: fence(1) });
    ask(&mut link, at(2), 2, b"waited for", None);
    assert!(!compares(&mut link, at(2), at(8_000)).is_empty(), "while it is spared");
    connect(&mut link, at(8_000), at(8_001), false);
    // Its lease may just have come with a cell.
    let second = at(8_001).after(limits::inherited(Duration::from_secs(10)));
    let sent = compares(&mut link, at(8_002), at(28_000));
    assert!(sent.iter().any(|&sent| sent >= second), "{sent:?}, spared until {second:?}");
}

#[test]
fn a_clock_at_its_end_is_no_panic() {
    let end = Time(u64::MAX - 3 * S);
    let mut link = link(10_000, 30_000);
    connect(&mut link, end, end, true);
    let claim = ask(&mut link, end, 1, b"k", Some(Duration::from_secs(60)));
    let (id, _) = acquires(&mut link).pop().unwrap();
    says(&mut link, end, &Reply::Granted { id, version: 1, fence: fence(1) });
    assert!(link.is_held(claim));
    // Another process is there, and what is held is believed by itself.
    link.down(end, L);
    link.connected(end, L);
    let welcome = welcome_of(&link, L, 2, true);
    hears(&mut link, end, L, Welcome { ring_version: 2, ..welcome });
    assert!(link.release(end, claim, 7));
    link.tick(Time::NEVER);
}
