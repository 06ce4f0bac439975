//! Groups without locks: the bare echo, and keepalives. Their answers come in the order asked.

use crate::keys::Key;
use crate::protocol::{Answer, Broken, Protocol, Slot};
use crate::time::Time;
use lockring_client::proto::{Claim, Fence, Operation, Reply, Request, Wait, codec};
use std::collections::VecDeque;

/// Request ids and fences as wide as those of a long-running session.
const FIRST_ID: u64 = 1 << 20;
const FENCE: u64 = 1 << 41;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// The bytes of our requests, for an echo that gives them back.
    Echo,
    /// A renewal of the session, twice for each pair.
    Renewal,
}

/// What is unanswered.
#[derive(Clone, Copy, Debug)]
struct Asked {
    id: u64,
    slot: Slot,
    acquire: bool,
}

/// One connection.
pub(crate) struct InOrderProtocol {
    question: Question,
    next_id: u64,
    /// In the order sent; answers keep that order.
    asked: VecDeque<Asked>,
    carry: Vec<u8>,
}

impl InOrderProtocol {
    pub(crate) fn new(question: Question) -> Self {
        Self { question, next_id: FIRST_ID, asked: VecDeque::new(), carry: Vec::new() }
    }

    fn ask(&mut self, slot: Slot, acquire: bool, echoed: &Request<'_>, out: &mut Vec<u8>) {
        let id = self.next_id;
        match self.question {
            Question::Echo => codec::encode_frame(echoed, out),
            Question::Renewal => {
                self.next_id += 1;
                codec::encode_frame(&Request::Renew { id }, out);
            }
        }
        self.asked.push_back(Asked { id, slot, acquire });
    }

    fn answer(&mut self, body: &[u8]) -> Result<Answer, Broken> {
        let Some(Asked { id: asked, slot, acquire }) = self.asked.pop_front() else {
            return Err(Broken("an answer to nothing".to_owned()));
        };
        if self.question == Question::Renewal {
            match codec::decode_frame(body).map_err(|error| Broken(error.to_string()))? {
                Reply::Renewed { id, .. } if id == asked => {}
                other => return Err(Broken(format!("{other:?} to renewal {asked}"))),
            }
        }
        Ok(match acquire {
            true => Answer::Granted { slot, fence: None },
            false => Answer::Released { slot },
        })
    }
}

impl Protocol for InOrderProtocol {
    fn acquire(&mut self, _now: Time, slot: Slot, key: &Key, out: &mut Vec<u8>) {
        let (id, claim, wait) = (FIRST_ID, Claim::EXCLUSIVE, Wait::Forever);
        self.ask(
            slot,
            true,
            &Request::Keyed { id, version: 1, operation: Operation::Acquire { claim, wait }, key },
            out,
        );
    }

    fn release(
        &mut self,
        _now: Time,
        slot: Slot,
        key: &Key,
        _fence: Option<u64>,
        out: &mut Vec<u8>,
    ) {
        let (id, fence) = (FIRST_ID, Fence(FENCE));
        self.ask(
            slot,
            false,
            &Request::Keyed { id, version: 1, operation: Operation::Release { fence }, key },
            out,
        );
    }

    fn receive(
        &mut self,
        _now: Time,
        bytes: &[u8],
        answers: &mut Vec<Answer>,
    ) -> Result<(), Broken> {
        let mut carry = std::mem::take(&mut self.carry);
        carry.extend_from_slice(bytes);
        let mut rest = carry.as_slice();
        while let Some((body, after)) =
            codec::split_frame(rest).map_err(|error| Broken(error.to_string()))?
        {
            answers.push(self.answer(body)?);
            rest = after;
        }
        let left = rest.len();
        carry.drain(..carry.len() - left);
        self.carry = carry;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::key;
    use lockring_client::proto::Digest;

    fn replies(ids: &[u64]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for &id in ids {
            codec::encode_frame(
                &Reply::Renewed { id, version: 1, settled: 1, digest: Digest::default() },
                &mut bytes,
            );
        }
        bytes
    }

    fn renewals(count: u32) -> InOrderProtocol {
        let mut protocol = InOrderProtocol::new(Question::Renewal);
        for slot in 0..count {
            protocol.acquire(Time(0), Slot(slot), &key(0), &mut Vec::new());
        }
        protocol
    }

    #[test]
    fn renewals_are_answered_in_order_wherever_the_bytes_are_cut() {
        let bytes = replies(&[FIRST_ID, FIRST_ID + 1]);
        for cut in 0..=bytes.len() {
            let (mut protocol, mut answers) = (renewals(2), Vec::new());
            protocol.receive(Time(0), &bytes[..cut], &mut answers).unwrap();
            protocol.receive(Time(0), &bytes[cut..], &mut answers).unwrap();
            let granted = |slot| Answer::Granted { slot: Slot(slot), fence: None };
            assert_eq!(answers, [granted(0), granted(1)], "cut at {cut}");
        }
    }

    #[test]
    fn what_answers_no_renewal_is_refused() {
        let receive = |asked, ids: &[u64]| {
            renewals(asked).receive(Time(0), &replies(ids), &mut Vec::new()).map_err(|why| why.0)
        };
        assert!(receive(0, &[FIRST_ID]).unwrap_err().contains("nothing"));
        assert!(receive(2, &[FIRST_ID + 1]).unwrap_err().contains("renewal"));
    }
}
