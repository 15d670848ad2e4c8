//! The file of a test case: messages, and what is expected of each.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use sedge_core::manifest::parse_period;
use serde::Deserialize;
use serde_json::Value as Json;
use toml::Value;
use toml::value::Datetime;

use crate::time::unix_ms;

/// The time of the first message if the file names none: 2026-01-01T00:00:00Z.
const START_MS: u64 = 1_767_225_600_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    /// Time of the first message.
    time: Option<Datetime>,
    /// Whether the board's clock is synchronised. Yes, if not given.
    clock_synced: Option<bool>,
    /// Laid over section `config` of function.toml.
    #[serde(default)]
    settings: BTreeMap<String, Value>,
    /// State before the first message. With `state = "topic"` a section for each topic.
    #[serde(default)]
    pub(super) state: BTreeMap<String, Value>,
    #[serde(default, rename = "message")]
    pub(super) messages: Vec<Step>,
}

/// A message or a tick.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Step {
    pub(super) topic: Option<String>,
    /// A text, or a value that is sent as JSON.
    payload: Option<Value>,
    payload_hex: Option<String>,
    payload_file: Option<PathBuf>,
    pub(super) content_type: Option<String>,
    #[serde(default)]
    pub(super) properties: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) retained: bool,
    pub(super) response_topic: Option<String>,
    pub(super) correlation_data: Option<String>,
    /// The tick of `every`, instead of a message.
    #[serde(default)]
    pub(super) tick: bool,
    /// Name of a wake that waits, instead of a message. With `topic`: the one that this topic has set.
    pub(super) wake: Option<String>,
    /// The call that this topic is silent, instead of a message.
    pub(super) silence: Option<String>,
    /// The call that this topic speaks again, instead of a message.
    pub(super) back: Option<String>,
    /// Name of a schedule, instead of a message: its next time.
    pub(super) schedule: Option<String>,
    pub(super) attempt: Option<u32>,
    /// Time since the message before: "10s".
    after: Option<String>,
    pub(super) expect: Option<Expect>,
}

/// What is named is compared, what is not is not. Without any of it the message must be done without a failure.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Expect {
    /// All outputs in their order; of each the named fields.
    pub(super) outputs: Option<Vec<BTreeMap<String, Value>>>,
    /// The whole state of the scope after the message.
    pub(super) state: Option<BTreeMap<String, Value>>,
    /// All log lines in their order.
    pub(super) log: Option<Vec<String>>,
    /// Reason of the dead letter: "rejected".
    pub(super) failure: Option<String>,
    /// Text of the failure, or of the request for another attempt.
    pub(super) detail: Option<String>,
    /// The function asks for the message again after so long.
    pub(super) retry_after_ms: Option<u64>,
}

impl Case {
    pub(super) fn read(path: &Path, text: &str) -> anyhow::Result<Self> {
        let case: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            anyhow::anyhow!("{}:{line}: {}", path.display(), error.message())
        })?;
        if case.messages.is_empty() {
            bail!("{}: no message: add a section [[message]] with topic and payload", path.display());
        }
        Ok(case)
    }

    pub(super) fn start_ms(&self) -> anyhow::Result<u64> {
        self.time.as_ref().map_or(Ok(START_MS), unix_ms)
    }

    pub(super) fn clock_synced(&self) -> bool {
        self.clock_synced.unwrap_or(true)
    }

    pub(super) fn settings(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let mut settings = BTreeMap::new();
        flatten(&self.settings, "", &mut settings)?;
        Ok(settings)
    }

    /// Whether the file says anything that a run could contradict.
    pub(super) fn expects_something(&self) -> bool {
        self.messages.iter().any(|step| step.expect.is_some())
    }
}

/// Settings of sections, with dots in their names, as section `config` of function.toml has them.
fn flatten(from: &BTreeMap<String, Value>, prefix: &str, into: &mut BTreeMap<String, String>) -> anyhow::Result<()> {
    for (key, value) in from {
        let name = format!("{prefix}{key}");
        match value {
            Value::Table(table) => {
                let table = table.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
                flatten(&table, &format!("{name}."), into)?;
            }
            Value::Array(_) => drop(into.insert(name, json(value)?.to_string())),
            _ => drop(into.insert(name, text(value)?)),
        }
    }
    Ok(())
}

