//! What clients are told of a node's addresses.

use lockring_proto::NodeAddress;
use lockring_proto::limits::HOSTS_BYTES_MAX;
use std::net::{IpAddr, Ipv4Addr};

/// An address that clients are told: of the node, or of one of its workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertised {
    /// A name, or an address, of version 6 without brackets.
    pub host: String,
    /// The UDP port; `None`: that at which the worker listens.
    pub port: Option<u16>,
}

/// Why clients cannot be told these addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdvertiseError {
    /// There must be one for all workers, or one for each.
    #[error(
        "{entries} addresses for {workers} workers: advertise one, from whose port those of all \
         workers are counted up, or one for each worker"
    )]
    Entries {
        /// How many there are.
        entries: usize,
        /// How many workers.
        workers: u16,
    },
    /// The ports of workers are counted up beyond the last one there is.
    #[error(
        "with {workers} workers the port counted up from {port} is above 65535: advertise a lower \
         one, or one for each worker"
    )]
    Ports {
        /// The port of worker 0.
        port: u16,
        /// How many workers.
        workers: u16,
    },
    /// Nobody can connect to this address.
    #[error("clients cannot connect to {0}: advertise an address or name by which they reach it")]
    NoHost(IpAddr),
    /// Port 0 is none.
    #[error("port 0 cannot be connected to: advertise 1 to 65535")]
    NoPort,
    /// They do not fit what a client is sent of a ring.
    #[error("the hosts together are longer than {HOSTS_BYTES_MAX} bytes: advertise shorter names")]
    TooLong,
}

/// The addresses as the ring has them, of a node of so many workers whose first listens at this
/// port.
///
/// # Errors
/// When they are neither one nor one for each worker, or nobody could connect to them.
pub fn addresses(
    advertised: &[Advertised],
    workers: u16,
    listen: u16,
) -> Result<Vec<NodeAddress>, AdvertiseError> {
    if advertised.is_empty() {
        return Ok(vec![NodeAddress { host: String::new(), port: listen }]);
    }
    let entries = advertised.len();
    if entries != 1 && entries != usize::from(workers) {
        return Err(AdvertiseError::Entries { entries, workers });
    }
    if advertised.iter().map(|at| at.host.len()).sum::<usize>() > HOSTS_BYTES_MAX {
        return Err(AdvertiseError::TooLong);
    }
    let above = if entries == 1 { workers - 1 } else { 0 };
    let address = |(at, worker): (&Advertised, u16)| {
        let port = at.port.unwrap_or(listen.saturating_add(worker));
        if port == 0 {
            return Err(AdvertiseError::NoPort);
        }
        if port.checked_add(above).is_none() {
            return Err(AdvertiseError::Ports { port, workers });
        }
        match at.host.parse::<IpAddr>() {
            Ok(ip) if !is_one_host(ip.to_canonical()) => Err(AdvertiseError::NoHost(ip)),
            _ => Ok(NodeAddress { host: at.host.clone(), port }),
        }
    };
    advertised.iter().zip(0..).map(address).collect()
}

fn is_one_host(ip: IpAddr) -> bool {
    !ip.is_unspecified() && !ip.is_multicast() && ip != IpAddr::V4(Ipv4Addr::BROADCAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(workers: u16, hosts: &[(&str, Option<u16>)]) -> Result<Vec<String>, AdvertiseError> {
        let advertised = |&(host, port): &(&str, _)| Advertised { host: host.to_owned(), port };
        let advertised: Vec<_> = hosts.iter().map(advertised).collect();
        let told = addresses(&advertised, workers, 7420)?;
        Ok(told.iter().map(|at| format!("{} {}", at.host, at.port)).collect())
    }

    #[test]
    fn one_address_or_one_for_each_worker_is_told() {
        assert_eq!(told(4, &[]).unwrap(), [" 7420"]);
        assert_eq!(told(4, &[("a", None)]).unwrap(), ["a 7420"]);
        assert_eq!(told(4, &[("::1", Some(65532))]).unwrap(), ["::1 65532"]);
        let each = [("a", None), ("a", None), ("b", Some(1)), ("b", Some(65535))];
        assert_eq!(told(4, &each).unwrap(), ["a 7420", "a 7421", "b 1", "b 65535"]);
        assert_eq!(told(1, &[("a", Some(65535))]).unwrap(), ["a 65535"]);
    }

    #[test]
    fn what_nobody_could_connect_to_is_refused() {
        let two = [("a", Some(1)), ("b", Some(2))];
        assert_eq!(told(4, &two), Err(AdvertiseError::Entries { entries: 2, workers: 4 }));
        assert_eq!(told(1, &two), Err(AdvertiseError::Entries { entries: 2, workers: 1 }));
        let high = told(4, &[("a", Some(65533))]);
        assert_eq!(high, Err(AdvertiseError::Ports { port: 65533, workers: 4 }));
        assert_eq!(told(1, &[("a", Some(0))]), Err(AdvertiseError::NoPort));
        for host in ["0.0.0.0", "::", "::ffff:0.0.0.0", "224.0.0.1", "ff02::1", "255.255.255.255"] {
            assert!(matches!(told(1, &[(host, None)]), Err(AdvertiseError::NoHost(_))), "{host}");
        }
        let long = "a".repeat(253);
        assert_eq!(told(64, &[(long.as_str(), None); 64]), Err(AdvertiseError::TooLong));
    }
}
