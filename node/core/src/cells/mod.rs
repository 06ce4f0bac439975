//! What this worker is for each of its cells, and what waits for that to change.

pub(crate) mod queues;
mod role;
pub(crate) mod standing;

pub(crate) use role::{Cells, Role};
