//! InfluxDB, and what speaks its line protocol, as a sink: batches of records over HTTP, to `/write` of version 1 or
//! `/api/v2/write` of version 2.
//!
//! A batch that is refused because of its content is divided in halves until the bad records stand alone: those are refused,
//! and the others are taken. A point that is written twice overwrites itself, so dividing repeats nothing.

mod clock;
pub(crate) mod line;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use ureq::Agent;
use ureq::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};

use super::webhook::{self, WebhookError};
use super::{Answers, influx::clock::Clock};
use sedge_core::config::{self, InfluxApi};
use sedge_core::forward::{Answer, Envelope};
use sedge_core::message::PublishToken;
use sedge_core::store::Recovered;
use sedge_core::stream::SinkId;
use sedge_core::text::query_value;
use sedge_mqtt::Full;

/// Bytes read of an answer: enough for the reason of a refusal.
const MAX_ANSWER_BYTES: u64 = 64 << 10;

/// Characters of an answer that are shown.
const SHOWN_CHARS: usize = 200;

/// Handle of the thread, which ends after its current batch when this is dropped.
#[derive(Debug)]
pub(crate) struct Influx {
    points: flume::Sender<(PublishToken, Envelope)>,
}

impl Influx {
    /// `section`: of the configuration, for messages.
    pub(crate) fn spawn(
        section: &str,
        node: &str,
        config: &config::Influx,
        sink: SinkId,
        recovered: &Recovered,
        answers: Answers,
    ) -> Result<Self, WebhookError> {
        let mut writer = Writer::new(section, node, config, Clock::new(sink, recovered))?;
        let batch = usize::from(config.batch_records.get());
        let (points, receiver) = flume::bounded(batch);
        std::thread::Builder::new().name("influx".into()).spawn(move || {
            while let Ok(first) = receiver.recv() {
                let records: Vec<_> = [first].into_iter().chain(receiver.try_iter().take(batch - 1)).collect();
                for (token, answer) in writer.take(&records) {
                    if !answers.send(token, answer) {
                        return;
                    }
                }
            }
        })?;
        Ok(Self { points })
    }

    /// [`Full`]: earlier records are still on their way.
    pub(crate) fn send(&self, token: PublishToken, envelope: Envelope) -> Result<(), Full> {
        self.points.try_send((token, envelope)).map_err(|_| Full)
    }
}

/// What the server says to one request.
#[derive(Debug)]
enum Said {
    Written,
    /// Something of the content is wrong.
    Bad(StatusCode),
    /// Nothing is accepted now.
    Later {
        reason: String,
        after: Option<Duration>,
    },
}

struct Writer {
    section: String,
    node: String,
    measurement: String,
    agent: Agent,
    url: Uri,
    token_file: Option<PathBuf>,
    basic: Option<(String, PathBuf)>,
    gzip: bool,
    clock: Clock,
}

impl Writer {
    fn new(section: &str, node: &str, config: &config::Influx, clock: Clock) -> Result<Self, WebhookError> {
        let connection = &config.connection;
        let writer = Self {
            section: section.to_owned(),
            node: node.to_owned(),
            measurement: config.measurement.clone(),
            agent: webhook::agent(section, connection, Duration::from_secs(config.timeout_secs.get().into()))?,
            url: address(config),
            token_file: config.token_file.clone(),
            basic: connection.username.clone().zip(connection.password_file.clone()),
            gzip: config.gzip,
            clock,
        };
        // A missing file is an error at start; later the request is repeated until the file is back.
        writer.authorization()?;
        Ok(writer)
    }

    /// Writes a batch. Returns the answer to each record, in order.
    fn take(&mut self, records: &[(PublishToken, Envelope)]) -> Vec<(PublishToken, Answer)> {
        self.clock.look();
        let point =
            |(_, envelope): &(PublishToken, Envelope)| line::of(envelope, &self.measurement, &self.node, &self.clock);
        let lines: Vec<Option<String>> = records.iter().map(point).collect();
        let good: Vec<usize> = (0..lines.len()).filter(|n| lines[*n].is_some()).collect();
        // What has no number to store is never accepted.
        let mut answers = vec![Answer::Refused("no-fields".into()); records.len()];
        let mut is_any_written = false;
        let mut bad = Vec::new();
        self.divide(&lines, &good, &mut answers, &mut is_any_written, &mut bad);
        // Where nothing was written, the server or its settings may be at fault rather than all of the records.
        for (n, code) in bad {
            let reason = format!("http-{}", code.as_u16()).into();
            answers[n] = if is_any_written { Answer::Refused(reason) } else { Answer::Declined(reason) };
        }
        records.iter().map(|(token, _)| *token).zip(answers).collect()
    }

