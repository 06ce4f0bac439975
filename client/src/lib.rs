//! The lockring client.

pub mod link;
pub mod router;
