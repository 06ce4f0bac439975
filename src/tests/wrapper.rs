//! The tables of `src/wrapper.md`, line by line: what a command under a lock meets.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]
#![allow(clippy::print_stdout, reason = "what a test prints is captured")]

mod common;

use common::{Running, binary, heeding_signals, signal};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PAGE: &str = include_str!("../wrapper.md");

/// What the page says of its scripts.
const PROLOGUE: &str = r#"
run() {
    lockring lock k --ttl 3s --grace 500ms -- sh -c "$1" & W=$!
    until [ -e up ]; do sleep 0.02; done
    K=$(cat /proc/$W/task/$W/children); K=${K% }
    C=$(cat /proc/$K/task/$K/children); C=${C%% *}
}
end() { wait $W && echo 0 || echo $?; }
soon() {
    n=0
    until "$@"; do
        n=$((n + 1)); [ $n -lt 500 ] || { echo "never: $*"; exit 99; }; sleep 0.02
    done
}
in_state() { grep -q "^State:.[$2]" /proc/$1/status; }
has_gone() { ! [ -e /proc/$1 ] || in_state $1 Z; }
gone() { soon has_gone $1; }
stopped() { soon in_state $1 T; }
contained() { exec unshare -rpf --mount-proc lockring lock k -- sh -c "$1"; }
free() { lockring lock -w 20 k -- true; }
"#;

/// A node, and how commands find it.
struct Place {
    _node: Running,
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let mut node = binary();
        node.args(["server", "--admin", "none", "--listen", "127.0.0.1:0", "--workers", "1"])
            .arg("--data-dir")
            .arg(folder.path().join("node"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut node = node.spawn().unwrap();
        let mut said = BufReader::new(node.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("ready on ") {
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0, "the node does not start");
        }
        let at = line.split_whitespace().nth(2).unwrap();
        fs::write(folder.path().join("endpoints"), format!("lockring://{at}")).unwrap();
        std::thread::spawn(move || said.lines().count());
        Self { _node: Running(node), folder }
    }

    /// A shell in an empty directory.
    fn shell(&self, program: &str) -> (Command, TempDir) {
        let empty = TempDir::new().unwrap();
        let binaries = Path::new(env!("CARGO_BIN_EXE_lockring")).parent().unwrap();
        let path = format!("{}:{}", binaries.display(), std::env::var("PATH").unwrap());
        let endpoints = fs::read_to_string(self.folder.path().join("endpoints")).unwrap();
        let mut command = heeding_signals(program);
        command
            .current_dir(&empty)
            .env("PATH", path)
            .env("LOCKRING_ENDPOINTS", endpoints)
            .env("LOCKRING_IDENTITY", self.folder.path().join("node/client.pem"))
            .env("XDG_CONFIG_HOME", self.folder.path())
            .env_remove("ENV")
            .env("PS1", "$ ");
        (command, empty)
    }
}

/// The rows of the table below a heading, each its cells.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let section = PAGE.split("\n## ").find(|section| section.starts_with(heading)).unwrap();
    let lines = section.lines().filter(|line| line.starts_with('|')).skip(2);
    let cells = |line: &str| {
        let line = line.replace("\\|", "\u{1}");
        let inner = line.trim().trim_start_matches('|').trim_end_matches('|');
        inner.split('|').map(|cell| cell.trim().replace('\u{1}', "|")).collect()
    };
    lines.map(cells).collect()
}

