//! The task that owns a session: it connects where it is told to, feeds the session bytes, commands
//! and the time, and delivers outcomes to whoever waits for them.

mod commands;
mod ending;
mod outcomes;

pub(crate) use commands::{Commands, SessionCommand};
pub(crate) use outcomes::{Answer, Grant, Granted, Released};

use crate::cause::Trouble;
use crate::clock::{Alarm, Clock};
use crate::fate::Fate;
use crate::hold::{HoldState, Lease};
use crate::link::IdHasher;
use crate::pool::Pool;
use crate::session::{Dial, LinkId, Outcome, Session};
use crate::wire::{Wire, WireError, WireEvent};
use commands::Queue;
use hashbrown::HashMap;
use lockring_proto::Time;
use outcomes::Caller;
use std::future::{Future, poll_fn};
use std::hash::BuildHasherDefault;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::{mpsc, oneshot};

/// This many commands are sent at once; fewer wait for those of other tasks that are ready now.
const FEW_COMMANDS: usize = 8;

/// Tokens of callers that are not tickets have this bit.
const INTERNAL: u64 = 1 << 63;

type Connecting = Pin<Box<dyn Future<Output = Result<Wire, WireError>> + Send>>;

/// What a link has that the session does not care about.
struct Line {
    wire: Option<Wire>,
    connecting: Option<Connecting>,
    /// The lease of what is held now.
    lease: Arc<Lease>,
    /// What prevents contact.
    trouble: Option<Trouble>,
}

pub(crate) struct Driver {
    pool: Arc<Pool>,
    clock: Clock,
    fate: Arc<Fate>,
    queue: Queue,
    session: Session,
    /// By link.
    lines: Vec<Line>,
    callers: HashMap<u64, Caller, BuildHasherDefault<IdHasher>>,
    /// What guards know of their holds, by the slot of the claim.
    holds: Vec<Option<Arc<HoldState>>>,
    /// Being handed out.
    outcomes: Vec<Outcome>,
    next_internal: u64,
    /// Who waits for the end.
    closer: Option<oneshot::Sender<()>>,
    /// The runtime of the session has ended, and this one says its last words.
    is_last: bool,
    /// The session is over, or the task has done its work.
    over: bool,
}

/// What a session's task is woken for.
#[derive(Default)]
struct Woken {
    wires: Vec<(LinkId, Result<WireEvent, WireError>)>,
    /// Every handle is gone: nobody can hold or ask for anything.
    deserted: bool,
    connected: Vec<(LinkId, Result<Wire, WireError>)>,
    /// The alarm has rung.
    rung: bool,
}

impl Woken {
    fn is_idle(&self) -> bool {
        self.wires.is_empty() && !self.deserted && self.connected.is_empty() && !self.rung
    }
}

impl Driver {
    /// Of a session with a connection of its first link.
    pub(crate) fn new(
        pool: Arc<Pool>,
        fate: Arc<Fate>,
        commands: mpsc::UnboundedReceiver<SessionCommand>,
        session: Session,
        wire: Option<Wire>,
    ) -> Self {
        let mut driver = Self {
            pool,
            clock: Clock::BootTime,
            fate,
            queue: Queue::new(commands),
            session,
            lines: Vec::new(),
            callers: HashMap::default(),
            holds: Vec::new(),
            outcomes: Vec::new(),
            next_internal: INTERNAL,
            closer: None,
            is_last: false,
            over: false,
        };
        driver.add_lines();
        driver.lines[LinkId::FIRST.index()].wire = wire;
        driver
    }

    /// Runs until the session is closed and nobody is left to serve.
    pub(crate) async fn run(mut self) {
        self.serve().await;
    }

    async fn serve(&mut self) {
        let mut alarm = Alarm::new(self.clock.clone());
        let mut woken = Woken::default();
        self.deliver(self.clock.now());
        loop {
            let now = self.clock.now();
            self.add_lines();
            self.publish();
            if self.over || self.session.is_closed(now) {
                return self.ended();
            }
            while let Some(dial) = self.session.next_dial(now) {
                self.dial(dial);
            }
            for (number, line) in self.lines.iter_mut().enumerate() {
                if let Some(wire) = &mut line.wire {
                    wire.send(self.session.outgoing(LinkId::nth(number)));
                }
            }
            alarm.ring_at(self.session.next_deadline().unwrap_or(Time::NEVER));
            poll_fn(|cx| self.poll(cx, &mut woken, &mut alarm)).await;
            self.turn(&mut woken);
        }
    }

    fn ended(&mut self) {
        self.over = true;
        for wire in self.lines.iter().filter_map(|line| line.wire.as_ref()) {
            wire.close();
        }
        if let Some(closer) = self.closer.take() {
            let _closer_may_be_gone = closer.send(());
        }
    }

