//! The control thread: the node's part in its cluster's control plane, away from the workers.
//!
//! It feeds the plane with what the log, the workers and the clock say, and carries out what it
//! asks for. What an entry means for the workers they are told in the order of the entries: first
//! which processes there are, then the ring, then who holds what.

mod consensus;
mod health;
mod raft;
mod stop;

pub use health::Health;
pub(crate) use raft::state as log_state;

use crate::messages::{Changes, Order, WorkerCommand};
use crate::store::{Boot, Store, StoreError, Vault};
use consensus::{Begin, Consensus, Nobody};
use lockring_control::cluster::{
    Action, Control as Plane, Entry, Event, Fact, Floors, NodeSpec, NodeState, State,
};
use lockring_proto::{Shown, clock};
use lockring_ring::{BootId, CellBits, NodeId, RingVersion};
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, mpsc as std_mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use stop::Stop;
use tokio::sync::mpsc;

/// So many orders are carried out at once.
const ORDERS_MAX: usize = 1 << 14;

/// What the control thread begins with.
pub struct Start {
    /// Held, with the lock of the data directory, as long as the thread runs.
    pub store: Store,
    /// The log, as it is on the disk.
    pub log: Vault,
    /// log2 of the number of cells.
    pub bits: CellBits,
    /// What the process begins from.
    pub boot: Boot,
    /// What it says of itself.
    pub spec: NodeSpec,
    /// Its workers.
    pub workers: Vec<mpsc::UnboundedSender<WorkerCommand>>,
    /// How writing to the disk goes.
    pub health: Arc<Health>,
    /// Told once every cell of this process is served.
    pub serves: std_mpsc::Sender<()>,
}

/// The control thread's state.
struct Control {
    plane: Plane,
    log: Consensus,
    workers: Vec<mpsc::UnboundedSender<WorkerCommand>>,
    health: Arc<Health>,
    me: (NodeId, BootId),
    /// Which processes workers were told of, and which ring.
    nodes: Vec<(NodeId, BootId, u16)>,
    ring: RingVersion,
    /// Whom to tell that everything is served.
    serves: Option<std_mpsc::Sender<()>>,
    has_lease: bool,
    stop: Option<Stop>,
    /// Nothing follows.
    is_over: bool,
}

/// Runs until the node has stopped, or nobody can say anything any more. What is returned ends with
/// the runtime, but for a disk that hangs: the store is to be held until then.
///
/// # Errors
/// When the log cannot be begun, or has failed: the node can only end then.
pub async fn run(
    start: Start,
    mut orders: mpsc::UnboundedReceiver<Order>,
) -> Result<(Store, JoinHandle<()>), String> {
    let Start { store, log, bits, boot, spec, workers, health, serves } = start;
    let (tell, committed) = mpsc::unbounded_channel();
    let me = NodeId(boot.node);
    let opened = raft::open(log, me, bits, Arc::clone(&health), tell);
    let (log, machine, writing) = opened.map_err(|error: StoreError| error.to_string())?;
    let begin = Begin {
        me,
        network: Nobody,
        voters: BTreeSet::from([u64::from(me.0)]),
        storage: (log, machine),
        committed,
        health: Arc::clone(&health),
    };
    let begun = Consensus::start(begin).await;
    let (log, mut told) = begun.map_err(|error| error.to_string())?;
    let founding = founding(&spec, boot.floors);
    let process = (spec, boot.after);
    let plane = Plane::new(clock::now(), me, process, founding, State::new(bits));
    let mut control = Control {
        plane,
        log,
        workers,
        health,
        me: (me, boot.boot),
        nodes: Vec::new(),
        ring: RingVersion(0),
        serves: Some(serves),
        has_lease: false,
        stop: None,
        is_over: false,
    };
    let (mut gathered, mut events) = (Vec::new(), Vec::new());
    while !control.is_over {
        let wait = control.wakes_in();
        tokio::select! {
            biased;
            count = orders.recv_many(&mut gathered, ORDERS_MAX) => match count {
                0 => break,
                _ => control.ordered(gathered.drain(..)),
            },
            count = told.recv_many(&mut events, ORDERS_MAX) => match count {
                0 => return Err("the log of the cluster has failed".to_owned()),
                _ => control.handle(events.drain(..).map(Event::Log)),
            },
            () = tokio::time::sleep(wait) => control.handle([Event::Tick]),
        }
    }
    control.log.stop().await;
    Ok((store, writing))
}

/// How the log begins if it is empty.
fn founding(spec: &NodeSpec, floors: Option<Floors>) -> Entry {
    match floors {
        Some(floors) => Entry::Recover(spec.clone(), floors),
        None => Entry::Join(spec.clone()),
    }
}

impl Control {
    fn wakes_in(&self) -> Duration {
        let now = clock::now();
        let stop = self.stop.as_ref().map(Stop::until);
        let next = self.plane.next_deadline();
        stop.map_or(next, |until| until.min(next)).since(now)
    }

    fn ordered(&mut self, orders: impl Iterator<Item = Order>) {
        let (mut said, mut stop) = (Vec::new(), None);
        for order in orders {
            match order {
                Order::Said(worker, event) => said.push((worker, event)),
                // Nothing comes after it.
                Order::Stop { held, done } => stop = Some(Stop::new(clock::now(), &held, done)),
            }
        }
        self.handle([Event::Workers(said)]);
        let Some(stop) = stop else { return };
        let waits = stop.waits();
        self.stop = Some(stop);
        if waits {
            self.handle([Event::Ended]);
        } else {
            self.ends(false);
        }
    }

