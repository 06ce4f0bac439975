//! What follows from entries of the control log: cells come, stay under a new epoch, and go.
//!
//! ```text
//! None -- it is founded --> Serving
//! Backup -- promoted --> Serving, withholding all answers until its copies are equal
//! None -- taken over --> Recovering -- the grace is over --> Serving
//! Serving, Recovering -- deposed --> None, Learner or Backup
//! ```

use super::force::may_be_forced;
use crate::cells::{CopyOf, LinkOrigin, Recovery, Role, Shows, Telling, Withheld};
use crate::event::{Action, LinkIndex, PeerWorker};
use crate::locks::{CellIndex, Change, Death, EntryIndex, Op, Source};
use crate::mutant::mutant;
use crate::turn::{PER_MOVED, Turn};
use crate::worker::Worker;
use lockring_proto::{Reply, Time};
use lockring_ring::{CellId, Member, Membership, RingVersion};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Entries have been applied that changed these cells, as of a version of the ring: how many of
/// them were taken. A slice has room for the first at least, whatever is in it.
///
/// Until the last is taken, this worker is one of the version before: of the cells that it has
/// given away already it says so, and who asks for those that it has got by now waits.
pub(crate) fn applied(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    changed: &[(CellId, Option<Membership>)],
    version: RingVersion,
) -> usize {
    let layout = worker.locks.layout();
    turn.rounds().0.begins(version, worker.version);
    let mut taken = 0;
    for (cell, its) in changed {
        if taken > 0 && turn.slice_is_over() {
            break;
        }
        let its = its.as_ref();
        let price = layout.find(*cell).map_or(0, |cell| price(worker, turn, cell, its));
        turn.charge(1 + price);
        taken += 1;
    }
    let (first, rest) = changed.split_at(taken);
    let ours = first.iter().filter_map(|(cell, its)| Some((layout.find(*cell)?, its.as_ref())));
    let ours: Vec<(CellIndex, Option<&Membership>)> = ours.collect();
    // Nothing waits in a cell that was not this worker's, and the look is at all that waits.
    let is_had = |&(cell, _): &(CellIndex, _)| worker.cells.role(cell) != Role::None;
    let had: BTreeSet<CellIndex> =
        ours.iter().filter(|its| is_had(its)).map(|&(cell, _)| cell).collect();
    let waiting = if had.is_empty() { Vec::new() } else { turn.rounds().0.take_answers(&had) };
    for (cell, membership) in ours {
        become_member(worker, turn, cell, membership);
    }
    for answer in waiting {
        look_again(worker, turn, answer);
    }
    let (now, (rounds, out)) = (turn.now, turn.rounds());
    // What is left of a lane to a node that is gone keeps nobody waiting while the rest is taken.
    if rest.is_empty() || rounds.are_full() {
        for peer in rounds.unused_peers() {
            rounds.drop_lane(now, peer, out);
        }
    }
    if rest.is_empty() {
        rounds.is_whole();
        worker.version = worker.version.max(version);
    }
    taken
}

/// What it may cost to take a cell in, to give it out, or to offer it to copies. That one has lost
/// a copy costs nothing: when a node is gone, that has happened to many.
fn price(
    worker: &Worker,
    turn: &mut Turn<'_>,
    cell: CellIndex,
    membership: Option<&Membership>,
) -> u32 {
    let goes_on = |its: &&Membership| {
        is_mine(worker, &its.owner) && worker.cells.attach(cell) == Some(its.owner.attach)
    };
    if let Some(its) = membership.filter(goes_on)
        && worker.cells.role(cell) != Role::None
        && turn.rounds().0.follow(cell, its.epoch, its.copies())
    {
        return 0;
    }
    let keys = worker.locks.keys_in(cell).max(worker.copies.locks().keys_in(cell));
    u32::try_from(keys).unwrap_or(u32::MAX).saturating_mul(PER_MOVED)
}

/// An answer that waited in a cell that has changed: it waits for whoever has a copy now, or is for
/// the new owner to give.
fn look_again(worker: &Worker, turn: &mut Turn<'_>, answer: Withheld) {
    let now = turn.now;
    // What shows all of a link, and waited at this cell, is this worker's to answer all the same.
    if answer.cell().is_some_and(|cell| worker.cells.role(cell) == Role::None) {
        // An end that was to be pushed is for the new owner to tell, if it has it.
        match answer.telling {
            Telling::Reply(reply) => {
                let version = turn.newest();
                turn.answer(answer.conn, Shows::Nothing, || elsewhere(&reply, version));
            }
            Telling::Push(push) if mutant!(worker, DeposedTells) => {
                turn.act(Action::Push { conn: answer.conn, push });
            }
            Telling::Push(_) => {}
        }
        return;
    }
    let (rounds, out) = turn.rounds();
    rounds.again(now, answer, out);
}

