//! One bad peer never slows, fills or stops a node: what the shell does about it.

use super::common::{config, connect, get, get_as};
use crate::authority::Authority;
use crate::{HandshakeLimits, MemoryLimit, Node, NodeConfig};
use lockring_client::ErrorKind;
use lockring_client::proto::{ALPN, SERVER_NAME};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A client made by hand that shows its certificate this many times over.
fn chain_of(data: &Path, count: usize) -> quinn::ClientConfig {
    let authority = Authority::load(data).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate().clone()).unwrap();
    let bundle = authority.issue_client("many", &Default::default()).unwrap();
    let own = CertificateDer::pem_slice_iter(bundle.as_bytes()).last().unwrap().unwrap();
    let key = PrivateKeyDer::from_pem_slice(bundle.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![own; count], key)
        .unwrap();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
}

/// Whether it is, well before a connection without a hello is given up.
async fn refused(at: SocketAddr, config: quinn::ClientConfig) -> bool {
    let endpoint = lockring_client::tls::client_endpoint(at).unwrap();
    let connecting = endpoint.connect_with(config, at, SERVER_NAME).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(2), async {
        // In TLS 1.3 a client is done before the server has judged its certificate.
        if let Ok(connection) = connecting.await {
            connection.closed().await;
        }
    });
    ended.await.is_ok()
}

#[tokio::test]
async fn a_chain_of_many_certificates_is_refused() {
    let data = TempDir::new().unwrap();
    let node = Node::start(&config(data.path(), 1)).unwrap();
    for count in [2, 20] {
        assert!(refused(node.listen(), chain_of(data.path(), count)).await, "{count}");
    }
    // Each end notices it in its own time.
    let begun = Instant::now();
    while node.status().await.workers[0].handshakes.failed < 2 {
        assert!(begun.elapsed() < Duration::from_secs(20), "they did not fail");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!refused(node.listen(), chain_of(data.path(), 1)).await);
}

