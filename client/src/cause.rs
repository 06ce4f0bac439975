//! Why there is no contact with a node, as far as a client can tell, and what to do about it.

use crate::kind::ErrorKind;
use lockring_proto::Shown;
use quinn::ConnectionError;
use std::fmt;
use std::time::Duration;

/// Codes of QUIC that carry an alert of TLS begin here (RFC 9001, section 4.8).
const ALERTS: std::ops::Range<u64> = 0x100..0x200;

/// Alerts of TLS (RFC 8446, section 6.2; the last one of RFC 7301).
mod alert {
    pub const BAD_CERTIFICATE: u64 = 42;
    pub const CERTIFICATE_EXPIRED: u64 = 45;
    pub const CERTIFICATE_UNKNOWN: u64 = 46;
    pub const UNKNOWN_CA: u64 = 48;
    pub const ACCESS_DENIED: u64 = 49;
    pub const DECRYPT_ERROR: u64 = 51;
    pub const CERTIFICATE_REQUIRED: u64 = 116;
    pub const NO_APPLICATION_PROTOCOL: u64 = 120;
}

/// Why there is no contact with a node. The fields have words as they came, the text has them as
/// [`Shown`] prints them.
///
/// ```
/// use lockring_client::ErrorKind;
/// use lockring_client::wire::Cause;
///
/// assert_eq!(Cause::Refused.kind(), ErrorKind::Unreachable);
/// assert_eq!(Cause::OtherProtocol.kind(), ErrorKind::Config);
/// println!("{}", Cause::Refused);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// The name leads to no address; what the system said.
    Unresolvable(String),
    /// The network has no way there; what the system said.
    NoRoute(String),
    /// Nothing came back for this long.
    Silent(Duration),
    /// The machine is there, and nothing listens at the port.
    Refused,
    /// The node takes no connections now.
    Busy,
    /// Something else than a node listens there.
    OtherProtocol,
    /// The node's certificate is not of the authority that our identity trusts.
    NodeForeign,
    /// By the clock of this machine the node's certificate has expired, or is not valid yet; what
    /// the TLS library said.
    NodeOutOfDate(String),
    /// What is there shows a certificate that is not a node's; what the TLS library said.
    NotANode(String),
    /// By the clock of the node our certificate has expired, or is not valid yet.
    OursOutOfDate,
    /// Our certificate is not of the authority that the node trusts.
    OursForeign,
    /// The node does not take our certificate; the number of its alert.
    OursRefused(u64),
    /// Anything else, in the words of the QUIC library.
    Other(String),
}

impl Cause {
    /// The cause of a connection's end. `None`: it says nothing about how the node is reached.
    pub(crate) fn of(error: &ConnectionError) -> Option<Self> {
        match error {
            ConnectionError::VersionMismatch => Some(Self::OtherProtocol),
            ConnectionError::TransportError(ours) => {
                alert(ours.code.into()).map(|alert| Self::by_us(alert, &ours.reason))
            }
            ConnectionError::ConnectionClosed(theirs) => match u64::from(theirs.error_code) {
                code if code == quinn::TransportErrorCode::CONNECTION_REFUSED.into() => {
                    Some(Self::Busy)
                }
                code => alert(code).and_then(Self::by_node),
            },
            _ => None,
        }
    }

    /// Why we do not take what the node showed.
    fn by_us(alert: u64, reason: &str) -> Self {
        match alert {
            alert::NO_APPLICATION_PROTOCOL => Self::OtherProtocol,
            alert::UNKNOWN_CA | alert::DECRYPT_ERROR => Self::NodeForeign,
            alert::CERTIFICATE_EXPIRED => Self::NodeOutOfDate(reason.to_owned()),
            alert::BAD_CERTIFICATE..=alert::ACCESS_DENIED => Self::NotANode(reason.to_owned()),
            _ => Self::Other(reason.to_owned()),
        }
    }

