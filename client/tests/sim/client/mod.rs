//! A client of a run: the real session, driven as the client's own task drives it, over a network
//! that breaks and a clock that is wrong.

mod asks;
mod lister;
mod outcomes;
mod successor;
mod wire;

use crate::cluster::Cluster;
use crate::hub::{Event, Hub, Step};
use crate::keys::{name_of, space_of};
use crate::ring::node_of;
use crate::way::{Way, number_of};
use lockring_client::router::WorkerId;
use lockring_client::session::{
    ClaimRef, ClientMutant, Dial, LinkId, Outcome, ReceiveError, RequestIds, Session, SessionConfig,
};
use lockring_core::testing::{DELAY_MAX, End, Fact, KeyId, RateClock, Rng, Stream};
use lockring_core::{Access, ConnId, Identity, Time};
use lockring_proto::{Claim, Fence, HoldId, Namespace, Push, Reply, SessionId, codec, limits};
use lockring_ring::NamespaceSeed;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;
use successor::Estate;
use wire::{is_renewed, tell_compares};

/// A hello that nobody answers for this long is given up, as QUIC would.
const GREETING: Duration = Duration::from_secs(2);

/// Tokens of queries have this bit.
const QUERY: u64 = 1 << 40;

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
    pub cell: u16,
    pub named: ClaimRef,
    /// Where it was when it was looked at last, and the request that had made it.
    pub seen: Option<(LinkId, u64)>,
    pub state: State,
}

/// One link's end of the network.
struct LinkSide {
    way: Option<Way>,
    valid: Time,
    inbox: [Vec<u8>; 2],
    /// Holds that the worker pushed as lost on this connection.
    told_lost: BTreeSet<HoldId>,
}

fn config(session: SessionId, ttl: Duration, label: &str) -> SessionConfig {
    SessionConfig {
        session,
        ids: RequestIds::default(),
        taken_up: false,
        label: label.to_owned(),
        ttl,
        unreachable_after: Duration::from_secs(3),
    }
}

/// When it runs, and by which clock.
struct Host {
    clock: RateClock,
    paused_until: Time,
    /// What came during the pause.
    waiting: Vec<(Way, Stream, Vec<u8>)>,
    /// When its next event is planned.
    armed: Time,
    /// The connections that are being established.
    dials: BTreeMap<LinkId, ConnId>,
}

/// What stays the same through all of its lives.
struct Nature {
    mutant: Option<ClientMutant>,
    /// Holds in a frame of its compares: few make frames many.
    holds_per_frame: usize,
    seed: NamespaceSeed,
}

/// What it has asked for.
#[derive(Default)]
struct Asked {
    bytes: BTreeMap<KeyId, Vec<u8>>,
    next_token: u64,
    answers: BTreeMap<u64, Option<Reply>>,
    /// The page of a listing.
    listing: Option<u64>,
}

/// What it has of processes that were killed.
#[derive(Default)]
struct Past {
    /// What the last one has left to the next.
    estate: Option<Estate>,
    /// The session was begun by an earlier one.
    successor: bool,
    /// Their sessions, and until when their leases may run.
    former: Vec<(SessionId, Time)>,
}

/// A client.
pub struct Client {
    pub index: usize,
    pub life: u32,
    pub down: bool,
    pub session: SessionId,
    pub ttl: Duration,
    pub claims: BTreeMap<u64, Claimed>,
    pub rng: Rng,
    /// What it does with its slots.
    pub workload: crate::workload::Workload,
    /// Of this life.
    links: Session,
    sides: BTreeMap<LinkId, LinkSide>,
    /// It says goodbye, and believes in nothing any more.
    leaving: bool,
    host: Host,
    nature: Nature,
    asked: Asked,
    past: Past,
}

