//! The last step before a command: the process that becomes it.

use super::super::{exit, output};
use super::signals::Mask;
use lockring_client::proto::Shown;
use nix::sys::signal::{SigSet, Signal};
use rustix::process::{self, Pid, getppid, set_parent_process_death_signal};
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// The arguments of the process that becomes a command, its keeper being this process.
pub fn arguments(keeper: Pid, mask: Mask, command: &[OsString]) -> impl Iterator<Item = OsString> {
    let own = [keeper.as_raw_nonzero().to_string(), mask.0.to_string()];
    own.into_iter().map(OsString::from).chain(command.iter().cloned())
}

/// Becomes the command, which the kernel ends when the keeper ends: prctl(2), PR_SET_PDEATHSIG. By
/// execvp(3), which has `sh` run a script that names no interpreter.
pub fn run(arguments: &[OsString]) -> ExitCode {
    let [keeper, mask, name, rest @ ..] = arguments else {
        return ExitCode::from(exit::SOFTWARE);
    };
    let keeper = keeper.to_str().and_then(|text| text.parse().ok()).and_then(Pid::from_raw);
    let mask = mask.to_str().and_then(|text| text.parse().ok()).map(Mask);
    let bound = set_parent_process_death_signal(Some(process::Signal::KILL));
    if bound.is_err() || getppid() != keeper {
        // It has ended before it could take this process along.
        return ExitCode::from(exit::SOFTWARE);
    }
    if mask.is_none_or(|mask| mask.set().is_err()) {
        return ExitCode::from(exit::SOFTWARE);
    }
    let error = Command::new(name).args(rest).exec();
    let code = match error.kind() {
        ErrorKind::NotFound if !is_there(name) => exit::NOT_FOUND,
        _ => exit::CANNOT_RUN,
    };
    // The attempt has made SIGPIPE deadly, as it is for a command: what is said here may have no
    // reader.
    let mut pipe = SigSet::empty();
    pipe.add(Signal::SIGPIPE);
    let _or_else_it_is_the_exit_code = pipe.thread_block();
    let name = Shown(name.as_bytes());
    output::report(&exit::Failure::new(code, format!("cannot run {name}: {error}")))
}

/// A script whose interpreter is missing is there, though "not found".
fn is_there(name: &OsStr) -> bool {
    name.as_bytes().contains(&b'/') && std::path::Path::new(name).exists()
}