    /// Why the node does not take us.
    fn by_node(alert: u64) -> Option<Self> {
        match alert {
            alert::NO_APPLICATION_PROTOCOL => Some(Self::OtherProtocol),
            alert::CERTIFICATE_EXPIRED => Some(Self::OursOutOfDate),
            alert::UNKNOWN_CA | alert::DECRYPT_ERROR => Some(Self::OursForeign),
            alert::BAD_CERTIFICATE..=alert::CERTIFICATE_UNKNOWN
            | alert::ACCESS_DENIED
            | alert::CERTIFICATE_REQUIRED => Some(Self::OursRefused(alert)),
            _ => None,
        }
    }

    /// The kind of error that a call ends with for this: what we refuse is a wrong setting, what
    /// the node refuses is denied, and only what may pass is unreachable.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::OtherProtocol
            | Self::NodeForeign
            | Self::NodeOutOfDate(_)
            | Self::NotANode(_) => ErrorKind::Config,
            Self::OursOutOfDate | Self::OursForeign | Self::OursRefused(_) => ErrorKind::Denied,
            _ => ErrorKind::Unreachable,
        }
    }

    /// How much it says: of several addresses the one that somebody answered at is of interest.
    pub(crate) fn weight(&self) -> u8 {
        match self {
            Self::Unresolvable(_) => 0,
            Self::NoRoute(_) => 1,
            Self::Silent(_) | Self::Other(_) => 2,
            Self::Refused => 3,
            _ => 4,
        }
    }
}

fn alert(code: u64) -> Option<u64> {
    ALERTS.contains(&code).then(|| code - ALERTS.start)
}

impl fmt::Display for Cause {
    /// What is the matter, and the next step.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unresolvable(why) => write!(
                f,
                "the name cannot be resolved ({}): check it, and the name service of this \
                 machine; --endpoints names another",
                Shown(why)
            ),
            Self::NoRoute(why) => write!(
                f,
                "there is no way to it ({}): check the address, and this machine's network, VPN \
                 and firewall",
                Shown(why)
            ),
            Self::Silent(span) => write!(
                f,
                "no answer at all within {} s: UDP to this port may be blocked on the way (let it \
                 through the firewalls), or the machine is off",
                span.as_secs()
            ),
            Self::Refused => f.write_str(
                "nothing listens at this port; is a node running there? `lockring dev` starts one, \
                 --endpoints names another",
            ),
            Self::Busy => f.write_str("the node takes no more connections now: try again later"),
            Self::OtherProtocol => f.write_str(
                "something else than a lockring node listens there, it speaks another protocol: \
                 correct the port",
            ),
            Self::NodeForeign => f.write_str(
                "the node's certificate is not of the authority that this identity trusts: the \
                 identity is of another cluster; name that of this one with --identity, or correct \
                 the address",
            ),
            Self::NodeOutOfDate(why) => write!(
                f,
                "the node's certificate is out of date by this machine's clock ({}): check the \
                 clock; else remove node.pem and node.key at the node and start it again, which \
                 makes new ones",
                Shown(why)
            ),
            Self::NotANode(why) => write!(
                f,
                "what answers there does not show the certificate of a node ({}): correct the \
                 address, or give the node a certificate of its own",
                Shown(why)
            ),
            Self::OursOutOfDate => f.write_str(
                "the certificate of this identity is out of date by the node's clock: get a new \
                 one, by `lockring cert client NAME --data-dir DIR` at the node, or correct the \
                 clock",
            ),
            Self::OursForeign => f.write_str(
                "the node does not know the authority that issued this identity: name one of its \
                 own cluster with --identity",
            ),
            Self::OursRefused(alert) => write!(
                f,
                "the node does not take the certificate of this identity (TLS alert {alert}): get \
                 a new one, by `lockring cert client NAME --data-dir DIR` at the node"
            ),
            Self::Other(why) => write!(f, "{}", Shown(why)),
        }
    }
}

/// What prevents contact, as callers are told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) kind: ErrorKind,
    pub(crate) message: String,
}

impl Trouble {
    /// One that may pass.
    pub(crate) fn passing(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Unreachable, message: message.into() }
    }
}
