//! State machine of one receiver and the streams that go to it. Events go in, steps come out; no I/O and no clock.
//!
//! Streams are in order of precedence. While one has records to send, in memory or on disk, no later one sends. Gaps are
//! reported after alerts and before data.
//!
//! A declined record holds its stream (head-of-line blocking). It is retried alone, with growing pauses in which other
//! streams continue. When the lane's patience is over, the record becomes a gap and its topic is remembered. A later
//! record of that topic is given up as soon as it is declined, if the receiver has accepted anything since. Otherwise it
//! has the full patience: a receiver that declines everything for a while costs one record per stream in that time. The
//! lane of the local broker remembers such topics over a restart, since local functions wait behind them.
//!
//! [`Answer::Retry`] pauses its stream and later ones. It says that nothing is accepted now, but some gateways answer so when
//! the program behind them fails over one record. When the patience with such a record is over, it is set aside and the next
//! envelope is sent: if the receiver accepts that one, the record was at fault and becomes a gap; otherwise it is next again.
//!
//! Some brokers decline by closing the connection, and networks break young connections too. After a connection that
//! broke before anything was accepted the lane is careful: it waits until the next connection has stood for a while, and
//! sends one envelope at a time until one is accepted. A record over which such a connection breaks counts as declined.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::envelope::{Envelope, EnvelopeBuilder};
use super::tail::{Tail, TailLimits};
use super::{Action, Destination};
use crate::message::PublishToken;
use crate::store::{Gap, GapId, RecordId, Recovered, StoreRequest};
use crate::stream::{PerStream, Stream, StreamKind};
use crate::time::Backoff;
use crate::trace::TraceContext;

/// Records per stream in memory.
const WINDOW_RECORDS: usize = 2048;

/// First pause after a receiver answered [`Answer::Retry`].
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Longest pause that a receiver can ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// Reason of a record that was never accepted while others were.
const NEVER_ACCEPTED: &str = "never-accepted";

/// Tries before a record is given up, however long ago the first was.
const LEAST_TRIES: u32 = 3;

/// Age of a connection that no longer counts as young.
const STEADY: Duration = Duration::from_secs(2);

/// Topics remembered as given up. A forgotten topic has the full patience again.
const GIVEN_UP_TOPICS: usize = 64;

/// Longest topic that is kept over a restart. A longer one has the full patience again.
const SAVED_TOPIC_BYTES: usize = 1024;

/// Answer of a receiver to one envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Accepted,
    /// Never accepted. The reason is short and without variable parts, since gaps are folded by reason.
    Refused(Box<str>),
    /// Not accepted, now or for ever, for a cause that other records may not share, such as a forbidden topic. The
    /// reason is as short.
    Declined(Box<str>),
    /// Nothing is accepted now. The pause is at least `after`, and then also of streams before this one.
    Retry {
        reason: String,
        after: Option<Duration>,
    },
}

#[derive(Debug)]
pub(crate) struct Lane {
    destination: Destination,
    builder: EnvelopeBuilder,
    streams: Vec<LaneStream>,
    gaps: Vec<PendingGap>,
    /// Number and bytes of the records that were accepted and that the store has dropped, by the gap that is not to count them.
    late: BTreeMap<GapId, (u64, u64)>,
    /// The oldest record that the store has dropped and the local broker may have.
    local_dropped: Option<RecordId>,
    /// Number to report to the store when all of `gaps` are reported.
    gaps_through: GapId,
    /// Sent and not answered. Tokens are never reused, so an answer from an earlier connection finds nothing.
    in_flight: BTreeMap<PublishToken, (InFlight, Instant)>,
    in_flight_limit: usize,
    /// How long an answer may take. `None`: the sender itself ends what takes too long.
    answer_timeout: Option<Duration>,
    /// An answer took too long, and the connection is being broken.
    breaking: bool,
    next_token: u64,
    connected: bool,
    /// A careful lane has begun its wait on this connection.
    waited: bool,
    /// `accepted` when the connection began.
    accepted_before: u64,
    /// The last connection broke before anything was accepted.
    careful: bool,
    /// The channel to the receiver had no room.
    full: bool,
    paused_until: Option<Instant>,
    gap_trouble: Trouble,
    /// How long a declined record is retried. `None`: until it is accepted or the store drops it.
    patience: Option<Duration>,
    /// Topics whose records were given up, with `accepted` at that time. `None`: in an earlier run.
    given_up: VecDeque<(Box<str>, Option<u64>)>,
    /// Key under which the store keeps these topics.
    given_up_key: Option<&'static str>,
    /// Envelopes that the receiver has accepted.
    accepted: u64,
    /// Records of recorded traces that were accepted or given up since this was last taken.
    sent: Vec<SentRecord>,
    /// Refusals and reported gaps. Watermarks follow them.
    requests: Vec<StoreRequest>,
    watermarks: PerStream<Option<RecordId>>,
}