    /// Writes these lines, in halves if the server refuses them together.
    fn divide(
        &self,
        lines: &[Option<String>],
        which: &[usize],
        answers: &mut [Answer],
        is_any_written: &mut bool,
        bad: &mut Vec<(usize, StatusCode)>,
    ) {
        if which.is_empty() {
            return;
        }
        let body: String = which.iter().filter_map(|n| lines[*n].as_deref()).collect();
        match self.post(&body) {
            Said::Written => {
                *is_any_written = true;
                which.iter().for_each(|n| answers[*n] = Answer::Accepted);
            }
            Said::Later { reason, after } => {
                which.iter().for_each(|n| answers[*n] = Answer::Retry { reason: reason.clone(), after });
            }
            Said::Bad(code) if which.len() == 1 => bad.push((which[0], code)),
            Said::Bad(_) => {
                let (first, second) = which.split_at(which.len() / 2);
                self.divide(lines, first, answers, is_any_written, bad);
                self.divide(lines, second, answers, is_any_written, bad);
            }
        }
    }

    fn post(&self, body: &str) -> Said {
        let later = |reason: String| Said::Later { reason, after: None };
        let authorization = match self.authorization() {
            Ok(authorization) => authorization,
            Err(error) => return later(error.to_string()),
        };
        let mut request = self.agent.post(&self.url).header(header::CONTENT_TYPE, "text/plain; charset=utf-8");
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let sent = if self.gzip {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            let packed = encoder.write_all(body.as_bytes()).and_then(|()| encoder.finish());
            request.header(header::CONTENT_ENCODING, "gzip").send(&packed.expect("memory takes everything")[..])
        } else {
            request.send(body.as_bytes())
        };
        match sent {
            Ok(mut response) => {
                let (status, headers) = (response.status(), response.headers().clone());
                let answer = response.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_vec();
                self.evaluate(status, &headers, &String::from_utf8_lossy(&answer.unwrap_or_default()))
            }
            Err(error) => later(webhook::explain(error)),
        }
    }

    fn evaluate(&self, status: StatusCode, headers: &HeaderMap, body: &str) -> Said {
        let after = webhook::retry_after(headers);
        let later = |reason: String| Said::Later { reason, after };
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or_default();
        let key = format!("{}.url", self.section);
        if status.is_redirection() {
            let to = text(header::LOCATION);
            return later(format!("the server redirects to {to}: write the address that takes the data into {key}"));
        }
        let is_html = text(header::CONTENT_TYPE).starts_with("text/html") || body.trim_start().starts_with("<!");
        if is_html {
            return later(format!("{status} with a page of HTML: {key} is not the address of an InfluxDB"));
        }
        let shown: String = body.trim().chars().filter(|c| !c.is_control()).take(SHOWN_CHARS).collect();
        match status.as_u16() {
            200..=299 => Said::Written,
            400 | 413 | 422 => {
                tracing::debug!(%status, answer = shown, "a server refused lines");
                Said::Bad(status)
            }
            _ => later(format!("the server answered {status}: {shown}")),
        }
    }

    /// Reads the header value, per request: tokens are renewed by replacing the file.
    fn authorization(&self) -> Result<Option<String>, WebhookError> {
        if let Some(path) = &self.token_file {
            let token = webhook::secret(format!("{}.token_file", self.section), path)?;
            return Ok(Some(format!("Token {token}")));
        }
        let Some((user, path)) = &self.basic else { return Ok(None) };
        let password = webhook::secret(format!("{}.password_file", self.section), path)?;
        Ok(Some(webhook::basic(user, &password)))
    }
}

/// The address of the write API with its parameters.
fn address(config: &config::Influx) -> Uri {
    let base = config.connection.url.as_str().trim_end_matches('/');
    let text = match &config.api {
        InfluxApi::V1 { database } => format!("{base}/write?db={}&precision=ns", query_value(database)),
        InfluxApi::V2 { org, bucket } => {
            format!("{base}/api/v2/write?org={}&bucket={}&precision=ns", query_value(org), query_value(bucket))
        }
    };
    text.parse().expect("an address with encoded parameters is one")
}

#[cfg(test)]
mod tests;
