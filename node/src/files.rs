//! The certificates in the data directory: made on the first start, checked on every later one.
//!
//! A first start writes `ca.key`, `ca.pem`, `node.key`, `node.pem`, `client.pem`, in this order,
//! each whole. What a crash in between leaves is told by name and never guessed at: an authority
//! made anew would lock out everyone who trusts the old one. Only what the authority can make
//! again at no cost, a node's certificate missing as a whole or `client.pem`, is made again.
//!
//! A node that got its certificate from elsewhere has no `ca.key`, and so no `client.pem`.

use crate::authority::{Authority, AuthorityError, CA_CERTIFICATE, CA_KEY};
use crate::data_dir::{self, FileError, PUBLIC, SECRET};
use lockring_proto::Namespace;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};

/// File name of the node's certificate.
pub const NODE_CERTIFICATE: &str = "node.pem";
/// File name of the node's key.
pub const NODE_KEY: &str = "node.key";
/// File name of the first client's bundle.
pub const CLIENT_BUNDLE: &str = "client.pem";

/// Name in the certificate of a cluster's first node.
const FIRST_NODE: &str = "node-1";
/// Name in the certificate of `client.pem`.
const FIRST_CLIENT: &str = "local";

/// The certificates of a node, read and in order.
pub struct Files {
    /// The directory they are in, for messages.
    pub dir: PathBuf,
    /// What peers must be signed by. Never empty.
    pub roots: Vec<CertificateDer<'static>>,
    /// The node's certificate, then any between it and the authority. Never empty.
    pub chain: Vec<CertificateDer<'static>>,
    /// The node's key.
    pub key: PrivateKeyDer<'static>,
    /// The first client's bundle, where there is an authority to make it.
    pub client: Option<PathBuf>,
}

/// Why the certificates cannot be used. Nothing that was there is ever changed.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file or the directory could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The authority could not be used.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// One of two that belong together is not there.
    #[error(
        "{} is missing though {} is there: restore it from a backup; if a first start was cut \
         short and nobody uses this cluster's certificates yet, remove {} and start again",
        missing.display(), present.display(), present.display()
    )]
    HalfMade {
        /// What is not there.
        missing: PathBuf,
        /// What is.
        present: PathBuf,
    },
    /// A file is there but is not what it should be.
    #[error("{} cannot be used: {why}; {}", path.display(), remedy(path))]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

fn remedy(path: &Path) -> String {
    let anew = format!(
        "restore it from a backup, or where {CA_KEY} is present remove {NODE_CERTIFICATE} and \
         {NODE_KEY} and start again to get new ones"
    );
    let node = path.ends_with(NODE_CERTIFICATE) || path.ends_with(NODE_KEY);
    if node { anew } else { "restore it from a backup".to_owned() }
}

/// Makes what the first start needs, else reads what is there. Open the
/// [`Store`](crate::store::Store) first: its lock keeps two processes from doing this at once.
///
/// # Errors
/// When the set is half-made, unreadable or broken.
pub fn ensure_files(data_dir: &Path) -> Result<Files, FilesError> {
    data_dir::prepare(data_dir)?;
    let at = |name: &str| data_dir.join(name);
    let there = |name: &str| at(name).symlink_metadata().is_ok();
    let half_made = |missing: &str, present: &str| {
        Err(FilesError::HalfMade { missing: at(missing), present: at(present) })
    };
    let names = [CA_KEY, CA_CERTIFICATE, NODE_KEY, NODE_CERTIFICATE, CLIENT_BUNDLE];
    let first_present = names.into_iter().find(|name| there(name));
    let node = (there(NODE_KEY), there(NODE_CERTIFICATE));

    let authority = match (there(CA_KEY), there(CA_CERTIFICATE), first_present) {
        (false, false, None) => {
            let authority = Authority::create()?;
            authority.save(data_dir)?;
            Some(authority)
        }
        (_, false, Some(present)) => return half_made(CA_CERTIFICATE, present),
        (true, true, _) => Some(Authority::load(data_dir)?),
        // A certificate from elsewhere needs no authority's key here.
        (false, true, _) if node == (true, true) => None,
        (false, true, _) => return half_made(CA_KEY, CA_CERTIFICATE),
        (true, false, None) => unreachable!("a file that is there was found"),
    };
    match (node, &authority) {
        ((false, false), Some(authority)) => issue_node(authority, data_dir)?,
        ((true, false), _) => return half_made(NODE_CERTIFICATE, NODE_KEY),
        ((false, true), _) => return half_made(NODE_KEY, NODE_CERTIFICATE),
        ((true, true), _) | ((false, false), None) => {}
    }
    if let Some(authority) = authority.as_ref().filter(|_| !there(CLIENT_BUNDLE)) {
        let bundle = authority.issue_operator(FIRST_CLIENT, &Namespace::default())?;
        data_dir::write(&at(CLIENT_BUNDLE), bundle.as_bytes(), SECRET)?;
    }
    load(data_dir)
}

