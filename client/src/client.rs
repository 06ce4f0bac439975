//! The client, as a program uses it.

use crate::admin::{Admin, Inspection};
use crate::error::Error;
use crate::guard::Guard;
use crate::handle::SessionHandle;
use crate::kind::ErrorKind;
use crate::primitives::{Mutex, RwLock, Semaphore};
use crate::settings::Settings;
use crate::token::Token;
use lockring_proto::Claim;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A client of a cluster. Cheap to clone; clones share one session, its connections and its lease.
///
/// ```no_run
/// # async fn example() -> Result<(), lockring_client::Error> {
/// let client = lockring_client::Client::connect("lockring://127.0.0.1:7420").await?;
/// let guard = client.lock("orders/42").await?;
/// guard.release().await?;
/// client.close().await;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Client {
    session: Arc<SessionHandle>,
    settings: Arc<Settings>,
}

impl Client {
    pub(crate) fn over(session: SessionHandle, settings: Settings) -> Self {
        Self { session: Arc::new(session), settings: Arc::new(settings) }
    }

    /// A client with a session of its own and another TTL, as
    /// [`Builder::ttl`](crate::Builder::ttl); the lease belongs to the session, never to a single
    /// lock.
    ///
    /// Cancel safe, as [`Client::connect`].
    ///
    /// ```no_run
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// let patient = client.with_ttl(std::time::Duration::from_secs(60)).await?;
    /// let guard = patient.lock("nightly").await?;
    /// # drop(guard); Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn with_ttl(&self, ttl: Duration) -> Result<Self, Error> {
        let settings = Settings { ttl, session: None, ..Settings::clone(&self.settings) };
        let session = SessionHandle::open(Arc::clone(&self.session.pool), &settings).await?;
        Ok(Self::over(session, settings))
    }

    /// Takes the lock of a key, waiting for its turn without limit. It fails as unreachable after
    /// 30 s without contact, unless the builder says otherwise.
    ///
    /// Cancel safe: dropping the future leaves the queue (and loses the place in it).
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`], [`ErrorKind::Conflict`], [`ErrorKind::Quota`],
    /// [`ErrorKind::Draining`], [`ErrorKind::Denied`], [`ErrorKind::Invalid`] for a key of 0 or
    /// more than 512 bytes, [`ErrorKind::Closed`].
    pub async fn lock(&self, key: impl AsRef<[u8]>) -> Result<Guard, Error> {
        self.session.lock(key.as_ref(), Claim::EXCLUSIVE, None).await
    }

    /// Takes the lock of a key if it is free now; `None` if it is busy, or if its node has just
    /// restarted and grants nothing yet.
    ///
    /// Cancel safe, as [`Client::lock`].
    ///
    /// ```no_run
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// if let Some(guard) = client.try_lock("orders/42").await? {
    ///     guard.release().await?;
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Client::lock`].
    pub async fn try_lock(&self, key: impl AsRef<[u8]>) -> Result<Option<Guard>, Error> {
        self.session.try_lock(key.as_ref(), Claim::EXCLUSIVE).await
    }

    /// A named lock with settings of its own. Makes no contact.
    ///
    /// ```no_run
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// let orders = client.mutex("orders/42");
    /// let guard = orders.lock().await?;
    /// # drop(guard);
    /// # Ok(()) }
    /// ```
    pub fn mutex(&self, key: impl AsRef<[u8]>) -> Mutex {
        Mutex::new(Arc::clone(&self.session), key.as_ref())
    }

    /// A named reader-writer lock. Makes no contact.
    ///
    /// ```no_run
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// let guard = client.rwlock("config").read().await?;
    /// # drop(guard);
    /// # Ok(()) }
    /// ```
    pub fn rwlock(&self, key: impl AsRef<[u8]>) -> RwLock {
        RwLock::new(Arc::clone(&self.session), key.as_ref())
    }

    /// A named semaphore of 1 to 2^30 permits. The first holder or waiter sets the capacity; while
    /// it is in use another capacity is refused. Makes no contact.
    ///
    /// ```no_run
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// let guard = client.semaphore("gpu", 8).acquire().await?;
    /// # drop(guard);
    /// # Ok(()) }
    /// ```
    pub fn semaphore(&self, key: impl AsRef<[u8]>, capacity: u32) -> Semaphore {
        Semaphore::new(Arc::clone(&self.session), key.as_ref(), capacity)
    }

    /// Looks at a key: holders, waiters, node. Advisory: it may be out of date as it arrives.
    ///
    /// Cancel safe: it changes nothing.
    ///
    /// ```no_run
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// let seen = client.inspect("orders/42").await?;
    /// for holder in seen.holders {
    ///     println!("{:?} holds it under fence {}", holder.label, holder.fence);
    /// }
    /// println!("{} queued", seen.waiter_count);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`], [`ErrorKind::Invalid`], [`ErrorKind::Closed`].
    pub async fn inspect(&self, key: impl AsRef<[u8]>) -> Result<Inspection, Error> {
        self.admin().inspect(key).await
    }

    /// Listings, nodes and routes, and ending holds by force. Makes no contact.
    ///
    /// ```no_run
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// let ended = client.admin().release_by_force("orders/42").await?;
    /// println!("{ended} holds ended");
    /// # Ok(()) }
    /// ```
    pub fn admin(&self) -> Admin {
        Admin::new(Arc::clone(&self.session))
    }

    /// The namespace of the identity: keys of different namespaces never meet.
    ///
    /// ```no_run
    /// # fn example(client: lockring_client::Client) {
    /// println!("locks of {}, held for {:?} without contact", client.namespace(), client.ttl());
    /// # }
    /// ```
    pub fn namespace(&self) -> &str {
        self.session.namespace.as_str()
    }

    /// The session's TTL, as the node gave it when the client connected: the one asked for, or the
    /// highest of the namespace if that is lower. A node that was restarted with another highest
    /// value may change it; [`Guard::ttl`] says the one that holds.
    pub fn ttl(&self) -> Duration {
        self.session.ttl
    }

    /// Turns a hold into a token that another process can end or renew. The session stays alive
    /// for its TTL; call [`Client::leave`] next, not [`Client::close`]. Makes no contact.
    ///
    /// ```no_run
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// let guard = client.lock("handoff").await?;
    /// let token = client.into_token(guard);
    /// println!("{token}"); // for the process that goes on
    /// client.leave().await;
    /// # Ok(()) }
    /// ```
    pub fn into_token(&self, guard: Guard) -> Token {
        let (key, fence, ttl) = (guard.key().to_vec(), guard.fence(), guard.ttl());
        guard.forget();
        Token { session: self.session.id, ttl, fence, key }
    }

    /// Takes up the hold of a token. The client must have been built with the token's session.
    ///
    /// Not cancel safe: as its guard has no owner then, a dropped future may release the lock.
    ///
    /// ```no_run
    /// # use lockring_client::{Client, Error, Token};
    /// # async fn example(url: &str, token: Token) -> Result<(), Error> {
    /// let builder = Client::builder().session(token.session()).ttl(token.ttl());
    /// let client = builder.connect(url).await?;
    /// let guard = client.adopt(&token).await?;
    /// guard.release().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the token is of another session, [`ErrorKind::Unreachable`],
    /// [`ErrorKind::Denied`], [`ErrorKind::Closed`]; what is left of the hold shows when it is
    /// released.
    pub async fn adopt(&self, token: &Token) -> Result<Guard, Error> {
        if token.session != self.session.id {
            return Err(Error::new(ErrorKind::Invalid, "the token is of another session"));
        }
        self.session.adopt(token).await
    }

    /// Ends the session: everything it holds or waits for is given up before this returns, if the
    /// nodes answer within two seconds; otherwise its leases end by themselves. Clones of the
    /// client are closed with it.
    ///
    /// Cancel safe: once begun the session ends, and a dropped future only does not wait for it.
    pub async fn close(&self) {
        self.session.close(true).await;
    }

    /// Ends the connections but not the session: what it holds stays held for its TTL, for a
    /// process that takes it up by a [`Token`].
    ///
    /// Cancel safe, as [`Client::close`].
    pub async fn leave(&self) {
        self.session.close(false).await;
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("session", &self.session.id)
            .field("namespace", &self.session.namespace)
            .finish_non_exhaustive()
    }
}
