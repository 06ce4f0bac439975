//! What one client, or all of them, may use at a worker: the table `quotas` of the config file.

use super::size;
use lockring_node::{Amounts, Limits, MemoryLimit};
use serde::Deserialize;

/// The table, every part of it optional.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quotas {
    sessions: Option<u32>,
    key_waiters: Option<u32>,
    session: Of,
    identity: Of,
    namespace: Of,
}

/// What one session, or those of one identity or namespace together, may have.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Of {
    sessions: Option<u64>,
    holds: Option<u64>,
    waiters: Option<u64>,
    bytes: Option<String>,
}

impl Of {
    fn bytes(&self, what: &str) -> Result<Option<u64>, String> {
        let Some(text) = &self.bytes else { return Ok(None) };
        match size::limit(text) {
            Ok(MemoryLimit::Bytes(bytes)) => Ok(Some(bytes)),
            _ => Err(format!("{what}.bytes: {text:?} is not a size: use 512m, 2g or bytes")),
        }
    }

    fn amounts(&self, what: &str, default: Amounts) -> Result<Amounts, String> {
        Ok(Amounts {
            sessions: self.sessions.unwrap_or(default.sessions),
            holds: self.holds.unwrap_or(default.holds),
            waiters: self.waiters.unwrap_or(default.waiters),
            bytes: self.bytes(what)?.unwrap_or(default.bytes),
        })
    }
}

impl Quotas {
    /// The limits of a worker. What a session may have is no more than by default, which is what
    /// the tables of a worker can name.
    pub fn limits(&self) -> Result<Limits, String> {
        let most = Limits::default();
        let within = |what: &str, asked: Option<u64>, most: u64| match asked {
            None => Ok(most),
            Some(asked) if (1..=most).contains(&asked) => Ok(asked),
            Some(asked) => Err(format!("{what}: {asked} is not within 1 to {most}")),
        };
        if self.session.sessions.is_some() {
            return Err("session.sessions: a session is one".to_owned());
        }
        let waiters_most = u64::from(most.waiters_per_link);
        let waiters = within("session.waiters", self.session.waiters, waiters_most)?;
        Ok(Limits {
            links: within("sessions", self.sessions.map(u64::from), most.links.into())? as u32,
            holds_per_link: within("session.holds", self.session.holds, most.holds_per_link)?,
            waiters_per_link: waiters as u32,
            waiters_per_key: self.key_waiters.unwrap_or(most.waiters_per_key),
            bytes_per_link: self.session.bytes("session")?.unwrap_or(most.bytes_per_link),
            identity: self.identity.amounts("identity", most.identity)?,
            namespace: self.namespace.amounts("namespace", most.namespace)?,
            ..most
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(text: &str) -> Result<Limits, String> {
        toml::from_str::<Quotas>(text).map_err(|error| error.to_string())?.limits()
    }

    #[test]
    fn each_quota_is_set_and_the_others_stay() {
        let all = "sessions = 5\nkey_waiters = 6\n\
                   session = { holds = 7, waiters = 8, bytes = '9k' }\n\
                   identity = { sessions = 10, bytes = '1g' }\nnamespace = { waiters = 11 }\n";
        let (set, default) = (limits(all).unwrap(), Limits::default());
        assert_eq!((set.links, set.waiters_per_key), (5, 6));
        assert_eq!((set.holds_per_link, set.waiters_per_link, set.bytes_per_link), (7, 8, 9 << 10));
        let identity = Amounts { sessions: 10, bytes: 1 << 30, ..default.identity };
        assert_eq!(set.identity, identity);
        assert_eq!(set.namespace, Amounts { waiters: 11, ..default.namespace });
    }

    #[test]
    fn what_cannot_be_is_told() {
        for (text, words) in [
            ("sessions = 0", "sessions: 0"),
            ("session = { holds = 99999999999 }", "session.holds"),
            ("session = { sessions = 2 }", "a session is one"),
            ("identity = { bytes = 'auto' }", "identity.bytes"),
            ("identity = { locks = 1 }", "locks"),
        ] {
            let error = limits(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