/// Makes the certificates of a node in memory, by an authority that nothing remembers. Only the
/// first client's bundle is written, to `client`.
///
/// # Errors
/// When it cannot be written, or the system gives no randomness.
pub fn in_memory(client: &Path) -> Result<Files, FilesError> {
    let authority = Authority::create()?;
    let node = authority.issue_node(FIRST_NODE)?;
    let bundle = authority.issue_operator(FIRST_CLIENT, &Namespace::default())?;
    data_dir::write(client, bundle.as_bytes(), SECRET)?;
    let made = |path: &str, why: String| FilesError::Broken { path: path.into(), why };
    let certificate = CertificateDer::from_pem_slice(node.certificate.as_bytes())
        .map_err(|error| made(NODE_CERTIFICATE, error.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(node.key.as_bytes())
        .map_err(|error| made(NODE_KEY, error.to_string()))?;
    Ok(Files {
        dir: PathBuf::from("memory"),
        roots: vec![authority.certificate().clone()],
        chain: vec![certificate],
        key,
        client: Some(client.to_owned()),
    })
}

fn issue_node(authority: &Authority, data_dir: &Path) -> Result<(), FilesError> {
    let node = authority.issue_node(FIRST_NODE)?;
    data_dir::write(&data_dir.join(NODE_KEY), node.key.as_bytes(), SECRET)?;
    data_dir::write(&data_dir.join(NODE_CERTIFICATE), node.certificate.as_bytes(), PUBLIC)?;
    Ok(())
}

fn load(data_dir: &Path) -> Result<Files, FilesError> {
    let client = data_dir.join(CLIENT_BUNDLE);
    Ok(Files {
        dir: data_dir.to_owned(),
        roots: read_certificates(&data_dir.join(CA_CERTIFICATE))?,
        chain: read_certificates(&data_dir.join(NODE_CERTIFICATE))?,
        key: read_key(&data_dir.join(NODE_KEY))?,
        client: client.exists().then_some(client),
    })
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FilesError> {
    let broken = |why: String| FilesError::Broken { path: path.to_owned(), why };
    let bytes = data_dir::read(path, PUBLIC)?.unwrap_or_default();
    let certificates = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| broken(error.to_string()))?;
    if certificates.is_empty() {
        return Err(broken("no certificate is in it".to_owned()));
    }
    Ok(certificates)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, FilesError> {
    let bytes = data_dir::read(path, SECRET)?.unwrap_or_default();
    PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|error| FilesError::Broken { path: path.to_owned(), why: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::server_config;
    use std::collections::BTreeMap;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    const ALL: [&str; 5] = [CA_KEY, CA_CERTIFICATE, NODE_KEY, NODE_CERTIFICATE, CLIENT_BUNDLE];

    fn started() -> (tempfile::TempDir, PathBuf) {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("data");
        ensure_files(&dir).unwrap();
        (base, dir)
    }

    fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    }

    /// What a start on this directory says, be it while reading or while checking.
    fn start_error(dir: &Path) -> String {
        match ensure_files(dir).and_then(|files| server_config(&files)) {
            Ok(_) => panic!("it started"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_first_start_makes_everything_with_the_right_modes() {
        let (_base, dir) = started();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(contents(&dir).len(), ALL.len());
        for (name, expected) in ALL.into_iter().zip([0o600, 0o644, 0o600, 0o644, 0o600]) {
            assert_eq!(mode(&dir.join(name)), expected, "{name}");
        }
    }

    #[test]
    fn later_starts_change_nothing() {
        let (_base, dir) = started();
        let before = contents(&dir);
        let files = ensure_files(&dir).unwrap();
        assert!(files.client.is_some());
        server_config(&files).unwrap();
        assert_eq!(contents(&dir), before);
    }

    #[test]
    fn what_the_authority_can_make_again_is_made_again() {
        let (_base, dir) = started();
        for names in [&[NODE_KEY, NODE_CERTIFICATE][..], &[CLIENT_BUNDLE]] {
            for name in names {
                fs::remove_file(dir.join(name)).unwrap();
            }
            server_config(&ensure_files(&dir).unwrap()).unwrap();
            assert_eq!(contents(&dir).len(), ALL.len());
        }
    }

    #[test]
    fn a_node_with_a_certificate_from_elsewhere_needs_no_authority() {
        let (_base, dir) = started();
        for name in [CA_KEY, CLIENT_BUNDLE] {
            fs::remove_file(dir.join(name)).unwrap();
        }
        let files = ensure_files(&dir).unwrap();
        assert!(files.client.is_none());
        server_config(&files).unwrap();
    }

    /// Every subset of the files either starts or is refused by naming what is missing, and is
    /// never changed by a refusal.
    #[test]
    fn every_half_made_set_is_told_and_left_alone() {
        let (_base, whole) = started();
        let (mut starts, mut refusals) = (0, 0);
        for subset in 0..1_u32 << ALL.len() {
            let has = |index: usize| subset >> index & 1 == 1;
            let base = tempfile::tempdir().unwrap();
            for (_, name) in ALL.into_iter().enumerate().filter(|(index, _)| has(*index)) {
                fs::copy(whole.join(name), base.path().join(name)).unwrap();
            }
            let before = contents(base.path());
            let pair = (has(2), has(3));
            let complete = match (has(0), has(1)) {
                (true, true) => pair.0 == pair.1,
                (false, true) => pair == (true, true),
                _ => subset == 0,
            };
            if complete {
                server_config(&ensure_files(base.path()).unwrap()).unwrap();
                starts += 1;
            } else {
                let message = start_error(base.path());
                let missing = message.split(" is missing").next().unwrap();
                assert!(!Path::new(missing).exists() && message.contains("backup"), "{message}");
                assert_eq!(contents(base.path()), before, "{message}");
                refusals += 1;
            }
        }
        assert_eq!((starts, refusals), (7, 25));
    }

    #[test]
    fn unreadable_files_are_named_with_a_remedy() {
        let (_base, dir) = started();
        // The bundle is the client's business: a node only hands it out.
        for name in &ALL[..4] {
            let path = dir.join(name);
            let whole = fs::read(&path).unwrap();
            for bytes in [&b""[..], b"not pem", b"\xff\x00", &whole[..whole.len() / 2]] {
                fs::write(&path, bytes).unwrap();
                let message = start_error(&dir);
                assert!(message.contains(name) && message.contains("backup"), "{message}");
            }
            fs::remove_file(&path).unwrap();
            fs::create_dir(&path).unwrap();
            let message = start_error(&dir);
            assert!(message.contains(&format!("cannot read {}", path.display())), "{message}");
            fs::remove_dir(&path).unwrap();
            fs::write(&path, whole).unwrap();
        }
        server_config(&ensure_files(&dir).unwrap()).unwrap();
    }

    #[test]
    fn files_of_two_clusters_do_not_mix() {
        let ((_base, dir), (_other_base, other)) = (started(), started());
        let take = |name: &str| fs::copy(other.join(name), dir.join(name)).unwrap();
        take(NODE_KEY);
        let message = start_error(&dir);
        assert!(message.contains(NODE_CERTIFICATE) && message.contains("remove"), "{message}");
        take(NODE_CERTIFICATE);
        let message = start_error(&dir);
        assert!(message.contains("not issued by the authority of ca.pem"), "{message}");
        take(CA_CERTIFICATE);
        assert!(start_error(&dir).contains("does not belong to ca.key"));
        take(CA_KEY);
        server_config(&ensure_files(&dir).unwrap()).unwrap();
    }
}
