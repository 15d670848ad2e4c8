//! Topics whose silence is watched. The board gives their numbers and knows all of them; they are read once.

use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use rusqlite::Connection;

use super::row::{self, Encoder};
use super::stats::Stats;
use sedge_core::store::{HeardId, StoredHeard};

/// Loads all watched topics.
pub(super) fn load(connection: &Connection, stats: &Stats) -> rusqlite::Result<Vec<StoredHeard>> {
    let mut statement = connection.prepare("SELECT id, turn, function, body FROM heard ORDER BY id")?;
    let mut rows = statement.query(())?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        let (id, turn, function): (u64, u64, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let body = Bytes::copy_from_slice(row.get_ref(3)?.as_blob()?);
        match row::heard(HeardId(id), turn, &function, &body) {
            Ok(heard) => all.push(heard),
            Err(damage) => {
                stats.damaged_rows.fetch_add(1, Relaxed);
                tracing::error!(id, function, %damage, "a watched topic is damaged: it is watched again when it is heard");
            }
        }
    }
    Ok(all)
}

/// Of two rows for one topic that with the later turn stays.
pub(super) fn set(connection: &Connection, encoder: &mut Encoder, heard: &StoredHeard) -> rusqlite::Result<()> {
    let row = (heard.id.0, heard.turn, &*heard.function, encoder.heard(heard));
    connection
        .prepare_cached(
            "INSERT INTO heard (id, turn, function, body) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (id) DO UPDATE
             SET turn = excluded.turn, function = excluded.function, body = excluded.body WHERE excluded.turn > heard.turn",
        )?
        .execute(row)?;
    Ok(())
}

pub(super) fn delete(connection: &Connection, id: HeardId) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM heard WHERE id = ?1")?.execute((id.0,))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;
    use crate::state::delete_state;
    use sedge_core::store::HeardStage;

    fn heard(id: u64, turn: u64, function: &str) -> StoredHeard {
        let stages = [HeardStage::Speaking, HeardStage::Silent, HeardStage::Back { silent_ms: 12 }];
        let (topic, stage) = (format!("t/{id}").into(), stages[(turn % 3) as usize]);
        StoredHeard { id: HeardId(id), turn, function: function.into(), topic, at_ms: 10 * turn, slack_ms: 3, stage }
    }

    #[test]
    fn the_later_row_of_a_topic_is_read_whatever_the_order() {
        let mut connection = Connection::open_in_memory().unwrap();
        schema::create(&mut connection).unwrap();
        let (stats, mut encoder) = (Stats::default(), Encoder::default());
        for (id, turn, function) in [(1, 1, "f"), (2, 5, "f"), (2, 4, "f"), (3, 3, "gone"), (1, 6, "f")] {
            set(&connection, &mut encoder, &heard(id, turn, function)).unwrap();
        }
        delete_state(&connection, "gone").unwrap();
        assert_eq!(load(&connection, &stats).unwrap(), [heard(1, 6, "f"), heard(2, 5, "f")]);
        connection.execute("UPDATE heard SET turn = 7 WHERE id = 2", ()).unwrap();
        assert_eq!(load(&connection, &stats).unwrap(), [heard(1, 6, "f")], "a changed row counts as damaged");
        assert_eq!(stats.damaged_rows.load(Relaxed), 1);
        delete(&connection, HeardId(1)).unwrap();
        assert_eq!(load(&connection, &stats).unwrap(), []);
    }
}
