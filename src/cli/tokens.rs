//! `unlock` and `renew`: a hold that another process has left.

use super::connect::Global;
use super::exit::{self, Failure};
use super::output::{seconds, shown};
use clap::Args as ClapArgs;
use lockring_client::{Client, Token};
use std::process::ExitCode;

/// Flags of `unlock` and `renew`.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The token, from `lock --print-token`
    token: Token,
}

async fn connect(global: &Global, token: &Token) -> Result<Client, Failure> {
    global.connect(global.builder().session(token.session()).ttl(token.ttl())).await
}

fn lost(token: &Token) -> Failure {
    let key = shown(token.key());
    Failure::new(exit::LOST, format!("{key} is not held under fence {} any more", token.fence()))
}

/// Ends the hold of a token, and its session.
pub async fn unlock(global: &Global, args: &Args) -> Result<ExitCode, Failure> {
    let token = &args.token;
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
    let token = &args.token;
    let client = connect(global, token).await?;
    // Taking up the session renews it; whether the hold is still there is looked up.
    let seen = client.inspect(token.key()).await?;
    let holder = seen.holders.iter().find(|holder| holder.fence.0 == token.fence());
    let Some(holder) = holder else {
        client.close().await;
        return Err(lost(token));
    };
    if !global.quiet {
        let left = seconds(holder.lease_left_ms);
        println!("{} fence {} held for {left} more", shown(token.key()), token.fence());
    }
    client.leave().await;
    Ok(ExitCode::SUCCESS)
}
