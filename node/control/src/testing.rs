//! What tests of the control plane share: the rules that every entry keeps, a log to run it over,
//! and what any log has to do.

mod conformance;
mod log;
mod rules;

pub use conformance::{TestLog, conforms};
pub use log::{LogModel, ModelCluster};
pub use rules::{Rules, Seen};
