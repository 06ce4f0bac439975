//! Drives a group over a byte stream: one read, one turn, one write.

use crate::alarm::Alarm;
use crate::board::{Board, Phase};
use crate::caller_group::CallerGroup;
use crate::protocol::{Broken, Protocol};
use crate::time::Clock;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

/// What a group shares with the others of its target.
#[derive(Clone, Debug)]
pub struct GroupSetting {
    /// The clock of the run.
    pub clock: Clock,
    /// The counters. All groups of a target run on one thread, so this lock is nearly always free.
    pub board: Arc<Mutex<Board>>,
    /// What to do. When its sender is gone the group ends.
    pub phase: watch::Receiver<Phase>,
}

/// Why a group ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The server closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// Reading or writing failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The server said something that is not the protocol.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// The public client gave up.
    #[error("the client gave up: {0}")]
    Client(#[from] lockring_client::Error),
}

/// Room for one read: hundreds of replies.
const READ_BYTES: usize = 64 * 1024;

/// Runs a group until the run is over, with any number of measured rounds in between.
///
/// # Errors
/// When the connection does not survive the run.
pub async fn drive<P, S>(
    mut group: CallerGroup<P>,
    stream: S,
    mut setting: GroupSetting,
) -> Result<(), GroupError>
where
    P: Protocol,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut line = Line { stream, alarm: Alarm::new()?, input: vec![0; READ_BYTES], sent: 0 };
    let mut now = setting.clock.now();
    loop {
        let phase = *setting.phase.borrow_and_update();
        group.turn(now, phase, &mut lock(&setting.board));
        if let Some(at) = group.next_deadline() {
            line.alarm.ring_at(now, at)?;
        }
        let woken = if group.is_quiet() {
            tokio::select! {
                biased;
                woken = line.wait(group.out()) => woken?,
                changed = setting.phase.changed() => match changed {
                    Ok(()) => Woken::Otherwise,
                    Err(_) => return Ok(()),
                },
            }
        } else {
            // A busy group is woken soon enough, and spared the look.
            line.wait(group.out()).await?
        };
        now = setting.clock.now();
        match woken {
            Woken::Read(0) => return Err(GroupError::Closed),
            Woken::Read(n) => group.receive(now, &line.input[..n], &mut lock(&setting.board))?,
            Woken::Otherwise => {}
        }
    }
}

/// The board, even if a group panicked with it: the panic itself is reported where it happened.
pub(crate) fn lock(board: &Mutex<Board>) -> std::sync::MutexGuard<'_, Board> {
    board.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Woken {
    /// This many bytes were read.
    Read(usize),
    /// The alarm rang, or the phase changed.
    Otherwise,
}

/// A stream with its buffers.
struct Line<S> {
    stream: S,
    alarm: Alarm,
    input: Vec<u8>,
    /// How much of the output is already written.
    sent: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Line<S> {
    /// Writes `out` as far as the peer takes it, until something is read or the alarm rings.
    /// Cancel safe: nothing is lost between two polls.
    async fn wait(&mut self, out: &mut Vec<u8>) -> io::Result<Woken> {
        poll_fn(|cx| {
            self.poll_write(cx, out)?;
            let mut input = ReadBuf::new(&mut self.input);
            if Pin::new(&mut self.stream).poll_read(cx, &mut input)?.is_ready() {
                return Poll::Ready(Ok(Woken::Read(input.filled().len())));
            }
            self.alarm.poll_rung(cx).map_ok(|()| Woken::Otherwise)
        })
        .await
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> io::Result<()> {
        while self.sent < out.len() {
            match Pin::new(&mut self.stream).poll_write(cx, &out[self.sent..])? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(n) => self.sent += n,
                Poll::Pending => return Ok(()),
            }
        }
        out.clear();
        self.sent = 0;
        Ok(())
    }
}
