//! Keys and labels as somebody who means harm chooses them: at every door they meet a terminal, a
//! log or a table as visible text on one line, and programs exactly; and every key can be named.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod common;

use common::{Running, await_that, binary, signal};
use lockring::Client;
use lockring_client::proto::Shown;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tempfile::TempDir;

/// Each a way to deceive whoever reads it. What a forged line would begin with is `FORGED`.
const HOSTILE: [&str; 14] = [
    "\u{1b}[31mred\u{1b}]0;owned\u{7}",
    "row\nFORGED  X  admin@db:1  1  9.9s  9.9s  0  1\n",
    "\rFORGED over the line",
    "c1 \u{9b}31m \u{85}FORGED",
    "gnp.\u{202e}exe.\u{2066}\u{2069}",
    "zero\u{200b}width\u{feff}\u{ad}\u{2060}",
    "line\u{2028}separator\u{2029}and\u{a0}space",
    "tag\u{e0041} filler\u{3164} selector\u{fe0f}",
    "\u{301}mark first",
    "tab\tback\u{8}space\u{7f}",
    "-x9",
    r"\x1b[31m \\ \n",
    "  demo  X  me  ",
    "plain gr\u{fc}n \u{65e5}\u{672c} $HOME `id` ;'\"",
];

/// The same as keys, and such as are no text.
fn keys() -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> = HOSTILE.iter().map(|text| text.as_bytes().to_vec()).collect();
    keys.extend([&b"job\xff"[..], b"cut \xe2\x80", b"\x9b31m\xff", b"zero\0byte"].map(Vec::from));
    keys
}

#[track_caller]
fn assert_visible(what: impl std::fmt::Debug, bytes: &[u8]) {
    let text = std::str::from_utf8(bytes);
    let text = text.unwrap_or_else(|_| panic!("{what:?}: {}", bytes.escape_ascii()));
    let harmful = |c: char| {
        (c.is_control() && c != '\n')
            || (c.is_whitespace() && c != '\n' && c != ' ')
            || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{3164}' | '\u{fe0f}' | '\u{e0041}')
    };
    assert!(!text.contains(harmful), "{what:?}: {text:?}");
    let forged = text.lines().find(|line| line.trim_start().starts_with("FORGED"));
    assert!(forged.is_none(), "{what:?}: {text:?}");
}

/// A node with all its doors, over its lives.
struct Node {
    folder: TempDir,
    child: Running,
    at: String,
    admin: String,
    lives: u32,
}

impl Node {
    fn start(folder: TempDir, lives: u32, listen: &str) -> Self {
        let mut command = binary();
        command.args(["server", "--admin", "127.0.0.1:0", "--workers", "1", "--listen", listen]);
        command.args(["-vv", if lives == 0 { "--log-format=text" } else { "--log-format=json" }]);
        command.arg("--data-dir").arg(folder.path().join("data"));
        let log = File::create(folder.path().join(format!("log{lives}"))).unwrap();
        let mut child = Running(command.stdout(Stdio::piped()).stderr(log).spawn().unwrap());
        let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        let mut after = |word: &str| {
            let line = lines.find_map(|line| Some(line.unwrap().strip_prefix(word)?.to_owned()));
            line.unwrap().split(' ').next().unwrap().to_owned()
        };
        let (at, admin) = (after("ready on "), after("admin http://"));
        std::thread::spawn(move || lines.count());
        Self { folder, child, at, admin, lives: lives + 1 }
    }

    /// Kills it, and starts it again where it was, if it is to live.
    fn kill(mut self) -> (TempDir, u32, String) {
        self.child.0.kill().unwrap();
        self.child.0.wait().unwrap();
        (self.folder, self.lives, self.at)
    }

    fn identity(&self) -> PathBuf {
        self.folder.path().join("data/client.pem")
    }

    fn url(&self) -> String {
        format!("lockring://{}?identity={}", self.at, self.identity().display())
    }

