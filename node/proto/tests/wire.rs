//! The wire, held to its bytes, its document and its promises about hostile bytes.
#![allow(clippy::unwrap_used, reason = "the helpers of tests fail as tests do")]

mod any;
mod document;
mod fuzz;
mod fuzz_body;
mod golden;
mod hostile;
mod properties;
mod ring;
mod shown;
