//! The HTTP server of the admin side: whoever sends half a request, or reads no answer, is cut off,
//! and keeps nobody else from being served.

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Connections at a time: one more, and the oldest is cut off. A request is answered long before so
/// many others have come.
const CONNECTIONS_MAX: usize = 64;

/// The head of a request must be there within this.
const HEAD_WITHIN: Duration = Duration::from_secs(5);

/// A connection with all that is asked and answered on it ends within this.
const DONE_WITHIN: Duration = Duration::from_secs(30);

/// With no file to spare a connection has this long, as nobody else is served meanwhile.
const SPARE_WITHIN: Duration = Duration::from_millis(500);

/// After an error of the listener that is not about one connection.
const PAUSE: Duration = Duration::from_millis(50);

/// Longest head of a request; what is sent beyond is not read.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Serves for ever.
pub(super) async fn serve(listener: TcpListener, routes: Router) -> Infallible {
    let mut open: VecDeque<JoinHandle<()>> = VecDeque::new();
    // Kept so that health checks are answered when the process has no file left.
    let mut spare = File::open("/dev/null").ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                open.retain(|task| !task.is_finished());
                if open.len() >= CONNECTIONS_MAX {
                    cut_off_oldest(&mut open).await;
                }
                let answer = answer(stream, routes.clone());
                let within = async {
                    let _cut_off_or_done = tokio::time::timeout(DONE_WITHIN, answer).await;
                };
                open.push_back(tokio::spawn(within));
            }
            Err(error) if out_of_files(&error) => {
                open.retain(|task| !task.is_finished());
                if cut_off_oldest(&mut open).await {
                    continue;
                }
                // Others have them all.
                if spare.take().is_some()
                    && let Ok(Ok((stream, _))) =
                        tokio::time::timeout(PAUSE, listener.accept()).await
                {
                    let answer = answer(stream, routes.clone());
                    let _cut_off_or_done = tokio::time::timeout(SPARE_WITHIN, answer).await;
                } else {
                    tokio::time::sleep(PAUSE).await;
                }
                spare = File::open("/dev/null").ok();
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Ends the connection that has been there longest, and with it the use of its file.
async fn cut_off_oldest(open: &mut VecDeque<JoinHandle<()>>) -> bool {
    let Some(oldest) = open.pop_front() else { return false };
    oldest.abort();
    let _aborted_or_done = oldest.await;
    true
}

fn out_of_files(error: &io::Error) -> bool {
    // Of this process (EMFILE) or of the whole system (ENFILE).
    matches!(error.raw_os_error(), Some(23 | 24))
}

/// One request and its answer: nothing is gained by keeping a connection for the next.
async fn answer(stream: TcpStream, routes: Router) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "an admin request ended early");
    }
}
