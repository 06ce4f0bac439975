//! Errors, and what state they leave.

use crate::cause::Trouble;
use crate::context::ContextError;
use crate::identity::ResolveError;
use crate::kind::ErrorKind;
use crate::session::{Loss, NotGranted};
use crate::target::TargetError;
use crate::tls::BundleError;
use lockring_proto::{BlockedReason, Refusal, RefusalKind, Reply, Shown};
use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

/// Why a claim was not granted, and what prevented contact meanwhile.
#[derive(Clone, Debug)]
pub(crate) struct Denial {
    pub(crate) reason: NotGranted,
    pub(crate) trouble: Option<Trouble>,
}

/// An error of the client. Its text is one line of visible characters, whatever a peer has put into
/// it: see [`lockring_proto::Shown`].
///
/// ```no_run
/// # use lockring_client::Client;
/// use lockring_client::{Error, ErrorKind};
/// # async fn example(client: Client) -> Result<(), Error> {
/// match client.lock("orders/42").await {
///     Ok(guard) => guard.release().await?,
///     Err(error) if error.kind() == ErrorKind::Conflict => eprintln!("a semaphore: {error}"),
///     Err(error) if error.is_retryable() => eprintln!("later: {error}"),
///     Err(error) => return Err(error),
/// }
/// # Ok(()) }
/// ```
///
/// An order by force whose answer was lost is the one thing that the caller has to look after:
///
/// ```no_run
/// # use lockring_client::{Client, Error};
/// # async fn example(client: Client) -> Result<(), Error> {
/// match client.admin().release_by_force("orders/42").await {
///     Ok(ended) => println!("{ended} holds ended"),
///     Err(error) if error.is_indeterminate() => {
///         let left = client.inspect("orders/42").await?.holder_count;
///         println!("{error}: {left} holds are left");
///     }
///     Err(error) => return Err(error),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    blocked: Option<Blocked>,
    maybe: bool,
    /// Trying again does not help, whatever the kind.
    hopeless: bool,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// Why a claim was not granted at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Blocked {
    /// Somebody holds the key.
    #[non_exhaustive]
    Held {
        /// Highest fence among the holders.
        fence: u64,
        /// Claims that are queued.
        waiters: u32,
    },
    /// Nobody holds it, but earlier claims are queued.
    #[non_exhaustive]
    Queue {
        /// Claims that are queued.
        waiters: u32,
    },
    /// The node waits until the leases of its earlier life have surely ended.
    #[non_exhaustive]
    Grace {
        /// For this long.
        left: Duration,
    },
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let maybe = kind == ErrorKind::Unreachable;
        Self { kind, message: message.into(), blocked: None, maybe, hopeless: false, source: None }
    }

    fn config(error: impl StdError + Send + Sync + 'static) -> Self {
        let mut new = Self::new(ErrorKind::Config, error.to_string());
        new.source = Some(Box::new(error));
        new
    }

    /// The session has ended.
    pub(crate) fn over(loss: Loss) -> Self {
        match loss {
            Loss::Closed => Self::new(ErrorKind::Closed, "the client is closed"),
            loss => Self::new(ErrorKind::Closed, format!("the session has ended: {loss}")),
        }
    }

    /// An answer to another question.
    pub(crate) fn unexpected(reply: &Reply) -> Self {
        let message = format!("the node gave an answer that does not fit: {reply:?}");
        Self::new(ErrorKind::Unreachable, message)
    }

    /// The ring changed faster than a call could follow it.
    pub(crate) fn keeps_moving() -> Self {
        let message = "the key's node kept changing while it was asked for: try again";
        Self { maybe: false, ..Self::new(ErrorKind::Unreachable, message) }
    }

    /// There is no contact, for a reason that is known.
    pub(crate) fn of_trouble(trouble: Trouble) -> Self {
        Self::new(trouble.kind, trouble.message)
    }

    /// Nobody answered for too long. The kind says why, if the client knows.
    pub(crate) fn unanswered(trouble: Option<Trouble>) -> Self {
        let trouble = trouble.unwrap_or_else(|| Trouble::passing(""));
        let colon = if trouble.message.is_empty() { "" } else { ": " };
        let message = format!("no node answered for too long{colon}{}", trouble.message);
        Self { maybe: true, ..Self::new(trouble.kind, message) }
    }

    /// A release that nobody has answered.
    pub(crate) fn unconfirmed(held_for: Duration) -> Self {
        let message = format!(
            "no node has confirmed the release: the lock may still be held until its lease ends \
             there, {:.1} s from now; it is given back at once if there is contact before",
            held_for.as_secs_f64()
        );
        Self::new(ErrorKind::Unreachable, message)
    }

    /// The link ended with a request under way: the answer, if there was one, is lost.
    pub(crate) fn closed_meanwhile() -> Self {
        let mut new = Self::new(
            ErrorKind::Closed,
            "the client was closed before the node's word on it came: it may have been done",
        );
        new.maybe = true;
        new
    }

    /// An order by force whose answer is lost. It names no fence, so nobody repeats it unasked: the
    /// second would end a hold that came after the first.
    pub(crate) fn forced_unanswered() -> Self {
        Self::new(
            ErrorKind::Unreachable,
            "the node's answer to the forced release did not come: it may have been carried out; \
             look with `inspect`, and repeat it if needed",
        )
    }

    /// The lock was not held any more; why, if it is known.
    pub(crate) fn lost(loss: Option<Loss>, maybe_released: bool) -> Self {
        let message = match loss {
            Some(loss) => format!("the lock was lost: {loss}"),
            None if maybe_released => "the release was sent again, as the connection broke or the \
                 lock's node changed, and nothing was held then: it was released, or lost before"
                .to_owned(),
            None => "the lock was not held any more".to_owned(),
        };
        let mut new = Self::new(ErrorKind::Lost, message);
        new.maybe = maybe_released;
        new
    }

    pub(crate) fn refused(refusal: Refusal) -> Self {
        let kind = match refusal.kind {
            RefusalKind::KindConflict => ErrorKind::Conflict,
            RefusalKind::Quota => ErrorKind::Quota,
            RefusalKind::Draining | RefusalKind::Unavailable => ErrorKind::Draining,
            RefusalKind::Denied | RefusalKind::ForeignSession => ErrorKind::Denied,
            RefusalKind::Malformed => ErrorKind::Invalid,
            RefusalKind::Protocol => ErrorKind::Version,
            RefusalKind::Superseded => ErrorKind::Closed,
        };
        Self::new(kind, Shown(refusal.message).to_string())
    }

    pub(crate) fn not_granted(Denial { reason, trouble }: Denial) -> Self {
        let known = trouble.as_ref().map(|trouble| trouble.kind);
        let known = known.filter(|kind| *kind != ErrorKind::Unreachable);
        let because = trouble.map_or_else(String::new, |trouble| format!(" ({})", trouble.message));
        match reason {
            NotGranted::Busy(blocked) | NotGranted::TimedOut(Some(blocked)) => {
                let blocked = Blocked::of(blocked);
                let mut new = Self::new(ErrorKind::Timeout, blocked.to_string());
                new.blocked = Some(blocked);
                new
            }
            NotGranted::TimedOut(None) => {
                let message = format!("no node answered within the wait{because}");
                Self { maybe: true, ..Self::new(known.unwrap_or(ErrorKind::Timeout), message) }
            }
            NotGranted::Refused(refusal) => Self::refused(refusal),
            NotGranted::Unreachable => {
                let message = format!(
                    "no node answered for too long{because}; the claim is undone when there is \
                     contact again"
                );
                let kind = known.unwrap_or(ErrorKind::Unreachable);
                Self { maybe: true, ..Self::new(kind, message) }
            }
            NotGranted::Moved => Self::keeps_moving(),
            NotGranted::NotHeld => {
                Self::new(ErrorKind::Lost, "the node does not hold it for this session any more")
            }
            NotGranted::TooLate => Self::new(
                ErrorKind::Unreachable,
                "the grant came when its lease was over already, and was given back: the path to \
                 the node is too slow for this TTL; use one of at least three round trips",
            ),
            NotGranted::Ended(loss) => Self::over(loss),
        }
    }

    /// The kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Trying again does not help, however often.
    pub(crate) fn for_good(mut self) -> Self {
        self.hopeless = true;
        self
    }

    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        !self.hopeless
            && matches!(
                self.kind,
                ErrorKind::Timeout
                    | ErrorKind::Unreachable
                    | ErrorKind::Draining
                    | ErrorKind::Quota
            )
    }

    /// Whether the request may have taken effect all the same. The client itself sees to claims
    /// and releases, or the lease ends them; after a forced release look with
    /// [`crate::Client::inspect`].
    pub fn is_indeterminate(&self) -> bool {
        self.maybe
    }

    /// Fence of the holder that stood in the way, the highest of several.
    ///
    /// ```no_run
    /// # async fn example(client: lockring_client::Client) {
    /// use std::time::Duration;
    /// let orders = client.mutex("orders/42").wait(Duration::from_secs(1));
    /// if let Err(error) = orders.lock().await
    ///     && let Some(fence) = error.holder()
    /// {
    ///     println!("the holder writes under fence {fence}");
    /// }
    /// # }
    /// ```
    pub fn holder(&self) -> Option<u64> {
        match self.blocked {
            Some(Blocked::Held { fence, .. }) => Some(fence),
            _ => None,
        }
    }

    /// Why the claim had to wait, if that is what the error is about.
    ///
    /// ```no_run
    /// # async fn example(error: lockring_client::Error) {
    /// use lockring_client::Blocked;
    /// match error.blocked() {
    ///     Some(Blocked::Held { waiters, .. }) => println!("held, {waiters} queued"),
    ///     Some(Blocked::Queue { waiters, .. }) => println!("{waiters} queued"),
    ///     Some(Blocked::Grace { left, .. }) => println!("restarted, {left:?} to go"),
    ///     _ => println!("not about waiting: {error}"),
    /// }
    /// # }
    /// ```
    pub fn blocked(&self) -> Option<Blocked> {
        self.blocked
    }
}

impl Blocked {
    fn of(reason: BlockedReason) -> Self {
        match reason {
            BlockedReason::Held { fence, waiters } => Self::Held { fence: fence.0, waiters },
            BlockedReason::Queue { waiters } => Self::Queue { waiters },
            BlockedReason::Grace { left_ms } => {
                Self::Grace { left: Duration::from_millis(left_ms) }
            }
        }
    }
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held { fence, waiters } => {
                write!(f, "held under fence {fence}, {waiters} queued")
            }
            Self::Queue { waiters } => write!(f, "{waiters} are queued"),
            Self::Grace { left } => write!(
                f,
                "the node has restarted and grants nothing for {:.1} s more, until every earlier \
                 lease has surely ended",
                left.as_secs_f64()
            ),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<TargetError> for Error {
    fn from(error: TargetError) -> Self {
        Self::config(error)
    }
}

impl From<ResolveError> for Error {
    fn from(error: ResolveError) -> Self {
        Self::config(error)
    }
}

impl From<BundleError> for Error {
    fn from(error: BundleError) -> Self {
        Self::config(error)
    }
}

impl From<ContextError> for Error {
    fn from(error: ContextError) -> Self {
        Self::config(error)
    }
}