    /// Runs a command and says its exit code and what it has printed, all of it looked at.
    fn run<S: AsRef<OsStr> + std::fmt::Debug>(&self, arguments: &[S]) -> (i32, String, String) {
        let mut command = binary();
        command.args(arguments).env("LOCKRING_ENDPOINTS", self.url());
        let output = command.output().unwrap();
        assert_visible(arguments, &output.stdout);
        assert_visible(arguments, &output.stderr);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }

    fn json(&self, arguments: &[&str]) -> Vec<Value> {
        let (code, text, said) = self.run(&[arguments, &["-o", "json"]].concat());
        assert_eq!(code, 0, "{arguments:?}: {said}");
        serde_json::from_str(&text).unwrap()
    }

    /// Asks admin HTTP; what comes is looked at.
    fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.admin).unwrap();
        let ask = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(ask.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert_visible(path, body.as_bytes());
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        // Bodies come in one piece or in chunks, whose sizes stand on lines of their own.
        let body = if body.starts_with(['[', '{']) || !head.contains("chunked") {
            body.to_owned()
        } else {
            body.lines().filter(|line| line.starts_with(['[', '{'])).collect()
        };
        (status, body)
    }

    /// What it has logged in its last life, looked at.
    fn log(&self) -> String {
        let path = self.folder.path().join(format!("log{}", self.lives - 1));
        let bytes = fs::read(path).unwrap();
        assert_visible("the log", &bytes);
        String::from_utf8(bytes).unwrap()
    }

    /// A connection that is closed with somebody's own words, and one that says no hello.
    async fn rude_guests(&self) {
        use lockring_client::tls;
        let bundle = tls::Bundle::load(&self.identity()).unwrap();
        let at = self.at.parse().unwrap();
        let endpoint = tls::client_endpoint(at).unwrap();
        for words in HOSTILE {
            let config = tls::client_config(&bundle);
            let conn = endpoint.connect_with(config, at, "node.lockring").unwrap().await.unwrap();
            let (mut send, _recv) = conn.open_bi().await.unwrap();
            send.write_all(words.as_bytes()).await.unwrap();
            conn.close(quinn::VarInt::from_u32(0), words.as_bytes());
        }
        endpoint.wait_idle().await;
    }
}

/// The key of a row, exactly.
fn key_of(row: &Value) -> Vec<u8> {
    match row.get("key_hex").and_then(Value::as_str) {
        None => row["key"].as_str().unwrap().as_bytes().to_vec(),
        Some(hex) => (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect(),
    }
}

fn label_of(key: usize) -> &'static str {
    HOSTILE[key % HOSTILE.len()]
}

/// Every key held, and waited for, under hostile labels; the guards keep it so.
async fn hold_all(node: &Node) -> Vec<(Client, lockring::Guard)> {
    let mut held = Vec::new();
    for (index, key) in keys().into_iter().enumerate() {
        let ttl = Duration::from_secs(if index == 1 { 60 } else { 10 });
        let builder = Client::builder().label(label_of(index)).ttl(ttl);
        let client = builder.connect(&node.url()).await.unwrap();
        held.push((client.clone(), client.lock(&key).await.unwrap()));
        let waiting = Client::builder().label(label_of(index + 1));
        let waiting = waiting.connect(&node.url()).await.unwrap();
        tokio::spawn(async move { waiting.lock(&key).await });
    }
    held
}

