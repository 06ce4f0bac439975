//! Golden scripts: what one machine does, event by event, as text one can read and review.
//!
//! A script is commands at the left margin and, indented below each, what the machine did. Plain
//! `cargo test` compares; `UPDATE=1 cargo test -p lockring-core scripts` writes the indented
//! lines anew, and the difference is for a person to judge. Empty lines and `#` lines are kept.
//!
//! ```text
//! node opens=10s slice=2       first line: how the machine is made
//! open A session=a inc=1       a hello on A (ttl= ttl_max= identity= role= ns= label= proto=)
//! A acquire 1 k wait=2s        a request: id, key, then options; `;` puts several into one batch
//! A release 2 k 1.1            a fence is epoch.counter; v=N is the sender's ring version
//! A inspect 3 k in=team        in a namespace, that is named; also for `list` and `force`
//! takeover k 3 v=2 grace=5s    nobody has a copy of the key's cell, which is this node's (attach=)
//! at 5s | run 5s | tick        the clock jumps | walks tick by tick | one tick now
//! close A | drain | memory full | memory free | longest 60s | epoch k 2 v=2 | counter k 9
//! ```
//! Keys: `\xHH` is a byte, a trailing `*N` repeats what is before it N times.

use super::Replica;
use super::told::{hello_told, push_told, reply_told};
use crate::{
    Access, Action, Amounts, ClusterEvent, Config, ConnId, Event, Identity, Limits, LinkIndex,
    Machine, Mutant, Time,
};
use lockring_proto::{
    Claim, Fence, Hello, HoldId, ListCursor, Namespace, Operation, PROTOCOL, Request, SessionId,
    Wait, limits,
};
use lockring_ring::{
    AttachId, BootId, CellBits, CellId, Epoch, Member, Membership, NamespaceSeed, NodeId,
    RingVersion, hash_key,
};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

struct Conn {
    id: ConnId,
    link: Option<LinkIndex>,
    seed: NamespaceSeed,
    waits: bool,
}

struct World {
    machine: Machine,
    /// What the ops alone make.
    replica: Replica,
    bits: CellBits,
    now: Time,
    conns: BTreeMap<String, Conn>,
}

/// The words of a command: plain ones in order, and `name=value` ones.
struct Words<'a> {
    plain: std::vec::IntoIter<&'a str>,
    named: BTreeMap<&'a str, &'a str>,
}

impl<'a> Words<'a> {
    fn of(text: &'a str) -> Self {
        let (named, plain): (Vec<&str>, Vec<&str>) =
            text.split_whitespace().partition(|word| word.contains('='));
        let named = named.iter().filter_map(|word| word.split_once('=')).collect();
        Self { plain: plain.into_iter(), named }
    }

    fn next(&mut self) -> &'a str {
        self.plain.next().expect("the command needs another word")
    }

    fn number(&mut self, name: &str, default: u64) -> u64 {
        self.named.remove(name).map_or(default, number)
    }

    fn span(&mut self, name: &str) -> Option<Duration> {
        self.named.remove(name).map(span)
    }

    fn end(mut self) {
        assert_eq!(self.plain.next(), None, "a word too many");
        assert!(self.named.is_empty(), "unknown {:?}", self.named);
    }
}

fn number<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is not a number"))
}

fn span(text: &str) -> Duration {
    let (digits, unit) = match text.strip_suffix("ms") {
        Some(digits) => (digits, 1e-3),
        None => (text.strip_suffix('s').expect("a span ends in s or ms"), 1.0),
    };
    Duration::from_secs_f64(number::<f64>(digits) * unit)
}

fn amounts(words: &mut Words<'_>, names: [&str; 4]) -> Amounts {
    let [sessions, holds, waiters, bytes] = names.map(|name| words.number(name, 1 << 30));
    Amounts { sessions, holds, waiters, bytes }
}

fn key(text: &str) -> Vec<u8> {
    if let Some((repeated, times)) = text.split_once('*') {
        return key(repeated).repeat(number(times));
    }
    let mut parts = text.split("\\x");
    let mut bytes = parts.next().expect("split gives one part").as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(&part[..2], 16).expect("two hex digits"));
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    bytes
}

fn fence(text: &str) -> Fence {
    let (epoch, counter) = text.split_once('.').expect("a fence is epoch.counter");
    Fence::new(Epoch(number(epoch)), number(counter))
}

fn claim(words: &mut Words<'_>) -> Claim {
    match words.plain.next() {
        None => Claim::EXCLUSIVE,
        Some("shared") => Claim::SHARED,
        Some(permits) => {
            let (permits, capacity) = permits.split_once('/').expect("permits/capacity");
            Claim::Permits { permits: number(permits), capacity: number(capacity) }
        }
    }
}

