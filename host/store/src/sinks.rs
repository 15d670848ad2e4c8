//! Numbers of sinks. A sink keeps its number while it is part of the configuration, and afterwards as long as the store holds
//! its records: a sink that comes back within [`KEPT`] finds them.
//!
//! The table is a value of `meta`: a line per sink with its number, its name, and, if it was removed, the running time of that
//! moment in seconds.

use std::time::Duration;

use sedge_core::config::{SinkShare, UPSTREAM};
use sedge_core::store::StoredSink;
use sedge_core::stream::SinkId;

/// How long the records of a sink that was removed are kept, in running time.
pub(super) const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Name of a sink whose line was lost with a damaged file.
const UNKNOWN: &str = "unknown";

#[derive(Debug, Default)]
pub(super) struct SinkTable {
    /// In the order of the configuration, then those that were removed.
    sinks: Vec<Entry>,
    is_changed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    id: SinkId,
    name: String,
    /// In running time.
    removed_at: Option<Duration>,
}

impl SinkTable {
    /// Gives the sinks of the configuration their numbers. `given`: numbers of this process, which stay although the file is
    /// another. Returns also the sinks whose records must make room for their number, which is rare.
    pub(super) fn load(
        stored: Option<&[u8]>,
        configured: &[SinkShare],
        given: &[StoredSink],
        has_records: impl Fn(SinkId) -> bool,
        now: Duration,
    ) -> (Self, Vec<SinkId>) {
        let before = entries(stored.unwrap_or_default());
        let mut old = before.clone();
        for sink in SinkId::all().filter(|sink| has_records(*sink)) {
            if old.iter().all(|entry| entry.id != sink) {
                let name = if sink == SinkId::UPSTREAM { UPSTREAM } else { UNKNOWN };
                old.push(Entry { id: sink, name: name.to_owned(), removed_at: None });
            }
        }
        let mut evicted = Vec::new();
        let mut sinks: Vec<Entry> = Vec::new();
        let reserved: Vec<SinkId> = configured.iter().filter_map(|share| known(&old, given, &share.name)).collect();
        for SinkShare { name, .. } in configured {
            let id = known(&old, given, name).unwrap_or_else(|| {
                let is_free = |id: &SinkId| !reserved.contains(id) && sinks.iter().all(|sink| sink.id != *id);
                let unused: Vec<SinkId> = SinkId::all().skip(1).filter(is_free).collect();
                let fresh = unused.iter().find(|id| old.iter().all(|entry| entry.id != **id));
                *fresh.or_else(|| unused.first()).expect("there are more numbers than sinks in a configuration")
            });
            // Only where all numbers are in use, or where another file gave it to another.
            if old.iter().any(|entry| entry.id == id && entry.name != *name) {
                evicted.push(id);
            }
            old.retain(|entry| entry.id != id && entry.name != *name);
            sinks.push(Entry { id, name: name.clone(), removed_at: None });
        }
        let removed = old.into_iter().filter(|entry| has_records(entry.id));
        sinks.extend(removed.map(|entry| Entry { removed_at: Some(entry.removed_at.unwrap_or(now)), ..entry }));
        let is_changed = sinks != before;
        (Self { sinks, is_changed }, evicted)
    }

    /// Sinks of the configuration with their limits, in its order.
    pub(super) fn configured(&self, shares: &[SinkShare]) -> Vec<(SinkId, SinkShare)> {
        let number = |share: &SinkShare| {
            let entry = self.sinks.iter().find(|entry| entry.name == share.name && entry.removed_at.is_none());
            (entry.expect("each has a number").id, share.clone())
        };
        shares.iter().map(number).collect()
    }

    pub(super) fn stored(&self) -> Vec<StoredSink> {
        let sink = |entry: &Entry| StoredSink {
            id: entry.id,
            name: entry.name.as_str().into(),
            is_removed: entry.removed_at.is_some(),
        };
        self.sinks.iter().map(sink).collect()
    }

    /// Sinks that were removed so long ago that their records go.
    pub(super) fn expired(&self, now: Duration) -> Vec<SinkId> {
        let is_over = |at: Duration| now >= at + KEPT;
        self.sinks.iter().filter(|entry| entry.removed_at.is_some_and(is_over)).map(|entry| entry.id).collect()
    }

    /// The store holds no records of a sink that was removed.
    pub(super) fn forget(&mut self, sink: SinkId) {
        self.sinks.retain(|entry| entry.id != sink);
        self.is_changed = true;
    }

    /// The value to store, if it is another one.
    pub(super) fn take_changed(&mut self) -> Option<Vec<u8>> {
        if !std::mem::take(&mut self.is_changed) {
            return None;
        }
        let line = |entry: &Entry| match entry.removed_at {
            Some(at) => format!("{} {} {}\n", entry.id.index(), entry.name, at.as_secs()),
            None => format!("{} {}\n", entry.id.index(), entry.name),
        };
        Some(self.sinks.iter().map(line).collect::<String>().into_bytes())
    }
}

