//! The stream of ops and of what is said of links, for whoever wants to hear it. Nobody does in a
//! normal build, where all of this is nothing: not even what it would be told is put together.

use super::Locks;
use super::cell::Spot;
use super::op::{LinkRecord, Op};
use crate::event::LinkIndex;

#[cfg(any(test, feature = "testing"))]
pub(super) use heard::Stream;
#[cfg(any(test, feature = "testing"))]
pub use heard::{Note, Noted, NotedSource};

/// Nobody listens.
#[cfg(not(any(test, feature = "testing")))]
#[derive(Clone)]
pub(super) struct Stream;

#[cfg(not(any(test, feature = "testing")))]
impl Stream {
    pub(super) fn new() -> Self {
        Self
    }

    #[inline(always)]
    pub(super) fn probed(&self) {}
}

#[cfg(not(any(test, feature = "testing")))]
impl Locks {
    #[inline(always)]
    pub(super) fn note_op(&mut self, _: Spot, _: &Op<'_>) {}

    #[inline(always)]
    pub(super) fn note_link(&mut self, _: LinkIndex, _: LinkRecord) {}
}

#[cfg(any(test, feature = "testing"))]
mod heard {
    use super::*;
    use crate::locks::op::{Change, Death, Ending, Leaving, Source};
    use crate::mutant::mutant;
    use lockring_proto::{Claim, Fence, SessionId};
    use lockring_ring::NamespaceSeed;
    use std::cell::Cell;
    use std::time::Duration;

    /// An op, or what is said of a link, as another worker may hear it: links go by their numbers.
    #[expect(missing_docs, reason = "the fields are those of an op")]
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum Note {
        /// A link began.
        Defined {
            link: u64,
            session: SessionId,
            ttl: Duration,
            namespace: u16,
            seed: NamespaceSeed,
        },
        /// A link ended.
        Dead { link: u64, death: Death },
        /// A cell, by its place at this worker, has changed; a key has this tag there.
        Op { cell: u32, tag: u32, number: Fence, change: Noted },
    }

    /// A change.
    #[expect(missing_docs, reason = "the fields are those of an op")]
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum Noted {
        /// A claim was granted.
        Granted { link: u64, request: u64, source: NotedSource, since: Duration },
        /// A hold ended.
        Ended { fence: Fence, cause: Ending },
        /// A claim was queued.
        Queued {
            link: u64,
            request: u64,
            key: Vec<u8>,
            claim: Claim,
            since: Duration,
            patience: Option<Duration>,
        },
        /// A claim left the queue without a grant.
        Left { link: u64, request: u64, cause: Leaving },
    }

    /// Where a grant came from.
    #[expect(missing_docs, reason = "the fields are those of an op")]
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum NotedSource {
        /// A claim that did not wait.
        Asked { key: Vec<u8>, claim: Claim },
        /// The queue.
        Queue,
        /// A client that held it in an earlier epoch, under this fence.
        Reclaimed { key: Vec<u8>, claim: Claim, fence: Fence },
    }

    /// What was said, if anybody listens.
    #[derive(Clone, Debug)]
    pub(in crate::locks) struct Stream {
        notes: Option<Vec<Note>>,
        /// Keys compared so far.
        probes: Cell<u64>,
    }

    impl Stream {
        pub(in crate::locks) fn new() -> Self {
            Self { notes: None, probes: Cell::new(0) }
        }

        pub(in crate::locks) fn probed(&self) {
            self.probes.set(self.probes.get() + 1);
        }
    }

    impl Locks {
        /// From now on somebody listens.
        pub(crate) fn listen(&mut self) {
            self.stream.notes = Some(Vec::new());
        }

        /// What was said since this was last asked.
        pub(crate) fn take_notes(&mut self) -> Vec<Note> {
            self.stream.notes.as_mut().map_or_else(Vec::new, std::mem::take)
        }

        /// How many keys were compared so far to find those asked for.
        pub(crate) fn probes(&self) -> u64 {
            self.stream.probes.get()
        }

        fn noted(&self, change: Change<'_>) -> Noted {
            let number = |link| self.holdings.get(link).number;
            let told = |claim| match claim {
                Claim::SHARED if mutant!(self, OpForgetsMode) => Claim::EXCLUSIVE,
                claim => claim,
            };
            match change {
                Change::Granted { link, request, source, since } => {
                    let source = match source {
                        Source::Asked { key, claim } => {
                            NotedSource::Asked { key: key.to_vec(), claim: told(claim) }
                        }
                        Source::Queue => NotedSource::Queue,
                        Source::Reclaimed { key, claim, fence } => {
                            let (key, claim) = (key.to_vec(), told(claim));
                            NotedSource::Reclaimed { key, claim, fence }
                        }
                    };
                    Noted::Granted { link: number(link), request, source, since }
                }
                Change::Ended { fence, cause } => Noted::Ended { fence, cause },
                Change::Queued { link, request, key, claim, since, patience } => Noted::Queued {
                    link: number(link),
                    request,
                    key: key.to_vec(),
                    claim: told(claim),
                    since,
                    patience,
                },
                Change::Left { link, request, cause } => {
                    Noted::Left { link: number(link), request, cause }
                }
            }
        }

        pub(in crate::locks) fn note_op(&mut self, spot: Spot, op: &Op<'_>) {
            if self.stream.notes.is_some() {
                let change = self.noted(op.change);
                let note = Note::Op { cell: spot.cell.0, tag: spot.tag, number: op.number, change };
                self.stream.notes.get_or_insert_default().push(note);
            }
        }

        pub(in crate::locks) fn note_link(&mut self, link: LinkIndex, record: LinkRecord) {
            let link = self.holdings.get(link).number;
            if let Some(notes) = &mut self.stream.notes {
                notes.push(match record {
                    LinkRecord::Defined(definition) => Note::Defined {
                        link,
                        session: definition.session,
                        ttl: definition.ttl,
                        namespace: definition.namespace,
                        seed: definition.seed,
                    },
                    LinkRecord::Dead(death) => Note::Dead { link, death },
                });
            }
        }
    }
}
