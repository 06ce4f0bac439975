//! A client of a run: the real link logic, driven as the client's own task drives it, over a
//! network that breaks and a clock that is wrong.

mod asks;
mod heir;
mod lister;
mod outcomes;
mod wire;

use crate::hub::{Event, Hub, Step, Way};
use crate::keys::{name_of, space_of};
use crate::node::Node;
use heir::Estate;
use lockring_client::link::{ClaimRef, Link, LinkConfig, LinkMutant, Outcome, RequestIds, Serves};
use lockring_client::router::{Ring, RingUnderWay};
use lockring_core::testing::{DELAY_MAX, Fact, KeyId, RateClock, Rng, Stream};
use lockring_core::{Access, ConnId, Identity, Time};
use lockring_proto::{Claim, Fence, HoldId, Namespace, Push, Reply, SessionId, codec, limits};
use lockring_ring::{CellId, NamespaceSeed};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use wire::{is_renewed, tell_compares};

/// A greeting that nobody answers for so long is given up, as QUIC would.
const GREETING: Duration = Duration::from_secs(2);

/// Tokens of queries have this bit.
const QUERY: u64 = 1 << 40;

/// The version of a ring, and which cells are a worker's by it.
fn routes(ring: &Ring, worker: u16) -> (u64, Serves) {
    let ring = ring.clone();
    let version = ring.version().0;
    let is_its = move |cell| ring.worker_of(CellId(cell)).is_some_and(|at| at.worker == worker);
    (version, Arc::new(is_its))
}

/// What a claim is up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Waiting,
    /// It asks whether an earlier process's hold is still held.
    Asking(Fence),
    Holding(Fence),
    Giving,
    Undoing,
}

/// A claim.
#[derive(Clone, Copy, Debug)]
pub struct Claimed {
    pub slot: usize,
    pub key: KeyId,
    pub claim: Claim,
    pub worker: u16,
    pub cell: u16,
    pub named: ClaimRef,
    pub state: State,
}

struct Lane {
    link: Link,
    way: Option<Way>,
    dialling: bool,
    incarnation: u64,
    backoff: Duration,
    valid: Time,
    inbox: [Vec<u8>; 2],
    /// Holds that the worker pushed as lost on this connection.
    told_lost: BTreeSet<HoldId>,
    ring: RingUnderWay,
}

/// A client.
pub struct Client {
    pub index: usize,
    pub life: u32,
    pub down: bool,
    pub session: SessionId,
    pub claims: BTreeMap<u64, Claimed>,
    pub rng: Rng,
    pub ttl: Duration,
    /// Holds in a frame of its compares: few make frames many.
    holds_per_frame: usize,
    /// What it does with its slots.
    pub workload: crate::workload::Workload,
    clock: RateClock,
    mutant: Option<LinkMutant>,
    paused_until: Time,
    waiting: Vec<(Way, Stream, Vec<u8>)>,
    lanes: BTreeMap<u16, Lane>,
    ids: RequestIds,
    ring: Option<Ring>,
    seed: NamespaceSeed,
    /// The keys it has asked for.
    bytes: BTreeMap<KeyId, Vec<u8>>,
    next_token: u64,
    armed: Time,
    answers: BTreeMap<u64, Option<Reply>>,
    /// The page of a listing that it has asked for.
    listing: Option<u64>,
    /// What a killed process has left to the next.
    estate: Option<Estate>,
    /// The session was begun by an earlier process.
    heir: bool,
    /// It has said goodbye, and does not connect any more.
    leaving: bool,
    /// Until then it does not reach the node.
    cut_off_until: Time,
    /// Sessions of killed processes, and until when their leases may run.
    former: Vec<(SessionId, Time)>,
}

