//! What is seen of locks, nodes and routes. These types are the client's own: what nodes tell may
//! grow without breaking whoever reads them.
//!
//! ```no_run
//! use lockring_client::admin::{
//!     Address, Cursor, Holder, Inspection, Listed, LockMode, Node, Page, Ring, Route, Waiter,
//!     Worker,
//! };
//!
//! fn holds(Holder { fence, mode, held_for, lease_left, .. }: &Holder) -> String {
//!     let how = match mode {
//!         LockMode::Exclusive => "alone".to_owned(),
//!         LockMode::Permits { permits, capacity, .. } => format!("{permits} of {capacity}"),
//!         other => other.to_string(),
//!     };
//!     format!("{how} for {held_for:?} under fence {fence}, {lease_left:?} left")
//! }
//!
//! fn waits(Waiter { mode, waited_for, .. }: &Waiter) -> String {
//!     format!("waits for {mode} since {waited_for:?}")
//! }
//!
//! fn address(Address { host, port, .. }: &Address) -> String {
//!     format!("{host:?} port {port}")
//! }
//!
//! # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
//! let admin = client.admin();
//! let Inspection { holders, waiters, .. } = admin.inspect("orders/42").await?;
//! let seen: Vec<String> = holders.iter().map(holds).chain(waiters.iter().map(waits)).collect();
//!
//! let Route { worker: Worker { node, worker }, .. } = admin.route("orders/42")?;
//! println!("worker {worker} of node {node}: {seen:?}");
//!
//! if let Some(ring) = admin.ring() {
//!     for worker in Ring::workers(&ring) {
//!         let Page { locks, .. } = admin.list(worker, b"orders/", Cursor::default(), 10).await?;
//!         for Listed { key, holder_count, .. } in locks {
//!             println!("{}: {holder_count} holders", key.escape_ascii());
//!         }
//!     }
//!     for Node { id, addresses, .. } in &ring.nodes {
//!         println!("node {id} at {:?}", addresses.iter().map(address).collect::<Vec<_>>());
//!     }
//! }
//! # Ok(()) }
//! ```

use lockring_proto as proto;
use std::fmt;
use std::time::Duration;

/// How a lock is held or wanted. Shown as a letter, or as permits of the capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LockMode {
    /// Alone.
    Exclusive,
    /// Together with other shared holders.
    Shared,
    /// Some of a semaphore.
    #[non_exhaustive]
    Permits {
        /// How many.
        permits: u32,
        /// Of so many.
        capacity: u32,
    },
}

impl LockMode {
    pub(super) fn of(claim: proto::Claim) -> Self {
        match claim {
            proto::Claim::Mode(proto::Mode::Exclusive) => Self::Exclusive,
            proto::Claim::Mode(proto::Mode::Shared) => Self::Shared,
            proto::Claim::Permits { permits, capacity } => Self::Permits { permits, capacity },
        }
    }
}

impl fmt::Display for LockMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exclusive => write!(f, "{}", proto::Mode::Exclusive.letter()),
            Self::Shared => write!(f, "{}", proto::Mode::Shared.letter()),
            Self::Permits { permits, capacity } => write!(f, "{permits}/{capacity}"),
        }
    }
}

/// One holder of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// Its fence.
    pub fence: u64,
    /// How it holds the key.
    pub mode: LockMode,
    /// For how long it has; whole seconds for the common exclusive hold.
    pub held_for: Duration,
    /// What is left of its lease.
    pub lease_left: Duration,
    /// What its session calls itself: a peer's text, to be shown with care.
    pub label: String,
}

impl Holder {
    pub(super) fn of(seen: proto::Holder) -> Self {
        Self {
            fence: seen.fence.0,
            mode: LockMode::of(seen.claim),
            held_for: Duration::from_millis(seen.held_ms),
            lease_left: Duration::from_millis(seen.lease_left_ms),
            label: seen.label,
        }
    }
}

/// One claim that is queued.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Waiter {
    /// What it waits for.
    pub mode: LockMode,
    /// For how long it has.
    pub waited_for: Duration,
    /// What its session calls itself: a peer's text, to be shown with care.
    pub label: String,
}

