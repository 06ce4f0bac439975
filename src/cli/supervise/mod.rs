//! A command that must not outlive the lock it runs under.
//!
//! Three processes, all of them this program at first. The *wrapper* has the lock and receives the
//! user's signals. It starts the *keeper* ([`keeper`]), which ends the command in time whatever
//! becomes of the wrapper, and the keeper starts the process that becomes the *command*
//! ([`start`]). All three are in the process group that the wrapper began in, as under flock(1):
//! the terminal's signals reach the command by themselves, the shell's job control sees one job,
//! and the command is no group leader.

mod keeper;
mod line;
mod signals;
mod start;
mod terminal;
mod tree;

pub use signals::Signals;

use super::exit::{self, End, Failure};
use keeper::Task;
use line::{Line, Order, Report};
use lockring_client::proto::{Time, clock};
use lockring_client::{ErrorKind, Guard};
use nix::sys::signal::Signal;
use rustix::process::{Pid, getpid, set_child_subreaper};
use signals::{Come, Mask};
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use terminal::Terminal;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tree::Process;

/// This program, also if its file has been replaced meanwhile.
const EXECUTABLE: &str = "/proc/self/exe";
/// First argument of a keeper.
const KEEP: &str = "__keep";
/// First argument of what becomes a command.
const START: &str = "__start";

/// The wrapper looks at its lease this often at most.
const LOOK_MIN: Duration = Duration::from_millis(10);

/// And this often at what the keeper does when the lock is lost.
const LOOK_ON: Duration = Duration::from_millis(50);

/// How long a command gets to stop before its wrapper stops.
const STOP_WITHIN: Duration = Duration::from_millis(250);

/// A keeper that has not ended its command this long after the lease is stopped itself.
const OVERDUE: Duration = Duration::from_secs(6);

/// Does what a helper does, if that is what this process was started for.
pub fn as_helper() -> Option<ExitCode> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let (what, rest) = arguments.split_first()?;
    match what.to_str()? {
        KEEP => Some(keeper::run(rest)),
        START => Some(start::run(rest)),
        _ => None,
    }
}

/// Runs a command under a lock: signals are passed on to it, and when contact is lost it and all
/// it has started get SIGTERM so early that SIGKILL, `grace` later, still comes before anybody else
/// may be granted the lock.
pub async fn run(
    guard: Guard,
    argv: &[OsString],
    environment: &[(&str, OsString)],
    grace: Duration,
    signals: &mut Signals,
) -> Result<End, Failure> {
    let watched = async {
        let mut watch = Watch::start(&guard, argv, environment, grace, signals.inherited())?;
        watch.until_ended(&guard, signals).await
    };
    let report: Option<Report> = watched.await.map_err(|error: io::Error| {
        let remedy =
            if error.kind() == io::ErrorKind::NotFound { "; is /proc mounted?" } else { "" };
        Failure::new(exit::SOFTWARE, format!("the command's keeper cannot run: {error}{remedy}"))
    })?;
    let Some(report) = report else {
        let message = "the keeper of the command has ended early (killed?), and so has the command";
        return Err(Failure::new(exit::SOFTWARE, message));
    };
    // What came while the command ran was for it, also where it has ended first.
    signals.forget();
    if report.stopped {
        return Err(lost(&guard, report.left));
    }
    tokio::select! {
        released = guard.release() => match released {
            Ok(()) => Ok(end_of(report.status)),
            Err(error) if error.kind() == ErrorKind::Lost && !error.is_indeterminate() => {
                let message = format!("{error}, while the command ran");
                Err(Failure::new(exit::LOST, message))
            }
            Err(error) => {
                tracing::warn!(%error, "the release is not confirmed");
                Ok(end_of(report.status))
            }
        },
        signal = signals.next() => {
            tracing::warn!("the release was not waited for; the lease will end it");
            Ok(End::Signal(signal))
        }
    }
}

fn lost(guard: &Guard, left: u32) -> Failure {
    let why = guard
        .lost_reason()
        .map_or_else(|| ": no contact with the node".to_owned(), |why| format!(": {why}"));
    let but = match left {
        0 => String::new(),
        left => format!(", but {left} of its processes could not be ended: see ps(1)"),
    };
    Failure::new(exit::LOST, format!("the lock was lost{why}; the command was stopped{but}"))
}

/// As the command ended: by its own code, or by the signal that ended it.
fn end_of(status: i32) -> End {
    let status = ExitStatus::from_raw(status);
    match status.code() {
        Some(code) => End::Code(code as u8),
        None => End::Signal(status.signal().unwrap_or(0)),
    }
}

/// The wrapper's side of a command that runs.
struct Watch {
    keeper: Pid,
    line: Line,
    /// The same, for its readiness alone.
    readiness: UnixDatagram,
    terminal: Option<Terminal>,
    grace: Duration,
    /// What the keeper was told last.
    told: Time,
    /// The lock is lost: the keeper has killed everything by then.
    killed_by: Option<Time>,
    /// Processes that this one had before it was the wrapper: of a script that has become it by
    /// `exec`.
    spared: Vec<Process>,
}

