//! Connections between clients and workers, and how workers are numbered.

use lockring_client::session::LinkId;
use lockring_core::ConnId;

/// A connection and its two ends.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub conn: ConnId,
    pub client: usize,
    pub life: u32,
    pub link: LinkId,
    pub node: usize,
    pub worker: u16,
}

impl Way {
    /// The number of its worker.
    pub fn number(&self) -> u16 {
        number_of(self.node, self.worker)
    }
}

/// No node has so many workers.
const WORKERS: u16 = 16;

/// A worker's number in the run.
pub fn number_of(node: usize, worker: u16) -> u16 {
    node as u16 * WORKERS + worker
}

/// Node and worker of a number.
pub fn parts_of(number: u16) -> (usize, u16) {
    (usize::from(number / WORKERS), number % WORKERS)
}
