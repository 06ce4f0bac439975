//! The lockring client.
//!
//! [`target`] says where a cluster is, [`context`] remembers the clusters of a user, [`identity`]
//! decides which certificate to show, and [`tls`] turns it into QUIC settings.

#![forbid(unsafe_code)]

pub mod context;
pub mod identity;
pub mod target;
pub mod tls;
