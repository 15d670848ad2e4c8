//! Frames between daemon and worker over their socket pair, many to a system call.
//!
//! ```text
//! frame := length:u32le postcard(ToWorker | FromWorker)
//! ```
//!
//! Both ends are the same binary, so frames carry no version. The daemon still checks everything it reads: a function may
//! have taken over its worker. A malformed frame ends the worker.

use std::sync::Arc;

use bytes::{Buf as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use sedge_core::isa::Class;
use sedge_core::limits::Limits;
use sedge_core::message::{LogLine, Message, Outcome, wire};
use sedge_core::permits::Permits;
use sedge_core::settings::Settings;

/// Longest frame: one message, one outcome or one function's code.
const MAX_FRAME_BYTES: usize = 128 << 20;

/// Frame from the daemon. `J` is `&Job` where it is written.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum ToWorker<J = Job> {
    /// The engine for the scripts of a class. Comes before the first of them.
    Engine {
        class: Class,
        /// Empty when the code comes as a sealed file.
        #[serde(with = "wire::shared")]
        code: Bytes,
    },
    Load {
        function: u32,
        edition: u32,
        name: String,
        limits: Limits,
        settings: Box<Settings>,
        permits: Permits,
        /// Empty when the code comes as a sealed file.
        #[serde(with = "wire::shared")]
        code: Bytes,
    },
    Unload {
        function: u32,
        edition: u32,
    },
    /// What is remembered of the function's state is not what is stored: of these topics (`None`: shared by all), or of
    /// all if there are none.
    Forget {
        function: u32,
        topics: Vec<Option<Box<str>>>,
    },
    /// A job and its number on this socket.
    Run(u64, J),
    /// Answers [`FromWorker::NeedState`].
    State {
        job: u64,
        #[serde(with = "wire::entries")]
        entries: Vec<(Box<str>, Bytes)>,
    },
    /// Settings of loaded versions for the jobs that follow, by function and edition. Answered by [`FromWorker::Set`].
    Set {
        change: u64,
        settings: Vec<(u32, u32, Settings)>,
    },
}

/// One function for one message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Job {
    /// The daemon's own number, or in a worker that of [`ToWorker::Run`].
    #[serde(skip)]
    pub(crate) id: u64,
    pub(crate) function: u32,
    /// Installed version of the function. All editions share its state and the order of its keys.
    pub(crate) edition: u32,
    pub(crate) scope: JobScope,
    /// First job of its key after one that runs again: ends [`FromWorker::Held`].
    pub(crate) resumes: bool,
    /// The edition is on trial. If it misbehaves, another runs the message, and later jobs of the key wait.
    pub(crate) on_trial: bool,
    /// What the run reads of clocks and random numbers is part of its outcome.
    pub(crate) keeps_draws: bool,
    #[serde(with = "wire::arc")]
    pub(crate) message: Arc<Message>,
}

/// State that a job may read and write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum JobScope {
    None,
    /// The function's state for the message's topic.
    Topic,
    /// The function's state for all topics.
    Function,
}

/// Frame from a worker. `job` is the number that [`ToWorker::Run`] gave. `O` and `L` are references where it is written.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromWorker<O = Outcome, L = Vec<LogLine>> {
    Loaded {
        function: u32,
        edition: u32,
        error: Option<String>,
    },
    Done {
        job: u64,
        outcome: O,
        log: L,
        log_lines_dropped: u32,
    },
    /// The job waits for its state, and later jobs of its scope wait behind it.
    NeedState {
        job: u64,
    },
    /// The job did not run: an earlier job of its key runs again first.
    Held {
        job: u64,
    },
    /// The jobs that follow run with the settings of this change.
    Set {
        change: u64,
    },
}

/// The bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed frame")]
pub(crate) struct Malformed;

type Result<T> = std::result::Result<T, Malformed>;

/// Returns the length in the prefix at the front, without the prefix itself.
pub(crate) fn frame_length(buffer: &[u8]) -> Option<usize> {
    buffer.first_chunk::<4>().map(|prefix| u32::from_le_bytes(*prefix) as usize)
}

/// Splits one whole frame off the front, or makes room for the rest of it.
pub(crate) fn split_frame(buffer: &mut BytesMut) -> Result<Option<Bytes>> {
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

impl ToWorker {
    pub(crate) fn decode(frame: Bytes) -> Result<Self> {
        wire::decode(&frame).ok_or(Malformed)
    }
}

impl FromWorker {
    pub(crate) fn decode(frame: Bytes) -> Result<Self> {
        wire::decode(&frame).ok_or(Malformed)
    }
}

/// Appends frames to a buffer.
pub(crate) struct Encoder<'a>(&'a mut Vec<u8>);

