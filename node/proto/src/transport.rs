//! How both ends of a connection set up QUIC. Every setting is written down, also those that keep
//! quinn's default: a default that changes must not change us.

use quinn_proto::congestion::CubicConfig;
use quinn_proto::{AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use std::sync::Arc;
use std::time::Duration;

/// Asked of the kernel for each direction of a socket: at full load the default of some 200 KiB
/// is a millisecond of traffic, so any pause would lose packets.
pub const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Largest UDP payload of an Ethernet without jumbo frames, over IPv6.
const MTU_UPPER_BOUND: u16 = 1452;

/// What both ends have in common. Each end adds how many streams its peer may open, and who sends
/// keep-alives.
pub fn common_config() -> TransportConfig {
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

    let mut config = TransportConfig::default();
    config
        // The lower of both sides' values holds.
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(10_000))))
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
