//! A bare framed echo: the floor that the load generator compares with. The same certificates,
//! transport settings, runtime and frame sizes as a worker, and nothing between the frames: each
//! request is answered by as many bytes as a worker would answer, as lean as quinn allows.

use crate::endpoint::{self, EndpointKeys};
use crate::error::StartError;
use crate::{files, tls};
use bytes::Bytes;
use lockring_proto::codec;
use quinn::Connection;
use std::net::SocketAddr;
use std::path::Path;

/// Tag of an acquire, the first byte of its body.
const ACQUIRE: u8 = 0;

/// Body length of the answer to an acquire (a grant) and to anything else (a release).
const GRANT_BYTES: usize = 16;
const RELEASE_BYTES: usize = 7;

/// Serves until the process is killed; says where through `ready`.
///
/// # Errors
/// When certificates or the port cannot be used.
pub fn run_echo(
    data_dir: &Path,
    listen: SocketAddr,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), StartError> {
    crate::data_dir::prepare(data_dir).map_err(files::FilesError::from)?;
    let server = tls::server_config(&files::ensure_files(data_dir)?)?;
    let keys = EndpointKeys { reset: [0; 64], cid: 0 };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let endpoint = endpoint::bind(listen, &keys, server)?;
        ready(endpoint.local_addr()?);
        while let Some(incoming) = endpoint.accept().await {
            tokio::task::spawn_local(async move {
                if let Ok(conn) = incoming.await {
                    echo(conn).await;
                }
            });
        }
        Ok(())
    })
}

/// Answers until the connection ends.
async fn echo(conn: Connection) {
    let Ok((mut send, mut recv)) = conn.accept_bi().await else { return };
    let mut chunks: [Bytes; 32] = std::array::from_fn(|_| Bytes::new());
    let mut carry = Vec::new();
    while let Ok(Some(count)) = recv.read_chunks(&mut chunks).await {
        for chunk in &mut chunks[..count] {
            carry.extend_from_slice(chunk);
            *chunk = Bytes::new();
        }
        let mut rest = carry.as_slice();
        let mut answers = Vec::with_capacity(carry.len());
        while let Ok(Some((body, after))) = codec::split_frame(rest) {
            let len = if body.first() == Some(&ACQUIRE) { GRANT_BYTES } else { RELEASE_BYTES };
            answers.push(len as u8);
            answers.resize(answers.len() + len, 0);
            rest = after;
        }
        let left = rest.len();
        carry.drain(..carry.len() - left);
        if send.write_chunk(Bytes::from(answers)).await.is_err() {
            return;
        }
    }
}
