//! Sessions: an identity for liveness, and the links by which it claims, asks and ends.

use crate::builder::Builder;
use crate::cause::Trouble;
use crate::clock::Clock;
use crate::driver::{
    Answer, Command, Denial, Driver, Farewells, Granted, LinkHandle, LinkShared, Parts, Uplink,
};
use crate::error::{Error, ErrorKind};
use crate::guard::{Guard, Waiting};
use crate::link::{
    IdHasher, Key, Link, LinkConfig, Loss, NotGranted, Outcome, Query, RequestIds, Serves,
};
use crate::pool::Pool;
use crate::router::{Ring, RingUnderWay, Route, WorkerId};
use crate::token::Token;
use crate::wire::{Wire, WireError, WireEvent};
use dashmap::DashMap;
use lockring_proto::{Claim, Fence, Namespace, Refusal, Reply, SessionId, Welcome, clock, limits};
use lockring_ring::{CellId, NamespaceSeed, NodeId};
use std::future::Future;
use std::hash::BuildHasherDefault;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

/// A connection that stands must lead to a ring within this: some round trips of a slow path.
const GREETING_TIMEOUT: Duration = Duration::from_secs(15);

/// How long closing waits for the nodes' word.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A call follows its key to another worker so often; a ring does not change faster.
const MOVES_MAX: u32 = 16;

/// One session. Whoever drops the last handle of it ends it.
pub(crate) struct Session {
    inner: Arc<Inner>,
}

/// What the handles of a session and its links share.
pub(crate) struct Inner {
    pub(crate) id: SessionId,
    pub(crate) pool: Arc<Pool>,
    pub(crate) namespace: Namespace,
    seed: NamespaceSeed,
    config: LinkConfig,
    ttl: Duration,
    links: DashMap<WorkerId, Arc<LinkHandle>, BuildHasherDefault<IdHasher>>,
    tickets: AtomicU64,
    /// A session taken up from another process: its workers know a later incarnation than ours.
    adopted: bool,
    over: OnceLock<Over>,
    farewells: Mutex<Weak<Farewells>>,
    runtime: Handle,
}

/// How a session ended.
struct Over {
    loss: Loss,
    refusal: Option<Refusal>,
}

/// How one link of a session reaches its worker.
struct LinkUplink {
    pool: Arc<Pool>,
    session: Weak<Inner>,
    worker: WorkerId,
}

type Connecting = Pin<Box<dyn Future<Output = Result<Wire, WireError>> + Send>>;

impl Uplink for LinkUplink {
    fn connect(&self) -> Connecting {
        let (pool, worker) = (Arc::clone(&self.pool), self.worker);
        Box::pin(async move { pool.connect(worker).await })
    }

    fn connect_anew(&self) -> Connecting {
        let (pool, worker) = (Arc::clone(&self.pool), self.worker);
        Box::pin(async move { pool.connect_anew(worker).await })
    }

    fn learnt(&self, ring: Ring) {
        self.pool.learn(ring);
    }

    fn routes(&self) -> Option<(u64, Serves)> {
        let (ring, worker) = (self.pool.ring()?, self.worker);
        let version = ring.version().0;
        Some((version, Arc::new(move |cell| ring.worker_of(CellId(cell)) == Some(worker))))
    }

    fn lost_contact(&self) {
        if let Some(session) = self.session.upgrade() {
            session.ask_around();
        }
    }

    fn trouble(&self, error: &WireError) -> Trouble {
        self.pool.trouble(error)
    }

    fn session_is_over(&self, loss: Loss, refusal: Option<Refusal>) {
        if let Some(session) = self.session.upgrade() {
            session.is_over(loss, refusal);
        }
    }

    fn farewells(&self) -> Option<Arc<Farewells>> {
        Some(self.session.upgrade()?.farewells())
    }
}

/// The TTL that a worker has given. One that is not what was asked for is told: what is built on it
/// may break.
fn granted_ttl(config: &LinkConfig, given: Duration) -> Duration {
    // Milliseconds are asked for.
    if given.as_millis() != config.ttl.as_millis() {
        tracing::warn!(
            asked = ?config.ttl,
            ttl = ?given,
            "the TTL is not the one asked for, but the highest that the node gives in the namespace"
        );
    }
    given
}

