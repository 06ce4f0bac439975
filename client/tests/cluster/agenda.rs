//! What happens to the nodes of a run.

use crate::way::Way;
use lockring_control::cluster::{Entry, Life, Message, RoundId, WorkerEvent};
use lockring_core::testing::Stream;
use lockring_core::{ConnId, PeerWorker, Time};
use lockring_ring::NodeId;

/// A connection between two workers. The first has dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerWay {
    pub conn: ConnId,
    pub from: PeerWorker,
    pub to: PeerWorker,
}

impl PeerWay {
    /// Who gets what comes on a stream, and from whom it is.
    pub fn ends(&self, stream: Stream) -> (PeerWorker, PeerWorker) {
        match stream {
            Stream::Requests => (self.from, self.to),
            Stream::Replies | Stream::Pushes => (self.to, self.from),
        }
    }
}

/// Something on the agenda of the nodes.
#[derive(Clone, Debug)]
pub enum NodeEvent {
    /// The node notices that a connection of a client is gone.
    Notices { way: Way },
    /// A worker may have something to do.
    Work { life: Life, worker: u16 },
    /// A control plane may have something to do.
    Tick { life: Life },
    /// A worker says something to its control plane.
    Says { life: Life, worker: u16, event: WorkerEvent },
    /// Control planes talk.
    Message { from: NodeId, to: NodeId, message: Message },
    /// What the leader of the log has proposed may get through.
    Commit,
    /// The log may reach a node.
    Deliver { node: NodeId },
    /// The answers to a round of the quorum are in.
    RoundEnds { node: NodeId, round: RoundId },
    /// The store of a node takes writes again.
    Mended { node: NodeId },
    /// Of earlier entries nobody has more than what they made.
    Snapshot,
    /// A process of a node begins.
    Restart { node: NodeId },
    /// A process of a node ends.
    Ends { node: NodeId },
    /// A node is told to stop.
    Stops { node: NodeId },
    /// It has had time to.
    StopEnds { life: Life },
    /// Somebody asks whoever leads for an entry.
    Asked { entry: Entry },
    /// A client and the nodes do not hear each other until then.
    CutOff { client: usize, until: Time },
    /// A connection of two workers stands.
    PeerStands { way: PeerWay },
    /// A message between workers is due.
    PeerFrame { way: PeerWay, stream: Stream, bytes: Vec<u8>, held: bool },
    /// One end notices that a connection is gone: the one that sends on that stream.
    PeerNotices { way: PeerWay, stream: Stream },
    /// Every 50 ms: whoever wants something asks for it again.
    Beat,
}
