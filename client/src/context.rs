//! Contexts: the clusters a user has at hand, by name, and which of them is current.
//!
//! A context is a TOML file `contexts/NAME.toml` in the user's configuration directory of
//! lockring; the file `current` there holds the name of the current one. Nothing here reads the
//! process environment: it is passed in as an [`Environment`].
//!
//! ```
//! use lockring_client::context::{Context, ContextError, Contexts, Environment};
//!
//! # let home = tempfile::tempdir().expect("a folder");
//! # let home = home.path();
//! # fn main_of(home: &std::path::Path) -> Result<(), ContextError> {
//! // What a program sees is `Environment::of_process()`.
//! let environment = Environment { config_home: Some(home.into()), ..Environment::default() };
//! let contexts = Contexts::new(&environment)?;
//! let lab = Context {
//!     endpoints: vec!["10.0.0.7:7420".to_owned()],
//!     identity: "/etc/lockring/client.pem".into(),
//!     pid: None,
//! };
//! contexts.write("lab", &lab)?;
//! let former = contexts.make_current("lab")?;
//! assert_eq!(contexts.current()?.as_deref(), Some("lab"));
//! assert_eq!(contexts.read("lab")?, lab);
//!
//! contexts.restore("lab", former.as_deref())?;
//! contexts.remove("lab")?;
//! assert!(matches!(contexts.read("lab"), Err(ContextError::Missing { .. })));
//! # Ok(()) }
//! # main_of(home).expect("as written");
//! ```

use crate::target::{Seed, TargetError};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const NAME_BYTES_MAX: usize = 64;

/// What of the process environment matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `LOCKRING_IDENTITY`.
    pub identity: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`.
    pub config_home: Option<PathBuf>,
    /// `HOME`.
    pub home: Option<PathBuf>,
}

impl Environment {
    /// That of this process. Empty variables count as unset.
    ///
    /// ```
    /// use lockring_client::context::Environment;
    /// let environment = Environment { config_home: None, ..Environment::of_process() };
    /// assert_eq!(environment.config_home, None);
    /// ```
    pub fn of_process() -> Self {
        let path = |name| {
            std::env::var_os(name).filter(|value: &OsString| !value.is_empty()).map(PathBuf::from)
        };
        Self {
            identity: path("LOCKRING_IDENTITY"),
            config_home: path("XDG_CONFIG_HOME"),
            home: path("HOME"),
        }
    }

    /// lockring's configuration directory, if the environment says where such things are. The
    /// XDG rules have a relative `XDG_CONFIG_HOME` ignored.
    fn config_dir(&self) -> Option<PathBuf> {
        let home = self.home.as_ref().map(|home| home.join(".config"));
        let config = self.config_home.clone().filter(|path| path.is_absolute()).or(home)?;
        Some(config.join("lockring"))
    }
}

/// One cluster, as remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// Nodes, as `HOST:PORT`.
    pub endpoints: Vec<String>,
    /// The client's bundle of certificates.
    pub identity: PathBuf,
    /// The process that made this context and ends with it, as a cluster for development.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

impl Context {
    /// The endpoints, read.
    ///
    /// # Errors
    /// When one of them is no address.
    pub(crate) fn seeds(&self) -> Result<Vec<Seed>, TargetError> {
        self.endpoints.iter().map(|endpoint| endpoint.parse()).collect()
    }
}

/// Why a context cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// Neither `XDG_CONFIG_HOME` nor `HOME` is set.
    #[error("there is no place for contexts: set HOME or XDG_CONFIG_HOME")]
    NoHome,
    /// A text that cannot be a file name everywhere.
    #[error(
        "{0:?} is not a context name: use 1 to 64 of a-z A-Z 0-9 . _ -, not beginning with a dot"
    )]
    Name(String),
    /// No such context.
    #[error("there is no context {name:?}: {} does not exist", path.display())]
    Missing {
        /// The name.
        name: String,
        /// Where it would be.
        path: PathBuf,
    },
    /// A file is there but is not what it should be.
    #[error("{} is broken: {why}; correct it or remove it", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file cannot be used.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried, as `read`.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl ContextError {
    fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }
}

/// A user's contexts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contexts {
    dir: PathBuf,
}

impl Contexts {
    /// Those of a user with this environment.
    ///
    /// # Errors
    /// When it does not say where they are.
    pub fn new(environment: &Environment) -> Result<Self, ContextError> {
        environment.config_dir().map(|dir| Self { dir }).ok_or(ContextError::NoHome)
    }

