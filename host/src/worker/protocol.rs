//! What daemon and worker say to each other over their socket pair: length-prefixed frames, little-endian, many to a
//! system call.
//!
//! ```text
//! frame  := length:u32 kind:u8 field*          length counts kind and fields
//! bytes  := length:u32 byte*                   text is bytes in UTF-8
//! option := 0:u8 | 1:u8 value
//! ```
//!
//! Both ends are the same binary, so there is no version. The daemon still checks everything it reads: a worker may
//! have been taken over by what runs in it, and a frame that makes no sense ends it.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};

use super::permits::Permits;
use crate::message::{
    Alert, AlertStatus, Failure, FailureCode, LogLine, Message, Outcome, Output, Publication, Severity, StateWrite,
    Usage, Verdict,
};
use crate::sandbox::{Grants, Limits};
use crate::topic::TopicFilter;

/// A frame holds at most one message, one outcome or one function's code.
const MAX_FRAME_BYTES: usize = 128 << 20;

/// To a worker.
#[derive(Debug, PartialEq)]
pub enum ToWorker {
    Load {
        function: u32,
        edition: u32,
        limits: Limits,
        settings: Vec<(String, String)>,
        permits: Permits,
        code: Bytes,
    },
    Unload {
        function: u32,
        edition: u32,
    },
    Run(Job),
    /// The answer to [`FromWorker::NeedState`].
    State {
        job: u64,
        entries: Vec<(Box<str>, Bytes)>,
    },
    /// A commit failed: no state in memory can be trusted.
    Forget,
}

/// One function for one message.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    pub id: u64,
    pub function: u32,
    /// Which installed version of the function. All of them share its state and its place in the order of its keys.
    pub edition: u32,
    pub scope: JobScope,
    /// The first of its key after one that is to be run again: ends what [`FromWorker::Held`] is about.
    pub resumes: bool,
    /// The version is on trial: if it misbehaves, another will run the message, and those behind it wait.
    pub on_trial: bool,
    pub message: Message,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobScope {
    /// The function keeps no state.
    None,
    /// State of this function on this topic.
    Topic,
    /// State that the function shares over all topics.
    Function,
}

/// From a worker.
#[derive(Debug)]
pub enum FromWorker {
    Loaded {
        function: u32,
        edition: u32,
        error: Option<String>,
    },
    Done {
        job: u64,
        outcome: Outcome,
        log: Vec<LogLine>,
        log_lines_dropped: u32,
    },
    /// The job waits, and with it all later ones of its scope, until the state comes.
    NeedState {
        job: u64,
    },
    /// The job did not run, because one before it in its key is to be run again first.
    Held {
        job: u64,
    },
}

/// The bytes make no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed frame")]
pub struct Malformed;

type Result<T> = std::result::Result<T, Malformed>;

/// The length that the frame at the front announces, without the announcement.
pub fn frame_length(buffer: &[u8]) -> Option<usize> {
    buffer.first_chunk::<4>().map(|prefix| u32::from_le_bytes(*prefix) as usize)
}

/// Takes one whole frame off the front, if it is there.
pub fn split_frame(buffer: &mut BytesMut) -> Result<Option<Bytes>> {
    let Some(length) = frame_length(buffer) else { return Ok(None) };
    if length == 0 || length > MAX_FRAME_BYTES {
        return Err(Malformed);
    }
    if buffer.len() < 4 + length {
        buffer.reserve(4 + length - buffer.len());
        return Ok(None);
    }
    buffer.advance(4);
    Ok(Some(buffer.split_to(length).freeze()))
}

/// Appends frames to a buffer.
pub struct Encoder<'a>(&'a mut Vec<u8>);

impl<'a> Encoder<'a> {
    pub fn new(buffer: &'a mut Vec<u8>) -> Self {
        Self(buffer)
    }

