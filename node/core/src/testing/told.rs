//! How scripts write what a machine says.

use lockring_proto::{
    BlockedReason, Claim, Digest, Fence, HelloReply, HoldId, Holder, Inspection, Listing, Push,
    Reply,
};
use std::fmt::Write;

pub(super) fn hello_told(reply: &HelloReply) -> String {
    match reply {
        HelloReply::Welcome(welcome) => {
            let fresh = if welcome.fresh { "fresh" } else { "resumed" };
            let (inc, ttl, v) = (welcome.incarnation, welcome.ttl_ms, welcome.ring_version);
            format!("welcome {fresh} inc={inc} ttl={ttl}ms v={v} ns={}", welcome.namespace)
        }
        HelloReply::Refused(refusal) => format!("refused {:?}: {}", refusal.kind, refusal.message),
    }
}

fn dotted(fence: Fence) -> String {
    format!("{}.{}", fence.epoch().0, fence.counter())
}

fn reason_told(reason: &BlockedReason) -> String {
    match reason {
        BlockedReason::Held { fence, waiters } => {
            format!("held under {}, {waiters} queued", dotted(*fence))
        }
        BlockedReason::Queue { waiters } => format!("free, {waiters} queued"),
        BlockedReason::Grace { left_ms } => format!("grace for {left_ms}ms"),
    }
}

fn ids_told(holds: &[HoldId]) -> String {
    let holds: Vec<String> =
        holds.iter().map(|hold| format!("c{}@{}", hold.cell, dotted(hold.fence))).collect();
    format!("[{}]", holds.join(" "))
}

fn claim_told(claim: Claim) -> String {
    match claim {
        Claim::Mode(mode) => mode.name().to_owned(),
        Claim::Permits { permits, capacity } => format!("{permits}/{capacity}"),
    }
}

pub(super) fn reply_told(reply: &Reply) -> String {
    match reply {
        Reply::Granted { id, fence, version } => {
            format!("{id} granted {} v={version}", dotted(*fence))
        }
        Reply::Released { id, .. } => format!("{id} released"),
        Reply::Queued { id, ahead, .. } => format!("{id} queued behind {ahead}"),
        Reply::Busy { id, reason, .. } => format!("{id} busy: {}", reason_told(reason)),
        Reply::TimedOut { id, reason, .. } => format!("{id} timed out: {}", reason_told(reason)),
        Reply::Cancelled { id, .. } => format!("{id} cancelled"),
        Reply::NotHeld { id, .. } => format!("{id} not held"),
        Reply::Moved { id, version } => format!("{id} moved v={version}"),
        Reply::Refused { id, refusal } => {
            format!("{id} refused {:?}: {}", refusal.kind, refusal.message)
        }
        Reply::Renewed { id, digest: Digest { count, xor }, .. } => {
            format!("{id} renewed, digest {count}/{xor:016x}")
        }
        Reply::Compared { id, lost, .. } => format!("{id} compared, lost {}", ids_told(lost)),
        Reply::Ring { id, .. } => format!("{id} ring"),
        Reply::Inspected { id, inspection } => format!("{id} {}", inspection_told(inspection)),
        Reply::Listed { id, listing } => format!("{id} {}", listing_told(listing)),
        Reply::Forced { id, ended, .. } => format!("{id} forced {ended}"),
        Reply::Goodbye { id } => format!("{id} goodbye"),
        Reply::NoNewerRing { id, version } => format!("{id} no newer ring v={version}"),
        Reply::Confirmed { id, claim, .. } => format!("{id} confirmed, {}", claim_told(*claim)),
    }
}

fn holder_told(holder: &Holder) -> String {
    let (held, left) = (holder.held_ms, holder.lease_left_ms);
    let (fence, claim) = (dotted(holder.fence), claim_told(holder.claim));
    format!("{claim} {fence} for {held}ms lease {left}ms {:?}", holder.label)
}

fn inspection_told(seen: &Inspection) -> String {
    let mut told = format!(
        "inspected c{} epoch {}: {} hold, {} wait",
        seen.cell, seen.epoch, seen.holder_count, seen.waiter_count
    );
    if let Some(capacity) = seen.capacity {
        let _infallible = write!(told, ", capacity {capacity}");
    }
    if seen.grace_left_ms > 0 {
        let _infallible = write!(told, ", grace {}ms", seen.grace_left_ms);
    }
    for holder in &seen.holders {
        let _infallible = write!(told, "\n    holds {}", holder_told(holder));
    }
    for waiter in &seen.waiters {
        let (claim, waited) = (claim_told(waiter.claim), waiter.waited_ms);
        let _infallible = write!(told, "\n    waits {claim} for {waited}ms {:?}", waiter.label);
    }
    told
}

fn listing_told(listing: &Listing) -> String {
    let mut told = match &listing.next {
        Some(next) => format!("listed, more from {}", next.from),
        None => "listed, the end".to_owned(),
    };
    for row in &listing.rows {
        let holder = row.holder.as_ref().map_or_else(|| "nobody".to_owned(), holder_told);
        let (key, holders, waiters) = (row.key.escape_ascii(), row.holders, row.waiters);
        let _infallible = write!(told, "\n    {key}: {holders} hold, {waiters} wait: {holder}");
    }
    told
}

pub(super) fn push_told(push: &Push) -> String {
    match push {
        Push::Lost { reason, holds } => format!("lost {reason:?} {}", ids_told(holds)),
        Push::RingChanged { version } => format!("ring v={version}"),
        Push::Draining => "draining".to_owned(),
    }
}
