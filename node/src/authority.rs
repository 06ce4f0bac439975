//! The cluster's certificate authority: it alone decides who may speak to a node.

use crate::data_dir::{self, FileError, PUBLIC, SECRET};
use crate::identity::{CertificateIdentity, IdentityKind, NameError};
use lockring_proto::{Namespace, SERVER_NAME};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, date_time_ymd,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use x509_parser::prelude::{FromDer, X509Certificate};

/// File name of the authority's certificate.
pub const CA_CERTIFICATE: &str = "ca.pem";
/// File name of the authority's key.
pub const CA_KEY: &str = "ca.key";

/// What stands before the 32 bytes of an Ed25519 key in PKCS#8 version 1, which has no public key
/// (RFC 8410, section 7). The version 2 that ring and rcgen make is not read by OpenSSL 3.
const PKCS8_V1: [u8; 16] = [0x30, 46, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 34, 4, 32];

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const CA_LIFE: Duration = Duration::from_secs(3653 * 24 * 60 * 60);
const LEAF_LIFE: Duration = Duration::from_secs(731 * 24 * 60 * 60);
/// Certificates start this long before they are made, for peers whose clock is behind.
const BACKDATED: Duration = DAY;

/// The authority of one cluster.
pub struct Authority {
    pem: String,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A node's certificate with its key, as PEM.
pub struct NodeCertificate {
    /// The certificate.
    pub certificate: String,
    /// Its PKCS#8 key: a secret.
    pub key: String,
}

/// Why an authority could not be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The name asked for is not one; nothing was issued.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file that must be there is not.
    #[error("{} is missing: restore it from a backup", .0.display())]
    Missing(PathBuf),
    /// There is an authority in the directory already; it was left alone.
    #[error(
        "{} exists already: an authority is never overwritten; remove it by hand", .0.display()
    )]
    Exists(PathBuf),
    /// A file is there but is not what it should be.
    #[error("{} cannot be used: {why}; restore it from a backup", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The system gives no randomness.
    #[error("no randomness for a key: {0}")]
    Random(#[from] getrandom::Error),
    /// The library that makes certificates failed: our own fault, or no randomness.
    #[error("a certificate could not be made: {0}")]
    Make(#[from] rcgen::Error),
}

impl Authority {
    /// Makes the authority of a new cluster.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub(crate) fn create() -> Result<Self, AuthorityError> {
        let key = new_key()?;
        let mut params = CertificateParams::default();
        // Part of the key in the name lets people, and error messages, tell two clusters apart.
        let mut name = "lockring CA ".to_owned();
        for byte in &key.der_bytes()[..4] {
            name.push_str(&format!("{byte:02x}"));
        }
        params.distinguished_name = common_name(&name);
        set_life(&mut params, CA_LIFE);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            pem: certificate.pem(),
            certificate: certificate.into(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Reads the authority from `ca.pem` and `ca.key` of a directory.
    ///
    /// # Errors
    /// When either is missing, unreadable or broken, or they do not belong together.
    pub fn load(dir: &Path) -> Result<Self, AuthorityError> {
        let (pem, pem_path) = read_text(dir, CA_CERTIFICATE, PUBLIC)?;
        let (key, key_path) = read_text(dir, CA_KEY, SECRET)?;
        let broken = |path: &Path, why: String| AuthorityError::Broken { path: path.into(), why };
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| broken(&pem_path, error.to_string()))?;
        let key = KeyPair::from_pem(&key).map_err(|error| broken(&key_path, error.to_string()))?;
        check_certificate(&certificate, &key).map_err(|why| broken(&pem_path, why))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| broken(&pem_path, error.to_string()))?;
        Ok(Self { pem, certificate, issuer })
    }

    /// Writes `ca.key` and `ca.pem` into a directory that has neither.
    ///
    /// # Errors
    /// When one is there already, or cannot be written.
    pub(crate) fn save(&self, dir: &Path) -> Result<(), AuthorityError> {
        let (key, certificate) = (dir.join(CA_KEY), dir.join(CA_CERTIFICATE));
        for path in [&key, &certificate] {
            if path.symlink_metadata().is_ok() {
                return Err(AuthorityError::Exists(path.clone()));
            }
        }
        data_dir::write(&key, self.issuer.key().serialize_pem().as_bytes(), SECRET)?;
        data_dir::write(&certificate, self.pem.as_bytes(), PUBLIC)?;
        Ok(())
    }

    /// The authority's certificate as PEM: what a peer must trust.
    #[cfg(test)]
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// The authority's certificate.
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Makes the bundle a client needs, in one PEM text: this authority's certificate, the
    /// client's, and the client's key. It is a secret.
    ///
    /// # Errors
    /// When the name is not one, or the system gives no randomness.
    pub fn issue_client(
        &self,
        name: &str,
        namespace: &Namespace,
    ) -> Result<String, AuthorityError> {
        self.issue_bundle(&CertificateIdentity::user(name, namespace.clone())?)
    }

    /// As [`Authority::issue_client`], for one who may also release by force, and look at the locks
    /// of other namespaces.
    ///
    /// # Errors
    /// When the name is not one, or the system gives no randomness.
    pub fn issue_operator(
        &self,
        name: &str,
        namespace: &Namespace,
    ) -> Result<String, AuthorityError> {
        self.issue_bundle(&CertificateIdentity::operator(name, namespace.clone())?)
    }

    fn issue_bundle(&self, identity: &CertificateIdentity) -> Result<String, AuthorityError> {
        let issued = self.issue(identity)?;
        Ok([self.pem.as_str(), &issued.certificate, &issued.key].concat())
    }

    /// Makes the certificate a node needs.
    ///
    /// # Errors
    /// When the name is not one, or the system gives no randomness.
    pub(crate) fn issue_node(&self, name: &str) -> Result<NodeCertificate, AuthorityError> {
        self.issue(&CertificateIdentity::node(name)?)
    }

    fn issue(&self, identity: &CertificateIdentity) -> Result<NodeCertificate, AuthorityError> {
        let key = new_key()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&identity.to_string());
        set_life(&mut params, LEAF_LIFE);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![SanType::URI(identity.uri().try_into()?)];
        if identity.kind == IdentityKind::Node {
            // A client certificate has neither, so a client can never pass for a node.
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
            params.subject_alt_names.push(SanType::DnsName(SERVER_NAME.try_into()?));
        }
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(NodeCertificate { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

/// Any 32 bytes are an Ed25519 key.
fn new_key() -> Result<KeyPair, AuthorityError> {
    let mut der = [0; PKCS8_V1.len() + 32];
    let (head, secret) = der.split_at_mut(PKCS8_V1.len());
    head.copy_from_slice(&PKCS8_V1);
    getrandom::fill(secret)?;
    Ok(KeyPair::try_from(&PrivatePkcs8KeyDer::from(&der[..]))?)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn set_life(params: &mut CertificateParams, life: Duration) {
    // The wall clock decides nothing but these dates. A clock before 1970 counts as 1970.
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = date_time_ymd(1970, 1, 1) + since_1970;
    params.not_before = now - BACKDATED;
    params.not_after = now + life;
}

fn check_certificate(certificate: &CertificateDer<'_>, key: &KeyPair) -> Result<(), String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    if !parsed.is_ca() {
        return Err("it is not the certificate of an authority".to_owned());
    }
    if *parsed.public_key().subject_public_key.data != *key.der_bytes() {
        return Err(format!("it does not belong to {CA_KEY}"));
    }
    if !parsed.validity().is_valid() {
        let (from, to) = (parsed.validity().not_before, parsed.validity().not_after);
        return Err(format!("it is valid from {from} to {to} only; check the machine's clock"));
    }
    Ok(())
}

fn read_text(dir: &Path, name: &str, mode: u32) -> Result<(String, PathBuf), AuthorityError> {
    let path = dir.join(name);
    let Some(bytes) = data_dir::read(&path, mode)? else {
        return Err(AuthorityError::Missing(path));
    };
    match String::from_utf8(bytes) {
        Ok(text) => Ok((text, path)),
        Err(_) => Err(AuthorityError::Broken { path, why: "it is not PEM text".to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn saved() -> (tempfile::TempDir, Authority) {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create().unwrap();
        authority.save(dir.path()).unwrap();
        (dir, authority)
    }

    fn load_error(dir: &Path) -> String {
        Authority::load(dir).err().expect("must not load").to_string()
    }

    fn leaf(pem: &str) -> Vec<u8> {
        CertificateDer::pem_slice_iter(pem.as_bytes()).last().unwrap().unwrap().to_vec()
    }

    #[test]
    fn a_loaded_authority_issues_like_the_one_saved() {
        let (dir, made) = saved();
        let loaded = Authority::load(dir.path()).unwrap();
        assert_eq!(made.certificate(), loaded.certificate());
        for authority in [&made, &loaded] {
            let bytes = leaf(&authority.issue_node("a").unwrap().certificate);
            let (_, node) = X509Certificate::from_der(&bytes).unwrap();
            let (_, ca) = X509Certificate::from_der(made.certificate()).unwrap();
            assert_eq!(node.issuer(), ca.subject());
        }
    }

    #[test]
    fn leaves_say_who_they_are_and_what_for() {
        let authority = Authority::create().unwrap();
        let namespace = Namespace::new("team").unwrap();
        let bundle = authority.issue_client("web", &namespace).unwrap();
        let bytes = leaf(&bundle);
        let (_, client) = X509Certificate::from_der(&bytes).unwrap();
        let usage = client.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth);
        let identity = CertificateIdentity::from_certificate(&bytes.clone().into()).unwrap();
        assert_eq!(identity, CertificateIdentity::user("web", namespace).unwrap());

        let bytes = leaf(&authority.issue_node("n1").unwrap().certificate);
        let (_, node) = X509Certificate::from_der(&bytes).unwrap();
        let usage = node.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && usage.server_auth && !node.is_ca());
        let identity = CertificateIdentity::from_certificate(&bytes.clone().into()).unwrap();
        assert_eq!(identity, CertificateIdentity::node("n1").unwrap());
    }

    #[test]
    fn an_operator_is_told_from_a_user() {
        let authority = Authority::create().unwrap();
        let bundle = authority.issue_operator("ops", &Namespace::default()).unwrap();
        let identity = CertificateIdentity::from_certificate(&leaf(&bundle).into()).unwrap();
        assert_eq!(identity, CertificateIdentity::operator("ops", Namespace::default()).unwrap());
    }

    #[test]
    fn a_bundle_holds_both_certificates_and_the_key() {
        let bundle = Authority::create().unwrap().issue_client("a", &Namespace::default()).unwrap();
        assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), 2);
        assert_eq!(bundle.matches("BEGIN PRIVATE KEY").count(), 1);
    }

    #[test]
    fn bad_names_are_refused() {
        let authority = Authority::create().unwrap();
        assert!(matches!(authority.issue_node("a/b"), Err(AuthorityError::Name(_))));
        let client = authority.issue_client("", &Namespace::default());
        assert!(matches!(client, Err(AuthorityError::Name(_))));
    }

    #[test]
    fn an_authority_is_never_overwritten() {
        let (dir, _) = saved();
        let before = fs::read(dir.path().join(CA_KEY)).unwrap();
        let error = Authority::create().unwrap().save(dir.path()).unwrap_err();
        assert!(matches!(error, AuthorityError::Exists(_)));
        assert_eq!(fs::read(dir.path().join(CA_KEY)).unwrap(), before);
    }

    #[test]
    fn missing_and_broken_files_are_named() {
        for (file, other) in [(CA_KEY, CA_CERTIFICATE), (CA_CERTIFICATE, CA_KEY)] {
            let (dir, _) = saved();
            let path = dir.path().join(file);
            for bytes in [&b""[..], b"no pem", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nAAAA\n"]
            {
                fs::write(&path, bytes).unwrap();
                let message = load_error(dir.path());
                assert!(message.contains(file) && message.contains("backup"), "{message}");
            }
            fs::copy(dir.path().join(other), &path).unwrap();
            assert!(load_error(dir.path()).contains(file));
            fs::remove_file(&path).unwrap();
            assert!(load_error(dir.path()).contains("missing"));
        }
    }

    #[test]
    fn a_key_of_another_authority_is_refused() {
        let ((dir, _), (other, _)) = (saved(), saved());
        fs::copy(other.path().join(CA_KEY), dir.path().join(CA_KEY)).unwrap();
        assert!(load_error(dir.path()).contains("does not belong to ca.key"));
    }

    #[test]
    fn a_leaf_is_no_authority() {
        let (dir, authority) = saved();
        let node = authority.issue_node("a").unwrap();
        fs::write(dir.path().join(CA_CERTIFICATE), &node.certificate).unwrap();
        fs::write(dir.path().join(CA_KEY), &node.key).unwrap();
        assert!(load_error(dir.path()).contains("not the certificate of an authority"));
    }
}
