//! One QUIC connection to a worker, as bytes: the request stream, and the worker's push stream.
//! Public for load generators that drive a [`crate::session::Session`] themselves.
//!
//! ```no_run
//! use lockring_client::proto::clock;
//! use lockring_client::session::{LinkId, Session};
//! use lockring_client::wire::{Inbox, Wire, WireError, WireEvent};
//!
//! # async fn example(
//! #     endpoint: quinn::Endpoint, config: quinn::ClientConfig, node: std::net::SocketAddr,
//! #     mut session: Session,
//! # ) -> Result<(), Box<dyn std::error::Error>> {
//! let mut wire = Wire::connect(&endpoint, config, node).await?;
//! let link = LinkId::FIRST;
//! session.connected(clock::now(), link);
//! loop {
//!     wire.send(session.outgoing(link));
//!     match wire.next().await {
//!         Ok(WireEvent::Replies) => {
//!             let inbox: &mut Inbox = &mut wire.replies;
//!             let taken = session.receive(clock::now(), link, inbox.bytes())?;
//!             inbox.consume(taken);
//!         }
//!         Ok(WireEvent::Pushes) => {
//!             let taken = session.receive_pushes(clock::now(), link, wire.pushes.bytes())?;
//!             wire.pushes.consume(taken);
//!         }
//!         Ok(WireEvent::Written) => {}
//!         Err(WireError::Ended(why)) => break println!("the connection ended: {why}"),
//!         Err(error) => return Err(error.into()),
//!     }
//!     for outcome in session.outcomes().drain(..) {
//!         println!("{outcome:?}");
//!     }
//! }
//! # Ok(()) }
//! ```

pub use crate::cause::Cause;
use bytes::Bytes;
use lockring_proto::{SERVER_NAME, Shown};
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, ReadError, RecvStream, SendStream, VarInt,
    WriteError,
};
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::Join;

/// The application close code of a connection whose place another one has taken.
const CLOSE_SUPERSEDED: u32 = 1;

/// Chunks taken from the stream in one turn.
const CHUNKS: usize = 32;

/// A node that does not finish the handshake within this is not there. Some two round trips of the
/// slowest path on which a lease of the default TTL can be kept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(6);

/// Why there is no connection. The fields have a peer's words as they came, the text has them as
/// [`Shown`] prints them.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WireError {
    /// The worker cannot be reached, or one of the two does not take the other.
    #[error("no connection to {at}: {cause}")]
    Connect {
        /// Address or name of the worker.
        at: String,
        /// What is the matter.
        cause: Cause,
    },
    /// The connection ended.
    #[error("the connection ended: {}", Shown(.0))]
    Ended(String),
    /// Another connection of the session has taken this one's place.
    #[error("another process has taken the session up")]
    Superseded,
}

impl WireError {
    /// There is no contact with an address, for this cause.
    pub(crate) fn connect(at: &impl ToString, cause: Cause) -> Self {
        Self::Connect { at: at.to_string(), cause }
    }

    /// What is the matter with the way to a worker, if that is what it is about.
    ///
    /// ```
    /// use lockring_client::wire::{Cause, WireError};
    ///
    /// let error = WireError::Connect { at: "127.0.0.1:7420".to_owned(), cause: Cause::Refused };
    /// assert_eq!(error.cause(), Some(&Cause::Refused));
    /// assert_eq!(WireError::Superseded.cause(), None);
    /// ```
    pub fn cause(&self) -> Option<&Cause> {
        match self {
            Self::Connect { cause, .. } => Some(cause),
            Self::Ended(_) | Self::Superseded => None,
        }
    }

    /// A connection that stood has ended. In TLS 1.3 it stands before the node has looked at our
    /// certificate.
    fn lost(at: SocketAddr, error: &ConnectionError) -> Self {
        if let ConnectionError::ApplicationClosed(close) = error
            && close.error_code == VarInt::from_u32(CLOSE_SUPERSEDED)
        {
            return Self::Superseded;
        }
        let ended = || Self::Ended(error.to_string());
        Cause::of(error).map_or_else(ended, |cause| Self::connect(&at, cause))
    }
}

