//! The ring: how a key finds its owner.
//!
//! Pure data and functions. No clock, no I/O, no randomness, and nothing here derives a wire or
//! file format: what crosses the wire is built by `lockring-proto` from the values below.
//!
//! A key is hashed once ([`hash_key`]); the high half of the hash is its place on a ring of 2^64
//! positions, cut into Q equal arcs, the cells ([`CellBits`]). A cell is the unit of ownership,
//! storage, replication and moving.

mod cell;
mod diff;
mod hash;
mod membership;
mod node;
mod planner;
mod table;

pub use cell::{CellBits, CellBitsError, CellId, Epoch, RingVersion};
pub use diff::{Diff, DiffError, Patch};
pub use hash::{KeyHash, NamespaceSeed, hash_key};
pub use membership::{AttachId, Member, Membership};
pub use node::{BootId, MAX_NODES, Node, NodeError, NodeId, RingNode};
pub use planner::{Change, Plan, PlanError, plan};
pub use table::{Move, Placement, RingTable, Run, Share, TableError};
