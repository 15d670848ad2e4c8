//! Bounds on a worker's answers, checked in the daemon. A worker that has a bug, or was taken over by its function, must
//! not fill the daemon's memory or the store. A working worker never exceeds them.

use crate::limits::{Limits, MAX_LABELS, MAX_LOG_LINE_BYTES, MAX_LOG_LINES};
use crate::message::{Alert, LogLine, Outcome, Output, StateGrowth, Verdict};
use crate::recording::{MAX_CLOCKS, MAX_RANDOM_BYTES};

/// Above what the sandbox cuts reasons to.
const MAX_REASON_BYTES: usize = 2048;
/// Room in a frame for log, reason, what was drawn, and fixed-size fields.
const FRAME_REST_BYTES: usize = (128 << 10) + MAX_RANDOM_BYTES + MAX_CLOCKS * 10;
/// Most bytes that a state write takes in a frame besides key and value.
const WRITE_FIELDS: usize = 9;

/// State that a function may remove although its limit is lower: the most that the default configuration allows.
const MAX_OLD_STATE_BYTES: usize = 1 << 20;

/// Bound that an answer exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("answered with {found} {what}, the limit is {limit}")]
pub(crate) struct Excess {
    pub(crate) what: &'static str,
    pub(crate) found: u64,
    pub(crate) limit: u64,
}

/// Returns the length of the longest frame that a worker with these functions may send.
pub fn frame_bytes<'a>(functions: impl Iterator<Item = &'a Limits>) -> usize {
    let outcome = |limits: &Limits| {
        let state = limits.state_bytes.saturating_mul(1 + WRITE_FIELDS);
        limits.transfer_bytes().saturating_add(state)
    };
    functions.map(outcome).max().unwrap_or(0).saturating_add(FRAME_REST_BYTES)
}

/// Checks an outcome against the function's limits.
pub(crate) fn check(outcome: &Outcome, log: &[LogLine], limits: &Limits) -> Result<(), Excess> {
    let usage = &outcome.usage;
    at_most("units of fuel", usage.fuel, limits.fuel)?;
    at_most("bytes of memory", usage.memory_bytes, limits.memory_bytes as u64)?;
    at_most("bytes of output counted", usage.output_bytes, limits.transfer_bytes() as u64)?;
    at_most("log lines", log.len() as u64, MAX_LOG_LINES as u64)?;
    for line in log {
        // A cut line ends with a mark of three bytes.
        at_most("bytes in one log line", line.text.len() as u64, MAX_LOG_LINE_BYTES as u64 + 3)?;
    }
    if let Some(drawn) = &outcome.drawn {
        at_most("values of clocks", drawn.clocks.len() as u64, MAX_CLOCKS as u64)?;
        at_most("random bytes", drawn.random.len() as u64, MAX_RANDOM_BYTES as u64)?;
    }
    let may_write = match &outcome.verdict {
        Verdict::Done(outputs) => {
            at_most("outputs", outputs.len() as u64, limits.outputs as u64)?;
            at_most(
                "bytes of output",
                outputs.iter().map(Output::bytes).sum::<usize>() as u64,
                limits.output_bytes as u64,
            )?;
            for output in outputs {
                if let Output::Alert(Alert { labels, .. }) = output {
                    at_most("labels of an alert", labels.len() as u64, MAX_LABELS as u64)?;
                }
            }
            limits.state_bytes > 0
        }
        Verdict::Retry { reason, .. } => {
            at_most("bytes of reason", reason.len() as u64, MAX_REASON_BYTES as u64)?;
            false
        }
        Verdict::Failed(failure) => {
            at_most("bytes of reason", failure.detail.len() as u64, MAX_REASON_BYTES as u64)?;
            false
        }
    };
    check_growth(outcome)?;
    if !may_write {
        return at_most("changes of state", outcome.writes.len() as u64, 0);
    }
    // What is removed was in the state, perhaps under the higher limit of an earlier version.
    let state_bytes = limits.state_bytes.max(MAX_OLD_STATE_BYTES) as u64;
    at_most("changes of state", outcome.writes.len() as u64, state_bytes / 8)?;
    let removed = outcome.writes.iter().filter(|write| write.value.is_none()).map(|write| write.key.len());
    at_most("bytes of removed keys", removed.sum::<usize>() as u64, state_bytes)?;
    let kept = outcome.writes.iter().filter_map(|write| Some(write.key.len() + write.value.as_ref()?.len()));
    at_most("bytes of state", kept.sum::<usize>() as u64, limits.state_bytes as u64)
}

