//! What a machine is made with.

use crate::amounts::Amounts;
use lockring_proto::Time;
use lockring_ring::{CellBits, CellId, Epoch, RingVersion};
use std::collections::BTreeSet;
use std::time::Duration;

/// What a machine is made with; fixed for its life.
#[derive(Clone)]
pub struct Config {
    /// log2 of the number of cells.
    pub cell_bits: CellBits,
    /// Which worker of the node this is.
    pub worker: u16,
    /// How many workers the node has, a power of two.
    pub workers: u16,
    /// The node.
    pub node: u32,
    /// Its process life.
    pub boot: u64,
    /// Cells that other nodes serve.
    pub others: BTreeSet<CellId>,
    /// The epoch of every cell at the start.
    pub epoch: Epoch,
    /// The ring version at the start.
    pub ring_version: RingVersion,
    /// The longest TTL that is durable.
    pub longest_ttl: Duration,
    /// When leases of an earlier life have surely ended; `None` if there are none.
    pub opens_at: Option<Time>,
    /// Random numbers that only the cluster's nodes know, and all of these: with them nobody can
    /// choose keys so that others' are harder to find, and copies find keys by their owner's tags.
    pub tag_secret: [u64; 4],
    /// Whose lease that is, for people; empty if nobody's in particular.
    pub grace_for: String,
    /// Bounds.
    pub limits: Limits,
}

/// What one client, or all of them, may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Links at one worker.
    pub links: u32,
    /// Holds of one link.
    pub holds_per_link: u64,
    /// Waiters of one link.
    pub waiters_per_link: u32,
    /// Waiters of one key.
    pub waiters_per_key: u32,
    /// Bytes of one link's state.
    pub bytes_per_link: u64,
    /// What the sessions of one identity may have together.
    pub identity: Amounts,
    /// What the sessions of one namespace may have together.
    pub namespace: Amounts,
    /// Namespaces with sessions at one worker.
    pub namespaces: u16,
    /// Holds and waiters that are freed, or granted from one queue, in one go before live clients
    /// are served again.
    pub expiry_slice: u32,
    /// What the requests of one connection may cost in one turn, in units of about an acquire.
    /// Between a request's coming in and its answer's going out others have a few turns, so that
    /// several of these are what a busy neighbour costs.
    pub turn_price: u32,
}

impl Limits {
    /// What one session may have.
    pub(crate) fn session(&self) -> Amounts {
        Amounts {
            sessions: 1,
            holds: self.holds_per_link,
            waiters: u64::from(self.waiters_per_link),
            bytes: self.bytes_per_link,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            links: 1 << 20,
            holds_per_link: 1 << 26,
            waiters_per_link: 1 << 20,
            waiters_per_key: 1 << 20,
            bytes_per_link: 8 << 30,
            identity: Amounts {
                sessions: 1 << 18,
                holds: 1 << 27,
                waiters: 1 << 22,
                bytes: 16 << 30,
            },
            namespace: Amounts {
                sessions: 1 << 19,
                holds: 1 << 28,
                waiters: 1 << 23,
                bytes: 32 << 30,
            },
            namespaces: 4096,
            expiry_slice: 256,
            turn_price: 256,
        }
    }
}
