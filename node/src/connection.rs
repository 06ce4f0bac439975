//! One client connection: its request stream in, its replies and pushes out.

use crate::conns::Ending;
use crate::identity::{CertificateIdentity, IdentityKind};
use crate::rated::{Cause, told};
use crate::state::Shared;
use crate::ttl::TtlMax;
use bytes::Bytes;
use lockring_core::{Access, CloseReason, ConnId, Event, Identity};
use lockring_proto::codec::{self, FrameError};
use lockring_proto::{Hello, Request, clock};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use rustls_pki_types::CertificateDer;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;

/// A peer that has shown its certificate must open its stream and say hello within this.
const HELLO_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the last replies of a closing connection may take to reach the peer.
const LINGER: Duration = Duration::from_secs(1);

/// Frames decoded for one turn; fewer where turns were over before that.
const FRAMES_MAX: usize = 256;
const FRAMES_MIN: usize = 8;

/// Up to this many bytes of answers wait for those of the connection's next turn.
const GATHERED_MAX: usize = 16 << 10;

/// Chunks taken from the stream in one turn, of one packet each.
const CHUNKS: usize = 32;

/// Application close codes beside [`CloseReason`].
const CODE_MALFORMED: u32 = 16;
const CODE_IDENTITY: u32 = 17;
pub(crate) const CODE_STOPPING: u32 = 18;
const CODE_REFUSED: u32 = 19;
const CODE_NO_HELLO: u32 = 20;
const CODE_SLOW: u32 = 21;

/// Why a connection ended early.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("the peer is gone: {0}")]
    Gone(String),
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("no hello within {} s", HELLO_TIMEOUT.as_secs())]
    NoHello,
}

impl From<quinn::ReadError> for Fault {
    fn from(error: quinn::ReadError) -> Self {
        Self::Gone(error.to_string())
    }
}

impl From<quinn::WriteError> for Fault {
    fn from(error: quinn::WriteError) -> Self {
        Self::Gone(error.to_string())
    }
}

impl From<quinn::ConnectionError> for Fault {
    fn from(error: quinn::ConnectionError) -> Self {
        Self::Gone(error.to_string())
    }
}

/// Serves a connection until it ends.
pub async fn serve(conn: Connection, shared: Shared) {
    let peer = conn.remote_address();
    let turn = |cause| shared.borrow_mut().telemetry.rated.turn(clock::now(), cause);
    let known = identity_of(&conn, &shared.borrow().ttl_max);
    let identity = match known {
        Ok(identity) => identity,
        Err(why) => {
            if let Some(left_out) = turn(Cause::Identity) {
                tracing::warn!(%peer, why = %told(&why), left_out, "connection refused");
            }
            return conn.close(VarInt::from_u32(CODE_IDENTITY), why.as_bytes());
        }
    };
    let (id, wake) = shared.borrow_mut().open();
    let ended = Session {
        conn: &conn,
        shared: &shared,
        id,
        wake,
        carry: Vec::new(),
        left: false,
        most: FRAMES_MAX,
    }
    .run(&identity)
    .await;
    shared.borrow_mut().close(id);
    let (code, reason) = match ended {
        Ok(Ending::Core(reason)) => {
            if let Some(left_out) = turn(Cause::Ended) {
                tracing::info!(%peer, name = identity.name, ?reason, left_out, "link ended");
            }
            (VarInt::from_u32(reason as u32), "ended by the node".to_owned())
        }
        Ok(Ending::Refused) => (VarInt::from_u32(CODE_REFUSED), "refused".to_owned()),
        Ok(Ending::Stopping) => {
            (VarInt::from_u32(CODE_STOPPING), "the node is stopping".to_owned())
        }
        Ok(Ending::Slow) => {
            if let Some(left_out) = turn(Cause::Fault) {
                tracing::warn!(%peer, name = identity.name, left_out, "it does not read");
            }
            let why = "too much is unsent: read, then connect again".to_owned();
            (VarInt::from_u32(CODE_SLOW), why)
        }
        Err(Fault::Gone(why)) => {
            tracing::debug!(%peer, why = %told(&why), "connection ended");
            (VarInt::from_u32(0), "bye".to_owned())
        }
        Err(fault) => {
            let why = fault.to_string();
            if let Some(left_out) = turn(Cause::Fault) {
                tracing::warn!(%peer, why = %told(&why), left_out, "connection closed");
            }
            let code = if let Fault::NoHello = fault { CODE_NO_HELLO } else { CODE_MALFORMED };
            (VarInt::from_u32(code), why)
        }
    };
    conn.close(code, reason.as_bytes());
}

