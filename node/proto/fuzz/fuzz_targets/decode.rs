//! Target `decode`; what it does is in the body that the crate's tests share.
#![no_main]

// Each target runs one half of the shared file.
#[allow(dead_code)]
#[path = "../../tests/fuzz_body.rs"]
mod fuzz_body;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz_body::decode(bytes));
