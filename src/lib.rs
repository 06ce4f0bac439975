//! lockring: a consistent-hash sharded lock service. This crate is the client library; with the
//! default feature `cli` it is also the binary.
//!
//! ```no_run
//! # async fn write_row(fence: u64) -> Result<(), lockring::Error> { Ok(()) }
//! # async fn example() -> Result<(), lockring::Error> {
//! let client = lockring::Client::connect("lockring://127.0.0.1:7420").await?;
//! let guard = client.lock("orders/42").await?;   // FIFO per key; the grant is pushed, not polled
//! write_row(guard.fence()).await?;               // strictly increasing per key
//! guard.release().await?;                        // or drop it: never blocks
//! # Ok(()) }
//! ```

#![forbid(unsafe_code)]

pub use lockring_client::{
    Blocked, Builder, CancellationToken, Client, Error, ErrorKind, Guard, Level, Loss, Mutex,
    Owner, RwLock, Semaphore, Token, TokenError, admin,
};
