//! The task that owns a link: it connects and reconnects, feeds the link bytes, commands and the
//! time, and delivers outcomes to whoever waits for them.

use crate::guard::Hold;
use crate::link::{Ask, ClaimRef, IdHasher, Key, Link, NotGranted, Outcome, Query};
use crate::router::{Ring, RingError};
use crate::timer::Timer;
use crate::wire::{Wire, WireError, WireEvent};
use hashbrown::HashMap;
use lockring_proto::{Claim, Fence, Refusal, RefusalKind, Reply, RingChunk, Time, clock};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::hash::BuildHasherDefault;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// First pause before another try to connect; doubled each time.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Commands taken in one turn before the wire is served again.
const COMMANDS_PER_TURN: usize = 1024;

/// A claim that was granted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grant {
    pub(crate) claim: ClaimRef,
    pub(crate) fence: Fence,
}

/// So many commands leave at once; fewer wait for those of other tasks that are ready now.
const FEW_COMMANDS: usize = 8;

/// How a release ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Released {
    Yes,
    NotHeld { maybe_released: bool },
}

/// What handles ask of a link's task.
pub(crate) enum Command {
    Acquire {
        ticket: u64,
        cell: u16,
        key: Key,
        wanted: Claim,
        wait: Option<Duration>,
        answer: oneshot::Sender<Result<Grant, NotGranted>>,
    },
    /// The caller of an acquire is gone.
    Abandon {
        ticket: u64,
    },
    Release {
        claim: ClaimRef,
        answer: Option<oneshot::Sender<Released>>,
    },
    /// Cancel the token when the hold is lost, or at once if it is not held any more.
    Watch {
        claim: ClaimRef,
        token: CancellationToken,
    },
    Query {
        query: Query,
        answer: oneshot::Sender<Option<Reply>>,
    },
    /// Take up a hold left by an earlier process of the session.
    Adopt(Adopting),
    /// End: give up the session at this worker, then say so.
    Close {
        goodbye: bool,
        done: oneshot::Sender<()>,
    },
}

/// A hold to take up.
pub(crate) struct Adopting {
    pub(crate) cell: u16,
    pub(crate) key: Key,
    pub(crate) fence: Fence,
    pub(crate) answer: oneshot::Sender<Result<Hold, NotGranted>>,
}

/// What handles of a link share with its task.
#[derive(Debug)]
pub(crate) struct LinkHandle {
    pub(crate) commands: mpsc::UnboundedSender<Command>,
    /// [`Link::valid_until`], for checks without a message.
    pub(crate) valid_until: AtomicU64,
    /// The real TTL in milliseconds; 0 until the first welcome.
    pub(crate) ttl_ms: AtomicU64,
}

/// How a link's task reaches its worker, and who learns of a newer ring.
pub(crate) trait Uplink: Send + Sync + 'static {
    /// Connects to the worker.
    fn connect(&self) -> Pin<Box<dyn Future<Output = Result<Wire, WireError>> + Send>>;
    /// A newer ring was learnt.
    fn learnt(&self, ring: Ring);
}

enum Caller {
    Acquire(oneshot::Sender<Result<Grant, NotGranted>>, ClaimRef),
    Release(oneshot::Sender<Released>),
    /// `true`: what it asks for may be carried out without an answer.
    Query(oneshot::Sender<Option<Reply>>, bool),
    Goodbye(oneshot::Sender<()>),
}

/// Tokens of callers that are not tickets have this bit.
const INTERNAL: u64 = 1 << 63;

pub(crate) struct Driver<U> {
    uplink: Arc<U>,
    /// Weak: the task ends when nobody is left to command it.
    handle: Weak<LinkHandle>,
    commands: mpsc::UnboundedReceiver<Command>,
    link: Link,
    wire: Option<Wire>,
    incarnation: u64,
    /// The session was made here, so its incarnations are numbered here.
    own: bool,
    /// Holds to take up once a connection stands.
    adopting: Vec<Adopting>,
    callers: HashMap<u64, Caller, BuildHasherDefault<IdHasher>>,
    watches: BTreeMap<ClaimRef, Vec<CancellationToken>>,
    /// Taken from the queue, to be carried out.
    inbox: Vec<Command>,
    /// The commands have been left to gather once.
    stepped_back: bool,
    /// Being handed out.
    outcomes: Vec<Outcome>,
    next_internal: u64,
    parts: Vec<RingChunk>,
    backoff: Duration,
    jitter: u64,
    rejected: Option<Refusal>,
    closing: bool,
}

