//! What every client command shares: where the cluster is, who we are, how much is said.

use super::exit::Failure;
use super::output::Format;
use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};
use lockring_client::{Builder, Client};
use std::path::PathBuf;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// In the environment a switch is on by any value but none, `0`, `false`, `no`, `off` and the like.
pub fn switch() -> FalseyValueParser {
    FalseyValueParser::new()
}

/// Flags of every command.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// The cluster: lockring://HOST:PORT[,HOST:PORT...][?identity=FILE]; else the current context
    #[arg(long, global = true, env = "LOCKRING_ENDPOINTS", value_name = "URL")]
    pub endpoints: Option<String>,
    /// Who we are: a PEM file with CA, certificate and key
    #[arg(long, global = true, env = "LOCKRING_IDENTITY", value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// The context to use instead of the current one
    #[arg(long, global = true, env = "LOCKRING_CONTEXT", value_name = "NAME")]
    pub context: Option<String>,
    /// How data is printed
    #[arg(short, long, global = true, env = "LOCKRING_OUTPUT", default_value = "table")]
    pub output: Format,
    /// Say only what was asked for
    #[arg(short, long, global = true, env = "LOCKRING_QUIET", value_parser = switch())]
    pub quiet: bool,
    /// Say more: -v what is done, -vv every step
    #[arg(short, long, global = true, action = clap::ArgAction::Count, env = "LOCKRING_VERBOSE")]
    pub verbose: u8,
    /// How log lines look on stderr
    #[arg(long, global = true, env = "LOCKRING_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Use no colours
    #[arg(long, global = true, env = "LOCKRING_NO_COLOR", value_parser = switch())]
    pub no_color: bool,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// Sends log lines to stderr.
pub fn start_log(global: &Global) {
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, _) => "debug",
    };
    // What openraft tells of each of its steps is for whoever asks for it.
    let usual = || EnvFilter::new(format!("{level},openraft=warn"));
    let filter = EnvFilter::try_from_env("LOCKRING_LOG").unwrap_or_else(|_| usual());
    let plain = global.no_color || std::env::var_os("NO_COLOR").is_some();
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(terminal && !plain)
        // It would be told on stderr, and a panic there ends a node whose log nobody reads.
        .log_internal_errors(false)
        .with_target(false);
    match global.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

impl Global {
    /// A builder with our identity.
    pub fn builder(&self) -> Builder {
        Client::builder()
            .identity_argument(self.identity.clone())
            .context(self.context.clone())
            .unreachable_after(Duration::from_secs(30))
    }

    /// Connects to the cluster that was named, or that of the context.
    pub async fn connect(&self, builder: Builder) -> Result<Client, Failure> {
        let client = match (&self.endpoints, &self.context) {
            (Some(url), None) => builder.connect(url).await?,
            _ => builder.connect_current().await?,
        };
        Ok(client)
    }
}
