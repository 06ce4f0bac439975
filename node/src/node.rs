//! Assembly: the one place where threads, runtimes and sockets are made.

use crate::admin::{self, Admin, View};
use crate::conns::WorkerState;
use crate::control::{Control, Order};
use crate::endpoint::{self, BindError};
use crate::files::{self, FilesError};
use crate::ring_table::RingTable;
use crate::store::{Boot, Store, StoreError};
use crate::tls;
use crate::worker::{self, Command, Report};
use lockring_core::{Config, Limits, Machine};
use lockring_proto::{NodeInfo, limits};
use lockring_ring::{CellBits, Epoch, RingVersion};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Beyond the longest lease a restarted node waits this much more, for what no clock counts:
/// scheduling between a client's send and its reading of the clock.
const GRACE_MARGIN: Duration = Duration::from_millis(50);

/// How a node is to run.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Where certificates and state are kept; made if missing.
    pub data_dir: PathBuf,
    /// Address of worker 0; worker i listens i ports above. Port 0: any free ones.
    pub listen: SocketAddr,
    /// Host name or address that clients are told; `None`: the one they came by.
    pub advertise: Option<String>,
    /// Number of workers, a power of two.
    pub workers: u16,
    /// log2 of the number of cells; fixed when the cluster is made.
    pub cell_bits: CellBits,
    /// Where the read-only admin HTTP listens; `None`: nowhere. Port 0: any free one.
    pub admin: Option<SocketAddr>,
    /// How long a stopping node waits for its locks to be given back.
    pub drain: Duration,
}

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The number of workers is not usable.
    #[error("{0} workers: use a power of two, 1 to 256")]
    Workers(u16),
    /// The state could not be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The certificates could not be used.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// A port could not be used.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// No run of free ports was found.
    #[error("found no {0} free ports in a row: name a first one with --listen")]
    NoPorts(u16),
    /// The admin port could not be used.
    #[error("cannot serve admin HTTP on {0}: {1}; choose another address with --admin")]
    Admin(SocketAddr, std::io::Error),
    /// The system gave no thread or runtime.
    #[error("the system gave no thread: {0}")]
    System(#[from] std::io::Error),
}

struct WorkerHandle {
    commands: mpsc::UnboundedSender<Command>,
    thread: JoinHandle<()>,
}

