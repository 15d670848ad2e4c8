//! Checks that every sent message took effect once and in order, from the records of the function `count` upstream.
//!
//! A message is `<sequence>` on `count/<source>`, counted from 1 on each topic; its record upstream is `<sequence> <count>` on the
//! same topic below the prefix, where `count` is the function's state. If each message took effect once and in order, the two
//! numbers are equal in every record.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;

use super::daemon::NODE;
use super::wire::Publish;

/// Number of messages sent on each topic.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    sent: BTreeMap<String, u64>,
}

/// Records that arrived, without repeats of a record id.
#[derive(Debug, Default)]
pub(crate) struct Arrived {
    /// Sequence and count of each record in order, by topic.
    pub(crate) data: BTreeMap<String, Vec<(u64, u64)>>,
    pub(crate) alerts: Vec<Publish>,
    pub(crate) repeats: usize,
}

impl Ledger {
    /// The next message of a source, counted as sent.
    pub(crate) fn next(&mut self, source: &str) -> Publish {
        let topic = format!("count/{source}");
        let sequence = self.sent.entry(topic.clone()).or_insert(0);
        *sequence += 1;
        Publish::new(&topic, sequence.to_string())
    }

    /// The next message of each of `sources` in turn.
    pub(crate) fn batch(&mut self, sources: usize, count: usize) -> Vec<Publish> {
        (0..count).map(|index| self.next(&format!("s{}", index % sources))).collect()
    }

    pub(crate) fn total(&self) -> u64 {
        self.sent.values().sum()
    }

    /// Whether every message has a record. Cheap enough to poll.
    pub(crate) fn is_complete(&self, received: &[Publish]) -> bool {
        let arrived = Arrived::read(received);
        let alerts: u64 = self.sent.values().map(|count| count / 10).sum();
        let distinct = |records: &Vec<(u64, u64)>| records.iter().map(|record| record.0).collect::<BTreeSet<_>>().len();
        arrived.data.values().map(distinct).sum::<usize>() as u64 >= self.total()
            && arrived.alerts.len() as u64 >= alerts
    }

    /// Checks that everything arrived once and in order; panics with all violations.
    #[track_caller]
    pub(crate) fn check(&self, received: &[Publish]) {
        let arrived = Arrived::read(received);
        let mut wrong = String::new();
        for (topic, sent) in &self.sent {
            let records = arrived.data.get(topic).map(Vec::as_slice).unwrap_or_default();
            let expected = 1..=*sent;
            let mut times: HashMap<u64, usize> = HashMap::new();
            for (sequence, _) in records {
                *times.entry(*sequence).or_default() += 1;
            }
            let lost: Vec<u64> = expected.clone().filter(|sequence| !times.contains_key(sequence)).collect();
            let twice: Vec<u64> = expected.filter(|sequence| times.get(sequence).is_some_and(|n| *n > 1)).collect();
            if !lost.is_empty() {
                writeln!(wrong, "{topic}: {} of {sent} lost: {}", lost.len(), sample(&lost))
                    .expect("write to a string");
            }
            if !twice.is_empty() {
                writeln!(wrong, "{topic}: {} in the outbox twice: {}", twice.len(), sample(&twice))
                    .expect("write to a string");
            }
            if let Some(pair) = records.windows(2).find(|pair| pair[0].0 > pair[1].0) {
                writeln!(wrong, "{topic}: {} came before {}", pair[0].0, pair[1].0).expect("write to a string");
            }
            if let Some((sequence, count)) = records.iter().find(|(sequence, count)| sequence != count) {
                writeln!(wrong, "{topic}: the state counted {count} at message {sequence}").expect("write to a string");
            }
        }
        for topic in arrived.data.keys().filter(|topic| !self.sent.contains_key(*topic)) {
            writeln!(wrong, "{topic}: never sent").expect("write to a string");
        }
        let alerts: u64 = self.sent.values().map(|count| count / 10).sum();
        if arrived.alerts.len() as u64 != alerts {
            writeln!(wrong, "{} alerts instead of {alerts}", arrived.alerts.len()).expect("write to a string");
        }
        // Violations are usually the same on all topics: show some.
        let (shown, total) = (wrong.lines().take(12).collect::<Vec<_>>(), wrong.lines().count());
        assert!(wrong.is_empty(), "of {} messages sent, {total} lines of this:\n{}", self.total(), shown.join("\n"));
    }
}

impl Arrived {
    #[track_caller]
    pub(crate) fn read(received: &[Publish]) -> Self {
        let prefix = format!("up/{NODE}/");
        let mut arrived = Self::default();
        let mut seen: HashMap<&str, &Publish> = HashMap::new();
        for message in received {
            let Some(topic) = message.topic.strip_prefix(&prefix) else { continue };
            if !(topic.starts_with("count/") || topic.starts_with("alerts/")) {
                continue;
            }
            let id = message.property("id").unwrap_or_else(|| panic!("a record without an id: {message:?}"));
            if let Some(first) = seen.insert(id, message) {
                assert_eq!(first.payload, message.payload, "two records with the id {id}");
                arrived.repeats += 1;
            } else if topic.starts_with("alerts/") {
                arrived.alerts.push(message.clone());
            } else {
                let text = message.text();
                let numbers = text.split_once(' ').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
                let numbers = numbers.unwrap_or_else(|| panic!("not a record of `count`: {message:?}"));
                arrived.data.entry(topic.to_owned()).or_default().push(numbers);
            }
        }
        arrived
    }
}

fn sample(numbers: &[u64]) -> String {
    let shown: Vec<String> = numbers.iter().take(10).map(u64::to_string).collect();
    let more = if numbers.len() > 10 { ", ..." } else { "" };
    shown.join(", ") + more
}
