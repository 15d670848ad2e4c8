//! State of functions: keys and values by scope.

use std::collections::HashMap;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension};

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

    pub(super) fn load(&mut self, connection: &Connection, scope: &Scope) -> rusqlite::Result<Vec<(Box<str>, Bytes)>> {
        let Some(id) = self.scope(connection, scope)? else { return Ok(Vec::new()) };
        let mut statement = connection.prepare_cached("SELECT key, value FROM state WHERE scope = ?1")?;
        let entries =
            statement.query_map((id,), |row| Ok((row.get(0)?, Bytes::copy_from_slice(row.get_ref(1)?.as_blob()?))))?;
        entries.collect()
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
                self.remember(scope, id);
                id
            }
        };
        for StateWrite { key, value } in writes {
            match value {
                Some(value) => connection.prepare_cached("REPLACE INTO state VALUES (?1, ?2, ?3)")?.execute((
                    id,
                    &**key,
                    &value[..],
                ))?,
                None => connection
                    .prepare_cached("DELETE FROM state WHERE scope = ?1 AND key = ?2")?
                    .execute((id, &**key))?,
            };
        }
        Ok(())
    }
}
