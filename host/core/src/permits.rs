//! Topics that a function's outputs may go to. Checked in the worker, where a run can still be undone, and again in the
//! daemon, which does not trust the worker.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::grants::Grants;
use crate::manifest::Allow;
use crate::message::{Failure, FailureCode, Output, Reply, wire};
use crate::topic::{self, TopicFilter};
use crate::wake;

/// Longest key of an alert.
const MAX_ALERT_KEY_BYTES: usize = 256;
const MAX_CONTENT_TYPE_BYTES: usize = 255;

/// First levels below the prefix upstream, and below the base topic, that are the board's own: its alerts, gaps, status and
/// reports, and the orders to it.
pub const OWN_LEVELS: [&str; 10] =
    ["alerts", "gaps", "status", "functions", "deploy", "group", "blob", "settings", "request", "reply"];

/// Permissions of one function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Permits {
    /// First level of the topics that command the board. No function may publish there.
    #[serde(with = "wire::text")]
    pub base_topic: Arc<str>,
    pub publish: Vec<TopicFilter>,
    /// `None`: all topics but those of the board.
    pub forward: Option<Vec<TopicFilter>>,
    /// `None`: all topics that it may publish or forward to.
    pub retain: Option<Vec<TopicFilter>>,
    pub grants: Grants,
}

impl Permits {
    pub fn new(allow: &Allow, base_topic: &str) -> Self {
        let Allow { publish, forward, retain, .. } = allow.clone();
        Self { base_topic: base_topic.into(), publish, forward, retain, grants: Grants::from(allow) }
    }

    /// Fails with the first output that is not allowed.
    pub fn check(&self, outputs: &[Output]) -> Result<(), Failure> {
        let Self { base_topic, publish, forward, retain, .. } = self;
        check_one_reply(outputs)?;
        outputs.iter().try_for_each(|output| check(output, base_topic, publish, forward.as_deref(), retain.as_deref()))
    }
}

pub fn check(
    output: &Output,
    base_topic: &str,
    publish: &[TopicFilter],
    forward: Option<&[TopicFilter]>,
    retain: Option<&[TopicFilter]>,
) -> Result<(), Failure> {
    let (sink, publication) = match output {
        Output::Alert(alert) if alert.key.len() > MAX_ALERT_KEY_BYTES => {
            let detail = format!("an alert's key has {} bytes, the limit is {MAX_ALERT_KEY_BYTES}", alert.key.len());
            return Err(Failure { code: FailureCode::AlertKeyTooLong, detail });
        }
        Output::Alert(alert) => (&alert.sink, None),
        Output::Forward(publication) => (&publication.sink, Some((publication, false))),
        Output::Publish(publication) => (&publication.sink, Some((publication, true))),
        Output::Wake(wake) => return wake::check(wake),
        Output::Reply(reply) => return check_reply(reply),
    };
    let Some((publication, is_local)) = publication else { return Ok(()) };
    let topic = &*publication.topic;
    if let (Some(sink), true) = (sink, is_local) {
        let detail = format!(
            "the publication to {} names sink {}, and publications go to the local broker: leave out its sink, or forward it",
            shown(topic),
            shown(sink)
        );
        return Err(Failure { code: FailureCode::NotAvailable, detail });
    }
    if let Err(error) = topic::validate_name(topic) {
        return Err(Failure { code: FailureCode::InvalidTopic, detail: format!("{}: {error}", shown(topic)) });
    }
    check_content_type(publication.content_type.as_deref(), || format!("an output to {}", shown(topic)))?;
    let refuse =
        |why: String| Err(Failure { code: FailureCode::NotAllowed, detail: format!("{} {why}", shown(topic)) });
    if is_local {
        // No allow list opens the board's own topics.
        let own = topic.split('/').next() == Some(base_topic) || topic.starts_with('$');
        if own || !matches(publish, topic) {
            return refuse("is not in the function's allow list (allow.publish)".to_owned());
        }
    } else if let Some(level) = own_level(topic) {
        return refuse(format!(
            "cannot be forwarded: upstream, {level}/ is the board's own; forward to a topic with another first level"
        ));
    } else if forward.is_some_and(|allowed| !matches(allowed, topic)) {
        return refuse("is not in the function's allow list (allow.forward)".to_owned());
    }
    if publication.retain && retain.is_some_and(|allowed| !matches(allowed, topic)) {
        return refuse("may not be retained: it is not in the function's allow list (allow.retain)".to_owned());
    }
    Ok(())
}

/// The first level of a topic, if upstream it is the board's own. Slashes before it do not hide it: a prefix may end without one.
pub fn own_level(topic: &str) -> Option<&str> {
    let level = topic.trim_start_matches('/').split('/').next()?;
    OWN_LEVELS.contains(&level).then_some(level)
}

fn matches(allowed: &[TopicFilter], topic: &str) -> bool {
    allowed.iter().any(|filter| filter.matches(topic))
}

