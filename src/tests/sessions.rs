//! What a client believes, what it is told, and that nothing waits for ever: the public client
//! against a node that is killed, stopped, restarted with other workers, or far away.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod support;

use lockring::{Client, ErrorKind, Guard, Loss, Token};
use std::net::UdpSocket;
use std::time::{Duration, Instant};
use support::{Node, ends, relay, until};

async fn client(node: &Node) -> Client {
    client_of(node, 10).await
}

async fn client_of(node: &Node, ttl: u64) -> Client {
    let builder = Client::builder().ttl(Duration::from_secs(ttl));
    ends("connecting", builder.connect(&node.url())).await.unwrap()
}

/// A guard that is lost says so in every way.
async fn is_lost(guard: &Guard, reason: Loss) {
    ends("lost()", guard.lost()).await;
    assert!(guard.lost_token().is_cancelled());
    assert!(!guard.is_valid());
    assert_eq!(guard.valid_for(), Duration::ZERO);
    assert_eq!(guard.lost_reason(), Some(reason));
}

#[tokio::test(flavor = "multi_thread")]
async fn validity_is_the_holds_and_not_the_links() {
    let mut node = Node::start(1);
    let (mine, other) = (client(&node).await, client(&node).await);
    let owner = mine.mutex("entered").reentrant(2);
    let level = owner.enter().await.unwrap();
    let guard = mine.lock("forced").await.unwrap();
    let kept = mine.lock("kept").await.unwrap();
    other.admin().release_by_force("forced").await.unwrap();
    other.admin().release_by_force("entered").await.unwrap();
    is_lost(&guard, Loss::Forced).await;
    // The link goes on renewing, and what else it holds is held.
    assert!(kept.is_valid() && kept.lost_reason().is_none());
    until("the owner knows", || {
        let entered = futures_now(owner.enter());
        entered.is_some_and(|entered| entered.is_err_and(|error| error.kind() == ErrorKind::Lost))
    })
    .await;
    drop(level);
    // A node that is killed has no memory of the hold, and is told of it.
    node.end("KILL");
    node.start_again();
    let is_held = async {
        while !other.inspect("kept").await.is_ok_and(|seen| seen.holder_count == 1) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    ends("it is held again", is_held).await;
    assert!(kept.is_valid() && kept.lost_reason().is_none());
    ends("releasing", kept.release()).await.unwrap();
}

/// A future's result, if it has one at once.
fn futures_now<T>(future: impl Future<Output = T>) -> Option<T> {
    let waker = std::task::Waker::noop();
    let mut cx = std::task::Context::from_waker(waker);
    match std::pin::pin!(future).poll(&mut cx) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lapse_is_noticed_by_the_clock_alone() {
    let node = Node::start(1);
    let mine = client_of(&node, 1).await;
    let guard = mine.lock("job").await.unwrap();
    node.signal("STOP");
    is_lost(&guard, Loss::Lapsed).await;
    node.signal("CONT");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_ends_a_session_tells_all_its_guards() {
    let node = Node::start(2);
    let held = async |keys: [&'static str; 2]| {
        let client = client(&node).await;
        (client.lock(keys[0]).await.unwrap(), client.lock(keys[1]).await.unwrap(), client)
    };
    // By a clone.
    let (one, two, mine) = held(["a", "b"]).await;
    mine.clone().close().await;
    for guard in [&one, &two] {
        is_lost(guard, Loss::Closed).await;
    }
    assert_eq!(mine.lock("c").await.unwrap_err().kind(), ErrorKind::Closed);
    // By the last of them.
    let (one, two, mine) = held(["a", "b"]).await;
    drop(mine);
    for guard in [&one, &two] {
        is_lost(guard, Loss::Closed).await;
    }
    // By leaving it to another process; a guard that became a token first.
    let (one, two, mine) = held(["a", "b"]).await;
    let watched = one.lost();
    let token = mine.into_token(one);
    ends("the handed over guard is told", watched).await;
    mine.leave().await;
    is_lost(&two, Loss::Closed).await;
    // By a process that takes it up.
    let (one, two, mine) = held(["c", "d"]).await;
    let theirs = mine.into_token(one);
    let builder = Client::builder().session(theirs.session()).ttl(theirs.ttl());
    let successor = builder.connect(&node.url()).await.unwrap();
    is_lost(&two, Loss::Superseded).await;
    assert_eq!(mine.lock("e").await.unwrap_err().kind(), ErrorKind::Closed);
    drop((successor, token));
}

#[test]
fn a_runtime_that_ends_tells_guards_and_gives_back_what_was_released() {
    let node = Node::start(1);
    let outer = tokio::runtime::Runtime::new().unwrap();
    for threads in [false, true] {
        let mut builder = if threads {
            tokio::runtime::Builder::new_multi_thread()
        } else {
            tokio::runtime::Builder::new_current_thread()
        };
        let inner = builder.enable_all().build().unwrap();
        let (mine, kept) = inner.block_on(async {
            let mine = client_of(&node, 60).await;
            let kept = mine.lock("kept").await.unwrap();
            drop(mine.lock("dropped").await.unwrap());
            (mine, kept)
        });
        drop(inner);
        outer.block_on(async {
            is_lost(&kept, Loss::RuntimeEnded).await;
            assert_eq!(mine.lock("late").await.unwrap_err().kind(), ErrorKind::Closed);
            let other = client(&node).await;
            // Long before the lease of a minute is over.
            for key in ["dropped", "kept"] {
                drop(ends("the lock is given back", other.lock(key)).await.unwrap());
            }
        });
    }
    // The end of a program: guard and client dropped, then the runtime.
    let inner = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    inner.block_on(async {
        let mine = client_of(&node, 60).await;
        let guard = mine.lock("last").await.unwrap();
        drop(guard);
        drop(mine);
    });
    drop(inner);
    outer.block_on(async {
        let other = client(&node).await;
        drop(ends("the lock is given back", other.lock("last")).await.unwrap());
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_proves_nothing_until_the_node_says_so() {
    let node = Node::start(1);
    let token = |ttl| async move {
        let mine = client_of(&node, ttl).await;
        let token = mine.into_token(mine.lock("job").await.unwrap());
        mine.leave().await;
        (token, node)
    };
    let take_up = async |token: &Token, node: &Node| {
        let builder = Client::builder().session(token.session()).ttl(token.ttl());
        let successor = builder.connect(&node.url()).await.unwrap();
        (ends("adopting", successor.adopt(token)).await, successor)
    };
    let (alive, node) = token(60).await;
    let (guard, _successor) = take_up(&alive, &node).await;
    let guard = guard.unwrap();
    assert!(guard.is_valid());
    guard.release().await.unwrap();
    // Its lease over, the lock is another's.
    let short = client_of(&node, 1).await;
    let expired = short.into_token(short.lock("job").await.unwrap());
    short.leave().await;
    let other = client(&node).await;
    let _held = ends("the lease ends", other.lock("job")).await.unwrap();
    let (refused, _successor) = take_up(&expired, &node).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_ends_when_the_node_is_gone_for_good() {
    let mut node = Node::start(1);
    let builder = || Client::builder().unreachable_after(Duration::from_secs(3));
    let short = builder().ttl(Duration::from_secs(2)).connect(&node.url()).await.unwrap();
    let long = builder().ttl(Duration::from_secs(60)).connect(&node.url()).await.unwrap();
    let (one, two) = (short.lock("one").await.unwrap(), long.lock("two").await.unwrap());
    node.end("KILL");
    let begun = Instant::now();
    let (one, two, claim, look) = ends("all calls", async {
        tokio::join!(one.release(), two.release(), long.lock("three"), long.inspect("three"))
    })
    .await;
    // Long before the lease of a minute is over.
    assert!(begun.elapsed() < Duration::from_secs(50));
    for error in [one.unwrap_err(), two.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Unreachable);
        assert!(error.is_indeterminate() && error.to_string().contains("may still be held"));
    }
    assert_eq!(claim.unwrap_err().kind(), ErrorKind::Unreachable);
    assert_eq!(look.unwrap_err().kind(), ErrorKind::Unreachable);
    ends("closing", short.close()).await;
    ends("leaving", long.leave()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_with_other_workers_strands_nobody() {
    let mut node = Node::start(1);
    let mine = client(&node).await;
    let keys: Vec<String> = (0..16).map(|i| format!("key/{i}")).collect();
    for workers in [2, 4, 1, 4] {
        for key in &keys {
            mine.lock(key).await.unwrap().release().await.unwrap();
        }
        node.end("TERM");
        let asked: Vec<_> = keys
            .iter()
            .map(|key| {
                let (mine, key) = (mine.clone(), key.clone());
                tokio::spawn(async move { mine.lock(&key).await.unwrap().release().await })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        node.workers = workers;
        node.start_again();
        for claim in asked {
            ends("a claim reaches its new worker", claim).await.unwrap().unwrap();
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn what_was_asked_before_is_sent_before_leaving() {
    let node = Node::start(1);
    let other = client(&node).await;
    let busy = other.lock("busy").await.unwrap();
    let mine = client_of(&node, 60).await;
    let waits = {
        let mine = mine.clone();
        tokio::spawn(async move { mine.lock("busy").await })
    };
    until("it is queued", || waits.is_finished() || futures_now(other.try_lock("x")).is_none())
        .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(mine.lock("dropped").await.unwrap());
    ends("leaving", mine.leave()).await;
    assert_eq!(ends("the claim", waits).await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    // Nobody is left in the queue, and nothing is left held, though the session lives for a minute.
    drop(busy);
    for key in ["busy", "dropped"] {
        ends("the lock is free", other.lock(key)).await.unwrap().release().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_with_a_round_trip_of_two_seconds_works_at_the_default_ttl() {
    let node = Node::start(1);
    // Another address of this machine with the node's port: the ring names the port alone.
    let front = UdpSocket::bind(("127.0.0.2", node.at.port())).unwrap();
    let far = relay(front, node.at, Duration::from_secs(1));
    let mine = ends("connecting", Client::connect(&node.url_at(far))).await.unwrap();
    let guard = ends("locking", mine.lock("job")).await.unwrap();
    // Longer than a lease lives without renewals.
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert!(guard.is_valid(), "{:?}", guard.lost_reason());
    ends("releasing", guard.release()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_covers_a_node_that_is_away() {
    let mut node = Node::start(1);
    let mine = Client::builder()
        .unreachable_after(Duration::from_millis(500))
        .connect(&node.url())
        .await
        .unwrap();
    node.end("TERM");
    // With a wait of its own the claim waits for the node, not for half a second.
    let patient = mine.mutex("job").wait(Duration::from_secs(50));
    let waits = tokio::spawn(async move { patient.lock().await.map(drop) });
    let impatient = ends("the limit holds without one", mine.lock("other")).await.unwrap_err();
    assert_eq!(impatient.kind(), ErrorKind::Unreachable);
    assert!(!waits.is_finished());
    node.start_again();
    ends("the wait", waits).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ttl_outside_its_range_is_refused_and_a_client_says_the_one_that_holds() {
    let node = Node::start(1);
    for ttl in [Duration::ZERO, Duration::from_millis(999), Duration::from_millis(3_600_001)] {
        let error = Client::builder().ttl(ttl).connect(&node.url()).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains("1 s to 1 h"), "{error}");
    }
    // The node's highest is ten minutes.
    let hour = client_of(&node, 3600).await;
    assert_eq!(hour.ttl(), Duration::from_secs(600));
    assert_eq!(hour.lock("k").await.unwrap().ttl(), hour.ttl());
    let error = hour.with_ttl(Duration::from_secs(3601)).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert_eq!(hour.with_ttl(Duration::from_secs(5)).await.unwrap().ttl().as_secs(), 5);
}
