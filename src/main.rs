//! The `lockring` binary: a node, its command line client and its load generator.

#![forbid(unsafe_code)]

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