fn unreadable(conn: &Connection, error: ReadError) -> WireError {
    match error {
        ReadError::ConnectionLost(error) => WireError::lost(conn.remote_address(), &error),
        other => WireError::Ended(other.to_string()),
    }
}

/// What happened on a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireEvent {
    /// There are new bytes in [`Wire::replies`].
    Replies,
    /// There are new bytes in [`Wire::pushes`].
    Pushes,
    /// Some of what was to be sent is on its way.
    Written,
}

/// Bytes of one stream that are not taken in yet.
#[derive(Default)]
pub struct Inbox {
    bytes: Vec<u8>,
}

impl Inbox {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Drops what was taken in from the front.
    pub fn consume(&mut self, count: usize) {
        self.bytes.drain(..count);
    }
}

type Opening = Pin<Box<dyn Future<Output = Result<RecvStream, ConnectionError>> + Send + Sync>>;

/// The worker's push stream, which it opens when it has something to say.
enum Pushing {
    Awaited(Opening),
    Open(RecvStream),
    Ended,
}

/// A connection.
pub struct Wire {
    endpoint: Endpoint,
    conn: Connection,
    send: SendStream,
    recv: RecvStream,
    pushing: Pushing,
    writing: [Bytes; 1],
    /// What is to be written had to wait.
    blocked: bool,
    chunks: [Bytes; CHUNKS],
    /// Received on the request stream.
    pub replies: Inbox,
    /// Received on the push stream.
    pub pushes: Inbox,
}

