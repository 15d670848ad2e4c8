//! A webhook as a sink: one POST per record, in order, on a persistent connection.
//!
//! The body is the payload, the attributes are CloudEvents headers (HTTP binding 1.0.2, binary mode). Calls block, so
//! they have a thread of their own, which answers through a channel.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use ureq::Agent;
use ureq::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

use super::{Answers, alertmanager, structured};
use sedge_core::config::{self, WebhookFormat};
use sedge_core::forward::Envelope;
use sedge_core::forward::lane::Answer;
use sedge_core::message::PublishToken;
use sedge_core::trace::{TRACEPARENT, TRACESTATE};
use sedge_mqtt::Full;

/// Bytes read of a response body, so that the connection can be reused.
const MAX_ANSWER_BYTES: u64 = 64 << 10;

/// How long that may take. The answer is in the status: a body that never ends costs its connection.
const BODY_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub(crate) enum WebhookError {
    #[error("failed to read `{key}` {}: {source}", path.display())]
    Read { key: String, path: PathBuf, source: io::Error },
    #[error("`{key}` {} does not contain a {what}", path.display())]
    Empty { key: String, path: PathBuf, what: &'static str },
    #[error("only one of `{section}.cert_file` and `{section}.key_file` is set: set both or neither")]
    HalfIdentity { section: String },
    #[error("the certificate in {} cannot be used with its key: {source}", path.display())]
    Identity { path: PathBuf, source: rustls::Error },
    #[error("the system has no trusted roots (install `ca-certificates`, or set `{section}.ca_file`)")]
    NoRoots { section: String },
    #[error("failed to start the thread of a sink: {0}")]
    Spawn(#[from] io::Error),
}

/// Handle of the webhook thread. The thread ends after its current call when this is dropped.
#[derive(Debug)]
pub(crate) struct Webhook {
    calls: flume::Sender<(PublishToken, Envelope)>,
}

impl Webhook {
    /// Starts the thread. Answers arrive as `(token, answer)`.
    /// `section`: of the configuration, for messages.
    pub(crate) fn spawn(section: &str, config: &config::Upstream, answers: Answers) -> Result<Self, WebhookError> {
        let caller = Caller::new(section, config)?;
        // The forwarder has one record in flight.
        let (calls, receiver) = flume::bounded(1);
        std::thread::Builder::new().name("webhook".into()).spawn(move || caller.run(&receiver, &answers))?;
        Ok(Self { calls })
    }

    /// Starts a call. [`Full`]: the previous call is not finished.
    pub(crate) fn post(&self, token: PublishToken, envelope: Envelope) -> Result<(), Full> {
        self.calls.try_send((token, envelope)).map_err(|_| Full)
    }
}

struct Caller {
    section: String,
    agent: Agent,
    url: Uri,
    authorization_file: Option<PathBuf>,
    format: WebhookFormat,
    headers: Vec<(String, config::Header)>,
}

impl Caller {
    fn new(section: &str, config: &config::Upstream) -> Result<Self, WebhookError> {
        let url = &config.connection.url;
        debug_assert!(!url.is_mqtt(), "callers tell webhooks from brokers");
        let timeout = Duration::from_secs(config.timeout_secs.get().into());
        let agent = agent(section, &config.connection, timeout)?;
        let url = url.uri().clone();
        let headers = config.headers.iter().map(|(name, header)| (name.clone(), header.clone())).collect();
        let authorization_file = config.authorization_file.clone();
        let caller =
            Self { section: section.to_owned(), agent, url, authorization_file, format: config.format, headers };
        // A missing file is an error at start; later the call is repeated until the file is back.
        caller.authorization()?;
        caller.own_headers()?;
        Ok(caller)
    }

    fn run(&self, calls: &flume::Receiver<(PublishToken, Envelope)>, answers: &Answers) {
        while let Ok((token, envelope)) = calls.recv() {
            let answer = self.call(&envelope);
            if !answers.send(token, answer) {
                return;
            }
        }
    }

    fn call(&self, envelope: &Envelope) -> Answer {
        let retry = |reason: String| Answer::Retry { reason, after: None };
        let authorization = match self.authorization() {
            Ok(authorization) => authorization,
            Err(error) => return retry(error.to_string()),
        };
        let own_headers = match self.own_headers() {
            Ok(headers) => headers,
            Err(error) => return retry(error.to_string()),
        };
        let Some((body, content_type)) = self.body(envelope) else { return Answer::Refused("not-an-alert".into()) };
        // Not the fault of the receiver: the same call would fail for ever.
        let Ok(content_type) = HeaderValue::from_str(&content_type) else {
            return Answer::Refused("invalid-content-type".into());
        };
        let mut request = self.agent.post(&self.url).header(header::CONTENT_TYPE, content_type);
        let is_binary = self.format == WebhookFormat::Binary;
        for (name, value) in &envelope.properties {
            // Names of CloudEvents attributes have only letters and digits: others are headers of their own. The trace is
            // both: an extension of CloudEvents, and the header that receivers read.
            if [TRACEPARENT, TRACESTATE].contains(name) {
                request = request.header(*name, &**value);
            }
            if name.contains('-') {
                request = request.header(*name, encoded(value));
            } else if is_binary {
                request = request.header(format!("ce-{name}"), encoded(value));
            }
        }
        if is_binary {
            request = request.header("ce-subject", encoded(&envelope.topic));
        }
        for (name, value) in own_headers {
            request = request.header(name, value);
        }
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        match request.send(&body[..]) {
            Ok(mut response) => {
                let answer = evaluate(response.status(), response.headers());
                let _ = response.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_vec();
                answer
            }
            Err(error) => retry(explain(error)),
        }
    }

    /// The body and its content type. `None`: the format has no place for the record.
    fn body(&self, envelope: &Envelope) -> Option<(Bytes, String)> {
        let json = |value: serde_json::Value, kind: &str| (Bytes::from(value.to_string()), kind.to_owned());
        Some(match self.format {
            WebhookFormat::Binary => {
                let kind = envelope.content_type.as_deref().unwrap_or("application/octet-stream");
                (envelope.payload.clone(), kind.to_owned())
            }
            WebhookFormat::CloudEvents => {
                json(structured::event(envelope), "application/cloudevents+json; charset=utf-8")
            }
            WebhookFormat::Alertmanager => json(alertmanager::body(envelope)?, "application/json"),
        })
    }

    /// The headers of the configuration.
    fn own_headers(&self) -> Result<Vec<(&str, String)>, WebhookError> {
        let value = |header: &config::Header| match &header.file {
            Some(path) => secret(format!("{}.headers", self.section), path),
            None => Ok(header.value.clone().unwrap_or_default()),
        };
        self.headers.iter().map(|(name, header)| Ok((&**name, value(header)?))).collect()
    }

    /// Reads the header value, per call: tokens are renewed by replacing the file.
    fn authorization(&self) -> Result<Option<String>, WebhookError> {
        let key = || format!("{}.authorization_file", self.section);
        self.authorization_file.as_ref().map(|path| secret(key(), path)).transpose()
    }
}

/// A client that reports every status, and follows no redirect: a redirected POST becomes a GET, which would look like success.
pub(crate) fn agent(section: &str, connection: &config::Connection, timeout: Duration) -> Result<Agent, WebhookError> {
    let url = &connection.url;
    let tls = match url.is_tls() {
        true => tls(section, connection)?,
        false => TlsConfig::builder().root_certs(RootCerts::new_with_certs(&[])).build(),
    };
    let config = Agent::config_builder()
        .user_agent(concat!("sedge/", env!("CARGO_PKG_VERSION")))
        .timeout_global(Some(timeout))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .tls_config(tls)
        .timeout_recv_body(Some(BODY_TIMEOUT))
        // HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY are for other machines.
        .proxy(if url.is_local() { None } else { ureq::Proxy::try_from_env() });
    Ok(config.build().new_agent())
}

/// Why there is no answer.
pub(crate) fn explain(error: ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => sedge_mqtt::explain_tls(&error).unwrap_or_else(|| ureq::Error::Io(error).to_string()),
        error => error.to_string(),
    }
}

/// The value of `Authorization` for a user and a password.
pub(super) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

/// Reads the value of a header.
pub(crate) fn secret(key: String, path: &Path) -> Result<String, WebhookError> {
    let text = String::from_utf8_lossy(&read(&key, path)?).trim().to_owned();
    match text.is_empty() {
        true => Err(WebhookError::Empty { key, path: path.into(), what: "header value" }),
        false => Ok(text),
    }
}

/// Maps a response to an answer. A problem that a person can fix without changing the record is retried; a verdict on the
/// record itself is final.
fn evaluate(status: StatusCode, headers: &HeaderMap) -> Answer {
    let code = status.as_u16();
    match code {
        200..=299 => Answer::Accepted,
        // The address or the credentials are wrong, not the record.
        300..=399 | 401 | 403 | 404 | 407 | 408 | 425 | 429 | 501..=599 => {
            Answer::Retry { reason: format!("the receiver answered {status}"), after: retry_after(headers) }
        }
        // Perhaps caused by this record, perhaps by the receiver.
        500 => Answer::Declined("http-500".into()),
        _ => Answer::Refused(format!("http-{code}").into()),
    }
}

/// Reads `Retry-After`: seconds, or a date. A date is compared with the receiver's own, since this board's clock may be wrong.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let after = text(header::RETRY_AFTER)?;
    if let Ok(seconds) = after.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let now = text(header::DATE).and_then(http_date).or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?;
        i64::try_from(now.as_secs()).ok()
    })?;
    Some(Duration::from_secs(u64::try_from(http_date(after)? - now).unwrap_or(0)))
}

