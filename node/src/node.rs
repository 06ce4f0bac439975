//! Assembly: the one place where threads, runtimes and sockets are made.

use crate::admin::{self, Admin, View};
use crate::advertise;
use crate::config::{Data, NodeConfig};
use crate::control::{self, Health};
use crate::endpoint::{self, BindError};
use crate::error::StartError;
use crate::files;
use crate::gate::HandshakeLimits;
use crate::memory::{Memory, Watch};
use crate::messages::{Order, Report, WorkerCommand};
use crate::state::WorkerState;
use crate::store::{Boot, Store, Vault};
use crate::tls;
use crate::ttl::TtlMax;
use crate::worker;
use lockring_control::cluster::{NodeSpec, Process, State};
use lockring_core::{ClusterEvent, Event};
use lockring_core::{Config, Machine};
use lockring_proto::{NodeAddress, Time, clock, limits};
use lockring_ring::{BootId, CellId, Epoch, RingVersion};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// A node that serves nothing after this long does not start. What a lost log leaves is waited for,
/// which takes the longest.
const SERVES_WITHIN: Duration = Duration::from_secs(20);

/// At the end of a node a disk that hangs is waited for no longer than this.
const WRITES_END_WITHIN: Duration = Duration::from_secs(3);

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
    orders: mpsc::UnboundedSender<Order>,
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
    /// Its process, by a number drawn at its start.
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
        let Prepared { mut store, log, before, files, server, sockets, addresses, admin } =
            Prepared::of(config)?;
        // All that may fail at a user's doing has been done: from here on the next start would wait
        // for the leases of this one.
        let boot = store.begin(BootId(random()?[0] | 1), &log)?;
        let (tell, deaths) = mpsc::unbounded_channel();
        let (orders, inbox) = mpsc::unbounded_channel();
        let machine = base(config, &boot, &before, random()?);
        let listen = sockets.first;
        let start = |(index, socket): (usize, std::net::UdpSocket)| WorkerStart {
            index,
            socket,
            keys: boot.keys.clone(),
            server: server.clone(),
            machine: Config { worker: index as u16, ..machine.clone() },
            orders: orders.clone(),
            ttl_max: config.ttl_max.clone(),
            handshakes: config.handshakes,
            death: Death { name: format!("worker {index}"), tell: tell.clone() },
        };
        let workers = sockets.sockets.into_iter().enumerate().map(|it| start(it).spawn());
        let workers = workers.collect::<Result<Vec<_>, _>>()?;
        let health = Arc::new(Health::default());
        let (serves, is_served) = std_mpsc::channel();
        let start = control::Start {
            store,
            log,
            bits: config.cell_bits,
            spec: spec(boot.boot, config.workers, addresses),
            boot: boot.clone(),
            workers: workers_of(&workers),
            health: Arc::clone(&health),
            serves,
        };
        let death = Death { name: "the control thread".to_owned(), tell };
        let control = Some(spawn_control(start, inbox, death)?);
        let memory = Arc::new(Memory::default());
        let (node, life, cause) = (boot.node, boot.boot.0, Arc::clone(&health));
        let (commands, shown) = (workers_of(&workers), Arc::clone(&memory));
        let view = View { workers: commands, node, boot: life, health, memory: shown };
        let (client_bundle, drain) = (files.client, config.drain);
        // From here on it ends as it is dropped.
        let mut node = Self {
            admin: None,
            workers,
            watch: None,
            control,
            orders,
            deaths,
            boot,
            listen,
            client_bundle,
            drain,
        };
        let commands = workers_of(&node.workers);
        node.watch = Some(Watch::start(config.memory, commands, memory)?);
        let start = |listener| Admin::start(listener, view, &config.admin_hosts);
        node.admin = admin.map(start).transpose()?;
        match is_served.recv_timeout(SERVES_WITHIN) {
            Ok(()) => Ok(node),
            Err(_) => Err(StartError::NotServing(cause.cause())),
        }
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
            boot: self.boot.boot.0,
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
        let mut held = Vec::with_capacity(self.workers.len());
        for worker in self.workers.drain(..) {
            held.push(worker.ended.await.ok().map(|last| last.stats.holds));
            if worker.thread.join().is_err() {
                tracing::error!("a worker had panicked");
            }
        }
        let (done, recorded) = oneshot::channel();
        let left = held.iter().flatten().sum();
        let _told_by_the_answer = self.orders.send(Order::Stop { held, done });
        let clean = recorded.await.unwrap_or(false);
        if let Some(control) = self.control.take()
            && control.join().is_err()
        {
            tracing::error!("the control thread had panicked");
        }
        Stopped { held: left, clean }
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

