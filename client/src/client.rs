//! The client and its sessions.

use crate::builder::Builder;
use crate::driver::{Adopting, Command, Driver, LinkHandle, Uplink};
use crate::error::{Error, ErrorKind};
use crate::guard::{Guard, Waiting};
use crate::link::{IdHasher, Key, Link, LinkConfig, NotGranted, Outcome, Query, RequestIds};
use crate::pool::Pool;
use crate::primitives::{Mutex, RwLock, Semaphore};
use crate::router::{Ring, Route, WorkerId};
use crate::token::Token;
use crate::wire::{Wire, WireError, WireEvent};
use dashmap::DashMap;
use lockring_proto::{
    Claim, Fence, Inspection, ListCursor, Listing, Namespace, Reply, SessionId, Welcome, clock,
    limits,
};
use lockring_ring::NamespaceSeed;
use std::fmt;
use std::future::Future;
use std::hash::BuildHasherDefault;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

/// Connecting must come to a ring within this.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// How long closing waits for the nodes' word.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A client of a cluster. Cheap to clone; clones share one session, its connections and its lease.
///
/// ```no_run
/// # async fn example() -> Result<(), lockring_client::Error> {
/// let client = lockring_client::Client::connect("lockring://127.0.0.1:7420").await?;
/// let guard = client.lock("orders/42").await?;
/// guard.release().await?;
/// client.close().await;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Client {
    session: Arc<Session>,
    settings: Arc<Builder>,
}

/// One session: an identity for liveness, with a link to each worker it has to do with.
pub(crate) struct Session {
    id: SessionId,
    pool: Arc<Pool>,
    namespace: Namespace,
    seed: NamespaceSeed,
    ids: RequestIds,
    links: DashMap<WorkerId, Arc<LinkHandle>, BuildHasherDefault<IdHasher>>,
    tickets: AtomicU64,
    ttl: Duration,
    unreachable_after: Duration,
    label: String,
    /// A session taken up from another process: its workers know a later incarnation than ours.
    adopted: bool,
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
        let id = match settings.session {
            Some(id) => id,
            None => random_session()?,
        };
        let mut session = Self {
            id,
            pool,
            namespace: Namespace::default(),
            seed: NamespaceSeed::of(""),
            ids: RequestIds::default(),
            links: DashMap::default(),
            tickets: AtomicU64::new(0),
            ttl: settings.ttl,
            unreachable_after: settings.unreachable_after,
            label: settings.label.clone(),
            adopted,
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
        session.spawn(worker, link, Some(wire));
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
        self.links.insert(worker, Arc::clone(&handle));
        self.runtime.spawn(driver.run());
        handle
    }

    fn link(&self, worker: WorkerId) -> Arc<LinkHandle> {
        if let Some(known) = self.links.get(&worker) {
            return Arc::clone(&known);
        }
        let mut link = self.new_link();
        if let Some(ring) = self.pool.ring() {
            link.ring_is(clock::now(), ring.version());
        }
        self.spawn(worker, link, None)
    }

