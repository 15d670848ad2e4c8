//! Status and reports of boards, as the broker retains them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::known::KnownBoards;
use sedge_core::config;
use sedge_core::deploy::keys::PublicKey;
use sedge_core::deploy::limits::BoardLimits;
use sedge_core::deploy::reason::Reason;
use sedge_core::deploy::report::{DeployState, Report, SinkReport};
use sedge_core::deploy::signature;
use sedge_core::deploy::topics::{KEYS, Target, Topic, Topics};

pub(crate) struct Boards {
    topics: Topics,
    boards: BTreeMap<Arc<str>, Board>,
    known: KnownBoards,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Board {
    pub(crate) presence: Option<Presence>,
    pub(crate) reports: BTreeMap<Arc<str>, Report>,
    /// Whether its status was verified.
    pub(crate) is_signed: bool,
    /// Why its status does not count: it is not signed by the key that is known.
    pub(crate) distrust: Option<String>,
    /// Functions whose reports do not count, since the board has not signed them.
    pub(crate) unsigned: BTreeSet<Arc<str>>,
    /// Reports that came before the board's key, to be verified with it.
    early: BTreeMap<Arc<str>, (String, Vec<u8>)>,
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
    /// Key that signs its status and reports. Absent from older boards.
    #[serde(default)]
    pub(crate) public_key: Option<PublicKey>,
    #[serde(default)]
    pub(crate) problem: Option<String>,
    /// Absent from older boards, from boards without sinks and while the board is offline.
    #[serde(default)]
    pub(crate) sinks: Vec<SinkReport>,
}

impl Boards {
    pub(crate) fn new(topics: Topics, known: KnownBoards) -> Self {
        Self { topics, boards: BTreeMap::new(), known }
    }

    /// Remembers the keys of boards that were seen for the first time.
    pub(crate) fn remember(&mut self) {
        self.known.save();
    }

