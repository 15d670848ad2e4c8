//! The JSON API, as `docs/openapi.json` describes it.
//!
//! Counts and states need no token. Payloads, state and all that acts do.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Answer, Refusal};
use super::{Page, now};
use crate::run::worker_count;
use sedge_core::board::PARTS_OF_PARKED;
use sedge_core::config::Config;
use sedge_core::finding::{Finding, Verdict};
use sedge_core::message::FailureCode;
use sedge_core::metrics::TopicPause;
use sedge_core::store::DeadLetterId;
use sedge_core::text::hex;
use sedge_store::checks;
use sedge_store::dead_letters::DeadLettersError;
use sedge_store::{DeadLetterFilter, DeadLetters, ScopeSize, States};

/// Largest part of a list that one answer has.
const MAX_LIMIT: usize = 500;
const LIMIT: usize = 50;
/// Payloads that a list of dead letters reads, and the text that it shows of each.
const MAX_LIST_BYTES: usize = 4 << 20;
const PREVIEW_BYTES: usize = 200;

pub(super) type Shared = State<Arc<Page>>;

/// Is it well?
pub(super) async fn board(State(page): Shared) -> Json<Value> {
    let now = now();
    let mut figures = page.metrics.status(now);
    let missing = page.health.all_missing();
    let broker = page.metrics.broker.connected() == Some(true);
    let sinks: Vec<(&str, bool)> = page.metrics.connected_sinks().collect();
    let mut problems: Vec<Value> = Vec::new();
    let mut add = |what: String, fix: &str| problems.push(json!({ "what": what, "fix": fix }));
    for (part, reason) in &missing {
        add(format!("{part}: {reason}"), "see the log: journalctl -u sedge");
    }
    if page.health.alive(now.monotonic).is_err() {
        add("the message loop does not move".into(), "see the log; the service manager starts it anew");
    }
    if !broker {
        add("the broker is away".into(), "run sedge doctor on the board");
    }
    for (sink, _) in sinks.iter().filter(|(_, connected)| !connected) {
        add(format!("the sink {sink} is away: its records wait in the outbox"), "run sedge doctor on the board");
    }
    if !now.synced {
        add("the clock is not synchronised".into(), "let the board reach a time server");
    }
    let mut found = page.checks.lock().unwrap_or_else(PoisonError::into_inner).clone();
    found.push(checks::clock(page.config.node.clock, now.synced));
    for finding in found.iter().filter(|it| it.verdict == Verdict::Warning && it.check != "clock") {
        add(finding.what.clone(), finding.fix.as_deref().unwrap_or(""));
    }
    let functions = figures["functions"].as_array().map_or(&[][..], Vec::as_slice);
    for function in functions {
        let name = function["name"].as_str().unwrap_or("");
        if function["quarantined"] == true {
            add(format!("{name} is paused because it keeps failing"), "look at its dead letters");
        } else if function["paused_topics"].as_u64() > Some(0) {
            add(format!("{name} is paused for {} topics", function["paused_topics"]), "look at its dead letters");
        }
        for (what, fix) in beyond_share(function, &page.config) {
            add(what, &fix);
        }
    }
    let dead_letters = page.metrics.sum("sedge_dead_letters_kept", now);
    figures["functions"] = json!(functions.len());
    Json(json!({
        "node": page.config.node.name,
        "groups": page.config.node.groups,
        "time_ms": now.unix_ms,
        "clock_synced": now.synced,
        "started_ms": page.metrics.start_time_ms(),
        "broker": { "connected": broker },
        "sinks": sinks.iter().map(|(name, connected)| json!({
            "name": name,
            "connected": connected,
            "records": page.metrics.sum_of("sedge_outbox_records", ("sink", name), now),
            "bytes": page.metrics.sum_of("sedge_outbox_bytes", ("sink", name), now),
        })).collect::<Vec<_>>(),
        "outbox": figures["outbox"],
        "dead_letters": dead_letters,
        "problems": problems,
        "figures": figures,
        "charts": page.charts.to_json(),
        "checks": found.iter().map(check).collect::<Vec<_>>(),
        "wear": wear(page.charts.written_per_day(), page.config.store.disk_endurance_tb),
    }))
}

