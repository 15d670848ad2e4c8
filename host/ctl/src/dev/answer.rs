//! What a version answers to a message, as far as an echo tells: alerts, and publications on the local broker.

use bytes::Bytes;
use sedge_core::message::{Alert, Output, Publication};
use sedge_core::recording::Data;
use serde::Deserialize as _;
use serde_json::Value;

use crate::runner::output_json;

/// An alert without its sink, or a publication without its retain flag.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answer(Output);

/// An answer of one version that the other does not give.
#[derive(Debug, PartialEq)]
pub(super) struct Difference {
    pub(super) board: Option<Answer>,
    pub(super) here: Option<Answer>,
}

impl Answer {
    /// `None`: an output without an echo.
    pub(super) fn of(output: &Output) -> Option<Self> {
        match output {
            // By way of JSON like that of the board, so that both values are rounded alike.
            Output::Alert(alert) => Self::alert(&serde_json::to_vec(alert).ok()?),
            Output::Publish(it) => Some(Self::publication(&it.topic, it.payload.clone(), it.content_type.as_deref())),
            Output::Forward(_) | Output::Wake(_) | Output::Reply(_) => None,
        }
    }

    /// Reads the JSON of an alert, with or without what boards add. `None`: it is something else.
    pub(super) fn alert(json: &[u8]) -> Option<Self> {
        Some(Self(Output::Alert(serde_json::from_slice::<Alert>(json).ok()?)))
    }

    pub(super) fn publication(topic: &str, payload: Bytes, content_type: Option<&str>) -> Self {
        let (topic, content_type) = (topic.into(), content_type.map(Into::into));
        Self(Output::Publish(Publication { topic, payload, content_type, retain: false, sink: None }))
    }

    /// Reads an output of a recording. `None`: it has no echo.
    pub(super) fn recorded(output: &Value) -> Option<Self> {
        match output["kind"].as_str()? {
            "alert" => Self::alert(output.to_string().as_bytes()),
            "publish" => {
                let payload = Data::deserialize(&output["payload"]).ok()?.0.into_owned();
                Some(Self::publication(output["topic"].as_str()?, payload.into(), output["content_type"].as_str()))
            }
            _ => None,
        }
    }

    pub(super) fn as_alert(&self) -> Option<&Alert> {
        match &self.0 {
            Output::Alert(alert) => Some(alert),
            _ => None,
        }
    }

    /// Whether both are alerts with one key, or publications on one topic.
    pub(super) fn is_about_same(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Output::Alert(one), Output::Alert(other)) => one.key == other.key,
            (Output::Publish(one), Output::Publish(other)) => one.topic == other.topic,
            _ => false,
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let mut json = output_json(&self.0);
        if let Some(fields) = json.as_object_mut() {
            fields.retain(|name, value| name != "retain" && !value.is_null());
        }
        json
    }
}

/// Compares the answers of a message as multisets. Returns how many are equal, and what differs: first what both say of one
/// key or topic, in order.
pub(super) fn pair(board: Vec<Answer>, mut here: Vec<Answer>) -> (u64, Vec<Difference>) {
    let mut take = |board: &Answer, matches: fn(&Answer, &Answer) -> bool| {
        let at = here.iter().position(|here| matches(board, here));
        at.map(|at| here.remove(at))
    };
    let all = board.len();
    let rest: Vec<_> = board.into_iter().filter(|board| take(board, Answer::eq).is_none()).collect();
    let equal = (all - rest.len()) as u64;
    let mut differences: Vec<_> = rest
        .into_iter()
        .map(|board| Difference { here: take(&board, Answer::is_about_same), board: Some(board) })
        .collect();
    differences.extend(here.into_iter().map(|here| Difference { board: None, here: Some(here) }));
    (equal, differences)
}

#[cfg(test)]
mod tests {
    use sedge_core::message::{AlertStatus, Severity};
    use serde_json::json;

    use super::*;

    fn published(topic: &str, payload: &'static str) -> Answer {
        Answer::publication(topic, payload.into(), None)
    }

    fn alert() -> Alert {
        Alert {
            key: "k".into(),
            severity: Severity::Warning,
            status: AlertStatus::Firing,
            summary: "warm".into(),
            // Read from JSON and not from the function, it may be its neighbour.
            value: Some(0.1 + 0.2),
            labels: vec![("topic".into(), "a".into())],
            sink: Some("lake".into()),
        }
    }

    #[test]
    fn an_answer_is_equal_to_its_echo_and_to_what_was_recorded_of_it() {
        let mut echo = serde_json::to_value(alert()).unwrap();
        for (name, value) in [("node", json!("cellar")), ("at_ms", json!(7)), ("folded", json!(2))] {
            echo[name] = value;
        }
        let here = Answer::of(&Output::Alert(alert())).unwrap();
        assert_eq!(Answer::alert(echo.to_string().as_bytes()), Some(here.clone()));
        echo["kind"] = json!("alert");
        assert_eq!(Answer::recorded(&echo), Some(here.clone()));
        echo["severity"] = json!("critical");
        assert_ne!(Answer::recorded(&echo), Some(here));

        let retained = Publication {
            topic: "t".into(),
            payload: Bytes::from_static(&[255]),
            content_type: Some("a/b".into()),
            retain: true,
            sink: None,
        };
        let here = Answer::of(&Output::Publish(retained)).unwrap();
        assert_eq!(here, Answer::publication("t", Bytes::from_static(&[255]), Some("a/b")));
        let recorded = json!({ "kind": "publish", "topic": "t", "payload": "base64:/w==", "content_type": "a/b" });
        assert_eq!(Answer::recorded(&recorded), Some(here.clone()));
        assert_ne!(Answer::publication("t", Bytes::from_static(&[255]), None), here);
        assert_eq!(here.to_json(), json!({ "kind": "publish", "topic": "t", "payload": "ff", "content_type": "a/b" }));
        assert_eq!(Answer::recorded(&json!({ "kind": "forward", "topic": "t", "payload": "1" })), None);
    }

    #[test]
    fn answers_are_compared_as_multisets_and_what_differs_is_paired_by_topic() {
        let board = vec![published("a", "1"), published("a", "1"), published("b", "2"), published("c", "3")];
        let here = vec![published("b", "4"), published("a", "1"), published("d", "5"), published("a", "1")];
        let (equal, differences) = pair(board, here);
        let differs = |board: Option<Answer>, here: Option<Answer>| Difference { board, here };
        assert_eq!(equal, 2);
        assert_eq!(
            differences,
            [
                differs(Some(published("b", "2")), Some(published("b", "4"))),
                differs(Some(published("c", "3")), None),
                differs(None, Some(published("d", "5"))),
            ]
        );
        let (equal, differences) = pair(vec![published("a", "1")], vec![published("a", "1"), published("a", "1")]);
        assert_eq!((equal, differences), (1, vec![differs(None, Some(published("a", "1")))]), "one is missing");
    }
}
