//! Assembly: the one place where threads, runtimes and sockets are made.

use crate::admin::{self, Admin, View};
use crate::advertise;
use crate::config::{Data, NodeConfig};
use crate::control::{Control, Health};
use crate::endpoint::{self, BindError};
use crate::error::StartError;
use crate::files;
use crate::gate::HandshakeLimits;
use crate::memory::{Memory, Watch};
use crate::messages::{Order, Report, WorkerCommand};
use crate::state::WorkerState;
use crate::store::{Boot, Store};
use crate::tls;
use crate::ttl::TtlMax;
use crate::worker;
use lockring_control::WorkerEnd;
use lockring_core::{Config, Machine};
use lockring_proto::{NodeAddress, NodeInfo, Shown, Time, clock, limits};
use lockring_ring::{NodeId, RingTable};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

struct WorkerHandle {
    commands: mpsc::UnboundedSender<WorkerCommand>,
    /// How it was at its very end; dropped unsent if it panicked.
    ended: oneshot::Receiver<Report>,
    thread: JoinHandle<()>,
}

/// Says, when a thread ends for whatever reason, that it has.
struct Death {
    name: String,
    tell: mpsc::UnboundedSender<String>,
}

impl Drop for Death {
    fn drop(&mut self) {
        let _nobody_listens_after_a_stop = self.tell.send(std::mem::take(&mut self.name));
    }
}

/// A running node.
pub struct Node {
    admin: Option<Admin>,
    workers: Vec<WorkerHandle>,
    watch: Option<Watch>,
    control: Option<JoinHandle<()>>,
    orders: std_mpsc::Sender<Order>,
    deaths: mpsc::UnboundedReceiver<String>,
    boot: Boot,
    listen: SocketAddr,
    client_bundle: Option<PathBuf>,
    drain: Duration,
}

/// How a node stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Holds that were left.
    pub held: u64,
    /// The next start need not wait: nothing was held, and every lease of earlier lives had surely
    /// ended before. It is recorded durably.
    pub clean: bool,
}

/// What is known of a running node.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// Its id.
    pub node: u32,
    /// Its process life.
    pub boot: u64,
    /// Address of worker 0.
    pub listen: SocketAddr,
    /// Each worker.
    pub workers: Vec<Report>,
}

impl Node {
    /// Starts a node and returns once it serves.
    ///
    /// # Errors
    /// When its directory, certificates or ports cannot be used. Nothing runs then.
    pub fn start(config: &NodeConfig) -> Result<Self, StartError> {
        if !config.workers.is_power_of_two() || config.workers > limits::WORKERS_MAX {
            return Err(StartError::Workers(config.workers));
        }
        let (port, workers) = (config.listen.port(), config.workers);
        if port.checked_add(workers - 1).is_none() {
            return Err(StartError::Ports(port, workers));
        }
        let (store, files) = match &config.data {
            Data::Directory(dir) => (Store::open(dir)?, files::ensure_files(dir)?),
            Data::Memory { client } => (Store::in_memory()?, files::in_memory(client)?),
        };
        let server = tls::server_config(&files)?;
        let sockets = Sockets::bind(config.listen, config.workers)?;
        let addresses =
            advertise::addresses(&config.advertise, config.workers, sockets.first.port())?;
        let admin = config.admin.map(admin::bind).transpose()?;
        let tag_secret = tag_secret()?;
        // All that may fail at a user's doing has been done: from here on the next start would wait
        // for the leases of this one.
        let boot = store.boot()?;
        let (tell, deaths) = mpsc::unbounded_channel();
        let (orders, inbox) = std_mpsc::channel();
        let base = base(config, &boot, tag_secret);
        let ring = ring(config, &boot, addresses);
        let mut workers = Vec::with_capacity(sockets.sockets.len());
        for (index, socket) in sockets.sockets.into_iter().enumerate() {
            let start = WorkerStart {
                index,
                socket,
                keys: boot.keys.clone(),
                server: server.clone(),
                machine: Config { worker: index as u16, ..base.clone() },
                ring: ring.clone(),
                orders: orders.clone(),
                ttl_max: config.ttl_max.clone(),
                handshakes: config.handshakes,
                death: Death { name: format!("worker {index}"), tell: tell.clone() },
            };
            workers.push(start.spawn()?);
        }
        let health = Arc::new(Health::default());
        let control =
            Control::new(store, boot.state.clone(), workers_of(&workers), Arc::clone(&health));
        let death = Death { name: "the control thread".to_owned(), tell };
        let control = std::thread::Builder::new().name("control".to_owned()).spawn(move || {
            let _told_at_the_end = death;
            control.run(&inbox);
        })?;
        let memory = Arc::new(Memory::default());
        let watch = Watch::start(config.memory, workers_of(&workers), Arc::clone(&memory))?;
        let (node, life) = (boot.node, boot.state.boot.0);
        let view = View { workers: workers_of(&workers), node, boot: life, health, memory };
        let admin =
            admin.map(|listener| Admin::start(listener, view, &config.admin_hosts)).transpose()?;
        Ok(Self {
            admin,
            workers,
            watch: Some(watch),
            control: Some(control),
            orders,
            deaths,
            boot,
            listen: sockets.first,
            client_bundle: files.client,
            drain: config.drain,
        })
    }

