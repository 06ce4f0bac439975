//! The task that owns a link: it connects and reconnects, feeds the link bytes, commands and the
//! time, and delivers outcomes to whoever waits for them.

use crate::guard::Hold;
use crate::link::{Ask, ClaimRef, Link, NotGranted, Outcome, Query};
use crate::router::{Ring, RingError};
use crate::wire::{Wire, WireError, WireEvent};
use lockring_proto::{Claim, Fence, Refusal, RefusalKind, Reply, RingChunk, Time, clock};
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// First pause before another try to connect; doubled each time.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Commands taken in one turn before the wire is served again.
const COMMANDS_PER_TURN: usize = 1024;

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
        key: Arc<[u8]>,
        wanted: Claim,
        wait: Option<Duration>,
        answer: oneshot::Sender<Result<Hold, NotGranted>>,
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
    pub(crate) key: Arc<[u8]>,
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
    Acquire(oneshot::Sender<Result<Hold, NotGranted>>, ClaimRef),
    Release(oneshot::Sender<Released>),
    Query(oneshot::Sender<Option<Reply>>),
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
    callers: HashMap<u64, Caller>,
    watches: HashMap<ClaimRef, Vec<CancellationToken>>,
    next_internal: u64,
    parts: Vec<RingChunk>,
    backoff: Duration,
    jitter: u64,
    rejected: Option<Refusal>,
    closing: bool,
}

type Connecting = Pin<Box<dyn Future<Output = Result<Wire, WireError>> + Send>>;

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
            callers: HashMap::new(),
            watches: HashMap::new(),
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
        self.deliver();
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
            self.turn(&mut connecting).await;
            self.drain_commands();
            self.check_silence();
            self.deliver();
        }
    }

    /// Waits for one thing to happen and takes it in.
    async fn turn(&mut self, connecting: &mut Option<Connecting>) {
        let deadline = self.link.next_deadline().unwrap_or(Time::NEVER);
        let left = deadline.since(clock::now()).min(Duration::from_secs(3600));
        let tick = tokio::time::sleep(left);
        tokio::select! {
            biased;
            event = next_event(&mut self.wire) => match event {
                Ok(event) => self.wire_event(event),
                Err(error) => self.wire_ended(&error),
            },
            command = self.commands.recv(), if !self.closing => match command {
                Some(command) => self.command(command),
                // Every handle is gone: nobody can hold or ask for anything.
                None => self.close(clock::now(), true, oneshot::channel().0),
            },
            connected = poll_connecting(connecting) => {
                *connecting = None;
                match connected {
                    Ok(wire) => self.connected(wire),
                    Err(error) => tracing::debug!(%error, "cannot connect"),
                }
            }
            () = tick => self.link.tick(clock::now()),
        }
    }

    fn drain_commands(&mut self) {
        for _ in 0..COMMANDS_PER_TURN {
            match self.commands.try_recv() {
                Ok(command) => self.command(command),
                Err(_) => return,
            }
        }
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

    fn connected(&mut self, wire: Wire) {
        self.wire = Some(wire);
        self.incarnation = self.incarnation.max(self.link.incarnation()) + 1;
        // A session taken up from elsewhere does not know its last incarnation at a new worker.
        let known = self.own || self.link.incarnation() > 0;
        let incarnation = if known { self.incarnation } else { 0 };
        self.link.greet(clock::now(), incarnation);
    }

    fn wire_event(&mut self, event: WireEvent) {
        let Some(wire) = &mut self.wire else { return };
        let now = clock::now();
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
    fn check_silence(&mut self) {
        if self.link.is_silent(clock::now())
            && let Some(wire) = self.wire.take()
        {
            wire.close();
            self.link.down();
        }
    }

    fn command(&mut self, command: Command) {
        let now = clock::now();
        match command {
            Command::Acquire { ticket, cell, key, wanted, wait, answer } => {
                if let Some(refusal) = &self.rejected {
                    let _caller_may_be_gone =
                        answer.send(Err(NotGranted::Refused(refusal.clone())));
                    return;
                }
                let ask = Ask { token: ticket, cell, key: &key, wanted, wait };
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
                let token = self.internal(Caller::Query(answer));
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
        let claim = self.link.adopt(INTERNAL, cell, &key, fence);
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
    fn deliver(&mut self) {
        if self.link.outcomes().is_empty() {
            return;
        }
        for outcome in std::mem::take(self.link.outcomes()) {
            self.deliver_one(outcome);
        }
    }

    fn deliver_one(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Granted { token, claim, fence } => {
                let caller = self.callers.remove(&token);
                match (caller, self.handle.upgrade()) {
                    // A caller that has gone meanwhile drops the hold, which gives it back.
                    (Some(Caller::Acquire(answer, _)), Some(handle)) => {
                        drop(answer.send(Ok(Hold::new(handle, claim, fence))));
                    }
                    _ => self.link.release_quietly(clock::now(), claim),
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
                Some(Caller::Query(answer)) => drop(answer.send(Some(reply))),
                Some(Caller::Goodbye(done)) => drop(done.send(())),
                _ => {}
            },
            Outcome::NoAnswer { token } => match self.callers.remove(&token) {
                Some(Caller::Query(answer)) => drop(answer.send(None)),
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
                Some(Caller::Query(answer)) => drop(answer.send(None)),
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

async fn next_event(wire: &mut Option<Wire>) -> Result<WireEvent, WireError> {
    match wire {
        Some(wire) => wire.next().await,
        None => std::future::pending().await,
    }
}

async fn poll_connecting(connecting: &mut Option<Connecting>) -> Result<Wire, WireError> {
    match connecting {
        Some(connecting) => connecting.await,
        None => std::future::pending().await,
    }
}