type Connecting = Pin<Box<dyn Future<Output = Result<Wire, WireError>> + Send>>;

/// What a task of a link is woken for.
#[derive(Default)]
struct Woken {
    wire: Option<Result<WireEvent, WireError>>,
    /// Every handle is gone: nobody can hold or ask for anything.
    deserted: bool,
    connected: Option<Result<Wire, WireError>>,
    /// The timer has rung.
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

impl<U: Uplink> Driver<U> {
    pub(crate) fn new(
        uplink: Arc<U>,
        handle: Weak<LinkHandle>,
        commands: mpsc::UnboundedReceiver<Command>,
        link: Link,
        wire: Option<Wire>,
        own: bool,
    ) -> Self {
        Self {
            uplink,
            handle,
            commands,
            link,
            wire,
            incarnation: 0,
            own,
            adopting: Vec::new(),
            callers: HashMap::default(),
            watches: BTreeMap::new(),
            inbox: Vec::new(),
            stepped_back: false,
            outcomes: Vec::new(),
            next_internal: INTERNAL,
            parts: Vec::new(),
            backoff: Duration::ZERO,
            jitter: clock::now().0 | 1,
            rejected: None,
            closing: false,
        }
    }

    /// Runs until the session is closed and nobody is left to serve.
    pub(crate) async fn run(mut self) {
        let mut connecting: Option<Connecting> = None;
        let mut timer = Timer::new();
        self.deliver(clock::now());
        loop {
            self.publish();
            if self.closing && (self.callers.is_empty() || !self.link.is_up()) {
                if let Some(wire) = &self.wire {
                    wire.close();
                }
                return;
            }
            if self.wire.is_none() && connecting.is_none() && self.rejected.is_none() {
                connecting = Some(self.connect_later());
            }
            if let Some(wire) = &mut self.wire {
                wire.send(self.link.outgoing());
            }
            timer.ring_at(self.link.next_deadline().unwrap_or(Time::NEVER));
            let woken = poll_fn(|cx| self.poll(cx, &mut connecting, &mut timer)).await;
            self.turn(woken);
        }
    }

    /// Ready with everything that has happened: one turn serves all of it.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        connecting: &mut Option<Connecting>,
        timer: &mut Timer,
    ) -> Poll<Woken> {
        let mut woken = Woken::default();
        if let Some(wire) = &mut self.wire {
            woken.wire = ready(wire.poll_next(cx));
        }
        if !self.closing {
            let taken = self.commands.poll_recv_many(cx, &mut self.inbox, COMMANDS_PER_TURN);
            woken.deserted = taken == Poll::Ready(0) && self.inbox.is_empty();
        }
        if let Some(under_way) = connecting {
            woken.connected = ready(under_way.as_mut().poll(cx));
            if woken.connected.is_some() {
                *connecting = None;
            }
        }
        woken.rung = timer.poll_rung(cx).is_ready();
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
        let now = clock::now();
        match woken.wire {
            Some(Ok(event)) => self.wire_event(now, event),
            Some(Err(error)) => self.wire_ended(&error),
            None => {}
        }
        let mut commands = std::mem::take(&mut self.inbox);
        for command in commands.drain(..) {
            self.command(now, command);
        }
        self.inbox = commands;
        if woken.deserted {
            self.close(now, true, oneshot::channel().0);
        }
        match woken.connected {
            Some(Ok(wire)) => self.connected(now, wire),
            Some(Err(error)) => tracing::debug!(%error, "cannot connect"),
            None => {}
        }
        if woken.rung {
            self.link.tick(now);
        }
        self.check_silence(now);
        self.deliver(now);
    }

    fn publish(&self) {
        // Relaxed: a reader only compares it with the clock, and reads again later.
        let Some(handle) = self.handle.upgrade() else { return };
        handle.valid_until.store(self.link.valid_until().0, Ordering::Relaxed);
        if self.link.is_up() {
            handle.ttl_ms.store(self.link.ttl().as_millis() as u64, Ordering::Relaxed);
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
        self.incarnation = self.incarnation.max(self.link.incarnation()) + 1;
        // A session taken up from elsewhere does not know its last incarnation at a new worker.
        let known = self.own || self.link.incarnation() > 0;
        let incarnation = if known { self.incarnation } else { 0 };
        self.link.greet(now, incarnation);
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
            tracing::warn!(%error, "the node sent what is not of this wire");
            wire.close();
            self.wire_ended(&WireError::Ended(error.to_string()));
        }
    }

