//! Which names a request may call this node by. A web page may have its own name resolve to the
//! address of a node that its reader can reach, and read the answers; the name gives it away.

use std::net::{IpAddr, SocketAddr};

/// The names that are answered to.
#[derive(Clone, Debug)]
pub(super) struct Hosts {
    listen: IpAddr,
    names: Vec<String>,
}

impl Hosts {
    pub(super) fn new(listen: SocketAddr, names: &[String]) -> Self {
        let names = names.iter().map(|name| name.to_ascii_lowercase()).collect();
        Self { listen: listen.ip(), names }
    }

    /// Whether a request with this `Host` is answered. One without any is from no browser.
    pub(super) fn allow(&self, host: Option<&str>) -> bool {
        let Some(host) = host else { return true };
        let name = without_port(host).to_ascii_lowercase();
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        match bare.parse::<IpAddr>() {
            // An address cannot be made to mean another; with every one of ours listened on, any
            // may be ours.
            Ok(at) => {
                let at = at.to_canonical();
                at.is_loopback() || at == self.listen || self.listen.is_unspecified()
            }
            Err(_) => name == "localhost" || self.names.contains(&name),
        }
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            // The last part of a bare IPv6 address looks like a port.
            if name.contains(':') && !name.ends_with(']') { host } else { name }
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_ours_and_names_on_the_list_are_answered_to() {
        let names = ["Metrics.example.NET".to_owned()];
        let at = |listen: &str| Hosts::new(listen.parse().unwrap(), &names);
        let loopback = at("127.0.0.1:7421");
        for host in ["127.0.0.1", "127.0.0.1:7421", "localhost:7421", "LOCALHOST", "[::1]:7421"] {
            assert!(loopback.allow(Some(host)), "{host}");
        }
        assert!(loopback.allow(Some("metrics.example.net:80")) && loopback.allow(None));
        for host in ["evil.example", "localhost.evil.example", "192.0.2.1", "", ":80", "[::2]"] {
            assert!(!loopback.allow(Some(host)), "{host}");
        }
        let public = at("192.0.2.1:7421");
        assert!(public.allow(Some("192.0.2.1:7421")) && !public.allow(Some("192.0.2.2")));
        let every = at("[::]:7421");
        assert!(every.allow(Some("192.0.2.9")) && every.allow(Some("2001:db8::1")));
        assert!(!every.allow(Some("evil.example")));
    }
}
