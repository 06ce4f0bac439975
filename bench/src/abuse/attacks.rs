//! The attacks: each a loop of one thing, for a bounded time and a bounded number of times, on a
//! thread and a runtime of its own.

use super::chain;
use super::peer::Peer;
use crate::choices::OptionError;
use crate::error::BenchError;
use crate::lockring::ClusterAccess;
use lockring_client::proto::{Claim, ListCursor, Operation, Request, SERVER_NAME, Wait};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::task::JoinSet;

/// No attack does its thing more often.
const ROUNDS_MAX: u64 = 1_000_000;

/// Holds or waiters that an attack needs to begin with.
const CROWD: u32 = 50_000;

/// What a bad peer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attack {
    Compares,
    Listings,
    DeadWaiters,
    SharedGrants,
    Forces,
    Handshakes,
    HalfHandshakes,
    LongChains,
    Sessions,
    Garbage,
    NeverReads,
    LongKeys,
}

impl Attack {
    const ALL: [Self; 12] = [
        Self::Compares,
        Self::Listings,
        Self::DeadWaiters,
        Self::SharedGrants,
        Self::Forces,
        Self::Handshakes,
        Self::HalfHandshakes,
        Self::LongChains,
        Self::Sessions,
        Self::Garbage,
        Self::NeverReads,
        Self::LongKeys,
    ];

    /// The attacks with these names, or all of them if none is named.
    pub(super) fn chosen(names: &[String]) -> Result<Vec<Self>, BenchError> {
        if names.is_empty() {
            return Ok(Self::ALL.to_vec());
        }
        let find = |name: &String| {
            let found = Self::ALL.into_iter().find(|attack| attack.name() == name);
            found.ok_or_else(|| {
                let need = "name one that `bench abuse` without --attack lists";
                BenchError::from(OptionError { option: "attack", given: name.clone(), need })
            })
        };
        names.iter().map(find).collect()
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Compares => "compares",
            Self::Listings => "listings",
            Self::DeadWaiters => "dead-waiters",
            Self::SharedGrants => "shared-grants",
            Self::Forces => "forces",
            Self::Handshakes => "handshakes",
            Self::HalfHandshakes => "half-handshakes",
            Self::LongChains => "long-chains",
            Self::Sessions => "sessions",
            Self::Garbage => "garbage",
            Self::NeverReads => "never-reads",
            Self::LongKeys => "long-keys",
        }
    }

    pub(super) fn does(self) -> &'static str {
        match self {
            Self::Compares => "has its many holds compared, over and over",
            Self::Listings => "asks for pages of listings and never reads them",
            Self::DeadWaiters => "waits many times for one key, and vanishes",
            Self::SharedGrants => "lets many shared claims be granted at once",
            Self::Forces => "forces a key that many share",
            Self::Handshakes => "connects and leaves",
            Self::HalfHandshakes => "begins handshakes and goes on with none",
            Self::LongChains => "shows chains of 61 certificates",
            Self::Sessions => "begins sessions of an hour and forgets them",
            Self::Garbage => "sends what is of no wire",
            Self::NeverReads => "asks and never reads",
            Self::LongKeys => "holds as many of the longest keys as it may",
        }
    }

    /// Starts it; it ends by itself.
    pub(super) fn begin(
        self,
        access: &ClusterAccess,
        length: Duration,
    ) -> Result<Assault, BenchError> {
        let done = Arc::new(AtomicU64::new(0));
        let (access, counter) = (access.clone(), Arc::clone(&done));
        let thread = on_thread_of_its_own(move || async move {
            let Ok(access) = access.anew() else { return };
            // A node that cuts the attack off does what it should: the attack starts again.
            let attack = async {
                while counter.load(Ordering::Relaxed) < ROUNDS_MAX {
                    if self.run(&access, &counter).await.is_err() {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
            };
            let _time_is_over = tokio::time::timeout(length * 2, attack).await;
        })?;
        Ok(Assault { thread, done })
    }

    /// Does it until something ends it.
    async fn run(self, access: &ClusterAccess, done: &AtomicU64) -> io::Result<()> {
        match self {
            Self::Compares => compares(access, done).await,
            Self::Listings => listings(access, done).await,
            Self::DeadWaiters => dead_waiters(access, done).await,
            Self::SharedGrants => shared_grants(access, done).await,
            Self::Forces => forces(access, done).await,
            Self::Handshakes => handshakes(access, done).await,
            Self::HalfHandshakes => half_handshakes(access, done).await,
            Self::LongChains => long_chains(access, done).await,
            Self::Sessions => sessions(access, done).await,
            Self::Garbage => garbage(access, done).await,
            Self::NeverReads => never_reads(access, done).await,
            Self::LongKeys => long_keys(access, done).await,
        }
    }
}

/// Runs what loads the node beside the victim, an attack as well as honest peers: so that both take
/// as much from the victim's processor, and what is compared is the node.
pub(super) fn on_thread_of_its_own<F: Future>(
    load: impl FnOnce() -> F + Send + 'static,
) -> Result<JoinHandle<()>, BenchError> {
    std::thread::Builder::new()
        .name("load".to_owned())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let Ok(runtime) = runtime else { return };
            let thread = rustix::thread::gettid();
            let _as_fast_if_refused = rustix::process::setpriority_process(Some(thread), 10);
            runtime.block_on(load());
        })
        .map_err(BenchError::system("starting a thread"))
}

