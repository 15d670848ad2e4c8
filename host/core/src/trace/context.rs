//! The trace that a message belongs to, as [W3C Trace Context](https://www.w3.org/TR/trace-context/) writes it into user
//! properties and headers.
//!
//! ```text
//! traceparent   00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
//!               version, trace, span that caused the message, flags (1: sampled, 2: the trace id is random)
//! tracestate    vendor=value,other=value         passed along, for other tracing systems
//! ```
//!
//! What does not follow the standard is ignored, as the standard says: the message then belongs to no trace.

use std::fmt;
use std::hash::{Hash as _, Hasher as _};
use std::num::{NonZeroU64, NonZeroU128};
use std::str::FromStr;

use siphasher::sip::SipHasher13;

use crate::store::RecordId;
use crate::stream::Stream;

/// User property and header with trace, span and flags.
pub const TRACEPARENT: &str = "traceparent";
/// User property and header with what tracing systems add.
pub const TRACESTATE: &str = "tracestate";

const SAMPLED: u8 = 1;
const RANDOM: u8 = 2;
/// Never sent: this board records spans of it.
const RECORDED: u8 = 0x80;

/// Length of a `traceparent` of version 00, and of what is known of later ones.
const PARENT_BYTES: usize = 55;
/// Members of a `tracestate` at most (section 3.3.1.1).
const MAX_MEMBERS: usize = 32;
/// Length of a `tracestate` that is always passed along (section 3.3.1.5). What is longer is cut.
const MAX_STATE_BYTES: usize = 512;
/// Members above this length are left out first.
const LONG_MEMBER_BYTES: usize = 128;
/// Length of the key, or of the value, of a member.
const MAX_PART_BYTES: usize = 256;

/// Number of a trace. Shown as 32 digits of lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TraceId(NonZeroU128);

/// Number of a span within its trace. Shown as 16 digits of lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanId(NonZeroU64);

/// The trace of a message, and the span that caused it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    pub trace_id: TraceId,
    pub span_id: SpanId,
    flags: u8,
    /// `tracestate`, within the bounds of the standard.
    pub state: Option<Box<str>>,
}

impl TraceId {
    /// Any number but 0, which stands for 1 here.
    pub fn new(number: u128) -> Self {
        Self(NonZeroU128::new(number).unwrap_or(NonZeroU128::MIN))
    }

    pub const fn number(self) -> u128 {
        self.0.get()
    }
}

impl SpanId {
    /// Any number but 0, which stands for 1 here.
    pub fn new(number: u64) -> Self {
        Self(NonZeroU64::new(number).unwrap_or(NonZeroU64::MIN))
    }

    pub const fn number(self) -> u64 {
        self.0.get()
    }

    /// The span of sending a record: the same however often that is tried, also after a restart.
    pub(crate) fn of_sending(run: Self, stream: Stream, id: RecordId) -> Self {
        let mut hasher = SipHasher13::new();
        (run, stream.index() as u64, id).hash(&mut hasher);
        Self::new(hasher.finish())
    }
}

impl TraceContext {
    /// Of a trace that begins here.
    pub fn sampled(trace_id: TraceId, span_id: SpanId) -> Self {
        Self { trace_id, span_id, flags: SAMPLED, state: None }
    }

    /// Reads user properties. `None`: the message belongs to no trace.
    pub fn of<T: AsRef<str>>(properties: &[(T, T)]) -> Option<Self> {
        let values = |name: &'static str| {
            properties.iter().filter(move |(key, _)| key.as_ref() == name).map(|(_, value)| value.as_ref())
        };
        let mut parents = values(TRACEPARENT);
        let (trace_id, span_id, flags) = parse(parents.next()?)?;
        if parents.next().is_some() {
            return None;
        }
        Some(Self { trace_id, span_id, flags, state: state(values(TRACESTATE)) })
    }

    /// Whether the sender records the trace, and asks others to do so.
    pub const fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// Whether this board records spans of what carries it.
    pub const fn is_recorded(&self) -> bool {
        self.flags & RECORDED != 0
    }

    /// The same trace below another span, which this board records.
    #[must_use]
    pub fn recorded(&self, span_id: SpanId) -> Self {
        let flags = self.flags | SAMPLED | RECORDED;
        Self { trace_id: self.trace_id, span_id, flags, state: self.state.clone() }
    }

    /// The value of `traceparent`, with this span as the cause.
    pub fn traceparent(&self, span_id: SpanId) -> String {
        format!("00-{}-{span_id}-{:02x}", self.trace_id, self.flags & (SAMPLED | RANDOM))
    }

    /// The user properties of a message that this caused.
    pub(crate) fn properties(&self) -> impl Iterator<Item = (Box<str>, Box<str>)> {
        let state = self.state.iter().map(|state| (TRACESTATE.into(), state.clone()));
        std::iter::once((TRACEPARENT.into(), self.traceparent(self.span_id).into())).chain(state)
    }

    /// Memory of the context, and about its size on disk.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.state.as_ref().map_or(0, |state| state.len())
    }

    /// All but `tracestate`, as the store keeps it.
    pub fn to_bytes(&self) -> [u8; Self::STORED_BYTES] {
        let mut bytes = [0; Self::STORED_BYTES];
        bytes[..16].copy_from_slice(&self.trace_id.number().to_be_bytes());
        bytes[16..24].copy_from_slice(&self.span_id.number().to_be_bytes());
        bytes[24] = self.flags;
        bytes
    }

    /// Length of [`Self::to_bytes`].
    pub const STORED_BYTES: usize = 25;

    /// The reverse of [`Self::to_bytes`]. `None`: no context is stored so.
    pub fn from_bytes(bytes: &[u8; Self::STORED_BYTES], state: Option<Box<str>>) -> Option<Self> {
        let (trace_id, rest) = bytes.split_first_chunk::<16>()?;
        let (span_id, flags) = rest.split_first_chunk::<8>()?;
        Some(Self {
            trace_id: TraceId(NonZeroU128::new(u128::from_be_bytes(*trace_id))?),
            span_id: SpanId(NonZeroU64::new(u64::from_be_bytes(*span_id))?),
            flags: flags[0],
            state,
        })
    }
}