impl<'a> Encoder<'a> {
    pub(crate) fn new(buffer: &'a mut Vec<u8>) -> Self {
        Self(buffer)
    }

    fn frame(&mut self, frame: &impl Serialize) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        let written = postcard::to_extend(frame, std::mem::take(self.0));
        *self.0 = written.expect("every type of a frame can be written");
        let length = u32::try_from(self.0.len() - start - 4).expect("a frame is below 4 GiB");
        self.0[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }

    pub(crate) fn encode_to_worker(&mut self, frame: &ToWorker) {
        self.frame(frame);
    }

    /// `number` is the job's number on this socket.
    pub(crate) fn run(&mut self, number: u64, job: &Job) {
        self.frame(&ToWorker::Run(number, job));
    }

    pub(crate) fn encode_from_worker(&mut self, frame: &FromWorker<&Outcome, &[LogLine]>) {
        self.frame(frame);
    }

    pub(crate) fn done(&mut self, job: u64, outcome: &Outcome, log: &[LogLine], log_lines_dropped: u32) {
        self.encode_from_worker(&FromWorker::Done { job, outcome, log, log_lines_dropped });
    }

    pub(crate) fn need_state(&mut self, job: u64) {
        self.encode_from_worker(&FromWorker::NeedState { job });
    }