    /// Records a message from the broker. Returns whether it told anything new.
    pub(crate) fn record(&mut self, topic: &str, payload: &[u8]) -> bool {
        match self.topics.parse(topic) {
            Some(Topic::Status { node }) => {
                // An empty payload removes a decommissioned board.
                let presence = serde_json::from_slice(payload).ok();
                if let Some(presence) = &presence
                    && let Err(distrust) = self.check_status(&node, topic, payload, presence)
                {
                    let before = self.boards.entry(node).or_default().distrust.replace(distrust);
                    return before.is_none();
                }
                let board = self.boards.entry(node).or_default();
                board.distrust = None;
                board.is_signed &= presence.is_some();
                let is_new = board.presence != presence;
                board.presence = presence;
                is_new
            }
            Some(Topic::Report { node, function }) => {
                let key = self.known.get(&node);
                let board = self.boards.entry(node).or_default();
                if payload.is_empty() {
                    board.unsigned.remove(&function);
                    board.early.remove(&function);
                } else {
                    match key {
                        Some(key) if !signature::verify(key, topic, payload) => return board.unsigned.insert(function),
                        Some(_) => drop(board.unsigned.remove(&function)),
                        None => {
                            board.early.insert(Arc::clone(&function), (topic.to_owned(), payload.to_vec()));
                        }
                    }
                }
                let reports = &mut board.reports;
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

    /// Fails if a known board has not signed its status. A board that is seen for the first time becomes known.
    fn check_status(
        &mut self,
        node: &Arc<str>,
        topic: &str,
        payload: &[u8],
        presence: &Presence,
    ) -> Result<(), String> {
        let fix = |what: &str| Err(format!("{what}; {}", self.known.fix(node)));
        let key = match (self.known.get(node), presence.public_key) {
            (None, None) => return Ok(()),
            (Some(known), Some(key)) if *known != key => {
                return fix(&format!("board {node} has another key than the one that this computer knows"));
            }
            (Some(_), None) => return fix(&format!("the status of board {node} is not signed, but was before")),
            (_, Some(key)) => key,
        };
        if !signature::verify(&key, topic, payload) {
            return fix(&format!("the status of board {node} is not signed by its key"));
        }
        if self.known.get(node).is_none() {
            self.known.add(node, key);
        }
        let board = self.boards.entry(Arc::clone(node)).or_default();
        board.is_signed = true;
        for (function, (topic, payload)) in std::mem::take(&mut board.early) {
            if !signature::verify(&key, &topic, &payload) {
                board.reports.remove(&function);
                board.unsigned.insert(function);
            }
        }
        Ok(())
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
    /// Why its messages do not count, or what it reports to be wrong.
    pub(crate) fn problem(&self) -> Option<&str> {
        let reported = self.presence.as_ref().and_then(|presence| presence.problem.as_deref());
        self.distrust.as_deref().or(reported)
    }

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

    use sedge_core::deploy::keys::SigningKey;

    use super::*;

    fn boards() -> Boards {
        let mut boards = Boards::new(Topics::new("sedge"), KnownBoards::default());
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
    fn a_mistyped_name_gets_a_suggestion() {
        let mut boards = Boards::new(Topics::new("sedge"), KnownBoards::default());
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

    fn status(key: &SigningKey, node: &str) -> (String, Vec<u8>) {
        let topic = format!("sedge/{node}/status");
        let json = json!({ "state": "online", "public_key": key.public() }).to_string();
        let payload = signature::sign(key, &topic, json.as_bytes());
        (topic, payload)
    }

    #[test]
    fn a_known_board_is_believed_only_what_it_has_signed() {
        let (key, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let mut boards = Boards::new(Topics::new("sedge"), KnownBoards::default());
        let (topic, payload) = status(&key, "a");
        assert!(boards.record(&topic, &payload) && !boards.record(&topic, &payload));
        assert!(boards.get("a").unwrap().is_signed && boards.get("a").unwrap().distrust.is_none());
        let offline = br#"{"state":"offline"}"#;
        for forged in [&status(&other, "a").1[..], &status(&key, "b").1, offline] {
            boards.record(&topic, forged);
            let board = boards.get("a").unwrap();
            assert!(!board.is_offline() && board.distrust.as_ref().unwrap().contains("remove the line of a"));
        }
        boards.record(&topic, &payload);
        assert_eq!(boards.get("a").unwrap().distrust, None);

        let report_topic = "sedge/a/functions/warm";
        let report = report(5, "active", None, Some(5));
        let signed = signature::sign(&key, report_topic, report.as_bytes());
        boards.record(report_topic, report.as_bytes());
        assert!(boards.report("a", "warm").is_none() && boards.get("a").unwrap().unsigned.contains("warm"));
        boards.record(report_topic, &signature::sign(&other, report_topic, report.as_bytes()));
        assert!(boards.report("a", "warm").is_none());
        boards.record(report_topic, &signed);
        assert!(boards.report("a", "warm").is_some() && boards.get("a").unwrap().unsigned.is_empty());
        boards.record("sedge/a/functions/cold", &signed);
        assert!(boards.report("a", "cold").is_none(), "signed for another function");
    }

    #[test]
    fn a_report_that_came_before_the_key_is_verified_with_it() {
        let key = SigningKey::generate().unwrap();
        let mut boards = Boards::new(Topics::new("sedge"), KnownBoards::default());
        let report = report(5, "active", None, Some(5));
        boards.record("sedge/a/functions/warm", report.as_bytes());
        boards.record("sedge/a/functions/cold", &signature::sign(&key, "sedge/a/functions/cold", report.as_bytes()));
        assert!(boards.report("a", "warm").is_some(), "an older board does not sign");
        let (topic, payload) = status(&key, "a");
        boards.record(&topic, &payload);
        assert!(boards.report("a", "warm").is_none() && boards.report("a", "cold").is_some());
    }
}