/// What a start needs of the world, before anything of it runs.
struct Prepared {
    store: Store,
    log: Vault,
    /// What the log makes.
    before: State,
    files: files::Files,
    server: quinn::ServerConfig,
    sockets: Sockets,
    addresses: Vec<NodeAddress>,
    admin: Option<std::net::TcpListener>,
}

impl Prepared {
    fn of(config: &NodeConfig) -> Result<Self, StartError> {
        if !config.workers.is_power_of_two() || config.workers > limits::WORKERS_MAX {
            return Err(StartError::Workers(config.workers));
        }
        let (port, workers) = (config.listen.port(), config.workers);
        if port.checked_add(workers - 1).is_none() {
            return Err(StartError::Ports(port, workers));
        }
        let (mut store, files) = match &config.data {
            Data::Directory(dir) => (Store::open(dir)?, files::ensure_files(dir)?),
            Data::Memory { client } => (Store::in_memory()?, files::in_memory(client)?),
        };
        let mut log = store.log()?;
        let before = control::log_state(&mut log, config.cell_bits)?;
        let server = tls::server_config(&files)?;
        let sockets = Sockets::bind(config.listen, config.workers)?;
        let addresses =
            advertise::addresses(&config.advertise, config.workers, sockets.first.port())?;
        let admin = config.admin.map(admin::bind).transpose()?;
        Ok(Self { store, log, before, files, server, sockets, addresses, admin })
    }
}

/// What the machines of all workers have in common. They have no part in any cell before the
/// control thread says so.
fn base(config: &NodeConfig, boot: &Boot, before: &State, tag_secret: [u64; 4]) -> Config {
    Config {
        cell_bits: config.cell_bits,
        worker: 0,
        workers: config.workers,
        node: boot.node,
        boot: boot.boot.0,
        others: (0..=u16::MAX).take(config.cell_bits.cells() as usize).map(CellId).collect(),
        epoch: Epoch(0),
        ring_version: RingVersion(1),
        longest_ttl: before.longest().ttl,
        opens_at: None,
        tag_secret,
        grace_for: before.longest().by.clone(),
        limits: config.limits,
    }
}

/// What this process says of itself to the cluster.
fn spec(boot: BootId, workers: u16, addresses: Vec<NodeAddress>) -> NodeSpec {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let process = Process { boot, workers, addresses };
    NodeSpec { weight: 1, zone: None, host: host.trim().to_owned(), process }
}

fn spawn_control(
    start: control::Start,
    inbox: mpsc::UnboundedReceiver<Order>,
    death: Death,
) -> Result<JoinHandle<()>, StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name("control".to_owned());
    Ok(thread.spawn(move || {
        let _told_at_the_end = death;
        let ended = runtime.block_on(control::run(start, inbox));
        // With it go the last who can have anything written.
        drop(runtime);
        match ended {
            Ok((store, writing)) => {
                let begun = Instant::now();
                while !writing.is_finished() && begun.elapsed() < WRITES_END_WITHIN {
                    std::thread::sleep(Duration::from_millis(1));
                }
                drop(store);
            }
            Err(why) => tracing::error!(why, "the control thread has failed"),
        }
    })?)
}

/// For what no other process of the node has: its number, and the secret of its tables.
fn random() -> Result<[u64; 4], std::io::Error> {
    let mut secret = [[0; 8]; 4];
    getrandom::fill(secret.as_flattened_mut())?;
    Ok(secret.map(u64::from_ne_bytes))
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
    orders: mpsc::UnboundedSender<Order>,
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
        let (index, machine, orders) = (self.index, self.machine, self.orders);
        let (ttl_max, handshakes, death) = (self.ttl_max, self.handshakes, self.death);
        let (tell, ended) = oneshot::channel();
        let thread =
            std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                let _told_at_the_end = death;
                let mut state =
                    WorkerState::new(index, Machine::new(machine, clock::now()), orders, ttl_max);
                // It answers nothing before it has heard of its cluster.
                state.run(None, Event::Cluster(ClusterEvent::Lease(Time(0))));
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
        let next = Node::start(&config(data.path())).unwrap().status().await;
        assert!(next.workers.iter().all(|worker| worker.grace_left.is_some()));
    }
}
