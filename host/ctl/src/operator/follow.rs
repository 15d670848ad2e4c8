//! Follows an order on every board of its target until the outcome is known.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::boards::Board;
use super::session::Session;
use crate::printable;
use sedge_core::deploy::payload::Install;
use sedge_core::deploy::reason::Reason;
use sedge_core::deploy::report::{DeployState, Progress, Report};
use sedge_core::deploy::topics::KEYS;

/// How long an unclear refusal stands before it counts. If it was not of our order, our own report comes sooner.
const SETTLE_TIME: Duration = Duration::from_secs(3);

/// Above this number of boards, events are evaluated in batches: each evaluation looks at all boards.
const BATCH_ABOVE: usize = 10;
const BATCH_PERIOD: Duration = Duration::from_millis(50);

/// States of a board in which the order is carried out.
pub(crate) type Goal = &'static [DeployState];

pub(crate) const INSTALLED: Goal = &[DeployState::Active];
/// Of a shadow that runs until a person promotes it.
pub(crate) const SHADOWING: Goal = &[DeployState::Active, DeployState::Trial];
pub(crate) const ROLLED_BACK: Goal = &[DeployState::RolledBack, DeployState::Active];
pub(crate) const REMOVED: Goal = &[DeployState::Removed];

/// Progress of the order on one board.
#[derive(Clone, Debug, PartialEq)]
enum Phase {
    /// The board has not reported on this order.
    Silent,
    InProgress,
    Done,
    Failed,
    /// The board has refused an order without naming it, or refused this one when it was sent before.
    Unclear,
}

/// Outcome of the order on one board.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct NodeOutcome {
    node: String,
    /// State of the board's report, or `waiting`, or `offline`.
    state: String,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// Version and serial of the active version.
    active: Value,
    /// `false`: the time of its trial passed before its messages came.
    #[serde(skip_serializing_if = "Option::is_none")]
    proven: Option<bool>,
    #[serde(skip)]
    guard: Option<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct OrderOutcome {
    pub(crate) nodes: Vec<NodeOutcome>,
    pub(crate) timed_out: bool,
}

impl OrderOutcome {
    pub(crate) fn is_ok(&self) -> bool {
        !self.nodes.is_empty() && self.nodes.iter().all(|node| node.ok)
    }

    /// Number of boards by state.
    pub(crate) fn counts(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for node in &self.nodes {
            *counts.entry(&*node.state).or_default() += 1;
        }
        counts
    }
}

/// An order in progress.
pub(crate) struct Follow {
    serial: u64,
    goal: Goal,
    /// What is installed: another push may use the same serial.
    pub(crate) install: Option<Install>,
    /// Maximum duration of a trial.
    pub(crate) trial_secs: Option<NonZeroU32>,
    /// Reports from before the order was published.
    before: BTreeMap<Arc<str>, Report>,
    unclear_since: BTreeMap<Arc<str>, Instant>,
}

impl Follow {
    /// Must be called before the order is published.
    pub(crate) fn new(session: &Session, serial: u64, goal: Goal) -> Self {
        let reports = session.boards.iter().filter_map(|(node, _)| Some((node, session.report(node)?)));
        let before = reports.map(|(node, report)| (Arc::clone(node), report.clone())).collect();
        Self { serial, goal, install: None, trial_secs: None, before, unclear_since: BTreeMap::new() }
    }

