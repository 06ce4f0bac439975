//! What control planes tell each other.

use super::entry;
use crate::cluster::entry::{Entry, Index};
use crate::cluster::message::Message;
use crate::cluster::state::Life;
use bincode::{Decode, Encode};
use lockring_ring::{BootId, CellId, NodeId};
use std::time::Duration;

#[derive(Encode, Decode)]
pub(super) enum Stored {
    Heartbeat { boot: u64, renewal: u64 },
    Renewed { boot: u64, renewal: u64, bound: u64 },
    Propose(entry::Stored),
    Silent { copy: u32, cells: Vec<(u16, u64)> },
    Probe { node: u32, boot: u64, number: u64 },
    Ping { node: u32, number: u64 },
    Pong { node: u32, number: u64, boot: u64 },
    Alive { node: u32, boot: u64, number: u64 },
    AskTtl { round: u64, window: Duration, after: u64 },
    TtlStated { round: u64, longest: Option<Duration>, by: String },
}

impl From<&Message> for Stored {
    fn from(message: &Message) -> Self {
        match message {
            &Message::Heartbeat { boot, renewal } => Self::Heartbeat { boot: boot.0, renewal },
            &Message::Renewed { boot, renewal, bound } => {
                Self::Renewed { boot: boot.0, renewal, bound: bound.0 }
            }
            Message::Propose(entry) => Self::Propose(entry.into()),
            Message::Silent { copy, cells } => Self::Silent {
                copy: copy.0,
                cells: cells.iter().map(|&(cell, revision)| (cell.0, revision.0)).collect(),
            },
            &Message::Probe(Life { node, boot }, number) => {
                Self::Probe { node: node.0, boot: boot.0, number }
            }
            &Message::Ping(node, number) => Self::Ping { node: node.0, number },
            &Message::Pong(node, number, boot) => Self::Pong { node: node.0, number, boot: boot.0 },
            &Message::Alive(Life { node, boot }, number) => {
                Self::Alive { node: node.0, boot: boot.0, number }
            }
            &Message::AskTtl { round, window, after } => {
                Self::AskTtl { round, window, after: after.0 }
            }
            Message::TtlStated { round, longest, by } => {
                Self::TtlStated { round: *round, longest: *longest, by: by.clone() }
            }
        }
    }
}

impl From<Stored> for Message {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::Heartbeat { boot, renewal } => Self::Heartbeat { boot: BootId(boot), renewal },
            Stored::Renewed { boot, renewal, bound } => {
                Self::Renewed { boot: BootId(boot), renewal, bound: Index(bound) }
            }
            Stored::Propose(entry) => Self::Propose(Entry::from(entry)),
            Stored::Silent { copy, cells } => {
                let cells = cells.into_iter();
                let cells = cells.map(|(cell, revision)| (CellId(cell), Index(revision)));
                Self::Silent { copy: NodeId(copy), cells: cells.collect() }
            }
            Stored::Probe { node, boot, number } => Self::Probe(life(node, boot), number),
            Stored::Ping { node, number } => Self::Ping(NodeId(node), number),
            Stored::Pong { node, number, boot } => Self::Pong(NodeId(node), number, BootId(boot)),
            Stored::Alive { node, boot, number } => Self::Alive(life(node, boot), number),
            Stored::AskTtl { round, window, after } => {
                Self::AskTtl { round, window, after: Index(after) }
            }
            Stored::TtlStated { round, longest, by } => Self::TtlStated { round, longest, by },
        }
    }
}

fn life(node: u32, boot: u64) -> Life {
    Life { node: NodeId(node), boot: BootId(boot) }
}
