//! Named locks with settings: mutexes, owners that may re-enter, reader-writer locks, semaphores.

use crate::error::Error;
use crate::guard::Guard;
use crate::handle::SessionHandle;
use crate::kind::ErrorKind;
use lockring_proto::{Claim, Shown};
use std::fmt;
use std::sync::{Arc, Mutex as StdMutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::Mutex as AsyncMutex;

/// A key, and how long claims of it wait: what every named lock is made of.
#[derive(Clone)]
struct Named {
    session: Arc<SessionHandle>,
    key: Arc<[u8]>,
    wait: Option<Duration>,
}

impl Named {
    fn new(session: Arc<SessionHandle>, key: &[u8]) -> Self {
        Self { session, key: key.into(), wait: None }
    }

    async fn claim(&self, wanted: Claim) -> Result<Guard, Error> {
        self.session.lock(&self.key, wanted, self.wait).await
    }

    async fn try_claim(&self, wanted: Claim) -> Result<Option<Guard>, Error> {
        self.session.try_lock(&self.key, wanted).await
    }
}

impl fmt::Debug for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = Shown(&self.key).to_string();
        f.debug_struct("Named").field("key", &key).field("wait", &self.wait).finish_non_exhaustive()
    }
}

/// A named lock.
///
/// ```no_run
/// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
/// use lockring_client::{ErrorKind, Mutex};
/// use std::time::Duration;
/// let orders: Mutex = client.mutex("orders/42").wait(Duration::from_secs(1));
/// match orders.lock().await {
///     Ok(guard) => guard.release().await?,
///     Err(error) if error.kind() == ErrorKind::Timeout => eprintln!("held: {error}"),
///     Err(error) => return Err(error),
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Mutex {
    named: Named,
}

impl Mutex {
    pub(crate) fn new(session: Arc<SessionHandle>, key: &[u8]) -> Self {
        Self { named: Named::new(session, key) }
    }

    /// Waits at most this long for its turn, not at all if it is zero; without limit unless set.
    #[must_use]
    pub fn wait(mut self, limit: Duration) -> Self {
        self.named.wait = Some(limit);
        self
    }

    /// Takes the lock. Cancel safe.
    ///
    /// # Errors
    /// As [`Client::lock`](crate::Client::lock); [`ErrorKind::Timeout`] when the wait is over.
    pub async fn lock(&self) -> Result<Guard, Error> {
        self.named.claim(Claim::EXCLUSIVE).await
    }

    /// Takes the lock if it is free now, whatever the wait; otherwise `None`. Cancel safe.
    ///
    /// ```no_run
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// if let Some(guard) = client.mutex("orders/42").try_lock().await? {
    ///     guard.release().await?;
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Client::lock`](crate::Client::lock).
    pub async fn try_lock(&self) -> Result<Option<Guard>, Error> {
        self.named.try_claim(Claim::EXCLUSIVE).await
    }

    /// An owner of this lock that may enter again while it is inside, up to `limit` times at once;
    /// 0 counts as 1.
    ///
    /// ```no_run
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// let owner = client.mutex("orders/42").reentrant(2);
    /// let level = owner.enter().await?;
    /// # drop(level);
    /// # Ok(()) }
    /// ```
    pub fn reentrant(self, limit: u32) -> Owner {
        Owner { mutex: self, limit, state: Arc::new(AsyncMutex::new(Weak::new())) }
    }
}

/// An owner that may enter its lock again while it is inside. The node sees one hold. Two plain
/// tasks exclude each other: whoever shares the inside shares the owner (it is cheap to clone).
///
/// ```no_run
/// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
/// use lockring_client::{Level, Owner};
/// let owner: Owner = client.mutex("orders/42").reentrant(8);
/// let outer: Level = owner.enter().await?;
/// let inner = owner.enter().await?; // no waiting, same fence
/// assert_eq!(outer.fence(), inner.fence());
/// drop(inner);
/// outer.leave().await?; // the last one out releases
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Owner {
    mutex: Mutex,
    limit: u32,
    state: Arc<AsyncMutex<Weak<Inside>>>,
}