fn the_commands_show(node: &Node) {
    for arguments in [&["locks"][..], &["locks", "-o", "jsonl"], &["status"]] {
        assert_eq!(node.run(arguments).0, 0);
    }
    let rows = node.json(&["locks"]);
    let mut listed: Vec<_> =
        rows.iter().map(|row| (key_of(row), row["holder"].as_str().unwrap())).collect();
    listed.sort();
    let mut expected: Vec<_> =
        keys().into_iter().enumerate().map(|(index, key)| (key, label_of(index))).collect();
    expected.sort();
    assert_eq!(listed, expected);
    for (index, key) in keys().iter().enumerate() {
        let shown = Shown(key).to_string();
        let (code, table, said) = node.run(&["inspect", &shown]);
        assert_eq!(code, 0, "{said}");
        assert!(said.starts_with(&shown) && table.lines().count() == 3, "{table}{said}");
        let parties = node.json(&["inspect", &shown]);
        assert_eq!(parties[0]["who"], label_of(index));
        assert_eq!(parties[1]["who"], label_of(index + 1));
        assert_eq!(key_of(&node.json(&["route", &shown])[0]), *key);
        assert_eq!(node.run(&["route", &shown]).0, 0);
        assert_eq!(key_of(&node.json(&["locks", &shown])[0]), *key);
        let (code, _, said) = node.run(&["lock", "-n", &shown, "--", "true"]);
        let holder = Shown(label_of(index));
        assert_eq!(code, 75);
        assert!(said.contains(&format!("{shown} is held by {holder} for")), "{said}");
        let semaphore = ["lock", "-n", "--capacity", "2", &shown, "--", "true"];
        assert_eq!(node.run(&semaphore).0, 75);
    }
    // What was typed in error is told, and nothing of it obeyed.
    for words in HOSTILE {
        let namespace = ["inspect", "k", "--namespace", words];
        let wrong = [OsString::from("inspect"), "--".into(), format!("{words}\\q").into()];
        assert_eq!((node.run(&namespace).0, node.run(&wrong).0), (64, 64), "{words:?}");
    }
}

fn the_pages_show(node: &Node) {
    let (status, locks) = node.get("/v1/locks?limit=1000");
    assert_eq!(status, 200);
    let locks: Value = serde_json::from_str(&locks).unwrap();
    let mut listed: Vec<_> = locks["rows"].as_array().unwrap().iter().map(key_of).collect();
    let mut expected = keys();
    listed.sort();
    expected.sort();
    assert_eq!(listed, expected);
    let (_, one) = node.get("/v1/locks?prefix_hex=6a6f62fF");
    let one: Value = serde_json::from_str(&one).unwrap();
    assert_eq!(
        one["rows"].as_array().unwrap().iter().map(key_of).collect::<Vec<_>>(),
        [b"job\xff"]
    );
    let (_, sessions) = node.get("/v1/sessions?limit=1000");
    let sessions: Value = serde_json::from_str(&sessions).unwrap();
    let labels: Vec<_> =
        sessions["rows"].as_array().unwrap().iter().map(|row| row["label"].as_str()).collect();
    assert!(HOSTILE.iter().all(|label| labels.contains(&Some(label))), "{labels:?}");
    for path in ["/metrics", "/readyz", "/livez"] {
        let (status, text) = node.get(path);
        assert_eq!(status, 200);
        assert!(!text.contains("FORGED"), "{text}");
    }
    for path in ["?limit=0", "?limit=1001", "?prefix_hex=6", "?prefix_hex=+1", "?prefix_hex=%c3%bc"]
    {
        assert_eq!(node.get(&format!("/v1/locks{path}")).0, 400, "{path}");
    }
    assert_eq!(node.get("/v1/locks?limit=%1b[31m&cursor=%0aFORGED").0, 400);
}

