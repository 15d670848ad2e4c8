//! Everything that a board is told, and everything that it wants done. Both are closed: a new source or sink is a variant.

use std::sync::Arc;

use bytes::Bytes;

use super::follow::{Follow, FollowedRun};
use super::ids::{JobNo, Life, WorkerNo};
use super::mutes::Mute;
use super::taps::{RecordEvent, RecordOrder};
use crate::deploy::TrialEvent;
use crate::forward::{Answer, Destination, Envelope};
use crate::manifest::StateScope;
use crate::message::{LogLine, Message, Outcome, PublishToken};
use crate::recording::Why;
use crate::request::{Request, RequestId, Response};
use crate::settings::{Overlay, Settings};
use crate::store;
use crate::trace::Span;
use crate::version::Version;

/// A message from the broker with what it takes to acknowledge it.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Not checked to be UTF-8.
    pub topic: Bytes,
    pub payload: Bytes,
    pub content_type: Option<String>,
    pub properties: Vec<(String, String)>,
    pub response_topic: Option<String>,
    pub correlation_data: Option<Bytes>,
    /// Identifiers of the subscriptions that this copy is for. Empty when the broker has none.
    pub subscriptions: Vec<usize>,
    /// The broker says that it sent the message before.
    pub dup: bool,
    /// Kept by the broker from before the subscription, not published just now.
    pub retained: bool,
    /// `None` for QoS 0.
    pub ack: Option<AckToken>,
}

/// Acknowledges one delivery on the connection that it came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AckToken {
    pub packet_id: u16,
    pub connection: u32,
}

/// The keys and values of one scope's state.
pub type StateEntries = Vec<(Box<str>, Bytes)>;

#[derive(Debug)]
pub enum Input {
    /// A version of a function to run, at once or on trial.
    Deploy(Box<Version>),
    /// The function runs no more. Jobs under way are finished.
    Remove {
        function: Arc<str>,
    },
    /// Ends a trial or a shadow; the version before serves.
    DropCandidate {
        function: Arc<str>,
        edition: u32,
    },
    /// A version on trial, or a shadow, becomes the active one.
    Promote {
        function: Arc<str>,
        edition: u32,
    },
    /// Replaces what is laid over the settings of a function. Versions, state and trials stay. Answered by
    /// [`Effect::SettingsInForce`].
    Settings {
        function: Arc<str>,
        /// Names the change, and grows.
        change: u64,
        overlay: Overlay,
    },
    Broker(BrokerEvent),
    /// A request over HTTP, answered once by [`Effect::Respond`].
    Request(Request),
    /// What happened to the connection of a sink or to an envelope.
    Sink {
        destination: Destination,
        event: SinkEvent,
    },
    Store(store::StoreEvent),
    Worker {
        worker: WorkerNo,
        life: Life,
        event: WorkerEvent,
    },
    /// Record the runs of a function. Answered by [`Effect::Record`].
    Record(RecordOrder),
    /// End a recording before its time.
    EndRecording {
        id: Arc<str>,
        /// Only one of this function.
        function: Option<Arc<str>>,
        why: Why,
    },
    /// The alerts that are muted, in place of those before.
    Mute(Vec<Mute>),
    /// The views that are open, in place of those before. Answered by [`Effect::Follow`].
    Follow(Vec<Follow>),
    /// [`Board::poll_timeout`](super::Board::poll_timeout) has passed.
    Timeout,
    /// Nothing new is started. Deliveries stay unacknowledged and come again.
    Shutdown,
}

#[derive(Debug)]
pub enum BrokerEvent {
    /// `session_present`: the broker still has the session, with its subscriptions and queue.
    Connected {
        session_present: bool,
    },
    Disconnected,
    Delivery(Delivery),
    /// A delivery that is not for functions. Acknowledged in its turn.
    Other(Delivery),
    /// The broker numbers packets from 1 to 65,535 for each client and starts over only then.
    CountsUpwards,
    Unsubscribed {
        filter: String,
    },
}

#[derive(Debug)]
pub enum SinkEvent {
    Connected,
    Disconnected,
    Answered {
        token: PublishToken,
        answer: Answer,
    },
    /// There was no room for the envelope.
    Returned {
        token: PublishToken,
    },
}

