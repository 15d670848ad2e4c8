//! `[http_trigger]`: requests over HTTP that wake functions, and who may send them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::PathBuf;

use super::check::Content;
use super::document::{Item, Value};
use super::problem::{Invalid, Problems};
use super::reader::{Read, Section, parsed};
use super::{nz16, nz32};
use crate::request::PathScope;

#[derive(Clone, Debug, PartialEq)]
pub struct HttpTrigger {
    /// `None` (`listen = "off"`): no port.
    pub listen: Option<SocketAddr>,
    /// Certificate chain and key in PEM. `None`: without TLS.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub max_body_bytes: NonZeroU32,
    /// Requests that are not answered.
    pub max_requests: NonZeroU16,
    /// Without any, everyone may send requests, and only from this machine.
    pub tokens: BTreeMap<String, HttpToken>,
    pub signatures: BTreeMap<String, HttpSignature>,
}

/// A secret that a client sends with each request.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpToken {
    pub file: PathBuf,
    pub paths: Vec<PathScope>,
    pub requests_per_sec: NonZeroU32,
    pub burst: NonZeroU32,
    /// Whether it may stand in the query, as `token=...`.
    pub in_query: bool,
}

/// Paths whose requests are signed with HMAC-SHA256 over the body.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpSignature {
    pub file: PathBuf,
    pub paths: Vec<PathScope>,
    /// In lower case.
    pub header: String,
}

impl Default for HttpTrigger {
    fn default() -> Self {
        Self {
            listen: None,
            cert_file: None,
            key_file: None,
            max_body_bytes: nz32(64 << 10),
            max_requests: nz16(64),
            tokens: BTreeMap::new(),
            signatures: BTreeMap::new(),
        }
    }
}

impl Default for HttpToken {
    fn default() -> Self {
        Self {
            file: PathBuf::new(),
            paths: vec![PathScope::all()],
            requests_per_sec: nz32(10),
            burst: nz32(20),
            in_query: false,
        }
    }
}

impl Default for HttpSignature {
    fn default() -> Self {
        Self { file: PathBuf::new(), paths: Vec::new(), header: "x-hub-signature-256".into() }
    }
}

/// Tokens and signatures, each. A request may be compared with each.
const MOST_SECRETS: usize = 64;

pub(super) fn read(section: &mut Section<'_, '_>, trigger: &mut HttpTrigger, max_payload_bytes: NonZeroU32) {
    section.or_off("listen", &mut trigger.listen);
    certificate(section, &mut trigger.cert_file, &mut trigger.key_file);
    let is_set = section.value("max_body_bytes", &mut trigger.max_body_bytes);
    if trigger.max_body_bytes > max_payload_bytes && !is_set {
        trigger.max_body_bytes = max_payload_bytes;
    } else if trigger.max_body_bytes > max_payload_bytes {
        let invalid = Invalid::new(format!(
            "{} is above mqtt.max_payload_bytes ({max_payload_bytes}), the limit of every message",
            trigger.max_body_bytes
        ));
        section.error("max_body_bytes", invalid.hint("lower it, or raise max_payload_bytes"));
    }
    section.value("max_requests", &mut trigger.max_requests);
    section.section("tokens", |tokens| named(tokens, "meters", &mut trigger.tokens, token));
    section.section("signatures", |signatures| named(signatures, "github", &mut trigger.signatures, signature));
    check_access(section, trigger);
}

/// The certificate of a server, and its key.
pub(super) fn certificate(section: &mut Section<'_, '_>, cert: &mut Option<PathBuf>, key: &mut Option<PathBuf>) {
    section.file("cert_file", cert, Content::Certificate);
    section.file("key_file", key, Content::PrivateKey);
    for (one, other) in [("cert_file", "key_file"), ("key_file", "cert_file")] {
        if section.has(one) && !section.has(other) {
            section.error(one, Invalid::new(format!("{other} is missing")).hint("TLS needs both files"));
        }
    }
}

/// Reads sections by their names. `example`: the name of one that the file need not have, so that its keys are known.
fn named<T: Default>(
    section: &mut Section<'_, '_>,
    example: &str,
    into: &mut BTreeMap<String, T>,
    read: impl Fn(&mut Section<'_, '_>, bool, &mut T),
) {
    let entries = section.entries();
    if entries.is_empty() {
        section.section(example, |section| read(section, false, &mut T::default()));
    }
    for (name, item) in entries {
        let mut value = T::default();
        section.section(name, |section| read(section, matches!(item.value, Value::Table(_)), &mut value));
        into.insert(name.to_owned(), value);
    }
    if into.len() > MOST_SECRETS {
        let invalid = Invalid::new(format!("{} are too many", into.len()));
        section.error("", invalid.hint(format!("use at most {MOST_SECRETS}: a request may be compared with each")));
    }
}

/// `exists`: whether the file has such a section.
fn token(section: &mut Section<'_, '_>, exists: bool, token: &mut HttpToken) {
    secret_file(section, exists, &mut token.file);
    section.value("paths", &mut token.paths);
    section.value("requests_per_sec", &mut token.requests_per_sec);
    section.value("burst", &mut token.burst);
    section.value("in_query", &mut token.in_query);
}