    /// Returns when every board of the target has succeeded or failed, or at the deadline.
    pub(crate) async fn run(mut self, session: &mut Session) -> anyhow::Result<OrderOutcome> {
        loop {
            let outcome = self.outcome(session);
            session.progress.set_status("boards", &status_line(&outcome, session, self.trial_secs));
            let (now, mut until) = (Instant::now(), session.deadline);
            let mut is_over = !outcome.nodes.is_empty();
            let unclear_since = std::mem::take(&mut self.unclear_since);
            for node in session.members(Some(self.serial)) {
                match self.phase(session, &node) {
                    Phase::Done | Phase::Failed => {}
                    Phase::Silent | Phase::InProgress => is_over = false,
                    Phase::Unclear => {
                        let since = unclear_since.get(&node).copied().unwrap_or(now);
                        if since + SETTLE_TIME > now {
                            is_over = false;
                            until = until.min(since + SETTLE_TIME);
                        }
                        self.unclear_since.insert(node, since);
                    }
                }
            }
            if is_over {
                return Ok(outcome);
            }
            session.check_trust()?;
            if session.next_event_until(until).await?.is_none() && Instant::now() >= session.deadline {
                return Ok(OrderOutcome { timed_out: true, ..self.outcome(session) });
            }
            if outcome.nodes.len() > BATCH_ABOVE {
                let batch_end = Instant::now() + BATCH_PERIOD;
                while session.next_event_until(batch_end).await?.is_some() {}
            }
        }
    }

    fn outcome(&self, session: &Session) -> OrderOutcome {
        let members = session.members(Some(self.serial)).into_iter();
        OrderOutcome { nodes: members.map(|node| self.node_outcome(session, &node)).collect(), timed_out: false }
    }

    fn node_outcome(&self, session: &Session, node: &str) -> NodeOutcome {
        let phase = self.phase(session, node);
        let report = session.report(node);
        let active = report.and_then(|report| report.active.as_ref()).map_or(
            Value::Null,
            |active| json!({ "version": active.version.version, "serial": active.version.serial }),
        );
        let (state, reason, error) = match report.filter(|_| phase != Phase::Silent) {
            None if session.boards.get(node).is_some_and(Board::is_offline) => ("offline".into(), None, None),
            None => ("waiting".into(), None, None),
            Some(report) if self.is_other(report) => {
                let error = "another order used the same serial just before; push again";
                (DeployState::Rejected.to_string(), Some(Reason::ReplayedSerial), Some(error.into()))
            }
            Some(report) if report.serial > Some(self.serial) => {
                let serial = report.serial.unwrap_or_default();
                let error = format!("the board has accepted a later order, with serial {serial}");
                (report.state.to_string(), Some(Reason::Superseded), Some(error))
            }
            Some(report) => (report.state.to_string(), report.reason, report.error.clone()),
        };
        let decided = report.filter(|_| phase == Phase::Done);
        NodeOutcome {
            node: node.to_owned(),
            state,
            ok: phase == Phase::Done,
            reason,
            error,
            active,
            proven: decided.and_then(|report| report.proven),
            guard: decided.and_then(guard_text),
        }
    }

    fn phase(&self, session: &Session, node: &str) -> Phase {
        match session.report(node) {
            None => Phase::Silent,
            Some(report) if self.is_other(report) => Phase::Failed,
            Some(report) => phase(report, self.before.get(node) != Some(report), self.serial, self.goal),
        }
    }

    /// Whether the report is of another order with our serial.
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
            state if goal.contains(&state) => Phase::Done,
            // A shadow that no message came for goes on by itself.
            DeployState::Trial if report.proven == Some(false) => Phase::Done,
            // From when the same order was sent before: the board may accept it this time.
            state if state.is_final() && !is_news => Phase::Unclear,
            state if state.is_final() => Phase::Failed,
            _ => Phase::InProgress,
        },
        // A rejected order with a later serial proves nothing: its sender may have had no key.
        Some(later) if later > serial && is_news && report.state != DeployState::Rejected => Phase::Failed,
        // Our order is a signed envelope, so these are about somebody else's message.
        None if matches!(report.reason, Some(Reason::BadEnvelope | Reason::Unsigned)) => Phase::Silent,
        None if is_news && report.state == DeployState::Rejected => Phase::Unclear,
        _ => Phase::Silent,
    }
}