    /// Has the plane take these in, with all that follows at once, and carries out what it asks
    /// for. Of many entries the workers are told the last ring alone, which may come before what
    /// the entries mean for them.
    fn handle(&mut self, events: impl IntoIterator<Item = Event>) {
        let mut events: VecDeque<Event> = events.into_iter().collect();
        let (mut actions, mut asked, mut nodes) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(event) = events.pop_front() {
            let before = self.plane.state().applied();
            self.plane.handle(clock::now(), event, &mut actions);
            if self.plane.state().applied() != before {
                self.meet_nodes(&mut nodes);
            }
            let version = self.plane.state().version();
            for action in actions.drain(..) {
                match action {
                    Action::Send(to, message) if to == self.me.0 => {
                        events.push_back(Event::Received(to, message));
                    }
                    action => asked.push((version, action)),
                }
            }
        }
        self.tell_ring(&nodes);
        for (version, action) in asked {
            self.act(version, action);
        }
        self.look();
    }

    /// Carries one action out, of a state with this version of the ring.
    fn act(&mut self, version: RingVersion, action: Action) {
        match action {
            Action::Propose(id, entry) => self.log.propose(id, entry),
            Action::Confirm(round) => self.log.confirm(round),
            Action::Send(to, message) => tracing::debug!(%to, ?message, "there is no way to it"),
            Action::Memberships { index, whole, cells } => {
                let count = self.workers.len();
                for worker in 0..count {
                    let own =
                        cells.iter().filter(|(cell, _)| usize::from(cell.0) % count == worker);
                    let cells = own.cloned().collect();
                    let changes = Changes { index, whole, cells, version };
                    self.tell(worker, WorkerCommand::Memberships(changes));
                }
            }
            Action::Lease(until) => {
                self.has_lease = true;
                self.tell_all(|| WorkerCommand::Lease(until));
            }
            Action::ConfirmTtl(worker, ttl) => self.tell(worker, WorkerCommand::LongestTtl(ttl)),
            Action::RefuseTtl(worker, why) => {
                let why = match self.health.cause() {
                    Some(cause) => format!("{why}: it cannot be made durable ({cause})"),
                    None => why,
                };
                self.tell(worker, WorkerCommand::TtlFailed(why));
            }
            Action::AskTtl { round, window } => {
                self.tell_all(|| WorkerCommand::StateTtl { round, window });
            }
            Action::Removed => {
                tracing::error!("another process has begun as this node: this one ends");
                self.is_over = true;
            }
            Action::Stopped => self.ends(true),
            Action::Count(fact) => tell_operator(fact),
        }
    }

    /// Which processes there are after an entry, if workers were not told of them.
    fn meet_nodes(&mut self, met: &mut Vec<(NodeId, BootId, u16)>) {
        let known = |(&id, node): (&NodeId, &NodeState)| {
            (id, node.spec.process.boot, node.spec.process.workers)
        };
        let nodes: Vec<_> = self.plane.state().nodes().iter().map(known).collect();
        if nodes != self.nodes {
            met.extend(nodes.iter().filter(|node| !self.nodes.contains(node)));
            self.nodes = nodes;
        }
    }

    /// Tells the workers what the last entries have changed of processes and of the ring.
    fn tell_ring(&mut self, nodes: &[(NodeId, BootId, u16)]) {
        if !nodes.is_empty() {
            self.tell_all(|| WorkerCommand::Nodes(nodes.to_vec()));
        }
        let state = self.plane.state();
        let is_newer = state.version() > self.ring;
        if let Some(ring) = is_newer.then(|| state.ring()).flatten() {
            self.ring = ring.version();
            let ring = Arc::new(ring);
            self.tell_all(|| WorkerCommand::Ring(Arc::clone(&ring)));
        }
    }

    /// Says so once everything is served, and ends a stop that takes too long.
    fn look(&mut self) {
        if self.serves.is_some() && self.has_lease && self.serves_all() {
            self.warn_of_grace();
            if let Some(serves) = self.serves.take() {
                let _nobody_waits_for_it = serves.send(());
            }
        }
        if self.stop.as_ref().is_some_and(|stop| stop.until() <= clock::now()) {
            tracing::error!("the stop was clean but could not be recorded as such");
            self.ends(false);
        }
    }

    /// Tells people if nothing is granted yet.
    fn warn_of_grace(&self) {
        let state = self.plane.state();
        let Some(grace) = state.cells().filter_map(|(_, cell)| cell.grace).max() else { return };
        tracing::warn!(
            seconds = grace.as_secs_f64(),
            longest_ttl = ?state.longest().ttl,
            of = %Shown(&state.longest().by),
            "restarted: claims wait in the queue until every earlier lease has surely ended"
        );
    }

    /// Whether every cell has an owner, and every worker does by all it was told.
    fn serves_all(&self) -> bool {
        let state = self.plane.state();
        let mut cells = state.cells().peekable();
        cells.peek().is_some()
            && cells.all(|(_, cell)| cell.loss.is_none())
            && self.plane.is_done_by()
    }

    /// The stop is over. It was clean if the log has it that nothing is owed.
    fn ends(&mut self, is_known: bool) {
        self.is_over = true;
        if let Some(stop) = self.stop.take() {
            stop.done(is_known && stop::owes_nothing(self.plane.state(), self.me.0));
        }
    }

    fn tell(&self, worker: usize, command: WorkerCommand) {
        let _stopped_meanwhile = self.workers[worker].send(command);
    }

    fn tell_all(&self, command: impl Fn() -> WorkerCommand) {
        (0..self.workers.len()).for_each(|worker| self.tell(worker, command()));
    }
}

fn tell_operator(fact: Fact) {
    match fact {
        Fact::LateLoop => tracing::warn!("the control thread was late: nobody is taken for silent"),
        other => tracing::info!(fact = ?other, "the control plane"),
    }
}

#[cfg(test)]
mod tests;
