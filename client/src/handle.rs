//! The way to a session: how it is opened, and how clients claim, ask and end by its task.

use crate::claims::Key;
use crate::driver::{Answer, Commands, Driver, Granted, SessionCommand};
use crate::error::{Denial, Error};
use crate::fate::{Fate, Over};
use crate::guard::{Guard, Waiting};
use crate::kind::ErrorKind;
use crate::pool::Pool;
use crate::router::{Route, WorkerId};
use crate::session::{
    LinkId, Loss, NotGranted, Outcome, Query, RequestIds, Session, SessionConfig,
};
use crate::settings::Settings;
use crate::token::Token;
use crate::wire::{Wire, WireEvent};
use lockring_proto::{Claim, Fence, Namespace, Reply, SessionId, Welcome, clock, limits};
use lockring_ring::{NamespaceSeed, NodeId};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

/// A connection that stands must lead to a ring within this: some round trips of a slow path.
const GREETING_TIMEOUT: Duration = Duration::from_secs(15);

/// How long closing waits for the nodes' word.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// One session. Whoever drops the last handle of it ends it.
pub(crate) struct SessionHandle {
    pub(crate) id: SessionId,
    pub(crate) pool: Arc<Pool>,
    pub(crate) namespace: Namespace,
    seed: NamespaceSeed,
    /// The TTL that the first worker gave.
    pub(crate) ttl: Duration,
    tickets: AtomicU64,
    commands: Commands,
    fate: Arc<Fate>,
}

/// The TTL that a worker has given. One that is not what was asked for is told: what is built on it
/// may break.
fn granted_ttl(settings: &Settings, given: Duration) -> Duration {
    // Milliseconds are asked for.
    if given.as_millis() != settings.ttl.as_millis() {
        tracing::warn!(
            asked = ?settings.ttl,
            ttl = ?given,
            "the TTL is not the one asked for, but the highest that the node gives in the namespace"
        );
    }
    given
}

/// Says hello on a first connection and learns the ring.
async fn greet(pool: &Pool, wire: &mut Wire, session: &mut Session) -> Result<Welcome, Error> {
    let at = LinkId::FIRST;
    session.connected(clock::now(), at);
    let mut welcome = None;
    loop {
        for outcome in std::mem::take(session.outcomes()) {
            match outcome {
                Outcome::Up { welcome: said, .. } => welcome = Some(said),
                Outcome::TurnedAway { refusal, .. }
                | Outcome::Ended { refusal: Some(refusal), .. } => {
                    return Err(Error::refused(refusal));
                }
                Outcome::BadRing(error) => {
                    return Err(Error::new(ErrorKind::Config, error.to_string()));
                }
                Outcome::Ring(ring) => pool.learn(ring),
                _ => {}
            }
        }
        if session.ring().is_some()
            && let Some(welcome) = welcome.take()
        {
            return Ok(welcome);
        }
        wire.send(session.outgoing(at));
        let event = wire.next().await.map_err(|error| Error::of_trouble(pool.trouble(&error)))?;
        if event == WireEvent::Replies {
            let taken = session
                .receive(clock::now(), at, wire.replies.bytes())
                .map_err(|error| Error::new(ErrorKind::Unreachable, error.to_string()))?;
            wire.replies.consume(taken);
        }
    }
}

fn random() -> Result<[u8; 16], Error> {
    let mut random = [0; 16];
    getrandom::fill(&mut random)
        .map_err(|error| Error::new(ErrorKind::Config, format!("no randomness: {error}")))?;
    Ok(random)
}

/// What a session is made with, and a random number for it.
fn config(settings: &Settings) -> Result<(SessionConfig, u64), Error> {
    let (id, die) = (random()?, random()?);
    let (die, _) = die.split_first_chunk().expect("it has 16 bytes");
    let die = u64::from_le_bytes(*die);
    let (session, ids) = match settings.session {
        Some(known) => (known, RequestIds::of_successor(die)),
        None => (SessionId(id), RequestIds::default()),
    };
    let config = SessionConfig {
        session,
        ids,
        taken_up: settings.session.is_some(),
        label: settings.label.clone(),
        ttl: settings.ttl,
        unreachable_after: settings.unreachable_after,
    };
    Ok((config, die))
}

