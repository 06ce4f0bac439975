//! The command line: what may be typed, and which command does it.

mod bench;
mod cert;
mod connect;
mod dev;
mod duration;
mod exit;
mod key;
mod lock;
mod look;
mod output;
mod quotas;
mod recover;
mod server;
mod settings;
mod size;
mod supervise;
mod tokens;

use clap::{CommandFactory, Parser, Subcommand};
use exit::{End, Failure};
use std::process::ExitCode;

/// A consistent-hash sharded lock service.
#[derive(Debug, Parser)]
#[command(name = "lockring", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: connect::Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a node to try things with: throw-away certificates and data
    Dev(dev::Args),
    /// Start a node
    Server(settings::Args),
    /// Make a node's state anew after it was damaged, so that no fencing token repeats
    Recover(recover::Args),
    /// Issue certificates
    #[command(subcommand)]
    Cert(cert::CertCommand),
    /// Take a lock, run a command under it, give it back
    Lock(lock::Args),
    /// End a hold by its token, from `lock --print-token`
    Unlock(tokens::Args),
    /// Keep a hold alive by its token, for its TTL from now
    Renew(tokens::Args),
    /// List locks
    Locks(look::LocksArgs),
    /// Show who holds and who waits for a key
    Inspect(look::InspectArgs),
    /// End every hold of a key, whoever has it
    Release(look::ReleaseArgs),
    /// Show the nodes and what they hold
    Status,
    /// Show which node and worker a key goes to
    Route(look::KeyArgs),
    /// Measure, beside other servers, with every grant checked
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Print shell completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// A framed echo with our transport and no locks: the floor that `bench` compares with
    #[command(hide = true)]
    EchoServer(server::EchoArgs),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    if let Some(code) = supervise::as_helper() {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            return match (error.use_stderr(), error.print()) {
                (true, _) => ExitCode::from(exit::USAGE),
                (false, Ok(())) => ExitCode::SUCCESS,
                (false, Err(unwritten)) => output::report(&output::Unwritten(unwritten).into()),
            };
        }
    };
    connect::start_log(&cli.global);
    match run(cli) {
        Ok(code) => code,
        Err(failure) => output::report(&failure),
    }
}

fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let global = cli.global;
    match cli.command {
        Command::Dev(args) => dev::run(&global, &args),
        Command::Server(args) => server::run(&args),
        Command::EchoServer(args) => server::run_echo(&args),
        Command::Recover(args) => recover::run(&args),
        Command::Cert(command) => cert::run(&command),
        Command::Bench(command) => bench::run(&global, &command),
        Command::Completions { shell } => {
            let mut command = Cli::command();
            // It panics where it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, "lockring", &mut script);
            output::raw(&script)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Lock(args) => on_runtime(lock::run(&global, args)).map(End::reach),
        Command::Unlock(args) => on_runtime(tokens::unlock(&global, &args)),
        Command::Renew(args) => on_runtime(tokens::renew(&global, &args)),
        Command::Locks(args) => on_runtime(look::locks(&global, &args)),
        Command::Inspect(args) => on_runtime(look::inspect(&global, &args)),
        Command::Release(args) => on_runtime(look::release(&global, &args)),
        Command::Status => on_runtime(look::status(&global)),
        Command::Route(args) => on_runtime(look::route(&global, &args)),
    }
}

/// Runs a client command: one thread is plenty.
fn on_runtime<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(exit::SOFTWARE, format!("no runtime: {error}")))?
        .block_on(command)
}
