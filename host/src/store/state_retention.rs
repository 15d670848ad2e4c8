//! State of functions that are not installed: kept, in case they come back, and deleted when they have been away for long.
//!
//! What counts is the time that the daemon ran without the function, added up in `meta`: a clock that is set, or a board
//! that lay in a drawer, takes nothing away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension};

/// How often the time away is added up, and so how exactly it is kept. A commit each, while a function is away.
const EVERY: Duration = Duration::from_secs(3600);

/// Before the function's name.
pub(super) const META: &str = "absent/";

#[derive(Debug)]
pub(super) struct StateRetention {
    retention: Option<Duration>,
    /// `None` before the daemon has said what there is.
    installed: Option<Vec<Arc<str>>>,
    counted: Instant,
}

/// What to write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RetentionChange {
    Away {
        function: String,
        secs: u64,
    },
    /// It is installed, or has nothing stored any more.
    Known {
        key: String,
    },
    Forget {
        function: String,
    },
}

impl StateRetention {
    pub(super) fn new(retention: Option<Duration>, now: Instant) -> Self {
        Self { retention, installed: None, counted: now }
    }

    pub(super) fn installed(&mut self, functions: Vec<Arc<str>>) {
        self.installed = Some(functions);
    }

    /// What time has brought about. Rarely anything.
    pub(super) fn changes(&mut self, connection: &Connection, now: Instant) -> rusqlite::Result<Vec<RetentionChange>> {
        let (Some(installed), Some(retention)) = (&self.installed, self.retention) else { return Ok(Vec::new()) };
        let passed = now.duration_since(self.counted);
        if passed < EVERY {
            return Ok(Vec::new());
        }
        self.counted = now;
        let mut changes = Vec::new();
        let mut stored = connection.prepare_cached("SELECT DISTINCT function FROM scope")?;
        let stored: Vec<String> = stored.query_map((), |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        let is_away = |function: &str| !installed.iter().any(|it| **it == *function);
        for function in stored.iter().filter(|function| is_away(function)) {
            let key = format!("{META}{function}");
            let before: Option<Vec<u8>> = connection
                .prepare_cached("SELECT value FROM meta WHERE key = ?1")?
                .query_row((key,), |row| row.get(0))
                .optional()?;
            let before = before.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
            let secs = before.saturating_add(passed.as_secs());
            changes.push(match secs > retention.as_secs() {
                true => RetentionChange::Forget { function: function.clone() },
                false => RetentionChange::Away { function: function.clone(), secs },
            });
        }
        let mut noted = connection.prepare_cached("SELECT key FROM meta WHERE key >= ?1 AND key < ?2")?;
        // The character after the slash.
        let noted = noted.query_map((META, "absent0"), |row| row.get::<_, String>(0))?;
        for key in noted {
            let key = key?;
            let function = key.strip_prefix(META).unwrap_or_default();
            if !(is_away(function) && stored.iter().any(|it| it == function)) {
                changes.push(RetentionChange::Known { key });
            }
        }
        Ok(changes)
    }
}

impl RetentionChange {
    /// Part of a transaction.
    pub(super) fn write(&self, connection: &Connection) -> rusqlite::Result<()> {
        let forget = |key: &str| connection.prepare_cached("DELETE FROM meta WHERE key = ?1")?.execute((key,));
        match self {
            Self::Away { function, secs } => {
                let note = (format!("{META}{function}"), secs.to_le_bytes());
                connection.prepare_cached("REPLACE INTO meta VALUES (?1, ?2)")?.execute(note)?;
            }
            Self::Known { key } => drop(forget(key)?),
            Self::Forget { function } => {
                let keys = connection
                    .prepare_cached("DELETE FROM state WHERE scope IN (SELECT id FROM scope WHERE function = ?1)")?
                    .execute((function,))?;
                connection.prepare_cached("DELETE FROM scope WHERE function = ?1")?.execute((function,))?;
                forget(&format!("{META}{function}"))?;
                tracing::warn!(function, keys, "state of a function that has not been installed for long is deleted");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::schema;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn database() -> Connection {
        let mut connection = Connection::open_in_memory().unwrap();
        schema::create(&mut connection).unwrap();
        let rows = "INSERT INTO scope VALUES (1, 'gone', ''), (2, 'gone', 'a/b'), (3, 'here', '');
            INSERT INTO state VALUES (1, 'k', x'00'), (2, 'k', x'00'), (3, 'k', x'00');";
        connection.execute_batch(rows).unwrap();
        connection
    }

    fn functions(connection: &Connection) -> Vec<String> {
        let sql = "SELECT function FROM state JOIN scope ON scope = id ORDER BY id";
        let mut statement = connection.prepare(sql).unwrap();
        statement.query_map((), |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    fn noted(connection: &Connection) -> u64 {
        connection.query_row("SELECT count(*) FROM meta WHERE key LIKE 'absent/%'", (), |row| row.get(0)).unwrap()
    }

    fn pass(absent: &mut StateRetention, connection: &Connection, now: Instant) -> usize {
        let changes = absent.changes(connection, now).unwrap();
        changes.iter().for_each(|change| change.write(connection).unwrap());
        changes.len()
    }

    #[test]
    fn state_of_a_function_that_stays_away_goes_and_no_other() {
        let connection = database();
        let mut now = Instant::now();
        let mut absent = StateRetention::new(Some(30 * DAY), now);
        now += DAY;
        assert_eq!(pass(&mut absent, &connection, now), 0, "what is installed is not known yet");
        // A restart every day: what counts is in the database.
        for day in 1..=31 {
            let mut absent = StateRetention::new(Some(30 * DAY), now);
            absent.installed(vec!["here".into()]);
            assert_eq!(pass(&mut absent, &connection, now + EVERY / 2), 0, "not at every tick");
            now += DAY;
            assert_eq!(pass(&mut absent, &connection, now), 1);
            let kept = if day <= 30 { vec!["gone", "gone", "here"] } else { vec!["here"] };
            assert_eq!(functions(&connection), kept, "day {day}");
        }
        assert_eq!(noted(&connection), 0);
    }

    #[test]
    fn a_function_that_comes_back_finds_its_state_and_has_all_the_time_again() {
        let connection = database();
        let now = Instant::now();
        let mut absent = StateRetention::new(Some(30 * DAY), now);
        absent.installed(vec!["here".into()]);
        assert_eq!(pass(&mut absent, &connection, now + 29 * DAY), 1);
        assert_eq!(noted(&connection), 1);
        absent.installed(vec!["here".into(), "gone".into()]);
        assert_eq!(pass(&mut absent, &connection, now + 40 * DAY), 1);
        assert_eq!(noted(&connection), 0);
        absent.installed(vec!["here".into()]);
        assert_eq!(pass(&mut absent, &connection, now + 69 * DAY), 1);
        assert_eq!(functions(&connection).len(), 3);
    }

    #[test]
    fn switched_off_nothing_goes() {
        let connection = database();
        let now = Instant::now();
        let mut absent = StateRetention::new(None, now);
        absent.installed(Vec::new());
        assert_eq!(pass(&mut absent, &connection, now + 1000 * DAY), 0);
    }
}
