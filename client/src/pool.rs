//! How workers are reached: seeds, the ring, endpoints and connection attempts. Shared by all
//! sessions of a client.

use crate::driver::Command;
use crate::router::{Ring, Route, WorkerId};
use crate::target::{Host, Seed};
use crate::tls;
use crate::wire::{Wire, WireError};
use dashmap::DashMap;
use lockring_ring::NamespaceSeed;
use quinn::{ClientConfig, Endpoint};
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::Poll;
use std::time::Duration;
use tokio::sync::mpsc;

/// An address that has not answered by then is raced by the next (RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(250);

/// The way to a cluster.
pub(crate) struct Pool {
    seeds: Vec<Seed>,
    config: ClientConfig,
    ring: RwLock<Option<Arc<Ring>>>,
    /// Links that want to know of a newer ring.
    links: Mutex<Vec<mpsc::WeakUnboundedSender<Command>>>,
    /// One endpoint per address family, made when first needed.
    endpoints: DashMap<bool, Endpoint>,
    /// Where worker 0 of a node was found whose ring entry names no host, or would be if another
    /// worker was.
    found_at: DashMap<u32, SocketAddr>,
}

impl Pool {
    pub(crate) fn new(seeds: Vec<Seed>, config: ClientConfig) -> Self {
        Self {
            seeds,
            config,
            ring: RwLock::new(None),
            links: Mutex::default(),
            endpoints: DashMap::new(),
            found_at: DashMap::new(),
        }
    }

    /// The ring, once one is known.
    pub(crate) fn ring(&self) -> Option<Arc<Ring>> {
        // The lock only guards a pointer: a panic elsewhere cannot have left it half changed.
        self.ring.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where a key goes, once a ring is known.
    pub(crate) fn route(&self, seed: NamespaceSeed, key: &[u8]) -> Option<Route> {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        ring.as_ref().map(|ring| ring.route(seed, key))
    }

    /// Keeps the newer ring, and tells every link.
    pub(crate) fn learn(&self, ring: Ring) {
        {
            let mut known = self.ring.write().unwrap_or_else(PoisonError::into_inner);
            if known.as_ref().is_some_and(|known| known.version() >= ring.version()) {
                return;
            }
            *known = Some(Arc::new(ring));
        }
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|link| link.upgrade().is_some_and(|link| link.send(Command::NewRing).is_ok()));
    }