/// What a client hears instead of an answer that is the new owner's to give.
fn elsewhere(reply: &Reply, version: u64) -> Reply {
    let id = reply.id();
    match reply {
        Reply::Forced { .. } => may_be_forced(id),
        _ => Reply::Moved { id, version },
    }
}

/// Whether a member is this worker's node, in this life.
fn is_mine(worker: &Worker, member: &Member) -> bool {
    (member.node.0, member.boot.0) == (worker.config.node, worker.config.boot)
}

fn become_member(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    cell: CellIndex,
    membership: Option<&Membership>,
) {
    if let Some(membership) = membership.filter(|its| is_mine(worker, &its.owner)) {
        return own(worker, turn, cell, membership);
    }
    let is_me = |member: &&Member| is_mine(worker, member);
    let copied = membership.and_then(|its| Some((its, *its.copies().find(is_me)?)));
    if worker.cells.role(cell) != Role::None {
        if copied.is_some() && !mutant!(worker, DeposedForgets) {
            give_out(worker, turn.now, cell);
        }
        leave(worker, turn, cell);
    }
    let Some((membership, mine)) = copied else { return worker.copies.drop_cell(cell) };
    let owner = worker_of(worker, cell, &membership.owner);
    let told = worker.copies.keep(cell, membership.epoch, owner, mine.attach);
    if let Some(peer) = told {
        say_ready(worker, turn, peer, cell);
    }
}

/// Tells an owner that a copy can take a cell now.
pub(crate) fn say_ready(worker: &Worker, turn: &mut Turn<'_>, peer: PeerWorker, cell: CellIndex) {
    let Some(copy) = worker.copies.of(cell) else { return };
    let bytes = crate::cells::ready(worker.copies.id(cell), copy.epoch, copy.mine);
    turn.act(Action::Peer { peer, bytes: Arc::new(bytes) });
}

/// The cell is this worker's, under a new epoch or with other copies.
fn own(worker: &mut Worker, turn: &mut Turn<'_>, cell: CellIndex, membership: &Membership) {
    let &Membership { epoch, since, grace, owner, .. } = membership;
    let mut was = None;
    if worker.cells.role(cell) != Role::None && worker.cells.attach(cell) != Some(owner.attach) {
        // Others had it since, and what this worker has of it is of then.
        leave(worker, turn, cell);
    }
    if worker.cells.role(cell) == Role::None {
        worker.cells.enter(cell, worker.locks.standing_mut(cell), (epoch, owner.attach), since);
        let had_copy = worker.copies.of(cell).is_some_and(|copy| copy.mine == owner.attach);
        if had_copy || grace.is_none() {
            was = Some(take_in(worker, turn, cell));
        }
        if let Some(grace) = grace {
            let opens = (worker.grace_ends(turn.now, grace), Recovery::Takeover);
            worker.cells.recover(cell, worker.locks.standing_mut(cell), opens);
        }
        worker.copies.drop_cell(cell);
    } else if worker.cells.raise(cell, worker.locks.standing_mut(cell), epoch, since) {
        match (worker.cells.role(cell), grace) {
            (Role::Serving, _) => {
                worker.queues.raised(cell);
                if grace.is_some() {
                    // The log has not heard yet that it is over.
                    turn.act(Action::Recovered { cell: worker.locks.cell_id(cell), epoch });
                }
            }
            // It has what was reclaimed of it, and what was not may be so for that much longer.
            (Role::Recovering { .. }, Some(grace)) => {
                worker.cells.recover_longer(cell, worker.grace_ends(turn.now, grace));
            }
            _ => {}
        }
    }
    let copies: Vec<CopyOf> =
        membership.copies().map(|member| copy_of(worker, cell, member, membership)).collect();
    let began = (epoch, since);
    turn.rounds().0.own((&worker.links, &worker.locks), cell, began, &copies, was);
}

fn copy_of(worker: &Worker, cell: CellIndex, member: &Member, membership: &Membership) -> CopyOf {
    CopyOf {
        member: *member,
        peer: worker_of(worker, cell, member),
        learner: membership.learner.as_ref() == Some(member),
    }
}

/// The worker of a member that has a cell.
fn worker_of(worker: &Worker, cell: CellIndex, member: &Member) -> PeerWorker {
    let &Member { node, boot, .. } = member;
    let workers = worker.peers.get(&(node, boot)).copied();
    let workers = workers.expect("a node is known before it has a part in a cell");
    PeerWorker { node, boot, worker: worker.locks.cell_id(cell).0 % workers }
}