    fn wire_ended(&mut self, error: &WireError) {
        tracing::debug!(%error, "connection ended");
        self.wire = None;
        self.link.down();
    }

    /// A connection on which renewals stay unanswered is not worth waiting for.
    fn check_silence(&mut self, now: Time) {
        if self.link.is_silent(now)
            && let Some(wire) = self.wire.take()
        {
            wire.close();
            self.link.down();
        }
    }

    fn command(&mut self, now: Time, command: Command) {
        match command {
            Command::Acquire { ticket, cell, key, wanted, wait, answer } => {
                if let Some(refusal) = &self.rejected {
                    let _caller_may_be_gone =
                        answer.send(Err(NotGranted::Refused(refusal.clone())));
                    return;
                }
                let ask = Ask { token: ticket, cell, key: key.bytes(), wanted, wait };
                let claim = self.link.acquire(now, &ask);
                self.callers.insert(ticket, Caller::Acquire(answer, claim));
            }
            Command::Abandon { ticket } => {
                if let Some(Caller::Acquire(_, claim)) = self.callers.remove(&ticket) {
                    self.link.cancel(now, claim);
                }
            }
            Command::Release { claim, answer } => self.release(now, claim, answer),
            Command::Watch { claim, token } => {
                if self.link.is_held(claim) {
                    self.watches.entry(claim).or_default().push(token);
                } else {
                    token.cancel();
                }
            }
            Command::Query { query, answer } => {
                if let Some(refusal) = &self.rejected {
                    let _caller_may_be_gone = answer.send(Some(refused(refusal)));
                    return;
                }
                let unsure = matches!(query, Query::Force(_));
                let token = self.internal(Caller::Query(answer, unsure));
                self.link.query(now, token, query);
            }
            Command::Adopt(adopting) if self.link.is_up() => self.adopt(adopting),
            Command::Adopt(adopting) => match &self.rejected {
                Some(refusal) => {
                    let refused = Err(NotGranted::Refused(refusal.clone()));
                    let _caller_may_be_gone = adopting.answer.send(refused);
                }
                None => self.adopting.push(adopting),
            },
            Command::Close { goodbye, done } => self.close(now, goodbye, done),
        }
    }

    fn adopt(&mut self, adopting: Adopting) {
        let Adopting { cell, key, fence, answer } = adopting;
        let Some(handle) = self.handle.upgrade() else { return };
        let claim = self.link.adopt(INTERNAL, cell, key.bytes(), fence);
        let hold = Hold::new(handle, claim, fence);
        // A caller that has gone meanwhile drops the hold, which gives it back.
        drop(answer.send(Ok(hold)));
    }

    fn release(&mut self, now: Time, claim: ClaimRef, answer: Option<oneshot::Sender<Released>>) {
        self.watches.remove(&claim);
        let held = self.link.is_held(claim);
        match answer {
            Some(answer) if held => {
                let token = self.internal(Caller::Release(answer));
                self.link.release(now, claim, token);
            }
            Some(answer) => {
                let _caller_may_be_gone = answer.send(Released::NotHeld { maybe_released: false });
            }
            None if held => self.link.release_quietly(now, claim),
            None => {}
        }
    }

    fn close(&mut self, now: Time, goodbye: bool, done: oneshot::Sender<()>) {
        self.closing = true;
        if goodbye && self.link.is_up() {
            let token = self.internal(Caller::Goodbye(done));
            self.link.query(now, token, Query::Goodbye);
        } else {
            let _closer_may_be_gone = done.send(());
        }
    }

    fn internal(&mut self, caller: Caller) -> u64 {
        self.next_internal += 1;
        self.callers.insert(self.next_internal, caller);
        self.next_internal
    }

    /// Hands out what happened.
    fn deliver(&mut self, now: Time) {
        // The buffers change places, so that neither is ever allocated anew.
        let mut outcomes = std::mem::take(&mut self.outcomes);
        while !self.link.outcomes().is_empty() {
            std::mem::swap(self.link.outcomes(), &mut outcomes);
            for outcome in outcomes.drain(..) {
                self.deliver_one(now, outcome);
            }
        }
        self.outcomes = outcomes;
    }