/// What is printed of a lock that is held without a command, or by a token.
fn the_lines_of_holds_show(node: &Node) {
    for key in keys() {
        let shown = Shown([b"free ", key.as_slice()].concat()).to_string();
        let mut command = binary();
        command.args(["lock", &shown]).env("LOCKRING_ENDPOINTS", node.url());
        let mut holder = Running(command.stdout(Stdio::piped()).spawn().unwrap());
        let mut line = Vec::new();
        let mut stdout = BufReader::new(holder.0.stdout.take().unwrap());
        stdout.read_until(b'\n', &mut line).unwrap();
        signal(&holder.0, "TERM");
        holder.0.wait().unwrap();
        assert_visible(&shown, &line);
        assert!(line.starts_with(format!("{shown} fence ").as_bytes()), "{line:?}");
        let (code, token, _) = node.run(&["lock", "--print-token", &shown]);
        assert_eq!(code, 0);
        let file = node.folder.path().join("token");
        fs::write(&file, token).unwrap();
        let by_token = format!("--token-file={}", file.display());
        let (code, renewed, _) = node.run(&["renew", &by_token]);
        assert!(code == 0 && renewed.starts_with(&format!("{shown} fence ")), "{renewed}");
        assert_eq!(node.run(&["unlock", &by_token]).0, 0);
        let (code, _, said) = node.run(&["unlock", &by_token]);
        assert_eq!(code, 79, "{said}");
    }
}