fn wait(words: &mut Words<'_>) -> Wait {
    match words.named.remove("wait") {
        None => Wait::Forever,
        Some("no") => Wait::No,
        Some(text) => Wait::Millis(span(text).as_millis() as u64),
    }
}

/// A request as it is parsed, with its key owned.
struct Parsed {
    verb: &'static str,
    id: u64,
    version: u64,
    namespace: String,
    key: Vec<u8>,
    claim: Claim,
    wait: Wait,
    fence: Fence,
    target: u64,
    rows: u32,
    cursor: ListCursor,
    holds: Option<Vec<HoldId>>,
    range: (Option<HoldId>, Option<HoldId>),
}

const KEYED: [&str; 7] = ["acquire", "release", "cancel", "inspect", "force", "confirm", "reclaim"];
const KEYLESS: [&str; 5] = ["renew", "compare", "ring", "list", "goodbye"];

impl Parsed {
    fn of(text: &str, world: &World, conn: &Conn) -> Self {
        let mut words = Words::of(text);
        let verb = words.next();
        let verb = KEYED.iter().chain(&KEYLESS).find(|&&known| known == verb).expect("a request");
        let id = number(words.next());
        let version = words.number("v", world.machine.version().0);
        let key = if KEYED.contains(verb) { key(words.next()) } else { Vec::new() };
        let holds = words.named.remove("holds").map(|list| holds(list, world, conn));
        let mut parsed = Self {
            verb,
            id,
            version,
            namespace: words.named.remove("in").unwrap_or("").to_owned(),
            key,
            claim: Claim::EXCLUSIVE,
            wait: wait(&mut words),
            fence: Fence(0),
            target: words.number("target", 0),
            rows: words.number("rows", 100) as u32,
            cursor: ListCursor { from: words.number("from", 0) as u32 },
            holds,
            range: (None, None),
        };
        match *verb {
            "acquire" => parsed.claim = claim(&mut words),
            "release" | "confirm" => parsed.fence = fence(words.next()),
            "reclaim" => {
                parsed.fence = fence(words.next());
                parsed.claim = claim(&mut words);
            }
            "list" => {
                parsed.key = words.named.remove("prefix").map_or_else(Vec::new, self::key);
            }
            "compare" => {
                parsed.target = words.number("upto", 0);
                let mut one = |name| {
                    let list = words.named.remove(name)?;
                    self::holds(list, world, conn).pop()
                };
                parsed.range = (one("after"), one("through"));
            }
            _ => {}
        }
        words.end();
        parsed
    }

    fn request(&self) -> Request<'_> {
        let (id, version, key) = (self.id, self.version, self.key.as_slice());
        let namespace = self.namespace.as_str();
        match self.verb {
            "acquire" => Request::Keyed {
                id,
                version,
                operation: Operation::Acquire { claim: self.claim, wait: self.wait },
                key,
            },
            "release" => Request::Keyed {
                id,
                version,
                operation: Operation::Release { fence: self.fence },
                key,
            },
            "cancel" => Request::Keyed {
                id,
                version,
                operation: Operation::Cancel { target: self.target },
                key,
            },
            "inspect" => {
                Request::Keyed { id, version, operation: Operation::Inspect { namespace }, key }
            }
            "force" => {
                Request::Keyed { id, version, operation: Operation::Force { namespace }, key }
            }
            "confirm" => Request::Keyed {
                id,
                version,
                operation: Operation::Confirm { fence: self.fence },
                key,
            },
            "reclaim" => {
                let (fence, request) = (self.fence, self.target);
                let operation = Operation::Reclaim { fence, request, claim: self.claim };
                Request::Keyed { id, version, operation, key }
            }
            "renew" => Request::Renew { id },
            "compare" => {
                let holds = self.holds.clone().unwrap_or_default();
                let (after, through) = self.range;
                Request::Compare { id, version, upto: self.target, after, through, holds }
            }
            "ring" => Request::GetRing { id, known: version },
            "list" => {
                let (cursor, rows) = (self.cursor, self.rows);
                Request::List { id, namespace, cursor, rows, prefix: key }
            }
            _ => Request::Goodbye { id },
        }
    }
}

/// `key@fence,...`, or `-` for none.
fn holds(list: &str, world: &World, conn: &Conn) -> Vec<HoldId> {
    let mut holds: Vec<HoldId> = list
        .split(',')
        .filter_map(|hold| hold.split_once('@'))
        .map(|(text, held)| HoldId {
            cell: world.cell(conn.seed, &key(text)).0,
            fence: fence(held),
        })
        .collect();
    holds.sort_unstable();
    holds
}

