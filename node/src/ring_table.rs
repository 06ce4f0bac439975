//! The ring of a cluster of one, as its workers tell it to clients.

use lockring_proto::{NodeInfo, RingChunk, RingRun};
use lockring_ring::{CellBits, CellId, Epoch, RingVersion};

/// Runs in one part: at 14 bytes each at most, a part stays below 32 KiB, the first with the hosts
/// and ports of a node too.
const RUNS_PER_CHUNK: usize = 1024;

/// Every cell is one node's; epochs differ only where a counter was used up.
#[derive(Clone)]
pub struct RingTable {
    version: RingVersion,
    bits: CellBits,
    node: NodeInfo,
    epochs: Vec<Epoch>,
}

impl RingTable {
    /// All cells under one epoch.
    pub fn new(version: RingVersion, bits: CellBits, node: NodeInfo, epoch: Epoch) -> Self {
        Self { version, bits, node, epochs: vec![epoch; bits.cells() as usize] }
    }

    /// A cell has a new epoch from this version on.
    pub fn raise(&mut self, cell: CellId, epoch: Epoch, version: RingVersion) {
        self.version = self.version.max(version);
        self.epochs[cell.0 as usize] = epoch;
    }

    /// The whole ring, in parts.
    pub fn chunks(&self) -> Vec<RingChunk> {
        let runs: Vec<RingRun> = self
            .epochs
            .chunk_by(|a, b| a == b)
            .map(|run| RingRun {
                cells: run.len() as u32,
                owner: self.node.id,
                backup: None,
                epoch: run[0].0,
            })
            .collect();
        let mut first = 0;
        let parts = runs.len().div_ceil(RUNS_PER_CHUNK);
        runs.chunks(RUNS_PER_CHUNK)
            .enumerate()
            .map(|(index, runs)| {
                let chunk = RingChunk {
                    version: self.version.0,
                    cell_bits: self.bits.bits(),
                    nodes: if index == 0 { vec![self.node.clone()] } else { Vec::new() },
                    first,
                    runs: runs.to_vec(),
                    last: index + 1 == parts,
                };
                first += runs.iter().map(|run| run.cells).sum::<u32>();
                chunk
            })
            .collect()
    }
}
