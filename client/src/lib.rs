//! The lockring client.
//!
//! [`target`] says where a cluster is, [`context`] remembers the clusters of a user, [`identity`]
//! decides which certificate to show, and [`tls`] turns it into QUIC settings. [`link`] and
//! [`router`] are the pure parts: claims, leases and routes without I/O.

#![forbid(unsafe_code)]

mod driver;
mod error;
mod guard;
pub mod context;
pub mod identity;
pub mod link;
pub mod router;
pub mod target;
pub mod tls;