    fn route(&self, key: &[u8]) -> Result<Route, Error> {
        if key.is_empty() || key.len() > limits::KEY_BYTES_MAX {
            let message = format!("a key has 1 to 512 bytes, not {}", key.len());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        self.pool.route(self.seed, key).ok_or_else(Error::closed)
    }

    /// Claims a key. Cancel safe: a dropped future leaves the queue, and a grant that raced it is
    /// given back.
    async fn acquire(
        &self,
        key: &[u8],
        wanted: Claim,
        wait: Option<Duration>,
    ) -> Result<Result<Guard, NotGranted>, Error> {
        let route = self.route(key)?;
        let link = self.link(route.worker);
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let key = Key::new(key);
        let (answer, answered) = oneshot::channel();
        let cell = route.cell.0;
        let command = Command::Acquire { ticket, cell, key: key.clone(), wanted, wait, answer };
        link.commands.send(command).map_err(|_| Error::closed())?;
        let granted = Waiting::new(link, ticket, answered).granted().await?;
        Ok(granted.map(|hold| Guard::new(hold, key)))
    }

    async fn query(&self, worker: WorkerId, query: Query) -> Result<Reply, Error> {
        let (answer, answered) = oneshot::channel();
        let command = Command::Query { query, answer };
        self.link(worker).commands.send(command).map_err(|_| Error::closed())?;
        match answered.await.map_err(|_| Error::closed())? {
            Some(Reply::Refused { refusal, .. }) => Err(Error::refused(*refusal)),
            Some(reply) => Ok(reply),
            None => Err(Error::new(ErrorKind::Unreachable, "no node answered for too long")),
        }
    }

    /// Ends every link. `goodbye`: the session ends at the workers too, with all it holds.
    async fn close(&self, goodbye: bool) {
        let mut ends = Vec::new();
        let mut workers: Vec<WorkerId> = self.links.iter().map(|link| *link.key()).collect();
        workers.sort_unstable();
        for worker in workers {
            let (done, ended) = oneshot::channel();
            let command = Command::Close { goodbye, done };
            if self.link(worker).commands.send(command).is_ok() {
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

impl Client {
    pub(crate) fn over(session: Session, settings: Builder) -> Self {
        Self { session: Arc::new(session), settings: Arc::new(settings) }
    }

    /// Connects to `lockring://HOST:PORT[,HOST:PORT...][?identity=FILE]`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the URL or the identity cannot be used,
    /// [`ErrorKind::Unreachable`] when no node answers.
    pub async fn connect(url: &str) -> Result<Self, Error> {
        Self::builder().connect(url).await
    }

    /// Everything that has a default.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A client with a session of its own and another TTL; the lease belongs to the session, never
    /// to a single lock.
    ///
    /// ```no_run
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// let patient = client.with_ttl(std::time::Duration::from_secs(60)).await?;
    /// let guard = patient.lock("nightly").await?;
    /// # drop(guard); Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`] when no node answers.
    pub async fn with_ttl(&self, ttl: Duration) -> Result<Self, Error> {
        let mut settings = Builder::clone(&self.settings).ttl(ttl);
        settings.session = None;
        let session = Session::open(Arc::clone(&self.session.pool), &settings).await?;
        Ok(Self::over(session, settings))
    }

    /// Takes the lock of a key, waiting for its turn without limit. It fails as unreachable after
    /// 30 s without contact, unless the builder says otherwise.
    ///
    /// Cancel safe: dropping the future leaves the queue (and loses the place in it).
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`], [`ErrorKind::Conflict`], [`ErrorKind::Quota`],
    /// [`ErrorKind::Draining`], [`ErrorKind::Invalid`].
    pub async fn lock(&self, key: impl AsRef<[u8]>) -> Result<Guard, Error> {
        self.claim(key.as_ref(), Claim::Exclusive, None).await
    }

    /// Takes the lock of a key if it is free now; `None` if it is busy.
    ///
    /// Cancel safe.
    ///
    /// ```no_run
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// if let Some(guard) = client.try_lock("orders/42").await? {
    ///     guard.release().await?;
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Client::lock`].
    pub async fn try_lock(&self, key: impl AsRef<[u8]>) -> Result<Option<Guard>, Error> {
        self.try_claim(key.as_ref(), Claim::Exclusive).await
    }

    pub(crate) async fn claim(
        &self,
        key: &[u8],
        wanted: Claim,
        wait: Option<Duration>,
    ) -> Result<Guard, Error> {
        self.session.acquire(key, wanted, wait).await?.map_err(Error::not_granted)
    }

    pub(crate) async fn try_claim(
        &self,
        key: &[u8],
        wanted: Claim,
    ) -> Result<Option<Guard>, Error> {
        match self.session.acquire(key, wanted, Some(Duration::ZERO)).await? {
            Ok(guard) => Ok(Some(guard)),
            Err(NotGranted::Busy(_)) => Ok(None),
            Err(reason) => Err(Error::not_granted(reason)),
        }
    }

    /// A named lock with settings of its own.
    pub fn mutex(&self, key: impl AsRef<[u8]>) -> Mutex {
        Mutex::new(self.clone(), key.as_ref())
    }

    /// A named reader-writer lock.
    pub fn rwlock(&self, key: impl AsRef<[u8]>) -> RwLock {
        RwLock::new(self.clone(), key.as_ref())
    }

    /// A named semaphore. The first holder or waiter sets the capacity; while it is in use another
    /// capacity is refused.
    pub fn semaphore(&self, key: impl AsRef<[u8]>, capacity: u32) -> Semaphore {
        Semaphore::new(self.clone(), key.as_ref(), capacity)
    }

    /// Looks at a key: holders, waiters, node. Advisory: it may be out of date as it arrives.
    ///
    /// ```no_run
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// for holder in client.inspect("orders/42").await?.holders {
    ///     println!("{} holds it under fence {}", holder.label, holder.fence);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`], [`ErrorKind::Invalid`].
    pub async fn inspect(&self, key: impl AsRef<[u8]>) -> Result<Inspection, Error> {
        let key = key.as_ref();
        let worker = self.session.route(key)?.worker;
        match self.session.query(worker, Query::Inspect(key.to_vec())).await? {
            Reply::Inspected { inspection, .. } => Ok(*inspection),
            other => Err(unexpected(&other)),
        }
    }

    /// A page of the locks of one worker, by cell and key; see [`Client::workers`].
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`].
    pub async fn list(
        &self,
        worker: WorkerId,
        prefix: &[u8],
        cursor: ListCursor,
        rows: u32,
    ) -> Result<Listing, Error> {
        let query = Query::List { cursor, rows, prefix: prefix.to_vec() };
        match self.session.query(worker, query).await? {
            Reply::Listed { listing, .. } => Ok(*listing),
            other => Err(unexpected(&other)),
        }
    }

    /// Ends every hold of a key, whoever has it, and says how many. The next fence is higher.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`], [`ErrorKind::Invalid`].
    pub async fn release_by_force(&self, key: impl AsRef<[u8]>) -> Result<u32, Error> {
        let key = key.as_ref();
        let worker = self.session.route(key)?.worker;
        match self.session.query(worker, Query::Force(key.to_vec())).await? {
            Reply::Forced { ended, .. } => Ok(ended),
            other => Err(unexpected(&other)),
        }
    }

    /// Where a key goes by the client's copy of the ring.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a key of 0 or more than 512 bytes.
    pub fn route(&self, key: impl AsRef<[u8]>) -> Result<Route, Error> {
        self.session.route(key.as_ref())
    }

    /// The client's copy of the ring.
    pub fn ring(&self) -> Option<Arc<Ring>> {
        self.session.pool.ring()
    }

    /// Every worker of every node.
    pub fn workers(&self) -> Vec<WorkerId> {
        let Some(ring) = self.ring() else { return Vec::new() };
        let of = |node: &lockring_proto::NodeInfo| {
            let id = node.id;
            (0..node.workers).map(move |worker| WorkerId { node: id, worker }).collect::<Vec<_>>()
        };
        ring.nodes().flat_map(of).collect()
    }

    /// The namespace of the identity.
    pub fn namespace(&self) -> &str {
        self.session.namespace.as_str()
    }

    /// The TTL asked for.
    pub fn ttl(&self) -> Duration {
        self.session.ttl
    }

    /// Turns a hold into a token that another process can end or renew. The session stays alive
    /// for its TTL; call [`Client::leave`] next, not [`Client::close`].
    pub fn into_token(&self, guard: Guard) -> Token {
        let key = guard.key().to_vec();
        Token { session: self.session.id, ttl: self.session.ttl, fence: guard.forget().0, key }
    }

    /// Takes up the hold of a token. The client must have been built with the token's session.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the token is of another session; what is left of the hold shows
    /// when it is released.
    pub async fn adopt(&self, token: &Token) -> Result<Guard, Error> {
        if token.session != self.session.id {
            return Err(Error::new(ErrorKind::Invalid, "the token is of another session"));
        }
        let route = self.session.route(&token.key)?;
        let key = Key::new(&token.key);
        let (answer, answered) = oneshot::channel();
        let adopting =
            Adopting { cell: route.cell.0, key: key.clone(), fence: Fence(token.fence), answer };
        let handle = self.session.link(route.worker);
        handle.commands.send(Command::Adopt(adopting)).map_err(|_| Error::closed())?;
        let wait = tokio::time::timeout(self.session.unreachable_after, answered).await;
        let hold = wait
            .map_err(|_| Error::new(ErrorKind::Unreachable, "no node answered for too long"))?
            .map_err(|_| Error::closed())?
            .map_err(Error::not_granted)?;
        Ok(Guard::new(hold, key))
    }

    /// Ends the session: everything it holds or waits for is given up before this returns, if the
    /// nodes answer within two seconds; otherwise its leases end by themselves.
    pub async fn close(&self) {
        self.session.close(true).await;
    }

    /// Ends the connections but not the session: what it holds stays held for its TTL.
    pub async fn leave(&self) {
        self.session.close(false).await;
    }
}

fn unexpected(reply: &Reply) -> Error {
    Error::new(
        ErrorKind::Unreachable,
        format!("the node gave an answer that does not fit: {reply:?}"),
    )
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("session", &self.session.id)
            .field("namespace", &self.session.namespace)
            .finish_non_exhaustive()
    }
}