fn known(old: &[Entry], given: &[StoredSink], name: &str) -> Option<SinkId> {
    let given = given.iter().find(|sink| *sink.name == *name && !sink.is_removed).map(|sink| sink.id);
    let old = || old.iter().find(|entry| entry.name == name).map(|entry| entry.id);
    given.or_else(old).or_else(|| (name == UPSTREAM).then_some(SinkId::UPSTREAM))
}

fn entries(stored: &[u8]) -> Vec<Entry> {
    let entry = |line: &str| {
        let mut words = line.split(' ');
        let id = SinkId::new(words.next()?.parse().ok()?)?;
        let name = words.next()?.to_owned();
        let removed_at = words.next().and_then(|secs| secs.parse().ok()).map(Duration::from_secs);
        Some(Entry { id, name, removed_at })
    };
    String::from_utf8_lossy(stored).lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use sedge_core::config::WhenFull;

    use super::*;

    fn shares(names: &[&str]) -> Vec<SinkShare> {
        let share =
            |name: &&str| SinkShare { name: (*name).to_owned(), max_bytes: 1, when_full: WhenFull::DropOldestData };
        names.iter().map(share).collect()
    }

    fn numbers(table: &SinkTable) -> Vec<(usize, String, bool)> {
        table.stored().iter().map(|sink| (sink.id.index(), sink.name.to_string(), sink.is_removed)).collect()
    }

    fn loaded(stored: Option<&[u8]>, names: &[&str], with_records: &[usize], hours: u64) -> SinkTable {
        let has_records = |sink: SinkId| with_records.contains(&sink.index());
        SinkTable::load(stored, &shares(names), &[], has_records, Duration::from_secs(hours * 3600)).0
    }

    fn of(number: usize, name: &str, is_removed: bool) -> (usize, String, bool) {
        (number, name.to_owned(), is_removed)
    }

    #[test]
    fn a_sink_keeps_its_number_over_restarts_and_changes() {
        let mut table = loaded(None, &["upstream", "lake", "stick"], &[], 0);
        assert_eq!(numbers(&table), [of(0, "upstream", false), of(1, "lake", false), of(2, "stick", false)]);
        let stored = table.take_changed().unwrap();
        assert_eq!(table.take_changed(), None);
        let mut table = loaded(Some(&stored), &["stick", "new", "upstream"], &[0, 1, 2], 5);
        let expected = [of(2, "stick", false), of(3, "new", false), of(0, "upstream", false), of(1, "lake", true)];
        assert_eq!(numbers(&table), expected);
        // It comes back within the time, and then has its records.
        let stored = table.take_changed().unwrap();
        let table = loaded(Some(&stored), &["lake"], &[1], 9);
        assert_eq!(numbers(&table), [of(1, "lake", false)]);
    }

    #[test]
    fn a_removed_sink_is_kept_for_seven_days_and_only_with_records() {
        let mut table = loaded(Some(b"0 upstream\n1 lake\n2 stick\n"), &["upstream"], &[1], 10);
        assert_eq!(numbers(&table), [of(0, "upstream", false), of(1, "lake", true)]);
        let stored = table.take_changed().unwrap();
        let mut table = loaded(Some(&stored), &["upstream"], &[1], 30);
        assert_eq!(table.take_changed(), None, "the time of the removal stays");
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        assert_eq!(table.expired(hours(10 + 7 * 24 - 1)), []);
        assert_eq!(table.expired(hours(10 + 7 * 24)), [SinkId::new(1).unwrap()]);
        table.forget(SinkId::new(1).unwrap());
        assert_eq!(table.take_changed().unwrap(), b"0 upstream\n");
    }

    #[test]
    fn the_records_of_a_database_without_named_sinks_are_those_of_upstream() {
        let table = loaded(None, &["lake"], &[0], 0);
        assert_eq!(numbers(&table), [of(1, "lake", false), of(0, "upstream", true)]);
        let table = loaded(None, &["lake"], &[4], 0);
        assert_eq!(numbers(&table), [of(1, "lake", false), of(4, "unknown", true)], "its line was lost");
    }

    #[test]
    fn numbers_of_this_process_stay_when_the_file_is_another() {
        let given = loaded(Some(b"5 lake\n"), &["lake"], &[], 0).stored();
        let (table, evicted) = SinkTable::load(None, &shares(&["lake"]), &given, |_| false, Duration::ZERO);
        assert_eq!((numbers(&table), evicted.len()), (vec![of(5, "lake", false)], 0));
    }

    #[test]
    fn without_a_free_number_the_records_of_a_removed_sink_make_room() {
        let stored: String = (1..15).map(|n| format!("{n} old{n} 3\n")).collect();
        let has_records = |sink: SinkId| sink != SinkId::UPSTREAM;
        let (table, evicted) =
            SinkTable::load(Some(stored.as_bytes()), &shares(&["new"]), &[], has_records, Duration::ZERO);
        assert_eq!(evicted, [SinkId::new(1).unwrap()]);
        assert_eq!(numbers(&table)[0], of(1, "new", false));
        assert_eq!(numbers(&table).len(), 14);
    }
}