    fn deliver_one(&mut self, now: Time, outcome: Outcome) {
        match outcome {
            Outcome::Granted { token, claim, fence } => {
                let taken = match self.callers.remove(&token) {
                    Some(Caller::Acquire(answer, _)) => answer.send(Ok(Grant { claim, fence })),
                    _ => Err(Ok(Grant { claim, fence })),
                };
                if taken.is_err() {
                    // The caller has gone meanwhile.
                    self.link.release_quietly(now, claim);
                }
            }
            Outcome::NotGranted { token, reason } => {
                if let Some(Caller::Acquire(answer, _)) = self.callers.remove(&token) {
                    let _caller_may_be_gone = answer.send(Err(reason));
                }
            }
            Outcome::Released { token } => self.released(token, Released::Yes),
            Outcome::NotHeld { token, maybe_released } => {
                self.released(token, Released::NotHeld { maybe_released });
            }
            Outcome::Lost { claim, reason, .. } => {
                tracing::warn!(?reason, "a lock was lost");
                for token in self.watches.remove(&claim).into_iter().flatten() {
                    token.cancel();
                }
            }
            Outcome::Answer { token, reply } => match self.callers.remove(&token) {
                Some(Caller::Query(answer, _)) => drop(answer.send(Some(reply))),
                Some(Caller::Goodbye(done)) => drop(done.send(())),
                _ => {}
            },
            Outcome::NoAnswer { token } => match self.callers.remove(&token) {
                Some(Caller::Query(answer, _)) => drop(answer.send(None)),
                Some(Caller::Goodbye(done)) => drop(done.send(())),
                _ => {}
            },
            Outcome::Ring(chunk) => self.ring_part(*chunk),
            Outcome::Up(_) => {
                self.backoff = Duration::ZERO;
                for adopting in std::mem::take(&mut self.adopting) {
                    self.adopt(adopting);
                }
            }
            Outcome::Rejected(refusal) => self.rejected(refusal),
            Outcome::Draining | Outcome::Queued { .. } | Outcome::Cancelled { .. } => {}
        }
    }

    fn released(&mut self, token: u64, released: Released) {
        if let Some(Caller::Release(answer)) = self.callers.remove(&token) {
            let _caller_may_be_gone = answer.send(released);
        }
    }

    fn ring_part(&mut self, part: RingChunk) {
        let last = part.last;
        if part.first == 0 {
            self.parts.clear();
        }
        self.parts.push(part);
        if !last {
            return;
        }
        let ring: Result<Ring, RingError> = Ring::assemble(&std::mem::take(&mut self.parts));
        match ring {
            Ok(ring) => {
                self.link.ring_is(clock::now(), ring.version());
                self.uplink.learnt(ring);
            }
            Err(error) => tracing::warn!(%error, "ring ignored"),
        }
    }

    /// The worker refused the session. Some refusals pass; with others every claim fails at once.
    fn rejected(&mut self, refusal: Refusal) {
        self.wire = None;
        self.link.down();
        if matches!(refusal.kind, RefusalKind::Draining | RefusalKind::Quota) {
            tracing::debug!(why = refusal.message, "refused for now");
            return;
        }
        tracing::error!(why = refusal.message, "the node refuses this session");
        let mut tickets: Vec<u64> = self.callers.keys().copied().collect();
        tickets.sort_unstable();
        for ticket in tickets {
            match self.callers.remove(&ticket) {
                Some(Caller::Acquire(answer, _)) => {
                    let _gone = answer.send(Err(NotGranted::Refused(refusal.clone())));
                }
                Some(Caller::Release(answer)) => {
                    let _gone = answer.send(Released::NotHeld { maybe_released: true });
                }
                Some(Caller::Query(answer, unsure)) => {
                    let _gone = answer.send((!unsure).then(|| refused(&refusal)));
                }
                Some(Caller::Goodbye(done)) => drop(done.send(())),
                None => {}
            }
        }
        for adopting in std::mem::take(&mut self.adopting) {
            let _gone = adopting.answer.send(Err(NotGranted::Refused(refusal.clone())));
        }
        self.rejected = Some(refusal);
    }
}

/// The answer to a query that a refused session cannot ask.
fn refused(refusal: &Refusal) -> Reply {
    Reply::Refused { id: 0, refusal: Box::new(refusal.clone()) }
}
