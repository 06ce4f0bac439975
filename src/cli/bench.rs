//! `bench`: the load generator's command line.

use super::connect::Global;
use super::exit::{self, Failure};
use super::output::{Format, Unwritten};
use clap::{Args as ClapArgs, Subcommand};
use lockring_bench::{
    AbuseOptions, BenchError, Driver, ExpiryOptions, KeyDist, LatencyOptions, MemoryOptions,
    Outcome, Output, PairsOptions, Target,
};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// What is measured.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Acquire and release pairs by many callers on few connections
    Pairs(PairsArgs),
    /// One caller, nothing to batch
    Latency(LatencyArgs),
    /// The resident size of a server that holds many locks
    Memory(MemoryArgs),
    /// One session dies holding many locks while another works
    Expiry(ExpiryArgs),
    /// One bad peer beside a well-behaved one, attack by attack
    Abuse(AbuseArgs),
}

/// Flags of `bench pairs`.
#[derive(Debug, ClapArgs)]
pub struct PairsArgs {
    /// lockring://..., lockring+spawn:[PATH][?workers=N], redis+spawn:, redis://..., echo+spawn:
    #[arg(long = "target", value_name = "TARGET", default_value = "lockring+spawn:")]
    targets: Vec<Target>,
    /// Callers over all connections
    #[arg(long, default_value_t = 512)]
    callers: u32,
    /// Connections, each a client with its share of the callers
    #[arg(long, default_value_t = 4)]
    connections: u32,
    /// Distinct keys
    #[arg(long, default_value_t = 1_000_000)]
    keys: u32,
    /// How keys are drawn: uniform, or zipf:S
    #[arg(long, default_value = "uniform")]
    dist: KeyDist,
    /// How long a caller keeps a key
    #[arg(long, default_value = "0", value_parser = super::duration::parse)]
    hold: Duration,
    /// Measured time per target
    #[arg(long, default_value = "10s", value_parser = super::duration::parse)]
    duration: Duration,
    /// Pairs started per second; as fast as answered if not given
    #[arg(long)]
    rate: Option<f64>,
    /// How callers are driven: lean (slots over the connection layer) or api (tasks on the client)
    #[arg(long, default_value = "lean")]
    driver: Driver,
}

/// Flags of `bench latency`.
#[derive(Debug, ClapArgs)]
pub struct LatencyArgs {
    /// As for `bench pairs`
    #[arg(long = "target", value_name = "TARGET", default_value = "lockring+spawn:")]
    targets: Vec<Target>,
    /// Measured time per target
    #[arg(long, default_value = "10s", value_parser = super::duration::parse)]
    duration: Duration,
}

/// Flags of `bench memory`.
#[derive(Debug, ClapArgs)]
pub struct MemoryArgs {
    /// As for `bench pairs`
    #[arg(long = "target", value_name = "TARGET", default_value = "lockring+spawn:")]
    targets: Vec<Target>,
    /// Locks held
    #[arg(long, default_value_t = 10_000_000)]
    locks: u32,
}

/// Flags of `bench expiry`.
#[derive(Debug, ClapArgs)]
pub struct ExpiryArgs {
    /// lockring://... or lockring+spawn:[PATH][?workers=N]
    #[arg(long = "target", value_name = "TARGET", default_value = "lockring+spawn:")]
    targets: Vec<Target>,
    /// Locks held by the session that dies
    #[arg(long, default_value_t = 1_000_000)]
    locks: u32,
}

/// Flags of `bench abuse`.
#[derive(Debug, ClapArgs)]
pub struct AbuseArgs {
    /// The binary whose server is attacked; this one unless given
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Only these attacks
    #[arg(long = "attack", value_name = "NAME")]
    attacks: Vec<String>,
    /// How often each attack is measured; the median decides
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Measured time per attack and round
    #[arg(long, default_value = "3s", value_parser = super::duration::parse)]
    duration: Duration,
    /// The node's memory may grow by this much, in MiB
    #[arg(long, default_value_t = 64)]
    memory: u64,
}

/// Ended by a signal, as shells say it.
const INTERRUPTED: u8 = 130;

fn failed(error: BenchError) -> Failure {
    let code = match error {
        BenchError::Option(_) | BenchError::Target(_) | BenchError::Unsupported { .. } => {
            exit::USAGE
        }
        BenchError::ProgramMissing { .. }
        | BenchError::Start { .. }
        | BenchError::Connect { .. }
        | BenchError::CallerGroup { .. } => exit::UNAVAILABLE,
        BenchError::Interrupted => INTERRUPTED,
        BenchError::Output(error) => return Unwritten(error).into(),
        _ => exit::SOFTWARE,
    };
    Failure::new(code, error.to_string())
}

/// Measures.
pub fn run(global: &Global, command: &BenchCommand) -> Result<ExitCode, Failure> {
    let output = match global.output {
        Format::Table => Output::Table,
        Format::Json => Output::Json,
        Format::Jsonl => Output::JsonLines,
    };
    let outcome = match command {
        BenchCommand::Pairs(args) => {
            let options = PairsOptions {
                targets: args.targets.clone(),
                callers: args.callers,
                connections: args.connections,
                keys: args.keys,
                dist: args.dist,
                hold: args.hold,
                duration: args.duration,
                rate: args.rate,
                driver: args.driver,
            };
            lockring_bench::run_pairs(&options, output)
        }
        BenchCommand::Latency(args) => {
            let options = LatencyOptions { targets: args.targets.clone(), duration: args.duration };
            lockring_bench::run_latency(&options, output)
        }
        BenchCommand::Memory(args) => {
            let options = MemoryOptions { targets: args.targets.clone(), locks: args.locks };
            lockring_bench::run_memory(&options, output)
        }
        BenchCommand::Expiry(args) => {
            let options = ExpiryOptions { targets: args.targets.clone(), locks: args.locks };
            lockring_bench::run_expiry(&options, output)
        }
        BenchCommand::Abuse(args) => {
            let options = AbuseOptions {
                binary: args.binary.clone(),
                attacks: args.attacks.clone(),
                rounds: args.rounds,
                duration: args.duration,
                memory_bound: args.memory.saturating_mul(1 << 20),
            };
            lockring_bench::run_abuse(&options, output)
        }
    };
    match outcome.map_err(failed)? {
        Outcome::Safe => Ok(ExitCode::SUCCESS),
        Outcome::Unsafe => Err(Failure::new(1, "the safety check failed: see the report")),
    }
}
