//! Follows an order to its end on every board that it is for, and says what became of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::boards::Board;
use super::printable;
use super::talk::Talk;
use crate::deploy::payload::Install;
use crate::deploy::reason::Reason;
use crate::deploy::report::{Progress, Report, State};
use crate::deploy::topics::KEYS;

/// A refusal that names no serial is perhaps of somebody else's order, and an old one perhaps not the last word: if ours is
/// on its way, its own report comes soon.
const DOUBT: Duration = Duration::from_secs(3);

/// With more boards than this their news is looked at together, or looking would take longer than hearing.
const FEW: usize = 10;
const TOGETHER: Duration = Duration::from_millis(50);

/// Which states are what was wanted.
#[derive(Clone, Copy, Debug)]
pub struct Aim {
    pub states: &'static [State],
}

impl Aim {
    pub const INSTALLED: Self = Self { states: &[State::Active] };
    /// A shadow that only a person promotes is where it should be.
    pub const SHADOWING: Self = Self { states: &[State::Active, State::Trial] };
    pub const ROLLED_BACK: Self = Self { states: &[State::RolledBack, State::Active] };
    pub const REMOVED: Self = Self { states: &[State::Removed] };
}

/// How far one board is.
#[derive(Clone, Debug, PartialEq)]
enum Standing {
    /// It has not said anything of this order.
    Silent,
    UnderWay,
    Done,
    Failed,
    /// It has refused an order that it does not name, or this one when it was given before.
    Doubtful,
}

/// What became of the order on one board.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fate {
    pub node: String,
    /// Of the board's report, or `waiting`, or `offline`.
    pub state: String,
    pub ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Version and serial that serve messages now.
    pub active: Value,
}

/// What became of it altogether.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub fates: Vec<Fate>,
    pub timed_out: bool,
}

impl Outcome {
    pub fn is_ok(&self) -> bool {
        !self.fates.is_empty() && self.fates.iter().all(|fate| fate.ok)
    }

    pub fn counts(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for fate in &self.fates {
            *counts.entry(&*fate.state).or_default() += 1;
        }
        counts
    }
}

/// One order under way.
pub struct Follow {
    pub serial: u64,
    pub aim: Aim,
    /// What is installed: another push may have the same serial.
    pub install: Option<Install>,
    /// After this a trial is over, however few the messages.
    pub trial_secs: Option<NonZeroU32>,
    /// What the boards said before it was published.
    before: BTreeMap<Arc<str>, Report>,
    doubts: BTreeMap<Arc<str>, Instant>,
}

impl Follow {
    /// To be made before the order is published.
    pub fn begin(talk: &Talk, serial: u64, aim: Aim) -> Self {
        let reports = talk.boards.iter().filter_map(|(node, board)| Some((node, board.reports.get(&talk.function)?)));
        let before = reports.map(|(node, report)| (Arc::clone(node), report.clone())).collect();
        Self { serial, aim, install: None, trial_secs: None, before, doubts: BTreeMap::new() }
    }

    /// Returns when every board of the target is done with it, or at the deadline.
    pub async fn run(mut self, talk: &mut Talk) -> anyhow::Result<Outcome> {
        loop {
            let outcome = self.outcome(talk);
            talk.progress.now("boards", &shown(&outcome, talk, self.trial_secs));
            let members = talk.boards.members(&talk.target, &talk.function, Some(self.serial));
            let is_over = |node: &Arc<str>| match self.standing(talk, node) {
                Standing::Done | Standing::Failed => true,
                Standing::Doubtful => self.doubts.get(node).is_some_and(|since| since.elapsed() >= DOUBT),
                Standing::Silent | Standing::UnderWay => false,
            };
            if !members.is_empty() && members.iter().all(is_over) {
                return Ok(outcome);
            }
            let doubtful: Vec<Arc<str>> =
                members.into_iter().filter(|node| self.standing(talk, node) == Standing::Doubtful).collect();
            self.doubts.retain(|node, _| doubtful.contains(node));
            for node in doubtful {
                self.doubts.entry(node).or_insert_with(Instant::now);
            }
            let settled = self.doubts.values().map(|since| *since + DOUBT).filter(|at| *at > Instant::now()).min();
            let until = settled.unwrap_or(talk.deadline);
            if talk.news_until(until).await?.is_none() && Instant::now() >= talk.deadline {
                return Ok(Outcome { timed_out: true, ..self.outcome(talk) });
            }
            if outcome.fates.len() > FEW {
                let together = Instant::now() + TOGETHER;
                while talk.news_until(together).await?.is_some() {}
            }
        }
    }

