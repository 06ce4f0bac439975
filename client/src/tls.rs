//! The client's bundle of certificates, and the QUIC settings of its connections. Public for
//! programs that connect to nodes by themselves; a [`crate::Client`] does all of this.
//!
//! ```no_run
//! use lockring_client::proto::SERVER_NAME;
//! use lockring_client::tls::{self, Bundle};
//!
//! # async fn example(node: std::net::SocketAddr) -> Result<(), Box<dyn std::error::Error>> {
//! let bundle = Bundle::load("client.pem".as_ref())?;
//! let endpoint = tls::client_endpoint(node)?;
//! let config = tls::client_config(&bundle);
//! let connection = endpoint.connect_with(config, node, SERVER_NAME)?.await?;
//! # drop(connection); Ok(()) }
//! ```
//!
//! What is wrong with a bundle is said, part by part:
//!
//! ```
//! use lockring_client::tls::{Bundle, BundleError};
//!
//! let error = Bundle::parse(b"no certificate at all").unwrap_err();
//! assert!(matches!(error, BundleError::NotPem(_)));
//! ```

use lockring_proto::transport;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{EndpointConfig, VarInt};
use rustls::CertificateError;
use rustls::RootCertStore;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::{PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use socket2::{Domain, Protocol, Socket, Type};
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A client's certificates, checked: the cluster's CA, the client's own certificate, its key.
#[derive(Clone)]
pub struct Bundle {
    crypto: Arc<QuicClientConfig>,
    own: CertificateDer<'static>,
    /// Judges our own certificate as a node does.
    judge: Arc<dyn ClientCertVerifier>,
}

impl fmt::Debug for Bundle {
    /// Says nothing: a key is in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bundle(..)")
    }
}

/// Why a bundle cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The file cannot be read.
    #[error("cannot read the identity {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file can be read but not used.
    #[error("{}: {why}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: Box<BundleError>,
    },
    /// It is not PEM, or cut short.
    #[error("the identity is not a PEM bundle: {0}; use the client.pem that the cluster issued")]
    NotPem(String),
    /// A part is not there.
    #[error(
        "the identity holds no {0}: a bundle is the cluster's CA certificate, the client's \
         certificate and its key, in one PEM file; use the client.pem that the cluster issued"
    )]
    Missing(&'static str),
    /// Which key is meant cannot be told.
    #[error("the identity holds {0} keys: leave the one of the client's certificate")]
    ManyKeys(usize),
    /// The parts do not work.
    #[error("the identity cannot be used: {0}")]
    Unusable(String),
}

impl Bundle {
    /// Reads a bundle from a file. One that others than its owner can read is used, but logged.
    ///
    /// # Errors
    /// When the file cannot be read, or is not a bundle.
    pub fn load(path: &Path) -> Result<Self, BundleError> {
        let unreadable = |source| BundleError::Unreadable { path: path.to_owned(), source };
        let pem = std::fs::read(path).map_err(unreadable)?;
        warn_if_shared(path).map_err(unreadable)?;
        Self::parse(&pem)
            .map_err(|why| BundleError::InFile { path: path.to_owned(), why: Box::new(why) })
    }

