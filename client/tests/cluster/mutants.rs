//! The seeded bugs of all sides that whole clusters notice, each with the first seed that does, as
//! of when it was written down.

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
pub const ALL: [(&str, Bug, u64); 42] = [
    ("AnswerBeforeRound", core(Core::AnswerBeforeRound), 0),
    ("OneOfTwoCopies", core(Core::OneOfTwoCopies), 0),
    ("AnswerPastLease", core(Core::AnswerPastLease), 0),
    ("AcksOldEpoch", core(Core::AcksOldEpoch), 0),
    ("CountersCompared", core(Core::CountersCompared), 0),
    ("OpTwice", core(Core::OpTwice), 0),
    ("TakesLateWhole", core(Core::TakesLateWhole), 0),
    ("DeposedForgets", core(Core::DeposedForgets), 0),
    ("InheritedWithoutNodeLease", core(Core::InheritedWithoutNodeLease), 0),
    ("GraceCutShort", core(Core::GraceCutShort), 0),
    ("ReclaimsOwnEpoch", core(Core::ReclaimsOwnEpoch), 0),
    ("LowerFenceWins", core(Core::LowerFenceWins), 0),
    ("CompareRecovering", core(Core::CompareRecovering), 0),
    ("SettledWhileSyncing", core(Core::SettledWhileSyncing), 0),
    ("GrantWithoutSessionCheck", core(Core::GrantWithoutSessionCheck), 0),
    ("NamesakeHold", core(Core::NamesakeHold), 0),
    ("ReleaseWithoutFence", core(Core::ReleaseWithoutFence), 0),
    ("LostWakeup", core(Core::LostWakeup), 0),
    ("NoVersionFence", core(Core::NoVersionFence), 0),
    ("NoLinkFence", core(Core::NoLinkFence), 0),
    ("NoRequestId", core(Core::NoRequestId), 0),
    ("TwoLinks", core(Core::TwoLinks), 0),
    ("UndurableTtl", core(Core::UndurableTtl), 0),
    ("CompareIgnored", control(Control::CompareIgnored), 0),
    ("LearnerSurvives", control(Control::LearnerSurvives), 0),
    ("LearnerPromoted", control(Control::LearnerPromoted), 0),
    ("BootIgnored", control(Control::BootIgnored), 0),
    ("GraceWithoutLease", control(Control::GraceWithoutLease), 0),
    ("LoweredInOneEntry", control(Control::LoweredInOneEntry), 0),
    ("LeaseWithoutRound", control(Control::LeaseWithoutRound), 0),
    ("LeaseBeforeApplied", control(Control::LeaseBeforeApplied), 0),
    ("LeaseBeforeOwnTerm", control(Control::LeaseBeforeOwnTerm), 0),
    ("TakeoverInLease", control(Control::TakeoverInLease), 0),
    ("HalfIsQuorum", control(Control::HalfIsQuorum), 0),
    ("ReleaseForgotten", client(Client::ReleaseForgotten), 0),
    ("CancelForgotten", client(Client::CancelForgotten), 0),
    ("NoDigestCompare", client(Client::NoDigestCompare), 0),
    ("CompareAll", client(Client::CompareAll), 0),
    ("AdoptUnasked", client(Client::AdoptUnasked), 0),
    ("CreditUnknownRing", client(Client::CreditUnknownRing), 0),
    ("CreditSyncing", client(Client::CreditSyncing), 0),
    ("FreshDropsMovedIn", client(Client::FreshDropsMovedIn), 0),
];
