//! A node's lives: what one owes to the one before, and what it writes down for the next.

use super::common::{Raw, config, connect, crash_image, get, hello};
use crate::control::log_state;
use crate::store::tests::without_log;
use crate::store::{LOG, Record, Vault, replace};
use crate::{CellBits, Node, NodeConfig, Stopped, TtlMax};
use lockring_client::proto::{Hello, HelloReply, RefusalKind};
use lockring_control::cluster::{Before, Floors, Longest};
use lockring_ring::{AttachId, Epoch, NodeId, RingVersion};
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn patient() -> TtlMax {
    TtlMax { any: Duration::from_secs(3600), ..TtlMax::default() }
}

/// The longest TTL that the next process would know of, if the node were killed now.
fn longest_after_kill(data: &Path) -> Longest {
    let image = crash_image(data);
    let mut log = Vault::open(image.path(), &LOG).unwrap().unwrap();
    log_state(&mut log, CellBits::DEFAULT).unwrap().longest().clone()
}

/// A directory of a node without a log, whose last process may have granted for this long.
fn left_by_one(ttl: Duration, by: &str) -> TempDir {
    let data = TempDir::new().unwrap();
    let floors = Floors {
        epoch: Epoch(4),
        version: RingVersion(4),
        node: NodeId(1),
        attach: AttachId(1),
        longest_ttl: ttl,
        longest_by: by.to_owned(),
        before: Before::One,
    };
    let record = Record { floors: Some(floors), ..Record::new().unwrap() };
    replace(data.path(), &record).unwrap();
    data
}

async fn await_that(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < Duration::from_secs(30), "never: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn in_grace(node: &Node) -> bool {
    node.status().await.workers.iter().all(|worker| worker.grace_left.is_some())
}

/// Nothing is held in the memory of a node that was started a moment ago. That says nothing of
/// what clients of the life before believe.
#[tokio::test]
async fn a_stop_within_the_grace_is_not_a_clean_one() {
    let data = TempDir::new().unwrap();
    let first = Node::start(&config(data.path(), 2)).unwrap();
    let holder = connect(&first).await;
    let guard = holder.lock("k").await.unwrap();
    let killed = crash_image(data.path());

    let second = Node::start(&config(killed.path(), 2)).unwrap();
    assert!(in_grace(&second).await);
    assert_eq!(second.stop().await, Stopped { held: 0, clean: false });
    let third = Node::start(&config(killed.path(), 2)).unwrap();
    assert!(in_grace(&third).await, "the first holder still believes");
    assert!(guard.is_valid());
    drop(third);
    holder.close().await;
    assert_eq!(first.stop().await, Stopped { held: 0, clean: true });
}

/// A data directory of the version before, which kept no log.
#[tokio::test]
async fn a_node_that_kept_no_log_goes_on_with_one() {
    for was_clean in [true, false] {
        let data = TempDir::new().unwrap();
        without_log(data.path(), 41, was_clean);
        let node = Node::start(&config(data.path(), 2)).unwrap();
        assert_eq!(in_grace(&node).await, !was_clean);
        let client = connect(&node).await;
        if was_clean {
            let fence = client.lock("k").await.unwrap().fence();
            assert_eq!(fence >> 40, 42, "above every epoch of before");
        }
        client.close().await;
        assert_eq!(node.stop().await, Stopped { held: 0, clean: was_clean });
        let node = Node::start(&config(data.path(), 4)).unwrap();
        assert_eq!(in_grace(&node).await, !was_clean);
        assert_eq!(node.status().await.node, 1);
    }
}

/// Once the grace is over, a stop is clean also if nobody ever came to make the node look.
#[tokio::test]
async fn a_stop_after_the_grace_is_a_clean_one() {
    let data = left_by_one(Duration::from_secs(1), "");
    let node = Node::start(&config(data.path(), 2)).unwrap();
    assert!(in_grace(&node).await);
    await_that("the grace ends", async || !in_grace(&node).await).await;
    assert_eq!(node.stop().await, Stopped { held: 0, clean: true });
}