impl SessionHandle {
    /// Makes a session and its first link, by which the ring is learnt.
    pub(crate) async fn open(pool: Arc<Pool>, settings: &Settings) -> Result<Self, Error> {
        let runtime = Handle::try_current()
            .map_err(|_| Error::new(ErrorKind::Config, "a client needs a tokio runtime"))?;
        if limits::clamp_ttl(settings.ttl) != settings.ttl {
            let message = format!("a TTL is 1 s to 1 h, not {:?}", settings.ttl);
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let (config, die) = config(settings)?;
        let id = config.session;
        let now = clock::now();
        let mut session = Session::new(config, now, die);
        // Its first link is dialled here, by the seeds.
        let _first = session.next_dial(now);
        let reached = pool.connect_seed().await;
        let mut reached = reached.map_err(|error| Error::of_trouble(pool.trouble(&error)))?;
        let greeting = greet(&pool, &mut reached.by, &mut session);
        let greeted = tokio::time::timeout(GREETING_TIMEOUT, greeting)
            .await
            .map_err(|_| Error::new(ErrorKind::Unreachable, "the node does not answer a hello"))?;
        let welcome = greeted?;
        pool.found(WorkerId { node: NodeId(welcome.node), worker: welcome.worker }, &reached);
        let namespace = Namespace::new(&welcome.namespace)
            .map_err(|error| Error::new(ErrorKind::Config, error.to_string()))?;
        let ttl = granted_ttl(settings, session.ttl(LinkId::FIRST));
        let (commands, inbox) = mpsc::unbounded_channel();
        let commands = Commands::new(commands);
        pool.tell(commands.listener());
        if let Some(ring) = pool.ring() {
            session.ring_is(clock::now(), ring);
        }
        let fate = Arc::new(Fate::default());
        let wire = Some(reached.by);
        let driver = Driver::new(Arc::clone(&pool), Arc::clone(&fate), inbox, session, wire);
        runtime.spawn(driver.run());
        Ok(Self {
            id,
            pool,
            seed: NamespaceSeed::of(namespace.as_str()),
            namespace,
            ttl,
            tickets: AtomicU64::new(0),
            commands,
            fate,
        })
    }

    /// Claims a key. Cancel safe: a dropped future leaves the queue, and a grant that raced it is
    /// given back.
    pub(crate) async fn acquire(
        &self,
        key: &[u8],
        wanted: Claim,
        wait: Option<Duration>,
    ) -> Result<Result<Guard, Denial>, Error> {
        self.claim(key, |ticket, key, answer| SessionCommand::Acquire {
            ticket,
            key,
            wanted,
            wait,
            answer,
        })
        .await
    }

    /// Claims a key, and waits for it this long.
    pub(crate) async fn lock(
        &self,
        key: &[u8],
        wanted: Claim,
        wait: Option<Duration>,
    ) -> Result<Guard, Error> {
        self.acquire(key, wanted, wait).await?.map_err(Error::not_granted)
    }

    /// Claims a key if it is free now.
    pub(crate) async fn try_lock(&self, key: &[u8], wanted: Claim) -> Result<Option<Guard>, Error> {
        match self.acquire(key, wanted, Some(Duration::ZERO)).await? {
            Ok(guard) => Ok(Some(guard)),
            Err(Denial { reason: NotGranted::Busy(_), .. }) => Ok(None),
            Err(denial) => Err(Error::not_granted(denial)),
        }
    }

    /// Takes up the hold of a token of this session, if the node confirms it.
    pub(crate) async fn adopt(&self, token: &Token) -> Result<Guard, Error> {
        let fence = Fence(token.fence);
        let claim = |ticket, key, answer| SessionCommand::Adopt { ticket, key, fence, answer };
        self.claim(&token.key, claim).await?.map_err(Error::not_granted)
    }

    /// Asks a worker.
    pub(crate) async fn query(&self, worker: WorkerId, query: Query) -> Result<Reply, Error> {
        self.ask(Some(worker), query).await
    }

    /// Asks the worker of a key, or gives it an order by force.
    pub(crate) async fn query_key(&self, key: &[u8], query: Query) -> Result<Reply, Error> {
        check(key)?;
        self.ask(None, query).await
    }

    /// Ends the session here. `goodbye`: at the workers too, with all it holds.
    pub(crate) async fn close(&self, goodbye: bool) {
        if let Some(ended) = self.begin_to_close(goodbye) {
            let _leases_end_by_themselves = tokio::time::timeout(CLOSE_TIMEOUT, ended).await;
        }
    }

    fn begin_to_close(&self, goodbye: bool) -> Option<oneshot::Receiver<()>> {
        if !self.fate.ends(Over { loss: Loss::Closed, refusal: None }) {
            return None;
        }
        let (done, ended) = oneshot::channel();
        self.commands.send(SessionCommand::Close { goodbye, done }).ok()?;
        Some(ended)
    }

    /// Why nothing can be asked any more.
    pub(crate) fn why_over(&self) -> Error {
        match self.fate.over() {
            Some(Over { refusal: Some(refusal), .. }) => Error::refused(refusal.clone()),
            Some(over) => Error::over(over.loss),
            None => Error::over(Loss::RuntimeEnded),
        }
    }

    /// Where a key of a namespace goes; of the session's own if it is empty.
    pub(crate) fn route_in(&self, namespace: &str, key: &[u8]) -> Result<Route, Error> {
        check(key)?;
        let seed = if namespace.is_empty() { self.seed } else { NamespaceSeed::of(namespace) };
        self.pool.route(seed, key).ok_or_else(|| self.why_over())
    }

    /// Asks for a hold.
    async fn claim(
        &self,
        key: &[u8],
        command: impl FnOnce(u64, Key, oneshot::Sender<Granted>) -> SessionCommand,
    ) -> Result<Result<Guard, Denial>, Error> {
        check(key)?;
        let key = Key::new(key);
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.send(command(ticket, key.clone(), answer))?;
        let waiting = Waiting::new(self.commands.clone(), ticket, answered);
        let granted = waiting.granted().await.ok_or_else(|| self.why_over())?;
        Ok(granted.map(|hold| Guard::new(hold, key)))
    }

    async fn ask(&self, at: Option<WorkerId>, query: Query) -> Result<Reply, Error> {
        let by_force = matches!(query, Query::Force { .. });
        let (answer, answered) = oneshot::channel();
        self.send(SessionCommand::Query { query, at, answer })?;
        match answered.await.map_err(|_| self.why_over())? {
            Answer::Reply(Reply::Refused { refusal, .. }) => Err(Error::refused(*refusal)),
            Answer::Reply(reply) => Ok(reply),
            Answer::Moved => Err(Error::keeps_moving()),
            Answer::None(_) if by_force => Err(Error::forced_unanswered()),
            Answer::None(_) if self.fate.over().is_some() => Err(self.why_over()),
            Answer::None(trouble) => Err(Error::unanswered(trouble)),
        }
    }

    /// Asks the session's task, unless it is over.
    fn send(&self, command: SessionCommand) -> Result<(), Error> {
        if self.fate.over().is_some() {
            return Err(self.why_over());
        }
        self.commands.send(command).map_err(|_| self.why_over())
    }
}

fn check(key: &[u8]) -> Result<(), Error> {
    if key.is_empty() || key.len() > limits::KEY_BYTES_MAX {
        let message = format!("a key has 1 to 512 bytes, not {}", key.len());
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    Ok(())
}

impl Drop for SessionHandle {
    /// Never blocks: the task says goodbye by itself, or its runtime's end does.
    fn drop(&mut self) {
        let _nobody_waits = self.begin_to_close(true);
    }
}