impl Watch {
    fn start(
        guard: &Guard,
        argv: &[OsString],
        environment: &[(&str, OsString)],
        grace: Duration,
        mask: Mask,
    ) -> io::Result<Self> {
        tree::check_proc()?;
        let spared = tree::below(getpid());
        // Should the keeper be killed, what it kept comes here.
        set_child_subreaper(Some(getpid()))?;
        let terminal = Terminal::in_foreground();
        let (ours, theirs) = Line::pair()?;
        ours.hand(io::stdin().as_fd())?;
        let readiness = net::UnixDatagram::from(ours.as_fd().try_clone_to_owned()?);
        readiness.set_nonblocking(true)?;
        let readiness = UnixDatagram::from_std(readiness)?;
        let told = valid_until(guard).unwrap_or_else(clock::now);
        let keeper = Command::new(EXECUTABLE)
            .arg0("lockring")
            .arg(KEEP)
            .args(Task { until: told, grace, mask }.arguments(argv))
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::from(theirs))
            .spawn()?;
        let keeper = Pid::from_child(&keeper);
        let killed_by = None;
        Ok(Self { keeper, line: ours, readiness, terminal, grace, told, killed_by, spared })
    }

    /// Tells the keeper all that it needs to know until the command has ended; `None` if the keeper
    /// has ended without a word.
    async fn until_ended(
        &mut self,
        guard: &Guard,
        signals: &mut Signals,
    ) -> io::Result<Option<Report>> {
        let lost = guard.lost();
        tokio::pin!(lost);
        let mut told_lost = false;
        loop {
            let valid_for = guard.valid_for();
            let look = if valid_for.is_zero() {
                self.see_that_all_ends();
                LOOK_ON
            } else {
                self.tell_validity(guard);
                (valid_for.saturating_sub(self.grace) / 2).max(LOOK_MIN)
            };
            tokio::select! {
                biased;
                report = self.next_report() => {
                    let report = report?;
                    return Ok(report.or_else(|| self.without_keeper()));
                }
                () = &mut lost, if !told_lost => {
                    told_lost = true;
                    self.order(Order::Lost);
                }
                come = signals.any() => self.pass_on(guard, come),
                () = tokio::time::sleep(look) => {}
            }
        }
    }

    async fn next_report(&self) -> io::Result<Option<Report>> {
        loop {
            self.readiness.readable().await?;
            let read = || self.line.next_report().map_err(io::Error::from);
            match self.readiness.try_io(Interest::READABLE, read) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }

    fn tell_validity(&mut self, guard: &Guard) {
        // Of a lock that is lost it knows until when it was held.
        let Some(until) = valid_until(guard) else { return };
        if until.since(self.told) > LOOK_MIN || self.told.since(until) > LOOK_MIN {
            self.told = until;
            self.order(Order::Until(until));
        }
    }

    fn pass_on(&mut self, guard: &Guard, come: Come) {
        let Come { signal, from_terminal } = come;
        self.tell_validity(guard);
        self.order(Order::Signal { number: signal as i32, from_terminal });
        if signal == Signal::SIGTSTP {
            self.await_stop();
            signals::stop();
        }
    }

    /// The shell takes the terminal as soon as the wrapper has stopped: a command that still reads
    /// would take what is typed to the shell. One that does not stop is not waited for.
    fn await_stop(&self) {
        let began = Instant::now();
        let is_stopped = |process: &Process| process.is_stopped;
        while began.elapsed() < STOP_WITHIN && !tree::below(self.keeper).iter().all(is_stopped) {
            std::thread::sleep(LOOK_MIN / 4);
        }
    }

    /// The lock is lost, and the keeper does what is to be done. One that is stopped does not: then
    /// what it keeps is ended from here, at the same time, and in the end the keeper itself.
    fn see_that_all_ends(&mut self) {
        let now = clock::now();
        let killed_by = *self.killed_by.get_or_insert(self.told.min(now.after(self.grace)));
        if now >= killed_by.after(OVERDUE) {
            self.end_all();
        } else if now >= killed_by.after(LOOK_MIN) {
            for process in tree::below(self.keeper) {
                let _the_keeper_says_what_is_left = process.send(rustix::process::Signal::KILL);
            }
        }
    }

    /// The keeper has ended before its command: so does that. A report if the lock was lost anyway.
    fn without_keeper(&self) -> Option<Report> {
        let left = self.end_all();
        if self.killed_by.is_some() {
            return Some(Report { status: Signal::SIGKILL as i32, stopped: true, left });
        }
        if left > 0 {
            tracing::error!("{left} processes of the command could not be ended: see ps(1)");
        }
        None
    }

    /// Ends what a keeper has left, and a keeper that does not do its work; says how many it could
    /// not end.
    fn end_all(&self) -> u32 {
        let killed = tree::kill_all(&self.spared, |_, _| {});
        if let Some(terminal) = &self.terminal {
            terminal.take_back(true);
        }
        killed.err().unwrap_or(0)
    }

    fn order(&self, order: Order) {
        // A keeper that is gone has ended its line, which is noticed where it is read.
        let _heard_or_gone = self.line.order(order);
    }
}

/// The clock is read first: the time it gives with the lease's rest is never too late. `None` once
/// the lock is lost.
fn valid_until(guard: &Guard) -> Option<Time> {
    let (now, valid_for) = (clock::now(), guard.valid_for());
    (!valid_for.is_zero()).then(|| now.after(valid_for))
}