/// What a function needs beyond its share, with the figure to raise.
fn beyond_share(function: &Value, config: &Config) -> Vec<(String, String)> {
    let name = function["name"].as_str().unwrap_or("");
    let (used, held) = (function["share_used"].as_f64().unwrap_or(0.0), function["held_bytes"].as_u64().unwrap_or(0));
    let mut beyond = Vec::new();
    // A share is measured over ten seconds.
    if used > 1.05 {
        let count = worker_count(config);
        let needed = (count as f64 * used).ceil();
        let fix = format!("raise worker.count to {needed} (it is {count}), or look at why its runs take so long");
        beyond.push((format!("{name} needs {used:.1} times its share of the workers' time"), fix));
    }
    let share = config.store.parked_max_bytes.get() / PARTS_OF_PARKED as u64;
    if held > share {
        let fix = format!("raise store.parked_max_bytes to {}, or the function's speed", held * PARTS_OF_PARKED as u64);
        beyond.push((format!("{held} bytes of messages wait for {name}, and its share is {share}"), fix));
    }
    beyond
}

fn check(finding: &Finding) -> Value {
    json!({ "check": finding.check, "verdict": finding.verdict.as_str(), "what": finding.what, "fix": finding.fix })
}

/// For how long the card lasts, if it is written as of late.
fn wear(written_per_day: Option<u64>, endurance_tb: u32) -> Value {
    let endurance = (endurance_tb > 0).then(|| u64::from(endurance_tb) * 1_000_000_000_000);
    let years = endurance.zip(written_per_day.filter(|it| *it > 0));
    let years = years.map(|(endurance, per_day)| endurance as f64 / per_day as f64 / 365.25);
    json!({ "written_bytes_per_day": written_per_day, "endurance_bytes": endurance, "years": years })
}

/// Figures and last report of each function.
pub(super) async fn functions(State(page): Shared) -> Json<Value> {
    let reports = page.shown.reports.all();
    let monotonic = Instant::now();
    let mut figures = page.metrics.status(now())["functions"].take();
    let report = |name: &str| reports.get(name).and_then(|it| serde_json::from_slice::<Value>(it).ok());
    let mut functions: Vec<Value> = Vec::new();
    for figures in figures.as_array_mut().into_iter().flatten() {
        let name = figures["name"].as_str().unwrap_or("").to_owned();
        let report = report(&name);
        let pauses: Vec<_> = page.metrics.pauses(&name).iter().map(|it| pause(it, monotonic)).collect();
        functions.push(json!({ "name": name, "figures": figures.take(), "report": report, "pauses": pauses }));
    }
    let is_known = |name: &str| functions.iter().any(|function| function["name"] == name);
    let others: Vec<_> = reports
        .keys()
        // Of the keys, not of a function.
        .filter(|name| !name.starts_with('_') && !is_known(name))
        .map(|name| json!({ "name": **name, "figures": null, "report": report(name), "pauses": [] }))
        .collect();
    functions.extend(others);
    Json(json!({ "functions": functions }))
}

/// A pause that is over lets one message through.
fn pause(paused: &TopicPause, now: Instant) -> Value {
    let left = paused.until.saturating_duration_since(now).as_secs();
    json!({ "topic": *paused.topic, "reason": paused.reason, "seconds_left": left })
}

#[derive(Deserialize)]
pub(super) struct ScopesQuery {
    #[serde(default)]
    search: String,
    after: Option<String>,
    limit: Option<usize>,
}

/// Scopes with state of a function.
pub(super) async fn scopes(
    State(page): Shared,
    Path(name): Path<String>,
    Query(query): Query<ScopesQuery>,
    headers: HeaderMap,
) -> Answer {
    page.access.person(&headers, Instant::now())?;
    let limit = limit(query.limit);
    read(&page, move |page| {
        let scopes = States::open(page.data_dir())?.scopes(&name, &query.search, query.after.as_deref(), limit + 1)?;
        let more = scopes.len() > limit;
        let scope =
            |ScopeSize { topic, keys, bytes }: &ScopeSize| json!({ "topic": topic, "keys": keys, "bytes": bytes });
        Ok(Json(json!({ "scopes": scopes.iter().take(limit).map(scope).collect::<Vec<_>>(), "more": more })))
    })
    .await
}

