//! The sans-IO control plane of a node: what must be agreed and durable before anybody acts on it.
//! No clock, no disk, no thread: time and the log are arguments, as the core's are.
//!
//! What is agreed are [`Entry`]s of a log, and what they make together is the [`State`]: epochs,
//! lives of the node, the longest TTL. [`Control`] decides what is proposed when:
//!
//! ```text
//! control.handle(now, event, &mut actions);   // Propose an entry; Confirm, once it is committed
//! control.next_deadline();                    // when to say Event::Tick at the latest
//! ```
//!
//! An entry is *committed* once the log has it for good. In a cluster of one that is a durable
//! write of the node's own store. A proposal that failed may have taken effect all the same: every
//! entry is safe to repeat, to be found done by the next life, and to be committed late.
//!
//! The node's shell drives this over its store, the simulator over a log of its own. The control
//! plane of a cluster of nodes is [`cluster`].

#![forbid(unsafe_code)]

pub mod cluster;
mod control;
mod event;
mod longest;
#[cfg(test)]
mod model_tests;
mod retry;
mod state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

pub use control::Control;
pub use event::{Action, Event, Statement};
pub use state::{Entry, EpochsUsedUp, Grace, State, WorkerEnd, is_clean, next_epoch};
