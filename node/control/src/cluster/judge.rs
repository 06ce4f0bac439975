//! Who is taken for dead: by the leader alone, by heartbeats, with a second opinion, and never for
//! what may be the leader's own slowness.

use super::state::{Life, State};
use lockring_proto::Time;
use lockring_ring::NodeId;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Silence is looked for so often.
const LOOK: Duration = Duration::from_millis(25);

/// Nobody is suspected for less silence, nor spared for more; in between it is [`GAPS`] times
/// the worst gap of late.
const SILENCE_LEAST: Duration = Duration::from_millis(250);
const SILENCE_MOST: Duration = Duration::from_secs(1);
const GAPS: u32 = 4;

/// So many gaps are remembered.
const REMEMBERED: usize = 64;

/// A second opinion has so long to come.
const OPINION: Duration = Duration::from_millis(100);

/// A look that is later than this forgives everybody's silence.
const LATE: Duration = Duration::from_millis(50);

/// How far the suspicion of a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Suspicion {
    /// There is none.
    No,
    /// Another node is asked, until then.
    Asked(u64, Time),
    /// Another node has heard of it since it fell silent here; that counts once.
    Vouched,
}

/// What is known of a process.
#[derive(Clone, Debug)]
struct Heart {
    heard: Time,
    gaps: VecDeque<Duration>,
    suspicion: Suspicion,
}

impl Heart {
    fn new(now: Time) -> Self {
        Self { heard: now, gaps: VecDeque::new(), suspicion: Suspicion::No }
    }

    /// So much silence is suspicious.
    fn patience(&self) -> Duration {
        let worst = self.gaps.iter().copied().max().unwrap_or_default();
        (worst * GAPS).clamp(SILENCE_LEAST, SILENCE_MOST)
    }
}

/// What the judge wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Have a node look whether a process is alive. It may be the leader itself.
    Ask { by: NodeId, about: Life, number: u64 },
    /// A process is dead.
    Dead(Life),
    /// The judge itself was late.
    Late,
}

/// The judge of a leader.
#[derive(Clone, Debug)]
pub(super) struct Judge {
    hearts: BTreeMap<Life, Heart>,
    look_at: Time,
    asked: u64,
}

impl Judge {
    /// That of a leader which is elected now. Its predecessor is suspected at once.
    pub fn new(now: Time, state: &State, before: Option<NodeId>) -> Self {
        let mut judge = Self { hearts: BTreeMap::new(), look_at: now, asked: 0 };
        judge.know(now, state);
        for (life, heart) in &mut judge.hearts {
            if Some(life.node) == before {
                heart.heard = Time(now.0.saturating_sub(SILENCE_LEAST.as_micros() as u64));
            }
        }
        judge
    }

    /// When it wants to look next.
    pub fn look_at(&self) -> Time {
        self.look_at
    }

    /// A process has been heard. If the leader itself has not listened, it says nothing of gaps.
    pub fn heard(&mut self, now: Time, life: Life) {
        let is_late = now.since(self.look_at) > LATE;
        let Some(heart) = self.hearts.get_mut(&life) else { return };
        if !is_late {
            heart.gaps.push_back(now.since(heart.heard));
        }
        if heart.gaps.len() > REMEMBERED {
            heart.gaps.pop_front();
        }
        (heart.heard, heart.suspicion) = (now, Suspicion::No);
    }

    /// Another node has heard of a process when it was asked.
    pub fn vouched(&mut self, now: Time, life: Life, number: u64) -> bool {
        let Some(heart) = self.hearts.get_mut(&life) else { return false };
        let is_asked = matches!(heart.suspicion, Suspicion::Asked(asked, _) if asked == number);
        if is_asked {
            (heart.heard, heart.suspicion) = (now, Suspicion::Vouched);
        }
        is_asked
    }

    /// An owner finds a process silent: one that has been so here too for as long as anybody is
    /// spared at least is suspected now.
    pub fn hurry(&mut self, now: Time, node: NodeId) {
        for (life, heart) in &mut self.hearts {
            if life.node == node && now.since(heart.heard) >= SILENCE_LEAST {
                heart.gaps.clear();
            }
        }
    }

