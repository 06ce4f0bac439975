//! The `lockring` binary.
fn main() {}
