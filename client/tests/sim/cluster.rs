//! The nodes of a run.

use crate::agenda::NodeEvent;
use crate::hub::{Event, Hub};
use crate::keys::Keys;
use crate::node::{Node, audit};
use crate::way::{Way, parts_of};
use lockring_control::alone::Event as Control;
use lockring_core::testing::End;
use lockring_core::{Identity, Machine, Mutant, Time};
use lockring_proto::SessionId;
use lockring_ring::CellId;
use std::time::Duration;

/// The nodes, each with its number in the run.
pub struct Cluster {
    nodes: Vec<Node>,
}

impl Cluster {
    /// The nodes of the hub's ring, as they start for the first time.
    pub fn new(hub: &mut Hub, keys: &Keys, mutant: Option<Mutant>, clean_in_grace: bool) -> Self {
        let mut nodes: Vec<Node> =
            (0..hub.ring.nodes()).map(|index| Node::new(hub, keys, index, mutant)).collect();
        for node in &mut nodes {
            node.clean_in_grace = clean_in_grace;
        }
        Self { nodes }
    }

    pub fn node_mut(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index]
    }

    /// Any of them.
    pub fn any(&mut self, hub: &mut Hub) -> &mut Node {
        let index = hub.rng.range(0, self.nodes.len() as u64) as usize;
        &mut self.nodes[index]
    }

    /// All machines, by the numbers of their workers.
    pub fn machines(&self) -> impl Iterator<Item = (u16, &Machine)> {
        self.nodes.iter().flat_map(Node::machines)
    }

    /// Looks into all machines.
    pub fn audit(&self, hub: &mut Hub) {
        for (_, machine) in self.machines() {
            audit(hub, machine);
        }
    }

    /// The machine of the worker of this number.
    pub fn machine(&self, number: u16) -> Option<&Machine> {
        let (node, worker) = parts_of(number);
        self.nodes.get(node)?.machine(worker)
    }

    pub fn all_up(&self) -> bool {
        self.nodes.iter().all(Node::is_up)
    }

    /// How many workers a node has.
    pub fn workers_of(&self, index: usize) -> u16 {
        self.nodes[index].workers()
    }

    /// Whether another node than this is down.
    pub fn is_another_down(&self, node: usize) -> bool {
        self.nodes.iter().any(|other| other.index() != node && !other.is_up())
    }

    /// The longest lease in use, as the control planes know it.
    pub fn longest(&self) -> Duration {
        self.nodes.iter().map(Node::longest).max().unwrap_or_default()
    }

    /// Until when a worker honours the holds of a session, on the recorder's clock.
    pub fn honours_until(&self, number: u16, session: SessionId) -> Option<Time> {
        let (node, worker) = parts_of(number);
        self.nodes.get(node)?.honours_until(worker, session)
    }

    /// A connection stands. `false`: nobody is there.
    pub fn accept(&mut self, way: Way, identity: Identity) -> bool {
        self.nodes[way.node].accept(way, identity)
    }

    /// Nobody stands still any more, and no write fails.
    pub fn resume(&mut self, hub: &mut Hub) {
        for node in &mut self.nodes {
            node.resume(hub);
        }
    }

    /// Some cell shall have its next epoch.
    pub fn raise_any_epoch(&mut self, hub: &mut Hub) {
        let cells = u64::from(hub.ring.newest().bits().cells());
        let cell = CellId(hub.rng.range(0, cells) as u16);
        let node = &mut self.nodes[hub.ring.owner(cell)];
        if node.is_up() {
            node.control(hub, Control::EpochAsked(cell));
        }
    }

    /// Nothing comes from some node to another for a while, if there are two.
    pub fn cut_any(&self, hub: &mut Hub, span: Duration) {
        let count = self.nodes.len() as u64;
        if count > 1 {
            hub.reach("nodes cut off from a node one way");
            let from = hub.rng.range(0, count);
            let to = (from + hub.rng.range(1, count)) % count;
            hub.cut_way(End::Node(from as usize), End::Node(to as usize), span);
        }
    }

    /// The last numbers of all machines.
    pub fn settle_accounts(&self, hub: &mut Hub) {
        for node in &self.nodes {
            node.settle_accounts(hub);
        }
    }

    /// A frame of a client is here.
    pub fn frame(&mut self, hub: &mut Hub, way: Way, bytes: Vec<u8>) {
        self.nodes[way.node].frame(hub, way, bytes);
    }

    /// Something happens to a node.
    pub fn happens(&mut self, hub: &mut Hub, keys: &Keys, event: NodeEvent) {
        match event {
            NodeEvent::Notices { way } => self.nodes[way.node].notices(hub, way),
            NodeEvent::Work { node, worker } => self.nodes[node].work(hub, keys, worker),
            NodeEvent::Written { node, write } => self.nodes[node].written(hub, write),
            NodeEvent::Boot { node } => self.nodes[node].boot(hub),
            NodeEvent::Stopped { node, boot, down } => self.nodes[node].stopped(hub, boot, down),
            NodeEvent::ControlWakes { node } => self.nodes[node].control_wakes(hub),
            NodeEvent::News { from, to, ring } => {
                let cut = hub.net.cut_until(hub.now, End::Node(from), End::Node(to));
                match cut {
                    None => self.nodes[to].learns(hub, &ring),
                    Some(until) => {
                        hub.reach("news of the ring held up");
                        let news = NodeEvent::News { from, to, ring };
                        hub.plan(until, Event::Node(news));
                    }
                }
            }
        }
    }
}
