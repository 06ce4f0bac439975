//! The locks of one namespace, to look at or to end by force.

use crate::client::unexpected;
use crate::error::Error;
use crate::link::{Place, Query};
use crate::router::WorkerId;
use crate::session::Session;
use lockring_proto::{Inspection, ListCursor, Listing, Reply};
use std::fmt;
use std::sync::Arc;

/// The locks of a namespace, as an operator sees them, by
/// [`Client::of_namespace`](crate::Client::of_namespace). Whatever is asked of a namespace that is
/// not the client's own needs the role of an operator ([`Denied`](crate::ErrorKind::Denied) without
/// it).
///
/// ```no_run
/// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
/// use lockring_client::Namespaced;
/// let team: Namespaced = client.of_namespace("team-a");
/// if team.inspect("orders/42").await?.holder_count > 0 {
///     team.release_by_force("orders/42").await?;
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Namespaced {
    session: Arc<Session>,
    /// Empty: the session's own.
    namespace: String,
}

impl Namespaced {
    pub(crate) fn new(session: Arc<Session>, namespace: String) -> Self {
        Self { session, namespace }
    }

    fn place(&self, key: &[u8]) -> Place {
        Place { namespace: self.namespace.clone(), key: key.to_vec() }
    }

    /// As [`Client::inspect`](crate::Client::inspect).
    ///
    /// ```no_run
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// let seen = client.of_namespace("team-a").inspect("orders/42").await?;
    /// println!("{} in line", seen.waiter_count);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Client::inspect`](crate::Client::inspect), and `Denied` without the role.
    pub async fn inspect(&self, key: impl AsRef<[u8]>) -> Result<Inspection, Error> {
        let key = key.as_ref();
        let query = Query::Inspect(self.place(key));
        match self.session.query_key(&self.namespace, key, query).await? {
            Reply::Inspected { inspection, .. } => Ok(*inspection),
            other => Err(unexpected(&other)),
        }
    }

    /// As [`Client::list`](crate::Client::list).
    ///
    /// ```no_run
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// use lockring_client::proto::ListCursor;
    /// let team = client.of_namespace("team-a");
    /// for worker in client.workers() {
    ///     let page = team.list(worker, b"orders/", ListCursor::default(), 90).await?;
    ///     println!("{} keys", page.rows.len());
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Client::list`](crate::Client::list), and `Denied` without the role.
    pub async fn list(
        &self,
        worker: WorkerId,
        prefix: &[u8],
        cursor: ListCursor,
        rows: u32,
    ) -> Result<Listing, Error> {
        let namespace = self.namespace.clone();
        let query = Query::List { namespace, cursor, rows, prefix: prefix.to_vec() };
        match self.session.query(worker, query).await? {
            Reply::Listed { listing, .. } => Ok(*listing),
            other => Err(unexpected(&other)),
        }
    }

    /// As [`Client::release_by_force`](crate::Client::release_by_force).
    ///
    /// ```no_run
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// let ended = client.of_namespace("team-a").release_by_force("orders/42").await?;
    /// println!("{ended} holds ended");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Client::release_by_force`](crate::Client::release_by_force).
    pub async fn release_by_force(&self, key: impl AsRef<[u8]>) -> Result<u32, Error> {
        let key = key.as_ref();
        let query = Query::Force(self.place(key));
        match self.session.query_key(&self.namespace, key, query).await? {
            Reply::Forced { ended, .. } => Ok(ended),
            other => Err(unexpected(&other)),
        }
    }
}

impl fmt::Debug for Namespaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Namespaced").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}
