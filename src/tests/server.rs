//! `lockring server` as an operator meets it: how it starts, how it ends, what it issues.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod common;

use common::{Running, await_that, binary, signal};
use std::fs;
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// A node in a directory of its own.
struct Server {
    child: Running,
    folder: TempDir,
    at: String,
    /// Open for as long as the node may write to it.
    _stdout: Lines<BufReader<ChildStdout>>,
}

impl Server {
    fn start() -> Self {
        Self::start_in(TempDir::new().unwrap(), &[])
    }

    fn start_in(folder: TempDir, flags: &[&str]) -> Self {
        let mut command = binary();
        command.args(["server", "--listen", "127.0.0.1:0", "--admin", "none", "--workers", "1"]);
        command.args(flags).arg("--data-dir").arg(folder.path().join("data"));
        let mut child = Running(command.stdout(Stdio::piped()).spawn().unwrap());
        let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        let ready = lines.find_map(|line| {
            Some(line.unwrap().strip_prefix("ready on ")?.split(' ').next()?.to_owned())
        });
        Self { child, folder, at: ready.expect("it is ready"), _stdout: lines }
    }

    fn client(&self, identity: &str, arguments: &[&str]) -> Command {
        let mut command = binary();
        command.args(arguments).env("LOCKRING_ENDPOINTS", format!("lockring://{}", self.at));
        command.env("LOCKRING_IDENTITY", self.folder.path().join(identity));
        command
    }

    fn outcome(&self, identity: &str, arguments: &[&str]) -> (i32, String, String) {
        outcome(&self.client(identity, arguments).output().unwrap())
    }

    fn issue(&self, name: &str, arguments: &[&str]) -> (i32, String, String) {
        let mut command = binary();
        command.args(["cert", "client", name]).args(arguments).arg("--data-dir");
        command.arg(self.folder.path().join("data")).current_dir(self.folder.path());
        outcome(&command.output().unwrap())
    }

    fn stop(mut self, name: &str) -> (Option<i32>, TempDir) {
        signal(&self.child.0, name);
        (self.child.0.wait().unwrap().code(), self.folder)
    }
}

