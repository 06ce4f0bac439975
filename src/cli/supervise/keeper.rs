//! The keeper: the process between a wrapper and its command. It ends the command, and all that
//! the command has started, by the time at which the lease ends by the wrapper's last word, even
//! if the wrapper is stopped or dead.

use super::super::{exit, output};
use super::line::{Line, Order, Report};
use super::signals::Mask;
use super::start;
use super::terminal::Terminal;
use super::tree::{self, Process};
use lockring_client::proto::{Time, clock};
use nix::sys::signal::{SigSet, Signal as Name};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, getpid, set_child_subreaper};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// What a keeper is told at the start.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    /// The lease ends then, unless it is renewed.
    pub until: Time,
    /// From SIGTERM to SIGKILL.
    pub grace: Duration,
    /// The command begins with these signals blocked.
    pub mask: Mask,
}

impl Task {
    /// As the arguments of a keeper.
    pub fn arguments(self, command: &[OsString]) -> impl Iterator<Item = OsString> {
        let numbers = [self.until.0, self.grace.as_micros() as u64, self.mask.0];
        let numbers = numbers.map(|number| OsString::from(number.to_string()));
        numbers.into_iter().chain(command.iter().cloned())
    }

    fn parse(arguments: &[OsString]) -> Option<(Self, &[OsString])> {
        let number = |at: usize| arguments.get(at)?.to_str()?.parse::<u64>().ok();
        let (until, grace) = (Time(number(0)?), Duration::from_micros(number(1)?));
        Some((Self { until, grace, mask: Mask(number(2)?) }, &arguments[3..]))
    }
}

/// Keeps a command until it ends.
pub fn run(arguments: &[OsString]) -> ExitCode {
    let task = Task::parse(arguments).ok_or(io::ErrorKind::InvalidInput.into());
    let kept = task.and_then(|(task, command)| Keeper::start(task, command)?.run());
    match kept {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let message = format!("the command cannot be kept: {error}");
            output::report(&exit::Failure::new(exit::SOFTWARE, message))
        }
    }
}

struct Keeper {
    line: Line,
    children: SignalFd,
    timer: OwnedFd,
    terminal: Option<Terminal>,
    command: Pid,
    grace: Duration,
    /// The lease ends then by the wrapper's last word.
    until: Time,
    /// The command is being stopped: what is left of it then is killed.
    kill_at: Option<Time>,
    /// How the command has ended: a wait status.
    status: Option<i32>,
    /// There is a process below this one.
    has_children: bool,
}

