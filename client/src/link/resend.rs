//! A connection breaks, a new one stands: what is sent again, under which id.

use super::claims::{Pending, Query, State};
use super::{Link, Loss, NotGranted, Outcome, Phase};
use lockring_proto::{Time, limits};

impl Link {
    /// The connection is gone. The lease runs on; unanswered requests wait for the next one.
    pub fn down(&mut self, now: Time) {
        if self.phase == Phase::Down {
            return;
        }
        self.phase = Phase::Down;
        self.fell = now;
        self.out.clear();
        self.renewing = None;
        self.comparing = 0;
        self.compared_upto = 0;
        self.ring_wanted = 0;
        self.lost_early.clear();
        // Renewals and the like are not worth repeating: the next connection makes its own.
        self.pending
            .retain(|_, pending| matches!(pending, Pending::Claim(_) | Pending::Query { .. }));
        #[cfg(feature = "testing")]
        self.forget_releases();
        self.expect_answers();
    }

    #[cfg(feature = "testing")]
    fn forget_releases(&mut self) {
        if self.mutant != Some(super::LinkMutant::ReleaseForgotten) {
            return;
        }
        for slot in 0..self.claims.len() as u32 {
            let claim = &self.claims[slot as usize];
            if let State::Releasing { told, .. } = claim.state {
                let (id, token) = (claim.id, claim.token);
                self.pending.remove(&id);
                self.free(slot);
                if told {
                    self.outcomes.push(Outcome::Released { token });
                }
            }
        }
    }

    /// A new connection stands. `fresh`: the worker has no link of this session, so that nothing
    /// of it is held or in line there, and an unanswered request may only run under a new id.
    pub(super) fn resume(&mut self, now: Time, fresh: bool) {
        if fresh {
            self.start_over();
        }
        self.put_off.clear();
        let mut unanswered: Vec<u64> = self.pending.keys().copied().collect();
        unanswered.sort_unstable();
        for id in unanswered {
            match self.pending.get(&id) {
                Some(&Pending::Claim(slot)) => {
                    if let State::Releasing { resent, .. } = &mut self.claims[slot as usize].state {
                        *resent = true;
                    }
                    self.route_claim(now, slot);
                }
                Some(&Pending::Query { token, ref query, routed, .. }) => {
                    let sent = routed > 0 && !self.parked.contains(&id);
                    if sent && matches!(query, Query::Force(_)) {
                        // It names no fence: run twice it would end a hold that came after it.
                        self.pending.remove(&id);
                        self.outcomes.push(Outcome::NoAnswer { token });
                    } else {
                        self.send_query(now, id);
                    }
                }
                Some(Pending::Renew { .. } | Pending::Compare { .. } | Pending::GetRing { .. })
                | None => {}
            }
        }
        self.parked.clear();
    }

    /// Everything of the earlier link is gone at the worker. Claims are made anew in the order in
    /// which they were asked for, as their callers expect to be served in it.
    fn start_over(&mut self) {
        let mut slots: Vec<u32> = (0..self.claims.len() as u32).collect();
        slots.sort_by_key(|&slot| self.claims[slot as usize].id);
        for slot in slots {
            let claim = &self.claims[slot as usize];
            let (state, token, id) = (claim.state, claim.token, claim.id);
            match state {
                State::Free => {}
                State::Held { .. } => self.lose(slot, Loss::SessionEnded),
                State::Acquiring => {
                    self.pending.remove(&id);
                    let id = self.config.ids.next();
                    self.claims[slot as usize].id = id;
                    self.claims[slot as usize].sent = None;
                    self.pending.insert(id, Pending::Claim(slot));
                }
                State::Confirming { .. } => {
                    self.drop_claim(slot);
                    self.outcomes.push(Outcome::NotGranted { token, reason: NotGranted::NotHeld });
                }
                State::Releasing { told, .. } => {
                    self.drop_claim(slot);
                    if told {
                        // Whether an earlier copy ended it, or the lease did, nobody knows.
                        self.outcomes.push(Outcome::NotHeld { token, maybe_released: true });
                    }
                }
                State::Cancelling { told, .. } => {
                    self.drop_claim(slot);
                    if told {
                        self.outcomes.push(Outcome::Cancelled { token });
                    }
                }
            }
        }
        // The lease of the new link began with this hello.
        self.valid_until = self.greeted.after(limits::believed(self.ttl));
    }
}
