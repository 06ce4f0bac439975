//! The seeded bugs of both sides. A letter is that of an incident in the list of mutants in the
//! design notes; those without one take a mechanism away, or an
//! assumption: that no clock is wrong by more than 1 %.

use crate::run::Bug;
use lockring_client::session::ClientMutant;
use lockring_core::Mutant;

/// Letter, name, bug.
pub const ALL: [(&str, &str, Bug); 27] = [
    ("a", "GrantWithoutSessionCheck", Bug::Node(Mutant::GrantWithoutSessionCheck)),
    ("b", "DeathNotTold", Bug::Node(Mutant::DeathNotTold)),
    ("c", "SlipPastExpired", Bug::Node(Mutant::SlipPastExpired)),
    ("e", "ExpireOnWaking", Bug::Node(Mutant::ExpireOnWaking)),
    ("h", "NamesakeHold", Bug::Node(Mutant::NamesakeHold)),
    ("i", "ReleaseForgotten", Bug::Client(ClientMutant::ReleaseForgotten)),
    ("j", "CancelForgotten", Bug::Client(ClientMutant::CancelForgotten)),
    ("k", "TwoLinks", Bug::Node(Mutant::TwoLinks)),
    ("l", "ReleaseWithoutFence", Bug::Node(Mutant::ReleaseWithoutFence)),
    ("m", "RestartWithoutGrace", Bug::Node(Mutant::RestartWithoutGrace)),
    ("n", "WallClock", Bug::Node(Mutant::WallClock)),
    ("s", "LostWakeup", Bug::Node(Mutant::LostWakeup)),
    ("u", "UnboundedExpiry", Bug::Node(Mutant::UnboundedExpiry)),
    ("", "NoVersionFence", Bug::Node(Mutant::NoVersionFence)),
    ("", "NoLinkFence", Bug::Node(Mutant::NoLinkFence)),
    ("", "NoRequestId", Bug::Node(Mutant::NoRequestId)),
    ("", "Uncounted", Bug::Node(Mutant::Uncounted)),
    ("", "UndurableTtl", Bug::Node(Mutant::UndurableTtl)),
    ("", "ListingSkips", Bug::Node(Mutant::ListingSkips)),
    ("", "OpForgetsMode", Bug::Node(Mutant::OpForgetsMode)),
    ("", "ChangeBesideTheDoor", Bug::Node(Mutant::ChangeBesideTheDoor)),
    ("", "AdoptUnasked", Bug::Client(ClientMutant::AdoptUnasked)),
    ("", "CompareAll", Bug::Client(ClientMutant::CompareAll)),
    ("", "CompareAtRest", Bug::Client(ClientMutant::CompareAtRest)),
    ("", "NoDigestCompare", Bug::Client(ClientMutant::NoDigestCompare)),
    ("", "CleanInGrace", Bug::CleanInGrace),
    ("", "SlowClocks", Bug::SlowClocks),
];
