//! The binary as a user meets it: a real node, real child processes, exit codes.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod common;

use common::{Running, await_that, binary, signal};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

/// A private `dev` node with its own config folder.
struct Dev {
    child: Child,
    home: TempDir,
    stdout: BufReader<std::process::ChildStdout>,
    banner: String,
}

impl Dev {
    fn start() -> Self {
        let home = TempDir::new().unwrap();
        let mut child = binary()
            .args(["dev", "--listen", "127.0.0.1:0", "--workers", "2"])
            .env("XDG_CONFIG_HOME", home.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut banner = String::new();
        while !banner.lines().any(|line| line.starts_with("ready")) {
            assert!(stdout.read_line(&mut banner).unwrap() > 0, "no ready line in {banner:?}");
        }
        Self { child, home, stdout, banner }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = binary();
        command.args(arguments).env("XDG_CONFIG_HOME", self.home.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command and says its exit code as a shell sees it, its stdout and its stderr.
    fn outcome(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = self.run(arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let by_signal = || 128 + output.status.signal().unwrap();
        let code = output.status.code().unwrap_or_else(by_signal);
        (code, text(&output.stdout), text(&output.stderr))
    }

    fn stop(&mut self) {
        signal(&self.child, "TERM");
        self.child.wait().unwrap();
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped_already = self.child.wait();
    }
}

fn fence_of(output: &str) -> u64 {
    output.rsplit('=').next().unwrap().trim().parse().unwrap_or_else(|_| panic!("{output:?}"))
}

#[test]
fn a_command_runs_under_its_lock_and_fences_grow() {
    let dev = Dev::start();
    assert!(dev.banner.contains("lockring://127.0.0.1:"), "{}", dev.banner);
    let script = "echo $LOCKRING_KEY $LOCKRING_NODE $LOCKRING_TTL_MS =$LOCKRING_FENCE";
    let (code, first, _) = dev.outcome(&["lock", "demo", "-c", script]);
    assert_eq!(code, 0);
    assert!(first.starts_with("demo 1 10000 ="), "{first}");
    let (_, second, _) = dev.outcome(&["lock", "demo", "--", "sh", "-c", script]);
    assert!(fence_of(&second) > fence_of(&first), "{first} then {second}");
}

#[test]
fn every_way_to_end_has_its_exit_code() {
    let dev = Dev::start();
    let code = |arguments: &[&str]| dev.outcome(arguments).0;
    assert_eq!(code(&["lock", "k", "--", "true"]), 0);
    assert_eq!(code(&["lock", "k", "--", "sh", "-c", "exit 7"]), 7);
    assert_eq!(code(&["lock", "k", "--", "sh", "-c", "kill -9 $$"]), 128 + 9);
    assert_eq!(code(&["lock", "k", "--", "/no/such/command"]), 127);
    assert_eq!(code(&["lock", "k", "--", "/"]), 126);
    assert_eq!(code(&["lock"]), 64);
    assert_eq!(code(&["lock", "k", "--ttl", "soon", "--", "true"]), 64);
    assert_eq!(code(&["lock", "", "--", "true"]), 64);
    assert_eq!(code(&["--identity", "/no/such/file", "status"]), 78);
    let elsewhere = ["--endpoints", "lockring://127.0.0.1:9", "status"];
    let identity = format!("--identity={}", identity_of(&dev).display());
    assert_eq!(code(&[&[identity.as_str()], &elsewhere[..]].concat()), 69);
}

fn identity_of(dev: &Dev) -> PathBuf {
    let line = dev.banner.lines().find(|line| line.trim().starts_with("identity")).unwrap();
    line.split_whitespace().last().unwrap().into()
}

#[test]
fn busy_is_75_or_as_asked_and_names_the_holder() {
    let dev = Dev::start();
    let marker = dev.home.path().join("held");
    let script = format!("touch {}; sleep 60", marker.display());
    let mut holder = Running(dev.command(&["lock", "busy", "-c", &script]).spawn().unwrap());
    await_that("the lock is held", || marker.exists());
    let (code, _, said) = dev.outcome(&["lock", "-n", "busy", "--", "true"]);
    assert_eq!(code, 75);
    assert!(said.contains("is held by") && said.contains("0 waiting"), "{said}");
    assert_eq!(dev.outcome(&["lock", "-w", "0.2", "busy", "--", "true"]).0, 75);
    assert_eq!(dev.outcome(&["lock", "-n", "-E", "1", "busy", "--", "true"]).0, 1);
    assert_eq!(dev.outcome(&["lock", "-n", "-s", "busy", "--", "true"]).0, 75);
    let (code, _, said) = dev.outcome(&["lock", "-n", "--capacity", "3", "busy", "--", "true"]);
    assert_eq!(code, 75);
    assert!(said.contains("in use as a lock"), "{said}");
    let (_, rows, _) = dev.outcome(&["locks", "bu", "-o", "json"]);
    assert!(rows.starts_with("[{\"key\":\"busy\",\"mode\":\"X\""), "{rows}");
    // SIGTERM is passed on; the child's end is ours.
    signal(&holder.0, "TERM");
    assert_eq!(holder.0.wait().unwrap().signal(), Some(15));
    assert_eq!(dev.outcome(&["lock", "-n", "busy", "--", "true"]).0, 0);
}

#[test]
fn shared_holds_and_permits_go_together_up_to_their_limit() {
    let dev = Dev::start();
    let inner = env!("CARGO_BIN_EXE_lockring");
    let nested = |flags: &str, key: &str| format!("{inner} lock -n {flags} {key} -- true; echo $?");
    let (_, two_readers, _) = dev.outcome(&["lock", "-s", "r", "-c", &nested("-s", "r")]);
    assert_eq!(two_readers, "0");
    let (_, reader_and_writer, _) = dev.outcome(&["lock", "-s", "r", "-c", &nested("", "r")]);
    assert_eq!(reader_and_writer, "75");
    let permits = ["lock", "--permits", "2", "--capacity", "3", "p", "-c"];
    let run = |flags: &str| {
        let script = nested(flags, "p");
        dev.outcome(&[&permits[..], &[script.as_str()]].concat()).1
    };
    assert_eq!(run("--capacity 3"), "0");
    assert_eq!(run("--permits 2 --capacity 3"), "75");
    assert_eq!(run("--capacity 4"), "75");
}

#[test]
fn a_forced_release_stops_the_command_and_raises_the_fence() {
    let dev = Dev::start();
    let marker = dev.home.path().join("fence");
    let script = format!("echo =$LOCKRING_FENCE > {}; sleep 60", marker.display());
    let holder = dev.command(&["lock", "f", "--grace", "1s", "-c", &script]).spawn();
    let mut holder = Running(holder.unwrap());
    await_that("the lock is held", || fs::read_to_string(&marker).is_ok_and(|text| text.len() > 2));
    assert_eq!(dev.outcome(&["release", "f", "--force"]).0, 64, "no terminal to ask on");
    assert_eq!(dev.outcome(&["release", "f", "--force", "--yes"]).0, 0);
    assert_eq!(holder.0.wait().unwrap().code(), Some(79));
    let (_, next, _) = dev.outcome(&["lock", "f", "-c", "echo =$LOCKRING_FENCE"]);
    assert!(fence_of(&next) > fence_of(&fs::read_to_string(&marker).unwrap()));
}

#[test]
fn the_command_is_stopped_before_the_lock_can_be_granted_again_when_contact_is_lost() {
    let mut dev = Dev::start();
    let marker = dev.home.path().join("ended");
    // It notes SIGTERM and will not go: only SIGKILL, at the end of the grace, ends it.
    let script =
        format!("trap 'echo term > {}' TERM; while :; do sleep 0.1; done", marker.display());
    let arguments = ["lock", "c", "--ttl", "2s", "-c", &script];
    let mut holder = Running(dev.command(&arguments).stderr(Stdio::piped()).spawn().unwrap());
    await_that("the lock is held", || dev.outcome(&["lock", "-n", "c", "--", "true"]).0 == 75);
    dev.child.kill().unwrap();
    dev.child.wait().unwrap();
    assert_eq!(holder.0.wait().unwrap().code(), Some(79));
    assert_eq!(fs::read_to_string(&marker).unwrap().trim(), "term");
}

#[test]
fn a_hold_outlives_its_process_by_token() {
    let dev = Dev::start();
    let (code, token, _) = dev.outcome(&["lock", "t", "--ttl", "30s", "--print-token"]);
    assert_eq!(code, 0);
    assert!(token.starts_with("lrt1-"), "{token}");
    assert_eq!(dev.outcome(&["lock", "-n", "t", "--", "true"]).0, 75);
    // By each of the ways that do not show it to everybody on the machine.
    let file = dev.home.path().join("token");
    fs::write(&file, format!("{token}\n")).unwrap();
    let by_file = format!("--token-file={}", file.display());
    let by_environment = |command: &str, token: &str| {
        dev.command(&[command]).env("LOCKRING_TOKEN", token).status().unwrap().code()
    };
    assert_eq!(dev.outcome(&["renew", &by_file]).0, 0);
    assert_eq!(by_environment("renew", &token), Some(0), "as often as wanted");
    let mut piped = dev.command(&["unlock"]).stdin(Stdio::piped()).spawn().unwrap();
    piped.stdin.take().unwrap().write_all(token.as_bytes()).unwrap();
    assert_eq!(piped.wait().unwrap().code(), Some(0));
    assert_eq!(by_environment("unlock", &token), Some(79), "once only");
    assert_eq!(dev.outcome(&["renew", &by_file]).0, 79);
    assert_eq!(by_environment("unlock", "lrt1-00"), Some(64));
    assert_eq!(dev.outcome(&["unlock", &token]).0, 64, "never as an argument");
    assert_eq!(dev.outcome(&["unlock"]).0, 64, "nothing on standard input");
    assert_eq!(dev.outcome(&["unlock", "--token-file=/no/such/file"]).0, 78);
    assert_eq!(dev.outcome(&["lock", "-n", "t", "--", "true"]).0, 0);
}

#[test]
fn a_context_ends_with_its_node_and_one_left_behind_is_named_as_such() {
    let mut dev = Dev::start();
    dev.stop();
    let mut rest = String::new();
    while dev.stdout.read_line(&mut rest).unwrap() > 0 {}
    let (code, _, said) = dev.outcome(&["status"]);
    assert_eq!(code, 78, "{said}");
    assert!(said.contains("lockring dev"), "{said}");

    let mut killed = Dev::start();
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    // The identity of its client is still there, as nobody could remove it; no key of anybody who
    // could make others is.
    let left = identity_of(&killed);
    let files: Vec<_> = fs::read_dir(left.parent().unwrap()).unwrap().collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let (code, _, said) = killed.outcome(&["status"]);
    assert_eq!(code, 69, "{said}");
    assert!(said.contains("\"dev\"") && said.contains("gone"), "{said}");
    fs::remove_dir_all(left.parent().unwrap()).unwrap();
}

#[test]
fn dev_takes_another_port_when_its_own_is_taken_and_says_so() {
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let home = TempDir::new().unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let child = binary()
        .args(["dev", "--workers", "1", "--listen", &at])
        .env("XDG_CONFIG_HOME", home.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = Running(child.unwrap());
    let mut said = String::new();
    BufReader::new(child.0.stderr.take().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains("is in use, took"), "{said}");
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("ready")));
    signal(&child.0, "INT");
    assert_eq!(child.0.wait().unwrap().code(), Some(0));
}

/// A closed terminal, or a log rotation, must not end everybody's locks.
#[test]
fn a_hangup_is_ignored() {
    let mut dev = Dev::start();
    for _ in 0..3 {
        signal(&dev.child, "HUP");
    }
    assert_eq!(dev.outcome(&["lock", "k", "--", "true"]).0, 0);
    assert!(dev.child.try_wait().unwrap().is_none());
    signal(&dev.child, "TERM");
    assert_eq!(dev.child.wait().unwrap().code(), Some(0));
}

#[test]
fn looking_shows_what_is_there() {
    let dev = Dev::start();
    let (code, status, _) = dev.outcome(&["status", "-o", "jsonl"]);
    assert_eq!(code, 0);
    assert!(status.contains("\"cells\":16384") && status.contains("\"workers\":2"), "{status}");
    let (_, route, _) = dev.outcome(&["route", "orders/42", "-o", "json"]);
    assert!(route.contains("\"hash\":\"fc27aa1025285134\""), "{route}");
    let (_, nobody, said) = dev.outcome(&["inspect", "orders/42", "-o", "json"]);
    assert_eq!(nobody, "[]");
    assert!(said.contains("is free"), "{said}");
    let (code, script, _) = dev.outcome(&["completions", "bash"]);
    assert!(code == 0 && script.contains("_lockring"));
}

/// Outside its range a TTL or a grace is refused before anything is asked of a node; above what the
/// node allows, the one that holds is told.
#[test]
fn what_is_asked_for_is_kept_or_said_not_to_be() {
    let dev = Dev::start();
    for arguments in [
        &["lock", "k", "--ttl", "999ms", "--", "true"][..],
        &["lock", "k", "--ttl", "0", "--print-token"],
        &["lock", "k", "--ttl", "61m"],
        &["lock", "k", "--grace", "4s", "--", "true"],
        &["lock", "k", "--ttl", "2s", "--grace", "1s", "--", "true"],
        &["recover", "--epoch-floor=1", "--data-dir=/no/such/dir", "--longest-ttl", "2h"],
        &["recover", "--epoch-floor=1", "--data-dir=/no/such/dir", "--longest-ttl", "1ms"],
    ] {
        let nowhere = ["--endpoints", "lockring://127.0.0.1:9"];
        let (code, _, said) = dev.outcome(&[&nowhere[..], arguments].concat());
        assert_eq!(code, 64, "{arguments:?}: {said}");
        assert!(said.contains("1s to 1h") || said.contains("third of --ttl"), "{said}");
    }
    let script = "echo $LOCKRING_TTL_MS";
    let long = ["lock", "k", "--ttl", "1h", "--grace", "15m", "-c", script];
    let (code, ttl, said) = dev.outcome(&long);
    assert_eq!((code, ttl.as_str()), (0, "600000"));
    for told in ["3600s", "ttl=600s", "grace=200s"] {
        assert!(said.contains(told), "{told}: {said}");
    }
    let quiet = dev.outcome(&[&["-q"], &long[..]].concat());
    assert_eq!(quiet, (0, "600000".to_owned(), String::new()));
    for kept in [["--ttl", "10m"], ["--ttl", "1s"], ["--ttl", "1500.5ms"], ["--grace", "3s"]] {
        let (code, _, said) = dev.outcome(&[&["lock", "k"], &kept[..], &["--", "true"]].concat());
        assert_eq!((code, said.as_str()), (0, ""), "{kept:?}");
    }
    // A wait beyond all times is one without end.
    let (code, _, said) = dev.outcome(&["lock", "k", "-w", "999999999999h", "-c", script]);
    assert_eq!((code, said.as_str()), (0, ""));
}
