//! How long a TTL may be: every restart waits for the longest that was given.

use lockring_proto::{Namespace, limits};
use std::collections::BTreeMap;
use std::time::Duration;

/// The highest TTL of a session unless the operator says otherwise.
pub const TTL_MAX_DEFAULT: Duration = Duration::from_secs(600);

/// The highest TTL of a session, by its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TtlMax {
    /// Where no other is named.
    pub any: Duration,
    /// Of single namespaces.
    pub namespaces: BTreeMap<String, Duration>,
}

impl Default for TtlMax {
    fn default() -> Self {
        Self { any: TTL_MAX_DEFAULT, namespaces: BTreeMap::new() }
    }
}

impl TtlMax {
    /// The highest TTL in a namespace, within what the protocol allows.
    pub fn of(&self, namespace: &Namespace) -> Duration {
        let max = self.namespaces.get(namespace.as_str()).unwrap_or(&self.any);
        limits::clamp_ttl(*max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_of_its_own_wins_and_the_protocol_over_all() {
        let hour = Duration::from_secs(3600);
        let namespaces = [("batch".to_owned(), hour), ("odd".to_owned(), hour * 9)].into();
        let max = TtlMax { namespaces, ..TtlMax::default() };
        let of = |name: &str| max.of(&Namespace::new(name).unwrap());
        assert_eq!((of("web"), of("batch"), of("odd")), (TTL_MAX_DEFAULT, hour, hour));
    }
}
