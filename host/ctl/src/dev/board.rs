//! The board whose own version a shadow is compared with: where it answers, and what its messages say.
//!
//! ```text
//! <base>/<node>/functions/<function>   its report: version, manifest, settings
//! <base>/<node>/alerts/<function>      its alerts
//! allow.publish of both manifests      its publications, and perhaps those of others
//! ```

use std::time::Duration;

use sedge_core::deploy::report::{Active, Report, ReportedSetting};
use sedge_core::deploy::topics::Topics;
use sedge_core::forward::HOPS;
use sedge_core::manifest::Manifest;
use sedge_core::message::Message;
use sedge_core::text::printable;
use sedge_core::topic::TopicFilter;
use sedge_core::trace::TraceContext;
use serde::Deserialize;
use serde_json::Value;

use super::answer::Answer;
use super::compare::{Cause, Echo};

pub(super) struct Board {
    pub(super) node: String,
    function: String,
    report_topic: String,
    alerts_topic: String,
    /// What serves there, in words.
    runs: Option<String>,
    /// Where that version may publish.
    publish: Vec<TopicFilter>,
}

/// What a message of a board says.
pub(super) enum Said {
    Answer(Echo),
    /// Another version or other settings, in words.
    Version(String),
}

/// What boards add to an alert.
#[derive(Deserialize)]
struct About {
    topic: Box<str>,
    message_id: Option<Box<str>>,
    received_at_ms: u64,
    at_ms: u64,
    #[serde(default)]
    folded: u64,
}

impl Board {
    pub(super) fn new(base_topic: &str, node: &str, function: &str) -> Self {
        Self {
            node: node.to_owned(),
            function: function.to_owned(),
            report_topic: Topics::new(base_topic).report(node, function),
            alerts_topic: format!("{base_topic}/{node}/alerts/{function}"),
            runs: None,
            publish: Vec::new(),
        }
    }

    /// Where the board says something. `manifest`: of the version here, which may publish elsewhere.
    pub(super) fn filters(&self, manifest: &Manifest) -> anyhow::Result<Vec<TopicFilter>> {
        let mut filters = vec![TopicFilter::parse(&self.report_topic)?, TopicFilter::parse(&self.alerts_topic)?];
        for filter in self.publish.iter().chain(&manifest.allow.publish) {
            if !filters.contains(filter) {
                filters.push(filter.clone());
            }
        }
        Ok(filters)
    }

    /// Whether it has reported a version that serves.
    pub(super) fn runs(&self) -> bool {
        self.runs.is_some()
    }

    /// Where a person looks if it says nothing.
    pub(super) fn report_topic(&self) -> &str {
        &self.report_topic
    }

    /// Reads a message of one of its topics. `None`: it says nothing of the function, or is of others.
    pub(super) fn says(&mut self, message: &Message) -> Option<Said> {
        if *message.topic == *self.report_topic {
            return self.reports(&Report::parse(&message.payload).ok()?).map(Said::Version);
        }
        if message.retained {
            return None;
        }
        let trace = TraceContext::of(&message.properties).map(|trace| trace.trace_id);
        if *message.topic != *self.alerts_topic {
            // Boards count hops; other publishers do not.
            message.property(HOPS)?;
            let content_type = message.content_type.as_deref();
            let answer = Answer::publication(&message.topic, message.payload.clone(), content_type);
            return Some(Said::Answer(Echo { answer, cause: None, trace }));
        }
        let answer = Answer::alert(&message.payload)?;
        let about: About = serde_json::from_slice(&message.payload).ok()?;
        let cause = Cause {
            topic: about.topic,
            publisher_id: about.message_id,
            took: Duration::from_millis(about.at_ms.saturating_sub(about.received_at_ms)),
            folded: about.folded,
        };
        Some(Said::Answer(Echo { answer, cause: Some(cause), trace }))
    }

