//! Looking at locks, nodes and routes, and the one drastic remedy: what operators do, by
//! [`Client::admin`](crate::Client::admin).

mod views;

pub use views::{
    Address, Cursor, Holder, Inspection, Listed, LockMode, Node, Page, Ring, Route, Waiter, Worker,
};

use crate::error::Error;
use crate::handle::SessionHandle;
use crate::router::{self, WorkerId};
use crate::session::{Place, Query};
use lockring_proto::{NodeId, Reply};
use std::fmt;
use std::sync::Arc;

/// The locks of a namespace, and the ring. Whatever is asked of a namespace that is not the
/// client's own needs the role of an operator ([`Denied`](crate::ErrorKind::Denied) without it).
///
/// ```no_run
/// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
/// use lockring_client::admin::Admin;
/// let team: Admin = client.admin().of_namespace("team-a");
/// if team.inspect("orders/42").await?.holder_count > 0 {
///     team.release_by_force("orders/42").await?;
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Admin {
    session: Arc<SessionHandle>,
    /// Empty: the session's own.
    namespace: String,
}

impl Admin {
    pub(crate) fn new(session: Arc<SessionHandle>) -> Self {
        Self { session, namespace: String::new() }
    }

    /// The same of another namespace; of the client's own if it is empty. Makes no contact.
    ///
    /// ```no_run
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// let seen = client.admin().of_namespace("team-a").inspect("orders/42").await?;
    /// println!("{} holders", seen.holder_count);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn of_namespace(self, namespace: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), ..self }
    }

    fn place(&self, key: &[u8]) -> Place {
        Place { namespace: self.namespace.clone(), key: key.to_vec() }
    }

    /// Looks at a key, as [`Client::inspect`](crate::Client::inspect).
    ///
    /// Cancel safe: it changes nothing.
    ///
    /// ```no_run
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// let seen = client.admin().of_namespace("team-a").inspect("orders/42").await?;
    /// println!("{} queued", seen.waiter_count);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Client::inspect`](crate::Client::inspect), and `Denied` without the role.
    pub async fn inspect(&self, key: impl AsRef<[u8]>) -> Result<Inspection, Error> {
        let key = key.as_ref();
        let query = Query::Inspect(self.place(key));
        match self.session.query_key(key, query).await? {
            Reply::Inspected { inspection, .. } => Ok(Inspection::of(*inspection)),
            other => Err(Error::unexpected(&other)),
        }
    }

    /// A page of the locks of one worker whose keys begin with `prefix`, in no order: at most
    /// `rows`, and never more than 90. Advisory: it may be out of date as it arrives.
    ///
    /// Cancel safe: it changes nothing.
    ///
    /// ```no_run
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// use lockring_client::admin::Cursor;
    /// let admin = client.admin();
    /// for worker in admin.ring().iter().flat_map(|ring| ring.workers()) {
    ///     let mut next = Some(Cursor::default());
    ///     while let Some(cursor) = next {
    ///         let page = admin.list(worker, b"orders/", cursor, 90).await?;
    ///         for lock in page.locks {
    ///             println!("{}: {} queued", lock.key.escape_ascii(), lock.waiter_count);
    ///         }
    ///         next = page.next;
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Unreachable`](crate::ErrorKind::Unreachable), [`Closed`](crate::ErrorKind::Closed), and
    /// `Denied` without the role.
    pub async fn list(
        &self,
        worker: Worker,
        prefix: &[u8],
        cursor: Cursor,
        rows: u32,
    ) -> Result<Page, Error> {
        let namespace = self.namespace.clone();
        let query = Query::List { namespace, cursor: cursor.0, rows, prefix: prefix.to_vec() };
        let worker = WorkerId { node: NodeId(worker.node), worker: worker.worker };
        match self.session.query(worker, query).await? {
            Reply::Listed { listing, .. } => Ok(Page::of(*listing)),
            other => Err(Error::unexpected(&other)),
        }
    }

    /// Ends every hold of a key, whoever has it, and says how many. The next fence is higher.
    ///
    /// Not cancel safe: a dropped future leaves unknown whether it was carried out.
    ///
    /// ```no_run
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// let ended = client.admin().release_by_force("orders/42").await?;
    /// println!("{ended} holds ended; their guards are lost");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Unreachable`](crate::ErrorKind::Unreachable), and then it may have been carried out: it
    /// names no fence, so it is never repeated unasked. [`Denied`](crate::ErrorKind::Denied)
    /// without the role of an operator, [`Invalid`](crate::ErrorKind::Invalid),
    /// [`Closed`](crate::ErrorKind::Closed): nothing was done.
    pub async fn release_by_force(&self, key: impl AsRef<[u8]>) -> Result<u32, Error> {
        let key = key.as_ref();
        let query = Query::Force(self.place(key));
        match self.session.query_key(key, query).await? {
            Reply::Forced { ended, .. } => Ok(ended),
            other => Err(Error::unexpected(&other)),
        }
    }

    /// Where a key of the namespace goes by its copy of the ring. Makes no contact.
    ///
    /// ```no_run
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// let route = client.admin().route("orders/42")?;
    /// println!("node {}, worker {}", route.worker.node, route.worker.worker);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) for a key of 0 or more than 512 bytes.
    pub fn route(&self, key: impl AsRef<[u8]>) -> Result<Route, Error> {
        let router::Route { cell, worker, hash } =
            self.session.route_in(&self.namespace, key.as_ref())?;
        let worker = Worker { node: worker.node.0, worker: worker.worker };
        Ok(Route { position: hash.position, cell: cell.0, worker })
    }

    /// The client's copy of the ring. Makes no contact.
    ///
    /// ```no_run
    /// # fn example(client: lockring_client::Client) {
    /// if let Some(ring) = client.admin().ring() {
    ///     println!("version {} of {} nodes", ring.version, ring.nodes.len());
    /// }
    /// # }
    /// ```
    pub fn ring(&self) -> Option<Ring> {
        let ring = self.session.pool.ring()?;
        let node = |node: &lockring_proto::NodeInfo| Node {
            id: node.id.0,
            addresses: node
                .addresses
                .iter()
                .map(|at| Address { host: at.host.clone(), port: at.port })
                .collect(),
            workers: node.workers,
            boot: node.boot.0,
            cells: ring.cells_of(node.id),
        };
        let nodes = ring.nodes().iter().map(node).collect();
        Some(Ring { version: ring.version().0, cells: ring.bits().cells(), nodes })
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}
