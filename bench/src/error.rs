//! What can go wrong with a run.

use crate::choices::OptionError;
use crate::drive::GroupError;
use crate::target::TargetError;
use std::io;

/// Why a run gave no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// An option has an impossible value.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// A target is not one.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A program to start is not there.
    #[error(
        "{program} is not in PATH: install the package {package} (on Debian: apt install \
             {package}), or name a running server as {instead}"
    )]
    ProgramMissing {
        /// The program.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
        /// A target that would do without it.
        instead: &'static str,
    },
    /// A private server did not start.
    #[error("{target} did not start: {problem}")]
    Start {
        /// The target as given.
        target: String,
        /// What happened, with the end of the server's log.
        problem: String,
    },
    /// A server could not be reached.
    #[error("{target}: no connection to {address}: {source}; is the server running there?")]
    Connect {
        /// The target as given.
        target: String,
        /// Where it was looked for.
        address: String,
        /// What happened.
        source: GroupError,
    },
    /// A connection did not survive the run.
    #[error("{target}: {source}{obituary}")]
    CallerGroup {
        /// The target as given.
        target: String,
        /// What happened.
        source: GroupError,
        /// How the server ended, led by `; `, if it was started here and has.
        obituary: String,
    },
    /// Operations stay unanswered.
    #[error("{target}: {outstanding} operations are unanswered after {seconds} s")]
    Stuck {
        /// The target as given.
        target: String,
        /// How many.
        outstanding: u32,
        /// For how long.
        seconds: u64,
    },
    /// A run without a single pair.
    #[error(
        "{target}: no pair was completed in any round; use a longer --duration or a shorter \
             --hold{first_error}"
    )]
    NothingMeasured {
        /// The target as given.
        target: String,
        /// What the server said of the first failed operation, led by `; `.
        first_error: String,
    },
    /// Not all the locks could be held.
    #[error("{target}: {held} of {wanted} locks could be held{first_error}")]
    NotFilled {
        /// The target as given.
        target: String,
        /// How many were held.
        held: u64,
        /// How many should have been.
        wanted: u32,
        /// What the server said of the first failed operation, led by `; `.
        first_error: String,
    },
    /// Locks of a session that died stay held.
    #[error(
        "{target}: locks of a dead session are still held {seconds} s after they should be free"
    )]
    NotFreed {
        /// The target as given.
        target: String,
        /// For how long.
        seconds: u64,
    },
    /// A command that makes no sense for a target.
    #[error("{target}: {why}")]
    Unsupported {
        /// The target as given.
        target: String,
        /// Why, and what to use instead.
        why: &'static str,
    },
    /// The run was interrupted by a signal; its servers are stopped.
    #[error("interrupted")]
    Interrupted,
    /// The figures could not be written to standard output.
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
    /// The system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
}

impl BenchError {
    /// For `map_err`: an error of the system while trying `what`.
    pub(crate) fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { what, source: source.into() }
    }
}
