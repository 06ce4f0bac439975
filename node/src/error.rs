//! Why a node could not start.

use crate::advertise::AdvertiseError;
use crate::endpoint::BindError;
use crate::files::FilesError;
use crate::store::StoreError;
use lockring_proto::limits::WORKERS_MAX;
use std::net::SocketAddr;

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The number of workers is not usable.
    #[error("{0} workers: use a power of two, 1 to {max}", max = WORKERS_MAX)]
    Workers(u16),
    /// The ports of the workers are counted up beyond the last one there is.
    #[error("{1} workers need ports from {0} up, beyond 65535: listen at a lower one")]
    Ports(u16, u16),
    /// The state could not be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The certificates could not be used.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// A port could not be used.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// No run of free ports was found.
    #[error("found no {0} free ports in a row: name a first one with --listen")]
    NoPorts(u16),
    /// Clients cannot be told these addresses.
    #[error("--advertise: {0}")]
    Advertise(#[from] AdvertiseError),
    /// The admin port could not be used.
    #[error("cannot serve admin HTTP on {0}: {1}; choose another address with --admin")]
    Admin(SocketAddr, std::io::Error),
    /// The log of the cluster did not give it its cells.
    #[error(
        "the node serves nothing yet: {}",
        .0.as_deref().unwrap_or("its log takes too long to agree to it; see what it has logged")
    )]
    NotServing(Option<String>),
    /// The system gave no thread or runtime.
    #[error("the system gave no thread: {0}")]
    System(#[from] std::io::Error),
}
