//! `locks`, `inspect`, `release`, `status`, `route`: looking, and the one drastic remedy.

use super::connect::Global;
use super::exit::{self, Failure};
use super::output::{plain, print_rows, seconds, shown};
use clap::Args as ClapArgs;
use lockring_client::Inspection;
use lockring_client::proto::{Claim, ListCursor, ListedLock};
use serde::Serialize;
use std::io::{BufRead, IsTerminal};
use std::process::ExitCode;

/// Flags of `locks`.
#[derive(Debug, ClapArgs)]
pub struct LocksArgs {
    /// Only keys that begin with this
    #[arg(default_value = "")]
    prefix: String,
    /// At most so many rows
    #[arg(long, default_value_t = 100)]
    limit: usize,
    #[command(flatten)]
    of: Of,
}

/// A key.
#[derive(Debug, ClapArgs)]
pub struct KeyArgs {
    /// The key
    key: String,
}

/// Flags of `inspect`.
#[derive(Debug, ClapArgs)]
pub struct InspectArgs {
    /// The key
    key: String,
    #[command(flatten)]
    of: Of,
}

/// Whose keys are meant.
#[derive(Debug, ClapArgs)]
pub struct Of {
    /// The namespace, if not one's own: for operators
    #[arg(long, value_name = "NS", default_value = "", hide_default_value = true)]
    namespace: String,
}

/// Flags of `release`.
#[derive(Debug, ClapArgs)]
pub struct ReleaseArgs {
    /// The key
    key: String,
    /// End the hold although its holder may still act on it
    #[arg(long, required = true)]
    force: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    of: Of,
}

fn claim_name(claim: Claim) -> String {
    match claim {
        Claim::Exclusive => "X".to_owned(),
        Claim::Shared => "S".to_owned(),
        Claim::Permits { permits, capacity } => format!("{permits}/{capacity}"),
    }
}

#[derive(Serialize)]
struct LockRow {
    key: String,
    mode: String,
    holder: String,
    fence: Option<u64>,
    held_ms: Option<u64>,
    lease_left_ms: Option<u64>,
    holders: u32,
    waiters: u32,
    node: u32,
}

fn lock_row(lock: &ListedLock, node: u32) -> LockRow {
    let holder = lock.holder.as_ref();
    LockRow {
        key: shown(&lock.key),
        mode: holder.map_or_else(String::new, |holder| claim_name(holder.claim)),
        holder: holder.map_or_else(String::new, |holder| plain(&holder.label)),
        fence: holder.map(|holder| holder.fence.0),
        held_ms: holder.map(|holder| holder.held_ms),
        lease_left_ms: holder.map(|holder| holder.lease_left_ms),
        holders: lock.holders,
        waiters: lock.waiters,
        node,
    }
}