    fn frame(&mut self, kind: u8, fields: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        self.0.push(kind);
        fields(self);
        let length = u32::try_from(self.0.len() - start - 4).expect("a frame is below 4 GiB");
        self.0[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }

    pub fn to_worker(&mut self, frame: &ToWorker) {
        match frame {
            ToWorker::Load { function, edition, limits, settings, permits, code } => self.frame(1, |out| {
                out.u32(*function);
                out.u32(*edition);
                out.u64(limits.fuel);
                out.u32(limits.timeout_ms);
                out.u64(limits.memory_bytes as u64);
                out.u64(limits.outputs as u64);
                out.u64(limits.output_bytes as u64);
                out.u64(limits.state_bytes as u64);
                out.pairs(settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
                out.text(&permits.base_topic);
                out.u32(permits.publish.len() as u32);
                permits.publish.iter().for_each(|filter| out.text(filter.as_str()));
                out.u8(permits.grants.clock.into());
                out.u8(permits.grants.random.into());
                out.bytes(code);
            }),
            ToWorker::Unload { function, edition } => self.frame(2, |out| {
                out.u32(*function);
                out.u32(*edition);
            }),
            ToWorker::Run(job) => self.run(job.id, job),
            ToWorker::State { job, entries } => self.frame(4, |out| {
                out.u64(*job);
                out.u32(entries.len() as u32);
                for (key, value) in entries {
                    out.text(key);
                    out.bytes(value);
                }
            }),
            ToWorker::Forget => self.frame(5, |_| {}),
        }
    }

    /// `number` is the job's number on this socket.
    pub fn run(&mut self, number: u64, job: &Job) {
        self.frame(3, |out| {
            out.u64(number);
            out.u32(job.function);
            out.u32(job.edition);
            out.u8(match job.scope {
                JobScope::None => 0,
                JobScope::Topic => 1,
                JobScope::Function => 2,
            });
            out.u8(job.resumes.into());
            out.u8(job.on_trial.into());
            let message = &job.message;
            out.text(&message.topic);
            out.bytes(&message.payload);
            out.option(message.content_type.as_deref());
            out.pairs(message.properties.iter().map(|(name, value)| (&**name, &**value)));
            out.u64(message.received_at_ms);
            out.u8(message.clock_synced.into());
            out.u32(message.attempt);
        });
    }

    pub fn loaded(&mut self, function: u32, edition: u32, error: Option<&str>) {
        self.frame(1, |out| {
            out.u32(function);
            out.u32(edition);
            out.option(error);
        });
    }

    pub fn held(&mut self, job: u64) {
        self.frame(4, |out| out.u64(job));
    }

    pub fn need_state(&mut self, job: u64) {
        self.frame(2, |out| out.u64(job));
    }

    pub fn done(&mut self, job: u64, outcome: &Outcome, log: &[LogLine], log_lines_dropped: u32) {
        self.frame(3, |out| {
            out.u64(job);
            match &outcome.verdict {
                Verdict::Done(outputs) => {
                    out.u8(0);
                    out.u32(outputs.len() as u32);
                    outputs.iter().for_each(|output| out.output(output));
                }
                Verdict::Retry { after_ms, reason } => {
                    out.u8(1);
                    out.u64(*after_ms);
                    out.text(reason);
                }
                Verdict::Failed(failure) => {
                    out.u8(2);
                    out.text(failure.code.as_str());
                    out.text(&failure.detail);
                }
            }
            out.u32(outcome.writes.len() as u32);
            for write in &outcome.writes {
                out.text(&write.key);
                match &write.value {
                    Some(value) => {
                        out.u8(1);
                        out.bytes(value);
                    }
                    None => out.u8(0),
                }
            }
            out.u64(outcome.usage.fuel);
            out.u64(outcome.usage.elapsed_us);
            out.u64(outcome.usage.memory_bytes);
            out.u64(outcome.usage.output_bytes);
            out.u32(log.len() as u32);
            for line in log {
                out.u8(level_number(line.level));
                out.text(&line.text);
            }
            out.u32(log_lines_dropped);
        });
    }

    fn output(&mut self, output: &Output) {
        match output {
            Output::Alert(alert) => {
                self.u8(0);
                self.text(&alert.key);
                self.u8(alert.severity as u8);
                self.u8(alert.status as u8);
                self.text(&alert.summary);
                match alert.value {
                    Some(value) => {
                        self.u8(1);
                        self.u64(value.to_bits());
                    }
                    None => self.u8(0),
                }
                self.pairs(alert.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())));
            }
            Output::Forward(publication) => {
                self.u8(1);
                self.publication(publication);
            }
            Output::Publish(publication) => {
                self.u8(2);
                self.publication(publication);
            }
        }
    }

