//! The host's state and log as a guest uses them, within their limits.

#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use bytes::Bytes;

use crate::testing::{
    BUCKET, CAS_DROP, CAS_NEW, DELETE, INCREMENT, LIMITS, LIST_KEYS, LOG, NOTHING, OPEN, SET, component, run, run_with,
};
use crate::{Run, ScopeState};
use sedge_core::limits::Limits;
use sedge_core::message::{FailureCode, LogLine};

/// Writes `bytes` of its memory under the key `a`, then runs `code`.
fn set(bytes: u32, code: &str) -> Vec<u8> {
    component(
        &format!("{OPEN} {SET}"),
        &format!(
            r#"(i32.store8 (i32.const 900) (i32.const 97))
            {BUCKET} (local.set $bucket)
            (call $set (local.get $bucket) (i32.const 900) (i32.const 1) (i32.const 0) (i32.const {bytes}) (i32.const 1000))
            {code}"#
        ),
    )
}

fn log(code: &str) -> Run {
    run(&component(LOG, &format!("{code} {NOTHING}")), LIMITS)
}

fn stored() -> ScopeState {
    ScopeState::from_entries([("a".into(), Bytes::from_static(b"old")), ("b".into(), Bytes::from_static(b"1"))])
}

#[test]
fn state_is_kept_when_a_run_succeeds() {
    let run = run_with(&set(500, NOTHING), LIMITS, stored());
    assert_eq!(run.outputs(), 0);
    assert_eq!(run.outcome.writes.len(), 1);
    assert_eq!(run.outcome.writes[0].value.as_ref().unwrap().len(), 500);
    assert_eq!(run.state.bytes(), 1 + 500 + 2);
}

#[test]
fn state_is_as_before_when_a_run_fails() {
    let reject = "(i32.store (i32.const 16) (i32.const 1)) (i32.const 16)";
    let retry = "(i32.store (i32.const 16) (i32.const 1)) (i32.store (i32.const 24) (i32.const 1)) (i32.const 16)";
    let outputs =
        "(i32.store (i32.const 24) (i32.const 49152)) (i32.store (i32.const 28) (i32.const 65)) (i32.const 16)";
    for code in [reject, retry, outputs, "unreachable", "(loop $l (br $l)) (unreachable)"] {
        let run = run_with(&set(500, code), LIMITS, stored());
        assert!(run.outcome.writes.is_empty(), "{:?}", run.outcome);
        let entries: Vec<_> = run.state.entries().collect();
        assert_eq!(entries, [("a", &Bytes::from_static(b"old")), ("b", &Bytes::from_static(b"1"))]);
    }
}

#[test]
fn state_is_limited() {
    assert_eq!(run(&set(65_535, NOTHING), LIMITS).outputs(), 0);
    let run_over = run(&set(65_536, NOTHING), LIMITS);
    assert_eq!(run_over.failure().code, FailureCode::State);
    assert_eq!(run_over.failure().detail, "65537 bytes of state, the limit is 65536");
    assert!(run_over.outcome.writes.is_empty());
    // The stored entry counts: one byte of `b` and its name.
    assert_eq!(run_with(&set(65_533, NOTHING), LIMITS, stored()).outputs(), 0);
    assert_eq!(run_with(&set(65_534, NOTHING), LIMITS, stored()).failure().code, FailureCode::State);
}

/// `state = "none"` is a limit of no bytes.
#[test]
fn without_state_the_bucket_opens_and_is_empty() {
    let none = Limits { state_bytes: 0, ..LIMITS };
    let denied = format!(
        "(if (i32.eqz (i32.load8_u (i32.const 1000))) (then unreachable))
         (if (i32.ne (i32.load8_u (i32.const 1004)) (i32.const 1)) (then unreachable)) {NOTHING}"
    );
    assert_eq!(run(&set(1, &denied), none).outputs(), 0, "a write is denied");
    assert_eq!(run(&set(0, &denied), none).outputs(), 0, "also one of no bytes");
}

