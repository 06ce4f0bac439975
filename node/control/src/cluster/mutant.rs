//! Seeded bugs, each from removing one mechanism, to show that the tests would notice. A normal
//! build cannot switch one on.

/// A bug to switch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutant {
    /// A change of a cell is made whatever it was decided on.
    CompareIgnored,
    /// A new epoch keeps the learner of the one before.
    LearnerSurvives,
    /// The loss of an owner may promote a learner.
    LearnerPromoted,
    /// A node that starts anew keeps the cells of the process before.
    BootIgnored,
    /// A start is taken for the end of the process before, which may run on elsewhere.
    BootIsAnEnd,
    /// The wait after a lost cell leaves out what a deposed owner may still have confirmed.
    GraceWithoutLease,
    /// What a process leaves that ends with nothing held is nobody's, also within a grace.
    StopForgetsGrace,
    /// A log that begins anew counts ring versions from the start.
    RecoverRepeatsVersions,
    /// The intent to lower the longest TTL lowers it.
    LoweredInOneEntry,
    /// The longest TTL falls by what nodes had stated before they knew of the intent.
    LoweredUnasked,
    /// A lease is bound to what was taken from the node alone, not to what the node has become.
    BoundByTakenAlone,
    /// Renewals are acknowledged without a round of the quorum.
    LeaseWithoutRound,
    /// A node believes in its lease before every worker has applied what the lease is bound to.
    LeaseBeforeApplied,
    /// A new leader acknowledges before it has applied an entry of its term.
    LeaseBeforeOwnTerm,
    /// A lost cell is taken over while the lease of its owner may run.
    TakeoverInLease,
    /// The log takes half of the voters for a majority.
    #[cfg(any(test, feature = "testing"))]
    HalfIsQuorum,
}
