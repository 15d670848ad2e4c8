//! Finds the answers of the board's own version that belong to a message, and compares them with those given here.
//!
//! ```text
//! message ─▶ runs here ─▶ open, for as long as the board may answer ─▶ settled, in order
//!                           ▲ echo: of the message that it answers
//! ```
//!
//! A broker sends a message before the answers to it, on one connection. An alert names the topic, the publisher's id and how
//! long ago its message came; a publication names its message only if that is in a sampled trace. Otherwise an echo is taken
//! for the answer to a message that is answered equally here, else to one that is answered on the same topic, else to the nearest.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use sedge_core::message::{AlertStatus, Message};
use sedge_core::trace::{TraceContext, TraceId};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::answer::{Answer, Difference, pair};

/// Messages that wait for answers at a time: two seconds of two thousand each.
const MAX_OPEN: usize = 4096;
/// Keys of alerts that are remembered. Beyond that all are forgotten, and repeats count as different.
const MAX_KEYS: usize = 10_000;

/// An answer of the board, as its echo tells of it.
pub(super) struct Echo {
    pub(super) answer: Answer,
    /// What an alert says of its message.
    pub(super) cause: Option<Cause>,
    pub(super) trace: Option<TraceId>,
}

pub(super) struct Cause {
    pub(super) topic: Box<str>,
    pub(super) publisher_id: Option<Box<str>>,
    /// From the message's arrival at the board to the alert.
    pub(super) took: Duration,
    /// Repeats that the board left out before.
    pub(super) folded: u64,
}

/// `T`: what is shown of a message.
pub(super) struct Comparison<T> {
    /// Until when the board may answer.
    wait: Duration,
    /// How long the board folds repeats of an alert.
    fold: Duration,
    open: VecDeque<Open<T>>,
    /// By key: the latest alert of the board.
    alerts: HashMap<String, LastAlert>,
    pub(super) totals: Totals,
}

/// A message that ran here.
pub(super) struct Ran {
    at: Instant,
    topic: Arc<str>,
    publisher_id: Option<Box<str>>,
    trace: Option<TraceId>,
    here: Vec<Answer>,
    /// Answers of the board, if no echo is to be waited for.
    recorded: Option<Vec<Answer>>,
    /// Why it is not compared.
    why_not: Option<&'static str>,
}

struct Open<T> {
    shown: T,
    ran: Ran,
    ends_at: Instant,
    /// What the board answered, and the repeats that it folded before.
    board: Vec<(Answer, u64)>,
}

struct LastAlert {
    status: AlertStatus,
    at: Instant,
    /// Repeats that came here since.
    repeats: u64,
}

/// What came of a comparison.
#[derive(Debug, PartialEq)]
pub(super) enum Settled {
    Compared(Compared),
    NotCompared(&'static str),
}

#[derive(Debug, Default, PartialEq)]
pub(super) struct Compared {
    pub(super) equal: u64,
    pub(super) differences: Vec<Difference>,
    /// Keys of alerts that the board would have folded: whether it gave them is not known.
    pub(super) folded: Vec<String>,
    /// Key, repeats that the board folded since its last alert of the key, and those that came here.
    pub(super) folds: Vec<(String, u64, u64)>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) messages: u64,
    /// Of the messages.
    pub(super) different: u64,
    pub(super) not_compared: u64,
    /// Of the answers.
    pub(super) equal: u64,
    pub(super) changed: u64,
    pub(super) only_board: u64,
    pub(super) only_here: u64,
    pub(super) folded: u64,
    /// Answers of the board to no message here.
    pub(super) unplaced: u64,
}

impl Ran {
    /// `board`: what the board answered to a message of a recording, `None` if its echoes will tell. An error says why the message
    /// is not compared.
    pub(super) fn new(
        message: &Message,
        here: Vec<Answer>,
        board: Result<Option<Vec<Answer>>, &'static str>,
        at: Instant,
    ) -> Self {
        let (recorded, why_not) = match board {
            Ok(recorded) => (recorded, None),
            Err(why_not) => (None, Some(why_not)),
        };
        Self {
            at,
            topic: message.shared_state_topic(),
            publisher_id: message.publisher_id().map(Into::into),
            trace: TraceContext::of(&message.properties).map(|trace| trace.trace_id),
            here,
            recorded,
            why_not,
        }
    }
}

impl<T> Comparison<T> {
    pub(super) fn new(wait: Duration, fold: Duration) -> Self {
        Self { wait, fold, open: VecDeque::new(), alerts: HashMap::new(), totals: Totals::default() }
    }

    /// Takes a message that ran here.
    pub(super) fn ran(&mut self, mut ran: Ran, shown: T) {
        if self.open.len() >= MAX_OPEN
            && let Some(oldest) = self.open.front_mut()
        {
            oldest.ran.why_not.get_or_insert("more messages wait than are kept");
        }
        let ends_at = if ran.recorded.is_some() { ran.at } else { ran.at + self.wait };
        let board = ran.recorded.take().into_iter().flatten().map(|answer| (answer, 0)).collect();
        self.open.push_back(Open { shown, ran, ends_at, board });
    }

