//! The task that owns a link: it connects and reconnects, feeds the link bytes, commands and the
//! time, and delivers outcomes to whoever waits for them.

mod commands;
mod ending;
mod outcomes;

pub(crate) use ending::Farewells;

use crate::cause::Trouble;
use crate::clock::{Alarm, Clock};
use crate::hold::{HoldState, Lease};
use crate::link::{ClaimRef, IdHasher, Key, Link, Loss, NotGranted, Outcome, Query, Serves};
use crate::router::{Ring, RingUnderWay};
use crate::wire::{Wire, WireError, WireEvent};
use ending::Closing;
use hashbrown::HashMap;
use lockring_proto::{Claim, Fence, Refusal, Reply, Time};
use std::future::{Future, poll_fn};
use std::hash::BuildHasherDefault;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// First pause before another try to connect; doubled each time.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Commands taken in one turn before the wire is served again.
const COMMANDS_PER_TURN: usize = 1024;

/// So many commands leave at once; fewer wait for those of other tasks that are ready now.
const FEW_COMMANDS: usize = 8;

/// After so many tries in a row the worker may be gone for good: another one is asked.
const TRIES_ALONE: u32 = 3;

/// A claim that was granted.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    pub(crate) claim: ClaimRef,
    pub(crate) hold: Arc<HoldState>,
}

/// Why a claim was not granted, and what kept contact from standing meanwhile.
#[derive(Clone, Debug)]
pub(crate) struct Denial {
    pub(crate) reason: NotGranted,
    pub(crate) trouble: Option<Trouble>,
}

pub(crate) type Granted = Result<Grant, Denial>;

/// How a release ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Released {
    Yes,
    NotHeld {
        maybe_released: bool,
    },
    /// No answer; the node may take the hold for held so long.
    Unconfirmed {
        held_for: Duration,
    },
}

/// What came of a query.
pub(crate) enum Answer {
    Reply(Reply),
    /// The key is another worker's.
    Moved,
    /// None came; with what kept contact from standing.
    None(Option<Trouble>),
}

/// What handles ask of a link's task.
pub(crate) enum Command {
    Acquire {
        ticket: u64,
        cell: u16,
        key: Key,
        wanted: Claim,
        wait: Option<Duration>,
        answer: oneshot::Sender<Granted>,
    },
    /// Take up a hold left by an earlier process of the session.
    Adopt {
        ticket: u64,
        cell: u16,
        key: Key,
        fence: Fence,
        answer: oneshot::Sender<Granted>,
    },
    /// The caller of an acquire is gone.
    Abandon {
        ticket: u64,
    },
    Release {
        claim: ClaimRef,
        answer: Option<oneshot::Sender<Released>>,
    },
    Query {
        query: Query,
        answer: oneshot::Sender<Answer>,
    },
    /// A newer ring is known.
    NewRing,
    /// The session was ended elsewhere.
    End(Loss),
    /// End: what was asked before is sent before. `goodbye`: the session ends at the worker too,
    /// with all it holds.
    Close {
        goodbye: bool,
        done: oneshot::Sender<()>,
    },
}

/// What a link's task tells whoever has a handle, without a message.
#[derive(Debug)]
pub(crate) struct LinkShared {
    lease: RwLock<Arc<Lease>>,
    /// The real TTL in milliseconds; 0 until the first welcome.
    ttl_ms: AtomicU64,
}

impl LinkShared {
    /// Of a link that stands or not.
    pub(crate) fn new(clock: Clock, link: &Link) -> Arc<Self> {
        let lease = Lease::new(clock, link.valid_until());
        Arc::new(Self { lease: RwLock::new(lease), ttl_ms: AtomicU64::new(0) })
    }

    /// The lease that counts now.
    pub(crate) fn lease(&self) -> Arc<Lease> {
        // The lock guards a pointer alone: a panic cannot have left it half changed.
        Arc::clone(&self.lease.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn begin(&self, lease: Arc<Lease>) {
        *self.lease.write().unwrap_or_else(PoisonError::into_inner) = lease;
    }

    /// The real TTL; zero until it is known.
    pub(crate) fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl_ms.load(Ordering::Relaxed))
    }
}

