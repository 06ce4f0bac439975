//! Our wire for lean groups: the client's own sessions, without tasks and channels per caller.

use crate::keys::Key;
use crate::protocol::{Answer, Broken, Protocol, Slot};
use crate::time::Time;
use lockring_client::proto::{self, Claim, SessionId, Shown};
use lockring_client::router::WorkerId;
use lockring_client::session::{
    Ask, ClaimRef, LinkId, Outcome, RequestIds, Session, SessionConfig,
};
use lockring_client::wire::{Wire, WireEvent};
use std::time::Duration;

/// The session's clock begins here, so that nothing underflows.
const ORIGIN_MICROS: u64 = 1_000_000_000;

fn session_time(now: Time) -> proto::Time {
    proto::Time(ORIGIN_MICROS + now.0 / 1000)
}

/// One client: a session with a link to each worker of the node.
pub(crate) struct LockringProtocol {
    session: Session,
    /// What each caller holds.
    held: Vec<Option<ClaimRef>>,
    /// The link that the next received bytes belong to, and how many were taken in.
    reading: LinkId,
    taken: usize,
    failure: Option<String>,
}

/// Wires of a client, by the links of its session.
pub(crate) type Wires = Vec<Wire>;

impl LockringProtocol {
    /// Connects one client with so many callers to every worker.
    pub(crate) async fn connect(
        access: &super::ClusterAccess,
        callers: u32,
        ttl: Duration,
    ) -> Result<(Self, Wires), String> {
        let now = session_time(Time(0));
        let mut session = Session::new(config(ttl)?, now, 0);
        let mut wires = vec![access.wire().await.map_err(|error| error.to_string())?];
        let node = greet(&mut session, LinkId::FIRST, &mut wires[0]).await?;
        let ring = session.ring().cloned().ok_or("the node sent no ring")?;
        let node = ring.node(node).ok_or("the node is not in its own ring")?;
        for worker in 0..node.workers {
            let link = session.link_to(now, WorkerId { node: node.id, worker });
            if link.index() == wires.len() {
                let mut wire = access.wire_to(node, worker).await?;
                greet(&mut session, link, &mut wire).await?;
                wires.push(wire);
            }
        }
        Ok((Self::over(session, callers), wires))
    }

    /// Over a session whose links stand.
    fn over(session: Session, callers: u32) -> Self {
        Self {
            session,
            held: vec![None; callers as usize],
            reading: LinkId::FIRST,
            taken: 0,
            failure: None,
        }
    }

    /// The first moment at which no hold is believed any more: the lease counts from the send of
    /// the last answered request.
    pub(crate) fn lapses_at(&self) -> Time {
        let last = self.session.links().map(|link| self.session.valid_until(link)).max();
        Time(last.map_or(0, |last| last.0.saturating_sub(ORIGIN_MICROS) * 1000))
    }

    /// What is to be sent on the link of this number.
    pub(crate) fn outgoing(&mut self, link: usize) -> &mut Vec<u8> {
        self.session.outgoing(LinkId::nth(link))
    }

    /// The next bytes received are of the link of this number.
    pub(crate) fn read_from(&mut self, link: usize) {
        self.reading = LinkId::nth(link);
    }

    /// How many of the bytes received last were whole frames.
    pub(crate) fn taken(&self) -> usize {
        self.taken
    }

    /// Takes in what came on the push stream of a link.
    pub(crate) fn pushed(&mut self, now: Time, link: usize, bytes: &[u8]) -> Result<usize, Broken> {
        self.session
            .receive_pushes(session_time(now), LinkId::nth(link), bytes)
            .map_err(|error| Broken(error.to_string()))
    }

