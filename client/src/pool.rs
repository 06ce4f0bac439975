//! How workers are reached: seeds, the ring, endpoints and connection attempts. Shared by all
//! sessions of a client.

use crate::cause::{Cause, Trouble};
use crate::dial::{self, Attempt, Reached};
use crate::resolve::Resolver;
use crate::router::{Ring, Route, WorkerId};
use crate::session::{NoSuchWorker, Places, Search};
use crate::target::{Host, Seed};
use crate::tls::{self, Bundle};
use crate::wire::{Wire, WireError};
use dashmap::DashMap;
use lockring_ring::NamespaceSeed;
use quinn::{ClientConfig, Endpoint};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use tokio::sync::watch;
use tokio::time::timeout;

/// Somebody who wants to know of a newer ring.
pub(crate) trait Listener: Send + Sync {
    /// Whether it still does.
    fn is_there(&self) -> bool;
    /// There is one.
    fn hears_of_ring(&self);
}

/// The way to a cluster.
pub(crate) struct Pool {
    places: RwLock<Places>,
    bundle: Bundle,
    config: ClientConfig,
    resolver: Resolver,
    ring: RwLock<Option<Arc<Ring>>>,
    listeners: Mutex<Vec<Box<dyn Listener>>>,
    /// One endpoint per address family, made when first needed.
    endpoints: DashMap<bool, Endpoint>,
    /// Counts what was learnt of where workers are.
    learnt: watch::Sender<u64>,
}

impl Pool {
    pub(crate) fn new(seeds: Vec<Seed>, bundle: Bundle, resolver: Resolver) -> Self {
        Self {
            places: RwLock::new(Places::new(seeds)),
            config: tls::client_config(&bundle),
            bundle,
            resolver,
            ring: RwLock::new(None),
            listeners: Mutex::default(),
            endpoints: DashMap::new(),
            learnt: watch::Sender::new(0),
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

    /// Keeps the newer ring, and tells whoever listens.
    pub(crate) fn learn(&self, ring: Arc<Ring>) {
        {
            let mut known = self.ring.write().unwrap_or_else(PoisonError::into_inner);
            if known.as_ref().is_some_and(|known| known.version() >= ring.version()) {
                return;
            }
            *known = Some(ring);
        }
        self.learnt.send_modify(|count| *count += 1);
        for listener in self.listeners().iter() {
            listener.hears_of_ring();
        }
    }

    /// From now on this one is told of newer rings, for as long as it is there.
    pub(crate) fn tell(&self, listener: Box<dyn Listener>) {
        self.listeners().push(listener);
    }

    /// Those who are there.
    fn listeners(&self) -> MutexGuard<'_, Vec<Box<dyn Listener>>> {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|listener| listener.is_there());
        listeners
    }

    fn places(&self) -> RwLockReadGuard<'_, Places> {
        // A panic elsewhere cannot have left a map of them half changed.
        self.places.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a worker is looked for.
    fn search(&self, worker: WorkerId) -> Result<Search, WireError> {
        self.places().of(self.ring().as_deref(), worker).map_err(|NoSuchWorker| {
            let WorkerId { node, worker } = worker;
            WireError::Ended(format!("node {node} has no worker {worker} any more"))
        })
    }

    /// Remembers by which seed a worker was reached.
    pub(crate) fn found(&self, worker: WorkerId, reached: &Reached<Wire>) {
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        places.found(worker, reached.target);
        drop(places);
        self.learnt.send_modify(|count| *count += 1);
    }

    /// Connects to whichever address of a seed answers first.
    pub(crate) async fn connect_seed(&self) -> Result<Reached<Wire>, WireError> {
        let seeds = self.places().seeds().to_vec();
        self.dial(&seeds, |addr| self.endpoint(addr)).await
    }

    /// Connects to a worker of the ring; by the seeds while no ring is known. With a newer ring it
    /// is looked for where it is now, though the attempts at where it was have not ended.
    pub(crate) async fn connect(&self, worker: WorkerId) -> Result<Wire, WireError> {
        loop {
            let learnt = self.learnt.subscribe();
            let search = self.search(worker)?;
            tokio::select! {
                connected = self.connect_by(worker, &search) => return connected,
                () = self.is_elsewhere(worker, &search, learnt) => {}
            }
        }
    }

    /// Ends when something was learnt by which a worker is not where it was looked for.
    async fn is_elsewhere(
        &self,
        worker: WorkerId,
        search: &Search,
        mut learnt: watch::Receiver<u64>,
    ) {
        // The sender is this pool's.
        while learnt.changed().await.is_ok() {
            if self.search(worker).is_ok_and(|now| now == *search) {
                continue;
            }
            return;
        }
    }

    async fn connect_by(&self, worker: WorkerId, search: &Search) -> Result<Wire, WireError> {
        let there = self.dial(&search.there, |addr| self.endpoint(addr));
        let Some(patience) = search.else_by_seeds else {
            return there.await.map(|reached| reached.by);
        };
        let mut there = pin!(there);
        let mut failed = match timeout(patience, &mut there).await {
            Ok(Ok(reached)) => return Ok(reached.by),
            Ok(Err(error)) => Some(error),
            Err(_) => None,
        };
        let mut elsewhere = pin!(self.connect_seed());
        let mut is_elsewhere = true;
        loop {
            tokio::select! {
                reached = &mut there, if failed.is_none() => match reached {
                    Ok(reached) => return Ok(reached.by),
                    Err(error) => failed = Some(error),
                },
                reached = &mut elsewhere, if is_elsewhere => match reached {
                    Ok(reached) => {
                        self.found(worker, &reached);
                        return Ok(reached.by);
                    }
                    Err(_) => is_elsewhere = false,
                },
                // Where it was meant to be counts.
                else => return Err(failed.expect("both have failed")),
            }
        }
    }

    /// Connects to a worker on an endpoint of its own: those of the pool belong to a runtime that
    /// may be gone.
    pub(crate) async fn connect_anew(&self, worker: WorkerId) -> Result<Wire, WireError> {
        let search = self.search(worker)?;
        self.dial(&search.there, new_endpoint).await.map(|reached| reached.by)
    }

    /// What prevents contact, as callers are told of it.
    pub(crate) fn trouble(&self, error: &WireError) -> Trouble {
        let Some(cause) = error.cause() else { return Trouble::passing(error.to_string()) };
        let mut message = error.to_string();
        if *cause == Cause::OursOutOfDate
            && let Some(age) = self.bundle.age()
        {
            message = format!("{message}; {age}");
        }
        Trouble { kind: cause.kind(), message }
    }

    async fn dial(
        &self,
        targets: &[Seed],
        endpoint: impl Fn(SocketAddr) -> Result<Endpoint, WireError>,
    ) -> Result<Reached<Wire>, WireError> {
        let attempt = |addr| -> Attempt<Wire> {
            let (endpoint, config) = (endpoint(addr), self.config.clone());
            Box::pin(async move {
                let endpoint = endpoint?;
                tokio::select! {
                    connected = Wire::connect(&endpoint, config, addr) => connected,
                    cause = dial::unreachable(addr) => Err(WireError::connect(&addr, cause)),
                }
            })
        };
        let reached = dial::dial(&self.resolver, targets, attempt).await?;
        if let Host::Name(name) = &targets[reached.target].host {
            self.resolver.answers(name, reached.by.remote().ip());
        }
        Ok(reached)
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
    let failed = |error: std::io::Error| WireError::connect(&addr, Cause::Other(error.to_string()));
    tls::client_endpoint(addr).map_err(failed)
}

#[cfg(test)]
mod tests;
