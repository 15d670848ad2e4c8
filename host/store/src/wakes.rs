//! Wakes that wait for their time. The board gives their numbers and knows all of them; they are read once.

use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use rusqlite::Connection;

use super::row::{self, Encoder};
use super::stats::Stats;
use sedge_core::store::{StoredWake, WakeId};

/// Loads all wakes in the order of setting.
pub(super) fn load(connection: &Connection, stats: &Stats) -> rusqlite::Result<Vec<StoredWake>> {
    let mut statement = connection.prepare("SELECT id, function, body FROM wake ORDER BY id")?;
    let mut rows = statement.query(())?;
    let mut wakes = Vec::new();
    while let Some(row) = rows.next()? {
        let (id, function): (u64, String) = (row.get(0)?, row.get(1)?);
        let body = Bytes::copy_from_slice(row.get_ref(2)?.as_blob()?);
        match row::wake(WakeId(id), &function, &body) {
            Ok(wake) => wakes.push(wake),
            Err(damage) => {
                stats.damaged_rows.fetch_add(1, Relaxed);
                tracing::error!(id, function, %damage, "a wake is damaged: it is not run, its row is kept");
            }
        }
    }
    Ok(wakes)
}

/// A number may be that of a damaged row, which the board does not know.
pub(super) fn set(connection: &Connection, encoder: &mut Encoder, wake: &StoredWake) -> rusqlite::Result<()> {
    let row = (wake.id.0, &*wake.function, encoder.wake(wake));
    connection.prepare_cached("REPLACE INTO wake (id, function, body) VALUES (?1, ?2, ?3)")?.execute(row)?;
    Ok(())
}

pub(super) fn delete(connection: &Connection, id: WakeId) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM wake WHERE id = ?1")?.execute((id.0,))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use sedge_core::trace::TraceContext;

    use super::*;
    use crate::schema;
    use crate::state::delete_state;

    fn wake(id: u64, function: &str) -> StoredWake {
        StoredWake {
            id: WakeId(id),
            function: function.into(),
            name: "open".into(),
            topic: "doors/1".into(),
            is_shared: id.is_multiple_of(2),
            due_ms: 1_700_000_000_000 + id,
            wait_ms: id,
            clock_synced: id.is_multiple_of(3),
            hops: 2,
            fan_out: 7,
            trace: id.is_multiple_of(2).then(|| {
                let parent = format!("00-{id:032x}-{id:016x}-01");
                TraceContext::of(&[("traceparent", &*parent)]).unwrap().into()
            }),
        }
    }

    #[test]
    fn wakes_are_read_as_they_were_set() {
        let mut connection = Connection::open_in_memory().unwrap();
        schema::create(&mut connection).unwrap();
        let (stats, mut encoder) = (Stats::default(), Encoder::default());
        let all: Vec<StoredWake> = (1..=6).map(|id| wake(id, if id < 3 { "gone" } else { "door" })).collect();
        all.iter().for_each(|it| set(&connection, &mut encoder, it).unwrap());
        assert_eq!(load(&connection, &stats).unwrap(), all);
        delete(&connection, WakeId(4)).unwrap();
        delete(&connection, WakeId(4)).unwrap();
        // They go with the state of their function.
        delete_state(&connection, "gone").unwrap();
        assert_eq!(load(&connection, &stats).unwrap(), [wake(3, "door"), wake(5, "door"), wake(6, "door")]);
        // A row that is moved to another function, or changed, is not run.
        connection.execute("UPDATE wake SET function = 'other' WHERE id = 3", ()).unwrap();
        connection.execute("UPDATE wake SET body = (SELECT body FROM wake WHERE id = 6) WHERE id = 5", ()).unwrap();
        assert_eq!(load(&connection, &stats).unwrap(), [wake(6, "door")]);
        assert_eq!(stats.damaged_rows.load(Relaxed), 2);
        set(&connection, &mut encoder, &wake(5, "door")).unwrap();
        assert_eq!(load(&connection, &stats).unwrap(), [wake(5, "door"), wake(6, "door")]);
    }
}