#[tokio::test]
async fn a_node_that_is_dropped_or_stopped_midway_is_not_clean() {
    let data = TempDir::new().unwrap();
    let again = async || {
        let begun = Instant::now();
        loop {
            match Node::start(&config(data.path(), 1)) {
                Ok(node) => return node,
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(20), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    drop(again().await);
    let node = again().await;
    assert!(in_grace(&node).await);
    // A stop that is given up while it waits for a hold to be given back.
    let client = connect(&node).await;
    let _guard = client.lock("k").await.unwrap();
    let slow = NodeConfig { drain: Duration::from_secs(60), ..config(data.path(), 1) };
    drop(node);
    let begun = Instant::now();
    let node = loop {
        match Node::start(&slow) {
            Ok(node) => break node,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(20), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let given_up = tokio::time::timeout(Duration::from_millis(300), node.stop()).await;
    drop(given_up);
    assert!(in_grace(&again().await).await);
    client.close().await;
}

/// Workers stop side by side, and a client that comes back at once does not keep them.
#[tokio::test]
async fn a_stop_does_not_take_longer_with_more_workers() {
    let data = TempDir::new().unwrap();
    let node = Node::start(&config(data.path(), 16)).unwrap();
    let client = connect(&node).await;
    let at_work = tokio::spawn(async move {
        loop {
            for number in 0..100 {
                if let Ok(guard) = client.try_lock(format!("k{number}")).await {
                    drop(guard);
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begun = Instant::now();
    node.stop().await;
    // One after the other they took 1.5 s each.
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    at_work.abort();
}

#[tokio::test]
async fn a_long_ttl_is_forgotten_soon_after_its_session_has_gone() {
    let data = TempDir::new().unwrap();
    let node = Node::start(&NodeConfig { ttl_max: patient(), ..config(data.path(), 2) }).unwrap();
    let client = connect(&node).await;
    let patient = client.with_ttl(Duration::from_secs(3600)).await.unwrap();
    let guard = patient.lock("k").await.unwrap();
    assert_eq!(guard.ttl(), Duration::from_secs(3600));
    let killed = longest_after_kill(data.path());
    assert_eq!(killed.ttl, Duration::from_secs(3600));
    assert!(killed.by.starts_with("default/local ("), "{}", killed.by);
    // As long as the session is there, it stays.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(longest_after_kill(data.path()).ttl, Duration::from_secs(3600));
    // It falls to that of the next one, in whole seconds, and says whose that is.
    let other = client.with_ttl(Duration::from_millis(60_500)).await.unwrap();
    other.lock("other").await.unwrap().release().await.unwrap();
    guard.release().await.unwrap();
    patient.close().await;
    await_that("the mark falls to the next", async || {
        longest_after_kill(data.path()).ttl == Duration::from_secs(61)
    })
    .await;
    let next = longest_after_kill(data.path());
    assert!(next.by.starts_with("default/local ("), "{}", next.by);
    other.close().await;
    await_that("the mark falls", async || {
        longest_after_kill(data.path()).ttl == Duration::from_secs(10)
    })
    .await;
    assert_eq!(longest_after_kill(data.path()).by, "");
    // And it rises again for the next.
    let patient = client.with_ttl(Duration::from_secs(60)).await.unwrap();
    assert_eq!(patient.lock("k").await.unwrap().ttl(), Duration::from_secs(60));
    assert_eq!(longest_after_kill(data.path()).ttl, Duration::from_secs(60));
    client.close().await;
}

/// The leases of earlier lives are nowhere in memory: until the grace is over the mark stays.
#[tokio::test]
async fn the_longest_ttl_of_an_earlier_life_outlives_a_second_kill() {
    let data = left_by_one(Duration::from_secs(60), "team/web");
    let node = Node::start(&config(data.path(), 1)).unwrap();
    let client = connect(&node).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let killed = longest_after_kill(data.path());
    assert_eq!((killed.ttl, killed.by.as_str()), (Duration::from_secs(60), "team/web"));
    client.close().await;
}

#[tokio::test]
async fn a_ttl_is_limited_by_its_namespace_and_the_answer_says_so() {
    let data = TempDir::new().unwrap();
    let namespaces = [("default".to_owned(), Duration::from_secs(20))].into();
    let ttl_max = TtlMax { namespaces, ..TtlMax::default() };
    let node = Node::start(&NodeConfig { ttl_max, ..config(data.path(), 1) }).unwrap();
    let (_raw, reply) = Raw::greet(&node, &Hello { ttl_ms: 3_600_000, ..hello(1) }).await;
    let HelloReply::Welcome(welcome) = reply else { panic!("{reply:?}") };
    assert_eq!(welcome.ttl_ms, 20_000);
    assert_eq!(longest_after_kill(data.path()).ttl, Duration::from_secs(20));
}

/// A disk that cannot be written, as seen from here: the mark's place is taken.
#[tokio::test]
async fn a_ttl_that_cannot_be_made_durable_is_refused_with_the_reason_until_it_can() {
    let data = TempDir::new().unwrap();
    let node = Node::start(&config(data.path(), 2)).unwrap();
    let admin = node.admin().unwrap();
    let mark = data.path().join("log.mark");
    std::fs::remove_file(&mark).unwrap();
    std::fs::create_dir(&mark).unwrap();
    let long = Hello { ttl_ms: 60_000, ..hello(1) };
    let (_raw, reply) = Raw::greet(&node, &long).await;
    let HelloReply::Refused(refusal) = reply else { panic!("{reply:?}") };
    assert_eq!(refusal.kind, RefusalKind::Unavailable);
    let said = &refusal.message;
    assert!(
        said.contains("60 s") && said.contains("durable") && said.contains("directory"),
        "{said}"
    );
    // Everything else goes on, also for longer than a lease of the node, and whoever looks is told.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let client = connect(&node).await;
    client.lock("k").await.unwrap().release().await.unwrap();
    let (code, ready) = get(admin, "/readyz").await;
    assert!(code == 200 && ready.contains("durable writes fail"), "{code} {ready}");
    let (_, metrics) = get(admin, "/metrics").await;
    assert!(metrics.contains("lockring_durable_writes_failing 1"), "{metrics}");

    std::fs::remove_dir(&mark).unwrap();
    let (_raw, reply) = Raw::greet(&node, &Hello { incarnation: 2, ..long }).await;
    assert!(matches!(reply, HelloReply::Welcome(_)), "{reply:?}");
    assert_eq!(longest_after_kill(data.path()).ttl, Duration::from_secs(60));
    assert_eq!(get(admin, "/readyz").await.1, "ok\n");
    let (_, metrics) = get(admin, "/metrics").await;
    assert!(metrics.contains("lockring_durable_writes_failing 0"), "{metrics}");
    client.close().await;
}

/// Also with nobody waiting any more, the health tells of today.
#[tokio::test]
async fn health_comes_back_by_itself() {
    let data = TempDir::new().unwrap();
    let node = Node::start(&config(data.path(), 1)).unwrap();
    let mark = data.path().join("log.mark");
    std::fs::remove_file(&mark).unwrap();
    std::fs::create_dir(&mark).unwrap();
    let (raw, _) = Raw::greet(&node, &Hello { ttl_ms: 60_000, ..hello(1) }).await;
    drop(raw);
    let admin = node.admin().unwrap();
    assert_ne!(get(admin, "/readyz").await.1, "ok\n");
    std::fs::remove_dir(&mark).unwrap();
    await_that("it is ready", async || get(admin, "/readyz").await.1 == "ok\n").await;
    assert_eq!(node.stop().await, Stopped { held: 0, clean: true });
}

/// Whoever goes before a longer TTL is durable leaves a welcome for nobody: it ends nobody's day.
#[tokio::test]
async fn a_session_that_goes_before_its_ttl_is_durable_harms_nobody() {
    let data = TempDir::new().unwrap();
    let node = Node::start(&config(data.path(), 1)).unwrap();
    let mark = data.path().join("log.mark");
    std::fs::remove_file(&mark).unwrap();
    std::fs::create_dir(&mark).unwrap();
    let mut raw = Raw::open(&node).await;
    raw.send_hello(&Hello { ttl_ms: 60_000, ..hello(1) }).await;
    await_that("the hello has come", async || node.status().await.workers[0].stats.links == 1)
        .await;
    raw.conn.close(0u32.into(), b"");
    await_that("it has gone", async || node.status().await.workers[0].connections == 0).await;
    std::fs::remove_dir(&mark).unwrap();
    await_that("the TTL is durable", async || {
        longest_after_kill(data.path()).ttl == Duration::from_secs(60)
    })
    .await;
    let client = connect(&node).await;
    client.lock("k").await.unwrap().release().await.unwrap();
    let links = async || node.status().await.workers[0].stats.links;
    await_that("nothing is left of it", async || links().await == 1).await;
    client.close().await;
}
