//! `unlock` and `renew`: a hold that another process has left.

use super::connect::Global;
use super::exit::{self, Failure};
use super::output;
use clap::Args as ClapArgs;
use lockring_client::proto::Shown;
use lockring_client::{Client, Token, TokenError};
use std::env::VarError;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags of `unlock` and `renew`. Whoever has a token has the lock, and everybody on a machine can
/// read the arguments of its processes: so a token is none.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// A file with the token, from `lock --print-token`; `-` for standard input. Without it the
    /// token is that of LOCKRING_TOKEN, else read from standard input
    #[arg(long, env = "LOCKRING_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// More than the longest token.
const TOKEN_BYTES_MAX: u64 = 16 << 10;

impl Args {
    fn token(&self) -> Result<Token, Failure> {
        let text = match (&self.token_file, std::env::var("LOCKRING_TOKEN")) {
            (Some(path), _) if path.as_os_str() != "-" => {
                let failed = |error: std::io::Error| {
                    Failure::new(exit::CONFIG, format!("{}: {error}", path.display()))
                };
                read(std::fs::File::open(path).map_err(failed)?).map_err(failed)?
            }
            (None, Ok(token)) => token,
            (None, Err(VarError::NotUnicode(_))) => {
                return Err(Failure::new(exit::USAGE, "LOCKRING_TOKEN is not a token"));
            }
            (Some(_), _) | (None, Err(VarError::NotPresent)) => from_stdin()?,
        };
        let wrong = |error: TokenError| Failure::new(exit::USAGE, error.to_string());
        text.trim().parse().map_err(wrong)
    }
}

fn from_stdin() -> Result<String, Failure> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        let message = "no token: set LOCKRING_TOKEN, name a --token-file, or pipe it in";
        return Err(Failure::new(exit::USAGE, message));
    }
    let failed = |error| Failure::new(exit::CONFIG, format!("standard input: {error}"));
    read(stdin.lock()).map_err(failed)
}

fn read(from: impl Read) -> std::io::Result<String> {
    let mut text = String::new();
    from.take(TOKEN_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

async fn connect(global: &Global, token: &Token) -> Result<Client, Failure> {
    global.connect(global.builder().session(token.session()).ttl(token.ttl())).await
}

fn lost(token: &Token) -> Failure {
    let key = Shown(token.key());
    Failure::new(exit::LOST, format!("{key} is not held under fence {} any more", token.fence()))
}

/// Ends the hold of a token, and its session.
pub async fn unlock(global: &Global, args: &Args) -> Result<ExitCode, Failure> {
    let token = &args.token()?;
    let client = connect(global, token).await?;
    let released = client.adopt(token).await?.release().await;
    client.close().await;
    match released {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if error.kind() == lockring_client::ErrorKind::Lost => Err(lost(token)),
        Err(error) => Err(error.into()),
    }
}

/// Keeps the hold of a token alive for another TTL.
pub async fn renew(global: &Global, args: &Args) -> Result<ExitCode, Failure> {
    let token = &args.token()?;
    let client = connect(global, token).await?;
    // Taking up the session renews it; whether the hold is still there is looked up.
    let seen = client.inspect(token.key()).await?;
    let holder = seen.holders.iter().find(|holder| holder.fence == token.fence());
    let Some(holder) = holder else {
        client.close().await;
        return Err(lost(token));
    };
    let (left_ms, fence) = (holder.lease_left.as_millis() as u64, token.fence());
    client.leave().await;
    if !global.quiet {
        let (key, left) = (Shown(token.key()), output::seconds(left_ms));
        output::line(format_args!("{key} fence {fence} held for {left} more"))?;
    }
    Ok(ExitCode::SUCCESS)
}