impl Client {
    pub fn new(
        index: usize,
        rng: Rng,
        workload: crate::workload::Workload,
        mutant: Option<LinkMutant>,
        slow: bool,
    ) -> Self {
        let mut rng = rng;
        let ppm = *rng.pick(&[-10_000, -3_000, 0, 5_000, 10_000]);
        let ppm = if slow { -30_000 } else { ppm };
        Self {
            index,
            life: 0,
            down: true,
            session: SessionId([0; 16]),
            claims: BTreeMap::new(),
            ttl: Duration::ZERO,
            holds_per_frame: *rng.pick(&[1, 2, 5, limits::HOLDS_PER_FRAME]),
            workload,
            clock: RateClock::new(rng.range(1, 1_000_000_000), ppm),
            rng,
            mutant,
            paused_until: Time(0),
            waiting: Vec::new(),
            lanes: BTreeMap::new(),
            ids: RequestIds::default(),
            ring: None,
            seed: NamespaceSeed::of(name_of(space_of(index))),
            bytes: BTreeMap::new(),
            next_token: 0,
            armed: Time::NEVER,
            answers: BTreeMap::new(),
            listing: None,
            estate: None,
            heir: false,
            leaving: false,
            cut_off_until: Time(0),
            former: Vec::new(),
        }
    }

    fn way(&self, conn: ConnId, worker: u16) -> Way {
        Way { conn, client: self.index, life: self.life, worker }
    }

    pub fn identity(&self) -> Identity {
        Identity {
            namespace: Namespace::new(name_of(space_of(self.index))).expect("a namespace"),
            name: format!("client-{}", self.index),
            access: Access::Operator,
            ttl_max: limits::TTL_MAX,
        }
    }

    fn local(&self, hub: &Hub) -> Time {
        self.clock.shows(hub.now)
    }

    /// Starts, with a session of its own unless it takes up that of the process before.
    pub fn start(&mut self, hub: &mut Hub) {
        let (index, life) = (self.index, self.life);
        (self.down, self.leaving) = (false, false);
        self.paused_until = hub.now;
        self.heir = self.estate.is_some();
        if self.heir {
            self.take_up(hub);
        } else {
            self.begin_session();
            if self.ttl >= Duration::from_secs(10) {
                hub.reach("TTLs of ten seconds and more");
            }
        }
        self.lane(hub, 0);
        for (after, step) in self.workload.begin(&mut self.rng) {
            hub.soon(after, Event::Step { client: index, life, step });
        }
    }

    fn begin_session(&mut self) {
        let (index, life) = (self.index, self.life);
        self.session = SessionId(std::array::from_fn(|at| match at {
            0 => index as u8 + 1,
            1 => life as u8,
            _ => self.rng.draw() as u8,
        }));
        let long = self.workload.part == crate::workload::Part::Worker && self.rng.percent(4);
        let ttls: &[u64] = if long { &[10_000, 60_000] } else { &[1000, 1500, 2000, 3000] };
        self.ttl = Duration::from_millis(*self.rng.pick(ttls));
        self.ids = RequestIds::default();
        if self.rng.percent(25) {
            // Ids that are equal in their low halves must not be taken for one another.
            self.ids = RequestIds::from((1 << 32) - self.rng.range(1, 400));
        }
    }

    /// It is killed.
    pub fn crash(&mut self, hub: &mut Hub) {
        hub.reach("client crashes");
        // What is under way still counts as from it, and what is held up by a break too.
        let under_way = DELAY_MAX + Duration::from_secs(4);
        let worst_lease = limits::honoured(self.ttl) + self.ttl / 50 + under_way;
        hub.fact(&Fact::Crashed { session: self.session, worst_lease });
        self.former.push((self.session, hub.now.after(worst_lease)));
        self.estate = self.leave();
        for lane in std::mem::take(&mut self.lanes).into_values() {
            if let Some(way) = lane.way {
                hub.cut(way, Duration::ZERO);
            }
        }
        self.life += 1;
        self.down = true;
        self.claims.clear();
        self.waiting.clear();
        self.answers.clear();
        self.listing = None;
        self.ring = None;
        self.armed = Time::NEVER;
    }

