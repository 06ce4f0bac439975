//! Redis as a peer: a private server, and connections as lean as ours.

mod protocol;
mod resp;

use crate::drive::GroupError;
use crate::error::BenchError;
use crate::process::Spawned;
use crate::protocol::Broken;
pub(crate) use protocol::RedisProtocol;
use resp::Reply;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PROGRAM: &str = "redis-server";
const START_WITHIN: Duration = Duration::from_secs(10);
/// Another process may take the chosen port before the server does.
const START_ATTEMPTS: u32 = 3;
/// For each answer while a connection is set up.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Starts a private server; returns it with its port once it answers.
pub(crate) async fn spawn(target: &str) -> Result<(Spawned, u16), BenchError> {
    let mut problem = String::new();
    for _ in 0..START_ATTEMPTS {
        let port = free_port().map_err(BenchError::system("choosing a port"))?;
        let mut server = start(port)?;
        match await_ready(&mut server, port).await {
            Ok(()) => return Ok((server, port)),
            Err(why) => problem = why,
        }
    }
    Err(BenchError::Start { target: target.to_owned(), problem })
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn start(port: u16) -> Result<Spawned, BenchError> {
    let directory = TempDir::with_prefix("lockring-bench-redis-")
        .map_err(BenchError::system("making a directory for redis-server"))?;
    let mut command = Command::new(PROGRAM);
    command
        .args(["--save", "", "--appendonly", "no", "--bind", "127.0.0.1"])
        .args(["--port", &port.to_string(), "--dir"])
        .arg(directory.path());
    Spawned::start(command, directory).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => BenchError::ProgramMissing {
            program: PROGRAM,
            package: PROGRAM,
            instead: "redis://HOST:PORT",
        },
        _ => BenchError::System { what: "starting redis-server", source },
    })
}

/// Waits until the server answers, or says why it will not.
async fn await_ready(server: &mut Spawned, port: u16) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        // First of all: on a port taken by somebody else, it is they who would answer.
        if let Some(obituary) = server.obituary().map_err(|error| error.to_string())? {
            return Err(obituary);
        }
        let last = match ping("127.0.0.1", port).await {
            Ok(()) if server.log().contains("Ready to accept connections") => return Ok(()),
            Ok(()) => "it has not said that it is ready".to_owned(),
            Err(error) => error.to_string(),
        };
        if begun.elapsed() > START_WITHIN {
            return Err(format!("no answer within {} s: {last}", START_WITHIN.as_secs()));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn ping(host: &str, port: u16) -> Result<(), GroupError> {
    let mut stream = TcpStream::connect((host, port)).await?;
    match ask(&mut stream, &["PING"]).await?.as_str() {
        "PONG" => Ok(()),
        other => Err(Broken(format!("{other:?} does not answer PING")).into()),
    }
}

/// Opens a connection for `callers` callers and loads the release script.
pub(crate) async fn connect(
    host: &str,
    port: u16,
    callers: u32,
    lease: Duration,
) -> Result<(RedisProtocol, TcpStream), GroupError> {
    let connecting = TcpStream::connect((host, port));
    let mut stream = in_time(connecting).await??;
    stream.set_nodelay(true)?;
    let script = ask(&mut stream, &["SCRIPT", "LOAD", protocol::RELEASE]).await?;
    // Random, so that two runs on one server never share a token.
    let first_token = RandomState::new().build_hasher().finish();
    Ok((RedisProtocol::new(callers, lease, &script, first_token), stream))
}

/// One command and its answer, for what is asked once.
async fn ask(stream: &mut TcpStream, words: &[&str]) -> Result<String, GroupError> {
    let mut command = format!("*{}\r\n", words.len());
    for word in words {
        command.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    stream.write_all(command.as_bytes()).await?;
    let mut bytes = Vec::new();
    loop {
        if in_time(stream.read_buf(&mut bytes)).await?? == 0 {
            return Err(GroupError::Closed);
        }
        return match resp::parse(&bytes)? {
            None => continue,
            Some((Reply::Simple(text) | Reply::Bulk(text), _)) => {
                Ok(String::from_utf8_lossy(text).into_owned())
            }
            Some((Reply::Error(text), _)) => {
                Err(Broken(format!("{}: {}", words[0], String::from_utf8_lossy(text))).into())
            }
            Some((reply, _)) => Err(Broken(format!("{reply:?} to {}", words[0])).into()),
        };
    }
}

async fn in_time<F: Future>(future: F) -> io::Result<F::Output> {
    tokio::time::timeout(ANSWER_WITHIN, future).await.map_err(|_| io::ErrorKind::TimedOut.into())
}
