//! Dialling: every address of every name, overlapping, until one answers.

use crate::kind::ErrorKind;
use crate::resolve::Resolver;
use crate::target::{Host, Seed};
use crate::wire::{Cause, WireError};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::time::{Sleep, sleep, timeout};

/// An address that has not answered by then is raced by the next (RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(250);

/// While nobody answers, names are looked up this often, as a record may just be changing; and
/// whoever has refused is tried again, as a node may be starting.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How often, and how many times in a row, the system has to say that there is no way to an
/// address, or nobody at its port, before that is believed: a node may be starting.
const PROBE_EVERY: Duration = Duration::from_millis(250);
const PROBES: u32 = 3;

/// Who answers within this is never probed.
const PROBE_AFTER: Duration = Duration::from_millis(500);

/// Where nothing is heard, probes become rarer up to this.
const PROBE_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Sockets that probe at a time: a program with many links has other uses for its open files.
static PROBING: Semaphore = Semaphore::const_new(16);

/// An attempt to connect to one address.
pub(crate) type Attempt<T> = Pin<Box<dyn Future<Output = Result<T, WireError>> + Send>>;

type Lookup<'a> = Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, WireError>> + Send + 'a>>;

/// One target whose name is being looked up.
struct Name<'a> {
    target: usize,
    lookup: Lookup<'a>,
    /// It was heard of once.
    heard: bool,
}

/// An address of a target.
#[derive(Clone, Copy)]
struct Candidate {
    target: usize,
    at: SocketAddr,
    /// It has failed before: tried for as long as another is, and not waited for.
    again: bool,
}

/// What connected, and how it was reached.
pub(crate) struct Reached<T> {
    pub(crate) by: T,
    /// Which of the targets it is an address of.
    pub(crate) target: usize,
}

/// Connects to whichever address of the targets answers first. The next one begins as soon as one
/// has failed or kept silent for a while. Names are resolved now, and again while nobody answers;
/// who has failed is tried again while another may still answer.
///
/// Cancel safe: dropping it drops all attempts.
///
/// # Errors
/// When every address has failed; of their errors that which says most.
pub(crate) async fn dial<T>(
    resolver: &Resolver,
    targets: &[Seed],
    connect: impl Fn(SocketAddr) -> Attempt<T>,
) -> Result<Reached<T>, WireError> {
    let mut race = Race::new(resolver, targets);
    loop {
        race.start_next(&connect);
        if race.is_over() {
            let none = || WireError::Ended("no address to connect to".to_owned());
            return Err(race.worst.unwrap_or_else(none));
        }
        if let Some(reached) = poll_fn(|cx| race.poll(cx)).await {
            return Ok(reached);
        }
    }
}

struct Race<'a, T> {
    resolver: &'a Resolver,
    targets: &'a [Seed],
    names: Vec<Name<'a>>,
    /// Addresses that are still to be tried.
    waiting: VecDeque<Candidate>,
    /// Addresses that were heard of.
    seen: Vec<SocketAddr>,
    /// Those of them that have failed in a way that may pass.
    failed: Vec<SocketAddr>,
    attempts: Vec<(Candidate, Attempt<T>)>,
    /// Until the last attempt that began has had its time alone.
    alone: Option<Pin<Box<Sleep>>>,
    worst: Option<WireError>,
}

impl<'a, T> Race<'a, T> {
    fn new(resolver: &'a Resolver, targets: &'a [Seed]) -> Self {
        let mut race = Self {
            resolver,
            targets,
            names: Vec::new(),
            waiting: VecDeque::new(),
            seen: Vec::new(),
            failed: Vec::new(),
            attempts: Vec::new(),
            alone: None,
            worst: None,
        };
        for (target, seed) in targets.iter().enumerate() {
            let (after, heard) = match &seed.host {
                Host::Ip(ip) => {
                    race.found(target, &[*ip]);
                    (LOOK_AGAIN, true)
                }
                Host::Name(_) => (Duration::ZERO, false),
            };
            let lookup = race.look_up(target, after);
            race.names.push(Name { target, lookup, heard });
        }
        race
    }