fn check_content_type(content_type: Option<&str>, of: impl FnOnce() -> String) -> Result<(), Failure> {
    let Some(content_type) = content_type.filter(|it| !is_content_type(it)) else { return Ok(()) };
    let why = "a content type is printable ASCII of at most 255 bytes";
    let detail = format!("content type {} of {}: {why}", shown(content_type), of());
    Err(Failure { code: FailureCode::InvalidContentType, detail })
}

/// Statuses that end an exchange.
const STATUSES: std::ops::RangeInclusive<u16> = 200..=599;

fn check_reply(reply: &Reply) -> Result<(), Failure> {
    if !STATUSES.contains(&reply.status) {
        let detail = format!("a reply has status {}: use {} to {}", reply.status, STATUSES.start(), STATUSES.end());
        return Err(Failure { code: FailureCode::InvalidReply, detail });
    }
    check_content_type(reply.content_type.as_deref(), || format!("a reply with status {}", reply.status))
}

/// A request has one answer.
pub(crate) fn check_one_reply(outputs: &[Output]) -> Result<(), Failure> {
    let replies = outputs.iter().filter(|output| matches!(output, Output::Reply(_))).count();
    if replies <= 1 {
        return Ok(());
    }
    Err(Failure { code: FailureCode::InvalidReply, detail: format!("{replies} replies, and a request has one answer") })
}

/// An output names a sink that the board does not have. `known`: those that it has.
pub(crate) fn no_sink<'a>(sink: &str, known: impl Iterator<Item = &'a str>) -> Failure {
    let known = known.collect::<Vec<_>>().join(", ");
    let known = if known.is_empty() { "none".to_owned() } else { known };
    let detail = format!("this board has no sink {}; its configuration has {known}", shown(sink));
    Failure { code: FailureCode::NotAvailable, detail }
}

/// A forward names the local broker.
pub(crate) fn forward_to_local(topic: &str) -> Failure {
    let detail = format!("the forward to {} names sink \"local\", the local broker: publish it instead", shown(topic));
    Failure { code: FailureCode::NotAvailable, detail }
}

