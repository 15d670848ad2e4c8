use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use crate::piece::concat;
use crate::read::{self, NumberFormat, Payload, ReadError};
use crate::{Failure, Message, Reading, Value, json};

/// Reading what sensors send.
///
/// A **path** names one place in a JSON payload: `temperature`, `BME280.Temperature`, `probes[2].value`. Case counts, and nothing is
/// guessed. Of members with equal names the last counts. [`find_numbers`](Message::find_numbers) is for functions that have to
/// cope with devices of many kinds: it takes a name and looks for it everywhere.
///
/// A payload that is one plain value (`21.5`) has no names. It is read as the field `temperature` only if one whole level of the
/// topic is `temperature`, in any case, as in `oven/sensor/temperature/state`; or by the methods that begin with `plain`.
///
/// Each result is one of three: `Ok(Some(..))`; `Ok(None)` where the field is absent or null, which is what an update of something
/// else looks like; and an error where there is something unreadable, or out of range. With `?` an error rejects the
/// message. The words `NaN`, `Infinity`, `none`, `unknown` and `unavailable` count as null. A byte order mark, white space, and NUL
/// around the payload are ignored.
impl Message {
    /// The value at a path.
    pub fn value(&self, path: &str) -> Result<Option<Value<'_>>, ReadError> {
        match read::payload(&self.payload)? {
            Payload::Json(document) => json::lookup(document, path),
            Payload::Plain(raw) if self.topic_names(path) => Ok(Some(Value { raw, plain: true })),
            _ => Ok(None),
        }
    }

    /// The number at a path, or the number in a string there.
    pub fn number(&self, path: &str) -> Result<Option<f64>, ReadError> {
        self.read(path, |value| read::number(value.raw, path, NumberFormat::default()))
    }

    /// As [`number`](Self::number), and a message without it is rejected.
    pub fn require_number(&self, path: &str) -> Result<f64, Failure> {
        self.number(path)?.ok_or_else(|| Failure::reject(concat(&["the payload has no number \"", path, "\""])))
    }

    /// The whole number at a path, exactly, also beyond 2^53: `message.integer::<u64>("id")?`.
    pub fn integer<T: TryFrom<i128>>(&self, path: &str) -> Result<Option<T>, ReadError> {
        self.read(path, |value| read::integer(value.raw, path))
    }

    /// `true`, `on`, `1` or `false`, `off`, `0` at a path, in any case, quoted or not.
    pub fn boolean(&self, path: &str) -> Result<Option<bool>, ReadError> {
        self.read(path, |value| read::boolean(value.raw, path))
    }

    /// The text of the string at a path.
    pub fn text(&self, path: &str) -> Result<Option<String>, ReadError> {
        self.read(path, |value| read::text(value.raw, path, value.plain))
    }

    fn read<'a, T>(
        &'a self,
        path: &str,
        read: impl FnOnce(Value<'a>) -> Result<Option<T>, ReadError>,
    ) -> Result<Option<T>, ReadError> {
        match self.value(path)? {
            Some(value) => read(value),
            None => Ok(None),
        }
    }

    /// The payload if it is one plain value, whatever the topic.
    pub fn plain(&self) -> Result<Option<Value<'_>>, ReadError> {
        match read::payload(&self.payload)? {
            Payload::Plain(raw) => Ok(Some(Value { raw, plain: true })),
            _ => Ok(None),
        }
    }

    /// The number that is the whole payload, whatever the topic. `None` for JSON.
    pub fn plain_number(&self) -> Result<Option<f64>, ReadError> {
        match self.plain()? {
            Some(value) => read::number(value.raw, "the payload", NumberFormat::default()),
            None => Ok(None),
        }
    }

    /// All numbers whose name is one of `fields` (at most 32 of them), at any depth and in arrays, in the order of the payload. One
    /// pass reads all of them.
    ///
    /// Case does not count, but in one object a member with exactly the name hides the others. The elements of an array count
    /// as having its name. `{"DS18B20-1":{"Temperature":21},"DS18B20-2":{"Temperature":95}}` holds two of the name `temperature`.
    ///
    /// An error means that the payload as a whole is unreadable; what is wrong with one number is in its [`Reading`].
    pub fn find_numbers(&self, fields: &[&str]) -> Result<Vec<Reading<'_>>, ReadError> {
        self.find_numbers_as(NumberFormat::default(), fields)
    }

    /// As [`find_numbers`](Self::find_numbers), for devices that write a decimal comma or a unit.
    pub fn find_numbers_as(&self, format: NumberFormat<'_>, fields: &[&str]) -> Result<Vec<Reading<'_>>, ReadError> {
        let raw = match read::payload(&self.payload)? {
            Payload::Json(document) => return json::find_numbers(document, fields, format),
            Payload::Plain(raw) => raw,
            Payload::Empty => return Ok(Vec::new()),
        };
        let Some((field, name)) = fields.iter().enumerate().find(|(_, field)| self.topic_names(field)) else {
            return Ok(Vec::new());
        };
        Ok(match read::number(raw, name, format).transpose() {
            Some(value) => vec![Reading { field, path: String::from(*name), value, raw: Value { raw, plain: true } }],
            None => Vec::new(),
        })
    }

    /// The number with this name that is nearest to the top of the payload, and the first of those.
    pub fn find_number(&self, field: &str) -> Result<Option<f64>, ReadError> {
        let depth = |reading: &Reading<'_>| reading.path.bytes().filter(|byte| matches!(byte, b'.' | b'[')).count();
        match self.find_numbers(&[field])?.into_iter().min_by_key(depth) {
            Some(reading) => reading.value.map(Some),
            None => Ok(None),
        }
    }

    /// Whether one whole level of the topic is this name, in any case.
    pub fn topic_names(&self, field: &str) -> bool {
        self.topic.as_bytes().split(|byte| *byte == b'/').any(|level| json::eq_ignore_case(level, field.as_bytes()))
    }

    /// The value of the first MQTT 5 user property with this name.
    pub fn property(&self, name: &str) -> Option<&str> {
        self.properties.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// One level of the topic, counted from 0.
    pub fn topic_level(&self, level: usize) -> Option<&str> {
        self.topic.split('/').nth(level)
    }

    /// Whether this is a tick of the manifest's `every` and not a message from the broker.
    pub fn is_tick(&self) -> bool {
        self.topic.starts_with("$timer/")
    }

    /// The name of the wake that this is, if it is one: what [`Output::wake`](crate::Output::wake) has set.
    pub fn wake(&self) -> Option<&str> {
        self.topic.strip_prefix("$wake/")
    }

    /// The name of the schedule whose time has come, if this is one: that of `at` in the manifest.
    pub fn schedule(&self) -> Option<&str> {
        self.topic.strip_prefix("$schedule/")
    }

    /// The topic that the state goes by: of a wake that of the message which set it, of a call about silence the silent one,
    /// otherwise the message's own.
    pub fn state_topic(&self) -> &str {
        let is_about_another = self.wake().is_some() || self.silence().is_some();
        is_about_another.then(|| self.property("sedge-topic")).flatten().unwrap_or(&self.topic)
    }

    /// A message as tests need it: everything but topic and payload has its usual value.
    pub fn new(topic: impl Into<String>, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            topic: topic.into(),
            payload: payload.into(),
            content_type: None,
            properties: Vec::new(),
            received_at_ms: 0,
            clock_synced: true,
            attempt: 1,
            retained: false,
            response_topic: None,
            correlation_data: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZIGBEE: &str =
        r#"{"battery":97,"humidity":48.2,"linkquality":120,"temperature":21.53,"update":{"state":"idle"}}"#;
    const TASMOTA: &str = r#"{"Time":"2026-01-05T11:02:13","DS18B20":{"Id":"0316","Temperature":20.6},"BME280":{"Temperature":-3.0,"Pressure":1013.2},"TempUnit":"C"}"#;

    fn number(topic: &str, payload: impl Into<Vec<u8>>, path: &str) -> Result<Option<f64>, ReadError> {
        Message::new(topic, payload).number(path)
    }

    #[test]
    fn a_plain_payload_does_not_have_every_name() {
        assert_eq!(number("kitchen/sensor/uptime/state", "86400", "temperature"), Ok(None));
        assert_eq!(number("zigbee2mqtt/oven", "95", "temperature"), Ok(None));
        assert_eq!(number("a/temperatures", "95", "temperature"), Ok(None));
        assert_eq!(number("kitchen/sensor/temperature/state", "21.5", "temperature"), Ok(Some(21.5)));
        assert_eq!(number("kitchen/Temperature", "21.5", "temperature"), Ok(Some(21.5)));
        let uptime = Message::new("kitchen/sensor/uptime/state", "86400");
        assert_eq!(uptime.plain_number(), Ok(Some(86400.0)));
        assert_eq!(uptime.text("time"), Ok(None));
        assert_eq!(uptime.find_numbers(&["temperature"]), Ok(Vec::new()));
        let found = uptime.find_numbers(&["temperature", "uptime"]).unwrap();
        let raw = Value { raw: b"86400", plain: true };
        assert_eq!(found, [Reading { field: 1, path: "uptime".into(), value: Ok(86400.0), raw }]);
        assert_eq!(Message::new("a", ZIGBEE).plain_number(), Ok(None));
    }

    #[test]
    fn reads_numbers_as_devices_send_them() {
        assert_eq!(number("t", ZIGBEE, "temperature"), Ok(Some(21.53)));
        assert_eq!(number("t", ZIGBEE, "state"), Ok(None));
        assert_eq!(number("t", TASMOTA, "temperature"), Ok(None));
        assert_eq!(number("t", TASMOTA, "BME280.Temperature"), Ok(Some(-3.0)));
        assert_eq!(number("t", TASMOTA, "DS18B20.Id"), Ok(Some(316.0)));
        assert_eq!(number("t", r#"{ "t" : "4e2" }"#, "t"), Ok(Some(400.0)));
        assert_eq!(number("t", r#"{"t":.5,"u":81.}"#, "u"), Ok(Some(81.0)));
        assert_eq!(number("t", "\"21.5\"", "t"), Ok(Some(21.5)));
        assert_eq!(number("t", "", "t"), Ok(None));
        assert_eq!(Message::new("t", TASMOTA).find_number("temperature"), Ok(Some(20.6)));
        assert_eq!(Message::new("t", r#"{"a":{"t":1},"t":2}"#).find_number("T"), Ok(Some(2.0)));
    }

    #[test]
    fn absent_unreadable_and_out_of_range_are_three_results() {
        for absent in ["{}", r#"{"t":null}"#, r#"{"t":NaN}"#, r#"{"t":"unavailable"}"#, r#"{"u":{"t":1}}"#, "", "nan"] {
            assert_eq!(number("t", absent, "t"), Ok(None), "{absent}");
        }
        let gzip: &[u8] = b"\x1f\x8b\x08\x00";
        let utf16: Vec<u8> = "{\"t\":1}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        for unreadable in [
            &b"81,5"[..],
            "81.5 °C".as_bytes(),
            b"\"81,5\"",
            b"}",
            br#"{"t":"81,5"}"#,
            br#"{"t":81,5}"#,
            br#"{"t":true}"#,
            br#"{"t":[1]}"#,
            br#"{"t":2x}"#,
            br#"{"t":2"#,
            br#"{"t"#,
            gzip,
            &utf16,
        ] {
            let read = number("t", unreadable, "t");
            assert!(matches!(read, Err(ReadError::Unreadable(_))), "{read:?} for {unreadable:?}");
        }
        for beyond in ["1e999", r#"{"t":-1e999}"#, r#"{"t":"1e999"}"#] {
            let read = number("t", beyond, "t");
            assert!(matches!(read, Err(ReadError::OutOfRange(_))), "{read:?} for {beyond:?}");
        }
    }

    #[test]
    fn an_unreadable_plain_text_elsewhere_is_not_this_functions_business() {
        assert_eq!(number("zigbee2mqtt/bridge", "online", "temperature"), Ok(None));
        assert_eq!(Message::new("a/sensor/door/state", "ON").find_numbers(&["temperature"]), Ok(Vec::new()));
        assert!(Message::new("a/temperature", "hot").find_numbers(&["temperature"]).unwrap()[0].value.is_err());
        assert!(Message::new("a/b", &b"\x1f\x8b\x08"[..]).find_numbers(&["temperature"]).is_err());
        assert!(Message::new("a/b", r#"{"temperature":21"#).find_numbers(&["temperature"]).is_err());
    }

    #[test]
    fn byte_order_mark_nul_and_white_space_are_stripped() {
        assert_eq!(number("t", "\u{feff}{\"t\":95}", "t"), Ok(Some(95.0)));
        assert_eq!(number("t", "81.5\0", "t"), Ok(Some(81.5)));
        assert_eq!(number("t", " 21.5\r\n", "t"), Ok(Some(21.5)));
    }

    #[test]
    fn whole_numbers_are_exact() {
        let message = Message::new("t", r#"{"id":9007199254740993,"eui":18446744073709551615}"#);
        assert_eq!(message.integer("id"), Ok(Some(9_007_199_254_740_993i64)));
        assert_eq!(message.integer("eui"), Ok(Some(u64::MAX)));
        assert!(matches!(message.integer::<i64>("eui"), Err(ReadError::OutOfRange(_))));
    }

    #[test]
    fn reads_words_and_strings() {
        let contact =
            Message::new("t", r#"{"contact":true,"state":"OFF","name":"caf\u00e9 \ud83c\udf21 \"x\"","n":1}"#);
        assert_eq!(contact.boolean("contact"), Ok(Some(true)));
        assert_eq!(contact.boolean("state"), Ok(Some(false)));
        assert_eq!(contact.boolean("n"), Ok(Some(true)));
        assert_eq!(contact.boolean("missing"), Ok(None));
        assert!(contact.boolean("name").is_err());
        assert_eq!(contact.text("name").unwrap().as_deref(), Some("café 🌡 \"x\""));
        assert!(contact.text("n").is_err());
        assert!(Message::new("t", r#"{"a":"\ud83c"}"#).text("a").is_err());
        let idle = Message::new("dryer/state", "idle");
        assert_eq!(idle.text("state").unwrap().as_deref(), Some("idle"));
        assert_eq!(idle.text("mode"), Ok(None));
        assert_eq!(idle.plain().unwrap().unwrap().text().unwrap().as_deref(), Some("idle"));
        assert_eq!(Message::new("relay/state", "ON").boolean("state"), Ok(Some(true)));
    }

    #[test]
    fn damaged_payloads_never_panic() {
        let document = br#"{"a":[1,{"b":"x\\\"y\u00e9"}],"c":{"d":-1.5e3},"e":"f"}"#;
        for cut in 0..document.len() {
            for flip in [0u8, 1, 0x20, 0x80] {
                let mut damaged = document[..cut].to_vec();
                if let Some(last) = damaged.last_mut() {
                    *last ^= flip;
                }
                let message = Message::new("t", damaged);
                for path in ["a", "a[1].b", "c.d", "e", "", ".", "[", "[]", "a[", "a[1", "t"] {
                    let _ =
                        (message.number(path), message.boolean(path), message.text(path), message.integer::<u8>(path));
                    let _ = message.find_numbers(&[path]);
                }
            }
        }
    }
}