impl World {
    fn new(text: &str, mutant: Option<Mutant>) -> Self {
        let mut words = Words::of(text);
        assert_eq!(words.next(), "node", "a script begins with its node");
        let bits = CellBits::new(words.number("bits", 2) as u8).expect("cell bits");
        let limits = Limits {
            links: words.number("links", 100) as u32,
            holds_per_link: words.number("holds", 1000),
            waiters_per_link: words.number("waiters", 1000) as u32,
            waiters_per_key: words.number("waiters_per_key", 1000) as u32,
            bytes_per_link: words.number("bytes", 1 << 30),
            identity: amounts(&mut words, ["id_sessions", "id_holds", "id_waiters", "id_bytes"]),
            namespace: amounts(&mut words, ["ns_sessions", "ns_holds", "ns_waiters", "ns_bytes"]),
            namespaces: words.number("namespaces", 10) as u16,
            expiry_slice: words.number("slice", 256) as u32,
            turn_price: words.number("turn", 256) as u32,
        };
        let config = Config {
            cell_bits: bits,
            worker: words.number("worker", 0) as u16,
            workers: words.number("workers", 1) as u16,
            node: 1,
            boot: 1,
            // The first cells, up to this number.
            others: (0..words.number("others", 0) as u16).map(CellId).collect(),
            epoch: Epoch(words.number("epoch", 1) as u32),
            ring_version: RingVersion(1),
            longest_ttl: words.span("longest").unwrap_or(Duration::from_secs(10)),
            opens_at: words.span("opens").map(|span| Time(0).after(span)),
            tag_secret: [1, 2, 3, 4],
            grace_for: "team/web".to_owned(),
            limits,
        };
        words.end();
        let machine = Machine::new(config, Time(0)).with_mutant(mutant).with_notes();
        let replica = machine.replica();
        Self { machine, replica, bits, now: Time(0), conns: BTreeMap::new() }
    }

    fn cell(&self, seed: NamespaceSeed, key: &[u8]) -> CellId {
        self.bits.cell(hash_key(seed, key).position)
    }

    fn key_cell(&self, text: &str) -> CellId {
        self.cell(NamespaceSeed::of("default"), &key(text))
    }

    fn run(&mut self, line: &str, out: &mut String) {
        let mut words = Words::of(line);
        match words.next() {
            "open" => self.open(words, out),
            "close" => {
                let conn = &self.conns[words.next()];
                let event = Event::Closed { conn: conn.id, link: conn.link.expect("welcomed") };
                self.handle(event, out);
            }
            "at" => self.now = Time(0).after(span(words.next())),
            "run" => self.walk(Time(0).after(span(words.next())), out),
            "tick" => self.event(Event::Tick, out),
            "memory" => self.event(Event::Memory { full: words.next() == "full" }, out),
            "drain" => self.event(Event::Drain, out),
            "longest" => self.event(Event::LongestTtl(span(words.next())), out),
            "unwritable" => self.event(Event::TtlFailed(words.next()), out),
            "epoch" => {
                let cell = self.key_cell(words.next());
                let epoch = Epoch(number(words.next()));
                let version = RingVersion(words.number("v", 1));
                self.handle(Event::EpochRaised { cell, epoch, version }, out);
            }
            "takeover" => self.take_over(words, out),
            "counter" => {
                let cell = self.key_cell(words.next());
                self.machine.wind_counter(cell, number(words.next()));
            }
            name => {
                let requests = line.trim_start().strip_prefix(name).expect("begins with it");
                self.request(name, requests, out);
            }
        }
    }

    /// Looks at everything, and whether the ops alone make the same.
    fn audit(&mut self) -> Result<(), String> {
        self.machine.audit()?;
        self.machine.take_notes().iter().try_for_each(|note| self.replica.see(note))?;
        let (its, ours) = (self.machine.locks_fingerprint(), self.replica.fingerprint());
        if its == ours { Ok(()) } else { Err("its ops alone make other locks".to_owned()) }
    }