    /// Whether a node has been heard lately.
    pub fn is_audible(&self, now: Time, node: NodeId) -> bool {
        let is = |(life, heart): (&Life, &Heart)| {
            life.node == node && now.since(heart.heard) < SILENCE_LEAST
        };
        self.hearts.iter().any(is)
    }

    /// Keeps a heart for every process that is up, and for no other.
    fn know(&mut self, now: Time, state: &State) {
        self.hearts.retain(|life, _| state.is_up(*life));
        for (&node, known) in state.nodes() {
            let life = Life { node, boot: known.spec.process.boot };
            if known.is_up(life.boot) {
                self.hearts.entry(life).or_insert_with(|| Heart::new(now));
            }
        }
    }

    /// Looks who is silent, if that is due.
    pub fn look(&mut self, now: Time, state: &State, me: NodeId) -> Vec<Verdict> {
        if now < self.look_at {
            return Vec::new();
        }
        let late = now.since(self.look_at);
        self.look_at = now.after(LOOK);
        self.know(now, state);
        let mut verdicts = Vec::new();
        if late > LATE {
            self.forgive(now, late);
            verdicts.push(Verdict::Late);
        }
        for life in self.hearts.keys().copied().collect::<Vec<_>>() {
            if life.node != me {
                verdicts.extend(self.weigh(now, life, me));
            }
        }
        verdicts
    }

    /// The leader has not listened for so long.
    fn forgive(&mut self, now: Time, late: Duration) {
        for heart in self.hearts.values_mut() {
            heart.heard = heart.heard.after(late).min(now);
            if let Suspicion::Asked(_, until) = &mut heart.suspicion {
                *until = until.after(late);
            }
        }
    }

    fn weigh(&mut self, now: Time, life: Life, me: NodeId) -> Option<Verdict> {
        let heart = &self.hearts[&life];
        let is_silent = now.since(heart.heard) >= heart.patience();
        match heart.suspicion {
            Suspicion::No if is_silent => {
                let by = self.witness(now, life.node, me).unwrap_or(me);
                self.asked += 1;
                let asked = Suspicion::Asked(self.asked, now.after(OPINION));
                self.hearts.get_mut(&life)?.suspicion = asked;
                Some(Verdict::Ask { by, about: life, number: self.asked })
            }
            Suspicion::Asked(_, until) if now >= until => Some(Verdict::Dead(life)),
            Suspicion::Vouched if is_silent => Some(Verdict::Dead(life)),
            Suspicion::No | Suspicion::Asked(..) | Suspicion::Vouched => None,
        }
    }

