//! What a server costs, read from `/proc`, and the guard that ends a server started here.

use crate::cores::start_apart;
use lockring_client::proto::Shown;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// User and system time of a whole process so far, in two readings: the scheduler's, exact to its
/// tick but blind to threads that have ended, and the process's own, complete but in hundredths
/// of a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuTime {
    threads_ns: u64,
    process_ns: u64,
}

impl CpuTime {
    /// Of the process `pid`, with all its threads.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let process_ns = process_nanos(&stat).ok_or_else(|| malformed("stat"))?;
        let mut threads_ns = 0;
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may end while the list is read, and a kernel may keep no such file.
            let Ok(schedstat) = fs::read_to_string(task?.path().join("schedstat")) else {
                continue;
            };
            let nanos = schedstat.split(' ').next().and_then(|field| field.parse::<u64>().ok());
            threads_ns += nanos.ok_or_else(|| malformed("schedstat"))?;
        }
        Ok(Self { threads_ns, process_ns })
    }

    /// CPU time spent since an earlier reading, in nanoseconds: the exact reading, unless the other
    /// one shows that threads ended with more than it can be wrong by.
    pub fn nanos_since(self, earlier: Self) -> u64 {
        let exact = self.threads_ns.saturating_sub(earlier.threads_ns);
        let complete = self.process_ns.saturating_sub(earlier.process_ns);
        // User and system time are each cut to a tick, at both ends.
        if complete > exact + 4 * tick_ns() { complete } else { exact }
    }
}

/// `utime + stime` of a `/proc/PID/stat`.
fn process_nanos(stat: &str) -> Option<u64> {
    // The name before the last parenthesis may hold anything. After it, field 3 comes first.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut times = fields.split(' ').skip(14 - 3).map(str::parse::<u64>);
    let (user, system) = (times.next()?.ok()?, times.next()?.ok()?);
    Some((user + system) * tick_ns())
}

fn tick_ns() -> u64 {
    1_000_000_000 / rustix::param::clock_ticks_per_second()
}

fn malformed(file: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("cannot make sense of /proc/PID/{file}"))
}

/// User and system time of this process so far, in nanoseconds.
pub fn own_cpu() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Resident memory of a process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ResidentBytes(pub u64);

impl ResidentBytes {
    /// Of the process `pid`.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(pid: u32) -> io::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kilobytes = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kilobytes.map(|kilobytes| Self(kilobytes * 1024)).ok_or_else(|| malformed("status"))
    }
}

/// A server process started here. Dropping it kills and reaps the process, by its handle, and
/// then removes its directory.
#[derive(Debug)]
pub struct Spawned {
    child: Child,
    directory: TempDir,
}

const LOG: &str = "server.log";
/// How much of a log goes into an error.
const LOG_TAIL_BYTES: usize = 2000;

impl Spawned {
    /// Starts `command` with its output in a file of `directory`, its private place.
    ///
    /// # Errors
    /// When it cannot be started; `NotFound` if there is no such program.
    pub fn start(mut command: Command, directory: TempDir) -> io::Result<Self> {
        let log = File::create(directory.path().join(LOG))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = start_apart(|| command.spawn())?;
        Ok(Self { child, directory })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its private directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.directory.path().join(LOG)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// How it ended, with the end of its log, if it has.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn obituary(&mut self) -> io::Result<Option<String>> {
        let Some(status) = self.child.try_wait()? else {
            return Ok(None);
        };
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exited with code {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => "ended".to_owned(),
        };
        let log = self.log();
        let start = log.floor_char_boundary(log.len().saturating_sub(LOG_TAIL_BYTES));
        let lines: Vec<_> =
            log[start..].trim().lines().map(|line| Shown(line).to_string()).collect();
        Ok(Some(format!("the server {how}; its last words: {}", lines.join("\n"))))
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        // Both fail only if it has already ended and was reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Uses so much CPU time, however long that takes on a busy machine.
    fn spin(length: Duration) {
        let used = || {
            let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
        };
        let start = used();
        while used() - start < length {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn the_two_clocks_of_this_process_agree() {
        let pid = std::process::id();
        let (own, read) = (own_cpu(), CpuTime::of(pid).unwrap());
        spin(Duration::from_millis(300));
        let own = own_cpu() - own;
        let read = CpuTime::of(pid).unwrap().nanos_since(read);
        assert!(own > 100_000_000, "{own}");
        assert!(read.abs_diff(own) < 60_000_000, "{read} {own}");
    }

    #[test]
    fn the_time_of_ended_threads_is_not_lost() {
        let before = CpuTime::of(std::process::id()).unwrap();
        std::thread::spawn(|| spin(Duration::from_millis(400))).join().unwrap();
        let spent = CpuTime::of(std::process::id()).unwrap().nanos_since(before);
        assert!(spent > 200_000_000, "{spent}");
    }

    #[test]
    fn a_name_full_of_parentheses_does_not_confuse() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4 9 0 0 0 25 17 0 0 20 0 5 0 8";
        assert_eq!(process_nanos(stat), Some(42 * tick_ns()));
        assert_eq!(process_nanos("7 (a) S 1"), None);
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let resident = ResidentBytes::of(std::process::id()).unwrap();
        assert!(resident > ResidentBytes(1 << 20), "{resident:?}");
        assert!(ResidentBytes::of(u32::MAX).is_err());
    }

    #[test]
    fn a_dropped_server_is_gone_with_its_directory() {
        let mut command = Command::new("sleep");
        command.arg("1000");
        let mut server = Spawned::start(command, TempDir::new().unwrap()).unwrap();
        assert_eq!(server.obituary().unwrap(), None);
        let (pid, directory) = (server.pid(), server.directory().to_owned());
        assert!(CpuTime::of(pid).is_ok() && directory.exists());
        drop(server);
        assert!(CpuTime::of(pid).is_err() && !directory.exists());
    }

    #[test]
    fn an_early_end_is_told_with_the_log() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such luck; exit 3"]);
        let mut server = Spawned::start(command, TempDir::new().unwrap()).unwrap();
        let obituary = loop {
            if let Some(obituary) = server.obituary().unwrap() {
                break obituary;
            }
        };
        assert!(obituary.contains("code 3") && obituary.contains("no such luck"), "{obituary}");
    }
}
