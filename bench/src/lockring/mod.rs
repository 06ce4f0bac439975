//! Our own server as a target, and the bare echo of the same transport.

mod api;
mod drive;
mod in_order;
mod protocol;

use crate::error::BenchError;
use crate::process::Spawned;
pub(crate) use api::{Caller, Pacer};
pub(crate) use drive::drive;
pub(crate) use in_order::{InOrderProtocol, Question};
use lockring_client::proto::{NodeInfo, SERVER_NAME};
use lockring_client::target::{Host, Seed, Target as Cluster};
use lockring_client::tls::{self, Bundle};
use lockring_client::wire::{Wire, WireError};
pub(crate) use protocol::LockringProtocol;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const START_WITHIN: Duration = Duration::from_secs(10);

/// A way to a cluster: where its first worker is, and who we are there.
#[derive(Clone)]
pub(crate) struct ClusterAccess {
    addr: SocketAddr,
    identity: PathBuf,
    config: quinn::ClientConfig,
    endpoint: quinn::Endpoint,
}

impl ClusterAccess {
    fn new(addr: SocketAddr, identity: &Path) -> Result<Self, String> {
        let bundle = Bundle::load(identity).map_err(|error| error.to_string())?;
        let endpoint = tls::client_endpoint(addr).map_err(|error| error.to_string())?;
        let (identity, config) = (identity.to_owned(), tls::client_config(&bundle));
        Ok(Self { addr, identity, config, endpoint })
    }

    /// The same way, by a socket of the current runtime.
    pub(crate) fn anew(&self) -> Result<Self, String> {
        Self::new(self.addr, &self.identity)
    }

    /// A connection to the worker that listens `port_offset` ports above the first.
    pub(crate) async fn wire(&self) -> Result<Wire, WireError> {
        Wire::connect(&self.endpoint, self.config.clone(), self.addr).await
    }

    /// Connects to a worker where the ring has it.
    pub(crate) async fn wire_to(&self, node: &NodeInfo, worker: u16) -> Result<Wire, String> {
        let told = node.address(worker);
        let (host, port) = told.ok_or_else(|| format!("worker {worker} has no address"))?;
        let addr = if host.is_empty() {
            SocketAddr::new(self.addr.ip(), port)
        } else {
            first_address(host, port).await?
        };
        let wire = Wire::connect(&self.endpoint, self.config.clone(), addr).await;
        wire.map_err(|error| error.to_string())
    }

    /// Begins a connection to the first worker, as its owner or as somebody else.
    pub(crate) fn begin(
        &self,
        other: Option<quinn::ClientConfig>,
    ) -> Result<quinn::Connecting, quinn::ConnectError> {
        let config = other.unwrap_or_else(|| self.config.clone());
        self.endpoint.connect_with(config, self.addr, SERVER_NAME)
    }

    /// The file that says who we are.
    pub(crate) fn identity(&self) -> &Path {
        &self.identity
    }

    /// The way to a running cluster, by its URL.
    pub(crate) async fn to(url: &str) -> Result<Self, String> {
        let cluster: Cluster = url.parse().map_err(|error| format!("{error}"))?;
        let identity = cluster
            .identity
            .or_else(|| std::env::var_os("LOCKRING_IDENTITY").map(PathBuf::from))
            .ok_or("no identity: add ?identity=FILE to the target or set LOCKRING_IDENTITY")?;
        let Some(Seed { host, port }) = cluster.seeds.into_iter().next() else {
            return Err("the URL names no host".to_owned());
        };
        let addr = match host {
            Host::Ip(ip) => SocketAddr::new(ip, port),
            Host::Name(name) => first_address(&name, port).await?,
        };
        Self::new(addr, &identity)
    }
}

async fn first_address(name: &str, port: u16) -> Result<SocketAddr, String> {
    let found = tokio::net::lookup_host((name, port)).await;
    let mut found = found.map_err(|error| format!("{name}: {error}"))?;
    found.next().ok_or_else(|| format!("{name} has no address"))
}

/// The way to a running cluster that is the target `given`.
pub(crate) async fn reach(given: &str, url: &str) -> Result<ClusterAccess, BenchError> {
    let access = ClusterAccess::to(url).await;
    access.map_err(|problem| BenchError::Start { target: given.to_owned(), problem })
}

/// A private node.
pub(crate) async fn spawn_node(
    given: &str,
    path: Option<&Path>,
    workers: u16,
) -> Result<(Spawned, ClusterAccess), BenchError> {
    spawn(given, path, &["server", "--workers", &workers.to_string()]).await
}

/// A private process of this binary (or of the one at `path`), once it says that it is ready.
pub(crate) async fn spawn(
    target: &str,
    path: Option<&Path>,
    arguments: &[&str],
) -> Result<(Spawned, ClusterAccess), BenchError> {
    let program = match path {
        Some(path) => path.to_owned(),
        None => std::env::current_exe().map_err(BenchError::system("finding this binary"))?,
    };
    let directory = TempDir::with_prefix("lockring-bench-")
        .map_err(BenchError::system("making a directory for the server"))?;
    let data = directory.path().join("data");
    let mut command = Command::new(&program);
    command.args(arguments).args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(&data);
    // The environment of a user's own node must not reach this one.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LOCKRING_") {
            command.env_remove(name);
        }
    }
    // Several may run at once, and nobody asks them. An echo has no such page, hence no flag.
    command.env("LOCKRING_ADMIN", "none");
    let mut server = Spawned::start(command, directory).map_err(|source| {
        let problem = match source.kind() {
            io::ErrorKind::NotFound => format!("there is no {}", program.display()),
            _ => source.to_string(),
        };
        BenchError::Start { target: target.to_owned(), problem }
    })?;
    let started = await_ready(&mut server).await;
    let access = started.and_then(|addr| ClusterAccess::new(addr, &data.join("client.pem")));
    match access {
        Ok(access) => Ok((server, access)),
        Err(problem) => Err(BenchError::Start { target: target.to_owned(), problem }),
    }
}

/// Waits for the line `ready on ADDRESS`.
async fn await_ready(server: &mut Spawned) -> Result<SocketAddr, String> {
    let begun = Instant::now();
    loop {
        let log = server.log();
        let whole_lines = log.rsplit_once('\n').map_or("", |(lines, _)| lines);
        let ready = whole_lines.lines().find_map(|line| line.strip_prefix("ready on "));
        if let Some(rest) = ready {
            let addr = rest.split_whitespace().next().unwrap_or_default();
            return addr.parse().map_err(|_| format!("it says {rest:?} instead of an address"));
        }
        if let Some(obituary) = server.obituary().map_err(|error| error.to_string())? {
            return Err(obituary);
        }
        if begun.elapsed() > START_WITHIN {
            return Err(format!("not ready within {} s", START_WITHIN.as_secs()));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
