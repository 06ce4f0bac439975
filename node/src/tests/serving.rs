//! A real node over real QUIC: what clients get, and what it makes of bad input.

use super::common::{Raw, config, connect, get, hello};
use crate::{Node, Stopped};
use lockring_client::proto::{
    Claim, Fence, Hello, HelloReply, Operation, Refusal, RefusalKind, Reply, Request, Wait,
    Welcome, codec,
};
use lockring_client::tls::Bundle;
use lockring_client::{Client, ErrorKind};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A node in a directory of its own.
struct Fixture {
    node: Node,
    data: TempDir,
}

impl Fixture {
    fn start(workers: u16) -> Self {
        let data = TempDir::new().unwrap();
        let node = Node::start(&config(data.path(), workers)).unwrap();
        Self { node, data }
    }

    async fn client(&self) -> Client {
        connect(&self.node).await
    }
}

fn acquire(id: u64, key: &[u8]) -> Request<'_> {
    Request::Keyed {
        id,
        version: 1,
        operation: Operation::Acquire { claim: Claim::EXCLUSIVE, wait: Wait::No },
        key,
    }
}

async fn still_serves(fixture: &Fixture) {
    let client = fixture.client().await;
    client.lock("after all that").await.unwrap().release().await.unwrap();
    client.close().await;
}

