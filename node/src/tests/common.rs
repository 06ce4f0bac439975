//! What the tests of real nodes share.

use crate::{CellBits, Data, Node, NodeConfig};
use lockring_client::Client;
use lockring_client::proto::{
    Hello, HelloReply, PROTOCOL, Reply, Request, SERVER_NAME, SessionId, codec,
};
use lockring_client::tls::{self, Bundle};
use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// A small node in this directory.
pub fn config(data: &Path, workers: u16) -> NodeConfig {
    NodeConfig {
        workers,
        cell_bits: CellBits::new(8).unwrap(),
        admin: Some(([127, 0, 0, 1], 0).into()),
        drain: Duration::ZERO,
        ..NodeConfig::new(Data::Directory(data.to_owned()))
    }
}

/// A client with the identity that the node made first.
pub async fn connect(node: &Node) -> Client {
    let url = format!("lockring://{}", node.listen());
    Client::builder().identity(node.client_bundle().unwrap()).connect(&url).await.unwrap()
}

/// What `kill -9` would leave of a data directory now.
pub fn crash_image(data: &Path) -> TempDir {
    let image = TempDir::new().unwrap();
    for entry in std::fs::read_dir(data).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, image.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    image
}

/// A hello of a session.
pub fn hello(session: u8) -> Hello<'static> {
    Hello {
        protocol: PROTOCOL,
        session: SessionId([session; 16]),
        incarnation: 1,
        ttl_ms: 10_000,
        ring_version: 0,
        ids_after: 0,
        label: "test",
    }
}

/// A bare connection with this identity.
pub async fn connection(node: &Node, bundle: &Bundle) -> Connection {
    let endpoint = tls::client_endpoint(node.listen()).unwrap();
    let config = tls::client_config(bundle);
    endpoint.connect_with(config, node.listen(), SERVER_NAME).unwrap().await.unwrap()
}

/// A bare request stream.
pub struct Raw {
    pub conn: Connection,
    pub send: SendStream,
    pub recv: RecvStream,
    pub bytes: Vec<u8>,
}

impl Raw {
    pub async fn open(node: &Node) -> Self {
        Self::open_as(node, &Bundle::load(node.client_bundle().unwrap()).unwrap()).await
    }

    pub async fn open_as(node: &Node, bundle: &Bundle) -> Self {
        let conn = connection(node, bundle).await;
        let (send, recv) = conn.open_bi().await.unwrap();
        Self { conn, send, recv, bytes: Vec::new() }
    }

    pub async fn greet(node: &Node, hello: &Hello<'_>) -> (Self, HelloReply) {
        let mut raw = Self::open(node).await;
        let reply = raw.say(hello).await;
        (raw, reply)
    }

    pub async fn send_hello(&mut self, hello: &Hello<'_>) {
        let mut frame = Vec::new();
        codec::encode_frame(hello, &mut frame);
        self.send.write_all(&frame).await.unwrap();
    }

    pub async fn say(&mut self, hello: &Hello<'_>) -> HelloReply {
        self.send_hello(hello).await;
        let body = self.frame().await.unwrap();
        codec::decode_frame(&body).unwrap()
    }

    pub async fn frame(&mut self) -> Option<Vec<u8>> {
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

    pub async fn ask(&mut self, request: &Request<'_>) -> Reply {
        let mut frame = Vec::new();
        codec::encode_frame(request, &mut frame);
        self.send.write_all(&frame).await.unwrap();
        codec::decode_frame(&self.frame().await.unwrap()).unwrap()
    }

    /// The code and the words with which the node closes.
    pub async fn closed(&self) -> (u64, String) {
        let closed = tokio::time::timeout(Duration::from_secs(5), self.conn.closed()).await;
        match closed.expect("closed") {
            ConnectionError::ApplicationClosed(close) => {
                (close.error_code.into(), String::from_utf8_lossy(&close.reason).into_owned())
            }
            other => panic!("{other}"),
        }
    }
}

/// An HTTP request's status and body.
pub async fn get(at: std::net::SocketAddr, path: &str) -> (u16, String) {
    get_as(at, path, &at.to_string()).await
}

/// As [`get`], with this `Host`.
pub async fn get_as(at: std::net::SocketAddr, path: &str, host: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(at).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let code = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    let body = text.split_once("\r\n\r\n").unwrap().1.to_owned();
    (code, body)
}
