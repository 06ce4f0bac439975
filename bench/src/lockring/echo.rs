//! The echo's side of a lean lane: the bytes of our requests, and answers told by their order.

use crate::keys::Key;
use crate::protocol::{Answer, Broken, Protocol, Slot};
use crate::time::Time;
use lockring_client::proto::{Claim, Fence, Request, Wait, codec};
use std::collections::VecDeque;

/// Request ids and fences as wide as those of a long-running session.
const ID: u64 = 1 << 20;
const FENCE: u64 = 1 << 41;

/// One connection to the echo.
#[derive(Default)]
pub(crate) struct EchoProtocol {
    /// What is unanswered, in the order it was sent; answers keep that order.
    asked: VecDeque<(Slot, bool)>,
    carry: Vec<u8>,
}

impl Protocol for EchoProtocol {
    fn acquire(&mut self, _now: Time, slot: Slot, key: &Key, out: &mut Vec<u8>) {
        let (claim, wait) = (Claim::Exclusive, Wait::Forever);
        codec::encode_frame(&Request::Acquire { id: ID, version: 1, claim, wait, key }, out);
        self.asked.push_back((slot, true));
    }

    fn release(
        &mut self,
        _now: Time,
        slot: Slot,
        key: &Key,
        _fence: Option<u64>,
        out: &mut Vec<u8>,
    ) {
        let fence = Fence(FENCE);
        codec::encode_frame(&Request::Release { id: ID, version: 1, fence, key }, out);
        self.asked.push_back((slot, false));
    }

    fn receive(
        &mut self,
        _now: Time,
        bytes: &[u8],
        answers: &mut Vec<Answer>,
    ) -> Result<(), Broken> {
        self.carry.extend_from_slice(bytes);
        let mut rest = self.carry.as_slice();
        while let Some((_, after)) =
            codec::split_frame(rest).map_err(|error| Broken(error.to_string()))?
        {
            let Some((slot, acquire)) = self.asked.pop_front() else {
                return Err(Broken("an answer to nothing".to_owned()));
            };
            answers.push(if acquire {
                Answer::Granted { slot, fence: None }
            } else {
                Answer::Released { slot }
            });
            rest = after;
        }
        let left = rest.len();
        self.carry.drain(..self.carry.len() - left);
        Ok(())
    }
}