    /// Reads a bundle: PEM sections in any order. The certificate that belongs to the key is the
    /// client's, every other is an authority to trust.
    ///
    /// # Errors
    /// When a part is missing or cannot be used.
    pub fn parse(pem: &[u8]) -> Result<Self, BundleError> {
        let (certificates, key) = sections(pem)?;
        let provider = Arc::new(provider());
        let unusable = |error: &dyn fmt::Display| BundleError::Unusable(error.to_string());
        // A key of no known kind would match no certificate: tell the two apart.
        let signing = provider.key_provider.load_private_key(key.clone_key());
        let signing = signing.map_err(|error| unusable(&format_args!("its key: {error}")))?;

        let mut roots = RootCertStore::empty();
        let mut own = None;
        for certificate in certificates {
            let pair = CertifiedKey::new(vec![certificate.clone()], Arc::clone(&signing));
            match pair.keys_match() {
                Ok(()) => own = Some(certificate),
                Err(rustls::Error::InconsistentKeys(_)) => roots
                    .add(certificate)
                    .map_err(|error| unusable(&format_args!("a certificate: {error}")))?,
                Err(error) => return Err(unusable(&format_args!("a certificate: {error}"))),
            }
        }
        let own = own.ok_or(BundleError::Missing("certificate that belongs to its key"))?;
        if roots.is_empty() {
            return Err(BundleError::Missing("CA certificate"));
        }
        let roots = Arc::new(roots);
        let judge =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(|error| unusable(&error))?;
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|builder| {
                builder.with_root_certificates(roots).with_client_auth_cert(vec![own.clone()], key)
            })
            .map_err(|error| unusable(&error))?;
        let crypto = QuicClientConfig::try_from(without_shortcuts(tls));
        let crypto = Arc::new(crypto.map_err(|error| unusable(&error))?);
        Ok(Self { crypto, own, judge })
    }

    /// How far our own certificate is out of date, by the clock of this machine.
    pub(crate) fn age(&self) -> Option<String> {
        let judged = self.judge.verify_client_cert(&self.own, &[], UnixTime::now());
        let Err(rustls::Error::InvalidCertificate(error)) = judged else { return None };
        match error {
            CertificateError::ExpiredContext { time, not_after } => {
                let since = time.as_secs().saturating_sub(not_after.as_secs());
                Some(format!("it has expired {} ago", span(since)))
            }
            CertificateError::NotValidYetContext { time, not_before } => {
                let until = not_before.as_secs().saturating_sub(time.as_secs());
                Some(format!("it is valid only {} from now", span(until)))
            }
            _ => None,
        }
    }
}

/// A span of time in the largest unit that makes two or more of it.
fn span(seconds: u64) -> String {
    let units = [(24 * 60 * 60, "days"), (60 * 60, "hours"), (60, "minutes")];
    let unit = units.into_iter().find(|(unit, _)| seconds >= 2 * unit);
    unit.map_or_else(
        || format!("{seconds} seconds"),
        |(unit, name)| format!("{} {name}", seconds / unit),
    )
}

/// No resumption and no early data: both could carry what a certificate allowed once past its
/// end, and early data can be replayed.
fn without_shortcuts(mut tls: rustls::ClientConfig) -> rustls::ClientConfig {
    tls.alpn_protocols = vec![lockring_proto::ALPN.to_vec()];
    tls.resumption = Resumption::disabled();
    tls.enable_early_data = false;
    tls
}

type Sections = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn sections(pem: &[u8]) -> Result<Sections, BundleError> {
    let (mut certificates, mut keys) = (Vec::new(), Vec::new());
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
        let (kind, bytes) = section.map_err(|error| BundleError::NotPem(error.to_string()))?;
        if kind == SectionKind::Certificate {
            certificates.push(CertificateDer::from(bytes));
        } else if let Some(key) = PrivateKeyDer::from_pem(kind, bytes) {
            keys.push(key);
        }
    }
    if certificates.is_empty() && keys.is_empty() {
        return Err(BundleError::NotPem("no PEM section is in it".to_owned()));
    }
    match (keys.pop(), keys.len()) {
        (None, _) => Err(BundleError::Missing("private key")),
        (Some(_), more @ 1..) => Err(BundleError::ManyKeys(more + 1)),
        (Some(_), 0) if certificates.is_empty() => Err(BundleError::Missing("certificate")),
        (Some(key), 0) => Ok((certificates, key)),
    }
}

#[cfg(unix)]
fn warn_if_shared(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    if std::fs::metadata(path)?.mode() & 0o077 != 0 {
        tracing::warn!(file = %path.display(), "others can read this identity; chmod 600 it");
    }
    Ok(())
}

#[cfg(not(unix))]
fn warn_if_shared(_path: &Path) -> io::Result<()> {
    Ok(())
}

/// The settings of a connection that shows this bundle. Connect with the server name
/// [`lockring_proto::SERVER_NAME`], which every node's certificate carries.
pub fn client_config(bundle: &Bundle) -> quinn::ClientConfig {
    let crypto: Arc<QuicClientConfig> = Arc::clone(&bundle.crypto);
    let mut config = quinn::ClientConfig::new(crypto);
    config.transport_config(Arc::new(transport_config()));
    config
}

