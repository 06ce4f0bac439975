//! Whole nodes on the loopback, from within the crate: what the binary does not need is not public.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod abuse;
mod common;
mod keys;
mod lives;
mod loopback;
mod serving;
