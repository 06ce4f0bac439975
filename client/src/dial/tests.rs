//! Dials against a table of who answers.

use super::*;
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
const PORT: u16 = 7420;

/// An attempt that nobody answers ends after so long, as one at QUIC does: what must not wait for
/// it is done long before.
const SILENCE: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_secs(10);

#[derive(Clone)]
enum Does {
    Answer,
    KeepSilent,
    Fail(Cause),
}

/// Connects as the table says; who is not in it keeps silent. The address is what comes of it.
fn net(table: &[(IpAddr, Does)]) -> impl Fn(SocketAddr) -> Attempt<SocketAddr> + use<> {
    let table: HashMap<IpAddr, Does> = table.iter().cloned().collect();
    move |at| {
        let does = table.get(&at.ip()).cloned().unwrap_or(Does::KeepSilent);
        Box::pin(async move {
            match does {
                Does::Answer => Ok(at),
                Does::Fail(cause) => Err(WireError::connect(&at, cause)),
                Does::KeepSilent => {
                    sleep(SILENCE).await;
                    Err(WireError::connect(&at, Cause::Silent(SILENCE)))
                }
            }
        })
    }
}

fn named(name: &str) -> Seed {
    Seed { host: Host::Name(name.to_owned()), port: PORT }
}

fn fixed(addresses: &[IpAddr]) -> Resolver {
    let addresses = addresses.to_vec();
    Resolver::new(move |_| Ok(addresses.clone()))
}

/// Where the dial leads to, if it does so before an attempt at a silent address has ended.
async fn soon<T>(dial: impl Future<Output = Result<Reached<T>, WireError>>) -> T {
    let begun = Instant::now();
    let reached = dial.await.unwrap().by;
    assert!(begun.elapsed() < SOON, "it waited for who is silent: {:?}", begun.elapsed());
    reached
}

#[tokio::test]
async fn a_dead_address_beside_a_living_one_costs_little() {
    let resolver = fixed(&[A, B]);
    for dead in [Does::KeepSilent, Does::Fail(Cause::Refused)] {
        let net = net(&[(A, dead), (B, Does::Answer)]);
        assert_eq!(soon(dial(&resolver, &[named("n")], net)).await.ip(), B);
    }
    // In order, if all of them live.
    let net = net(&[(A, Does::Answer), (B, Does::Answer)]);
    assert_eq!(soon(dial(&resolver, &[named("n")], net)).await.ip(), A);
}

#[tokio::test]
async fn each_dial_asks_the_name_service_anew() {
    let now = std::sync::Arc::new(Mutex::new(A));
    let asked = std::sync::Arc::clone(&now);
    let resolver = Resolver::new(move |_| Ok(vec![*asked.lock().unwrap()]));
    let net = net(&[(A, Does::Answer), (B, Does::Answer)]);
    assert_eq!(soon(dial(&resolver, &[named("n")], &net)).await.ip(), A);
    *now.lock().unwrap() = B;
    assert_eq!(soon(dial(&resolver, &[named("n")], &net)).await.ip(), B);
}

/// A pod that moves, or a record that fails over, while clients are dialling already.
#[tokio::test]
async fn a_record_that_changes_during_a_dial_is_noticed() {
    let asked = AtomicBool::new(false);
    let resolver = Resolver::new(move |_| match asked.swap(true, Ordering::SeqCst) {
        false => Ok(vec![A]),
        true => Ok(vec![B]),
    });
    let net = net(&[(A, Does::KeepSilent), (B, Does::Answer)]);
    assert_eq!(soon(dial(&resolver, &[named("n")], net)).await.ip(), B);
}