    /// The file of a context.
    ///
    /// # Errors
    /// When the name is not one.
    pub(crate) fn path(&self, name: &str) -> Result<PathBuf, ContextError> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let fits = (1..=NAME_BYTES_MAX).contains(&name.len());
        if !fits || !name.bytes().all(legal) || name.starts_with('.') {
            return Err(ContextError::Name(name.to_owned()));
        }
        Ok(self.dir.join("contexts").join(format!("{name}.toml")))
    }

    /// The file that names the current context.
    pub(crate) fn current_path(&self) -> PathBuf {
        self.dir.join("current")
    }

    /// Reads a context.
    ///
    /// # Errors
    /// When there is none, or it is broken.
    pub fn read(&self, name: &str) -> Result<Context, ContextError> {
        let path = self.path(name)?;
        let Some(text) = read_text(&path)? else {
            return Err(ContextError::Missing { name: name.to_owned(), path });
        };
        let broken = |why: String| ContextError::Broken { path: path.clone(), why };
        let context: Context =
            toml::from_str(&text).map_err(|error| broken(error.to_string().trim().to_owned()))?;
        if context.endpoints.is_empty() {
            return Err(broken("it names no endpoints".to_owned()));
        }
        context.seeds().map_err(|error| broken(error.to_string()))?;
        Ok(context)
    }

    /// Writes a context, over one of the same name.
    ///
    /// # Errors
    /// When the name is not one or the file cannot be written.
    pub fn write(&self, name: &str, context: &Context) -> Result<(), ContextError> {
        let path = self.path(name)?;
        let broken = |why: String| ContextError::Broken { path: path.clone(), why };
        let text = toml::to_string(context).map_err(|error| broken(error.to_string()))?;
        replace(&path, &text)
    }

    /// Removes a context. That it was gone already is no error.
    ///
    /// # Errors
    /// When the name is not one or the file cannot be removed.
    pub fn remove(&self, name: &str) -> Result<(), ContextError> {
        remove(&self.path(name)?)
    }

    /// The name of the current context, if there is one.
    ///
    /// # Errors
    /// When `current` cannot be read, or holds no name.
    pub fn current(&self) -> Result<Option<String>, ContextError> {
        let path = self.current_path();
        let Some(text) = read_text(&path)? else {
            return Ok(None);
        };
        let name = text.trim_end();
        self.path(name).map_err(|error| ContextError::Broken { path, why: error.to_string() })?;
        Ok(Some(name.to_owned()))
    }

    /// Makes a context current, and says which one was before, for [`Self::restore`].
    ///
    /// # Errors
    /// When there is no such context, or `current` cannot be written. One that was broken is
    /// replaced.
    pub fn make_current(&self, name: &str) -> Result<Option<String>, ContextError> {
        self.read(name)?;
        let former = match self.current() {
            Err(ContextError::Broken { .. }) => None,
            former => former?,
        };
        replace(&self.current_path(), &format!("{name}\n"))?;
        Ok(former)
    }

    /// Undoes [`Self::make_current`]: makes the former one current again, or none. Does nothing,
    /// and says so by `false`, if another than `name` has been made current since.
    ///
    /// # Errors
    /// When `current` cannot be read, written or removed.
    pub fn restore(&self, name: &str, former: Option<&str>) -> Result<bool, ContextError> {
        if self.current()?.as_deref() != Some(name) {
            return Ok(false);
        }
        match former {
            Some(former) if self.path(former)?.exists() => {
                replace(&self.current_path(), &format!("{former}\n"))?;
            }
            _ => remove(&self.current_path())?,
        }
        Ok(true)
    }
}

fn read_text(path: &Path) -> Result<Option<String>, ContextError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(ContextError::Broken { path: path.to_owned(), why: "it is not text".to_owned() })
        }
        Err(error) => Err(ContextError::file("read", path)(error)),
    }
}

