//! Pauses of topics over which a function keeps failing: longer each time, so that they do not take the time of the others.
//! Their messages become dead letters meanwhile, which can be replayed after a fix.
//!
//! A topic is paused for itself alone. Whoever publishes to it, and to however many others, stops nothing but those. The
//! function counts as paused once several topics are and no message of any topic has succeeded since: then one failure
//! suffices to pause another topic, and people are told. One success ends that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::message::Failure;
use crate::metrics::TopicPause;
use crate::mistakes::{Mistake, is_made};

/// Topics of one function that are remembered as failing. Beyond it the one that failed the longest ago is forgotten.
const MAX_TOPICS: usize = 128;
/// Paused topics that are shown.
const MAX_SHOWN: usize = 20;
/// Topics that are paused in a row before the function counts as paused, if it hears as many.
const SEVERAL: usize = 3;
/// The reason of the last failure is kept up to this length.
const MAX_REASON_BYTES: usize = 160;

#[derive(Clone, Copy, Debug)]
pub struct PauseConfig {
    /// Failures in a row before a topic is paused.
    pub after: u32,
    pub first: Duration,
    pub max: Duration,
}

/// The pauses of one function.
#[derive(Debug)]
pub(crate) struct Pauses {
    config: PauseConfig,
    /// Topics whose last message failed.
    topics: BTreeMap<Arc<str>, Topic>,
    /// Successes so far, of any topic. Only counted while a topic fails.
    era: u64,
    /// Topics that were paused since the last success.
    in_a_row: usize,
    several: usize,
    is_paused: bool,
}

#[derive(Debug)]
struct Topic {
    failures: u32,
    failed_at: Instant,
    length: Duration,
    until: Option<Instant>,
    /// The pause is over and one message is let through as a probe.
    probing: bool,
    /// Of [`Pauses::era`], when it was last paused.
    paused_in: Option<u64>,
    reason: Box<str>,
}

/// A pause to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Paused {
    pub(crate) length: Duration,
    /// The function counts as paused, from now on.
    pub(crate) is_function: bool,
}

impl Pauses {
    /// `heard`: how many topics the function hears. `None` if their number has no bound.
    pub(crate) fn new(config: PauseConfig, heard: Option<usize>) -> Self {
        let several = heard.map_or(SEVERAL, |heard| heard.clamp(1, SEVERAL));
        Self { config, topics: BTreeMap::new(), era: 0, in_a_row: 0, several, is_paused: false }
    }

    /// Whether the function counts as paused.
    pub(crate) fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Topics that are paused.
    pub(crate) fn paused_topics(&self) -> usize {
        self.topics.values().filter(|topic| topic.until.is_some()).count()
    }

    /// The paused topics, those with the longest pauses first.
    pub(crate) fn shown(&self) -> Vec<TopicPause> {
        let paused = self.topics.iter().filter_map(|(topic, it)| {
            let reason = it.reason.clone();
            it.until.map(|until| TopicPause { topic: Arc::clone(topic), reason, until })
        });
        let mut paused: Vec<_> = paused.collect();
        paused.sort_by_key(|it| std::cmp::Reverse(it.until));
        paused.truncate(MAX_SHOWN);
        paused
    }

    /// Whether a message may run now. After a pause one is let through; the others wait for its outcome. `Err`: the last
    /// failure.
    pub(crate) fn admit(&mut self, topic: &str, now: Instant) -> Result<(), &str> {
        let everybody = is_made(Mistake::PauseOthers) && self.is_paused;
        let found = match everybody {
            true => self.topics.values_mut().find(|it| it.until.is_some()),
            false => self.topics.get_mut(topic),
        };
        let Some(it) = found else { return Ok(()) };
        if it.is_closed(now) {
            return Err(&it.reason);
        }
        it.probing = it.until.is_some();
        Ok(())
    }

    /// Whether a message would not run now.
    pub(crate) fn is_closed(&self, topic: &str, now: Instant) -> bool {
        self.topics.get(topic).is_some_and(|it| it.is_closed(now))
    }

