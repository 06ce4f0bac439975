//! What tests see of the core, and the parts that a simulation is made of. They know nothing of
//! each other: a run (`client/tests/sim`) puts them together.
//!
//! - [`Note`]: the stream of a machine's ops; [`Replica`]: what comes of them alone; [`View`]: a
//!   machine's logical state, with a canonical fingerprint;
//! - [`Rng`], [`RateClock`], [`Net`]: chance, clocks that run wrong, and a network that breaks;
//! - [`Fault`], [`FaultPlan`]: which faults come when;
//! - [`Recorder`], [`Fact`], [`checks`]: what happened on one clock, and what was promised.

#[cfg(test)]
mod attack_tests;
mod audit;
#[cfg(test)]
mod belief_tests;
pub mod checks;
mod clock;
#[cfg(test)]
mod copies_log;
#[cfg(test)]
mod copies_tests;
#[cfg(test)]
mod ends_tests;
mod fact;
mod faults;
mod net;
#[cfg(test)]
mod peers_tests;
mod recorder;
mod replica;
mod rng;
#[cfg(test)]
mod scripts;
mod seen;
#[cfg(test)]
mod slice_tests;
#[cfg(test)]
mod told;
#[cfg(test)]
mod turn_tests;
mod view;
#[cfg(test)]
mod view_tests;

pub use crate::locks::{Death, Ending, Leaving, Note, Noted, NotedSource};
pub(crate) use audit::same;
pub use clock::RateClock;
pub use fact::{Fact, KeyId, Token, Why};
pub use faults::{Fault, FaultPlan};
pub use net::{Arrival, DELAY_MAX, End, Net, Stream};
pub use recorder::{Book, Check, Hold, Key, Recorder, Violation};
pub use replica::Replica;
pub use rng::{Rng, Trace};
pub use view::{CellView, HolderView, KeyView, LinkName, LinkView, View, WaiterView};
