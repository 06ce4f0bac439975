//! UDP endpoints of a node and the transport settings of its client connections.

use crate::gate::HandshakeLimits;
use crate::sieve::Sieve;
use lockring_proto::{clock, transport};
use quinn::{AsyncUdpSocket, EndpointConfig, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
#[cfg(target_os = "linux")]
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use socket2::{Domain, Protocol, Socket, Type};
use std::fmt;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// After a restart each client's next packet is answered by a reset, which is how it learns of
/// the restart at once. quinn's default of one per 20 ms would keep thousands of them waiting; a
/// reset is always shorter than the packet it answers, so it cannot amplify.
const RESET_INTERVAL: Duration = Duration::from_millis(1);

/// How a node's endpoints treat the connections of clients.
pub fn transport_config() -> quinn::TransportConfig {
    let mut config = transport::common_config();
    config
        // Requests and replies take one stream; the second is room for its successor. Pushes go
        // on a stream of ours. Each slot ever used costs memory, so these are memory limits.
        .max_concurrent_bidi_streams(VarInt::from_u32(2))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        // The client sends them.
        .keep_alive_interval(None);
    config
}

/// The keys by which a restarted node proves to its clients that their connections are gone. All
/// workers of a node share them, and they must survive restarts: without either, clients would
/// wait out their idle timeout.
#[derive(Clone, PartialEq, Eq)]
pub struct EndpointKeys {
    /// Signs stateless resets.
    pub reset: [u8; 64],
    /// Marks connection ids as made by this node.
    pub cid: u64,
}

impl fmt::Debug for EndpointKeys {
    /// Says nothing: with these keys anyone could cut the node's connections.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EndpointKeys(..)")
    }
}

/// Why an endpoint could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Someone has the port.
    #[error(
        "UDP port {} of {} is in use: another node may be running here; stop it or choose \
         another port", .0.port(), .0.ip()
    )]
    InUse(SocketAddr),
    /// The address is not one of this machine's.
    #[error("{0} is not an address of this machine: bind one of its own, or 0.0.0.0 or [::]")]
    NotHere(SocketAddr),
    /// The system forbids it.
    #[error("the system does not let this user bind {0}: choose a port from 1024 up")]
    Forbidden(SocketAddr),
    /// The call was made outside a tokio runtime: our own fault.
    #[error("an endpoint needs the runtime of its worker")]
    NoRuntime,
    /// Something else.
    #[error("cannot bind UDP {address}: {source}")]
    Io {
        /// What was to be bound.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// Makes the endpoint of one worker, to be called inside the worker's runtime.
///
/// # Errors
/// When the address cannot be bound.
pub fn bind(
    addr: SocketAddr,
    keys: &EndpointKeys,
    server: quinn::ServerConfig,
) -> Result<quinn::Endpoint, BindError> {
    let (runtime, socket) = wrapped(socket(addr)?)?;
    over(runtime, socket, keys, server).map_err(|error| failed(addr, error))
}

/// Makes an endpoint over a socket from [`socket`], to be called inside the worker's runtime. First
/// packets that come faster than the limits' handshakes need are dropped, and counted.
///
/// # Errors
/// When the runtime cannot take the socket.
pub fn sieved(
    socket: UdpSocket,
    keys: &EndpointKeys,
    server: quinn::ServerConfig,
    limits: HandshakeLimits,
    dropped: Arc<AtomicU64>,
) -> Result<quinn::Endpoint, BindError> {
    let address = socket.local_addr().map_err(|error| failed(([0; 4], 0).into(), error))?;
    let (runtime, socket) = wrapped(socket)?;
    let ids = HashedConnectionIdGenerator::from_key(keys.cid);
    let socket = Arc::new(Sieve::new(socket, ids, limits, dropped, clock::now()));
    over(runtime, socket, keys, server).map_err(|error| failed(address, error))
}

type Wrapped = (Arc<dyn quinn::Runtime>, Arc<dyn AsyncUdpSocket>);

fn wrapped(socket: UdpSocket) -> Result<Wrapped, BindError> {
    let runtime = quinn::default_runtime().ok_or(BindError::NoRuntime)?;
    let address = socket.local_addr().map_err(|error| failed(([0; 4], 0).into(), error))?;
    let socket = runtime.wrap_udp_socket(socket).map_err(|error| failed(address, error))?;
    Ok((runtime, socket))
}

fn over(
    runtime: Arc<dyn quinn::Runtime>,
    socket: Arc<dyn AsyncUdpSocket>,
    keys: &EndpointKeys,
    server: quinn::ServerConfig,
) -> io::Result<quinn::Endpoint> {
    let config = endpoint_config(keys);
    quinn::Endpoint::new_with_abstract_socket(config, Some(server), socket, runtime)
}

/// Binds the UDP socket of one worker.
///
/// # Errors
/// When the address cannot be bound.
pub fn socket(addr: SocketAddr) -> Result<UdpSocket, BindError> {
    open_socket(addr).map_err(|error| failed(addr, error))
}

fn failed(addr: SocketAddr, error: io::Error) -> BindError {
    match error.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse(addr),
        io::ErrorKind::AddrNotAvailable => BindError::NotHere(addr),
        io::ErrorKind::PermissionDenied => BindError::Forbidden(addr),
        _ => BindError::Io { address: addr, source: error },
    }
}

fn endpoint_config(keys: &EndpointKeys) -> EndpointConfig {
    let reset = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &keys.reset);
    let mut config = EndpointConfig::new(Arc::new(reset));
    let cid = keys.cid;
    config
        .cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(cid)))
        .min_reset_interval(RESET_INTERVAL);
    config
}

fn open_socket(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        // `[::]` means every address of the machine, whatever the system's default.
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    // Asking never fails on Linux, it is cut to what the system allows; elsewhere a refusal
    // leaves the default, which works, only not under full load.
    let _ = socket.set_recv_buffer_size(transport::SOCKET_BUFFER_BYTES);
    // A privileged node gets it in any case: a flood of first packets must not push those of
    // established links out of the socket.
    #[cfg(target_os = "linux")]
    let _ = set_socket_recv_buffer_size_force(&socket, transport::SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(transport::SOCKET_BUFFER_BYTES);
    tell_buffers(addr, &socket)?;
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

fn tell_buffers(addr: SocketAddr, socket: &Socket) -> io::Result<()> {
    // Linux books twice what was asked, for its own overhead, and reports that.
    let share = if cfg!(target_os = "linux") { 2 } else { 1 };
    let receive = socket.recv_buffer_size()? / share;
    let send = socket.send_buffer_size()? / share;
    if receive.min(send) < transport::SOCKET_BUFFER_BYTES {
        tracing::info!(
            %addr, receive, send, asked = transport::SOCKET_BUFFER_BYTES,
            "the kernel granted smaller socket buffers; for full load raise net.core.rmem_max \
             and net.core.wmem_max"
        );
    }
    Ok(())
}
