//! The first frame in each direction of a connection.

use crate::SessionId;
use bincode::{BorrowDecode, Decode, Encode};

/// What a client says first on the request stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub struct Hello<'a> {
    /// Wire version of the client, [`crate::PROTOCOL`].
    pub protocol: u16,
    /// The session this connection belongs to.
    pub session: SessionId,
    /// Which connection of the session to this worker it is: a higher one kills the lower before
    /// anything on it runs. 0 asks for the next one (a resumed token does not know the last).
    pub incarnation: u64,
    /// The TTL asked for, in milliseconds; the answer says the real one.
    pub ttl_ms: u64,
    /// The ring version the client has; 0 if none.
    pub ring_version: u64,
    /// The process that asks numbers its requests of this session from above this, at most
    /// [`crate::limits::IDS_PER_PROCESS`] of them; 0 if it has begun the session, which may number
    /// [`crate::limits::FIRST_PROCESS_IDS`]. What is under other numbers is of another process.
    pub ids_after: u64,
    /// Who this is, for people: at most [`crate::limits::LABEL_BYTES_MAX`] bytes.
    pub label: &'a str,
}

/// The answer to [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum HelloReply {
    /// The link stands.
    Welcome(Welcome),
    /// It does not; the connection is closed after this frame.
    Refused(Refusal),
}

/// What the worker says of a link that stands.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Welcome {
    /// Wire version of the worker.
    pub protocol: u16,
    /// The worker had no link of this session: every earlier hold and waiter there is gone, and
    /// unanswered requests must take new ids.
    pub fresh: bool,
    /// The incarnation in force.
    pub incarnation: u64,
    /// The real TTL in milliseconds.
    pub ttl_ms: u64,
    /// The ring version of the node.
    pub ring_version: u64,
    /// The node that answers.
    pub node: u32,
    /// The process life of that node: another with each start.
    pub boot: u64,
    /// Which worker of the node this is.
    pub worker: u16,
    /// The namespace of the client's identity: its keys are hashed with it.
    pub namespace: String,
}

/// Why a request or a connection is refused; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Refusal {
    /// The kind, for programs.
    pub kind: RefusalKind,
    /// What happened and what to do, for people.
    pub message: String,
}

/// The kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum RefusalKind {
    /// The peer speaks another wire version.
    Protocol,
    /// The request breaks a rule of the wire, as a key of 0 bytes.
    Malformed,
    /// The session belongs to another identity.
    ForeignSession,
    /// A newer connection of the session took over.
    Superseded,
    /// The key is in use with another kind or capacity.
    KindConflict,
    /// A limit of the session or node is reached.
    Quota,
    /// The node is stopping.
    Draining,
    /// The cell cannot grant now, as its epochs are used up.
    Unavailable,
    /// The identity may not do this.
    Denied,
}
