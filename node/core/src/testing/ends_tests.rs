//! Every number of the wire at its ends: nothing that a client can say breaks the machine.

use super::Rng;
use super::view_tests::config;
use crate::{Access, Action, ConnId, Event, Identity, Limits, LinkIndex, Machine, Time};
use lockring_proto::{
    Claim, Fence, Hello, HoldId, ListCursor, Namespace, Operation, PROTOCOL, Request, SessionId,
    Wait, limits,
};
use std::time::Duration;

const RUNS: u64 = 300;
const TURNS: u64 = 60;

/// Ends, powers of two and their neighbours, and small numbers, which are more likely to be those
/// of something that exists.
fn number(rng: &mut Rng) -> u64 {
    match rng.range(0, 5) {
        0 => rng.range(0, 8),
        1 => u64::MAX - rng.range(0, 2),
        2 => limits::REQUEST_ID_MAX.wrapping_add(rng.range(0, 3)).wrapping_sub(1),
        _ => (1u64 << rng.range(0, 64)).wrapping_add(rng.range(0, 3)).wrapping_sub(1),
    }
}

fn fence(rng: &mut Rng) -> Fence {
    if rng.percent(50) { Fence(1 << 40 | rng.range(0, 20)) } else { Fence(number(rng)) }
}

fn hold(rng: &mut Rng) -> HoldId {
    HoldId { cell: number(rng) as u16, fence: fence(rng) }
}

fn claim(rng: &mut Rng) -> Claim {
    match rng.range(0, 3) {
        0 => Claim::EXCLUSIVE,
        1 => Claim::SHARED,
        _ => Claim::Permits { permits: number(rng) as u32, capacity: number(rng) as u32 },
    }
}

fn wait(rng: &mut Rng) -> Wait {
    match rng.range(0, 3) {
        0 => Wait::No,
        1 => Wait::Forever,
        _ => Wait::Millis(number(rng)),
    }
}

fn request<'a>(rng: &mut Rng, keys: &[&'a [u8]]) -> Request<'a> {
    let (id, version, key) = (number(rng), number(rng), *rng.pick(keys));
    let namespace = *rng.pick(&["", "default", "other", "nobody"]);
    match rng.range(0, 16) {
        0 => {
            Request::Keyed { id, version, operation: Operation::Release { fence: fence(rng) }, key }
        }
        1 => Request::Keyed {
            id,
            version,
            operation: Operation::Cancel { target: number(rng) },
            key,
        },
        2 => Request::Renew { id },
        3 => {
            let mut holds: Vec<HoldId> = (0..rng.range(0, 4)).map(|_| hold(rng)).collect();
            holds.sort_unstable();
            let mut end = || rng.percent(50).then(|| hold(rng));
            let (after, through) = (end(), end());
            Request::Compare { id, version, upto: number(rng), after, through, holds }
        }
        4 => Request::GetRing { id, known: version },
        5 => Request::Keyed { id, version, operation: Operation::Inspect { namespace }, key },
        6 => {
            let cursor = ListCursor { from: number(rng) as u32 };
            Request::List { id, namespace, cursor, rows: number(rng) as u32, prefix: key }
        }
        7 => Request::Keyed { id, version, operation: Operation::Force { namespace }, key },
        8 if rng.percent(10) => Request::Goodbye { id },
        9 => {
            Request::Keyed { id, version, operation: Operation::Confirm { fence: fence(rng) }, key }
        }
        _ => Request::Keyed {
            id,
            version,
            operation: Operation::Acquire { claim: claim(rng), wait: wait(rng) },
            key,
        },
    }
}

fn hello(rng: &mut Rng) -> Hello<'static> {
    Hello {
        protocol: if rng.percent(90) { PROTOCOL } else { number(rng) as u16 },
        session: SessionId([rng.range(0, 3) as u8; 16]),
        incarnation: number(rng),
        ttl_ms: number(rng),
        ring_version: number(rng),
        ids_after: number(rng),
        label: "",
    }
}

#[test]
fn numbers_at_their_ends_break_nothing() {
    let long = [b'l'; limits::KEY_BYTES_MAX + 1];
    let keys: [&[u8]; 6] = [b"a", b"b", b"c", &long[..limits::KEY_BYTES_MAX], &long, b""];
    for seed in 0..RUNS {
        let mut rng = Rng::new(seed);
        let (mut machine, mut now) = (Machine::new(config(Limits::default()), Time(0)), Time(0));
        let mut links: Vec<(ConnId, LinkIndex)> = Vec::new();
        for turn in 0..TURNS {
            let mut actions = Vec::new();
            now = now.after(Duration::from_millis(*rng.pick(&[0, 1, 20, 60, 3_000])));
            match rng.range(0, 10) {
                0 | 1 => {
                    let (access, ttl_max) =
                        (Access::Operator, Duration::from_millis(number(&mut rng)));
                    let (namespace, name) = (Namespace::default(), "c".to_owned());
                    let identity = Identity { namespace, name, access, ttl_max };
                    let (conn, hello) = (ConnId(turn), hello(&mut rng));
                    machine.handle(
                        now,
                        Event::Opened { conn, identity: &identity, hello },
                        &mut actions,
                    );
                }
                2 => {
                    machine.handle(now, Event::Tick, &mut actions);
                }
                3 => {
                    let longest = Duration::from_millis(number(&mut rng));
                    machine.handle(now, Event::LongestTtl(longest), &mut actions);
                }
                _ => {
                    let requests: Vec<Request<'_>> =
                        (0..rng.range(1, 6)).map(|_| request(&mut rng, &keys)).collect();
                    if !links.is_empty() {
                        let (conn, link) = *rng.pick(&links);
                        let event = Event::Requests { conn, link, requests: &requests };
                        machine.handle(now, event, &mut actions);
                    }
                }
            }
            for action in actions {
                match action {
                    Action::Welcome { conn, link, .. } => links.push((conn, link)),
                    Action::Close { conn, .. } => links.retain(|&(known, _)| known != conn),
                    _ => {}
                }
            }
            machine.audit().unwrap_or_else(|why| panic!("seed {seed} turn {turn}: {why}"));
        }
    }
}
