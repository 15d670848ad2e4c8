//! Versions on trial: live, with the version before as the fallback, or as a shadow, whose outputs are only compared.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::function::Edition;
use crate::deploy::report::{Difference, TrialTally};
use crate::manifest::{Trial, TrialMode};
use crate::message::{Failure, FailureCode, Output, Verdict};
use crate::mistakes::{Mistake, is_made};

/// How often the progress of a trial is reported.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Differences that are reported in full, and the length of each side.
const SAMPLES: usize = 5;
const SAMPLE_BYTES: usize = 512;

#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) edition: Rc<Edition>,
    terms: Trial,
    until: Instant,
    /// Its time passed before its messages came. It goes on until they have come.
    is_late: bool,
    is_over: bool,
    tally: TrialTally,
    reported: Option<(Instant, TrialTally)>,
    samples: Vec<Difference>,
}

/// Decision about a trial.
#[derive(Clone, Debug, PartialEq)]
pub enum TrialEnd {
    /// Its time passed before its messages came. A live version counts as active from now on, and stays guarded by its
    /// fallback until it has run them.
    Late,
    Passed,
    Failed(Failure),
}

/// What one version made of a message, to be compared with another's.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Observed {
    Outputs(Vec<Output>),
    Retry,
    Failed(FailureCode),
}

impl Candidate {
    pub(crate) fn new(edition: Rc<Edition>, terms: Trial, now: Instant) -> Self {
        Self {
            until: now + Duration::from_secs(terms.secs.get().into()),
            // It has been late before, in an earlier run of the daemon.
            is_late: edition.version.is_resumed,
            edition,
            terms,
            is_over: false,
            tally: TrialTally::default(),
            reported: None,
            samples: Vec::new(),
        }
    }

    /// Counts a message that the version handled or misbehaved on. `tolerant`: false where its keys differ from those of
    /// the version before, since messages cannot move to another version one by one.
    pub(crate) fn ran(&mut self, failure: Option<&Failure>, tolerant: bool) -> Option<TrialEnd> {
        self.tally.run += 1;
        if let Some(failure) = failure {
            self.tally.failed += 1;
            if self.terms.mode == TrialMode::Live && (self.tally.failed > self.terms.failures || !tolerant) {
                return Some(TrialEnd::Failed(failure.clone()));
            }
        }
        None
    }

    /// Compares a shadow's outcome with the active version's.
    pub(crate) fn compare(&mut self, topic: &str, active: &Observed, candidate: &Observed) {
        if active == candidate {
            return;
        }
        self.tally.different += 1;
        if self.samples.len() < SAMPLES {
            let (active, candidate) = (active.summary(), candidate.summary());
            self.samples.push(Difference { topic: topic.into(), active, candidate });
        }
    }

    /// When its time is over, if that decides anything and is not over yet.
    pub(crate) fn until(&self) -> Option<Instant> {
        let has_bound = self.terms.mode == TrialMode::Live || self.terms.differences.is_some();
        let decides = has_bound || is_made(Mistake::StayDue);
        (decides && !self.is_over && !self.is_late).then_some(self.until)
    }

    /// Whether it counts as the active version although the fallback still guards it.
    pub(crate) fn counts_as_active(&self) -> bool {
        self.is_late && self.terms.mode == TrialMode::Live
    }

    /// When progress that was held back is reported.
    pub(crate) fn next_report(&self) -> Option<Instant> {
        let (at, _) = self.reported.filter(|(_, reported)| *reported != self.tally)?;
        Some(at + REPORT_EVERY)
    }

    /// Each decision once. `None`: nothing is decided now, or a person decides.
    pub(crate) fn evaluate(&mut self, now: Instant) -> Option<TrialEnd> {
        let has_all = self.tally.run >= self.terms.messages.get();
        let is_due = has_all || self.until().is_some_and(|until| now >= until);
        if self.is_over || !is_due {
            return None;
        }
        let differences = match self.terms.mode {
            TrialMode::Live => None,
            TrialMode::Shadow => Some(self.terms.differences?),
        };
        // Some messages suffice to compare a shadow, none do not.
        if !has_all && (differences.is_none() || self.tally.run == 0) {
            self.is_late = true;
            return Some(TrialEnd::Late);
        }
        self.is_over = true;
        let Some(differences) = differences else { return Some(TrialEnd::Passed) };
        if self.tally.different <= differences {
            return Some(TrialEnd::Passed);
        }
        let TrialTally { run, different, .. } = self.tally;
        let detail = format!("{different} of {run} messages came out differently, {differences} are allowed");
        Some(TrialEnd::Failed(Failure { code: FailureCode::Rejected, detail }))
    }

    /// Progress of the trial, if there is something new to report.
    pub(crate) fn progress(&mut self, now: Instant) -> Option<(TrialTally, Vec<Difference>)> {
        if self.reported.is_some_and(|(at, reported)| reported == self.tally || now.duration_since(at) < REPORT_EVERY) {
            return None;
        }
        self.reported = Some((now, self.tally));
        Some((self.tally, self.samples.clone()))
    }
}

impl Observed {
    pub(crate) fn of(verdict: &Verdict) -> Self {
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
        Output::Wake(it) => match it.after_ms {
            Some(after_ms) => format!("wake {} after {after_ms} ms", it.name),
            None => format!("wake {} cancelled", it.name),
        },
        Output::Reply(it) => format!("reply {} {}", it.status, String::from_utf8_lossy(&it.body)),
    }
}
