//! Who a peer is: read from its certificate, and from nothing else.
//!
//! A certificate names its holder by exactly one URI: `spiffe://lockring/client/NAMESPACE/NAME` for
//! a user, `spiffe://lockring/operator/NAMESPACE/NAME`, or `spiffe://lockring/node/NAME`. The
//! common name is for people and is never read; a second URI makes the certificate ambiguous, so it
//! is refused rather than resolved.

use lockring_proto::{Namespace, Shown};
use rustls_pki_types::CertificateDer;
use std::fmt;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

const TRUST_DOMAIN: &str = "spiffe://lockring/";
const NAME_BYTES_MAX: usize = 64;

/// What a peer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IdentityKind {
    /// A client that uses the locks of its namespace, and looks at them.
    User,
    /// A client that may also release by force, and look at the locks of other namespaces.
    Operator,
    /// It is a member of the cluster.
    Node,
}

/// Who a peer is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CertificateIdentity {
    /// What it may be.
    pub kind: IdentityKind,
    /// The namespace a client's keys live in. A node has none of its own: the default one.
    pub namespace: Namespace,
    /// The name inside that namespace, or among the nodes.
    pub name: String,
}

/// Why a certificate names nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The bytes are not one X.509 certificate.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    /// No URI in the subject alternative names.
    #[error("the certificate carries no URI name; issue it with this cluster's CA")]
    NoUri,
    /// More than one, so it could be read two ways.
    #[error("the certificate carries {0} URI names; exactly one is allowed")]
    ManyUris(usize),
    /// The URI is not one of ours.
    #[error(
        "\"{}\" is not a lockring identity: use spiffe://lockring/client/NAMESPACE/NAME, \
         spiffe://lockring/operator/NAMESPACE/NAME or spiffe://lockring/node/NAME",
        Shown(.0)
    )]
    Foreign(String),
    /// The namespace part is not a namespace.
    #[error(transparent)]
    Namespace(#[from] lockring_proto::NamespaceError),
    /// The name part is not a name.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// A text that cannot name a client or node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" is not a name: use 1 to 64 of a-z A-Z 0-9 . _ -", Shown(.0))]
pub struct NameError(pub String);

impl CertificateIdentity {
    /// A user of a namespace.
    ///
    /// # Errors
    /// When the name is not one.
    pub fn user(name: &str, namespace: Namespace) -> Result<Self, NameError> {
        let name = checked_name(name)?;
        Ok(Self { kind: IdentityKind::User, namespace, name })
    }

    /// An operator, whose own locks are in a namespace.
    ///
    /// # Errors
    /// When the name is not one.
    pub fn operator(name: &str, namespace: Namespace) -> Result<Self, NameError> {
        let name = checked_name(name)?;
        Ok(Self { kind: IdentityKind::Operator, namespace, name })
    }

    /// A node of the cluster.
    ///
    /// # Errors
    /// When the name is not one.
    pub fn node(name: &str) -> Result<Self, NameError> {
        let name = checked_name(name)?;
        Ok(Self { kind: IdentityKind::Node, namespace: Namespace::default(), name })
    }

    /// Reads the identity out of a certificate. That the certificate is genuine must already be
    /// known, as it is after a TLS handshake.
    ///
    /// # Errors
    /// When it does not carry exactly one URI name, or that is not an identity of ours.
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let unreadable = |why: &dyn fmt::Display| IdentityError::Unreadable(why.to_string());
        let (rest, parsed) =
            X509Certificate::from_der(certificate).map_err(|error| unreadable(&error))?;
        if !rest.is_empty() {
            return Err(unreadable(&"bytes follow it"));
        }
        let names = parsed.subject_alternative_name().map_err(|error| unreadable(&error))?;
        let mut uris = Vec::new();
        for name in names.iter().flat_map(|extension| &extension.value.general_names) {
            if let GeneralName::URI(uri) = name {
                uris.push(*uri);
            }
        }
        match uris[..] {
            [] => Err(IdentityError::NoUri),
            [uri] => Self::from_uri(uri),
            _ => Err(IdentityError::ManyUris(uris.len())),
        }
    }

    fn from_uri(uri: &str) -> Result<Self, IdentityError> {
        let foreign = || IdentityError::Foreign(uri.to_owned());
        let path = uri.strip_prefix(TRUST_DOMAIN).ok_or_else(foreign)?;
        let parts: Vec<&str> = path.split('/').collect();
        match parts[..] {
            ["client", namespace, name] => Ok(Self::user(name, Namespace::new(namespace)?)?),
            ["operator", namespace, name] => Ok(Self::operator(name, Namespace::new(namespace)?)?),
            ["node", name] => Ok(Self::node(name)?),
            _ => Err(foreign()),
        }
    }

    /// The URI that a certificate of this identity carries.
    pub fn uri(&self) -> String {
        let Self { kind, namespace, name } = self;
        match kind {
            IdentityKind::User => format!("{TRUST_DOMAIN}client/{namespace}/{name}"),
            IdentityKind::Operator => format!("{TRUST_DOMAIN}operator/{namespace}/{name}"),
            IdentityKind::Node => format!("{TRUST_DOMAIN}node/{name}"),
        }
    }
}