#[test]
fn counters_are_decimal_text_and_do_not_overflow() {
    let increment = |then: &str| {
        component(
            &format!("{OPEN} {INCREMENT} (data (i32.const 900) \"a\")"),
            &format!(
                "{BUCKET} (local.set $bucket)
                 (call $increment (local.get $bucket) (i32.const 900) (i32.const 1) (i64.const -3) (i32.const 1000))
                 {then} {NOTHING}"
            ),
        )
    };
    let with = |value: &str| ScopeState::from_entries([("a".into(), Bytes::copy_from_slice(value.as_bytes()))]);
    let succeeds = increment("(if (i32.load8_u (i32.const 1000)) (then unreachable))");
    let fails = increment("(if (i32.eqz (i32.load8_u (i32.const 1000))) (then unreachable))");
    for (before, after) in [("", "-3"), ("10", "7"), ("-9223372036854775805", "-9223372036854775808")] {
        let state = if before.is_empty() { ScopeState::default() } else { with(before) };
        let run = run_with(&succeeds, LIMITS, state);
        assert_eq!((run.outputs(), &run.outcome.writes[0].value), (0, &Some(Bytes::from(after))));
    }
    for before in ["no number", "1.5", "99999999999999999999", "-9223372036854775806"] {
        let run = run_with(&fails, LIMITS, with(before));
        assert_eq!((run.outputs(), run.outcome.writes.len()), (0, 0), "{before}");
    }
}

/// Writes the lower 16 bits of a number as the four letters of a key, at 40000.
const KEY: &str = "(func $letter (param $n i32) (result i32)
        (i32.add (i32.const 65) (i32.and (local.get $n) (i32.const 15))))
    (func $key (param $n i32)
        (i32.store8 (i32.const 40000) (call $letter (local.get $n)))
        (i32.store8 (i32.const 40001) (call $letter (i32.shr_u (local.get $n) (i32.const 4))))
        (i32.store8 (i32.const 40002) (call $letter (i32.shr_u (local.get $n) (i32.const 8))))
        (i32.store8 (i32.const 40003) (call $letter (i32.shr_u (local.get $n) (i32.const 12)))))";