    fn publication(&mut self, publication: &Publication) {
        self.text(&publication.topic);
        self.bytes(&publication.payload);
        self.option(publication.content_type.as_deref());
        self.u8(publication.retain.into());
    }

    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.u32(u32::try_from(bytes.len()).expect("a field is below 4 GiB"));
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn option(&mut self, text: Option<&str>) {
        match text {
            Some(text) => {
                self.u8(1);
                self.text(text);
            }
            None => self.u8(0),
        }
    }

    fn pairs<'p>(&mut self, pairs: impl ExactSizeIterator<Item = (&'p str, &'p str)>) {
        self.u32(pairs.len() as u32);
        for (name, value) in pairs {
            self.text(name);
            self.text(value);
        }
    }
}

fn level_number(level: tracing::Level) -> u8 {
    match level {
        tracing::Level::ERROR => 0,
        tracing::Level::WARN => 1,
        tracing::Level::INFO => 2,
        _ => 3,
    }
}

/// Reads the fields of one frame. Byte strings share the frame's memory.
struct Decoder(Bytes);

impl ToWorker {
    pub fn decode(frame: Bytes) -> Result<Self> {
        let mut input = Decoder(frame);
        let decoded = match input.u8()? {
            1 => Self::Load {
                function: input.u32()?,
                edition: input.u32()?,
                limits: Limits {
                    fuel: input.u64()?,
                    timeout_ms: input.u32()?,
                    memory_bytes: input.usize()?,
                    outputs: input.usize()?,
                    output_bytes: input.usize()?,
                    state_bytes: input.usize()?,
                },
                settings: input.list(|it| Ok((it.text()?, it.text()?)))?,
                permits: Permits {
                    base_topic: input.shared_text()?,
                    publish: input.list(|it| it.with_text(TopicFilter::parse)?.map_err(|_| Malformed))?,
                    grants: Grants { clock: input.flag()?, random: input.flag()? },
                },
                code: input.bytes()?,
            },
            2 => Self::Unload { function: input.u32()?, edition: input.u32()? },
            3 => Self::Run(Job {
                id: input.u64()?,
                function: input.u32()?,
                edition: input.u32()?,
                scope: match input.u8()? {
                    0 => JobScope::None,
                    1 => JobScope::Topic,
                    2 => JobScope::Function,
                    _ => return Err(Malformed),
                },
                resumes: input.flag()?,
                on_trial: input.flag()?,
                message: Message {
                    topic: input.shared_text()?,
                    payload: input.bytes()?,
                    content_type: input.option(Decoder::boxed_text)?,
                    properties: input.list(|it| Ok((it.boxed_text()?, it.boxed_text()?)))?,
                    received_at_ms: input.u64()?,
                    clock_synced: input.flag()?,
                    attempt: input.u32()?,
                },
            }),
            4 => Self::State { job: input.u64()?, entries: input.list(|it| Ok((it.boxed_text()?, it.bytes()?)))? },
            5 => Self::Forget,
            _ => return Err(Malformed),
        };
        input.end()?;
        Ok(decoded)
    }
}

impl FromWorker {
    pub fn decode(frame: Bytes) -> Result<Self> {
        let mut input = Decoder(frame);
        let decoded = match input.u8()? {
            1 => Self::Loaded { function: input.u32()?, edition: input.u32()?, error: input.option(Decoder::text)? },
            2 => Self::NeedState { job: input.u64()? },
            3 => Self::Done {
                job: input.u64()?,
                outcome: Outcome {
                    verdict: input.verdict()?,
                    writes: input
                        .list(|it| Ok(StateWrite { key: it.boxed_text()?, value: it.option(Decoder::bytes)? }))?,
                    usage: Usage {
                        fuel: input.u64()?,
                        elapsed_us: input.u64()?,
                        memory_bytes: input.u64()?,
                        output_bytes: input.u64()?,
                    },
                },
                log: input.list(|it| Ok(LogLine { level: it.level()?, text: it.text()? }))?,
                log_lines_dropped: input.u32()?,
            },
            4 => Self::Held { job: input.u64()? },
            _ => return Err(Malformed),
        };
        input.end()?;
        Ok(decoded)
    }
}

