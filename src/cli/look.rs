//! `locks`, `inspect`, `release`, `status`, `route`: looking, and the one drastic remedy.

use super::connect::Global;
use super::exit::{self, Failure};
use super::key;
use super::output::{self, KeyField, print_rows, seconds};
use clap::Args as ClapArgs;
use lockring_client::admin::{Address, Cursor, Inspection, Listed, Node, Ring};
use lockring_client::proto::{Namespace, NamespaceError, Shown};
use serde::Serialize;
use std::ffi::OsString;
use std::io::{BufRead, IsTerminal};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

/// Flags of `locks`.
#[derive(Debug, ClapArgs)]
pub struct LocksArgs {
    /// Only keys that begin with this, which is written as a key is
    prefix: Option<OsString>,
    /// At most this many rows
    #[arg(long, default_value_t = 100)]
    limit: usize,
    #[command(flatten)]
    of: Of,
}

/// A key.
#[derive(Debug, ClapArgs)]
pub struct KeyArgs {
    #[arg(help = key::HELP)]
    key: OsString,
}

/// Flags of `inspect`.
#[derive(Debug, ClapArgs)]
pub struct InspectArgs {
    #[arg(help = key::HELP)]
    key: OsString,
    #[command(flatten)]
    of: Of,
}

/// Whose keys are meant.
#[derive(Debug, ClapArgs)]
pub struct Of {
    /// The namespace, if not one's own: for operators
    #[arg(long, value_name = "NS")]
    namespace: Option<String>,
}

impl Of {
    /// Its name; empty for one's own.
    fn name(&self) -> Result<&str, Failure> {
        let Some(name) = &self.namespace else { return Ok("") };
        let wrong = |error: NamespaceError| Failure::new(exit::USAGE, error.to_string());
        Namespace::new(name).map_err(wrong)?;
        Ok(name)
    }
}

/// Flags of `release`.
#[derive(Debug, ClapArgs)]
pub struct ReleaseArgs {
    #[arg(help = key::HELP)]
    key: OsString,
    /// End the hold although its holder may still act on it
    #[arg(long, required = true)]
    force: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    of: Of,
}

fn millis(span: Duration) -> u64 {
    span.as_millis() as u64
}

#[derive(Serialize)]
struct LockRow {
    #[serde(flatten)]
    key: KeyField,
    mode: String,
    holder: String,
    fence: Option<u64>,
    held_ms: Option<u64>,
    lease_left_ms: Option<u64>,
    holders: u32,
    waiters: u32,
    node: u32,
}

fn lock_row(lock: &Listed, node: u32) -> LockRow {
    let holder = lock.holder.as_ref();
    LockRow {
        key: KeyField(lock.key.clone()),
        mode: holder.map_or_else(String::new, |holder| holder.mode.to_string()),
        holder: holder.map_or_else(String::new, |holder| holder.label.clone()),
        fence: holder.map(|holder| holder.fence),
        held_ms: holder.map(|holder| millis(holder.held_for)),
        lease_left_ms: holder.map(|holder| millis(holder.lease_left)),
        holders: lock.holder_count,
        waiters: lock.waiter_count,
        node,
    }
}