    /// The probe has neither succeeded nor failed: the next message is the probe.
    pub(crate) fn undecided(&mut self, topic: &str) {
        if let Some(it) = self.topics.get_mut(topic) {
            it.probing = false;
        }
    }

    /// No message is under way any more.
    pub(crate) fn all_undecided(&mut self) {
        self.topics.values_mut().for_each(|it| it.probing = false);
    }

    /// Whether a success changes anything.
    pub(crate) fn has_failures(&self) -> bool {
        !self.topics.is_empty()
    }

    /// Returns whether something was paused that is not any more.
    pub(crate) fn succeeded(&mut self, topic: &str) -> bool {
        self.era += 1;
        self.in_a_row = 0;
        let was_paused = std::mem::take(&mut self.is_paused);
        was_paused | self.topics.remove(topic).is_some_and(|it| it.until.is_some())
    }

    pub(crate) fn failed(&mut self, topic: &str, failure: &Failure, now: Instant) -> Option<Paused> {
        let PauseConfig { after, first, max } = self.config;
        if !self.topics.contains_key(topic) {
            self.make_room();
        }
        let new = || Topic {
            failures: 0,
            failed_at: now,
            length: first,
            until: None,
            probing: false,
            paused_in: None,
            reason: Box::default(),
        };
        let it = self.topics.entry(topic.into()).or_insert_with(new);
        it.failures = it.failures.saturating_add(1);
        it.failed_at = now;
        let again = it.probing;
        let enough = it.failures >= after || self.is_paused;
        if !again && (it.until.is_some() || !enough) {
            return None;
        }
        if again {
            it.length = (it.length * 2).min(max);
        }
        it.probing = false;
        it.until = Some(now + it.length);
        it.reason = reason(failure);
        if it.paused_in.replace(self.era) != Some(self.era) {
            self.in_a_row += 1;
        }
        let is_function = !self.is_paused && self.in_a_row >= self.several;
        self.is_paused |= is_function;
        Some(Paused { length: it.length, is_function })
    }

    /// Forgets the topic that failed the longest ago, a paused one last, where there are too many.
    fn make_room(&mut self) {
        if self.topics.len() < MAX_TOPICS {
            return;
        }
        let oldest = self.topics.iter().min_by_key(|(_, it)| (it.until.is_some(), it.failed_at));
        if let Some(oldest) = oldest.map(|(topic, _)| Arc::clone(topic)) {
            self.topics.remove(&oldest);
        }
    }
}

impl Topic {
    fn is_closed(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until || self.probing)
    }
}

