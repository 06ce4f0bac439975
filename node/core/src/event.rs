//! The border of the core: what may happen to it, and what it may ask of the world. Both are
//! closed and printable; there is no other way in or out.

use lockring_proto::{Hello, HelloReply, Namespace, Push, Reply, Request, Time};
use lockring_ring::{AttachId, BootId, CellId, Epoch, Membership, NodeId, RingVersion};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// One connection of a client to this worker, numbered by the shell and never used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// A link, as the shell names it in its events: where it is. The core compares the connection, so
/// that a stale one is harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkIndex(pub u32);

/// A worker of another node, in one life of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerWorker {
    /// The node.
    pub node: NodeId,
    /// The life of its process.
    pub boot: BootId,
    /// Which of its workers.
    pub worker: u16,
}

/// What an identity may do; each role includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Use the locks of its namespace, and look at them.
    User,
    /// Release by force, and look at the locks of other namespaces.
    Operator,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "user",
            Self::Operator => "operator",
        })
    }
}

/// Who a connection has proved to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Where its keys live.
    pub namespace: Namespace,
    /// Its name in the certificate.
    pub name: String,
    /// What it may do.
    pub access: Access,
    /// The highest TTL of its namespace: a session that asks for more gets this.
    pub ttl_max: Duration,
}

/// What happens to the core.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A client said hello on a new connection.
    Opened {
        /// The connection.
        conn: ConnId,
        /// Who it is.
        identity: &'a Identity,
        /// What it said.
        hello: Hello<'a>,
    },
    /// Requests of one connection, in order: what one turn of the worker gathered.
    Requests {
        /// The connection.
        conn: ConnId,
        /// Its link, from [`Action::Welcome`].
        link: LinkIndex,
        /// The requests.
        requests: &'a [Request<'a>],
    },
    /// A connection is gone. Its link lives on until its lease ends.
    Closed {
        /// The connection.
        conn: ConnId,
        /// Its link.
        link: LinkIndex,
    },
    /// Time passed: [`crate::Machine::next_deadline`] is due.
    Tick,
    /// The longest TTL is durably at least this: sessions that waited for it may be confirmed.
    LongestTtl(Duration),
    /// A longer TTL cannot be made durable for now: sessions that wait for it are told why.
    TtlFailed(&'a str),
    /// A cell has a new epoch, by the ring of this version.
    EpochRaised {
        /// The cell.
        cell: CellId,
        /// Its epoch.
        epoch: Epoch,
        /// The version of the ring that says so.
        version: RingVersion,
    },
    /// Something that the other nodes do.
    Cluster(ClusterEvent<'a>),
    /// The node stops: no new claims.
    Drain,
    /// The node's memory is used up, or not any more: while it is, new sessions, holds and claims
    /// queued are refused, and everything else works on.
    Memory {
        /// It is used up.
        full: bool,
    },
    /// A peak has passed: the tables of [`crate::SHRINK_SLICE`] cells of this worker from this
    /// position on keep no more memory than they need.
    Shrink {
        /// The position, below [`crate::Machine::cells`].
        from: u32,
    },
}

/// What happens to a worker as one of a cluster.
#[derive(Clone, Copy, Debug)]
pub enum ClusterEvent<'a> {
    /// A node of the cluster runs this many workers, in this life of its process. Told before any
    /// cell has a copy there.
    Node {
        /// The node.
        node: NodeId,
        /// Its life.
        boot: BootId,
        /// Workers, a power of two.
        workers: u16,
    },
    /// Entries of the control log have changed who owns and copies these cells. They are taken in
    /// slices, and done by when the last is taken; until then nothing happens by itself. The ring
    /// of this version can be told to clients before the first is given.
    Memberships {
        /// What they are now; none: this process has no part in the cell any more.
        changed: &'a [(CellId, Option<Membership>)],
        /// The version of the ring with it.
        version: RingVersion,
    },
    /// Until then the node may answer.
    Lease(Time),
    /// A connection to a peer stands. What was sent on another before may not have come.
    PeerConnected(PeerWorker),
    /// There is no connection to a peer.
    PeerLost(PeerWorker),
    /// A peer says something. What it says by one connection comes once and in its order, and some
    /// of it may come when another stands.
    Peer {
        /// The peer.
        peer: PeerWorker,
        /// What.
        bytes: &'a [u8],
    },
    /// A turn of the worker is over: what it has for its peers is sent.
    Flush,
}

