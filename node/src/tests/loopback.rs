//! Real QUIC on 127.0.0.1: who gets in, who does not, and what a connection may do.

use crate::authority::Authority;
use crate::endpoint::{self, BindError, EndpointKeys};
use crate::files::{Files, ensure_files};
use crate::identity::CertificateIdentity;
use crate::tls::server_config;
use lockring_client::tls::{self as client_tls, Bundle};
use lockring_proto::{ALPN, Namespace, SERVER_NAME};
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig};
use quinn::{Connection, ConnectionError};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

const REFUSED_WITHIN: Duration = Duration::from_secs(3);

fn keys(seed: u8) -> EndpointKeys {
    EndpointKeys { reset: [seed; 64], cid: u64::from(seed) }
}

fn any_port() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

struct Server {
    _dir: tempfile::TempDir,
    authority: Authority,
    files: Files,
    endpoint: quinn::Endpoint,
    addr: SocketAddr,
}

fn server() -> Server {
    let dir = tempfile::tempdir().unwrap();
    let files = ensure_files(dir.path()).unwrap();
    let endpoint = endpoint::bind(any_port(), &keys(7), server_config(&files).unwrap()).unwrap();
    let addr = endpoint.local_addr().unwrap();
    let authority = Authority::load(dir.path()).unwrap();
    Server { _dir: dir, authority, files, endpoint, addr }
}

impl Server {
    async fn accept(&self) -> Result<Connection, ConnectionError> {
        self.endpoint.accept().await.unwrap().await
    }
}

fn identity(connection: &Connection) -> CertificateIdentity {
    let certificates = connection.peer_identity().unwrap();
    let certificates: Box<Vec<CertificateDer<'static>>> = certificates.downcast().unwrap();
    CertificateIdentity::from_certificate(&certificates[0]).unwrap()
}

/// Connects; the endpoint must outlive the connection.
async fn connect(
    config: quinn::ClientConfig,
    addr: SocketAddr,
) -> (quinn::Endpoint, Result<Connection, ConnectionError>) {
    let endpoint = client_tls::client_endpoint(addr).unwrap();
    let connecting = endpoint.connect_with(config, addr, SERVER_NAME).unwrap();
    (endpoint, connecting.await)
}

fn config(bundle: &str) -> quinn::ClientConfig {
    client_tls::client_config(&Bundle::parse(bundle.as_bytes()).unwrap())
}

/// A connection in both hands, as the client of `client.pem`.
async fn pair(server: &Server) -> (quinn::Endpoint, Connection, Connection) {
    let bundle = Bundle::load(server.files.client.as_ref().unwrap()).unwrap();
    let connecting = connect(client_tls::client_config(&bundle), server.addr);
    let ((endpoint, client), accepted) = tokio::join!(connecting, server.accept());
    (endpoint, client.unwrap(), accepted.unwrap())
}

/// Both sides must give up, each in time.
async fn refused(server: &Server, config: quinn::ClientConfig) {
    let client = async {
        let (_endpoint, connected) = connect(config, server.addr).await;
        // In TLS 1.3 a client is done before the server has judged its certificate.
        if let Ok(connection) = connected {
            connection.closed().await;
        }
    };
    let (client, server) =
        tokio::join!(timeout(REFUSED_WITHIN, client), timeout(REFUSED_WITHIN, server.accept()));
    client.expect("the client was left hanging");
    server.expect("the server was left hanging").expect_err("the server let it in");
}

async fn stays_pending(future: impl Future) {
    assert!(timeout(Duration::from_millis(200), future).await.is_err());
}

