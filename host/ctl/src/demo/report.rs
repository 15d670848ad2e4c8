//! The demo's account, as a table and as JSON.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use serde_json::{Value, json};

use crate::terminal::say;

const HTTP_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) struct Report {
    pub(crate) totals: Totals,
    /// The daemon's `/status`.
    pub(crate) status: Value,
    pub(crate) took: Duration,
}

/// `sent` counts messages of sensors that the broker acknowledged, `chained` those that functions published for other
/// functions. The daemon reports the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Totals {
    pub(crate) sent: u64,
    pub(crate) chained: u64,
    pub(crate) recorded: u64,
    #[serde(rename = "dead_letters")]
    pub(crate) dead_lettered: u64,
    pub(crate) unrouted: u64,
    /// Records that their receiver has not acknowledged, and messages in the store that wait for a run.
    #[serde(skip)]
    pub(crate) waiting: u64,
    pub(crate) alerts_firing: u64,
    pub(crate) alerts_resolved: u64,
    pub(crate) data_upstream: u64,
    pub(crate) bytes_written: u64,
}

impl Totals {
    pub(crate) fn from_status(status: &Value, sent: u64) -> Self {
        let number = |path: &str| status.pointer(path).and_then(Value::as_u64).unwrap_or(0);
        let functions = status["functions"].as_array().map_or(&[][..], Vec::as_slice);
        Self {
            sent,
            chained: functions.iter().filter_map(|it| it["outputs"]["publish"].as_u64()).sum(),
            recorded: number("/messages/recorded"),
            dead_lettered: number("/messages/dead_lettered"),
            unrouted: number("/messages/unrouted"),
            waiting: number("/outbox/records") + number("/messages/parked"),
            bytes_written: number("/store/written_bytes"),
            ..Self::default()
        }
    }

    pub(crate) fn delivered(&self) -> u64 {
        self.sent + self.chained
    }

    pub(crate) fn unaccounted(&self) -> i64 {
        self.delivered().cast_signed() - (self.recorded + self.dead_lettered + self.unrouted).cast_signed()
    }
}

/// Reads the daemon's status over HTTP.
pub(crate) fn read(http: SocketAddr) -> anyhow::Result<Value> {
    let request = ureq::get(format!("http://{http}/status")).config().timeout_global(Some(HTTP_TIMEOUT)).build();
    let status = request.call().and_then(|mut response| response.body_mut().read_to_vec());
    Ok(serde_json::from_slice(&status.context("failed to read the daemon's status")?)?)
}

/// `function summary [time]`
pub(crate) fn alert_text(alert: &Value) -> String {
    let text = |name: &str| alert[name].as_str().unwrap_or("?");
    let time = alert["labels"]
        .as_array()
        .and_then(|labels| labels.iter().find(|label| label[0] == "time"))
        .and_then(|label| label[1].as_str())
        .map_or_else(String::new, |time| format!("  [{time}]"));
    format!("{:<16} {}{time}", text("function"), text("summary"))
}

impl Report {
    pub(crate) fn as_json(&self) -> Value {
        let totals = &self.totals;
        let mut json = json!(totals);
        json["delivered"] = json!(totals.delivered());
        json["unaccounted"] = json!(totals.unaccounted());
        json["alerts"] = json!(totals.alerts_firing + totals.alerts_resolved);
        json["seconds"] = json!(self.took.as_secs_f64());
        json["functions"] = self.status["functions"].clone();
        json
    }

    pub(crate) fn print(&self) {
        let totals = &self.totals;
        say!("");
        say!(
            "{:<18}{:>9}{:>9}{:>9}{:>9}{:>7}{:>11}{:>11}{:>9}{:>9}",
            "function",
            "runs",
            "alerts",
            "forward",
            "publish",
            "dead",
            "fuel p50",
            "fuel p99",
            "µs p50",
            "µs p99"
        );
        for function in self.status["functions"].as_array().into_iter().flatten() {
            let number = |path: &str| function.pointer(path).and_then(Value::as_f64).unwrap_or(0.0);
            say!(
                "{:<18}{:>9}{:>9}{:>9}{:>9}{:>7}{:>11.0}{:>11.0}{:>9.1}{:>9.1}",
                function["name"].as_str().unwrap_or("?"),
                number("/invocations"),
                number("/outputs/alert"),
                number("/outputs/forward"),
                number("/outputs/publish"),
                number("/dead_letters"),
                number("/fuel/p50"),
                number("/fuel/p99"),
                number("/duration_us/p50"),
                number("/duration_us/p99"),
            );
        }
        let seconds = self.took.as_secs_f64();
        say!("");
        say!("sent by sensors    {:>9}    in {seconds:.1} s, {:.0}/s", totals.sent, totals.sent as f64 / seconds);
        say!("chained            {:>9}    published by functions for functions", totals.chained);
        say!(
            "alerts upstream    {:>9}    {} firing, {} resolved",
            totals.alerts_firing + totals.alerts_resolved,
            totals.alerts_firing,
            totals.alerts_resolved
        );
        say!(
            "bytes written      {:>9}    {:.0} per message",
            totals.bytes_written,
            totals.bytes_written as f64 / totals.delivered().max(1) as f64
        );
        say!("");
        let unrouted = if totals.unrouted > 0 { format!(" + {} unrouted", totals.unrouted) } else { String::new() };
        say!(
            "delivered {} = recorded {} + dead-lettered {}{unrouted}, {} unaccounted",
            totals.delivered(),
            totals.recorded,
            totals.dead_lettered,
            totals.unaccounted()
        );
    }
}
