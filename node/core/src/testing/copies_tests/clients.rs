//! The clients of the simulated nodes: what they ask for, hold and reclaim.

use super::{CLIENTS, Cluster, GRACE, KEYS, key};
use crate::{Access, ConnId, Event, Identity, LinkIndex};
use lockring_proto::{
    Claim, Fence, Hello, Namespace, Operation, PROTOCOL, Reply, Request, SessionId, Time, Wait,
    limits,
};
use lockring_ring::{CellId, Epoch};
use std::collections::{BTreeMap, BTreeSet};

/// What a client is up to with a key.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Doing {
    Acquires,
    Releases(Fence),
    /// A hold that a request had made.
    Reclaims(Fence, u64),
}

/// Of which key something is asked, what, and of whom it was asked last, under which epoch.
type Asked = (u64, Doing, Option<(u32, Epoch)>);

/// A hold as its client believes in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hold {
    pub(super) client: u8,
    pub(super) fence: Fence,
    request: u64,
    /// Its cell was taken over, and has not confirmed it yet.
    until: Option<Time>,
}

#[derive(Debug, Default)]
pub(super) struct Clients {
    /// By client and request.
    asked: BTreeMap<(u8, u64), Asked>,
    ids: u64,
    /// By key.
    pub(super) held: BTreeMap<u64, Hold>,
    fences: BTreeMap<u64, Fence>,
    /// Connections on which nothing is sent for now.
    pub(super) paused: BTreeSet<ConnId>,
}

impl Clients {
    fn is_asked(&mut self, client: u8, id: u64, of: Option<(u32, Epoch)>) {
        if let Some(asked) = self.asked.get_mut(&(client, id)) {
            asked.2 = of;
        }
    }

    fn forget_reclaim(&mut self, number: u64) {
        let is_it = |of: u64, doing: Doing| of == number && matches!(doing, Doing::Reclaims(..));
        self.asked.retain(|_, &mut (of, doing, _)| !is_it(of, doing));
    }
}

impl Cluster {
    /// A client's connection at a node: its low bits are the client's number.
    fn conn(&mut self, client: u8, node: u32) -> Option<(ConnId, LinkIndex)> {
        let links = &self.nodes[&node].links;
        let known = links.iter().find(|(conn, _)| conn.0 as u8 == client);
        if let Some((&conn, &Some(link))) = known {
            return Some((conn, link));
        }
        self.conns += 1;
        let conn = ConnId(self.conns << 8 | u64::from(client));
        self.nodes.get_mut(&node).unwrap().links.insert(conn, None);
        let identity = Identity {
            namespace: Namespace::default(),
            name: "client".to_owned(),
            access: Access::User,
            ttl_max: limits::TTL_MAX,
        };
        let hello = Hello {
            protocol: PROTOCOL,
            session: SessionId([client; 16]),
            incarnation: self.conns,
            ttl_ms: 3_600_000,
            ring_version: 1,
            ids_after: 0,
            label: "",
        };
        self.run(node, Event::Opened { conn, identity: &identity, hello });
        Some((conn, (*self.nodes[&node].links.get(&conn)?)?))
    }

    /// Sends what was asked to whoever owns the key, by the newest ring or by an older one.
    fn send(&mut self, client: u8, id: u64) {
        let Some(&(number, doing, _)) = self.clients.asked.get(&(client, id)) else { return };
        let key = key(number);
        let cell = self.nodes[&1].machine.cell_of("default", &key);
        let mut its = &self.log.cells[&cell];
        let mut version = self.log.version;
        let older: Vec<_> = self.log.entries.iter().filter(|(of, _)| *of == cell).collect();
        if self.rng.percent(10) {
            its = &self.rng.pick(&older).1;
            version = its.since.0;
        }
        let owner = its.owner.node.0;
        let epoch = its.epoch;
        let claim = Claim::EXCLUSIVE;
        let operation = match doing {
            Doing::Acquires => Operation::Acquire { claim, wait: Wait::Forever },
            Doing::Releases(fence) => Operation::Release { fence },
            Doing::Reclaims(fence, request) => Operation::Reclaim { fence, request, claim },
        };
        self.clients.is_asked(client, id, Some((owner, epoch)));
        let conn = self.conn(client, owner);
        if conn.is_some_and(|(conn, _)| self.clients.paused.contains(&conn)) {
            self.count("requests that wait");
            return self.clients.is_asked(client, id, None);
        }
        let Some((conn, link)) = conn else { return self.clients.is_asked(client, id, None) };
        let requests = [Request::Keyed { id, version, operation, key: &key }];
        if self.run(owner, Event::Requests { conn, link, requests: &requests }) == 0 {
            self.count("requests not taken");
            self.clients.is_asked(client, id, None);
        }
    }

    /// Whether the owner of its key was not asked, by the newest ring.
    fn is_astray(&self, client: u8, id: u64) -> bool {
        let (number, _, at) = self.clients.asked[&(client, id)];
        let cell = self.nodes[&1].machine.cell_of("default", &key(number));
        let its = &self.log.cells[&cell];
        at != Some((its.owner.node.0, its.epoch))
    }

    fn ask(&mut self, client: u8, number: u64, doing: Doing) {
        self.clients.ids += 1;
        let id = self.clients.ids;
        self.clients.asked.insert((client, id), (number, doing, None));
        self.send(client, id);
    }

