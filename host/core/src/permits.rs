//! Topics that a function's outputs may go to. Checked in the worker, where a run can still be undone, and again in the
//! daemon, which does not trust the worker.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::grants::Grants;
use crate::message::{Failure, FailureCode, Output, wire};
use crate::topic::{self, TopicFilter};

/// Longest key of an alert.
const MAX_ALERT_KEY_BYTES: usize = 256;

/// Permissions of one function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Permits {
    /// First level of the topics that command the board. No function may publish there.
    #[serde(with = "wire::text")]
    pub base_topic: Arc<str>,
    pub publish: Vec<TopicFilter>,
    pub grants: Grants,
}

impl Permits {
    /// Fails with the first output that is not allowed.
    pub fn check(&self, outputs: &[Output]) -> Result<(), Failure> {
        outputs.iter().try_for_each(|output| check(output, &self.publish, &self.base_topic))
    }
}

pub fn check(output: &Output, publish: &[TopicFilter], base_topic: &str) -> Result<(), Failure> {
    let (sink, publication) = match output {
        Output::Alert(alert) if alert.key.len() > MAX_ALERT_KEY_BYTES => {
            let detail = format!("an alert's key has {} bytes, the limit is {MAX_ALERT_KEY_BYTES}", alert.key.len());
            return Err(Failure { code: FailureCode::AlertKeyTooLong, detail });
        }
        Output::Alert(alert) => (&alert.sink, None),
        Output::Forward(publication) => (&publication.sink, Some((publication, false))),
        Output::Publish(publication) => (&publication.sink, Some((publication, true))),
        Output::Wake(wake) => return Err(not_available(&format!("wake {}", shown(&wake.name)))),
        Output::Reply(reply) => return Err(not_available(&format!("reply {}", reply.status))),
    };
    if let Some(sink) = sink {
        return Err(not_available(&format!("sink {}", shown(sink))));
    }
    let Some((publication, local)) = publication else { return Ok(()) };
    let topic = &*publication.topic;
    if let Err(error) = topic::validate_name(topic) {
        return Err(Failure { code: FailureCode::InvalidTopic, detail: format!("{}: {error}", shown(topic)) });
    }
    if !local {
        return Ok(());
    }
    // No allow list opens the board's own topics.
    let own = topic.split('/').next() == Some(base_topic) || topic.starts_with('$');
    if own || !publish.iter().any(|filter| filter.matches(topic)) {
        let topic = shown(topic);
        let detail = format!("{topic} is not in the function's allow list (allow.publish)");
        return Err(Failure { code: FailureCode::NotAllowed, detail });
    }
    Ok(())
}

fn not_available(what: &str) -> Failure {
    let detail = format!("the output `{what}` needs a later version of sedge");
    Failure { code: FailureCode::NotAvailable, detail }
}

/// Shows the beginning of a topic or a name, which is enough to find it by.
fn shown(topic: &str) -> String {
    const SHOWN_CHARS: usize = 100;
    match topic.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{:?}… of {} bytes", &topic[..end], topic.len()),
        None => format!("{topic:?}"),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message::{Alert, AlertStatus, Publication, Reply, Severity, Wake};

    fn publication(topic: &str) -> Publication {
        Publication { topic: topic.into(), payload: Bytes::new(), content_type: None, retain: false, sink: None }
    }

    #[track_caller]
    fn check_publish(topic: &str, expected: Option<FailureCode>) {
        let permits = Permits {
            base_topic: "sedge".into(),
            publish: ["derived/#", "sedge/#", "+/state"].map(|filter| filter.parse().unwrap()).into(),
            grants: Grants::default(),
        };
        let failure = permits.check(&[Output::Publish(publication(topic))]).err();
        assert_eq!(failure.map(|failure| failure.code), expected, "{topic:?}");
    }

    #[test]
    fn only_listed_topics_are_allowed() {
        check_publish("derived/a/b", None);
        check_publish("lamp/state", None);
        check_publish("sensors/a", Some(FailureCode::NotAllowed));
        check_publish("derive", Some(FailureCode::NotAllowed));
    }

    #[test]
    fn the_boards_own_topics_are_never_allowed() {
        check_publish("sedge/board/deploy/a", Some(FailureCode::NotAllowed));
        check_publish("sedge", Some(FailureCode::NotAllowed));
        check_publish("sedges/state", None);
        check_publish("$SYS/state", Some(FailureCode::NotAllowed));
    }

    #[test]
    fn the_key_of_an_alert_has_a_limit() {
        use crate::message::{Alert, AlertStatus, Severity};
        let alert = |bytes| {
            let (severity, status) = (Severity::Info, AlertStatus::Firing);
            let key = "k".repeat(bytes);
            Output::Alert(Alert {
                key,
                severity,
                status,
                summary: String::new(),
                value: None,
                labels: Vec::new(),
                sink: None,
            })
        };
        check(&alert(256), &[], "sedge").unwrap();
        let failure = check(&alert(257), &[], "sedge").unwrap_err();
        assert_eq!(failure.code, FailureCode::AlertKeyTooLong);
        assert_eq!(failure.detail, "an alert's key has 257 bytes, the limit is 256");
    }

    #[test]
    fn a_topic_must_be_a_name() {
        for topic in ["", "derived/#", "derived/+", "derived/\0", &"derived/x".repeat(8000)] {
            check_publish(topic, Some(FailureCode::InvalidTopic));
            let permits = Permits { base_topic: "sedge".into(), publish: Vec::new(), grants: Grants::default() };
            assert!(permits.check(&[Output::Forward(publication(topic))]).is_err(), "{topic:?}");
        }
        let permits = Permits { base_topic: "sedge".into(), publish: Vec::new(), grants: Grants::default() };
        permits.check(&[Output::Forward(publication("anything/upstream"))]).unwrap();
    }

    #[test]
    fn outputs_for_later_versions_are_named() {
        let permits =
            Permits { base_topic: "sedge".into(), publish: vec!["#".parse().unwrap()], grants: Grants::default() };
        let sink: Option<Box<str>> = Some("mail".into());
        let alert = Alert {
            key: "k".into(),
            severity: Severity::Info,
            status: AlertStatus::Firing,
            summary: "s".into(),
            value: None,
            labels: Vec::new(),
            sink: sink.clone(),
        };
        for (output, named) in [
            (Output::Wake(Wake { name: "close".into(), after_ms: Some(1) }), "`wake \"close\"`"),
            (Output::Wake(Wake { name: "x".repeat(9000).into(), after_ms: None }), "of 9000 bytes`"),
            (Output::Reply(Reply { status: 404, content_type: None, body: Bytes::new() }), "`reply 404`"),
            (Output::Alert(alert.clone()), "`sink \"mail\"`"),
            (Output::Forward(Publication { sink: sink.clone(), ..publication("a") }), "`sink \"mail\"`"),
            (Output::Publish(Publication { sink, ..publication("a") }), "`sink \"mail\"`"),
        ] {
            let failure = permits.check(&[output]).unwrap_err();
            assert_eq!(failure.code, FailureCode::NotAvailable);
            assert!(failure.detail.contains(named), "{}", failure.detail);
        }
        permits.check(&[Output::Alert(Alert { sink: None, ..alert })]).unwrap();
    }
}
