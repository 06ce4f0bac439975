//! One QUIC connection to a worker, as bytes: the request stream, and the worker's push stream.
//! Public for load generators that drive a [`crate::link::Link`] themselves.

use bytes::Bytes;
use lockring_proto::SERVER_NAME;
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream, VarInt};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::Join;

/// Chunks taken from the stream in one turn.
const CHUNKS: usize = 32;

/// A node that does not finish the handshake within this is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Why there is no connection.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WireError {
    /// The handshake failed or took too long.
    #[error("no connection to {addr}: {why}")]
    Connect {
        /// The node.
        addr: SocketAddr,
        /// What happened.
        why: String,
    },
    /// The connection ended.
    #[error("the connection ended: {0}")]
    Ended(String),
}

impl WireError {
    fn ended(error: &dyn std::error::Error) -> Self {
        Self::Ended(error.to_string())
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

/// A connection.
pub struct Wire {
    conn: Connection,
    send: SendStream,
    recv: RecvStream,
    pusher: Option<RecvStream>,
    writing: [Bytes; 1],
    chunks: [Bytes; CHUNKS],
    /// Received on the request stream.
    pub replies: Inbox,
    /// Received on the push stream.
    pub pushes: Inbox,
}

impl Wire {
    /// Connects to a worker and opens the request stream.
    ///
    /// # Errors
    /// When the handshake fails or takes longer than three seconds.
    pub async fn connect(
        endpoint: &Endpoint,
        config: ClientConfig,
        addr: SocketAddr,
    ) -> Result<Self, WireError> {
        let failed = |why: String| WireError::Connect { addr, why };
        let connecting = endpoint
            .connect_with(config, addr, SERVER_NAME)
            .map_err(|error| failed(error.to_string()))?;
        let conn = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| failed(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())))?
            .map_err(|error| failed(error.to_string()))?;
        let (send, recv) = conn.open_bi().await.map_err(|error| failed(error.to_string()))?;
        Ok(Self {
            conn,
            send,
            recv,
            pusher: None,
            writing: [Bytes::new()],
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
        let to_write = !self.writing[0].is_empty();
        tokio::select! {
            biased;
            written = self.send.write_chunks(&mut self.writing), if to_write => {
                written.map_err(|error| WireError::ended(&error))?;
                Ok(WireEvent::Written)
            }
            read = self.recv.read_chunks(&mut self.chunks) => {
                let count = read.map_err(|error| WireError::ended(&error))?;
                let count = count.ok_or_else(|| WireError::Ended("the node ended it".to_owned()))?;
                for chunk in &mut self.chunks[..count] {
                    self.replies.bytes.extend_from_slice(chunk);
                    *chunk = Bytes::new();
                }
                Ok(WireEvent::Replies)
            }
            pusher = self.conn.accept_uni(), if self.pusher.is_none() => {
                self.pusher = Some(pusher.map_err(|error| WireError::ended(&error))?);
                Ok(WireEvent::Pushes)
            }
            pushed = read_push(&mut self.pusher), if self.pusher.is_some() => {
                self.pushes.bytes.extend_from_slice(&pushed?);
                Ok(WireEvent::Pushes)
            }
        }
    }

    /// The bare request stream, for whoever speaks something else on it.
    pub fn into_stream(self) -> Join<RecvStream, SendStream> {
        tokio::io::join(self.recv, self.send)
    }

    /// Ends the connection now.
    pub fn close(&self) {
        self.conn.close(VarInt::from_u32(0), b"bye");
    }

    /// The peer's address.
    pub fn remote(&self) -> SocketAddr {
        self.conn.remote_address()
    }
}

async fn read_push(pusher: &mut Option<RecvStream>) -> Result<Bytes, WireError> {
    let Some(pusher) = pusher else { return std::future::pending().await };
    match pusher.read_chunk(usize::MAX, true).await {
        Ok(Some(chunk)) => Ok(chunk.bytes),
        // No more pushes; the request stream says when the connection ends.
        Ok(None) => std::future::pending().await,
        Err(error) => Err(WireError::ended(&error)),
    }
}
