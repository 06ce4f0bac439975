//! The state as it is kept. What is read is looked through: whoever acts on it relies on what every
//! entry keeps.

use super::apply::is_sound;
use super::{Intent, Longest, NodeState, State, Status};
use crate::cluster::cell::{BACKUPS_MAX, Cell, Loss};
use crate::cluster::entry::Index;
use crate::cluster::stored::parts::{StoredMember, StoredReplicas, StoredSpec};
use crate::cluster::stored::unreadable::Unreadable;
use bincode::{Decode, Encode};
use lockring_ring::{AttachId, BootId, CellBits, Epoch, Member, NodeId, RingVersion};
use std::time::Duration;

#[derive(Encode, Decode)]
pub(in crate::cluster) struct StoredState {
    bits: u8,
    applied: u64,
    nodes: Vec<StoredNode>,
    planned: u64,
    next_node: u32,
    retired: Vec<u64>,
    cells: Vec<StoredCell>,
    next_attach: u64,
    version: u64,
    longest: StoredLongest,
    replicas: StoredReplicas,
    replicas_at: u64,
    alone: bool,
}

#[derive(Encode, Decode)]
struct StoredNode {
    id: u32,
    spec: StoredSpec,
    joined: u64,
    is_up: bool,
    leaving: bool,
    revision: u64,
    taken: u64,
}

#[derive(Encode, Decode)]
struct StoredCell {
    revision: u64,
    epoch: u32,
    since: u64,
    takeover: u32,
    owner: StoredMember,
    backups: Vec<StoredMember>,
    learner: Option<StoredMember>,
    grace: Option<Duration>,
    loss: Option<StoredLoss>,
}

#[derive(Encode, Decode)]
enum StoredLoss {
    Down,
    Over,
    Unknown,
    Empty,
}

#[derive(Encode, Decode)]
struct StoredLongest {
    ttl: Duration,
    by: String,
    /// To which TTL, and by which entry.
    intent: Option<(Duration, u64)>,
}

impl From<&State> for StoredState {
    fn from(state: &State) -> Self {
        let Longest { ttl, by, intent } = &state.longest;
        let intent = intent.map(|Intent { ttl, at }| (ttl, at.0));
        Self {
            bits: state.bits.bits(),
            applied: state.applied.0,
            nodes: state.nodes.iter().map(|(id, node)| node_from(*id, node)).collect(),
            planned: state.planned.0,
            next_node: state.next_node.0,
            retired: state.retired.iter().map(|boot| boot.0).collect(),
            cells: state.cells.iter().map(cell_from).collect(),
            next_attach: state.next_attach.0,
            version: state.version.0,
            longest: StoredLongest { ttl: *ttl, by: by.clone(), intent },
            replicas: state.replicas.0.into(),
            replicas_at: state.replicas.1.0,
            alone: state.alone,
        }
    }
}

fn node_from(id: NodeId, node: &NodeState) -> StoredNode {
    StoredNode {
        id: id.0,
        spec: (&node.spec).into(),
        joined: node.joined.0,
        is_up: node.status == Status::Up,
        leaving: node.leaving,
        revision: node.revision.0,
        taken: node.taken.0,
    }
}

fn cell_from(cell: &Cell) -> StoredCell {
    StoredCell {
        revision: cell.revision.0,
        epoch: cell.epoch.0,
        since: cell.since.0,
        takeover: cell.takeover.0,
        owner: cell.owner.into(),
        backups: cell.backups.iter().map(|&backup| backup.into()).collect(),
        learner: cell.learner.map(Into::into),
        grace: cell.grace,
        loss: cell.loss.map(|loss| match loss {
            Loss::Down => StoredLoss::Down,
            Loss::Over => StoredLoss::Over,
            Loss::Unknown => StoredLoss::Unknown,
            Loss::Empty => StoredLoss::Empty,
        }),
    }
}

impl TryFrom<StoredState> for State {
    type Error = Unreadable;

    fn try_from(stored: StoredState) -> Result<Self, Unreadable> {
        let bits = CellBits::new(stored.bits);
        let bits = bits.map_err(|_| Unreadable::Unsound("no such number of cells"))?;
        let StoredLongest { ttl, by, intent } = stored.longest;
        let intent = intent.map(|(ttl, at)| Intent { ttl, at: Index(at) });
        let nodes = stored.nodes.len();
        let state = Self {
            bits,
            applied: Index(stored.applied),
            nodes: stored.nodes.into_iter().map(node_to).collect(),
            planned: Index(stored.planned),
            next_node: NodeId(stored.next_node),
            retired: stored.retired.into_iter().map(BootId).collect(),
            cells: stored.cells.into_iter().map(cell_to).collect(),
            next_attach: AttachId(stored.next_attach),
            version: RingVersion(stored.version),
            longest: Longest { ttl, by, intent },
            replicas: (stored.replicas.into(), Index(stored.replicas_at)),
            alone: stored.alone,
            mutant: None,
        };
        if state.nodes.len() != nodes {
            return Err(Unreadable::Unsound("two nodes of one number"));
        }
        look_through(&state)?;
        match state.try_ring() {
            Ok(_) => Ok(state),
            Err(_) => Err(Unreadable::Unsound("a ring that is none")),
        }
    }
}

