//! The sans-IO control plane of a node: what must be agreed and durable before anybody acts on it.
//! No clock, no disk, no thread: time and the log are arguments, as the core's are.
//!
//! What is agreed are the entries of a log, and what they make together is a state: who holds
//! which cell, in which epoch, which processes there are, the longest TTL. [`cluster::Control`]
//! decides what is proposed when, the shell drives it over openraft, the simulators over a log of
//! their own:
//!
//! ```text
//! control.handle(now, event, &mut actions);   // Propose an entry; tell workers, once committed
//! control.next_deadline();                    // when to say Event::Tick at the latest
//! ```
//!
//! An entry is *committed* once the log has it for good. A proposal that failed may have taken
//! effect all the same: every entry is safe to repeat, and to be committed late.
//!
//! The simulator of one node's cells still runs `alone`, by which a node went that kept no log.

#![forbid(unsafe_code)]

#[cfg(any(test, feature = "testing"))]
pub mod alone;
pub mod cluster;
#[cfg(test)]
mod model_tests;
mod retry;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
