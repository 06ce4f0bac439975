//! The wire, held to its bytes, its document and its promises about hostile bytes.

#[path = "fuzz_body.rs"]
mod fuzz_body;

mod any;
mod document;
mod fuzz;
mod golden;
mod hostile;
mod properties;
