//! lockring: a consistent-hash sharded lock service. This crate is the client.
pub use lockring_client as client;
