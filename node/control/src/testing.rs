//! What tests of the control plane share: the rules that every entry keeps.

mod rules;

pub use rules::{Rules, Seen};