    pub fn pause(&mut self, hub: &Hub, span: Duration) {
        self.paused_until = self.paused_until.max(hub.now.after(span));
    }

    pub fn resume(&mut self, hub: &mut Hub) {
        self.paused_until = self.paused_until.min(hub.now);
        hub.plan(hub.now, Event::Wake { client: self.index, life: self.life });
    }

    pub fn is_paused(&self, hub: &Hub) -> bool {
        hub.now < self.paused_until
    }

    /// When the last lease of a killed process of its ends.
    pub fn last_lease(&self) -> Option<Time> {
        self.former.iter().map(|&(_, until)| until).max()
    }

    /// Whether a lease of a killed process of its may still run.
    pub fn has_leases_left(&self, hub: &Hub) -> bool {
        self.former.iter().any(|&(session, until)| session != self.session && hub.now < until)
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// When it runs again.
    pub fn paused_until(&self) -> Time {
        self.paused_until
    }

    /// For so long nothing passes between it and the node. Neither side is told.
    pub fn cut_off(&mut self, hub: &mut Hub, span: Duration) {
        hub.reach("partitions");
        self.cut_off_until = hub.now.after(span);
        for lane in self.lanes.values() {
            if let Some(way) = lane.way {
                hub.cut(way, span.min(Duration::from_secs(10)));
            }
        }
    }

    /// All of its connections break.
    pub fn cut(&mut self, hub: &mut Hub) {
        for lane in self.lanes.values() {
            if let Some(way) = lane.way {
                let notices = match hub.rng.range(0, 3) {
                    0 => Duration::ZERO,
                    _ => Duration::from_micros(hub.rng.range(0, 400_000)),
                };
                hub.cut(way, notices);
            }
        }
    }

    /// The lane to a worker, which may have to be opened.
    fn lane(&mut self, hub: &mut Hub, worker: u16) -> &mut Lane {
        let (client, life, now) = (self.index, self.life, self.local(hub));
        let config = LinkConfig {
            session: self.session,
            ids: self.ids.clone(),
            label: self.identity().name,
            ttl: self.ttl,
            unreachable_after: Duration::from_secs(3),
        };
        let (ring, mutant) = (self.ring.as_ref().map(|ring| routes(ring, worker)), self.mutant);
        let frame = self.holds_per_frame;
        self.lanes.entry(worker).or_insert_with(|| {
            let link = Link::new(config, now).with_mutant(mutant);
            let mut link = link.with_holds_per_frame(frame);
            if let Some((version, serves)) = ring {
                link.ring_is(now, version, serves);
            }
            hub.plan(hub.now, Event::Dial { client, life, worker });
            let valid = link.valid_until();
            let inbox = [Vec::new(), Vec::new()];
            Lane {
                link,
                way: None,
                dialling: true,
                incarnation: 0,
                backoff: Duration::ZERO,
                valid,
                inbox,
                told_lost: BTreeSet::new(),
                ring: RingUnderWay::default(),
            }
        })
    }

    pub fn dial(&mut self, hub: &mut Hub, worker: u16) {
        let (conn, at) = hub.net.connect(hub.now);
        let way = self.way(conn, worker);
        hub.plan(at, Event::Stands { way });
    }

    /// A connection stands, or could not be had.
    pub fn stands(&mut self, hub: &mut Hub, node: &mut Node, way: Way) {
        let now = self.local(hub);
        let reached = !hub.net.is_broken(way.conn) && hub.now >= self.cut_off_until;
        let accepted = reached && node.accept(way, self.identity());
        let Some(lane) = self.lanes.get_mut(&way.worker) else { return };
        lane.dialling = false;
        if accepted {
            lane.way = Some(way);
            lane.inbox = [Vec::new(), Vec::new()];
            lane.told_lost.clear();
            lane.incarnation = lane.incarnation.max(lane.link.incarnation()) + 1;
            // How often the earlier process has connected is not known here.
            let known = !self.heir || lane.link.incarnation() > 0;
            if !known {
                hub.reach("hellos without an incarnation");
            }
            lane.link.greet(now, if known { lane.incarnation } else { 0 });
            hub.soon(GREETING, Event::Unwelcome { way });
        }
        self.after(hub, node, way.worker);
    }

    /// A connection is gone, as far as this side knows.
    pub fn loses(&mut self, hub: &mut Hub, node: &Node, way: Way) {
        let now = self.local(hub);
        let Some(lane) = self.lanes.get_mut(&way.worker) else { return };
        if lane.way.is_some_and(|known| known.conn == way.conn) {
            hub.cut(way, Duration::ZERO);
            lane.way = None;
            lane.link.down(now);
            self.after(hub, node, way.worker);
        }
    }

    pub fn unwelcome(&mut self, hub: &mut Hub, node: &Node, way: Way) {
        if self.lanes.get(&way.worker).is_some_and(|lane| !lane.link.is_up()) {
            self.loses(hub, node, way);
        }
    }

    /// A frame has come.
    pub fn frame(&mut self, hub: &mut Hub, node: &Node, way: Way, frame: (Stream, Vec<u8>)) {
        if self.is_paused(hub) {
            self.waiting.push((way, frame.0, frame.1));
            let event = Event::Wake { client: self.index, life: self.life };
            hub.plan(self.paused_until, event);
            return;
        }
        let now = self.local(hub);
        let Some(lane) = self.lanes.get_mut(&way.worker) else { return };
        if lane.way.is_none_or(|known| known.conn != way.conn) {
            return;
        }
        if frame.0 == Stream::Pushes
            && let Ok(Some((body, _))) = codec::split_frame(&frame.1)
            && let Ok(Push::Lost { holds, .. }) = codec::decode_frame(body)
        {
            lane.told_lost.extend(holds);
        }
        let inbox = &mut lane.inbox[usize::from(frame.0 == Stream::Pushes)];
        inbox.extend_from_slice(&frame.1);
        let taken = match frame.0 {
            Stream::Pushes => lane.link.receive_pushes(now, inbox),
            Stream::Requests | Stream::Replies => lane.link.receive(now, inbox),
        };
        inbox.drain(..taken.expect("the node speaks the wire"));
        self.after(hub, node, way.worker);
        if frame.0 == Stream::Replies && is_renewed(&frame.1) {
            let (session, worker, conn) = (self.session, way.worker, way.conn);
            hub.fact(&Fact::Renewed { session, worker, conn });
        }
    }

    /// Time has passed, or a pause is over: what came meanwhile is taken in before or after the
    /// link gets to know the time.
    pub fn wake(&mut self, hub: &mut Hub, node: &Node) {
        if self.armed == hub.now {
            self.armed = Time::NEVER;
        }
        if self.is_paused(hub) {
            hub.plan(self.paused_until, Event::Wake { client: self.index, life: self.life });
            return;
        }
        if self.rng.percent(50) {
            self.tick(hub, node);
        }
        for (way, stream, bytes) in std::mem::take(&mut self.waiting) {
            self.frame(hub, node, way, (stream, bytes));
        }
        self.tick(hub, node);
    }

    fn tick(&mut self, hub: &mut Hub, node: &Node) {
        let now = self.local(hub);
        let workers: Vec<u16> = self.lanes.keys().copied().collect();
        for worker in workers {
            let Some(lane) = self.lanes.get_mut(&worker) else { continue };
            if lane.link.next_deadline().is_some_and(|at| at <= now) {
                lane.link.tick(now);
            }
            self.after(hub, node, worker);
        }
    }

    /// After anything that was done with a link: what it has to say is heard, what it has to send
    /// is sent, and its next deadline is planned.
    fn after(&mut self, hub: &mut Hub, node: &Node, worker: u16) {
        self.check_silence(hub, worker);
        loop {
            let Some(lane) = self.lanes.get_mut(&worker) else { return };
            let outcomes = std::mem::take(lane.link.outcomes());
            if outcomes.is_empty() {
                break;
            }
            for outcome in outcomes {
                if matches!(outcome, Outcome::Granted { .. }) {
                    self.believe(hub, node, worker);
                }
                self.hear(hub, worker, outcome);
            }
        }
        self.believe(hub, node, worker);
        self.check_told(hub, worker);
        self.flush(hub, worker);
        self.redial(hub, worker);
        self.arm(hub);
    }

    fn check_silence(&mut self, hub: &mut Hub, worker: u16) {
        let now = self.local(hub);
        let Some(lane) = self.lanes.get_mut(&worker) else { return };
        if lane.link.is_silent(now)
            && let Some(way) = lane.way.take()
        {
            hub.reach("connections given up as silent");
            hub.cut(way, Duration::ZERO);
            lane.link.down(now);
        }
    }

    /// What was pushed as lost is not held, whichever of grant and push came first.
    fn check_told(&self, hub: &mut Hub, worker: u16) {
        let told = &self.lanes[&worker].told_lost;
        if told.is_empty() {
            return;
        }
        for claimed in self.claims.values().filter(|claimed| claimed.worker == worker) {
            let State::Holding(fence) = claimed.state else { continue };
            if told.contains(&HoldId { cell: claimed.cell, fence }) {
                hub.accuse("I5 told of a loss", format!("{:?} keeps {claimed:?}", self.session));
            }
        }
    }

    fn believe(&mut self, hub: &mut Hub, node: &Node, worker: u16) {
        if self.leaving {
            // With the goodbye nothing is believed any more, as the client's task has it.
            return;
        }
        let Some(lane) = self.lanes.get_mut(&worker) else { return };
        let valid = lane.link.valid_until();
        if valid != lane.valid {
            lane.valid = valid;
            // The last instant at which it surely believes.
            let until = Time(self.clock.real(valid).0.saturating_sub(1));
            let honoured = node.honours_until(worker, self.session);
            hub.fact(&Fact::Believes { session: self.session, worker, until, honoured });
        }
    }

    fn flush(&mut self, hub: &mut Hub, worker: u16) {
        let Some(lane) = self.lanes.get_mut(&worker) else { return };
        if let Some(way) = lane.way {
            let bytes = std::mem::take(lane.link.outgoing());
            let mut waits = self.claims.values().filter(|claim| claim.worker == worker);
            tell_compares(hub, &bytes, waits.any(|claim| claim.state == State::Waiting));
            hub.send(way, Stream::Requests, &bytes, hub.now);
        }
    }

    fn redial(&mut self, hub: &mut Hub, worker: u16) {
        let (client, life) = (self.index, self.life);
        let Some(lane) = self.lanes.get_mut(&worker) else { return };
        if lane.way.is_none() && !lane.dialling && !self.leaving {
            lane.dialling = true;
            hub.soon(lane.backoff, Event::Dial { client, life, worker });
            lane.backoff =
                (lane.backoff * 2).clamp(Duration::from_millis(10), Duration::from_millis(500));
        }
    }

    /// Plans the next time that a link wants to know it.
    fn arm(&mut self, hub: &mut Hub) {
        let deadlines = self.lanes.values().filter_map(|lane| lane.link.next_deadline());
        let Some(local) = deadlines.min() else { return };
        let at = self.clock.real(local).max(hub.now).max(self.paused_until);
        if at < self.armed {
            self.armed = at;
            hub.plan(at, Event::Wake { client: self.index, life: self.life });
        }
    }

    pub fn plan(&self, hub: &mut Hub, after: Duration, step: Step) {
        hub.soon(after, Event::Step { client: self.index, life: self.life, step });
    }
}
