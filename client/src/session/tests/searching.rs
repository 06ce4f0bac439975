//! Nobody of the ring answers: the seeds are tried, and whoever is met there.

use super::at;
use super::world::{Heard, KEY, World};
use crate::claims::ClaimRef;
use crate::link::{Loss, Outcome};
use crate::router::WorkerId;
use crate::session::{Contact, Dial, LinkId};
use lockring_proto::{
    Hello, HelloReply, Refusal, RefusalKind, Reply, RingChunk, Time, Welcome, codec,
};
use lockring_ring::{CellBits, Epoch, NodeId, Placement, RingTable, RingVersion};

const FIRST: WorkerId = WorkerId { node: NodeId(1), worker: 0 };

/// All connections are gone, and who is dialled does not answer.
fn alone(world: &mut World) {
    for link in world.session.links() {
        world.session.down(world.now, link);
    }
    world.told();
}

/// Whoever is dialled until then, but for those whom anybody may answer, is not reached.
fn search(world: &mut World, until: Time) -> Option<LinkId> {
    while world.now < until {
        while let Some(Dial { link, worker }) = world.session.next_dial(world.now) {
            if worker.is_none() {
                return Some(link);
            }
            world.session.failed(world.now, link);
        }
        world.tick(50);
    }
    None
}

/// A session of one node is alone: the link to that node, and one by the seeds.
fn searching(mut world: World) -> (World, LinkId, LinkId) {
    let own = world.at(1);
    alone(&mut world);
    let link = search(&mut world, at(9000)).expect("the seeds are tried");
    (world, own, link)
}

/// The same, with a hold.
fn searching_with_a_hold() -> (World, LinkId, LinkId, ClaimRef) {
    let mut world = World::of(1, 30_000);
    let (claim, ..) = world.holds(KEY);
    let (world, own, link) = searching(world);
    (world, own, link, claim)
}

/// A session that another process has begun, of one node, welcomed there as the eighth.
fn taken_up(worker: Option<WorkerId>) -> (World, LinkId) {
    let mut world = World::of(1, 30_000);
    world.session.shared.config.taken_up = true;
    let own = world.at(1);
    let met = Welcome { incarnation: 8, ..world.welcome(own, true) };
    let config = world.session.shared.config.clone();
    world.session.contacts[own.index()] = Contact::new(own, worker, &config, world.now);
    assert!(world.session.next_dial(world.now).is_some());
    assert_eq!(incarnation(&mut world, own), 0);
    hears(&mut world, own, &HelloReply::Welcome(met));
    (world, own)
}

/// The incarnation of the hello that a link sends.
fn incarnation(world: &mut World, link: LinkId) -> u64 {
    world.session.connected(world.now, link);
    let bytes = std::mem::take(world.session.outgoing(link));
    let (body, _) = codec::split_frame(&bytes).unwrap().unwrap();
    codec::decode_frame::<Hello>(body).unwrap().incarnation
}

fn hears(world: &mut World, link: LinkId, reply: &HelloReply) {
    let mut bytes = Vec::new();
    codec::encode_frame(reply, &mut bytes);
    world.session.receive(world.now, link, &bytes).unwrap();
}

fn superseded() -> HelloReply {
    HelloReply::Refused(Refusal {
        kind: RefusalKind::Superseded,
        message: "another hello".to_owned(),
    })
}

fn has_ended(world: &mut World) -> bool {
    let ends = |told: &Outcome| matches!(told, Outcome::Ended { loss: Loss::Superseded, .. });
    world.told().iter().any(ends)
}

