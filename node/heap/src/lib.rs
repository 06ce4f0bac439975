//! Memory that is free goes back to the system.
//!
//! glibc keeps what was freed for the life of a process, unless it is told not to, and there is no
//! way to tell it but two functions of its own; hence the one exception from the rule that nothing
//! here is unsafe. Declared `safe`: both take plain numbers, touch no memory of ours, and may be
//! called by any thread at any time. With another C library this does nothing.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc {
    use std::ffi::c_int;

    #[allow(unsafe_code, reason = "see the head of this file")]
    unsafe extern "C" {
        safe fn mallopt(parameter: c_int, value: c_int) -> c_int;
        safe fn malloc_trim(pad: usize) -> c_int;
    }

    const M_TRIM_THRESHOLD: c_int = -1;
    const M_MMAP_THRESHOLD: c_int = -3;

    /// What is larger has pages of its own.
    const OWN_PAGES_FROM: c_int = 256 << 10;

    pub(crate) fn set_up() {
        // Both can be refused only where glibc was built without them, and then nothing is worse.
        let _ = mallopt(M_MMAP_THRESHOLD, OWN_PAGES_FROM);
        let _ = mallopt(M_TRIM_THRESHOLD, 4 * OWN_PAGES_FROM);
    }

    pub(crate) fn give_back() {
        let _whether_there_was_any = malloc_trim(0);
    }
}

/// Has large blocks go back to the system as soon as they are freed. By itself glibc raises the
/// size from which it does so to that of whatever was freed, up to 32 MiB.
pub fn set_up() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    glibc::set_up();
}

/// Gives the free pages within the heap back to the system. Takes some milliseconds where there is
/// much to give; a thread that allocates meanwhile may wait for its part of them.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    glibc::give_back();
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    fn resident_kib() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("it is Linux");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it has it");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
    }

    #[test]
    fn what_is_free_goes_back() {
        super::set_up();
        let before = resident_kib();
        // Small blocks, with one kept now and then, so that nothing goes back by itself.
        let mut blocks: Vec<Vec<u8>> = (0..1 << 20).map(|_| vec![1; 100]).collect();
        let kept: Vec<Vec<u8>> = blocks.drain(..).step_by(4096).collect();
        drop(blocks);
        let freed = resident_kib();
        super::give_back();
        let after = resident_kib();
        assert!(freed > before + 50_000, "{before} {freed}: glibc gave it back by itself");
        assert!(after < before + 20_000, "{before} {freed} {after}");
        drop(kept);
    }
}
