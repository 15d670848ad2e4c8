//! Who may send a request: a token for its path within its rate, a signature over its body, or anyone on this machine.

use std::cell::Cell;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, header};
use ring::hmac;

use super::TriggerError;
use super::secrets::{self, Comparer, Secret};
use sedge_core::config;
use sedge_core::request::{PathScope, RequestPath, Response};

/// Name of a token in the query.
const QUERY_TOKEN: &str = "token";
/// Part of a request in which rates are kept.
const PARTS: u64 = 1_000_000;

#[derive(Debug)]
pub(super) struct Access {
    comparer: Comparer,
    tokens: Vec<Token>,
    signatures: Vec<Signature>,
    /// Paths without a signature need no token.
    is_open: bool,
}

#[derive(Debug)]
struct Token {
    secret: Secret,
    paths: Vec<PathScope>,
    in_query: bool,
    rate: Rate,
}

#[derive(Debug)]
struct Signature {
    key: hmac::Key,
    paths: Vec<PathScope>,
    header: String,
}

/// What is still to be checked once the body is there.
#[derive(Clone, Copy, Debug)]
pub(super) enum Admitted<'a> {
    Whole,
    /// The body must have this signature.
    Signed(&'a str, usize),
}

impl Access {
    pub(super) fn new(config: &config::HttpTrigger) -> Result<Self, TriggerError> {
        let comparer = Comparer::new()?;
        let token = |token: &config::HttpToken| {
            Ok(Token {
                secret: comparer.secret(&secrets::read(&token.file)?),
                paths: token.paths.clone(),
                in_query: token.in_query,
                rate: Rate::new(token.requests_per_sec.get(), token.burst.get()),
            })
        };
        let signature = |signature: &config::HttpSignature| {
            Ok(Signature {
                key: hmac::Key::new(hmac::HMAC_SHA256, &secrets::read(&signature.file)?),
                paths: signature.paths.clone(),
                header: signature.header.clone(),
            })
        };
        let is_open = config.tokens.is_empty() && config.listen.is_some_and(|listen| listen.ip().is_loopback());
        Ok(Self {
            tokens: config.tokens.values().map(token).collect::<Result<_, TriggerError>>()?,
            signatures: config.signatures.values().map(signature).collect::<Result<_, TriggerError>>()?,
            comparer,
            is_open,
        })
    }

    /// Checks what stands in the head. Takes a token out of the query: it is nothing that functions may see.
    pub(super) fn admit<'a>(
        &'a self,
        path: &RequestPath,
        query: &mut Vec<(String, String)>,
        headers: &'a HeaderMap,
        now: Instant,
    ) -> Result<Admitted<'a>, Response> {
        if let Some(n) = self.signatures.iter().position(|it| covers(&it.paths, path)) {
            let header = headers.get(&self.signatures[n].header).and_then(|value| value.to_str().ok());
            let missing = || Response::text(401, format!("the header {} is missing", self.signatures[n].header));
            return header.map(|header| Admitted::Signed(header, n)).ok_or_else(missing);
        }
        if self.is_open {
            return Ok(Admitted::Whole);
        }
        let in_query = self.tokens.iter().any(|token| token.in_query).then(|| take_token(query)).flatten();
        let in_header = headers.get(header::AUTHORIZATION).and_then(|value| given(value.as_bytes()));
        let is_it = |token: &&Token| {
            let is_same = |text: &Vec<u8>| self.comparer.is_same(&token.secret, text);
            in_header.as_ref().is_some_and(is_same) || token.in_query && in_query.as_ref().is_some_and(is_same)
        };
        // Each is compared, so that the time does not tell which of them it was.
        let found: Vec<&Token> = self.tokens.iter().filter(is_it).collect();
        if found.is_empty() {
            return Err(Response::text(401, "a token is required: send it as Authorization: Bearer TOKEN"));
        }
        let Some(token) = found.into_iter().find(|token| covers(&token.paths, path)) else {
            return Err(Response::text(403, "the token is not for this path"));
        };
        match token.rate.take(now) {
            Ok(()) => Ok(Admitted::Whole),
            Err(wait_secs) => {
                let response = Response::text(429, "more requests than the token may send (requests_per_sec)");
                Err(Response { retry_after_secs: Some(wait_secs), ..response })
            }
        }
    }

    pub(super) fn check_body(&self, admitted: Admitted<'_>, body: &[u8]) -> Result<(), Response> {
        match admitted {
            Admitted::Whole => Ok(()),
            Admitted::Signed(header, n) if secrets::is_signed(&self.signatures[n].key, header, body) => Ok(()),
            Admitted::Signed(..) => Err(Response::text(401, "the signature is not that of the body")),
        }
    }
}