impl Decoder {
    fn u8(&mut self) -> Result<u8> {
        self.0.try_get_u8().map_err(|_| Malformed)
    }

    fn u32(&mut self) -> Result<u32> {
        self.0.try_get_u32_le().map_err(|_| Malformed)
    }

    fn u64(&mut self) -> Result<u64> {
        self.0.try_get_u64_le().map_err(|_| Malformed)
    }

    fn usize(&mut self) -> Result<usize> {
        self.u64()?.try_into().map_err(|_| Malformed)
    }

    fn flag(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    fn bytes(&mut self) -> Result<Bytes> {
        let length = self.u32()? as usize;
        if length > self.0.len() {
            return Err(Malformed);
        }
        Ok(self.0.split_to(length))
    }

    fn with_text<T>(&mut self, make: impl FnOnce(&str) -> T) -> Result<T> {
        let bytes = self.bytes()?;
        str::from_utf8(&bytes).map(make).map_err(|_| Malformed)
    }

    fn text(&mut self) -> Result<String> {
        self.with_text(str::to_owned)
    }

    fn boxed_text(&mut self) -> Result<Box<str>> {
        self.with_text(|text| text.into())
    }

    fn shared_text(&mut self) -> Result<Arc<str>> {
        self.with_text(|text| text.into())
    }

    fn option<T>(&mut self, value: impl FnOnce(&mut Self) -> Result<T>) -> Result<Option<T>> {
        self.flag()?.then(|| value(self)).transpose()
    }

    fn list<T>(&mut self, item: impl Fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let count = self.u32()? as usize;
        // Every item takes at least a byte, so a count beyond what is left is a lie.
        if count > self.0.len() {
            return Err(Malformed);
        }
        (0..count).map(|_| item(self)).collect()
    }

    fn verdict(&mut self) -> Result<Verdict> {
        Ok(match self.u8()? {
            0 => Verdict::Done(self.list(Self::output)?),
            1 => Verdict::Retry { after_ms: self.u64()?, reason: self.text()? },
            2 => Verdict::Failed(Failure {
                code: self.with_text(FailureCode::from_name)?.ok_or(Malformed)?,
                detail: self.text()?,
            }),
            _ => return Err(Malformed),
        })
    }

    fn output(&mut self) -> Result<Output> {
        Ok(match self.u8()? {
            0 => Output::Alert(Alert {
                key: self.text()?,
                severity: match self.u8()? {
                    0 => Severity::Info,
                    1 => Severity::Warning,
                    2 => Severity::Critical,
                    _ => return Err(Malformed),
                },
                status: match self.u8()? {
                    0 => AlertStatus::Firing,
                    1 => AlertStatus::Resolved,
                    _ => return Err(Malformed),
                },
                summary: self.text()?,
                value: self.option(Self::u64)?.map(f64::from_bits),
                labels: self.list(|it| Ok((it.text()?, it.text()?)))?,
            }),
            1 => Output::Forward(self.publication()?),
            2 => Output::Publish(self.publication()?),
            _ => return Err(Malformed),
        })
    }

    fn publication(&mut self) -> Result<Publication> {
        Ok(Publication {
            topic: self.boxed_text()?,
            payload: self.bytes()?,
            content_type: self.option(Self::boxed_text)?,
            retain: self.flag()?,
        })
    }

    fn level(&mut self) -> Result<tracing::Level> {
        Ok(match self.u8()? {
            0 => tracing::Level::ERROR,
            1 => tracing::Level::WARN,
            2 => tracing::Level::INFO,
            3 => tracing::Level::DEBUG,
            _ => return Err(Malformed),
        })
    }

    fn end(&self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message() -> Message {
        Message {
            topic: "sensors/a".into(),
            payload: Bytes::from_static(b"21.5"),
            content_type: Some("application/json".into()),
            properties: vec![("id".into(), "7".into())],
            received_at_ms: 1,
            clock_synced: true,
            attempt: 2,
        }
    }

    #[test]
    fn frames_to_a_worker_come_out_as_they_went_in() {
        let limits = Limits { fuel: 1, timeout_ms: 2, memory_bytes: 3, outputs: 4, output_bytes: 5, state_bytes: 6 };
        let frames = [
            ToWorker::Load {
                function: 9,
                edition: 3,
                limits,
                settings: vec![("max".into(), "80".into())],
                permits: Permits {
                    base_topic: "sedge".into(),
                    publish: vec!["derived/#".parse().unwrap()],
                    grants: Grants { clock: true, random: false },
                },
                code: Bytes::from_static(b"code"),
            },
            ToWorker::Unload { function: 9, edition: 3 },
            ToWorker::Run(Job {
                id: 5,
                function: 9,
                edition: 3,
                scope: JobScope::Topic,
                resumes: true,
                on_trial: true,
                message: message(),
            }),
            ToWorker::State { job: 5, entries: vec![("k".into(), Bytes::from_static(b"v"))] },
            ToWorker::Forget,
        ];
        let mut wire = Vec::new();
        for frame in &frames {
            Encoder::new(&mut wire).to_worker(frame);
        }
        let mut wire = BytesMut::from(&wire[..]);
        for frame in frames {
            assert_eq!(ToWorker::decode(split_frame(&mut wire).unwrap().unwrap()).unwrap(), frame);
        }
        assert_eq!(split_frame(&mut wire), Ok(None));
    }

    #[test]
    fn an_outcome_comes_out_as_it_went_in() {
        let outcome = Outcome {
            verdict: Verdict::Done(vec![
                Output::Alert(Alert {
                    key: "k".into(),
                    severity: Severity::Critical,
                    status: AlertStatus::Resolved,
                    summary: "s".into(),
                    value: Some(-0.5),
                    labels: vec![("a".into(), "b".into())],
                }),
                Output::Publish(Publication {
                    topic: "t".into(),
                    payload: Bytes::from_static(b"p"),
                    content_type: None,
                    retain: true,
                }),
            ]),
            writes: vec![
                StateWrite { key: "x".into(), value: None },
                StateWrite { key: "y".into(), value: Some(Bytes::from_static(b"1")) },
            ],
            usage: Usage { fuel: 1, elapsed_us: 2, memory_bytes: 3, output_bytes: 4 },
        };
        let log = vec![LogLine { level: tracing::Level::WARN, text: "hot".into() }];
        let mut wire = Vec::new();
        Encoder::new(&mut wire).done(77, &outcome, &log, 3);
        let frame = split_frame(&mut BytesMut::from(&wire[..])).unwrap().unwrap();
        let FromWorker::Done { job, outcome: decoded, log: lines, log_lines_dropped } =
            FromWorker::decode(frame).unwrap()
        else {
            panic!("not an outcome")
        };
        assert_eq!((job, log_lines_dropped), (77, 3));
        assert_eq!(decoded.verdict, outcome.verdict);
        assert_eq!(decoded.writes, outcome.writes);
        assert_eq!(decoded.usage, outcome.usage);
        assert_eq!(lines, log);
    }

    #[test]
    fn every_failure_code_has_a_name_of_its_own() {
        for code in FailureCode::ALL {
            assert_eq!(FailureCode::from_name(code.as_str()), Some(code));
        }
    }

    proptest! {
        #[test]
        fn a_hostile_worker_cannot_make_the_daemon_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = FromWorker::decode(Bytes::from(bytes.clone()));
            let _ = ToWorker::decode(Bytes::from(bytes.clone()));
            let _ = split_frame(&mut BytesMut::from(&bytes[..]));
        }
    }
}
