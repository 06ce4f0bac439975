//! Locks on Redis, as its documentation has them: `SET key token NX PX lease`, and a script that
//! deletes the key if it still has the token. Pipelined: answers come in the order of commands.

use super::resp::{Reply, parse};
use crate::keys::{Key, hex};
use crate::protocol::{Answer, Broken, Protocol, Slot};
use crate::time::Time;
use std::collections::VecDeque;
use std::time::Duration;

/// Deletes the lock of the one who has the token.
pub(super) const RELEASE: &str = "if redis.call('get',KEYS[1]) == ARGV[1] then \
                                  return redis.call('del',KEYS[1]) else return 0 end";

/// One command under way.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Acquire(Slot),
    Release(Slot),
}

/// One pipelined connection.
#[derive(Debug)]
pub(crate) struct RedisProtocol {
    /// The command's bytes up to the key; and after the token, for an acquire.
    acquire_head: Vec<u8>,
    acquire_tail: Vec<u8>,
    release_head: Vec<u8>,
    /// What each caller wrote into its lock.
    tokens: Vec<u64>,
    next_token: u64,
    asked: VecDeque<Asked>,
    /// The beginning of an answer whose end is still to come.
    partial: Vec<u8>,
    failure: Option<String>,
}

const BETWEEN: &[u8] = b"\r\n$16\r\n";

impl RedisProtocol {
    /// For a connection with `callers` callers, a lease for every lock, the loaded script's name,
    /// and the first token: no two connections may draw the same ones.
    pub(super) fn new(callers: u32, lease: Duration, script: &str, first_token: u64) -> Self {
        let lease = lease.as_millis().to_string();
        let tail = format!("\r\n$2\r\nNX\r\n$2\r\nPX\r\n${}\r\n{lease}\r\n", lease.len());
        let (script_len, key_len) = (script.len(), crate::keys::KEY_BYTES);
        let release = format!(
            "*5\r\n$7\r\nEVALSHA\r\n${script_len}\r\n{script}\r\n$1\r\n1\r\n${key_len}\r\n"
        );
        Self {
            acquire_head: format!("*6\r\n$3\r\nSET\r\n${key_len}\r\n").into_bytes(),
            acquire_tail: tail.into_bytes(),
            release_head: release.into_bytes(),
            tokens: vec![0; callers as usize],
            next_token: first_token,
            asked: VecDeque::with_capacity(callers as usize),
            partial: Vec::new(),
            failure: None,
        }
    }

    /// Takes every complete answer; returns how many bytes they were.
    fn take(&mut self, bytes: &[u8], answers: &mut Vec<Answer>) -> Result<usize, Broken> {
        let mut taken = 0;
        while let Some((reply, len)) = parse(&bytes[taken..])? {
            let Some(asked) = self.asked.pop_front() else {
                return Err(Broken(format!("{reply:?} answers nothing that was asked")));
            };
            answers.push(self.answer(asked, reply)?);
            taken += len;
        }
        Ok(taken)
    }

    #[inline]
    fn answer(&mut self, asked: Asked, reply: Reply<'_>) -> Result<Answer, Broken> {
        match (asked, reply) {
            (Asked::Acquire(slot), Reply::Simple(b"OK")) => {
                Ok(Answer::Granted { slot, fence: None })
            }
            (Asked::Acquire(slot), Reply::Nil) => Ok(Answer::Busy { slot }),
            (Asked::Release(slot), Reply::Integer(1)) => Ok(Answer::Released { slot }),
            (Asked::Release(slot), Reply::Integer(0)) => {
                Ok(self.failed(slot, b"a lock to release was no longer held"))
            }
            (Asked::Acquire(slot) | Asked::Release(slot), Reply::Error(text)) => {
                Ok(self.failed(slot, text))
            }
            (asked, reply) => Err(Broken(format!("{reply:?} does not answer {asked:?}"))),
        }
    }

    #[cold]
    fn failed(&mut self, slot: Slot, text: &[u8]) -> Answer {
        let text = || String::from_utf8_lossy(text).into_owned();
        self.failure.get_or_insert_with(text);
        Answer::Failed { slot }
    }
}

