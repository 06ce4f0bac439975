//! The log of a node's control plane: openraft, behind messages.

use super::health::Health;
use super::raft::{LogStore, StateMachine, Types};
use lockring_control::cluster::{Entry, Index, LogEvent, ProposalId, RoundId, Term};
use lockring_ring::NodeId;
use openraft::error::{InstallSnapshotError, RPCError, RaftError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{
    BasicNode, Raft, RaftMetrics, RaftNetwork, RaftNetworkFactory, ServerState, SnapshotPolicy,
};
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

/// Milliseconds. The first is also the deadline of an append at a follower, whose disk is waited
/// for; an election begins after the longest of the others and a time that each process draws once.
const HEARTBEAT: u64 = 100;
const ELECTION: (u64, u64) = (200, 400);

/// After so many entries their state is kept in place of them.
const SNAPSHOT_AFTER: u64 = 1000;

/// A round of the quorum without an answer is given up after this.
const CONFIRM_WITHIN: Duration = Duration::from_secs(1);

/// Most proposals under way: those of some batches of all cells.
const PROPOSALS_MAX: usize = 4096;

/// A stop waits so long for a write that is under way.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// A node's part in the log. It ends when this is dropped or stopped.
pub struct Consensus {
    me: u64,
    raft: Raft<Types>,
    metrics: watch::Receiver<RaftMetrics<u64, BasicNode>>,
    /// Weak, so that the channel ends when nobody watches the log any more.
    events: mpsc::WeakUnboundedSender<LogEvent>,
    health: Arc<Health>,
    watching: JoinHandle<()>,
    /// The last round of the quorum, until it is answered.
    confirming: Option<JoinHandle<()>>,
    /// Proposals that are not answered.
    room: Arc<Semaphore>,
}

/// What a node's part in the log begins with.
pub struct Begin<N> {
    pub me: NodeId,
    /// The way to other nodes.
    pub network: N,
    /// Who votes in a log without anything in it; nobody, if others begin that.
    pub voters: BTreeSet<u64>,
    /// What is on the disk.
    pub storage: (LogStore, StateMachine),
    /// What the state machine tells.
    pub committed: mpsc::UnboundedReceiver<LogEvent>,
    pub health: Arc<Health>,
}

impl Consensus {
    /// Begins, within the runtime of the caller. What it has to say comes by the channel that is
    /// returned, until the log has failed.
    ///
    /// # Errors
    /// When openraft refuses.
    pub async fn start<N: RaftNetworkFactory<Types>>(
        begin: Begin<N>,
    ) -> io::Result<(Self, mpsc::UnboundedReceiver<LogEvent>)> {
        let Begin { me, network, voters, storage: (log, machine), committed, health } = begin;
        let config = openraft::Config {
            cluster_name: "lockring".to_owned(),
            heartbeat_interval: HEARTBEAT,
            election_timeout_min: ELECTION.0,
            election_timeout_max: ELECTION.1,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_AFTER),
            max_in_snapshot_log_to_keep: SNAPSHOT_AFTER / 2,
            ..openraft::Config::default()
        };
        let config = Arc::new(config.validate().map_err(io::Error::other)?);
        let id = u64::from(me.0);
        let raft = Raft::new(id, config, network, log, machine).await.map_err(io::Error::other)?;
        let is_alone = voters == BTreeSet::from([id]);
        let is_empty = !raft.is_initialized().await.map_err(io::Error::other)?;
        if is_empty && !voters.is_empty() {
            raft.initialize(voters).await.map_err(io::Error::other)?;
        }
        if is_alone {
            // It need not wait for a leader that can be none but itself.
            raft.trigger().elect().await.map_err(io::Error::other)?;
        }
        let (events, told) = mpsc::unbounded_channel();
        let (weak, metrics) = (events.downgrade(), raft.metrics());
        let watch =
            Watch { me, metrics: raft.metrics(), committed, events, leads: None, leader: None };
        let watching = tokio::spawn(watch.run());
        let consensus = Self {
            me: id,
            raft,
            metrics,
            events: weak,
            health,
            watching,
            confirming: None,
            room: Arc::new(Semaphore::new(PROPOSALS_MAX)),
        };
        Ok((consensus, told))
    }

    /// Proposes an entry. If that fails, [`LogEvent::Failed`] says so. While the disk takes
    /// nothing it fails at once: what cannot be written must not pile up.
    pub fn propose(&self, id: ProposalId, entry: Entry) {
        let Some(events) = self.events.upgrade() else { return };
        let room = Arc::clone(&self.room).try_acquire_owned();
        let Some(room) = room.ok().filter(|_| self.health.cause().is_none()) else {
            let _nobody_listens_after_a_stop = events.send(LogEvent::Failed(id));
            return;
        };
        let raft = self.raft.clone();
        tokio::spawn(async move {
            let _room = room;
            if let Err(error) = raft.client_write(entry).await {
                tracing::debug!(%error, "a proposal failed");
                let _nobody_listens_after_a_stop = events.send(LogEvent::Failed(id));
            }
        });
    }

    /// Has a majority say that it knows of no later leader: [`LogEvent::RoundDone`], if it does.
    /// One is asked for at a time: those meanwhile are for a later one to stand for.
    pub fn confirm(&mut self, round: RoundId) {
        let Some(events) = self.events.upgrade() else { return };
        if let Some(committed) = self.alone() {
            // openraft would say the same, but not while its disk is slow.
            let _nobody_listens_after_a_stop =
                events.send(LogEvent::RoundDone { round, committed });
            return;
        }
        if self.confirming.as_ref().is_some_and(|it| !it.is_finished()) {
            return;
        }
        let raft = self.raft.clone();
        self.confirming = Some(tokio::spawn(async move {
            let read = tokio::time::timeout(CONFIRM_WITHIN, raft.get_read_log_id()).await;
            if let Ok(Ok((read, _))) = read {
                let committed = read.map_or(Index(0), |id| Index(id.index + 1));
                let done = LogEvent::RoundDone { round, committed };
                let _nobody_listens_after_a_stop = events.send(done);
            }
        }));
    }

    /// If this node leads, and is the only one that votes: up to where the log is committed.
    fn alone(&self) -> Option<Index> {
        let metrics = self.metrics.borrow();
        let leads = metrics.running_state.is_ok() && metrics.state == ServerState::Leader;
        let is_alone = || metrics.membership_config.voter_ids().eq([self.me]);
        let committed = metrics.last_applied.map_or(Index(0), |id| Index(id.index + 1));
        (leads && is_alone()).then_some(committed)
    }

    /// Ends. What is being written may not be.
    pub async fn stop(self) {
        self.watching.abort();
        let _a_disk_may_hang = tokio::time::timeout(STOP_PATIENCE, self.raft.shutdown()).await;
    }
}

