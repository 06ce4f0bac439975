//! The one place of the load generator that prints: figures on stdout, what is said about them on
//! stderr. Nothing panics where one of them is closed or full.

use crate::error::BenchError;
use std::io::{Write, stderr, stdout};

/// Writes figures, whole and at once.
pub(crate) fn figures(text: &str) -> Result<(), BenchError> {
    let mut stdout = stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(BenchError::Output)
}

/// Says something about them. Whoever has closed stderr does not want to know.
pub(crate) fn remark(text: &str) {
    let _nobody_may_read_it = stderr().write_all(text.as_bytes());
}
