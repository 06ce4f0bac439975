//! The control plane of a node that keeps no log, but the state that its entries make alone.

mod control;
mod event;
mod longest;
mod state;
#[cfg(test)]
mod tests;

pub use control::Control;
pub use event::{Action, Event, Statement};
pub use state::{Entry, EpochsUsedUp, Grace, State, WorkerEnd, is_clean, next_epoch};