#[derive(Deserialize)]
pub(super) struct EntriesQuery {
    topic: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
}

/// Keys and values of a scope.
pub(super) async fn entries(
    State(page): Shared,
    Path(name): Path<String>,
    Query(query): Query<EntriesQuery>,
    headers: HeaderMap,
) -> Answer {
    page.access.person(&headers, Instant::now())?;
    let limit = limit(query.limit);
    read(&page, move |page| {
        let topic = query.topic.as_deref();
        let Some(entries) = States::open(page.data_dir())?.entries(&name, topic, query.after.as_deref(), limit + 1)?
        else {
            return Err(not_found(format!("{name} has no state for {}", topic.unwrap_or("all topics"))));
        };
        let more = entries.len() > limit;
        let entry = |(key, value): &(String, bytes::Bytes)| {
            let text = str::from_utf8(value).ok();
            json!({ "key": key, "text": text, "hex": text.is_none().then(|| hex(value)), "bytes": value.len() })
        };
        Ok(Json(json!({ "entries": entries.iter().take(limit).map(entry).collect::<Vec<_>>(), "more": more })))
    })
    .await
}

#[derive(Deserialize)]
pub(super) struct LettersQuery {
    function: Option<String>,
    reason: Option<String>,
    topic: Option<String>,
    received_ms: Option<u64>,
    before: Option<u64>,
    limit: Option<usize>,
}

pub(super) async fn dead_letters(State(page): Shared, Query(query): Query<LettersQuery>, headers: HeaderMap) -> Answer {
    page.access.person(&headers, Instant::now())?;
    let mut filter = filter(None, query.function, query.reason)?;
    filter.message = match (query.topic, query.received_ms) {
        (Some(topic), Some(received_ms)) => Some((topic, received_ms)),
        (None, None) => None,
        _ => {
            let fix = "send topic and received_ms together, as an alert has them";
            return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "that is half of a message", fix));
        }
    };
    let limit = limit(query.limit);
    read(&page, move |page| {
        let before = query.before.map(DeadLetterId);
        let (letters, more) = DeadLetters::open(page.data_dir())?.page(&filter, before, limit, MAX_LIST_BYTES)?;
        let letters: Vec<Value> = letters
            .iter()
            .map(|(id, letter)| {
                let payload = &letter.message.payload;
                let preview = String::from_utf8_lossy(&payload[..payload.len().min(PREVIEW_BYTES)]);
                json!({
                    "id": id.0, "at_ms": letter.at_ms, "function": &*letter.function, "version": &*letter.version,
                    "reason": letter.failure.code.as_str(), "detail": letter.failure.detail,
                    "topic": &*letter.message.topic, "received_ms": letter.message.received_at_ms,
                    "attempt": letter.message.attempt,
                    "preview": preview, "payload_bytes": payload.len(),
                })
            })
            .collect();
        Ok(Json(json!({ "dead_letters": letters, "more": more })))
    })
    .await
}

pub(super) async fn dead_letter(State(page): Shared, Path(id): Path<u64>, headers: HeaderMap) -> Answer {
    page.access.person(&headers, Instant::now())?;
    read(&page, move |page| {
        let id = DeadLetterId(id);
        match DeadLetters::open(page.data_dir())?.show(id)? {
            Some(letter) => Ok(Json(letter.to_json(id))),
            None => Err(not_found(format!("there is no dead letter {id}"))),
        }
    })
    .await
}

/// Dead letters by their numbers, or all, or all of a function and reason.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Selection {
    ids: Option<Vec<u64>>,
    #[serde(default)]
    all: bool,
    function: Option<String>,
    reason: Option<String>,
}