    /// Takes an answer of the board. Gives back one to no message here.
    pub(super) fn answered(&mut self, echo: Echo, at: Instant) -> Option<Answer> {
        let Echo { answer, cause, trace } = echo;
        let caused_at = cause.as_ref().map_or(Some(at), |cause| at.checked_sub(cause.took));
        let distance = |open: &Open<T>| {
            let caused_at = caused_at?;
            let distance = caused_at.max(open.ran.at) - caused_at.min(open.ran.at);
            (distance <= self.wait).then_some(distance)
        };
        let is_possible = |open: &Open<T>| {
            let ran = &open.ran;
            let is_cause = |it: &Cause| *it.topic == *ran.topic && it.publisher_id == ran.publisher_id;
            ran.why_not.is_none() && cause.as_ref().is_none_or(is_cause)
        };
        let is_of_trace = |open: &Open<T>| trace.is_some() && open.ran.trace == trace && is_possible(open);
        let is_traced = self.open.iter().any(is_of_trace);
        // An alert tells when its message came. Publications leave a board in order: the first that lacks one has it.
        let rank = |open: &Open<T>, distance| match () {
            () if open.wants(&answer, Answer::eq) => (0, if cause.is_some() { distance } else { Duration::ZERO }),
            () if cause.is_none() && open.wants(&answer, Answer::is_about_same) => (1, Duration::ZERO),
            () => (2, distance),
        };
        let places = self.open.iter_mut().filter(|open| if is_traced { is_of_trace(open) } else { is_possible(open) });
        let places = places.filter_map(|open| Some((rank(open, distance(open)?), open)));
        let folded = cause.as_ref().map_or(0, |cause| cause.folded);
        if let Some((_, open)) = places.min_by_key(|(rank, _)| *rank) {
            open.board.push((answer, folded));
            return None;
        }
        self.totals.unplaced += 1;
        self.alerted(&answer, folded, at);
        Some(answer)
    }

    /// When the next message is settled.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.open.front().map(|open| if open.ran.why_not.is_some() { open.ran.at } else { open.ends_at })
    }

    /// The next message that is settled by now.
    pub(super) fn settle(&mut self, now: Instant) -> Option<(T, Settled)> {
        self.next_end().filter(|end| *end <= now)?;
        let Open { shown, ran: Ran { at, why_not, here, .. }, board, .. } = self.open.pop_front()?;
        if let Some(why_not) = why_not {
            self.totals.not_compared += 1;
            return Some((shown, Settled::NotCompared(why_not)));
        }
        let mut folds = Vec::new();
        for (answer, folded) in &board {
            folds.extend(self.alerted(answer, *folded, at));
        }
        let (equal, mut differences) = pair(board.into_iter().map(|(answer, _)| answer).collect(), here);
        let mut folded = Vec::new();
        differences.retain(|difference| match difference {
            Difference { board: None, here: Some(here) } if self.is_folded(here, at) => {
                folded.extend(here.as_alert().map(|alert| alert.key.clone()));
                false
            }
            _ => true,
        });
        let compared = Compared { equal, differences, folded, folds };
        self.totals.add(&compared);
        Some((shown, Settled::Compared(compared)))
    }

    /// Nothing that is open can be compared any more.
    pub(super) fn stop(&mut self, why: &'static str) {
        self.open.iter_mut().for_each(|open| open.ran.why_not = open.ran.why_not.or(Some(why)));
        self.alerts.clear();
    }

    /// Remembers an alert of the board. Returns its key and the repeats since the last one, there and here, if they differ.
    fn alerted(&mut self, answer: &Answer, folded: u64, at: Instant) -> Option<(String, u64, u64)> {
        let alert = answer.as_alert()?;
        if self.alerts.len() >= MAX_KEYS && !self.alerts.contains_key(&alert.key) {
            self.alerts.clear();
        }
        let last = self.alerts.insert(alert.key.clone(), LastAlert { status: alert.status, at, repeats: 0 })?;
        (!self.fold.is_zero() && last.repeats != folded).then(|| (alert.key.clone(), folded, last.repeats))
    }

    /// Whether the board would fold this alert.
    fn is_folded(&mut self, answer: &Answer, at: Instant) -> bool {
        let Some(alert) = answer.as_alert() else { return false };
        let Some(last) = self.alerts.get_mut(&alert.key) else { return false };
        let is_folded = last.status == alert.status && at.saturating_duration_since(last.at) < self.fold;
        last.repeats += u64::from(is_folded);
        is_folded
    }
}

impl<T> Open<T> {
    /// Whether more such answers are given here than the board gave so far.
    fn wants(&self, answer: &Answer, matches: fn(&Answer, &Answer) -> bool) -> bool {
        let here = self.ran.here.iter().filter(|it| matches(it, answer)).count();
        here > self.board.iter().filter(|(it, _)| matches(it, answer)).count()
    }
}

impl Totals {
    fn add(&mut self, compared: &Compared) {
        self.messages += 1;
        self.different += u64::from(!compared.differences.is_empty());
        self.equal += compared.equal;
        self.folded += compared.folded.len() as u64;
        for Difference { board, here } in &compared.differences {
            match (board, here) {
                (Some(_), Some(_)) => self.changed += 1,
                (Some(_), None) => self.only_board += 1,
                (None, _) => self.only_here += 1,
            }
        }
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "messages": self.messages,
            "different": self.different,
            "not_compared": self.not_compared,
            "answers": {
                "equal": self.equal,
                "changed": self.changed,
                "only_board": self.only_board,
                "only_here": self.only_here,
                "folded": self.folded,
                "to_no_message": self.unplaced,
            },
        })
    }
}

#[cfg(test)]
mod tests;
