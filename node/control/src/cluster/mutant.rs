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
    /// The wait after a lost cell leaves out what a deposed owner may still have confirmed.
    GraceWithoutLease,
    /// A log that begins anew counts ring versions from the start.
    RecoverRepeatsVersions,
    /// The longest TTL falls without a standing intent.
    LoweredInOneEntry,
}
