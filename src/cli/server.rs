//! `server`: a node in earnest; and the echo that `bench` compares with.

use super::duration;
use super::exit::{self, Failure};
use clap::Args as ClapArgs;
use lockring_node::{CellBits, Node, NodeConfig, StartError, echo};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// One worker a core, as a power of two.
pub fn default_workers() -> u16 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from).min(256);
    1 << cores.ilog2()
}

/// Where admin HTTP is served, if anywhere.
#[derive(Clone, Copy, Debug)]
pub struct AdminAddr(pub Option<SocketAddr>);

/// Reads an address or `none`.
pub fn admin(text: &str) -> Result<AdminAddr, String> {
    if text == "none" {
        return Ok(AdminAddr(None));
    }
    let wrong = |error| format!("{text:?} is neither an address nor `none`: {error}");
    text.parse().map(|addr| AdminAddr(Some(addr))).map_err(wrong)
}

/// Flags of `server`.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Where certificates and state are kept; made if missing
    #[arg(long, env = "LOCKRING_DATA_DIR", value_name = "DIR")]
    data_dir: PathBuf,
    /// Address of worker 0; worker i listens i ports above
    #[arg(long, env = "LOCKRING_LISTEN", default_value = "127.0.0.1:7420")]
    listen: SocketAddr,
    /// Host name or address that clients are told; else the one they came by
    #[arg(long, env = "LOCKRING_ADVERTISE", value_name = "HOST")]
    advertise: Option<String>,
    /// Number of workers, a power of two
    #[arg(long, env = "LOCKRING_WORKERS", default_value_t = default_workers())]
    workers: u16,
    /// Where metrics and health are served over HTTP, read-only; `none` for nowhere
    #[arg(long, env = "LOCKRING_ADMIN", default_value = "127.0.0.1:7421", value_parser = admin)]
    admin: AdminAddr,
    /// How long a stopping node waits for locks to be given back
    #[arg(long, env = "LOCKRING_DRAIN", default_value = "10s", value_parser = duration::parse)]
    drain: Duration,
}

/// Flags of the echo.
#[derive(Debug, ClapArgs)]
pub struct EchoArgs {
    /// Where certificates are kept; made if missing
    #[arg(long)]
    data_dir: PathBuf,
    /// Where to listen
    #[arg(long)]
    listen: SocketAddr,
}

/// A node that could not start.
#[expect(clippy::needless_pass_by_value, reason = "used as a function of map_err")]
pub fn failed(error: StartError) -> Failure {
    let code = match error {
        StartError::Workers(_) => exit::USAGE,
        _ => exit::CONFIG,
    };
    Failure::new(code, error.to_string())
}

/// Runs a node until it is told to stop.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let config = NodeConfig {
        data_dir: args.data_dir.clone(),
        listen: args.listen,
        advertise: args.advertise.clone(),
        workers: args.workers,
        cell_bits: CellBits::DEFAULT,
        admin: args.admin.0,
        drain: args.drain,
    };
    let node = Node::start(&config).map_err(failed)?;
    println!("ready on {} ({} workers)", node.listen(), args.workers);
    if let Some(admin) = node.admin() {
        println!("admin http://{admin}");
    }
    if let Some(bundle) = node.client_bundle() {
        println!("client identity: {}", bundle.display());
    }
    until_stopped(node)
}

/// Waits for SIGINT or SIGTERM, then stops the node. A second signal does not wait.
pub fn until_stopped(node: Node) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let no_runtime = |error| Failure::new(exit::SOFTWARE, format!("no runtime: {error}"));
    runtime.map_err(no_runtime)?.block_on(async {
        interrupted().await?;
        tracing::info!("stopping");
        tokio::select! {
            held = node.stop() => {
                if held > 0 {
                    tracing::warn!(held, "stopped with locks held: the next start waits for them");
                }
                Ok(ExitCode::SUCCESS)
            }
            second = async { interrupted().await } => {
                second?;
                tracing::warn!("stopped at once");
                Ok(ExitCode::FAILURE)
            }
        }
    })
}

/// Ends at the next SIGINT or SIGTERM.
async fn interrupted() -> Result<(), Failure> {
    let failed = |error| Failure::new(exit::SOFTWARE, format!("no signals: {error}"));
    let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    tokio::select! {
        _ = int.recv() => {}
        _ = term.recv() => {}
    }
    Ok(())
}

/// Runs the echo until killed.
pub fn run_echo(args: &EchoArgs) -> Result<ExitCode, Failure> {
    echo::run(&args.data_dir, args.listen, |at| println!("ready on {at}")).map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}
