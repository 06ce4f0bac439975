//! What tests see of the core, and the parts that a simulation is made of. They know nothing of
//! each other: a run (`client/tests/sim`) puts them together.
//!
//! - [`Note`]: a machine's own log; [`View`]: its logical state, with a canonical fingerprint;
//! - [`Rng`], [`RateClock`], [`Net`]: chance, clocks that go wrong, and a network that breaks;
//! - [`Fault`], [`Plan`]: which faults come when;
//! - [`Recorder`], [`Fact`], [`checks`]: what happened on one clock, and what was promised.

#[cfg(test)]
mod attack_tests;
mod audit;
#[cfg(test)]
mod belief_tests;
pub mod checks;
mod clock;
#[cfg(test)]
mod ends_tests;
mod fact;
mod faults;
mod net;
mod recorder;
mod rng;
#[cfg(test)]
mod scripts;
mod seen;
#[cfg(test)]
mod slice_tests;
#[cfg(test)]
mod turn_tests;
mod view;
#[cfg(test)]
mod view_tests;

pub use clock::RateClock;
pub use fact::{Fact, KeyId, Token, Why};
pub use faults::{Fault, Plan};
pub use net::{Arrival, DELAY_MAX, Net, Stream};
pub use recorder::{Book, Check, Hold, Key, Recorder, Violation};
pub use rng::{Rng, Trace};
pub use seen::Note;
pub(crate) use seen::Seen;
pub use view::{HolderView, KeyView, LinkName, LinkView, View, WaiterView};