    /// The node that was heard last, other than this one.
    fn witness(&self, now: Time, about: NodeId, me: NodeId) -> Option<NodeId> {
        let others = self.hearts.iter().filter(|(life, _)| life.node != about && life.node != me);
        let audible = others.filter(|(_, heart)| now.since(heart.heard) < SILENCE_LEAST);
        audible.max_by_key(|(_, heart)| heart.heard).map(|(life, _)| life.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::entry::{Entry, Index, NodeSpec, Process};
    use lockring_ring::{BootId, CellBits};

    const TWO: Life = Life { node: NodeId(2), boot: BootId(2) };
    const THREE: Life = Life { node: NodeId(3), boot: BootId(3) };
    const ME: NodeId = NodeId(1);

    fn at(ms: u64) -> Time {
        Time(1_000_000 + ms * 1000)
    }

    fn three() -> State {
        let mut state = State::new(CellBits::new(1).unwrap());
        for boot in 1..=3 {
            let process = Process { boot: BootId(boot), workers: 1, addresses: Vec::new() };
            let spec = NodeSpec { weight: 1, zone: None, host: boot.to_string(), process };
            state.apply(Index(boot), &Entry::Join(spec));
        }
        state
    }

    /// Looks every 25 ms while those are heard every 50; the first verdict, and when.
    fn first(
        judge: &mut Judge,
        ms: std::ops::Range<u64>,
        heard: &[Life],
    ) -> Option<(u64, Verdict)> {
        let state = three();
        for ms in ms.step_by(25) {
            for life in heard.iter().filter(|_| ms % 50 == 0) {
                judge.heard(at(ms), *life);
            }
            if let Some(verdict) = judge.look(at(ms), &state, ME).first() {
                return Some((ms, *verdict));
            }
        }
        None
    }

    #[test]
    fn a_silent_node_is_dead_after_a_second_opinion() {
        let mut judge = Judge::new(at(0), &three(), None);
        let asked = Verdict::Ask { by: NodeId(3), about: TWO, number: 1 };
        assert_eq!(first(&mut judge, 0..2000, &[THREE]), Some((250, asked)));
        assert_eq!(first(&mut judge, 275..2000, &[THREE]), Some((350, Verdict::Dead(TWO))));
        judge.heard(at(360), TWO);
        assert_eq!(first(&mut judge, 375..400, &[THREE]), None, "it was not");
    }

    #[test]
    fn another_node_may_vouch_for_it_once() {
        let mut judge = Judge::new(at(0), &three(), None);
        first(&mut judge, 0..2000, &[THREE]).unwrap();
        assert!(!judge.vouched(at(260), TWO, 7), "an answer to another question");
        assert!(judge.vouched(at(260), TWO, 1));
        assert_eq!(first(&mut judge, 275..2000, &[THREE]), Some((525, Verdict::Dead(TWO))));
    }

    #[test]
    fn who_was_silent_before_is_given_four_times_as_long_up_to_a_second() {
        for (gap, patience) in [(50, 250), (100, 400), (200, 800), (249, 996)] {
            let mut judge = Judge::new(at(0), &three(), None);
            assert_eq!(first(&mut judge, 0..gap, &[THREE]), None);
            judge.heard(at(gap), TWO);
            let next = gap.next_multiple_of(25);
            let (ms, _) = first(&mut judge, next..5000, &[THREE]).unwrap();
            assert!((gap + patience..gap + patience + 25).contains(&ms), "{gap}: {ms}");
        }
    }

    #[test]
    fn a_judge_that_was_late_forgives() {
        let mut judge = Judge::new(at(0), &three(), None);
        assert_eq!(first(&mut judge, 0..200, &[TWO, THREE]), None);
        assert_eq!(judge.look(at(1200), &three(), ME), [Verdict::Late]);
        assert_eq!(first(&mut judge, 1225..1300, &[]), None);
    }

    #[test]
    fn a_new_leader_suspects_the_one_before_at_once() {
        let mut judge = Judge::new(at(0), &three(), Some(NodeId(3)));
        let asked = Verdict::Ask { by: NodeId(2), about: THREE, number: 1 };
        assert_eq!(judge.look(at(0), &three(), ME), [asked]);
    }

    #[test]
    fn a_silence_that_an_owner_reports_is_not_waited_out() {
        let mut judge = Judge::new(at(0), &three(), None);
        assert_eq!(first(&mut judge, 0..240, &[THREE]), None);
        judge.heard(at(240), TWO);
        assert_eq!(first(&mut judge, 250..600, &[THREE]), None);
        assert!(!judge.is_audible(at(600), NodeId(2)) && judge.is_audible(at(600), NodeId(3)));
        judge.hurry(at(600), NodeId(2));
        let (ms, verdict) = first(&mut judge, 600..700, &[THREE]).unwrap();
        assert_eq!((ms, verdict), (600, Verdict::Ask { by: NodeId(3), about: TWO, number: 1 }));
    }

    #[test]
    fn a_gap_in_which_the_judge_was_late_makes_nobody_spared_for_longer() {
        let mut judge = Judge::new(at(0), &three(), None);
        assert_eq!(first(&mut judge, 0..200, &[TWO, THREE]), None);
        // It stood still, and takes in what has come meanwhile before it looks.
        judge.heard(at(1000), TWO);
        judge.heard(at(1000), THREE);
        assert_eq!(judge.look(at(1000), &three(), ME), [Verdict::Late]);
        let (ms, _) = first(&mut judge, 1025..3000, &[THREE]).unwrap();
        assert_eq!(ms, 1250);
    }
}
