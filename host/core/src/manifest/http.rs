//! `http` and `http_headers`: requests that wake the function, and what it gets of them.

use super::Manifest;
use crate::config::document::Item;
use crate::config::problem::{Invalid, Problems};
use crate::config::reader::{Read, Section, parsed};
use crate::request::{HttpRoute, TOPIC};

/// Routes of one function. Each request is compared with each.
const MAX_ROUTES: usize = 16;
const MAX_HEADERS: usize = 16;

/// Headers that hold secrets, which must not get into dead letters, and those that have another place in the message.
const NEVER: [&str; 6] =
    ["authorization", "proxy-authorization", "cookie", "content-type", "content-length", "transfer-encoding"];

impl Manifest {
    /// Whether requests of this topic may be for the function.
    pub(super) fn takes_requests(&self, topic: &str) -> bool {
        topic.starts_with(TOPIC) && self.http.iter().any(|route| route.filter().matches(topic))
    }

    /// The first pair of routes of two functions that one request could match.
    pub fn overlapping_route<'a>(&'a self, other: &'a Self) -> Option<(&'a HttpRoute, &'a HttpRoute)> {
        let mut pairs = self.http.iter().flat_map(|own| other.http.iter().map(move |their| (own, their)));
        pairs.find(|(own, their)| own.overlaps(their))
    }
}

pub(super) fn read(section: &mut Section<'_, '_>, manifest: &mut Manifest) {
    section.value("http", &mut manifest.http);
    for (n, route) in manifest.http.iter().enumerate() {
        if let Some(earlier) = manifest.http[..n].iter().find(|earlier| earlier.overlaps(route)) {
            let invalid = Invalid::new(format!("{route} and {earlier} could both match one request"));
            section.error_in("http", n, invalid.hint("remove one, or give it another path"));
        }
    }
    if manifest.http.len() > MAX_ROUTES {
        let invalid = Invalid::new(format!("{} routes, the limit is {MAX_ROUTES}", manifest.http.len()));
        section.error("http", invalid.hint("use parameters, or split the function"));
    }
    section.value("http_headers", &mut manifest.http_headers);
    for (n, name) in manifest.http_headers.iter().enumerate() {
        if let Err(invalid) = check_header(name) {
            section.error_in("http_headers", n, invalid);
        }
    }
    if manifest.http_headers.len() > MAX_HEADERS {
        let invalid = Invalid::new(format!("{} headers, the limit is {MAX_HEADERS}", manifest.http_headers.len()));
        section.error("http_headers", invalid.hint("name those that the function reads"));
    }
    if section.has("http_headers") && !section.has("http") {
        let invalid = Invalid::new("the function is not woken by requests over HTTP");
        section.error("http_headers", invalid.hint("add http = [\"POST /path\"], or remove it"));
    }
}

fn check_header(name: &str) -> Result<(), Invalid> {
    if NEVER.contains(&name) {
        let invalid = Invalid::new(format!("{name:?} is not given to functions"));
        return Err(
            invalid.hint("remove it; the content type is that of the message, and tokens are checked by the board")
        );
    }
    let is_name = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
    match (1..=64).contains(&name.len()) && name.bytes().all(is_name) {
        true => Ok(()),
        false => {
            let invalid = Invalid::new(format!("{name:?} is not the name of a header in lower case"));
            Err(invalid.hint("for example http_headers = [\"x-github-event\"]"))
        }
    }
}

impl Read for HttpRoute {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        parsed(item, key, problems, |text| {
            text.parse().map_err(|error: crate::request::route::RouteError| Invalid::new(error.to_string()))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(lines: &str) -> Result<Manifest, String> {
        let text = format!("name = \"a\"\nversion = \"1\"\n{lines}");
        Manifest::from_toml(&text, Path::new("function.toml"), None).map_err(|problems| problems.to_string())
    }

    #[test]
    fn a_function_may_have_requests_alone() {
        let manifest = read("http = [\"POST /readings/{sensor}\"]\nhttp_headers = [\"x-github-event\"]").unwrap();
        assert!(manifest.hears("$http/readings/kitchen") && !manifest.hears("$http/readings"));
        assert!(!manifest.hears("readings/kitchen"));
        let json = manifest.to_json();
        assert_eq!(Manifest::from_json(&json, None).unwrap(), manifest);
        assert!(!String::from_utf8(read("every = \"1s\"").unwrap().to_json()).unwrap().contains("http"));
    }

    #[test]
    fn problems_name_the_line_and_the_fix() {
        for (lines, named) in [
            ("http = [\"POST readings\"]", "does not begin with /"),
            ("http = [\"POST /a/{x}\", \"POST /a/b\"]", "could both match one request"),
            ("http = [\"GET /a\"]\nhttp_headers = [\"Authorization\"]", "not the name of a header in lower case"),
            ("http = [\"GET /a\"]\nhttp_headers = [\"authorization\"]", "is not given to functions"),
            ("every = \"1s\"\nhttp_headers = [\"x-a\"]", "is not woken by requests"),
            ("subscribe = [\"$http/a\"]", "$http topics never come from the broker"),
            ("http = []", "the function would never run"),
        ] {
            let error = read(lines).unwrap_err();
            assert!(error.contains(named), "{lines}: {error}");
        }
    }

    #[test]
    fn overlapping_routes_of_two_functions_are_found() {
        let one = read("http = [\"GET /x\", \"POST /a/{x}\"]").unwrap();
        let other = read("http = [\"POST /a/b\"]").unwrap();
        let (own, their) = one.overlapping_route(&other).unwrap();
        assert_eq!((own.to_string(), their.to_string()), ("POST /a/{x}".into(), "POST /a/b".into()));
        assert!(other.overlapping_route(&read("http = [\"GET /a/b\"]").unwrap()).is_none());
    }
}
