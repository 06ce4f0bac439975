//! The bytes of what openraft keeps. Types of their own, so that no release of it changes what is
//! on a disk; each value ends with a checksum.

use super::types::{LogId, Membership, Meta, Types, Vote};
use crate::store::{sealed, unsealed};
use bincode::config::standard;
use bincode::{Decode, Encode};
use lockring_control::cluster::{Unreadable, entry_from_bytes, entry_to_bytes};
use openraft::{BasicNode, CommittedLeaderId, EntryPayload};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, Encode, Decode)]
struct KeptId {
    term: u64,
    node: u64,
    index: u64,
}

#[derive(Encode, Decode)]
struct KeptVote {
    term: u64,
    node: u64,
    committed: bool,
}

#[derive(Encode, Decode)]
struct KeptMembers {
    configs: Vec<Vec<u64>>,
    nodes: Vec<(u64, String)>,
}

#[derive(Encode, Decode)]
enum KeptPayload {
    Blank,
    Normal(Vec<u8>),
    Members(KeptMembers),
}

#[derive(Encode, Decode)]
struct KeptEntry {
    id: KeptId,
    payload: KeptPayload,
}

#[derive(Encode, Decode)]
struct KeptMeta {
    last: Option<KeptId>,
    members_at: Option<KeptId>,
    members: KeptMembers,
    id: String,
}

impl From<LogId> for KeptId {
    fn from(id: LogId) -> Self {
        Self { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
    }
}

impl From<KeptId> for LogId {
    fn from(KeptId { term, node, index }: KeptId) -> Self {
        Self::new(CommittedLeaderId::new(term, node), index)
    }
}

type Members = openraft::Membership<u64, BasicNode>;

fn members_from(members: &Members) -> KeptMembers {
    let configs = members.get_joint_config().iter();
    let configs = configs.map(|config| config.iter().copied().collect()).collect();
    let nodes = members.nodes().map(|(&id, node)| (id, node.addr.clone())).collect();
    KeptMembers { configs, nodes }
}

fn members_to(KeptMembers { configs, nodes }: KeptMembers) -> Members {
    let configs = configs.into_iter().map(BTreeSet::from_iter).collect();
    let nodes = nodes.into_iter().map(|(id, addr)| (id, BasicNode { addr }));
    Members::new(configs, nodes.collect::<BTreeMap<_, _>>())
}

pub(super) fn of_vote(vote: &Vote) -> Vec<u8> {
    let openraft::LeaderId { term, node_id: node } = vote.leader_id;
    kept(&KeptVote { term, node, committed: vote.committed })
}

pub(super) fn to_vote(bytes: &[u8]) -> Result<Vote, Unreadable> {
    let KeptVote { term, node, committed } = read(bytes)?;
    Ok(if committed { Vote::new_committed(term, node) } else { Vote::new(term, node) })
}

pub(super) fn of_id(id: LogId) -> Vec<u8> {
    kept(&KeptId::from(id))
}

pub(super) fn to_id(bytes: &[u8]) -> Result<LogId, Unreadable> {
    Ok(read::<KeptId>(bytes)?.into())
}

pub(super) fn of_entry(entry: &openraft::Entry<Types>) -> Vec<u8> {
    let payload = match &entry.payload {
        EntryPayload::Blank => KeptPayload::Blank,
        EntryPayload::Normal(entry) => KeptPayload::Normal(entry_to_bytes(entry)),
        EntryPayload::Membership(members) => KeptPayload::Members(members_from(members)),
    };
    kept(&KeptEntry { id: entry.log_id.into(), payload })
}

pub(super) fn to_entry(bytes: &[u8]) -> Result<openraft::Entry<Types>, Unreadable> {
    let KeptEntry { id, payload } = read(bytes)?;
    let payload = match payload {
        KeptPayload::Blank => EntryPayload::Blank,
        KeptPayload::Normal(bytes) => EntryPayload::Normal(entry_from_bytes(&bytes)?),
        KeptPayload::Members(members) => EntryPayload::Membership(members_to(members)),
    };
    Ok(openraft::Entry { log_id: id.into(), payload })
}

pub(super) fn of_meta(meta: &Meta) -> Vec<u8> {
    let stored = &meta.last_membership;
    kept(&KeptMeta {
        last: meta.last_log_id.map(Into::into),
        members_at: stored.log_id().map(Into::into),
        members: members_from(stored.membership()),
        id: meta.snapshot_id.clone(),
    })
}

pub(super) fn to_meta(bytes: &[u8]) -> Result<Meta, Unreadable> {
    let KeptMeta { last, members_at, members, id } = read(bytes)?;
    Ok(Meta {
        last_log_id: last.map(Into::into),
        last_membership: Membership::new(members_at.map(Into::into), members_to(members)),
        snapshot_id: id,
    })
}

fn kept(value: &impl Encode) -> Vec<u8> {
    sealed(bincode::encode_to_vec(value, standard()).expect("memory takes everything"))
}

fn read<T: Decode<()>>(bytes: &[u8]) -> Result<T, Unreadable> {
    let body = unsealed(bytes).ok_or(Unreadable::Garbled)?;
    match bincode::decode_from_slice(body, standard().with_limit::<{ 64 << 20 }>()) {
        Ok((value, read)) if read == body.len() => Ok(value),
        _ => Err(Unreadable::Garbled),
    }
}
