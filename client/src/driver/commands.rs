//! What handles ask of a session's task, and how it begins.

use super::outcomes::{Answer, Caller, Granted, Released};
use super::{Driver, FEW_COMMANDS};
use crate::claims::Key;
use crate::error::Denial;
use crate::pool::Listener;
use crate::router::WorkerId;
use crate::session::{Ask, ClaimRef, Loss, NotGranted, Query};
use lockring_proto::{Claim, Fence, Time};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Commands taken in one turn before the wires are served again.
const COMMANDS_PER_TURN: usize = 1024;

/// What handles ask of a session's task.
pub(crate) enum SessionCommand {
    Acquire {
        ticket: u64,
        key: Key,
        wanted: Claim,
        wait: Option<Duration>,
        answer: oneshot::Sender<Granted>,
    },
    /// Take up a hold left by an earlier process of the session.
    Adopt {
        ticket: u64,
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
    /// `at`: of a worker that is named, not that of a key.
    Query {
        query: Query,
        at: Option<WorkerId>,
        answer: oneshot::Sender<Answer>,
    },
    /// A newer ring is known.
    NewRing,
    /// End: what was asked before is sent before. `goodbye`: the session ends at the workers too,
    /// with all it holds.
    Close {
        goodbye: bool,
        done: oneshot::Sender<()>,
    },
}

/// The way to a session's task.
#[derive(Clone, Debug)]
pub(crate) struct Commands(Arc<mpsc::UnboundedSender<SessionCommand>>);

/// The same, of a session that need not live for it.
struct Weakly(Weak<mpsc::UnboundedSender<SessionCommand>>);

impl Listener for Weakly {
    fn is_there(&self) -> bool {
        self.0.strong_count() > 0
    }

    fn hears_of_ring(&self) {
        if let Some(commands) = self.0.upgrade() {
            let _its_task_may_have_ended = commands.send(SessionCommand::NewRing);
        }
    }
}

/// The session's task is gone.
#[derive(Debug)]
pub(crate) struct Gone;

impl Commands {
    pub(crate) fn new(commands: mpsc::UnboundedSender<SessionCommand>) -> Self {
        Self(Arc::new(commands))
    }

    /// Whom a pool tells of newer rings.
    pub(crate) fn listener(&self) -> Box<dyn Listener> {
        Box::new(Weakly(Arc::downgrade(&self.0)))
    }

    pub(crate) fn send(&self, command: SessionCommand) -> Result<(), Gone> {
        self.0.send(command).map_err(|_| Gone)
    }
}

/// Commands that have come.
pub(super) struct Queue {
    commands: mpsc::UnboundedReceiver<SessionCommand>,
    /// Taken, to be carried out.
    inbox: Vec<SessionCommand>,
    /// They have been left to gather once.
    pub(super) stepped_back: bool,
}

impl Queue {
    pub(super) fn new(commands: mpsc::UnboundedReceiver<SessionCommand>) -> Self {
        Self { commands, inbox: Vec::new(), stepped_back: false }
    }

    /// Takes what has come. `true`: nobody is left who could ask.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let taken = self.commands.poll_recv_many(cx, &mut self.inbox, COMMANDS_PER_TURN);
        taken == Poll::Ready(0) && self.inbox.is_empty()
    }

    /// Whether what has come is to be carried out now.
    pub(super) fn leaves_now(&mut self, cx: &mut Context<'_>) -> bool {
        if self.inbox.is_empty() {
            return false;
        }
        if self.inbox.len() >= FEW_COMMANDS || self.stepped_back {
            return true;
        }
        // Runtimes with threads run whoever was woken last first, so a first command would leave
        // alone: one step back, and the commands of all who are ready now share a packet.
        self.stepped_back = true;
        cx.waker().wake_by_ref();
        false
    }

    /// One that has not been taken yet.
    pub(super) fn try_next(&mut self) -> Option<SessionCommand> {
        self.commands.try_recv().ok()
    }
}

impl Driver {
    /// Carries out what was taken from the queue.
    pub(super) fn carry_out(&mut self, now: Time) {
        let mut commands = std::mem::take(&mut self.queue.inbox);
        for command in commands.drain(..) {
            self.command(now, command);
        }
        self.queue.inbox = commands;
    }

    pub(super) fn command(&mut self, now: Time, command: SessionCommand) {
        match command {
            SessionCommand::Acquire { ticket, key, wanted, wait, answer } => {
                if self.session.is_closing() {
                    return deny(answer);
                }
                let ask = Ask { token: ticket, key: key.bytes(), wanted, wait };
                let claim = self.session.acquire(now, &ask);
                self.callers.insert(ticket, Caller::Acquire(answer, claim));
            }
            SessionCommand::Adopt { ticket, key, fence, answer } => {
                if self.session.is_closing() {
                    return deny(answer);
                }
                let claim = self.session.adopt(now, ticket, key.bytes(), fence);
                self.callers.insert(ticket, Caller::Acquire(answer, claim));
            }
            SessionCommand::Abandon { ticket } => {
                if let Some(Caller::Acquire(_, claim)) = self.callers.remove(&ticket) {
                    self.session.cancel(now, claim);
                }
            }
            SessionCommand::Release { claim, answer } => self.release(now, claim, answer),
            SessionCommand::Query { query, at, answer } => {
                if self.session.is_closing() {
                    let _caller_may_be_gone = answer.send(Answer::None(None));
                    return;
                }
                let token = self.internal(Caller::Query(answer));
                match at {
                    Some(worker) => self.session.query_at(now, token, worker, query),
                    None => self.session.query(now, token, query),
                }
            }
            SessionCommand::NewRing => {
                if let Some(ring) = self.pool.ring() {
                    self.session.ring_is(now, ring);
                }
            }
            SessionCommand::Close { goodbye, done } => self.close(now, goodbye, Some(done)),
        }
    }

    fn release(&mut self, now: Time, claim: ClaimRef, answer: Option<oneshot::Sender<Released>>) {
        let held = self.session.is_held(claim);
        if held {
            self.let_go(claim);
        }
        match answer {
            Some(answer) if held => {
                let token = self.internal(Caller::Release(answer));
                self.session.release(now, claim, token);
            }
            Some(answer) => {
                let _caller_may_be_gone = answer.send(Released::NotHeld { maybe_released: false });
            }
            None if held => self.session.release_quietly(now, claim),
            None => {}
        }
    }
}

fn deny(answer: oneshot::Sender<Granted>) {
    let reason = NotGranted::Ended(Loss::Closed);
    let _caller_may_be_gone = answer.send(Err(Denial { reason, trouble: None }));
}
