//! The seeded bugs of all sides, each with the first seed of a whole cluster that notices it, as of
//! when it was written down: none of the first 60 does where there is none. Those have tests of
//! their own, by hand or in the other simulators: of one node's cells (`client/tests/sim`), of
//! copies and of control planes (in the packages that they are bugs of).

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
pub const ALL: [(&str, Bug, Option<u64>); 60] = [
    ("AnswerBeforeRound", core(Core::AnswerBeforeRound), Some(0)),
    ("OneOfTwoCopies", core(Core::OneOfTwoCopies), Some(3)),
    ("AnswerPastLease", core(Core::AnswerPastLease), Some(24)),
    ("AcksOldEpoch", core(Core::AcksOldEpoch), Some(9)),
    ("CountersCompared", core(Core::CountersCompared), Some(62)),
    ("OpTwice", core(Core::OpTwice), Some(97)),
    ("TakesLateFrames", core(Core::TakesLateFrames), None),
    ("DeposedForgets", core(Core::DeposedForgets), Some(0)),
    ("InheritedWithoutNodeLease", core(Core::InheritedWithoutNodeLease), Some(10)),
    ("GraceCutShort", core(Core::GraceCutShort), Some(109)),
    ("ReclaimsOwnEpoch", core(Core::ReclaimsOwnEpoch), None),
    ("LowerFenceWins", core(Core::LowerFenceWins), None),
    ("CompareRecovering", core(Core::CompareRecovering), None),
    ("SettledWhileSyncing", core(Core::SettledWhileSyncing), Some(10)),
    ("RenewalShortens", core(Core::RenewalShortens), Some(122)),
    ("SettledInPart", core(Core::SettledInPart), None),
    ("ServesByOlderRing", core(Core::ServesByOlderRing), None),
    ("DeadLinkRevived", core(Core::DeadLinkRevived), None),
    ("RoundWithoutCells", core(Core::RoundWithoutCells), Some(6)),
    ("SyncedEarly", core(Core::SyncedEarly), Some(147)),
    ("NoSweep", core(Core::NoSweep), Some(3)),
    ("HandoffForgetsRequests", core(Core::HandoffForgetsRequests), Some(0)),
    ("HandoffDropsWaiters", core(Core::HandoffDropsWaiters), Some(7)),
    ("CounterRestarts", core(Core::CounterRestarts), Some(8)),
    ("DeposedTells", core(Core::DeposedTells), None),
    ("IdsIgnored", core(Core::IdsIgnored), None),
    ("DropsCopyAlone", core(Core::DropsCopyAlone), Some(0)),
    ("NoSyncRound", core(Core::NoSyncRound), Some(1)),
    ("LearnerNotWaited", core(Core::LearnerNotWaited), Some(13)),
    ("CompareAcrossVersions", core(Core::CompareAcrossVersions), Some(102)),
    ("GrantWithoutSessionCheck", core(Core::GrantWithoutSessionCheck), None),
    ("NamesakeHold", core(Core::NamesakeHold), Some(0)),
    ("ReleaseWithoutFence", core(Core::ReleaseWithoutFence), Some(1)),
    ("LostWakeup", core(Core::LostWakeup), Some(23)),
    ("NoVersionFence", core(Core::NoVersionFence), None),
    ("NoLinkFence", core(Core::NoLinkFence), Some(77)),
    ("NoRequestId", core(Core::NoRequestId), Some(0)),
    ("TwoLinks", core(Core::TwoLinks), Some(0)),
    ("UndurableTtl", core(Core::UndurableTtl), None),
    ("CompareIgnored", control(Control::CompareIgnored), Some(3)),
    ("LearnerSurvives", control(Control::LearnerSurvives), Some(0)),
    ("LearnerPromoted", control(Control::LearnerPromoted), Some(0)),
    ("BootIgnored", control(Control::BootIgnored), Some(0)),
    ("GraceWithoutLease", control(Control::GraceWithoutLease), Some(0)),
    ("StopForgetsGrace", control(Control::StopForgetsGrace), Some(45)),
    ("LoweredInOneEntry", control(Control::LoweredInOneEntry), Some(183)),
    ("LeaseWithoutRound", control(Control::LeaseWithoutRound), Some(8)),
    ("LeaseBeforeApplied", control(Control::LeaseBeforeApplied), None),
    ("LeaseBeforeOwnTerm", control(Control::LeaseBeforeOwnTerm), None),
    ("TakeoverInLease", control(Control::TakeoverInLease), Some(1)),
    ("HalfIsQuorum", control(Control::HalfIsQuorum), Some(7)),
    ("ReleaseForgotten", client(Client::ReleaseForgotten), Some(0)),
    ("CancelForgotten", client(Client::CancelForgotten), None),
    ("NoDigestCompare", client(Client::NoDigestCompare), Some(32)),
    ("CompareAll", client(Client::CompareAll), Some(0)),
    ("AdoptUnasked", client(Client::AdoptUnasked), None),
    ("CreditUnknownRing", client(Client::CreditUnknownRing), None),
    ("CreditSyncing", client(Client::CreditSyncing), Some(23)),
    ("FreshDropsMovedIn", client(Client::FreshDropsMovedIn), Some(65)),
    ("ReclaimsReleased", client(Client::ReclaimsReleased), Some(1)),
];
