//! The control plane of a cluster, as one of its nodes runs it: who holds which cell, who is alive,
//! until when a node may answer, and what is to be moved.
//!
//! Every node applies the same entries of one log to its [`State`]; the node that leads the log
//! also judges who is alive, acknowledges node leases and carries plans out. Nothing that a timer
//! or a single node decides changes who holds a cell: such a decision is only ever *proposed*, as
//! an [`Entry`] that names what it was decided on, and void if that has changed since.

mod cell;
mod control;
mod entry;
mod event;
mod facts;
mod judge;
mod lead;
mod lease;
mod lowering;
mod message;
mod mutant;
mod outbox;
mod runner;
mod state;
mod stored;
mod timing;
mod ttl;

pub use cell::{Cell, Loss};
pub use control::Control;
pub use entry::{
    BATCH_CELLS_MAX, Before, CellChange, Entry, Floors, Index, NodeSpec, Process, Replicas, Step,
};
pub use event::{Action, Event, Fact, LogEvent, ProposalId, RoundId, Term, WorkerEvent};
pub use message::Message;
#[cfg(any(test, feature = "testing"))]
pub use mutant::Mutant;
pub use state::{Applied, Intent, Life, Longest, NodeState, State, Status};
pub use stored::{
    Unreadable, entry_from_bytes, entry_to_bytes, message_from_bytes, message_to_bytes,
    state_from_bytes, state_to_bytes,
};

#[cfg(test)]
mod tests;