/// Who the peer has proved to be: a client, by the one URI of its certificate.
fn identity_of(conn: &Connection, ttl_max: &TtlMax) -> Result<Identity, String> {
    let chain = conn
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    let Some(certificate) = chain.as_ref().and_then(|chain| chain.first()) else {
        return Err("no certificate".to_owned());
    };
    let identity =
        CertificateIdentity::from_certificate(certificate).map_err(|error| error.to_string())?;
    let access = match identity.kind {
        IdentityKind::User => Access::User,
        IdentityKind::Operator => Access::Operator,
        IdentityKind::Node => {
            return Err("a node's certificate cannot be used by a client".to_owned());
        }
    };
    let ttl_max = ttl_max.of(&identity.namespace);
    Ok(Identity { namespace: identity.namespace, name: identity.name, access, ttl_max })
}

struct Session<'a> {
    conn: &'a Connection,
    shared: &'a Shared,
    id: ConnId,
    wake: Rc<Notify>,
    /// What has come and is not served yet; mostly the beginning of a frame.
    carry: Vec<u8>,
    /// There may be whole frames in it, for the next turn.
    left: bool,
    /// How many frames are decoded for one turn.
    most: usize,
}

impl Session<'_> {
    async fn run(mut self, identity: &Identity) -> Result<Ending, Fault> {
        let hello = tokio::time::timeout(HELLO_TIMEOUT, self.hello(identity)).await;
        let (mut send, mut recv) = hello.map_err(|_| Fault::NoHello)??;
        let mut pushes = None;
        let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
        loop {
            if !self.gathers()
                && let Some(ending) = self.flush(&mut send, &mut pushes).await?
            {
                if ending != Ending::Slow {
                    linger(&mut send).await;
                }
                return Ok(ending);
            }
            if !self.may_go_on() {
                // What it sends before its welcome, or while it is paused, stays in the stream.
                tokio::select! {
                    () = self.wake.notified() => continue,
                    error = self.conn.closed() => return Err(error.into()),
                }
            }
            if self.left {
                // Everybody else has a turn first.
                tokio::task::yield_now().await;
                self.take_in(&mut [])?;
                continue;
            }
            tokio::select! {
                biased;
                read = recv.read_chunks(&mut chunks) => match read? {
                    Some(count) => self.take_in(&mut chunks[..count])?,
                    None => return Ok(Ending::Core(CloseReason::Goodbye)),
                },
                () = self.wake.notified() => {}
            }
        }
    }

    /// Waits for the stream and the first frame, and gives it to the machine.
    async fn hello(&mut self, identity: &Identity) -> Result<(SendStream, RecvStream), Fault> {
        let (send, mut recv) = self.conn.accept_bi().await?;
        loop {
            if let Some((body, rest)) = codec::split_frame(&self.carry)? {
                let hello: Hello<'_> = codec::decode_frame(body)?;
                let event = Event::Opened { conn: self.id, identity, hello };
                self.shared.borrow_mut().run(Some(self.id), event);
                self.carry = rest.to_vec();
                self.left = !self.carry.is_empty();
                return Ok((send, recv));
            }
            match recv.read_chunk(usize::MAX, true).await? {
                Some(chunk) => self.carry.extend_from_slice(&chunk.bytes),
                None => return Err(Fault::Gone("no hello".to_owned())),
            }
        }
    }

    /// Whether its requests are read and run: it is welcome and not paused, and the worker takes
    /// requests on, or it is to be closed.
    fn may_go_on(&self) -> bool {
        let mut shared = self.shared.borrow_mut();
        let waits = shared.takes_nothing_on();
        shared.outbox(self.id).is_some_and(|outbox| {
            outbox.link.is_some() && !outbox.paused && !waits || outbox.close.is_some()
        })
    }

    /// Whether answers wait for those of the next turn: packets that are not full cost more than
    /// turns do.
    fn gathers(&self) -> bool {
        let mut shared = self.shared.borrow_mut();
        self.left
            && !shared.takes_nothing_on()
            && shared.outbox(self.id).is_some_and(|outbox| {
                let goes_on = outbox.close.is_none() && !outbox.paused;
                goes_on && outbox.replies.len() + outbox.pushes.len() < GATHERED_MAX
            })
    }

    /// Runs the whole frames that have come, as one batch; what exceeds a turn is left.
    fn take_in(&mut self, chunks: &mut [Bytes]) -> Result<(), Fault> {
        let mut shared = self.shared.borrow_mut();
        let Some(link) = shared.outbox(self.id).and_then(|outbox| outbox.link) else {
            // Replaced: nothing of it is run any more.
            return Ok(());
        };
        let mut scratch = std::mem::take(&mut shared.scratch);
        scratch.clear();
        scratch.append(&mut self.carry);
        for chunk in chunks {
            scratch.extend_from_slice(chunk);
            *chunk = Bytes::new();
        }
        let room = (scratch.len() / 28 + 1).min(self.most);
        let mut requests: Vec<Request<'_>> = Vec::with_capacity(room);
        let rest = codec::decode_up_to(self.most, &scratch, |request| requests.push(request));
        let given = requests.len();
        let mut taken = 0;
        if given > 0 {
            let event = Event::Requests { conn: self.id, link, requests: &requests };
            taken = shared.turn(Some(self.id), event);
        }
        drop(requests);
        self.left = taken < given || given == self.most;
        // What a turn does not take is decoded again for the next: not much more than that takes.
        self.most = if taken < given { (taken * 2).max(FRAMES_MIN) } else { FRAMES_MAX };
        let ended = if self.left {
            self.carry.extend_from_slice(after_frames(&scratch, taken)?);
            Ok(())
        } else {
            rest.map(|rest| self.carry.extend_from_slice(rest))
        };
        shared.scratch = scratch;
        Ok(ended?)
    }

    /// Sends what is to be sent; says whether the connection is to end then.
    async fn flush(
        &self,
        send: &mut SendStream,
        pushes: &mut Option<SendStream>,
    ) -> Result<Option<Ending>, Fault> {
        loop {
            let (replies, pushed, close) = {
                let mut shared = self.shared.borrow_mut();
                let Some(outbox) = shared.outbox(self.id) else {
                    return Ok(Some(Ending::Stopping));
                };
                let room = outbox.replies.capacity().min(64 << 10);
                let replies = std::mem::take(&mut outbox.replies);
                if !replies.is_empty() {
                    outbox.replies = Vec::with_capacity(room);
                }
                (replies, std::mem::take(&mut outbox.pushes), outbox.close)
            };
            if replies.is_empty() && pushed.is_empty() || close == Some(Ending::Slow) {
                return Ok(close);
            }
            if !replies.is_empty() {
                self.write(send, replies, close).await?;
            }
            if !pushed.is_empty() {
                if pushes.is_none() {
                    *pushes = Some(self.conn.open_uni().await?);
                }
                if let Some(pushes) = pushes {
                    self.write(pushes, pushed, close).await?;
                }
            }
        }
    }

    /// Writes one buffer. A peer that does not read blocks only its own connection, and not its
    /// end: once the machine has given it up, the last words get a limited time.
    async fn write(
        &self,
        stream: &mut SendStream,
        bytes: Vec<u8>,
        close: Option<Ending>,
    ) -> Result<(), Fault> {
        let mut patience = close.is_some();
        let write = stream.write_chunk(Bytes::from(bytes));
        tokio::pin!(write);
        loop {
            tokio::select! {
                biased;
                written = &mut write => return Ok(written?),
                () = self.wake.notified(), if !patience => {
                    let mut shared = self.shared.borrow_mut();
                    let close = shared.outbox(self.id).map(|outbox| outbox.close);
                    if close == Some(Some(Ending::Slow)) {
                        return Ok(());
                    }
                    patience = close.is_none_or(|close| close.is_some());
                }
                () = tokio::time::sleep(LINGER), if patience => {
                    return Err(Fault::Gone("the peer does not read".to_owned()));
                }
            }
        }
    }
}

/// The bytes after so many whole frames.
fn after_frames(mut bytes: &[u8], count: usize) -> Result<&[u8], FrameError> {
    for _ in 0..count {
        if let Some((_, after)) = codec::split_frame(bytes)? {
            bytes = after;
        }
    }
    Ok(bytes)
}

/// Gives the last replies time to reach the peer: closing a connection drops what is unsent.
async fn linger(send: &mut SendStream) {
    if send.finish().is_ok() {
        let _the_peer_has_it_or_is_gone = tokio::time::timeout(LINGER, send.stopped()).await;
    }
}
