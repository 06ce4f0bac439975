//! A child process that must not outlive the lock it runs under.

use super::exit::{self, Failure};
use lockring_client::{ErrorKind, Guard};
use rustix::process::{Pid, Signal, kill_process_group};
use std::io::IsTerminal;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};
use tokio::time::{Instant, sleep_until};

/// Signals that end a wait, and that a running child gets passed on.
pub struct Signals {
    streams: Vec<(i32, Stream)>,
}

impl Signals {
    /// From now on these signals come here instead of ending the process.
    pub fn new() -> Result<Self, Failure> {
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
            SignalKind::quit(),
        ];
        let open = |kind: SignalKind| match signal(kind) {
            Ok(stream) => Ok((kind.as_raw_value(), stream)),
            Err(error) => Err(Failure::new(exit::SOFTWARE, format!("no signals: {error}"))),
        };
        Ok(Self { streams: kinds.into_iter().map(open).collect::<Result<_, _>>()? })
    }

    /// The number of the next signal.
    pub async fn next(&mut self) -> i32 {
        std::future::poll_fn(|cx| {
            for (number, stream) in &mut self.streams {
                if stream.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

/// How a child under a lock came to its end.
enum End {
    /// By itself.
    Exited(ExitStatus),
    /// It was stopped, as the lock could not be kept.
    Stopped,
}

/// Runs a child under a lock: signals are passed on to its process group, and when contact is lost
/// it gets SIGTERM so early that SIGKILL, `grace` later, still comes before anybody else may be
/// granted the lock.
pub async fn run(
    guard: Guard,
    argv: &[String],
    environment: &[(&str, String)],
    grace: Duration,
    signals: &mut Signals,
) -> Result<ExitCode, Failure> {
    let mut child = start(argv, environment)?;
    let group = child.id().and_then(|id| Pid::from_raw(id as i32));
    lend_terminal(group);
    let end = watch(&guard, &mut child, group, grace, signals).await;
    let end = end.map_err(|error| Failure::new(exit::SOFTWARE, error.to_string()))?;
    match end {
        End::Stopped => {
            let why = guard
                .lost_reason()
                .map_or_else(|| ": no contact with the node".to_owned(), |why| format!(": {why}"));
            drop(guard);
            let message = format!("the lock was lost{why}; the command was stopped");
            Err(Failure::new(exit::LOST, message))
        }
        End::Exited(status) => tokio::select! {
            released = guard.release() => match released {
                Ok(()) => Ok(code_of(status)),
                Err(error) if error.kind() == ErrorKind::Lost && !error.is_indeterminate() => {
                    let message = format!("{error}, while the command ran");
                    Err(Failure::new(exit::LOST, message))
                }
                Err(error) => {
                    tracing::warn!(%error, "the release is not confirmed");
                    Ok(code_of(status))
                }
            },
            signal = signals.next() => {
                tracing::warn!("the release was not waited for; the lease will end it");
                Ok(ExitCode::from(128 + signal as u8))
            }
        },
    }
}

fn start(argv: &[String], environment: &[(&str, String)]) -> Result<Child, Failure> {
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).process_group(0);
    for (name, value) in environment {
        command.env(name, value);
    }
    command.spawn().map_err(|error| {
        let code = match error.kind() {
            std::io::ErrorKind::NotFound => exit::NOT_FOUND,
            _ => exit::CANNOT_RUN,
        };
        Failure::new(code, format!("cannot run {:?}: {error}", argv[0]))
    })
}

/// Makes the child's group the one that the terminal talks to, as a shell does; the shell takes
/// the terminal back when this process ends.
fn lend_terminal(group: Option<Pid>) {
    let stdin = std::io::stdin();
    if let (true, Some(group)) = (stdin.is_terminal(), group) {
        let ours = rustix::termios::tcgetpgrp(&stdin).ok() == Some(rustix::process::getpgrp());
        if ours && let Err(error) = rustix::termios::tcsetpgrp(&stdin, group) {
            tracing::debug!(%error, "the child does not get the terminal");
        }
    }
}

async fn watch(
    guard: &Guard,
    child: &mut Child,
    group: Option<Pid>,
    grace: Duration,
    signals: &mut Signals,
) -> std::io::Result<End> {
    let lost = guard.lost();
    tokio::pin!(lost);
    let mut kill_at: Option<Instant> = None;
    let mut told_lost = false;
    loop {
        // Renewals move this ahead all the time; it is looked at again when it would be due.
        let valid_for = guard.valid_for();
        if kill_at.is_none() && (told_lost || valid_for <= grace) {
            tracing::warn!("the lock cannot be kept: stopping the command");
            send(group, Signal::TERM);
            let left = if told_lost { grace } else { valid_for.min(grace) };
            kill_at = Some(Instant::now() + left);
        }
        let next = kill_at.unwrap_or_else(|| Instant::now() + (valid_for - grace));
        tokio::select! {
            biased;
            status = child.wait() => {
                let status = status?;
                return Ok(if kill_at.is_some() { End::Stopped } else { End::Exited(status) });
            }
            () = &mut lost, if !told_lost => told_lost = true,
            number = signals.next() => {
                if let Some(signal) = Signal::from_named_raw(number) {
                    send(group, signal);
                }
            }
            () = sleep_until(next) => {
                if kill_at.is_some_and(|at| Instant::now() >= at) {
                    send(group, Signal::KILL);
                    child.wait().await?;
                    return Ok(End::Stopped);
                }
            }
        }
    }
}

fn send(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group {
        // The group may have ended by itself meanwhile.
        let _gone_is_fine = kill_process_group(group, signal);
    }
}

/// The child's own code, or 128 + the signal that ended it.
fn code_of(status: ExitStatus) -> ExitCode {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    ExitCode::from(code as u8)
}
