//! The border of a node's control plane: what may happen to it, and what it asks of the world.

use super::entry::{Entry, Index};
use super::message::Message;
use super::state::State;
use lockring_proto::Time;
use lockring_ring::{AttachId, CellId, Epoch, Membership, NodeId};
use std::time::Duration;

/// The time in office of one leader of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Term(pub u64);

/// What the leader calls a proposal of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProposalId(pub u64);

/// What the leader calls a round of the quorum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RoundId(pub u64);

/// What the log says.
#[derive(Clone, Debug, PartialEq)]
pub enum LogEvent {
    /// This node leads from now on. A [`Entry::Blank`] of the term is in the log by itself.
    Elected {
        /// Its term.
        term: Term,
        /// Who led before, if it knows.
        before: Option<NodeId>,
    },
    /// It leads no more.
    Deposed,
    /// Another node leads, as far as is known.
    Follows(NodeId),
    /// The next entry is in the log for good.
    Committed {
        /// Its place.
        index: Index,
        /// The term in which it was proposed.
        term: Term,
        /// What it says.
        entry: Entry,
    },
    /// In place of all entries up to some one: the state that they made.
    Restored {
        /// The term of the last of them.
        term: Term,
        /// The state.
        state: Box<State>,
    },
    /// A proposal failed. It may have taken effect all the same, or do so later.
    Failed(ProposalId),
    /// A majority has said, after this was asked for, that it knows of no later leader.
    RoundDone {
        /// What was asked for.
        round: RoundId,
        /// The last entry that was in the log for good at that time.
        committed: Index,
    },
}

/// What happens to the control plane of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The log has something to say.
    Log(LogEvent),
    /// Another node does.
    Received(NodeId, Message),
    /// Every worker has ended, and nothing was held: the log is to have that.
    Ended,
    /// An operator or a newcomer asks for this. Who sees no effect asks again.
    Asked(Entry),
    /// Workers have said these things, in this order. What they say of many cells at once becomes
    /// few entries if it is given at once.
    Workers(Vec<(usize, WorkerEvent)>),
    /// Time has passed.
    Tick,
}

impl Event {
    /// A worker says something.
    pub fn worker(worker: usize, said: WorkerEvent) -> Self {
        Self::Workers(vec![(worker, said)])
    }
}

/// What a worker says.
#[derive(Clone, Debug, PartialEq)]
pub enum WorkerEvent {
    /// It does by the memberships that it was told with this index, and all before.
    Applied(Index),
    /// The learner of a cell that it serves has acknowledged all that it has to.
    Synced(CellId, AttachId),
    /// A copy has acknowledged nothing for half a second.
    Silent(CellId, NodeId),
    /// The grace of a cell is over.
    Recovered(CellId, Epoch),
    /// The counter of a cell is half used up.
    EpochAsked(CellId, Epoch),
    /// A session waits for a longer TTL to be confirmed.
    TtlAsked {
        /// The TTL.
        ttl: Duration,
        /// Whose session it is, for people.
        by: String,
    },
    /// It answers [`Action::AskTtl`].
    TtlStated {
        /// Of this round.
        round: u64,
        /// The longest TTL of a link, or of a copy in any role, that was there at any time within
        /// the window; `None` if it cannot say so.
        longest: Option<Duration>,
        /// Whose session that is, for people.
        by: String,
    },
}

/// Something that people want to know the number of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fact {
    /// A node was silent for too long.
    Suspected,
    /// Another node had heard of it.
    Vouched,
    /// A node was taken for dead and was not.
    FalseSuspicion,
    /// The leader's own loop was late, so that it forgave everybody's silence.
    LateLoop,
    /// A copy was silent on the data path while its node was alive.
    SilentCopy,
    /// A learner was not synced in time.
    StuckLearner,
}

/// What the control plane of a node asks of the world.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Propose an entry to the log.
    Propose(ProposalId, Entry),
    /// Have a majority say that it knows of no later leader.
    Confirm(RoundId),
    /// Send a message, which may be lost.
    Send(NodeId, Message),
    /// Tell all workers who holds what of this node's cells, and the version of the ring, which may
    /// be all that has changed. Each answers [`WorkerEvent::Applied`].
    Memberships {
        /// The entry that says so.
        index: Index,
        /// Cells that are not named are not this node's.
        whole: bool,
        /// Those that changed, or all; `None`: no part of it is this node's any more.
        cells: Vec<(CellId, Option<Membership>)>,
    },
    /// Workers may answer until then.
    Lease(Time),
    /// A worker may confirm sessions up to this TTL, and none above it without asking.
    ConfirmTtl(usize, Duration),
    /// The sessions of a worker that wait for a longer TTL get none for now.
    RefuseTtl(usize, String),
    /// Have every worker state its longest TTL within that time, after all it was told before.
    AskTtl {
        /// The round.
        round: u64,
        /// That time, from now back.
        window: Duration,
    },
    /// The node is none of the cluster's any more, or another process has begun as it: this one
    /// is to end.
    Removed,
    /// The log has it that this process has ended with nothing held, as it had asked for: nothing
    /// follows.
    Stopped,
    /// Count this.
    Count(Fact),
}
