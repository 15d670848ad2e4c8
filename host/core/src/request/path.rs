//! Path and query of a request, decoded once: what is compared with permissions is what functions see.

use std::fmt::Write as _;

use super::TOPIC;

/// Levels of a path at most.
const MAX_SEGMENTS: usize = 32;
/// Longest path and query, as they were sent.
pub const MAX_TARGET_BYTES: usize = 4096;

/// Why a target is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    #[error("the path does not begin with a slash")]
    NoSlash,
    #[error("a % is not followed by two digits of hex")]
    Escape,
    #[error("the decoded text is not UTF-8, or contains a control character or a noncharacter")]
    Text,
    #[error("more than {MAX_SEGMENTS} levels in the path")]
    TooDeep,
    #[error("path and query are longer than {MAX_TARGET_BYTES} bytes")]
    TooLong,
}

/// A path as its decoded segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestPath(Vec<String>);

impl RequestPath {
    pub fn parse(raw: &str) -> Result<Self, BadRequest> {
        if raw.len() > MAX_TARGET_BYTES {
            return Err(BadRequest::TooLong);
        }
        let segments: Vec<&str> = raw.strip_prefix('/').ok_or(BadRequest::NoSlash)?.split('/').collect();
        if segments.len() > MAX_SEGMENTS {
            return Err(BadRequest::TooDeep);
        }
        segments.into_iter().map(|segment| decode(segment, false)).collect::<Result<_, _>>().map(Self)
    }

    pub fn segments(&self) -> &[String] {
        &self.0
    }

    /// Topic of the message. What cannot stand in a level, and the sign of the encoding itself, is percent-encoded.
    pub fn topic(&self) -> String {
        let mut topic = String::from(TOPIC);
        for segment in &self.0 {
            topic.push('/');
            for char in segment.chars() {
                match char {
                    '%' | '+' | '#' | '/' => drop(write!(topic, "%{:02X}", u32::from(char))),
                    _ => topic.push(char),
                }
            }
        }
        topic
    }
}

/// One path, or all below one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathScope {
    path: RequestPath,
    has_more: bool,
}

impl PathScope {
    /// Reads a path, or one with `*` as its last level. `None`: it is neither.
    pub fn parse(text: &str) -> Option<Self> {
        let mut path = RequestPath::parse(text).ok()?;
        let has_more = path.0.pop_if(|last| last == "*").is_some();
        (!path.0.iter().any(|segment| segment.contains('*'))).then_some(Self { path, has_more })
    }

    /// `/*`: all paths.
    pub fn all() -> Self {
        Self { path: RequestPath(Vec::new()), has_more: true }
    }

    pub fn covers(&self, path: &RequestPath) -> bool {
        match self.has_more {
            true => path.0.len() > self.path.0.len() && path.0.starts_with(&self.path.0),
            false => *path == self.path,
        }
    }
}

/// Reads the names and values of a query.
pub fn parse_query(raw: &str) -> Result<Vec<(String, String)>, BadRequest> {
    if raw.len() > MAX_TARGET_BYTES {
        return Err(BadRequest::TooLong);
    }
    let pairs = raw.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name, true)?, decode(value, true)?))
        })
        .collect()
}

/// `form`: a plus sign is a space.
fn decode(raw: &str, form: bool) -> Result<String, BadRequest> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16)).ok_or(BadRequest::Escape);
                let (high, low) = (digit()?, digit()?);
                bytes.push((high << 4 | low) as u8);
            }
            b'+' if form => bytes.push(b' '),
            _ => bytes.push(byte),
        }
    }
    let text = String::from_utf8(bytes).map_err(|_| BadRequest::Text)?;
    match text.chars().any(|c| c.is_control() || crate::topic::is_noncharacter(c)) {
        true => Err(BadRequest::Text),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_topic(raw: &str, expected: &str) {
        let topic = RequestPath::parse(raw).unwrap().topic();
        assert_eq!(topic, expected);
        crate::topic::validate_name(&topic).unwrap();
    }

    #[test]
    fn a_path_is_a_topic_whatever_it_contains() {
        check_topic("/", "$http/");
        check_topic("/readings/kitchen", "$http/readings/kitchen");
        check_topic("/k%C3%BCche/a%20b", "$http/küche/a b");
        check_topic("/a%2Fb/%2b/%23/+/%25", "$http/a%2Fb/%2B/%23/%2B/%25");
        check_topic("/%2525", "$http/%2525");
        check_topic("//x/", "$http//x/");
    }

    #[test]
    fn two_paths_with_different_segments_have_different_topics() {
        let topic = |raw: &str| RequestPath::parse(raw).unwrap().topic();
        for (one, other) in [("/a/b", "/a%2Fb"), ("/%25", "/%2525"), ("/%2B", "/%252B"), ("/a", "/a/")] {
            assert_ne!(topic(one), topic(other), "{one} {other}");
        }
        assert_eq!(topic("/%61"), topic("/a"), "one path, written in two ways");
    }

    #[test]
    fn bad_paths_are_refused_with_a_reason() {
        for (raw, expected) in [
            ("a", BadRequest::NoSlash),
            ("/%", BadRequest::Escape),
            ("/%4", BadRequest::Escape),
            ("/%4x", BadRequest::Escape),
            ("/%+4", BadRequest::Escape),
            ("/%ff", BadRequest::Text),
            ("/%00", BadRequest::Text),
            ("/%0a", BadRequest::Text),
            ("/%EF%BF%BF", BadRequest::Text),
        ] {
            assert_eq!(RequestPath::parse(raw), Err(expected), "{raw}");
        }
        assert_eq!(RequestPath::parse(&"/a".repeat(33)), Err(BadRequest::TooDeep));
        assert_eq!(RequestPath::parse(&format!("/{}", "a".repeat(5000))), Err(BadRequest::TooLong));
    }

    #[test]
    fn a_scope_is_compared_with_the_decoded_path() {
        let covers =
            |scope: &str, path: &str| PathScope::parse(scope).unwrap().covers(&RequestPath::parse(path).unwrap());
        assert!(covers("/readings/*", "/readings/a") && covers("/readings/*", "/readings/a/b"));
        assert!(covers("/readings/*", "/%72eadings/a"));
        assert!(!covers("/readings/*", "/readings") && !covers("/readings/*", "/readings2/a"));
        assert!(!covers("/readings/*", "/readings%2Fa"), "one level");
        assert!(covers("/github", "/github") && !covers("/github", "/github/"));
        assert!(covers("/*", "/") && covers("/*", "/a/b"));
        assert_eq!(PathScope::parse("/*"), Some(PathScope::all()));
        for bad in ["", "a", "/a*", "/*/b", "/%"] {
            assert_eq!(PathScope::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_query_is_read_as_forms_are_written() {
        let pairs = parse_query("event=up&name=a+b%26c&flag&&x=1=2").unwrap();
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(pairs, [("event", "up"), ("name", "a b&c"), ("flag", ""), ("x", "1=2")]);
        assert_eq!(parse_query(""), Ok(Vec::new()));
        assert_eq!(parse_query("a=%0d%0a"), Err(BadRequest::Text));
    }
}