    /// From now on this link is told of newer rings.
    pub(crate) fn tell(&self, link: &mpsc::UnboundedSender<Command>) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|link| link.upgrade().is_some());
        links.push(link.downgrade());
    }

    /// Remembers the address by which a worker was reached.
    pub(crate) fn found(&self, worker: WorkerId, mut at: SocketAddr) {
        at.set_port(at.port().saturating_sub(worker.worker));
        self.found_at.insert(worker.node, at);
    }

    /// Connects to whichever address of a seed answers first.
    pub(crate) async fn connect_seed(&self) -> Result<Wire, WireError> {
        let mut addrs = Vec::new();
        let mut last = None;
        for seed in &self.seeds {
            match resolve(seed).await {
                Ok(found) => addrs.extend(found),
                Err(error) => last = Some(error),
            }
        }
        if addrs.is_empty() {
            let none = || WireError::Ended("no address to connect to".to_owned());
            return Err(last.unwrap_or_else(none));
        }
        self.race(&addrs, |addr| self.endpoint(addr)).await
    }

    /// Connects to a worker of the ring; by the seeds while no ring is known.
    pub(crate) async fn connect(&self, worker: WorkerId) -> Result<Wire, WireError> {
        match self.addresses(worker).await? {
            Some(addrs) => self.race(&addrs, |addr| self.endpoint(addr)).await,
            None => self.connect_seed().await,
        }
    }

    /// Connects to a worker on an endpoint of its own: those of the pool belong to a runtime that
    /// may be gone.
    pub(crate) async fn connect_anew(&self, worker: WorkerId) -> Result<Wire, WireError> {
        let addrs = self.addresses(worker).await?.unwrap_or_default();
        self.race(&addrs, new_endpoint).await
    }

    async fn addresses(&self, worker: WorkerId) -> Result<Option<Vec<SocketAddr>>, WireError> {
        let Some(ring) = self.ring() else { return Ok(None) };
        let Some(node) = ring.node(worker.node) else { return Ok(None) };
        let gone = || {
            let WorkerId { node, worker } = worker;
            WireError::Ended(format!("node {node} has no worker {worker} any more"))
        };
        let Some((host, port)) = node.address(worker.worker) else {
            return Err(gone());
        };
        if host.is_empty() {
            let Some(found) = self.found_at.get(&worker.node).map(|at| *at.value()) else {
                return Ok(None);
            };
            // Its ports may be published under other numbers, one by one or all in a row.
            let published = found.port().saturating_add(worker.worker);
            let mut addrs = vec![SocketAddr::new(found.ip(), published)];
            if port != published {
                addrs.push(SocketAddr::new(found.ip(), port));
            }
            return Ok(Some(addrs));
        }
        let Some(host) = Host::of_ring(host) else { return Err(gone()) };
        let seed = Seed { host, port };
        Ok(Some(resolve(&seed).await?))
    }

    /// Tries the addresses in order, the next one as soon as one has failed or kept silent for a
    /// while; the first that answers wins.
    async fn race(
        &self,
        addrs: &[SocketAddr],
        endpoint: impl Fn(SocketAddr) -> Result<Endpoint, WireError>,
    ) -> Result<Wire, WireError> {
        type Attempt<'a> = Pin<Box<dyn Future<Output = Result<Wire, WireError>> + Send + 'a>>;
        let mut attempts: Vec<Attempt<'_>> = Vec::new();
        let mut left = addrs.iter().copied();
        let mut first = None;
        loop {
            if let Some(addr) = left.next() {
                let (made, config) = (endpoint(addr), self.config.clone());
                attempts.push(Box::pin(async move { Wire::connect(&made?, config, addr).await }));
            } else if attempts.is_empty() {
                let none = || WireError::Ended("no address to connect to".to_owned());
                return Err(first.unwrap_or_else(none));
            }
            let more = left.len() > 0;
            let stagger = tokio::time::sleep(STAGGER);
            tokio::pin!(stagger);
            let ended = poll_fn(|cx| {
                for at in 0..attempts.len() {
                    if let Poll::Ready(ended) = attempts[at].as_mut().poll(cx) {
                        drop(attempts.swap_remove(at));
                        return Poll::Ready(Some(ended));
                    }
                }
                if more && stagger.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
                Poll::Pending
            })
            .await;
            match ended {
                Some(Ok(wire)) => return Ok(wire),
                // The first address is the one that was meant most.
                Some(Err(error)) => first = first.or(Some(error)),
                None => {}
            }
        }
    }

    fn endpoint(&self, addr: SocketAddr) -> Result<Endpoint, WireError> {
        let family = addr.is_ipv6();
        if let Some(endpoint) = self.endpoints.get(&family) {
            return Ok(endpoint.clone());
        }
        let made = new_endpoint(addr)?;
        Ok(self.endpoints.entry(family).or_insert(made).clone())
    }
}

fn new_endpoint(addr: SocketAddr) -> Result<Endpoint, WireError> {
    tls::client_endpoint(addr).map_err(|error| WireError::Connect { addr, why: error.to_string() })
}

async fn resolve(seed: &Seed) -> Result<Vec<SocketAddr>, WireError> {
    match &seed.host {
        Host::Ip(ip) => Ok(vec![SocketAddr::new(*ip, seed.port)]),
        Host::Name(name) => {
            let found = tokio::net::lookup_host((name.as_str(), seed.port)).await;
            let found = found.map_err(|error| WireError::Ended(format!("{name}: {error}")))?;
            Ok(found.collect())
        }
    }
}