    fn look_up(&self, target: usize, after: Duration) -> Lookup<'a> {
        let (resolver, host) = (self.resolver, &self.targets[target].host);
        Box::pin(async move {
            if !after.is_zero() {
                sleep(after).await;
            }
            let name = match host {
                Host::Ip(ip) => return Ok(vec![*ip]),
                Host::Name(name) => name,
            };
            let found = resolver.resolve(name).await;
            found.map_err(|why| WireError::connect(name, Cause::Unresolvable(why)))
        })
    }

    fn found(&mut self, target: usize, addresses: &[IpAddr]) {
        for ip in addresses {
            let at = SocketAddr::new(*ip, self.targets[target].port);
            let failed = self.failed.iter().position(|failed| *failed == at);
            let again = failed.map(|failed| self.failed.swap_remove(failed)).is_some();
            if again || !self.seen.contains(&at) {
                if !again {
                    self.seen.push(at);
                }
                self.waiting.push_back(Candidate { target, at, again });
            }
        }
    }

    fn start_next(&mut self, connect: &impl Fn(SocketAddr) -> Attempt<T>) {
        if self.alone.is_some() && !self.attempts.is_empty() {
            return;
        }
        if let Some(candidate) = self.waiting.pop_front() {
            self.attempts.push((candidate, connect(candidate.at)));
            self.alone = Some(Box::pin(sleep(STAGGER)));
        }
    }

    /// Nobody is left who could answer, by what every name was said to lead to.
    fn is_over(&self) -> bool {
        self.attempts.iter().all(|(candidate, _)| candidate.again)
            && self.waiting.iter().all(|candidate| candidate.again)
            && self.names.iter().all(|name| name.heard)
    }

    fn note(&mut self, error: WireError) {
        let weight = |error: &WireError| error.cause().map_or(0, Cause::weight);
        // Of equals the first is that which was meant most.
        if self.worst.as_ref().is_none_or(|worst| weight(&error) > weight(worst)) {
            self.worst = Some(error);
        }
    }

    /// Ready when somebody has answered, or another attempt may begin.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Reached<T>>> {
        for at in 0..self.attempts.len() {
            let (candidate, attempt) = &mut self.attempts[at];
            let Poll::Ready(ended) = attempt.as_mut().poll(cx) else { continue };
            let Candidate { target, at: address, .. } = *candidate;
            match ended {
                Ok(by) => return Poll::Ready(Some(Reached { by, target })),
                Err(error) => {
                    drop(self.attempts.swap_remove(at));
                    if error.cause().is_none_or(|why| why.kind() == ErrorKind::Unreachable) {
                        self.failed.push(address);
                    }
                    self.note(error);
                    self.alone = None;
                    return Poll::Ready(None);
                }
            }
        }
        for at in 0..self.names.len() {
            let Poll::Ready(found) = self.names[at].lookup.as_mut().poll(cx) else { continue };
            let target = self.names[at].target;
            match found {
                Ok(addresses) => self.found(target, &addresses),
                Err(error) => self.note(error),
            }
            let lookup = self.look_up(target, LOOK_AGAIN);
            self.names[at] = Name { target, lookup, heard: true };
            return Poll::Ready(None);
        }
        if let Some(alone) = &mut self.alone
            && !self.waiting.is_empty()
            && alone.as_mut().poll(cx).is_ready()
        {
            self.alone = None;
            return Poll::Ready(None);
        }
        Poll::Pending
    }
}

/// Ends when the system keeps saying that nobody can be reached at an address. QUIC's socket is
/// not connected to it, and so never hears of that.
pub(crate) async fn unreachable(at: SocketAddr) -> Cause {
    let (mut last, mut times, mut pause) = (None, 0, PROBE_AFTER);
    loop {
        sleep(pause).await;
        let cause = probe(at).await;
        pause = if cause.is_some() { PROBE_EVERY } else { (pause * 2).min(PROBE_PAUSE_MAX) };
        times = if cause.is_some() && cause == last { times + 1 } else { 1 };
        last = cause;
        if let Some(cause) = &last
            && times >= PROBES
        {
            return cause.clone();
        }
    }
}

/// Sends a byte that no node answers. `None`: nothing is wrong as far as one can tell.
async fn probe(at: SocketAddr) -> Option<Cause> {
    let any: SocketAddr = match at {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let _turn = PROBING.acquire().await.ok()?;
    // Without a socket for it nothing can be said.
    let socket = UdpSocket::bind(any).await.ok()?;
    let heard = async {
        socket.connect(at).await?;
        socket.send(&[0]).await?;
        socket.recv(&mut [0; 1]).await
    };
    match timeout(PROBE_EVERY, heard).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Some(Cause::Refused),
        Ok(Err(error)) => Some(Cause::NoRoute(error.to_string())),
        Ok(Ok(_)) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests;
