//! Entries of the log: whatever they say, as the state takes for void what cannot be.

use super::parts::{StoredProcess, StoredReplicas, StoredSpec};
use crate::cluster::entry::{Before, CellChange, Entry, Floors, Index, Step};
use bincode::{Decode, Encode};
use lockring_ring::{AttachId, BootId, CellId, Epoch, NodeId, RingVersion};
use std::time::Duration;

#[derive(Encode, Decode)]
pub(super) enum Stored {
    Blank,
    Join(StoredSpec),
    Recover(StoredSpec, StoredFloors),
    Boot { node: u32, before: u64, process: StoredProcess, is_over: bool },
    Down { node: u32, boot: u64 },
    Up { node: u32, boot: u64 },
    Leave { node: u32 },
    Remove { node: u32 },
    Weight { node: u32, revision: u64, weight: u32 },
    Cells(Vec<StoredChange>),
    RaiseLongestTtl { ttl: Duration, by: String },
    IntendLongestTtl { ttl: Duration },
    LowerLongestTtl { intent: u64, by: String },
    Policy { replicas: StoredReplicas, revision: u64 },
    Stopped { node: u32, boot: u64, ring: u64 },
}

#[derive(Encode, Decode)]
pub(super) struct StoredFloors {
    epoch: u32,
    version: u64,
    node: u32,
    attach: u64,
    longest_ttl: Duration,
    longest_by: String,
    before: StoredBefore,
}

#[derive(Encode, Decode)]
enum StoredBefore {
    Unknown,
    One,
    Nothing,
}

#[derive(Encode, Decode)]
pub(super) struct StoredChange {
    cell: u16,
    revision: u64,
    step: StoredStep,
}

#[derive(Clone, Copy, Encode, Decode)]
enum StoredStep {
    Attach { node: u32, boot: u64 },
    Synced,
    Switch { node: u32 },
    Drop { node: u32 },
    Detach,
    Takeover { node: u32, boot: u64 },
    Recovered,
    Bump,
}

impl From<&Entry> for Stored {
    fn from(entry: &Entry) -> Self {
        match entry {
            Entry::Blank => Self::Blank,
            Entry::Join(spec) => Self::Join(spec.into()),
            Entry::Recover(spec, floors) => Self::Recover(spec.into(), floors.into()),
            Entry::Boot { node, before, process, is_over } => Self::Boot {
                node: node.0,
                before: before.0,
                process: process.into(),
                is_over: *is_over,
            },
            &Entry::Down(node, boot) => Self::Down { node: node.0, boot: boot.0 },
            &Entry::Up(node, boot) => Self::Up { node: node.0, boot: boot.0 },
            &Entry::Stopped { node, boot, ring } => {
                Self::Stopped { node: node.0, boot: boot.0, ring: ring.0 }
            }
            &Entry::Leave(node) => Self::Leave { node: node.0 },
            &Entry::Remove(node) => Self::Remove { node: node.0 },
            &Entry::Weight { node, revision, weight } => {
                Self::Weight { node: node.0, revision: revision.0, weight }
            }
            Entry::Cells(changes) => Self::Cells(changes.iter().map(Into::into).collect()),
            Entry::RaiseLongestTtl { ttl, by } => {
                Self::RaiseLongestTtl { ttl: *ttl, by: by.clone() }
            }
            &Entry::IntendLongestTtl(ttl) => Self::IntendLongestTtl { ttl },
            Entry::LowerLongestTtl { intent, by } => {
                Self::LowerLongestTtl { intent: intent.0, by: by.clone() }
            }
            &Entry::Policy { replicas, revision } => {
                Self::Policy { replicas: replicas.into(), revision: revision.0 }
            }
        }
    }
}