impl Client {
    pub fn new(
        index: usize,
        rng: Rng,
        workload: crate::workload::Workload,
        mutant: Option<ClientMutant>,
        slow: bool,
    ) -> Self {
        let mut rng = rng;
        let ppm = *rng.pick(&[-10_000, -3_000, 0, 5_000, 10_000]);
        let ppm = if slow { -30_000 } else { ppm };
        let nature = Nature {
            mutant,
            holds_per_frame: *rng.pick(&[1, 2, 5, limits::HOLDS_PER_FRAME]),
            seed: NamespaceSeed::of(name_of(space_of(index))),
        };
        let host = Host {
            clock: RateClock::new(rng.range(1, 1_000_000_000), ppm),
            paused_until: Time(0),
            waiting: Vec::new(),
            armed: Time::NEVER,
            dials: BTreeMap::new(),
        };
        Self {
            index,
            life: 0,
            down: true,
            session: SessionId([0; 16]),
            ttl: Duration::ZERO,
            claims: BTreeMap::new(),
            rng,
            workload,
            links: Session::new(config(SessionId([0; 16]), Duration::ZERO, "nobody"), Time(0), 0),
            sides: BTreeMap::new(),
            leaving: false,
            host,
            nature,
            asked: Asked::default(),
            past: Past::default(),
        }
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
        self.host.clock.shows(hub.now)
    }

    /// Starts, with a session of its own unless it takes up that of the process before.
    pub fn start(&mut self, hub: &mut Hub) {
        let (index, life) = (self.index, self.life);
        (self.down, self.leaving) = (false, false);
        self.host.paused_until = hub.now;
        self.past.successor = self.past.estate.is_some();
        let ids = if self.past.successor {
            self.take_up(hub)
        } else {
            let ids = self.begin_session();
            if self.ttl >= Duration::from_secs(10) {
                hub.reach("TTLs of ten seconds and more");
            }
            ids
        };
        let config = config(self.session, self.ttl, &self.identity().name);
        let config = SessionConfig { ids, taken_up: self.past.successor, ..config };
        let links = Session::new(config, self.local(hub), self.rng.draw());
        self.links = links
            .with_mutant(self.nature.mutant)
            .with_holds_per_frame(self.nature.holds_per_frame)
            .with_needless_compares(self.workload.needless_compares);
        self.carry(hub);
        for (after, step) in self.workload.begin(&mut self.rng) {
            hub.soon(after, Event::Step { client: index, life, step });
        }
    }

    fn begin_session(&mut self) -> RequestIds {
        let (index, life) = (self.index, self.life);
        self.session = SessionId(std::array::from_fn(|at| match at {
            0 => index as u8 + 1,
            1 => life as u8,
            _ => self.rng.draw() as u8,
        }));
        let long = self.workload.part == crate::workload::Part::Worker && self.rng.percent(4);
        let ttls: &[u64] = if long { &[10_000, 60_000] } else { &[1000, 1500, 2000, 3000] };
        let ttls = self.workload.ttls.unwrap_or(ttls);
        self.ttl = Duration::from_millis(*self.rng.pick(ttls));
        if self.rng.percent(25) {
            // Ids that are equal in their low halves must not be taken for one another.
            return RequestIds::from((1 << 32) - self.rng.range(1, 400));
        }
        RequestIds::default()
    }

    /// It is killed.
    pub fn crash(&mut self, hub: &mut Hub) {
        hub.reach("client crashes");
        // What is under way still counts as from it, and what is held up by a break too.
        let under_way = DELAY_MAX + Duration::from_secs(4);
        let worst_lease = limits::honoured(self.ttl) + self.ttl / 50 + under_way;
        hub.fact(&Fact::Crashed { session: self.session, worst_lease });
        self.past.former.push((self.session, hub.now.after(worst_lease)));
        self.past.estate = self.leave();
        for side in std::mem::take(&mut self.sides).into_values() {
            if let Some(way) = side.way {
                hub.cut(way, Duration::ZERO);
            }
        }
        self.life += 1;
        self.down = true;
        self.claims.clear();
        self.host.waiting.clear();
        self.host.dials.clear();
        self.asked.answers.clear();
        self.asked.listing = None;
        self.host.armed = Time::NEVER;
    }

    pub fn pause(&mut self, hub: &Hub, span: Duration) {
        self.host.paused_until = self.host.paused_until.max(hub.now.after(span));
    }