/// Says hello on a first connection and learns the ring.
async fn greet(
    pool: &Pool,
    wire: &mut Wire,
    link: &mut Link,
    incarnation: u64,
) -> Result<(Welcome, Ring), Error> {
    link.greet(clock::now(), incarnation);
    let (mut welcome, mut ring) = (None, None);
    let mut parts = RingUnderWay::default();
    loop {
        for outcome in std::mem::take(link.outcomes()) {
            match outcome {
                Outcome::Up(said) => {
                    welcome = Some(said);
                    link.ask_for_ring(clock::now());
                }
                Outcome::Rejected(refusal) => return Err(Error::refused(refusal)),
                Outcome::Ring(part) => {
                    ring = parts
                        .take(*part)
                        .map_err(|error| Error::new(ErrorKind::Config, error.to_string()))?;
                }
                _ => {}
            }
        }
        match (welcome.take(), ring.take()) {
            (Some(welcome), Some(ring)) => return Ok((welcome, ring)),
            (before, _) => welcome = before,
        }
        wire.send(link.outgoing());
        let event = wire.next().await.map_err(|error| Error::of_trouble(pool.trouble(&error)))?;
        if event == WireEvent::Replies {
            let taken = link
                .receive(clock::now(), wire.replies.bytes())
                .map_err(|error| Error::new(ErrorKind::Unreachable, error.to_string()))?;
            wire.replies.consume(taken);
        }
    }
}

