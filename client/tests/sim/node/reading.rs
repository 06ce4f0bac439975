//! What has come for a worker, and what of it is read.

use super::Worker;
use crate::way::Way;
use lockring_core::{ConnId, Identity, LinkIndex, Time};
use lockring_proto::SessionId;

/// What came for a worker.
#[derive(Debug)]
pub(super) enum Came {
    Bytes(Vec<u8>),
    Closed,
}

/// A connection.
pub(super) struct Peer {
    pub way: Way,
    pub identity: Identity,
    pub session: Option<SessionId>,
    pub link: Option<LinkIndex>,
    /// Nothing of it is read before that, as it waits for a newer ring.
    read_from: Time,
}

impl Peer {
    pub fn new(way: Way, identity: Identity) -> Self {
        Self { way, identity, session: None, link: None, read_from: Time(0) }
    }
}

impl Worker {
    /// Which connection is read next: since when what came first on it could be read.
    pub(super) fn readable(&self) -> Option<(Time, ConnId)> {
        let read_from = |conn: &ConnId| self.peers.get(conn).map_or(Time(0), |peer| peer.read_from);
        let is_read = |(_, conn, came): &&(Time, ConnId, Came)| {
            matches!(came, Came::Closed) || read_from(conn) != Time::NEVER
        };
        let (arrived, conn, _) = self.inbox.iter().find(is_read)?;
        Some((read_from(conn).max(*arrived), *conn))
    }

    /// Reads of a connection from then on.
    pub(super) fn read_from(&mut self, conn: ConnId, at: Time) {
        if let Some(peer) = self.peers.get_mut(&conn) {
            peer.read_from = at;
        }
    }
}