    pub(crate) fn held(&mut self, job: u64) {
        self.encode_from_worker(&FromWorker::Held { job });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use sedge_core::grants::Grants;
    use sedge_core::message::{
        Alert, AlertStatus, Output, Publication, Reply, Severity, StateGrowth, StateWrite, Usage, Verdict, Wake,
    };
    use sedge_core::recording::Drawn;

    fn message() -> Message {
        Message {
            topic: "sensors/a".into(),
            payload: Bytes::from_static(b"21.5"),
            content_type: Some("application/json".into()),
            properties: vec![("id".into(), "7".into())],
            received_at_ms: 1,
            clock_synced: true,
            attempt: 2,
            retained: true,
            response_topic: Some("answers/7".into()),
            correlation_data: Some([0, 255].into()),
            trace: None,
        }
    }

    fn settings() -> Settings {
        let own = |text: &str| vec![("max".to_owned(), text.to_owned())];
        Settings { all: own("80"), topics: vec![("sensors/+".parse().unwrap(), own("90"))] }
    }

    #[test]
    fn frames_to_a_worker_are_decoded_as_they_were_encoded() {
        let limits = Limits { fuel: 1, timeout_ms: 2, memory_bytes: 3, outputs: 4, output_bytes: 5, state_bytes: 6 };
        let frames = [
            ToWorker::Engine { class: Class::Large, code: Bytes::from_static(b"engine") },
            ToWorker::Load {
                function: 9,
                edition: 3,
                name: "warm".into(),
                limits,
                settings: settings().into(),
                permits: Permits {
                    base_topic: "sedge".into(),
                    publish: vec!["derived/#".parse().unwrap()],
                    forward: Some(vec!["raw/+".parse().unwrap()]),
                    retain: None,
                    grants: Grants { clock: true, random: false },
                },
                code: Bytes::from_static(b"code"),
            },
            ToWorker::Unload { function: 9, edition: 3 },
            ToWorker::Set { change: 4, settings: vec![(9, 3, settings())] },
            ToWorker::Forget { function: 9, topics: vec![None, Some("a/b".into())] },
            ToWorker::Run(
                5,
                Job {
                    id: 0,
                    function: 9,
                    edition: 3,
                    scope: JobScope::Topic,
                    resumes: true,
                    on_trial: true,
                    keeps_draws: true,
                    message: message().into(),
                },
            ),
            ToWorker::State { job: 5, entries: vec![("k".into(), Bytes::from_static(b"v"))] },
        ];
        let mut wire = Vec::new();
        for frame in &frames {
            Encoder::new(&mut wire).encode_to_worker(frame);
        }
        let mut wire = BytesMut::from(&wire[..]);
        for frame in frames {
            assert_eq!(ToWorker::decode(split_frame(&mut wire).unwrap().unwrap()).unwrap(), frame);
        }
        assert_eq!(split_frame(&mut wire), Ok(None));
    }

    fn outcome() -> Outcome {
        let empty = Alert {
            key: String::new(),
            severity: Severity::Info,
            status: AlertStatus::Firing,
            summary: String::new(),
            value: None,
            labels: Vec::new(),
            sink: None,
        };
        Outcome {
            verdict: Verdict::Done(vec![
                Output::Alert(Alert {
                    key: "k".into(),
                    severity: Severity::Critical,
                    status: AlertStatus::Resolved,
                    summary: "s".into(),
                    value: Some(-0.5),
                    labels: vec![("a".into(), "b".into())],
                    sink: Some("mail".into()),
                }),
                Output::Alert(empty),
                Output::Publish(Publication {
                    topic: "t".into(),
                    payload: Bytes::from_static(b"p"),
                    content_type: None,
                    retain: true,
                    sink: Some("archive".into()),
                }),
                Output::Wake(Wake { name: "close".into(), after_ms: Some(300_000) }),
                Output::Wake(Wake { name: "open".into(), after_ms: None }),
                Output::Reply(Reply {
                    status: 404,
                    content_type: Some("text/plain".into()),
                    body: Bytes::from_static(b"none"),
                }),
            ]),
            writes: vec![
                StateWrite { key: "x".into(), value: None },
                StateWrite { key: "y".into(), value: Some(Bytes::from_static(b"1")) },
            ],
            growth: StateGrowth { bytes: -7, keys: -1, scopes: 1 },
            usage: Usage { fuel: 1, elapsed_us: 2, memory_bytes: 3, output_bytes: 4 },
            drawn: Some(Box::new(Drawn { clocks: vec![u64::MAX], random: vec![1, 255], is_cut: false })),
        }
    }

    fn encoded(write: impl FnOnce(&mut Encoder<'_>)) -> Bytes {
        let mut wire = Vec::new();
        write(&mut Encoder::new(&mut wire));
        split_frame(&mut BytesMut::from(&wire[..])).unwrap().unwrap()
    }

    #[test]
    fn an_outcome_is_decoded_as_it_was_encoded() {
        let outcome = outcome();
        let log = vec![LogLine { level: tracing::Level::WARN, text: "hot".into() }];
        let frame = encoded(|it| it.done(77, &outcome, &log, 3));
        let FromWorker::Done { job, outcome: decoded, log: lines, log_lines_dropped } =
            FromWorker::decode(frame).unwrap()
        else {
            panic!("not an outcome")
        };
        assert_eq!((job, log_lines_dropped), (77, 3));
        assert_eq!(decoded.verdict, outcome.verdict);
        assert_eq!(decoded.writes, outcome.writes);
        assert_eq!((decoded.usage, decoded.growth), (outcome.usage, outcome.growth));
        assert_eq!(decoded.drawn, outcome.drawn);
        assert_eq!(lines, log);
    }

    #[test]
    fn payloads_share_the_memory_of_their_frame() {
        let job = Job {
            id: 0,
            function: 1,
            edition: 0,
            scope: JobScope::None,
            resumes: false,
            on_trial: false,
            keeps_draws: false,
            message: Message { payload: vec![7; 5000].into(), ..message() }.into(),
        };
        let frame = encoded(|it| it.run(1, &job));
        let ToWorker::Run(1, decoded) = ToWorker::decode(frame.clone()).unwrap() else { panic!("not a job") };
        assert_eq!(decoded, job);
        assert!(frame.as_ptr_range().contains(&decoded.message.payload.as_ptr()));
    }

    #[test]
    fn a_frame_holds_one_value_and_no_more() {
        let frame = encoded(|it| it.held(1));
        assert!(FromWorker::decode(frame.slice(..frame.len() - 1)).is_err());
        assert!(FromWorker::decode([&frame[..], &[0]].concat().into()).is_err());
    }

    proptest! {
        #[test]
        fn a_damaged_frame_cannot_make_either_end_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let log = [LogLine { level: tracing::Level::WARN, text: "hot".into() }];
            let mut frame = encoded(|it| it.done(77, &outcome(), &log, 3)).to_vec();
            let at = at.index(frame.len());
            frame[at] = byte;
            let _ = FromWorker::decode(frame.clone().into());
            let _ = ToWorker::decode(frame.into());
        }

        #[test]
        fn a_hostile_worker_cannot_make_the_daemon_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = FromWorker::decode(Bytes::from(bytes.clone()));
            let _ = ToWorker::decode(Bytes::from(bytes.clone()));
            let _ = split_frame(&mut BytesMut::from(&bytes[..]));
        }
    }
}
