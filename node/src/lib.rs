//! The shell of a node: everything around the core that touches the world.
//!
//! `data_dir` holds what a node keeps on disk: the certificates of `files`, made by an
//! `authority`, and the durable facts of the `store`. `tls` and `endpoint` turn them into
//! QUIC endpoints, and `identity` says who a peer is.
//!
//! `node` assembles threads, runtimes and sockets; everything else is futures over them. A
//! `worker` owns one machine of the core and its connections; `control` does what must be
//! durable. What is exported is what the binary needs.

#![forbid(unsafe_code)]

mod admin;
mod advertise;
mod authority;
mod bucket;
mod cluster_view;
mod config;
mod connection;
mod conns;
mod control;
mod data_dir;
mod echo;
mod endpoint;
mod error;
mod files;
mod gate;
mod identity;
mod memory;
mod messages;
mod node;
mod rated;
mod recover;
mod sieve;
mod state;
mod store;
#[cfg(test)]
mod tests;
mod tls;
mod ttl;
mod ttls;
mod worker;

pub use advertise::{AdvertiseError, Advertised, addresses};
pub use authority::{Authority, AuthorityError};
pub use config::{Data, NodeConfig};
pub use data_dir::{FileError, write_new_secret};
pub use echo::run_echo;
pub use endpoint::BindError;
pub use error::StartError;
pub use gate::HandshakeLimits;
pub use lockring_core::{Amounts, Limits};
pub use lockring_ring::CellBits;
pub use memory::MemoryLimit;
pub use node::{Node, NodeStatus, Stopped};
pub use recover::{Former, Recovered, recover};
pub use store::StoreError;
pub use ttl::TtlMax;