/// The code spans of a cell.
fn code(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Runs the scripts of a table.
fn run_scripts(rows: Vec<Vec<String>>) {
    let place = Place::new();
    for row in rows {
        let [when, script, prints, exit_code] = &row[..] else { panic!("not four cells: {row:?}") };
        let (mut shell, _empty) = place.shell("sh");
        let script = format!("{PROLOGUE}\n{}", code(script)[0]);
        // A group of its own, as a shell's job has: in one that is left over from a parent that has
        // gone, as that of this test may be, SIGTSTP stops nobody (POSIX, orphaned process group).
        shell.process_group(0).args(["-ec", &script]).stdin(Stdio::null());
        let output = shell.output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        let said = String::from_utf8_lossy(&output.stderr);
        let status = output.status;
        let ended = status.code().unwrap_or_else(|| 128 + status.signal().unwrap());
        let lines: Vec<&str> = printed.lines().collect();
        assert_eq!(lines, code(prints), "{when}: printed; stderr: {said}");
        assert_eq!(ended.to_string(), *exit_code, "{when}: exit code; stderr: {said}");
    }
}

#[test]
fn every_script_does_what_its_line_says() {
    let rows = rows("Scripts");
    assert!(rows.len() > 30, "{}", rows.len());
    run_scripts(rows);
}

#[test]
fn the_first_process_of_a_container_does_what_its_line_says() {
    let may = Command::new("unshare").args(["-rpf", "--mount-proc", "true"]).status();
    if !may.is_ok_and(|status| status.success()) {
        println!("NOT RUN: this user may not make a process namespace");
        return;
    }
    let rows = rows("Containers");
    assert!(rows.len() > 2, "{}", rows.len());
    run_scripts(rows);
}

/// A terminal with an interactive shell.
struct Terminal {
    keys: File,
    seen: Receiver<Vec<u8>>,
    /// Seen and not yet waited for.
    text: String,
    shell: Running,
}

impl Terminal {
    fn open(place: &Place) -> (Self, TempDir) {
        let control = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&control).unwrap();
        unlockpt(&control).unwrap();
        let name = ptsname(&control, Vec::new()).unwrap();
        let name = Path::new(std::ffi::OsStr::from_bytes(name.as_bytes()));
        let tty = OpenOptions::new().read(true).write(true).open(name).unwrap();
        let mut modes = tcgetattr(&tty).unwrap();
        // What is seen is what programs say, and not what was typed.
        modes.local_modes -= LocalModes::ECHO;
        tcsetattr(&tty, OptionalActions::Now, &modes).unwrap();
        let (mut command, empty) = place.shell("setsid");
        let stdio = || Stdio::from(tty.try_clone().unwrap());
        command.args(["--ctty", "--wait", "sh", "-i"]).stdin(stdio()).stdout(stdio());
        let shell = Running(command.stderr(stdio()).spawn().unwrap());
        let keys = File::from(control);
        let mut screen = keys.try_clone().unwrap();
        let (sender, seen) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count) = screen.read(&mut bytes) {
                if count == 0 || sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        (Self { keys, seen, text: String::new(), shell }, empty)
    }

    fn type_in(&mut self, typed: &str) {
        match typed {
            "" => {}
            "^C" => self.keys.write_all(b"\x03").unwrap(),
            "^Z" => self.keys.write_all(b"\x1a").unwrap(),
            line => self.keys.write_all(format!("{line}\n").as_bytes()).unwrap(),
        }
    }

    /// Whether something comes to be seen, after what was seen before.
    fn sees(&mut self, expected: &str) -> bool {
        let begun = Instant::now();
        loop {
            if let Some(at) = self.text.find(expected) {
                self.text.drain(..at + expected.len());
                return true;
            }
            let left = Duration::from_secs(20).saturating_sub(begun.elapsed());
            match self.seen.recv_timeout(left) {
                Ok(bytes) => self.text.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => return false,
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The hang-up of its terminal reaches what the shell has left.
        signal(&self.shell.0, "HUP");
    }
}

#[test]
fn every_key_does_what_its_line_says() {
    let rows = rows("Terminal");
    assert!(rows.len() > 8, "{}", rows.len());
    let place = Place::new();
    for row in rows {
        let [when, typed] = &row[..] else { panic!("not two cells: {row:?}") };
        let (mut terminal, _empty) = Terminal::open(&place);
        assert!(terminal.sees("$"), "{when}: no prompt");
        for step in code(typed).chunks(2) {
            terminal.type_in(step[0]);
            assert!(terminal.sees(step[1]), "{when}: {step:?} is not seen in {:?}", terminal.text);
        }
    }
}
