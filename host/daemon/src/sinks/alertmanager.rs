//! Alerts as Alertmanager takes them (`POST /api/v2/alerts`).

use serde_json::{Map, Value, json};

use sedge_core::forward::Envelope;

/// End of an alert that fires. Without one Alertmanager ends it after `resolve_timeout`, and Sedge sends it once.
const UNTIL_RESOLVED: &str = "2999-12-31T23:59:59Z";

const SEVERITIES: [&str; 3] = ["critical", "warning", "info"];

/// The body of the request. `None`: the record is not an alert.
pub(super) fn body(envelope: &Envelope) -> Option<Value> {
    if envelope.property("type") != Some("io.sedge.alert") {
        return None;
    }
    let alert: Map<String, Value> = serde_json::from_slice(&envelope.payload).ok()?;
    let text = |name: &str| alert.get(name).and_then(Value::as_str).unwrap_or_default();
    let time = envelope.property("time")?;
    let one = |severity: &str, ends_at: &str| {
        json!({
            "labels": labels(&alert, severity),
            "annotations": { "summary": text("summary"), "topic": text("topic"), "value": value(&alert) },
            "startsAt": time,
            "endsAt": ends_at,
        })
    };
    Some(match text("status") {
        "firing" => json!([one(text("severity"), UNTIL_RESOLVED)]),
        // Labels are what tells alerts apart, and the end of an alert need not have the severity of its beginning.
        _ => SEVERITIES.iter().map(|severity| one(severity, time)).collect(),
    })
}

fn labels(alert: &Map<String, Value>, severity: &str) -> Map<String, Value> {
    let text = |name: &str| alert.get(name).and_then(Value::as_str).unwrap_or_default();
    let mut labels = Map::new();
    for (name, value) in super::labels(alert.get("labels")) {
        labels.extend(value.as_str().map(|value| (label_name(name), value.into())));
    }
    for (name, value) in
        [("alertname", text("function")), ("key", text("key")), ("node", text("node")), ("severity", severity)]
    {
        labels.insert(name.to_owned(), value.into());
    }
    labels
}

/// Alertmanager takes names of `[a-zA-Z_][a-zA-Z0-9_]*` only.
fn label_name(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let plain: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    if plain.starts_with(|c: char| c.is_ascii_digit()) || plain.is_empty() { format!("_{plain}") } else { plain }
}

fn value(alert: &Map<String, Value>) -> String {
    alert.get("value").filter(|value| !value.is_null()).map(Value::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(kind: &'static str, payload: &Value) -> Envelope {
        Envelope {
            topic: "alerts/f".into(),
            payload: payload.to_string().into(),
            content_type: None,
            properties: vec![("type", kind.into()), ("time", "2026-11-28T10:00:00.000Z".into())],
            retain: false,
            at_ms: 0,
            clock_synced: true,
        }
    }

    fn alert(status: &str) -> Value {
        json!({
            "node": "n", "function": "f", "topic": "t", "key": "oven", "severity": "critical", "status": status,
            "summary": "hot", "value": 83.5, "labels": [["line-3", "x"]],
        })
    }

    #[test]
    fn an_alert_fires_until_it_is_resolved() {
        let body = body(&envelope("io.sedge.alert", &alert("firing"))).unwrap();
        assert_eq!(
            body,
            json!([{
                "labels": { "alertname": "f", "key": "oven", "node": "n", "severity": "critical", "line_3": "x" },
                "annotations": { "summary": "hot", "topic": "t", "value": "83.5" },
                "startsAt": "2026-11-28T10:00:00.000Z",
                "endsAt": UNTIL_RESOLVED,
            }])
        );
    }

    #[test]
    fn a_resolution_ends_it_whatever_severity_it_had() {
        let body = body(&envelope("io.sedge.alert", &alert("resolved"))).unwrap();
        let severities: Vec<_> = body.as_array().unwrap().iter().map(|alert| &alert["labels"]["severity"]).collect();
        assert_eq!(severities, SEVERITIES.iter().collect::<Vec<_>>());
        assert!(body.as_array().unwrap().iter().all(|alert| alert["endsAt"] == "2026-11-28T10:00:00.000Z"));
    }

    #[test]
    fn other_records_are_not_alerts() {
        assert_eq!(body(&envelope("io.sedge.data", &alert("firing"))), None);
        assert_eq!(body(&envelope("io.sedge.gap", &json!({}))), None);
    }
}