fn parse(text: &str) -> Option<(TraceId, SpanId, u8)> {
    let (known, rest) = text.as_bytes().split_at_checked(PARENT_BYTES)?;
    let version = hex(&known[..2])?;
    // Later versions may add fields behind these.
    let is_whole = if version == 0 { rest.is_empty() } else { matches!(rest, [] | [b'-', ..]) };
    let has_dashes = [2, 35, 52].iter().all(|at| known[*at] == b'-');
    if version == 0xff || !is_whole || !has_dashes {
        return None;
    }
    let trace_id = NonZeroU128::new(hex(&known[3..35])?)?;
    let span_id = NonZeroU64::new(u64::try_from(hex(&known[36..52])?).ok()?)?;
    let flags = u8::try_from(hex(&known[53..])?).ok()?;
    Some((TraceId(trace_id), SpanId(span_id), flags & (SAMPLED | RANDOM)))
}

/// A number in lower-case hex, of at most 32 digits.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| match digit {
        b'0'..=b'9' => Some(number << 4 | u128::from(digit - b'0')),
        b'a'..=b'f' => Some(number << 4 | u128::from(digit - b'a' + 10)),
        _ => None,
    })
}

/// Joins the values of `tracestate`. `None`: there is none, or one that breaks the rules.
fn state<'a>(values: impl Iterator<Item = &'a str>) -> Option<Box<str>> {
    let mut members: Vec<&str> = Vec::new();
    let all = values.flat_map(|value| value.split(',')).map(|member| member.trim_matches([' ', '\t']));
    for member in all.filter(|member| !member.is_empty()) {
        if members.len() == MAX_MEMBERS || !is_member(member) {
            return None;
        }
        members.push(member);
    }
    let is_too_long = |members: &[&str]| members.iter().map(|it| it.len() + 1).sum::<usize>() > MAX_STATE_BYTES + 1;
    if is_too_long(&members) {
        members.retain(|member| member.len() <= LONG_MEMBER_BYTES);
    }
    while is_too_long(&members) {
        members.pop();
    }
    (!members.is_empty()).then(|| members.join(",").into())
}

fn is_member(member: &str) -> bool {
    let Some((key, value)) = member.split_once('=') else { return false };
    let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_length = |part: &str| (1..=MAX_PART_BYTES).contains(&part.len());
    is_length(key)
        && is_length(value)
        && key.bytes().next().is_some_and(is_letter)
        && key.bytes().all(|byte| is_letter(byte) || b"_-*/@".contains(&byte))
        && value.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'=')
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceId({self})")
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpanId({self})")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a trace id is 32 digits of lower-case hex, not all of them 0")]
pub struct NotATraceId;

impl FromStr for TraceId {
    type Err = NotATraceId;