impl Session {
    /// Makes a session and its first link, by which the ring is learnt if it is not known yet.
    pub(crate) async fn open(pool: Arc<Pool>, settings: &Builder) -> Result<Self, Error> {
        let runtime = Handle::try_current()
            .map_err(|_| Error::new(ErrorKind::Config, "a client needs a tokio runtime"))?;
        if limits::clamp_ttl(settings.ttl) != settings.ttl {
            let message = format!("a TTL is 1 s to 1 h, not {:?}", settings.ttl);
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let adopted = settings.session.is_some();
        let random = random_session()?;
        let (id, ids) = match settings.session {
            Some(id) => {
                let (random, _) = random.0.split_first_chunk().expect("it has 16 bytes");
                (id, RequestIds::of_heir(u64::from_le_bytes(*random)))
            }
            None => (random, RequestIds::default()),
        };
        let config = LinkConfig {
            session: id,
            ids,
            label: settings.label.clone(),
            ttl: settings.ttl,
            unreachable_after: settings.unreachable_after,
        };
        let reached = pool.connect_seed().await;
        let mut reached = reached.map_err(|error| Error::of_trouble(pool.trouble(&error)))?;
        let mut link = Link::new(config.clone(), clock::now());
        let greeting = greet(&pool, &mut reached.by, &mut link, u64::from(!adopted));
        let greeted = tokio::time::timeout(GREETING_TIMEOUT, greeting)
            .await
            .map_err(|_| Error::new(ErrorKind::Unreachable, "the node does not answer a hello"))?;
        let (welcome, ring) = greeted?;
        pool.learn(ring);
        let worker = WorkerId { node: NodeId(welcome.node), worker: welcome.worker };
        pool.found(worker, &reached);
        let namespace = Namespace::new(&welcome.namespace)
            .map_err(|error| Error::new(ErrorKind::Config, error.to_string()))?;
        let inner = Arc::new(Inner {
            id,
            pool,
            seed: NamespaceSeed::of(namespace.as_str()),
            namespace,
            ttl: granted_ttl(&config, link.ttl()),
            config,
            links: DashMap::default(),
            tickets: AtomicU64::new(0),
            adopted,
            over: OnceLock::new(),
            farewells: Mutex::default(),
            runtime,
        });
        let link = inner.spawn(worker, link, Some(reached.by));
        inner.links.insert(worker, link);
        Ok(Self { inner })
    }

    /// What the session is and has.
    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// Claims a key. Cancel safe: a dropped future leaves the queue, and a grant that raced it is
    /// given back.
    pub(crate) async fn acquire(
        &self,
        key: &[u8],
        wanted: Claim,
        wait: Option<Duration>,
    ) -> Result<Result<Guard, Denial>, Error> {
        let limit = wait.filter(|wait| !wait.is_zero()).map(|wait| clock::now().after(wait));
        let mut denied = None;
        for _ in 0..MOVES_MAX {
            let wait = match limit {
                Some(at) => match at.since(clock::now()) {
                    Duration::ZERO => break,
                    left => Some(left),
                },
                None => wait,
            };
            let claim = |ticket, cell, key, answer| Command::Acquire {
                ticket,
                cell,
                key,
                wanted,
                wait,
                answer,
            };
            match self.inner.claim(key, claim).await? {
                Err(denial) if denial.reason == NotGranted::Moved => denied = Some(denial),
                answer => return Ok(answer),
            }
        }
        let over = Denial { reason: NotGranted::TimedOut(None), trouble: None };
        Ok(Err(denied.unwrap_or(over)))
    }

    /// Takes up the hold of a token of this session, if the node confirms it.
    pub(crate) async fn adopt(&self, token: &Token) -> Result<Guard, Error> {
        let fence = Fence(token.fence);
        for _ in 0..MOVES_MAX {
            let claim =
                |ticket, cell, key, answer| Command::Adopt { ticket, cell, key, fence, answer };
            match self.inner.claim(&token.key, claim).await? {
                Ok(guard) => return Ok(guard),
                Err(denial) if denial.reason == NotGranted::Moved => {}
                Err(denial) => return Err(Error::not_granted(denial)),
            }
        }
        Err(Error::keeps_moving())
    }

    /// Asks a worker, or gives it an order by force.
    pub(crate) async fn query(&self, worker: WorkerId, query: Query) -> Result<Reply, Error> {
        self.inner.query(worker, query).await?.ok_or_else(Error::keeps_moving)
    }

    /// Asks the worker of a key of the session's namespace, or of another.
    pub(crate) async fn query_key(
        &self,
        namespace: &str,
        key: &[u8],
        query: Query,
    ) -> Result<Reply, Error> {
        for _ in 0..MOVES_MAX {
            let worker = self.inner.route_in(namespace, key)?.worker;
            if let Some(reply) = self.inner.query(worker, query.clone()).await? {
                return Ok(reply);
            }
        }
        Err(Error::keeps_moving())
    }

    /// Ends every link. `goodbye`: the session ends at the workers too, with all it holds.
    pub(crate) async fn close(&self, goodbye: bool) {
        let ends = self.inner.close(goodbye);
        let all = async {
            for ended in ends {
                let _link_is_gone_either_way = ended.await;
            }
        };
        let _leases_end_by_themselves = tokio::time::timeout(CLOSE_TIMEOUT, all).await;
    }
}

impl Drop for Session {
    /// Never blocks: the links say goodbye by themselves, or their runtime's end does.
    fn drop(&mut self) {
        self.inner.close(true);
    }
}

impl Inner {
    /// The TTL that the first worker gave.
    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Starts the task of a link.
    fn spawn(
        self: &Arc<Self>,
        worker: WorkerId,
        mut link: Link,
        wire: Option<Wire>,
    ) -> Arc<LinkHandle> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let clock = Clock::BootTime;
        let shared = LinkShared::new(clock.clone(), &link);
        let handle = Arc::new(LinkHandle { commands, shared: Arc::clone(&shared) });
        self.pool.tell(&handle.commands);
        let (pool, session) = (Arc::clone(&self.pool), Arc::downgrade(self));
        let uplink = Arc::new(LinkUplink { pool, session, worker });
        link.is_to(worker.node.0, worker.worker);
        if let Some((version, serves)) = uplink.routes() {
            link.ring_is(clock.now(), version, serves);
        }
        let own = !self.adopted;
        let parts = Parts { uplink, clock, shared, commands: inbox, link, wire, own };
        self.runtime.spawn(Driver::new(parts).run());
        handle
    }

    fn link(self: &Arc<Self>, worker: WorkerId) -> Result<Arc<LinkHandle>, Error> {
        let known = self.links.get(&worker).map(|known| Arc::clone(&known));
        // By the map's entry: two first calls at once must not make two links, as the worker would
        // have the connection of one kill that of the other.
        let link = known.unwrap_or_else(|| {
            let begin = || self.spawn(worker, Link::new(self.config.clone(), clock::now()), None);
            Arc::clone(&self.links.entry(worker).or_insert_with(begin))
        });
        // Read after the link is in the map: either this sees the end, or the closer sees the link.
        if self.over.get().is_some() {
            self.links.remove(&worker);
            return Err(self.why_over());
        }
        Ok(link)
    }

    /// A worker cannot be reached: the first worker of each node may know a ring without it.
    fn ask_around(self: &Arc<Self>) {
        let Some(ring) = self.pool.ring() else { return };
        for node in ring.nodes() {
            // If the session is over there is nobody to ask for.
            let _unless_it_is_over = self.link(WorkerId { node: node.id, worker: 0 });
        }
    }