/// The cell is another's: what it has goes with it.
fn leave(worker: &mut Worker, turn: &mut Turn<'_>, cell: CellIndex) {
    worker.cells.leave(cell, worker.locks.standing_mut(cell));
    turn.rounds().0.disown(cell);
    let Worker { locks, queues, stats, .. } = worker;
    locks.clear(cell, |locks, (record, waiter), change| {
        stats.count(change);
        queues.freed(cell, record);
        if let Some(waiter) = waiter {
            queues.stop_waiting(locks.deadline(waiter), waiter);
        }
    });
}

/// What this worker has as the owner of a cell it goes on having as a copy: a member must not lose
/// what was answered, and may be the owner again.
fn give_out(worker: &mut Worker, now: Time, cell: CellIndex) {
    let Worker { locks, links, copies, config, .. } = worker;
    let by = (&*config).into();
    copies.make_room(cell);
    locks.rebuild(cell, now, |tag, op| {
        let (link, _) = named_in(&op.change);
        let news = links.news(link, locks.number_of(link));
        copies.put(by, &news, locks.is_dead(link), (cell, tag), op);
    });
    copies.set_last(cell, locks.last(cell));
}

/// A copy becomes the owner's: its holds and waiters are this worker's own, those of each session
/// on the link that it has here. Says what the links were called.
fn take_in(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    cell: CellIndex,
) -> BTreeMap<LinkIndex, Vec<LinkOrigin>> {
    let now = turn.now;
    let Worker { locks, links, copies, queues, stats, .. } = worker;
    let mut here: BTreeMap<LinkIndex, LinkIndex> = BTreeMap::new();
    let mut are_anothers: Vec<LinkIndex> = Vec::new();
    let mut queued: Vec<EntryIndex> = Vec::new();
    copies.locks().rebuild(cell, now, |_, op| {
        let (shadow, key) = named_in(&op.change);
        let link = *here.entry(shadow).or_insert_with(|| {
            let (link, is_anothers) = links.inherit(now, copies.shadow(shadow), locks);
            are_anothers.extend(is_anothers.then_some(link));
            link
        });
        let place = locks.place(locks.seed_of(link), key).expect("a key of this worker's cell");
        if mutant!(copies, HandoffDropsWaiters) && matches!(op.change, Change::Queued { .. }) {
            return;
        }
        let op = Op { change: from_now(op.change.with_link(link), now), ..op };
        stats.moved_in(&op.change);
        if let Err(unfit) = locks.replay(cell, place.tag, &op) {
            panic!("a copy of {cell:?} does not fit itself: {unfit:?}, {op:?}");
        }
        if matches!(op.change, Change::Queued { .. }) {
            queued.push(locks.last_entry(link).expect("a waiter was made"));
        }
    });
    if !mutant!(copies, CounterRestarts) {
        locks.set_last(cell, copies.locks().last(cell));
    }
    for waiter in queued {
        let entry = locks.entry(waiter);
        let (link, record) = (entry.link, entry.record);
        locks.answer_on(waiter, links.answered_on(link, entry.request));
        queues.wait(locks.deadline(waiter), waiter);
        // A copy may have an end without the grant that followed.
        if !mutant!(copies, NoSweep) {
            queues.go_on(record);
        }
    }
    for link in are_anothers {
        turn.link_is_anothers(&worker.links, &worker.locks, link);
    }
    let mut was: BTreeMap<LinkIndex, Vec<LinkOrigin>> = BTreeMap::new();
    for (shadow, link) in here {
        let shadow = worker.copies.shadow(shadow);
        was.entry(link).or_default().push(shadow.called);
        if shadow.dead && !mutant!(worker, DeadLinkRevived) {
            worker.end_link(turn, link, Death::Expired);
        }
    }
    was
}

/// The link and the key that an op of a cell that is rebuilt names.
fn named_in<'a>(change: &Change<'a>) -> (LinkIndex, &'a [u8]) {
    match *change {
        Change::Granted { link, source: Source::Asked { key, .. }, .. }
        | Change::Queued { link, key, .. } => (link, key),
        _ => panic!("a cell is rebuilt by grants and queues alone: {change:?}"),
    }
}

/// The same, from now on: who is queued waits anew.
fn from_now(change: Change<'_>, now: Time) -> Change<'_> {
    match change {
        Change::Queued { link, request, key, claim, patience, .. } => {
            let since = now.since(Time(0));
            Change::Queued { link, request, key, claim, since, patience }
        }
        other => other,
    }
}
