//! Topics that a function's outputs may go to. Checked in the worker, where a run can still be undone, and again in the
//! daemon, which does not trust the worker.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::grants::Grants;
use crate::message::{Failure, FailureCode, Output, wire};
use crate::topic::{self, TopicFilter};

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
    let (publication, local) = match output {
        Output::Alert(_) => return Ok(()),
        Output::Forward(publication) => (publication, false),
        Output::Publish(publication) => (publication, true),
    };
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

/// Shows the beginning of a topic, which is enough to find it by.
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
    use crate::message::Publication;

    fn publication(topic: &str) -> Publication {
        Publication { topic: topic.into(), payload: Bytes::new(), content_type: None, retain: false }
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
    fn a_topic_must_be_a_name() {
        for topic in ["", "derived/#", "derived/+", "derived/\0", &"derived/x".repeat(8000)] {
            check_publish(topic, Some(FailureCode::InvalidTopic));
            let permits = Permits { base_topic: "sedge".into(), publish: Vec::new(), grants: Grants::default() };
            assert!(permits.check(&[Output::Forward(publication(topic))]).is_err(), "{topic:?}");
        }
        let permits = Permits { base_topic: "sedge".into(), publish: Vec::new(), grants: Grants::default() };
        permits.check(&[Output::Forward(publication("anything/upstream"))]).unwrap();
    }
}