/// A flood of handshakes is let in at the rate that was set; who is connected goes on.
#[tokio::test]
async fn handshakes_are_let_in_at_their_rate() {
    let data = TempDir::new().unwrap();
    let handshakes =
        HandshakeLimits { per_second: 20, per_second_and_source: 10, ..HandshakeLimits::default() };
    let node = Node::start(&NodeConfig { handshakes, ..config(data.path(), 1) }).unwrap();
    let client = connect(&node).await;
    let begun = Instant::now();
    let attack = chain_of(data.path(), 1);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..300 {
        let (attack, at) = (attack.clone(), node.listen());
        tasks.spawn(async move { refused(at, attack).await });
    }
    for number in 0..200 {
        let guard = client.lock(format!("k{number}")).await.unwrap();
        guard.release().await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let counts = node.status().await.workers[0].handshakes;
    let most = 20 + 1 + (begun.elapsed().as_secs_f64() * 10.0) as u64;
    assert!(counts.begun <= most, "{counts:?}, at most {most}");
    assert!(counts.ignored > 0 && counts.retried > 0, "{counts:?}");
    tasks.abort_all();
    client.close().await;
}

/// What seems to begin a connection, of anybody's, is dropped over a rate before it is looked at.
#[tokio::test]
async fn a_flood_of_first_packets_is_dropped_unread() {
    const PACKETS: u64 = 20_000;
    let data = TempDir::new().unwrap();
    let node = Node::start(&config(data.path(), 1)).unwrap();
    let client = connect(&node).await;
    let flood = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let begun = Instant::now();
    for number in 0..PACKETS {
        let mut packet = [0; 1200];
        // Initial, version 1, a connection id of its own.
        packet[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
        packet[6..14].copy_from_slice(&number.to_be_bytes());
        flood.send_to(&packet, node.listen()).unwrap();
        if number % 200 == 0 {
            client.lock("k").await.unwrap().release().await.unwrap();
        }
    }
    let dropped = node.status().await.workers[0].handshakes.dropped;
    let passed = 800 + (begun.elapsed().as_secs_f64() * 1600.0) as u64;
    // Those that the socket had no room for are lost before.
    assert!(dropped > (PACKETS - passed) / 2, "{dropped} of {PACKETS}, {passed} may pass");
    client.close().await;
    connect(&node).await.close().await;
}

#[tokio::test]
async fn admin_http_answers_to_its_own_names_alone() {
    let data = TempDir::new().unwrap();
    let admin_hosts = vec!["metrics.example.net".to_owned()];
    let node = Node::start(&NodeConfig { admin_hosts, ..config(data.path(), 1) }).unwrap();
    let at = node.admin().unwrap();
    for host in ["localhost", "127.0.0.1:7421", "metrics.example.net"] {
        assert_eq!(get_as(at, "/livez", host).await.0, 200, "{host}");
    }
    for path in ["/livez", "/metrics", "/v1/locks"] {
        let (code, said) = get_as(at, path, "rebound.example").await;
        assert!(code == 421 && said.contains("--admin-host"), "{path}: {code} {said}");
    }
}

/// Many times more half-sent requests than the node keeps: a whole one is answered at once, and
/// each of the others is ended.
#[tokio::test(flavor = "multi_thread")]
async fn half_sent_requests_keep_nobody_from_being_answered() {
    use std::io::Write;
    let data = TempDir::new().unwrap();
    let node = Node::start(&config(data.path(), 1)).unwrap();
    let at = node.admin().unwrap();
    let mut half_sent = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(at).unwrap();
        let _cut_off_perhaps = stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n");
        half_sent.push(stream);
    }
    let answer = tokio::time::timeout(Duration::from_secs(5), get(at, "/livez")).await;
    assert_eq!(answer.expect("in time").0, 200);
    let all_ended = tokio::task::spawn_blocking(move || {
        half_sent.iter_mut().all(|stream| {
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            // Ended, or told that it took too long: not kept.
            !matches!(stream.read_to_end(&mut Vec::new()),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
        })
    });
    assert!(all_ended.await.unwrap());
}

/// A listing looks at so much and leaves the worker alone in between: it ends with a place to go on
/// from, also where nothing is found.
#[tokio::test]
async fn a_listing_that_finds_nothing_ends() {
    let data = TempDir::new().unwrap();
    let node = Node::start(&config(data.path(), 2)).unwrap();
    let at = node.admin().unwrap();
    let all = futures_of(20, || get(at, "/v1/locks?prefix=none")).await;
    assert!(all.iter().all(|(code, text)| *code == 200 && text.contains("\"rows\":[]")), "{all:?}");
}

async fn futures_of<F: Future<Output = (u16, String)> + Send + 'static>(
    count: usize,
    make: impl Fn() -> F,
) -> Vec<(u16, String)> {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..count {
        tasks.spawn(make());
    }
    tasks.join_all().await
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Near the bound nothing new is admitted, and everything else goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_admits_nothing_new_before_its_memory_is_used_up() {
    let data = TempDir::new().unwrap();
    let limit = (resident() + (20 << 20)) * 3 / 2 + (1 << 20);
    let memory = MemoryLimit::Bytes(limit);
    let node = Node::start(&NodeConfig { memory, ..config(data.path(), 1) }).unwrap();
    let client = connect(&node).await;
    let first = client.lock("first").await.unwrap();
    let mut guards = Vec::new();
    let refused = 'filling: loop {
        let mut claims = tokio::task::JoinSet::new();
        for number in 0..500 {
            let key = format!("{:0>400}", guards.len() * 1000 + number);
            let client = client.clone();
            claims.spawn(async move { client.lock(key).await });
        }
        for claimed in claims.join_all().await {
            match claimed {
                Ok(guard) => guards.push(guard),
                Err(error) => break 'filling error,
            }
        }
        assert!(resident() < limit, "{} locks took it all", guards.len());
    };
    assert_eq!(refused.kind(), ErrorKind::Quota, "{refused}");
    assert!(refused.to_string().contains("no memory left"), "{refused}");
    // Who is there goes on; who looks is told.
    let other = lockring_client::Client::builder()
        .identity(node.client_bundle().unwrap())
        .unreachable_after(Duration::from_secs(3))
        .connect(&format!("lockring://{}", node.listen()))
        .await;
    assert!(other.is_err_and(|error| error.to_string().contains("no memory left")));
    assert_eq!(client.inspect("first").await.unwrap().holder_count, 1);
    first.release().await.unwrap();
    assert!(get(node.admin().unwrap(), "/readyz").await.1.contains("memory is nearly used up"));
    drop(guards);
    client.close().await;
}