#[derive(Debug)]
pub enum WorkerEvent {
    /// The process runs and can be given versions and jobs.
    Started,
    NotStarted {
        error: String,
    },
    Loaded {
        function: u32,
        edition: u32,
        error: Option<String>,
    },
    /// The job waits, and with it later ones of its scope, for [`WorkerCommand::State`].
    NeedState {
        job: JobNo,
    },
    /// Jobs that ran after [`WorkerCommand::Set`] had the settings of this change.
    Set {
        change: u64,
    },
    Done {
        job: JobNo,
        outcome: Outcome,
        log: Vec<LogLine>,
        log_lines_dropped: u32,
    },
    /// The job did not run: one before it in its key runs again first.
    Held {
        job: JobNo,
    },
    /// The process ended, or what it sent made no sense.
    Ended {
        status: String,
    },
}

/// What is to be done, in this order.
#[derive(Debug)]
pub enum Effect {
    /// Everything that came of the delivery is on disk.
    Acknowledge(AckToken),
    /// The answer to a request: everything that came of it is on disk, or nothing came of it.
    Respond {
        id: RequestId,
        response: Response,
    },
    Store(store::StoreRequest),
    Worker {
        worker: WorkerNo,
        life: Life,
        command: WorkerCommand,
    },
    Send {
        destination: Destination,
        token: PublishToken,
        envelope: Envelope,
    },
    Subscribe {
        filter: String,
        id: usize,
    },
    Unsubscribe {
        filter: String,
    },
    /// Break the connection and make a new one. The broker then delivers again what is not acknowledged, and envelopes
    /// without an answer are sent again.
    Reconnect(Destination),
    /// A function was paused because it kept failing, or works again.
    Paused {
        function: Arc<str>,
        is_paused: bool,
    },
    /// Messages are taken one at a time, and this one is next. To be noted before anything that follows, and `None` when it
    /// is done.
    Alone(Option<u64>),
    /// Messages are taken as usual again: forget earlier ends of the daemon, and make a new connection.
    CautionEnded,
    /// What became of a version.
    Deployed {
        function: Arc<str>,
        edition: u32,
        event: TrialEvent,
    },
    /// No job runs with older settings of the function any more.
    SettingsInForce {
        function: Arc<str>,
        change: u64,
    },
    /// What becomes of a recording. Losing it costs no message.
    Record {
        id: Arc<str>,
        event: RecordEvent,
    },
    /// A run for the views that it names. Losing it costs no message.
    Follow(Box<FollowedRun>),
    /// Spans of one trace that have ended. Losing them costs no message.
    Traced(Vec<Span>),
    /// Invariants break again and again: end the process, the service manager starts it anew.
    Abort {
        invariant: &'static str,
    },
}

#[derive(Debug)]
pub enum WorkerCommand {
    /// Start a process. Answered by [`WorkerEvent::Started`] or [`WorkerEvent::NotStarted`].
    Start,
    /// End the process. [`WorkerEvent::Ended`] follows, of a life that no longer counts.
    Kill,
    Load(Load),
    Unload {
        function: u32,
        edition: u32,
    },
    /// Replaces the settings of loaded versions for all jobs that follow. Answered by [`WorkerEvent::Set`].
    Set {
        change: u64,
        loads: Vec<Load>,
    },
    /// What the worker remembers of the function's state is not what is stored: of these topics (`None`: shared by all),
    /// or of all if there are none.
    Forget {
        function: u32,
        topics: Vec<Option<Arc<str>>>,
    },
    Run {
        number: JobNo,
        job: Job,
    },
    State {
        job: JobNo,
        entries: StateEntries,
    },
}

/// A version as a worker is given it: under the number of its function, with all settings.
#[derive(Clone, Debug)]
pub struct Load {
    pub function: u32,
    pub version: Arc<Version>,
    pub settings: Arc<Settings>,
}

/// One function for one message.
#[derive(Clone, Debug)]
pub struct Job {
    pub id: super::JobId,
    /// Which version of the function. All share its state and its place in the order of its keys.
    pub edition: u32,
    pub scope: StateScope,
    /// First of its key after one that is to run again: ends what [`WorkerEvent::Held`] is about.
    pub resumes: bool,
    /// If the version misbehaves, another one runs the message, and those behind it wait.
    pub on_trial: bool,
    /// What it reads of clocks and random numbers is recorded.
    pub keeps_draws: bool,
    pub message: Arc<Message>,
    pub weight: super::Weight,
}
