//! Alerts over the API: what fires, and what a person does about it.

use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Answer, Refusal};
use super::api::{Shared, read};
use super::now;

/// What fires, what changed, and what is muted.
pub(super) async fn alerts(State(page): Shared) -> Json<Value> {
    let mut alerts = page.shown.alerts.to_json();
    let mutes = page.shown.mutes.to_json(now());
    let until = |it: &Value| {
        let of = |mute: &&Value| mute["function"] == it["function"] && mute["key"] == it["key"];
        mutes.as_array().into_iter().flatten().find(of).map(|mute| mute["until_ms"].clone())
    };
    for firing in alerts["firing"].as_array_mut().into_iter().flatten() {
        firing["muted_until_ms"] = until(firing).unwrap_or_default();
    }
    alerts["mutes"] = mutes;
    Json(alerts)
}

/// An alert.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Named {
    function: String,
    key: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Muting {
    function: String,
    key: String,
    seconds: u64,
}

/// Notes that a person has seen what fires.
pub(super) async fn acknowledge(State(page): Shared, headers: HeaderMap, Json(alert): Json<Named>) -> Answer {
    let person = page.access.actor(&headers, Instant::now())?;
    read(&page, move |page| {
        let Named { function, key } = alert;
        let at_ms = now().unix_ms;
        if !page.shown.alerts.acknowledge(&function, &key, &person.to_string(), at_ms) {
            let error = format!("{key} of {function} does not fire");
            return Err(Refusal::new(StatusCode::NOT_FOUND, error, "reload the list"));
        }
        tracing::info!(%person, function, key, "alert acknowledged");
        page.save();
        Ok(Json(json!({ "acknowledged_ms": at_ms })))
    })
    .await
}

pub(super) async fn mute(State(page): Shared, headers: HeaderMap, Json(muting): Json<Muting>) -> Answer {
    let person = page.access.actor(&headers, Instant::now())?;
    read(&page, move |page| {
        let (Muting { function, key, seconds }, now) = (muting, now());
        let until_ms = page.shown.mutes.add(&function, &key, seconds, &person.to_string(), now)?;
        tracing::info!(%person, function, key, seconds, "alert muted");
        page.shown.alerts.note_action(&function, &key, "muted", &person.to_string(), now.unix_ms);
        page.save();
        Ok(Json(json!({ "until_ms": until_ms })))
    })
    .await
}

pub(super) async fn unmute(State(page): Shared, headers: HeaderMap, Json(alert): Json<Named>) -> Answer {
    let person = page.access.actor(&headers, Instant::now())?;
    read(&page, move |page| {
        let Named { function, key } = alert;
        let was_muted = page.shown.mutes.remove(&function, &key)?;
        if was_muted {
            tracing::info!(%person, function, key, "alert unmuted");
            page.shown.alerts.note_action(&function, &key, "unmuted", &person.to_string(), now().unix_ms);
            page.save();
        }
        Ok(Json(json!({ "was_muted": was_muted })))
    })
    .await
}
