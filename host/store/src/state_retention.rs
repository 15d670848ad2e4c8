//! Retention of the state of functions that are not installed.
//!
//! Only the time counts that the daemon ran without the function, summed up in `meta`. Neither a step of the clock nor a
//! board that was switched off shortens it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension};

use super::state::delete_state;

/// Interval and precision of the sum. Costs a commit each while a function is away.
const EVERY: Duration = Duration::from_secs(3600);

/// Prefix of keys in `meta`, followed by the name of a function.
pub(super) const META: &str = "absent/";

#[derive(Debug)]
pub(super) struct StateRetention {
    retention: Option<Duration>,
    /// `None` until the daemon has named them.
    installed: Option<Vec<Arc<str>>>,
    counted: Instant,
}

/// Change to write to the database.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RetentionChange {
    SetAway(String, u64),
    /// The function is installed again, or has no state any more.
    ClearAway(String),
    DeleteState(String),
}

impl StateRetention {
    pub(super) fn new(retention: Option<Duration>, now: Instant) -> Self {
        Self { retention, installed: None, counted: now }
    }

    pub(super) fn set_installed(&mut self, functions: Vec<Arc<str>>) {
        self.installed = Some(functions);
    }

    /// Returns the changes that are due; mostly none.
    pub(super) fn changes(&mut self, connection: &Connection, now: Instant) -> rusqlite::Result<Vec<RetentionChange>> {
        let (Some(installed), Some(retention)) = (&self.installed, self.retention) else { return Ok(Vec::new()) };
        let passed = now.duration_since(self.counted);
        if passed < EVERY {
            return Ok(Vec::new());
        }
        self.counted = now;
        let mut changes = Vec::new();
        let mut stored = connection.prepare_cached(
            "SELECT function FROM scope UNION SELECT function FROM wake UNION SELECT function FROM heard
             UNION SELECT function FROM schedule",
        )?;
        let stored: Vec<String> = stored.query_map((), |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        let is_away = |function: &str| !installed.iter().any(|it| **it == *function);
        for function in stored.iter().filter(|function| is_away(function)) {
            let sum: Option<Vec<u8>> = connection
                .prepare_cached("SELECT value FROM meta WHERE key = ?1")?
                .query_row((key(function),), |row| row.get(0))
                .optional()?;
            let sum = sum.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
            let secs = sum.saturating_add(passed.as_secs());
            changes.push(match secs > retention.as_secs() {
                true => RetentionChange::DeleteState(function.clone()),
                false => RetentionChange::SetAway(function.clone(), secs),
            });
        }
        let mut keys = connection.prepare_cached("SELECT key FROM meta WHERE key >= ?1 AND key < ?2")?;
        // `0` is the character after the slash.
        let keys = keys.query_map((META, "absent0"), |row| row.get::<_, String>(0))?;
        for key in keys {
            let key = key?;
            let function = key.strip_prefix(META).expect("the range holds only keys with the prefix");
            if !(is_away(function) && stored.iter().any(|it| it == function)) {
                changes.push(RetentionChange::ClearAway(function.to_owned()));
            }
        }
        Ok(changes)
    }
}

fn key(function: &str) -> String {
    format!("{META}{function}")
}

impl RetentionChange {
    pub(super) fn write(&self, connection: &Connection) -> rusqlite::Result<()> {
        let clear = |function| connection.prepare_cached("DELETE FROM meta WHERE key = ?1")?.execute((key(function),));
        match self {
            Self::SetAway(function, secs) => {
                let row = (key(function), secs.to_le_bytes());
                connection.prepare_cached("REPLACE INTO meta VALUES (?1, ?2)")?.execute(row)?;
            }
            Self::ClearAway(function) => drop(clear(function)?),
            Self::DeleteState(function) => {
                let keys = delete_state(connection, function)?;
                clear(function)?;
                tracing::warn!(
                    function,
                    keys,
                    "deleted state of a function that was away for store.state_retention_secs"
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn database() -> Connection {
        let mut connection = Connection::open_in_memory().unwrap();
        schema::create(&mut connection).unwrap();
        let rows = "INSERT INTO scope VALUES (1, 'gone', '', 0), (2, 'gone', 'a/b', 0), (3, 'here', '', 0);
            INSERT INTO state VALUES (1, 'k', x'00', 0), (2, 'k', x'00', 0), (3, 'k', x'00', 0);";
        connection.execute_batch(rows).unwrap();
        connection
    }

    fn functions(connection: &Connection) -> Vec<String> {
        let sql = "SELECT function FROM state JOIN scope ON scope = id ORDER BY id";
        let mut statement = connection.prepare(sql).unwrap();
        statement.query_map((), |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    fn away_rows(connection: &Connection) -> u64 {
        connection.query_row("SELECT count(*) FROM meta WHERE key LIKE 'absent/%'", (), |row| row.get(0)).unwrap()
    }

    fn pass(retention: &mut StateRetention, connection: &Connection, now: Instant) -> usize {
        let changes = retention.changes(connection, now).unwrap();
        changes.iter().for_each(|change| change.write(connection).unwrap());
        changes.len()
    }

    #[test]
    fn only_state_of_functions_that_stay_away_is_deleted() {
        let connection = database();
        let mut now = Instant::now();
        let mut retention = StateRetention::new(Some(30 * DAY), now);
        now += DAY;
        assert_eq!(pass(&mut retention, &connection, now), 0, "the installed functions are not known yet");
        // A restart every day: the sum is in the database.
        for day in 1..=31 {
            let mut retention = StateRetention::new(Some(30 * DAY), now);
            retention.set_installed(vec!["here".into()]);
            assert_eq!(pass(&mut retention, &connection, now + EVERY / 2), 0, "not at every tick");
            now += DAY;
            assert_eq!(pass(&mut retention, &connection, now), 1);
            let kept = if day <= 30 { vec!["gone", "gone", "here"] } else { vec!["here"] };
            assert_eq!(functions(&connection), kept, "day {day}");
        }
        assert_eq!(away_rows(&connection), 0);
    }

    #[test]
    fn a_function_that_comes_back_keeps_its_state_and_resets_the_sum() {
        let connection = database();
        let now = Instant::now();
        let mut retention = StateRetention::new(Some(30 * DAY), now);
        retention.set_installed(vec!["here".into()]);
        assert_eq!(pass(&mut retention, &connection, now + 29 * DAY), 1);
        assert_eq!(away_rows(&connection), 1);
        retention.set_installed(vec!["here".into(), "gone".into()]);
        assert_eq!(pass(&mut retention, &connection, now + 40 * DAY), 1);
        assert_eq!(away_rows(&connection), 0);
        retention.set_installed(vec!["here".into()]);
        assert_eq!(pass(&mut retention, &connection, now + 69 * DAY), 1);
        assert_eq!(functions(&connection).len(), 3);
    }

    #[test]
    fn without_retention_no_state_is_deleted() {
        let connection = database();
        let now = Instant::now();
        let mut retention = StateRetention::new(None, now);
        retention.set_installed(Vec::new());
        assert_eq!(pass(&mut retention, &connection, now + 1000 * DAY), 0);
    }
}