fn status_line(outcome: &OrderOutcome, session: &Session, trial_secs: Option<NonZeroU32>) -> String {
    match &outcome.nodes[..] {
        [] => format!("no board of {} has reported yet", session.target),
        [node] => {
            // While the order waits, the report is of the order before.
            let report = session.report(&node.node).filter(|report| !node.ok && report.state.as_str() == node.state);
            let mut line = format!("{} {}", node.node, node.state);
            if let Some(progress) = report.and_then(|report| report.progress) {
                let _ = write!(line, ", {}", progress_text(progress));
                if let (Progress::Trial { .. }, Some(secs)) = (progress, trial_secs) {
                    let _ = write!(line, "; at most {secs} s");
                }
            }
            line
        }
        nodes => {
            let counts = outcome.counts().into_iter().map(|(state, count)| format!("{state} {count}"));
            format!("{} of {}", counts.collect::<Vec<_>>().join(", "), nodes.len())
        }
    }
}

pub(crate) fn progress_text(progress: Progress) -> String {
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

/// What a version still has to prove: the time of its trial passed before its messages came.
pub(crate) fn guard_text(report: &Report) -> Option<String> {
    let Some(Progress::Trial { messages, run, .. }) = report.progress.filter(|_| report.proven == Some(false)) else {
        return None;
    };
    let seen = match run {
        0 => "no message came during its trial".to_owned(),
        run => format!("{run} of the {messages} messages of its trial came"),
    };
    let ends = match (report.state, &report.previous) {
        (DeployState::Trial, _) => format!("it goes on until {messages} were compared"),
        (_, Some(previous)) => {
            format!("until {messages} came, a failure brings {} back", printable(&previous.version))
        }
        (_, None) => format!("until {messages} came, a failure removes it"),
    };
    Some(format!("not proven: {seen}; {ends}"))
}

/// `expired: it expired`
pub(crate) fn reason_text(reason: Option<Reason>, error: Option<&str>) -> String {
    match (reason, error.map(printable)) {
        (Some(reason), Some(error)) => format!("{reason}: {error}"),
        (Some(reason), None) => reason.to_string(),
        (None, error) => error.unwrap_or_default(),
    }
}

/// The outcome for people: one line per board, or the counts of a group and the boards that failed.
pub(crate) fn lines(outcome: &OrderOutcome, session: &Session) -> Vec<String> {
    let line = |node: &NodeOutcome| {
        let serves = match &node.active {
            _ if *session.function == *KEYS => String::new(),
            Value::Null => ", serves nothing".into(),
            active => {
                let version = printable(active["version"].as_str().unwrap_or_default());
                format!(", serves {version} (serial {})", active["serial"])
            }
        };
        let reason = match reason_text(node.reason, node.error.as_deref()) {
            // The reason of a successful rollback is this very order.
            reason if reason.is_empty() || node.ok => String::new(),
            reason => format!(": {reason}"),
        };
        let guard = node.guard.as_ref().map(|guard| format!("; {guard}")).unwrap_or_default();
        format!("{:<11} {} on {}{serves}{reason}{guard}", node.state, session.function, node.node)
    };
    let mut lines: Vec<String> = match outcome.nodes.len() {
        0 => vec![format!("waiting     no board of {} has reported", session.target)],
        1 => outcome.nodes.iter().map(line).collect(),
        _ => {
            let counts = outcome.counts().into_iter().map(|(state, count)| format!("{state:<11} {count}"));
            counts.chain(outcome.nodes.iter().filter(|node| !node.ok || node.guard.is_some()).map(line)).collect()
        }
    };
    if outcome.timed_out {
        lines.push("timed out: the broker retains the order for boards that connect later".into());
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
            assert_eq!(phase(&report(state, serial), is_news, 7, INSTALLED), expected, "{state} {serial:?}");
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
    fn each_kind_of_order_has_its_goal() {
        let done = |state: &str, goal| phase(&report(state, Some(7)), true, 7, goal) == Phase::Done;
        assert!(done("rolled-back", ROLLED_BACK) && !done("rolled-back", INSTALLED));
        assert!(done("removed", REMOVED) && !done("active", REMOVED));
        assert!(done("trial", SHADOWING) && !done("trial", INSTALLED));
    }
}