#[test]
fn a_cluster_that_has_begun_anew_is_found_by_the_seeds() {
    let mut world = World::of(1, 30_000);
    let (claim, fence, request) = world.holds(KEY);
    alone(&mut world);
    assert_eq!(search(&mut world, at(2900)), None, "it may pass");
    let link = search(&mut world, at(3500)).expect("the seeds are tried");
    incarnation(&mut world, link);
    // A node of another number is there, and its ring knows nobody else.
    world.log.boots.push(200);
    world.log.version = 7;
    let met = Welcome { node: 2, boot: 200, ..world_welcome(&world) };
    hears(&mut world, link, &HelloReply::Welcome(met));
    let got = world.got(2);
    assert!(got.contains(&Heard::GetRing { id: ring_asked(&got), known: 1 }), "{got:?}");
    for run in &mut world.log.cells {
        run.placement = Placement { owner: NodeId(2), backup: None };
        (run.epoch, run.since, run.takeover) = (Epoch(9), RingVersion(7), Epoch(9));
    }
    let bits = CellBits::new(super::world::CELLS).unwrap();
    let nodes = vec![world.log.node(2)];
    let table = RingTable::from_runs(RingVersion(7), bits, nodes, &world.log.cells).unwrap();
    let id = ring_asked(&got);
    for chunk in RingChunk::whole(&table) {
        world.says(2, &Reply::Ring { id, chunk: Box::new(chunk) });
    }
    assert_eq!(world.session.ring().map(|ring| ring.version()), Some(RingVersion(7)));
    let reclaims = |heard: &Heard| match *heard {
        Heard::Reclaim { fence: its, request: made, .. } => (its, made) == (fence, request),
        _ => false,
    };
    let got = world.got(2);
    assert!(got.iter().any(reclaims), "{got:?}");
    assert_eq!(world.session.link_of(claim), Some(link));
}

/// The welcome of node 1.
fn world_welcome(world: &World) -> Welcome {
    world.welcome(world.at(1), true)
}

fn ring_asked(got: &[Heard]) -> u64 {
    let is_it = |heard: &Heard| match *heard {
        Heard::GetRing { id, .. } => Some(id),
        _ => None,
    };
    got.iter().find_map(is_it).expect("a ring is asked for")
}

#[test]
fn who_is_known_and_met_by_a_seed_is_dialled_by_its_own_link() {
    let mut world = World::of(2, 30_000);
    let (claim, ..) = world.holds(KEY);
    let own = world.at(1);
    alone(&mut world);
    let link = search(&mut world, at(4000)).expect("the seeds are tried");
    let by_seed = incarnation(&mut world, link);
    let met = world_welcome(&world);
    hears(&mut world, link, &HelloReply::Welcome(met));
    assert!(world.told().contains(&Outcome::LinkOver { link }));
    assert_eq!(world.session.next_dial(world.now), Some(Dial { link: own, worker: Some(FIRST) }));
    assert!(incarnation(&mut world, own) > by_seed, "the worker has heard of a later one");
    let met = world.welcome(own, false);
    hears(&mut world, own, &HelloReply::Welcome(met));
    assert!(world.session.is_held(claim));
    assert_eq!(search(&mut world, at(9000)), None, "nobody is missed");
}

#[test]
fn a_search_ends_when_somebody_of_the_ring_answers() {
    let mut world = World::of(2, 30_000);
    let own = world.at(1);
    alone(&mut world);
    let link = search(&mut world, at(4000)).expect("the seeds are tried");
    world.tick(100);
    world.session.failed(world.now, link);
    world.session.connected(world.now, own);
    world.session.outgoing(own).clear();
    let met = world.welcome(own, false);
    hears(&mut world, own, &HelloReply::Welcome(met));
    assert!(world.told().contains(&Outcome::LinkOver { link }));
}

#[test]
fn a_session_is_not_replaced_by_its_own_search() {
    for is_refused in [true, false] {
        let mut world = World::of(1, 30_000);
        let own = world.at(1);
        alone(&mut world);
        world.tick(50);
        assert!(world.session.next_dial(world.now).is_some());
        let first = incarnation(&mut world, own);
        // It says hello, and before anything comes back the seeds lead to the same worker.
        world.tick(3100);
        let link = search(&mut world, at(9000)).expect("the seeds are tried");
        assert!(incarnation(&mut world, link) > first);
        let is_replaced = |world: &mut World| match is_refused {
            true => hears(world, own, &superseded()),
            false => world.session.superseded(world.now, own),
        };
        is_replaced(&mut world);
        assert!(!has_ended(&mut world), "its own hello was later");
        world.tick(1000);
        assert!(incarnation(&mut world, own) > first);
        is_replaced(&mut world);
        assert!(has_ended(&mut world), "another process has taken it up");
    }
}