/// Whether every receiver can be sent this content type: an MQTT string and the value of an HTTP header.
pub fn is_content_type(text: &str) -> bool {
    text.len() <= MAX_CONTENT_TYPE_BYTES && text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// Fails if the topic is not one below this prefix: the lengths and slashes of both count.
pub(crate) fn check_prefixed(prefix: &str, topic: &str) -> Result<(), Failure> {
    topic::validate_prefixed(prefix, topic).map_err(|error| {
        let detail = format!("{} with the prefix {} of its sink: {error}", shown(topic), shown(prefix));
        Failure { code: FailureCode::InvalidTopic, detail }
    })
}

/// Shows the beginning of a text, which is enough to find it by.
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
        let publish = ["derived/#", "sedge/#", "+/state"].map(|filter| filter.parse().unwrap()).into();
        let permits = Permits::new(&Allow { publish, ..Allow::default() }, "sedge");
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
        check(&alert(256), "sedge", &[], None, None).unwrap();
        let failure = check(&alert(257), "sedge", &[], None, None).unwrap_err();
        assert_eq!(failure.code, FailureCode::AlertKeyTooLong);
        assert_eq!(failure.detail, "an alert's key has 257 bytes, the limit is 256");
    }

    #[test]
    fn a_topic_must_be_a_name() {
        for topic in ["", "derived/#", "derived/+", "derived/\0", &"derived/x".repeat(8000)] {
            check_publish(topic, Some(FailureCode::InvalidTopic));
            let permits = Permits::new(&Allow::default(), "sedge");
            assert!(permits.check(&[Output::Forward(publication(topic))]).is_err(), "{topic:?}");
        }
        let permits = Permits::new(&Allow::default(), "sedge");
        permits.check(&[Output::Forward(publication("anything/upstream"))]).unwrap();
    }

    #[test]
    fn alerts_and_forwards_may_name_a_sink_and_publications_not() {
        let permits = Permits::new(&Allow { publish: vec!["#".parse().unwrap()], ..Allow::default() }, "sedge");
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
        permits.check(&[Output::Alert(alert)]).unwrap();
        permits.check(&[Output::Forward(Publication { sink: sink.clone(), ..publication("a") })]).unwrap();
        let failure = permits.check(&[Output::Publish(Publication { sink, ..publication("a") })]).unwrap_err();
        assert_eq!(failure.code, FailureCode::NotAvailable);
        assert!(failure.detail.contains("\"a\" names sink \"mail\""), "{}", failure.detail);
    }

    #[test]
    fn a_wake_needs_no_permission_and_a_valid_name() {
        let permits = Permits::new(&Allow::default(), "sedge");
        let check = |name: &str| permits.check(&[Output::Wake(Wake { name: name.into(), after_ms: Some(1) })]);
        check("close").unwrap();
        let failure = check(&"x".repeat(9000)).unwrap_err();
        assert_eq!(failure.code, FailureCode::InvalidWake);
        assert!(failure.detail.contains("9000 bytes"), "{}", failure.detail);
    }

    #[test]
    fn a_content_type_that_some_receiver_cannot_be_sent_is_refused_by_name() {
        let permits = Permits::new(&Allow::default(), "sedge");
        let check = |content_type: &str| {
            let content_type = Some(content_type.into());
            permits.check(&[Output::Forward(Publication { content_type, ..publication("t") })])
        };
        for good in ["", "text/plain; charset=utf-8", "application/vnd.x+json", &"x".repeat(255)] {
            check(good).unwrap();
        }
        for bad in ["a\0b", "a\nb", "a\tb", "text/pläin", "\u{7f}", &"x".repeat(256), &"x".repeat(70_000)] {
            let failure = check(bad).unwrap_err();
            assert_eq!(failure.code, FailureCode::InvalidContentType, "{bad:?}");
            assert!(failure.detail.starts_with("content type \"") && failure.detail.len() < 400, "{}", failure.detail);
        }
    }

    #[test]
    fn a_request_has_one_answer_with_a_status_of_http() {
        let permits = Permits::new(&Allow::default(), "sedge");
        let reply = |status, content_type: Option<&str>| {
            Output::Reply(Reply { status, content_type: content_type.map(Into::into), body: Bytes::new() })
        };
        let check = |outputs: &[Output]| permits.check(outputs).map_err(|failure| failure.code);
        for status in [200, 204, 404, 599] {
            check(&[reply(status, Some("text/plain"))]).unwrap();
        }
        for status in [0, 100, 101, 199, 600, u16::MAX] {
            assert_eq!(check(&[reply(status, None)]), Err(FailureCode::InvalidReply), "{status}");
        }
        assert_eq!(check(&[reply(200, None), reply(201, None)]), Err(FailureCode::InvalidReply));
        assert_eq!(check(&[reply(200, Some("a\r\nset-cookie: b"))]), Err(FailureCode::InvalidContentType));
    }

    fn filters(filters: &[&str]) -> Option<Vec<TopicFilter>> {
        Some(filters.iter().map(|filter| filter.parse().unwrap()).collect())
    }

    #[track_caller]
    fn check_forward(forward: Option<Vec<TopicFilter>>, topic: &str, expected: Option<&str>) {
        let permits = Permits::new(&Allow { forward, ..Allow::default() }, "sedge");
        let failure = permits.check(&[Output::Forward(publication(topic))]).err();
        let found = failure.as_ref().map(|failure| (failure.code, &*failure.detail));
        match expected {
            None => assert_eq!(found, None, "{topic}"),
            Some(part) => assert!(
                found.is_some_and(|(code, it)| code == FailureCode::NotAllowed && it.contains(part)),
                "{found:?}"
            ),
        }
    }

    #[test]
    fn a_forward_cannot_forge_what_the_board_says_upstream() {
        for level in OWN_LEVELS {
            for allowed in [None, filters(&["#"]), filters(&["+/#", "/#"])] {
                for topic in
                    [level.to_owned(), format!("{level}/victim"), format!("/{level}/victim"), format!("//{level}")]
                {
                    check_forward(allowed.clone(), &topic, Some(&format!("{level}/ is the board's own")));
                }
                check_forward(allowed.clone(), &format!("{level}s/victim"), None);
                check_forward(allowed, &format!("plant/{level}"), None);
            }
        }
    }

    #[test]
    fn forwards_go_where_the_manifest_says() {
        check_forward(None, "any/topic", None);
        check_forward(filters(&["raw/#"]), "raw/1", None);
        check_forward(filters(&["raw/#"]), "other/1", Some("allow.forward"));
        check_forward(filters(&[]), "raw/1", Some("allow.forward"));
    }

    #[test]
    fn only_listed_topics_are_retained() {
        let allow = Allow { publish: filters(&["a/#"]).unwrap(), retain: filters(&["a/last"]), ..Allow::default() };
        let permits = Permits::new(&allow, "sedge");
        for (topic, retain, is_allowed) in [("a/last", true, true), ("a/b", true, false), ("a/b", false, true)] {
            let publication = Publication { retain, ..publication(topic) };
            for output in [Output::Publish(publication.clone()), Output::Forward(publication.clone())] {
                assert_eq!(permits.check(&[output]).is_ok(), is_allowed, "{topic} {retain}");
            }
        }
        let permits = Permits::new(&Allow { retain: None, ..allow }, "sedge");
        permits.check(&[Output::Publish(Publication { retain: true, ..publication("a/b") })]).unwrap();
    }

    #[test]
    fn the_slashes_and_bytes_of_the_prefix_count() {
        check_prefixed("a/", &"/".repeat(199)).unwrap();
        assert!(check_prefixed("a/", &"/".repeat(200)).is_err());
        assert!(check_prefixed("a/", &"x".repeat(65_533)).is_ok());
        assert!(check_prefixed("a/", &"x".repeat(65_534)).is_err());
    }
}
