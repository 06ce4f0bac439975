//! How a session ends: in order, or by somebody's word.

use super::{Contact, Session};
use crate::link::{Ending, Loss, Outcome};
use lockring_proto::Time;
use std::time::Duration;

/// A session that is being closed.
pub(super) struct Closing {
    goodbye: bool,
    /// Until when a goodbye waits for the answers to what was asked before, if several workers have
    /// something of the session: one that hears it lets all go, also what is on its way to another
    /// by a ring that neither may have heard of. `None`: it waits no more.
    waits_until: Option<Time>,
    until: Time,
}

impl Closing {
    pub(super) fn due(&self) -> Time {
        self.waits_until.unwrap_or(self.until)
    }
}

impl Session {
    /// The session is over: whatever was held is lost, and nothing is sent or answered any more.
    pub fn end(&mut self, now: Time, loss: Loss) {
        self.end_with(now, &Ending { loss, refusal: None });
    }

    /// Everybody is told in this one place, also of a node's refusal.
    pub(super) fn end_with(&mut self, now: Time, ending: &Ending) {
        if self.over {
            return;
        }
        self.over = true;
        // The session first: whoever sees a hold lost finds the session over.
        let Ending { loss, refusal } = ending;
        self.shared.outcomes.push(Outcome::Ended { loss: *loss, refusal: refusal.clone() });
        for Contact { link, .. } in &mut self.contacts {
            link.end(&mut self.shared, now, ending);
        }
    }

    /// Begins to close. What was asked before is sent before; who still waits is told `loss`.
    /// `goodbye`: the session ends at the workers too, with all it holds. It is closed after
    /// `within` at the latest; three quarters of that a crash of an owner may take, whose cells are
    /// somebody's after that.
    pub fn close(&mut self, now: Time, (goodbye, within): (bool, Duration), loss: Loss) {
        let waits_until = now.after(within * 3 / 4);
        let until = now.after(within);
        if let Some(closing) = &mut self.closing {
            // There may be less time than there was.
            closing.waits_until = closing.waits_until.map(|before| before.min(waits_until));
            closing.until = closing.until.min(until);
            return;
        }
        for Contact { link, .. } in &mut self.contacts {
            link.give_up_waiting(&mut self.shared, now, loss);
        }
        let waits_until = goodbye.then_some(waits_until);
        self.closing = Some(Closing { goodbye, waits_until, until });
    }

    /// Whether it is being closed.
    pub fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    /// Whether nothing is left to be done, or the time for it is over. Says goodbye where it can be
    /// said.
    pub fn is_closed(&mut self, now: Time) -> bool {
        if self.over {
            return true;
        }
        let Some(closing) = &mut self.closing else { return false };
        closing.waits_until = closing.waits_until.filter(|&until| now < until);
        let (until, waits) = (closing.until, closing.waits_until.is_some());
        let goodbye = closing.goodbye;
        let is_owed = |one: &Contact| !one.gone && one.link.is_owed_answers();
        // A worker that is the only one hears in order.
        let waits = waits && self.contacts.len() > 1 && self.contacts.iter().any(is_owed);
        if goodbye && !waits {
            for Contact { link, .. } in &mut self.contacts {
                link.say_goodbye(&mut self.shared);
            }
        }
        now >= until || !self.contacts.iter().any(|contact| self.needs(contact))
    }

    /// Whether the worker of a link is to be talked to. While the session is being closed: whether
    /// something asked of it is unanswered, or it has to hear the goodbye, which settles all else.
    pub(super) fn needs(&self, contact: &Contact) -> bool {
        let Contact { link, gone, .. } = contact;
        let is_left = |closing: &Closing| {
            let must_hear = closing.goodbye && link.incarnation() > 0;
            !link.heard_goodbye() && (must_hear || link.is_owed_answers())
        };
        !gone && !contact.is_over() && !self.over && self.closing.as_ref().is_none_or(is_left)
    }

    /// Whether somebody is to say its last words when its runtime has ended, and can: those of its
    /// links that have not been heard for so long are left to their leases.
    pub(crate) fn has_last_words(&mut self, now: Time, goodbye: bool, heard: Duration) -> bool {
        let mut has = false;
        for contact in &mut self.contacts {
            let link = &contact.link;
            contact.gone |= !link.was_heard_within(now, heard);
            has |= !contact.gone && (goodbye || link.is_owed_answers());
        }
        has
    }

    /// Whether its end is to be told to the workers, as far as has been said.
    pub(crate) fn ends_with_goodbye(&self) -> bool {
        self.closing.as_ref().is_none_or(|closing| closing.goodbye)
    }
}
