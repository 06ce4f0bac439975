//! How workers are reached: seeds, the ring, endpoints and connection attempts. Shared by all
//! sessions of a client.

use crate::router::{Ring, Route, WorkerId};
use crate::target::{Host, Seed};
use crate::tls;
use crate::wire::{Wire, WireError};
use dashmap::DashMap;
use lockring_ring::NamespaceSeed;
use quinn::{ClientConfig, Endpoint};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};

/// The way to a cluster.
pub(crate) struct Pool {
    seeds: Vec<Seed>,
    config: ClientConfig,
    ring: RwLock<Option<Arc<Ring>>>,
    /// One endpoint per address family, made when first needed.
    endpoints: DashMap<bool, Endpoint>,
    /// Where a node was found whose ring entry names no host.
    found_at: DashMap<u32, IpAddr>,
}

impl Pool {
    pub(crate) fn new(seeds: Vec<Seed>, config: ClientConfig) -> Self {
        let ring = RwLock::new(None);
        Self { seeds, config, ring, endpoints: DashMap::new(), found_at: DashMap::new() }
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

    /// Keeps the newer ring.
    pub(crate) fn learn(&self, ring: Ring) {
        let mut known = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_none_or(|known| known.version() < ring.version()) {
            *known = Some(Arc::new(ring));
        }
    }

    /// Remembers the address by which a node was reached.
    pub(crate) fn found(&self, node: u32, at: IpAddr) {
        self.found_at.insert(node, at);
    }

    /// Connects to whichever seed answers first in order.
    pub(crate) async fn connect_seed(&self) -> Result<Wire, WireError> {
        let mut last = None;
        for seed in &self.seeds {
            match resolve(seed).await {
                Ok(addrs) => {
                    for addr in addrs {
                        match self.connect_to(addr).await {
                            Ok(wire) => return Ok(wire),
                            Err(error) => last = Some(error),
                        }
                    }
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| WireError::Ended("no address to connect to".to_owned())))
    }

    /// Connects to a worker of the ring; by the seeds while no ring is known.
    pub(crate) async fn connect(&self, worker: WorkerId) -> Result<Wire, WireError> {
        let Some(addr) = self.address(worker).await? else { return self.connect_seed().await };
        self.connect_to(addr).await
    }

    async fn address(&self, worker: WorkerId) -> Result<Option<SocketAddr>, WireError> {
        let Some(ring) = self.ring() else { return Ok(None) };
        let Some(node) = ring.node(worker.node) else { return Ok(None) };
        let port = node.port.saturating_add(worker.worker);
        if node.host.is_empty() {
            let found = self.found_at.get(&worker.node).map(|at| *at.value());
            return Ok(found.map(|ip| SocketAddr::new(ip, port)));
        }
        let seed = Seed { host: Host::from_text(&node.host), port };
        Ok(resolve(&seed).await?.first().copied())
    }

    async fn connect_to(&self, addr: SocketAddr) -> Result<Wire, WireError> {
        let endpoint = self.endpoint(addr)?;
        Wire::connect(&endpoint, self.config.clone(), addr).await
    }

    fn endpoint(&self, addr: SocketAddr) -> Result<Endpoint, WireError> {
        let family = addr.is_ipv6();
        if let Some(endpoint) = self.endpoints.get(&family) {
            return Ok(endpoint.clone());
        }
        let made = tls::client_endpoint(addr)
            .map_err(|error| WireError::Connect { addr, why: error.to_string() })?;
        Ok(self.endpoints.entry(family).or_insert(made).clone())
    }
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
