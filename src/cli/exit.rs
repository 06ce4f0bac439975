//! How commands end: exit codes, and errors that carry one.

use lockring_client::{Error, ErrorKind};
use nix::sys::signal::{SigSet, Signal, raise};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fmt;
use std::process::ExitCode;

/// Bad command line (sysexits.h).
pub const USAGE: u8 = 64;
/// No node reachable.
pub const UNAVAILABLE: u8 = 69;
/// Something of our own failed.
pub const SOFTWARE: u8 = 70;
/// What was to be printed could not be written.
pub const IO: u8 = 74;
/// Busy, or not granted within the wait.
pub const BUSY: u8 = 75;
/// The node is of another version.
pub const VERSION: u8 = 76;
/// Denied.
pub const DENIED: u8 = 77;
/// A file or setting cannot be used.
pub const CONFIG: u8 = 78;
/// The lock was lost while the child ran, or before it was given back.
pub const LOST: u8 = 79;
/// The command cannot be run.
pub const CANNOT_RUN: u8 = 126;
/// There is no such command.
pub const NOT_FOUND: u8 = 127;
/// Nobody reads what is printed any more, as shells say it of tools that SIGPIPE ends.
pub const READER_GONE: u8 = 128 + 13;

/// Why a command ends early: what is printed, and the exit code.
#[derive(Debug)]
pub struct Failure {
    /// Printed on stderr after the program's name; nothing if empty.
    pub message: String,
    /// The exit code.
    pub code: u8,
    /// Waiting does not help.
    pub is_final: bool,
}

impl Failure {
    /// A failure with a message.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { message: message.into(), code, is_final: true }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match error.kind() {
            ErrorKind::Timeout | ErrorKind::Quota | ErrorKind::Conflict => BUSY,
            ErrorKind::Unreachable | ErrorKind::Draining | ErrorKind::Closed => UNAVAILABLE,
            ErrorKind::Lost => LOST,
            ErrorKind::Denied => DENIED,
            ErrorKind::Invalid | ErrorKind::TooDeep => USAGE,
            ErrorKind::Config => CONFIG,
            ErrorKind::Version => VERSION,
            _ => SOFTWARE,
        };
        Self { is_final: !error.is_retryable(), ..Self::new(code, error.to_string()) }
    }
}

/// How a command that runs another one ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With this exit code.
    Code(u8),
    /// By this signal, as the shell that started it needs to know: a script goes on after a command
    /// that has dealt with SIGINT, and ends with one that died of it.
    Signal(i32),
}

impl End {
    /// The process's exit code, if it still needs one.
    pub fn reach(self) -> ExitCode {
        let number = match self {
            Self::Code(code) => return ExitCode::from(code),
            Self::Signal(number) => number,
        };
        if let Ok(signal) = Signal::try_from(number) {
            // Whatever there is to see is in the memory of the one that died first.
            let core = getrlimit(Resource::Core);
            let _may_leave_a_core = setrlimit(Resource::Core, Rlimit { current: Some(0), ..core });
            let mut mask = SigSet::empty();
            mask.add(signal);
            // The handler for a full stack that Rust sets for some only makes way the first time.
            for _ in 0..2 {
                let _survived = mask.thread_unblock().and_then(|()| raise(signal));
            }
        }
        // The first process of a container, and signals without a name.
        ExitCode::from(128u8.wrapping_add(number as u8))
    }
}