/// Lists locks, page by page, worker by worker.
pub async fn locks(global: &Global, args: &LocksArgs) -> Result<ExitCode, Failure> {
    let of = args.of.name()?;
    let prefix = args.prefix.as_deref().map_or(Ok(Vec::new()), key::read_prefix)?;
    let client = global.connect(global.builder()).await?;
    let of = client.admin().of_namespace(of);
    let mut rows = Vec::new();
    let mut more = false;
    'workers: for worker in of.ring().iter().flat_map(Ring::workers) {
        let mut cursor = Some(Cursor::default());
        while let Some(at) = cursor {
            let page = of.list(worker, &prefix, at, 100).await?;
            rows.extend(page.locks.iter().map(|lock| lock_row(lock, worker.node)));
            cursor = page.next;
            if rows.len() > args.limit {
                more = true;
                rows.truncate(args.limit);
                break 'workers;
            }
        }
    }
    client.close().await;
    rows.sort_by(|one, other| one.key.cmp(&other.key));
    let columns = ["KEY", "MODE", "HOLDER", "FENCE", "HELD", "TTL LEFT", "WAITERS", "NODE"];
    print_rows(global.output, &columns, &rows, |row| {
        let number = |value: Option<u64>| value.map_or_else(String::new, |value| value.to_string());
        vec![
            row.key.shown(),
            row.mode.clone(),
            match (Shown(&row.holder), row.holders) {
                (first, 0..=1) => first.to_string(),
                (first, holders) => format!("{first} and {} more", holders - 1),
            },
            number(row.fence),
            row.held_ms.map_or_else(String::new, seconds),
            row.lease_left_ms.map_or_else(String::new, seconds),
            row.waiters.to_string(),
            row.node.to_string(),
        ]
    })?;
    if more && !global.quiet {
        output::say("there are more; raise --limit or give a longer prefix");
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct ClaimRow {
    state: &'static str,
    mode: String,
    who: String,
    fence: Option<u64>,
    for_ms: u64,
    lease_left_ms: Option<u64>,
}

fn claims_of(seen: &Inspection) -> Vec<ClaimRow> {
    let holders = seen.holders.iter().map(|holder| ClaimRow {
        state: "holds",
        mode: holder.mode.to_string(),
        who: holder.label.clone(),
        fence: Some(holder.fence),
        for_ms: millis(holder.held_for),
        lease_left_ms: Some(millis(holder.lease_left)),
    });
    let waiters = seen.waiters.iter().map(|waiter| ClaimRow {
        state: "waits",
        mode: waiter.mode.to_string(),
        who: waiter.label.clone(),
        fence: None,
        for_ms: millis(waiter.waited_for),
        lease_left_ms: None,
    });
    holders.chain(waiters).collect()
}

/// Shows holders and waiters of a key, and why it is blocked.
pub async fn inspect(global: &Global, args: &InspectArgs) -> Result<ExitCode, Failure> {
    let (key, of) = (key::read(&args.key)?, args.of.name()?);
    let client = global.connect(global.builder()).await?;
    let seen = client.admin().of_namespace(of).inspect(&key).await?;
    client.close().await;
    let columns = ["STATE", "MODE", "WHO", "FENCE", "FOR", "TTL LEFT"];
    print_rows(global.output, &columns, &claims_of(&seen), |row| {
        vec![
            row.state.to_owned(),
            row.mode.clone(),
            Shown(&row.who).to_string(),
            row.fence.map_or_else(String::new, |fence| fence.to_string()),
            seconds(row.for_ms),
            row.lease_left_ms.map_or_else(String::new, seconds),
        ]
    })?;
    if !global.quiet {
        output::remark(explain(&key, &seen));
    }
    Ok(ExitCode::SUCCESS)
}

fn explain(key: &[u8], seen: &Inspection) -> String {
    let key = Shown(key);
    let place = format!("cell {}, epoch {}, node {}", seen.cell, seen.epoch, seen.node);
    let used = match (seen.holder_count, seen.waiter_count, millis(seen.grace_left)) {
        (0, 0, 0) => "is free".to_owned(),
        (0, 0, left) => format!("is free, but nothing is granted for {} more", seconds(left)),
        (0, waiters, left) if left > 0 => {
            format!("has {waiters} queued until the node opens in {}", seconds(left))
        }
        (0, waiters, _) => format!("has {waiters} queued"),
        (holders, 0, _) => format!("has {holders} holding it and nobody queued"),
        (holders, waiters, _) => {
            format!("has {holders} holding it and {waiters} queued behind them")
        }
    };
    format!("{key} {used}{} ({place})", for_whom(&seen.grace_for))
}

/// For whose sake nothing is granted yet, where that is known.
fn for_whom(grace_for: &str) -> String {
    match grace_for {
        "" => String::new(),
        whose => format!(", for the lease of {}", Shown(whose)),
    }
}

/// Ends every hold of a key.
pub async fn release(global: &Global, args: &ReleaseArgs) -> Result<ExitCode, Failure> {
    let (key, of) = (key::read(&args.key)?, args.of.name()?);
    if !args.yes && !confirmed(&key)? {
        return Err(Failure::new(1, "nothing was changed"));
    }
    let client = global.connect(global.builder()).await?;
    let ended = client.admin().of_namespace(of).release_by_force(&key).await?;
    client.close().await;
    output::line(format_args!("{}: {ended} ended; the next fence is higher", Shown(&key)))?;
    Ok(ExitCode::SUCCESS)
}

fn confirmed(key: &[u8]) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(exit::USAGE, "no terminal to ask on: add --yes"));
    }
    let failed = |error: std::io::Error| Failure::new(exit::IO, error.to_string());
    let key = Shown(key);
    // Nobody is taken to have agreed to what was not asked.
    output::write_stderr(format_args!(
        "End every hold of {key}? Its holders may still act on it. [y/N] "
    ))
    .map_err(failed)?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    Ok(answer.trim().eq_ignore_ascii_case("y"))
}

