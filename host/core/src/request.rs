//! Requests over HTTP as messages, and their answers. No sockets: the source speaks HTTP.
//!
//! A request has the topic `$http/<path>`, its body is the payload, and everything else that a function may see is a property.

pub mod path;
pub mod route;

use bytes::Bytes;

use crate::message::{Failure, FailureCode, Reply};
use crate::store::DeadLetterId;
pub use path::{BadRequest, PathScope, RequestPath, parse_query};
pub use route::HttpRoute;

/// First level of the topics of requests.
pub const TOPIC: &str = "$http";
/// User property with the method of a request.
pub const METHOD_PROPERTY: &str = "sedge-method";
/// Prefixes of user properties: a parameter of the path, a value of the query, a header that the manifest names.
const PATH_PREFIX: &str = "sedge-path-";
const QUERY_PREFIX: &str = "sedge-query-";
const HEADER_PREFIX: &str = "sedge-header-";
/// Header whose value is the message's id.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Body of an answer that is kept for repeats, at most.
pub const KEPT_BODY_BYTES: usize = 4096;
/// Seconds after which a client that was turned away may try again.
const RETRY_AFTER_SECS: u32 = 1;

/// Number of a request, given by the source and never used twice by one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

impl Method {
    pub const ALL: [Self; 5] = [Self::Get, Self::Post, Self::Put, Self::Patch, Self::Delete];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.as_str() == text)
    }
}

/// A request whose sender was let in.
#[derive(Clone, Debug)]
pub struct Request {
    pub id: RequestId,
    pub method: Method,
    pub path: RequestPath,
    pub query: Vec<(String, String)>,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// User properties of the message. `parameters`: of the path. `headers`: those that the function asks for.
    pub(crate) fn properties(&self, parameters: Vec<(&str, &str)>, headers: &[String]) -> Vec<(String, String)> {
        let prefixed = |prefix: &str, name: &str, value: &str| (format!("{prefix}{name}"), value.to_owned());
        let mut properties = vec![(METHOD_PROPERTY.to_owned(), self.method.as_str().to_owned())];
        properties.extend(parameters.into_iter().map(|(name, value)| prefixed(PATH_PREFIX, name, value)));
        properties.extend(self.query.iter().map(|(name, value)| prefixed(QUERY_PREFIX, name, value)));
        let asked = |(name, _): &&(String, String)| headers.contains(name);
        properties.extend(self.headers.iter().filter(asked).map(|(name, value)| prefixed(HEADER_PREFIX, name, value)));
        properties
    }
}

/// Answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub content_type: Option<Box<str>>,
    pub body: Bytes,
    /// Seconds after which the client may try again.
    pub retry_after_secs: Option<u32>,
    /// Methods that the path takes.
    pub allow: Option<Box<str>>,
    /// Where the message can be found that could not be processed.
    pub dead_letter: Option<DeadLetterId>,
}

impl Response {
    /// Everything that came of the request is on disk, and the function has nothing to say.
    pub const DONE: Self = Self::empty(204);
    /// The message is on disk and is run later.
    pub const LATER: Self = Self::empty(202);

    const fn empty(status: u16) -> Self {
        Self { status, content_type: None, body: Bytes::new(), retry_after_secs: None, allow: None, dead_letter: None }
    }

    /// An answer of the board itself: one line of text.
    pub fn text(status: u16, text: impl Into<String>) -> Self {
        let mut text = text.into();
        text.push('\n');
        Self { content_type: Some("text/plain; charset=utf-8".into()), body: text.into(), ..Self::empty(status) }
    }

    /// Nothing was done, and a later try may succeed.
    pub fn unavailable(why: &str) -> Self {
        Self { retry_after_secs: Some(RETRY_AFTER_SECS), ..Self::text(503, why) }
    }

    pub(crate) fn reply(reply: Reply) -> Self {
        let Reply { status, content_type, body } = reply;
        // A client reads none after these (RFC 9110, section 6.4.1).
        let body = if matches!(status, 204 | 205 | 304) { Bytes::new() } else { body };
        Self { content_type, body, ..Self::empty(status) }
    }

    /// What to say of a message that was not processed, and whether it becomes a dead letter: not where the client knows that
    /// nothing was done.
    pub(crate) fn failure(failure: &Failure) -> (Self, bool) {
        // What it says of a dead letter does not concern the client.
        let detail = failure.detail.split("; the dead letter").next().unwrap_or_default();
        let text = format!("{}: {detail}", failure.code.as_str());
        match failure.code {
            FailureCode::Rejected => (Self::text(422, failure.detail.clone()), true),
            FailureCode::Quarantined | FailureCode::OverShare | FailureCode::RetriesExhausted => {
                (Self::unavailable(&text), false)
            }
            FailureCode::Removed => (Self::text(404, text), false),
            FailureCode::PayloadTooLarge => (Self::text(413, text), false),
            FailureCode::TopicTooLong => (Self::text(414, text), false),
            FailureCode::TooManyProperties => (Self::text(431, text), false),
            FailureCode::TooManyHops => (Self::text(508, text), true),
            _ => (Self::text(500, text), true),
        }
    }

    /// The answer for repeats: without a body that is too long to be kept.
    pub(crate) fn kept(&self) -> Self {
        if self.body.len() <= KEPT_BODY_BYTES {
            return self.clone();
        }
        Self { content_type: None, body: Bytes::new(), ..self.clone() }
    }

    /// Memory of the answer, and about its size on disk.
    pub fn bytes(&self) -> usize {
        self.body.len() + self.content_type.as_ref().map_or(0, |kind| kind.len()) + RESPONSE_BYTES
    }
}

const RESPONSE_BYTES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_becomes_properties_that_no_other_part_of_it_can_name() {
        let request = Request {
            id: RequestId(1),
            method: Method::Post,
            path: RequestPath::parse("/readings/kitchen").unwrap(),
            query: vec![("unit".into(), "C".into())],
            headers: vec![("x-a".into(), "1".into()), ("cookie".into(), "secret".into())],
            body: Bytes::new(),
        };
        let pairs = request.properties(vec![("sensor", "kitchen")], &["x-a".into()]);
        let text: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let expected = ["sedge-method=POST", "sedge-path-sensor=kitchen", "sedge-query-unit=C", "sedge-header-x-a=1"];
        assert_eq!(text, expected);
    }

    #[test]
    fn an_answer_without_content_has_no_body() {
        let reply = |status| Reply { status, content_type: None, body: Bytes::from_static(b"x") };
        assert!(Response::reply(reply(204)).body.is_empty());
        assert_eq!(&Response::reply(reply(201)).body[..], b"x");
    }

    #[test]
    fn a_long_body_is_not_kept_in_part() {
        let response = |bytes: usize| Response { body: vec![b'x'; bytes].into(), ..Response::text(200, "") };
        assert_eq!(response(KEPT_BODY_BYTES).kept(), response(KEPT_BODY_BYTES));
        assert!(response(KEPT_BODY_BYTES + 1).kept().body.is_empty());
    }
}
