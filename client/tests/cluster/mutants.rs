//! The seeded bugs of all sides, each with the first seed of a whole cluster that notices it, as of
//! when it was written down: none of the first 60 does where there is none. Those have tests of
//! their own, in the packages that they are bugs of.

use crate::cluster::Bugs;
use crate::run::Bug;
use lockring_client::session::ClientMutant as Client;
use lockring_control::cluster::Mutant as Control;
use lockring_core::Mutant as Core;

const fn core(mutant: Core) -> Bug {
    Bug { nodes: Bugs { core: Some(mutant), control: None }, client: None }
}

const fn control(mutant: Control) -> Bug {
    Bug { nodes: Bugs { core: None, control: Some(mutant) }, client: None }
}

const fn client(mutant: Client) -> Bug {
    Bug { nodes: Bugs { core: None, control: None }, client: Some(mutant) }
}

/// Name, bug, seed.
pub const ALL: [(&str, Bug, Option<u64>); 57] = [
    ("AnswerBeforeRound", core(Core::AnswerBeforeRound), Some(0)),
    ("OneOfTwoCopies", core(Core::OneOfTwoCopies), Some(1)),
    ("AnswerPastLease", core(Core::AnswerPastLease), Some(0)),
    ("AcksOldEpoch", core(Core::AcksOldEpoch), None),
    ("CountersCompared", core(Core::CountersCompared), None),
    ("OpTwice", core(Core::OpTwice), None),
    ("TakesLateFrames", core(Core::TakesLateFrames), None),
    ("DeposedForgets", core(Core::DeposedForgets), Some(2)),
    ("InheritedWithoutNodeLease", core(Core::InheritedWithoutNodeLease), None),
    ("GraceCutShort", core(Core::GraceCutShort), None),
    ("ReclaimsOwnEpoch", core(Core::ReclaimsOwnEpoch), None),
    ("LowerFenceWins", core(Core::LowerFenceWins), None),
    ("CompareRecovering", core(Core::CompareRecovering), None),
    ("SettledWhileSyncing", core(Core::SettledWhileSyncing), None),
    ("RenewalShortens", core(Core::RenewalShortens), None),
    ("ServesInPart", core(Core::ServesInPart), None),
    ("DeadLinkRevived", core(Core::DeadLinkRevived), None),
    ("RoundWithoutCells", core(Core::RoundWithoutCells), None),
    ("SyncedEarly", core(Core::SyncedEarly), None),
    ("NoSweep", core(Core::NoSweep), None),
    ("HandoffForgetsRequests", core(Core::HandoffForgetsRequests), None),
    ("HandoffDropsWaiters", core(Core::HandoffDropsWaiters), None),
    ("CounterRestarts", core(Core::CounterRestarts), None),
    ("DeposedTells", core(Core::DeposedTells), None),
    ("DropsCopyAlone", core(Core::DropsCopyAlone), None),
    ("NoSyncRound", core(Core::NoSyncRound), None),
    ("LearnerNotWaited", core(Core::LearnerNotWaited), None),
    ("CompareAcrossVersions", core(Core::CompareAcrossVersions), None),
    ("GrantWithoutSessionCheck", core(Core::GrantWithoutSessionCheck), None),
    ("NamesakeHold", core(Core::NamesakeHold), Some(0)),
    ("ReleaseWithoutFence", core(Core::ReleaseWithoutFence), Some(4)),
    ("LostWakeup", core(Core::LostWakeup), Some(18)),
    ("NoVersionFence", core(Core::NoVersionFence), None),
    ("NoLinkFence", core(Core::NoLinkFence), None),
    ("NoRequestId", core(Core::NoRequestId), Some(0)),
    ("TwoLinks", core(Core::TwoLinks), Some(0)),
    ("UndurableTtl", core(Core::UndurableTtl), None),
    ("CompareIgnored", control(Control::CompareIgnored), Some(3)),
    ("LearnerSurvives", control(Control::LearnerSurvives), Some(2)),
    ("LearnerPromoted", control(Control::LearnerPromoted), Some(0)),
    ("BootIgnored", control(Control::BootIgnored), Some(0)),
    ("GraceWithoutLease", control(Control::GraceWithoutLease), Some(0)),
    ("LoweredInOneEntry", control(Control::LoweredInOneEntry), None),
    ("LeaseWithoutRound", control(Control::LeaseWithoutRound), Some(26)),
    ("LeaseBeforeApplied", control(Control::LeaseBeforeApplied), None),
    ("LeaseBeforeOwnTerm", control(Control::LeaseBeforeOwnTerm), None),
    ("TakeoverInLease", control(Control::TakeoverInLease), None),
    ("HalfIsQuorum", control(Control::HalfIsQuorum), None),
    ("ReleaseForgotten", client(Client::ReleaseForgotten), Some(0)),
    ("CancelForgotten", client(Client::CancelForgotten), None),
    ("NoDigestCompare", client(Client::NoDigestCompare), Some(12)),
    ("CompareAll", client(Client::CompareAll), Some(1)),
    ("AdoptUnasked", client(Client::AdoptUnasked), Some(32)),
    ("CreditUnknownRing", client(Client::CreditUnknownRing), None),
    ("CreditSyncing", client(Client::CreditSyncing), None),
    ("FreshDropsMovedIn", client(Client::FreshDropsMovedIn), None),
    ("ReclaimsReleased", client(Client::ReclaimsReleased), None),
];
