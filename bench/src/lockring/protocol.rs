//! Our wire for lean lanes: the client's own links, without tasks and channels per caller.

use crate::keys::Key;
use crate::protocol::{Answer, Broken, Protocol, Slot};
use crate::time::Time;
use lockring_client::link::{Ask, ClaimRef, Link, LinkConfig, Outcome, RequestIds};
use lockring_client::proto::{self, Claim, NamespaceSeed, NodeId, SessionId, Shown};
use lockring_client::router::{Ring, RingUnderWay};
use lockring_client::wire::{Wire, WireEvent};
use std::sync::Arc;
use std::time::Duration;

/// The links' clock begins here, so that nothing underflows.
const ORIGIN_MICROS: u64 = 1_000_000_000;

fn link_time(now: Time) -> proto::Time {
    proto::Time(ORIGIN_MICROS + now.0 / 1000)
}

/// One client: a session with a link to each worker of the node.
pub(crate) struct LockringProtocol {
    links: Vec<Link>,
    ring: Ring,
    seed: NamespaceSeed,
    /// What each caller holds, and at which worker.
    held: Vec<Option<(usize, ClaimRef)>>,
    /// The link that the next received bytes belong to, and how many were taken in.
    reading: usize,
    taken: usize,
    failure: Option<String>,
}

/// Wires of a client, one for each of its links.
pub(crate) type Wires = Vec<Wire>;

impl LockringProtocol {
    /// Connects one client with so many callers to every worker.
    pub(crate) async fn connect(
        access: &super::ClusterAccess,
        callers: u32,
        ttl: Duration,
    ) -> Result<(Self, Wires), String> {
        let config = config(ttl)?;
        let mut wires = vec![access.wire().await.map_err(|error| error.to_string())?];
        let mut links = Vec::new();
        loop {
            let mut link = Link::new(config.clone(), link_time(Time(0)));
            let wire = wires.last_mut().expect("one was added just now");
            let (welcome, ring) = greet(wire, &mut link).await?;
            link.ring_is(link_time(Time(0)), ring.version().0, Arc::new(|_| true));
            links.push(link);
            match ring.node(NodeId(welcome.node)) {
                Some(node) if links.len() < usize::from(node.workers) => {
                    wires.push(access.wire_to(node, links.len() as u16).await?);
                }
                _ => return Ok((Self::over(links, ring, &welcome.namespace, callers), wires)),
            }
        }
    }

    /// Over links that stand, one for each worker.
    fn over(links: Vec<Link>, ring: Ring, namespace: &str, callers: u32) -> Self {
        Self {
            links,
            ring,
            seed: NamespaceSeed::of(namespace),
            held: vec![None; callers as usize],
            reading: 0,
            taken: 0,
            failure: None,
        }
    }

    /// The first moment at which no hold is believed any more: the lease counts from the send of
    /// the last answered request.
    pub(crate) fn lapses_at(&self) -> Time {
        let last = self.links.iter().map(Link::valid_until).max();
        Time(last.map_or(0, |last| last.0.saturating_sub(ORIGIN_MICROS) * 1000))
    }

    /// What is to be sent to a worker.
    pub(crate) fn outgoing(&mut self, worker: usize) -> &mut Vec<u8> {
        self.links[worker].outgoing()
    }

    /// The next bytes received are of this worker.
    pub(crate) fn read_from(&mut self, worker: usize) {
        self.reading = worker;
    }

    /// How many of the bytes received last were whole frames.
    pub(crate) fn taken(&self) -> usize {
        self.taken
    }

    /// Takes in what came on the push stream of a worker.
    pub(crate) fn pushed(
        &mut self,
        now: Time,
        worker: usize,
        bytes: &[u8],
    ) -> Result<usize, Broken> {
        self.links[worker]
            .receive_pushes(link_time(now), bytes)
            .map_err(|error| Broken(error.to_string()))
    }

