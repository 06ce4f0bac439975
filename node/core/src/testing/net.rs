//! A network of connections, each a set of ordered streams of frames, as QUIC gives them. A
//! connection may break at any time: then a suffix of every stream is lost, and what is not lost
//! may still arrive long after newer connections stand. Between connections nothing is in order.

use super::rng::Rng;
use crate::{ConnId, Time};
use std::collections::BTreeMap;
use std::time::Duration;

/// An ordered stream of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    /// From the client.
    Requests,
    /// To the client.
    Replies,
    /// To the client, in no order with the replies.
    Pushes,
}

/// Somebody who sends and receives, as the run numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// A client.
    Client(usize),
    /// A node.
    Node(usize),
}

/// What becomes of a frame that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It is here.
    Now,
    /// It was held up by the break: it is due then.
    Later(Time),
    /// It is lost.
    Never,
}

#[derive(Clone, Debug, Default)]
struct StreamState {
    /// When the last frame sent is due: the next is not earlier.
    last_due: Time,
    /// After a break: frames due later are lost...
    lost_after: Option<Time>,
    /// ...and those that are not are this late.
    late: Duration,
}

#[derive(Clone, Debug)]
struct Pipe {
    base: Duration,
    streams: BTreeMap<Stream, StreamState>,
    broken: bool,
}

/// All connections.
#[derive(Clone, Debug)]
pub struct Net {
    rng: Rng,
    pipes: BTreeMap<ConnId, Pipe>,
    next: u64,
    /// Of what goes between two nodes: when the last of it is due.
    carried: BTreeMap<(End, End), Time>,
    slow_until: Time,
    slow_by: Duration,
}

/// Longest delay of a frame on a connection that stands.
pub const DELAY_MAX: Duration = Duration::from_millis(400);

impl Net {
    /// A network whose chances come from `rng`.
    pub fn new(rng: Rng) -> Self {
        let (next, slow_until, slow_by) = (0, Time(0), Duration::ZERO);
        let (pipes, carried) = (BTreeMap::new(), BTreeMap::new());
        Self { rng, pipes, carried, next, slow_until, slow_by }
    }

    /// A new connection and when it stands.
    pub fn connect(&mut self, now: Time) -> (ConnId, Time) {
        self.next += 1;
        let id = ConnId(self.next);
        let base = Duration::from_micros(100 + self.rng.tailed(1500).min(20_000));
        self.pipes.insert(id, Pipe { base, streams: BTreeMap::new(), broken: false });
        (id, now.after(base * 2))
    }

    /// Every frame sent before `until` takes up to `by` more.
    pub fn slow_down(&mut self, until: Time, by: Duration) {
        (self.slow_until, self.slow_by) = (until, by.min(DELAY_MAX / 2));
    }

    /// Sends a frame: when it is due, or `None` if the connection is broken.
    pub fn send(&mut self, now: Time, conn: ConnId, stream: Stream) -> Option<Time> {
        let pipe = self.pipes.get_mut(&conn).filter(|pipe| !pipe.broken)?;
        let jitter = self.rng.tailed(300).min(10_000);
        let mut delay = pipe.base + Duration::from_micros(jitter);
        if now < self.slow_until {
            delay += self.slow_by * (self.rng.range(0, 1000) as u32) / 1000;
        }
        let state = pipe.streams.entry(stream).or_default();
        state.last_due = state.last_due.max(now.after(delay));
        Some(state.last_due)
    }

    /// When a message of one node to another is due: in order, and none is lost.
    pub fn carry(&mut self, now: Time, from: End, to: End) -> Time {
        let mut delay = Duration::from_micros(100 + self.rng.tailed(3000).min(50_000));
        if now < self.slow_until {
            delay += self.slow_by;
        }
        let last = self.carried.entry((from, to)).or_insert(now);
        *last = now.after(delay).max(*last);
        *last
    }

    /// Breaks a connection. Of each stream some suffix of what is under way is lost, and the rest
    /// may be held up until after newer connections stand.
    pub fn cut(&mut self, now: Time, conn: ConnId) {
        let Some(pipe) = self.pipes.get_mut(&conn).filter(|pipe| !pipe.broken) else { return };
        pipe.broken = true;
        for state in pipe.streams.values_mut() {
            let under_way = state.last_due.since(now).as_micros() as u64;
            state.lost_after = Some(match self.rng.range(0, 3) {
                0 => now,
                1 => state.last_due,
                _ => Time(now.0 + self.rng.range(0, under_way + 1)),
            });
            if self.rng.percent(50) {
                state.late = Duration::from_micros(self.rng.range(0, 1_500_000));
            }
        }
    }

    /// Both ends are gone, with all that is under way.
    pub fn drop_all(&mut self, conn: ConnId) {
        self.pipes.remove(&conn);
    }

    /// Whether a connection is broken or gone.
    pub fn is_broken(&self, conn: ConnId) -> bool {
        self.pipes.get(&conn).is_none_or(|pipe| pipe.broken)
    }

    /// A frame is due: is it here? One that is `held` was held up before.
    pub fn arrives(&self, due: Time, conn: ConnId, stream: Stream, held: bool) -> Arrival {
        let Some(state) = self.pipes.get(&conn).and_then(|pipe| pipe.streams.get(&stream)) else {
            return Arrival::Never;
        };
        match state.lost_after {
            None => Arrival::Now,
            Some(_) if held => Arrival::Now,
            Some(lost_after) if due > lost_after => Arrival::Never,
            Some(_) if state.late.is_zero() => Arrival::Now,
            Some(_) => Arrival::Later(due.after(state.late)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_keeps_its_order_and_a_break_takes_a_suffix() {
        for seed in 0..200 {
            let mut net = Net::new(Rng::new(seed));
            let (conn, up) = net.connect(Time(0));
            net.slow_down(Time(1_000_000), DELAY_MAX);
            let at = |i: u64| Time(up.0 + i * 1000);
            let due: Vec<Time> =
                (0..20).map(|i| net.send(at(i), conn, Stream::Requests).unwrap()).collect();
            assert!(due.is_sorted());
            net.cut(at(20), conn);
            assert!(net.is_broken(conn) && net.send(at(21), conn, Stream::Requests).is_none());
            let arrivals = due.iter().filter(|&&due| due > at(20)).map(|&due| {
                let arrival = net.arrives(due, conn, Stream::Requests, false);
                (arrival == Arrival::Never, arrival)
            });
            let arrivals: Vec<(bool, Arrival)> = arrivals.collect();
            assert!(arrivals.is_sorted_by_key(|&(lost, _)| lost), "{arrivals:?}");
        }
    }
}
