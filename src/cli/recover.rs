//! `recover`: a new state for a node whose own is damaged, lost or put back from an old copy.

use super::exit::Failure;
use super::server::failed;
use super::{duration, output};
use clap::Args as ClapArgs;
use lockring_client::proto::Shown;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Flags of `recover`.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The node's data directory
    #[arg(long, env = "LOCKRING_DATA_DIR", value_name = "DIR")]
    data_dir: PathBuf,
    /// Above the epoch of every fencing token that was ever seen: the epoch of a token is the
    /// token divided by 2^40
    #[arg(long, value_name = "N")]
    epoch_floor: u32,
    /// The longest TTL that a session may have: so long nothing is granted after the start. If it
    /// is too short, what a session with a longer one holds may be granted a second time
    /// [default: what the former state tells of; 1h if it cannot be read]
    #[arg(long, value_name = "DUR", value_parser = duration::ttl)]
    longest_ttl: Option<Duration>,
}

/// Makes the state anew.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let recovered = lockring_node::recover(&args.data_dir, args.epoch_floor, args.longest_ttl)
        .map_err(|error| failed(error.into()))?;
    if let Some(former) = recovered.former
        && former.longest_ttl > recovered.longest_ttl
    {
        let whose = match former.longest_by.as_str() {
            "" => String::new(),
            by => format!(" of {}", Shown(by)),
        };
        output::say(format_args!(
            "the former state tells of a session{whose} with a TTL of {:?}. If it is still alive, \
             what it holds may be granted to somebody else {:?} after the next start: make sure \
             that it has ended, or that a fence protects what it works on",
            former.longest_ttl, recovered.longest_ttl
        ));
    }
    for kept in &recovered.kept {
        output::line(format_args!("what was there is kept as {}", kept.display()))?;
    }
    output::line(format_args!(
        "recovered: the next start grants above epoch {}, once a lease of {:?} has ended",
        recovered.epoch_floor, recovered.longest_ttl
    ))?;
    Ok(ExitCode::SUCCESS)
}
