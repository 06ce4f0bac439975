//! Where a cluster is: `lockring://HOST:PORT[,HOST:PORT...][?identity=FILE]`.
//!
//! ```
//! use lockring_client::target::{Host, Seed, Target, TargetError};
//!
//! # fn main() -> Result<(), TargetError> {
//! let target: Target = "lockring://10.0.0.7,node-2:7430?identity=my%20client.pem".parse()?;
//! assert_eq!(target.seeds[0].to_string(), "10.0.0.7:7420");
//! assert_eq!(target.seeds[1], Seed { host: Host::Name("node-2".to_owned()), port: 7430 });
//! assert_eq!(target.identity, Some("my client.pem".into()));
//!
//! let error: TargetError = "redis://10.0.0.7".parse::<Target>().unwrap_err();
//! assert_eq!(error.why, "it does not begin with lockring://");
//! # Ok(()) }
//! ```

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

/// The port of a node, if none is named.
const DEFAULT_PORT: u16 = 7420;

const SCHEME: &str = "lockring://";
const HOST_BYTES_MAX: usize = 253;

/// A cluster to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Nodes to ask for the ring, any of which will do. Never empty.
    pub seeds: Vec<Seed>,
    /// The client's bundle of certificates, if the URL names one.
    pub identity: Option<PathBuf>,
}

/// The address of one node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Seed {
    /// The machine.
    pub host: Host,
    /// The UDP port.
    pub port: u16,
}

/// A machine, by address or by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address.
    Ip(IpAddr),
    /// A name to be resolved.
    Name(String),
}

/// Why a text does not say where a cluster is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a cluster address: {why}; use lockring://HOST:PORT[,HOST:PORT...]")]
pub struct TargetError {
    /// The text, or the part of it that is wrong.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl TargetError {
    fn new(text: &str, why: &'static str) -> Self {
        Self { text: text.to_owned(), why }
    }
}

impl Host {
    /// A host as a node gives it in the ring: an address, of version 6 without brackets, or a name.
    pub(crate) fn of_ring(text: &str) -> Option<Self> {
        text.parse().map_or_else(|_| named_host(text).ok(), |ip| Some(Self::Ip(ip)))
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(url: &str) -> Result<Self, TargetError> {
        let rest = url
            .strip_prefix(SCHEME)
            .ok_or_else(|| TargetError::new(url, "it does not begin with lockring://"))?;
        let (hosts, query) = match rest.split_once('?') {
            Some((hosts, query)) => (hosts, Some(query)),
            None => (rest, None),
        };
        let hosts = hosts.strip_suffix('/').unwrap_or(hosts);
        if hosts.is_empty() {
            return Err(TargetError::new(url, "it names no host"));
        }
        let seeds = hosts.split(',').map(str::parse).collect::<Result<_, _>>()?;
        Ok(Self { seeds, identity: query.map_or(Ok(None), parse_query)? })
    }
}

fn parse_query(query: &str) -> Result<Option<PathBuf>, TargetError> {
    let mut identity = None;
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let value = parameter
            .strip_prefix("identity=")
            .ok_or_else(|| TargetError::new(parameter, "the only parameter is identity=FILE"))?;
        if value.is_empty() {
            return Err(TargetError::new(parameter, "identity names no file"));
        }
        if identity.replace(PathBuf::from(percent_decoded(value)?)).is_some() {
            return Err(TargetError::new(query, "identity is given twice"));
        }
    }
    Ok(identity)
}

/// Undoes `%20` and the like, by which a URL carries `&`, `?` or blanks of a file name.
fn percent_decoded(text: &str) -> Result<String, TargetError> {
    let wrong = || TargetError::new(text, "a % must be followed by two hexadecimal digits");
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).ok_or_else(wrong)?;
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| wrong())?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    let not_text = |_| TargetError::new(text, "the % codes are not UTF-8 text");
    let decoded = String::from_utf8(bytes).map_err(not_text)?;
    if decoded.contains('\0') {
        return Err(TargetError::new(text, "a file name cannot hold a zero byte"));
    }
    Ok(decoded)
}

impl FromStr for Seed {
    type Err = TargetError;

    /// Reads `HOST`, `HOST:PORT`, `[IPV6]` or `[IPV6]:PORT`.
    fn from_str(text: &str) -> Result<Self, TargetError> {
        let (host, port) = Host::with_port(text)?;
        Ok(Self { host, port: port.unwrap_or(DEFAULT_PORT) })
    }
}