    fn answer(&mut self, worker: usize, outcome: Outcome) -> Result<Option<Answer>, Broken> {
        let slot = |token: u64| Slot(token as u32);
        Ok(match outcome {
            Outcome::Granted { token, claim, fence } => {
                self.held[token as usize] = Some((worker, claim));
                Some(Answer::Granted { slot: slot(token), fence: Some(fence.0) })
            }
            Outcome::Released { token } => Some(Answer::Released { slot: slot(token) }),
            Outcome::NotGranted { token, reason } => {
                self.failure.get_or_insert(format!("{reason:?}"));
                Some(Answer::Failed { slot: slot(token) })
            }
            Outcome::NotHeld { token, .. } | Outcome::Unconfirmed { token, .. } => {
                self.failure.get_or_insert("a hold was lost".to_owned());
                Some(Answer::Failed { slot: slot(token) })
            }
            Outcome::Lost { reason, .. } => {
                return Err(Broken(format!("a lock was lost: {reason:?}")));
            }
            Outcome::Rejected(refusal) => return Err(Broken(refusal.message)),
            Outcome::Queued { .. }
            | Outcome::Cancelled { .. }
            | Outcome::Answer { .. }
            | Outcome::NoAnswer { .. }
            | Outcome::Moved { .. }
            | Outcome::Ring(_)
            | Outcome::Draining
            | Outcome::Up(_) => None,
        })
    }
}

/// What the links of a new session are made with.
fn config(ttl: Duration) -> Result<LinkConfig, String> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| format!("drawing a session id: {error}"))?;
    Ok(LinkConfig {
        session: SessionId(id),
        ids: RequestIds::default(),
        label: "bench".to_owned(),
        ttl,
        unreachable_after: Duration::from_secs(30),
    })
}

/// Says hello and learns the ring.
async fn greet(wire: &mut Wire, link: &mut Link) -> Result<(proto::Welcome, Ring), String> {
    let now = link_time(Time(0));
    link.greet(now, 1);
    let (mut welcome, mut ring, mut parts) = (None, None, RingUnderWay::default());
    loop {
        for outcome in std::mem::take(link.outcomes()) {
            match outcome {
                Outcome::Up(said) => {
                    welcome = Some(said);
                    link.ask_for_ring(now);
                }
                Outcome::Ring(part) => {
                    ring = parts.take(*part).map_err(|error| error.to_string())?;
                }
                Outcome::Rejected(refusal) => return Err(Shown(refusal.message).to_string()),
                _ => {}
            }
        }
        match (welcome.take(), ring.take()) {
            (Some(welcome), Some(ring)) => return Ok((welcome, ring)),
            (before, _) => welcome = before,
        }
        wire.send(link.outgoing());
        if wire.next().await.map_err(|error| error.to_string())? == WireEvent::Replies {
            let taken = link.receive(now, wire.replies.bytes());
            wire.replies.consume(taken.map_err(|error| error.to_string())?);
        }
    }
}

impl Protocol for LockringProtocol {
    fn acquire(&mut self, now: Time, slot: Slot, key: &Key, _out: &mut Vec<u8>) {
        let route = self.ring.route(self.seed, key);
        let ask = Ask {
            token: u64::from(slot.0),
            cell: route.cell.0,
            key,
            wanted: Claim::EXCLUSIVE,
            wait: None,
        };
        self.links[usize::from(route.worker.worker)].acquire(link_time(now), &ask);
    }

    fn release(
        &mut self,
        now: Time,
        slot: Slot,
        _key: &Key,
        _fence: Option<u64>,
        _out: &mut Vec<u8>,
    ) {
        let Some((worker, claim)) = self.held[slot.0 as usize].take() else {
            unreachable!("{slot:?} releases what it was not granted")
        };
        self.links[worker].release(link_time(now), claim, u64::from(slot.0));
    }

    fn receive(
        &mut self,
        now: Time,
        bytes: &[u8],
        answers: &mut Vec<Answer>,
    ) -> Result<(), Broken> {
        let worker = self.reading;
        let taken = self.links[worker].receive(link_time(now), bytes);
        self.taken = taken.map_err(|error| Broken(error.to_string()))?;
        let mut outcomes = std::mem::take(self.links[worker].outcomes());
        for outcome in outcomes.drain(..) {
            answers.extend(self.answer(worker, outcome)?);
        }
        *self.links[worker].outcomes() = outcomes;
        Ok(())
    }

    fn tick(&mut self, now: Time, _out: &mut Vec<u8>) -> Option<Time> {
        let mut next = None;
        for link in &mut self.links {
            let deadline = link.next_deadline();
            if deadline.is_some_and(|at| at <= link_time(now)) {
                link.tick(link_time(now));
            }
            // A tick per 100 ms at the least keeps this simple, and costs nothing.
            let at = Time(now.0 + 100_000_000);
            next = Some(next.map_or(at, |next: Time| next.min(at)));
        }
        next
    }

    fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
