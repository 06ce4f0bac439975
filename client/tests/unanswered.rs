//! What a client says when a node cannot answer: against a node of bare QUIC that loses the answer
//! to a forced release, or that nobody may ask any more.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod fake;

use lockring_client::proto::{
    BootId, Digest, Hello, HelloReply, NodeAddress, NodeId, NodeInfo, Operation, PROTOCOL, Refusal,
    RefusalKind, Reply, Request, RingChunk, Shown, Welcome, codec,
};
use lockring_client::ring::{CellBits, Epoch, RingTable, RingVersion};
use lockring_client::{Client, Error, ErrorKind};
use quinn::{Connection, Endpoint, RecvStream, SendStream, VarInt};
use std::fs;
use std::time::Duration;
use tempfile::TempDir;

/// An endpoint to listen at, and the identity with which clients trust it.
fn endpoint() -> (Endpoint, TempDir) {
    let (config, identity) = fake::cluster();
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("client.pem"), identity).unwrap();
    (Endpoint::server(config, ([127, 0, 0, 1], 0).into()).unwrap(), folder)
}

/// One connection of a client to a node that knows hellos, the ring and forced releases.
struct Served {
    conn: Connection,
    send: SendStream,
    recv: RecvStream,
    bytes: Vec<u8>,
    port: u16,
}

impl Served {
    /// Takes the next connection and welcomes its session as a new one.
    async fn accept(endpoint: &Endpoint) -> Self {
        let conn = endpoint.accept().await.unwrap().await.unwrap();
        let (send, recv) = conn.accept_bi().await.unwrap();
        let port = endpoint.local_addr().unwrap().port();
        let mut served = Self { conn, send, recv, bytes: Vec::new(), port };
        let frame = served.frame().await.unwrap();
        let hello: Hello<'_> = codec::decode_frame(&frame).unwrap();
        let welcome = Welcome {
            protocol: PROTOCOL,
            fresh: true,
            incarnation: hello.incarnation,
            ttl_ms: hello.ttl_ms,
            ring_version: 1,
            node: 1,
            boot: 1,
            worker: 0,
            namespace: "default".to_owned(),
        };
        let mut frame = Vec::new();
        codec::encode_frame(&HelloReply::Welcome(welcome), &mut frame);
        served.send.write_all(&frame).await.unwrap();
        served
    }

    async fn frame(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some((body, rest)) = codec::split_frame(&self.bytes).unwrap() {
                let body = body.to_vec();
                self.bytes = rest.to_vec();
                return Some(body);
            }
            let chunk = self.recv.read_chunk(usize::MAX, true).await.ok()??;
            self.bytes.extend_from_slice(&chunk.bytes);
        }
    }

    /// Answers until the client goes, or, with `lossy`, up to a forced release, which takes the
    /// connection with it. Returns how many forced releases came.
    async fn serve(mut self, lossy: bool) -> u32 {
        let mut forced = 0;
        while let Some(frame) = self.frame().await {
            let reply = match codec::decode_frame(&frame).unwrap() {
                Request::GetRing { id, .. } => Reply::Ring { id, chunk: Box::new(ring(self.port)) },
                Request::Renew { id, .. } => {
                    Reply::Renewed { id, version: 1, settled: 1, digest: Digest::default() }
                }
                Request::Goodbye { id } => Reply::Goodbye { id },
                Request::Keyed { id, operation: Operation::Force { .. }, .. } => {
                    forced += 1;
                    if lossy {
                        self.conn.close(VarInt::from_u32(0), b"lost");
                        return forced;
                    }
                    Reply::Forced { id, version: 1, ended: 1 }
                }
                // It has the ring, and says all the same that the key is another's.
                Request::Keyed { id, operation: Operation::Acquire { .. }, .. }
                | Request::Keyed { id, operation: Operation::Cancel { .. }, .. }
                | Request::Keyed { id, operation: Operation::Inspect { .. }, .. } => {
                    Reply::Moved { id, version: 1 }
                }
                other => panic!("not expected: {other:?}"),
            };
            let mut frame = Vec::new();
            codec::encode_frame(&reply, &mut frame);
            self.send.write_all(&frame).await.unwrap();
        }
        forced
    }
}

/// A ring of one node with two workers, only the first of which is there.
fn ring(port: u16) -> RingChunk {
    let addresses = vec![NodeAddress { host: "127.0.0.1".to_owned(), port }];
    let node = NodeInfo { id: NodeId(1), addresses, workers: 2, boot: BootId(1) };
    let bits = CellBits::new(1).unwrap();
    let table = RingTable::founded(RingVersion(1), bits, node, Epoch(1)).unwrap();
    let [part] = RingChunk::whole(&table).try_into().unwrap();
    part
}

/// A key of a worker. It is the second worker's if `second`.
fn key_of(client: &Client, second: bool) -> String {
    let wanted = u16::from(second);
    let mut keys = (0..).map(|number| format!("orders/{number}"));
    keys.find(|key| client.admin().route(key).unwrap().worker.worker == wanted).unwrap()
}

async fn connect(endpoint: &Endpoint, folder: &TempDir) -> Client {
    try_to_connect(endpoint, folder).await.unwrap()
}

async fn try_to_connect(endpoint: &Endpoint, folder: &TempDir) -> Result<Client, Error> {
    let url = format!("lockring://{}", endpoint.local_addr().unwrap());
    let identity = Some(folder.path().join("client.pem"));
    Client::builder().identity_argument(identity).connect(&url).await
}

