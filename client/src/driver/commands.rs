//! What handles ask of a link's task, and how it begins.

use super::{Answer, Caller, Command, Denial, Driver, Granted, Released, Uplink};
use crate::link::{Ask, ClaimRef, Key, Loss, NotGranted, Query};
use lockring_proto::{Fence, Time};
use tokio::sync::oneshot;

impl<U: Uplink> Driver<U> {
    /// Carries out what was taken from the queue.
    pub(super) fn carry_out(&mut self, now: Time) {
        let mut commands = std::mem::take(&mut self.inbox);
        for command in commands.drain(..) {
            self.command(now, command);
        }
        self.inbox = commands;
    }

    pub(super) fn command(&mut self, now: Time, command: Command) {
        match command {
            Command::Acquire { ticket, cell, key, wanted, wait, answer } => {
                if self.closing.is_some() {
                    return deny(answer, NotGranted::Ended(Loss::Closed));
                }
                let ask = Ask { token: ticket, cell, key: key.bytes(), wanted, wait };
                let claim = self.link.acquire(now, &ask);
                self.callers.insert(ticket, Caller::Acquire(answer, claim));
            }
            Command::Adopt { ticket, cell, key, fence, answer } => {
                self.adopt(now, ticket, (cell, &key, fence), answer);
            }
            Command::Abandon { ticket } => {
                if let Some(Caller::Acquire(_, claim)) = self.callers.remove(&ticket) {
                    self.link.cancel(now, claim);
                }
            }
            Command::Release { claim, answer } => self.release(now, claim, answer),
            Command::Query { query, answer } => {
                if self.closing.is_some() {
                    let _caller_may_be_gone = answer.send(Answer::None(None));
                    return;
                }
                let unsure = matches!(query, Query::Force { .. });
                let token = self.internal(Caller::Query(answer, unsure));
                self.link.query(now, token, query);
            }
            Command::NewRing => self.new_ring(now),
            Command::End(loss) => self.session_ends(now, loss, None),
            Command::Close { goodbye, done } => self.close(now, goodbye, done),
        }
    }

    fn adopt(
        &mut self,
        now: Time,
        ticket: u64,
        (cell, key, fence): (u16, &Key, Fence),
        answer: oneshot::Sender<Granted>,
    ) {
        if self.closing.is_some() {
            return deny(answer, NotGranted::Ended(Loss::Closed));
        }
        let claim = self.link.adopt(now, ticket, cell, key.bytes(), fence);
        self.callers.insert(ticket, Caller::Acquire(answer, claim));
    }

    fn release(&mut self, now: Time, claim: ClaimRef, answer: Option<oneshot::Sender<Released>>) {
        let held = self.link.is_held(claim);
        if held {
            self.let_go(claim);
        }
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

    fn new_ring(&mut self, now: Time) {
        if let Some((version, serves)) = self.uplink.routes() {
            self.link.ring_is(now, version, serves);
        }
    }
}

fn deny(answer: oneshot::Sender<Granted>, reason: NotGranted) {
    let _caller_may_be_gone = answer.send(Err(Denial { reason, trouble: None }));
}