#[tokio::test]
async fn both_ends_know_each_other_and_exchange_bytes() {
    let server = server();
    let (_endpoint, client, accepted) = pair(&server).await;
    assert_eq!(
        identity(&accepted),
        CertificateIdentity::operator("local", Namespace::default()).unwrap()
    );
    assert_eq!(identity(&client), CertificateIdentity::node("node-1").unwrap());
    let data: Box<HandshakeData> = accepted.handshake_data().unwrap().downcast().unwrap();
    assert_eq!(data.protocol.as_deref(), Some(ALPN));

    let (mut send, mut receive) = client.open_bi().await.unwrap();
    send.write_all(b"ping").await.unwrap();
    let (mut reply, mut request) = accepted.accept_bi().await.unwrap();
    let mut bytes = [0; 4];
    request.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"ping");
    reply.write_all(b"pong").await.unwrap();
    receive.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"pong");
}

#[tokio::test]
async fn the_namespace_comes_from_the_certificate() {
    let server = server();
    let namespace = Namespace::new("team-a").unwrap();
    let bundle = server.authority.issue_client("web", &namespace).unwrap();
    let ((_endpoint, client), accepted) =
        tokio::join!(connect(config(&bundle), server.addr), server.accept());
    let _client = client.unwrap();
    assert_eq!(identity(&accepted.unwrap()), CertificateIdentity::user("web", namespace).unwrap());
}

#[tokio::test]
async fn streams_and_datagrams_are_limited() {
    let server = server();
    let (_endpoint, client, accepted) = pair(&server).await;
    let _requests = [client.open_bi().await.unwrap(), client.open_bi().await.unwrap()];
    stays_pending(client.open_bi()).await;
    stays_pending(client.open_uni()).await;
    let _pushes = accepted.open_uni().await.unwrap();
    stays_pending(accepted.open_uni()).await;
    stays_pending(accepted.open_bi()).await;
    assert_eq!(client.max_datagram_size(), None);
    assert_eq!(accepted.max_datagram_size(), None);
}

