//! Schedules: which due times have run. The board knows all of them; they are read once.

use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use rusqlite::Connection;

use super::row::{self, Encoder};
use super::stats::Stats;
use sedge_core::store::StoredSchedule;

pub(super) fn load(connection: &Connection, stats: &Stats) -> rusqlite::Result<Vec<StoredSchedule>> {
    let mut statement = connection.prepare("SELECT function, name, body FROM schedule")?;
    let mut rows = statement.query(())?;
    let mut schedules = Vec::new();
    while let Some(row) = rows.next()? {
        let (function, name): (String, String) = (row.get(0)?, row.get(1)?);
        let body = Bytes::copy_from_slice(row.get_ref(2)?.as_blob()?);
        match row::schedule(&function, &name, &body) {
            Ok(schedule) => schedules.push(schedule),
            Err(damage) => {
                stats.damaged_rows.fetch_add(1, Relaxed);
                tracing::error!(function, schedule = name, %damage, "what a schedule has run is damaged: it begins anew");
            }
        }
    }
    Ok(schedules)
}

pub(super) fn set(connection: &Connection, encoder: &mut Encoder, schedule: &StoredSchedule) -> rusqlite::Result<()> {
    let row = (&*schedule.function, &*schedule.name, encoder.schedule(schedule));
    connection.prepare_cached("REPLACE INTO schedule (function, name, body) VALUES (?1, ?2, ?3)")?.execute(row)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;
    use crate::state::delete_state;

    fn schedule(function: &str, name: &str, seen_ms: u64) -> StoredSchedule {
        let (spec, ran) =
            ("0 6 * * * in Europe/Berlin".into(), vec![(seen_ms - 60_000, seen_ms), (u64::MAX, u64::MAX)]);
        StoredSchedule { function: function.into(), name: name.into(), spec, seen_ms, ran }
    }

    #[test]
    fn schedules_are_read_as_they_were_noted() {
        let mut connection = Connection::open_in_memory().unwrap();
        schema::create(&mut connection).unwrap();
        let (stats, mut encoder) = (Stats::default(), Encoder::default());
        let first = 1_700_000_000_000;
        let all = [schedule("gone", "a", first), schedule("mow", "a", first), schedule("mow", "b", first + 1)];
        all.iter().for_each(|it| set(&connection, &mut encoder, it).unwrap());
        assert_eq!(load(&connection, &stats).unwrap(), all);
        let (later, never) = (schedule("mow", "b", first + 2), StoredSchedule { ran: Vec::new(), ..all[1].clone() });
        set(&connection, &mut encoder, &later).unwrap();
        set(&connection, &mut encoder, &never).unwrap();
        // They go with the state of their function.
        delete_state(&connection, "gone").unwrap();
        assert_eq!(load(&connection, &stats).unwrap(), [never.clone(), later]);
        // A row that is moved to another schedule, or changed, counts for nothing.
        connection.execute("UPDATE schedule SET function = 'mo', name = 'wb' WHERE name = 'b'", ()).unwrap();
        assert_eq!(load(&connection, &stats).unwrap(), std::slice::from_ref(&never));
        connection.execute("UPDATE schedule SET body = x'0201' WHERE name = 'a'", ()).unwrap();
        assert_eq!(load(&connection, &stats).unwrap(), []);
        assert_eq!(stats.damaged_rows.load(Relaxed), 3);
        set(&connection, &mut encoder, &never).unwrap();
        assert_eq!(load(&connection, &stats).unwrap(), [never]);
    }
}
