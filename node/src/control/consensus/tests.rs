//! The real log does what any log has to: three of them, connected by calls, over real files.

use super::*;
use crate::control::raft;
use crate::store::{LOG, Vault, count};
use lockring_control::cluster::State;
use lockring_control::testing::{TestLog, conforms};
use lockring_ring::CellBits;
use openraft::error::RemoteError;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Nothing happens any more if nothing has for so long, and whoever is reached has caught up.
const QUIET: Duration = Duration::from_millis(700);

/// What is not agreed to, as nobody leads, is waited for no longer than this.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who there is, and who reaches nobody.
#[derive(Default)]
struct Hub {
    nodes: BTreeMap<u64, Raft<Types>>,
    cut: BTreeSet<u64>,
}

/// A way from one to the others.
#[derive(Clone)]
struct Ways {
    hub: Arc<Mutex<Hub>>,
    from: u64,
}

/// A way from one to another.
struct Way {
    ways: Ways,
    to: u64,
}

impl Way {
    fn reach(&self) -> Result<Raft<Types>, Unreachable> {
        let hub = self.ways.hub.lock().unwrap();
        let is_cut = [self.ways.from, self.to].iter().any(|end| hub.cut.contains(end));
        let there = hub.nodes.get(&self.to).filter(|_| !is_cut).cloned();
        there.ok_or_else(|| Unreachable::new(&io::Error::other("cut")))
    }
}

impl RaftNetworkFactory<Types> for Ways {
    type Network = Way;

    async fn new_client(&mut self, to: u64, _node: &BasicNode) -> Way {
        Way { ways: self.clone(), to }
    }
}

impl RaftNetwork<Types> for Way {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RPCError<u64, BasicNode, RaftError<u64>>> {
        let answer = self.reach()?.append_entries(rpc).await;
        answer.map_err(|error| RemoteError::new(self.to, error).into())
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<Types>,
        _option: RPCOption,
    ) -> Result<
        InstallSnapshotResponse<u64>,
        RPCError<u64, BasicNode, RaftError<u64, InstallSnapshotError>>,
    > {
        let answer = self.reach()?.install_snapshot(rpc).await;
        answer.map_err(|error| RemoteError::new(self.to, error).into())
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        _option: RPCOption,
    ) -> Result<VoteResponse<u64>, RPCError<u64, BasicNode, RaftError<u64>>> {
        let answer = self.reach()?.vote(rpc).await;
        answer.map_err(|error| RemoteError::new(self.to, error).into())
    }
}

struct Running {
    log: Consensus,
    told: mpsc::UnboundedReceiver<LogEvent>,
    writing: std::thread::JoinHandle<()>,
}

/// Three nodes, which stand for election when they are told to.
struct Three {
    runtime: Runtime,
    hub: Arc<Mutex<Hub>>,
    dirs: BTreeMap<NodeId, TempDir>,
    running: BTreeMap<NodeId, Running>,
}

impl Three {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }.worker_threads(2).enable_all().build().unwrap();
        let dir = |node| (NodeId(node), tempfile::tempdir().unwrap());
        let (hub, running) = (Arc::default(), BTreeMap::new());
        let mut three = Self { runtime, hub, dirs: (1..=3).map(dir).collect(), running };
        for node in (1..=3).rev() {
            three.start(NodeId(node), node == 1);
        }
        three
    }

    fn start(&mut self, me: NodeId, begins: bool) {
        let dir = self.dirs[&me].path();
        let vault = match Vault::open(dir, &LOG).unwrap() {
            Some(vault) => vault,
            None => Vault::create(dir, &LOG, count).unwrap(),
        };
        let (tell, committed) = mpsc::unbounded_channel();
        let (health, bits) = (Arc::new(Health::default()), CellBits::new(2).unwrap());
        let opened = raft::open(vault, me, bits, Arc::clone(&health), tell).unwrap();
        let (log, machine, writing) = opened;
        let begin = Begin {
            me,
            network: Ways { hub: Arc::clone(&self.hub), from: me.0.into() },
            voters: if begins { (1..=3).collect() } else { BTreeSet::new() },
            storage: (log, machine),
            committed,
            health,
        };
        let (log, told) = self.runtime.block_on(Consensus::start(begin)).unwrap();
        log.raft.runtime_config().elect(false);
        self.hub.lock().unwrap().nodes.insert(me.0.into(), log.raft.clone());
        self.running.insert(me, Running { log, told, writing });
    }

    /// Whether all that reach each other have applied as much as any of them has.
    fn has_caught_up(&self) -> bool {
        let hub = self.hub.lock().unwrap();
        let reached = hub.nodes.iter().filter(|(node, _)| !hub.cut.contains(node));
        let last = |(_, raft): (_, &Raft<Types>)| {
            let metrics = raft.metrics().borrow().clone();
            (metrics.last_log_index, metrics.last_applied.map(|id| id.index))
        };
        let all: Vec<_> = reached.map(last).collect();
        let most = all.iter().map(|(last, _)| *last).max().flatten();
        all.iter().all(|(_, applied)| *applied == most)
    }

    fn mark(&self, node: NodeId) -> PathBuf {
        self.dirs[&node].path().join(LOG.mark)
    }
}

