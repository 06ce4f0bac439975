//! Outputs that are closed or full: nothing panics, and no lock stays held that nobody can give
//! back.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod support;

use std::fs::{self, File};
use std::io::Read;
use std::process::{Command, Stdio};
use support::{Node, binary};

/// What a command may be given to write to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sink {
    /// A pipe that nobody reads.
    Closed,
    /// A device that has no space.
    Full,
}

impl Sink {
    fn open(self) -> Stdio {
        match self {
            Self::Closed => {
                let (reader, writer) = std::io::pipe().unwrap();
                drop(reader);
                writer.into()
            }
            Self::Full => File::options().write(true).open("/dev/full").unwrap().into(),
        }
    }
}

fn client(node: &Node, arguments: &[&str]) -> Command {
    let mut command = binary();
    command.args(arguments).env("LOCKRING_ENDPOINTS", node.url()).stdout(Stdio::null());
    command
}

/// Its exit code, and what it says on stderr.
fn outcome(command: &mut Command) -> (Option<i32>, String) {
    let mut child = support::Running(command.stderr(Stdio::piped()).spawn().unwrap());
    let mut stderr = child.0.stderr.take().unwrap();
    let said = std::thread::spawn(move || {
        let mut said = String::new();
        stderr.read_to_string(&mut said).unwrap();
        said
    });
    let mut status = None;
    support::await_that("the end of a command", || {
        status = child.0.try_wait().unwrap();
        status.is_some()
    });
    (status.unwrap().code(), said.join().unwrap())
}

fn is_free(node: &Node, key: &str) -> bool {
    outcome(&mut client(node, &["lock", "-n", key, "--", "true"])).0 == Some(0)
}

#[test]
fn whatever_is_printed_an_output_that_takes_nothing_is_told_and_never_a_panic() {
    let node = Node::start(1);
    let mut holder = client(&node, &["lock", "held", "-c", "echo; exec sleep 60"]);
    let mut holder = support::Running(holder.stdout(Stdio::piped()).spawn().unwrap());
    holder.0.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    let folder = tempfile::TempDir::new().unwrap();
    let data = format!("--data-dir={}", node.identity().parent().unwrap().display());
    let other = format!("--data-dir={}", folder.path().join("none").display());
    let identity =
        |sink| format!("--out={}", folder.path().join(format!("{sink:?}.pem")).display());
    let target = format!("--target={}", node.url());
    let bench = ["bench", "latency", "--duration=200ms", &target];
    for sink in [Sink::Closed, Sink::Full] {
        let identity = identity(sink);
        let commands: &[&[&str]] = &[
            &["locks"],
            &["locks", "-o", "json"],
            &["locks", "-o", "jsonl"],
            &["inspect", "held"],
            &["status"],
            &["route", "held", "-o", "json"],
            &["release", "free", "--force", "--yes"],
            &["completions", "bash"],
            &["cert", "client", "me", &data, &identity],
            &["server", "--check", &other],
            &["--help"],
            &["lock", "--help"],
            &["--version"],
            &bench,
            &[&bench[..], &["-o", "json"]].concat(),
        ];
        for arguments in commands {
            let (code, said) = outcome(client(&node, arguments).stdout(sink.open()));
            let expected = if sink == Sink::Full { 74 } else { 141 };
            assert_eq!(code, Some(expected), "{arguments:?} {sink:?}: {said}");
            assert!(!said.contains("panicked"), "{arguments:?} {sink:?}: {said}");
            let told = said.contains("cannot write to standard output");
            assert_eq!(told, sink == Sink::Full, "{arguments:?} {sink:?}: {said}");
            // Nobody hears either: the same end, as quietly.
            let mut deaf = client(&node, arguments);
            let deaf = deaf.stdout(sink.open()).stderr(sink.open()).status().unwrap();
            // A file that exists is not overwritten.
            let expected = if arguments[0] == "cert" { 78 } else { expected };
            assert_eq!(deaf.code(), Some(expected), "{arguments:?} {sink:?}");
        }
    }
}