    /// The bundle that the node made for its first client, if it can issue any.
    pub fn client_bundle(&self) -> Option<&PathBuf> {
        self.client_bundle.as_ref()
    }

    /// Address of worker 0.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// What the store said at the start.
    pub fn boot(&self) -> &Boot {
        &self.boot
    }

    /// Where the admin HTTP listens.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(Admin::at)
    }

    /// How the workers are.
    pub async fn status(&self) -> NodeStatus {
        let mut reports = Vec::with_capacity(self.workers.len());
        for worker in &self.workers {
            let (answer, report) = oneshot::channel();
            if worker.commands.send(WorkerCommand::Report(answer)).is_ok()
                && let Ok(report) = report.await
            {
                reports.push(report);
            }
        }
        NodeStatus {
            node: self.boot.node,
            boot: self.boot.state.boot.0,
            listen: self.listen,
            workers: reports,
        }
    }

    /// Waits until a part of the node ends that should not, and names it: the node can only be
    /// stopped then, and started anew. Cancel safe.
    pub async fn failed(&mut self) -> String {
        self.deaths.recv().await.unwrap_or_default()
    }

    /// Stops: refuses new claims, waits for locks to be given back within the drain limit, tells
    /// every client and ends. Dropping it midway ends the node as a crash does.
    pub async fn stop(self) -> Stopped {
        self.stop_sooner(std::future::pending()).await
    }

    /// As [`Node::stop`], but waits for locks to be given back no longer than `hurry`.
    pub async fn stop_sooner(mut self, hurry: impl Future<Output = ()>) -> Stopped {
        self.tell_all(|| WorkerCommand::Drain);
        let given_back = async {
            loop {
                let status = self.status().await;
                let held: u64 = status.workers.iter().map(|report| report.stats.holds).sum();
                if held == 0 || status.workers.len() < self.workers.len() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            _ = tokio::time::timeout(self.drain, given_back) => {}
            () = hurry => {}
        }
        if let Some(admin) = self.admin.take() {
            admin.stop();
        }
        if let Some(watch) = self.watch.take() {
            watch.stop();
        }
        // All at once: each may have a slow client to wait for.
        self.tell_all(|| WorkerCommand::Stop);
        let mut ends = Vec::with_capacity(self.workers.len());
        for worker in self.workers.drain(..) {
            let last = worker.ended.await.ok();
            ends.push(last.map(|last| WorkerEnd {
                held: last.stats.holds,
                in_grace: last.grace_left.is_some(),
            }));
            if worker.thread.join().is_err() {
                tracing::error!("a worker had panicked");
            }
        }
        let (done, recorded) = oneshot::channel();
        let held = ends.iter().flatten().map(|end| end.held).sum();
        let _told_by_the_answer = self.orders.send(Order::Stop { ends, done });
        let clean = recorded.await.unwrap_or(false);
        if let Some(control) = self.control.take()
            && control.join().is_err()
        {
            tracing::error!("the control thread had panicked");
        }
        Stopped { held, clean }
    }

    fn tell_all(&self, command: impl Fn() -> WorkerCommand) {
        for worker in &self.workers {
            let _gone_if_it_panicked = worker.commands.send(command());
        }
    }
}

impl Drop for Node {
    /// A node that is dropped ends, and nothing says that it ended well.
    fn drop(&mut self) {
        self.tell_all(|| WorkerCommand::Stop);
    }
}

fn workers_of(workers: &[WorkerHandle]) -> Vec<mpsc::UnboundedSender<WorkerCommand>> {
    workers.iter().map(|worker| worker.commands.clone()).collect()
}

/// When the leases of the node's earlier lives have surely ended; `None` if there can be none.
fn opens_at(boot: &Boot) -> Option<Time> {
    let grace = boot.grace.as_ref()?;
    tracing::warn!(
        seconds = grace.span.as_secs_f64(),
        longest_ttl = ?grace.longest_ttl,
        of = %Shown(&grace.whose),
        "restarted: claims wait in the queue until every earlier lease has surely ended"
    );
    Some(clock::now().after(grace.span))
}

/// What the machines of all workers have in common.
fn base(config: &NodeConfig, boot: &Boot, tag_secret: [u64; 4]) -> Config {
    let state = &boot.state;
    Config {
        cell_bits: config.cell_bits,
        worker: 0,
        workers: config.workers,
        node: boot.node,
        boot: state.boot.0,
        others: BTreeSet::new(),
        epoch: state.epoch_floor,
        ring_version: state.ring_version(),
        longest_ttl: state.longest_ttl,
        opens_at: opens_at(boot),
        tag_secret,
        grace_for: boot.grace.as_ref().map_or_else(String::new, |grace| grace.whose.clone()),
        limits: config.limits,
    }
}