    fn from_str(text: &str) -> Result<Self, NotATraceId> {
        let number = if text.len() == 32 { hex(text.as_bytes()) } else { None };
        number.and_then(NonZeroU128::new).map(Self).ok_or(NotATraceId)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn of(parent: &str, states: &[&str]) -> Option<TraceContext> {
        let states = states.iter().map(|state| (TRACESTATE, *state));
        TraceContext::of(&[(TRACEPARENT, parent)].into_iter().chain(states).collect::<Vec<_>>())
    }

    fn state_of(states: &[&str]) -> Option<String> {
        of(&format!("00-{TRACE}-{SPAN}-01"), states).unwrap().state.map(String::from)
    }

    #[test]
    fn a_context_is_read_and_written_as_the_standard_says() {
        let context = of(&format!("00-{TRACE}-{SPAN}-01"), &[]).unwrap();
        assert_eq!((context.trace_id.to_string(), context.span_id.to_string()), (TRACE.to_owned(), SPAN.to_owned()));
        assert!(context.is_sampled() && !context.is_recorded());
        assert_eq!(context.traceparent(SpanId::new(0xab)), format!("00-{TRACE}-00000000000000ab-01"));
        // Of the flags, those that are known go on.
        let context = of(&format!("00-{TRACE}-{SPAN}-fe"), &[]).unwrap();
        assert!(!context.is_sampled());
        assert_eq!(context.traceparent(context.span_id), format!("00-{TRACE}-{SPAN}-02"));
        // A later version, with and without more fields, is read as this one.
        for later in [format!("cc-{TRACE}-{SPAN}-01"), format!("cc-{TRACE}-{SPAN}-01-what-comes")] {
            assert_eq!(of(&later, &[]).unwrap().traceparent(SpanId::new(1)), format!("00-{TRACE}-0000000000000001-01"));
        }
    }

    #[test]
    fn a_context_that_breaks_the_rules_is_none() {
        let zeros = |digits: usize| "0".repeat(digits);
        for wrong in [
            String::new(),
            "00".into(),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("cc-{TRACE}-{SPAN}-01.more"),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00_{TRACE}_{SPAN}_01"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{}-{SPAN}-01", zeros(32)),
            format!("00-{TRACE}-{}-01", zeros(16)),
            format!("00-{TRACE}-{SPAN}-0G"),
            format!(" 00-{TRACE}-{SPAN}-01"),
            format!("0é{}", "é".repeat(40)),
        ] {
            assert_eq!(of(&wrong, &["a=1"]), None, "{wrong}");
        }
        let twice = [(TRACEPARENT, format!("00-{TRACE}-{SPAN}-01")), (TRACEPARENT, format!("00-{TRACE}-{SPAN}-01"))];
        assert_eq!(TraceContext::of(&twice.map(|(name, value)| (name.to_owned(), value))), None, "which of the two?");
        assert_eq!(TraceContext::of(&[("Traceparent", &*format!("00-{TRACE}-{SPAN}-01"))]), None);
    }

    #[test]
    fn what_other_systems_add_goes_along() {
        assert_eq!(state_of(&[]), None);
        assert_eq!(state_of(&["congo=t61rcWkgMzE,rojo=00f067"]).as_deref(), Some("congo=t61rcWkgMzE,rojo=00f067"));
        assert_eq!(state_of(&["a=1 , ,b=2\t", "", "0x@v=a b%\"~"]).as_deref(), Some("a=1,b=2,0x@v=a b%\"~"));
        for wrong in ["a", "=1", "a=", "A=1", "-a=1", "a=1=2", "a=ü", "a=\n", "a b=1"] {
            assert_eq!(state_of(&["ok=1", wrong]), None, "{wrong}");
        }
    }

    #[test]
    fn what_other_systems_add_is_bounded() {
        let members = |count: usize| (0..count).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
        assert_eq!(state_of(&[&members(32)]).map(|state| state.split(',').count()), Some(32));
        assert_eq!(state_of(&[&members(33)]), None);
        assert_eq!(state_of(&[&format!("a={}", "v".repeat(257))]), None);
        // The long ones go first, then the last ones.
        let long = format!("long={}", "v".repeat(200));
        let short = |key: &str| format!("{key}={}", "v".repeat(98));
        let state = state_of(&[&long, &short("b"), &short("c"), &short("d"), &long.replace("long", "also")]);
        assert_eq!(state, Some([short("b"), short("c"), short("d")].join(",")));
        let all: Vec<String> = ["b", "c", "d", "e", "f", "g"].map(short).into();
        assert_eq!(state_of(&[&all.join(",")]), Some(all[..5].join(",")));
    }

    #[test]
    fn a_recorded_context_says_so_to_nobody_else() {
        let context = of(&format!("00-{TRACE}-{SPAN}-00"), &["a=1"]).unwrap().recorded(SpanId::new(7));
        assert!(context.is_recorded() && context.is_sampled());
        assert_eq!(context.traceparent(context.span_id), format!("00-{TRACE}-0000000000000007-01"));
        assert_eq!(TraceContext::from_bytes(&context.to_bytes(), context.state.clone()), Some(context));
        assert_eq!(TraceContext::from_bytes(&[0; 25], None), None);
    }

    #[test]
    fn a_trace_id_has_one_spelling() {
        assert_eq!(TRACE.parse::<TraceId>().map(|id| id.to_string()).as_deref(), Ok(TRACE));
        for wrong in ["", &TRACE.to_uppercase(), &TRACE[1..], &"0".repeat(32), &"é".repeat(16)] {
            assert_eq!(wrong.parse::<TraceId>(), Err(NotATraceId), "{wrong}");
        }
    }

    proptest! {
        /// Whatever senders write: what is passed on is a context again, and the same one.
        #[test]
        fn what_is_passed_on_reads_as_it_came(
            parent in "(00|0[0-9a-f]|ff)-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-x)?",
            state in "([a-z@/]{0,3}=[ -~]{0,40}[ ,é]?){0,40}",
        ) {
            if let Some(context) = of(&parent, &[&state]) {
                let states: Vec<&str> = context.state.iter().map(|state| &**state).collect();
                prop_assert!(states.iter().all(|state| state.len() <= MAX_STATE_BYTES));
                prop_assert_eq!(of(&context.traceparent(context.span_id), &states), Some(context));
            }
        }

        #[test]
        fn nothing_makes_it_panic(parent: String, state: String) {
            let _ = of(&parent, &[&state]);
        }
    }
}