impl From<Stored> for Entry {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::Blank => Self::Blank,
            Stored::Join(spec) => Self::Join(spec.into()),
            Stored::Recover(spec, floors) => Self::Recover(spec.into(), floors.into()),
            Stored::Boot { node, before, process, is_over } => {
                let (node, before) = (NodeId(node), BootId(before));
                Self::Boot { node, before, process: process.into(), is_over }
            }
            Stored::Down { node, boot } => Self::Down(NodeId(node), BootId(boot)),
            Stored::Up { node, boot } => Self::Up(NodeId(node), BootId(boot)),
            Stored::Stopped { node, boot, ring } => {
                let (node, boot) = (NodeId(node), BootId(boot));
                Self::Stopped { node, boot, ring: RingVersion(ring) }
            }
            Stored::Leave { node } => Self::Leave(NodeId(node)),
            Stored::Remove { node } => Self::Remove(NodeId(node)),
            Stored::Weight { node, revision, weight } => {
                Self::Weight { node: NodeId(node), revision: Index(revision), weight }
            }
            Stored::Cells(changes) => Self::Cells(changes.into_iter().map(Into::into).collect()),
            Stored::RaiseLongestTtl { ttl, by } => Self::RaiseLongestTtl { ttl, by },
            Stored::IntendLongestTtl { ttl } => Self::IntendLongestTtl(ttl),
            Stored::LowerLongestTtl { intent, by } => {
                Self::LowerLongestTtl { intent: Index(intent), by }
            }
            Stored::Policy { replicas, revision } => {
                Self::Policy { replicas: replicas.into(), revision: Index(revision) }
            }
        }
    }
}

impl From<&Floors> for StoredFloors {
    fn from(floors: &Floors) -> Self {
        Self {
            epoch: floors.epoch.0,
            version: floors.version.0,
            node: floors.node.0,
            attach: floors.attach.0,
            longest_ttl: floors.longest_ttl,
            longest_by: floors.longest_by.clone(),
            before: match floors.before {
                Before::Unknown => StoredBefore::Unknown,
                Before::One => StoredBefore::One,
                Before::Nothing => StoredBefore::Nothing,
            },
        }
    }
}

impl From<StoredFloors> for Floors {
    fn from(stored: StoredFloors) -> Self {
        Self {
            epoch: Epoch(stored.epoch),
            version: RingVersion(stored.version),
            node: NodeId(stored.node),
            attach: AttachId(stored.attach),
            longest_ttl: stored.longest_ttl,
            longest_by: stored.longest_by,
            before: match stored.before {
                StoredBefore::Unknown => Before::Unknown,
                StoredBefore::One => Before::One,
                StoredBefore::Nothing => Before::Nothing,
            },
        }
    }
}

impl From<&CellChange> for StoredChange {
    fn from(&CellChange { cell, revision, step }: &CellChange) -> Self {
        let step = match step {
            Step::Attach(node, boot) => StoredStep::Attach { node: node.0, boot: boot.0 },
            Step::Synced => StoredStep::Synced,
            Step::Switch(node) => StoredStep::Switch { node: node.0 },
            Step::Drop(node) => StoredStep::Drop { node: node.0 },
            Step::Detach => StoredStep::Detach,
            Step::Takeover(node, boot) => StoredStep::Takeover { node: node.0, boot: boot.0 },
            Step::Recovered => StoredStep::Recovered,
            Step::Bump => StoredStep::Bump,
        };
        Self { cell: cell.0, revision: revision.0, step }
    }
}

impl From<StoredChange> for CellChange {
    fn from(StoredChange { cell, revision, step }: StoredChange) -> Self {
        let step = match step {
            StoredStep::Attach { node, boot } => Step::Attach(NodeId(node), BootId(boot)),
            StoredStep::Synced => Step::Synced,
            StoredStep::Switch { node } => Step::Switch(NodeId(node)),
            StoredStep::Drop { node } => Step::Drop(NodeId(node)),
            StoredStep::Detach => Step::Detach,
            StoredStep::Takeover { node, boot } => Step::Takeover(NodeId(node), BootId(boot)),
            StoredStep::Recovered => Step::Recovered,
            StoredStep::Bump => Step::Bump,
        };
        Self { cell: CellId(cell), revision: Index(revision), step }
    }
}