/// A running node.
pub struct Node {
    admin: Option<Admin>,
    workers: Vec<WorkerHandle>,
    control: Option<JoinHandle<()>>,
    orders: std_mpsc::Sender<Order>,
    boot: Boot,
    listen: SocketAddr,
    client_bundle: Option<PathBuf>,
    drain: Duration,
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
        if !config.workers.is_power_of_two() || config.workers > 256 {
            return Err(StartError::Workers(config.workers));
        }
        let store = Store::open(&config.data_dir)?;
        let files = files::ensure_files(&config.data_dir)?;
        let server = tls::server_config(&files)?;
        let sockets = Sockets::bind(config.listen, config.workers)?;
        let admin = config.admin.map(admin::bind).transpose()?;
        // All that may fail at a user's doing has been done: from here on the next start would wait
        // for the leases of this one.
        let boot = store.boot()?;
        let opens_at = opens_at(&boot);
        if let Some(at) = opens_at {
            let left = at.since(lockring_proto::clock::now());
            tracing::warn!(
                seconds = left.as_secs_f64(),
                "restarted: claims wait in line until every earlier lease has surely ended"
            );
        }
        let tag_secret = tag_secret()?;
        let version = RingVersion(u64::from(boot.epoch_floor));
        let ring = ring(config, &boot, sockets.first.port(), version);
        let (orders, inbox) = std_mpsc::channel();
        let mut workers = Vec::with_capacity(sockets.sockets.len());
        for (index, socket) in sockets.sockets.into_iter().enumerate() {
            let machine = Config {
                cell_bits: config.cell_bits,
                worker: index as u16,
                workers: config.workers,
                node: boot.node,
                boot: boot.boot,
                epoch: Epoch(boot.epoch_floor),
                ring_version: version,
                longest_ttl: boot.longest_ttl,
                opens_at,
                tag_secret,
                limits: Limits::default(),
            };
            let start = WorkerStart {
                index,
                socket,
                keys: boot.keys.clone(),
                server: server.clone(),
                machine,
                ring: ring.clone(),
                orders: orders.clone(),
            };
            workers.push(start.spawn()?);
        }
        let control = Control::new(store, workers_of(&workers), boot.longest_ttl);
        let control = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || control.run(&inbox))?;
        let view = View { workers: workers_of(&workers), node: boot.node, boot: boot.boot };
        let admin = admin.map(|listener| Admin::start(listener, view)).transpose()?;
        Ok(Self {
            admin,
            workers,
            control: Some(control),
            orders,
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
            if worker.commands.send(Command::Report(answer)).is_ok()
                && let Ok(report) = report.await
            {
                reports.push(report);
            }
        }
        NodeStatus {
            node: self.boot.node,
            boot: self.boot.boot,
            listen: self.listen,
            workers: reports,
        }
    }

    /// Stops: refuses new claims, waits for locks to be given back within the drain limit, tells
    /// every client and ends. Returns how many holds were left.
    pub async fn stop(mut self) -> u64 {
        for worker in &self.workers {
            let _gone_if_it_panicked = worker.commands.send(Command::Drain);
        }
        let deadline = tokio::time::Instant::now() + self.drain;
        let held = loop {
            let status = self.status().await;
            let held: u64 = status.workers.iter().map(|report| report.stats.holds).sum();
            let lost = status.workers.len() < self.workers.len();
            if lost || held == 0 || tokio::time::Instant::now() >= deadline {
                break if lost { held.max(1) } else { held };
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        if let Some(admin) = self.admin.take() {
            admin.stop();
        }
        for worker in self.workers.drain(..) {
            let _gone_if_it_panicked = worker.commands.send(Command::Stop);
            drop(worker.commands);
            if worker.thread.join().is_err() {
                tracing::error!("a worker had panicked");
            }
        }
        let _ends_below = self.orders.send(Order::Stop { clean: held == 0 });
        if let Some(control) = self.control.take()
            && control.join().is_err()
        {
            tracing::error!("the control thread had panicked");
        }
        held
    }
}

fn workers_of(workers: &[WorkerHandle]) -> Vec<mpsc::UnboundedSender<Command>> {
    workers.iter().map(|worker| worker.commands.clone()).collect()
}

/// When the leases of the node's earlier life have surely ended; `None` if there can be none.
fn opens_at(boot: &Boot) -> Option<lockring_proto::Time> {
    let none_left = boot.first || boot.was_clean;
    let grace = limits::honoured(boot.longest_ttl) + GRACE_MARGIN;
    (!none_left).then(|| lockring_proto::clock::now().after(grace))
}

/// The ring of a cluster of one: every cell is this node's.
/// For the tables of one process life: no table outlives it.
fn tag_secret() -> Result<[u64; 4], std::io::Error> {
    let mut secret = [[0; 8]; 4];
    getrandom::fill(secret.as_flattened_mut())?;
    Ok(secret.map(u64::from_ne_bytes))
}

fn ring(config: &NodeConfig, boot: &Boot, port: u16, version: RingVersion) -> RingTable {
    let host = config.advertise.clone().unwrap_or_default();
    let node = NodeInfo { id: boot.node, host, port, workers: config.workers, boot: boot.boot };
    RingTable::new(version, config.cell_bits, node, Epoch(boot.epoch_floor))
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
            at.set_port(first.port().saturating_add(index));
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
    ring: RingTable,
    orders: std_mpsc::Sender<Order>,
}

impl WorkerStart {
    fn spawn(self) -> Result<WorkerHandle, StartError> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let endpoint = {
            let _inside = runtime.enter();
            endpoint::over(self.socket, &self.keys, self.server)?
        };
        let (index, machine, ring, orders) = (self.index, self.machine, self.ring, self.orders);
        let thread =
            std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                let machine = Machine::new(machine, lockring_proto::clock::now());
                let state = WorkerState::new(index, machine, ring, orders);
                tokio::task::LocalSet::new()
                    .block_on(&runtime, worker::run(endpoint, state, inbox));
            })?;
        Ok(WorkerHandle { commands, thread })
    }
}