    fn open(&mut self, mut words: Words<'_>, out: &mut String) {
        let name = words.next();
        let session = words.named.remove("session").expect("open needs session=");
        let mut id = [0; 16];
        id[..session.len()].copy_from_slice(session.as_bytes());
        let namespace = Namespace::new(words.named.remove("ns").unwrap_or("default"));
        let namespace = namespace.expect("a namespace");
        let seed = NamespaceSeed::of(namespace.as_str());
        let identity = words.named.remove("identity").unwrap_or(session).to_owned();
        let access = match words.named.remove("role") {
            None | Some("user") => Access::User,
            Some("operator") => Access::Operator,
            Some(other) => panic!("{other:?} is no role"),
        };
        let ttl_max = words.span("ttl_max").unwrap_or(limits::TTL_MAX);
        let label = words.named.remove("label").unwrap_or("");
        let label = String::from_utf8(key(label)).expect("a label is text");
        let hello = Hello {
            protocol: words.number("proto", u64::from(PROTOCOL)) as u16,
            session: SessionId(id),
            incarnation: words.number("inc", 0),
            ttl_ms: words.span("ttl").unwrap_or(Duration::from_secs(10)).as_millis() as u64,
            ring_version: 0,
            ids_after: words.number("ids", 0),
            label: &label,
        };
        words.end();
        let conn = Conn { id: ConnId(self.conns.len() as u64), link: None, seed, waits: false };
        let identity = Identity { namespace, name: identity, access, ttl_max };
        let event = Event::Opened { conn: conn.id, identity: &identity, hello };
        self.conns.insert(name.to_owned(), conn);
        self.handle(event, out);
    }

    /// The log gives the cell of a key to this worker, without a copy of what was there.
    fn take_over(&mut self, mut words: Words<'_>, out: &mut String) {
        let cell = self.key_cell(words.next());
        let epoch = Epoch(number(words.next()));
        let attach = AttachId(words.number("attach", u64::from(epoch.0)));
        let version = RingVersion(words.number("v", 1));
        let its = Membership {
            epoch,
            since: version,
            owner: Member { node: NodeId(1), boot: BootId(1), attach },
            backups: Vec::new(),
            learner: None,
            grace: words.span("grace"),
        };
        words.end();
        let changed = [(cell, Some(its))];
        let event = ClusterEvent::Memberships { changed: &changed, version };
        self.event(Event::Cluster(event), out);
    }

    fn request(&mut self, name: &str, requests: &str, out: &mut String) {
        let conn = &self.conns[name];
        let parsed: Vec<Parsed> =
            requests.split(';').map(|text| Parsed::of(text, self, conn)).collect();
        let requests: Vec<Request<'_>> = parsed.iter().map(Parsed::request).collect();
        let (conn, link) = (conn.id, conn.link.expect("welcomed"));
        let mut rest = requests.as_slice();
        loop {
            let taken = self.handle(Event::Requests { conn, link, requests: rest }, out);
            rest = &rest[taken..];
            if rest.is_empty() {
                return;
            }
            if let Some(at) = self.machine.next_deadline().filter(|_| self.conns[name].waits) {
                self.walk(at, out);
            } else {
                let _infallible = writeln!(out, "  ... {} left for the next turn", rest.len());
            }
        }
    }

    /// Lets time pass as a live worker sees it: every deadline is met.
    fn walk(&mut self, until: Time, out: &mut String) {
        while let Some(at) = self.machine.next_deadline().filter(|&at| at <= until) {
            self.now = self.now.max(at);
            let mut told = String::new();
            self.handle(Event::Tick, &mut told);
            if !told.is_empty() {
                let _infallible = writeln!(out, "  {}", self.now);
                out.push_str(&told);
            }
        }
        self.now = until;
    }

    /// One that names no requests.
    fn event(&mut self, event: Event<'_>, out: &mut String) {
        self.handle(event, out);
    }

    fn handle(&mut self, event: Event<'_>, out: &mut String) -> usize {
        let mut actions = Vec::new();
        let taken = self.machine.handle(self.now, event, &mut actions);
        for action in actions {
            if let Action::Welcome { conn, link, .. } = action {
                let known = self.conns.values_mut().find(|known| known.id == conn);
                known.expect("an open connection").link = Some(link);
            }
            if let Action::Pause(conn) | Action::Resume(conn) = action {
                let known = self.conns.values_mut().find(|known| known.id == conn);
                known.expect("an open connection").waits = matches!(action, Action::Pause(_));
            }
            let _infallible = writeln!(out, "  {}", self.told(&action));
        }
        taken
    }