fn node_to(stored: StoredNode) -> (NodeId, NodeState) {
    let StoredNode { id, spec, joined, is_up, leaving, revision, taken } = stored;
    let status = if is_up { Status::Up } else { Status::Down };
    let (revision, taken) = (Index(revision), Index(taken));
    let (spec, joined) = (spec.into(), BootId(joined));
    let node = NodeState { spec, joined, status, leaving, revision, taken };
    (NodeId(id), node)
}

fn cell_to(stored: StoredCell) -> Cell {
    Cell {
        revision: Index(stored.revision),
        epoch: Epoch(stored.epoch),
        since: RingVersion(stored.since),
        takeover: Epoch(stored.takeover),
        owner: stored.owner.into(),
        backups: stored.backups.into_iter().map(Into::into).collect(),
        learner: stored.learner.map(Into::into),
        grace: stored.grace,
        loss: stored.loss.map(|loss| match loss {
            StoredLoss::Down => Loss::Down,
            StoredLoss::Over => Loss::Over,
            StoredLoss::Unknown => Loss::Unknown,
            StoredLoss::Empty => Loss::Empty,
        }),
    }
}

/// What the ring does not show: nothing is of an entry that is still to come, and nothing that is
/// to be given next was given.
fn look_through(state: &State) -> Result<(), Unreadable> {
    let State { applied, nodes, cells, next_node, next_attach, .. } = state;
    let unsound = |what| Err(Unreadable::Unsound(what));
    if cells.len() as u64 != u64::from(state.bits.cells()) && !cells.is_empty() {
        return unsound("another number of cells than it names");
    }
    if !nodes.values().all(|node| is_sound(&node.spec.process)) {
        return unsound("a process that cannot be a node's");
    }
    if nodes.keys().any(|id| id >= next_node) {
        return unsound("a node that is still to join");
    }
    let of_nodes = nodes.values().flat_map(|node| [node.revision, node.taken]);
    let of_all = [state.planned, state.replicas.1].into_iter();
    let of_cells = cells.iter().map(|cell| cell.revision);
    if of_nodes.chain(of_all).chain(of_cells).any(|index| index > *applied) {
        return unsound("what an entry did that is still to come");
    }
    for cell in cells {
        let members: Vec<&Member> = cell.members().collect();
        if cell.backups.len() > BACKUPS_MAX {
            return unsound("a cell of too many backups");
        }
        if members.iter().any(|member| member.attach >= *next_attach) {
            return unsound("an attachment that is still to be made");
        }
        let mut ids: Vec<NodeId> = members.iter().map(|member| member.node).collect();
        ids.sort_unstable();
        ids.dedup();
        if ids.len() != members.len() {
            return unsound("a node with two parts in a cell");
        }
        if !ids.iter().all(|id| nodes.contains_key(id)) {
            return unsound("a part in a cell of a node that is none");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{CellChange, Entry, NodeSpec, Process, Step};
    use lockring_proto::NodeAddress;
    use lockring_ring::CellId;

    type Spoils = fn(&mut StoredState);

    fn sound() -> State {
        let process = |boot| {
            let addresses = vec![NodeAddress { host: "h".to_owned(), port: 7400 }];
            Process { boot: BootId(boot), workers: 1, addresses }
        };
        let spec = |boot| {
            let (zone, host) = (None, "m".to_owned());
            NodeSpec { weight: 1, zone, host, process: process(boot) }
        };
        let step = Step::Attach(NodeId(2), BootId(20));
        let change = CellChange { cell: CellId(0), revision: Index(1), step };
        let mut state = State::new(CellBits::new(1).unwrap());
        let entries = [Entry::Join(spec(10)), Entry::Join(spec(20)), Entry::Cells(vec![change])];
        for (at, entry) in (1..).zip(&entries) {
            assert!(!state.apply(Index(at), entry).void);
        }
        state
    }

    fn read(spoil: impl Fn(&mut StoredState)) -> Result<State, Unreadable> {
        let mut stored = StoredState::from(&sound());
        spoil(&mut stored);
        stored.try_into()
    }

    #[test]
    fn a_state_that_cannot_be_is_not_read() {
        assert_eq!(read(|_| {}), Ok(sound()));
        let spoilers: [(&str, Spoils); 14] = [
            ("no such number of cells", |it| it.bits = 17),
            ("another number of cells", |it| it.bits = 2),
            ("another number of cells", |it| drop(it.cells.pop())),
            ("two nodes", |it| it.nodes[1].id = 1),
            ("still to join", |it| it.next_node = 2),
            ("cannot be a node's", |it| {
                let process = Process { boot: BootId(0), workers: 1, addresses: Vec::new() };
                let spec = NodeSpec { weight: 1, zone: None, host: String::new(), process };
                it.nodes[1].spec = (&spec).into();
            }),
            ("an entry did that is still to come", |it| it.nodes[0].revision = 4),
            ("an entry did that is still to come", |it| it.cells[1].revision = 4),
            ("still to be made", |it| it.next_attach = 3),
            ("too many backups", |it| it.cells[0].backups = vec![it.cells[0].owner; 3]),
            ("two parts", |it| it.cells[0].learner = Some(it.cells[0].owner)),
            ("a node that is none", |it| drop(it.nodes.remove(1))),
            ("a ring that is none", |it| it.cells[0].since = it.version + 1),
            ("a ring that is none", |it| it.cells[0].epoch = Epoch::LAST.0),
        ];
        for (what, spoil) in spoilers {
            let why = read(spoil).expect_err(what).to_string();
            assert!(why.contains(what), "{why}, and not {what}");
        }
    }
}
