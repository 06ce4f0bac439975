//! A socket that passes handshakes' packets on at a rate.
//!
//! A packet that seems to begin a connection costs the endpoint the derivation of its keys and an
//! answer, before the gate can judge anything; and whoever answers that answer makes it cost
//! the same again. Anybody can send them, without a certificate. So they are rated before they are
//! read, in all and by network: an established link's packets have a short header (RFC 9000,
//! section 17.3) and always pass, those with a long one are dropped over their rate, as if they
//! were lost on the way. An honest handshake's peer sends them again.
//!
//! Who has answered the node once names it by an id that only the node can have given (RFC 9000,
//! section 8.1: an address validation token comes in such a packet). Half of each allowance is for
//! them alone: a flood from addresses that are made up takes the other half.

use crate::bucket::{Bucket, Rate};
use crate::gate::{HandshakeLimits, Source};
use lockring_proto::{Time, clock};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use quinn_proto::{ConnectionId, ConnectionIdGenerator, HashedConnectionIdGenerator};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

/// Packets with a long header that a network may send for each of its handshakes: about five are
/// needed, the rest is for what is sent again.
const PACKETS_PER_HANDSHAKE: u32 = 16;

/// The same for all together. More, as addresses that are made up count here alone: who is over
/// this keeps those out who are not connected yet, so it is a good part of what a worker can do
/// beside its work.
const PACKETS_IN_ALL: u32 = 32;

/// Packets for each handshake that may come at once. They are worked off before the packets of
/// links that come after them.
const BURST: u32 = 16;

/// Networks share allowances, of which there are so many. Nobody can tell with whom.
const SHARES: usize = 1024;

/// A long header's first bit (RFC 9000, section 17.2).
const LONG_HEADER: u8 = 0x80;

/// No shorter datagram can begin a connection (RFC 9000, section 14.1): quinn drops it after a look
/// at its header. Were it counted, a few bytes would use up what a handshake needs.
const INITIAL_BYTES_MIN: usize = 1200;

/// Where a long header has the length of the id of whom it is for, and then the id (RFC 9000,
/// section 17.2).
const ID_LENGTH_AT: usize = 5;

/// The socket.
pub(crate) struct Sieve {
    inner: Arc<dyn AsyncUdpSocket>,
    allowances: Mutex<Allowances>,
    /// Knows the node's own connection ids.
    ids: HashedConnectionIdGenerator,
    dropped: Arc<AtomicU64>,
}

impl Sieve {
    pub(crate) fn new(
        inner: Arc<dyn AsyncUdpSocket>,
        ids: HashedConnectionIdGenerator,
        limits: HandshakeLimits,
        dropped: Arc<AtomicU64>,
        now: Time,
    ) -> Self {
        Self { inner, allowances: Mutex::new(Allowances::new(limits, now)), ids, dropped }
    }

    /// Whether a packet with a long header is for an id that the node has given.
    fn is_answer(&self, datagram: &[u8]) -> bool {
        let Some(&length) = datagram.get(ID_LENGTH_AT) else { return false };
        let id = &datagram[ID_LENGTH_AT + 1..];
        usize::from(length) == self.ids.cid_len()
            && id
                .get(..usize::from(length))
                .is_some_and(|id| self.ids.validate(&ConnectionId::new(id)).is_ok())
    }
}

