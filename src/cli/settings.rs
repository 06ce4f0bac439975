//! The settings of a node: flags, environment and config file.

use super::exit::{self, Failure};
use super::quotas::Quotas;
use super::{connect, duration, size};
use clap::Args as ClapArgs;
use lockring_client::proto::{Namespace, limits};
use lockring_client::target::Host;
use lockring_node::{Advertised, Data, HandshakeLimits, MemoryLimit, NodeConfig, TtlMax};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

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

/// Reads an address to advertise.
fn advertised(text: &str) -> Result<Advertised, String> {
    let (host, port) = Host::with_port(text).map_err(|error| format!("{text:?}: {}", error.why))?;
    let host = match host {
        Host::Ip(ip) => ip.to_string(),
        Host::Name(name) => name,
    };
    Ok(Advertised { host, port })
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
    /// Where clients are told to connect: one entry, from whose port those of all workers are
    /// counted up, or one for each worker; without a port that listened at [default: the address
    /// they came by]
    #[arg(
        long,
        env = "LOCKRING_ADVERTISE",
        value_name = "HOST[:PORT][,...]",
        value_parser = advertised,
        value_delimiter = ','
    )]
    advertise: Vec<Advertised>,
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
    /// The highest TTL of a session: so long may a restart wait; up to 1h [default: 10m]
    #[arg(long, env = "LOCKRING_MAX_TTL", value_name = "DUR", value_parser = duration::parse)]
    max_ttl: Option<Duration>,
    /// How much memory the node may use before it admits nothing new: a size as 2g or 512m, `auto`
    /// for what machine, control group and `ulimit -v` have, or `none` [default: auto]
    #[arg(long, env = "LOCKRING_MEMORY_LIMIT", value_name = "SIZE", value_parser = size::limit)]
    memory_limit: Option<MemoryLimit>,
    /// Handshakes that each worker takes on a second, in all [default: 200]
    #[arg(long, env = "LOCKRING_HANDSHAKES", value_name = "N")]
    handshakes: Option<u32>,
    /// Handshakes that each worker takes on a second from one network, a /24 or /56 [default: 100]
    #[arg(long, env = "LOCKRING_HANDSHAKES_PER_SOURCE", value_name = "N")]
    handshakes_per_source: Option<u32>,
    /// A name that admin HTTP answers to, beside its addresses and localhost; may be given again
    #[arg(long, env = "LOCKRING_ADMIN_HOST", value_name = "NAME", value_delimiter = ',')]
    admin_host: Vec<String>,
    /// Say what would be used and exit
    #[arg(long, env = "LOCKRING_CHECK", value_parser = connect::switch())]
    pub check: bool,
}

/// The config file. Unknown settings are errors: a typo must not become a default.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileConfig {
    data_dir: Option<PathBuf>,
    listen: Option<SocketAddr>,
    advertise: Option<String>,
    workers: Option<u16>,
    admin: Option<String>,
    drain: Option<String>,
    max_ttl: Option<String>,
    memory_limit: Option<String>,
    handshakes: Option<u32>,
    handshakes_per_source: Option<u32>,
    admin_hosts: Option<Vec<String>>,
    quotas: Quotas,
    namespaces: BTreeMap<String, NamespaceConfig>,
}