/// The way to a link's task.
#[derive(Debug)]
pub(crate) struct LinkHandle {
    pub(crate) commands: mpsc::UnboundedSender<Command>,
    pub(crate) shared: Arc<LinkShared>,
}

/// How a link's task reaches its worker, and who learns of what it hears.
pub(crate) trait Uplink: Send + Sync + 'static {
    /// Connects to the worker.
    fn connect(&self) -> Pin<Box<dyn Future<Output = Result<Wire, WireError>> + Send>>;
    /// The same on an endpoint of its own, for a runtime that is not the client's.
    fn connect_anew(&self) -> Pin<Box<dyn Future<Output = Result<Wire, WireError>> + Send>>;
    /// A newer ring was learnt.
    fn learnt(&self, ring: Ring);
    /// The newest ring: its version, and which cells are this worker's by it.
    fn routes(&self) -> Option<(u64, Serves)>;
    /// What is the matter when a connection fails or ends.
    fn trouble(&self, error: &WireError) -> Trouble;
    /// The worker cannot be reached: others may know why.
    fn lost_contact(&self);
    /// The session has ended, at every worker.
    fn session_is_over(&self, loss: Loss, refusal: Option<Refusal>);
    /// Where the last words of a session are said when its runtime ends.
    fn farewells(&self) -> Option<Arc<Farewells>>;
}

enum Caller {
    Acquire(oneshot::Sender<Granted>, ClaimRef),
    Release(oneshot::Sender<Released>),
    /// `true`: what it asks for may be carried out without an answer.
    Query(oneshot::Sender<Answer>, bool),
    Goodbye,
}

/// Tokens of callers that are not tickets have this bit.
const INTERNAL: u64 = 1 << 63;

type Connecting = Pin<Box<dyn Future<Output = Result<Wire, WireError>> + Send>>;

pub(crate) struct Driver<U: Uplink> {
    uplink: Arc<U>,
    clock: Clock,
    shared: Arc<LinkShared>,
    /// The lease of what is held now.
    lease: Arc<Lease>,
    /// Who may be told the last words of the session if this task is dropped.
    farewells: Option<Arc<Farewells>>,
    commands: mpsc::UnboundedReceiver<Command>,
    link: Link,
    wire: Option<Wire>,
    incarnation: u64,
    /// The session was made here, so its incarnations are numbered here.
    own: bool,
    callers: HashMap<u64, Caller, BuildHasherDefault<IdHasher>>,
    /// What guards know of their holds, by the slot of the claim.
    holds: Vec<Option<Arc<HoldState>>>,
    /// Taken from the queue, to be carried out.
    inbox: Vec<Command>,
    /// The commands have been left to gather once.
    stepped_back: bool,
    /// Being handed out.
    outcomes: Vec<Outcome>,
    next_internal: u64,
    ring: RingUnderWay,
    backoff: Duration,
    jitter: u64,
    /// Tries to connect in a row that failed.
    failures: u32,
    /// What keeps contact from standing.
    trouble: Option<Trouble>,
    /// The worker takes no session now; the last it said.
    turned_away: Option<Refusal>,
    closing: Option<Closing>,
    /// The session is over, or the task has done its work.
    over: bool,
}

/// What a task of a link is woken for.
#[derive(Default)]
struct Woken {
    wire: Option<Result<WireEvent, WireError>>,
    /// Every handle is gone: nobody can hold or ask for anything.
    deserted: bool,
    connected: Option<Result<Wire, WireError>>,
    /// The alarm has rung.
    rung: bool,
}

impl Woken {
    fn is_idle(&self) -> bool {
        !(self.wire.is_some() || self.deserted || self.connected.is_some() || self.rung)
    }
}