impl TestLog for Three {
    fn propose(&mut self, node: NodeId, id: ProposalId, entry: Entry) {
        let _inside = self.runtime.enter();
        self.running[&node].log.propose(id, entry);
    }

    fn confirm(&mut self, node: NodeId, round: RoundId) {
        let _inside = self.runtime.enter();
        self.running.get_mut(&node).expect("it runs").log.confirm(round);
    }

    /// Others may still believe in the leader before, for the time of an election.
    fn elect(&mut self, node: NodeId) {
        let raft = self.running[&node].log.raft.clone();
        let leads = || raft.metrics().borrow().state == ServerState::Leader;
        let begun = Instant::now();
        while !leads() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{node} is not elected");
            self.runtime.block_on(raft.trigger().elect()).unwrap();
            std::thread::sleep(Duration::from_millis(150));
        }
    }

    fn cut(&mut self, node: NodeId) {
        self.hub.lock().unwrap().cut.insert(node.0.into());
    }

    fn heal(&mut self, node: NodeId) {
        self.hub.lock().unwrap().cut.remove(&node.0.into());
    }

    fn restart(&mut self, node: NodeId) {
        self.hub.lock().unwrap().nodes.remove(&node.0.into());
        let Running { log, writing, .. } = self.running.remove(&node).expect("it runs");
        self.runtime.block_on(log.stop());
        writing.join().unwrap();
        self.start(node, false);
    }

    fn snapshot(&mut self) {
        for Running { log, .. } in self.running.values() {
            let last = log.raft.metrics().borrow().last_applied.map_or(0, |id| id.index);
            self.runtime.block_on(log.raft.trigger().snapshot()).unwrap();
            let begun = Instant::now();
            while log.raft.metrics().borrow().snapshot.map_or(0, |id| id.index) < last {
                assert!(begun.elapsed() < Duration::from_secs(20), "no snapshot");
                std::thread::sleep(Duration::from_millis(5));
            }
            self.runtime.block_on(log.raft.trigger().purge_log(last)).unwrap();
        }
    }

    /// The mark's place is taken for a while.
    fn storage_error(&mut self, node: NodeId) {
        let mark = self.mark(node);
        std::fs::remove_file(&mark).unwrap();
        std::fs::create_dir(&mark).unwrap();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(250));
            std::fs::remove_dir(&mark).unwrap();
        });
    }

    fn settle(&mut self) -> Vec<(NodeId, LogEvent)> {
        let (mut events, mut last) = (Vec::new(), Instant::now());
        let begun = Instant::now();
        while last.elapsed() < QUIET || !self.has_caught_up() && begun.elapsed() < PATIENCE {
            for (&node, Running { told, .. }) in &mut self.running {
                while let Ok(event) = told.try_recv() {
                    events.push((node, event));
                    last = Instant::now();
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        events
    }
}

/// Whoever listens hears that there is nothing more to hear: the node can only end then.
#[test]
fn a_log_that_has_failed_says_so() {
    let mut three = Three::new();
    let mut it = three.running.remove(&NodeId(3)).expect("it runs");
    three.runtime.block_on(it.log.raft.shutdown()).unwrap();
    let ends = async { while it.told.recv().await.is_some() {} };
    let within = async { tokio::time::timeout(Duration::from_secs(20), ends).await };
    three.runtime.block_on(within).expect("it ends");
}

#[test]
fn the_real_log_does_what_a_log_has_to() {
    conforms(&mut Three::new(), State::new(CellBits::new(2).unwrap()));
}
