//! Several records of one topic and interval as one: for each number the count, sum, least, most, first and last value.
//!
//! A sink that is away may thin out its oldest data instead of losing it (`when_full = "thin"`). Which numbers are folded is decided by
//! [`crate::fields`], as for a sink of series.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::fields::{self, MAX_FIELDS};
use crate::store::{Record, StoredRecord};
use crate::time::rfc3339;

/// Lengths of the intervals, in seconds: the next one begins when all data is folded by the one before.
pub const INTERVALS_SECS: [u64; 3] = [60, 600, 3600];

/// Reason of gaps that say what was folded.
pub const THINNED: &str = "thinned";

/// What several records of one function, topic and series said. The payload of a folded record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fold {
    pub interval_secs: u64,
    pub records: u64,
    /// Sum of their payloads.
    pub bytes: u64,
    pub first_id: u64,
    pub last_id: u64,
    pub from_ms: u64,
    pub to_ms: u64,
    /// Their member `labels`, as JSON. Empty: they have none.
    labels: Box<str>,
    fields: Vec<FieldFold>,
}

/// The numbers of one field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FieldFold {
    pub name: Box<str>,
    pub count: u64,
    pub sum: f64,
    pub min: f64,
    pub max: f64,
    pub first: f64,
    pub last: f64,
}

impl Fold {
    /// A record that is to be folded, or one that is folded already. `None`: it has no number.
    pub fn of(stored: &StoredRecord) -> Option<Self> {
        let StoredRecord { id, record } = stored;
        if record.is_folded {
            return Self::decode(&record.payload);
        }
        let payload: Value = serde_json::from_slice(&record.payload).ok()?;
        let mut fields = Vec::new();
        fields::each(&payload, &mut |name, value| {
            if let Some(number) = fields::number(value)
                && fields.len() < MAX_FIELDS
            {
                let [sum, min, max, first, last] = [number; 5];
                fields.push(FieldFold { name: name.into(), count: 1, sum, min, max, first, last });
            }
        });
        if fields.is_empty() {
            return None;
        }
        Some(Self {
            interval_secs: 0,
            records: 1,
            bytes: record.payload.len() as u64,
            first_id: id.0,
            last_id: id.0,
            from_ms: record.at_ms,
            to_ms: record.at_ms,
            labels: payload.get("labels").map_or_else(String::new, Value::to_string).into(),
            fields,
        })
    }

    pub fn decode(payload: &[u8]) -> Option<Self> {
        postcard::from_bytes(payload).ok()
    }

    pub fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, Vec::new()).expect("a fold has only numbers, texts and lists")
    }

    pub fn fields(&self) -> &[FieldFold] {
        &self.fields
    }

    /// The series within a topic.
    pub fn labels(&self) -> &str {
        &self.labels
    }

    /// Adds what came later, of the same series.
    pub fn add(&mut self, later: Self) {
        self.records += later.records;
        self.bytes += later.bytes;
        self.first_id = self.first_id.min(later.first_id);
        self.last_id = self.last_id.max(later.last_id);
        self.from_ms = self.from_ms.min(later.from_ms);
        self.to_ms = self.to_ms.max(later.to_ms);
        for field in later.fields {
            match self.fields.iter().position(|known| known.name == field.name) {
                Some(known) => self.fields[known].add(&field),
                None if self.fields.len() < MAX_FIELDS => self.fields.push(field),
                None => {}
            }
        }
    }

    /// As receivers are sent it. `id`: of a record by its number.
    pub(crate) fn to_json(&self, id: impl Fn(u64) -> String) -> Value {
        let mut fields = Map::new();
        for FieldFold { name, count, sum, min, max, first, last } in &self.fields {
            let mean = sum / *count as f64;
            let field = json!({
                "count": count, "mean": mean, "sum": sum, "min": min, "max": max, "first": first, "last": last,
            });
            fields.insert(name.to_string(), field);
        }
        let mut json = json!({
            "records": self.records,
            "interval_secs": self.interval_secs,
            "first_id": id(self.first_id),
            "last_id": id(self.last_id),
            "from": rfc3339(self.from_ms),
            "to": rfc3339(self.to_ms),
            "fields": fields,
        });
        if let Ok(labels) = serde_json::from_str::<Value>(&self.labels) {
            json["labels"] = labels;
        }
        json
    }
}

