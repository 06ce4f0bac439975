//! Where workers may be, as names that are resolved for each contact: what the ring has, and the
//! seeds that the user has given.

use crate::router::{Ring, WorkerId};
use crate::target::{Host, Seed};
use lockring_ring::NodeId;
use std::collections::BTreeMap;
use std::time::Duration;

/// Where the ring has the first worker of a node, and it has not answered by then, it is looked for
/// by the seeds as well.
const MOVED_AFTER: Duration = Duration::from_secs(3);

/// Where a worker is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Search {
    /// First.
    pub(crate) there: Vec<Seed>,
    /// It may be nobody's place any more: then, or once nobody has answered there for so long, the
    /// seeds are tried too.
    pub(crate) else_by_seeds: Option<Duration>,
}

/// The ring has the node, and it has no such worker any more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoSuchWorker;

/// What is known of where nodes are, apart from the ring.
pub(crate) struct Places {
    /// As the user gave them.
    seeds: Vec<Seed>,
    /// By which seed a node was found, with the port of worker 0: for nodes whose ring entry names
    /// no host.
    found_at: BTreeMap<NodeId, Seed>,
}

impl Places {
    pub(crate) fn new(seeds: Vec<Seed>) -> Self {
        Self { seeds, found_at: BTreeMap::new() }
    }

    pub(crate) fn seeds(&self) -> &[Seed] {
        &self.seeds
    }

    /// A worker was reached by the seed of this number.
    pub(crate) fn found(&mut self, worker: WorkerId, seed: usize) {
        let seed = &self.seeds[seed];
        let port = seed.port.saturating_sub(worker.worker);
        self.found_at.insert(worker.node, Seed { port, ..seed.clone() });
    }

    /// Where to look for a worker.
    ///
    /// The whole node may have moved and the ring be old: its first worker is then looked for by
    /// the names that the user gave too, and has the newer ring.
    pub(crate) fn of(&self, ring: Option<&Ring>, worker: WorkerId) -> Result<Search, NoSuchWorker> {
        let by_seeds = Search { there: self.seeds.clone(), else_by_seeds: None };
        let Some(there) = self.told(ring, worker)? else { return Ok(by_seeds) };
        let only_there = worker.worker != 0 || there == self.seeds;
        let else_by_seeds = (!only_there).then_some(MOVED_AFTER);
        Ok(Search { there, else_by_seeds })
    }

    /// Where a worker is by what was told. `None`: nobody has told.
    fn told(
        &self,
        ring: Option<&Ring>,
        worker: WorkerId,
    ) -> Result<Option<Vec<Seed>>, NoSuchWorker> {
        let Some(node) = ring.and_then(|ring| ring.node(worker.node)) else { return Ok(None) };
        let (host, port) = node.address(worker.worker).ok_or(NoSuchWorker)?;
        if !host.is_empty() {
            let host = Host::of_ring(host).ok_or(NoSuchWorker)?;
            return Ok(Some(vec![Seed { host, port }]));
        }
        let Some(found) = self.found_at.get(&worker.node) else { return Ok(None) };
        // Its ports may be published under other numbers, one by one or all in a row.
        let published = found.port.saturating_add(worker.worker);
        let mut there = vec![Seed { port: published, ..found.clone() }];
        if port != published {
            there.push(Seed { port, ..found.clone() });
        }
        Ok(Some(there))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockring_proto::{BootId, NodeAddress, NodeInfo};
    use lockring_ring::{CellBits, Epoch, RingTable, RingVersion};

    fn ring(host: &str, port: u16, workers: u16) -> Ring {
        let addresses = vec![NodeAddress { host: host.to_owned(), port }];
        let node = NodeInfo { id: NodeId(1), addresses, workers, boot: BootId(1) };
        let bits = CellBits::new(2).unwrap();
        Ring::new(RingTable::founded(RingVersion(1), bits, node, Epoch(1)).unwrap()).unwrap()
    }

    fn seed(name: &str, port: u16) -> Seed {
        Seed { host: Host::Name(name.to_owned()), port }
    }

    fn worker(worker: u16) -> WorkerId {
        WorkerId { node: NodeId(1), worker }
    }

    #[test]
    fn a_worker_is_looked_for_where_it_was_told_and_the_first_by_the_seeds_too() {
        let mut places = Places::new(vec![seed("a.test", 7), seed("b.test", 9)]);
        let by_seeds = Search { there: places.seeds().to_vec(), else_by_seeds: None };
        assert_eq!(places.of(None, worker(1)), Ok(by_seeds.clone()));
        // The ring names no host, and nobody has found the node yet.
        let nameless = ring("", 20, 2);
        assert_eq!(places.of(Some(&nameless), worker(0)), Ok(by_seeds));
        // Worker 1 was met at the second seed: worker 0 listens below it, or where the ring says.
        places.found(worker(1), 1);
        let (row, told) = (vec![seed("b.test", 8), seed("b.test", 20)], seed("node.test", 21));
        let both = Search { there: row, else_by_seeds: Some(MOVED_AFTER) };
        assert_eq!(places.of(Some(&nameless), worker(0)), Ok(both));
        let named = ring("node.test", 20, 2);
        let there = Search { there: vec![told], else_by_seeds: None };
        assert_eq!(places.of(Some(&named), worker(1)), Ok(there));
        assert_eq!(places.of(Some(&ring("node.test", 20, 1)), worker(1)), Err(NoSuchWorker));
    }
}