/// Seconds since 1970 of a date such as `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, section 5.6.7).
fn http_date(text: &str) -> Option<i64> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let mut parts = text.split_once(", ")?.1.strip_suffix(" GMT")?.split(' ');
    let day: i64 = parts.next()?.parse().ok()?;
    let name = parts.next().filter(|name| name.len() == 3)?;
    let month = (MONTHS.find(name)? / 3 + 1) as i64;
    let year: i64 = parts.next()?.parse().ok().filter(|year| (1970..10_000).contains(year))?;
    let mut clock = parts.next()?.split(':').map(|number| number.parse::<i64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    // Days before a month of a year that begins with March (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

/// Encodes a CloudEvents header value: UTF-8, percent-encoded except printable ASCII without space, quote and percent.
fn encoded(value: &str) -> String {
    let mut header = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'"' | b'%' => header.push_str(&format!("%{byte:02X}")),
            0x21..=0x7e => header.push(byte.into()),
            _ => header.push_str(&format!("%{byte:02X}")),
        }
    }
    header
}

fn tls(section: &str, connection: &config::Connection) -> Result<TlsConfig, WebhookError> {
    let provider = Arc::new(ring::default_provider());
    let roots = match &connection.ca_file {
        Some(path) => certificates(&format!("{section}.ca_file"), path)?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    if roots.is_empty() {
        return Err(WebhookError::NoRoots { section: section.to_owned() });
    }
    let client = match (&connection.cert_file, &connection.key_file) {
        (Some(cert), Some(key)) => Some(identity(section, cert, key, &provider)?),
        (None, None) => None,
        _ => return Err(WebhookError::HalfIdentity { section: section.to_owned() }),
    };
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&for_ureq(&roots)))
        .client_cert(client)
        .unversioned_rustls_crypto_provider(provider)
        .build())
}