impl fmt::Debug for Sieve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sieve").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for Sieve {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.inner.poll_recv(cx, bufs, meta))?;
        for (buf, meta) in bufs.iter_mut().zip(meta).take(count) {
            let stride = meta.stride.max(1);
            if !buf[..meta.len].chunks(stride).any(may_begin_a_handshake) {
                continue;
            }
            // Nothing is left half-done by a panic: it is only counters.
            let mut allowances = self.allowances.lock().unwrap_or_else(PoisonError::into_inner);
            let (kept, dropped) = sift(buf, meta.len, stride, |datagram| {
                allowances.take(clock::now(), meta.addr.ip(), self.is_answer(datagram))
            });
            meta.len = kept;
            self.dropped.fetch_add(dropped, Ordering::Relaxed);
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

fn may_begin_a_handshake(datagram: &[u8]) -> bool {
    datagram.len() >= INITIAL_BYTES_MIN && datagram[0] & LONG_HEADER != 0
}

/// Moves the datagrams that pass together, in their order. Returns their bytes, and how many others
/// there were. All are `stride` bytes long but the last, which may be shorter.
fn sift(
    buf: &mut [u8],
    len: usize,
    stride: usize,
    mut passes: impl FnMut(&[u8]) -> bool,
) -> (usize, u64) {
    let (mut kept, mut dropped) = (0, 0);
    for start in (0..len).step_by(stride) {
        let end = len.min(start + stride);
        if may_begin_a_handshake(&buf[start..end]) && !passes(&buf[start..end]) {
            dropped += 1;
        } else {
            buf.copy_within(start..end, kept);
            kept += end - start;
        }
    }
    (kept, dropped)
}

#[derive(Debug)]
struct Allowances {
    rate: Rate,
    rate_of_source: Rate,
    all: Bucket,
    shares: Vec<Bucket>,
    /// With keys of its own, so that nobody can find out whose allowance they share.
    hash: RandomState,
}

impl Allowances {
    fn new(limits: HandshakeLimits, now: Time) -> Self {
        let rate = packets(limits.per_second, PACKETS_IN_ALL);
        let rate_of_source = packets(limits.per_second_and_source, PACKETS_PER_HANDSHAKE);
        Self {
            rate,
            rate_of_source,
            all: Bucket::full(rate, now),
            shares: vec![Bucket::full(rate_of_source, now); SHARES],
            hash: RandomState::new(),
        }
    }

    /// Whether one more packet may come from there, an answer to one of the node's or not.
    fn take(&mut self, now: Time, from: IpAddr, is_answer: bool) -> bool {
        let share = self.hash.hash_one(Source::of(from)) as usize % SHARES;
        let share = &mut self.shares[share];
        self.all.fill(self.rate, now);
        share.fill(self.rate_of_source, now);
        let passes = if is_answer {
            self.all.has_one() && share.has_one()
        } else {
            self.all.is_over_half(self.rate) && share.is_over_half(self.rate_of_source)
        };
        if passes {
            self.all.take_one();
            share.take_one();
        }
        passes
    }
}

/// This many packets for each of this many handshakes a second.
fn packets(handshakes: u32, each: u32) -> Rate {
    Rate { per_second: handshakes.saturating_mul(each), burst: handshakes.saturating_mul(BURST) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn limits() -> HandshakeLimits {
        HandshakeLimits { per_second: 20, per_second_and_source: 10, ..HandshakeLimits::default() }
    }

    fn taken(allowances: &mut Allowances, now: Time, from: [u8; 4]) -> usize {
        (0..1000).filter(|_| allowances.take(now, from.into(), false)).count()
    }

    #[test]
    fn a_network_has_its_rate_and_others_theirs() {
        let mut allowances = Allowances::new(limits(), Time(0));
        assert_eq!(taken(&mut allowances, Time(0), [10, 0, 0, 1]), 80);
        assert_eq!(taken(&mut allowances, Time(0), [10, 0, 0, 2]), 0, "the same network");
        assert_eq!(taken(&mut allowances, Time(SECOND / 2), [10, 0, 0, 1]), 80);
        // One of many may share its allowance with the first.
        let others = (1..=100).map(|net| taken(&mut allowances, Time(SECOND / 2), [10, 1, net, 1]));
        assert_eq!(others.sum::<usize>(), 80, "what all have together");
        assert_eq!(taken(&mut allowances, Time(900 * SECOND), [10, 0, 0, 1]), 80);
    }

    #[test]
    fn who_has_answered_is_kept_out_by_no_flood() {
        let mut allowances = Allowances::new(limits(), Time(0));
        for net in 1..=200 {
            taken(&mut allowances, Time(0), [10, 1, net, 1]);
        }
        assert_eq!(taken(&mut allowances, Time(0), [10, 2, 0, 1]), 0);
        let answers = (0..1000).filter(|_| allowances.take(Time(0), [10, 2, 0, 1].into(), true));
        assert!(answers.count() >= 80, "the half that is theirs");
    }

    #[tokio::test]
    async fn an_answer_is_known_by_the_id_that_the_node_has_given() {
        let runtime = quinn::TokioRuntime;
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let inner = quinn::Runtime::wrap_udp_socket(&runtime, socket).unwrap();
        let ids = || HashedConnectionIdGenerator::from_key(7);
        let sieve = Sieve::new(inner, ids(), limits(), Arc::default(), Time(0));
        let initial = |id: &[u8]| [&[0xc0, 0, 0, 0, 1, id.len() as u8], id, &[0; 1200]].concat();
        assert!(sieve.is_answer(&initial(&ids().generate_cid())));
        assert!(!sieve.is_answer(&initial(&[1; 8])));
        assert!(
            !sieve.is_answer(&initial(&HashedConnectionIdGenerator::from_key(8).generate_cid()))
        );
        assert!(!sieve.is_answer(&initial(&[])));
        assert!(!sieve.is_answer(&[0xc0, 0, 0, 0, 1, 8, 1, 2]));
        assert!(!sieve.is_answer(&[0xc0]));
    }

    #[test]
    fn what_passes_stays_in_order_and_short_headers_always_do() {
        let of = |first: u8, number: u8| {
            let mut datagram = [number; INITIAL_BYTES_MIN];
            datagram[0] = first;
            datagram
        };
        let (long, short) = (0xc0, 0x40);
        let datagrams = [of(long, 1), of(short, 2), of(long, 3), of(short, 4)];
        let mut buf: Vec<u8> = datagrams.concat();
        // Too short to begin anything: it passes, and costs nothing.
        buf.extend([long, 5]);
        let len = buf.len();
        let mut left = 1;
        let (kept, dropped) = sift(&mut buf, len, INITIAL_BYTES_MIN, |_| {
            left -= 1;
            left >= 0
        });
        assert_eq!(dropped, 1);
        let passed = [of(long, 1), of(short, 2), of(short, 4)].concat();
        assert_eq!(buf[..kept], [passed, vec![long, 5]].concat());
        assert_eq!(sift(&mut [short, 0, long], 3, 2, |_| false), (3, 0));
    }

    #[test]
    fn no_limit_overflows() {
        let limits = HandshakeLimits { per_second: u32::MAX, ..HandshakeLimits::default() };
        let mut allowances = Allowances::new(limits, Time(0));
        assert!(allowances.take(Time(u64::MAX), [10, 0, 0, 1].into(), false));
    }
}
