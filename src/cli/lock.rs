//! `lock`: take a lock, run a command under it, give it back.

use super::connect::Global;
use super::exit::{self, End, Failure};
use super::key;
use super::output::{self, Unwritten};
use super::supervise::{self, Signals};
use clap::Args as ClapArgs;
use lockring_client::proto::Shown;
use lockring_client::{Client, Error, ErrorKind, Guard};
use std::ffi::OsString;
use std::time::{Duration, Instant};

/// Flags of `lock`.
#[derive(Debug, ClapArgs)]
#[command(override_usage = "lockring lock [OPTIONS] KEY [-- CMD...]\n       \
                            lockring lock [OPTIONS] -- KEY [-- CMD...]")]
pub struct Args {
    #[arg(help = key::HELP)]
    key: Option<OsString>,
    /// Fail at once if the key is busy
    #[arg(short = 'n', long, conflicts_with = "wait")]
    no_wait: bool,
    /// Wait at most this long (250ms, 10s, 5m; a bare number is seconds)
    #[arg(short = 'w', long, value_name = "DUR", value_parser = super::duration::parse)]
    wait: Option<Duration>,
    /// Share the key with other shared holders
    #[arg(short = 's', long, conflicts_with_all = ["exclusive", "permits"])]
    shared: bool,
    /// Hold the key alone (the default)
    #[arg(short = 'x', long, conflicts_with = "permits")]
    exclusive: bool,
    /// Take this many permits of a semaphore
    #[arg(long, value_name = "N", requires = "capacity")]
    permits: Option<u32>,
    /// Capacity of the semaphore; --permits is 1 unless given
    #[arg(long, value_name = "M")]
    capacity: Option<u32>,
    /// How long the hold outlives the last contact (1s to 1h)
    #[arg(long, value_name = "DUR", default_value = "10s", value_parser = super::duration::ttl)]
    ttl: Duration,
    /// From SIGTERM to SIGKILL when contact is lost; at most a third of the TTL [default: 2s, or a
    /// third of a shorter TTL]
    #[arg(long, value_name = "DUR", value_parser = super::duration::parse)]
    grace: Option<Duration>,
    /// Exit with this code when the key is busy, instead of 75
    #[arg(short = 'E', long, value_name = "CODE")]
    conflict_exit_code: Option<u8>,
    /// Run this through `sh -c` instead of a command
    #[arg(short = 'c', long, value_name = "STR")]
    shell: Option<OsString>,
    /// Leave the hold in a session of its own that lives for --ttl, and print its token
    #[arg(long, conflicts_with = "shell")]
    print_token: bool,
    /// The command, run without a shell. Where KEY is not given before, it is what follows the
    /// first `--`, so that it may begin with a dash: `lock -- -KEY -- CMD`
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// What is to be done: the arguments, once they are found to make sense together.
struct Job {
    key: Vec<u8>,
    /// Program and arguments; empty: none is run.
    argv: Vec<OsString>,
}

impl Job {
    fn of(args: &Args) -> Result<Self, Failure> {
        let wrong = |why: &str| Err(Failure::new(exit::USAGE, why));
        let (key, command) = match (&args.key, &args.command[..]) {
            (Some(key), command) => (key, command),
            (None, [key]) => (key, &[][..]),
            (None, [key, dashes, command @ ..]) if dashes == "--" => (key, command),
            (None, []) => return wrong("name a key: lock KEY -- CMD"),
            (None, _) => return wrong("a command is led by a second `--`: lock -- KEY -- CMD"),
        };
        let argv = match &args.shell {
            Some(_) if !command.is_empty() => return wrong("give -c STR or -- CMD, not both"),
            Some(text) => vec!["sh".into(), "-c".into(), text.clone()],
            None => command.to_vec(),
        };
        if args.grace.is_some_and(|grace| grace > args.ttl / 3) {
            return wrong(
                "--grace is at most a third of --ttl: SIGKILL comes before the lease ends",
            );
        }
        if args.print_token && !argv.is_empty() {
            return wrong("--print-token leaves the hold to a token: it runs no command");
        }
        if args.print_token && output::is_discarded() {
            let why = "standard output is closed or /dev/null: a hold whose token nobody has \
                       cannot be given back";
            return Err(Failure::new(exit::IO, why));
        }
        Ok(Self { key: key::read(key)?, argv })
    }
}

/// From SIGTERM to SIGKILL, where the TTL has room for it.
const GRACE_DEFAULT: Duration = Duration::from_secs(2);

/// How long `lock` waits for contact with a node without a wait of its own.
const CONTACT_WITHIN: Duration = Duration::from_secs(30);

/// Who is in the way is asked for no longer than this.
const ASK_WITHIN: Duration = Duration::from_secs(2);

/// How long the lock is waited for; `None` without limit.
fn wait_of(args: &Args) -> Option<Duration> {
    if args.no_wait { Some(Duration::ZERO) } else { args.wait }
}

/// Takes the lock and does what was asked under it. Whatever it waits for, a signal ends the wait.
pub async fn run(global: &Global, args: Args) -> Result<End, Failure> {
    let job = Job::of(&args)?;
    let mut signals = Signals::new()?;
    let began = Instant::now();
    let client = tokio::select! {
        client = connect(global, &args, began) => client?,
        signal = signals.next() => return Ok(End::Signal(signal)),
    };
    let wait = wait_of(&args).map(|wait| wait.saturating_sub(began.elapsed()));
    let claimed = tokio::select! {
        claimed = claim(&client, &args, &job.key, wait) => claimed,
        signal = signals.next() => {
            finish(&client, true, &mut signals).await;
            return Ok(End::Signal(signal));
        }
    };
    let ended = match claimed {
        Ok(Some(guard)) => hold(&client, guard, &args, &job, &mut signals).await,
        Ok(None) => tokio::select! {
            failure = busy(&client, &args, &job.key, None) => Err(failure),
            signal = signals.next() => Ok(End::Signal(signal)),
        },
        Err(error) if error.kind() == ErrorKind::Timeout => tokio::select! {
            failure = busy(&client, &args, &job.key, Some(error)) => Err(failure),
            signal = signals.next() => Ok(End::Signal(signal)),
        },
        Err(error) if error.kind() == ErrorKind::Conflict => Err(Failure::new(
            args.conflict_exit_code.unwrap_or(exit::BUSY),
            format!("{}: {error}", Shown(&job.key)),
        )),
        Err(error) => Err(error.into()),
    };
    let keeps = args.print_token && ended.is_ok();
    finish(&client, !keeps, &mut signals).await;
    ended
}

/// Connects, and waits for a node that is away as long as for the lock.
async fn connect(global: &Global, args: &Args, began: Instant) -> Result<Client, Failure> {
    let builder = || global.builder().ttl(args.ttl);
    let error = match global.connect(builder()).await {
        Ok(client) => return Ok(client),
        Err(error) => error,
    };
    let limit = wait_of(args).unwrap_or(CONTACT_WITHIN);
    let left = limit.saturating_sub(began.elapsed());
    if left.is_zero() || error.is_final {
        return Err(error);
    }
    if !global.quiet {
        output::say(format_args!("waiting up to {limit:?} for a node: {error}"));
    }
    global.connect(builder().connect_within(left)).await
}

/// Ends the session, or leaves it to its token; a signal does not wait for that.
async fn finish(client: &Client, goodbye: bool, signals: &mut Signals) {
    let end = async { if goodbye { client.close().await } else { client.leave().await } };
    tokio::select! {
        () = end => {}
        _ = signals.next() => {}
    }
}

async fn claim(
    client: &Client,
    args: &Args,
    key: &[u8],
    wait: Option<Duration>,
) -> Result<Option<Guard>, Error> {
    let immediate = wait == Some(Duration::ZERO);
    if args.permits.is_some() || args.capacity.is_some() {
        let permits = args.permits.unwrap_or(1);
        let semaphore = client.semaphore(key, args.capacity.unwrap_or(permits));
        return match (immediate, wait) {
            (true, _) => semaphore.try_acquire_many(permits).await,
            (false, Some(wait)) => semaphore.wait(wait).acquire_many(permits).await.map(Some),
            (false, None) => semaphore.acquire_many(permits).await.map(Some),
        };
    }
    let lock = client.rwlock(key);
    let lock = match wait {
        Some(wait) if !immediate => lock.wait(wait),
        _ => lock,
    };
    match (immediate, args.shared) {
        (true, true) => lock.try_read().await,
        (true, false) => lock.try_write().await,
        (false, true) => lock.read().await.map(Some),
        (false, false) => lock.write().await.map(Some),
    }
}

/// Says who is in the way.
async fn busy(client: &Client, args: &Args, key: &[u8], error: Option<Error>) -> Failure {
    let code = args.conflict_exit_code.unwrap_or(exit::BUSY);
    let hint = if args.no_wait { ". Use -w 10s to wait." } else { "" };
    let seen = tokio::time::timeout(ASK_WITHIN, client.inspect(key)).await;
    let key = Shown(key);
    let Ok(Ok(seen)) = seen else {
        let why = error.map_or_else(|| "it is busy".to_owned(), |error| error.to_string());
        return Failure::new(code, format!("{key}: {why}{hint}"));
    };
    let message = match (seen.holders.first(), error) {
        (Some(holder), _) => format!(
            "{key} is held by {} for {:.1}s (fence {}, node {}); {} waiting{hint}",
            Shown(&holder.label),
            holder.held_for.as_secs_f64(),
            holder.fence,
            seen.node,
            seen.waiter_count,
        ),
        (None, _) if !seen.grace_left.is_zero() => format!(
            "{key} is not granted yet: the node has restarted and waits {:.1}s more until every \
             earlier lease has surely ended{hint}",
            seen.grace_left.as_secs_f64()
        ),
        (None, Some(error)) => format!("{key} was not granted in time: {error}"),
        (None, None) => format!("{key} was busy{hint}"),
    };
    Failure::new(code, message)
}

/// What is done while the lock is held.
async fn hold(
    client: &Client,
    guard: Guard,
    args: &Args,
    Job { key, argv }: &Job,
    signals: &mut Signals,
) -> Result<End, Failure> {
    if args.print_token {
        output::line(client.into_token(guard)).map_err(|unwritten| given_back(&unwritten))?;
        return Ok(End::Code(0));
    }
    if argv.is_empty() {
        let held = format_args!("{} fence {}", Shown(key), guard.fence());
        output::line(held).map_err(|unwritten| given_back(&unwritten))?;
        return hold_until_interrupted(guard, signals).await;
    }
    let most = guard.ttl() / 3;
    let grace = args.grace.unwrap_or(GRACE_DEFAULT).min(most);
    if args.grace.is_some_and(|asked| asked > most) {
        tracing::warn!(?grace, "the node gives a shorter TTL: so is the grace, a third of it");
    }
    let node = client.admin().route(key)?.worker.node;
    let environment = [
        ("LOCKRING_KEY", key::for_environment(key)),
        ("LOCKRING_FENCE", guard.fence().to_string().into()),
        ("LOCKRING_NODE", node.to_string().into()),
        ("LOCKRING_TTL_MS", guard.ttl().as_millis().to_string().into()),
    ];
    supervise::run(guard, argv, &environment, grace, signals).await
}

/// Whoever was to read the fence or the token has not got it: the session ends, and the hold.
fn given_back(unwritten: &Unwritten) -> Failure {
    Failure::new(exit::IO, format!("{unwritten}; the lock is given back"))
}

async fn hold_until_interrupted(guard: Guard, signals: &mut Signals) -> Result<End, Failure> {
    let lost = guard.lost();
    let signal = tokio::select! {
        signal = signals.next() => signal,
        () = lost => {
            let why = guard.lost_reason().map_or_else(String::new, |why| format!(": {why}"));
            return Err(Failure::new(exit::LOST, format!("the lock was lost{why}")));
        }
    };
    tokio::select! {
        released = guard.release() => released?,
        // A second one does not wait for the node's word.
        _ = signals.next() => {}
    }
    Ok(End::Signal(signal))
}