impl Waiter {
    pub(super) fn of(seen: proto::WaiterInfo) -> Self {
        let waited_for = Duration::from_millis(seen.waited_ms);
        Self { mode: LockMode::of(seen.claim), waited_for, label: seen.label }
    }
}

/// What was seen of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inspection {
    /// The version of the node's ring.
    pub ring_version: u64,
    /// The node that owns the key's cell.
    pub node: u32,
    /// The key's cell.
    pub cell: u16,
    /// The cell's epoch.
    pub epoch: u32,
    /// Holders, at most 16 of them.
    pub holders: Vec<Holder>,
    /// Number of holders in all.
    pub holder_count: u32,
    /// The head of the queue, at most 16.
    pub waiters: Vec<Waiter>,
    /// Number of waiters in all.
    pub waiter_count: u32,
    /// Capacity, if it is a semaphore in use.
    pub capacity: Option<u32>,
    /// How long until the node grants at all, after a restart.
    pub grace_left: Duration,
    /// Whose session of an earlier life it waits for, for people; empty if for nobody's in
    /// particular, or if whoever asks may not know. A peer's text, to be shown with care.
    pub grace_for: String,
}

impl Inspection {
    pub(super) fn of(seen: proto::Inspection) -> Self {
        Self {
            ring_version: seen.version,
            node: seen.node,
            cell: seen.cell,
            epoch: seen.epoch,
            holders: seen.holders.into_iter().map(Holder::of).collect(),
            holder_count: seen.holder_count,
            waiters: seen.waiters.into_iter().map(Waiter::of).collect(),
            waiter_count: seen.waiter_count,
            capacity: seen.capacity,
            grace_left: Duration::from_millis(seen.grace_left_ms),
            grace_for: seen.grace_for,
        }
    }
}

/// A lock in a page of them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listed {
    /// The key.
    pub key: Vec<u8>,
    /// One holder (of several, the one with the highest fence); none while a key is only waited
    /// for.
    pub holder: Option<Holder>,
    /// Number of holders.
    pub holder_count: u32,
    /// Number of waiters.
    pub waiter_count: u32,
}

/// Where a page of locks begins: the first by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor(pub(super) proto::ListCursor);

/// A page of locks, in no order. A key that is in use during the whole listing is in one page.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page {
    /// The locks; a page may be empty and yet not the last.
    pub locks: Vec<Listed>,
    /// Where the next page begins; none after the last.
    pub next: Option<Cursor>,
}

impl Page {
    pub(super) fn of(seen: proto::Listing) -> Self {
        let listed = |row: proto::ListedLock| Listed {
            key: row.key,
            holder: row.holder.map(Holder::of),
            holder_count: row.holders,
            waiter_count: row.waiters,
        };
        Self { locks: seen.rows.into_iter().map(listed).collect(), next: seen.next.map(Cursor) }
    }
}

/// One worker of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Worker {
    /// The node's id.
    pub node: u32,
    /// Which worker of it.
    pub worker: u16,
}

/// Where a key goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Route {
    /// The key's position on the ring.
    pub position: u64,
    /// Its cell.
    pub cell: u16,
    /// The worker that grants for it.
    pub worker: Worker,
}

/// The ring, as the client routes by it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ring {
    /// Its version.
    pub version: u64,
    /// Number of cells.
    pub cells: u32,
    /// The nodes, by id.
    pub nodes: Vec<Node>,
}

impl Ring {
    /// Every worker of every node.
    pub fn workers(&self) -> impl Iterator<Item = Worker> {
        self.nodes
            .iter()
            .flat_map(|node| (0..node.workers).map(move |worker| Worker { node: node.id, worker }))
    }
}

/// A node of the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Node {
    /// Its id.
    pub id: u32,
    /// Where clients are told to connect: one address, from whose port those of all workers are
    /// counted up, or one for each worker.
    pub addresses: Vec<Address>,
    /// Number of workers.
    pub workers: u16,
    /// Which life of its process.
    pub boot: u64,
    /// Number of cells it owns.
    pub cells: u32,
}

/// Where clients are told to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Address {
    /// A name, or an address, of version 6 without brackets; empty: the one they came by. A peer's
    /// text, to be shown with care.
    pub host: String,
    /// The UDP port.
    pub port: u16,
}
