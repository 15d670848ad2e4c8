//! State of functions as the page shows it, read beside the daemon.

use std::path::Path;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension};

use super::beside;
use super::dead_letters::DeadLettersError;

/// States of a data folder.
#[derive(Debug)]
pub struct States {
    connection: Connection,
}

/// State of a function on one topic, or of all topics together.
#[derive(Debug, PartialEq, Eq)]
pub struct ScopeSize {
    /// `None`: shared by all topics.
    pub topic: Option<String>,
    pub keys: u64,
    /// Keys and values.
    pub bytes: u64,
}

impl States {
    pub fn open(data_dir: &Path) -> Result<Self, DeadLettersError> {
        Ok(Self { connection: beside::open(data_dir)? })
    }

    /// Scopes of a function whose topic contains a text, in the order of their topics: `limit` of them after `after`.
    pub fn scopes(
        &self,
        function: &str,
        search: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ScopeSize>, DeadLettersError> {
        let sql = "SELECT topic, count(key), coalesce(sum(length(CAST(key AS BLOB)) + length(value)), 0) \
                   FROM scope LEFT JOIN state ON state.scope = scope.id \
                   WHERE function = ?1 AND instr(topic, ?2) > 0 AND topic >= ?3 AND topic IS NOT ?4 \
                   GROUP BY scope.id ORDER BY topic LIMIT ?5";
        let mut statement = self.connection.prepare(sql)?;
        let rows = statement.query_map((function, search, after.unwrap_or(""), after, limit), |row| {
            let topic: String = row.get(0)?;
            Ok(ScopeSize { topic: (!topic.is_empty()).then_some(topic), keys: row.get(1)?, bytes: row.get(2)? })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Entries of a scope in the order of their keys: `limit` of them after `after`. `None`: there is no such scope.
    pub fn entries(
        &self,
        function: &str,
        topic: Option<&str>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Option<Vec<(String, Bytes)>>, DeadLettersError> {
        let scope: Option<i64> = self
            .connection
            .query_row(
                "SELECT id FROM scope WHERE function = ?1 AND topic = ?2",
                (function, topic.unwrap_or("")),
                |row| row.get(0),
            )
            .optional()?;
        let Some(scope) = scope else { return Ok(None) };
        let sql = "SELECT key, value FROM state WHERE scope = ?1 AND key >= ?2 AND key IS NOT ?3 ORDER BY key LIMIT ?4";
        let mut statement = self.connection.prepare(sql)?;
        let rows = statement.query_map((scope, after.unwrap_or(""), after, limit), |row| {
            Ok((row.get(0)?, Bytes::copy_from_slice(row.get_ref(1)?.as_blob()?)))
        })?;
        Ok(Some(rows.collect::<Result<_, _>>()?))
    }
}
