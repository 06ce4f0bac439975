//! A real node for tests of the client: its own process, so that it can be killed and restarted.

#![allow(dead_code, unused_imports, reason = "not every test needs all of it")]

#[path = "../common/mod.rs"]
mod common;

pub use common::{Running, await_that, binary, signal};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A node with a data directory of its own, at one address over all of its lives.
pub struct Node {
    child: Option<Child>,
    data: TempDir,
    pub at: SocketAddr,
    pub workers: u16,
    flags: Vec<String>,
}

impl Node {
    /// Starts one.
    pub fn start(workers: u16) -> Self {
        Self::start_with(workers, &[])
    }

    /// Starts one with these flags.
    pub fn start_with(workers: u16, flags: &[&str]) -> Self {
        let data = TempDir::new().unwrap();
        let at = ([127, 0, 0, 1], 0).into();
        let mut node = Self { child: None, data, at, workers, flags: Vec::new() };
        node.flags.extend(flags.iter().map(ToString::to_string));
        node.start_again();
        node
    }

    /// Starts it again where it was.
    pub fn start_again(&mut self) {
        let mut child = binary()
            .args(["server", "--admin", "none", "--drain", "0s", "--data-dir"])
            .arg(self.data.path().join("node"))
            .args(["--listen", &self.at.to_string(), "--workers", &self.workers.to_string()])
            .args(&self.flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("ready on ") {
            line.clear();
            assert!(stdout.read_line(&mut line).unwrap() > 0, "the node does not start");
        }
        self.at = line.split_whitespace().nth(2).unwrap().parse().unwrap();
        // Whatever else it says must find a reader.
        std::thread::spawn(move || stdout.lines().count());
        self.child = Some(child);
    }

    /// Sends it a signal, as TERM, KILL, STOP.
    pub fn signal(&self, name: &str) {
        let id = self.child.as_ref().unwrap().id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &id]).status().unwrap();
        assert!(sent.success(), "kill -{name}");
    }

    /// Ends it by a signal.
    pub fn end(&mut self, name: &str) {
        self.signal(name);
        self.child.take().unwrap().wait().unwrap();
    }

    pub fn identity(&self) -> PathBuf {
        self.data.path().join("node/client.pem")
    }

    pub fn url(&self) -> String {
        self.url_at(self.at)
    }

    /// The way to it by another address.
    pub fn url_at(&self, at: SocketAddr) -> String {
        format!("lockring://{at}?identity={}", self.identity().display())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ended_already = child.kill();
            let _reaped_already = child.wait();
        }
    }
}

/// Nothing that ends takes as long as this, on however slow a machine.
pub const FOR_EVER: Duration = Duration::from_secs(60);

/// Waits until something is so.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < FOR_EVER, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits for a future that must come to an end.
pub async fn ends<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(FOR_EVER, future).await.unwrap_or_else(|_| panic!("never ends: {what}"))
}

/// Forwards UDP both ways, each packet so much later. It ends with the process, and serves
/// one endpoint.
pub fn relay(front: UdpSocket, to: SocketAddr, delay: Duration) -> SocketAddr {
    let at = front.local_addr().unwrap();
    let back = UdpSocket::bind("127.0.0.1:0").unwrap();
    back.connect(to).unwrap();
    let client = Arc::new(OnceLock::new());
    let (front_in, back_in) = (front.try_clone().unwrap(), back.try_clone().unwrap());
    let known = Arc::clone(&client);
    let (there, sends) = mpsc::channel::<(Instant, Vec<u8>)>();
    let (back_again, returns) = mpsc::channel::<(Instant, Vec<u8>)>();
    std::thread::spawn(move || {
        let mut buffer = [0; 65536];
        while let Ok((count, from)) = front_in.recv_from(&mut buffer) {
            known.get_or_init(|| from);
            let _ends_with_the_test =
                there.send((Instant::now() + delay, buffer[..count].to_vec()));
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 65536];
        loop {
            if let Ok(count) = back_in.recv(&mut buffer) {
                let _ends_with_the_test =
                    back_again.send((Instant::now() + delay, buffer[..count].to_vec()));
            }
        }
    });
    let wait = |at: Instant| std::thread::sleep(at.saturating_duration_since(Instant::now()));
    std::thread::spawn(move || {
        for (at, bytes) in sends {
            wait(at);
            let _lost_as_packets_are = back.send(&bytes);
        }
    });
    std::thread::spawn(move || {
        for (at, bytes) in returns {
            wait(at);
            let _lost_as_packets_are = front.send_to(&bytes, client.get().unwrap());
        }
    });
    at
}
