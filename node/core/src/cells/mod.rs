//! What this worker is for each of its cells, and what waits for that to change.

mod copy;
mod frame;
mod lane;
mod message;
pub(crate) mod queues;
mod role;
mod round;
mod seen;
pub(crate) mod standing;

pub(crate) use copy::{Copies, Shadow};
pub(crate) use frame::{LinkNews, LinkOrigin, Process};
pub(crate) use lane::{Telling, Withheld};
pub(crate) use message::{Message, ack, message, ready};
pub(crate) use role::{Cells, Recovery, Role};
pub(crate) use round::{CopyOf, Rounds, Shows};