    pub fn outcome(&self, talk: &Talk) -> Outcome {
        let members = talk.boards.members(&talk.target, &talk.function, Some(self.serial));
        Outcome { fates: members.into_iter().map(|node| self.fate(talk, node)).collect(), timed_out: false }
    }

    fn fate(&self, talk: &Talk, node: Arc<str>) -> Fate {
        let standing = self.standing(talk, &node);
        let board = talk.boards.get(&node);
        let report = talk.boards.report(&node, &talk.function);
        let active = report.and_then(|report| report.active.as_ref()).map_or(
            Value::Null,
            |active| json!({ "version": active.version.version, "serial": active.version.serial }),
        );
        let silent = || if board.is_some_and(Board::is_offline) { "offline" } else { "waiting" };
        let told = report.filter(|_| standing != Standing::Silent);
        let superseded = told.is_some_and(|report| report.serial > Some(self.serial));
        let is_other = told.is_some_and(|report| self.is_other(report));
        Fate {
            ok: standing == Standing::Done,
            state: match told {
                Some(_) if is_other => State::Rejected.to_string(),
                told => told.map_or_else(|| silent().into(), |report| report.state.to_string()),
            },
            reason: if is_other {
                Some(Reason::ReplayedSerial)
            } else if superseded {
                Some(Reason::Superseded)
            } else {
                told.and_then(|report| report.reason)
            },
            error: match told {
                Some(_) if is_other => Some("another order took the same serial just before; push again".into()),
                Some(report) if superseded => Some(format!(
                    "the board has taken a later order, with serial {}",
                    report.serial.unwrap_or_default()
                )),
                _ => told.and_then(|report| report.error.clone()),
            },
            active,
            node: node.to_string(),
        }
    }

    fn standing(&self, talk: &Talk, node: &str) -> Standing {
        let Some(report) = talk.boards.report(node, &talk.function) else { return Standing::Silent };
        let is_news = self.before.get(node) != Some(report);
        if self.is_other(report) {
            return Standing::Failed;
        }
        standing(report, is_news, self.serial, self.aim)
    }
}

impl Follow {
    /// It has our serial, and is not what we sent.
    fn is_other(&self, report: &Report) -> bool {
        let Some(install) = self.install.as_ref().filter(|_| report.serial == Some(self.serial)) else { return false };
        let active = report.active.as_ref().filter(|active| active.version.serial == self.serial);
        report.digest.is_some_and(|digest| !install.has(digest))
            || active.is_some_and(|active| active.manifest != *install.manifest.as_value())
    }
}

fn standing(report: &Report, is_news: bool, serial: u64, aim: Aim) -> Standing {
    match report.serial {
        Some(other) if other == serial => match report.state {
            state if aim.states.contains(&state) => Standing::Done,
            // Of an order that is given again: perhaps the board takes it now.
            state if state.is_final() && !is_news => Standing::Doubtful,
            state if state.is_final() => Standing::Failed,
            _ => Standing::UnderWay,
        },
        // A refused one of that serial says nothing: anybody may have written it.
        Some(later) if later > serial && is_news && report.state != State::Rejected => Standing::Failed,
        // What was sent is an envelope and signed: that is about somebody else's junk.
        None if matches!(report.reason, Some(Reason::BadEnvelope | Reason::Unsigned)) => Standing::Silent,
        None if is_news && report.state == State::Rejected => Standing::Doubtful,
        _ => Standing::Silent,
    }
}

/// One line for what is under way.
fn shown(outcome: &Outcome, talk: &Talk, trial_secs: Option<NonZeroU32>) -> String {
    match &outcome.fates[..] {
        [] => format!("no board of {} has said anything yet", talk.target),
        [fate] => {
            let report = talk.boards.report(&fate.node, &talk.function);
            // While it waits, its report is of the order before.
            let report = report.filter(|report| !fate.ok && report.state.as_str() == fate.state);
            let mut line = format!("{} {}", fate.node, fate.state);
            if let Some(progress) = report.and_then(|report| report.progress) {
                let _ = write!(line, ", {}", progress_text(progress));
                if let (Progress::Trial { .. }, Some(secs)) = (progress, trial_secs) {
                    let _ = write!(line, "; it takes {secs} s at most");
                }
            }
            line
        }
        fates => {
            let counts: Vec<String> =
                outcome.counts().into_iter().map(|(state, count)| format!("{state} {count}")).collect();
            format!("{} of {}", counts.join(", "), fates.len())
        }
    }
}