/// Tells of who leads, in order with what is committed.
struct Watch {
    me: NodeId,
    metrics: watch::Receiver<RaftMetrics<u64, BasicNode>>,
    committed: mpsc::UnboundedReceiver<LogEvent>,
    events: mpsc::UnboundedSender<LogEvent>,
    /// The term in which this node leads.
    leads: Option<u64>,
    leader: Option<NodeId>,
}

impl Watch {
    async fn run(mut self) {
        loop {
            let event = tokio::select! {
                biased;
                changed = self.metrics.changed() => match changed {
                    Ok(()) => None,
                    Err(_) => return,
                },
                event = self.committed.recv() => match event {
                    Some(event) => Some(event),
                    None => return,
                },
            };
            let metrics = self.metrics.borrow_and_update().clone();
            if let Err(error) = &metrics.running_state {
                // Whoever waits for events hears that there are no more.
                return tracing::error!(%error, "the log of the cluster has failed");
            }
            self.look(&metrics);
            if let Some(event) = event {
                self.tell(event);
            }
        }
    }

    fn look(&mut self, metrics: &RaftMetrics<u64, BasicNode>) {
        let leads = (metrics.state == ServerState::Leader).then_some(metrics.current_term);
        let leader = metrics.current_leader.map(|id| NodeId(id as u32));
        if leads != self.leads {
            if self.leads.is_some() {
                self.tell(LogEvent::Deposed);
            }
            if let Some(term) = leads {
                let before = self.leader.filter(|&before| before != self.me);
                self.tell(LogEvent::Elected { term: Term(term), before });
            }
        }
        if let Some(leader) = leader
            && (Some(leader) != self.leader || leads != self.leads)
            && leader != self.me
        {
            self.tell(LogEvent::Follows(leader));
        }
        self.leads = leads;
        self.leader = leader.or(self.leader);
    }

    fn tell(&self, event: LogEvent) {
        let _nobody_listens_after_a_stop = self.events.send(event);
    }
}

/// A network of a node that knows no other.
pub struct Nobody;

impl Nobody {
    fn unreachable() -> Unreachable {
        Unreachable::new(&io::Error::other("this node knows no other"))
    }
}

impl RaftNetworkFactory<Types> for Nobody {
    type Network = Self;

    async fn new_client(&mut self, _target: u64, _node: &BasicNode) -> Self {
        Self
    }
}

impl RaftNetwork<Types> for Nobody {
    async fn append_entries(
        &mut self,
        _rpc: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RPCError<u64, BasicNode, RaftError<u64>>> {
        Err(Self::unreachable().into())
    }

    async fn install_snapshot(
        &mut self,
        _rpc: InstallSnapshotRequest<Types>,
        _option: RPCOption,
    ) -> Result<
        InstallSnapshotResponse<u64>,
        RPCError<u64, BasicNode, RaftError<u64, InstallSnapshotError>>,
    > {
        Err(Self::unreachable().into())
    }

    async fn vote(
        &mut self,
        _rpc: VoteRequest<u64>,
        _option: RPCOption,
    ) -> Result<VoteResponse<u64>, RPCError<u64, BasicNode, RaftError<u64>>> {
        Err(Self::unreachable().into())
    }
}

#[cfg(test)]
mod tests;