/// Makes the endpoint from which nodes at addresses of one family, that of `remote`, are reached.
/// To be called inside a tokio runtime.
///
/// # Errors
/// When the system gives no socket, or there is no runtime.
pub fn client_endpoint(remote: SocketAddr) -> io::Result<quinn::Endpoint> {
    let runtime = quinn::default_runtime()
        .ok_or_else(|| io::Error::other("a lockring client needs a tokio runtime"))?;
    let any: SocketAddr = match remote {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = Socket::new(Domain::for_address(any), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    // The kernel cuts this to what it allows; a refusal leaves the default, which works too.
    let _ = socket.set_recv_buffer_size(transport::SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(transport::SOCKET_BUFFER_BYTES);
    socket.bind(&any.into())?;
    quinn::Endpoint::new(EndpointConfig::default(), None, socket.into(), runtime)
}

/// How a client treats its connections.
fn transport_config() -> quinn::TransportConfig {
    let mut config = transport::common_config();
    config
        // A node opens one stream, for its pushes; requests go on ours.
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        // One side's are enough.
        .keep_alive_interval(Some(Duration::from_secs(1)));
    config
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
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_ED25519};

    struct Parts {
        ca: String,
        own: String,
        key: String,
    }

    fn parts() -> Parts {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let ca = params.self_signed(&ca_key).unwrap().pem();
        let issuer = Issuer::new(params, ca_key);
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let own = CertificateParams::default().signed_by(&key, &issuer).unwrap().pem();
        Parts { ca, own, key: key.serialize_pem() }
    }

    fn error(pem: &str) -> String {
        Bundle::parse(pem.as_bytes()).expect_err(pem).to_string()
    }

    #[test]
    fn the_order_of_the_parts_does_not_matter() {
        let Parts { ca, own, key } = parts();
        let other_ca = parts().ca;
        for bundle in [
            format!("{ca}{own}{key}"),
            format!("{key}{own}{ca}"),
            format!("# a comment\n{own}{other_ca}{key}{ca}"),
        ] {
            client_config(&Bundle::parse(bundle.as_bytes()).unwrap());
        }
    }

    #[test]
    fn missing_parts_are_named() {
        let Parts { ca, own, key } = parts();
        let other = parts();
        for (pem, part) in [
            (String::new(), "no PEM section"),
            ("hello".to_owned(), "no PEM section"),
            (ca.clone(), "holds no private key"),
            (format!("{ca}{own}"), "holds no private key"),
            (key.clone(), "holds no certificate"),
            (format!("{own}{key}"), "holds no CA certificate"),
            (format!("{ca}{key}"), "holds no certificate that belongs to its key"),
            (format!("{ca}{own}{}", other.key), "holds no certificate that belongs to its key"),
            (format!("{ca}{own}{key}{}", other.key), "holds 2 keys"),
        ] {
            let message = error(&pem);
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn every_cut_of_a_bundle_is_an_error() {
        let Parts { ca, own, key } = parts();
        let whole = format!("{ca}{own}{}", key.trim_end());
        for length in 0..whole.len() {
            assert!(Bundle::parse(&whole.as_bytes()[..length]).is_err(), "{length}");
        }
        assert!(Bundle::parse(whole.as_bytes()).is_ok());
    }

    #[test]
    fn garbage_inside_the_sections_is_an_error() {
        let Parts { ca, own, key } = parts();
        let bad_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert!(error(&format!("{ca}{own}{bad_key}")).contains("its key"));
        let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(error(&format!("{bad}{own}{key}")).contains("a certificate"));
    }

    #[test]
    fn a_file_is_named_when_it_cannot_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("me.pem");
        let missing = Bundle::load(&path).unwrap_err();
        assert!(matches!(missing, BundleError::Unreadable { .. }));
        std::fs::write(&path, "nothing").unwrap();
        for message in [missing.to_string(), Bundle::load(&path).unwrap_err().to_string()] {
            assert!(message.contains("me.pem"), "{message}");
        }
        let Parts { ca, own, key } = parts();
        std::fs::write(&path, format!("{ca}{own}{key}")).unwrap();
        assert_eq!(format!("{:?}", Bundle::load(&path).unwrap()), "Bundle(..)");
    }
}