/// One stream of the lane.
#[derive(Debug)]
struct LaneStream {
    stream: Stream,
    tail: Tail,
    hold: Option<Hold>,
    backoff: Backoff,
    trouble: Trouble,
}

/// What [`Answer::Retry`] means for one stream, or for the gaps.
#[derive(Debug)]
struct Trouble {
    backoff: Backoff,
    paused_until: Option<Instant>,
    /// First token after the last pause. Success of an earlier one proves nothing.
    resumed: PublishToken,
    /// The oldest envelope that fails, and those after it that failed while all before were set aside.
    failing: Vec<Failing>,
}

/// Envelope that was answered with [`Answer::Retry`] and has not been accepted since.
#[derive(Debug)]
struct Failing {
    item: InFlight,
    since: Instant,
    tries: u32,
    /// It waits for the answer to the envelope after it, and counts as sent.
    is_aside: bool,
    /// First token after its last try. If such an envelope is accepted, the receiver works.
    tried_before: PublishToken,
    others_pass: bool,
}

/// First declined record of a stream.
#[derive(Debug)]
struct Hold {
    id: RecordId,
    since: Instant,
    tries: u32,
    /// End of the pause. `None`: the record may be sent.
    until: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum InFlight {
    Record(Stream, RecordId),
    /// Index in `gaps`.
    Gap(usize),
}

/// Number and bytes of records that the receiver accepted and the store has dropped and counts in a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Late {
    gap: GapId,
    size: (u64, u64),
}

#[derive(Debug)]
struct PendingGap {
    id: GapId,
    gap: Gap,
    state: GapState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GapState {
    Waiting,
    Sent,
    Done,
}

/// A record of a recorded trace, of which it is known whether its receiver has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SentRecord {
    pub(crate) trace: Arc<TraceContext>,
    pub(crate) destination: Destination,
    pub(crate) stream: Stream,
    pub(crate) id: RecordId,
    /// As receivers see it.
    pub(crate) message_id: String,
    pub(crate) topic: Box<str>,
    /// When it was sent at last. `None`: it is given up.
    pub(crate) since: Option<Instant>,
    /// Why the receiver does not have it.
    pub(crate) error: Option<Box<str>>,
}

/// How much a lane sends, and how long it waits.
#[derive(Clone, Debug)]
pub(crate) struct LaneLimits {
    /// Envelopes without an answer.
    pub(crate) in_flight: usize,
    /// Bytes of one stream's records in memory.
    pub(crate) window_bytes: usize,
    /// How long an answer may take. `None`: the sender itself ends what takes too long.
    pub(crate) answer_timeout: Option<Duration>,
    pub(crate) backoff: Backoff,
    /// How long a declined record is retried. `None`: until it is accepted or the store drops it.
    pub(crate) patience: Option<Duration>,
    /// Key under which the store keeps the topics whose records were given up. `None`: a restart forgets them.
    pub(crate) given_up_key: Option<&'static str>,
}

