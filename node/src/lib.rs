//! The shell of a node: everything around the core that touches the world.
//!
//! [`data_dir`] holds what a node keeps on disk: the certificates of [`files`], made by an
//! [`authority`], and the durable facts of the [`store`]. [`tls`] and [`endpoint`] turn them into
//! QUIC endpoints, and [`identity`] says who a peer is.
//!
//! [`node`] assembles threads, runtimes and sockets; everything else is futures over them. A
//! [`worker`] owns one machine of the core and its connections; [`control`] does what must be
//! durable.

#![forbid(unsafe_code)]

pub mod admin;
pub mod advertise;
pub mod authority;
mod bucket;
pub mod config;
pub mod connection;
pub mod conns;
pub mod control;
pub mod data_dir;
pub mod echo;
pub mod endpoint;
pub mod error;
pub mod files;
pub mod gate;
pub mod identity;
pub mod memory;
pub mod messages;
pub mod node;
pub mod rated;
pub mod ring_table;
mod sieve;
pub mod state;
pub mod store;
pub mod tls;
pub mod ttl;
pub mod worker;

pub use config::{Data, NodeConfig};
pub use error::StartError;
pub use gate::HandshakeLimits;
pub use lockring_core::{Amounts, Limits};
pub use lockring_ring::CellBits;
pub use memory::MemoryLimit;
pub use node::{Node, NodeStatus, Stopped};
pub use ttl::TtlMax;
