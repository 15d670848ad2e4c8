//! What leaves the site of a board without names: parts of messages are left out, and levels of topics become hashes.
//!
//! A name that is hashed in a topic, or a text that is left out of a payload, is replaced in all lines of the run: functions
//! put it into keys, payloads and state. The hash has a random salt that nobody keeps; within one recording the same name has
//! the same hash.

use std::borrow::Cow;

use anyhow::{Context as _, bail};
use sedge_core::recording::{Data, Encoder, MessageLine};
use sedge_core::topic::TopicFilter;
use serde_json::Value;

use super::message_of;

/// Shorter names are replaced only as whole levels of topics with several: others would be found in numbers.
const LONG: usize = 4;

pub(super) struct Redaction {
    filters: Vec<TopicFilter>,
    drops: Vec<Part>,
    names: Vec<String>,
    salt: [u8; 16],
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Payload,
    /// Path of a member of a JSON object.
    Member(Vec<String>),
    ContentType,
    Properties,
    ResponseTopic,
    CorrelationData,
}

impl Redaction {
    pub(super) fn new(redact: &[String], drops: &[String]) -> anyhow::Result<Self> {
        let filter = |text: &String| {
            let filter = text.strip_prefix("topic=").with_context(|| {
                format!("--redact {text}: write topic=FILTER, for example topic=sensors/+/temperature")
            })?;
            let filter = TopicFilter::parse(filter).with_context(|| format!("--redact {text}"))?;
            if !filter.as_str().contains(['+', '#']) {
                bail!("--redact {text}: it has neither + nor #, whose levels are hashed");
            }
            Ok(filter)
        };
        let mut salt = [0; 16];
        rustix::rand::getrandom(&mut salt, rustix::rand::GetRandomFlags::empty()).context("failed to draw a salt")?;
        let dropped = drops.iter().map(|drop| format!("without {drop}"));
        Ok(Self {
            filters: redact.iter().map(filter).collect::<anyhow::Result<_>>()?,
            drops: drops.iter().map(|text| part(text)).collect::<anyhow::Result<_>>()?,
            names: redact.iter().cloned().chain(dropped).collect(),
            salt,
        })
    }

    /// What was done, for the first line of the recording.
    pub(super) fn names(&self) -> Vec<String> {
        self.names.clone()
    }

    /// Writes the lines of a run, and of a version before it.
    pub(super) fn run(&mut self, lines: &[Vec<u8>], encoder: &mut Encoder) -> anyhow::Result<()> {
        if self.filters.is_empty() && self.drops.is_empty() {
            for line in lines {
                encoder.copy(line, line.starts_with(b"{\"outcome\":"));
            }
            return Ok(());
        }
        let mut names = Vec::new();
        let mut changed = None;
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.starts_with(b"{\"message\":")) {
            let Some(mut message) = message_of(line)? else { continue };
            self.filters.iter().for_each(|filter| levels(filter, &message.topic, &mut names));
            self.drops.iter().for_each(|part| part.remove(&mut message, &mut names));
            let mut encoded = Encoder::default();
            encoded.message(&message);
            changed = Some((at, encoded.lines));
        }
        names.sort_by_key(|name| std::cmp::Reverse(name.len()));
        names.dedup();
        for (at, line) in lines.iter().enumerate() {
            let line = match &changed {
                Some((changed, line)) if *changed == at => line,
                _ => line,
            };
            encoder.copy(&self.replaced(line, &names), line.starts_with(b"{\"outcome\":"));
        }
        Ok(())
    }

    fn hash(&self, name: &str) -> String {
        let digest = sedge_core::deploy::digest(&[&self.salt[..], name.as_bytes()].concat());
        format!("x{}", &digest.to_string()[..10])
    }

    /// The line with the names in its strings replaced.
    fn replaced<'a>(&self, line: &'a [u8], names: &[String]) -> Cow<'a, [u8]> {
        let Ok(text) = str::from_utf8(line) else { return Cow::Borrowed(line) };
        if names.is_empty() {
            return Cow::Borrowed(line);
        }
        let mut replaced = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(begin) = rest.find('"') {
            let end = end_of_string(&rest[begin + 1..]);
            replaced.push_str(&rest[..=begin]);
            let mut content = Cow::Borrowed(&rest[begin + 1..begin + 1 + end]);
            for name in names {
                let escaped = Value::from(name.as_str()).to_string();
                let escaped = &escaped[1..escaped.len() - 1];
                if let Some(new) = replace(&content, escaped, &self.hash(name)) {
                    content = Cow::Owned(new);
                }
            }
            replaced.push_str(&content);
            rest = &rest[begin + 1 + end..];
            // The closing quotation mark.
            let closing = rest.len().min(1);
            replaced.push_str(&rest[..closing]);
            rest = &rest[closing..];
        }
        replaced.push_str(rest);
        Cow::Owned(replaced.into_bytes())
    }
}

