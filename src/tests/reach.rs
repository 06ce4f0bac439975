//! How clients reach a node: by other ports than it listens at, by names, and what they are told
//! when they do not.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod support;

use lockring::{Client, ErrorKind};
use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
use std::collections::HashSet;
use std::fs;
use std::net::UdpSocket;
use std::time::Duration;
use support::{Node, binary, ends, relay};

/// Two sockets at ports in a row.
fn in_a_row(host: &str) -> [UdpSocket; 2] {
    loop {
        let first = UdpSocket::bind((host, 0)).unwrap();
        let next = first.local_addr().unwrap().port().saturating_add(1);
        if let Ok(second) = UdpSocket::bind((host, next)) {
            return [first, second];
        }
    }
}

/// Puts each worker of a node behind a socket, and says where worker 0 is.
fn publish(node: &Node, fronts: impl IntoIterator<Item = UdpSocket>) -> String {
    let at = fronts.into_iter().zip(0..).map(|(front, worker)| {
        let mut to = node.at;
        to.set_port(to.port() + worker);
        relay(front, to, Duration::ZERO)
    });
    node.url_at(at.collect::<Vec<_>>()[0])
}

/// Locks keys until each of two workers has granted some.
async fn reaches_both_workers(url: &str) {
    let builder = Client::builder().unreachable_after(Duration::from_secs(20));
    let client = ends("connecting", builder.connect(url)).await.unwrap();
    let mut met: HashSet<u16> = HashSet::new();
    for key in (0..).map(|number| format!("orders/{number}")) {
        let guard = ends("locking", client.lock(&key)).await.unwrap();
        ends("releasing", guard.release()).await.unwrap();
        met.insert(client.admin().route(&key).unwrap().worker.worker);
        if met.len() == 2 {
            break;
        }
    }
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_published_in_a_row_need_no_setting() {
    let node = Node::start(2);
    let url = publish(&node, in_a_row("127.0.0.2"));
    reaches_both_workers(&url).await;
}

/// As where one port is forwarded, and the machine is reachable by the others as they are.
#[tokio::test(flavor = "multi_thread")]
async fn one_published_port_hides_no_other() {
    let node = Node::start(2);
    let [front, _silent] = in_a_row("127.0.0.1");
    let url = publish(&node, [front]);
    reaches_both_workers(&url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_advertised_address_counts_for_all_workers() {
    let fronts = in_a_row("127.0.0.2");
    let advertise = fronts[0].local_addr().unwrap().to_string();
    let node = Node::start_with(2, &["--advertise", &advertise]);
    let url = publish(&node, fronts);
    reaches_both_workers(&url).await;
}

/// One of them by a name, which no certificate has.
#[tokio::test(flavor = "multi_thread")]
async fn each_worker_may_be_advertised_by_itself() {
    let fronts = ["127.0.0.2", "127.0.0.1"].map(|host| UdpSocket::bind((host, 0)).unwrap());
    let [first, second] = fronts.each_ref().map(|front| front.local_addr().unwrap());
    let advertise = format!("{first},localhost:{}", second.port());
    let node = Node::start_with(2, &["--advertise", &advertise]);
    let url = publish(&node, fronts);
    reaches_both_workers(&url).await;
}

/// What `server --check` says of an address to advertise, by flag or environment.
fn checked(advertise: &str, by_flag: bool) -> (Option<i32>, String) {
    let mut command = binary();
    command.args(["server", "--check", "--data-dir", "d", "--workers", "2"]);
    command.args(["--listen", "127.0.0.1:7500"]);
    match by_flag {
        true => command.args(["--advertise", advertise]),
        false => command.env("LOCKRING_ADVERTISE", advertise),
    };
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

#[test]
fn addresses_that_cannot_be_advertised_are_usage_errors() {
    for (advertise, why) in [
        ("a,b,c", "3 addresses for 2 workers"),
        ("", "no host"),
        ("a,", "no host"),
        (":7420", "no host"),
        ("a:0", "1 to 65535"),
        ("a:65536", "1 to 65535"),
        ("a:65535", "above 65535"),
        ("::1", "brackets"),
        ("[::1", "not closed"),
        ("a b", "neither an address nor a name"),
        ("1.2.3", "not an IPv4 address"),
        ("0.0.0.0", "cannot connect to 0.0.0.0"),
        ("[::]:7420", "cannot connect to ::"),
    ] {
        for by_flag in [true, false] {
            let (code, said) = checked(advertise, by_flag);
            assert!(code == Some(64) && said.contains(why), "{advertise:?}: {code:?} {said}");
        }
    }
    for advertise in ["a", "a:1", "[2001:db8::7]:7,10.0.0.7", "a.b-c:65535,a:9", "a:65534"] {
        let (code, said) = checked(advertise, false);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains(&format!("advertise {advertise}\n")), "{said}");
    }
}

/// An identity by a node's authority that expired long ago.
fn expired(node: &Node) -> String {
    let read = |name: &str| fs::read_to_string(node.identity().with_file_name(name)).unwrap();
    let (ca, key) = (read("ca.pem"), KeyPair::from_pem(&read("ca.key")).unwrap());
    let issuer = Issuer::from_ca_cert_pem(&ca, key).unwrap();
    let mut params = CertificateParams::default();
    let name = "spiffe://lockring/client/default/late".try_into().unwrap();
    params.subject_alt_names = vec![SanType::URI(name)];
    params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    let own_key = KeyPair::generate().unwrap();
    let own = params.signed_by(&own_key, &issuer).unwrap();
    [ca, own.pem(), own_key.serialize_pem()].concat()
}

#[test]
fn the_exit_code_and_the_message_say_what_is_wrong_with_the_way_to_a_node() {
    let (node, other) = (Node::start(1), Node::start(1));
    let late = node.identity().with_file_name("late.pem");
    fs::write(&late, expired(&node)).unwrap();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (at, good) = (node.at.to_string(), node.identity());
    for (at, identity, code, said) in [
        (&at, &late, 77, "has expired"),
        (&at, &other.identity(), 78, "another cluster"),
        (&silent.local_addr().unwrap().to_string(), &good, 69, "UDP to this port may be blocked"),
        (&closed.to_string(), &good, 69, "is a node running there?"),
        (&"no-such-host.invalid".to_owned(), &good, 69, "cannot be resolved"),
        (&"255.255.255.255:1".to_owned(), &good, 69, "no way to it"),
        (&"127.0.0.1:x".to_owned(), &good, 78, "port"),
    ] {
        let mut command = binary();
        // What does not pass is not waited for.
        let passes = code == 69;
        command.args(if passes { &["status"][..] } else { &["lock", "k", "-w", "1h"] });
        command.arg("--identity").arg(identity);
        command.arg("--endpoints").arg(format!("lockring://{at}"));
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}: {stderr}");
        assert!(stderr.contains(said), "{said}: {stderr}");
        assert_eq!(stderr.contains("is a node running"), said.starts_with("is a node"), "{stderr}");
    }
}

/// The node is made anew, for another cluster, while a client has a session: its calls end with the
/// cause, as the first contact would.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_between_a_session_and_its_node_is_told() {
    let mut node = Node::start(1);
    let builder = Client::builder().unreachable_after(Duration::from_secs(3));
    let client = ends("connecting", builder.connect(&node.url())).await.unwrap();
    ends("locking", client.lock("k")).await.unwrap().release().await.unwrap();
    node.end("TERM");
    fs::remove_dir_all(node.identity().parent().unwrap()).unwrap();
    node.start_again();
    for error in [
        ends("a claim", client.lock("k")).await.unwrap_err(),
        ends("a look", client.inspect("k")).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains("another cluster"), "{error}");
    }
}
