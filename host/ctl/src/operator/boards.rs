//! Status and reports of boards, as the broker retains them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use sedge_core::config;
use sedge_core::deploy::limits::BoardLimits;
use sedge_core::deploy::reason::Reason;
use sedge_core::deploy::report::{DeployState, Report};
use sedge_core::deploy::topics::{KEYS, Target, Topic, Topics};

pub(crate) struct Boards {
    topics: Topics,
    boards: BTreeMap<Arc<str>, Board>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Board {
    pub(crate) presence: Option<Presence>,
    pub(crate) reports: BTreeMap<Arc<str>, Report>,
}

/// The status message of a board.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Presence {
    /// `online` or `offline`.
    pub(crate) state: String,
    #[serde(default)]
    pub(crate) version: Option<String>,
    #[serde(default)]
    pub(crate) groups: Vec<String>,
    /// Absent from older boards.
    #[serde(default)]
    pub(crate) limits: Option<BoardLimits>,
    #[serde(default)]
    pub(crate) problem: Option<String>,
}

impl Boards {
    pub(crate) fn new(topics: Topics) -> Self {
        Self { topics, boards: BTreeMap::new() }
    }

    /// Records a message from the broker. Returns whether it told anything new.
    pub(crate) fn record(&mut self, topic: &str, payload: &[u8]) -> bool {
        match self.topics.parse(topic) {
            Some(Topic::Status { node }) => {
                // An empty payload removes a decommissioned board.
                let presence = serde_json::from_slice(payload).ok();
                let board = self.boards.entry(node).or_default();
                let is_new = board.presence != presence;
                board.presence = presence;
                is_new
            }
            Some(Topic::Report { node, function }) => {
                let reports = &mut self.boards.entry(node).or_default().reports;
                match Report::parse(payload) {
                    Ok(report) if reports.get(&function) == Some(&report) => false,
                    Ok(report) => {
                        reports.insert(function, report);
                        true
                    }
                    Err(_) => reports.remove(&function).is_some(),
                }
            }
            _ => false,
        }
    }

    /// Boards with a retained status or report.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Board)> {
        self.boards.iter().filter(|(_, board)| **board != Board::default())
    }

    /// The known board with the name nearest to that of an unknown one. Names that differ in digits only are of other boards.
    pub(crate) fn near(&self, node: &str) -> Option<&str> {
        let known: Vec<&str> = self.iter().map(|(name, _)| &**name).collect();
        let letters = |text: &str| text.to_lowercase().replace(|c: char| c.is_ascii_digit(), "");
        let differs = |other: &&str| letters(other) != letters(node) || other.to_lowercase() == node.to_lowercase();
        if known.contains(&node) { None } else { config::nearest(node, &known).filter(differs) }
    }

    pub(crate) fn get(&self, node: &str) -> Option<&Board> {
        self.boards.get(node)
    }

    pub(crate) fn report(&self, node: &str, function: &str) -> Option<&Report> {
        self.boards.get(node)?.reports.get(function)
    }

    /// Boards that an order is for. A group consists of those that list it in their status or report its order.
    pub(crate) fn members(&self, target: &Target, function: &str, serial: Option<u64>) -> Vec<Arc<str>> {
        let group = match target {
            Target::Node(node) => return vec![Arc::from(&**node)],
            Target::Group(group) => group,
        };
        let is_member = |board: &Board| {
            board.presence.as_ref().is_some_and(|presence| presence.groups.iter().any(|name| **name == **group))
        };
        let has_order = |board: &Board| {
            serial.is_some() && board.reports.get(function).is_some_and(|report| report.serial == serial)
        };
        self.boards
            .iter()
            .filter(|(_, board)| is_member(board) || has_order(board))
            .map(|(node, _)| Arc::clone(node))
            .collect()
    }

    /// Highest serial that a board of the target has accepted for the function, and that board.
    pub(crate) fn highest_accepted(&self, target: &Target, function: &str) -> Option<(u64, Arc<str>)> {
        self.highest(target, function, was_accepted)
    }

    /// Highest serial of a signed order, accepted or not. The next one is free.
    pub(crate) fn highest_used(&self, target: &Target, function: &str) -> Option<u64> {
        self.highest(target, function, was_signed).map(|(serial, _)| serial)
    }

    /// Whether a board of the target knows an order: its serial, or a higher one, is in a report.
    pub(crate) fn is_taken(&self, target: &Target, function: &str, serial: u64) -> bool {
        let mut members = self.members(target, function, Some(serial)).into_iter();
        members.any(|node| match self.report(&node, function) {
            // Changes of keys are not reported by serial after a restart of the board.
            Some(_) if function == KEYS => true,
            Some(report) => highest_serial(report, |_| true) >= Some(serial),
            None => false,
        })
    }

    fn highest(&self, target: &Target, function: &str, counts: fn(&Report) -> bool) -> Option<(u64, Arc<str>)> {
        self.members(target, function, None)
            .into_iter()
            .filter_map(|node| Some((highest_serial(self.report(&node, function)?, counts)?, node)))
            .max()
    }
}