fn signature(section: &mut Section<'_, '_>, exists: bool, signature: &mut HttpSignature) {
    secret_file(section, exists, &mut signature.file);
    section.value("paths", &mut signature.paths);
    if exists {
        section.require("paths", "[\"/github\"]");
    }
    section.parse("header", &mut signature.header, |text| {
        let lower = text.to_ascii_lowercase();
        match http::HeaderName::from_bytes(lower.as_bytes()) {
            Ok(_) => Ok(lower),
            Err(_) => {
                Err(Invalid::new(format!("{text:?} is not the name of a header")).hint("for example X-Signature"))
            }
        }
    });
}

fn secret_file(section: &mut Section<'_, '_>, exists: bool, file: &mut PathBuf) {
    if section.value("file", file) {
        section.names_file("file", None, file, Content::Token);
    }
    if exists {
        section.require("file", "\"/etc/sedge/http-token\"");
    }
}

fn check_access(section: &mut Section<'_, '_>, trigger: &HttpTrigger) {
    let Some(listen) = trigger.listen.filter(|listen| !listen.ip().is_loopback()) else { return };
    if trigger.tokens.is_empty() && trigger.signatures.is_empty() {
        let invalid = Invalid::new(format!("{listen} can be reached from other machines, and no token is required"));
        let hint = format!("add [http_trigger.tokens.NAME] with a file, or use 127.0.0.1:{}", listen.port());
        section.error("listen", invalid.hint(hint));
    } else if !trigger.tokens.is_empty() && trigger.cert_file.is_none() {
        let invalid = Invalid::new("without TLS, tokens can be read on the way");
        section.warn("listen", invalid.hint("set cert_file and key_file, unless the network is trusted"));
    }
}

impl Read for PathScope {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        parsed(item, key, problems, |text| {
            Self::parse(text).ok_or_else(|| {
                let invalid = Invalid::new(format!("{text:?} is not a path"));
                invalid.hint("write one path, such as \"/github\", or all below one: \"/readings/*\"")
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn problems(lines: &str) -> (HttpTrigger, Vec<String>) {
        let (config, problems) = Config::parse(&format!("[http_trigger]\n{lines}"), Path::new("sedge.toml"));
        (config.http_trigger, problems.iter().map(ToString::to_string).collect())
    }

    #[track_caller]
    fn check(lines: &str, named: &[&str]) {
        let (_, problems) = problems(lines);
        assert_eq!(problems.len(), named.len(), "{problems:#?}");
        for (problem, named) in problems.iter().zip(named) {
            assert!(problem.contains(named), "{problem}");
        }
    }

    #[test]
    fn it_is_off_and_without_a_token_only_for_this_machine() {
        assert_eq!(problems("").0.listen, None);
        check("listen = \"127.0.0.1:8080\"", &[]);
        check("listen = \"[::1]:8080\"", &[]);
        let fix = "no token is required; add [http_trigger.tokens.NAME] with a file, or use 127.0.0.1:8080";
        check("listen = \"0.0.0.0:8080\"", &[fix]);
        check("listen = \"0.0.0.0:8080\"\ntokens.a.file = \"t\"", &["tokens can be read on the way"]);
        check("listen = \"0.0.0.0:8080\"\nsignatures.g = { file = \"t\", paths = [\"/github\"] }", &[]);
        let tls = "cert_file = \"c\"\nkey_file = \"k\"";
        check(&format!("listen = \"0.0.0.0:8080\"\ntokens.a.file = \"t\"\n{tls}"), &[]);
    }

    #[test]
    fn tokens_and_signatures_are_read() {
        let (trigger, found) = problems(
            "listen = \"127.0.0.1:1\"\n[http_trigger.tokens.meters]\nfile = \"t\"\npaths = [\"/readings/*\"]\nrequests_per_sec = 2\n\
             burst = 5\nin_query = true\n[http_trigger.signatures.s]\nfile = \"k\"\npaths = [\"/s\"]\nheader = \"X-Signature\"",
        );
        assert_eq!(found, [""; 0]);
        let token = &trigger.tokens["meters"];
        assert_eq!((token.requests_per_sec.get(), token.burst.get(), token.in_query), (2, 5, true));
        assert_eq!(token.paths, [PathScope::parse("/readings/*").unwrap()]);
        assert_eq!(trigger.signatures["s"].header, "x-signature");
    }

    #[test]
    fn problems_name_the_fix() {
        check("cert_file = \"c\"", &["key_file is missing"]);
        check("max_body_bytes = 300_000", &["above mqtt.max_payload_bytes (262144)"]);
        check("tokens.a.paths = [\"x\"]", &["file: missing", "\"x\" is not a path"]);
        check("signatures.a.file = \"x\"", &["paths: missing"]);
        check("signatures.a = { file = \"x\", paths = [\"/\"], header = \"a b\" }", &["is not the name of a header"]);
    }
}
