//! What a client says when it cannot reach a node: the cause, as far as it can tell, with the next
//! step; against endpoints that are wrong in one way each.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use lockring_client::proto::{ALPN, SERVER_NAME};
use lockring_client::{Client, Error, ErrorKind};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, ServerConfig};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// When a certificate counts.
#[derive(Clone, Copy, Debug)]
enum When {
    Now,
    Past,
    Future,
}

/// One cluster's authority.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    fn issue(&self, names: &[&str], when: When) -> (String, String) {
        let names = names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut params = CertificateParams::new(names).unwrap();
        match when {
            When::Now => {}
            When::Past => params.not_after = date_time_ymd(2001, 1, 1),
            When::Future => params.not_before = date_time_ymd(2999, 1, 1),
        }
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// An identity of this authority, for a cluster of `trusted`.
    fn identity(&self, trusted: &Self, when: When) -> String {
        let (own, key) = self.issue(&[], when);
        [trusted.pem.clone(), own, key].concat()
    }
}

/// Something that finishes handshakes like a node, and says nothing afterwards.
fn endpoint(authority: &Authority, names: &[&str], when: When, alpn: &[u8]) -> Endpoint {
    let (own, key) = authority.issue(names, when);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(own.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    tls.alpn_protocols = vec![alpn.to_vec()];
    let config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    let endpoint = Endpoint::server(config, ([127, 0, 0, 1], 0).into()).unwrap();
    let accepting = endpoint.clone();
    tokio::spawn(async move {
        while let Some(incoming) = accepting.accept().await {
            tokio::spawn(async move {
                if let Ok(connection) = incoming.await {
                    connection.closed().await;
                }
            });
        }
    });
    endpoint
}

async fn error_at(at: &str, identity: &str) -> Error {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("me.pem");
    fs::write(&file, identity).unwrap();
    let connecting = Client::builder().identity_argument(Some(file)).connect(at);
    let connected = tokio::time::timeout(Duration::from_secs(60), connecting).await;
    connected.expect("it ends").expect_err("nobody serves there")
}

fn url(at: SocketAddr) -> String {
    format!("lockring://{at}")
}

/// What is told: the kind, whether it may pass, and words of the cause and of the next step.
struct Told(ErrorKind, bool, &'static [&'static str]);

fn check(what: &str, error: &Error, Told(kind, passes, words): &Told) {
    let message = error.to_string();
    assert_eq!(error.kind(), *kind, "{what}: {message}");
    assert_eq!(error.is_retryable(), *passes, "{what}: {message}");
    for word in *words {
        assert!(message.contains(word), "{what}: no {word:?} in {message}");
    }
    let asks = message.contains("is a node running");
    assert_eq!(asks, what == "a closed port", "{what}: {message}");
}

#[tokio::test]
async fn certificates_and_protocols_that_do_not_fit_are_told() {
    use ErrorKind::{Config, Denied};
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let good = || ours.identity(&ours, When::Now);
    let node = |authority, when| endpoint(authority, &[SERVER_NAME], when, ALPN);
    let right = || node(&ours, When::Now);
    let web = endpoint(&ours, &[SERVER_NAME], When::Now, b"h3");
    let no_node = endpoint(&ours, &["www.example.net"], When::Now, ALPN);
    for (what, at, identity, told) in [
        (
            "an identity that has expired",
            right(),
            ours.identity(&ours, When::Past),
            Told(Denied, false, &["this identity", "has expired", "days ago", "cert client"]),
        ),
        (
            "an identity of tomorrow",
            right(),
            ours.identity(&ours, When::Future),
            Told(Denied, false, &["this identity", "valid only", "days from now", "clock"]),
        ),
        (
            "an identity that another cluster issued",
            right(),
            other.identity(&ours, When::Now),
            Told(Denied, false, &["does not know the authority", "--identity"]),
        ),
        (
            "a node of another cluster",
            node(&other, When::Now),
            good(),
            Told(Config, false, &["node's certificate", "another cluster", "--identity"]),
        ),
        (
            "a node of another cluster with an authority of the same name",
            node(&Authority::new("ours"), When::Now),
            good(),
            Told(Config, false, &["node's certificate", "another cluster", "--identity"]),
        ),
        (
            "a node whose certificate has expired",
            node(&ours, When::Past),
            good(),
            Told(Config, false, &["node's certificate is out of date", "expired", "node.pem"]),
        ),
        (
            "a node whose certificate is not valid yet",
            node(&ours, When::Future),
            good(),
            Told(Config, false, &["node's certificate is out of date", "not valid yet", "clock"]),
        ),
        (
            "no certificate of a node",
            no_node,
            good(),
            Told(Config, false, &["does not show the certificate of a node", "address"]),
        ),
        (
            "another protocol",
            web,
            good(),
            Told(Config, false, &["another protocol", "correct the port"]),
        ),
    ] {
        let at = at.local_addr().unwrap();
        let error = error_at(&url(at), &identity).await;
        check(what, &error, &told);
        assert!(error.to_string().contains(&at.to_string()), "{what}: {error}");
    }
}

#[tokio::test]
async fn ways_that_lead_nowhere_are_told() {
    use ErrorKind::Unreachable;
    let ours = Authority::new("ours");
    let identity = ours.identity(&ours, When::Now);
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (what, at, told) in [
        (
            "a closed port",
            url(closed),
            Told(Unreachable, true, &["nothing listens", "lockring dev", "--endpoints"]),
        ),
        (
            "no answer at all",
            url(silent.local_addr().unwrap()),
            Told(Unreachable, true, &["no answer at all", "UDP", "firewall"]),
        ),
        (
            "a name that nobody knows",
            "lockring://no-such-host.invalid:7420".to_owned(),
            Told(Unreachable, true, &["no-such-host.invalid", "cannot be resolved", "check it"]),
        ),
        (
            // Class E is routed nowhere, and forbidden by Linux.
            "no route",
            "lockring://255.255.255.255:7420".to_owned(),
            Told(Unreachable, true, &["255.255.255.255:7420", "no way to it", "network"]),
        ),
        (
            // Of several addresses that says most where somebody answered.
            "several addresses",
            format!("lockring://no-such-host.invalid:1,{},{closed}", silent.local_addr().unwrap()),
            Told(Unreachable, true, &["no connection to"]),
        ),
    ] {
        let error = error_at(&at, &identity).await;
        let what = if what == "several addresses" { "a closed port" } else { what };
        check(what, &error, &told);
    }
}