impl Host {
    /// Reads `HOST`, `HOST:PORT`, `[IPV6]` or `[IPV6]:PORT`.
    ///
    /// ```
    /// use lockring_client::target::{Host, TargetError};
    ///
    /// # fn main() -> Result<(), TargetError> {
    /// let (host, port) = Host::with_port("[2001:db8::7]:7430")?;
    /// assert_eq!((host.to_string().as_str(), port), ("[2001:db8::7]", Some(7430)));
    /// assert_eq!(Host::with_port("locks.example.net")?.1, None);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// When it is neither an address nor a name, or the port is none.
    pub fn with_port(text: &str) -> Result<(Self, Option<u16>), TargetError> {
        let wrong = |why| TargetError::new(text, why);
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (address, after) =
                rest.split_once(']').ok_or_else(|| wrong("the bracket is not closed"))?;
            let address: Ipv6Addr = address
                .parse()
                .map_err(|_| wrong("what stands in brackets is not an IPv6 address"))?;
            let port = match after.strip_prefix(':') {
                None if !after.is_empty() => return Err(wrong("only :PORT may follow a bracket")),
                port => port,
            };
            (Host::Ip(address.into()), port)
        } else {
            let (host, port) = match text.split_once(':') {
                Some((_, port)) if port.contains(':') => {
                    return Err(wrong("an IPv6 address must stand in brackets"));
                }
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            };
            (named_host(host).map_err(wrong)?, port)
        };
        Ok((host, port.map(parse_port).transpose().map_err(wrong)?))
    }
}

fn named_host(host: &str) -> Result<Host, &'static str> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if host.is_empty() {
        return Err("it names no host");
    }
    if host.contains('@') {
        return Err("a user cannot be named; the certificate says who you are");
    }
    if host.len() > HOST_BYTES_MAX || !host.bytes().all(legal) {
        return Err("the host is neither an address nor a name");
    }
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return Ok(Host::Ip(address.into()));
    }
    // No name on the Internet is all digits and dots: this is a mistyped address, which a
    // resolver might read in its own way.
    if host.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return Err("the host is not an IPv4 address");
    }
    Ok(Host::Name(host.to_owned()))
}

fn parse_port(port: &str) -> Result<u16, &'static str> {
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    match port.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err("the port is not a number from 1 to 65535"),
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Self::Ip(address) => write!(f, "{address}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seeds(url: &str) -> Vec<String> {
        let target: Target = url.parse().unwrap();
        target.seeds.iter().map(ToString::to_string).collect()
    }

    fn error(url: &str) -> TargetError {
        url.parse::<Target>().expect_err(url)
    }

    #[test]
    fn reads_addresses_and_names() {
        assert_eq!(seeds("lockring://127.0.0.1:9"), ["127.0.0.1:9"]);
        assert_eq!(seeds("lockring://node-1.example"), ["node-1.example:7420"]);
        assert_eq!(seeds("lockring://[::1],[::2]:8/"), ["[::1]:7420", "[::2]:8"]);
        assert_eq!(seeds("lockring://a:1,10.0.0.1,b:65535"), ["a:1", "10.0.0.1:7420", "b:65535"]);
        let seed: Seed = "10.0.0.1".parse().unwrap();
        assert_eq!(seed.host, Host::Ip(Ipv4Addr::new(10, 0, 0, 1).into()));
    }

    #[test]
    fn reads_the_identity() {
        let identity = |url: &str| url.parse::<Target>().unwrap().identity;
        assert_eq!(identity("lockring://a"), None);
        assert_eq!(identity("lockring://a?"), None);
        assert_eq!(identity("lockring://a?identity=/etc/c.pem"), Some("/etc/c.pem".into()));
        assert_eq!(
            identity("lockring://a/?identity=my%20c%26%C3%A4.pem"),
            Some("my c&ä.pem".into())
        );
        assert_eq!(identity("lockring://a?identity=x=y?z"), Some("x=y?z".into()));
    }

    #[test]
    fn says_what_is_wrong() {
        for (url, why) in [
            ("", "begin with"),
            ("127.0.0.1:7420", "begin with"),
            ("redis://a", "begin with"),
            ("lockring://", "no host"),
            ("lockring:///", "no host"),
            ("lockring://a,", "no host"),
            ("lockring://:7420", "no host"),
            ("lockring://a b", "neither"),
            ("lockring://a/path", "neither"),
            ("lockring://me@a", "user"),
            ("lockring://1.2.3", "not an IPv4"),
            ("lockring://1.2.3.256", "not an IPv4"),
            ("lockring://::1", "brackets"),
            ("lockring://[::1", "not closed"),
            ("lockring://[1.2.3.4]", "not an IPv6"),
            ("lockring://[::1]7420", "only :PORT"),
            ("lockring://a:", "port"),
            ("lockring://a:0", "port"),
            ("lockring://a:65536", "port"),
            ("lockring://a:+1", "port"),
            ("lockring://a?user=x", "only parameter"),
            ("lockring://a?identity", "only parameter"),
            ("lockring://a?identity=", "no file"),
            ("lockring://a?identity=b&identity=c", "twice"),
            ("lockring://a?identity=%", "hexadecimal"),
            ("lockring://a?identity=%+1", "hexadecimal"),
            ("lockring://a?identity=%1ä", "hexadecimal"),
            ("lockring://a?identity=%ff", "UTF-8"),
            ("lockring://a?identity=%00", "zero byte"),
        ] {
            let error = error(url);
            assert!(error.why.contains(why), "{url}: {error}");
            assert!(error.to_string().contains("use lockring://HOST:PORT"), "{error}");
        }
        let long = format!("lockring://{}", "a".repeat(254));
        assert!(error(&long).why.contains("neither"));
    }
}
