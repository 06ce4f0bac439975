//! The terminal: whose it is, and how it is set.

use super::tree;
use nix::sys::signal::{SigSet, Signal};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, getpid, test_kill_process_group};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr, tcsetpgrp};
use std::os::fd::OwnedFd;

/// The controlling terminal, of a process in its foreground.
#[derive(Debug)]
pub struct Terminal {
    tty: OwnedFd,
    /// The group of this process.
    ours: Pid,
    /// How it was set.
    modes: Termios,
}

impl Terminal {
    /// `None` without a terminal, or in its background.
    pub fn in_foreground() -> Option<Self> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let tty = rustix::fs::open("/dev/tty", flags, Mode::empty()).ok()?;
        let ours = tree::own_group()?;
        let modes = tcgetattr(&tty).ok()?;
        (tcgetpgrp(&tty).ok()? == ours).then_some(Self { tty, ours, modes })
    }

    /// Makes this process's group the foreground one again if a process below it has taken the
    /// terminal, or had: a shell that `bg` has taken it back for keeps it. After processes that
    /// were killed, and could not set it as it was, that is done too.
    pub fn take_back(&self, were_killed: bool) {
        let now = tcgetpgrp(&self.tty).ok();
        let is_ours = now == Some(self.ours);
        if !is_ours && now.is_some_and(|group| !is_below(group)) {
            return;
        }
        // Who sets it from the background is sent SIGTTOU otherwise, and stops.
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGTTOU);
        let _as_it_was = mask.thread_block();
        // A terminal that has been hung up is nobody's.
        if !is_ours {
            let _as_far_as_it_is_there = tcsetpgrp(&self.tty, self.ours);
        }
        if were_killed {
            let _as_far_as_it_is_there = tcsetattr(&self.tty, OptionalActions::Now, &self.modes);
        }
    }
}

/// A group of processes below this one, or one that is gone.
fn is_below(group: Pid) -> bool {
    test_kill_process_group(group) == Err(Errno::SRCH)
        || tree::below(getpid()).iter().any(|process| process.group == group.as_raw_nonzero().get())
}
