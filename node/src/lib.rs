//! The shell of a node: everything around the core that touches the world.
//!
//! [`data_dir`] holds what a node keeps on disk: the certificates of [`files`], made by an
//! [`authority`], and the durable facts of the [`store`]. [`tls`] and [`endpoint`] turn them into
//! QUIC endpoints, and [`identity`] says who a peer is.

#![forbid(unsafe_code)]

pub mod authority;
pub mod data_dir;
pub mod endpoint;
pub mod files;
pub mod identity;
pub mod store;
pub mod tls;
