//! UDP endpoints of a node and the transport settings of its client connections.

use quinn::congestion::CubicConfig;
use quinn::{AckFrequencyConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use socket2::{Domain, Protocol, Socket, Type};
use std::fmt;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

/// Asked of the kernel for each direction of a socket: at full load the default of some 200 KiB
/// is a millisecond of traffic, so any pause of the worker would lose packets.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Largest UDP payload of an Ethernet without jumbo frames, over IPv6.
const MTU_UPPER_BOUND: u16 = 1452;

/// After a restart each client's next packet is answered by a reset, which is how it learns of
/// the restart at once. quinn's default of one per 20 ms would keep thousands of them waiting; a
/// reset is always shorter than the packet it answers, so it cannot amplify.
const RESET_INTERVAL: Duration = Duration::from_millis(1);

/// How a node's endpoints treat the connections of clients. Every setting is written down, also
/// those that keep quinn's default: a default that changes must not change us.
pub fn transport_config() -> quinn::TransportConfig {
    let mut acks = AckFrequencyConfig::default();
    // Fewer acknowledgement packets, and a tail loss is noticed after about 6 ms, not 26.
    acks.ack_eliciting_threshold(VarInt::from_u32(10))
        .max_ack_delay(Some(Duration::from_millis(5)))
        .reordering_threshold(VarInt::from_u32(2));
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_UPPER_BOUND)
        .interval(Duration::from_secs(600))
        .black_hole_cooldown(Duration::from_secs(60))
        .minimum_change(20);
    let mut cubic = CubicConfig::default();
    cubic.initial_window(256 << 10);

    let mut config = quinn::TransportConfig::default();
    config
        // Requests and replies take one stream; the second is room for its successor. Pushes go
        // on a stream of ours. Each slot ever used costs memory, so these are memory limits.
        .max_concurrent_bidi_streams(VarInt::from_u32(2))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        // The lower of both sides' values holds. The client sends the keep-alives.
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(10_000))))
        .keep_alive_interval(None)
        // What a hostile peer can make us hold per connection, in either direction.
        .stream_receive_window(VarInt::from_u32(256 << 10))
        .receive_window(VarInt::from_u32(1 << 20))
        .send_window(1 << 20)
        .crypto_buffer_size(16 << 10)
        // Frames of one stream stay together instead of being split to share a packet.
        .send_fairness(false)
        // A LAN's: it sets the first loss timers and the first pacing burst.
        .initial_rtt(Duration::from_millis(5))
        .initial_mtu(1400)
        .min_mtu(1200)
        .mtu_discovery_config(Some(mtu))
        .pad_to_mtu(false)
        .ack_frequency_config(Some(acks))
        .packet_threshold(3)
        .time_threshold(9.0 / 8.0)
        .persistent_congestion_threshold(3)
        .congestion_controller_factory(Arc::new(cubic))
        .enable_segmentation_offload(true)
        .allow_spin(true)
        // Datagrams are unused: without a receive buffer they are off, and the other stays empty.
        .datagram_receive_buffer_size(None)
        .datagram_send_buffer_size(1 << 20);
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
    over(socket(addr)?, keys, server)
}

/// Makes an endpoint over a socket from [`socket`], to be called inside the worker's runtime.
///
/// # Errors
/// When the runtime cannot take the socket.
pub fn over(
    socket: UdpSocket,
    keys: &EndpointKeys,
    server: quinn::ServerConfig,
) -> Result<quinn::Endpoint, BindError> {
    let runtime = quinn::default_runtime().ok_or(BindError::NoRuntime)?;
    let address = socket.local_addr().map_err(|error| failed(([0; 4], 0).into(), error))?;
    quinn::Endpoint::new(endpoint_config(keys), Some(server), socket, runtime)
        .map_err(|error| failed(address, error))
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
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    tell_buffers(addr, &socket)?;
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

fn tell_buffers(addr: SocketAddr, socket: &Socket) -> io::Result<()> {
    // Linux books twice what was asked, for its own overhead, and reports that.
    let share = if cfg!(target_os = "linux") { 2 } else { 1 };
    let receive = socket.recv_buffer_size()? / share;
    let send = socket.send_buffer_size()? / share;
    if receive.min(send) < SOCKET_BUFFER_BYTES {
        tracing::info!(
            %addr, receive, send, asked = SOCKET_BUFFER_BYTES,
            "the kernel granted smaller socket buffers; for full load raise net.core.rmem_max \
             and net.core.wmem_max"
        );
    }
    Ok(())
}