#[tokio::test]
async fn clients_exclude_each_other_and_queue_in_order() {
    for workers in [1, 2] {
        let fixture = Fixture::start(workers);
        let (a, b) = (fixture.client().await, fixture.client().await);
        for number in 0..32 {
            let key = format!("key {number}");
            let held = a.lock(&key).await.unwrap();
            assert!(b.try_lock(&key).await.unwrap().is_none());
            let waiting = tokio::spawn({
                let (b, key) = (b.clone(), key.clone());
                async move { b.lock(&key).await }
            });
            let in_line = async {
                while b.inspect(&key).await.unwrap().waiter_count == 0 {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            in_line.await;
            let fence = held.fence();
            held.release().await.unwrap();
            let next = waiting.await.unwrap().unwrap();
            assert!(next.fence() > fence);
            next.release().await.unwrap();
        }
        let status = fixture.node.status().await;
        assert_eq!(status.workers.len(), usize::from(workers));
        assert!(status.workers.iter().all(|report| report.stats.grants > 0), "{status:?}");
        assert!(status.workers.iter().all(|report| report.stats.holds == 0), "{status:?}");
        a.close().await;
        b.close().await;
        assert_eq!(fixture.node.stop().await, Stopped { held: 0, clean: true });
    }
}

#[tokio::test]
async fn dropped_guards_and_futures_leave_nothing_held() {
    let fixture = Fixture::start(2);
    let client = fixture.client().await;
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..300 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let key = format!("{}", random % 7);
        let patience = Duration::from_micros(random % 400);
        // Cut off somewhere between the request and the guard's use.
        let _cut = tokio::time::timeout(patience, async {
            let guard = client.lock(&key).await.unwrap();
            tokio::time::sleep(Duration::from_micros(50)).await;
            drop(guard);
        })
        .await;
    }
    let begun = Instant::now();
    loop {
        let status = fixture.node.status().await;
        let left: u64 = status.workers.iter().map(|at| at.stats.holds + at.stats.waiters).sum();
        if left == 0 {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "{status:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    client.close().await;
}

#[tokio::test]
async fn a_restart_waits_for_the_leases_of_the_earlier_life() {
    let data = TempDir::new().unwrap();
    let node = Node::start(&config(data.path(), 1)).unwrap();
    let client = connect(&node).await;
    let guard = client.lock("held through the restart").await.unwrap();
    let fence = guard.fence();
    assert_eq!(node.stop().await, Stopped { held: 1, clean: false });

    let begun = Instant::now();
    let node = Node::start(&config(data.path(), 1)).unwrap();
    let other = connect(&node).await;
    // Every key waits: the node does not know which ones were held.
    let error = other.mutex("any key").wait(Duration::from_millis(50)).lock().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.to_string().contains("restarted"), "{error}");
    assert!(other.inspect("any key").await.unwrap().grace_left.as_millis() > 0);
    let next = other.lock("held through the restart").await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(10), "granted after {:?}", begun.elapsed());
    assert!(next.fence() > fence);
    next.release().await.unwrap();
    other.close().await;
    assert_eq!(node.stop().await, Stopped { held: 0, clean: true });

    // Stopped cleanly with nothing held: nothing to wait for.
    let node = Node::start(&config(data.path(), 1)).unwrap();
    let third = connect(&node).await;
    let guard = third.try_lock("held through the restart").await.unwrap().expect("free");
    assert!(guard.fence() > fence);
    guard.release().await.unwrap();
    third.close().await;
    node.stop().await;
}

#[tokio::test]
async fn a_longer_ttl_is_durable_before_it_is_confirmed() {
    let data = TempDir::new().unwrap();
    let node = Node::start(&config(data.path(), 2)).unwrap();
    let client = connect(&node).await;
    let patient = client.with_ttl(Duration::from_secs(30)).await.unwrap();
    let guard = patient.lock("long").await.unwrap();
    assert_eq!(guard.ttl(), Duration::from_secs(30));
    node.stop().await;
    let node = Node::start(&config(data.path(), 2)).unwrap();
    let left = node.status().await.workers[0].grace_left.expect("in grace");
    assert!(left > Duration::from_secs(20), "{left:?}");
    node.stop().await;
}

#[test]
fn guards_drop_anywhere_and_clients_run_on_either_kind_of_runtime() {
    let fixture = Fixture::start(1);
    let flavours = [
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
        tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap(),
    ];
    for runtime in flavours {
        let client = runtime.block_on(fixture.client());
        // Outside any runtime, and while a panic unwinds.
        let outside = runtime.block_on(client.lock("outside")).unwrap();
        drop(outside);
        let unwinding = runtime.block_on(client.lock("unwinding")).unwrap();
        let panicked = std::thread::spawn(move || {
            let _held = unwinding;
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        // From another thread of another runtime.
        let elsewhere = runtime.block_on(client.lock("elsewhere")).unwrap();
        std::thread::spawn(move || drop(elsewhere)).join().unwrap();
        runtime.block_on(async {
            for key in ["outside", "unwinding", "elsewhere"] {
                let again = client.mutex(key).wait(Duration::from_secs(5)).lock().await;
                again.unwrap().release().await.unwrap();
            }
            client.close().await;
        });
    }
}

#[tokio::test]
async fn owners_re_enter_and_others_wait_until_the_last_level_is_left() {
    let fixture = Fixture::start(1);
    let client = fixture.client().await;
    let owner = client.mutex("deep").reentrant(2);
    let outer = owner.enter().await.unwrap();
    let inner = owner.enter().await.unwrap();
    assert_eq!(outer.fence(), inner.fence());
    assert_eq!(owner.enter().await.unwrap_err().kind(), ErrorKind::TooDeep);
    assert!(client.try_lock("deep").await.unwrap().is_none(), "plain tasks exclude each other");
    outer.leave().await.unwrap();
    assert!(client.try_lock("deep").await.unwrap().is_none(), "one level is left");
    inner.leave().await.unwrap();
    client.try_lock("deep").await.unwrap().expect("free").release().await.unwrap();
    client.close().await;
}

#[tokio::test]
async fn a_lost_lock_is_told_before_anybody_else_has_it() {
    let fixture = Fixture::start(1);
    let (holder, other) = (fixture.client().await, fixture.client().await);
    let guard = holder.lock("k").await.unwrap();
    let lost = guard.lost_token();
    assert_eq!(other.admin().release_by_force("k").await.unwrap(), 1);
    tokio::time::timeout(Duration::from_secs(5), lost.cancelled()).await.expect("told");
    let error = guard.release().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert!(!error.is_indeterminate());
    other.close().await;
    holder.close().await;
}

#[tokio::test]
async fn malformed_frames_close_only_their_own_connection() {
    let fixture = Fixture::start(1);
    let mut trailing = Vec::new();
    codec::encode_frame(&Request::GetRing { id: 1, known: 0 }, &mut trailing);
    trailing[0] += 1;
    trailing.push(7);
    let cases: [(&str, Vec<u8>, &str); 5] = [
        ("oversized", vec![252, 1, 0, 1, 0], "above the cap"),
        ("bad length", vec![253, 0, 0, 0], "illegal byte"),
        ("unknown tag", vec![2, 250, 0], "does not decode"),
        ("trailing bytes", trailing, "past its value"),
        // A list of holds that claims 2^63 entries.
        ("length bomb", [&[14, 4, 1, 1, 0, 0, 253][..], &[255; 8]].concat(), "does not decode"),
    ];
    for (session, (what, bytes, words)) in (10..).zip(cases) {
        let (mut raw, reply) = Raw::greet(&fixture.node, &hello(session)).await;
        assert!(matches!(reply, HelloReply::Welcome(_)), "{what}: {reply:?}");
        raw.send.write_all(&bytes).await.unwrap();
        let (code, said) = raw.closed().await;
        assert_eq!(code, 16, "{what}: {said}");
        assert!(said.contains(words), "{what}: {said}");
    }
    // A hello that is none.
    let mut raw = Raw::open(&fixture.node).await;
    raw.send.write_all(&[3, 255, 255, 255]).await.unwrap();
    assert_eq!(raw.closed().await.0, 16);
    // No hello at all.
    let raw = Raw::open(&fixture.node).await;
    let (code, said) = raw.closed().await;
    assert_eq!(code, 20, "{said}");
    // A frame of which the end never comes costs nothing and harms nobody.
    let (mut raw, _) = Raw::greet(&fixture.node, &hello(2)).await;
    raw.send.write_all(&[200, 0, 0]).await.unwrap();
    still_serves(&fixture).await;
}

#[tokio::test]
async fn keys_are_bytes_with_a_length_and_nothing_else() {
    let fixture = Fixture::start(1);
    let (mut raw, _) = Raw::greet(&fixture.node, &hello(1)).await;
    for (id, length) in [(1, 0), (2, 513)] {
        match raw.ask(&acquire(id, &vec![b'k'; length])).await {
            Reply::Refused { refusal, .. } => {
                assert_eq!(refusal.kind, RefusalKind::Malformed);
                assert!(refusal.message.contains("1 to 512"), "{}", refusal.message);
            }
            other => panic!("{length}: {other:?}"),
        }
    }
    let client = fixture.client().await;
    for key in [&[0][..], &[0xff, 0xfe], &[b'k'; 512], b"a\0b"] {
        let guard = client.lock(key).await.unwrap();
        assert!(client.try_lock(key).await.unwrap().is_none());
        guard.release().await.unwrap();
    }
    let error = client.lock(vec![b'k'; 513]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    client.close().await;
}

#[tokio::test]
async fn absurd_ttls_are_clamped_and_the_answer_says_so() {
    let fixture = Fixture::start(1);
    for (session, asked, given) in [(1, 0, 1000), (2, u64::MAX, 600_000), (3, 5000, 5000)] {
        let (_raw, reply) =
            Raw::greet(&fixture.node, &Hello { ttl_ms: asked, ..hello(session) }).await;
        match reply {
            HelloReply::Welcome(Welcome { ttl_ms, .. }) => assert_eq!(ttl_ms, given, "{asked}"),
            other @ HelloReply::Refused(_) => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn forged_fences_and_foreign_sessions_get_nothing() {
    let fixture = Fixture::start(1);
    let (mut owner, _) = Raw::greet(&fixture.node, &hello(1)).await;
    let Reply::Granted { fence, .. } = owner.ask(&acquire(1, b"k")).await else { panic!() };
    // Somebody else of the same name, with the right fence: not theirs.
    let (mut other, _) = Raw::greet(&fixture.node, &hello(2)).await;
    for forged in [fence, Fence(fence.0 + 1), Fence(0), Fence(u64::MAX)] {
        let release = Request::Keyed {
            id: 9,
            version: 1,
            operation: Operation::Release { fence: forged },
            key: b"k",
        };
        assert!(matches!(other.ask(&release).await, Reply::NotHeld { .. }), "{forged}");
    }
    let forged = Request::Keyed {
        id: 9,
        version: 1,
        operation: Operation::Release { fence: Fence(1) },
        key: b"k",
    };
    assert!(matches!(owner.ask(&forged).await, Reply::NotHeld { .. }));
    // Another identity cannot take up the session, even if it knows the id.
    let authority = crate::authority::Authority::load(fixture.data.path()).unwrap();
    let thief = authority.issue_client("thief", &lockring_client::proto::Namespace::default());
    let bundle = Bundle::parse(thief.unwrap().as_bytes()).unwrap();
    let mut stolen = Raw::open_as(&fixture.node, &bundle).await;
    let reply = stolen.say(&Hello { incarnation: 2, ..hello(1) }).await;
    let refused =
        matches!(reply, HelloReply::Refused(Refusal { kind: RefusalKind::ForeignSession, .. }));
    assert!(refused, "{reply:?}");
    let release =
        Request::Keyed { id: 2, version: 1, operation: Operation::Release { fence }, key: b"k" };
    assert!(matches!(owner.ask(&release).await, Reply::Released { .. }), "the owner still can");
}

#[tokio::test]
async fn other_versions_are_told_apart() {
    let fixture = Fixture::start(1);
    let (_raw, reply) = Raw::greet(&fixture.node, &Hello { protocol: 99, ..hello(1) }).await;
    let HelloReply::Refused(refusal) = reply else { panic!("{reply:?}") };
    assert_eq!(refusal.kind, RefusalKind::Protocol);
    assert!(refusal.message.contains("upgrade"), "{}", refusal.message);
}

#[tokio::test]
async fn what_came_with_the_hello_is_served_at_once() {
    let fixture = Fixture::start(1);
    let mut raw = Raw::open(&fixture.node).await;
    let mut frames = Vec::new();
    codec::encode_frame(&hello(1), &mut frames);
    codec::encode_frame(&acquire(1, b"k"), &mut frames);
    raw.send.write_all(&frames).await.unwrap();
    raw.frame().await.unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(5), raw.frame()).await;
    let body = answer.expect("without another packet").unwrap();
    assert!(matches!(codec::decode_frame(&body), Ok(Reply::Granted { id: 1, .. })));
}

#[tokio::test]
async fn a_peer_for_which_too_much_lies_unsent_is_cut_off_and_keeps_its_session() {
    const HOLDS: u64 = 200_000;
    let fixture = Fixture::start(1);
    let (mut raw, _) = Raw::greet(&fixture.node, &hello(1)).await;
    let shared = |id| Request::Keyed {
        id,
        version: 1,
        operation: Operation::Acquire { claim: Claim::SHARED, wait: Wait::No },
        key: b"shared",
    };
    for ids in (1..=HOLDS).collect::<Vec<_>>().chunks(1000) {
        let mut frames = Vec::new();
        ids.iter().for_each(|&id| codec::encode_frame(&shared(id), &mut frames));
        raw.send.write_all(&frames).await.unwrap();
        for _ in ids {
            raw.frame().await.unwrap();
        }
    }
    // It reads no pushes, and each of its holds is one.
    let (mut operator, _) = Raw::greet(&fixture.node, &hello(2)).await;
    let force = Request::Keyed {
        id: 1,
        version: 1,
        operation: Operation::Force { namespace: "" },
        key: b"shared",
    };
    let Reply::Forced { ended, .. } = operator.ask(&force).await else { panic!("not forced") };
    assert_eq!(u64::from(ended), HOLDS);
    assert_eq!(raw.closed().await.0, 21);
    let (_, again) = Raw::greet(&fixture.node, &Hello { incarnation: 2, ..hello(1) }).await;
    assert!(matches!(again, HelloReply::Welcome(Welcome { fresh: false, .. })), "{again:?}");
}

#[tokio::test]
async fn a_peer_that_never_reads_is_held_up_and_nobody_else_is() {
    let fixture = Fixture::start(1);
    let (mut raw, _) = Raw::greet(&fixture.node, &hello(1)).await;
    let mut frames = Vec::new();
    for id in 0..1000 {
        codec::encode_frame(
            &Request::Keyed {
                id,
                version: 1,
                operation: Operation::Inspect { namespace: "" },
                key: b"k",
            },
            &mut frames,
        );
    }
    // Its replies fill its windows, then the node stops reading: what it can send is bounded.
    let mut sent = 0;
    let flood = async {
        loop {
            raw.send.write_all(&frames).await.unwrap();
            sent += frames.len();
        }
    };
    let _until_held_up = tokio::time::timeout(Duration::from_secs(2), flood).await;
    assert!(sent < 4 << 20, "the node took {sent} bytes from a peer that never reads");
    // More streams than the one are not there to be had.
    let more = tokio::time::timeout(Duration::from_millis(300), async {
        for _ in 0..8 {
            raw.conn.open_bi().await.unwrap();
        }
    });
    assert!(more.await.is_err(), "streams without limit");
    still_serves(&fixture).await;
}

#[tokio::test]
async fn admin_http_tells_and_changes_nothing() {
    let fixture = Fixture::start(2);
    let client = fixture.client().await;
    let mut guards = Vec::new();
    for number in 0..30 {
        guards.push(client.lock(format!("list/{number:02}")).await.unwrap());
    }
    let at = fixture.node.admin().unwrap();
    assert_eq!(get(at, "/livez").await, (200, "ok\n".to_owned()));
    assert_eq!(get(at, "/readyz").await.0, 200);
    let (_, metrics) = get(at, "/metrics").await;
    let held: f64 = metrics
        .lines()
        .filter(|line| line.starts_with("lockring_locks_held{"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    assert!((held - 30.0).abs() < 0.1, "{metrics}");
    assert!(!metrics.contains("list/"), "a key is never a label");
    // Pages end, and together hold every key once.
    let (mut keys, mut cursor) = (Vec::new(), String::new());
    loop {
        let (code, page) = get(at, &format!("/v1/locks?prefix=list/&limit=7{cursor}")).await;
        assert_eq!(code, 200);
        keys.extend(page.split("\"key\":\"").skip(1).map(|rest| rest[..7].to_owned()));
        match page.rsplit_once("\"next\":\"") {
            Some((_, next)) => cursor = format!("&cursor={}", next.trim_end_matches("\"}")),
            None => break,
        }
    }
    keys.sort();
    let all: Vec<String> = (0..30).map(|number| format!("list/{number:02}")).collect();
    assert_eq!(keys, all);
    assert_eq!(get(at, "/v1/locks?cursor=nonsense").await.0, 400);
    let (_, sessions) = get(at, "/v1/sessions").await;
    assert!(sessions.contains("\"name\":\"local\""), "{sessions}");
    drop(guards);
    client.close().await;
}
