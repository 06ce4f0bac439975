//! The processes that a process has started, and those that they have started, as `/proc` shows
//! them. With the root a subreaper (prctl(2)) nobody leaves its tree: who loses its parent becomes
//! a child of the root.

use rustix::io::{Errno, Result};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, kill_process, pidfd_open, pidfd_send_signal,
    wait,
};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{fs, io};

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
    /// Its session, as the group.
    session: i32,
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
        // Where only the first of several threads has ended, that is shown as a process's end.
        let has_ended = matches!(*fields.first()?, "Z" | "X") && number(17)? < 2;
        Some(Self {
            pid,
            parent: number(1)? as i32,
            group: number(2)? as i32,
            session: number(3)? as i32,
            started: number(19)? as u64,
            is_dead: has_ended,
            is_stopped: *fields.first()? == "T",
        })
    }

    /// Whether it is the same, whatever it does meanwhile.
    fn is(&self, other: &Self) -> bool {
        (self.pid, self.started) == (other.pid, other.started)
    }

    /// Sends a signal to this process and to no other.
    ///
    /// # Errors
    /// When this user may not. A process that is gone is no error.
    pub fn send(&self, signal: Signal) -> Result<()> {
        let sent = match pidfd_open(self.pid, PidfdFlags::empty()) {
            Ok(handle) => match Self::of(self.pid) {
                Some(now) if now.is(self) => pidfd_send_signal(&handle, signal),
                _ => Ok(()),
            },
            other => other.map(drop),
        };
        // Kernels before 5.3 do not have these calls, and sandboxes refuse what they do not know,
        // some with EPERM.
        let sent = match sent {
            Ok(()) | Err(Errno::SRCH) => sent,
            Err(_) => kill_process(self.pid, signal),
        };
        match sent {
            Err(Errno::SRCH) => Ok(()),
            other => other,
        }
    }
}

/// Whether `/proc` is that of this process's own namespace, so that its numbers mean what they say.
///
/// # Errors
/// When it is not, or there is none.
pub fn check_proc() -> io::Result<()> {
    let shown = fs::read_link("/proc/self")?;
    if shown.as_os_str() == OsStr::new(&rustix::process::getpid().to_string()) {
        return Ok(());
    }
    let why = "/proc shows the processes of another namespace (unshare(1): --mount-proc)";
    Err(io::Error::other(why))
}

/// The process group of this process, if it has an id here.
pub fn own_group() -> Option<Pid> {
    Process::of(rustix::process::getpid()).and_then(|own| Pid::from_raw(own.group))
}

/// Whether this process leads its session: a terminal's hang-up is for it alone.
pub fn leads_session() -> bool {
    let own = Process::of(rustix::process::getpid());
    own.is_some_and(|own| own.session == own.pid.as_raw_nonzero().get())
}

/// The living processes below a process, parents before their children.
pub fn below(root: Pid) -> Vec<Process> {
    below_but(root, &[])
}

/// The same without these, and without those below them.
fn below_but(root: Pid, spared: &[Process]) -> Vec<Process> {
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
        let children = all.iter().filter(|process| {
            parents.contains(&process.parent) && !spared.iter().any(|one| one.is(process))
        });
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

/// Ends everything below this process, a subreaper, but those that are spared with all below them,
/// and waits until it has ended.
///
/// # Errors
/// With how many could not be ended: other users' processes, or processes that the kernel does not
/// let go.
pub fn kill_all(
    spared: &[Process],
    mut reaped: impl FnMut(Pid, WaitStatus),
) -> std::result::Result<(), u32> {
    let began = Instant::now();
    let mut seen_none = 0;
    loop {
        let left = below_but(rustix::process::getpid(), spared);
        for process in &left {
            let _told_by_what_is_left = process.send(Signal::KILL);
        }
        // A list made while processes fork and end may lack one, but all who lose their parent
        // become children of this process: without a child nothing is left. With some that are
        // spared the next list has to do.
        seen_none = if left.is_empty() { seen_none + 1 } else { 0 };
        let is_childless = loop {
            match reap() {
                Ok(Some((pid, status))) => reaped(pid, status),
                Ok(None) => break false,
                Err(_) => break true,
            }
        };
        if is_childless || !spared.is_empty() && seen_none > 1 {
            return Ok(());
        }
        if began.elapsed() > GIVE_UP {
            // There is a child, also where /proc does not show it.
            return Err(left.len().max(1) as u32);
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
        let ended = |threads: &str| {
            let stat = format!("7 (a) Z 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 {threads} 20 77");
            Process::parse(pid, stat.as_bytes()).unwrap().is_dead
        };
        assert!(ended("1") && !ended("2"), "its first thread is not the process");
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
