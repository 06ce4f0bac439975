//! What tests of the control plane share: the rules that every entry keeps, a log to run it over,
//! and what any log has to do.

mod conformance;
mod log;
mod rules;

use crate::cluster::{Before, Floors, State};
use lockring_ring::{AttachId, Epoch, NodeId, RingVersion};

/// What a log begins with that follows a lost one: nothing that this state has given is given
/// again.
pub fn floors_above(lost: &State, founder: NodeId) -> Floors {
    let most = lost.cells().map(|(_, cell)| cell.epoch.0).max().unwrap_or_default();
    Floors {
        epoch: Epoch(most + 1),
        version: RingVersion(lost.version().0 + 5),
        node: founder,
        attach: AttachId(1 << 40),
        longest_ttl: lost.longest().ttl,
        longest_by: lost.longest().by.clone(),
        before: Before::Unknown,
    }
}

pub use conformance::{TestLog, conforms};
pub use log::{LogModel, ModelCluster};
pub use rules::{Rules, Seen};
