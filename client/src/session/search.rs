//! Nobody whom the session knows answers: the cluster may be another one by now, whose log was
//! begun anew with nodes of other numbers. It is looked for where the user said.

use super::{Contact, LinkId, Session, Stage};
use crate::link::{Loss, Outcome};
use lockring_proto::Time;
use std::time::Duration;

/// For so long nobody has answered before the seeds are tried: most of what passes has passed.
const ALONE_FOR: Duration = Duration::from_secs(3);

impl Contact {
    /// It is dialled where the user said, and may meet anybody.
    pub(super) fn is_search(&self) -> bool {
        !self.is_over() && self.link.worker().is_none()
    }
}

impl Session {
    /// A link has come up, or is up no more.
    pub(super) fn note_company(&mut self, now: Time) {
        if self.contacts.iter().any(|one| !one.is_over() && one.link.is_up()) {
            self.alone_since = None;
            for number in 0..self.contacts.len() {
                if self.contacts[number].is_search() {
                    self.end_link(now, LinkId::nth(number));
                }
            }
        } else {
            self.alone_since.get_or_insert(now);
        }
    }

    /// When the seeds are to be tried.
    pub(super) fn search_due(&self) -> Option<Time> {
        let since = self.alone_since.filter(|_| !self.over && self.closing.is_none())?;
        let searches = self.contacts.iter().any(Contact::is_search);
        (!searches).then(|| since.after(ALONE_FOR))
    }

    /// Tries the seeds, if it is time.
    pub(super) fn search(&mut self, now: Time) {
        if self.search_due().is_some_and(|at| at <= now) {
            self.add_link(now, None);
        }
    }

    /// A link was welcomed. If it was to meet anybody, and there is another link to whom it met,
    /// that one is used: it has what is claimed there.
    pub(super) fn met(&mut self, now: Time, at: LinkId) {
        let worker = self.link(at).worker();
        let is_same = |one: &Contact| !one.is_over() && one.link.worker() == worker;
        let mut same = (0..self.contacts.len()).filter(|&number| is_same(&self.contacts[number]));
        let known = same.find(|&number| number != at.index());
        if let Some(known) = known {
            self.end_link(now, at);
            self.alone_since = Some(now);
            self.contacts[known].dialling.is_due(now);
        }
    }

    /// Nothing is sent or heard on a link any more. The shell is told, and its number is used again
    /// once the shell says that nothing comes on it.
    pub(super) fn end_link(&mut self, now: Time, at: LinkId) {
        let contact = &mut self.contacts[at.index()];
        (contact.stage, contact.gone) = (Stage::Over, true);
        // A hello of it may yet arrive, and must not outdo those of later links.
        let its = contact.dialling.incarnation().max(contact.link.incarnation());
        self.astray = self.astray.max(its);
        contact.link.is_gone(&mut self.shared, now);
        self.shared.outcomes.push(Outcome::LinkOver { link: at });
    }

    /// A worker says that another hello of the session has replaced that of a link. That may have
    /// been one of this very process, which was to meet anybody: then the link says hello again.
    /// If not, another process has taken the session up, and it is over here. Of a link that is
    /// over it says nothing: its hello was to be outdone.
    pub fn superseded(&mut self, now: Time, at: LinkId) {
        if self.contacts[at.index()].is_over() {
            return;
        }
        if !self.is_outdone_by_itself(at) {
            return self.end(now, Loss::Superseded);
        }
        self.down(now, at);
    }

    pub(super) fn is_outdone_by_itself(&mut self, at: LinkId) -> bool {
        let its = self.contacts[at.index()].dialling.incarnation();
        if its >= self.to_outdo(at) {
            // A hello without an incarnation is given a later one than any that its worker knows.
            self.astray = self.astray.max(its.saturating_add(std::mem::take(&mut self.blind)));
        }
        its < self.to_outdo(at)
    }

    /// The highest incarnation of hellos that any worker may yet have had.
    fn at_large(&self) -> u64 {
        let searching = self.contacts.iter().filter(|one| one.is_search());
        let sent = searching.map(|one| one.dialling.incarnation());
        sent.max().unwrap_or(0).max(self.astray)
    }

    /// The highest incarnation that the worker may have heard of to whom a hello of a link comes:
    /// if that may be anybody, all that were ever sent, or given to a hello without one.
    pub(super) fn to_outdo(&self, at: LinkId) -> u64 {
        if !self.contacts[at.index()].is_search() {
            return self.at_large();
        }
        let of = |one: &Contact| one.dialling.incarnation().max(one.link.incarnation());
        self.contacts.iter().map(of).max().unwrap_or(0).max(self.astray)
    }
}
