//! Requests that wake a function, as its manifest names them: `POST /readings/{sensor}`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::{Method, RequestPath, TOPIC};
use crate::topic::TopicFilter;

const MAX_BYTES: usize = 256;
const MAX_SEGMENTS: usize = 16;
const MAX_PARAMETER_BYTES: usize = 32;

/// A method and a pattern of paths.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct HttpRoute {
    text: Arc<str>,
    method: Method,
    segments: Arc<[Segment]>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Segment {
    Literal(Box<str>),
    Parameter(Box<str>),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    #[error("{0:?} has no method: write for example \"POST /readings/{{sensor}}\"")]
    NoMethod(String),
    #[error("{0:?} is not a method: use GET, POST, PUT, PATCH or DELETE")]
    Method(String),
    #[error("the path {0:?} does not begin with /")]
    NoSlash(String),
    #[error("more than {MAX_BYTES} bytes or {MAX_SEGMENTS} levels")]
    TooLong,
    #[error("{0:?} is not a level: use letters, digits and - _ . ~, or a parameter such as {{sensor}}")]
    Segment(String),
    #[error("{0:?} is not the name of a parameter: use 1 to {MAX_PARAMETER_BYTES} of a-z, 0-9, - and _")]
    Parameter(String),
    #[error("the parameter {0:?} is named twice")]
    Twice(String),
}

impl HttpRoute {
    pub fn method(&self) -> Method {
        self.method
    }

    /// Topics of the requests.
    pub fn filter(&self) -> TopicFilter {
        let mut text = String::from(TOPIC);
        for segment in &*self.segments {
            text.push('/');
            text.push_str(match segment {
                Segment::Literal(literal) => literal,
                Segment::Parameter(_) => "+",
            });
        }
        text.parse().expect("levels of a route are levels of a filter")
    }

    pub(crate) fn has_parameters(&self) -> bool {
        self.segments.iter().any(|segment| matches!(segment, Segment::Parameter(_)))
    }

    /// The parameters of a path, with their names, if it matches. A parameter is not empty.
    pub fn parameters<'a>(&'a self, path: &'a RequestPath) -> Option<Vec<(&'a str, &'a str)>> {
        if path.segments().len() != self.segments.len() {
            return None;
        }
        let mut parameters = Vec::new();
        for (segment, given) in self.segments.iter().zip(path.segments()) {
            match segment {
                Segment::Literal(literal) if **literal == **given => {}
                Segment::Parameter(name) if !given.is_empty() => parameters.push((&**name, &**given)),
                _ => return None,
            }
        }
        Some(parameters)
    }

    /// Whether some request matches both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let meet = |(one, other): (&Segment, &Segment)| match (one, other) {
            (Segment::Literal(one), Segment::Literal(other)) => one == other,
            (Segment::Literal(literal), _) | (_, Segment::Literal(literal)) => !literal.is_empty(),
            _ => true,
        };
        self.method == other.method
            && self.segments.len() == other.segments.len()
            && self.segments.iter().zip(&*other.segments).all(meet)
    }
}

impl FromStr for HttpRoute {
    type Err = RouteError;

    fn from_str(text: &str) -> Result<Self, RouteError> {
        let Some((method, path)) = text.split_once(' ') else { return Err(RouteError::NoMethod(text.into())) };
        let method = Method::parse(method).ok_or_else(|| RouteError::Method(method.into()))?;
        let Some(rest) = path.strip_prefix('/') else { return Err(RouteError::NoSlash(path.into())) };
        let segments: Vec<Segment> = rest.split('/').map(segment).collect::<Result<_, _>>()?;
        if text.len() > MAX_BYTES || segments.len() > MAX_SEGMENTS {
            return Err(RouteError::TooLong);
        }
        // The root is the one path with an empty level.
        if segments.len() > 1 && segments.contains(&Segment::Literal("".into())) {
            return Err(RouteError::Segment(String::new()));
        }
        for (n, segment) in segments.iter().enumerate() {
            if let Segment::Parameter(name) = segment
                && segments[..n].contains(segment)
            {
                return Err(RouteError::Twice(name.to_string()));
            }
        }
        Ok(Self { text: text.into(), method, segments: segments.into() })
    }
}

