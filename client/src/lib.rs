//! The lockring client.
//!
//! ```no_run
//! use lockring_client::Client;
//!
//! # async fn example() -> Result<(), lockring_client::Error> {
//! let client = Client::connect("lockring://127.0.0.1:7420?identity=client.pem").await?;
//! let guard = client.lock("orders/42").await?; // FIFO per key, pushed, never polled
//! println!("fence {}", guard.fence()); // strictly increasing per key
//! guard.release().await?; // or drop it
//! client.close().await;
//! # Ok(()) }
//! ```
//!
//! A lock is exclusive within the validity of its lease; the fence lets the protected resource
//! refuse whoever acts past it. [`session`] and [`router`] are the pure parts, claims, leases and
//! routes without I/O; everything else carries them over QUIC.

#![forbid(unsafe_code)]

pub mod admin;
mod builder;
mod cause;
mod claims;
mod client;
mod clock;
pub mod context;
mod dial;
mod driver;
mod error;
mod fate;
mod guard;
mod handle;
mod hold;
mod identity;
mod kind;
mod link;
mod pool;
mod primitives;
mod resolve;
pub mod router;
pub mod session;
mod settings;
pub mod target;
pub mod tls;
mod token;
pub mod wire;

pub use builder::Builder;
pub use client::Client;
pub use error::{Blocked, Error};
pub use guard::Guard;
pub use kind::ErrorKind;
pub use lockring_proto as proto;
pub use lockring_ring as ring;
pub use primitives::{Level, Mutex, Owner, RwLock, Semaphore};
pub use session::Loss;
pub use token::{Token, TokenError};
pub use tokio_util::sync::CancellationToken;