/// Sets `keys` keys to empty values, runs `each` after every one of them, and `last` after all.
fn set_many(keys: u32, each: &str, last: &str) -> Vec<u8> {
    component(
        &format!("{OPEN} {SET} {DELETE} {LIST_KEYS} {KEY}"),
        &format!(
            "(drop (memory.grow (i32.const 60)))
             {BUCKET} (local.set $bucket)
             (local.set $n (i32.const {keys}))
             (loop $l
                (call $key (local.get $n))
                (call $set (local.get $bucket) (i32.const 40000) (i32.const 4) (i32.const 0) (i32.const 0)
                    (i32.const 1000))
                {each}
                (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
             {last} {NOTHING}"
        ),
    )
}

/// Keys that are set and deleted within a run count towards no limit, so the host must not keep them.
#[test]
fn a_key_set_and_deleted_leaves_nothing() {
    let delete = "(call $delete (local.get $bucket) (i32.const 40000) (i32.const 4) (i32.const 1000))";
    let run = run_with(&set_many(40_000, delete, ""), Limits { timeout_ms: 60_000, ..LIMITS }, stored());
    assert_eq!(run.outputs(), 0);
    assert!(run.outcome.writes.is_empty(), "{} writes", run.outcome.writes.len());
    assert_eq!(run.state.bytes(), 6);
    // Without the removals, the limit stops it.
    let run = run_with(&set_many(40_000, "", ""), Limits { timeout_ms: 60_000, ..LIMITS }, stored());
    assert_eq!(run.failure().detail, "changed more than 1024 keys of state in one run");
}

/// Short keys cost more memory than their bytes, in the state and among the changes.
#[test]
fn the_number_of_keys_is_limited() {
    let limits = Limits { timeout_ms: 60_000, ..LIMITS };
    let stored = |keys| ScopeState::from_entries((0..keys).map(|n| (format!("a{n:04}").into(), Bytes::new())));
    let set = |keys, stored| run_with(&set_many(keys, "", ""), limits, stored);
    assert_eq!(set(1024, stored(3072)).outcome.writes.len(), 1024);
    assert_eq!(set(1025, stored(0)).failure().detail, "changed more than 1024 keys of state in one run");
    let failure = set(1024, stored(3073)).failure().clone();
    assert_eq!((failure.code, &*failure.detail), (FailureCode::State, "4097 keys of state, the limit is 4096"));
}

/// No deadline interrupts this one call, which lists stored and written keys.
#[test]
fn keys_are_listed_with_those_of_this_run() {
    let state = ScopeState::from_entries((0..3000).map(|n| (format!("a{n:04}").into(), Bytes::new())));
    let list = "(call $list-keys (local.get $bucket) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1000))
        (if (i32.ne (i32.load (i32.const 1008)) (i32.const 4000)) (then unreachable))";
    let limits = Limits { timeout_ms: 60_000, ..LIMITS };
    assert_eq!(run_with(&set_many(1000, "", list), limits, state).outputs(), 0);
}

#[test]
fn the_handles_of_a_run_are_limited() {
    let cas = |times: u32, code: &str| {
        component(
            &format!("{OPEN} {CAS_NEW} {CAS_DROP}"),
            &format!(
                "{BUCKET} (local.set $bucket)
                 (local.set $n (i32.const {times}))
                 (loop $l
                    (call $cas-new (local.get $bucket) (i32.const 900) (i32.const 1) (i32.const 1000))
                    (if (i32.load8_u (i32.const 1000)) (then unreachable))
                    {code}
                    (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
                 {NOTHING}"
            ),
        )
    };
    assert_eq!(run(&cas(64, ""), LIMITS).outputs(), 0);
    assert_eq!(run(&cas(65, ""), LIMITS).failure().code, FailureCode::Trap);
    // Released handles do not count.
    assert_eq!(run(&cas(1000, "(call $cas-drop (i32.load (i32.const 1004)))"), LIMITS).outputs(), 0);
    let leak = component(OPEN, &format!("(loop $l {BUCKET} (drop) (br $l)) {NOTHING}"));
    let run = run(&leak, Limits { fuel: 500_000, ..LIMITS });
    assert!(run.failure().code == FailureCode::Trap && run.failure().detail.contains("handle"), "{:?}", run.failure());
}

#[test]
fn a_flood_of_log_lines_is_cut_and_counted() {
    let flood = |lines: u32| {
        log(&format!(
            "(local.set $n (i32.const {lines}))
             (loop $l
                (call $log (i32.const 2) (i32.const 0) (i32.const 0) (local.get $topic) (local.get $topic-len))
                (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))"
        ))
    };
    let run = flood(32);
    assert_eq!((run.log.len(), run.log_lines_dropped), (32, 0));
    assert_eq!(run.log[0], LogLine { level: tracing::Level::INFO, text: "sensors/a".into() });
    let run = flood(10_000);
    assert_eq!((run.log.len(), run.log_lines_dropped), (32, 9968));
}

#[test]
fn a_log_line_is_cut_and_cannot_forge_others() {
    let fill = |byte: u32, bytes: u32| {
        log(&format!(
            "(memory.fill (i32.const 40000) (i32.const {byte}) (i32.const {bytes}))
             (call $log (i32.const 4) (i32.const 0) (i32.const 0) (i32.const 40000) (i32.const {bytes}))"
        ))
    };
    assert_eq!(fill(97, 1024).log[0].text, "a".repeat(1024));
    let cut = &fill(97, 50_000).log[0];
    assert_eq!((cut.level, cut.text.as_str()), (tracing::Level::ERROR, format!("{}…", "a".repeat(1024)).as_str()));
    assert_eq!(fill(10, 3).log[0].text, "   ", "line feeds");
    assert_eq!(fill(27, 1).log[0].text, " ", "escape");
    // U+009B, which some terminals take for an escape.
    let c1 = log("(i32.store (i32.const 40000) (i32.const 0x9bc2))
        (call $log (i32.const 4) (i32.const 40000) (i32.const 2) (i32.const 40000) (i32.const 2))");
    assert_eq!(c1.log[0].text, " :  ");
}