impl Step {
    /// Refuses what names two payloads, or none of what starts a run.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let payloads = [self.payload.is_some(), self.payload_hex.is_some(), self.payload_file.is_some()];
        if payloads.into_iter().filter(|is_given| *is_given).count() > 1 {
            bail!("name one of payload, payload_hex and payload_file");
        }
        let others = [&self.wake, &self.silence, &self.back, &self.schedule];
        let calls = std::iter::once(self.tick).chain(others.into_iter().map(Option::is_some));
        if calls.filter(|is_given| *is_given).count() > 1 {
            bail!("name one of tick, wake, silence, back and schedule: each is a message of its own");
        }
        if self.silence.is_some() || self.back.is_some() {
            if self.topic.is_some() {
                bail!("a call about silence has no other topic: remove topic");
            }
            if payloads.contains(&true) {
                bail!("a call about silence has no payload: remove it");
            }
            return Ok(());
        }
        if self.schedule.is_some() {
            if self.topic.is_some() || payloads.contains(&true) {
                bail!("a schedule has no topic and no payload of its own: remove what stands beside it");
            }
            return Ok(());
        }
        match (&self.topic, self.tick, &self.wake) {
            (None, false, None) => {
                bail!(
                    "topic is missing, and it is no tick, wake, silence, back or schedule: name one, for example topic = \"a/b\""
                )
            }
            (Some(_), true, _) => bail!("a tick has no topic of its own: remove topic or tick"),
            (_, _, Some(_)) if payloads.contains(&true) => bail!("a wake has no payload: remove it"),
            _ => Ok(()),
        }
    }

    /// `dir`: the folder of the case, to which `payload_file` is relative.
    pub(super) fn payload(&self, dir: &Path) -> anyhow::Result<Bytes> {
        if let Some(file) = &self.payload_file {
            let path = dir.join(file);
            return Ok(std::fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?.into());
        }
        if let Some(hex) = &self.payload_hex {
            return unhex(hex);
        }
        match &self.payload {
            None => Ok(Bytes::new()),
            Some(Value::String(text)) => Ok(Bytes::copy_from_slice(text.as_bytes())),
            Some(value) => Ok(json(value)?.to_string().into()),
        }
    }

    /// Time since the message before, if it is given.
    pub(super) fn after_ms(&self) -> anyhow::Result<Option<u64>> {
        let Some(text) = &self.after else { return Ok(None) };
        let after = parse_period(text)
            .with_context(|| format!("after = {text:?} is not a time: write \"500ms\", \"10s\", \"5m\" or \"1h\""))?;
        Ok(Some(u64::try_from(after.as_millis())?))
    }
}

/// The bytes of a value of state: a text, or a number or boolean as text, as scripts store them. `{ f64 = 1.5 }` and
/// `{ bool = true }` as the Rust SDK stores them, `{ hex = "00ff" }` whatever it is.
pub(super) fn bytes(value: &Value) -> anyhow::Result<Bytes> {
    match value {
        Value::Table(table) if table.len() == 1 && table.contains_key("hex") => {
            unhex(table["hex"].as_str().context("hex is a text of hexadecimal digits")?)
        }
        Value::Table(table) if table.len() == 1 && table.contains_key("f64") => {
            let number = &table["f64"];
            let number = number.as_float().or_else(|| number.as_integer().map(|number| number as f64));
            Ok(Bytes::copy_from_slice(&number.context("f64 is a number")?.to_le_bytes()))
        }
        Value::Table(table) if table.len() == 1 && table.contains_key("bool") => {
            let is_on = table["bool"].as_bool().context("bool is true or false")?;
            Ok(Bytes::copy_from_slice(&[u8::from(is_on)]))
        }
        Value::Table(_) | Value::Array(_) => Ok(json(value)?.to_string().into()),
        _ => Ok(text(value)?.into()),
    }
}