    fn answer(&mut self, outcome: Outcome) -> Result<Option<Answer>, Broken> {
        let slot = |token: u64| Slot(token as u32);
        Ok(match outcome {
            Outcome::Granted { token, claim, fence, .. } => {
                self.held[token as usize] = Some(claim);
                Some(Answer::Granted { slot: slot(token), fence: Some(fence.0) })
            }
            Outcome::Released { token } => Some(Answer::Released { slot: slot(token) }),
            Outcome::NotGranted { token, reason, .. } => {
                self.failure.get_or_insert(format!("{reason:?}"));
                Some(Answer::Failed { slot: slot(token) })
            }
            Outcome::NotHeld { token, .. } | Outcome::Unconfirmed { token, .. } => {
                self.failure.get_or_insert("a hold was lost".to_owned());
                Some(Answer::Failed { slot: slot(token) })
            }
            Outcome::NotEnded { token, refusal } => {
                self.failure.get_or_insert(refusal.message);
                Some(Answer::Failed { slot: slot(token) })
            }
            Outcome::Lost { reason, .. } => {
                return Err(Broken(format!("a lock was lost: {reason:?}")));
            }
            Outcome::Silent { .. } => return Err(Broken("the node is silent".to_owned())),
            Outcome::TurnedAway { refusal, .. } | Outcome::Ended { refusal: Some(refusal), .. } => {
                return Err(Broken(refusal.message));
            }
            Outcome::Ended { loss, .. } => return Err(Broken(loss.to_string())),
            Outcome::Queued { .. }
            | Outcome::Cancelled { .. }
            | Outcome::Answer { .. }
            | Outcome::NoAnswer { .. }
            | Outcome::Moved { .. }
            | Outcome::Ring(_)
            | Outcome::BadRing(_)
            | Outcome::Draining
            | Outcome::Jeopardy { .. }
            | Outcome::Follows { .. }
            | Outcome::Settled { .. }
            | Outcome::LinkOver { .. }
            | Outcome::Up { .. } => None,
        })
    }
}

/// What a new session is made with.
fn config(ttl: Duration) -> Result<SessionConfig, String> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| format!("drawing a session id: {error}"))?;
    Ok(SessionConfig {
        session: SessionId(id),
        ids: RequestIds::default(),
        taken_up: false,
        label: "bench".to_owned(),
        ttl,
        unreachable_after: Duration::from_secs(30),
    })
}

/// Says hello on a link, and learns the ring by the first: which node it is.
async fn greet(
    session: &mut Session,
    link: LinkId,
    wire: &mut Wire,
) -> Result<proto::NodeId, String> {
    let now = session_time(Time(0));
    session.connected(now, link);
    loop {
        for outcome in session.outcomes().drain(..) {
            match outcome {
                Outcome::TurnedAway { refusal, .. }
                | Outcome::Ended { refusal: Some(refusal), .. } => {
                    return Err(Shown(refusal.message).to_string());
                }
                Outcome::BadRing(error) => return Err(error.to_string()),
                _ => {}
            }
        }
        if session.is_up(link)
            && session.ring().is_some()
            && let Some(worker) = session.worker(link)
        {
            return Ok(worker.node);
        }
        wire.send(session.outgoing(link));
        if wire.next().await.map_err(|error| error.to_string())? == WireEvent::Replies {
            let taken = session.receive(now, link, wire.replies.bytes());
            wire.replies.consume(taken.map_err(|error| error.to_string())?);
        }
    }
}

impl Protocol for LockringProtocol {
    fn acquire(&mut self, now: Time, slot: Slot, key: &Key, _out: &mut Vec<u8>) {
        let ask = Ask { token: u64::from(slot.0), key, wanted: Claim::EXCLUSIVE, wait: None };
        self.session.acquire(session_time(now), &ask);
    }

    fn release(
        &mut self,
        now: Time,
        slot: Slot,
        _key: &Key,
        _fence: Option<u64>,
        _out: &mut Vec<u8>,
    ) {
        let Some(claim) = self.held[slot.0 as usize].take() else {
            unreachable!("{slot:?} releases what it was not granted")
        };
        self.session.release(session_time(now), claim, u64::from(slot.0));
    }

    fn receive(
        &mut self,
        now: Time,
        bytes: &[u8],
        answers: &mut Vec<Answer>,
    ) -> Result<(), Broken> {
        let taken = self.session.receive(session_time(now), self.reading, bytes);
        self.taken = taken.map_err(|error| Broken(error.to_string()))?;
        let mut outcomes = std::mem::take(self.session.outcomes());
        for outcome in outcomes.drain(..) {
            answers.extend(self.answer(outcome)?);
        }
        *self.session.outcomes() = outcomes;
        Ok(())
    }

    fn tick(&mut self, now: Time, _out: &mut Vec<u8>) -> Option<Time> {
        let (at, deadline) = (session_time(now), self.session.next_deadline());
        if deadline.is_some_and(|due| due <= at) {
            self.session.tick(at);
        }
        // A tick per 100 ms at the least keeps this simple, and costs nothing.
        Some(Time(now.0 + 100_000_000))
    }

    fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