/// A claim that the writes cannot explain.
fn check_growth(outcome: &Outcome) -> Result<(), Excess> {
    let StateGrowth { bytes, keys, scopes } = outcome.growth;
    let sets = outcome.writes.iter().filter_map(|write| Some(write.key.len() + write.value.as_ref()?.len()));
    let (count, set): (u64, u64) = sets.fold((0, 0), |(count, sum), bytes| (count + 1, sum + bytes as u64));
    at_most("bytes by which state grew", bytes.max(0).unsigned_abs(), set)?;
    at_most("keys by which state grew", keys.max(0).unsigned_abs(), count)?;
    at_most("keys by which state shrank", keys.min(0).unsigned_abs(), outcome.writes.len() as u64 - count)?;
    at_most("scopes by which state changed", scopes.unsigned_abs().into(), u64::from(!outcome.writes.is_empty()))
}

fn at_most(what: &'static str, found: u64, limit: u64) -> Result<(), Excess> {
    if found > limit { Err(Excess { what, found, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message::{AlertStatus, Failure, FailureCode, Publication, Severity, StateWrite, Usage};

    const LIMITS: Limits =
        Limits { fuel: 100, timeout_ms: 10, memory_bytes: 65_536, outputs: 2, output_bytes: 20, state_bytes: 10 };

    fn done(outputs: Vec<Output>) -> Outcome {
        let growth = StateGrowth::default();
        Outcome { verdict: Verdict::Done(outputs), writes: Vec::new(), growth, usage: Usage::default(), drawn: None }
    }

    fn forward(topic: &str, payload: &'static str) -> Output {
        Output::Forward(Publication {
            topic: topic.into(),
            payload: payload.into(),
            content_type: None,
            retain: false,
            sink: None,
        })
    }

    fn write(key: &str, value: Option<&'static str>) -> StateWrite {
        StateWrite { key: key.into(), value: value.map(|value| Bytes::from_static(value.as_bytes())) }
    }

    #[track_caller]
    fn check_excess(outcome: &Outcome, log: &[LogLine], expected: &str) {
        assert_eq!(check(outcome, log, &LIMITS).unwrap_err().to_string(), expected);
    }

    #[test]
    fn values_at_the_limit_pass_and_values_above_do_not() {
        let mut outcome = done(vec![forward("12345", "12345"), forward("12345", "12345")]);
        outcome.writes = vec![write("12345", Some("12345")), write("a key that goes", None)];
        outcome.usage = Usage { fuel: 100, memory_bytes: 65_536, ..Usage::default() };
        check(&outcome, &[], &LIMITS).unwrap();

        outcome.usage.fuel = 101;
        check_excess(&outcome, &[], "answered with 101 units of fuel, the limit is 100");
        outcome.usage.fuel = 0;
        outcome.writes.push(write("k", Some("")));
        check_excess(&outcome, &[], "answered with 11 bytes of state, the limit is 10");
        check_excess(&done(vec![forward("1", "2"); 3]), &[], "answered with 3 outputs, the limit is 2");
        let bytes = done(vec![forward("12345678901", "1234567890")]);
        check_excess(&bytes, &[], "answered with 21 bytes of output, the limit is 20");
        let memory = Outcome { usage: Usage { memory_bytes: 65_537, ..Usage::default() }, ..done(Vec::new()) };
        check_excess(&memory, &[], "answered with 65537 bytes of memory, the limit is 65536");
    }

    /// What has no text costs memory all the same.
    #[test]
    fn removals_and_labels_are_bounded() {
        let mut outcome = done(Vec::new());
        outcome.writes = vec![write("", None); 131_072];
        check(&outcome, &[], &LIMITS).unwrap();
        outcome.writes.push(write("", None));
        check_excess(&outcome, &[], "answered with 131073 changes of state, the limit is 131072");
        let key = "k".repeat(600_000);
        outcome.writes = vec![write(&key, None)];
        check(&outcome, &[], &LIMITS).unwrap();
        outcome.writes.push(write(&key, None));
        check_excess(&outcome, &[], "answered with 1200000 bytes of removed keys, the limit is 1048576");

        let alert = |labels| {
            done(vec![Output::Alert(Alert {
                key: String::new(),
                severity: Severity::Info,
                status: AlertStatus::Firing,
                summary: String::new(),
                value: None,
                sink: None,
                labels: vec![(String::new(), String::new()); labels],
            })])
        };
        let limits = Limits { output_bytes: 10_000, ..LIMITS };
        check(&alert(64), &[], &limits).unwrap();
        let excess = check(&alert(65), &[], &limits).unwrap_err().to_string();
        assert_eq!(excess, "answered with 65 labels of an alert, the limit is 64");
        let usage = Usage { output_bytes: u64::MAX, ..Usage::default() };
        assert!(check(&Outcome { usage, ..done(Vec::new()) }, &[], &LIMITS).is_err());
    }

    #[test]
    fn a_failed_or_stateless_run_writes_no_state() {
        let failed = Verdict::Failed(Failure { code: FailureCode::Trap, detail: "x".into() });
        let retry = Verdict::Retry { after_ms: 1, reason: "x".into() };
        for verdict in [failed, retry] {
            let outcome = Outcome { verdict, writes: vec![write("k", None)], ..done(Vec::new()) };
            check_excess(&outcome, &[], "answered with 1 changes of state, the limit is 0");
        }
        let outcome = Outcome { writes: vec![write("k", None)], ..done(Vec::new()) };
        assert!(check(&outcome, &[], &Limits { state_bytes: 0, ..LIMITS }).is_err());
    }

    #[test]
    fn growth_is_explained_by_the_writes() {
        let mut outcome = Outcome { writes: vec![write("a", Some("1234")), write("b", None)], ..done(Vec::new()) };
        outcome.growth = StateGrowth { bytes: 5, keys: 1, scopes: 1 };
        check(&outcome, &[], &LIMITS).unwrap();
        outcome.growth = StateGrowth { bytes: -100, keys: -1, scopes: -1 };
        check(&outcome, &[], &LIMITS).unwrap();
        outcome.growth = StateGrowth { bytes: 6, ..StateGrowth::default() };
        check_excess(&outcome, &[], "answered with 6 bytes by which state grew, the limit is 5");
        outcome.growth = StateGrowth { keys: 2, ..StateGrowth::default() };
        check_excess(&outcome, &[], "answered with 2 keys by which state grew, the limit is 1");
        outcome.growth = StateGrowth { keys: -2, ..StateGrowth::default() };
        check_excess(&outcome, &[], "answered with 2 keys by which state shrank, the limit is 1");
        outcome.writes.clear();
        outcome.growth = StateGrowth { scopes: -1, ..StateGrowth::default() };
        check_excess(&outcome, &[], "answered with 1 scopes by which state changed, the limit is 0");
    }

    #[test]
    fn texts_are_bounded() {
        let line = |bytes| LogLine { level: tracing::Level::INFO, text: "x".repeat(bytes) };
        check(&done(Vec::new()), &vec![line(1027); 32], &LIMITS).unwrap();
        check_excess(&done(Vec::new()), &vec![line(1); 33], "answered with 33 log lines, the limit is 32");
        check_excess(&done(Vec::new()), &[line(1028)], "answered with 1028 bytes in one log line, the limit is 1027");
        let detail = "x".repeat(2049);
        let verdict = Verdict::Failed(Failure { code: FailureCode::Trap, detail });
        let failed = Outcome { verdict, ..done(Vec::new()) };
        check_excess(&failed, &[], "answered with 2049 bytes of reason, the limit is 2048");
    }

    #[test]
    fn a_frame_is_bounded_by_the_largest_function() {
        let large = Limits { output_bytes: 4 << 20, ..LIMITS };
        let bytes = frame_bytes([LIMITS, large].iter());
        assert_eq!(bytes, frame_bytes([large].iter()));
        assert!((5 << 20..6 << 20).contains(&bytes), "{bytes}");
        assert!(frame_bytes([].iter()) < 1 << 20);
    }
}