impl Protocol for RedisProtocol {
    #[inline]
    fn acquire(&mut self, _now: Time, slot: Slot, key: &Key, out: &mut Vec<u8>) {
        let token = self.next_token;
        self.next_token = token.wrapping_add(1);
        self.tokens[slot.0 as usize] = token;
        self.asked.push_back(Asked::Acquire(slot));
        out.extend_from_slice(&self.acquire_head);
        out.extend_from_slice(key);
        out.extend_from_slice(BETWEEN);
        out.extend_from_slice(&hex(token));
        out.extend_from_slice(&self.acquire_tail);
    }

    #[inline]
    fn release(
        &mut self,
        _now: Time,
        slot: Slot,
        key: &Key,
        _fence: Option<u64>,
        out: &mut Vec<u8>,
    ) {
        self.asked.push_back(Asked::Release(slot));
        out.extend_from_slice(&self.release_head);
        out.extend_from_slice(key);
        out.extend_from_slice(BETWEEN);
        out.extend_from_slice(&hex(self.tokens[slot.0 as usize]));
        out.extend_from_slice(b"\r\n");
    }

    fn receive(
        &mut self,
        _now: Time,
        bytes: &[u8],
        answers: &mut Vec<Answer>,
    ) -> Result<(), Broken> {
        if self.partial.is_empty() {
            let taken = self.take(bytes, answers)?;
            self.partial.extend_from_slice(&bytes[taken..]);
        } else {
            let mut joined = std::mem::take(&mut self.partial);
            joined.extend_from_slice(bytes);
            let taken = self.take(&joined, answers)?;
            joined.drain(..taken);
            self.partial = joined;
        }
        Ok(())
    }

    fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::key;

    fn protocol() -> RedisProtocol {
        RedisProtocol::new(2, Duration::from_secs(10), "abc", 0x2a)
    }

    #[test]
    fn commands_are_as_documented() {
        let mut out = Vec::new();
        let mut protocol = protocol();
        protocol.acquire(Time(0), Slot(1), &key(5), &mut out);
        protocol.release(Time(0), Slot(1), &key(5), None, &mut out);
        let (key, token) = ("$17\r\nk0000000000000005", "$16\r\n000000000000002a");
        let set = format!(
            "*6\r\n$3\r\nSET\r\n{key}\r\n{token}\r\n$2\r\nNX\r\n$2\r\nPX\r\n$5\r\n10000\r\n"
        );
        let release =
            format!("*5\r\n$7\r\nEVALSHA\r\n$3\r\nabc\r\n$1\r\n1\r\n{key}\r\n{token}\r\n");
        assert_eq!(String::from_utf8(out).unwrap(), set + &release);
    }

    #[test]
    fn answers_cut_anywhere_are_the_same() {
        let bytes = b"+OK\r\n$-1\r\n:1\r\n-ERR broken\r\n:0\r\n";
        let (one, two) = (Slot(0), Slot(1));
        let expected = [
            Answer::Granted { slot: one, fence: None },
            Answer::Busy { slot: two },
            Answer::Released { slot: one },
            Answer::Failed { slot: one },
            Answer::Failed { slot: two },
        ];
        for cut in 0..=bytes.len() {
            let (mut protocol, mut out, mut answers) = (protocol(), Vec::new(), Vec::new());
            protocol.acquire(Time(0), one, &key(1), &mut out);
            protocol.acquire(Time(0), two, &key(2), &mut out);
            protocol.release(Time(0), one, &key(1), None, &mut out);
            protocol.acquire(Time(0), one, &key(3), &mut out);
            protocol.release(Time(0), two, &key(2), None, &mut out);
            protocol.receive(Time(0), &bytes[..cut], &mut answers).unwrap();
            protocol.receive(Time(0), &bytes[cut..], &mut answers).unwrap();
            assert_eq!(answers, expected, "cut at {cut}");
            assert_eq!(protocol.failure(), Some("ERR broken"));
        }
    }

    #[test]
    fn answers_to_nothing_and_of_the_wrong_kind_are_refused() {
        let mut answers = Vec::new();
        assert!(protocol().receive(Time(0), b"+OK\r\n", &mut answers).is_err());
        let mut asked = protocol();
        asked.acquire(Time(0), Slot(0), &key(1), &mut Vec::new());
        assert!(asked.receive(Time(0), b":1\r\n", &mut answers).is_err());
    }
}