    pub fn resume(&mut self, hub: &mut Hub) {
        self.host.paused_until = self.host.paused_until.min(hub.now);
        hub.plan(hub.now, Event::Wake { client: self.index, life: self.life });
    }

    pub fn is_paused(&self, hub: &Hub) -> bool {
        hub.now < self.host.paused_until
    }

    /// When the last lease of a killed process of its ends.
    pub fn last_lease(&self) -> Option<Time> {
        self.past.former.iter().map(|&(_, until)| until).max()
    }

    /// Whether a lease of a killed process of its may still run.
    pub fn has_leases_left(&self, hub: &Hub) -> bool {
        self.past.former.iter().any(|&(session, until)| session != self.session && hub.now < until)
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// When it runs again.
    pub fn paused_until(&self) -> Time {
        self.host.paused_until
    }

    /// Nothing passes between it and these nodes for a while. Neither side is told.
    pub fn cut_off(&mut self, hub: &mut Hub, nodes: Range<usize>, span: Duration) {
        for node in nodes.clone() {
            let (client, node) = (End::Client(self.index), End::Node(node));
            hub.cut_way(client, node, span);
            hub.cut_way(node, client, span);
        }
        for side in self.sides.values() {
            if let Some(way) = side.way.filter(|way| nodes.contains(&way.node)) {
                hub.cut(way, span.min(Duration::from_secs(10)));
            }
        }
    }

    /// All of its connections break.
    pub fn cut(&mut self, hub: &mut Hub) {
        for side in self.sides.values() {
            if let Some(way) = side.way {
                let notices = match hub.rng.range(0, 3) {
                    0 => Duration::ZERO,
                    _ => Duration::from_micros(hub.rng.range(0, 400_000)),
                };
                hub.cut(way, notices);
            }
        }
    }

    /// A connection stands, or could not be had.
    pub fn stands(&mut self, hub: &mut Hub, cluster: &mut Cluster, way: Way) {
        // Nobody waits for what was dialled for a link that is over.
        if self.host.dials.get(&way.link) != Some(&way.conn) {
            return;
        }
        self.host.dials.remove(&way.link);
        let now = self.local(hub);
        let (client, node) = (End::Client(self.index), End::Node(way.node));
        let open = hub.net.is_reachable(hub.now, client, node);
        if !open {
            hub.reach("dials where a way is cut");
        }
        if open && !hub.net.is_broken(way.conn) && cluster.accept(way, self.identity()) {
            let side = self.side(way.link);
            side.way = Some(way);
            side.inbox = [Vec::new(), Vec::new()];
            side.told_lost.clear();
            if self.links.is_blind(way.link) {
                hub.reach("hellos without an incarnation");
            }
            self.links.connected(now, way.link);
            hub.soon(GREETING, Event::Unwelcome { way });
        } else {
            self.links.failed(now, way.link);
        }
        self.after(hub, cluster);
    }

    fn side(&mut self, link: LinkId) -> &mut LinkSide {
        let valid = self.links.valid_until(link);
        self.sides.entry(link).or_insert_with(|| LinkSide {
            way: None,
            // Until something was answered nothing is believed.
            valid,
            inbox: [Vec::new(), Vec::new()],
            told_lost: BTreeSet::new(),
        })
    }

    /// A connection is gone, as far as this side knows; `superseded`: its worker says that another
    /// hello has replaced it.
    pub fn loses(&mut self, hub: &mut Hub, cluster: &Cluster, way: Way, superseded: bool) {
        let now = self.local(hub);
        let side = self.side(way.link);
        if side.way.is_some_and(|known| known.conn == way.conn) {
            hub.cut(way, Duration::ZERO);
            side.way = None;
            // A late hello of the process before may replace one that has taken its session up: a
            // known limit, which runs are not to end by.
            if superseded && !self.past.successor {
                hub.reach("connections replaced by another hello");
                self.links.superseded(now, way.link);
            } else {
                self.links.down(now, way.link);
            }
            self.after(hub, cluster);
        }
    }

    pub fn unwelcome(&mut self, hub: &mut Hub, cluster: &Cluster, way: Way) {
        if !self.links.is_up(way.link) {
            self.loses(hub, cluster, way, false);
        }
    }

    /// A frame has come.
    pub fn frame(&mut self, hub: &mut Hub, cluster: &Cluster, way: Way, frame: (Stream, Vec<u8>)) {
        if self.is_paused(hub) {
            self.host.waiting.push((way, frame.0, frame.1));
            let event = Event::Wake { client: self.index, life: self.life };
            hub.plan(self.host.paused_until, event);
            return;
        }
        let now = self.local(hub);
        let Some(side) = self.sides.get_mut(&way.link) else { return };
        if side.way.is_none_or(|known| known.conn != way.conn) {
            return;
        }
        if frame.0 == Stream::Pushes
            && let Ok(Some((body, _))) = codec::split_frame(&frame.1)
            && let Ok(Push::Lost { holds, .. }) = codec::decode_frame(body)
        {
            side.told_lost.extend(holds);
        }
        let known = self.links.ring().map_or(0, |ring| ring.version().0);
        let inbox = &mut side.inbox[usize::from(frame.0 == Stream::Pushes)];
        inbox.extend_from_slice(&frame.1);
        let taken = match frame.0 {
            Stream::Pushes => self.links.receive_pushes(now, way.link, inbox),
            Stream::Requests | Stream::Replies => self.links.receive(now, way.link, inbox),
        };
        let taken = match taken {
            Ok(taken) => taken,
            // The welcome of a process that is over by now.
            Err(ReceiveError::Unexpected(_)) => {
                hub.reach("welcomes that nobody waits for");
                return self.loses(hub, cluster, way, false);
            }
            Err(error) => panic!("the node speaks the wire: {error}"),
        };
        inbox.drain(..taken);
        self.after(hub, cluster);
        if frame.0 == Stream::Replies && is_renewed(&frame.1, known) {
            let (session, worker, conn) = (self.session, way.number(), way.conn);
            hub.fact(&Fact::Renewed { session, worker, conn });
        }
    }

    /// Time has passed, or a pause is over: what came meanwhile is taken in before or after the
    /// link gets to know the time.
    pub fn wake(&mut self, hub: &mut Hub, cluster: &Cluster) {
        if self.host.armed == hub.now {
            self.host.armed = Time::NEVER;
        }
        if self.is_paused(hub) {
            hub.plan(self.host.paused_until, Event::Wake { client: self.index, life: self.life });
            return;
        }
        if self.rng.percent(50) {
            self.tick(hub, cluster);
        }
        for (way, stream, bytes) in std::mem::take(&mut self.host.waiting) {
            self.frame(hub, cluster, way, (stream, bytes));
        }
        self.tick(hub, cluster);
    }

    fn tick(&mut self, hub: &mut Hub, cluster: &Cluster) {
        let now = self.local(hub);
        if self.links.next_deadline().is_some_and(|at| at <= now) {
            self.links.tick(now);
        }
        self.after(hub, cluster);
    }

    /// After anything that was done with the session: what it has to say is heard, what it has to
    /// send is sent, and its next deadline is planned.
    fn after(&mut self, hub: &mut Hub, cluster: &Cluster) {
        loop {
            let outcomes = std::mem::take(self.links.outcomes());
            if outcomes.is_empty() {
                break;
            }
            for outcome in outcomes {
                hub.show(|| format!("{:?} hears {outcome:?}", self.session));
                if let Outcome::Granted { link, .. } = outcome {
                    let node = self.links.worker(link).map(|worker| node_of(worker.node));
                    if node.is_some_and(|node| cluster.is_another_down(node)) {
                        hub.reach("grants while another node is down");
                    }
                    self.believe(hub, cluster, link);
                }
                if let Outcome::Settled { link, .. } = outcome {
                    self.believe(hub, cluster, link);
                }
                self.hear(hub, outcome);
            }
        }
        for link in self.links.links() {
            self.believe(hub, cluster, link);
        }
        self.check_told(hub);
        self.count_moved(hub);
        self.carry(hub);
    }

    /// Sends what is to be sent, dials who is to be dialled, and plans to look again.
    fn carry(&mut self, hub: &mut Hub) {
        let now = self.local(hub);
        let closed = self.links.is_closed(now);
        for link in self.links.links() {
            self.flush(hub, link);
        }
        while !closed && let Some(dial) = self.links.next_dial(now) {
            self.dial(hub, dial);
        }
        if !closed {
            self.arm(hub);
        }
    }

    fn dial(&mut self, hub: &mut Hub, Dial { link, worker }: Dial) {
        let (node, worker) = match worker {
            Some(WorkerId { node, worker }) => (node_of(node), worker),
            // The user has named the first worker of every node.
            None => (hub.ring.any_node(&mut self.rng), 0),
        };
        let (conn, at) = hub.net.connect(hub.now, End::Client(self.index), End::Node(node));
        let way = Way { conn, client: self.index, life: self.life, link, node, worker };
        self.host.dials.insert(link, conn);
        hub.plan(at, Event::Stands { way });
    }

    /// What was pushed as lost is not held, whichever of grant and push came first.
    fn check_told(&self, hub: &mut Hub) {
        for told in self.sides.values().map(|side| &side.told_lost).filter(|told| !told.is_empty())
        {
            for claimed in self.claims.values() {
                let State::Holding(fence) = claimed.state else { continue };
                if told.contains(&HoldId { cell: claimed.cell, fence }) {
                    let what = format!("{:?} keeps {claimed:?}", self.session);
                    hub.accuse("I5 told of a loss", what);
                }
            }
        }
    }

    /// Counts the claims that have come to another link.
    fn count_moved(&mut self, hub: &mut Hub) {
        for claimed in self.claims.values_mut() {
            let link = self.links.link_of(claimed.named);
            let seen = link.zip(self.links.request_of(claimed.named));
            if let (Some((before, old)), Some((now, id))) = (claimed.seen, seen)
                && before != now
            {
                hub.reach("claims at another worker");
                if old == id {
                    hub.reach("claims under their own ids");
                }
            }
            claimed.seen = seen;
        }
    }

    /// The number of a link's worker.
    fn worker(&self, link: LinkId) -> Option<u16> {
        self.links.worker(link).map(|WorkerId { node, worker }| number_of(node_of(node), worker))
    }

    fn believe(&mut self, hub: &mut Hub, cluster: &Cluster, link: LinkId) {
        if self.leaving {
            // With the goodbye nothing is believed any more, as the client's task has it.
            return;
        }
        let (valid, worker) = (self.links.valid_until(link), self.worker(link));
        let side = self.side(link);
        if valid != side.valid
            && let Some(worker) = worker
        {
            side.valid = valid;
            // The last instant at which it surely believes.
            let until = Time(self.host.clock.real(valid).0.saturating_sub(1));
            // Of a link that has just begun nothing is believed yet.
            let honoured = cluster.honours_until(worker, self.session).filter(|_| until >= hub.now);
            hub.fact(&Fact::Believes { session: self.session, worker, until, honoured });
        }
    }

    fn flush(&mut self, hub: &mut Hub, link: LinkId) {
        let Some(way) = self.sides.get(&link).and_then(|side| side.way) else { return };
        let bytes = std::mem::take(self.links.outgoing(link));
        let mut waiting = self.claims.values().filter(|claim| claim.state == State::Waiting);
        let load = waiting.any(|claim| self.links.link_of(claim.named) == Some(link));
        tell_compares(hub, &bytes, load);
        hub.send(way, Stream::Requests, &bytes, hub.now);
    }

    /// Plans the next time that the session wants to know it.
    fn arm(&mut self, hub: &mut Hub) {
        let Some(local) = self.links.next_deadline() else { return };
        let at = self.host.clock.real(local).max(hub.now).max(self.host.paused_until);
        if at < self.host.armed {
            self.host.armed = at;
            hub.plan(at, Event::Wake { client: self.index, life: self.life });
        }
    }

    pub fn plan(&self, hub: &mut Hub, after: Duration, step: Step) {
        hub.soon(after, Event::Step { client: self.index, life: self.life, step });
    }
}
