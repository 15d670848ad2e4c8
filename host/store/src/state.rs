//! State of functions: keys and values by scope.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension};

use super::row::sum_of;
use super::stats::Stats;
use sedge_core::message::{Scope, StateWrite};
use sedge_core::store::{StoredState, scope_bytes};

/// Capacity of the cache of scope ids. With more scopes in use, each access costs a look-up.
const CACHE_BYTES: usize = 1 << 20;

/// Memory of a cached scope beside its topic.
const SCOPE_BYTES: usize = 120;

/// A row of `scope`.
#[derive(Clone, Copy, Debug)]
struct KnownScope {
    id: i64,
    /// Hours of running time as of the last write, as they are in the row.
    used: u64,
}

/// Table of states, with a cache of scope ids. A rolled back transaction invalidates the cache and ends the session.
#[derive(Debug, Default)]
pub(super) struct StateTable {
    scopes: HashMap<Scope, KnownScope>,
    bytes: usize,
}

impl StateTable {
    fn scope(&mut self, connection: &Connection, scope: &Scope) -> rusqlite::Result<Option<KnownScope>> {
        if let Some(known) = self.scopes.get(scope) {
            return Ok(Some(*known));
        }
        // No topic is empty: the empty text stands for the whole function.
        let known = connection
            .prepare_cached("SELECT id, used FROM scope WHERE function = ?1 AND topic = ?2")?
            .query_row((&*scope.function, scope.topic.as_deref().unwrap_or("")), |row| {
                Ok(KnownScope { id: row.get(0)?, used: row.get(1)? })
            })
            .optional()?;
        if let Some(known) = known {
            self.remember(scope.clone(), known);
        }
        Ok(known)
    }

    fn remember(&mut self, scope: Scope, known: KnownScope) {
        let bytes = scope.topic.as_ref().map_or(0, |topic| topic.len()) + SCOPE_BYTES;
        if self.bytes + bytes > CACHE_BYTES {
            self.scopes.clear();
            self.bytes = 0;
        }
        self.bytes += bytes;
        self.scopes.insert(scope, known);
    }

    /// Drops a function, whose rows are deleted, from the cache.
    pub(super) fn forget(&mut self, function: &str) {
        self.scopes.retain(|scope, _| *scope.function != *function);
    }

    /// Returns the entries of a scope, and the keys of those that are damaged.
    #[expect(clippy::type_complexity, reason = "two lists")]
    pub(super) fn load(
        &mut self,
        connection: &Connection,
        scope: &Scope,
    ) -> rusqlite::Result<(Vec<(Box<str>, Bytes)>, Vec<Vec<u8>>)> {
        let Some(KnownScope { id, .. }) = self.scope(connection, scope)? else { return Ok((Vec::new(), Vec::new())) };
        let mut statement = connection.prepare_cached("SELECT key, value, sum FROM state WHERE scope = ?1")?;
        let mut rows = statement.query((id,))?;
        let (mut entries, mut damaged) = (Vec::new(), Vec::new());
        while let Some(row) = rows.next()? {
            let (key, value) = (row.get_ref(0)?.as_bytes()?, row.get_ref(1)?.as_blob()?);
            let sum: Option<i64> = row.get(2)?;
            // Rows of layout 1 have no sum.
            match str::from_utf8(key) {
                Ok(text) if sum.is_none_or(|stored| stored == sum_of_entry(scope, text, value)) => {
                    entries.push((text.into(), Bytes::copy_from_slice(value)));
                }
                _ => damaged.push(key.to_owned()),
            }
        }
        Ok((entries, damaged))
    }

    /// Deletes entries: the function sees none instead of another value.
    pub(super) fn delete_damaged(
        &mut self,
        connection: &Connection,
        scope: &Scope,
        keys: &[Vec<u8>],
        stats: &Stats,
    ) -> rusqlite::Result<()> {
        for key in keys {
            connection
                .prepare_cached("DELETE FROM state WHERE scope = ?1 AND key = CAST(?2 AS TEXT)")?
                .execute((self.scope(connection, scope)?.map(|it| it.id), &key[..]))?;
            stats.damaged_rows.fetch_add(1, Relaxed);
            tracing::error!(
                function = &*scope.function, topic = scope.topic.as_deref(), key = %String::from_utf8_lossy(key),
                "an entry of state is damaged: it is deleted"
            );
        }
        Ok(())
    }

