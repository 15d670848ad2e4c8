//! The API of a board's page, over HTTP.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::Value;
use ureq::http::StatusCode;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::printable;
use sedge_core::text::query_value;

/// Time for an answer. A stream may last.
const ANSWER: Duration = Duration::from_secs(20);
/// The board sends something every two seconds.
const STALL: Duration = Duration::from_secs(15);
/// Longest line of a stream, and longest answer.
const MAX_LINE_BYTES: u64 = 1 << 20;
const MAX_ANSWER_BYTES: u64 = 64 << 20;
/// Lines of a stream that wait.
const MAX_LINES: usize = 256;

#[derive(Clone, Debug, Args)]
pub(crate) struct ApiArgs {
    /// Address of the board's page: http.listen, or a tunnel or a proxy that leads there
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9464")]
    url: String,
    /// Authority that signed the certificate of an https address, in PEM [default: those that this computer trusts]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// File with a token of the board, as `sedge token` prints it [default: SEDGE_TOKEN_FILE]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl ApiArgs {
    pub(crate) fn api(&self) -> anyhow::Result<Api> {
        let url = self.url.trim_end_matches('/');
        let is_tls = url.starts_with("https://");
        if !is_tls && !url.starts_with("http://") {
            bail!("--url {}: write http://HOST:PORT, such as http://127.0.0.1:9464", self.url);
        }
        let named = || std::env::var_os("SEDGE_TOKEN_FILE").filter(|path| !path.is_empty()).map(PathBuf::from);
        let token = match self.token_file.clone().or_else(named) {
            Some(path) => {
                let text = fs::read_to_string(&path)
                    .with_context(|| format!("failed to read the token {}", path.display()))?;
                Some(text.trim().to_owned())
            }
            None => None,
        };
        let tls = if is_tls {
            tls(self.ca_file.as_deref())?
        } else {
            TlsConfig::builder().root_certs(RootCerts::new_with_certs(&[])).build()
        };
        let agent = Agent::config_builder()
            .user_agent(concat!("sedge/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(ANSWER))
            .timeout_recv_response(Some(ANSWER))
            .tls_config(tls)
            .proxy(None)
            .build()
            .new_agent();
        Ok(Api { agent, url: url.to_owned(), token })
    }
}

fn tls(ca_file: Option<&Path>) -> anyhow::Result<TlsConfig> {
    let roots: Vec<Certificate<'static>> = match ca_file {
        Some(path) => authorities(path)?,
        None => {
            let roots = rustls_native_certs::load_native_certs().certs;
            roots.iter().map(|root| Certificate::from_der(root).to_owned()).collect()
        }
    };
    if roots.is_empty() {
        bail!("this computer has no trusted certificates: install ca-certificates, or name --ca-file");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = TlsConfig::builder().root_certs(RootCerts::new_with_certs(&roots));
    Ok(builder.unversioned_rustls_crypto_provider(provider).build())
}

fn authorities(path: &Path) -> anyhow::Result<Vec<Certificate<'static>>> {
    let pem = fs::read(path).with_context(|| format!("failed to read --ca-file {}", path.display()))?;
    let found = ureq::tls::parse_pem(&pem).filter_map(|item| match item {
        Ok(ureq::tls::PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let found: Vec<_> = found.collect();
    if found.is_empty() {
        bail!("--ca-file {}: no certificate in PEM", path.display());
    }
    Ok(found)
}

/// A board's API.
pub(crate) struct Api {
    agent: Agent,
    url: String,
    token: Option<String>,
}

impl Api {
    pub(crate) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    pub(crate) fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.answer(self.send(path, None)?)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.answer(self.send(path, Some(body))?)
    }

    /// Server-sent events: names and data. The iterator ends with the stream, and with an error if the board falls silent.
    pub(crate) fn events(&self, path: &str) -> anyhow::Result<impl Iterator<Item = anyhow::Result<(String, Value)>>> {
        let body = self.send(path, None)?;
        let (sender, lines) = flume::bounded(MAX_LINES);
        // Reading has no bound on time of its own: a board that lost its power says nothing more.
        std::thread::spawn(move || {
            let mut reader = BufReader::new(body.into_reader());
            loop {
                let mut line = String::new();
                let read = std::io::Read::take(&mut reader, MAX_LINE_BYTES).read_line(&mut line);
                if !matches!(read, Ok(1..)) || sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut name = String::new();
        Ok(std::iter::from_fn(move || {
            loop {
                let line = match lines.recv_timeout(STALL) {
                    Ok(line) => line,
                    Err(flume::RecvTimeoutError::Disconnected) => return None,
                    Err(flume::RecvTimeoutError::Timeout) => {
                        return Some(Err(anyhow::anyhow!("the board has said nothing for {} s", STALL.as_secs())));
                    }
                };
                let line = line.trim_end();
                if let Some(of) = line.strip_prefix("event: ") {
                    of.clone_into(&mut name);
                } else if let Some(data) = line.strip_prefix("data: ") {
                    let event = serde_json::from_str(data).context("the board sent an event that is not JSON");
                    return Some(event.map(|data| (std::mem::take(&mut name), data)));
                }
            }
        }))
    }

    fn send(&self, path: &str, body: Option<&Value>) -> anyhow::Result<Body> {
        let url = format!("{}/api/v1/{path}", self.url);
        let token = self.token.as_ref().map(|token| format!("Bearer {token}"));
        let sent = match body {
            None => {
                let request = self.agent.get(&url);
                token.iter().fold(request, |request, token| request.header("Authorization", token)).call()
            }
            Some(body) => {
                let request = self.agent.post(&url).header("Content-Type", "application/json");
                let request = token.iter().fold(request, |request, token| request.header("Authorization", token));
                request.send(body.to_string())
            }
        };
        let response = sent.with_context(|| {
            format!(
                "cannot reach {}: start the daemon there, or name its http.listen with --url; for another machine: ssh -L \
                 9464:127.0.0.1:9464 BOARD",
                self.url
            )
        })?;
        let (head, mut body) = response.into_parts();
        if head.status == StatusCode::OK {
            return Ok(body);
        }
        let answer: Value = body.read_to_vec().ok().and_then(|it| serde_json::from_slice(&it).ok()).unwrap_or_default();
        let (Some(error), Some(fix)) = (answer["error"].as_str(), answer["fix"].as_str()) else {
            bail!("{} is not the page of a board: it answers {}", self.url, head.status);
        };
        match head.status {
            StatusCode::UNAUTHORIZED => bail!(
                "{}: {}, and name its file with --token-file or in SEDGE_TOKEN_FILE",
                printable(error),
                printable(fix)
            ),
            _ => bail!("{}: {}", printable(error), printable(fix)),
        }
    }

    fn answer(&self, mut body: Body) -> anyhow::Result<Value> {
        let answer = body.with_config().limit(MAX_ANSWER_BYTES).read_to_vec();
        let answer = answer.with_context(|| format!("the answer of {} broke off: try again", self.url))?;
        serde_json::from_slice(&answer).with_context(|| format!("{} is not the page of a board", self.url))
    }
}

/// The elements of a list. None of anything else.
pub(crate) fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// Text without its quotes. What a terminal would act on is escaped where it is printed.
pub(crate) fn words(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

/// A query of these pairs, percent-encoded.
pub(crate) fn query(pairs: &[(&str, Option<&str>)]) -> String {
    let given = pairs.iter().filter_map(|(name, value)| Some(format!("{name}={}", query_value((*value)?))));
    given.collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_has_only_what_is_given_and_nothing_that_ends_it_early() {
        let pairs = [("topic", Some("a/+/b#&ü")), ("function", None), ("limit", Some("7"))];
        assert_eq!(query(&pairs), "topic=a%2F%2B%2Fb%23%26%C3%BC&limit=7");
    }
}