/// What the core asks of the world. Nearly all of it is replies, so that what is rare and large is
/// boxed: a batch makes many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Answer a hello with a link; the connection's later events name it.
    Welcome {
        /// The connection.
        conn: ConnId,
        /// Its link.
        link: LinkIndex,
        /// The answer.
        reply: Box<HelloReply>,
    },
    /// Answer a hello with a refusal and close.
    Refuse {
        /// The connection.
        conn: ConnId,
        /// The answer.
        reply: Box<HelloReply>,
    },
    /// Answer a request.
    Reply {
        /// The connection.
        conn: ConnId,
        /// The answer.
        reply: Reply,
    },
    /// Tell a client something unasked.
    Push {
        /// The connection.
        conn: ConnId,
        /// What.
        push: Push,
    },
    /// Send what is under way and close the connection.
    Close {
        /// The connection.
        conn: ConnId,
        /// Why.
        reason: CloseReason,
    },
    /// The next request of a connection, which was not taken, waits for what this worker is still
    /// to be told: nothing of the connection is given before [`Action::Resume`].
    Pause(ConnId),
    /// A connection that was paused goes on.
    Resume(ConnId),
    /// Answer a request for the ring, which the shell keeps.
    SendRing {
        /// The connection.
        conn: ConnId,
        /// The request.
        id: u64,
        /// The version that the client has.
        known: u64,
    },
    /// Make the longest TTL durable at no less than this, then say [`Event::LongestTtl`].
    RaiseLongestTtl(Duration),
    /// Tell a peer something, in the order of these actions.
    Peer {
        /// The peer.
        peer: PeerWorker,
        /// What.
        bytes: Arc<Vec<u8>>,
    },
    /// A peer says what no node of this version says: the connection to it is to end.
    PeerBroken(PeerWorker),
    /// A learner has all that its owner has answered by.
    Synced {
        /// The cell.
        cell: CellId,
        /// Under this epoch.
        epoch: Epoch,
        /// By this attachment.
        attach: AttachId,
    },
    /// The copy of a cell at a node has acknowledged nothing for half a second, though something
    /// waits for it. Said again each half second while that lasts.
    Silent {
        /// The cell.
        cell: CellId,
        /// The node.
        node: NodeId,
    },
    /// A cell that was taken over grants again. Said as it opens, and again if a later epoch shows
    /// that the log had not heard.
    Recovered {
        /// The cell.
        cell: CellId,
        /// Its epoch by now.
        epoch: Epoch,
    },
    /// A cell's counter is half used up: have its epoch raised, then say [`Event::EpochRaised`].
    WantEpoch(CellId),
}

const _: () = assert!(size_of::<Action>() <= 56);

/// Appends an answer, built where it will be. A plain push builds it on the stack first, in case
/// growing fails, and reading it back from there waits until every earlier store is in the cache:
/// a tenth of an operation, where stores miss.
#[inline(always)]
pub(crate) fn push_reply(out: &mut Vec<Action>, conn: ConnId, reply: impl FnOnce() -> Reply) {
    if out.len() < out.capacity() {
        out.push(Action::Reply { conn, reply: reply() });
    } else {
        push_growing(out, Action::Reply { conn, reply: reply() });
    }
}

#[cold]
fn push_growing(out: &mut Vec<Action>, action: Action) {
    out.push(action);
}

/// Why the core closes a connection; also the QUIC application close code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// A newer connection of the session took over.
    Superseded = 1,
    /// The link's lease ended.
    Expired = 2,
    /// The session said goodbye.
    Goodbye = 3,
}