fn text(value: &Value) -> anyhow::Result<String> {
    Ok(match value {
        Value::String(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(is_on) => is_on.to_string(),
        Value::Datetime(time) => time.to_string(),
        Value::Array(_) | Value::Table(_) => bail!("a list or section cannot stand here"),
    })
}

pub(super) fn json(value: &Value) -> anyhow::Result<Json> {
    Ok(match value {
        Value::Datetime(time) => Json::String(time.to_string()),
        Value::Array(items) => Json::Array(items.iter().map(json).collect::<Result<_, _>>()?),
        Value::Table(table) => Json::Object(
            table.iter().map(|(key, value)| Ok((key.clone(), json(value)?))).collect::<anyhow::Result<_>>()?,
        ),
        Value::Float(number) if !number.is_finite() => bail!("JSON has no {number}"),
        _ => serde_json::to_value(value)?,
    })
}

fn unhex(text: &str) -> anyhow::Result<Bytes> {
    crate::unhex(text).with_context(|| format!("{text:?} is not an even number of hexadecimal digits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<Case> {
        Case::read(Path::new("tests/a.toml"), text)
    }

    #[test]
    fn a_mistake_is_named_with_its_line() {
        let error = |text: &str| read(text).unwrap_err().to_string();
        assert_eq!(
            error("[[message]]\ntopic = \"a\"\npaylod = \"1\""),
            "tests/a.toml:3: unknown field `paylod`, expected one of `topic`, `payload`, `payload_hex`, `payload_file`, \
             `content_type`, `properties`, `retained`, `response_topic`, `correlation_data`, `tick`, `wake`, `silence`, \
             `back`, `schedule`, `attempt`, `after`, `expect`"
        );
        assert!(error("time = 2026-01-05").contains("no message"));
        assert!(error("[[message]\n").starts_with("tests/a.toml:1: "));
    }

    #[test]
    fn payloads_are_text_json_hex_or_a_file() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("frame.bin"), [1, 2]).unwrap();
        let payload = |line: &str| {
            let case = read(&format!("[[message]]\ntopic = \"a\"\n{line}")).unwrap();
            case.messages[0].check().and_then(|()| case.messages[0].payload(folder.path()))
        };
        assert_eq!(payload("payload = \"81.5\"").unwrap(), "81.5");
        assert_eq!(payload("payload = 81.5").unwrap(), "81.5");
        assert_eq!(payload("payload = { a = [1, true] }").unwrap(), "{\"a\":[1,true]}");
        assert_eq!(payload("payload_hex = \"00 fF\"").unwrap(), Bytes::from_static(&[0, 255]));
        assert_eq!(payload("payload_file = \"frame.bin\"").unwrap(), Bytes::from_static(&[1, 2]));
        assert_eq!(payload("").unwrap(), "");
        assert!(payload("payload_hex = \"0\"").is_err() && payload("payload_hex = \"0g\"").is_err());
        assert!(payload("payload = 1\npayload_hex = \"00\"").unwrap_err().to_string().contains("one of"));
        assert!(payload("payload_file = \"gone.bin\"").unwrap_err().to_string().contains("gone.bin"));
    }

    #[test]
    fn settings_of_sections_have_names_with_dots() {
        let case = read("[settings]\nmax = 80.5\nnames = [\"a\"]\noven.door = true\n[[message]]\ntick = true").unwrap();
        let settings = case.settings().unwrap();
        let settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(settings, [("max", "80.5"), ("names", "[\"a\"]"), ("oven.door", "true")]);
    }

    #[test]
    fn times_are_those_of_the_file() {
        let case = read("time = 2026-01-05T11:02:13.5+01:00\n[[message]]\ntick = true\nafter = \"5m\"").unwrap();
        assert_eq!(sedge_core::time::rfc3339(case.start_ms().unwrap()), "2026-01-05T10:02:13.500Z");
        assert_eq!(case.messages[0].after_ms().unwrap(), Some(300_000));
        let case = read("[[message]]\ntick = true\nafter = \"soon\"").unwrap();
        assert!(case.messages[0].after_ms().unwrap_err().to_string().contains("soon"));
        assert_eq!(sedge_core::time::rfc3339(case.start_ms().unwrap()), "2026-01-01T00:00:00.000Z");
    }
}
