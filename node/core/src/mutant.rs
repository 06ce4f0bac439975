//! What the simulator needs inside the machine: seeded bugs, each from a
//! real incident or from removing one mechanism, to show that the simulator's invariants can fail.
//! Outside of the `testing` feature nothing of it is compiled.

/// A bug to switch on.
#[cfg(any(test, feature = "testing"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutant {
    /// Grants to a waiter whose session is dead.
    GrantWithoutSessionCheck,
    /// Does not tell a client that its session died, so that its waiters wait for ever.
    DeathNotTold,
    /// A waiter behind an expired one slips in without looking at the holders.
    SlipPastExpired,
    /// A worker that was stalled expires everybody on waking.
    ExpireOnWaking,
    /// A hold of an earlier session of the same name is taken for one's own.
    NamesakeHold,
    /// Releases whatever holds the key, without comparing the fence.
    ReleaseWithoutFence,
    /// Opens for new grants before the leases of the earlier life have ended.
    RestartWithoutGrace,
    /// The lease clock follows the wall clock's jumps.
    WallClock,
    /// A dead waiter at the head swallows the wake-up of the next.
    LostWakeup,
    /// Frees all of a dead session in one go, whatever its size.
    UnboundedExpiry,
    /// Runs requests routed by an older ring version than the cell's owner.
    NoVersionFence,
    /// Runs requests of a connection that a newer one has replaced.
    NoLinkFence,
    /// Does not compare the request id of a hold: a retry queues behind itself.
    NoRequestId,
    /// The next page of a listing begins after the key that it should begin with.
    ListingSkips,
    /// A second connection of a session makes a second link.
    TwoLinks,
    /// A compare ends holds of cells that began anew after the ring by which the list was made.
    CompareAcrossVersions,
    /// A process that takes a session up frees holds in which the one before may still believe.
    SuccessorFrees,
    /// What a process before has asked for is taken for that of the one in force.
    IdsIgnored,
    /// Ends and changes of queues take no number of their cell's counter.
    Uncounted,
    /// A session's long TTL is confirmed before it is durable.
    UndurableTtl,
    /// Tags are those that everybody can compute.
    PublicTags,
    /// Takes equal keys of two namespaces for one.
    NamespaceIgnored,
    /// The stream of ops forgets that a claim is shared.
    OpForgetsMode,
    /// An answer leaves before the copies of its cell have acknowledged it.
    AnswerBeforeRound,
    /// An answer leaves when one of two copies has acknowledged it.
    OneOfTwoCopies,
    /// An owner does without the copies of a peer to whom its connection broke, unasked.
    DropsCopyAlone,
    /// A new owner answers before the other members have taken what it has.
    NoSyncRound,
    /// A learner is fed, and not waited for before the owner knows that it is a member.
    LearnerNotWaited,
    /// An answer leaves though the node's lease is over.
    AnswerPastLease,
    /// A copy looks at its attachment alone, and takes what the owner of an older epoch sends.
    AcksOldEpoch,
    /// A copy that has as many ops of another epoch is taken to be equal.
    CountersCompared,
    /// An op that comes twice is carried out twice.
    OpTwice,
    /// A copy takes frames of an earlier connection than its owner has sent others by since.
    TakesLateFrames,
    /// An owner that becomes a copy forgets what it had.
    DeposedForgets,
    /// Who is inherited gets no more time than its TTL.
    InheritedWithoutNodeLease,
    /// A cell that was taken over opens before its grace is over.
    GraceCutShort,
    /// What is of the epoch of its cell, or a later one, can be reclaimed.
    ReclaimsOwnEpoch,
    /// Of claims that do not go beside each other the one under the lower fence wins.
    LowerFenceWins,
    /// A compare ends holds of a cell that recovers, and calls others lost.
    CompareRecovering,
    /// A renewal says that all cells have arrived, also those whose copies are not equal yet.
    SettledWhileSyncing,
    /// What a client says ends the longer lease that goes on from the owner before.
    RenewalShortens,
    /// A renewal is answered as if cells had arrived that an entry taken in part took away.
    SettledInPart,
    /// A request of a newer ring than the worker knows is carried out, if the cell is the worker's.
    ServesByOlderRing,
    /// A dead link of the owner before lives on when its cell is taken in.
    DeadLinkRevived,
    /// A frame does not name the cells that were only read.
    RoundWithoutCells,
    /// A learner is called equal before it has what was executed before it was waited for.
    SyncedEarly,
    /// A new owner grants nothing to who is queued until somebody leaves.
    NoSweep,
    /// Who is inherited has lost its request ids.
    HandoffForgetsRequests,
    /// Who is queued is not inherited.
    HandoffDropsWaiters,
    /// The counter of a cell that is taken in begins anew.
    CounterRestarts,
    /// A deposed owner tells clients of ends that its copies do not know of.
    DeposedTells,
    /// A retry makes its claim young again, and no op says so.
    ChangeBesideTheDoor,
}

#[cfg(any(test, feature = "testing"))]
macro_rules! mutant {
    ($machine:expr, $mutant:ident) => {
        $machine.mutant == Some(crate::mutant::Mutant::$mutant)
    };
}

#[cfg(not(any(test, feature = "testing")))]
macro_rules! mutant {
    ($machine:expr, $mutant:ident) => {
        false
    };
}

pub(crate) use mutant;
