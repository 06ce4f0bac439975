//! What a node of bare QUIC listens with, and what a client trusts it by: for tests that play the
//! node themselves.

use lockring_proto::{ALPN, SERVER_NAME};
use quinn::ServerConfig;
use quinn::crypto::rustls::QuicServerConfig;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;

/// The configuration of a node that asks for no certificate, and an identity of its authority.
pub fn cluster() -> (ServerConfig, String) {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    let ca = authority.self_signed(&ca_key).unwrap().pem();
    let issuer = Issuer::new(authority, ca_key);
    let issue = |names: Vec<String>| {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names).unwrap();
        (params.signed_by(&key, &issuer).unwrap(), key)
    };
    let (own, own_key) = issue(Vec::new());
    let identity = [ca, own.pem(), own_key.serialize_pem()].concat();

    let (node, node_key) = issue(vec![SERVER_NAME.to_owned()]);
    let chain = vec![CertificateDer::from(node.der().to_vec())];
    let key = PrivateKeyDer::try_from(node_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    (ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap())), identity)
}