    /// `hour`: of running time. The row says it roughly, so that a write costs one of the row once an hour.
    pub(super) fn write(
        &mut self,
        connection: &Connection,
        scope: Scope,
        writes: &[StateWrite],
        hour: u64,
    ) -> rusqlite::Result<()> {
        let id = match self.scope(connection, &scope)? {
            Some(KnownScope { id, used }) => {
                if used != hour {
                    let row = (id, hour);
                    connection.prepare_cached("UPDATE scope SET used = ?2 WHERE id = ?1")?.execute(row)?;
                    if let Some(known) = self.scopes.get_mut(&scope) {
                        known.used = hour;
                    }
                }
                id
            }
            None => {
                connection
                    .prepare_cached("INSERT INTO scope (function, topic, used) VALUES (?1, ?2, ?3)")?
                    .execute((&*scope.function, scope.topic.as_deref().unwrap_or(""), hour))?;
                let id = connection.last_insert_rowid();
                self.remember(scope.clone(), KnownScope { id, used: hour });
                id
            }
        };
        for StateWrite { key, value } in writes {
            match value {
                Some(value) => connection.prepare_cached("REPLACE INTO state VALUES (?1, ?2, ?3, ?4)")?.execute((
                    id,
                    &**key,
                    &value[..],
                    sum_of_entry(&scope, key, value),
                ))?,
                None => connection
                    .prepare_cached("DELETE FROM state WHERE scope = ?1 AND key = ?2")?
                    .execute((id, &**key))?,
            };
        }
        if writes.iter().any(|write| write.value.is_none()) {
            self.delete_if_empty(connection, &scope, id)?;
        }
        Ok(())
    }

    /// A scope without entries is not counted, and must not stay.
    fn delete_if_empty(&mut self, connection: &Connection, scope: &Scope, id: i64) -> rusqlite::Result<()> {
        let entry = connection
            .prepare_cached("SELECT 1 FROM state WHERE scope = ?1 LIMIT 1")?
            .query_row((id,), |_| Ok(()))
            .optional()?;
        if entry.is_none() {
            connection.prepare_cached("DELETE FROM scope WHERE id = ?1")?.execute((id,))?;
            self.scopes.remove(scope);
        }
        Ok(())
    }

    /// Deletes the state of a function on these topics, or all of it if there are none.
    pub(super) fn forget_state(
        &mut self,
        connection: &Connection,
        function: &Arc<str>,
        topics: Vec<Option<Arc<str>>>,
    ) -> rusqlite::Result<()> {
        if topics.is_empty() {
            delete_state(connection, function)?;
            self.forget(function);
        }
        for topic in topics {
            let scope = Scope { function: Arc::clone(function), topic };
            let Some(KnownScope { id, .. }) = self.scope(connection, &scope)? else { continue };
            connection.prepare_cached("DELETE FROM state WHERE scope = ?1")?.execute((id,))?;
            connection.prepare_cached("DELETE FROM scope WHERE id = ?1")?.execute((id,))?;
            self.scopes.remove(&scope);
        }
        Ok(())
    }
}

/// Deletes all state of a function, and with it its wakes, its schedules and the topics that it watches. Returns the number of
/// keys.
pub(super) fn delete_state(connection: &Connection, function: &str) -> rusqlite::Result<usize> {
    let keys = connection
        .prepare_cached("DELETE FROM state WHERE scope IN (SELECT id FROM scope WHERE function = ?1)")?
        .execute((function,))?;
    connection.prepare_cached("DELETE FROM scope WHERE function = ?1")?.execute((function,))?;
    connection.prepare_cached("DELETE FROM wake WHERE function = ?1")?.execute((function,))?;
    connection.prepare_cached("DELETE FROM heard WHERE function = ?1")?.execute((function,))?;
    connection.prepare_cached("DELETE FROM schedule WHERE function = ?1")?.execute((function,))?;
    Ok(keys)
}