    fn farewells(&self) -> Arc<Farewells> {
        let mut kept = self.farewells.lock().unwrap_or_else(PoisonError::into_inner);
        kept.upgrade().unwrap_or_else(|| {
            let new = Arc::new(Farewells::default());
            *kept = Arc::downgrade(&new);
            new
        })
    }

    /// The session has ended: whoever holds, waits or asks at any of its links gets to know.
    fn is_over(&self, loss: Loss, refusal: Option<Refusal>) {
        if self.over.set(Over { loss, refusal }).is_err() {
            return;
        }
        for link in self.sorted_links() {
            link.shared.lease().end(loss);
            let _that_one_may_have_ended = link.commands.send(Command::End(loss));
        }
    }

    fn close(&self, goodbye: bool) -> Vec<oneshot::Receiver<()>> {
        let mut ends = Vec::new();
        if self.over.set(Over { loss: Loss::Closed, refusal: None }).is_err() {
            // It has ended before, one way or the other, and everybody was told.
            return ends;
        }
        for link in self.sorted_links() {
            link.shared.lease().end(Loss::Closed);
            let (done, ended) = oneshot::channel();
            if link.commands.send(Command::Close { goodbye, done }).is_ok() {
                ends.push(ended);
            }
        }
        ends
    }

    fn sorted_links(&self) -> Vec<Arc<LinkHandle>> {
        let mut links: Vec<(WorkerId, Arc<LinkHandle>)> =
            self.links.iter().map(|link| (*link.key(), Arc::clone(link.value()))).collect();
        links.sort_unstable_by_key(|&(worker, _)| worker);
        links.into_iter().map(|(_, link)| link).collect()
    }

    /// Why nothing can be asked any more.
    pub(crate) fn why_over(&self) -> Error {
        match self.over.get() {
            Some(Over { refusal: Some(refusal), .. }) => Error::refused(refusal.clone()),
            Some(over) => Error::over(over.loss),
            None => Error::over(Loss::RuntimeEnded),
        }
    }

    /// Where a key of the session's namespace goes.
    pub(crate) fn route(&self, key: &[u8]) -> Result<Route, Error> {
        self.route_in("", key)
    }

    /// Where a key of a namespace goes; of the session's own if it is empty.
    pub(crate) fn route_in(&self, namespace: &str, key: &[u8]) -> Result<Route, Error> {
        if key.is_empty() || key.len() > limits::KEY_BYTES_MAX {
            let message = format!("a key has 1 to 512 bytes, not {}", key.len());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let seed = if namespace.is_empty() { self.seed } else { NamespaceSeed::of(namespace) };
        self.pool.route(seed, key).ok_or_else(|| self.why_over())
    }

    /// Asks for a hold at the worker of a key.
    async fn claim(
        self: &Arc<Self>,
        key: &[u8],
        command: impl FnOnce(u64, u16, Key, oneshot::Sender<Granted>) -> Command,
    ) -> Result<Result<Guard, Denial>, Error> {
        let route = self.route(key)?;
        let link = self.link(route.worker)?;
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let key = Key::new(key);
        let (answer, answered) = oneshot::channel();
        let command = command(ticket, route.cell.0, key.clone(), answer);
        link.commands.send(command).map_err(|_| self.why_over())?;
        let granted = Waiting::new(link, ticket, answered).granted().await;
        let granted = granted.ok_or_else(|| self.why_over())?;
        Ok(granted.map(|hold| Guard::new(hold, key)))
    }

    /// `None`: the worker is not that of the key any more.
    async fn query(
        self: &Arc<Self>,
        worker: WorkerId,
        query: Query,
    ) -> Result<Option<Reply>, Error> {
        let by_force = matches!(query, Query::Force { .. });
        let (answer, answered) = oneshot::channel();
        let command = Command::Query { query, answer };
        self.link(worker)?.commands.send(command).map_err(|_| self.why_over())?;
        match answered.await.map_err(|_| self.why_over())? {
            Answer::Reply(Reply::Refused { refusal, .. }) => Err(Error::refused(*refusal)),
            Answer::Reply(reply) => Ok(Some(reply)),
            Answer::Moved => Ok(None),
            Answer::None(_) if by_force => Err(Error::forced_unanswered()),
            Answer::None(_) if self.over.get().is_some() => Err(self.why_over()),
            Answer::None(trouble) => Err(Error::unanswered(trouble)),
        }
    }
}

fn random_session() -> Result<SessionId, Error> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|error| Error::new(ErrorKind::Config, format!("no randomness: {error}")))?;
    Ok(SessionId(id))
}
