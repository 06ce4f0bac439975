//! What is measured, as named on the command line.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A server to measure: the string it was given as, and what that means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    given: String,
    kind: TargetKind,
}

/// The kinds of target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetKind {
    /// `lockring://HOST:PORT[,...][?identity=FILE]`: a running node. The client reads the rest.
    Lockring {
        /// The whole string.
        url: String,
    },
    /// `lockring+spawn:[PATH][?workers=N]`: a private node.
    LockringSpawn {
        /// The binary; this very one if none.
        path: Option<PathBuf>,
        /// Worker threads, a power of two.
        workers: u16,
    },
    /// `redis://HOST[:PORT]`: a running Redis.
    Redis {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// `redis+spawn:`: a private Redis.
    RedisSpawn,
    /// `echo+spawn:`: the bare transport.
    EchoSpawn,
}

/// A string that names no target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a target: {problem}")]
pub struct TargetError {
    given: String,
    problem: String,
}

const FORMS: &str = "use lockring://HOST:PORT, lockring+spawn:[PATH][?workers=N], redis+spawn:, \
                     redis://HOST:PORT or echo+spawn:";
const REDIS_PORT: u16 = 6379;

impl Target {
    /// What it means.
    pub fn kind(&self) -> &TargetKind {
        &self.kind
    }

    /// The target measured when none is named.
    pub fn own() -> Self {
        let kind = TargetKind::LockringSpawn { path: None, workers: 1 };
        Self { given: "lockring+spawn:".to_owned(), kind }
    }
}

impl fmt::Display for Target {
    /// The string it was given as.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.given)
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(given: &str) -> Result<Self, TargetError> {
        match kind_of(given) {
            Ok(kind) => Ok(Self { given: given.to_owned(), kind }),
            Err(problem) => Err(TargetError { given: given.to_owned(), problem }),
        }
    }
}

fn kind_of(given: &str) -> Result<TargetKind, String> {
    if let Some(rest) = given.strip_prefix("lockring://") {
        return match rest.split('?').next() {
            None | Some("") => Err("name the node, as in lockring://HOST:PORT".to_owned()),
            Some(_) => Ok(TargetKind::Lockring { url: given.to_owned() }),
        };
    }
    if let Some(rest) = given.strip_prefix("lockring+spawn:") {
        return spawned(rest);
    }
    if let Some(rest) = given.strip_prefix("redis://") {
        return redis(rest);
    }
    match given {
        "redis+spawn:" => Ok(TargetKind::RedisSpawn),
        "echo+spawn:" => Ok(TargetKind::EchoSpawn),
        _ if given.starts_with("redis+spawn:") || given.starts_with("echo+spawn:") => {
            Err("nothing may follow the colon".to_owned())
        }
        _ => Err(FORMS.to_owned()),
    }
}

fn spawned(rest: &str) -> Result<TargetKind, String> {
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut workers = 1;
    for option in query.split('&').filter(|option| !option.is_empty()) {
        let Some(number) = option.strip_prefix("workers=") else {
            return Err(format!("unknown option {option:?}; there is workers=N"));
        };
        workers = match number.parse::<u16>() {
            Ok(workers) if workers.is_power_of_two() => workers,
            _ => {
                return Err(format!("workers={number}: use a power of two, as in workers=2"));
            }
        };
    }
    let path = (!path.is_empty()).then(|| PathBuf::from(path));
    Ok(TargetKind::LockringSpawn { path, workers })
}

fn redis(rest: &str) -> Result<TargetKind, String> {
    const FORM: &str = "use redis://HOST:PORT";
    if rest.contains('@') {
        return Err(format!("users and passwords are not supported; {FORM}"));
    }
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?']) {
        return Err(format!("databases and options are not supported; {FORM}"));
    }
    // The brackets of an IPv6 address keep its colons apart from the port's.
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => match port.parse() {
            Ok(port) if port > 0 => (host, port),
            _ => return Err(format!("{port:?} is not a port; {FORM}")),
        },
        _ => (authority, REDIS_PORT),
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = match bare {
        Some(address) => address,
        None if host.contains(':') => {
            return Err("put brackets round an IPv6 address, as in redis://[::1]:6379".to_owned());
        }
        None => host,
    };
    if host.is_empty() {
        return Err(format!("the host is missing; {FORM}"));
    }
    Ok(TargetKind::Redis { host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(given: &str) -> TargetKind {
        let target: Target = given.parse().unwrap();
        assert_eq!(target.to_string(), given);
        target.kind
    }

    #[test]
    fn every_form_parses() {
        let url = "lockring://a:1,b:2?identity=f.pem";
        assert_eq!(kind(url), TargetKind::Lockring { url: url.to_owned() });
        let spawn = |path: Option<&str>, workers| TargetKind::LockringSpawn {
            path: path.map(PathBuf::from),
            workers,
        };
        assert_eq!(kind("lockring+spawn:"), spawn(None, 1));
        assert_eq!(kind("lockring+spawn:/bin/x"), spawn(Some("/bin/x"), 1));
        assert_eq!(kind("lockring+spawn:?workers=4"), spawn(None, 4));
        assert_eq!(kind("lockring+spawn:./x?workers=2"), spawn(Some("./x"), 2));
        assert_eq!(Target::own().kind, kind("lockring+spawn:"));
        let redis = |host: &str, port| TargetKind::Redis { host: host.to_owned(), port };
        assert_eq!(kind("redis://h:7000"), redis("h", 7000));
        assert_eq!(kind("redis://h/"), redis("h", 6379));
        assert_eq!(kind("redis://[::1]:7"), redis("::1", 7));
        assert_eq!(kind("redis://[::1]"), redis("::1", 6379));
        assert_eq!(kind("redis+spawn:"), TargetKind::RedisSpawn);
        assert_eq!(kind("echo+spawn:"), TargetKind::EchoSpawn);
    }

    #[test]
    fn errors_say_what_to_write_instead() {
        for (given, hint) in [
            ("", "use lockring://HOST:PORT"),
            ("etcd://h", "redis+spawn:"),
            ("lockring://", "name the node"),
            ("lockring://?identity=x", "name the node"),
            ("lockring+spawn:?workers=3", "power of two"),
            ("lockring+spawn:?workers=0", "power of two"),
            ("lockring+spawn:?threads=3", "workers=N"),
            ("redis+spawn:/usr/bin/redis-server", "nothing may follow"),
            ("echo+spawn:x", "nothing may follow"),
            ("redis://", "host is missing"),
            ("redis://:6379", "host is missing"),
            ("redis://h:0", "not a port"),
            ("redis://h:http", "not a port"),
            ("redis://::1", "brackets"),
            ("redis://u:p@h", "not supported"),
            ("redis://h/3", "not supported"),
        ] {
            let error = given.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains(hint), "{given}: {error}");
        }
    }
}