/// Returns the scopes that have entries, the least recently used first.
pub(super) fn measure(connection: &Connection) -> rusqlite::Result<Vec<StoredState>> {
    let mut functions: HashMap<String, Arc<str>> = HashMap::new();
    let mut statement = connection.prepare(
        "SELECT function, topic, count(*), sum(octet_length(key) + length(value)) FROM state JOIN scope ON scope.id = scope
         GROUP BY state.scope ORDER BY used, scope.id",
    )?;
    let mut rows = statement.query(())?;
    let mut stored = Vec::new();
    while let Some(row) = rows.next()? {
        let (function, topic): (String, String) = (row.get(0)?, row.get(1)?);
        let function = Arc::clone(functions.entry(function).or_insert_with_key(|name| name.as_str().into()));
        let topic: Option<Arc<str>> = (!topic.is_empty()).then(|| topic.into());
        let bytes = scope_bytes(topic.as_deref(), row.get(2)?, row.get(3)?);
        stored.push(StoredState { scope: Scope { function, topic }, bytes });
    }
    Ok(stored)
}

/// Signed, as SQLite stores small numbers of either sign in four bytes.
fn sum_of_entry(scope: &Scope, key: &str, value: &[u8]) -> i64 {
    let topic = scope.topic.as_deref().unwrap_or("");
    i64::from(sum_of(&[scope.function.as_bytes(), topic.as_bytes(), key.as_bytes(), value]).cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;

    fn scope(function: &str, topic: &str) -> Scope {
        Scope { function: function.into(), topic: (!topic.is_empty()).then(|| topic.into()) }
    }

    fn write(key: &str, value: Option<&'static str>) -> StateWrite {
        StateWrite { key: key.into(), value: value.map(|value| Bytes::from_static(value.as_bytes())) }
    }

    fn scopes(connection: &Connection) -> u64 {
        connection.query_row("SELECT count(*) FROM scope", (), |row| row.get(0)).unwrap()
    }

    #[test]
    fn what_is_measured_is_what_was_written_and_forgotten() {
        let mut connection = Connection::open_in_memory().unwrap();
        schema::create(&mut connection).unwrap();
        let mut table = StateTable::default();
        let set = |table: &mut StateTable, at: &Scope, writes: &[StateWrite], hour| {
            table.write(&connection, at.clone(), writes, hour).unwrap();
        };
        let (all, kitchen, hall, other) = (scope("f", ""), scope("f", "küche"), scope("f", "hall"), scope("g", "hall"));
        set(&mut table, &kitchen, &[write("ä", Some("123")), write("b", Some(""))], 0);
        set(&mut table, &all, &[write("n", Some("1"))], 0);
        set(&mut table, &hall, &[write("n", Some("1"))], 0);
        set(&mut table, &other, &[write("n", Some("1"))], 0);
        // Used again an hour later.
        set(&mut table, &kitchen, &[write("b", Some("2"))], 1);
        let stored = |at: &Scope, keys, bytes| StoredState {
            scope: at.clone(),
            bytes: scope_bytes(at.topic.as_deref(), keys, bytes),
        };
        let expected = [stored(&all, 1, 2), stored(&hall, 1, 2), stored(&other, 1, 2), stored(&kitchen, 2, 7)];
        assert_eq!(measure(&connection).unwrap(), expected);
        // A scope that becomes empty is gone, and begins anew.
        set(&mut table, &hall, &[write("n", None)], 1);
        assert_eq!(scopes(&connection), 3);
        set(&mut table, &hall, &[write("m", Some("22"))], 1);
        assert_eq!(measure(&connection).unwrap().last(), Some(&stored(&hall, 1, 3)));
        table.forget_state(&connection, &"f".into(), vec![None, Some("hall".into()), Some("unknown".into())]).unwrap();
        assert_eq!(measure(&connection).unwrap(), [stored(&other, 1, 2), stored(&kitchen, 2, 7)]);
        assert_eq!(table.load(&connection, &hall).unwrap().0, []);
        table.forget_state(&connection, &"f".into(), Vec::new()).unwrap();
        assert_eq!(measure(&connection).unwrap(), [stored(&other, 1, 2)]);
        assert_eq!(table.load(&connection, &kitchen).unwrap().0, []);
        assert_eq!(scopes(&connection), 1);
    }
}