impl Lane {
    pub(crate) fn new(
        destination: Destination,
        streams: &[Stream],
        builder: EnvelopeBuilder,
        recovered: &Recovered,
        limits: LaneLimits,
    ) -> Self {
        let LaneLimits { in_flight: in_flight_limit, window_bytes, answer_timeout, backoff, patience, given_up_key } =
            limits;
        let window = TailLimits { records: WINDOW_RECORDS, bytes: window_bytes };
        let entry = |stream: &Stream| {
            let tail = Tail::new(window, recovered.delivered[*stream], recovered.last[*stream]);
            LaneStream { stream: *stream, tail, hold: None, backoff: backoff.clone(), trouble: Trouble::new(&backoff) }
        };
        let streams = streams.iter().map(entry).collect();
        Self {
            destination,
            builder,
            streams,
            gaps: Vec::new(),
            late: BTreeMap::new(),
            local_dropped: None,
            gaps_through: GapId::default(),
            in_flight: BTreeMap::new(),
            in_flight_limit,
            answer_timeout,
            breaking: false,
            next_token: 1,
            connected: false,
            waited: false,
            accepted_before: 0,
            careful: false,
            full: false,
            paused_until: None,
            gap_trouble: Trouble::new(&backoff),
            patience,
            given_up: saved_topics(recovered, given_up_key).lines().map(|topic| (topic.into(), None)).collect(),
            given_up_key,
            accepted: 0,
            sent: Vec::new(),
            requests: Vec::new(),
            watermarks: PerStream::default(),
        }
    }

    pub(crate) fn tail(&mut self, stream: Stream) -> &mut Tail {
        &mut self.stream(stream).tail
    }

    fn stream(&mut self, stream: Stream) -> &mut LaneStream {
        find(&mut self.streams, stream)
    }

    /// Adds gaps to report. The store sends the next ones only after these are reported.
    pub(crate) fn gaps(&mut self, gaps: Vec<(GapId, Gap)>) {
        self.gaps_through = gaps.last().map_or(self.gaps_through, |(id, _)| self.gaps_through.max(*id));
        self.gaps.extend(gaps.into_iter().map(|(id, gap)| PendingGap { id, gap, state: GapState::Waiting }));
    }

    /// The store has dropped records, see `StoreEvent::Dropped`. Those that the receiver may have are sent until that is known.
    /// Returns those that it is known to have.
    pub(crate) fn dropped(&mut self, stream: Stream, gap: GapId, ranges: &[(RecordId, RecordId)]) -> Late {
        let LaneStream { tail, hold, trouble, .. } = self.stream(stream);
        let size = tail.dropped(gap, ranges);
        let is_gone = |id: RecordId| tail.sent(id).is_none() && !tail.is_waiting(id);
        hold.take_if(|hold| is_gone(hold.id));
        trouble.failing.retain(|failing| !matches!(failing.item, InFlight::Record(_, id) if is_gone(id)));
        Late { gap, size }
    }

    /// Memory of the records in the windows of its streams.
    pub(crate) fn bytes(&self) -> usize {
        self.streams.iter().map(|it| it.tail.bytes()).sum()
    }

    pub(crate) fn oldest_dropped(&self, stream: Stream) -> Option<RecordId> {
        self.streams.iter().find(|it| it.stream == stream)?.tail.oldest_dropped()
    }

    pub(crate) fn local_dropped(&self) -> Option<RecordId> {
        self.local_dropped
    }

    /// What the lane of the local broker knows of dropped records.
    pub(crate) fn set_local_dropped(&mut self, oldest: Option<RecordId>) {
        self.local_dropped = oldest;
    }

    /// Records were accepted that the store has dropped.
    pub(crate) fn accepted_late(&mut self, Late { gap, size }: Late) {
        let (records, bytes) = self.late.entry(gap).or_default();
        (*records, *bytes) = (*records + size.0, *bytes + size.1);
    }

    pub(crate) fn connected(&mut self) {
        self.connected = true;
        self.waited = false;
        self.accepted_before = self.accepted;
        self.full = false;
        self.paused_until = None;
        self.troubles().for_each(|trouble| trouble.paused_until = None);
    }

    fn all_troubles(&self) -> impl Iterator<Item = &Trouble> {
        self.streams.iter().map(|entry| &entry.trouble).chain([&self.gap_trouble])
    }

    fn troubles(&mut self) -> impl Iterator<Item = &mut Trouble> {
        self.streams.iter_mut().map(|entry| &mut entry.trouble).chain([&mut self.gap_trouble])
    }