/// A client made by hand, with or without the certificate of a bundle, that offers a protocol.
fn handmade(server: &Server, bundle: Option<&str>, protocol: &[u8]) -> quinn::ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(server.authority.certificate().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut tls = match bundle.map(str::as_bytes) {
        Some(pem) => {
            let own = CertificateDer::pem_slice_iter(pem).last().unwrap().unwrap();
            let key = PrivateKeyDer::from_pem_slice(pem).unwrap();
            builder.with_client_auth_cert(vec![own], key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![protocol.to_vec()];
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let server = server();
    refused(&server, handmade(&server, None, ALPN)).await;
}

#[tokio::test]
async fn a_client_of_another_cluster_is_refused() {
    let server = server();
    let foreign = Authority::create().unwrap();
    let bundle = foreign.issue_client("local", &Namespace::default()).unwrap();
    // It trusts this cluster, so that it is the server who must refuse.
    let bundle = bundle.replace(foreign.pem(), server.authority.pem());
    refused(&server, config(&bundle)).await;
}

#[tokio::test]
async fn a_client_refuses_a_foreign_server() {
    let server = server();
    let bundle = Authority::create().unwrap().issue_client("local", &Namespace::default()).unwrap();
    refused(&server, config(&bundle)).await;
}

#[tokio::test]
async fn another_wire_version_is_refused() {
    let server = server();
    let bundle = server.authority.issue_client("a", &Namespace::default()).unwrap();
    refused(&server, handmade(&server, Some(&bundle), b"lockring/0")).await;
    // The same client is let in when it offers the right one.
    let right = handmade(&server, Some(&bundle), ALPN);
    let ((_endpoint, client), accepted) =
        tokio::join!(connect(right, server.addr), server.accept());
    assert!(client.is_ok() && accepted.is_ok());
}

#[tokio::test]
async fn a_client_certificate_cannot_serve() {
    let server = server();
    let bundle = server.authority.issue_client("local", &Namespace::default()).unwrap();
    let dir = server.files.dir.clone();
    let (ca, rest) = bundle.split_at(server.authority.pem().len());
    assert_eq!(ca, server.authority.pem());
    let (certificate, key) = rest.split_at(rest.find("-----BEGIN PRIVATE KEY").unwrap());
    std::fs::write(dir.join("node.pem"), certificate).unwrap();
    std::fs::write(dir.join("node.key"), key).unwrap();
    let error = server_config(&ensure_files(&dir).unwrap()).expect_err("served");
    assert!(error.to_string().contains("not of a node"), "{error}");
}

#[tokio::test]
async fn a_port_in_use_is_told_plainly() {
    let server = server();
    let again = endpoint::bind(server.addr, &keys(7), server_config(&server.files).unwrap());
    let error = again.expect_err("bound twice");
    assert!(matches!(error, BindError::InUse(_)));
    let port = server.addr.port().to_string();
    assert!(error.to_string().contains(&port) && error.to_string().contains("in use"), "{error}");
}

#[tokio::test]
async fn an_address_of_another_machine_is_told_plainly() {
    let server = server();
    let elsewhere: SocketAddr = "192.0.2.1:0".parse().unwrap();
    let error = endpoint::bind(elsewhere, &keys(7), server_config(&server.files).unwrap());
    assert!(matches!(error, Err(BindError::NotHere(_))));
}

#[tokio::test]
async fn ipv6_works_alike() {
    let dir = tempfile::tempdir().unwrap();
    let files = ensure_files(dir.path()).unwrap();
    let addr: SocketAddr = "[::1]:0".parse().unwrap();
    let endpoint = match endpoint::bind(addr, &keys(7), server_config(&files).unwrap()) {
        // A machine without IPv6 has nothing to test here.
        Err(BindError::NotHere(_)) => return,
        bound => bound.unwrap(),
    };
    let addr = endpoint.local_addr().unwrap();
    let authority = Authority::load(dir.path()).unwrap();
    let server = Server { _dir: dir, authority, files, endpoint, addr };
    pair(&server).await;
}

/// Kills a server's process life as `kill -9` would, without a word to its clients, starts it
/// again on the same port with `keys` and returns how the client's connection ended, if it did.
fn restart_with(keys: &EndpointKeys) -> Option<ConnectionError> {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (first_life, second_life, clients) = (runtime(), runtime(), runtime());
    let server = first_life.block_on(async { server() });
    let bundle = Bundle::load(server.files.client.as_ref().unwrap()).unwrap();
    let addr = server.addr;
    let (accepted, connected) = std::thread::scope(|scope| {
        let accepted = scope.spawn(|| first_life.block_on(server.accept()).unwrap());
        let connected = clients.block_on(connect(client_tls::client_config(&bundle), server.addr));
        (accepted.join().unwrap(), connected)
    });
    let (_endpoint, client) = (connected.0, connected.1.unwrap());
    // With its runtime gone, nothing of the server can send any more.
    drop(first_life);
    drop(accepted);
    let Server { _dir, files, endpoint, .. } = server;
    drop(endpoint);

    let config = server_config(&files).unwrap();
    let _again = second_life.block_on(async { endpoint::bind(addr, keys, config).unwrap() });
    std::thread::scope(|scope| {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        scope.spawn(move || second_life.block_on(stopped));
        let ended = clients.block_on(async {
            let (mut send, _receive) = client.open_bi().await.unwrap();
            send.write_all(b"anyone there?").await.unwrap();
            timeout(Duration::from_secs(2), client.closed()).await.ok()
        });
        drop(stop);
        ended
    })
}

#[test]
fn a_restart_is_noticed_at_once() {
    assert_eq!(restart_with(&keys(7)), Some(ConnectionError::Reset));
}

/// Shows that the test above can fail: either key alone is not enough.
#[test]
fn a_restart_with_another_key_is_not_noticed() {
    let (old, new) = (keys(7), keys(8));
    assert_eq!(restart_with(&EndpointKeys { reset: new.reset, ..old.clone() }), None);
    assert_eq!(restart_with(&EndpointKeys { cid: new.cid, ..old }), None);
}
