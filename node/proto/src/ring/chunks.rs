//! From a table, or what has changed of one, to the parts that carry it.

use super::{NodeInfo, RingChunk, RingRun};
use lockring_ring::{CellBits, Diff, NodeId, Patch, RingTable, RingVersion};

/// A part is closed before it grows beyond this, in bytes.
const CHUNK_BYTES_MAX: usize = 32 << 10;

/// At most what a part has beside its lists, what a run has, and what a node and an address have
/// beside the host.
const HEAD_BYTES: usize = 64;
const RUN_BYTES: usize = 40;
const NODE_BYTES: usize = 24;
const ADDRESS_BYTES: usize = 6;
const GONE_BYTES: usize = 5;

impl RingChunk {
    /// A whole ring, in parts.
    pub fn whole(table: &RingTable<NodeInfo>) -> Vec<Self> {
        let mut parts = Parts::new(None, table.version(), table.bits());
        table.nodes().iter().for_each(|node| parts.node(node));
        table.runs().into_iter().for_each(|run| parts.patch(Patch { skip: 0, run }));
        parts.finished()
    }

    /// What has changed of a ring, in parts.
    pub fn change(diff: &Diff<NodeInfo>) -> Vec<Self> {
        let mut parts = Parts::new(Some(diff.from), diff.to, diff.bits);
        diff.nodes.iter().for_each(|node| parts.node(node));
        diff.gone.iter().for_each(|&gone| parts.gone(gone));
        diff.patches.iter().for_each(|&patch| parts.patch(patch));
        parts.finished()
    }
}

/// Parts in the making: those that are full, and the one that is filled.
struct Parts {
    full: Vec<RingChunk>,
    open: RingChunk,
    /// Bytes that the open one may still take.
    room: usize,
}

impl Parts {
    fn new(base: Option<RingVersion>, version: RingVersion, bits: CellBits) -> Self {
        let open = RingChunk {
            version: version.0,
            base: base.map(|base| base.0),
            cell_bits: bits.bits(),
            part: 0,
            nodes: Vec::new(),
            gone: Vec::new(),
            runs: Vec::new(),
            last: true,
        };
        Self { full: Vec::new(), open, room: CHUNK_BYTES_MAX - HEAD_BYTES }
    }

    fn node(&mut self, node: &NodeInfo) {
        let addresses = node.addresses.iter().map(|at| at.host.len() + ADDRESS_BYTES);
        self.make_room(NODE_BYTES + addresses.sum::<usize>());
        self.open.nodes.push(node.clone());
    }

    fn gone(&mut self, node: NodeId) {
        self.make_room(GONE_BYTES);
        self.open.gone.push(node.0);
    }

    fn patch(&mut self, Patch { skip, run }: Patch) {
        self.make_room(RUN_BYTES);
        self.open.runs.push(RingRun {
            skip,
            cells: run.cells,
            owner: run.placement.owner.0,
            backup: run.placement.backup.map(|backup| backup.0),
            epoch: run.epoch.0,
            since: run.since.0,
            takeover: run.takeover.0,
        });
    }

    fn make_room(&mut self, bytes: usize) {
        if bytes > self.room {
            let next = RingChunk {
                part: self.open.part + 1,
                nodes: Vec::new(),
                gone: Vec::new(),
                runs: Vec::new(),
                ..self.open
            };
            let full = std::mem::replace(&mut self.open, next);
            self.full.push(RingChunk { last: false, ..full });
            self.room = CHUNK_BYTES_MAX - HEAD_BYTES;
        }
        self.room = self.room.saturating_sub(bytes);
    }

    fn finished(mut self) -> Vec<RingChunk> {
        self.full.push(self.open);
        self.full
    }
}