    /// A line for each link of the session.
    fn add_lines(&mut self) {
        for link in self.session.links().skip(self.lines.len()) {
            let lease = Lease::new(self.clock.clone(), self.session.valid_until(link));
            self.fate.begins(link, &lease);
            self.lines.push(Line { wire: None, connecting: None, lease, trouble: None });
        }
    }

    /// Ready with everything that has happened: one turn serves all of it.
    fn poll(&mut self, cx: &mut Context<'_>, woken: &mut Woken, alarm: &mut Alarm) -> Poll<()> {
        for (number, line) in self.lines.iter_mut().enumerate() {
            let link = LinkId::nth(number);
            if let Some(wire) = &mut line.wire
                && let Poll::Ready(event) = wire.poll_next(cx)
            {
                woken.wires.push((link, event));
            }
            if let Some(under_way) = &mut line.connecting
                && let Poll::Ready(connected) = under_way.as_mut().poll(cx)
            {
                line.connecting = None;
                woken.connected.push((link, connected));
            }
        }
        if !self.session.is_closing() {
            woken.deserted = self.queue.poll(cx);
        }
        woken.rung = alarm.poll_rung(cx).is_ready();
        if !woken.is_idle() || self.queue.leaves_now(cx) {
            self.queue.stepped_back = false;
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Takes in what happened.
    fn turn(&mut self, woken: &mut Woken) {
        // One reading for all: a request counts its lease from here, before it is sent.
        let now = self.clock.now();
        for (link, event) in woken.wires.drain(..) {
            match event {
                Ok(event) => self.wire_event(now, link, event),
                Err(error) => self.wire_ended(now, link, &error),
            }
        }
        self.carry_out(now);
        if std::mem::take(&mut woken.deserted) {
            self.close(now, true, None);
        }
        for (link, connected) in woken.connected.drain(..) {
            match connected {
                Ok(wire) => {
                    self.lines[link.index()].wire = Some(wire);
                    self.session.connected(now, link);
                }
                Err(error) => self.failed(now, link, &error),
            }
        }
        // Whatever woke it: the timers of the runtime stand still with the machine, this clock not.
        let rung = std::mem::take(&mut woken.rung);
        if rung || self.session.next_deadline().is_some_and(|at| at <= now) {
            self.session.tick(now);
        }
        self.deliver(now);
    }

    fn publish(&self) {
        for (number, line) in self.lines.iter().enumerate() {
            let link = LinkId::nth(number);
            line.lease.is_valid_until(self.session.valid_until(link));
            if self.session.is_up(link) {
                let (ttl, before) = (self.session.ttl(link), line.lease.ttl());
                if ttl != before && !before.is_zero() {
                    tracing::warn!(?before, ?ttl, "the node gives another TTL than before");
                }
                line.lease.has_ttl(ttl);
            }
        }
    }

    fn dial(&mut self, Dial { link, worker }: Dial) {
        self.add_lines();
        let (pool, anew) = (Arc::clone(&self.pool), self.is_last);
        self.lines[link.index()].connecting = Some(Box::pin(async move {
            match worker {
                Some(worker) if anew => pool.connect_anew(worker).await,
                Some(worker) => pool.connect(worker).await,
                None => pool.connect_seed().await.map(|reached| reached.by),
            }
        }));
    }

    fn failed(&mut self, now: Time, link: LinkId, error: &WireError) {
        tracing::debug!(%error, "cannot connect");
        self.lines[link.index()].trouble = Some(self.pool.trouble(error));
        self.session.failed(now, link);
    }

    fn wire_event(&mut self, now: Time, link: LinkId, event: WireEvent) {
        let Some(wire) = &mut self.lines[link.index()].wire else { return };
        let taken = match event {
            WireEvent::Written => return,
            WireEvent::Replies => {
                let taken = self.session.receive(now, link, wire.replies.bytes());
                taken.map(|count| wire.replies.consume(count))
            }
            WireEvent::Pushes => {
                let taken = self.session.receive_pushes(now, link, wire.pushes.bytes());
                taken.map(|count| wire.pushes.consume(count))
            }
        };
        if let Err(error) = taken {
            tracing::warn!(%error, "the connection is given up");
            wire.close();
            self.wire_ended(now, link, &WireError::Ended(error.to_string()));
        }
    }

    fn wire_ended(&mut self, now: Time, link: LinkId, error: &WireError) {
        tracing::debug!(%error, "connection ended");
        let line = &mut self.lines[link.index()];
        (line.wire, line.trouble) = (None, Some(self.pool.trouble(error)));
        if matches!(error, WireError::Superseded) {
            self.session.superseded(now, link);
        } else {
            self.session.down(now, link);
        }
        // What the connection died of may have taken longer than the lease.
        self.session.tick(now);
    }

    fn internal(&mut self, caller: Caller) -> u64 {
        self.next_internal += 1;
        self.callers.insert(self.next_internal, caller);
        self.next_internal
    }
}
