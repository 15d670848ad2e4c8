//! From records to lines of the line protocol:
//!
//! ```text
//! <measurement>,node=..,topic=..[,labels][,clock=unsynced] field=1.5,other=true <nanoseconds>
//! ```
//!
//! A forward is a point of `measurement` with the fields of [`sedge_core::fields`]: numbers, booleans and texts. The texts of its object
//! `labels` are tags. A fold has the mean of each number in its place. An alert is a point of `<measurement>_alerts`, a gap one of `<measurement>_gaps`.
//!
//! Numbers are always floats: a field has one type for ever, and `20` today would refuse `20.5` tomorrow.

use serde_json::{Map, Value};

use super::clock::{At, Clock};
use sedge_core::fields::{self, MAX_FIELDS};
use sedge_core::forward::Envelope;
use sedge_core::stream::StreamKind;

/// Fields and tags of one point each: what is beyond is left out.
const MAX_ENTRIES: usize = MAX_FIELDS;

/// Texts that are longer are cut: InfluxDB takes 64 KB of a field.
const MAX_TEXT_BYTES: usize = 16 << 10;

/// The line of a record with its line end. `None`: it has no field.
pub(crate) fn of(envelope: &Envelope, measurement: &str, node: &str, clock: &Clock) -> Option<String> {
    let (kind, number) = number(envelope)?;
    let mut point = Point::new(node);
    let payload: Option<Value> = serde_json::from_slice(&envelope.payload).ok();
    let suffix = match envelope.property("type") {
        Some("io.sedge.alert") => {
            point.alert(payload.as_ref()?.as_object()?);
            "_alerts"
        }
        Some("io.sedge.gap") => {
            point.gap(payload.as_ref()?.as_object()?);
            "_gaps"
        }
        Some("io.sedge.fold") => {
            point.tag("topic", &envelope.topic);
            point.fold(payload.as_ref()?.as_object()?);
            ""
        }
        _ => {
            point.tag("topic", &envelope.topic);
            point.forward(&payload?);
            ""
        }
    };
    let at_ms = match clock.at(kind, number, envelope.at_ms, envelope.clock_synced) {
        At::Right(at_ms) => at_ms,
        At::Unsynced(at_ms) => {
            point.tag("clock", "unsynced");
            at_ms
        }
    };
    // Two records of one millisecond and the same tags would be one point.
    let nanos = u128::from(at_ms) * 1_000_000 + u128::from(number % 1_000_000);
    point.line(&format!("{measurement}{suffix}"), nanos)
}

/// Stream and number of a record, from its id.
fn number(envelope: &Envelope) -> Option<(StreamKind, u64)> {
    let id = envelope.property("id")?;
    let mut parts = id.rsplit('-');
    let number = parts.next()?.parse().ok()?;
    let kind = if parts.next()?.starts_with('a') { StreamKind::Alert } else { StreamKind::Data };
    Some((kind, number))
}

/// A point under construction.
struct Point {
    tags: Vec<(String, String)>,
    fields: Vec<(String, String)>,
}

impl Point {
    fn new(node: &str) -> Self {
        let mut point = Self { tags: Vec::new(), fields: Vec::new() };
        point.tag("node", node);
        point
    }

    fn tag(&mut self, name: &str, value: &str) {
        let is_known = self.tags.iter().any(|(other, _)| other == name);
        // The protocol has no empty names and values.
        if !(name.is_empty() || value.is_empty() || is_known || self.tags.len() >= MAX_ENTRIES) {
            self.tags.push((name.to_owned(), value.to_owned()));
        }
    }

    fn field(&mut self, name: &str, value: String) {
        let is_known = self.fields.iter().any(|(other, _)| other == name);
        if !(name.is_empty() || is_known || self.fields.len() >= MAX_ENTRIES) {
            self.fields.push((name.to_owned(), value));
        }
    }

    fn value(&mut self, name: &str, value: &Value) {
        match value {
            Value::Number(_) => {
                if let Some(number) = fields::number(value) {
                    self.field(name, number.to_string());
                }
            }
            Value::Bool(flag) => self.field(name, flag.to_string()),
            Value::String(text) => self.field(name, quoted(text)),
            Value::Null | Value::Array(_) | Value::Object(_) => {}
        }
    }