fn ready<T>(poll: Poll<T>) -> Option<T> {
    match poll {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// What a link's task is made of.
pub(crate) struct Parts<U> {
    pub(crate) uplink: Arc<U>,
    pub(crate) clock: Clock,
    pub(crate) shared: Arc<LinkShared>,
    pub(crate) commands: mpsc::UnboundedReceiver<Command>,
    pub(crate) link: Link,
    pub(crate) wire: Option<Wire>,
    pub(crate) own: bool,
}

impl<U: Uplink> Driver<U> {
    pub(crate) fn new(parts: Parts<U>) -> Self {
        let Parts { uplink, clock, shared, commands, link, wire, own } = parts;
        Self {
            lease: shared.lease(),
            farewells: uplink.farewells(),
            uplink,
            shared,
            commands,
            link,
            wire,
            incarnation: 0,
            own,
            callers: HashMap::default(),
            holds: Vec::new(),
            inbox: Vec::new(),
            stepped_back: false,
            outcomes: Vec::new(),
            next_internal: INTERNAL,
            ring: RingUnderWay::default(),
            backoff: Duration::ZERO,
            jitter: clock.now().0 | 1,
            failures: 0,
            trouble: None,
            turned_away: None,
            closing: None,
            over: false,
            clock,
        }
    }

    /// Runs until the session is closed and nobody is left to serve.
    pub(crate) async fn run(mut self) {
        let mut connecting: Option<Connecting> = None;
        let mut alarm = Alarm::new(self.clock.clone());
        self.deliver(self.clock.now());
        loop {
            self.publish();
            if self.over || self.is_closed(self.clock.now()) {
                self.over = true;
                if let Some(wire) = &self.wire {
                    wire.close();
                }
                return;
            }
            if self.wire.is_none() && connecting.is_none() {
                connecting = Some(self.connect_later());
            }
            if let Some(wire) = &mut self.wire {
                wire.send(self.link.outgoing());
            }
            alarm.ring_at(self.next_deadline());
            let woken = poll_fn(|cx| self.poll(cx, &mut connecting, &mut alarm)).await;
            self.turn(woken);
        }
    }

    fn next_deadline(&self) -> Time {
        let link = self.link.next_deadline().unwrap_or(Time::NEVER);
        self.closing.as_ref().map_or(link, |closing| link.min(closing.until))
    }

    /// Ready with everything that has happened: one turn serves all of it.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        connecting: &mut Option<Connecting>,
        alarm: &mut Alarm,
    ) -> Poll<Woken> {
        let mut woken = Woken::default();
        if let Some(wire) = &mut self.wire {
            woken.wire = ready(wire.poll_next(cx));
        }
        if self.closing.is_none() {
            let taken = self.commands.poll_recv_many(cx, &mut self.inbox, COMMANDS_PER_TURN);
            woken.deserted = taken == Poll::Ready(0) && self.inbox.is_empty();
        }
        if let Some(under_way) = connecting {
            woken.connected = ready(under_way.as_mut().poll(cx));
            if woken.connected.is_some() {
                *connecting = None;
            }
        }
        woken.rung = alarm.poll_rung(cx).is_ready();
        if !woken.is_idle() {
            self.stepped_back = false;
            return Poll::Ready(woken);
        }
        if !self.inbox.is_empty() {
            if self.inbox.len() >= FEW_COMMANDS || self.stepped_back {
                self.stepped_back = false;
                return Poll::Ready(woken);
            }
            // Runtimes with threads run whoever was woken last first, so a first command would
            // leave alone: one step back, and the commands of all who are ready now share a packet.
            self.stepped_back = true;
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Takes in what happened.
    fn turn(&mut self, woken: Woken) {
        // One reading for all: a request counts its lease from here, before it is sent.
        let now = self.clock.now();
        match woken.wire {
            Some(Ok(event)) => self.wire_event(now, event),
            Some(Err(error)) => self.wire_ended(now, &error),
            None => {}
        }
        self.carry_out(now);
        if woken.deserted {
            self.close(now, true, oneshot::channel().0);
        }
        match woken.connected {
            Some(Ok(wire)) => self.connected(now, wire),
            Some(Err(error)) => self.failed(&error),
            None => {}
        }
        // Whatever woke it: the timers of the runtime stand still with the machine, this clock not.
        if woken.rung || self.link.next_deadline().is_some_and(|at| at <= now) {
            self.link.tick(now);
        }
        self.check_silence(now);
        self.deliver(now);
    }

    fn publish(&self) {
        self.lease.is_valid_until(self.link.valid_until());
        if self.link.is_up() {
            let (ttl, before) = (self.link.ttl(), self.shared.ttl());
            if ttl != before && !before.is_zero() {
                tracing::warn!(?before, ?ttl, "the node gives another TTL than before");
            }
            self.shared.ttl_ms.store(ttl.as_millis() as u64, Ordering::Relaxed);
        }
    }

    /// Connects after the pause that is due: none after a connection that stood.
    fn connect_later(&mut self) -> Connecting {
        let uplink = Arc::clone(&self.uplink);
        // Half fixed, half at random, so that the clients of a restarted node do not come at once.
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        let micros = self.backoff.as_micros() as u64;
        let pause = Duration::from_micros(micros / 2 + self.jitter % (micros / 2 + 1));
        self.backoff = (self.backoff * 2).clamp(BACKOFF_MIN, BACKOFF_MAX);
        Box::pin(async move {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            uplink.connect().await
        })
    }

    fn connected(&mut self, now: Time, wire: Wire) {
        self.wire = Some(wire);
        self.incarnation = self.incarnation.max(self.link.incarnation()).saturating_add(1);
        // A session taken up from elsewhere does not know its last incarnation at a new worker.
        let known = self.own || self.link.incarnation() > 0;
        let incarnation = if known { self.incarnation } else { 0 };
        self.link.greet(now, incarnation);
    }

    fn failed(&mut self, error: &WireError) {
        tracing::debug!(%error, "cannot connect");
        self.trouble = Some(self.uplink.trouble(error));
        self.failures += 1;
        if self.failures == TRIES_ALONE {
            self.uplink.lost_contact();
        }
    }

    fn wire_event(&mut self, now: Time, event: WireEvent) {
        let Some(wire) = &mut self.wire else { return };
        let taken = match event {
            WireEvent::Written => return,
            WireEvent::Replies => {
                let taken = self.link.receive(now, wire.replies.bytes());
                taken.map(|count| wire.replies.consume(count))
            }
            WireEvent::Pushes => {
                let taken = self.link.receive_pushes(now, wire.pushes.bytes());
                taken.map(|count| wire.pushes.consume(count))
            }
        };
        if let Err(error) = taken {
            tracing::warn!(%error, "the connection is given up");
            wire.close();
            self.wire_ended(now, &WireError::Ended(error.to_string()));
        }
    }

    fn wire_ended(&mut self, now: Time, error: &WireError) {
        tracing::debug!(%error, "connection ended");
        self.trouble = Some(self.uplink.trouble(error));
        self.wire = None;
        if matches!(error, WireError::Superseded) {
            return self.session_ends(now, Loss::Superseded, None);
        }
        self.link.down(now);
        // What the connection died of may have taken longer than the lease.
        self.link.tick(now);
    }

    /// A connection on which a hello or renewals stay unanswered is not worth waiting for.
    fn check_silence(&mut self, now: Time) {
        if self.link.is_silent(now)
            && let Some(wire) = self.wire.take()
        {
            let silent = "the node does not answer on a connection that stands";
            self.trouble = Some(Trouble::passing(silent));
            wire.close();
            self.link.down(now);
        }
    }

    fn internal(&mut self, caller: Caller) -> u64 {
        self.next_internal += 1;
        self.callers.insert(self.next_internal, caller);
        self.next_internal
    }
}