fn outcome(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[test]
fn what_an_identity_may_do_is_in_its_certificate() {
    let server = Server::start();
    assert_eq!(server.issue("ann", &["--namespace", "team-a"]).0, 0);
    assert_eq!(server.issue("ops", &["--namespace", "ops", "--role", "operator"]).0, 0);
    let mut held = server.client("ann.pem", &["lock", "job", "-q"]);
    let mut held = Running(held.stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(held.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("job fence"), "{line}");

    // A user looks at its own namespace, and no further.
    assert!(server.outcome("ann.pem", &["locks"]).1.contains("job"));
    for refused in [
        &["release", "job", "--force", "--yes"][..],
        &["locks", "--namespace", "ops"],
        &["inspect", "job", "--namespace", "ops"],
    ] {
        let (code, _, said) = server.outcome("ann.pem", refused);
        assert_eq!(code, 77, "{refused:?}: {said}");
        assert!(said.contains("operator"), "{refused:?}: {said}");
    }
    assert_eq!(server.outcome("ann.pem", &["lock", "mine", "--", "true"]).0, 0);
    // An operator looks anywhere, by name; the identity of a first start is one too.
    for identity in ["ops.pem", "data/client.pem"] {
        let (code, rows, said) = server.outcome(identity, &["locks"]);
        assert!(code == 0 && !rows.contains("job"), "{rows} {said}");
        let (code, rows, said) = server.outcome(identity, &["locks", "--namespace", "team-a"]);
        assert!(code == 0 && rows.contains("job"), "{rows} {said}");
        let inspect = ["inspect", "job", "--namespace", "team-a", "-o", "json"];
        assert!(server.outcome(identity, &inspect).1.contains("\"state\":\"holds\""));
    }
    let release = ["release", "job", "--force", "--yes", "--namespace", "team-a"];
    let (code, told, said) = server.outcome("ops.pem", &release);
    assert!(code == 0 && told.contains("1 ended"), "{told} {said}");
    assert_eq!(held.0.wait().unwrap().code(), Some(79));
}

/// Nobody reads what it says, and its log cannot be written: it serves on, and stops cleanly.
#[test]
fn a_node_whose_output_is_closed_serves_on() {
    let folder = TempDir::new().unwrap();
    let mut command = binary();
    command.args(["server", "--listen", "127.0.0.1:0", "--admin", "none", "--workers", "1", "-v"]);
    command.arg("--data-dir").arg(folder.path().join("data"));
    let mut child = Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    drop(child.0.stderr.take());
    let at = line.split(' ').nth(2).unwrap().to_owned();
    let mut lock = binary();
    lock.args(["lock", "k", "--", "true"]).env("LOCKRING_ENDPOINTS", format!("lockring://{at}"));
    lock.env("LOCKRING_IDENTITY", folder.path().join("data/client.pem"));
    for _ in 0..3 {
        signal(&child.0, "HUP");
        assert!(lock.status().unwrap().success());
    }
    signal(&child.0, "TERM");
    assert_eq!(child.0.wait().unwrap().code(), Some(0));
}

/// With no file left for the process, a health check is answered.
#[test]
fn a_health_check_is_answered_when_files_have_run_out() {
    let folder = TempDir::new().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 40; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_lockring")]);
    command.args(["server", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--workers", "1"]);
    command.arg("--data-dir").arg(folder.path().join("data"));
    let mut child = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let admin =
        lines.find_map(|line| Some(line.unwrap().strip_prefix("admin http://")?.to_owned()));
    let admin = admin.expect("it serves admin HTTP");
    let half_sent: Vec<TcpStream> = (0..60)
        .map(|_| {
            let mut stream = TcpStream::connect(&admin).unwrap();
            let _cut_off_perhaps = stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n");
            stream
        })
        .collect();
    let mut check = TcpStream::connect(&admin).unwrap();
    check.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
    check.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    check.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(half_sent);
    signal(&child.0, "TERM");
    assert_eq!(child.0.wait().unwrap().code(), Some(0));
}

/// What the kernel says of a process, in KiB.
fn kib(child: &Child, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Sessions that held many locks are gone: so is the memory that they took, also after the second
/// of them, when an allocator has learned what sizes there are.
#[test]
fn the_memory_of_a_peak_is_given_back() {
    let server = Server::start();
    let before = kib(&server.child.0, "VmRSS:");
    let identity = server.folder.path().join("data/client.pem");
    let target = format!("--target=lockring://{}?identity={}", server.at, identity.display());
    let bench = ["bench", "expiry", "--locks=400000", &target];
    for _ in 0..2 {
        // Whether it was fast enough is another test's matter.
        server.client("data/client.pem", &bench).stdout(Stdio::null()).status().unwrap();
    }
    let peak = kib(&server.child.0, "VmHWM:") - before;
    assert!(peak > 10 << 10, "a peak of {peak} KiB");
    await_that("most of it is given back", || {
        kib(&server.child.0, "VmRSS:").saturating_sub(before) < peak / 2
    });
}

/// As many small blocks, with others that stay in between: the tables of the cells.
#[test]
fn the_memory_of_long_keys_is_given_back() {
    let server = Server::start();
    let before = kib(&server.child.0, "VmRSS:");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let identity = server.folder.path().join("data/client.pem");
        let url = format!("lockring://{}", server.at);
        let client = lockring::Client::builder().identity(identity).connect(&url).await.unwrap();
        let mut guards = Vec::new();
        while guards.len() < 40_000 {
            let mut claims = tokio::task::JoinSet::new();
            for number in 0..500 {
                let key = format!("{:0>400}", guards.len() + number);
                let client = client.clone();
                claims.spawn(async move { client.lock(key).await.unwrap() });
            }
            guards.extend(claims.join_all().await);
        }
        // What is used is looked at once a second.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        drop(guards);
        client.close().await;
    });
    let peak = kib(&server.child.0, "VmHWM:") - before;
    assert!(peak > 10 << 10, "a peak of {peak} KiB");
    await_that("most of it is given back", || {
        kib(&server.child.0, "VmRSS:").saturating_sub(before) < peak / 2
    });
}

/// Also `node.pem`: a client's name is no reason to lose the only copy of a key.
#[test]
fn an_issued_certificate_takes_no_file_s_place() {
    let server = Server::start();
    let data = server.folder.path().join("data");
    let before = fs::read(data.join("node.pem")).unwrap();
    let out = format!("--out={}", data.join("node.pem").display());
    let (code, _, said) = server.issue("node", &[&out]);
    assert!(code == 78 && said.contains("never overwritten"), "{code} {said}");
    assert_eq!(fs::read(data.join("node.pem")).unwrap(), before);
    assert_eq!(server.issue("ann", &[]).0, 0);
    assert_eq!(server.issue("ann", &[]).0, 78);
}

#[test]
fn each_signal_to_stop_stops_cleanly_and_a_hangup_does_not_stop() {
    for name in ["INT", "TERM"] {
        let server = Server::start();
        signal(&server.child.0, "HUP");
        assert_eq!(server.outcome("data/client.pem", &["lock", "k", "--", "true"]).0, 0);
        let (code, folder) = server.stop(name);
        assert_eq!(code, Some(0), "{name}");
        let again = Server::start_in(folder, &[]);
        let (_, status, _) = again.outcome("data/client.pem", &["status", "-o", "json"]);
        assert!(status.contains("\"grace_left_ms\":0"), "{name}: {status}");
    }
}

/// A second signal does not wait for locks to be given back; it is no clean stop with one held.
#[test]
fn a_second_signal_does_not_wait_for_locks() {
    let server = Server::start_in(TempDir::new().unwrap(), &["--drain", "1h"]);
    let mut holder = server.client("data/client.pem", &["lock", "k"]);
    let mut holder = Running(holder.stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(holder.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("k fence"), "{line}");
    signal(&server.child.0, "TERM");
    std::thread::sleep(Duration::from_millis(300));
    let (code, folder) = server.stop("TERM");
    assert_eq!(code, Some(0));
    let again = Server::start_in(folder, &[]);
    let (_, status, _) = again.outcome("data/client.pem", &["status"]);
    assert!(status.contains("grants in"), "{status}");
}

#[test]
fn who_insists_may_recover_to_a_shorter_ttl_and_is_told_the_risk() {
    let server = Server::start();
    let lock = ["lock", "nightly", "--ttl", "5m", "--", "true"];
    assert_eq!(server.outcome("data/client.pem", &lock).0, 0);
    let (_, folder) = server.stop("KILL");
    // Until then: until when and for whose sake it waits is said wherever somebody looks.
    let again = Server::start_in(folder, &[]);
    for command in [&["status"][..], &["status", "-o", "json"], &["inspect", "other"]] {
        let (_, told, said) = again.outcome("data/client.pem", command);
        assert!([told, said].concat().contains("default/local ("), "{command:?}");
    }
    let (_, folder) = again.stop("KILL");
    let recover = |more: &[&str]| {
        let mut command = binary();
        command.args(["recover", "--epoch-floor", "9"]).args(more).arg("--data-dir");
        outcome(&command.arg(folder.path().join("data")).output().unwrap())
    };
    let (code, told, said) = recover(&[]);
    assert!(code == 0 && told.contains("300s") && said.is_empty(), "{told} {said}");
    let (code, told, said) = recover(&["--longest-ttl", "10s"]);
    assert!(code == 0 && told.contains("10s") && said.contains("300s"), "{told} {said}");
    assert!(said.contains("may be granted to somebody else"), "{said}");
}

#[test]
fn a_server_that_cannot_start_says_why_and_what_to_do() {
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("data");
    let start = |data: &Path, listen: &str| {
        let mut command = binary();
        command.args(["server", "--admin", "none", "--workers", "1", "--listen", listen]);
        command.arg("--data-dir").arg(data).stdout(Stdio::piped());
        command
    };
    let refused = |data: &Path, listen: &str| {
        let output = start(data, listen).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let (code, said) = refused(&data, &taken.local_addr().unwrap().to_string());
    assert_eq!(code, Some(78));
    assert!(said.contains("is in use"), "{said}");

    let mut running = Running(start(&data, "127.0.0.1:0").spawn().unwrap());
    let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("ready")));
    let (code, said) = refused(&data, "127.0.0.1:0");
    assert_eq!(code, Some(78));
    assert!(said.contains("in use by another"), "{said}");
    // Issuing a client certificate needs no running node and disturbs none.
    let identity = folder.path().join("ann.pem");
    let issued = binary()
        .args(["cert", "client", "ann", "--namespace", "team-a", "--data-dir"])
        .arg(&data)
        .arg("--out")
        .arg(&identity)
        .output()
        .unwrap();
    assert!(issued.status.success(), "{}", String::from_utf8_lossy(&issued.stderr));
    assert!(fs::read_to_string(&identity).unwrap().contains("PRIVATE KEY"));
    signal(&running.0, "TERM");
    assert_eq!(running.0.wait().unwrap().code(), Some(0));

    fs::write(data.join("state.redb"), b"not a database").unwrap();
    let (code, said) = refused(&data, "127.0.0.1:0");
    assert_eq!(code, Some(78));
    assert!(said.contains("state.redb") && said.contains("lockring recover"), "{said}");
    // What the message says to do helps, and the node then waits for the leases of before.
    let recovered = binary()
        .args(["recover", "--epoch-floor", "7", "--longest-ttl", "30s", "--data-dir"])
        .arg(&data)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&recovered.stdout).into_owned();
    assert!(recovered.status.success() && told.contains("above epoch 7"), "{told}");
    let mut running = Running(start(&data, "127.0.0.1:0").stderr(Stdio::piped()).spawn().unwrap());
    let mut log = String::new();
    BufReader::new(running.0.stderr.take().unwrap()).read_line(&mut log).unwrap();
    assert!(log.contains("every earlier lease has surely ended"), "{log}");
    signal(&running.0, "TERM");
    assert_eq!(running.0.wait().unwrap().code(), Some(0));

    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let (code, said) = refused(&file, "127.0.0.1:0");
    assert_eq!(code, Some(78));
    assert!(said.contains("data directory"), "{said}");
}

/// What a flag says, the environment can say too.
#[test]
fn switches_and_the_log_format_come_from_the_environment() {
    let folder = TempDir::new().unwrap();
    let check = |variable: &str, value: &str| {
        let mut command = binary();
        command.args(["server", "--data-dir"]).arg(folder.path().join("data"));
        let output = command.env("LOCKRING_CHECK", "1").env(variable, value).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned(), said)
    };
    for value in ["1", "true", "yes", "0", "false", ""] {
        let (done, settings, said) = check("LOCKRING_QUIET", value);
        assert!(done && settings.contains("workers"), "{value:?}: {said}");
    }
    assert!(check("LOCKRING_WORKERS", "4").1.contains("workers 4"));
    let admin = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = admin.local_addr().unwrap().to_string();
    let mut command = binary();
    command.args(["server", "--listen", "127.0.0.1:0", "--workers", "1", "--data-dir"]);
    let taken =
        command.arg(folder.path().join("data")).env("LOCKRING_ADMIN", &at).output().unwrap();
    let said = String::from_utf8_lossy(&taken.stderr);
    assert_eq!(taken.status.code(), Some(78), "{said}");
    assert!(said.contains(&at) && said.contains("--admin"), "{said}");
    // That start granted nothing, so the next one does not wait; the one after a kill does.
    let start = || {
        let mut command = binary();
        command.args(["server", "--listen", "127.0.0.1:0", "--admin", "none", "--data-dir"]);
        command.arg(folder.path().join("data")).env("LOCKRING_LOG_FORMAT", "json");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = Running(command.spawn().unwrap());
        let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().starts_with("ready")));
        running.0.kill().unwrap();
        let mut log = String::new();
        running.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        log
    };
    let first = start();
    assert!(!first.contains("every earlier lease"), "{first}");
    let second = start();
    assert!(second.starts_with('{') && second.contains("\"level\":\"WARN\""), "{second}");
    assert!(second.contains("every earlier lease"), "{second}");
}