    fn forward(&mut self, payload: &Value) {
        self.labels(payload.get("labels"));
        fields::each(payload, &mut |name, value| self.value(name, value));
    }

    /// The mean of each field under its name, so that series go on, and the others beside it.
    fn fold(&mut self, fold: &Map<String, Value>) {
        self.labels(fold.get("labels"));
        for (name, figures) in fold.get("fields").and_then(Value::as_object).into_iter().flatten() {
            self.value(name, figures.get("mean").unwrap_or(&Value::Null));
            for figure in ["count", "sum", "min", "max", "first", "last"] {
                self.value(&format!("{name}.{figure}"), figures.get(figure).unwrap_or(&Value::Null));
            }
        }
    }

    fn labels(&mut self, labels: Option<&Value>) {
        crate::sinks::labels(labels).into_iter().for_each(|(name, value)| self.label(name, value));
    }

    fn label(&mut self, name: &str, value: &Value) {
        match value {
            Value::String(text) => self.tag(name, text),
            Value::Number(_) | Value::Bool(_) => self.tag(name, &value.to_string()),
            Value::Null | Value::Array(_) | Value::Object(_) => {}
        }
    }

    fn alert(&mut self, alert: &Map<String, Value>) {
        for name in ["function", "key", "severity"] {
            self.tag(name, alert.get(name).and_then(Value::as_str).unwrap_or_default());
        }
        self.labels(alert.get("labels"));
        let is_firing = alert.get("status").and_then(Value::as_str) == Some("firing");
        self.field("firing", is_firing.to_string());
        for name in ["value", "summary", "topic"] {
            self.value(name, alert.get(name).unwrap_or(&Value::Null));
        }
    }

    fn gap(&mut self, gap: &Map<String, Value>) {
        for name in ["stream", "reason"] {
            self.tag(name, gap.get(name).and_then(Value::as_str).unwrap_or_default());
        }
        for name in ["records", "bytes", "first_at", "last_at"] {
            self.value(name, gap.get(name).unwrap_or(&Value::Null));
        }
    }

    fn line(self, measurement: &str, nanos: u128) -> Option<String> {
        let mut line = escaped(measurement, &[',', ' ']);
        for (name, value) in &self.tags {
            line.push_str(&format!(",{}={}", escaped(name, &[',', '=', ' ']), escaped(value, &[',', '=', ' '])));
        }
        let fields: Vec<String> =
            self.fields.iter().map(|(name, value)| format!("{}={value}", escaped(name, &[',', '=', ' ']))).collect();
        if fields.is_empty() {
            return None;
        }
        line.push_str(&format!(" {} {nanos}\n", fields.join(",")));
        Some(line)
    }
}