fn for_ureq(certificates: &[CertificateDer<'_>]) -> Vec<Certificate<'static>> {
    certificates.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect()
}

fn read(key: &str, path: &Path) -> Result<Vec<u8>, WebhookError> {
    std::fs::read(path).map_err(|source| WebhookError::Read { key: key.to_owned(), path: path.into(), source })
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, WebhookError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&read(key, path)?).filter_map(Result::ok).collect();
    if certificates.is_empty() {
        return Err(WebhookError::Empty { key: key.to_owned(), path: path.into(), what: "certificate in PEM" });
    }
    Ok(certificates)
}

/// Loads certificate and key, and checks that they match: on a mismatch the HTTP client would panic when it connects.
fn identity(
    section: &str,
    cert: &Path,
    key: &Path,
    provider: &Arc<CryptoProvider>,
) -> Result<ClientCert, WebhookError> {
    let chain = certificates(&format!("{section}.cert_file"), cert)?;
    let named = format!("{section}.key_file");
    let text = read(&named, key)?;
    let (Ok(for_check), Ok(private)) = (PrivateKeyDer::from_pem_slice(&text), PrivateKey::from_pem(&text)) else {
        return Err(WebhookError::Empty { key: named, path: key.into(), what: "private key in PEM" });
    };
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone());
    let check = builder.with_safe_default_protocol_versions().and_then(|builder| {
        let builder = builder.with_root_certificates(rustls::RootCertStore::empty());
        builder.with_client_auth_cert(chain.clone(), for_check)
    });
    check.map_err(|source| WebhookError::Identity { path: cert.into(), source })?;
    Ok(ClientCert::new_with_certs(&for_ureq(&chain), private))
}

#[cfg(test)]
mod tests;
