//! The control plane, as far as it matters to the workers: what it makes durable, and when.

use super::Node;
use crate::hub::{Event, Hub, Order};
use crate::keys::Keys;
use lockring_core::Event as Input;
use lockring_proto::{NodeAddress, NodeInfo};
use lockring_ring::{BootId, CellBits, CellId, Epoch, NodeId, RingTable, RingVersion};
use std::time::Duration;

/// The longest TTL that a restart always waits for.
pub const LONGEST_LEAST: Duration = Duration::from_secs(2);

impl Node {
    pub(super) fn ask(&self, hub: &mut Hub, worker: u16, order: Order) {
        let span = Duration::from_micros(hub.rng.range(500, 200_000));
        hub.soon(span, Event::Done { boot: self.boot, worker, order });
    }

    /// The control plane raises the epoch of a cell, and tells every worker.
    pub fn raise_epoch(&mut self, hub: &mut Hub, cell: CellId) {
        hub.reach("epoch raises");
        self.epoch_floor += 1;
        let (epoch, version) = (Epoch(self.epoch_floor), RingVersion(u64::from(self.epoch_floor)));
        self.ring.renew(cell, epoch, version).expect("the floor only grows");
        for worker in 0..self.workers() {
            self.workers[worker as usize].orders.push_back(Order::Epoch(cell));
            self.arm(hub, worker);
        }
    }

    /// The control plane has done what a worker asked for.
    pub fn done(&mut self, hub: &mut Hub, boot: u64, worker: u16, order: Order) {
        if let Order::LongestTtl(ttl) = order {
            // It is durable even if the process that asked is gone.
            self.longest = self.longest.max(ttl);
        }
        if boot != self.boot || !self.up {
            return;
        }
        match order {
            Order::Epoch(cell) => self.raise_epoch(hub, cell),
            Order::LongestTtl(_) => {
                self.workers[worker as usize].orders.push_back(order);
                self.arm(hub, worker);
            }
        }
    }

    fn in_use(&self) -> Duration {
        let ttls = self.workers.iter().map(|worker| worker.machine.longest_ttl_in_use());
        ttls.max().unwrap_or_default().max(LONGEST_LEAST)
    }

    /// When nobody can believe in the longest TTL any more, it is lowered: as the control plane of
    /// the shell does it, the workers first. What an earlier life confirmed is believed in until
    /// the grace is over.
    pub fn look(&mut self, hub: &mut Hub, keys: &Keys) {
        hub.soon(LONGEST_LEAST / 2, Event::Look);
        if !self.up || self.workers.iter().any(|worker| worker.paused_until > hub.now) {
            return;
        }
        let needed = self.in_use();
        let in_grace = self.workers.iter().any(|worker| worker.machine.opens_at().is_some());
        if needed >= self.longest || in_grace {
            return;
        }
        for worker in 0..self.workers() {
            self.turn(hub, keys, worker, Input::LongestTtl(needed), 0);
        }
        self.longest = self.in_use();
        hub.reach("longest TTL lowered");
    }
}

/// The ring at the start of a life.
pub(super) fn founded(bits: CellBits, workers: u16, boot: u64, floor: u32) -> RingTable<NodeInfo> {
    let node = NodeInfo {
        id: NodeId(1),
        addresses: vec![NodeAddress { host: String::new(), port: 7420 }],
        workers,
        boot: BootId(boot),
    };
    let version = RingVersion(u64::from(floor));
    RingTable::founded(version, bits, node, Epoch(floor)).expect("one sound node")
}
