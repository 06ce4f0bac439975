//! `cert`: certificates for clients.

use super::exit::{self, Failure};
use super::output;
use clap::{Subcommand, ValueEnum};
use lockring_node::Authority;
use std::path::PathBuf;
use std::process::ExitCode;

/// What can be issued.
#[derive(Debug, Subcommand)]
pub enum CertCommand {
    /// Issue a client identity: one file with CA, certificate and key
    Client {
        /// The client's name
        name: String,
        /// The namespace its keys live in
        #[arg(long, env = "LOCKRING_NAMESPACE", default_value = "default")]
        namespace: String,
        /// What it may do: `user` its namespace's locks, `operator` also release by force and look
        /// at other namespaces
        #[arg(long, env = "LOCKRING_ROLE", default_value = "user")]
        role: IssuedRole,
        /// The node's data directory, where the CA is
        #[arg(long, env = "LOCKRING_DATA_DIR", value_name = "DIR")]
        data_dir: PathBuf,
        /// Where to write it, to a file that does not exist yet; NAME.pem unless given
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

/// What a client may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IssuedRole {
    /// Use the locks of its namespace.
    User,
    /// Release by force, and look at other namespaces.
    Operator,
}

/// Issues a certificate. A file that exists is never overwritten: it may be somebody's only key.
pub fn run(command: &CertCommand) -> Result<ExitCode, Failure> {
    let CertCommand::Client { name, namespace, role, data_dir, out } = command;
    let usage = |error: &dyn std::fmt::Display| Failure::new(exit::USAGE, error.to_string());
    let config = |error: &dyn std::fmt::Display| Failure::new(exit::CONFIG, error.to_string());
    let namespace =
        lockring_client::proto::Namespace::new(namespace).map_err(|error| usage(&error))?;
    let authority = Authority::load(data_dir).map_err(|error| config(&error))?;
    let issued = match role {
        IssuedRole::User => authority.issue_client(name, &namespace),
        IssuedRole::Operator => authority.issue_operator(name, &namespace),
    };
    let bundle = issued.map_err(|error| usage(&error))?;
    let path = out.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.pem")));
    lockring_node::write_new_secret(&path, bundle.as_bytes()).map_err(|error| config(&error))?;
    output::line(path.display())?;
    Ok(ExitCode::SUCCESS)
}