fn reason(failure: &Failure) -> Box<str> {
    let detail = &failure.detail[..failure.detail.floor_char_boundary(MAX_REASON_BYTES)];
    format!("{}: {detail}", failure.code.as_str()).into()
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may read clocks and files")]
mod tests {
    use super::*;
    use crate::message::FailureCode;

    const CONFIG: PauseConfig = PauseConfig { after: 3, first: Duration::from_secs(10), max: Duration::from_secs(30) };

    fn trap() -> Failure {
        Failure { code: FailureCode::Trap, detail: "unreachable".into() }
    }

    fn paused(secs: u64, is_function: bool) -> Option<Paused> {
        Some(Paused { length: Duration::from_secs(secs), is_function })
    }

    fn fail(pauses: &mut Pauses, topic: &str, times: u32, now: Instant) -> Option<Paused> {
        (0..times).filter_map(|_| pauses.failed(topic, &trap(), now)).last()
    }

    #[test]
    fn paused_topics_are_shown_with_reason_and_end() {
        let start = Instant::now();
        let mut pauses = Pauses::new(CONFIG, None);
        fail(&mut pauses, "a", 2, start);
        assert!(pauses.shown().is_empty());
        for n in 0..2 * MAX_SHOWN {
            fail(&mut pauses, &format!("{n}"), 3, start + Duration::from_secs(n as u64));
        }
        let shown = pauses.shown();
        assert_eq!(shown.len(), MAX_SHOWN);
        let last = 2 * MAX_SHOWN - 1;
        let until = start + Duration::from_secs(last as u64 + 10);
        let expected = TopicPause { topic: last.to_string().into(), reason: "trap: unreachable".into(), until };
        assert_eq!(shown[0], expected);
    }

    #[test]
    fn pauses_grow_until_it_works_again() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut pauses = Pauses::new(CONFIG, None);
        assert_eq!(fail(&mut pauses, "a", 2, at(0)), None);
        assert_eq!(fail(&mut pauses, "a", 1, at(0)), paused(10, false));
        // What was under way when it was paused changes nothing.
        assert_eq!(fail(&mut pauses, "a", 1, at(0)), None);
        assert_eq!(pauses.admit("a", at(9)), Err("trap: unreachable"));
        assert!(pauses.admit("a", at(10)).is_ok());
        assert!(pauses.admit("a", at(10)).is_err(), "one probe at a time");
        assert_eq!(fail(&mut pauses, "a", 1, at(11)), paused(20, false));
        assert!(pauses.admit("a", at(31)).is_ok());
        pauses.undecided("a");
        assert!(pauses.is_closed("a", at(30)) && !pauses.is_closed("a", at(31)));
        assert!(pauses.admit("a", at(31)).is_ok() && pauses.is_closed("a", at(31)), "the next is the probe");
        assert_eq!(fail(&mut pauses, "a", 1, at(31)), paused(30, false));
        assert!(pauses.admit("a", at(61)).is_ok());
        assert!(pauses.succeeded("a"));
        assert!(pauses.admit("a", at(61)).is_ok() && pauses.admit("a", at(61)).is_ok());
    }

    #[test]
    fn a_success_in_between_starts_the_count_over() {
        let now = Instant::now();
        let mut pauses = Pauses::new(CONFIG, None);
        for _ in 0..10 {
            assert_eq!(fail(&mut pauses, "a", 2, now), None);
            assert!(!pauses.succeeded("a"));
        }
        assert_eq!(pauses.paused_topics(), 0);
    }

    /// 25 messages to one topic silenced a function for all others.
    #[test]
    fn a_topic_is_paused_for_itself_alone() {
        let now = Instant::now();
        let mut pauses = Pauses::new(CONFIG, None);
        for topic in 0..1000 {
            fail(&mut pauses, &format!("evil/{topic}"), 100, now);
            assert!(pauses.admit(&format!("evil/{topic}"), now).is_err());
            assert!(pauses.admit("good", now).is_ok());
        }
        assert!(pauses.topics.len() <= MAX_TOPICS, "{}", pauses.topics.len());
    }

    #[test]
    fn a_function_is_paused_when_several_topics_fail_and_none_works() {
        let now = Instant::now();
        let mut pauses = Pauses::new(CONFIG, None);
        for _ in 0..5 {
            assert_eq!(fail(&mut pauses, "a", 3, now).is_some(), !pauses.succeeded("b"));
            pauses.succeeded("a");
        }
        assert_eq!(fail(&mut pauses, "a", 3, now), paused(10, false));
        assert_eq!(fail(&mut pauses, "b", 3, now), paused(10, false));
        assert!(!pauses.is_paused());
        assert_eq!(fail(&mut pauses, "c", 3, now), paused(10, true));
        assert!(pauses.is_paused());
        assert_eq!(fail(&mut pauses, "d", 1, now), paused(10, false), "once is enough now");
        assert!(pauses.admit("e", now).is_ok() && pauses.succeeded("e"));
        assert!(!pauses.is_paused() && pauses.admit("a", now).is_err(), "these stay paused");
        assert_eq!(pauses.paused_topics(), 4);
    }

    #[test]
    fn a_function_that_hears_one_topic_is_paused_with_it() {
        let mut pauses = Pauses::new(CONFIG, Some(1));
        assert_eq!(fail(&mut pauses, "a", 3, Instant::now()), paused(10, true));
    }
}
