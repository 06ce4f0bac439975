//! `server`: a node in earnest; and the echo that `bench` compares with.

use super::exit::{self, Failure};
use super::output;
use super::settings::{self, Args};
use clap::Args as ClapArgs;
use lockring_node::{Node, StartError};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

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
        StartError::Workers(_) | StartError::Ports(..) | StartError::Advertise(_) => exit::USAGE,
        _ => exit::CONFIG,
    };
    Failure::new(code, error.to_string())
}

/// Runs a node until it is told to stop.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let config = args.settings()?;
    if args.check {
        output::line(settings::shown(&config))?;
        return Ok(ExitCode::SUCCESS);
    }
    let stopper = Stopper::new()?;
    let node = Node::start(&config).map_err(failed)?;
    say(format_args!("ready on {} ({} workers)", node.listen(), config.workers));
    if let Some(admin) = node.admin() {
        say(format_args!("admin http://{admin}"));
    }
    if let Some(bundle) = node.client_bundle() {
        say(format_args!("client identity: {}", bundle.display()));
    }
    // A service manager, if one started us, may go on now.
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
    Ok(stopper.serve(node))
}

/// Tells what may be read: a node serves on where nobody reads it any more.
pub fn say(text: std::fmt::Arguments<'_>) {
    let _nobody_may_read_it = output::line(text);
}

/// Listens for signals from its making on, so that none is missed while a node starts.
pub struct Stopper {
    runtime: Runtime,
    signals: Signals,
}

struct Signals {
    int: Signal,
    term: Signal,
    hangup: Signal,
}

impl Signals {
    /// The next signal to stop. A hangup is none: it comes with a closed terminal, from a log
    /// rotation, or out of habit, and must not end everybody's locks.
    async fn stop(&mut self) {
        loop {
            tokio::select! {
                _ = self.int.recv() => return,
                _ = self.term.recv() => return,
                _ = self.hangup.recv() => {
                    tracing::warn!("SIGHUP is ignored; SIGTERM stops the node");
                }
            }
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
            let hangup = signal(SignalKind::hangup()).map_err(failed)?;
            Signals { int, term, hangup }
        };
        Ok(Self { runtime, signals })
    }

    /// Waits for SIGINT or SIGTERM, then stops the node. A second one does not wait for locks to be
    /// given back, a third for nothing.
    pub fn serve(self, node: Node) -> ExitCode {
        let Self { runtime, mut signals } = self;
        runtime.block_on(serve(node, &mut signals))
    }
}

async fn serve(mut node: Node, signals: &mut Signals) -> ExitCode {
    let failed = tokio::select! {
        () = signals.stop() => false,
        what = node.failed() => {
            tracing::error!(what, "it has failed: the node ends, and must be started anew");
            true
        }
    };
    tracing::info!("stopping");
    let hurry = Notify::new();
    let urged = async {
        signals.stop().await;
        hurry.notify_one();
        signals.stop().await;
    };
    tokio::select! {
        stopped = node.stop_sooner(hurry.notified()) => {
            if !stopped.clean {
                let held = stopped.held;
                tracing::warn!(held, "stopped while leases may be left: the next start waits");
            }
            if failed { ExitCode::from(exit::SOFTWARE) } else { ExitCode::SUCCESS }
        }
        () = urged => {
            tracing::warn!("stopped at once");
            ExitCode::FAILURE
        }
    }
}

/// Runs the echo until killed.
pub fn run_echo(args: &EchoArgs) -> Result<ExitCode, Failure> {
    lockring_node::run_echo(&args.data_dir, args.listen, |at| say(format_args!("ready on {at}")))
        .map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}
