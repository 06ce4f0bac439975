//! How a node is to run.

use crate::advertise::Advertised;
use crate::gate::HandshakeLimits;
use crate::memory::MemoryLimit;
use crate::ttl::TtlMax;
use lockring_core::Limits;
use lockring_ring::CellBits;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Where a node keeps its certificates and its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// In this directory; made if missing.
    Directory(PathBuf),
    /// In memory, gone with the process. All that is written is the identity of its first client.
    Memory {
        /// The file for that identity.
        client: PathBuf,
    },
}

/// How a node is to run.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Where certificates and state are kept.
    pub data: Data,
    /// Address of worker 0; worker i listens i ports above. Port 0: any free ones.
    pub listen: SocketAddr,
    /// Where clients are told to connect: one address, from whose port those of all workers are
    /// counted up, or one for each worker. Empty: to the address they came by.
    pub advertise: Vec<Advertised>,
    /// Number of workers, a power of two.
    pub workers: u16,
    /// log2 of the number of cells; fixed when the cluster is made.
    pub cell_bits: CellBits,
    /// Where the read-only admin HTTP listens; `None`: nowhere. Port 0: any free one.
    pub admin: Option<SocketAddr>,
    /// Names that admin HTTP answers to, beside its addresses and `localhost`.
    pub admin_hosts: Vec<String>,
    /// How long a stopping node waits for its locks to be given back.
    pub drain: Duration,
    /// The highest TTL of a session, by its namespace.
    pub ttl_max: TtlMax,
    /// How many handshakes each worker takes on.
    pub handshakes: HandshakeLimits,
    /// What one client, or all of them, may use at each worker.
    pub limits: Limits,
    /// How much memory it may use.
    pub memory: MemoryLimit,
}

impl NodeConfig {
    /// One worker on any port of the loopback, without admin HTTP, and defaults.
    pub fn new(data: Data) -> Self {
        Self {
            data,
            listen: ([127, 0, 0, 1], 0).into(),
            advertise: Vec::new(),
            workers: 1,
            cell_bits: CellBits::DEFAULT,
            admin: None,
            admin_hosts: Vec::new(),
            drain: Duration::from_secs(10),
            ttl_max: TtlMax::default(),
            handshakes: HandshakeLimits::default(),
            limits: Limits::default(),
            memory: MemoryLimit::Auto,
        }
    }
}
