//! A connection that says whatever an attack wants said.

use crate::lockring::ClusterAccess;
use lockring_client::proto::{
    Claim, Hello, HelloReply, Message, Operation, PROTOCOL, Request, SessionId, Wait, codec,
};
use quinn::{RecvStream, SendStream};
use std::error::Error as StdError;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Join, ReadHalf, WriteHalf, split};

/// A session at the first worker, frame by frame.
pub(super) struct Peer {
    read: ReadHalf<Join<RecvStream, SendStream>>,
    write: WriteHalf<Join<RecvStream, SendStream>>,
    pub(super) version: u64,
    next: u64,
    out: Vec<u8>,
}

fn broken(why: impl Into<Box<dyn StdError + Send + Sync>>) -> io::Error {
    io::Error::other(why)
}

impl Peer {
    /// Connects and says hello with a TTL of so many milliseconds.
    pub(super) async fn connect(access: &ClusterAccess, ttl_ms: u64) -> io::Result<Self> {
        let wire = access.wire().await.map_err(broken)?;
        let (read, write) = split(wire.into_stream());
        let mut peer = Self { read, write, version: 0, next: 0, out: Vec::new() };
        let mut session = [0; 16];
        getrandom::fill(&mut session).map_err(broken)?;
        let session = SessionId(session);
        let hello = Hello {
            protocol: PROTOCOL,
            session,
            incarnation: 1,
            ttl_ms,
            ring_version: 0,
            ids_after: 0,
            label: "attacker",
        };
        peer.put(&hello);
        peer.flush().await?;
        let mut bytes = Vec::new();
        loop {
            let mut chunk = [0; 4096];
            let count = peer.read.read(&mut chunk).await?;
            bytes.extend_from_slice(&chunk[..count]);
            if count == 0 {
                return Err(broken("no welcome"));
            }
            if let Some((body, _)) = codec::split_frame(&bytes).map_err(broken)? {
                let HelloReply::Welcome(welcome) = codec::decode_frame(body).map_err(broken)?
                else {
                    return Err(broken("refused"));
                };
                peer.version = welcome.ring_version;
                return Ok(peer);
            }
        }
    }

    /// The next request id.
    pub(super) fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Whether the last request's number is one.
    pub(super) fn next_is_multiple_of(&self, of: u64) -> bool {
        self.next.is_multiple_of(of)
    }

    /// Appends a frame to what is sent next.
    pub(super) fn put<'a>(&mut self, message: &impl Message<'a>) {
        codec::encode_frame(message, &mut self.out);
    }

    /// A claim.
    pub(super) fn acquire(&mut self, claim: Claim, wait: Wait, key: &[u8]) -> u64 {
        let (id, version) = (self.id(), self.version);
        self.put(&Request::Keyed {
            id,
            version,
            operation: Operation::Acquire { claim, wait },
            key,
        });
        id
    }

    /// Sends what was put together.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.out);
        self.write.write_all(&bytes).await
    }

    /// Sends it and reads as many bytes of answers as come while it is sent, and a while longer.
    pub(super) async fn exchange(&mut self) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.out);
        let (read, write) = (&mut self.read, &mut self.write);
        let mut chunk = vec![0; 64 << 10];
        let send = write.write_all(&bytes);
        tokio::pin!(send);
        let mut sent = false;
        loop {
            let quiet = tokio::time::sleep(std::time::Duration::from_millis(20));
            tokio::select! {
                biased;
                done = &mut send, if !sent => {
                    done?;
                    sent = true;
                }
                count = read.read(&mut chunk) => {
                    if count? == 0 {
                        return Err(broken("the node ended the connection"));
                    }
                }
                () = quiet, if sent => return Ok(()),
            }
        }
    }

    /// Leaves, and waits until the node has heard it: what is unsent when a connection is dropped
    /// never arrives.
    pub(super) async fn goodbye(mut self) -> io::Result<()> {
        let id = self.id();
        self.put(&Request::Goodbye { id });
        self.flush().await?;
        let mut chunk = vec![0; 4096];
        while self.read.read(&mut chunk).await.is_ok_and(|count| count > 0) {}
        Ok(())
    }
}