#[test]
fn a_search_may_be_outdone_by_the_sessions_own_links() {
    let (mut world, own, link) = searching(World::of(1, 30_000));
    let by_seed = incarnation(&mut world, link);
    // Both come to the same worker, the later hello first.
    assert!(incarnation(&mut world, own) > by_seed);
    hears(&mut world, link, &superseded());
    assert!(!has_ended(&mut world), "its own hello was later");
    assert!(incarnation(&mut world, link) > by_seed);
}

/// The worker numbers the hellos of a process that has taken the session up: what the search makes
/// of it there is told by nobody until it is welcomed.
#[test]
fn a_session_that_was_taken_up_is_not_replaced_by_its_own_search() {
    for is_welcomed in [false, true] {
        let (mut world, own, link) = searching(taken_up(Some(FIRST)).0);
        assert_eq!(incarnation(&mut world, link), 0, "it may meet one that nobody has told of");
        // It comes to the same worker, which counts on.
        if is_welcomed {
            let met = Welcome { incarnation: 9, fresh: false, ..world_welcome(&world) };
            hears(&mut world, link, &HelloReply::Welcome(met));
        }
        assert!(incarnation(&mut world, own) > 9, "it would be refused");
    }
}

/// The hello without an incarnation comes after the own link's, and is given a later one.
#[test]
fn a_session_that_was_taken_up_outlives_a_search_that_overtakes_it() {
    for is_welcomed in [false, true] {
        let (mut world, own, link) = searching(taken_up(Some(FIRST)).0);
        assert_eq!(incarnation(&mut world, link), 0);
        let sent = incarnation(&mut world, own);
        if is_welcomed {
            let met = Welcome { incarnation: sent + 1, fresh: false, ..world_welcome(&world) };
            hears(&mut world, link, &HelloReply::Welcome(met));
        } else {
            world.session.down(world.now, link);
        }
        world.session.superseded(world.now, own);
        assert!(!has_ended(&mut world), "it was the session's own search");
        let again = incarnation(&mut world, own);
        assert!(again > sent + 1, "it would be refused");
        // A second one is not: another process has begun.
        world.session.superseded(world.now, own);
        assert!(has_ended(&mut world), "welcomed: {is_welcomed}");
    }
}

/// Its first hello might have met anybody, but was answered.
#[test]
fn a_session_that_was_taken_up_may_be_taken_up_again() {
    let (mut world, own) = taken_up(None);
    world.session.superseded(world.now, own);
    assert!(has_ended(&mut world));
}

/// A worker welcomes the one and closes the connection of the other at once: both come together.
#[test]
fn a_search_that_is_over_is_not_missed_when_it_is_superseded() {
    let (mut world, own, link, claim) = searching_with_a_hold();
    let by_seed = incarnation(&mut world, link);
    assert!(incarnation(&mut world, own) > by_seed);
    let met = world.welcome(own, false);
    hears(&mut world, own, &HelloReply::Welcome(met));
    world.session.superseded(world.now, link);
    assert!(!has_ended(&mut world), "its own hello was later");
    assert!(world.session.is_held(claim));
}

/// Whoever is met by a search may be none of the cluster, or not one that this session can talk to:
/// those who have what it holds may be back any moment.
#[test]
fn who_refuses_a_search_ends_nothing() {
    let (mut world, own, link, claim) = searching_with_a_hold();
    incarnation(&mut world, link);
    let (kind, message) = (RefusalKind::Protocol, "another version".to_owned());
    let refusal = Refusal { kind, message };
    hears(&mut world, link, &HelloReply::Refused(refusal.clone()));
    let told = world.told();
    assert!(told.contains(&Outcome::TurnedAway { link, refusal }), "{told:?}");
    incarnation(&mut world, own);
    let met = world.welcome(own, false);
    hears(&mut world, own, &HelloReply::Welcome(met));
    assert!(world.session.is_held(claim));
}
