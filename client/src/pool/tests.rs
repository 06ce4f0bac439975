//! Links to workers, over QUIC, while names lead here and there.

#[path = "../../tests/fake/mod.rs"]
mod fake;

use super::*;
use lockring_proto::{NodeAddress, NodeInfo};
use lockring_ring::{BootId, CellBits, Epoch, NodeId, RingTable, RingVersion};
use quinn::ServerConfig;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

/// Addresses of this machine, as of different ones.
const HERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

const NODE: NodeId = NodeId(1);

/// A cluster's certificates: what its nodes listen with, and what a client trusts.
struct Cluster {
    server: ServerConfig,
    bundle: Bundle,
}

impl Cluster {
    fn new() -> Self {
        let (server, bundle) = fake::cluster();
        Self { server, bundle: Bundle::parse(bundle.as_bytes()).unwrap() }
    }

    /// Two workers at ports in a row.
    fn node(&self, at: Ipv4Addr, port: u16) -> [Endpoint; 2] {
        [port, port + 1].map(|port| {
            let endpoint = Endpoint::server(self.server.clone(), (at, port).into()).unwrap();
            let accepting = endpoint.clone();
            tokio::spawn(async move {
                let mut connections = Vec::new();
                while let Some(incoming) = accepting.accept().await {
                    connections.push(incoming.await);
                }
            });
            endpoint
        })
    }

    /// A client's way to `node.test`, which leads to wherever the switch says.
    fn pool(&self, port: u16) -> (Pool, Arc<Mutex<Vec<Ipv4Addr>>>) {
        let leads_to = Arc::new(Mutex::new(vec![HERE]));
        let asked = Arc::clone(&leads_to);
        let resolver = Resolver::new(move |name| match name {
            "node.test" => Ok(asked.lock().unwrap().iter().copied().map(IpAddr::V4).collect()),
            _ => Err("no such name".to_owned()),
        });
        let seeds = vec![Seed { host: Host::Name("node.test".to_owned()), port }];
        (Pool::new(seeds, self.bundle.clone(), resolver), leads_to)
    }
}

/// A port with another free one above it, on every address used here.
fn free_port() -> u16 {
    loop {
        let first = UdpSocket::bind((HERE, 0)).unwrap().local_addr().unwrap().port();
        let all = [(HERE, 0), (HERE, 1), (THERE, 0), (THERE, 1)];
        let bound = all.map(|(at, above)| UdpSocket::bind((at, first.saturating_add(above))));
        if bound.iter().all(Result::is_ok) {
            return first;
        }
    }
}

fn ring(version: u64, host: &str, port: u16) -> Arc<Ring> {
    let addresses = vec![NodeAddress { host: host.to_owned(), port }];
    let node = NodeInfo { id: NODE, addresses, workers: 2, boot: BootId(1) };
    let bits = CellBits::new(1).unwrap();
    let table = RingTable::founded(RingVersion(version), bits, node, Epoch(1)).unwrap();
    Arc::new(Ring::new(table).unwrap())
}

fn worker(worker: u16) -> WorkerId {
    WorkerId { node: NODE, worker }
}

/// The first contact, and what a session learns by it.
async fn meet(pool: &Pool, ring: Arc<Ring>) {
    let reached = pool.connect_seed().await.unwrap();
    pool.learn(ring);
    pool.found(worker(0), &reached);
}

/// Where both workers are reached, each well before a silent address would be given up.
async fn both(pool: &Pool) -> [IpAddr; 2] {
    let begun = Instant::now();
    let (zero, one) = tokio::join!(pool.connect(worker(0)), pool.connect(worker(1)));
    let taken = begun.elapsed();
    assert!(taken < Duration::from_secs(5), "an address was waited for alone: {taken:?}");
    [zero.unwrap(), one.unwrap()].map(|wire| wire.remote().ip())
}

#[tokio::test]
async fn a_silent_address_costs_no_worker_s_link_its_wait() {
    let (cluster, port) = (Cluster::new(), free_port());
    let _node = cluster.node(THERE, port);
    let _silent = [port, port + 1].map(|port| UdpSocket::bind((HERE, port)).unwrap());
    for advertised in ["node.test", ""] {
        let (pool, leads_to) = cluster.pool(port);
        *leads_to.lock().unwrap() = vec![HERE, THERE];
        meet(&pool, ring(1, advertised, port)).await;
        // As a link of a session that was met at the other.
        pool.resolver.answers("node.test", IpAddr::V4(HERE));
        assert_eq!(both(&pool).await, [IpAddr::V4(THERE); 2], "{advertised:?}");
    }
}

/// As a pod that was started elsewhere, or a standby that has taken over: by what the ring names,
/// and by the name that the user gave where it names nothing.
#[tokio::test]
async fn a_node_that_moved_is_found_by_its_name() {
    let cluster = Cluster::new();
    for advertised in ["node.test", ""] {
        let port = free_port();
        let (pool, leads_to) = cluster.pool(port);
        let old = cluster.node(HERE, port);
        meet(&pool, ring(1, advertised, port)).await;
        assert_eq!(both(&pool).await, [IpAddr::V4(HERE); 2]);
        for endpoint in old {
            // As it is while its address leads nowhere: nothing says that it has gone.
            endpoint.close(0_u32.into(), b"");
            endpoint.wait_idle().await;
        }
        let _new = cluster.node(THERE, port);
        *leads_to.lock().unwrap() = vec![THERE];
        assert_eq!(both(&pool).await, [IpAddr::V4(THERE); 2], "{advertised:?}");
    }
}

/// The ring has an address where nobody is any more: who has moved has the newer ring.
#[tokio::test]
async fn a_node_that_the_ring_has_elsewhere_is_looked_for_by_the_seeds() {
    let (cluster, port) = (Cluster::new(), free_port());
    let (pool, _) = cluster.pool(port);
    let _node = cluster.node(HERE, port);
    meet(&pool, ring(1, "127.0.0.3", port)).await;
    for silent in [true, false] {
        let _silent = silent.then(|| UdpSocket::bind((THERE, port)).unwrap());
        let reached = pool.connect(worker(0)).await.unwrap();
        assert_eq!(reached.remote().ip(), IpAddr::V4(HERE));
    }
    // By the seeds only the first worker can be meant.
    assert!(pool.connect(worker(1)).await.is_err());
    pool.learn(ring(2, "127.0.0.1", port));
    assert_eq!(both(&pool).await, [IpAddr::V4(HERE); 2]);
}

/// One of its workers has brought the newer ring while the others still wait where the node was.
#[tokio::test]
async fn a_newer_ring_ends_the_wait_where_a_worker_was() {
    let (cluster, port) = (Cluster::new(), free_port());
    let _node = cluster.node(HERE, port);
    let _silent = [port, port + 1].map(|port| UdpSocket::bind((THERE, port)).unwrap());
    let (named, found) = (ring(1, "127.0.0.3", port), ring(1, "", port));
    for before in [named, found] {
        let (pool, leads_to) = cluster.pool(port);
        meet(&pool, before).await;
        *leads_to.lock().unwrap() = vec![THERE];
        let begun = Instant::now();
        let learn = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            pool.learn(ring(2, "127.0.0.1", port));
        };
        let (reached, ()) = tokio::join!(pool.connect(worker(1)), learn);
        assert_eq!(reached.unwrap().remote().ip(), IpAddr::V4(HERE));
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
}
