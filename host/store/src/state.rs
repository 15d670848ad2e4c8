//! State of functions: keys and values by scope.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension};

use super::row::sum_of;
use super::stats::Stats;
use sedge_core::message::{Scope, StateWrite};

/// Capacity of the cache of scope ids. With more scopes in use, each access costs a look-up.
const CACHE_BYTES: usize = 1 << 20;

/// Memory of a cached scope beside its topic.
const SCOPE_BYTES: usize = 120;

/// Table of states, with a cache of scope ids. A rolled back transaction invalidates the cache and ends the session.
#[derive(Debug, Default)]
pub(super) struct StateTable {
    scopes: HashMap<Scope, i64>,
    bytes: usize,
}

impl StateTable {
    fn scope(&mut self, connection: &Connection, scope: &Scope) -> rusqlite::Result<Option<i64>> {
        if let Some(id) = self.scopes.get(scope) {
            return Ok(Some(*id));
        }
        // No topic is empty: the empty text stands for the whole function.
        let id = connection
            .prepare_cached("SELECT id FROM scope WHERE function = ?1 AND topic = ?2")?
            .query_row((&*scope.function, scope.topic.as_deref().unwrap_or("")), |row| row.get(0))
            .optional()?;
        if let Some(id) = id {
            self.remember(scope.clone(), id);
        }
        Ok(id)
    }

    fn remember(&mut self, scope: Scope, id: i64) {
        let bytes = scope.topic.as_ref().map_or(0, |topic| topic.len()) + SCOPE_BYTES;
        if self.bytes + bytes > CACHE_BYTES {
            self.scopes.clear();
            self.bytes = 0;
        }
        self.bytes += bytes;
        self.scopes.insert(scope, id);
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
        let Some(id) = self.scope(connection, scope)? else { return Ok((Vec::new(), Vec::new())) };
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
                .execute((self.scope(connection, scope)?, &key[..]))?;
            stats.damaged_rows.fetch_add(1, Relaxed);
            tracing::error!(
                function = &*scope.function, topic = scope.topic.as_deref(), key = %String::from_utf8_lossy(key),
                "an entry of state is damaged: it is deleted"
            );
        }
        Ok(())
    }

    pub(super) fn write(
        &mut self,
        connection: &Connection,
        scope: Scope,
        writes: &[StateWrite],
    ) -> rusqlite::Result<()> {
        let id = match self.scope(connection, &scope)? {
            Some(id) => id,
            None => {
                connection
                    .prepare_cached("INSERT INTO scope (function, topic) VALUES (?1, ?2)")?
                    .execute((&*scope.function, scope.topic.as_deref().unwrap_or("")))?;
                let id = connection.last_insert_rowid();
                self.remember(scope.clone(), id);
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
        Ok(())
    }
}

/// Signed, as SQLite stores small numbers of either sign in four bytes.
fn sum_of_entry(scope: &Scope, key: &str, value: &[u8]) -> i64 {
    let topic = scope.topic.as_deref().unwrap_or("");
    i64::from(sum_of(&[scope.function.as_bytes(), topic.as_bytes(), key.as_bytes(), value]).cast_signed())
}
