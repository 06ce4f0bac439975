//! What all participants of a run share: the agenda, the network, the recorder, and what was
//! reached.

use crate::agenda::NodeEvent;
use crate::ring::ClusterRing;
use crate::way::Way;
use lockring_core::Time;
use lockring_core::testing::{Arrival, Check, End, Fact, KeyId, Net, Recorder, Rng, Stream, Trace};
use lockring_proto::{Fence, SessionId};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::time::Duration;

/// What a client does next by itself.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// A slot asks for its next key.
    Claim(usize),
    /// A hold is given back.
    Release(u64),
    /// A claim is given up.
    GiveUp(u64),
    /// Someone who lost a hold has not noticed, and writes.
    WriteLate(KeyId, Fence),
    /// A listing goes on.
    List,
    /// The client is killed by its own doing.
    Die,
}

/// Something on the agenda. `life` tells a restarted client or node from its former self.
#[derive(Clone, Debug)]
pub enum Event {
    /// A frame is due.
    Frame { way: Way, stream: Stream, bytes: Vec<u8>, held: bool },
    /// A client notices that a connection is gone; `superseded`: its worker says that another
    /// hello of the session has replaced it.
    ClientNotices { way: Way, superseded: bool },
    /// The connection stands.
    Stands { way: Way },
    /// Nobody welcomed the client on it for too long.
    Unwelcome { way: Way },
    /// A client may have something to do.
    Wake { client: usize, life: u32 },
    /// A client's own plans.
    Step { client: usize, life: u32, step: Step },
    /// A client comes back.
    Return { client: usize },
    /// Something of the nodes.
    Node(NodeEvent),
}

/// What all share.
pub struct Hub {
    pub now: Time,
    pub rng: Rng,
    /// As the cluster's log has it.
    pub ring: ClusterRing,
    pub net: Net,
    pub recorder: Recorder,
    pub trace: Trace,
    /// How often what was reached.
    pub reached: BTreeMap<&'static str, u64>,
    /// Requests that their clients are undoing.
    pub undoing: BTreeSet<(SessionId, u64)>,
    /// The highest fence that what a lock protects has seen.
    fences: BTreeMap<KeyId, Fence>,
    agenda: BTreeMap<(Time, u64), Event>,
    planned: u64,
    verbose: bool,
}

impl Hub {
    pub fn new(
        mut rng: Rng,
        ring: ClusterRing,
        checks: Vec<Box<dyn Check>>,
        verbose: bool,
    ) -> Self {
        Self {
            now: Time(0),
            net: Net::new(rng.fork()),
            rng,
            ring,
            recorder: Recorder::new(checks),
            trace: Trace::default(),
            reached: BTreeMap::new(),
            undoing: BTreeSet::new(),
            fences: BTreeMap::new(),
            agenda: BTreeMap::new(),
            planned: 0,
            verbose,
        }
    }

    /// Plans an event.
    pub fn plan(&mut self, at: Time, event: Event) {
        self.planned += 1;
        self.agenda.insert((at.max(self.now), self.planned), event);
    }

    /// Plans an event after a span.
    pub fn soon(&mut self, after: Duration, event: Event) {
        self.plan(self.now.after(after), event);
    }

    /// The next event before `until`; the clock moves there.
    pub fn next(&mut self, until: Time) -> Option<Event> {
        let entry = self.agenda.first_entry()?;
        if entry.key().0 > until {
            return None;
        }
        let ((at, _), event) = entry.remove_entry();
        self.now = at;
        self.trace.write_u64(at.0);
        if self.verbose {
            println!("{at} {event:?}");
        }
        Some(event)
    }

    /// Sends frames on one stream, each of which may be the first that is lost.
    pub fn send(&mut self, way: Way, stream: Stream, bytes: &[u8], at: Time) {
        let mut rest = bytes;
        while let Ok(Some((_, after))) = lockring_proto::codec::split_frame(rest) {
            let bytes = rest[..rest.len() - after.len()].to_vec();
            rest = after;
            self.trace.write(&bytes);
            if self.net.is_held(at, way.conn, stream) {
                self.reach_held(stream);
            }
            if let Some(due) = self.net.send(at, way.conn, stream) {
                self.plan(due, Event::Frame { way, stream, bytes, held: false });
            }
        }
        assert!(rest.is_empty(), "half a frame is to be sent");
    }

    fn reach_held(&mut self, stream: Stream) {
        self.reach(match stream {
            Stream::Requests => "requests held by a cut",
            Stream::Replies | Stream::Pushes => "answers held by a cut",
        });
    }

    /// Whether a frame that is due is really here; one that is held up is planned anew.
    pub fn arrives(&mut self, way: Way, stream: Stream, bytes: &[u8], held: bool) -> bool {
        match self.net.arrives(self.now, way.conn, stream, held) {
            Arrival::Now => true,
            Arrival::Never => false,
            Arrival::Held(at) => {
                self.reach_held(stream);
                self.plan(at, Event::Frame { way, stream, bytes: bytes.to_vec(), held });
                false
            }
            Arrival::Later(at) => {
                self.reach("frames held up by a break");
                self.plan(at, Event::Frame { way, stream, bytes: bytes.to_vec(), held: true });
                false
            }
        }
    }

    /// A connection breaks; both sides notice, some time.
    pub fn cut(&mut self, way: Way, client_notices: Duration) {
        if self.net.is_broken(way.conn) {
            return;
        }
        self.reach("broken connections");
        self.net.cut(self.now, way.conn);
        self.fact(&Fact::Hung { conn: way.conn });
        let node_notices = Duration::from_micros(self.rng.range(0, 2_500_000));
        self.soon(client_notices, Event::ClientNotices { way, superseded: false });
        self.soon(node_notices, Event::Node(NodeEvent::Notices { way }));
    }

    /// A worker ends a connection: what it has said before arrives, then the end.
    pub fn hang_up(&mut self, way: Way, superseded: bool) {
        self.fact(&Fact::Hung { conn: way.conn });
        if let Some(due) = self.net.send(self.now, way.conn, Stream::Replies) {
            let event = Event::ClientNotices { way, superseded };
            self.plan(due.after(Duration::from_millis(1)), event);
        }
        self.soon(Duration::from_secs(2), Event::Node(NodeEvent::Notices { way }));
    }

    /// Nothing comes from one end to the other for a while.
    pub fn cut_way(&mut self, from: End, to: End, span: Duration) {
        self.net.cut_way(from, to, self.now.after(span));
    }

    pub fn fact(&mut self, fact: &Fact) {
        if self.verbose {
            println!("{}   {fact:?}", self.now);
        }
        self.recorder.record(self.now, fact);
    }

    /// Shows what happens, if somebody looks.
    pub fn show(&self, what: impl FnOnce() -> String) {
        if self.verbose {
            println!("{}   {}", self.now, what());
        }
    }

    /// What a lock protects is read, or written.
    pub fn used(&mut self, key: KeyId, fence: Fence, write: bool) {
        let highest = self.fences.entry(key).or_insert(fence);
        let refused = fence < *highest;
        *highest = fence.max(*highest);
        if refused && write {
            self.reach("writes refused by the fence");
        }
        self.fact(&Fact::Used { key, fence, write });
    }

    pub fn reach(&mut self, what: &'static str) {
        self.reach_n(what, 1);
    }

    pub fn reach_n(&mut self, what: &'static str, n: u64) {
        *self.reached.entry(what).or_default() += n;
    }

    pub fn accuse(&mut self, rule: &'static str, what: String) {
        self.recorder.accuse(self.now, rule, what);
    }
}
