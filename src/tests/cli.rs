//! The binary as a user meets it: a real node, real child processes, exit codes.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A private `dev` node with its own config folder.
struct Dev {
    child: Child,
    home: TempDir,
    stdout: BufReader<std::process::ChildStdout>,
    banner: String,
}

fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockring"));
    // The user's own settings must not reach the tests.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LOCKRING_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
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

    /// Runs a command and says its exit code, its stdout and its stderr.
    fn outcome(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = self.run(arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
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

/// A child that does not outlive its test, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _reaped_already = self.0.wait();
    }
}

fn signal(child: &Child, name: &str) {
    let status =
        Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap();
    assert!(status.success(), "kill -{name}");
}

/// Waits until something is so.
fn await_that(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(20), "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
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
    assert_eq!(holder.0.wait().unwrap().code(), Some(128 + 15));
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
    let arguments = ["lock", "c", "--ttl", "2s", "--grace", "10s", "-c", &script];
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
    assert_eq!(dev.outcome(&["renew", &token]).0, 0);
    assert_eq!(dev.outcome(&["renew", &token]).0, 0, "as often as wanted");
    assert_eq!(dev.outcome(&["unlock", &token]).0, 0);
    assert_eq!(dev.outcome(&["unlock", &token]).0, 79, "once only");
    assert_eq!(dev.outcome(&["renew", &token]).0, 79);
    assert_eq!(dev.outcome(&["unlock", "lrt1-00"]).0, 64);
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
    // Its certificates are still there, as nobody could remove them.
    let left = identity_of(&killed);
    let (code, _, said) = killed.outcome(&["status"]);
    assert_eq!(code, 69, "{said}");
    assert!(said.contains("\"dev\"") && said.contains("gone"), "{said}");
    fs::remove_dir_all(left.parent().unwrap().parent().unwrap()).unwrap();
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