    /// Requeues everything without an answer for the next connection.
    pub(crate) fn disconnected(&mut self, now: Instant) {
        self.connected = false;
        self.breaking = false;
        let broke: Vec<InFlight> = std::mem::take(&mut self.in_flight).into_values().map(|(item, _)| item).collect();
        if let [InFlight::Record(stream, id)] = broke[..]
            && self.careful
        {
            self.declined(stream, id, "connection-broken".into(), now);
        }
        self.careful |= !broke.is_empty() && self.accepted == self.accepted_before;
        self.troubles().flat_map(|trouble| &mut trouble.failing).for_each(|failing| failing.is_aside = false);
        for entry in &mut self.streams {
            entry.tail.rewind();
        }
        for gap in &mut self.gaps {
            if gap.state == GapState::Sent {
                gap.state = GapState::Waiting;
            }
        }
    }

    /// Returns the stream if a record was accepted, and the record if the store had dropped it.
    pub(crate) fn answered(
        &mut self,
        token: PublishToken,
        answer: Answer,
        now: Instant,
    ) -> Option<(Stream, Option<Late>)> {
        self.full = false;
        let (item, since) = self.in_flight.remove(&token)?;
        let accepted = answer == Answer::Accepted;
        if accepted {
            self.accepted += 1;
            self.careful = false;
        }
        let trouble = self.trouble(item);
        if (accepted || matches!(answer, Answer::Refused(_))) && token >= trouble.resumed {
            trouble.backoff.succeeded();
        }
        if !matches!(answer, Answer::Retry { .. }) {
            if trouble.failing.iter().any(|failing| failing.item == item) {
                // What failed with it failed for the same cause.
                self.take_back(now);
                self.trouble(item).failing.clear();
            }
            self.probed(token, accepted, now);
        }
        match (item, answer) {
            (InFlight::Record(stream, id), Answer::Accepted) => {
                self.reinstate_topic(stream, id);
                self.note_sent(stream, id, Some(since), None);
                let tail = &mut self.stream(stream).tail;
                let size = tail.accepted(id);
                let late = tail.gap_of(id).map(|gap| Late { gap, size });
                self.done(stream, id);
                return Some((stream, late));
            }
            (InFlight::Record(stream, id), Answer::Refused(reason)) => self.drop_record(stream, id, reason),
            (InFlight::Record(stream, id), Answer::Declined(reason)) => self.declined(stream, id, reason, now),
            (InFlight::Gap(place), Answer::Accepted | Answer::Refused(_) | Answer::Declined(_)) => {
                // A receiver that refuses gap reports must not stop the data behind them.
                self.gap_done(place);
            }
            (item, Answer::Retry { after, .. }) => self.failed(item, after, now),
        }
        None
    }

    fn trouble(&mut self, item: InFlight) -> &mut Trouble {
        match item {
            InFlight::Record(stream, _) => &mut self.stream(stream).trouble,
            InFlight::Gap(_) => &mut self.gap_trouble,
        }
    }

    /// The receiver accepts nothing now, or fails over this envelope.
    fn failed(&mut self, item: InFlight, after: Option<Duration>, now: Instant) {
        let next = PublishToken(self.next_token);
        let is_probe = self.aside().is_some();
        let failing = &mut self.trouble(item).failing;
        if let Some(failing) = failing.iter_mut().find(|failing| failing.item == item) {
            failing.tries += 1;
            failing.tried_before = next;
        } else {
            if !is_probe && failing.first().is_some_and(|failing| failing.item > item) {
                failing.clear();
            }
            if is_probe || failing.is_empty() {
                let (since, tried_before) = (now, next);
                failing.push(Failing { item, since, tries: 1, is_aside: false, tried_before, others_pass: false });
            }
        }
        if let Some(after) = after {
            let until = now + after.min(LONGEST_PAUSE);
            self.paused_until = Some(self.paused_until.map_or(until, |other| other.max(until)));
        }
        if !self.is_suspect(item, now) {
            self.trouble(item).failing.iter_mut().for_each(|failing| failing.others_pass = false);
            // If it was to show whether the receiver works, it shows that it does not.
            self.take_back(now);
            self.requeue(item);
            return self.pause(item, now);
        }
        // The next envelope is sent at once: the receiver hardly recovers in between.
        let failing = &mut self.trouble(item).failing;
        let failing = failing.iter_mut().find(|failing| failing.item == item).expect("a suspect fails");
        failing.is_aside = true;
        if failing.others_pass {
            self.give_up_failing(item);
        }
    }