/// A name or the value of a tag. A line end would end the line, and a backslash at the end would escape what follows.
fn escaped(text: &str, special: &[char]) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in cut(text).chars() {
        match c {
            c if c.is_control() => escaped.push('_'),
            '\\' => escaped.push('/'),
            c if special.contains(&c) => escaped.extend(['\\', c]),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A field of text.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in cut(text).chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' | '\r' | '\0' => quoted.push(' '),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT_BYTES)]
}

#[cfg(test)]
mod tests {
    use sedge_core::store::Recovered;
    use sedge_core::stream::SinkId;

    use super::*;

    fn envelope(kind: &'static str, id: &str, payload: &str) -> Envelope {
        Envelope {
            topic: "plant/line 1/temp".into(),
            payload: payload.to_owned().into(),
            content_type: None,
            properties: vec![("id", id.to_owned().into()), ("type", kind.into())],
            retain: false,
            at_ms: 1_800_000_000_123,
            clock_synced: true,
        }
    }

    fn line(envelope: &Envelope) -> Option<String> {
        of(envelope, "sedge", "cold room", &Clock::new(SinkId::UPSTREAM, &Recovered::default()))
    }

    #[track_caller]
    fn check(payload: &str, expected: Option<&str>) {
        let line = line(&envelope("io.sedge.data", "k3-d1-2000042", payload));
        let expected = expected
            .map(|rest| format!("sedge,node=cold\\ room,topic=plant/line\\ 1/temp{rest} 1800000000123000042\n"));
        assert_eq!(line, expected, "{payload}");
    }

    #[test]
    fn numbers_booleans_and_texts_are_fields_and_labels_are_tags() {
        check(r#"{"t": 21.5, "n": 3, "on": true, "mode": "a \"b\""}"#, Some(r#" mode="a \"b\"",n=3,on=true,t=21.5"#));
        check(r#"{"t": 1, "labels": {"line": "3", "shift": 2}}"#, Some(",line=3,shift=2 t=1"));
        check(r#"{"a": {"b": {"c": 1000}}, "x": null, "y": [1]}"#, Some(" a.b.c=1000"));
    }

    #[test]
    fn a_payload_that_is_one_number_is_a_value_and_one_without_fields_is_none() {
        check("21.5", Some(" value=21.5"));
        check("true", Some(" value=true"));
        for payload in ["", "not json", "{}", "[1,2]", "null", r#"{"labels":{"a":"b"}}"#, r#"{"a":[1]}"#] {
            check(payload, None);
        }
    }

    #[test]
    fn a_fold_goes_on_with_the_mean_of_each_field() {
        let fold = r#"{"records":3,"interval_secs":60,"labels":{"line":"3"},"fields":{
            "t":{"count":3,"mean":14.0,"sum":42.0,"min":-1.0,"max":23.0,"first":20.0,"last":-1.0}}}"#;
        let made = line(&envelope("io.sedge.fold", "k3-f-d1-7-42", fold)).unwrap();
        let expected = "sedge,node=cold\\ room,topic=plant/line\\ 1/temp,line=3 \
                        t=14,t.count=3,t.sum=42,t.min=-1,t.max=23,t.first=20,t.last=-1 1800000000123000042\n";
        assert_eq!(made, expected);
    }

    #[test]
    fn nothing_in_a_record_ends_its_line_or_makes_another() {
        let text = "a,b=c d\\\"e\n\r\u{0}x";
        let payload = serde_json::json!({ text: text, "n": 1, "labels": { text: text } }).to_string();
        let made = line(&Envelope { topic: text.into(), ..envelope("io.sedge.data", "k3-d-1", &payload) }).unwrap();
        assert_eq!(made.matches('\n').count(), 1, "{made:?}");
        assert!(made.contains(r"topic=a\,b\=c\ d/"), "{made}");
        assert!(!made.chars().any(|c| c.is_control() && c != '\n'), "{made:?}");
    }

    #[test]
    fn alerts_and_gaps_have_measurements_of_their_own() {
        let alert = r#"{"node":"n","function":"f","version":"1","topic":"t","key":"oven","severity":"warning","status":"firing",
            "summary":"hot","value":83.5,"labels":[["line","3"]],"at_ms":1,"clock_synced":true}"#;
        let made = line(&envelope("io.sedge.alert", "k3-a-7", alert)).unwrap();
        let expected = "sedge_alerts,node=cold\\ room,function=f,key=oven,severity=warning,line=3 \
                        firing=true,value=83.5,summary=\"hot\",topic=\"t\" 1800000000123000007\n";
        assert_eq!(made, expected);
        let gap = r#"{"stream":"data","reason":"full","records":179,"bytes":35800,"first_at":"x","last_at":"y"}"#;
        let made = line(&envelope("io.sedge.gap", "k3-g-d-812-990", gap)).unwrap();
        assert!(
            made.starts_with("sedge_gaps,node=cold\\ room,stream=data,reason=full records=179,bytes=35800,"),
            "{made}"
        );
    }

    #[test]
    fn a_time_that_nobody_can_correct_is_tagged() {
        let record = Envelope { clock_synced: false, ..envelope("io.sedge.data", "k3-d-0", "1") };
        let made = line(&record).unwrap();
        assert!(made.contains(",clock=unsynced value=1 "), "{made}");
    }
}
