//! Drives a group over the client's own connections.

use super::protocol::{LockringProtocol, Wires};
use crate::alarm::Alarm;
use crate::caller_group::CallerGroup;
use crate::drive::{GroupError, GroupSetting, lock};
use lockring_client::wire::{WireError, WireEvent};
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};

enum Woken {
    /// Something happened on a worker's wire.
    Wire(usize, WireEvent),
    /// The alarm rang, or the phase changed.
    Otherwise,
}

/// Runs a group until the run is over, with any number of measured rounds in between. Its
/// connections end with it, its session does not.
///
/// # Errors
/// When a connection does not survive the run.
pub(crate) async fn drive(
    mut group: CallerGroup<LockringProtocol>,
    mut wires: Wires,
    mut setting: GroupSetting,
) -> Result<CallerGroup<LockringProtocol>, GroupError> {
    let mut alarm = Alarm::new()?;
    loop {
        let now = setting.clock.now();
        let phase = *setting.phase.borrow_and_update();
        group.turn(now, phase, &mut lock(&setting.board));
        if let Some(at) = group.next_deadline() {
            alarm.ring_at(now, at)?;
        }
        for (worker, wire) in wires.iter_mut().enumerate() {
            wire.send(group.protocol_mut().outgoing(worker));
        }
        let woken = if group.is_quiet() {
            tokio::select! {
                biased;
                woken = wait(&mut wires, &mut alarm) => woken?,
                changed = setting.phase.changed() => match changed {
                    Ok(()) => Woken::Otherwise,
                    Err(_) => return Ok(group),
                },
            }
        } else {
            wait(&mut wires, &mut alarm).await?
        };
        let now = setting.clock.now();
        match woken {
            Woken::Wire(worker, WireEvent::Replies) => {
                group.protocol_mut().read_from(worker);
                let inbox = &mut wires[worker].replies;
                group.receive(now, inbox.bytes(), &mut lock(&setting.board))?;
                inbox.consume(group.protocol_mut().taken());
            }
            Woken::Wire(worker, WireEvent::Pushes) => {
                let inbox = &mut wires[worker].pushes;
                let taken = group.protocol_mut().pushed(now, worker, inbox.bytes())?;
                inbox.consume(taken);
            }
            Woken::Wire(_, WireEvent::Written) | Woken::Otherwise => {}
        }
    }
}

async fn wait(wires: &mut Wires, alarm: &mut Alarm) -> Result<Woken, GroupError> {
    poll_fn(|cx| {
        if let Poll::Ready((worker, event)) = poll_wires(wires, cx) {
            let event = event.map_err(|error| io::Error::other(error.to_string()))?;
            return Poll::Ready(Ok(Woken::Wire(worker, event)));
        }
        alarm.poll_rung(cx).map(|rung| rung.map(|()| Woken::Otherwise).map_err(GroupError::from))
    })
    .await
}

fn poll_wires(
    wires: &mut Wires,
    cx: &mut Context<'_>,
) -> Poll<(usize, Result<WireEvent, WireError>)> {
    for (worker, wire) in wires.iter_mut().enumerate() {
        if let Poll::Ready(event) = wire.poll_next(cx) {
            return Poll::Ready((worker, event));
        }
    }
    Poll::Pending
}