/// Length of the content of a JSON string.
fn end_of_string(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return at,
            _ => {}
        }
    }
    text.len()
}

/// `None`: the name is not in the text, or only within other words.
fn replace(text: &str, name: &str, by: &str) -> Option<String> {
    let is_long = name.len() >= LONG;
    if !is_long && !text.contains('/') {
        return None;
    }
    let ends = |around: Option<char>| match around {
        None | Some('/') => true,
        Some(c) => is_long && !c.is_alphanumeric(),
    };
    let (mut new, mut kept, mut from) = (String::new(), 0, 0);
    while let Some(at) = text[from..].find(name).map(|at| at + from) {
        let end = at + name.len();
        if ends(text[..at].chars().next_back()) && ends(text[end..].chars().next()) {
            new.push_str(&text[kept..at]);
            new.push_str(by);
            kept = end;
        }
        from = end;
    }
    (kept > 0).then(|| new + &text[kept..])
}

/// Adds the levels of a topic that the wildcards of a filter stand for.
fn levels(filter: &TopicFilter, topic: &str, names: &mut Vec<String>) {
    if !filter.matches(topic) {
        return;
    }
    let mut levels = topic.split('/');
    for part in filter.as_str().split('/') {
        match part {
            "#" => names.extend(levels.by_ref().map(str::to_owned)),
            "+" => names.extend(levels.next().map(str::to_owned)),
            _ => drop(levels.next()),
        }
    }
    names.retain(|name| !name.is_empty());
}

fn part(text: &str) -> anyhow::Result<Part> {
    Ok(match text {
        "payload" => Part::Payload,
        "content_type" => Part::ContentType,
        "properties" => Part::Properties,
        "response_topic" => Part::ResponseTopic,
        "correlation_data" => Part::CorrelationData,
        _ => match text.strip_prefix("payload.") {
            Some(path) if !path.is_empty() => Part::Member(path.split('.').map(str::to_owned).collect()),
            _ => bail!(
                "--drop {text}: messages have no such part; it is one of payload, payload.NAME, content_type, properties, \
                 response_topic, correlation_data"
            ),
        },
    })
}

