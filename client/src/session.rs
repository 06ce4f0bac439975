//! Sessions: an identity for liveness, and the links by which it claims, asks and ends.

use crate::builder::Builder;
use crate::driver::{Adopting, Command, Driver, LinkHandle, Uplink};
use crate::error::{Error, ErrorKind};
use crate::guard::{Guard, Waiting};
use crate::link::{IdHasher, Key, Link, LinkConfig, NotGranted, Outcome, Query, RequestIds};
use crate::pool::Pool;
use crate::router::{Ring, Route, WorkerId};
use crate::token::Token;
use crate::wire::{Wire, WireError, WireEvent};
use dashmap::DashMap;
use lockring_proto::{Claim, Fence, Namespace, Reply, SessionId, Welcome, clock, limits};
use lockring_ring::NamespaceSeed;
use std::future::Future;
use std::hash::BuildHasherDefault;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

/// Connecting must come to a ring within this.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// How long closing waits for the nodes' word.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// One session: an identity for liveness, with a link to each worker it has to do with.
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) pool: Arc<Pool>,
    pub(crate) namespace: Namespace,
    seed: NamespaceSeed,
    ids: RequestIds,
    links: DashMap<WorkerId, Arc<LinkHandle>, BuildHasherDefault<IdHasher>>,
    tickets: AtomicU64,
    pub(crate) ttl: Duration,
    unreachable_after: Duration,
    label: String,
    /// A session taken up from another process: its workers know a later incarnation than ours.
    adopted: bool,
    closed: AtomicBool,
    runtime: Handle,
}

/// How one link of a session reaches its worker.
struct LinkUplink {
    pool: Arc<Pool>,
    worker: WorkerId,
}

impl Uplink for LinkUplink {
    fn connect(&self) -> Pin<Box<dyn Future<Output = Result<Wire, WireError>> + Send>> {
        let (pool, worker) = (Arc::clone(&self.pool), self.worker);
        Box::pin(async move { pool.connect(worker).await })
    }

    fn learnt(&self, ring: Ring) {
        self.pool.learn(ring);
    }
}

fn unreachable(error: &WireError) -> Error {
    Error::new(ErrorKind::Unreachable, error.to_string())
}

impl Session {
    /// Makes a session and its first link, by which the ring is learnt if it is not known yet.
    pub(crate) async fn open(pool: Arc<Pool>, settings: &Builder) -> Result<Self, Error> {
        let adopted = settings.session.is_some();
        let random = random_session()?;
        let (id, ids) = match settings.session {
            Some(id) => {
                let (random, _) = random.0.split_first_chunk().expect("it has 16 bytes");
                (id, RequestIds::of_heir(u64::from_le_bytes(*random)))
            }
            None => (random, RequestIds::default()),
        };
        let mut session = Self {
            id,
            pool,
            namespace: Namespace::default(),
            seed: NamespaceSeed::of(""),
            ids,
            links: DashMap::default(),
            tickets: AtomicU64::new(0),
            ttl: settings.ttl,
            unreachable_after: settings.unreachable_after,
            label: settings.label.clone(),
            adopted,
            closed: AtomicBool::new(false),
            runtime: Handle::try_current()
                .map_err(|_| Error::new(ErrorKind::Config, "a client needs a tokio runtime"))?,
        };
        let mut wire = session.pool.connect_seed().await.map_err(|error| unreachable(&error))?;
        let mut link = session.new_link();
        let greeting = session.greet(&mut wire, &mut link);
        let welcome = tokio::time::timeout(GREETING_TIMEOUT, greeting).await.map_err(|_| {
            Error::new(ErrorKind::Unreachable, "the node does not answer a hello")
        })??;
        session.namespace = Namespace::new(&welcome.namespace)
            .map_err(|error| Error::new(ErrorKind::Config, error.to_string()))?;
        session.seed = NamespaceSeed::of(session.namespace.as_str());
        session.pool.found(welcome.node, wire.remote().ip());
        let worker = WorkerId { node: welcome.node, worker: welcome.worker };
        let link = session.spawn(worker, link, Some(wire));
        session.links.insert(worker, link);
        Ok(session)
    }

    fn new_link(&self) -> Link {
        let config = LinkConfig {
            session: self.id,
            ids: self.ids.clone(),
            label: self.label.clone(),
            ttl: self.ttl,
            unreachable_after: self.unreachable_after,
        };
        Link::new(config, clock::now())
    }

    /// Says hello on a first connection and learns the ring.
    async fn greet(&self, wire: &mut Wire, link: &mut Link) -> Result<Welcome, Error> {
        link.greet(clock::now(), self.first_incarnation());
        let mut welcome = None;
        let mut parts = Vec::new();
        loop {
            for outcome in std::mem::take(link.outcomes()) {
                match outcome {
                    Outcome::Up(said) => {
                        welcome = Some(said);
                        link.ask_for_ring(clock::now());
                    }
                    Outcome::Rejected(refusal) => return Err(Error::refused(refusal)),
                    Outcome::Ring(part) => parts.push(*part),
                    _ => {}
                }
            }
            if parts.last().is_some_and(|part| part.last)
                && let Some(welcome) = welcome.take()
            {
                let ring = Ring::assemble(&parts)
                    .map_err(|error| Error::new(ErrorKind::Config, error.to_string()))?;
                link.ring_is(clock::now(), ring.version());
                self.pool.learn(ring);
                return Ok(welcome);
            }
            wire.send(link.outgoing());
            let event = wire.next().await.map_err(|error| unreachable(&error))?;
            if event == WireEvent::Replies {
                let taken = link
                    .receive(clock::now(), wire.replies.bytes())
                    .map_err(|error| Error::new(ErrorKind::Unreachable, error.to_string()))?;
                wire.replies.consume(taken);
            }
        }
    }