/// What all levels of one stay inside share.
struct Inside {
    guard: StdMutex<Option<Guard>>,
    fence: u64,
}

impl Owner {
    /// Enters: takes the lock, or goes one level deeper. Cancel safe.
    ///
    /// # Errors
    /// As [`Mutex::lock`]; [`ErrorKind::TooDeep`] at the limit; [`ErrorKind::Lost`] when the lock
    /// was lost while inside (leave first, then enter anew).
    pub async fn enter(&self) -> Result<Level, Error> {
        let mut state = self.state.lock().await;
        if let Some(inside) = state.upgrade() {
            // This reference is one itself.
            if Arc::strong_count(&inside) > self.limit as usize {
                let message = format!("entered {} times already", self.limit);
                return Err(Error::new(ErrorKind::TooDeep, message));
            }
            if let Some(error) = inside.why_lost() {
                return Err(error);
            }
            return Ok(Level { inside });
        }
        let guard = self.mutex.lock().await?;
        let fence = guard.fence();
        let inside = Arc::new(Inside { guard: StdMutex::new(Some(guard)), fence });
        *state = Arc::downgrade(&inside);
        Ok(Level { inside })
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owner").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl Inside {
    fn guard(&self) -> std::sync::MutexGuard<'_, Option<Guard>> {
        // Only ever taken or read whole: a panic cannot leave it half changed.
        self.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn why_lost(&self) -> Option<Error> {
        let guard = self.guard();
        let held = guard.as_ref().filter(|guard| guard.is_valid());
        held.is_none().then(|| Error::lost(guard.as_ref().and_then(Guard::lost_reason), false))
    }
}

/// One level inside a re-entrant lock. Dropping the last level releases the lock.
///
/// ```no_run
/// # async fn example(owner: lockring_client::Owner) -> Result<(), lockring_client::Error> {
/// let level = owner.enter().await?;
/// println!("inside under fence {}", level.fence());
/// level.leave().await?;
/// # Ok(()) }
/// ```
#[must_use = "a dropped level leaves at once"]
pub struct Level {
    inside: Arc<Inside>,
}

impl Level {
    /// The fence of the one hold.
    pub fn fence(&self) -> u64 {
        self.inside.fence
    }

    /// Leaves one level; the last one out releases the lock and waits for the node's word.
    ///
    /// Not cancel safe, as [`Guard::release`]: a dropped future has left all the same.
    ///
    /// # Errors
    /// As [`Guard::release`], for the last level.
    pub async fn leave(self) -> Result<(), Error> {
        let Some(inside) = Arc::into_inner(self.inside) else { return Ok(()) };
        let guard = inside.guard.into_inner().unwrap_or_else(PoisonError::into_inner);
        match guard {
            Some(guard) => guard.release().await,
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Level").field("fence", &self.inside.fence).finish()
    }
}

/// A named reader-writer lock: many readers or one writer, in order of arrival.
///
/// ```no_run
/// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
/// use lockring_client::RwLock;
/// use std::time::Duration;
/// let config: RwLock = client.rwlock("config").wait(Duration::from_secs(1));
/// let reading = config.read().await?;
/// reading.release().await?;
/// let writing = config.write().await?;
/// writing.release().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct RwLock {
    named: Named,
}

impl RwLock {
    pub(crate) fn new(session: Arc<SessionHandle>, key: &[u8]) -> Self {
        Self { named: Named::new(session, key) }
    }

    /// Waits at most this long for its turn, not at all if it is zero; without limit unless set.
    #[must_use]
    pub fn wait(mut self, limit: Duration) -> Self {
        self.named.wait = Some(limit);
        self
    }

    /// Shares the lock with other readers. Cancel safe.
    ///
    /// # Errors
    /// As [`Mutex::lock`].
    pub async fn read(&self) -> Result<Guard, Error> {
        self.named.claim(Claim::SHARED).await
    }