pub fn progress_text(progress: Progress) -> String {
    match progress {
        Progress::Chunks { chunks, received } => format!("{received} of {chunks} chunks"),
        Progress::Trial { messages, run, failed, different } => {
            let mut text = format!("{run} of {messages} messages");
            for (count, what) in [(failed, "failed"), (different, "different")] {
                if count > 0 {
                    let _ = write!(text, ", {count} {what}");
                }
            }
            text
        }
    }
}

/// `expired: it expired`
pub fn why(reason: Option<Reason>, error: Option<&str>) -> String {
    match (reason, error.map(printable)) {
        (Some(reason), Some(error)) => format!("{reason}: {error}"),
        (Some(reason), None) => reason.to_string(),
        (None, error) => error.unwrap_or_default(),
    }
}

/// What a person reads at the end: a line for each board, or the counts of a group and the boards that failed.
pub fn lines(outcome: &Outcome, talk: &Talk) -> Vec<String> {
    let line = |fate: &Fate| {
        let serves = match &fate.active {
            // Keys serve no messages.
            _ if *talk.function == *KEYS => String::new(),
            Value::Null => ", serves nothing".into(),
            active => {
                let version = printable(active["version"].as_str().unwrap_or_default());
                format!(", serves {version} (serial {})", active["serial"])
            }
        };
        let why = match why(fate.reason, fate.error.as_deref()) {
            // That an order said so is known to whoever gave it.
            why if why.is_empty() || fate.ok => String::new(),
            why => format!(": {why}"),
        };
        format!("{:<11} {} on {}{serves}{why}", fate.state, talk.function, fate.node)
    };
    let mut lines: Vec<String> = match outcome.fates.len() {
        0 => vec![format!("waiting     no board of {} has said anything", talk.target)],
        1 => outcome.fates.iter().map(line).collect(),
        _ => {
            let counts = outcome.counts().into_iter().map(|(state, count)| format!("{state:<11} {count}"));
            counts.chain(outcome.fates.iter().filter(|fate| !fate.ok).map(line)).collect()
        }
    };
    if outcome.timed_out {
        lines.push("time is up: the order stays on the broker, for boards that come later".into());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(state: &str, serial: Option<u64>) -> Report {
        let text = json!({
            "function": "warm", "state": state, "serial": serial, "active": null, "previous": null, "at_ms": 0,
            "clock_synced": true,
        });
        Report::parse(text.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_report_is_of_this_order_by_its_serial() {
        let check = |state: &str, serial, is_news, expected| {
            assert_eq!(standing(&report(state, serial), is_news, 7, Aim::INSTALLED), expected, "{state} {serial:?}");
        };
        check("receiving", Some(7), true, Standing::UnderWay);
        check("trial", Some(7), true, Standing::UnderWay);
        check("active", Some(7), true, Standing::Done);
        check("active", Some(7), false, Standing::Done);
        check("rolled-back", Some(7), true, Standing::Failed);
        check("rejected", Some(7), true, Standing::Failed);
        check("rejected", Some(7), false, Standing::Doubtful);
        check("quarantined", Some(7), true, Standing::Failed);
        check("active", Some(6), true, Standing::Silent);
        check("receiving", Some(8), true, Standing::Failed);
        check("rejected", Some(8), true, Standing::Silent);
        check("rejected", None, true, Standing::Doubtful);
        check("rejected", None, false, Standing::Silent);
        check("active", None, true, Standing::Silent);
    }

    #[test]
    fn every_order_has_an_aim_of_its_own() {
        let done = |state: &str, aim| standing(&report(state, Some(7)), true, 7, aim) == Standing::Done;
        assert!(done("rolled-back", Aim::ROLLED_BACK) && !done("rolled-back", Aim::INSTALLED));
        assert!(done("removed", Aim::REMOVED) && !done("active", Aim::REMOVED));
        assert!(done("trial", Aim::SHADOWING) && !done("trial", Aim::INSTALLED));
    }
}