/// On a terminal it is asked before a hold is ended by force.
fn the_question_shows(node: &Node) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let theirs = OsString::from_vec(ptsname(&ours, Vec::new()).unwrap().into_bytes());
    let mut ours = File::from(ours);
    for key in keys() {
        let shown = Shown(key).to_string();
        ours.write_all(b"n\n").unwrap();
        let mut command = binary();
        command.args(["release", "--force", &shown]).env("LOCKRING_ENDPOINTS", node.url());
        let terminal = File::options().read(true).write(true).open(&theirs).unwrap();
        let output = command.stdin(terminal).output().unwrap();
        assert_visible(&shown, &output.stderr);
        assert_eq!(output.status.code(), Some(1), "{shown}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with(&format!("End every hold of {shown}?")), "{said}");
        assert!(said.contains("nothing was changed"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_door_shows_what_others_wrote_and_obeys_none_of_it() {
    let node = Node::start(TempDir::new().unwrap(), 0, "127.0.0.1:0");
    let held = hold_all(&node).await;
    await_that("all wait in the queue", || {
        node.json(&["locks"]).iter().filter(|row| row["waiters"] == 1).count() == held.len()
    });
    the_commands_show(&node);
    the_pages_show(&node);
    the_lines_of_holds_show(&node);
    the_question_shows(&node);
    // The node may read what they send before it hears how they part.
    let closed = || node.log().matches("FORGED").count() >= 2;
    for _ in 0..20 {
        node.rude_guests().await;
        if closed() {
            break;
        }
    }
    await_that("the log has the words of a connection", closed);
    for key in keys().iter().skip(2) {
        let (code, told, _) = node.run(&["release", "--force", "--yes", &Shown(key).to_string()]);
        assert!(code == 0 && told.starts_with(&format!("{}: 1 ended", Shown(key))), "{told}");
    }
    // In its next life it waits for the sake of the session with the longest TTL, and says so.
    let (folder, lives, at) = node.kill();
    let node = Node::start(folder, lives, &at);
    let whose = Shown(label_of(1)).to_string();
    assert!(node.log().contains(&whose.replace('\\', "\\\\")), "{}", node.log());
    assert!(node.run(&["status"]).1.contains(&whose));
    let seen = node.json(&["status"]);
    assert!(seen[0]["grace_for"].as_str().unwrap().contains(label_of(1)), "{seen:?}");
    assert!(node.run(&["inspect", "k"]).2.contains(&whose));
    assert_eq!(node.run(&["lock", "-n", "k", "--", "true"]).0, 75);
    assert_eq!(node.get("/readyz").0, 503);
    drop(held);
    // An operator who shortens the wait is told whose lease it is.
    let url = node.url();
    let (folder, ..) = node.kill();
    let mut recover = binary();
    recover.args(["recover", "--epoch-floor=99", "--longest-ttl=1s", "--data-dir"]);
    let output = recover.arg(folder.path().join("data")).output().unwrap();
    assert!(output.status.success(), "{url}");
    assert_visible("recover", &output.stdout);
    assert_visible("recover", &output.stderr);
    assert!(String::from_utf8(output.stderr).unwrap().contains(&whose));
}

#[test]
fn every_key_can_be_named_raw_and_as_printed_and_its_command_has_the_bytes() {
    let node = Node::start(TempDir::new().unwrap(), 0, "127.0.0.1:0");
    let mut keys = keys();
    keys.extend(["-", "--", "--help", "-n", "a b", "\\", "k=v", "*", "\u{e9}"].map(Vec::from));
    for key in &keys {
        let file = node.folder.path().join("key");
        let script = format!("printf %s \"$LOCKRING_KEY\" > {}", file.display());
        let shown = OsString::from(Shown(key).to_string());
        let raw = OsString::from_vec(key.clone());
        let run = |head: &[&OsStr]| {
            let tail: [&OsStr; 4] = ["--".as_ref(), "sh".as_ref(), "-c".as_ref(), script.as_ref()];
            let (code, _, said) = node.run(&[&["lock".as_ref()], head, &tail].concat());
            assert_eq!(code, 0, "{head:?}: {said}");
            fs::read(&file).unwrap()
        };
        let has_zero = key.contains(&0);
        let expected = if has_zero { shown.clone().into_vec() } else { key.clone() };
        assert_eq!(run(&[&shown]), expected, "{shown:?}");
        assert_eq!(run(&["--".as_ref(), &shown]), expected, "{shown:?}");
        // As it is: only a backslash means something else, and no argument has a zero byte.
        if !has_zero && !key.contains(&b'\\') {
            assert_eq!(run(&["--".as_ref(), &raw]), *key);
            for command in ["inspect", "route", "locks"] {
                let arguments = [command.as_ref(), "--".as_ref(), raw.as_os_str()];
                assert_eq!(node.run(&arguments).0, 0, "{arguments:?}");
            }
        }
    }
}

#[test]
fn a_key_after_the_first_dashes_and_a_command_after_the_second() {
    let node = Node::start(TempDir::new().unwrap(), 0, "127.0.0.1:0");
    for (code, arguments) in [
        (3, &["lock", "--", "-x9", "--", "sh", "-c", "exit 3"][..]),
        (3, &["lock", "-n", "-c", "exit 3", "--", "-x9"]),
        (0, &["lock", "--print-token", "--ttl=1s", "--", "-token"]),
        (0, &["lock", "k", "--", "sh", "-c", "test \"$1\" = --", "sh", "--"]),
        (0, &["lock", "--", "--", "--", "true"]),
        (0, &["release", "--force", "--yes", "--", "-x9"]),
        (64, &["lock"]),
        (64, &["lock", "--"]),
        (64, &["lock", "-n", "-x9", "--", "true"]),
        (64, &["lock", "--", "-x9", "true"]),
        (64, &["lock", "k", "-c", "true", "--", "true"]),
        (64, &["lock", "-c", "true", "--", "-x9", "--", "true"]),
        (64, &["lock", "k", "--print-token", "--", "true"]),
        (64, &["lock", "k", "--print-token", "-c", "true"]),
        (64, &["lock", r"C:\temp", "--", "true"]),
        (64, &["inspect", r"\"]),
        (64, &["locks", r"a\u{41}"]),
        (64, &["inspect", ""]),
        (64, &["route", &"x".repeat(513)]),
        (64, &["release", "--force", "--yes", r"\x0"]),
    ] {
        let (ended, _, said) = node.run(arguments);
        assert_eq!(ended, code, "{arguments:?}: {said}");
    }
    // Nothing that can be seen to be wrong is asked of a node.
    let mut nowhere = binary();
    nowhere.args(["--endpoints", "lockring://127.0.0.1:9", "inspect", r"C:\temp"]);
    let output = nowhere.env("LOCKRING_IDENTITY", node.identity()).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8(output.stderr).unwrap().contains(r"C:\\temp has a backslash"));
}