#[tokio::test]
async fn a_closed_client_begins_no_session_at_a_worker_it_has_not_met() {
    let (endpoint, folder) = endpoint();
    let listening = endpoint.clone();
    let node = tokio::spawn(async move { Served::accept(&listening).await.serve(false).await });
    let scenario = async {
        let client = connect(&endpoint, &folder).await;
        client.close().await;
        for second in [false, true] {
            let key = key_of(&client, second);
            for error in [
                client.lock(&key).await.unwrap_err(),
                client.inspect(&key).await.unwrap_err(),
                client.admin().release_by_force(&key).await.unwrap_err(),
            ] {
                assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
                assert!(!error.is_indeterminate());
            }
        }
        assert_eq!(node.await.unwrap(), 0);
    };
    tokio::time::timeout(Duration::from_secs(30), scenario).await.expect("no answer");
}

#[tokio::test]
async fn a_forced_release_without_an_answer_may_have_been_carried_out() {
    let (endpoint, folder) = endpoint();
    let listening = endpoint.clone();
    let node = tokio::spawn(async move {
        let before = Served::accept(&listening).await.serve(true).await;
        let after = Served::accept(&listening).await.serve(false).await;
        (before, after)
    });
    let scenario = async {
        let client = connect(&endpoint, &folder).await;
        let key = key_of(&client, false);
        let error = client.admin().release_by_force(&key).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable);
        assert!(error.is_indeterminate());
        let message = error.to_string();
        for said in ["may have been carried out", "`inspect`", "repeat"] {
            assert!(message.contains(said), "{message}");
        }
        // Only the caller may repeat it.
        assert_eq!(client.admin().release_by_force(&key).await.unwrap(), 1);
        client.close().await;
        assert_eq!(node.await.unwrap(), (1, 1));
    };
    tokio::time::timeout(Duration::from_secs(30), scenario).await.expect("no answer");
}

/// As a node that came back with other workers and an older state than the client has seen.
#[tokio::test]
async fn a_key_that_nobody_has_by_the_newest_ring_is_not_waited_for() {
    let (endpoint, folder) = endpoint();
    let listening = endpoint.clone();
    let node = tokio::spawn(async move { Served::accept(&listening).await.serve(false).await });
    let scenario = async {
        let client = connect(&endpoint, &folder).await;
        let key = key_of(&client, false);
        // Who waits waits for somebody to serve it, too; these do not.
        let claim = client.try_lock(&key).await.unwrap_err();
        for error in [claim, client.inspect(&key).await.unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
            assert!(error.is_retryable() && !error.is_indeterminate(), "{error}");
        }
        client.close().await;
        assert_eq!(node.await.unwrap(), 0);
    };
    tokio::time::timeout(Duration::from_secs(20), scenario).await.expect("no answer");
}

/// Reads a hello and refuses it.
async fn refuse(endpoint: &Endpoint, kind: RefusalKind, message: &str) -> Connection {
    let conn = endpoint.accept().await.unwrap().await.unwrap();
    let (mut send, mut recv) = conn.accept_bi().await.unwrap();
    recv.read_chunk(usize::MAX, true).await.unwrap();
    let refusal = Refusal { kind, message: message.to_owned() };
    let mut frame = Vec::new();
    codec::encode_frame(&HelloReply::Refused(refusal), &mut frame);
    send.write_all(&frame).await.unwrap();
    send.finish().unwrap();
    send.stopped().await.ok();
    conn
}

#[tokio::test]
async fn a_refused_session_says_so_to_every_caller() {
    let (endpoint, folder) = endpoint();
    let listening = endpoint.clone();
    let node = tokio::spawn(async move {
        Served::accept(&listening).await.serve(true).await;
        let message = "the session id is in use by another identity";
        refuse(&listening, RefusalKind::ForeignSession, message).await
    });
    let scenario = async {
        let client = connect(&endpoint, &folder).await;
        let key = key_of(&client, false);
        let error = client.admin().release_by_force(&key).await.unwrap_err();
        assert!(error.is_indeterminate(), "it was sent: {error}");
        let _stands = node.await.unwrap();
        for error in [client.inspect(&key).await.unwrap_err(), client.lock(&key).await.unwrap_err()]
        {
            assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
            assert!(error.to_string().contains("another identity"), "{error}");
        }
    };
    tokio::time::timeout(Duration::from_secs(20), scenario).await.expect("no answer");
}

/// An error's text goes to terminals and logs, whatever a node says.
#[tokio::test]
async fn what_a_node_says_is_one_line_of_visible_text() {
    let words = "no\nFORGED \u{1b}[31m\u{202e}\u{9b}31m";
    let (endpoint, folder) = endpoint();
    let listening = endpoint.clone();
    let node = tokio::spawn(async move {
        let _stands = refuse(&listening, RefusalKind::Protocol, words).await;
        let conn = listening.accept().await.unwrap().await.unwrap();
        conn.close(VarInt::from_u32(7), words.as_bytes());
        listening.wait_idle().await;
    });
    let scenario = async {
        for said in ["refused", "closed"] {
            let error = try_to_connect(&endpoint, &folder).await.err().unwrap();
            if said == "refused" {
                assert_eq!(error.kind(), ErrorKind::Version, "{error}");
            }
            let (text, shown) = (error.to_string(), Shown(words).to_string());
            assert!(text.contains(&shown) && !text.chars().any(char::is_control), "{text:?}");
            assert!(!text.contains('\u{202e}'), "{text:?}");
        }
        node.await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(20), scenario).await.expect("no answer");
}