    /// Takes the lock alone. Cancel safe.
    ///
    /// # Errors
    /// As [`Mutex::lock`].
    pub async fn write(&self) -> Result<Guard, Error> {
        self.named.claim(Claim::EXCLUSIVE).await
    }

    /// Shares the lock if that is possible now, whatever the wait; otherwise `None`. Cancel safe.
    ///
    /// # Errors
    /// As [`Client::lock`](crate::Client::lock).
    pub async fn try_read(&self) -> Result<Option<Guard>, Error> {
        self.named.try_claim(Claim::SHARED).await
    }

    /// Takes the lock alone if it is free now, whatever the wait; otherwise `None`. Cancel safe.
    ///
    /// ```no_run
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// let config = client.rwlock("config");
    /// if let Some(writing) = config.try_write().await? {
    ///     writing.release().await?;
    /// } else if let Some(reading) = config.try_read().await? {
    ///     reading.release().await?;
    /// }
    /// # Ok(()) }
    /// ```
    /// # Errors
    /// As [`Client::lock`](crate::Client::lock).
    pub async fn try_write(&self) -> Result<Option<Guard>, Error> {
        self.named.try_claim(Claim::EXCLUSIVE).await
    }
}

/// A named semaphore.
///
/// ```no_run
/// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
/// use lockring_client::Semaphore;
/// use std::time::Duration;
/// let gpus: Semaphore = client.semaphore("gpu", 8).wait(Duration::from_secs(60));
/// let one = gpus.acquire().await?;
/// let two = gpus.acquire_many(2).await?; // both or neither
/// two.release().await?;
/// one.release().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Semaphore {
    named: Named,
    capacity: u32,
}

impl Semaphore {
    pub(crate) fn new(session: Arc<SessionHandle>, key: &[u8], capacity: u32) -> Self {
        Self { named: Named::new(session, key), capacity }
    }

    /// Waits at most this long for its turn, not at all if it is zero; without limit unless set.
    #[must_use]
    pub fn wait(mut self, limit: Duration) -> Self {
        self.named.wait = Some(limit);
        self
    }

    fn permits(&self, permits: u32) -> Claim {
        Claim::Permits { permits, capacity: self.capacity }
    }

    /// Takes one permit. Cancel safe.
    ///
    /// # Errors
    /// As [`Mutex::lock`]; [`ErrorKind::Conflict`] when it is in use with another capacity.
    pub async fn acquire(&self) -> Result<Guard, Error> {
        self.acquire_many(1).await
    }

    /// Takes `permits` at once, and gives them back at once. Cancel safe.
    ///
    /// # Errors
    /// As [`Semaphore::acquire`]; [`ErrorKind::Invalid`] for none, or for more than the capacity.
    pub async fn acquire_many(&self, permits: u32) -> Result<Guard, Error> {
        self.named.claim(self.permits(permits)).await
    }

    /// Takes one permit if there is one now, whatever the wait; otherwise `None`. Cancel safe.
    ///
    /// ```no_run
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// if let Some(gpu) = client.semaphore("gpu", 8).try_acquire().await? {
    ///     gpu.release().await?;
    /// }
    /// # Ok(()) }
    /// ```
    /// # Errors
    /// As [`Semaphore::acquire`].
    pub async fn try_acquire(&self) -> Result<Option<Guard>, Error> {
        self.try_acquire_many(1).await
    }

    /// Takes `permits` if there are as many now, whatever the wait; otherwise `None`. Cancel safe.
    ///
    /// ```no_run
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// let gpus = client.semaphore("gpu", 8);
    /// if let Some(all) = gpus.try_acquire_many(8).await? {
    ///     all.release().await?;
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Semaphore::acquire_many`].
    pub async fn try_acquire_many(&self, permits: u32) -> Result<Option<Guard>, Error> {
        self.named.try_claim(self.permits(permits)).await
    }
}
