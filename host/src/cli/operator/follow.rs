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
use super::session::Session;
use crate::deploy::payload::Install;
use crate::deploy::reason::Reason;
use crate::deploy::report::{Progress, Report, State};
use crate::deploy::topics::KEYS;

/// A refusal that names no serial is perhaps of somebody else's order, and an old one perhaps not the last word: if ours is
/// on its way, its own report comes soon.
const SETTLE_TIME: Duration = Duration::from_secs(3);

/// With more boards than this their news is looked at together, or looking would take longer than hearing.
const BATCH_ABOVE: usize = 10;
const BATCH_PERIOD: Duration = Duration::from_millis(50);

/// Which states are what was wanted.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    pub states: &'static [State],
}

impl Goal {
    pub const INSTALLED: Self = Self { states: &[State::Active] };
    /// A shadow that only a person promotes is where it should be.
    pub const SHADOWING: Self = Self { states: &[State::Active, State::Trial] };
    pub const ROLLED_BACK: Self = Self { states: &[State::RolledBack, State::Active] };
    pub const REMOVED: Self = Self { states: &[State::Removed] };
}

/// How far one board is.
#[derive(Clone, Debug, PartialEq)]
enum Phase {
    /// It has not said anything of this order.
    Silent,
    InProgress,
    Done,
    Failed,
    /// It has refused an order that it does not name, or this one when it was given before.
    Unclear,
}

/// What became of the order on one board.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeOutcome {
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
pub struct OrderOutcome {
    pub nodes: Vec<NodeOutcome>,
    pub timed_out: bool,
}

impl OrderOutcome {
    pub fn is_ok(&self) -> bool {
        !self.nodes.is_empty() && self.nodes.iter().all(|node| node.ok)
    }

    pub fn counts(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for node in &self.nodes {
            *counts.entry(&*node.state).or_default() += 1;
        }
        counts
    }
}

/// One order under way.
pub struct Follow {
    pub serial: u64,
    pub goal: Goal,
    /// What is installed: another push may have the same serial.
    pub install: Option<Install>,
    /// After this a trial is over, however few the messages.
    pub trial_secs: Option<NonZeroU32>,
    /// What the boards said before it was published.
    before: BTreeMap<Arc<str>, Report>,
    unclear_since: BTreeMap<Arc<str>, Instant>,
}

impl Follow {
    /// To be made before the order is published.
    pub fn new(session: &Session, serial: u64, goal: Goal) -> Self {
        let reports =
            session.boards.iter().filter_map(|(node, board)| Some((node, board.reports.get(&session.function)?)));
        let before = reports.map(|(node, report)| (Arc::clone(node), report.clone())).collect();
        Self { serial, goal, install: None, trial_secs: None, before, unclear_since: BTreeMap::new() }
    }

    /// Returns when every board of the target is done with it, or at the deadline.
    pub async fn run(mut self, session: &mut Session) -> anyhow::Result<OrderOutcome> {
        loop {
            let outcome = self.outcome(session);
            session.progress.set_status("boards", &shown(&outcome, session, self.trial_secs));
            let members = session.boards.members(&session.target, &session.function, Some(self.serial));
            let is_over = |node: &Arc<str>| match self.phase(session, node) {
                Phase::Done | Phase::Failed => true,
                Phase::Unclear => self.unclear_since.get(node).is_some_and(|since| since.elapsed() >= SETTLE_TIME),
                Phase::Silent | Phase::InProgress => false,
            };
            if !members.is_empty() && members.iter().all(is_over) {
                return Ok(outcome);
            }
            let unclear: Vec<Arc<str>> =
                members.into_iter().filter(|node| self.phase(session, node) == Phase::Unclear).collect();
            self.unclear_since.retain(|node, _| unclear.contains(node));
            for node in unclear {
                self.unclear_since.entry(node).or_insert_with(Instant::now);
            }
            let settled =
                self.unclear_since.values().map(|since| *since + SETTLE_TIME).filter(|at| *at > Instant::now()).min();
            let until = settled.unwrap_or(session.deadline);
            if session.next_event_until(until).await?.is_none() && Instant::now() >= session.deadline {
                return Ok(OrderOutcome { timed_out: true, ..self.outcome(session) });
            }
            if outcome.nodes.len() > BATCH_ABOVE {
                let together = Instant::now() + BATCH_PERIOD;
                while session.next_event_until(together).await?.is_some() {}
            }
        }
    }

    pub fn outcome(&self, session: &Session) -> OrderOutcome {
        let members = session.boards.members(&session.target, &session.function, Some(self.serial));
        OrderOutcome {
            nodes: members.into_iter().map(|node| self.node_outcome(session, node)).collect(),
            timed_out: false,
        }
    }

