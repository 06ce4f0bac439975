//! `server`: a node in earnest; and the echo that `bench` compares with.

use super::exit::{self, Failure};
use super::{connect, duration};
use clap::Args as ClapArgs;
use lockring_node::{CellBits, Node, NodeConfig, StartError, echo};
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

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

/// Flags of `server`. A flag overrides the environment, which overrides the config file.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// A TOML file with the settings below, as deploy/node.example.toml
    #[arg(long, env = "LOCKRING_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where certificates and state are kept; made if missing
    #[arg(long, env = "LOCKRING_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address of worker 0; worker i listens i ports above [default: 127.0.0.1:7420]
    #[arg(long, env = "LOCKRING_LISTEN", value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Host name or address that clients are told; else the one they came by
    #[arg(long, env = "LOCKRING_ADVERTISE", value_name = "HOST")]
    advertise: Option<String>,
    /// Number of workers, a power of two [default: one a core]
    #[arg(long, env = "LOCKRING_WORKERS", value_name = "N")]
    workers: Option<u16>,
    /// Where metrics and health are served over HTTP, read-only; `none` for nowhere
    /// [default: 127.0.0.1:7421]
    #[arg(long, env = "LOCKRING_ADMIN", value_name = "ADDR", value_parser = admin)]
    admin: Option<AdminAddr>,
    /// How long a stopping node waits for locks to be given back [default: 10s]
    #[arg(long, env = "LOCKRING_DRAIN", value_name = "DUR", value_parser = duration::parse)]
    drain: Option<Duration>,
    /// Say what would be used and exit
    #[arg(long, env = "LOCKRING_CHECK", value_parser = connect::switch())]
    check: bool,
}

/// The config file. Unknown settings are errors: a typo must not become a default.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileConfig {
    data_dir: Option<PathBuf>,
    listen: Option<SocketAddr>,
    advertise: Option<String>,
    workers: Option<u16>,
    admin: Option<String>,
    drain: Option<String>,
}

impl FileConfig {
    fn read(path: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = path else { return Ok(Self::default()) };
        let failed = |error: &dyn std::fmt::Display| {
            Failure::new(exit::CONFIG, format!("{}: {error}", path.display()))
        };
        let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
        toml::from_str(&text).map_err(|error| failed(&error))
    }
}

impl Args {
    /// What is to be used: flags and environment, then the file, then defaults.
    fn settings(&self) -> Result<NodeConfig, Failure> {
        let file = FileConfig::read(self.config.as_deref())?;
        let wrong = |what: &str, why: String| Failure::new(exit::CONFIG, format!("{what}: {why}"));
        let from_file = file.admin.as_deref().map(admin).transpose();
        let file_admin = from_file.map_err(|why| wrong("admin", why))?;
        let from_file = file.drain.as_deref().map(duration::parse).transpose();
        let file_drain = from_file.map_err(|why| wrong("drain", why))?;
        let data_dir = self.data_dir.clone().or(file.data_dir).ok_or_else(|| {
            let message = "name a data directory: --data-dir DIR, or data_dir in --config FILE";
            Failure::new(exit::USAGE, message)
        })?;
        Ok(NodeConfig {
            data_dir,
            listen: self.listen.or(file.listen).unwrap_or(([127, 0, 0, 1], 7420).into()),
            advertise: self.advertise.clone().or(file.advertise),
            workers: self.workers.or(file.workers).unwrap_or_else(default_workers),
            cell_bits: CellBits::DEFAULT,
            admin: self
                .admin
                .or(file_admin)
                .map_or(Some(([127, 0, 0, 1], 7421).into()), |admin| admin.0),
            drain: self.drain.or(file_drain).unwrap_or(Duration::from_secs(10)),
        })
    }
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
    let config = args.settings()?;
    if args.check {
        println!(
            "data_dir {}\nlisten {}\nadvertise {}\nworkers {}\nadmin {}\ndrain {:?}",
            config.data_dir.display(),
            config.listen,
            config.advertise.as_deref().unwrap_or("as reached"),
            config.workers,
            config.admin.map_or_else(|| "none".to_owned(), |at| at.to_string()),
            config.drain,
        );
        return Ok(ExitCode::SUCCESS);
    }
    let stopper = Stopper::new()?;
    let node = Node::start(&config).map_err(failed)?;
    println!("ready on {} ({} workers)", node.listen(), config.workers);
    if let Some(admin) = node.admin() {
        println!("admin http://{admin}");
    }
    if let Some(bundle) = node.client_bundle() {
        println!("client identity: {}", bundle.display());
    }
    // A service manager, if one started us, may go on now.
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
    Ok(stopper.serve(node))
}

/// Listens for SIGINT and SIGTERM from its making on, so that none is missed while a node starts.
pub struct Stopper {
    runtime: Runtime,
    signals: Signals,
}

struct Signals {
    int: Signal,
    term: Signal,
}

impl Signals {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
        }
    }
}

impl Stopper {
    /// Begins to listen.
    pub fn new() -> Result<Self, Failure> {
        let failed = |error| Failure::new(exit::SOFTWARE, format!("no signals: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(failed)?;
        let signals = {
            let _inside = runtime.enter();
            let int = signal(SignalKind::interrupt()).map_err(failed)?;
            let term = signal(SignalKind::terminate()).map_err(failed)?;
            Signals { int, term }
        };
        Ok(Self { runtime, signals })
    }

    /// Waits for a signal, then stops the node. A second signal does not wait.
    pub fn serve(mut self, node: Node) -> ExitCode {
        self.runtime.block_on(async {
            self.signals.next().await;
            tracing::info!("stopping");
            tokio::select! {
                held = node.stop() => {
                    if held > 0 {
                        tracing::warn!(held, "stopped with locks held: the next start waits");
                    }
                    ExitCode::SUCCESS
                }
                () = self.signals.next() => {
                    tracing::warn!("stopped at once");
                    ExitCode::FAILURE
                }
            }
        })
    }
}

/// Runs the echo until killed.
pub fn run_echo(args: &EchoArgs) -> Result<ExitCode, Failure> {
    echo::run(&args.data_dir, args.listen, |at| println!("ready on {at}")).map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}
