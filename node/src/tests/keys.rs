//! Private keys are written as OpenSSL 3, and what is built on it, can read them.

use super::common::{config, connect};
use crate::Node;
use crate::authority::Authority;
use crate::files::ensure_files;
use lockring_proto::Namespace;
use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

/// Every file that a node writes a key to, and one that an operator has issued.
const WITH_KEYS: [&str; 4] = ["ca.key", "node.key", "client.pem", "ann.pem"];

fn written() -> TempDir {
    let dir = TempDir::new().unwrap();
    ensure_files(dir.path()).unwrap();
    let authority = Authority::load(dir.path()).unwrap();
    let ann = authority.issue_client("ann", &Namespace::default()).unwrap();
    fs::write(dir.path().join("ann.pem"), ann).unwrap();
    dir
}

fn key(file: &Path) -> PrivatePkcs8KeyDer<'static> {
    PrivatePkcs8KeyDer::from_pem_file(file).unwrap()
}

/// Version 1 is the number 0, and the public key that only version 2 has is the last field: without
/// it the whole is as long as algorithm and secret.
#[test]
fn keys_are_pkcs8_version_1_without_a_public_key() {
    let dir = written();
    for name in WITH_KEYS {
        let key = key(&dir.path().join(name));
        let der = key.secret_pkcs8_der();
        assert_eq!(der[..5], [0x30, 46, 2, 1, 0], "{name}: {:?}", &der[..5]);
        assert_eq!(der[5..12], [0x30, 5, 6, 3, 0x2b, 0x65, 0x70], "{name}: Ed25519");
        assert_eq!(der[12..16], [4, 34, 4, 32], "{name}");
        assert_eq!(der.len(), 16 + 32, "{name}");
    }
}

/// As version 2, with the public key after the secret.
fn as_version_2(key: &PrivatePkcs8KeyDer<'_>) -> PrivatePkcs8KeyDer<'static> {
    let pair = KeyPair::try_from(key).unwrap();
    let head = [0x30, 81, 2, 1, 1, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 34, 4, 32];
    let secret = &key.secret_pkcs8_der()[head.len()..];
    [&head[..], secret, &[0x81, 33, 0], pair.der_bytes()].concat().into()
}

/// Keys of other makers, and of earlier builds, are version 2.
#[tokio::test]
async fn keys_of_version_2_serve_as_before() {
    let dir = TempDir::new().unwrap();
    Node::start(&config(dir.path(), 1)).unwrap().stop().await;
    for name in &WITH_KEYS[..3] {
        let file = dir.path().join(name);
        let old = KeyPair::try_from(&as_version_2(&key(&file))).unwrap().serialize_pem();
        let text = fs::read_to_string(&file).unwrap();
        let (before, _) = text.split_once("-----BEGIN PRIVATE KEY").unwrap();
        fs::write(&file, [before, &old].concat()).unwrap();
        assert_eq!(key(&file).secret_pkcs8_der()[..5], [0x30, 81, 2, 1, 1]);
    }
    let node = Node::start(&config(dir.path(), 1)).unwrap();
    let client = connect(&node).await;
    client.lock("k").await.unwrap().release().await.unwrap();
    client.close().await;
    Authority::load(dir.path()).unwrap().issue_node("n2").unwrap();
    node.stop().await;
}

/// `None`, and said where everybody sees it, if there is no openssl; that must not be in CI.
fn openssl(dir: &Path, arguments: &[&str]) -> Option<Output> {
    match Command::new("openssl").args(arguments).current_dir(dir).output() {
        Ok(output) => Some(output),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "no openssl in CI: {error}");
            writeln!(std::io::stderr(), "NOT TESTED, no openssl to be run: {error}").unwrap();
            None
        }
    }
}

#[test]
fn openssl_reads_what_is_written() {
    let dir = written();
    let keys = WITH_KEYS.map(|name| vec!["pkey", "-noout", "-check", "-in", name]);
    let certificates = ["ca.pem", "node.pem", "ann.pem"];
    let shown = certificates.map(|name| vec!["x509", "-noout", "-subject", "-in", name]);
    let verified = [("sslserver", "node.pem"), ("sslclient", "node.pem")]
        .map(|(purpose, name)| vec!["verify", "-CAfile", "ca.pem", "-purpose", purpose, name]);
    for arguments in keys.into_iter().chain(shown).chain(verified) {
        let Some(output) = openssl(dir.path(), &arguments) else { return };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {}: {said}", arguments.join(" "));
    }
    // The client's own certificate is the second in its bundle.
    let bundle = fs::read_to_string(dir.path().join("ann.pem")).unwrap();
    let (_, own) = bundle.split_once("-----END CERTIFICATE-----").unwrap();
    fs::write(dir.path().join("own.pem"), own.trim_start()).unwrap();
    let verify = ["verify", "-CAfile", "ca.pem", "-purpose", "sslclient", "own.pem"];
    let output = openssl(dir.path(), &verify).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // The key is that of the certificate.
    for (certificate, key) in [("ca.pem", "ca.key"), ("node.pem", "node.key")] {
        let of_certificate =
            openssl(dir.path(), &["x509", "-noout", "-pubkey", "-in", certificate]);
        let of_key = openssl(dir.path(), &["pkey", "-pubout", "-in", key]);
        let (of_certificate, of_key) = (of_certificate.unwrap().stdout, of_key.unwrap().stdout);
        assert!(!of_key.is_empty() && of_key == of_certificate, "{key}");
    }
    // What a user would do with the authority: sign a certificate with it.
    fs::write(dir.path().join("serial"), "01").unwrap();
    for arguments in [
        "req -new -newkey ed25519 -nodes -keyout own.key -subj /CN=x -out own.csr",
        "x509 -req -in own.csr -CA ca.pem -CAkey ca.key -CAserial serial -out signed.pem",
        "verify -CAfile ca.pem signed.pem",
    ] {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let output = openssl(dir.path(), &arguments).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {}: {said}", arguments.join(" "));
    }
}