fn covers(scopes: &[PathScope], path: &RequestPath) -> bool {
    scopes.iter().any(|scope| scope.covers(path))
}

/// The token of `Authorization: Bearer`, or the password of `Basic` (RFC 6750 and 7617).
fn given(value: &[u8]) -> Option<Vec<u8>> {
    let value = str::from_utf8(value).ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    let rest = rest.trim();
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" => Some(rest.as_bytes().to_vec()),
        "basic" => {
            let pair = STANDARD.decode(rest).ok()?;
            let colon = pair.iter().position(|byte| *byte == b':')?;
            Some(pair[colon + 1..].to_vec())
        }
        _ => None,
    }
}

fn take_token(query: &mut Vec<(String, String)>) -> Option<Vec<u8>> {
    let at = query.iter().position(|(name, _)| name == QUERY_TOKEN)?;
    let (_, value) = query.remove(at);
    query.retain(|(name, _)| name != QUERY_TOKEN);
    Some(value.into_bytes())
}

/// A bucket that fills at a rate up to a burst.
#[derive(Debug)]
struct Rate {
    per_sec: u64,
    most: u64,
    /// Parts of requests, and when they were counted.
    level: Cell<u64>,
    at: Cell<Option<Instant>>,
}

impl Rate {
    fn new(per_sec: u32, burst: u32) -> Self {
        let most = u64::from(burst) * PARTS;
        Self { per_sec: per_sec.into(), most, level: Cell::new(most), at: Cell::new(None) }
    }

    /// `Err`: seconds until the next request, rounded up.
    fn take(&self, now: Instant) -> Result<(), u32> {
        let passed = self.at.replace(Some(now)).map_or(0, |at| now.saturating_duration_since(at).as_micros() as u64);
        let level = self.level.get().saturating_add(passed.saturating_mul(self.per_sec)).min(self.most);
        let left = level.checked_sub(PARTS);
        self.level.set(left.unwrap_or(level));
        match left {
            Some(_) => Ok(()),
            None => Err((PARTS - level).div_ceil(self.per_sec * PARTS).max(1) as u32),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_rate_lets_a_burst_through_and_then_its_pace() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let rate = Rate::new(2, 3);
        assert_eq!([(); 4].map(|()| rate.take(at(0))), [Ok(()), Ok(()), Ok(()), Err(1)]);
        assert_eq!(rate.take(at(499)), Err(1));
        assert_eq!((rate.take(at(500)), rate.take(at(600))), (Ok(()), Err(1)));
        assert_eq!([(); 4].map(|()| rate.take(at(3_600_000))), [Ok(()), Ok(()), Ok(()), Err(1)]);
    }

    #[test]
    fn a_token_comes_as_bearer_or_as_a_password() {
        assert_eq!(given(b"Bearer abc"), Some(b"abc".to_vec()));
        assert_eq!(given(b"bearer  abc "), Some(b"abc".to_vec()));
        assert_eq!(given(b"Basic c2hlbGx5OmE6Yg=="), Some(b"a:b".to_vec()), "shelly:a:b");
        for other in [&b"abc"[..], b"Basic !", b"Basic YWJj", b"Digest x", b"\xff y"] {
            assert_eq!(given(other), None);
        }
    }

    #[test]
    fn a_token_in_the_query_is_taken_out() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut query = vec![pair("a", "1"), pair("token", "x"), pair("token", "y")];
        assert_eq!(take_token(&mut query), Some(b"x".to_vec()));
        assert_eq!(query, [pair("a", "1")]);
    }
}
