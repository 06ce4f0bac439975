//! How a client is made.

use crate::client::Client;
use crate::context::{Context, Contexts, Environment};
use crate::error::Error;
use crate::handle::SessionHandle;
use crate::identity::{IdentityChoice, resolve_identity};
use crate::kind::ErrorKind;
use crate::pool::Pool;
use crate::resolve::Resolver;
use crate::settings::Settings;
use crate::target::{Seed, Target};
use crate::tls::Bundle;
use lockring_proto::{SessionId, clock};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Pauses between tries to connect.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Everything about a client that has a default.
///
/// ```no_run
/// # async fn example() -> Result<(), lockring_client::Error> {
/// use std::time::Duration;
/// let client = lockring_client::Client::builder()
///     .identity("client.pem")
///     .ttl(Duration::from_secs(5))
///     .connect("lockring://127.0.0.1:7420")
///     .await?;
/// # Ok(()) }
/// ```
///
/// A command-line program lets its user say where to connect and as whom:
///
/// ```no_run
/// # use lockring_client::{Client, Error};
/// # use std::path::PathBuf;
/// # async fn example(identity: Option<PathBuf>, context: Option<String>) -> Result<(), Error> {
/// use std::time::Duration;
/// let client = Client::builder()
///     .identity_argument(identity) // before any other, if there is one
///     .context(context) // instead of the current one, if there is one
///     .unreachable_after(Duration::from_secs(3))
///     .label("nightly import")
///     .connect_current()
///     .await?;
/// # client.close().await; Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Builder {
    identity: Option<PathBuf>,
    context: Option<String>,
    argument: Option<PathBuf>,
    settings: Settings,
    connect_within: Duration,
}

impl Client {
    /// Connects to `lockring://HOST:PORT[,HOST:PORT...][?identity=FILE]`. Addresses are tried
    /// 250 ms apart, all of those that a name has; the first that answers is taken, and one that
    /// does not answer within 6 s is given up.
    ///
    /// Cancel safe: a session that stood already ends with its TTL, and nothing is held in it.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the URL or the identity cannot be used,
    /// [`ErrorKind::Unreachable`] when no node answers; [`ErrorKind::Denied`],
    /// [`ErrorKind::Draining`], [`ErrorKind::Quota`] or, of another version,
    /// [`ErrorKind::Version`] when the node refuses the session.
    pub async fn connect(url: &str) -> Result<Self, Error> {
        Self::builder().connect(url).await
    }

    /// Everything that has a default.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), lockring_client::Error> {
    /// use lockring_client::Client;
    /// let builder = Client::builder().label("billing worker 3");
    /// let client = builder.connect("lockring://127.0.0.1:7420").await?;
    /// # client.close().await; Ok(()) }
    /// ```
    pub fn builder() -> Builder {
        Builder::default()
    }
}

impl Builder {
    /// The identity to show when neither the URL nor `LOCKRING_IDENTITY` names one: a PEM file
    /// with CA, certificate and key, as `client.pem` of a node.
    #[must_use]
    pub fn identity(mut self, file: impl Into<PathBuf>) -> Self {
        self.identity = Some(file.into());
        self
    }

    /// The identity to show before any other: what a command line names.
    #[must_use]
    pub fn identity_argument(mut self, file: Option<PathBuf>) -> Self {
        self.argument = file;
        self
    }

    /// A named context for [`Builder::connect_current`] to take the address from, instead of the
    /// current one.
    #[must_use]
    pub fn context(mut self, name: Option<String>) -> Self {
        self.context = name;
        self
    }

