//! How workers are reached: seeds, the ring, endpoints and connection attempts. Shared by all
//! sessions of a client.

use crate::cause::{Cause, Trouble};
use crate::dial::{self, Attempt, Reached};
use crate::driver::Command;
use crate::resolve::Resolver;
use crate::router::{Ring, Route, WorkerId};
use crate::target::{Host, Seed};
use crate::tls::{self, Bundle};
use crate::wire::{Wire, WireError};
use dashmap::DashMap;
use lockring_ring::{NamespaceSeed, NodeId};
use quinn::{ClientConfig, Endpoint};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// Where the ring has the first worker of a node, and it has not answered by then, it is looked for
/// by the seeds as well.
const MOVED_AFTER: Duration = Duration::from_secs(3);

/// The way to a cluster.
pub(crate) struct Pool {
    /// As the user gave them: names stay names, to be resolved for each contact.
    seeds: Vec<Seed>,
    bundle: Bundle,
    config: ClientConfig,
    resolver: Resolver,
    ring: RwLock<Option<Arc<Ring>>>,
    /// Links that want to know of a newer ring.
    links: Mutex<Vec<mpsc::WeakUnboundedSender<Command>>>,
    /// One endpoint per address family, made when first needed.
    endpoints: DashMap<bool, Endpoint>,
    /// By which seed a node was found, with the port of worker 0: for nodes whose ring entry names
    /// no host.
    found_at: DashMap<NodeId, Seed>,
    /// Counts what was learnt of where workers are.
    learnt: watch::Sender<u64>,
}

impl Pool {
    pub(crate) fn new(seeds: Vec<Seed>, bundle: Bundle, resolver: Resolver) -> Self {
        Self {
            seeds,
            config: tls::client_config(&bundle),
            bundle,
            resolver,
            ring: RwLock::new(None),
            links: Mutex::default(),
            endpoints: DashMap::new(),
            found_at: DashMap::new(),
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

    /// Keeps the newer ring, and tells every link.
    pub(crate) fn learn(&self, ring: Ring) {
        {
            let mut known = self.ring.write().unwrap_or_else(PoisonError::into_inner);
            if known.as_ref().is_some_and(|known| known.version() >= ring.version()) {
                return;
            }
            *known = Some(Arc::new(ring));
        }
        self.learnt.send_modify(|count| *count += 1);
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|link| link.upgrade().is_some_and(|link| link.send(Command::NewRing).is_ok()));
    }

    /// From now on this link is told of newer rings.
    pub(crate) fn tell(&self, link: &mpsc::UnboundedSender<Command>) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|link| link.upgrade().is_some());
        links.push(link.downgrade());
    }

    /// Remembers by which seed a worker was reached.
    pub(crate) fn found(&self, worker: WorkerId, reached: &Reached<Wire>) {
        let seed = &self.seeds[reached.target];
        let port = seed.port.saturating_sub(worker.worker);
        self.found_at.insert(worker.node, Seed { port, ..seed.clone() });
        self.learnt.send_modify(|count| *count += 1);
    }

    /// Connects to whichever address of a seed answers first.
    pub(crate) async fn connect_seed(&self) -> Result<Reached<Wire>, WireError> {
        self.dial(&self.seeds, |addr| self.endpoint(addr)).await
    }

    /// Connects to a worker of the ring; by the seeds while no ring is known.
    ///
    /// The whole node may have moved and the ring be old: its first worker is then looked for by
    /// the names that the user gave too, and has the newer ring. With that the others are looked
    /// for where they are now, though the attempts at where they were have not ended.
    pub(crate) async fn connect(&self, worker: WorkerId) -> Result<Wire, WireError> {
        loop {
            let learnt = self.learnt.subscribe();
            let targets = self.targets(worker)?;
            tokio::select! {
                connected = self.connect_to(worker, targets.as_deref()) => return connected,
                () = self.are_others(worker, targets.as_deref(), learnt) => {}
            }
        }
    }

    /// Ends when something was learnt by which a worker is not where it was looked for.
    async fn are_others(
        &self,
        worker: WorkerId,
        targets: Option<&[Seed]>,
        mut learnt: watch::Receiver<u64>,
    ) {
        // The sender is this pool's.
        while learnt.changed().await.is_ok() {
            if self.targets(worker).is_ok_and(|now| now.as_deref() == targets) {
                continue;
            }
            return;
        }
    }

    async fn connect_to(
        &self,
        worker: WorkerId,
        targets: Option<&[Seed]>,
    ) -> Result<Wire, WireError> {
        let Some(targets) = targets else {
            return self.connect_seed().await.map(|reached| reached.by);
        };
        let there = self.dial(targets, |addr| self.endpoint(addr));
        if worker.worker != 0 || targets == self.seeds {
            return there.await.map(|reached| reached.by);
        }
        let mut there = pin!(there);
        let mut failed = match timeout(MOVED_AFTER, &mut there).await {
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
        let targets = self.targets(worker)?.unwrap_or_default();
        self.dial(&targets, new_endpoint).await.map(|reached| reached.by)
    }

    /// What keeps contact from standing, as callers are told of it.
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

    /// Where a worker may be, as names that are resolved for each contact. `None`: nobody has told.
    fn targets(&self, worker: WorkerId) -> Result<Option<Vec<Seed>>, WireError> {
        let Some(ring) = self.ring() else { return Ok(None) };
        let Some(node) = ring.node(worker.node) else { return Ok(None) };
        let gone = || {
            let WorkerId { node: NodeId(node), worker } = worker;
            WireError::Ended(format!("node {node} has no worker {worker} any more"))
        };
        let (host, port) = node.address(worker.worker).ok_or_else(gone)?;
        if !host.is_empty() {
            let host = Host::of_ring(host).ok_or_else(gone)?;
            return Ok(Some(vec![Seed { host, port }]));
        }
        let Some(found) = self.found_at.get(&worker.node).map(|at| at.value().clone()) else {
            return Ok(None);
        };
        // Its ports may be published under other numbers, one by one or all in a row.
        let published = found.port.saturating_add(worker.worker);
        let mut targets = vec![Seed { port: published, ..found.clone() }];
        if port != published {
            targets.push(Seed { port, ..found });
        }
        Ok(Some(targets))
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
