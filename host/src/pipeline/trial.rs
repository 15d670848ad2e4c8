//! Versions on trial: live, with the one before ready to take over, or as a shadow, whose outputs are only compared.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::function::Edition;
use crate::manifest::{Trial, TrialMode};
use crate::message::{Failure, FailureCode, Output, Verdict};

/// How often the progress of a trial is told.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// Differences that are kept to look at, and how much of each side.
const SAMPLES: usize = 5;
const SAMPLE_BYTES: usize = 512;

#[derive(Debug)]
pub struct Candidate {
    pub edition: Rc<Edition>,
    terms: Trial,
    until: Instant,
    is_judged: bool,
    tally: Tally,
    told: Option<(Instant, Tally)>,
    /// What went wrong last.
    last_failure: Option<Failure>,
    samples: Vec<Difference>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Messages that it has handled.
    pub run: u32,
    /// Of these, the ones on which it misbehaved.
    pub failed: u32,
    /// Of these, the ones on which a shadow did something else than the active version.
    pub different: u32,
}

/// What two versions made of one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub topic: Box<str>,
    pub active: Box<str>,
    pub candidate: Box<str>,
}

/// How a trial ends.
#[derive(Clone, Debug, PartialEq)]
pub enum Judgement {
    Passed,
    Failed(Failure),
}

/// What became of a message, to be compared with what another version made of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    Outputs(Vec<Output>),
    Retry,
    Failed(FailureCode),
}

impl Candidate {
    pub fn new(edition: Rc<Edition>, terms: Trial, now: Instant) -> Self {
        Self {
            until: now + Duration::from_secs(terms.secs.get().into()),
            edition,
            terms,
            is_judged: false,
            tally: Tally::default(),
            told: None,
            last_failure: None,
            samples: Vec::new(),
        }
    }

    /// It has handled a message, or failed to. Where its keys are not those of the version before, no failure is
    /// tolerated: messages cannot change hands one by one.
    pub fn ran(&mut self, failure: Option<&Failure>, tolerant: bool) -> Option<Judgement> {
        self.tally.run += 1;
        if let Some(failure) = failure {
            self.tally.failed += 1;
            self.last_failure = Some(failure.clone());
            if self.terms.mode == TrialMode::Live && (self.tally.failed > self.terms.failures || !tolerant) {
                return Some(Judgement::Failed(failure.clone()));
            }
        }
        None
    }

    /// It ran beside the active version.
    pub fn compare(&mut self, topic: &str, active: &Said, candidate: &Said) {
        if active == candidate {
            return;
        }
        self.tally.different += 1;
        if self.samples.len() < SAMPLES {
            let (active, candidate) = (active.summary(), candidate.summary());
            self.samples.push(Difference { topic: topic.into(), active, candidate });
        }
    }

    /// When it is over at the latest, if it is not over yet.
    pub fn until(&self) -> Option<Instant> {
        (!self.is_judged).then_some(self.until)
    }

    /// How it ends, once it is over; said once. `None`: it is not over, or a person decides.
    pub fn judge(&mut self, now: Instant) -> Option<Judgement> {
        let is_over = self.tally.run >= self.terms.messages.get() || now >= self.until;
        if !is_over || std::mem::replace(&mut self.is_judged, true) {
            return None;
        }
        let differences = match self.terms.mode {
            TrialMode::Live => return Some(Judgement::Passed),
            TrialMode::Shadow => self.terms.differences?,
        };
        if self.tally.different <= differences {
            return Some(Judgement::Passed);
        }
        let Tally { run, different, .. } = self.tally;
        let detail = format!("{different} of {run} messages came out differently, {differences} are allowed");
        Some(Judgement::Failed(Failure { code: FailureCode::Rejected, detail }))
    }

    /// The state of the trial, if there is something new to tell.
    pub fn progress(&mut self, now: Instant) -> Option<(Tally, Vec<Difference>)> {
        if self.told.is_some_and(|(at, told)| told == self.tally || now.duration_since(at) < TELL_EVERY) {
            return None;
        }
        self.told = Some((now, self.tally));
        Some((self.tally, self.samples.clone()))
    }
}

impl Said {
    pub fn of(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Done(outputs) => Self::Outputs(outputs.clone()),
            Verdict::Retry { .. } => Self::Retry,
            Verdict::Failed(failure) => Self::Failed(failure.code),
        }
    }

    fn summary(&self) -> Box<str> {
        let mut text = match self {
            Self::Outputs(outputs) if outputs.is_empty() => "nothing".to_owned(),
            Self::Outputs(outputs) => outputs.iter().map(describe).collect::<Vec<_>>().join("; "),
            Self::Retry => "asked for another run".to_owned(),
            Self::Failed(code) => code.as_str().to_owned(),
        };
        if text.len() > SAMPLE_BYTES {
            let mut end = SAMPLE_BYTES - 3;
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
            text.push_str("...");
        }
        text.into()
    }
}

fn describe(output: &Output) -> String {
    match output {
        Output::Alert(alert) => {
            let value = alert.value.map_or_else(String::new, |value| format!(" ({value})"));
            format!("alert {} {:?}: {}{value}", alert.key, alert.status, alert.summary)
        }
        Output::Forward(it) => format!("forward {} {}", it.topic, String::from_utf8_lossy(&it.payload)),
        Output::Publish(it) => format!("publish {} {}", it.topic, String::from_utf8_lossy(&it.payload)),
    }
}