impl FieldFold {
    fn add(&mut self, later: &Self) {
        self.count += later.count;
        self.sum += later.sum;
        self.min = self.min.min(later.min);
        self.max = self.max.max(later.max);
        self.last = later.last;
    }
}

impl Record {
    /// How many records it stands for, and the size of their payloads.
    pub fn stands_for(&self) -> (u64, u64) {
        let fold = if self.is_folded { Fold::decode(&self.payload) } else { None };
        fold.map_or((1, self.payload.len() as u64), |fold| (fold.records, fold.bytes))
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may read clocks and files")]
mod tests {
    use super::*;
    use crate::store::RecordId;
    use crate::stream::Stream;

    fn stored(id: u64, payload: &str) -> StoredRecord {
        let record = Record {
            stream: Stream::DATA,
            function: "f".into(),
            topic: "t".into(),
            payload: payload.to_owned().into(),
            content_type: None,
            retain: false,
            hops: 1,
            fan_out: 1,
            clock_synced: true,
            at_ms: 1000 * id,
            trace: None,
            is_folded: false,
        };
        StoredRecord { id: RecordId(id), record }
    }

    #[test]
    fn numbers_are_folded_by_their_names_and_nothing_else_is() {
        let mut fold =
            Fold::of(&stored(3, r#"{"t": 20, "motor": {"speed": 5.5}, "say": "a", "labels": {"line": 3}}"#)).unwrap();
        fold.add(Fold::of(&stored(5, r#"{"t": 23, "on": true, "labels": {"line": 3}}"#)).unwrap());
        fold.add(Fold::of(&stored(9, r#"{"t": -1, "new": 7, "labels": {"line": 3}}"#)).unwrap());
        fold.interval_secs = 60;
        let fold = Fold::decode(&fold.encode()).unwrap();
        let expected = json!({
            "records": 3, "interval_secs": 60, "first_id": "r3", "last_id": "r9",
            "from": "1970-01-01T00:00:03.000Z", "to": "1970-01-01T00:00:09.000Z", "labels": { "line": 3 },
            "fields": {
                "t": { "count": 3, "mean": 14.0, "sum": 42.0, "min": -1.0, "max": 23.0, "first": 20.0, "last": -1.0 },
                "motor.speed": { "count": 1, "mean": 5.5, "sum": 5.5, "min": 5.5, "max": 5.5, "first": 5.5, "last": 5.5 },
                "new": { "count": 1, "mean": 7.0, "sum": 7.0, "min": 7.0, "max": 7.0, "first": 7.0, "last": 7.0 },
            },
        });
        assert_eq!(fold.to_json(|id| format!("r{id}")), expected);
        assert_eq!((fold.labels(), fold.bytes > 100), (r#"{"line":3}"#, true));
    }

    #[test]
    fn what_has_no_number_is_not_folded() {
        for payload in
            ["", "open", r#""21.5""#, "true", "null", "[1,2]", "{}", r#"{"say":"a"}"#, r#"{"labels":{"n":1}}"#]
        {
            assert_eq!(Fold::of(&stored(1, payload)), None, "{payload}");
        }
        let one = Fold::of(&stored(7, " 21.5")).unwrap();
        assert_eq!((one.records, &*one.fields[0].name, one.fields[0].sum), (1, "value", 21.5));
    }

    #[test]
    fn a_folded_record_stands_for_all_that_it_is_of() {
        let mut fold = Fold::of(&stored(1, "1")).unwrap();
        fold.add(Fold::of(&stored(2, "22")).unwrap());
        let raw = stored(1, "1").record;
        let folded = Record { payload: fold.encode().into(), is_folded: true, ..raw.clone() };
        assert_eq!((raw.stands_for(), folded.stands_for()), ((1, 1), (2, 3)));
        let refold = Fold::of(&StoredRecord { id: RecordId(1), record: folded }).unwrap();
        assert_eq!(refold, fold);
    }
}