/// An attack under way.
pub(super) struct Assault {
    thread: JoinHandle<()>,
    done: Arc<AtomicU64>,
}

impl Assault {
    /// How often it was done. The thread ends by itself, soon.
    pub(super) fn end(self) -> u64 {
        drop(self.thread);
        self.done.load(Ordering::Relaxed)
    }
}

fn count(done: &AtomicU64, times: u64) {
    done.fetch_add(times, Ordering::Relaxed);
}

async fn compares(access: &ClusterAccess, done: &AtomicU64) -> io::Result<()> {
    let mut peer = Peer::connect(access, 10_000).await?;
    for key in 0..CROWD {
        let key = format!("compared/{key}");
        peer.acquire(Claim::EXCLUSIVE, Wait::No, key.as_bytes());
    }
    peer.exchange().await?;
    loop {
        for _ in 0..200 {
            let id = peer.id();
            let holds = Vec::new();
            peer.put(&Request::Compare {
                id,
                version: 1,
                upto: 0,
                after: None,
                through: None,
                holds,
            });
        }
        peer.flush().await?;
        count(done, 200);
        peer.exchange().await?;
    }
}

async fn listings(access: &ClusterAccess, done: &AtomicU64) -> io::Result<()> {
    let mut peer = Peer::connect(access, 10_000).await?;
    for key in 0..2000 {
        let key = format!("{key:0>512}");
        peer.acquire(Claim::EXCLUSIVE, Wait::No, key.as_bytes());
    }
    peer.exchange().await?;
    loop {
        for _ in 0..500 {
            let id = peer.id();
            let (cursor, prefix) = (ListCursor::default(), b"".as_slice());
            peer.put(&Request::List { id, namespace: "", cursor, rows: 90, prefix });
        }
        peer.flush().await?;
        count(done, 500);
    }
}

/// Queues many claims of one key behind a holder.
async fn crowd(
    access: &ClusterAccess,
    holder: &mut Peer,
    claim: Claim,
    ttl: u64,
) -> io::Result<Peer> {
    holder.acquire(Claim::EXCLUSIVE, Wait::Forever, b"crowded");
    holder.exchange().await?;
    let mut peer = Peer::connect(access, ttl).await?;
    for _ in 0..CROWD {
        peer.acquire(claim, Wait::Forever, b"crowded");
    }
    peer.exchange().await?;
    Ok(peer)
}

async fn dead_waiters(access: &ClusterAccess, done: &AtomicU64) -> io::Result<()> {
    let mut holder = Peer::connect(access, 10_000).await?;
    let peer = crowd(access, &mut holder, Claim::EXCLUSIVE, 1000).await?;
    drop(peer);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    count(done, 1);
    Ok(())
}

