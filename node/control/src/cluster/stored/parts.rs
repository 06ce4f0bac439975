//! What entries and states have in common.

use crate::cluster::entry::{NodeSpec, Process, Replicas};
use bincode::{Decode, Encode};
use lockring_proto::NodeAddress;
use lockring_ring::{AttachId, BootId, Member, NodeId};

#[derive(Encode, Decode)]
pub(in crate::cluster) struct StoredProcess {
    boot: u64,
    workers: u16,
    addresses: Vec<NodeAddress>,
}

impl From<&Process> for StoredProcess {
    fn from(Process { boot, workers, addresses }: &Process) -> Self {
        Self { boot: boot.0, workers: *workers, addresses: addresses.clone() }
    }
}

impl From<StoredProcess> for Process {
    fn from(StoredProcess { boot, workers, addresses }: StoredProcess) -> Self {
        Self { boot: BootId(boot), workers, addresses }
    }
}

#[derive(Encode, Decode)]
pub(in crate::cluster) struct StoredSpec {
    weight: u32,
    zone: Option<String>,
    host: String,
    process: StoredProcess,
}

impl From<&NodeSpec> for StoredSpec {
    fn from(NodeSpec { weight, zone, host, process }: &NodeSpec) -> Self {
        let (zone, host) = (zone.clone(), host.clone());
        Self { weight: *weight, zone, host, process: process.into() }
    }
}

impl From<StoredSpec> for NodeSpec {
    fn from(StoredSpec { weight, zone, host, process }: StoredSpec) -> Self {
        Self { weight, zone, host, process: process.into() }
    }
}

#[derive(Clone, Copy, Encode, Decode)]
pub(in crate::cluster) struct StoredMember {
    node: u32,
    boot: u64,
    attach: u64,
}

impl From<Member> for StoredMember {
    fn from(Member { node, boot, attach }: Member) -> Self {
        Self { node: node.0, boot: boot.0, attach: attach.0 }
    }
}

impl From<StoredMember> for Member {
    fn from(StoredMember { node, boot, attach }: StoredMember) -> Self {
        Self { node: NodeId(node), boot: BootId(boot), attach: AttachId(attach) }
    }
}

#[derive(Clone, Copy, Encode, Decode)]
pub(in crate::cluster) enum StoredReplicas {
    None,
    One,
}

impl From<Replicas> for StoredReplicas {
    fn from(replicas: Replicas) -> Self {
        match replicas {
            Replicas::None => Self::None,
            Replicas::One => Self::One,
        }
    }
}

impl From<StoredReplicas> for Replicas {
    fn from(stored: StoredReplicas) -> Self {
        match stored {
            StoredReplicas::None => Self::None,
            StoredReplicas::One => Self::One,
        }
    }
}
