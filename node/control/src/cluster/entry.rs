//! What the log holds.

use lockring_proto::NodeAddress;
use lockring_ring::{AttachId, BootId, CellId, Epoch, NodeId, RingVersion};
use std::time::Duration;

/// Most changes of cells in one entry.
pub const BATCH_CELLS_MAX: usize = 64;

/// A place in the log; 0 is before the first entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Index(pub u64);

/// One life of a node's process, and where it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Drawn at random at its start, and never 0.
    pub boot: BootId,
    /// Workers it runs, a power of two.
    pub workers: u16,
    /// Where clients and nodes reach them: one address, from whose port those of all workers are
    /// counted up, or one for each.
    pub addresses: Vec<NodeAddress>,
}

/// A node that wants to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// Its part of the cells, relative to the other nodes; 0: a witness.
    pub weight: u32,
    /// Data centre, rack row or the like.
    pub zone: Option<String>,
    /// Machine it runs on.
    pub host: String,
    /// Its process.
    pub process: Process,
}

/// What may be left of whatever was before a log that begins anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Any number of processes, which may run on.
    Unknown,
    /// One process that was the whole cluster, and is over.
    One,
    /// Nothing that anybody believes in: the last process had ended with nothing held.
    Nothing,
}

/// What must not be given again after a log was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Floors {
    /// No epoch at or below this.
    pub epoch: Epoch,
    /// No ring version at or below this.
    pub version: RingVersion,
    /// The first node gets this id.
    pub node: NodeId,
    /// The first attachment gets this id.
    pub attach: AttachId,
    /// The longest TTL that somebody may still believe in.
    pub longest_ttl: Duration,
    /// Whose session that is, for people; empty if nobody's in particular.
    pub longest_by: String,
    /// What was before.
    pub before: Before,
}

/// Copies of each cell beside its owner's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replicas {
    /// None: what an owner had comes back from the clients.
    None,
    /// One, as soon as there are two nodes.
    One,
}

/// A change of one cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellChange {
    /// The cell.
    pub cell: CellId,
    /// The last entry that had changed it when this was decided; void if that is another by now.
    pub revision: Index,
    /// What happens.
    pub step: Step,
}

/// What happens to a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A process of a node is to get a copy.
    Attach(NodeId, BootId),
    /// The learner has everything, and is a backup from now on.
    Synced,
    /// This backup becomes the owner, and the owner a backup.
    Switch(NodeId),
    /// This backup is none any more.
    Drop(NodeId),
    /// The learner is none any more.
    Detach,
    /// A process of a node begins a lost cell anew.
    Takeover(NodeId, BootId),
    /// The grace of a takeover is over.
    Recovered,
    /// The same owner goes on in a new epoch, as the counter of this one is nearly used up.
    Bump,
}

/// One change that is agreed and durable before anybody acts on it. Each may be proposed again
/// and come late: what it names is then no longer so, and it is void.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing: a leader's first, which shows it all that was agreed before its term.
    Blank,
    /// A node joins; the first one gets all cells.
    Join(NodeSpec),
    /// The first entry of a log that begins anew, as that of a lost quorum: the node gets all
    /// cells, as lost ones.
    Recover(NodeSpec, Floors),
    /// A node has started anew, with an empty memory.
    Boot {
        /// The node.
        node: NodeId,
        /// The life that the log had last.
        before: BootId,
        /// The one that begins.
        process: Process,
        /// That one is surely over. Of a copied data directory it is not: until its lease has
        /// ended it may answer.
        is_over: bool,
    },
    /// A process is taken for dead.
    Down(NodeId, BootId),
    /// It is not.
    Up(NodeId, BootId),
    /// A process has ended with nothing held: nobody believes in anything of what it alone had,
    /// but for cells whose grace was running.
    Stopped {
        /// Its node.
        node: NodeId,
        /// The process.
        boot: BootId,
        /// The ring that its workers did by: of cells that it was given by a later one it knows
        /// nothing.
        ring: RingVersion,
    },
    /// A node shall give its cells away.
    Leave(NodeId),
    /// A node that leaves and is in no cell any more is gone.
    Remove(NodeId),
    /// A node shall have another part of the cells.
    Weight {
        /// The node.
        node: NodeId,
        /// The last entry that had changed the node.
        revision: Index,
        /// Its weight.
        weight: u32,
    },
    /// Changes of cells, each of which is compared by itself.
    Cells(Vec<CellChange>),
    /// Sessions of this TTL may be confirmed, and no intent to lower it stands any more.
    RaiseLongestTtl {
        /// The TTL.
        ttl: Duration,
        /// Whose session it is, for people.
        by: String,
    },
    /// The longest TTL shall be lowered to this: no worker that knows of it confirms above it.
    IntendLongestTtl(Duration),
    /// It is lowered to what was intended by that entry, if that still stands.
    LowerLongestTtl {
        /// The entry.
        intent: Index,
        /// Whose session it is, for people; empty if nobody's in particular.
        by: String,
    },
    /// Cells shall have so many copies.
    Policy {
        /// How many.
        replicas: Replicas,
        /// The last entry that had changed it.
        revision: Index,
    },
}
