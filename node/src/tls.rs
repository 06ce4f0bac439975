//! TLS of a node: mutual, version 1.3 alone, no resumption and no early data.
//!
//! Early data can be replayed, and a resumed session would outlive what its certificate was
//! allowed when it was made; connections live long, so neither would save much.

use crate::authority::CA_CERTIFICATE;
use crate::endpoint;
use crate::files::{Files, FilesError, NODE_CERTIFICATE};
use crate::identity::{CertificateIdentity, IdentityKind};
use quinn::crypto::rustls::QuicServerConfig;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Connection attempts that may wait for the accept loop; more are refused at once.
const INCOMING_MAX: usize = 1024;
/// Bytes kept for one attempt that waits, and for all of them: the first flight of a client is two
/// packets at most.
const INCOMING_BYTES: u64 = 4 << 10;
const INCOMING_BYTES_TOTAL: u64 = 2 << 20;

/// The server side of every endpoint of a node. Clients and nodes alike must show a certificate
/// of the cluster's authority; what they may do then is up to their identity.
///
/// # Errors
/// When the certificates do not fit together or are out of date; the file is named.
pub fn server_config(files: &Files) -> Result<quinn::ServerConfig, FilesError> {
    let broken = |name: &str, why: String| FilesError::Broken { path: files.dir.join(name), why };
    let provider = Arc::new(provider());
    let mut roots = RootCertStore::empty();
    for root in &files.roots {
        roots.add(root.clone()).map_err(|error| broken(CA_CERTIFICATE, error.to_string()))?;
    }
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| broken(CA_CERTIFICATE, error.to_string()))?;
    let verifier = Arc::new(ShortChains { inner: verifier, between_max: between_max(files) });
    check_own(verifier.as_ref(), files).map_err(|why| broken(NODE_CERTIFICATE, why))?;

    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| broken(NODE_CERTIFICATE, error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(files.chain.clone(), files.key.clone_key())
        .map_err(|error| broken(NODE_CERTIFICATE, error.to_string()))?;
    tls.alpn_protocols = vec![lockring_proto::ALPN.to_vec()];
    tls.max_early_data_size = 0;
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    // The order of `provider`, whatever the client would like better.
    tls.ignore_client_order = true;

    let crypto = QuicServerConfig::try_from(tls)
        .map_err(|error| broken(NODE_CERTIFICATE, error.to_string()))?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    // A session is known by its id and certificate, never by its address: a client behind a NAT
    // keeps its locks when its address changes.
    server
        .migration(true)
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(INCOMING_BYTES_TOTAL)
        .transport_config(Arc::new(endpoint::transport_config()));
    Ok(server)
}

/// Certificates that may stand between a peer's and the authority where that says nothing, or much.
const BETWEEN_MAX: usize = 3;

/// Bytes of a peer's certificates together.
const CHAIN_BYTES_MAX: usize = 8 << 10;

/// How many certificates the authorities allow between their own and a peer's.
fn between_max(files: &Files) -> usize {
    let allowed = |root: &CertificateDer<'static>| {
        let (_, parsed) = X509Certificate::from_der(root).ok()?;
        let constraints = parsed.basic_constraints().ok()??.value;
        constraints.path_len_constraint.map(|depth| (depth as usize).min(BETWEEN_MAX))
    };
    files.roots.iter().map(|root| allowed(root).unwrap_or(BETWEEN_MAX)).max().unwrap_or(0)
}

/// Refuses what the authority cannot have issued before looking into it: to check one certificate
/// of a chain costs as much as hundreds of lock operations, and anybody can send sixty.
#[derive(Debug)]
struct ShortChains {
    inner: Arc<dyn ClientCertVerifier>,
    between_max: usize,
}

impl ClientCertVerifier for ShortChains {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let bytes = intermediates.iter().map(|one| one.len()).sum::<usize>() + end_entity.len();
        if intermediates.len() > self.between_max || bytes > CHAIN_BYTES_MAX {
            let why = CertificateError::ApplicationVerificationFailure;
            return Err(rustls::Error::InvalidCertificate(why));
        }
        self.inner.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Checks the node's own certificate as a peer would, so that a wrong one is told here and not
/// by every peer.
fn check_own(verifier: &dyn ClientCertVerifier, files: &Files) -> Result<(), String> {
    let (own, between) = files.chain.split_first().ok_or("no certificate is in it")?;
    let checked = verifier.verify_client_cert(own, between, UnixTime::now());
    checked.map_err(|error| match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            format!("it was not issued by the authority of {CA_CERTIFICATE}")
        }
        rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure) => {
            format!(
                "its chain is longer than {CA_CERTIFICATE} allows, or than {CHAIN_BYTES_MAX} bytes"
            )
        }
        other => other.to_string(),
    })?;
    let identity = CertificateIdentity::from_certificate(own).map_err(|error| error.to_string())?;
    match identity.kind {
        IdentityKind::Node => Ok(()),
        IdentityKind::User | IdentityKind::Operator => {
            Err(format!("it is the certificate of {identity}, not of a node"))
        }
    }
}

/// ring, with AES-128-GCM first: the cheapest suite for small packets.
fn provider() -> CryptoProvider {
    let cipher_suites = vec![
        ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
        ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    CryptoProvider { cipher_suites, ..ring::default_provider() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::ensure_files;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Counts what it is asked to verify.
    #[derive(Debug)]
    struct Counting(Arc<AtomicUsize>);

    impl ClientCertVerifier for Counting {
        fn root_hint_subjects(&self) -> &[DistinguishedName] {
            &[]
        }
        fn verify_client_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: UnixTime,
        ) -> Result<ClientCertVerified, rustls::Error> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(ClientCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            unreachable!("no handshake is made")
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            unreachable!("no handshake is made")
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            Vec::new()
        }
    }

    #[test]
    fn a_chain_that_cannot_be_is_refused_unread() {
        let dir = tempfile::tempdir().unwrap();
        let files = ensure_files(dir.path()).unwrap();
        assert_eq!(between_max(&files), 0, "our authority signs no other");
        let own = files.chain[0].clone();
        let judge = |between_max, count: usize, own: &CertificateDer<'_>| {
            let asked = Arc::new(AtomicUsize::new(0));
            let inner = Arc::new(Counting(Arc::clone(&asked)));
            let between = vec![files.chain[0].clone(); count];
            let verifier = ShortChains { inner, between_max };
            let verified = verifier.verify_client_cert(own, &between, UnixTime::now());
            assert_eq!(verified.is_ok(), asked.load(Ordering::Relaxed) == 1);
            verified.is_ok()
        };
        assert!(judge(0, 0, &own) && judge(3, 3, &own));
        assert!(!judge(0, 1, &own) && !judge(0, 60, &own) && !judge(3, 4, &own));
        let large = CertificateDer::from(vec![0; CHAIN_BYTES_MAX + 1]);
        assert!(!judge(0, 0, &large));
    }
}
