//! What happened, as the recorder hears of it: from the machines' logs, from the clients, and from
//! the run itself. All of it is stamped by one clock that no participant can see.

use crate::{ConnId, Time};
use lockring_proto::{Claim, Digest, Fence, SessionId};
use std::collections::BTreeSet;
use std::time::Duration;

/// A key, as the run numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub u32);

/// A claim, as its client numbers them: never used twice in a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// Why a client holds a hold for lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its own clock says so.
    Lapsed,
    /// The worker does not know the session.
    Ended,
    /// It was released by force.
    Forced,
    /// The worker does not know the hold.
    Unknown,
}

/// Something that happened. A `worker` is numbered through all nodes of the run.
#[expect(missing_docs, reason = "the text of a variant names its fields")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// The node of these keys is dead.
    Died { keys: BTreeSet<KeyId> },
    /// The node of these keys starts with an empty memory.
    Booted { keys: BTreeSet<KeyId> },
    /// A worker has a link for a session.
    Began { worker: u16, session: SessionId },
    /// It has it no more.
    Dead { worker: u16, session: SessionId, expired: bool },
    /// A claim was queued.
    Queued { session: SessionId, request: u64, key: KeyId, claim: Claim },
    /// A claim left the queue, to be granted or not.
    Left { session: SessionId, request: u64, key: KeyId },
    /// A claim was granted; its link was `alive`.
    Granted {
        session: SessionId,
        request: u64,
        key: KeyId,
        claim: Claim,
        fence: Fence,
        alive: bool,
    },
    /// A hold of an earlier life is back, under its old fence.
    Reclaimed { session: SessionId, request: u64, key: KeyId, claim: Claim, fence: Fence },
    /// A hold ended at the worker; an operator had ordered it if `forced`.
    Freed { session: SessionId, key: KeyId, fence: Fence, forced: bool },
    /// A hold ended at the worker with its link's lease: unless its client knows of it, the request
    /// may run again.
    Expired { key: KeyId, fence: Fence },
    /// A worker is done with one event; it may grant unless in `grace`, and goes on with the queues
    /// of `unserved` keys.
    Turn { worker: u16, grace: bool, unserved: Vec<KeyId> },
    /// A worker said that a key is held under that fence.
    ToldHeld { key: KeyId, fence: Fence },
    /// An order to release by force was carried out.
    ForceRan { session: SessionId, request: u64 },
    /// A keyed request routed by ring version `routed` was answered, where the cell's epoch began
    /// with version `since`; `None`: the worker does not have the cell.
    Answered { routed: u64, since: Option<u64>, moved: bool },
    /// A request on a connection was dropped without an answer.
    Ignored { conn: ConnId },
    /// A worker hung a connection up, or it broke.
    Hung { conn: ConnId },
    /// A worker did not run for this long: leases and promises of promptness are longer by that.
    Stalled { span: Duration },
    /// A frame lay in a socket for this long, while its worker was not stalled.
    Read { waited: Duration },
    /// A lease ended that was good until `lease_end`, while a frame that had come at `unread` lay
    /// in the socket.
    Overlooked { unread: Time, lease_end: Time },
    /// A client asked for a key, and waits for it: for so long as it takes, if `patient`.
    Asked { session: SessionId, token: Token, key: KeyId, claim: Claim, patient: bool },
    /// A client learnt that its claim is queued, by request `request`.
    InLine { session: SessionId, token: Token, request: u64 },
    /// A client learnt that it holds a key.
    Held { session: SessionId, worker: u16, token: Token, key: KeyId, claim: Claim, fence: Fence },
    /// A client believes in its holds at a worker until then; the worker honours them until
    /// `honoured`, if it has the link.
    Believes { session: SessionId, worker: u16, until: Time, honoured: Option<Time> },
    /// A hold has gone to a worker with its cell. It is believed until then by itself; `None`: as
    /// all others there, from now on.
    Went { session: SessionId, token: Token, worker: u16, until: Option<Time> },
    /// A renewal of a client was answered, and it has done what follows from that.
    Renewed { session: SessionId, worker: u16, conn: ConnId },
    /// A client begins to give a hold back.
    Giving { session: SessionId, token: Token },
    /// A client learnt that its hold ended, and was held until then.
    Released { session: SessionId, token: Token },
    /// A client learnt that its release found nothing to end; a copy of it `maybe` did.
    NotHeld { session: SessionId, token: Token, maybe: bool },
    /// A client begins to undo a claim that request `request` had made.
    Undoing { session: SessionId, token: Token, request: u64 },
    /// A client learnt that nothing is left of the claim.
    Undone { session: SessionId, token: Token },
    /// A client learnt that it was not granted.
    NotGranted { session: SessionId, token: Token },
    /// A client learnt that a hold is lost.
    Lost { session: SessionId, token: Token, why: Why },
    /// A client learnt that a worker begins anew with its session.
    Anew { session: SessionId, worker: u16 },
    /// A client is killed.
    Crashed { session: SessionId, worst_lease: Duration },
    /// A killed client's session goes on in a new process.
    TakenUp { session: SessionId },
    /// That process takes up a hold of the former one, as the node has confirmed it.
    Adopted {
        session: SessionId,
        worker: u16,
        token: Token,
        key: KeyId,
        claim: Claim,
        fence: Fence,
    },
    /// A client begins to list the keys in use of a worker, which has `of` these keys.
    ListBegan { session: SessionId, of: Vec<KeyId> },
    /// It has the next page; after the `last` it has seen all.
    ListPage { session: SessionId, keys: Vec<KeyId>, last: bool },
    /// A client uses what the lock protects: reads it, or writes what follows from what it read.
    Used { key: KeyId, fence: Fence, write: bool },
    /// Everybody is at rest: what both sides of a link hold.
    Rest { session: SessionId, worker: u16, client: Digest, node: Option<Digest> },
    /// Everything was given back: what a worker still has.
    Empty { worker: u16, keys: u64, waiters: u64 },
    /// A worker's counters: granted, released, expired, forced and still held...
    Holds { granted: u64, released: u64, expired: u64, forced: u64, held: u64 },
    /// ...enqueued, granted from the queue, cancelled, timed out, dead and still queued.
    Line { queued: u64, granted: u64, cancelled: u64, timed_out: u64, dead: u64, waiting: u64 },
}