fn segment(text: &str) -> Result<Segment, RouteError> {
    let Some(name) = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) else {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
        return match text.bytes().all(is_plain) {
            true => Ok(Segment::Literal(text.into())),
            false => Err(RouteError::Segment(text.into())),
        };
    };
    let is_name = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
    match (1..=MAX_PARAMETER_BYTES).contains(&name.len()) && name.bytes().all(is_name) {
        true => Ok(Segment::Parameter(name.into())),
        false => Err(RouteError::Parameter(name.into())),
    }
}

impl fmt::Display for HttpRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for HttpRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

impl Serialize for HttpRoute {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(text: &str) -> HttpRoute {
        text.parse().unwrap()
    }

    #[track_caller]
    fn check(text: &str, path: &str, expected: Option<&[(&str, &str)]>) {
        let (route, path) = (route(text), RequestPath::parse(path).unwrap());
        assert_eq!(route.parameters(&path).as_deref(), expected, "{text}");
        if expected.is_some() {
            assert!(route.filter().matches(&path.topic()), "{text}");
        }
    }

    #[test]
    fn a_route_matches_whole_paths() {
        check("POST /readings/{sensor}", "/readings/kitchen", Some(&[("sensor", "kitchen")]));
        check("POST /readings/{sensor}", "/readings/a%2Fb", Some(&[("sensor", "a/b")]));
        check("POST /readings/{sensor}", "/readings/", None);
        check("POST /readings/{sensor}", "/readings", None);
        check("POST /readings/{sensor}", "/readings/a/b", None);
        check("POST /readings/{sensor}", "/Readings/a", None);
        check("GET /{a}/x/{b}", "/1/x/2", Some(&[("a", "1"), ("b", "2")]));
        check("GET /", "/", Some(&[]));
        check("GET /", "/a", None);
    }

    #[test]
    fn routes_that_one_request_could_match_overlap() {
        let overlap = |one: &str, other: &str| {
            assert_eq!(route(one).overlaps(&route(other)), route(other).overlaps(&route(one)));
            route(one).overlaps(&route(other))
        };
        assert!(overlap("POST /a/{x}", "POST /a/{y}"));
        assert!(overlap("POST /a/{x}", "POST /a/b"));
        assert!(overlap("POST /{x}/b", "POST /a/{y}"));
        assert!(!overlap("POST /a/{x}", "GET /a/{x}"));
        assert!(!overlap("POST /a/{x}", "POST /b/{x}"));
        assert!(!overlap("POST /a", "POST /a/{x}"));
        assert!(!overlap("POST /", "POST /{x}"), "a parameter is not empty");
    }

    #[test]
    fn a_bad_route_says_what_is_wrong() {
        for (text, named) in [
            ("/readings", "no method"),
            ("post /readings", "\"post\" is not a method"),
            ("HEAD /readings", "\"HEAD\" is not a method"),
            ("POST readings", "does not begin with /"),
            ("POST /a//b", "is not a level"),
            ("POST /a/", "is not a level"),
            ("POST /a b", "\"a b\" is not a level"),
            ("POST /a%20b", "is not a level"),
            ("POST /+/#", "\"+\" is not a level"),
            ("POST /x{a}", "\"x{a}\" is not a level"),
            ("POST /{}", "\"\" is not the name of a parameter"),
            ("POST /{A}", "\"A\" is not the name"),
            ("POST /{a}/{a}", "\"a\" is named twice"),
        ] {
            let error = text.parse::<HttpRoute>().unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
        assert_eq!(format!("POST {}", "/a".repeat(17)).parse::<HttpRoute>(), Err(RouteError::TooLong));
        assert_eq!(format!("POST /{}", "a".repeat(300)).parse::<HttpRoute>(), Err(RouteError::TooLong));
    }
}