impl Wire {
    /// Connects to a worker and opens the request stream.
    ///
    /// Cancel safe: dropping the future ends the connection.
    ///
    /// # Errors
    /// When the handshake fails or takes longer than six seconds.
    pub async fn connect(
        endpoint: &Endpoint,
        config: ClientConfig,
        addr: SocketAddr,
    ) -> Result<Self, WireError> {
        let failed = |cause| WireError::connect(&addr, cause);
        let other = |error: &dyn ToString| failed(Cause::Other(error.to_string()));
        let connecting =
            endpoint.connect_with(config, addr, SERVER_NAME).map_err(|error| other(&error))?;
        let silent = || failed(Cause::Silent(CONNECT_TIMEOUT));
        let conn = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| silent())?
            .map_err(|error| match error {
            ConnectionError::TimedOut => silent(),
            error => Cause::of(&error).map_or_else(|| other(&error), failed),
        })?;
        let stream = conn.open_bi().await;
        let (send, recv) = stream.map_err(|error| WireError::lost(addr, &error))?;
        let accepting = conn.clone();
        Ok(Self {
            endpoint: endpoint.clone(),
            conn,
            send,
            recv,
            pushing: Pushing::Awaited(Box::pin(async move { accepting.accept_uni().await })),
            writing: [Bytes::new()],
            blocked: false,
            chunks: std::array::from_fn(|_| Bytes::new()),
            replies: Inbox::default(),
            pushes: Inbox::default(),
        })
    }

    /// Takes bytes to be sent, if nothing is being sent; otherwise they stay where they are and
    /// gather with what comes.
    pub fn send(&mut self, bytes: &mut Vec<u8>) {
        if self.writing[0].is_empty() && !bytes.is_empty() {
            let room = bytes.capacity().min(64 << 10);
            let taken = std::mem::replace(bytes, Vec::with_capacity(room));
            self.writing[0] = Bytes::from(taken);
        }
    }

    /// Waits until something happens, sending all the while.
    ///
    /// Cancel safe: nothing that was received or is to be sent is lost.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn next(&mut self) -> Result<WireEvent, WireError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`Wire::next`], for tasks that wait for other things too.
    ///
    /// ```no_run
    /// use lockring_client::wire::{Wire, WireError, WireEvent};
    /// use std::future::poll_fn;
    /// use std::task::Poll;
    ///
    /// # async fn example(mut a: Wire, mut b: Wire) -> Result<(), WireError> {
    /// let event: WireEvent = poll_fn(|cx| match a.poll_next(cx) {
    ///     Poll::Ready(event) => Poll::Ready(event),
    ///     Poll::Pending => b.poll_next(cx),
    /// })
    /// .await?;
    /// # drop(event); Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Wire::next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<WireEvent, WireError>> {
        let written = self.poll_write(cx)?;
        let read = pin!(self.recv.read_chunks(&mut self.chunks)).poll(cx);
        if let Poll::Ready(read) = read {
            let count = read.map_err(|error| unreadable(&self.conn, error))?;
            let count = count.ok_or_else(|| WireError::Ended("the node ended it".to_owned()))?;
            for chunk in &mut self.chunks[..count] {
                self.replies.bytes.extend_from_slice(chunk);
                *chunk = Bytes::new();
            }
            return Poll::Ready(Ok(WireEvent::Replies));
        }
        if self.poll_pushes(cx)? {
            return Poll::Ready(Ok(WireEvent::Pushes));
        }
        if written { Poll::Ready(Ok(WireEvent::Written)) } else { Poll::Pending }
    }

    /// Sends. `true`: what could not be sent at once is on its way now, and more may wait.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<bool, WireError> {
        if self.writing[0].is_empty() {
            return Ok(false);
        }
        let written = pin!(self.send.write_chunks(&mut self.writing)).poll(cx);
        match written {
            Poll::Ready(written) => {
                written.map_err(|error| match error {
                    WriteError::ConnectionLost(error) => {
                        WireError::lost(self.conn.remote_address(), &error)
                    }
                    other => WireError::Ended(other.to_string()),
                })?;
                // The connection's window may have taken a part: the rest follows in this manner.
                let blocked = std::mem::replace(&mut self.blocked, !self.writing[0].is_empty());
                Ok(blocked || self.blocked)
            }
            Poll::Pending => {
                self.blocked = true;
                Ok(false)
            }
        }
    }

    /// Takes in the push stream, once there is one. `true`: there are new bytes.
    fn poll_pushes(&mut self, cx: &mut Context<'_>) -> Result<bool, WireError> {
        loop {
            match &mut self.pushing {
                Pushing::Awaited(opened) => match opened.as_mut().poll(cx) {
                    Poll::Ready(stream) => {
                        let at = self.conn.remote_address();
                        let stream = stream.map_err(|error| WireError::lost(at, &error))?;
                        self.pushing = Pushing::Open(stream);
                    }
                    Poll::Pending => return Ok(false),
                },
                Pushing::Open(stream) => {
                    let read = pin!(stream.read_chunk(usize::MAX, true)).poll(cx);
                    let Poll::Ready(chunk) = read else { return Ok(false) };
                    match chunk.map_err(|error| unreadable(&self.conn, error))? {
                        Some(chunk) => {
                            self.pushes.bytes.extend_from_slice(&chunk.bytes);
                            return Ok(true);
                        }
                        // The request stream says when the connection ends.
                        None => self.pushing = Pushing::Ended,
                    }
                }
                Pushing::Ended => return Ok(false),
            }
        }
    }

    /// The bare request stream, for whoever speaks something else on it.
    ///
    /// ```no_run
    /// # use lockring_client::wire::Wire;
    /// # async fn example(wire: Wire) -> std::io::Result<()> {
    /// use tokio::io::AsyncWriteExt;
    /// let mut stream = wire.into_stream();
    /// stream.write_all(b"any bytes").await?;
    /// # Ok(()) }
    /// ```
    pub fn into_stream(self) -> Join<RecvStream, SendStream> {
        tokio::io::join(self.recv, self.send)
    }

    /// Ends the connection now.
    pub(crate) fn close(&self) {
        self.conn.close(VarInt::from_u32(0), b"bye");
    }

    /// Waits until the peer has had time to learn that the connection was closed.
    pub(crate) async fn drained(&self) {
        self.endpoint.wait_idle().await;
    }

    /// The peer's address.
    pub(crate) fn remote(&self) -> SocketAddr {
        self.conn.remote_address()
    }
}
