//! Questions, and orders that name no hold of the session.

use super::Outcome;
use crate::claims::LinkId;
use lockring_proto::{ListCursor, Refusal, RefusalKind, Reply, Time};

/// A query that is unanswered.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(super) token: u64,
    /// Of the key that it is about.
    pub(super) cell: Option<u16>,
    /// When the first copy was sent: what is answered may be that one.
    pub(super) sent: Option<Time>,
    /// The ring version that the last copy was routed by; 0: none was sent.
    pub(super) routed: u64,
    pub(super) asked: Time,
    pub(super) query: Query,
}

impl Asked {
    pub(crate) fn cell(&self) -> Option<u16> {
        self.cell
    }

    /// Whether an order was perhaps carried out though this refuses it: its worker was deposed
    /// before it could say so.
    pub(super) fn may_have_run(&self, reply: &Reply) -> bool {
        let is_deposed = |refusal: &Refusal| refusal.kind == RefusalKind::Unavailable;
        matches!(self.query, Query::Force(_))
            && matches!(reply, Reply::Refused { refusal, .. } if is_deposed(refusal))
    }

    /// Its worker is none any more.
    pub(super) fn is_over(&self, link: LinkId) -> Outcome {
        let token = self.token;
        match self.query {
            Query::Force(_) if self.routed > 0 => Outcome::NoAnswer { token, link },
            _ => Outcome::Moved { token },
        }
    }
}

/// A question, or an order that names no hold of this session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// Look at a key.
    Inspect(Place),
    /// A page of locks.
    List {
        /// Of this namespace; empty: the session's own.
        namespace: String,
        /// Where to go on.
        cursor: ListCursor,
        /// Rows wanted.
        rows: u32,
        /// What the keys begin with.
        prefix: Vec<u8>,
    },
    /// End every hold of a key.
    Force(Place),
}

/// A key, and where it lives.
///
/// ```
/// use lockring_client::session::{Place, Query};
/// let of_team = Place { namespace: "team-a".to_owned(), key: b"job".to_vec() };
/// assert_ne!(Query::Inspect(of_team), Query::Inspect(b"job".to_vec().into()));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its namespace; empty: the session's own.
    pub namespace: String,
    /// The key.
    pub key: Vec<u8>,
}

impl From<Vec<u8>> for Place {
    fn from(key: Vec<u8>) -> Self {
        Self { namespace: String::new(), key }
    }
}