impl fmt::Display for CertificateIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            IdentityKind::User => write!(f, "user {}/{}", self.namespace, self.name),
            IdentityKind::Operator => write!(f, "operator {}/{}", self.namespace, self.name),
            IdentityKind::Node => write!(f, "node {}", self.name),
        }
    }
}

fn checked_name(name: &str) -> Result<String, NameError> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(legal) {
        Ok(name.to_owned())
    } else {
        Err(NameError(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ED25519, SanType};

    fn certificate(names: Vec<SanType>) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.distinguished_name.push(DnType::CommonName, "spiffe://lockring/node/from-the-cn");
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    fn read(names: Vec<SanType>) -> Result<CertificateIdentity, IdentityError> {
        CertificateIdentity::from_certificate(&certificate(names))
    }

    #[test]
    fn reads_every_role_and_writes_it_back() {
        for (text, role) in [
            ("spiffe://lockring/client/team-a/web.1", IdentityKind::User),
            ("spiffe://lockring/operator/team-a/web.1", IdentityKind::Operator),
            ("spiffe://lockring/node/n_1", IdentityKind::Node),
        ] {
            let identity = read(vec![uri(text)]).unwrap();
            assert_eq!((identity.uri().as_str(), identity.kind), (text, role));
        }
        let identity = read(vec![uri("spiffe://lockring/client/team-a/web.1")]).unwrap();
        assert_eq!(
            identity,
            CertificateIdentity::user("web.1", Namespace::new("team-a").unwrap()).unwrap()
        );
    }

    #[test]
    fn other_kinds_of_names_do_not_count() {
        let dns = SanType::DnsName("node.lockring".try_into().unwrap());
        let identity = read(vec![dns.clone(), uri("spiffe://lockring/node/a")]).unwrap();
        assert_eq!(identity, CertificateIdentity::node("a").unwrap());
        assert_eq!(read(vec![dns]), Err(IdentityError::NoUri));
        assert_eq!(read(vec![]), Err(IdentityError::NoUri));
    }

    #[test]
    fn a_second_uri_is_refused_even_if_equal() {
        let one = uri("spiffe://lockring/node/a");
        assert_eq!(read(vec![one.clone(), one.clone()]), Err(IdentityError::ManyUris(2)));
        let other = uri("https://example.com/");
        assert_eq!(read(vec![one, other]), Err(IdentityError::ManyUris(2)));
    }

    #[test]
    fn other_uris_are_refused() {
        for text in [
            "spiffe://lockring/admin/a",
            "spiffe://lockring/client/a",
            "spiffe://lockring/client/a/b/c",
            "spiffe://lockring/operator/a",
            "spiffe://lockring/Operator/a/b",
            "spiffe://lockring/node/a/",
            "spiffe://lockring/node",
            "spiffe://elsewhere/node/a",
            "SPIFFE://lockring/node/a",
            "spiffe://lockring//node/a",
            "https://lockring/node/a",
        ] {
            let result = read(vec![uri(text)]);
            assert_eq!(result, Err(IdentityError::Foreign(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn names_are_limited() {
        let longest = "x".repeat(64);
        assert!(read(vec![uri(&format!("spiffe://lockring/node/{longest}"))]).is_ok());
        for name in ["", "a b", "a%2fb", &"x".repeat(65)] {
            let node = read(vec![uri(&format!("spiffe://lockring/node/{name}"))]);
            assert_eq!(node, Err(IdentityError::Name(NameError(name.to_owned()))), "{name}");
            let client = read(vec![uri(&format!("spiffe://lockring/client/{name}/me"))]);
            assert!(matches!(client, Err(IdentityError::Namespace(_))), "{name}");
        }
    }

    #[test]
    fn hostile_bytes_are_an_error() {
        let good = certificate(vec![uri("spiffe://lockring/node/a")]);
        for length in 0..good.len() {
            let cut = CertificateDer::from(&good[..length]);
            assert!(CertificateIdentity::from_certificate(&cut).is_err(), "{length}");
        }
        let mut longer = good.to_vec();
        longer.push(0);
        assert!(matches!(
            CertificateIdentity::from_certificate(&longer.into()),
            Err(IdentityError::Unreadable(_))
        ));
        for index in 0..good.len() {
            let mut flipped = good.to_vec();
            flipped[index] ^= 0x81;
            let _ = CertificateIdentity::from_certificate(&flipped.into());
        }
    }
}
