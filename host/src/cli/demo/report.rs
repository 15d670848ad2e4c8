//! The demo's account: a table for people, one object for programs.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};

/// The daemon's `/status`.
pub type Status = Value;

pub struct Report {
    pub totals: Totals,
    pub status: Status,
    pub took: Duration,
}

/// Who says what: `sent` is what the sensors' broker took, `chained` what functions published for other functions, both
/// counted by those who published. The rest is the daemon's word for what became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub sent: u64,
    pub chained: u64,
    pub recorded: u64,
    pub dead_lettered: u64,
    pub unrouted: u64,
    /// Records that are not yet with their receiver.
    pub waiting: u64,
    pub alerts_firing: u64,
    pub alerts_resolved: u64,
    pub data_upstream: u64,
    pub bytes_written: u64,
}

impl Totals {
    pub fn from_status(status: &Status, sent: u64) -> Self {
        let number = |path: &str| status.pointer(path).and_then(Value::as_u64).unwrap_or(0);
        let functions = status["functions"].as_array().map_or(&[][..], Vec::as_slice);
        Self {
            sent,
            chained: functions.iter().filter_map(|it| it["outputs"]["publish"].as_u64()).sum(),
            recorded: number("/messages/recorded"),
            dead_lettered: number("/messages/dead_lettered"),
            unrouted: number("/messages/unrouted"),
            waiting: number("/outbox/records"),
            bytes_written: number("/store/written_bytes"),
            ..Self::default()
        }
    }

    pub fn delivered(&self) -> u64 {
        self.sent + self.chained
    }

    pub fn unaccounted(&self) -> i64 {
        self.delivered().cast_signed() - (self.recorded + self.dead_lettered + self.unrouted).cast_signed()
    }
}

pub fn read(http: SocketAddr) -> anyhow::Result<Status> {
    Ok(serde_json::from_str(&super::get(http, "/status")?)?)
}

pub fn show_alert(alert: &Value) {
    let text = |name: &str| alert[name].as_str().unwrap_or("?").to_owned();
    let time = alert["labels"]
        .as_array()
        .and_then(|labels| labels.iter().find(|label| label[0] == "time"))
        .and_then(|label| label[1].as_str())
        .map_or_else(String::new, |time| format!("  [{time}]"));
    eprintln!("\r{:<9} {:<16} {}{time}", text("status").to_uppercase(), text("function"), text("summary"));
}

impl Report {
    pub fn as_json(&self) -> Value {
        let totals = &self.totals;
        json!({
            "delivered": totals.delivered(),
            "sent": totals.sent,
            "chained": totals.chained,
            "recorded": totals.recorded,
            "dead_letters": totals.dead_lettered,
            "unrouted": totals.unrouted,
            "unaccounted": totals.unaccounted(),
            "alerts": totals.alerts_firing + totals.alerts_resolved,
            "alerts_firing": totals.alerts_firing,
            "alerts_resolved": totals.alerts_resolved,
            "data_upstream": totals.data_upstream,
            "bytes_written": totals.bytes_written,
            "seconds": self.took.as_secs_f64(),
            "functions": self.status["functions"],
        })
    }

    pub fn print(&self) {
        let totals = &self.totals;
        println!();
        println!(
            "{:<18}{:>9}{:>9}{:>9}{:>9}{:>7}{:>11}{:>11}{:>9}{:>9}",
            "function", "runs", "alerts", "forward", "publish", "dead", "fuel p50", "fuel p99", "µs p50", "µs p99"
        );
        for function in self.status["functions"].as_array().into_iter().flatten() {
            let number = |path: &str| function.pointer(path).and_then(Value::as_f64).unwrap_or(0.0);
            println!(
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
        println!();
        println!("sent by sensors    {:>9}    in {seconds:.1} s, {:.0}/s", totals.sent, totals.sent as f64 / seconds);
        println!("chained            {:>9}    published by functions for functions", totals.chained);
        println!(
            "alerts upstream    {:>9}    {} firing, {} resolved",
            totals.alerts_firing + totals.alerts_resolved,
            totals.alerts_firing,
            totals.alerts_resolved
        );
        println!(
            "bytes written      {:>9}    {:.0} a message",
            totals.bytes_written,
            totals.bytes_written as f64 / totals.delivered().max(1) as f64
        );
        println!();
        let unrouted = if totals.unrouted > 0 { format!(" + {} unrouted", totals.unrouted) } else { String::new() };
        println!(
            "delivered {} = recorded {} + dead-lettered {}{unrouted}, {} unaccounted",
            totals.delivered(),
            totals.recorded,
            totals.dead_lettered,
            totals.unaccounted()
        );
    }
}
