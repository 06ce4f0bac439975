//! What has happened in some state of a run: without it the model would show nothing. It is kept
//! beside the states, as states that differ in their past alone are one.

use super::logs::Kind;
use std::sync::atomic::{AtomicU32, Ordering};

/// Something that a run must reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Synced,
    Dropped,
    Detached,
    /// An owner begins by a switch.
    Switched,
    /// It begins as the one before is gone.
    Promoted,
    /// A grant is answered again.
    Again,
    /// It is answered by another owner than the one that has carried it out.
    AfterSwitch,
    Moved,
    /// A copy refuses what it is sent: not yet, in need of the whole cell, as the log has gone on.
    Later,
    Whole,
    Stale,
    Ready,
    Crash,
    Break,
    LeaseEnds,
}

/// Each with its name.
pub const STEPS: [(Step, &str); 15] = [
    (Step::Synced, "a learner becomes a backup"),
    (Step::Dropped, "a backup is dropped"),
    (Step::Detached, "a learner is detached"),
    (Step::Switched, "an owner begins by a switch"),
    (Step::Promoted, "an owner is promoted"),
    (Step::Again, "a grant is answered again"),
    (Step::AfterSwitch, "a grant is answered by a later owner"),
    (Step::Moved, "a client is sent on"),
    (Step::Later, "a copy refuses for now"),
    (Step::Whole, "a copy needs the whole cell"),
    (Step::Stale, "a copy refuses what is over"),
    (Step::Ready, "a copy says that it is ready"),
    (Step::Crash, "a process crashes"),
    (Step::Break, "a connection breaks"),
    (Step::LeaseEnds, "a lease ends"),
];

/// What was reached so far.
#[derive(Debug, Default)]
pub struct Reached(AtomicU32);

impl Reached {
    pub fn step(&self, step: Step) {
        self.0.fetch_or(1 << step as u32, Ordering::Relaxed);
    }

    pub fn has(&self, step: Step) -> bool {
        self.0.load(Ordering::Relaxed) >> step as u32 & 1 == 1
    }

    /// Those that were not, of these.
    pub fn missing(&self, wanted: &[Step]) -> Vec<&'static str> {
        let is_missing = |(step, _): &&(Step, _)| wanted.contains(step) && !self.has(*step);
        STEPS.iter().filter(is_missing).map(|(_, name)| *name).collect()
    }

    /// A message is sent: see `lockring_core`'s `cells/message.rs`. An acknowledgement of one cell
    /// ends with why that was refused.
    pub fn message(&self, bytes: &[u8]) {
        match *bytes {
            [1, .., 1, _, 0] if bytes.len() == 6 => self.step(Step::Later),
            [1, .., 1, _, 1] if bytes.len() == 6 => self.step(Step::Whole),
            [1, .., 1, _, 2] if bytes.len() == 6 => self.step(Step::Stale),
            [2, ..] => self.step(Step::Ready),
            _ => {}
        }
    }

    pub fn granted(&self, again: bool, of_earlier_epoch: bool) {
        if again {
            self.step(Step::Again);
        }
        if of_earlier_epoch {
            self.step(Step::AfterSwitch);
        }
    }

    /// An owner has applied an entry.
    pub fn owned(&self, kind: Option<Kind>) {
        match kind {
            Some(Kind::Switch) => self.step(Step::Switched),
            Some(Kind::Down | Kind::Boot) => self.step(Step::Promoted),
            _ => {}
        }
    }

    pub fn committed(&self, kind: Kind) {
        match kind {
            Kind::Synced => self.step(Step::Synced),
            Kind::Drop => self.step(Step::Dropped),
            Kind::Detach => self.step(Step::Detached),
            _ => {}
        }
    }
}