async fn shared_grants(access: &ClusterAccess, done: &AtomicU64) -> io::Result<()> {
    let mut holder = Peer::connect(access, 1000).await?;
    let mut peer = crowd(access, &mut holder, Claim::SHARED, 10_000).await?;
    holder.goodbye().await?;
    peer.exchange().await?;
    peer.goodbye().await?;
    count(done, 1);
    Ok(())
}

async fn forces(access: &ClusterAccess, done: &AtomicU64) -> io::Result<()> {
    let mut peer = Peer::connect(access, 10_000).await?;
    for _ in 0..CROWD {
        peer.acquire(Claim::SHARED, Wait::No, b"shared");
    }
    peer.exchange().await?;
    let mut operator = Peer::connect(access, 10_000).await?;
    let (id, version) = (operator.id(), operator.version);
    operator.put(&Request::Keyed {
        id,
        version,
        operation: Operation::Force { namespace: "" },
        key: b"shared",
    });
    operator.exchange().await?;
    count(done, 1);
    Ok(())
}

async fn handshakes(access: &ClusterAccess, done: &AtomicU64) -> io::Result<()> {
    let mut under_way = JoinSet::new();
    for _ in 0..32 {
        let access = access.clone();
        under_way.spawn(async move { access.wire().await.is_ok() });
    }
    while let Some(ended) = under_way.join_next().await {
        count(done, u64::from(ended.unwrap_or(false)));
    }
    Ok(())
}

async fn half_handshakes(access: &ClusterAccess, done: &AtomicU64) -> io::Result<()> {
    for _ in 0..64 {
        // Dropped at once: the first packet is out, and nothing follows.
        let begun = access.begin(None).map_err(io::Error::other)?;
        tokio::task::yield_now().await;
        drop(begun);
        count(done, 1);
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    Ok(())
}

async fn long_chains(access: &ClusterAccess, done: &AtomicU64) -> io::Result<()> {
    let config = chain::config(access.identity(), 61).map_err(io::Error::other)?;
    loop {
        let mut under_way = Vec::new();
        for _ in 0..16 {
            under_way.push(access.begin(Some(config.clone())).map_err(io::Error::other)?);
        }
        for connecting in under_way {
            if let Ok(conn) = connecting.await {
                // The node refuses after the client thinks that the handshake is done.
                let _refused = tokio::time::timeout(Duration::from_secs(1), conn.closed()).await;
            }
            count(done, 1);
        }
    }
}

async fn sessions(access: &ClusterAccess, done: &AtomicU64) -> io::Result<()> {
    drop(Peer::connect(access, 3_600_000).await?);
    count(done, 1);
    Ok(())
}

async fn garbage(access: &ClusterAccess, done: &AtomicU64) -> io::Result<()> {
    let connecting = access.begin(None).map_err(io::Error::other)?;
    let conn = connecting.await.map_err(io::Error::other)?;
    let (mut send, _recv) = conn.open_bi().await.map_err(io::Error::other)?;
    let mut bytes = vec![0; 4096];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    send.write_all(&bytes).await.map_err(io::Error::other)?;
    let _closed = tokio::time::timeout(Duration::from_secs(1), conn.closed()).await;
    // A reason of the attacker's own, for the log.
    conn.close(SERVER_NAME.len().try_into().unwrap_or_default(), b"\x1b[31mINFO forged\n");
    count(done, 1);
    Ok(())
}

async fn never_reads(access: &ClusterAccess, done: &AtomicU64) -> io::Result<()> {
    let mut peer = Peer::connect(access, 10_000).await?;
    loop {
        for _ in 0..1000 {
            peer.acquire(Claim::EXCLUSIVE, Wait::No, b"busy");
        }
        peer.flush().await?;
        count(done, 1000);
    }
}

async fn long_keys(access: &ClusterAccess, done: &AtomicU64) -> io::Result<()> {
    let mut peer = Peer::connect(access, 10_000).await?;
    for key in 0..CROWD {
        let key = format!("{key:0>512}");
        peer.acquire(Claim::EXCLUSIVE, Wait::No, key.as_bytes());
        if peer.next_is_multiple_of(100) {
            peer.exchange().await?;
            count(done, 100);
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(())
}
