//! lockring: a consistent-hash sharded lock service. This crate is the client library; with the
//! default feature `cli` it is also the binary.
//!
//! ```no_run
//! # async fn example() -> Result<(), lockring::Error> {
//! let client = lockring::Client::connect("lockring://127.0.0.1:7420").await?;
//! let guard = client.lock("orders/42").await?;
//! println!("fence {}", guard.fence());
//! guard.release().await?;
//! # Ok(()) }
//! ```

#![forbid(unsafe_code)]

pub use lockring_client::{
    Builder, Client, Error, ErrorKind, Guard, Inspection, Level, Mutex, Owner, RwLock, Semaphore,
    Token, TokenError,
};