#[derive(Serialize)]
struct NodeRow {
    node: u32,
    address: String,
    workers: u16,
    boot: u64,
    cells: u32,
    ring_version: u64,
    grace_left_ms: u64,
    grace_for: String,
}

/// Where clients are told to connect to a node.
fn address(node: &Node) -> String {
    let shown = |at: &Address| match at.host.parse::<IpAddr>() {
        _ if at.host.is_empty() => format!("port {}", at.port),
        Ok(ip) => SocketAddr::new(ip, at.port).to_string(),
        Err(_) => format!("{}:{}", at.host, at.port),
    };
    node.addresses.iter().map(shown).collect::<Vec<_>>().join(",")
}

/// Shows the nodes as the ring has them, and whether they grant.
pub async fn status(global: &Global) -> Result<ExitCode, Failure> {
    let client = global.connect(global.builder()).await?;
    let seen = client.inspect("status").await?;
    let ring = client.admin().ring();
    let rows: Vec<NodeRow> = ring
        .iter()
        .flat_map(|ring| ring.nodes.iter().map(|node| (ring.version, node)))
        .map(|(ring_version, node)| NodeRow {
            node: node.id,
            address: address(node),
            workers: node.workers,
            boot: node.boot,
            cells: node.cells,
            ring_version,
            grace_left_ms: millis(seen.grace_left),
            grace_for: seen.grace_for.clone(),
        })
        .collect();
    client.close().await;
    let columns = ["NODE", "ADDRESS", "WORKERS", "BOOT", "CELLS", "RING", "STATE"];
    print_rows(global.output, &columns, &rows, |row| {
        let state = match row.grace_left_ms {
            0 => "serving".to_owned(),
            left => format!("grants in {}{}", seconds(left), for_whom(&row.grace_for)),
        };
        vec![
            row.node.to_string(),
            Shown(&row.address).to_string(),
            row.workers.to_string(),
            row.boot.to_string(),
            row.cells.to_string(),
            row.ring_version.to_string(),
            state,
        ]
    })?;
    if !global.quiet {
        output::remark("one node: its loss stops grants until it is back");
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct RouteRow {
    #[serde(flatten)]
    key: KeyField,
    hash: String,
    cell: u16,
    node: u32,
    worker: u16,
}

/// Shows the way of a key.
pub async fn route(global: &Global, args: &KeyArgs) -> Result<ExitCode, Failure> {
    let key = key::read(&args.key)?;
    let client = global.connect(global.builder()).await?;
    let route = client.admin().route(&key)?;
    client.close().await;
    let row = RouteRow {
        key: KeyField(key),
        hash: format!("{:016x}", route.position),
        cell: route.cell,
        node: route.worker.node,
        worker: route.worker.worker,
    };
    print_rows(global.output, &["KEY", "HASH", "CELL", "NODE", "WORKER"], &[row], |row| {
        vec![
            row.key.shown(),
            row.hash.clone(),
            row.cell.to_string(),
            row.node.to_string(),
            row.worker.to_string(),
        ]
    })?;
    Ok(ExitCode::SUCCESS)
}