/// Lists locks, page by page, worker by worker.
pub async fn locks(global: &Global, args: &LocksArgs) -> Result<ExitCode, Failure> {
    let client = global.connect(global.builder()).await?;
    let of = client.of_namespace(&args.of.namespace);
    let mut rows = Vec::new();
    let mut more = false;
    'workers: for worker in client.workers() {
        let mut cursor = Some(ListCursor::default());
        while let Some(at) = cursor {
            let page = of.list(worker, args.prefix.as_bytes(), at, 100).await?;
            rows.extend(page.rows.iter().map(|lock| lock_row(lock, worker.node)));
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
            row.key.clone(),
            row.mode.clone(),
            if row.holders > 1 {
                format!("{} and {} more", row.holder, row.holders - 1)
            } else {
                row.holder.clone()
            },
            number(row.fence),
            row.held_ms.map_or_else(String::new, seconds),
            row.lease_left_ms.map_or_else(String::new, seconds),
            row.waiters.to_string(),
            row.node.to_string(),
        ]
    })?;
    if more && !global.quiet {
        eprintln!("lockring: there are more; raise --limit or give a longer prefix");
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct PartyRow {
    state: &'static str,
    mode: String,
    who: String,
    fence: Option<u64>,
    for_ms: u64,
    lease_left_ms: Option<u64>,
}

fn parties(seen: &Inspection) -> Vec<PartyRow> {
    let holders = seen.holders.iter().map(|holder| PartyRow {
        state: "holds",
        mode: claim_name(holder.claim),
        who: plain(&holder.label),
        fence: Some(holder.fence.0),
        for_ms: holder.held_ms,
        lease_left_ms: Some(holder.lease_left_ms),
    });
    let waiters = seen.waiters.iter().map(|waiter| PartyRow {
        state: "waits",
        mode: claim_name(waiter.claim),
        who: plain(&waiter.label),
        fence: None,
        for_ms: waiter.waited_ms,
        lease_left_ms: None,
    });
    holders.chain(waiters).collect()
}

/// Shows holders and waiters of a key, and why it is blocked.
pub async fn inspect(global: &Global, args: &InspectArgs) -> Result<ExitCode, Failure> {
    let client = global.connect(global.builder()).await?;
    let seen = client.of_namespace(&args.of.namespace).inspect(&args.key).await?;
    client.close().await;
    let columns = ["STATE", "MODE", "WHO", "FENCE", "FOR", "TTL LEFT"];
    print_rows(global.output, &columns, &parties(&seen), |row| {
        vec![
            row.state.to_owned(),
            row.mode.clone(),
            row.who.clone(),
            row.fence.map_or_else(String::new, |fence| fence.to_string()),
            seconds(row.for_ms),
            row.lease_left_ms.map_or_else(String::new, seconds),
        ]
    })?;
    if !global.quiet {
        eprintln!("{}", explain(&args.key, &seen));
    }
    Ok(ExitCode::SUCCESS)
}

fn explain(key: &str, seen: &Inspection) -> String {
    let key = shown(key.as_bytes());
    let place = format!("cell {}, epoch {}, node {}", seen.cell, seen.epoch, seen.node);
    let used = match (seen.holder_count, seen.waiter_count, seen.grace_left_ms) {
        (0, 0, 0) => "is free".to_owned(),
        (0, 0, left) => format!("is free, but nothing is granted for {} more", seconds(left)),
        (0, waiters, left) if left > 0 => {
            format!("has {waiters} in line until the node opens in {}", seconds(left))
        }
        (0, waiters, _) => format!("has {waiters} in line"),
        (holders, 0, _) => format!("has {holders} holding it and nobody in line"),
        (holders, waiters, _) => {
            format!("has {holders} holding it and {waiters} in line behind them")
        }
    };
    format!("{key} {used}{} ({place})", for_whom(&seen.grace_for))
}

/// For whose sake nothing is granted yet, where that is known.
fn for_whom(grace_for: &str) -> String {
    match grace_for {
        "" => String::new(),
        whose => format!(", for the lease of {}", plain(whose)),
    }
}

/// Ends every hold of a key.
pub async fn release(global: &Global, args: &ReleaseArgs) -> Result<ExitCode, Failure> {
    if !args.yes && !confirmed(&args.key)? {
        return Err(Failure::new(1, "nothing was changed"));
    }
    let client = global.connect(global.builder()).await?;
    let ended = client.of_namespace(&args.of.namespace).release_by_force(&args.key).await?;
    client.close().await;
    println!("{}: {ended} ended; the next fence is higher", shown(args.key.as_bytes()));
    Ok(ExitCode::SUCCESS)
}

fn confirmed(key: &str) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(exit::USAGE, "no terminal to ask on: add --yes"));
    }
    eprint!("End every hold of {}? Its holders may still act on it. [y/N] ", shown(key.as_bytes()));
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|error| Failure::new(exit::SOFTWARE, error.to_string()))?;
    Ok(answer.trim().eq_ignore_ascii_case("y"))
}

#[derive(Serialize)]
struct NodeRow {
    node: u32,
    address: String,
    workers: u16,
    boot: u64,
    cells: usize,
    ring_version: u64,
    grace_left_ms: u64,
    grace_for: String,
}

/// Shows the nodes as the ring has them, and whether they grant.
pub async fn status(global: &Global) -> Result<ExitCode, Failure> {
    let client = global.connect(global.builder()).await?;
    let seen = client.inspect("status").await?;
    let ring = client.ring();
    let rows: Vec<NodeRow> = ring
        .iter()
        .flat_map(|ring| ring.nodes().map(|node| (ring.version(), ring.cells_of(node.id), node)))
        .map(|(ring_version, cells, node)| NodeRow {
            node: node.id,
            address: if node.host.is_empty() {
                format!("port {}", node.port)
            } else {
                format!("{}:{}", node.host, node.port)
            },
            workers: node.workers,
            boot: node.boot,
            cells,
            ring_version,
            grace_left_ms: seen.grace_left_ms,
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
            row.address.clone(),
            row.workers.to_string(),
            row.boot.to_string(),
            row.cells.to_string(),
            row.ring_version.to_string(),
            state,
        ]
    })?;
    if !global.quiet {
        eprintln!("one node: its loss stops grants until it is back");
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct RouteRow {
    key: String,
    hash: String,
    cell: u16,
    node: u32,
    worker: u16,
}

/// Shows the way of a key.
pub async fn route(global: &Global, args: &KeyArgs) -> Result<ExitCode, Failure> {
    let client = global.connect(global.builder()).await?;
    let route = client.route(&args.key)?;
    client.close().await;
    let row = RouteRow {
        key: shown(args.key.as_bytes()),
        hash: format!("{:016x}", route.hash.position),
        cell: route.cell.0,
        node: route.worker.node,
        worker: route.worker.worker,
    };
    print_rows(global.output, &["KEY", "HASH", "CELL", "NODE", "WORKER"], &[row], |row| {
        vec![
            row.key.clone(),
            row.hash.clone(),
            row.cell.to_string(),
            row.node.to_string(),
            row.worker.to_string(),
        ]
    })?;
    Ok(ExitCode::SUCCESS)
}
