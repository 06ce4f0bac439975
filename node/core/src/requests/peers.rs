//! What workers of other nodes say.

use super::membership::{applied, say_ready};
use crate::cells::{Message, ack, message};
use crate::event::{Action, ClusterEvent, PeerWorker};
use crate::turn::Turn;
use crate::worker::Worker;
use lockring_proto::Time;
use lockring_ring::BootId;
use std::sync::Arc;

/// Something happens to the cluster. Says how many cells were taken of those that have changed.
pub(crate) fn happened(worker: &mut Worker, turn: &mut Turn<'_>, event: ClusterEvent<'_>) -> usize {
    let (now, (rounds, out)) = (turn.now, turn.rounds());
    match event {
        ClusterEvent::Node { node, boot, workers } => {
            worker.peers.insert((node, boot), workers);
            let lives = worker.peers.range((node, BootId(0))..=(node, BootId(u64::MAX)));
            for (&(_, life), _) in lives.filter(|&(&(_, life), _)| life != boot) {
                worker.copies.is_over(life);
            }
        }
        ClusterEvent::Memberships { changed, version } => {
            return applied(worker, turn, changed, version);
        }
        ClusterEvent::Lease(until) => lease(worker, turn, until),
        ClusterEvent::PeerConnected(peer) => rounds.connected(peer, out),
        ClusterEvent::PeerLost(peer) => rounds.disconnected(peer),
        ClusterEvent::Peer { peer, bytes } => heard(worker, turn, peer, bytes),
        ClusterEvent::Flush => rounds.flush(&worker.links, &worker.locks, now, out),
    }
    0
}

/// Until then the node may answer. Cells that were refused for want of that can be taken.
fn lease(worker: &mut Worker, turn: &mut Turn<'_>, until: Time) {
    let now = turn.now;
    let (rounds, out) = turn.rounds();
    rounds.set_lease(now, until, out);
    if now >= until {
        return;
    }
    for (peer, cell) in worker.copies.take_later() {
        say_ready(worker, turn, peer, cell);
    }
}

/// Takes in what a peer says.
fn heard(worker: &mut Worker, turn: &mut Turn<'_>, peer: PeerWorker, bytes: &[u8]) {
    let now = turn.now;
    let (rounds, out) = turn.rounds();
    let leased = now < rounds.lease();
    match message(bytes) {
        // Nobody waits for an answer to what is late.
        Ok(Message::Frame(id, _)) if !worker.copies.hears(peer.into(), id.connection) => {}
        Ok(Message::Frame(id, frame)) => match worker.copies.receive((now, leased), peer, frame) {
            Ok(refused) => {
                let bytes = Arc::new(ack(id, &refused));
                out.push(Action::Peer { peer, bytes });
            }
            Err(_) => out.push(Action::PeerBroken(peer)),
        },
        Ok(Message::Ack(id, refused)) => {
            rounds.acknowledged(now, (peer, id), &refused, out);
        }
        Ok(Message::Ready(cell, epoch, attach)) => {
            if let Some(cell) = worker.locks.layout().find_named(cell) {
                rounds.ready(peer, cell, epoch, attach);
            }
        }
        Err(_) => out.push(Action::PeerBroken(peer)),
    }
}