/// A failure keeps its exit code where it cannot be told.
#[test]
fn a_closed_stderr_changes_no_exit_code() {
    let node = Node::start(1);
    for sink in [Sink::Closed, Sink::Full] {
        for (code, arguments) in [
            (0, &["lock", "k", "--", "true"][..]),
            (7, &["lock", "k", "-c", "exit 7"]),
            (127, &["lock", "k", "--", "/no/such/command"]),
            (64, &["lock"]),
            (64, &["release", "k", "--force"]),
            (64, &["no-such-command"]),
            (78, &["--identity=/no/such/file", "locks"]),
            (69, &["--endpoints=lockring://127.0.0.1:9", "locks"]),
            (0, &["locks", "--limit=0"]),
            (0, &["inspect", "k"]),
            (0, &["status"]),
        ] {
            let mut command = client(&node, arguments);
            command.env("LOCKRING_IDENTITY", node.identity()).stdout(Stdio::null());
            let status = command.stderr(sink.open()).status().unwrap();
            assert_eq!(status.code(), Some(code), "{arguments:?} {sink:?}");
        }
    }
}

#[test]
fn a_lock_whose_fence_or_token_nobody_has_is_given_back() {
    let node = Node::start(1);
    for sink in [Sink::Closed, Sink::Full] {
        for arguments in [&["lock", "k", "--ttl=1h"][..], &["lock", "k", "--print-token"]] {
            let (code, said) = outcome(client(&node, arguments).stdout(sink.open()));
            assert_eq!(code, Some(74), "{arguments:?} {sink:?}: {said}");
            assert!(said.contains("the lock is given back"), "{said}");
            assert!(is_free(&node, "k"), "{arguments:?} {sink:?}");
        }
    }
    // A closed stdout is the null device once a program runs.
    let mut closed = Command::new("sh");
    closed.args(["-c", "exec \"$0\" lock k --print-token >&-", env!("CARGO_BIN_EXE_lockring")]);
    closed.env("LOCKRING_ENDPOINTS", node.url());
    let mut discarded = client(&node, &["lock", "k", "--print-token"]);
    for command in [&mut closed, &mut discarded] {
        let (code, said) = outcome(command);
        assert_eq!(code, Some(74), "{said}");
        assert!(said.contains("token"), "{said}");
        assert!(is_free(&node, "k"));
    }
    // Where it is taken, it is held.
    let file = node.identity().with_file_name("token");
    let mut kept = client(&node, &["lock", "k", "--print-token"]);
    assert!(kept.stdout(File::create(&file).unwrap()).status().unwrap().success());
    assert!(!is_free(&node, "k"));
    let unlock = format!("--token-file={}", file.display());
    let renewed = outcome(client(&node, &["renew", &unlock]).stdout(Sink::Full.open()));
    assert_eq!(renewed.0, Some(74), "{}", renewed.1);
    assert_eq!(outcome(&mut client(&node, &["unlock", &unlock])).0, Some(0));
    assert!(is_free(&node, "k"));
}

#[test]
fn dev_serves_on_where_nobody_reads_what_it_says() {
    for sink in [Sink::Closed, Sink::Full] {
        let home = tempfile::TempDir::new().unwrap();
        let mut dev = binary();
        dev.args(["dev", "-v", "--workers=1", "--listen=127.0.0.1:0"]);
        dev.env("XDG_CONFIG_HOME", home.path()).stdout(sink.open()).stderr(sink.open());
        let mut dev = support::Running(dev.spawn().unwrap());
        let current = home.path().join("lockring/current");
        support::await_that("there is a context", || fs::exists(&current).unwrap());
        let mut lock = binary();
        lock.args(["lock", "k", "--", "true"]).env("XDG_CONFIG_HOME", home.path());
        assert!(lock.status().unwrap().success(), "{sink:?}");
        support::signal(&dev.0, "TERM");
        assert_eq!(dev.0.wait().unwrap().code(), Some(0), "{sink:?}");
    }
}
