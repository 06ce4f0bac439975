//! A network of connections, each a set of ordered streams of frames, as QUIC gives them. A
//! connection may break at any time: then a suffix of every stream is lost, and what is not lost
//! may still arrive long after newer connections stand. Between connections nothing is in order.
//!
//! The way from one end to another can be cut for a while, alone or with the way back. What is sent
//! on it is held until it heals, as QUIC sends again, or is lost with the connection.

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
    /// The way is cut: it is due then, unless the connection breaks before.
    Held(Time),
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
    ends: Ends,
    base: Duration,
    streams: BTreeMap<Stream, StreamState>,
    broken: bool,
}

/// The ends of a connection.
#[derive(Clone, Copy, Debug)]
struct Ends {
    client: End,
    node: End,
}

impl Ends {
    /// From whom to whom a stream goes.
    fn way(self, stream: Stream) -> (End, End) {
        match stream {
            Stream::Requests => (self.client, self.node),
            Stream::Replies | Stream::Pushes => (self.node, self.client),
        }
    }
}

/// All connections.
#[derive(Clone, Debug)]
pub struct Net {
    rng: Rng,
    pipes: BTreeMap<ConnId, Pipe>,
    next: u64,
    /// Of what goes between two nodes: when the last of it is due.
    carried: BTreeMap<(End, End), Time>,
    /// Until when ways are cut.
    cuts: BTreeMap<(End, End), Time>,
    slow_until: Time,
    slow_by: Duration,
}

/// Longest delay of a frame on a connection that stands.
pub const DELAY_MAX: Duration = Duration::from_millis(400);

impl Net {
    /// A network whose chances come from `rng`.
    pub fn new(rng: Rng) -> Self {
        let (next, slow_until, slow_by) = (0, Time(0), Duration::ZERO);
        let (pipes, carried, cuts) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { rng, pipes, carried, cuts, next, slow_until, slow_by }
    }

    /// A new connection of a client to a node, and when it stands.
    pub fn connect(&mut self, now: Time, client: End, node: End) -> (ConnId, Time) {
        self.next += 1;
        let id = ConnId(self.next);
        let base = Duration::from_micros(100 + self.rng.tailed(1500).min(20_000));
        self.pipes.insert(
            id,
            Pipe { ends: Ends { client, node }, base, streams: BTreeMap::new(), broken: false },
        );
        (id, now.after(base * 2))
    }

    /// From now on until then nothing comes from one end to the other. What is sent meanwhile, or
    /// is under way, comes when the way heals, in order.
    pub fn cut_way(&mut self, from: End, to: End, until: Time) {
        let cut = self.cuts.entry((from, to)).or_default();
        *cut = until.max(*cut);
        // After all that is under way, which is due at that very time.
        let healed = cut.after(Duration::from_micros(1));
        if let Some(last) = self.carried.get_mut(&(from, to)) {
            *last = healed.max(*last);
        }
        for pipe in self.pipes.values_mut().filter(|pipe| !pipe.broken) {
            for stream in [Stream::Requests, Stream::Replies, Stream::Pushes] {
                if pipe.ends.way(stream) == (from, to)
                    && let Some(state) = pipe.streams.get_mut(&stream)
                {
                    state.last_due = healed.max(state.last_due);
                }
            }
        }
    }

    /// Until when the way from one end to the other is cut, if it is at this time.
    pub fn cut_until(&self, now: Time, from: End, to: End) -> Option<Time> {
        self.cuts.get(&(from, to)).copied().filter(|&until| now < until)
    }

    /// Whether what is sent on a connection that stands is held.
    pub fn is_held(&self, now: Time, conn: ConnId, stream: Stream) -> bool {
        self.pipes.get(&conn).filter(|pipe| !pipe.broken).is_some_and(|pipe| {
            let (from, to) = pipe.ends.way(stream);
            self.cut_until(now, from, to).is_some()
        })
    }

    /// Whether a connection can be established: for that, both have to hear the other.
    pub fn is_reachable(&self, now: Time, one: End, other: End) -> bool {
        self.cut_until(now, one, other).or(self.cut_until(now, other, one)).is_none()
    }

    /// When all ways have healed.
    pub fn heals_at(&self) -> Time {
        self.cuts.values().copied().max().unwrap_or_default()
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
        let cut = self.cuts.get(&pipe.ends.way(stream)).copied().filter(|&until| now < until);
        let healed = cut.map_or(now, |until| until.after(Duration::from_micros(1)));
        let state = pipe.streams.entry(stream).or_default();
        state.last_due = state.last_due.max(now.after(delay)).max(healed);
        Some(state.last_due)
    }

