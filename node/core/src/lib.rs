//! The sans-IO heart of a node: pure, deterministic state machines for lock tables, queues, links
//! and leases. No clock, no socket, no thread, no randomness, no iteration in hash order.
//!
//! A worker of a node owns one [`Machine`] and is the only one to touch it:
//!
//! ```text
//! machine.handle(now, event, &mut actions);   // every effect is in `actions`; requests that were
//!                                             // not taken are given again in a later turn
//! machine.next_deadline();                    // when to say Event::Tick at the latest
//! ```
//!
//! What it holds, from the outside in: *links* (a session at this worker: its connection, lease,
//! holds and waiters), *cells* (arcs of the ring: epoch, operation counter, a small hash table),
//! *records* (48 bytes for a key in use) and *side records* for whatever a thin record cannot say.
//! Invariants, each asserted or checked online by the simulator:
//! - a key in use has exactly one record, a free key none;
//! - a hold or waiter belongs to a link that is alive or dying, and is in that link's lists;
//! - a thin record is one exclusive holder and nobody queued; a rich record is never that alone;
//! - the head of a queue never fits beside the holders, but during grace, and in a queue too long
//!   for one turn, which the next ones work off while newcomers stay behind it;
//! - every grant, release and change of a queue takes the next number of its cell's counter.

mod amounts;
mod cells;
mod config;
mod event;
mod links;
mod locks;
mod machine;
mod mutant;
mod requests;
mod stats;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod turn;
mod worker;

pub use amounts::Amounts;
pub use config::{Config, Limits};
pub use event::{
    Access, Action, CloseReason, ClusterEvent, ConnId, Event, Identity, LinkIndex, PeerWorker,
};
pub use lockring_proto::Time;
pub use machine::{Machine, SHRINK_SLICE};
#[cfg(any(test, feature = "testing"))]
pub use mutant::Mutant;
pub use requests::list::SessionRow;
pub use stats::Stats;
