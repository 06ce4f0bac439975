//! The processes that a process has started, and those that they have started, as `/proc` shows
//! them. With the root a subreaper (prctl(2)) nobody leaves its tree: who loses its parent becomes
//! a child of the root.

use rustix::io::{Errno, Result};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, kill_process, pidfd_open, pidfd_send_signal,
    wait,
};
use std::collections::BTreeSet;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Between two looks at processes that have been sent SIGKILL.
const LOOK: Duration = Duration::from_millis(5);

/// Processes in uninterruptible sleep, or of another user, are not waited for any longer.
const GIVE_UP: Duration = Duration::from_secs(5);

/// One process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: Pid,
    parent: i32,
    /// Its process group; 0 for one of an outer namespace, as the first process of a container may
    /// be in, and which getpgrp(2) has no id for.
    pub group: i32,
    /// When it started, in ticks: with the id it names the process even if the id is used again.
    started: u64,
    is_dead: bool,
    /// By a signal of job control.
    pub is_stopped: bool,
}

impl Process {
    /// A process by its id.
    pub fn of(pid: Pid) -> Option<Self> {
        let stat = fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
        Self::parse(pid, &stat)
    }

    /// proc_pid_stat(5). The name in parentheses may hold anything, parentheses too.
    fn parse(pid: Pid, stat: &[u8]) -> Option<Self> {
        let after_name = stat.iter().rposition(|&byte| byte == b')')? + 1;
        let text = std::str::from_utf8(&stat[after_name..]).ok()?;
        let fields: Vec<&str> = text.split_ascii_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<i64>().ok();
        Some(Self {
            pid,
            parent: number(1)? as i32,
            group: number(2)? as i32,
            started: number(19)? as u64,
            is_dead: matches!(*fields.first()?, "Z" | "X"),
            is_stopped: *fields.first()? == "T",
        })
    }

    /// Sends a signal to this process and to no other.
    ///
    /// # Errors
    /// When this user may not. A process that is gone is no error.
    pub fn send(&self, signal: Signal) -> Result<()> {
        let sent = match pidfd_open(self.pid, PidfdFlags::empty()) {
            Ok(handle) => match Self::of(self.pid) {
                Some(now) if now.started == self.started => pidfd_send_signal(&handle, signal),
                _ => Ok(()),
            },
            // Kernels before 5.3, and sandboxes.
            Err(Errno::NOSYS | Errno::INVAL) => kill_process(self.pid, signal),
            Err(error) => Err(error),
        };
        match sent {
            Err(Errno::SRCH) => Ok(()),
            other => other,
        }
    }
}

/// The process group of this process, if it has an id here.
pub fn own_group() -> Option<Pid> {
    Process::of(rustix::process::getpid()).and_then(|own| Pid::from_raw(own.group))
}

/// The living processes below a process, parents before their children.
pub fn below(root: Pid) -> Vec<Process> {
    let all: Vec<Process> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(Pid::from_raw)
        .filter_map(Process::of)
        .collect();
    let mut found = Vec::new();
    let mut parents = BTreeSet::from([root.as_raw_nonzero().get()]);
    loop {
        let children = all.iter().filter(|process| parents.contains(&process.parent));
        let level: Vec<Process> = children.copied().collect();
        if level.is_empty() {
            found.retain(|process: &Process| !process.is_dead);
            return found;
        }
        parents = level.iter().map(|process| process.pid.as_raw_nonzero().get()).collect();
        found.extend(level);
    }
}

/// Takes the status of a child of this process that has ended; `None` if none has.
///
/// # Errors
/// `ECHILD` when there is no child.
pub fn reap() -> Result<Option<(Pid, WaitStatus)>> {
    wait(WaitOptions::NOHANG)
}

/// Ends everything below this process, a subreaper, and waits until it has ended.
///
/// # Errors
/// With what could not be ended: other users' processes, or processes that the kernel does not
/// let go.
pub fn kill_all(mut reaped: impl FnMut(Pid, WaitStatus)) -> std::result::Result<(), Vec<Process>> {
    let began = Instant::now();
    loop {
        let left = below(rustix::process::getpid());
        for process in &left {
            let _told_by_what_is_left = process.send(Signal::KILL);
        }
        // A list made while processes fork and end may lack one, but all who lose their parent
        // become children of this process: without a child nothing is left.
        let is_childless = loop {
            match reap() {
                Ok(Some((pid, status))) => reaped(pid, status),
                Ok(None) => break false,
                Err(_) => break true,
            }
        };
        if is_childless {
            return Ok(());
        }
        if began.elapsed() > GIVE_UP {
            return Err(left);
        }
        sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let pid = Pid::from_raw(7).unwrap();
        let stat = b"7 (a) Z 1 (b) S 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 77 22";
        let process = Process::parse(pid, stat).unwrap();
        assert_eq!((process.parent, process.group, process.started), (3, 4, 77));
        assert!(!process.is_dead);
        assert!(Process::parse(pid, b"7 (sh) Z 3 4").is_none());
        assert!(Process::parse(pid, b"").is_none());
    }

    #[test]
    fn a_process_is_not_taken_for_an_earlier_one_of_its_id() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let now = Process::of(pid).unwrap();
        Process { started: now.started - 1, ..now }.send(Signal::KILL).unwrap();
        assert!(below(rustix::process::getpid()).contains(&now));
        now.send(Signal::KILL).unwrap();
        child.wait().unwrap();
        now.send(Signal::KILL).unwrap();
    }
}