    /// How long a hold outlives the last contact, 1 s to 1 h: with another one connecting fails as
    /// [`ErrorKind::Invalid`]. 10 s unless set. A node may have a lower highest value for the
    /// identity's namespace, which then holds: [`Client::ttl`] says which, and a warning is traced.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.settings.ttl = ttl;
        self
    }

    /// How long a call waits for contact before it fails as unreachable; 30 s unless set. Any
    /// answer of the node is contact: a wait in the queue has no such end.
    #[must_use]
    pub fn unreachable_after(mut self, span: Duration) -> Self {
        self.settings.unreachable_after = span;
        self
    }

    /// How long connecting goes on while no node answers, or takes sessions, as one that is
    /// starting, stopping or away; each address is tried once unless set.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), lockring_client::Error> {
    /// use std::time::Duration;
    /// let patient = lockring_client::Client::builder().connect_within(Duration::from_secs(60));
    /// let client = patient.connect("lockring://127.0.0.1:7420").await?;
    /// # client.close().await; Ok(()) }
    /// ```
    #[must_use]
    pub fn connect_within(mut self, span: Duration) -> Self {
        self.connect_within = span;
        self
    }

    /// Who holds the locks, as people will read it; `user@host:pid` unless set. Cut to 128 bytes.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.settings.label = label.into();
        self
    }

    /// Takes up a session that another process left: whoever knows its id owns its locks.
    ///
    /// ```no_run
    /// # use lockring_client::{Client, Error, Token};
    /// # async fn example(url: &str, token: Token) -> Result<(), Error> {
    /// use lockring_client::Builder;
    /// let builder: Builder = Client::builder().session(token.session()).ttl(token.ttl());
    /// let guard = builder.connect(url).await?.adopt(&token).await?;
    /// # drop(guard); Ok(()) }
    /// ```
    #[must_use]
    pub fn session(mut self, id: [u8; 16]) -> Self {
        self.settings.session = Some(SessionId(id));
        self
    }

    /// Connects to a cluster by its URL, `lockring://HOST:PORT[,...][?identity=FILE]`.
    ///
    /// Cancel safe, as [`Client::connect`].
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect(self, url: &str) -> Result<Client, Error> {
        let target: Target = url.parse()?;
        self.open(target.seeds, target.identity).await
    }

    /// Connects to the cluster of the current context, as `lockring dev` makes one.
    ///
    /// Cancel safe, as [`Client::connect`].
    ///
    /// # Errors
    /// As [`Builder::connect`]; also when no context is current.
    pub async fn connect_current(self) -> Result<Client, Error> {
        let contexts = Contexts::new(&Environment::of_process())?;
        let name = match &self.context {
            Some(name) => Some(name.clone()),
            None => contexts.current()?,
        };
        let Some(name) = name else {
            return Err(Error::new(
                ErrorKind::Config,
                "no cluster to talk to: name one with --endpoints lockring://HOST:PORT, or start \
                 one here with `lockring dev`",
            ));
        };
        let context = contexts.read(&name)?;
        let seeds = context.seeds()?;
        let gone = gone_process(&context);
        self.open(seeds, Some(context.identity)).await.map_err(|error| match (error.kind(), gone) {
            (ErrorKind::Unreachable, Some(pid)) => Error::new(
                ErrorKind::Unreachable,
                format!(
                    "context {name:?} is of a node that is gone (process {pid} has ended): start \
                     it again, or name another with --endpoints"
                ),
            )
            .for_good(),
            _ => error,
        })
    }

    async fn open(mut self, seeds: Vec<Seed>, from_url: Option<PathBuf>) -> Result<Client, Error> {
        let choice = IdentityChoice {
            argument: self.argument.as_deref(),
            url: from_url.as_deref(),
            builder: self.identity.as_deref(),
        };
        let identity = resolve_identity(choice, &Environment::of_process())?;
        let bundle = Bundle::load(&identity)?;
        self.settings.cut_label();
        let pool = Arc::new(Pool::new(seeds, bundle, Resolver::of_system()));
        let session = self.open_session(&pool).await?;
        Ok(Client::over(session, self.settings))
    }

    /// Tries until a node takes the session, or the time for it is over.
    async fn open_session(&self, pool: &Arc<Pool>) -> Result<SessionHandle, Error> {
        let until = clock::now().after(self.connect_within);
        let mut pause = RETRY_MIN;
        loop {
            let error = match SessionHandle::open(Arc::clone(pool), &self.settings).await {
                Err(error) if error.is_retryable() => error,
                ended => return ended,
            };
            let left = until.since(clock::now());
            if left.is_zero() {
                return Err(error);
            }
            tokio::time::sleep(pause.min(left)).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }
}

/// The process that made a context, if it has ended.
fn gone_process(context: &Context) -> Option<u32> {
    let pid = context.pid?;
    (!Path::new(&format!("/proc/{pid}")).exists()).then_some(pid)
}