impl Keeper {
    fn start(task: Task, command: &[OsString]) -> io::Result<Self> {
        // None of the terminal's signals is for the keeper. Those to come of its children are.
        SigSet::all().thread_block()?;
        // Where SIGCHLD is ignored the kernel throws statuses away.
        signal_hook::flag::register(Name::SIGCHLD as i32, Arc::new(AtomicBool::new(false)))?;
        let mut mask = SigSet::empty();
        mask.add(Name::SIGCHLD);
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let children = SignalFd::with_flags(&mask, flags)?;
        set_child_subreaper(Some(getpid()))?;
        let terminal = Terminal::in_foreground();
        let line = Line::from_stdin()?;
        let stdin = line.handed()?;
        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC)?;
        let child = Command::new(super::EXECUTABLE)
            .arg(super::START)
            .args(start::arguments(getpid(), task.mask, command))
            .stdin(Stdio::from(stdin))
            .spawn()?;
        let command = Pid::from_child(&child);
        Ok(Self {
            line,
            children,
            timer,
            terminal,
            command,
            grace: task.grace,
            until: task.until,
            kill_at: None,
            status: None,
            has_children: true,
        })
    }

    fn run(mut self) -> io::Result<()> {
        loop {
            self.reap();
            let now = clock::now();
            let ended = self.status.is_some();
            if self.kill_at.is_none() && ended || !self.has_children {
                break self.end(0);
            }
            if self.kill_at.is_none() && now >= self.stop_at() {
                self.stop(self.until);
            }
            if self.kill_at.is_some_and(|at| now >= at) {
                let left = self.kill();
                break self.end(left);
            }
            self.sleep()?;
            if !self.orders()? {
                // The wrapper has ended, and with it whoever would hear of the lock's loss.
                self.kill();
                self.leave(true);
                break Ok(());
            }
        }
    }

    /// Unless the wrapper says otherwise until then, the command has to end.
    fn stop_at(&self) -> Time {
        Time(self.until.0.saturating_sub(self.grace.as_micros() as u64))
    }

    /// Tells every process of the command to end.
    fn stop(&mut self, kill_at: Time) {
        self.kill_at = Some(kill_at);
        send(&tree::below(getpid()), Signal::TERM);
    }

    /// Ends every process of the command; says how many it could not end.
    fn kill(&mut self) -> u32 {
        let (command, status) = (self.command, &mut self.status);
        let killed = tree::kill_all(&[], |pid, how| {
            if pid == command {
                *status = Some(how.as_raw());
            }
        });
        killed.err().unwrap_or(0)
    }

    fn reap(&mut self) {
        loop {
            match tree::reap() {
                Ok(Some((pid, status))) if pid == self.command => {
                    self.status = Some(status.as_raw());
                }
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(_) => return self.has_children = false,
            }
        }
    }

    /// Reports how the command has ended.
    fn end(&self, left: u32) -> io::Result<()> {
        self.leave(self.kill_at.is_some());
        let killed = Signal::KILL.as_raw();
        let status = self.status.unwrap_or(killed);
        let report = Report { status, stopped: self.kill_at.is_some(), left };
        // A wrapper that has ended meanwhile asks for nothing.
        let _heard_or_gone = self.line.report(report);
        Ok(())
    }

    fn leave(&self, were_killed: bool) {
        if let Some(terminal) = &self.terminal {
            terminal.take_back(were_killed);
        }
    }

    /// Until a child ends, an order comes, or there is something to do.
    fn sleep(&self) -> io::Result<()> {
        let at = self.kill_at.unwrap_or_else(|| self.stop_at());
        // A timer of zero is one that is off.
        let micros = at.0.max(1);
        let it_value = Timespec {
            tv_sec: (micros / 1_000_000) as i64,
            tv_nsec: (micros % 1_000_000 * 1000) as i64,
        };
        let spec = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &spec)?;
        let mut files = [
            PollFd::new(&self.line, PollFlags::IN),
            PollFd::new(&self.children, PollFlags::IN),
            PollFd::new(&self.timer, PollFlags::IN),
        ];
        poll(&mut files, None)?;
        while let Ok(Some(_)) = self.children.read_signal() {}
        Ok(())
    }

    /// Does what has been ordered; says whether the wrapper is still there.
    fn orders(&mut self) -> io::Result<bool> {
        loop {
            match self.line.next_order() {
                Ok(Some(Order::Until(until))) => self.until = until,
                Ok(Some(Order::Lost)) if self.kill_at.is_none() => {
                    self.stop(clock::now().after(self.grace));
                }
                Ok(Some(Order::Lost)) => {}
                Ok(Some(Order::Signal { number, from_terminal })) => {
                    self.pass_on(number, from_terminal);
                    // However many come, the time at which the lease ends is not missed.
                    return Ok(true);
                }
                Ok(None) => return Ok(false),
                Err(rustix::io::Errno::AGAIN) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A signal for the command goes to its process group, as far as that is its own: the
    /// wrapper's, which the command begins in, has others in it.
    fn pass_on(&self, number: i32, from_terminal: bool) {
        let Some(signal) = Signal::from_named_raw(number) else { return };
        let Some(Process { group, .. }) = Process::of(self.command) else { return };
        if from_terminal && Pid::from_raw(group) == tree::own_group() {
            return;
        }
        if signal == Signal::CONT && clock::now() >= self.until {
            // What a stopped wrapper has missed comes first.
            return;
        }
        let mut members = tree::below(getpid());
        members.retain(|process| process.group == group);
        send(&members, signal);
    }
}

fn send(processes: &[Process], signal: Signal) {
    for process in processes {
        if let Err(error) = process.send(signal) {
            let (pid, number) = (process.pid, signal.as_raw());
            output::say(format_args!(
                "process {pid} of the command cannot be sent signal {number}: {error}"
            ));
        }
    }
}