    /// Takes a report. Returns what is new in it, in words.
    fn reports(&mut self, report: &Report) -> Option<String> {
        let (node, function) = (&self.node, &self.function);
        let Some(Active { version, manifest }) = &report.active else {
            let had = self.runs.take();
            return had.map(|_| format!("{node} does not run {function} any more: there is nothing to compare with"));
        };
        let publish = manifest["allow"]["publish"].as_array().into_iter().flatten().filter_map(Value::as_str);
        self.publish = publish.filter_map(|filter| TopicFilter::parse(filter).ok()).collect();
        let of_board = |it: &ReportedSetting| {
            let topic = it.topic.as_ref().map_or_else(String::new, |topic| format!(" for {topic}"));
            format!("{}={}{topic}", it.name, it.value.as_deref().unwrap_or("(secret)"))
        };
        let settings: Vec<_> = report.settings.iter().map(of_board).collect();
        let with = match settings.is_empty() {
            true => String::new(),
            false => format!(" with {} (--set gives them here)", settings.join(", ")),
        };
        let said = printable(&format!("compared with {function} {} of {node}{with}", version.version));
        (self.runs.replace(said.clone()).as_ref() != Some(&said)).then_some(said)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(topic: &str, payload: &Value, properties: &[(&str, &str)]) -> Message {
        let properties = properties.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Message { properties, ..Message::new(topic, payload.to_string().into(), 0, true) }
    }

    fn report(version: Option<&str>, settings: &Value) -> Message {
        let active = version.map(|version| {
            let manifest = json!({ "allow": { "publish": ["said/#"] } });
            json!({ "version": version, "serial": 1, "digest": "0".repeat(64), "manifest": manifest })
        });
        let report = json!({
            "function": "warm", "state": "active", "active": active, "previous": null, "settings": settings, "at_ms": 1,
            "clock_synced": true, "signature": "of the board",
        });
        message("sedge/cellar/functions/warm", &report, &[])
    }

    #[test]
    fn a_report_says_what_runs_and_where_it_publishes_once() {
        let manifest =
            "name = \"warm\"\nversion = \"2\"\nsubscribe = [\"a\"]\n[allow]\npublish = [\"said/#\", \"new\"]\n";
        let manifest = Manifest::from_toml(manifest, std::path::Path::new("function.toml"), None).unwrap();
        let mut board = Board::new("sedge", "cellar", "warm");
        let mut said = |message: &Message| match board.says(message) {
            Some(Said::Version(text)) => Some(text),
            Some(Said::Answer(_)) => panic!("an answer"),
            None => None,
        };
        assert_eq!(said(&report(None, &json!([]))), None);
        assert_eq!(said(&report(Some("1.0.0"), &json!([]))).as_deref(), Some("compared with warm 1.0.0 of cellar"));
        assert_eq!(said(&report(Some("1.0.0"), &json!([]))), None);
        let settings =
            json!([{ "name": "max", "value": "8", "from": "board" }, { "name": "key", "topic": "t", "from": "node" }]);
        assert_eq!(
            said(&report(Some("1.0.0"), &settings)).as_deref(),
            Some("compared with warm 1.0.0 of cellar with max=8, key=(secret) for t (--set gives them here)")
        );
        assert!(said(&report(None, &json!([]))).is_some_and(|text| text.contains("does not run warm any more")));
        assert!(!board.runs());
        let filters = board.filters(&manifest).unwrap();
        let filters: Vec<_> = filters.iter().map(TopicFilter::as_str).collect();
        assert_eq!(filters, ["sedge/cellar/functions/warm", "sedge/cellar/alerts/warm", "said/#", "new"]);
    }

    #[test]
    fn an_answer_says_what_it_knows_of_its_message() {
        let mut board = Board::new("sedge", "cellar", "warm");
        let mut echo = |message: &Message| match board.says(message) {
            Some(Said::Answer(echo)) => Some(echo),
            _ => None,
        };
        let alert = json!({
            "node": "cellar", "function": "warm", "topic": "s/a", "received_at_ms": 1000, "message_id": "7", "key": "k",
            "severity": "info", "status": "firing", "summary": "s", "at_ms": 1250, "clock_synced": true, "folded": 3,
        });
        let cause = echo(&message("sedge/cellar/alerts/warm", &alert, &[])).unwrap().cause.unwrap();
        assert_eq!((&*cause.topic, cause.publisher_id.as_deref()), ("s/a", Some("7")));
        assert_eq!((cause.took, cause.folded), (Duration::from_millis(250), 3));
        assert!(echo(&message("sedge/cellar/alerts/warm", &json!("not one"), &[])).is_none());
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let published = message("said/a", &json!(7), &[("id", "k-l-1"), (HOPS, "1"), ("traceparent", parent)]);
        let echoed = echo(&published).unwrap();
        assert_eq!(echoed.answer, Answer::publication("said/a", "7".into(), None));
        assert!(echoed.cause.is_none() && echoed.trace.is_some());
        assert!(echo(&Message { retained: true, ..published }).is_none(), "from before");
        assert!(echo(&message("said/a", &json!(7), &[("id", "x")])).is_none(), "of another publisher");
    }
}