/// It hangs, fails or knows nothing: who was met before is met again, and so is whoever else has an
/// address.
#[tokio::test]
async fn a_name_service_without_an_answer_stops_nobody_who_has_an_address() {
    for trouble in [None, Some(Err("the server failed".to_owned())), Some(Ok(Vec::new()))] {
        let (asked, answer) = (AtomicBool::new(false), trouble.clone());
        let resolver = Resolver::new(move |name| {
            if name == "n" && !asked.swap(true, Ordering::SeqCst) {
                return Ok(vec![A]);
            }
            let hang = || {
                std::thread::sleep(SILENCE);
                Err("too late".to_owned())
            };
            answer.clone().unwrap_or_else(hang)
        });
        let both = net(&[(A, Does::Answer), (B, Does::Answer)]);
        for _ in 0..2 {
            let reached = soon(dial(&resolver, &[named("n")], &both)).await;
            assert_eq!(reached.ip(), A, "{trouble:?}");
        }
        let literal = Seed { host: Host::Ip(B), port: PORT };
        let reached = soon(dial(&resolver, &[named("other"), literal], &both)).await;
        assert_eq!(reached.ip(), B, "{trouble:?}");
        // Nobody else has one.
        let error = dial(&resolver, &[named("other")], &both).await.err().expect("an error");
        assert!(matches!(error.cause(), Some(Cause::Unresolvable(_))), "{trouble:?}: {error}");
    }
}

#[tokio::test]
async fn of_several_errors_that_counts_which_says_most() {
    let resolver = fixed(&[A, B]);
    let unreachable = Cause::NoRoute("no route".to_owned());
    for (a, b, counts) in [
        (unreachable.clone(), Cause::NodeForeign, Cause::NodeForeign),
        (Cause::Refused, unreachable.clone(), Cause::Refused),
        (Cause::OursForeign, Cause::NodeForeign, Cause::OursForeign),
    ] {
        let net = net(&[(A, Does::Fail(a)), (B, Does::Fail(b))]);
        let error = dial(&resolver, &[named("n")], net).await.err().expect("an error");
        assert_eq!(error.cause(), Some(&counts));
    }
    let nowhere = dial(&resolver, &[], net(&[])).await.err().expect("an error");
    assert!(nowhere.to_string().contains("no address"), "{nowhere}");
}

/// A node that is starting, beside an address where nobody is.
#[tokio::test]
async fn who_has_refused_is_tried_again_while_another_keeps_silent() {
    let resolver = fixed(&[A, B]);
    let literals = [A, B].map(|ip| Seed { host: Host::Ip(ip), port: PORT });
    for targets in [&[named("n")][..], &literals] {
        let (refuses, answers) = (net(&[(A, Does::Fail(Cause::Refused))]), AtomicBool::new(false));
        let then = net(&[(A, Does::Answer)]);
        let starting = |at: SocketAddr| match at.ip() == A && answers.swap(true, Ordering::SeqCst) {
            true => then(at),
            false => refuses(at),
        };
        assert_eq!(soon(dial(&resolver, targets, starting)).await.ip(), A);
    }
}

/// It is waited for no longer than for the other.
#[tokio::test]
async fn trying_again_comes_to_an_end() {
    let resolver = fixed(&[A, B]);
    let tried = Mutex::new(Vec::new());
    let refusing = |at: SocketAddr| -> Attempt<SocketAddr> {
        tried.lock().unwrap().push(at.ip());
        let after = if at.ip() == A { Duration::from_millis(300) } else { LOOK_AGAIN * 3 };
        Box::pin(async move {
            sleep(after).await;
            Err(WireError::connect(&at, Cause::Refused))
        })
    };
    let ended = timeout(SOON, dial(&resolver, &[named("n")], refusing)).await;
    assert!(ended.expect("it ends").is_err());
    let tried = tried.into_inner().unwrap();
    assert!(tried.iter().filter(|ip| **ip == A).count() > 1, "{tried:?}");
}

/// As many attempts as a program with many links makes when its network is gone.
#[tokio::test]
async fn probes_take_few_open_files() {
    let nobody = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let at = nobody.local_addr().unwrap();
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let (before, mut most) = (open(), 0);
    let probes: Vec<_> = (0..600).map(|_| tokio::spawn(unreachable(at))).collect();
    let begun = Instant::now();
    while begun.elapsed() < PROBE_AFTER + PROBE_EVERY {
        most = most.max(open());
        sleep(Duration::from_millis(5)).await;
    }
    probes.iter().for_each(tokio::task::JoinHandle::abort);
    assert!(most < before + 300, "{most} open files, {before} before");
}