    /// Pauses a stream, or the gaps. Envelopes in flight together fail together: one pause for all of them.
    fn pause(&mut self, item: InFlight, now: Instant) {
        let (resumed, least) = (PublishToken(self.next_token), self.paused_until);
        let trouble = self.trouble(item);
        if trouble.paused_until.is_none_or(|until| until <= now) {
            let until = now + trouble.backoff.failed();
            trouble.paused_until = Some(least.map_or(until, |least| least.max(until)));
            trouble.resumed = resumed;
        }
    }

    /// Whether the patience with an envelope that was answered with [`Answer::Retry`] is over.
    fn is_suspect(&mut self, item: InFlight, now: Instant) -> bool {
        let Some(patience) = self.patience else { return false };
        let failing = self.trouble(item).failing.iter().find(|failing| failing.item == item);
        let Some((tries, since)) = failing.map(|failing| (failing.tries, failing.since)) else { return false };
        let is_hopeless = |lane: &mut Self| match item {
            InFlight::Record(stream, id) => {
                let sent = lane.stream(stream).tail.sent(id).expect("a record in flight is in its tail");
                let topic = sent.record.topic.clone();
                lane.is_hopeless(&topic)
            }
            InFlight::Gap(_) => false,
        };
        tries >= LEAST_TRIES && (now.duration_since(since) >= patience || is_hopeless(self))
    }

    /// Draws from an answer what it says about envelopes that fail: while others are accepted, those are at fault.
    fn probed(&mut self, token: PublishToken, accepted: bool, now: Instant) {
        if !accepted {
            return self.take_back(now);
        }
        for failing in self.troubles().flat_map(|trouble| &mut trouble.failing) {
            failing.others_pass |= token >= failing.tried_before;
        }
        let all = self.all_troubles().flat_map(|trouble| &trouble.failing);
        let at_fault: Vec<InFlight> =
            all.filter(|failing| failing.is_aside && failing.others_pass).map(|failing| failing.item).collect();
        at_fault.into_iter().for_each(|item| self.give_up_failing(item));
    }

    /// The first envelope that is set aside.
    fn aside(&self) -> Option<InFlight> {
        self.all_troubles().flat_map(|trouble| &trouble.failing).find(|it| it.is_aside).map(|it| it.item)
    }

    /// Queues what was set aside again.
    fn take_back(&mut self, now: Instant) {
        while let Some(item) = self.aside() {
            self.trouble(item).failing.iter_mut().filter(|it| it.item == item).for_each(|it| it.is_aside = false);
            self.requeue(item);
            self.pause(item, now);
        }
    }

    fn give_up_failing(&mut self, item: InFlight) {
        self.trouble(item).failing.retain(|failing| failing.item != item);
        match item {
            InFlight::Record(stream, id) if self.tail(stream).gap_of(id).is_some() => self.done(stream, id),
            InFlight::Record(stream, id) => {
                let sent = self.stream(stream).tail.sent(id).expect("a record that is set aside is in its tail");
                let topic = sent.record.topic.clone();
                tracing::warn!(
                    ?stream,
                    id = id.0,
                    topic = &*topic,
                    "the receiver accepts others and never this record; it is given up"
                );
                self.remember_given_up(topic);
                self.drop_record(stream, id, NEVER_ACCEPTED.into());
            }
            InFlight::Gap(place) => self.gap_done(place),
        }
    }

    /// Requeues an envelope for which the channel had no room. Sending continues after the next answer.
    pub(crate) fn returned(&mut self, token: PublishToken) {
        if let Some((item, _)) = self.in_flight.remove(&token) {
            self.requeue(item);
            self.full = true;
        }
    }