impl Board {
    pub(crate) fn is_offline(&self) -> bool {
        self.presence.as_ref().is_some_and(|presence| presence.state == "offline")
    }
}

fn highest_serial(report: &Report, counts: fn(&Report) -> bool) -> Option<u64> {
    let latest = report.serial.filter(|_| counts(report));
    let active = report.active.as_ref().map(|active| active.version.serial);
    let previous = report.previous.as_ref().map(|previous| previous.serial);
    latest.max(active).max(previous)
}

/// Whether the board counts the serial of the latest order as used. In doubt it does not; the board then refuses.
fn was_accepted(report: &Report) -> bool {
    report.state != DeployState::Rejected
        || matches!(
            report.reason,
            Some(
                Reason::DigestMismatch
                    | Reason::Truncated
                    | Reason::InvalidModule
                    | Reason::CompilerFailed
                    | Reason::NotLoaded
                    | Reason::ModuleMissing
                    | Reason::Superseded
            )
        )
}

/// Whether the latest order was signed by a trusted key, so that its serial is not just anybody's.
fn was_signed(report: &Report) -> bool {
    let by_anybody = matches!(
        report.reason,
        None | Some(
            Reason::BadEnvelope
                | Reason::Unsigned
                | Reason::UnknownKey
                | Reason::BadSignature
                | Reason::KeyNotAllowed
                | Reason::WrongTarget
                | Reason::Expired
                | Reason::ReplayedSerial
                | Reason::SerialTooHigh
                | Reason::Unknown
        )
    );
    report.state != DeployState::Rejected || !by_anybody
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn boards() -> Boards {
        let mut boards = Boards::new(Topics::new("sedge"));
        for (node, state, groups) in [("a", "online", json!(["pumps"])), ("b", "offline", json!(["pumps", "all"]))] {
            let status = json!({ "state": state, "groups": groups }).to_string();
            assert!(boards.record(&format!("sedge/{node}/status"), status.as_bytes()));
        }
        boards
    }

    fn report(serial: u64, state: &str, reason: Option<&str>, active: Option<u64>) -> String {
        let digest = "0".repeat(64);
        let active = active.map(|serial| json!({ "version": "1", "serial": serial, "digest": digest, "manifest": {} }));
        json!({
            "function": "warm", "state": state, "reason": reason, "serial": serial, "active": active, "previous": null,
            "at_ms": 0, "clock_synced": true,
        })
        .to_string()
    }

    #[test]
    fn a_group_has_the_boards_that_list_it_or_report_its_order() {
        let mut boards = boards();
        let pumps = Target::Group("pumps".into());
        let names = |boards: &Boards, serial| boards.members(&pumps, "warm", serial).join(" ");
        assert_eq!(names(&boards, None), "a b");
        assert!(boards.record("sedge/old/functions/warm", report(7, "receiving", None, None).as_bytes()));
        assert_eq!(names(&boards, Some(7)), "a b old");
        assert_eq!(names(&boards, Some(8)), "a b");
        assert_eq!(boards.members(&Target::Node("z".into()), "warm", None).join(" "), "z");
        assert!(boards.get("b").unwrap().is_offline() && !boards.get("a").unwrap().is_offline());
    }

    #[test]
    fn a_mistyped_name_is_told_the_near_one() {
        let mut boards = Boards::new(Topics::new("sedge"));
        for node in ["cellar", "pump-3"] {
            boards.record(&format!("sedge/{node}/status"), br#"{"state":"online"}"#);
        }
        let near = [("Cellar", Some("cellar")), ("celar", Some("cellar")), ("cellar", None), ("roof", None)];
        for (node, expected) in near.into_iter().chain([("pump-4", None), ("pmup-3", Some("pump-3"))]) {
            assert_eq!(boards.near(node), expected, "{node}");
        }
    }

    #[test]
    fn an_order_is_taken_when_a_board_reports_its_serial_or_a_higher_one() {
        let mut boards = boards();
        let (node, pumps) = (Target::Node("a".into()), Target::Group("pumps".into()));
        assert!(!boards.is_taken(&node, "warm", 5) && !boards.is_taken(&pumps, "warm", 5));
        boards.record("sedge/a/functions/warm", report(5, "rejected", Some("over-limit"), Some(4)).as_bytes());
        assert!(boards.is_taken(&node, "warm", 5) && boards.is_taken(&pumps, "warm", 4));
        assert!(!boards.is_taken(&node, "warm", 6) && !boards.is_taken(&Target::Node("b".into()), "warm", 5));
        assert!(!boards.is_taken(&node, KEYS, 5));
        boards.record("sedge/a/functions/_keys", report(0, "active", None, None).as_bytes());
        assert!(boards.is_taken(&node, KEYS, 5));
    }

    #[test]
    fn the_highest_serial_is_one_that_was_accepted() {
        let mut boards = boards();
        let pumps = Target::Group("pumps".into());
        let mut highest = |node: &str, text: String| {
            assert!(boards.record(&format!("sedge/{node}/functions/warm"), text.as_bytes()));
            boards.highest_accepted(&pumps, "warm").map(|(serial, node)| (serial, node.to_string()))
        };
        assert_eq!(highest("a", report(5, "active", None, Some(5))), Some((5, "a".into())));
        assert_eq!(highest("b", report(9, "rejected", Some("digest-mismatch"), Some(4))), Some((9, "b".into())));
        // Unsigned orders could have caused these.
        assert_eq!(highest("b", report(99, "rejected", Some("serial-too-high"), Some(4))), Some((5, "a".into())));
        assert_eq!(highest("b", report(99, "rejected", Some("of-the-future"), Some(6))), Some((6, "b".into())));
        // Refused before its serial counted.
        assert_eq!(highest("b", report(50, "rejected", Some("over-limit"), Some(6))), Some((6, "b".into())));
        assert_eq!(highest("stranger", report(100, "active", None, Some(100))), Some((6, "b".into())));
        assert_eq!(boards.highest_used(&pumps, "warm"), Some(50));
    }

    #[test]
    fn a_repeated_message_is_not_new_and_an_empty_one_removes() {
        let mut boards = boards();
        let text = report(1, "active", None, Some(1));
        assert!(boards.record("sedge/a/functions/warm", text.as_bytes()));
        assert!(!boards.record("sedge/a/functions/warm", text.as_bytes()));
        assert!(boards.record("sedge/a/functions/warm", b""));
        assert!(boards.record("sedge/a/status", b""));
        assert_eq!(boards.iter().map(|(node, _)| node.to_string()).collect::<Vec<_>>(), ["b"]);
        for (topic, payload) in [("other/a/status", "{}"), ("sedge/a/b/status", "{}"), ("sedge/blob/status", "{}")] {
            assert!(!boards.record(topic, payload.as_bytes()), "{topic}");
        }
    }
}