/// Writes a file whole, by a rename, so that another process never reads half of it.
fn replace(path: &Path, text: &str) -> Result<(), ContextError> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = (|| {
        fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        let mut file = fs::File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(ContextError::file("write", path))
}

fn remove(path: &Path) -> Result<(), ContextError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ContextError::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contexts() -> (tempfile::TempDir, Contexts) {
        let home = tempfile::tempdir().unwrap();
        let environment =
            Environment { config_home: Some(home.path().to_owned()), ..Environment::default() };
        (home, Contexts::new(&environment).unwrap())
    }

    fn context(pid: Option<u32>) -> Context {
        Context {
            endpoints: vec!["127.0.0.1:7420".to_owned(), "[::1]:7430".to_owned()],
            identity: "/data/client.pem".into(),
            pid,
        }
    }

    #[test]
    fn the_directory_follows_the_xdg_rules() {
        let dir = |config: Option<&str>, home: Option<&str>| {
            let [config_home, home] = [config, home].map(|path| path.map(PathBuf::from));
            Contexts::new(&Environment { identity: None, config_home, home }).map(|c| c.dir)
        };
        assert_eq!(dir(Some("/c"), Some("/h")).unwrap(), Path::new("/c/lockring"));
        assert_eq!(dir(Some("c"), Some("/h")).unwrap(), Path::new("/h/.config/lockring"));
        assert_eq!(dir(None, Some("/h")).unwrap(), Path::new("/h/.config/lockring"));
        assert!(matches!(dir(None, None), Err(ContextError::NoHome)));
    }

    #[test]
    fn what_is_written_is_read() {
        let (_home, contexts) = contexts();
        for pid in [None, Some(4242)] {
            contexts.write("dev", &context(pid)).unwrap();
            assert_eq!(contexts.read("dev").unwrap(), context(pid));
        }
        contexts.remove("dev").unwrap();
        contexts.remove("dev").unwrap();
        assert!(matches!(contexts.read("dev"), Err(ContextError::Missing { .. })));
    }

    #[test]
    fn making_current_is_undone() {
        let (_home, contexts) = contexts();
        for name in ["a", "b"] {
            contexts.write(name, &context(None)).unwrap();
        }
        assert_eq!(contexts.current().unwrap(), None);
        assert_eq!(contexts.make_current("a").unwrap(), None);
        assert_eq!(contexts.make_current("b").unwrap(), Some("a".to_owned()));
        assert_eq!(contexts.current().unwrap(), Some("b".to_owned()));
        assert!(contexts.restore("b", Some("a")).unwrap());
        assert_eq!(contexts.current().unwrap(), Some("a".to_owned()));
        assert!(contexts.restore("a", None).unwrap());
        assert_eq!(contexts.current().unwrap(), None);
    }

    #[test]
    fn restoring_leaves_a_later_choice_alone() {
        let (_home, contexts) = contexts();
        for name in ["a", "b"] {
            contexts.write(name, &context(None)).unwrap();
        }
        let former = contexts.make_current("a").unwrap();
        contexts.make_current("b").unwrap();
        assert!(!contexts.restore("a", former.as_deref()).unwrap());
        assert_eq!(contexts.current().unwrap(), Some("b".to_owned()));
    }

    #[test]
    fn restoring_a_removed_context_leaves_none() {
        let (_home, contexts) = contexts();
        contexts.write("a", &context(None)).unwrap();
        contexts.make_current("a").unwrap();
        assert!(contexts.restore("a", Some("gone")).unwrap());
        assert_eq!(contexts.current().unwrap(), None);
    }

    #[test]
    fn only_an_existing_context_becomes_current() {
        let (_home, contexts) = contexts();
        assert!(matches!(contexts.make_current("none"), Err(ContextError::Missing { .. })));
        assert_eq!(contexts.current().unwrap(), None);
    }

    #[test]
    fn names_stay_inside_the_directory() {
        let (_home, contexts) = contexts();
        for name in ["", ".", "..", "../a", "a/b", ".hidden", "a b", &"x".repeat(65)] {
            assert!(matches!(contexts.read(name), Err(ContextError::Name(_))), "{name}");
        }
    }

    #[test]
    fn broken_files_are_named() {
        let (_home, contexts) = contexts();
        contexts.write("a", &context(None)).unwrap();
        let path = contexts.path("a").unwrap();
        for text in [
            &b"endpoints = "[..],
            b"endpoints = []\nidentity = \"x\"",
            b"endpoints = [\"::1\"]\nidentity = \"x\"",
            b"endpoints = [\"a\"]",
            b"endpoints = [\"a\"]\nidentity = \"x\"\nidentiy = \"y\"",
            b"endpoints = [\"a\"]\nidentity = \"x\"\npid = -1",
            b"\xff",
        ] {
            fs::write(&path, text).unwrap();
            let message = contexts.read("a").unwrap_err().to_string();
            assert!(message.contains("a.toml is broken"), "{message}");
        }
        fs::write(contexts.current_path(), "../../etc\n").unwrap();
        let message = contexts.current().unwrap_err().to_string();
        assert!(message.contains("current is broken"), "{message}");
        contexts.write("a", &context(None)).unwrap();
        assert_eq!(contexts.make_current("a").unwrap(), None);
    }
}