    fn first_incarnation(&self) -> u64 {
        u64::from(!self.adopted)
    }

    /// Starts the task of a link.
    fn spawn(&self, worker: WorkerId, link: Link, wire: Option<Wire>) -> Arc<LinkHandle> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let handle = Arc::new(LinkHandle {
            commands,
            valid_until: AtomicU64::new(0),
            ttl_ms: AtomicU64::new(0),
        });
        let uplink = Arc::new(LinkUplink { pool: Arc::clone(&self.pool), worker });
        let driver = Driver::new(uplink, Arc::downgrade(&handle), inbox, link, wire, !self.adopted);
        self.runtime.spawn(driver.run());
        handle
    }

    fn link(&self, worker: WorkerId) -> Result<Arc<LinkHandle>, Error> {
        let known = self.links.get(&worker).map(|known| Arc::clone(&known));
        // By the map's entry: two first calls at once must not make two links, as the worker would
        // have the connection of one kill that of the other.
        let link = known.unwrap_or_else(|| {
            Arc::clone(&self.links.entry(worker).or_insert_with(|| self.begin(worker)))
        });
        // Read after the link is in the map: either this sees the end, or the closer sees the link.
        if self.closed.load(Ordering::Relaxed) {
            self.links.remove(&worker);
            return Err(Error::closed());
        }
        Ok(link)
    }

    /// The first link to a worker.
    fn begin(&self, worker: WorkerId) -> Arc<LinkHandle> {
        let mut link = self.new_link();
        if let Some(ring) = self.pool.ring() {
            link.ring_is(clock::now(), ring.version());
        }
        self.spawn(worker, link, None)
    }

    /// Where a key of the session's namespace goes.
    pub(crate) fn route(&self, key: &[u8]) -> Result<Route, Error> {
        if key.is_empty() || key.len() > limits::KEY_BYTES_MAX {
            let message = format!("a key has 1 to 512 bytes, not {}", key.len());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        self.pool.route(self.seed, key).ok_or_else(Error::closed)
    }

    /// Claims a key. Cancel safe: a dropped future leaves the queue, and a grant that raced it is
    /// given back.
    pub(crate) async fn acquire(
        &self,
        key: &[u8],
        wanted: Claim,
        wait: Option<Duration>,
    ) -> Result<Result<Guard, NotGranted>, Error> {
        let route = self.route(key)?;
        let link = self.link(route.worker)?;
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let key = Key::new(key);
        let (answer, answered) = oneshot::channel();
        let cell = route.cell.0;
        let command = Command::Acquire { ticket, cell, key: key.clone(), wanted, wait, answer };
        link.commands.send(command).map_err(|_| Error::closed())?;
        let granted = Waiting::new(link, ticket, answered).granted().await?;
        Ok(granted.map(|hold| Guard::new(hold, key)))
    }

    /// Asks a worker, or gives it an order by force.
    pub(crate) async fn query(&self, worker: WorkerId, query: Query) -> Result<Reply, Error> {
        let by_force = matches!(query, Query::Force(_));
        let (answer, answered) = oneshot::channel();
        let command = Command::Query { query, answer };
        self.link(worker)?.commands.send(command).map_err(|_| Error::closed())?;
        match answered.await.map_err(|_| Error::closed())? {
            Some(Reply::Refused { refusal, .. }) => Err(Error::refused(*refusal)),
            Some(reply) => Ok(reply),
            None if by_force => Err(Error::forced_unanswered()),
            None => Err(Error::new(ErrorKind::Unreachable, "no node answered for too long")),
        }
    }

    /// Takes up the hold of a token of this session.
    pub(crate) async fn adopt(&self, token: &Token) -> Result<Guard, Error> {
        let route = self.route(&token.key)?;
        let key = Key::new(&token.key);
        let (answer, answered) = oneshot::channel();
        let adopting =
            Adopting { cell: route.cell.0, key: key.clone(), fence: Fence(token.fence), answer };
        let link = self.link(route.worker)?;
        link.commands.send(Command::Adopt(adopting)).map_err(|_| Error::closed())?;
        let wait = tokio::time::timeout(self.unreachable_after, answered).await;
        let hold = wait
            .map_err(|_| Error::new(ErrorKind::Unreachable, "no node answered for too long"))?
            .map_err(|_| Error::closed())?
            .map_err(Error::not_granted)?;
        Ok(Guard::new(hold, key))
    }

    /// Ends every link. `goodbye`: the session ends at the workers too, with all it holds.
    pub(crate) async fn close(&self, goodbye: bool) {
        self.closed.store(true, Ordering::Relaxed);
        let mut ends = Vec::new();
        let mut links: Vec<(WorkerId, Arc<LinkHandle>)> =
            self.links.iter().map(|link| (*link.key(), Arc::clone(link.value()))).collect();
        links.sort_unstable_by_key(|&(worker, _)| worker);
        for (_, link) in links {
            let (done, ended) = oneshot::channel();
            let command = Command::Close { goodbye, done };
            if link.commands.send(command).is_ok() {
                ends.push(ended);
            }
        }
        let all = async {
            for ended in ends {
                let _link_is_gone_either_way = ended.await;
            }
        };
        let _leases_end_by_themselves = tokio::time::timeout(CLOSE_TIMEOUT, all).await;
    }
}

fn random_session() -> Result<SessionId, Error> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|error| Error::new(ErrorKind::Config, format!("no randomness: {error}")))?;
    Ok(SessionId(id))
}