/// For the tables of one process life: no table outlives it.
fn tag_secret() -> Result<[u64; 4], std::io::Error> {
    let mut secret = [[0; 8]; 4];
    getrandom::fill(secret.as_flattened_mut())?;
    Ok(secret.map(u64::from_ne_bytes))
}

/// The ring of a cluster of one: every cell is this node's.
fn ring(config: &NodeConfig, boot: &Boot, addresses: Vec<NodeAddress>) -> RingTable<NodeInfo> {
    let (id, state) = (NodeId(boot.node), &boot.state);
    let node = NodeInfo { id, addresses, workers: config.workers, boot: state.boot };
    RingTable::founded(state.ring_version(), config.cell_bits, node, state.epoch_floor)
        .expect("the workers were looked at, and no store gives the last epoch")
}

/// Bound UDP sockets with consecutive ports.
struct Sockets {
    first: SocketAddr,
    sockets: Vec<std::net::UdpSocket>,
}

impl Sockets {
    fn bind(listen: SocketAddr, workers: u16) -> Result<Self, StartError> {
        if listen.port() != 0 {
            return Self::bind_from(listen, workers).map_err(StartError::from);
        }
        // Any ports: the kernel chooses the first, the next ones may be taken.
        for _ in 0..64 {
            let first = endpoint::socket(listen)?;
            let at = first.local_addr().map_err(StartError::System)?;
            if usize::from(at.port()) + usize::from(workers) > usize::from(u16::MAX) {
                continue;
            }
            drop(first);
            if let Ok(bound) = Self::bind_from(at, workers) {
                return Ok(bound);
            }
        }
        Err(StartError::NoPorts(workers))
    }

    fn bind_from(first: SocketAddr, workers: u16) -> Result<Self, BindError> {
        let sockets = (0..workers).map(|index| {
            let mut at = first;
            at.set_port(first.port() + index);
            endpoint::socket(at)
        });
        Ok(Self { first, sockets: sockets.collect::<Result<_, _>>()? })
    }
}

/// What a worker's thread starts with.
struct WorkerStart {
    index: usize,
    socket: std::net::UdpSocket,
    keys: endpoint::EndpointKeys,
    server: quinn::ServerConfig,
    machine: Config,
    ring: RingTable<NodeInfo>,
    orders: std_mpsc::Sender<Order>,
    ttl_max: TtlMax,
    handshakes: HandshakeLimits,
    death: Death,
}

impl WorkerStart {
    fn spawn(self) -> Result<WorkerHandle, StartError> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let dropped = Arc::new(AtomicU64::new(0));
        let endpoint = {
            let _inside = runtime.enter();
            let (limits, dropped) = (self.handshakes, Arc::clone(&dropped));
            endpoint::sieved(self.socket, &self.keys, self.server, limits, dropped)?
        };
        let (index, machine, ring, orders) = (self.index, self.machine, self.ring, self.orders);
        let (ttl_max, handshakes, death) = (self.ttl_max, self.handshakes, self.death);
        let (tell, ended) = oneshot::channel();
        let thread =
            std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                let _told_at_the_end = death;
                let machine = Machine::new(machine, clock::now());
                let mut state = WorkerState::new(index, machine, ring, orders, ttl_max);
                state.telemetry.packets_dropped = dropped;
                let running = worker::run(endpoint, state, inbox, handshakes);
                // With the tasks gone, what the last look saw is how it stays.
                if let Some(last) = tokio::task::LocalSet::new().block_on(&runtime, running) {
                    let _nobody_asks_after_a_drop = tell.send(last);
                }
            })?;
        Ok(WorkerHandle { commands, ended, thread })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn config(data: &Path) -> NodeConfig {
        let data = Data::Directory(data.to_owned());
        NodeConfig { workers: 2, drain: Duration::ZERO, ..NodeConfig::new(data) }
    }

    /// A task that panics ends its worker, the node is told, and its stop is not a clean one.
    #[tokio::test]
    async fn a_panic_in_a_task_fails_the_node() {
        let data = tempfile::tempdir().unwrap();
        let mut node = Node::start(&config(data.path())).unwrap();
        node.workers[1].commands.send(WorkerCommand::Panic).unwrap();
        let failed = tokio::time::timeout(Duration::from_secs(10), node.failed()).await;
        assert_eq!(failed.unwrap(), "worker 1");
        assert_eq!(node.stop().await, Stopped { held: 0, clean: false });
        assert!(!Node::start(&config(data.path())).unwrap().boot().was_clean);
    }
}