impl Selection {
    fn filter(self) -> Result<DeadLetterFilter, Refusal> {
        let is_clear = match &self.ids {
            Some(_) => !self.all && self.function.is_none() && self.reason.is_none(),
            None => self.all,
        };
        if !is_clear {
            let fix = "send either ids, or all = true with function and reason as you wish";
            return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "it is not clear which dead letters", fix));
        }
        filter(self.ids, self.function, self.reason)
    }
}

/// Runs dead letters again.
pub(super) async fn replay(State(page): Shared, headers: HeaderMap, Json(selection): Json<Selection>) -> Answer {
    let person = page.access.actor(&headers, Instant::now())?;
    let filter = selection.filter()?;
    read(&page, move |page| {
        let count = DeadLetters::open(page.data_dir())?.replay(&filter, now().unix_ms)?;
        tracing::info!(%person, count, ?filter, "dead letters replayed from the page");
        Ok(Json(json!({ "replayed": count })))
    })
    .await
}

pub(super) async fn drop(State(page): Shared, headers: HeaderMap, Json(selection): Json<Selection>) -> Answer {
    let person = page.access.actor(&headers, Instant::now())?;
    let filter = selection.filter()?;
    read(&page, move |page| {
        let count = DeadLetters::open(page.data_dir())?.drop(&filter)?;
        tracing::info!(%person, count, ?filter, "dead letters dropped from the page");
        Ok(Json(json!({ "dropped": count })))
    })
    .await
}

fn filter(
    ids: Option<Vec<u64>>,
    function: Option<String>,
    reason: Option<String>,
) -> Result<DeadLetterFilter, Refusal> {
    let reason = match reason.as_deref() {
        None | Some("") => None,
        Some(name) => Some(FailureCode::from_name(name).ok_or_else(|| {
            let names: Vec<_> = FailureCode::ALL.into_iter().map(FailureCode::as_str).collect();
            let fix = format!("the reasons are {}", names.join(", "));
            Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, format!("there is no reason {name:?}"), fix)
        })?),
    };
    let ids = ids.map(|ids| ids.into_iter().map(DeadLetterId).collect());
    let function = function.filter(|name| !name.is_empty());
    Ok(DeadLetterFilter { ids, function, reason, ..DeadLetterFilter::default() })
}

fn limit(asked: Option<usize>) -> usize {
    asked.unwrap_or(LIMIT).clamp(1, MAX_LIMIT)
}

fn not_found(error: String) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, error, "reload the list")
}

impl From<DeadLettersError> for Refusal {
    fn from(error: DeadLettersError) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string(), "try again; if it stays so, see the log")
    }
}

/// Reads the database on another thread: this one also answers the health checks.
#[expect(clippy::disallowed_methods, reason = "the runtime of this thread has a bound on such threads")]
pub(super) async fn read(page: &Arc<Page>, read: impl FnOnce(&Page) -> Answer + Send + 'static) -> Answer {
    let page = Arc::clone(page);
    tokio::task::spawn_blocking(move || read(&page)).await.unwrap_or_else(|error| {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Err(Refusal::new(status, format!("reading failed: {error}"), "see the log: journalctl -u sedge"))
    })
}

#[cfg(test)]
mod tests {
    use sedge_core::config::Node;

    use super::*;

    #[test]
    fn a_function_beyond_its_share_is_told_the_figure_to_raise() {
        let mut config = Config::new(Node::new("board"));
        config.worker.count = 2;
        config.store.parked_max_bytes = 1000.try_into().unwrap();
        let beyond = |used: f64, held: u64| {
            beyond_share(&json!({ "name": "hog", "share_used": used, "held_bytes": held }), &config)
        };
        assert_eq!(beyond(1.0, 250), []);
        let expected = (
            "hog needs 1.7 times its share of the workers' time".to_owned(),
            "raise worker.count to 4 (it is 2), or look at why its runs take so long".to_owned(),
        );
        assert_eq!(beyond(1.7, 0), [expected]);
        let expected = (
            "260 bytes of messages wait for hog, and its share is 250".to_owned(),
            "raise store.parked_max_bytes to 1040, or the function's speed".to_owned(),
        );
        assert_eq!(beyond(0.0, 260), [expected]);
    }
}