/// What the config file says of one namespace.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamespaceConfig {
    max_ttl: String,
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
    pub fn settings(&self) -> Result<NodeConfig, Failure> {
        let file = FileConfig::read(self.config.as_deref())?;
        let file_admin = read("admin", file.admin.as_deref(), admin)?;
        let file_drain = read("drain", file.drain.as_deref(), duration::parse)?;
        let file_advertise = read("advertise", file.advertise.as_deref(), |entries| {
            entries.split(',').map(advertised).collect::<Result<Vec<_>, _>>()
        })?;
        let file_memory = read("memory_limit", file.memory_limit.as_deref(), size::limit)?;
        let ttl_max = self.ttl_max(&file)?;
        let handshakes = self.handshakes(&file)?;
        let limits = file.quotas.limits().map_err(|why| wrong("quotas", &why))?;
        let data_dir = self.data_dir.clone().or(file.data_dir).ok_or_else(|| {
            let message = "name a data directory: --data-dir DIR, or data_dir in --config FILE";
            Failure::new(exit::USAGE, message)
        })?;
        let default = NodeConfig::new(Data::Directory(data_dir));
        let config = NodeConfig {
            listen: self.listen.or(file.listen).unwrap_or(([127, 0, 0, 1], 7420).into()),
            advertise: if self.advertise.is_empty() {
                file_advertise.unwrap_or_default()
            } else {
                self.advertise.clone()
            },
            workers: self.workers.or(file.workers).unwrap_or_else(default_workers),
            admin: self
                .admin
                .or(file_admin)
                .map_or(Some(([127, 0, 0, 1], 7421).into()), |admin| admin.0),
            drain: self.drain.or(file_drain).unwrap_or(default.drain),
            ttl_max,
            handshakes,
            limits,
            memory: self.memory_limit.or(file_memory).unwrap_or(default.memory),
            admin_hosts: if self.admin_host.is_empty() {
                file.admin_hosts.unwrap_or_default()
            } else {
                self.admin_host.clone()
            },
            ..default
        };
        // By any port if the system is to choose one, which has room above.
        let listen = config.listen.port().max(1);
        lockring_node::addresses(&config.advertise, config.workers, listen)
            .map_err(|error| Failure::new(exit::USAGE, format!("--advertise: {error}")))?;
        Ok(config)
    }

    fn handshakes(&self, file: &FileConfig) -> Result<HandshakeLimits, Failure> {
        let default = HandshakeLimits::default();
        let all = self.handshakes.or(file.handshakes);
        let source = self.handshakes_per_source.or(file.handshakes_per_source);
        let limits = HandshakeLimits {
            per_second: all.unwrap_or(default.per_second),
            per_second_and_source: source.unwrap_or(default.per_second_and_source),
            ..default
        };
        if limits.per_second == 0 || limits.per_second_and_source == 0 {
            return Err(wrong("handshakes", "with none nobody can connect"));
        }
        Ok(limits)
    }

    fn ttl_max(&self, file: &FileConfig) -> Result<TtlMax, Failure> {
        let any = match self.max_ttl {
            Some(ttl) => Some(ttl),
            None => read("max_ttl", file.max_ttl.as_deref(), duration::parse)?,
        };
        let mut namespaces = BTreeMap::new();
        for (name, namespace) in &file.namespaces {
            let what = format!("namespaces.{name}");
            Namespace::new(name).map_err(|error| wrong(&what, &error.to_string()))?;
            let ttl = duration::parse(&namespace.max_ttl).map_err(|why| wrong(&what, &why))?;
            namespaces.insert(name.clone(), ttl);
        }
        let max = TtlMax { any: any.unwrap_or(TtlMax::default().any), namespaces };
        for ttl in max.namespaces.values().chain([&max.any]) {
            if limits::clamp_ttl(*ttl) != *ttl {
                return Err(wrong("max_ttl", "a TTL is 1s to 1h"));
            }
        }
        Ok(max)
    }
}

fn wrong(what: &str, why: &str) -> Failure {
    Failure::new(exit::CONFIG, format!("{what}: {why}"))
}

/// Reads a setting of the file as the flag of its name is read.
fn read<T>(
    what: &str,
    text: Option<&str>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>, Failure> {
    text.map(parse).transpose().map_err(|why| wrong(what, &why))
}

/// The addresses that clients are told, as the flag takes them.
fn addresses(advertised: &[Advertised]) -> String {
    let entry = |at: &Advertised| {
        let host = if at.host.contains(':') { format!("[{}]", at.host) } else { at.host.clone() };
        host + &at.port.map_or_else(String::new, |port| format!(":{port}"))
    };
    let entries: Vec<String> = advertised.iter().map(entry).collect();
    if entries.is_empty() { "as reached".to_owned() } else { entries.join(",") }
}

/// What would be used, for people.
pub fn shown(config: &NodeConfig) -> String {
    let mut lines = Vec::new();
    if let Data::Directory(dir) = &config.data {
        lines.push(format!("data_dir {}", dir.display()));
    }
    lines.push(format!(
        "listen {}\nadvertise {}\nworkers {}\nadmin {}\ndrain {:?}\nmax_ttl {:?}\n\
         memory_limit {}\nhandshakes {}\nhandshakes_per_source {}\nadmin_hosts {:?}",
        config.listen,
        addresses(&config.advertise),
        config.workers,
        config.admin.map_or_else(|| "none".to_owned(), |at| at.to_string()),
        config.drain,
        config.ttl_max.any,
        size::shown(config.memory),
        config.handshakes.per_second,
        config.handshakes.per_second_and_source,
        config.admin_hosts,
    ));
    let of_namespaces = config.ttl_max.namespaces.iter();
    lines.extend(of_namespaces.map(|(name, ttl)| format!("max_ttl of {name} {ttl:?}")));
    lines.join("\n")
}