    fn node_outcome(&self, session: &Session, node: Arc<str>) -> NodeOutcome {
        let phase = self.phase(session, &node);
        let board = session.boards.get(&node);
        let report = session.boards.report(&node, &session.function);
        let active = report.and_then(|report| report.active.as_ref()).map_or(
            Value::Null,
            |active| json!({ "version": active.version.version, "serial": active.version.serial }),
        );
        let silent = || if board.is_some_and(Board::is_offline) { "offline" } else { "waiting" };
        let told = report.filter(|_| phase != Phase::Silent);
        let superseded = told.is_some_and(|report| report.serial > Some(self.serial));
        let is_other = told.is_some_and(|report| self.is_other(report));
        NodeOutcome {
            ok: phase == Phase::Done,
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

    fn phase(&self, session: &Session, node: &str) -> Phase {
        let Some(report) = session.boards.report(node, &session.function) else { return Phase::Silent };
        let is_news = self.before.get(node) != Some(report);
        if self.is_other(report) {
            return Phase::Failed;
        }
        phase(report, is_news, self.serial, self.goal)
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

fn phase(report: &Report, is_news: bool, serial: u64, goal: Goal) -> Phase {
    match report.serial {
        Some(other) if other == serial => match report.state {
            state if goal.states.contains(&state) => Phase::Done,
            // Of an order that is given again: perhaps the board takes it now.
            state if state.is_final() && !is_news => Phase::Unclear,
            state if state.is_final() => Phase::Failed,
            _ => Phase::InProgress,
        },
        // A refused one of that serial says nothing: anybody may have written it.
        Some(later) if later > serial && is_news && report.state != State::Rejected => Phase::Failed,
        // What was sent is an envelope and signed: that is about somebody else's junk.
        None if matches!(report.reason, Some(Reason::BadEnvelope | Reason::Unsigned)) => Phase::Silent,
        None if is_news && report.state == State::Rejected => Phase::Unclear,
        _ => Phase::Silent,
    }
}

/// One line for what is under way.
fn shown(outcome: &OrderOutcome, session: &Session, trial_secs: Option<NonZeroU32>) -> String {
    match &outcome.nodes[..] {
        [] => format!("no board of {} has said anything yet", session.target),
        [node] => {
            let report = session.boards.report(&node.node, &session.function);
            // While it waits, its report is of the order before.
            let report = report.filter(|report| !node.ok && report.state.as_str() == node.state);
            let mut line = format!("{} {}", node.node, node.state);
            if let Some(progress) = report.and_then(|report| report.progress) {
                let _ = write!(line, ", {}", progress_text(progress));
                if let (Progress::Trial { .. }, Some(secs)) = (progress, trial_secs) {
                    let _ = write!(line, "; it takes {secs} s at most");
                }
            }
            line
        }
        nodes => {
            let counts: Vec<String> =
                outcome.counts().into_iter().map(|(state, count)| format!("{state} {count}")).collect();
            format!("{} of {}", counts.join(", "), nodes.len())
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
pub fn lines(outcome: &OrderOutcome, session: &Session) -> Vec<String> {
    let line = |node: &NodeOutcome| {
        let serves = match &node.active {
            // Keys serve no messages.
            _ if *session.function == *KEYS => String::new(),
            Value::Null => ", serves nothing".into(),
            active => {
                let version = printable(active["version"].as_str().unwrap_or_default());
                format!(", serves {version} (serial {})", active["serial"])
            }
        };
        let why = match why(node.reason, node.error.as_deref()) {
            // That an order said so is known to whoever gave it.
            why if why.is_empty() || node.ok => String::new(),
            why => format!(": {why}"),
        };
        format!("{:<11} {} on {}{serves}{why}", node.state, session.function, node.node)
    };
    let mut lines: Vec<String> = match outcome.nodes.len() {
        0 => vec![format!("waiting     no board of {} has said anything", session.target)],
        1 => outcome.nodes.iter().map(line).collect(),
        _ => {
            let counts = outcome.counts().into_iter().map(|(state, count)| format!("{state:<11} {count}"));
            counts.chain(outcome.nodes.iter().filter(|node| !node.ok).map(line)).collect()
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
            assert_eq!(phase(&report(state, serial), is_news, 7, Goal::INSTALLED), expected, "{state} {serial:?}");
        };
        check("receiving", Some(7), true, Phase::InProgress);
        check("trial", Some(7), true, Phase::InProgress);
        check("active", Some(7), true, Phase::Done);
        check("active", Some(7), false, Phase::Done);
        check("rolled-back", Some(7), true, Phase::Failed);
        check("rejected", Some(7), true, Phase::Failed);
        check("rejected", Some(7), false, Phase::Unclear);
        check("quarantined", Some(7), true, Phase::Failed);
        check("active", Some(6), true, Phase::Silent);
        check("receiving", Some(8), true, Phase::Failed);
        check("rejected", Some(8), true, Phase::Silent);
        check("rejected", None, true, Phase::Unclear);
        check("rejected", None, false, Phase::Silent);
        check("active", None, true, Phase::Silent);
    }

    #[test]
    fn every_order_has_an_aim_of_its_own() {
        let done = |state: &str, goal| phase(&report(state, Some(7)), true, 7, goal) == Phase::Done;
        assert!(done("rolled-back", Goal::ROLLED_BACK) && !done("rolled-back", Goal::INSTALLED));
        assert!(done("removed", Goal::REMOVED) && !done("active", Goal::REMOVED));
        assert!(done("trial", Goal::SHADOWING) && !done("trial", Goal::INSTALLED));
    }
}