    /// When a message of one node to another is due: in order, and none is lost.
    pub fn carry(&mut self, now: Time, from: End, to: End) -> Time {
        let mut delay = Duration::from_micros(100 + self.rng.tailed(3000).min(50_000));
        if now < self.slow_until {
            delay += self.slow_by;
        }
        let cut = self.cut_until(now, from, to);
        let healed = cut.map_or(now, |until| until.after(Duration::from_micros(1)));
        let last = self.carried.entry((from, to)).or_insert(now);
        *last = now.after(delay).max(*last).max(healed);
        *last
    }

    /// Breaks a connection. Of each stream some suffix of what is under way is lost, and the rest
    /// may be held up until after newer connections stand.
    pub fn cut(&mut self, now: Time, conn: ConnId) {
        let Some(pipe) = self.pipes.get_mut(&conn).filter(|pipe| !pipe.broken) else { return };
        pipe.broken = true;
        for (&stream, state) in &mut pipe.streams {
            let under_way = state.last_due.since(now).as_micros() as u64;
            let way = pipe.ends.way(stream);
            let is_cut = self.cuts.get(&way).is_some_and(|&until| now < until);
            state.lost_after = Some(match self.rng.range(0, 3) {
                _ if is_cut => now,
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
        let Some(pipe) = self.pipes.get(&conn) else { return Arrival::Never };
        let Some(state) = pipe.streams.get(&stream) else { return Arrival::Never };
        let (from, to) = pipe.ends.way(stream);
        if let Some(until) = self.cut_until(due, from, to) {
            // Nobody sends again on a connection that is broken.
            return if pipe.broken { Arrival::Never } else { Arrival::Held(until) };
        }
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

    const CLIENT: End = End::Client(1);
    const NODE: End = End::Node(1);

    #[test]
    fn a_stream_keeps_its_order_and_a_break_takes_a_suffix() {
        for seed in 0..200 {
            let mut net = Net::new(Rng::new(seed));
            let (conn, up) = net.connect(Time(0), CLIENT, NODE);
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

    #[test]
    fn a_way_that_is_cut_holds_what_is_sent_until_it_heals_and_the_way_back_does_not() {
        for seed in 0..200 {
            let mut net = Net::new(Rng::new(seed));
            let (conn, up) = net.connect(Time(0), CLIENT, NODE);
            let at = |ms: u64| Time(up.0 + ms * 1000);
            // Some frames are under way when it is cut, others are sent later.
            let mut sent = vec![net.send(at(0), conn, Stream::Requests).unwrap()];
            net.cut_way(CLIENT, NODE, at(500));
            net.cut_way(CLIENT, NODE, at(1000));
            sent.extend((1..1100).map(|i| net.send(at(i), conn, Stream::Requests).unwrap()));
            assert!(sent.is_sorted());
            assert_eq!(
                net.arrives(sent[0], conn, Stream::Requests, false),
                Arrival::Held(at(1000))
            );
            assert!(sent[1..].iter().all(|&due| due > at(1000)));
            assert_eq!(net.arrives(sent[1], conn, Stream::Requests, false), Arrival::Now);
            let back = net.send(at(1), conn, Stream::Replies).unwrap();
            assert!(back < at(500));
            assert_eq!(net.arrives(back, conn, Stream::Replies, false), Arrival::Now);
            // Only where both ways are open a connection can be had.
            assert!(!net.is_reachable(at(999), CLIENT, NODE));
            assert!(net.is_reachable(at(1000), CLIENT, NODE));
            assert!(net.is_reachable(at(0), End::Client(2), NODE));
            assert!(net.is_reachable(at(0), CLIENT, End::Node(2)));
        }
    }

    #[test]
    fn what_a_cut_holds_is_lost_with_the_connection() {
        for seed in 0..200 {
            let mut net = Net::new(Rng::new(seed));
            let (conn, up) = net.connect(Time(0), CLIENT, NODE);
            let before = net.send(up, conn, Stream::Requests).unwrap();
            net.cut_way(CLIENT, NODE, Time(up.0 + 1_000_000));
            let held = net.send(up, conn, Stream::Requests).unwrap();
            net.cut(up, conn);
            for due in [before, held, Time(up.0 + 1_000_000)] {
                assert_eq!(net.arrives(due, conn, Stream::Requests, false), Arrival::Never);
            }
        }
    }

    #[test]
    fn news_between_nodes_comes_in_order_and_after_a_cut() {
        let (one, other) = (End::Node(0), End::Node(1));
        let mut net = Net::new(Rng::new(1));
        net.cut_way(one, other, Time(9_000));
        let due: Vec<Time> = (0..50).map(|i| net.carry(Time(i * 100), one, other)).collect();
        assert!(due.is_sorted() && due[0] > Time(9_000));
        assert_eq!(net.heals_at(), Time(9_000));
    }
}