    /// Starts over with a reopened store, on the same file or a new one. Requests and answers in between are void.
    pub(crate) fn reopened(&mut self, recovered: &Recovered, builder: EnvelopeBuilder) {
        self.builder = builder;
        self.requests.clear();
        self.watermarks = PerStream::default();
        self.in_flight.clear();
        // The store sends unreported gaps anew, perhaps grown.
        self.gaps.clear();
        self.late.clear();
        for entry in &mut self.streams {
            entry.tail.reopened(recovered.delivered[entry.stream], recovered.last[entry.stream]);
            // The id may be that of another file.
            entry.hold = None;
        }
        self.troubles().for_each(|trouble| trouble.failing.clear());
        if self.topics_to_save() != saved_topics(recovered, self.given_up_key) {
            self.save_given_up();
        }
    }

    /// Next step, until `None`. Callers feed all events at hand first, so that one watermark covers them.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Action> {
        if !self.requests.is_empty() {
            return Some(Action::Store(self.requests.remove(0)));
        }
        for entry in &self.streams {
            if let Some(through) = self.watermarks[entry.stream].take() {
                return Some(Action::Store(StoreRequest::Delivered { stream: entry.stream, through }));
            }
        }
        for entry in &mut self.streams {
            // Before the next load: the store takes what it reads then for what is held.
            if let Some(held) = entry.tail.take_behind() {
                return Some(Action::Store(StoreRequest::Behind { stream: entry.stream, held }));
            }
            if let Some(load) = entry.tail.load() {
                let (stream, after, max_bytes) = (entry.stream, load.after, load.max_bytes);
                return Some(Action::Store(StoreRequest::ReadOutbox { stream, after, max_bytes }));
            }
        }
        self.end_pauses(now);
        if self.answer_due().is_some_and(|at| at <= now) {
            // An envelope must not be repeated on the same connection, so that is made anew.
            tracing::warn!(destination = ?self.destination, "the receiver did not answer in time; its connection is broken");
            self.breaking = true;
            return Some(Action::Reconnect { destination: self.destination });
        }
        if self.connected && self.careful && !self.waited {
            self.waited = true;
            self.paused_until = Some(now + STEADY);
        }
        if !self.connected || self.full || self.paused_until.is_some() || self.awaits_answers() {
            return None;
        }
        let mut next = self.next_envelope();
        if next.is_none() && self.in_flight.is_empty() && self.aside().is_some() {
            // There is nothing that could show whether the receiver works.
            self.take_back(now);
            next = self.next_envelope();
        }
        let Some((item, envelope)) = next else {
            // The gaps of which all was delivered.
            return self.requests.pop().map(Action::Store);
        };
        let token = PublishToken(self.next_token);
        self.next_token += 1;
        self.in_flight.insert(token, (item, now));
        Some(Action::Send { destination: self.destination, token, envelope })
    }

    /// Whether nothing more is sent before the receiver answers.
    pub(crate) fn awaits_answers(&self) -> bool {
        let is_single = self.careful || self.aside().is_some();
        self.in_flight.len() >= if is_single { 1 } else { self.in_flight_limit }
    }

    /// Time of the next poll if nothing happens before.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        let holds = self.streams.iter().filter_map(|entry| entry.hold.as_ref()?.until);
        let pauses = self.all_troubles().filter_map(|trouble| trouble.paused_until);
        self.paused_until
            .into_iter()
            .chain(holds)
            .chain(pauses)
            .chain(self.answer_due())
            .min()
            .filter(|_| self.connected)
    }

    /// When the oldest envelope in flight must have been answered.
    fn answer_due(&self) -> Option<Instant> {
        let (_, (_, sent)) = self.in_flight.first_key_value().filter(|_| self.connected && !self.breaking)?;
        Some(*sent + self.answer_timeout?)
    }

    fn end_pauses(&mut self, now: Instant) {
        let over = |until: &mut Option<Instant>| {
            until.take_if(|until| *until <= now);
        };
        over(&mut self.paused_until);
        self.troubles().for_each(|trouble| over(&mut trouble.paused_until));
        self.streams.iter_mut().filter_map(|entry| entry.hold.as_mut()).for_each(|hold| over(&mut hold.until));
    }

    fn next_envelope(&mut self) -> Option<(InFlight, Envelope)> {
        // A held record that is due is sent when nothing else is in flight, and nothing else until its answer.
        let due = self
            .streams
            .iter()
            .find_map(|entry| entry.hold.as_ref().filter(|hold| hold.until.is_none()).map(|_| entry.stream));
        if due.is_some() && !self.in_flight.is_empty() {
            return None;
        }
        let mut gap = self.next_gap();
        for LaneStream { stream, tail, hold, trouble, .. } in &mut self.streams {
            if due.is_some_and(|due| due != *stream) {
                continue;
            }
            if hold.as_ref().is_some_and(|hold| hold.until.is_some()) {
                continue;
            }
            if due.is_none()
                && stream.kind() != StreamKind::Alert
                && let Some((place, gap)) = gap.take()
            {
                if self.gap_trouble.paused_until.is_some() {
                    return None;
                }
                self.gaps[place].state = GapState::Sent;
                return Some((InFlight::Gap(place), self.builder.gap(&gap)));
            }
            if trouble.paused_until.is_some() && tail.has_waiting() {
                return None;
            }
            if let Some(stored) = tail.next() {
                return Some((InFlight::Record(*stream, stored.id), self.builder.record(stored)));
            }
            if tail.has_waiting() {
                return None;
            }
        }
        None
    }

    /// The next gap of which it is known how much was delivered after all, without that.
    fn next_gap(&mut self) -> Option<(usize, Gap)> {
        for place in 0..self.gaps.len() {
            let PendingGap { id, gap, state } = &self.gaps[place];
            let is_local = gap.stream == Stream::LOCAL;
            let open = if is_local { self.local_dropped } else { self.oldest_dropped(gap.stream) };
            if *state != GapState::Waiting || open.is_some_and(|oldest| oldest <= gap.last_id) {
                continue;
            }
            let (records, bytes) = self.late.get(id).copied().unwrap_or_default();
            let mut gap = gap.clone();
            (gap.records, gap.bytes) = (gap.records.saturating_sub(records), gap.bytes.saturating_sub(bytes));
            if gap.records > 0 {
                return Some((place, gap));
            }
            self.gaps[place].state = GapState::Done;
        }
        self.end_gaps();
        None
    }

    fn gap_done(&mut self, place: usize) {
        self.gaps[place].state = GapState::Done;
        self.end_gaps();
    }

    fn end_gaps(&mut self) {
        if self.gaps.is_empty() || self.gaps.iter().any(|gap| gap.state != GapState::Done) {
            return;
        }
        for PendingGap { id, .. } in self.gaps.drain(..) {
            self.late.remove(&id);
        }
        if let Destination::Sink(sink) = self.destination {
            self.requests.push(StoreRequest::GapsReported { sink, through: self.gaps_through });
        }
    }

    fn declined(&mut self, stream: Stream, id: RecordId, reason: Box<str>, now: Instant) {
        if self.tail(stream).gap_of(id).is_some() {
            return self.done(stream, id);
        }
        let patience = self.patience;
        let sent = self.stream(stream).tail.sent(id).expect("a record in flight is in its tail");
        let topic = sent.record.topic.clone();
        if patience.is_some() && self.is_hopeless(&topic) {
            return self.drop_record(stream, id, reason);
        }
        let entry = find(&mut self.streams, stream);
        match &mut entry.hold {
            Some(hold) if hold.id == id => {
                hold.tries += 1;
                let over = patience.is_some_and(|patience| now.duration_since(hold.since) >= patience);
                if over && hold.tries >= LEAST_TRIES {
                    self.remember_given_up(topic);
                    return self.drop_record(stream, id, reason);
                }
                hold.until = Some(now + entry.backoff.failed());
            }
            // An earlier record is held already.
            Some(hold) if hold.id < id => {}
            hold => {
                let (topic, reason) = (&*topic, &*reason);
                tracing::warn!(?stream, id = id.0, topic, reason, "the receiver declined a record; its stream waits");
                entry.backoff.succeeded();
                *hold = Some(Hold { id, since: now, tries: 1, until: Some(now + entry.backoff.failed()) });
            }
        }
        entry.tail.requeue(id);
    }

    /// Whether a record of this topic was given up, and the receiver has accepted anything since.
    fn is_hopeless(&self, topic: &str) -> bool {
        let accepted = self.accepted;
        self.given_up.iter().any(|(other, then)| **other == *topic && then.is_none_or(|then| accepted > then))
    }

    fn remember_given_up(&mut self, topic: Box<str>) {
        self.given_up.retain(|(other, _)| *other != topic);
        self.given_up.truncate(GIVEN_UP_TOPICS - 1);
        self.given_up.push_front((topic, Some(self.accepted)));
        self.save_given_up();
    }

    /// Gives a record up. It becomes part of a gap.
    fn drop_record(&mut self, stream: Stream, id: RecordId, reason: Box<str>) {
        self.note_sent(stream, id, None, Some(&*reason));
        // Before the watermark: after it the store no longer has the record and could not report the gap.
        self.requests.push(StoreRequest::Refused { stream, id, reason });
        self.done(stream, id);
    }

    /// Notes the end of sending, if the board records the trace of the record.
    fn note_sent(&mut self, stream: Stream, id: RecordId, since: Option<Instant>, error: Option<&str>) {
        let Some(stored) = find(&mut self.streams, stream).tail.sent(id) else { return };
        let Some(trace) = stored.record.trace.as_ref().filter(|trace| trace.is_recorded()) else { return };
        self.sent.push(SentRecord {
            trace: Arc::clone(trace),
            destination: self.destination,
            stream,
            id,
            message_id: self.builder.id(stream, id),
            topic: stored.record.topic.clone(),
            since,
            error: error.map(Into::into),
        });
    }

    /// What was noted since this was last called.
    pub(crate) fn take_sent(&mut self) -> Vec<SentRecord> {
        std::mem::take(&mut self.sent)
    }

    /// Forgets that the topic of an accepted record was given up.
    fn reinstate_topic(&mut self, stream: Stream, id: RecordId) {
        if self.given_up.is_empty() {
            return;
        }
        let sent = self.stream(stream).tail.sent(id).expect("a record in flight is in its tail");
        let topic = sent.record.topic.clone();
        let before = self.given_up.len();
        self.given_up.retain(|(other, _)| **other != *topic);
        if self.given_up.len() < before {
            self.save_given_up();
        }
    }

    fn save_given_up(&mut self) {
        if let Some(key) = self.given_up_key {
            self.requests.push(StoreRequest::SetMeta { key, value: self.topics_to_save().into() });
        }
    }

    /// Topics as the store keeps them: one per line, since no topic has a line end.
    fn topics_to_save(&self) -> String {
        let topics = self.given_up.iter().map(|(topic, _)| &**topic);
        topics.filter(|topic| topic.len() <= SAVED_TOPIC_BYTES).collect::<Vec<_>>().join("\n")
    }

    fn done(&mut self, stream: Stream, id: RecordId) {
        let entry = self.stream(stream);
        entry.hold.take_if(|hold| hold.id == id);
        entry.trouble.failing.retain(|failing| failing.item != InFlight::Record(stream, id));
        if let Some(through) = entry.tail.done(id) {
            self.watermarks[stream] = Some(through);
        }
    }

    fn requeue(&mut self, item: InFlight) {
        match item {
            // The receiver does not have it, and the store has counted it.
            InFlight::Record(stream, id) if self.tail(stream).gap_of(id).is_some() => self.done(stream, id),
            InFlight::Record(stream, id) => self.tail(stream).requeue(id),
            InFlight::Gap(place) => self.gaps[place].state = GapState::Waiting,
        }
    }
}

impl Trouble {
    fn new(backoff: &Backoff) -> Self {
        Self { backoff: backoff.clone(), paused_until: None, resumed: PublishToken(0), failing: Vec::new() }
    }
}

fn saved_topics<'a>(recovered: &'a Recovered, key: Option<&str>) -> &'a str {
    let saved = key.and_then(|key| recovered.meta.iter().find(|(name, _)| name == key));
    saved.and_then(|(_, value)| str::from_utf8(value).ok()).unwrap_or_default()
}

fn find(streams: &mut [LaneStream], stream: Stream) -> &mut LaneStream {
    streams.iter_mut().find(|it| it.stream == stream).expect("a lane is asked for its own streams only")
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may read clocks and files")]
mod tests;