impl Part {
    fn remove(&self, message: &mut MessageLine<'_>, names: &mut Vec<String>) {
        match self {
            Self::Payload => message.payload = Data::of(b""),
            Self::ContentType => message.content_type = None,
            Self::Properties => message.properties.clear(),
            Self::ResponseTopic => message.response_topic = None,
            Self::CorrelationData => message.correlation_data = None,
            Self::Member(path) => {
                let Ok(mut value) = serde_json::from_slice::<Value>(&message.payload.0) else { return };
                let Some((last, parents)) = path.split_last() else { return };
                let parent = parents.iter().try_fold(&mut value, |value, name| value.get_mut(name));
                let removed = parent.and_then(Value::as_object_mut).and_then(|object| object.remove(last));
                if let Some(Value::String(text)) = &removed
                    && text.len() >= LONG
                {
                    names.push(text.clone());
                }
                if removed.is_some() {
                    message.payload = Data(Cow::Owned(value.to_string().into_bytes()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redacted(redact: &[&str], drops: &[&str], lines: &[&str]) -> String {
        let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let mut redaction = Redaction::new(&own(redact), &own(drops)).unwrap();
        redaction.salt = [7; 16];
        let lines: Vec<Vec<u8>> = lines.iter().map(|line| format!("{line}\n").into_bytes()).collect();
        let mut encoder = Encoder::default();
        redaction.run(&lines, &mut encoder).unwrap();
        assert_eq!(encoder.runs(), 1);
        String::from_utf8(encoder.lines).unwrap()
    }

    const MESSAGE: &str = r#"{"message":{"topic":"sensors/maria-w/1/x","payload":"{\"name\":\"Maria\",\"value\":81.5,\"at\":{\"room\":\"kitchen\"}}","received_at_ms":1,"clock_synced":true}}"#;
    const OUTCOME: &str = r#"{"outcome":{"outputs":[{"kind":"publish","topic":"out/maria-w/1","payload":"maria-w: 81.5 in kitchen of Maria, 1.5"}],"state":[["sensors/maria-w/1/x","1"]],"fuel":1}}"#;

    #[test]
    fn levels_of_topics_become_hashes_wherever_they_are() {
        let text = redacted(&["topic=sensors/+/+/x"], &[], &[MESSAGE, OUTCOME]);
        assert!(!text.contains("maria-w"), "{text}");
        let hash = |text: &str| text.split('/').nth(1).unwrap().to_owned();
        let (_, topic) = text.split_once("\"topic\":\"sensors").unwrap();
        let (_, output) = text.split_once("\"topic\":\"out").unwrap();
        assert_eq!(hash(topic), hash(output), "the same name has the same hash");
        assert!(text.contains("81.5 in kitchen of Maria, 1.5") && text.contains("\"1\"]],\"fuel\":1}}"), "{text}");
        assert!(!text.contains("/1/x"), "{text}");
    }

    #[test]
    fn other_topics_and_other_names_stay() {
        let text = redacted(&["topic=other/+/x"], &[], &[MESSAGE, OUTCOME]);
        assert!(text.contains("sensors/maria-w/1/x") && text.contains("out/maria-w/1"));
        assert!(text.contains("\\\"name\\\":\\\"Maria\\\""), "{text}");
    }

    #[test]
    fn a_member_that_is_left_out_is_gone_from_the_outcome_as_well() {
        let text = redacted(&[], &["payload.name", "payload.at.room", "payload.none"], &[MESSAGE, OUTCOME]);
        assert!(!text.contains("Maria") && !text.contains("kitchen"), "{text}");
        assert!(text.contains("maria-w") && text.contains("81.5"), "{text}");
        let text = redacted(&[], &["payload"], &[MESSAGE, OUTCOME]);
        assert!(text.contains("\"payload\":\"\""), "{text}");
    }

    #[test]
    fn without_wishes_nothing_changes_and_wrong_ones_are_named() {
        assert_eq!(redacted(&[], &[], &[MESSAGE, OUTCOME]), format!("{MESSAGE}\n{OUTCOME}\n"));
        let error = |redact: &str, drop: &str| {
            let texts = |text: &str| if text.is_empty() { Vec::new() } else { vec![text.to_owned()] };
            format!("{:#}", Redaction::new(&texts(redact), &texts(drop)).err().unwrap())
        };
        assert!(error("sensors/+", "").contains("topic=FILTER"));
        assert!(error("topic=a/b", "").contains("neither + nor #"));
        assert!(error("topic=a/#/b", "").contains("topic=a/#/b"));
        assert!(error("", "payloads").contains("payload.NAME"));
    }
}
