//! `recover`: a new state for a node whose own is damaged, lost or put back from an old copy.

use super::duration;
use super::exit::Failure;
use super::server::failed;
use clap::Args as ClapArgs;
use lockring_client::proto::limits;
use lockring_node::store::Store;
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
    /// The longest TTL that a session may have had: so long nothing is granted after the start
    #[arg(long, value_name = "DUR", default_value = "1h", value_parser = duration::parse)]
    longest_ttl: Duration,
}

/// Makes the state anew.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let longest = limits::clamp_ttl(args.longest_ttl);
    let kept = Store::recover(&args.data_dir, args.epoch_floor, longest)
        .map_err(|error| failed(error.into()))?;
    if let Some(kept) = kept {
        println!("the former state is kept as {}", kept.display());
    }
    println!(
        "recovered: the next start grants above epoch {}, once a lease of {longest:?} has ended, \
         or of more if the former state tells of such",
        args.epoch_floor
    );
    Ok(ExitCode::SUCCESS)
}