    pub(super) fn answered(&mut self, node: u32, conn: ConnId, reply: &Reply) {
        let (client, id) = (conn.0 as u8, reply.id());
        let asked = self.clients.asked.get(&(client, id)).copied();
        let Some((number, doing, _)) = asked.filter(|(.., at)| at.is_some_and(|at| at.0 == node))
        else {
            return;
        };
        if let Reply::Moved { .. } = reply {
            self.clients.is_asked(client, id, None);
            return self.count("moved");
        }
        if let (Reply::Queued { .. }, Doing::Acquires) = (reply, doing) {
            return self.count("queued");
        }
        self.clients.asked.remove(&(client, id));
        match (reply, doing) {
            (&Reply::Granted { fence, .. }, Doing::Acquires) => {
                self.lapse();
                let hold = Hold { client, fence, request: id, until: None };
                let before = self.clients.held.insert(number, hold);
                assert!(before.is_none(), "key {number} is held twice: {before:?}, {reply:?}");
                let last = self.clients.fences.insert(number, fence);
                assert!(last < Some(fence), "a fence of key {number} fell: {last:?}, {fence:?}");
                self.count("grants");
            }
            (Reply::Released { .. } | Reply::NotHeld { .. }, Doing::Releases(_)) => {
                self.count("releases");
            }
            (Reply::Confirmed { .. }, Doing::Reclaims(fence, _)) => {
                let hold = self.clients.held.get_mut(&number).expect("it is not forgotten");
                assert_eq!((hold.client, hold.fence), (client, fence));
                hold.until = None;
                self.count("reclaims");
            }
            other => panic!("{other:?} of key {number}: {:?}", self.clients.held.get(&number)),
        }
    }

    /// What was not confirmed again in time is believed no longer, and given back.
    fn lapse(&mut self) {
        let now = self.now;
        let is_over = |_: &u64, hold: &mut Hold| hold.until.is_some_and(|until| until <= now);
        let over: Vec<(u64, Hold)> = self.clients.held.extract_if(.., is_over).collect();
        for (number, hold) in over {
            self.count("lapses");
            self.clients.forget_reclaim(number);
            self.ask(hold.client, number, Doing::Releases(hold.fence));
        }
    }

    /// Nobody has a copy of a cell any more: what is held of it is reclaimed.
    pub(super) fn is_taken_over(&mut self, cell: CellId) {
        let until = self.now.after(GRACE);
        for number in 0..KEYS {
            if self.nodes.values().next().unwrap().machine.cell_of("default", &key(number)) != cell
            {
                continue;
            }
            self.clients.forget_reclaim(number);
            if let Some(hold) = self.clients.held.get_mut(&number) {
                hold.until = Some(hold.until.map_or(until, |before| until.min(before)));
            }
        }
    }

    /// A node has answered nothing of what it was asked and has not said.
    pub(super) fn is_gone(&mut self, node: u32) {
        for (.., at) in self.clients.asked.values_mut() {
            *at = at.filter(|at| at.0 != node);
        }
    }

    /// Reclaims of a client that are not under way.
    fn reclaim(&mut self, client: u8) {
        let asked = |number| {
            let its =
                |(of, doing, _): &Asked| *of == number && matches!(doing, Doing::Reclaims(..));
            self.clients.asked.values().any(its)
        };
        let held = self.clients.held.iter().filter(|(_, hold)| hold.client == client);
        let lost = held.filter(|&(&number, hold)| hold.until.is_some() && !asked(number));
        let lost: Vec<(u64, Hold)> = lost.map(|(&number, &hold)| (number, hold)).collect();
        for (number, Hold { fence, request, .. }) in lost {
            self.ask(client, number, Doing::Reclaims(fence, request));
        }
    }

    /// All clients ask what is not asked of whom it should be; says whether there was nothing.
    pub(super) fn all_ask(&mut self) -> bool {
        self.lapse();
        (0..CLIENTS).for_each(|client| self.reclaim(client));
        let asked: Vec<_> = self.clients.asked.keys().copied().collect();
        let astray = asked.into_iter().filter(|&(client, id)| self.is_astray(client, id));
        let astray: Vec<_> = astray.collect();
        let none = astray.is_empty();
        astray.into_iter().for_each(|(client, id)| self.send(client, id));
        none
    }

    pub(super) fn client(&mut self, more: bool) {
        self.lapse();
        let client = self.rng.range(0, u64::from(CLIENTS)) as u8;
        if self.rng.percent(50) {
            self.reclaim(client);
        }
        let open = self.clients.asked.range((client, 0)..=(client, u64::MAX));
        let open: Vec<u64> = open.map(|(&(_, id), _)| id).collect();
        if !open.is_empty() && (!more || self.rng.percent(60)) {
            // Also what is not known to be lost may be asked again.
            let id = *self.rng.pick(&open);
            if self.is_astray(client, id) || self.rng.percent(10) {
                self.send(client, id);
            }
            return;
        }
        let holds: Vec<u64> = self
            .clients
            .held
            .iter()
            .filter(|(_, it)| it.client == client)
            .map(|(&key, _)| key)
            .collect();
        if !holds.is_empty() && self.rng.percent(if more { 50 } else { 100 }) {
            let number = *self.rng.pick(&holds);
            let Hold { fence, until, .. } = self.clients.held.remove(&number).unwrap();
            if until.is_some() {
                self.count("releases in grace");
                self.clients.forget_reclaim(number);
            }
            self.ask(client, number, Doing::Releases(fence));
        } else if more {
            let number = self.rng.range(0, KEYS);
            let busy = self.clients.held.get(&number).is_some_and(|it| it.client == client);
            let asks = open.iter().any(|&id| self.clients.asked[&(client, id)].0 == number);
            if !busy && !asks {
                self.ask(client, number, Doing::Acquires);
            }
        }
    }
}