    fn told(&self, action: &Action) -> String {
        let name = |conn: &ConnId| {
            let found = self.conns.iter().find(|(_, known)| known.id == *conn);
            found.map_or("?", |(name, _)| name.as_str())
        };
        match action {
            Action::Welcome { conn, reply, .. } | Action::Refuse { conn, reply } => {
                format!("{} <- {}", name(conn), hello_told(reply))
            }
            Action::Reply { conn, reply } => format!("{} <- {}", name(conn), reply_told(reply)),
            Action::Push { conn, push } => format!("{} <= {}", name(conn), push_told(push)),
            Action::Close { conn, reason } => format!("{} closed: {reason:?}", name(conn)),
            Action::SendRing { conn, id, .. } => format!("{} <- {id} the ring", name(conn)),
            Action::Pause(conn) => format!("{} waits", name(conn)),
            Action::Resume(conn) => format!("{} goes on", name(conn)),
            Action::RaiseLongestTtl(ttl) => format!("wanted: longest TTL {ttl:?}"),
            Action::WantEpoch(cell) => format!("wanted: next epoch of {cell}"),
            Action::Peer { peer, bytes } => format!("{} <- {} bytes", peer.node, bytes.len()),
            Action::PeerBroken(peer) => format!("{} makes no sense", peer.node),
            Action::Silent { cell, node } => format!("the copy of {cell} at {node} is silent"),
            Action::Recovered { cell, epoch } => format!("{cell} has recovered in {epoch:?}"),
            Action::Synced { cell, epoch, .. } => format!("a learner of {cell} has {epoch:?}"),
        }
    }
}

/// The script with its indented lines as the machine makes them now.
///
/// # Errors
/// With what does not add up after which line.
fn replay(script: &str, mutant: Option<Mutant>) -> Result<String, String> {
    let mut out = String::new();
    let mut world: Option<World> = None;
    for line in script.lines().filter(|line| !line.starts_with("  ")) {
        out.push_str(line);
        out.push('\n');
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match &mut world {
            Some(world) => {
                world.run(line, &mut out);
                world.audit().map_err(|why| format!("after {line:?}: {why}"))?;
            }
            None => world = Some(World::new(line, mutant)),
        }
    }
    Ok(out)
}

fn folder() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts")
}

/// The simulator's successors come after a crash alone, so that nobody believes in what they free;
/// it notices an undurable TTL by what follows from it; and its clients hear of a new epoch's holds
/// before they compare. None of its cells is taken over.
#[test]
fn scripts_see_seeded_bugs() {
    for (mutant, script) in [
        (Mutant::SuccessorFrees, "successor"),
        (Mutant::UndurableTtl, "ttl_raise"),
        (Mutant::CompareAcrossVersions, "compare_versions"),
        (Mutant::GraceCutShort, "reclaim"),
        (Mutant::ReclaimsOwnEpoch, "reclaim"),
        (Mutant::LowerFenceWins, "reclaim"),
        (Mutant::CompareRecovering, "compare_recovering"),
    ] {
        let recorded = std::fs::read_to_string(folder().join(format!("{script}.script"))).unwrap();
        let replayed = replay(&recorded, Some(mutant));
        assert_ne!(Ok(recorded), replayed, "{mutant:?} is alive");
    }
}

/// Whatever the ops do not say is missed by who has only them.
#[test]
fn ops_that_do_not_tell_all_are_noticed() {
    for (mutant, script) in
        [(Mutant::OpForgetsMode, "shared"), (Mutant::ChangeBesideTheDoor, "retry")]
    {
        let recorded = std::fs::read_to_string(folder().join(format!("{script}.script"))).unwrap();
        let why = replay(&recorded, Some(mutant)).expect_err("it is alive");
        assert!(why.ends_with("its ops alone make other locks"), "{mutant:?}: {why}");
    }
}

#[test]
fn scripts_are_as_recorded() {
    let dir = folder();
    let mut paths: Vec<_> =
        std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() > 10, "where are the scripts? {}", dir.display());
    let mut changed = Vec::new();
    for path in paths {
        let recorded = std::fs::read_to_string(&path).unwrap();
        let replayed = replay(&recorded, None).unwrap_or_else(|why| panic!("{path:?}: {why}"));
        if recorded == replayed {
            continue;
        }
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &replayed).unwrap();
            continue;
        }
        let line = recorded.lines().zip(replayed.lines()).position(|(old, new)| old != new);
        let line = line.unwrap_or(recorded.lines().count().min(replayed.lines().count()));
        changed.push(format!(
            "{}:{}\n  recorded {:?}\n  now      {:?}",
            path.display(),
            line + 1,
            recorded.lines().nth(line).unwrap_or(""),
            replayed.lines().nth(line).unwrap_or(""),
        ));
    }
    assert!(
        changed.is_empty(),
        "{}\nif this is meant: UPDATE=1 cargo test -p lockring-core scripts",
        changed.join("\n")
    );
}
