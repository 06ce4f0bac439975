//! `dev`: a node to try things with.

use super::connect::Global;
use super::exit::{self, Failure};
use super::{output, server, settings};
use lockring_client::context::{Context, Contexts, Environment};
use lockring_node::{BindError, Data, Node, NodeConfig, StartError};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Flags of `dev`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to listen; another port is taken if this one is in use
    #[arg(long, env = "LOCKRING_DEV_LISTEN", default_value = "127.0.0.1:7420")]
    listen: SocketAddr,
    /// Number of workers, a power of two
    #[arg(long, env = "LOCKRING_DEV_WORKERS", default_value_t = settings::default_workers())]
    workers: u16,
}

const CONTEXT: &str = "dev";

/// Runs a node until interrupted.
pub fn run(global: &Global, args: &Args) -> Result<ExitCode, Failure> {
    let started = Instant::now();
    let stopper = server::Stopper::new()?;
    let data = tempfile::Builder::new()
        .prefix("lockring-dev-")
        .tempdir()
        .map_err(|error| Failure::new(exit::CONFIG, format!("no temporary directory: {error}")))?;
    let node = start(args, data.path())?;
    let listen = node.listen();
    if args.listen.port() != 0 && listen.port() != args.listen.port() {
        let (asked, taken) = (args.listen.port(), listen.port());
        output::say(format_args!("port {asked} is in use, took {taken} instead"));
    }
    let contexts = Contexts::new(&Environment::of_process()).map_err(config)?;
    let identity = node
        .client_bundle()
        .cloned()
        .ok_or_else(|| Failure::new(exit::SOFTWARE, "the node made no client identity"))?;
    let context = Context {
        endpoints: vec![listen.to_string()],
        identity: identity.clone(),
        pid: Some(std::process::id()),
    };
    contexts.write(CONTEXT, &context).map_err(config)?;
    let former = contexts.make_current(CONTEXT).map_err(config)?;
    let metrics = node.admin().map_or_else(String::new, |at| format!("http://{at}/metrics"));
    if !global.quiet {
        server::say(format_args!(
            "lockring {}  one node in memory; everything is lost on exit\n  \
             lock      lockring://{listen}  (QUIC, TLS 1.3, throw-away CA)\n  \
             identity  {}\n  \
             metrics   {metrics}\n\
             ready in {} ms. Context \"dev\" is now current, so other commands need no flags. \
             Ctrl-C stops.\n\n\
             Try:  lockring lock demo -- sh -c 'echo fence=$LOCKRING_FENCE'\n      \
             lockring locks\n      \
             lockring bench pairs --duration 5s",
            env!("CARGO_PKG_VERSION"),
            identity.display(),
            started.elapsed().as_millis(),
        ));
    }
    let ended = stopper.serve(node);
    contexts.restore(CONTEXT, former.as_deref()).map_err(config)?;
    contexts.remove(CONTEXT).map_err(config)?;
    Ok(ended)
}

fn config(error: impl std::fmt::Display) -> Failure {
    Failure::new(exit::CONFIG, error.to_string())
}

/// Whoever kills it outright leaves no more than the identity of one client of a node that is gone.
fn start(args: &Args, data: &Path) -> Result<Node, Failure> {
    let config = NodeConfig {
        listen: args.listen,
        workers: args.workers,
        admin: Some(SocketAddr::new(args.listen.ip(), 0)),
        drain: Duration::ZERO,
        ..NodeConfig::new(Data::Memory { client: data.join("client.pem") })
    };
    match Node::start(&config) {
        Err(StartError::Bind(BindError::InUse(_))) if args.listen.port() != 0 => {
            let any = SocketAddr::new(args.listen.ip(), 0);
            Node::start(&NodeConfig { listen: any, ..config }).map_err(server::failed)
        }
        started => started.map_err(server::failed),
    }
}
