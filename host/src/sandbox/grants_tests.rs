//! What is linked only for functions whose manifest asks, and refused to the others.

#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use super::guest::{Bench, LIMITS, NOTHING, component, message};
use super::{Class, Grants, Run, Sandbox, SandboxError, State, compile};
use crate::message::{FailureCode, Verdict};

const CLOCK: Grants = Grants { clock: true, random: false };
const RANDOM: Grants = Grants { clock: false, random: true };

const NOW: &str = r#"(import "wasi:clocks/wall-clock@0.2.0" "now" (func $now (param i32)))"#;
const TICKS: &str = r#"(import "wasi:clocks/monotonic-clock@0.2.0" "now" (func $ticks (result i64)))"#;
const BYTES: &str = r#"(import "wasi:random/random@0.2.0" "get-random-bytes" (func $bytes (param i64 i32)))"#;
const SEED: &str = r#"(import "wasi:random/insecure-seed@0.2.0" "insecure-seed" (func $seed (param i32)))"#;
const INSECURE: &str =
    r#"(import "wasi:random/insecure@0.2.0" "get-insecure-random-u64" (func $insecure (result i64)))"#;

/// Rejects with the bytes at 2000.
fn show(bytes: u32) -> String {
    format!(
        "(i32.store (i32.const 16) (i32.const 1)) (i32.store (i32.const 32) (i32.const 2000))
         (i32.store (i32.const 36) (i32.const {bytes})) (i32.const 16)"
    )
}

fn run(items: &str, code: &str, grants: Grants) -> Run {
    Bench::default().load_granted(&component(items, code), LIMITS, grants).invoke(&message("a", b""), State::default())
}

#[track_caller]
fn check_refused(items: &str, code: &str, import: &str, key: &str) {
    let wasm = component(items, code);
    let compiled = compile::component(&wasm, Class::Small).unwrap();
    let other = Grants { clock: key != "clock", random: key != "random" };
    for grants in [Grants::default(), other] {
        let sentence = format!(
            "it imports `{import}@0.2.0`, which its manifest does not allow: write `{key} = true` under [allow] in function.toml"
        );
        assert_eq!(grants.check(&wasm).unwrap_err().to_string(), sentence);
        let loaded = Sandbox::new().load_granted(&compiled, LIMITS, grants, [].into());
        assert!(matches!(loaded, Err(SandboxError::NotGranted(found)) if found.to_string() == sentence));
    }
    Grants::ALL.check(&wasm).unwrap();
}

#[test]
fn without_a_grant_the_import_and_the_key_are_named() {
    let now = format!("(call $now (i32.const 2000)) {NOTHING}");
    check_refused(NOW, &now, "wasi:clocks/wall-clock", "clock");
    check_refused(TICKS, &format!("(drop (call $ticks)) {NOTHING}"), "wasi:clocks/monotonic-clock", "clock");
    let bytes = format!("(call $bytes (i64.const 8) (i32.const 2000)) {NOTHING}");
    check_refused(BYTES, &bytes, "wasi:random/random", "random");
    check_refused(SEED, &format!("(call $seed (i32.const 2000)) {NOTHING}"), "wasi:random/insecure-seed", "random");
    check_refused(INSECURE, &format!("(drop (call $insecure)) {NOTHING}"), "wasi:random/insecure", "random");
    Grants::default().check(&component("", NOTHING)).unwrap();
}

#[test]
fn any_version_that_is_compatible_is_served() {
    let code =
        format!("(call $now (i32.const 2000)) (if (i64.eqz (i64.load (i32.const 2000))) (then unreachable)) {NOTHING}");
    let mut wasm = component(NOW, &code);
    let name = b"wasi:clocks/wall-clock@0.2.0";
    let places: Vec<usize> = (0..wasm.len() - name.len()).filter(|at| wasm[*at..].starts_with(name)).collect();
    assert!(!places.is_empty());
    places.iter().for_each(|at| wasm[at + name.len() - 1] = b'9');
    let run = Bench::default().load_granted(&wasm, LIMITS, CLOCK).invoke(&message("a", b""), State::default());
    assert_eq!(run.outcome.verdict, Verdict::Done(Vec::new()));
}

#[test]
fn the_wall_clock_is_the_boards() {
    // It rejects when the time is not within some seconds of the board's.
    let now = crate::time::now_ms() / 1000;
    let code = format!(
        "(call $now (i32.const 2000))
         (if (i64.gt_u (i64.sub (i64.load (i32.const 2000)) (i64.const {now})) (i64.const 60)) (then unreachable))
         (if (i32.ge_u (i32.load (i32.const 2008)) (i32.const 1000000000)) (then unreachable))
         {NOTHING}"
    );
    assert_eq!(run(NOW, &code, CLOCK).outcome.verdict, Verdict::Done(Vec::new()));
}

#[test]
fn the_monotonic_clock_moves_on() {
    let code = format!(
        "(global.set $before (call $ticks))
         (loop $wait (br_if $wait (i64.le_u (call $ticks) (global.get $before))))
         {NOTHING}"
    );
    let items = format!("{TICKS} (global $before (mut i64) (i64.const 0))");
    assert_eq!(run(&items, &code, CLOCK).outcome.verdict, Verdict::Done(Vec::new()));
}

#[test]
fn random_numbers_differ_and_have_a_limit() {
    let seed = || {
        let hex = "(call $seed (i32.const 3000))
            (loop $each
                (i32.store8 (i32.add (i32.const 2000) (local.get $n))
                    (i32.add (i32.const 97) (i32.and (i32.load8_u (i32.add (i32.const 3000) (local.get $n))) (i32.const 15))))
                (local.set $n (i32.add (local.get $n) (i32.const 1)))
                (br_if $each (i32.lt_u (local.get $n) (i32.const 16))))";
        match run(SEED, &format!("{hex} {}", show(16)), RANDOM).outcome.verdict {
            Verdict::Failed(failure) => failure.detail,
            other => panic!("{other:?}"),
        }
    };
    let (one, other) = (seed(), seed());
    assert_eq!(one.len(), 16);
    assert_ne!(one, other);
    let bytes = |len: u64| {
        // The list is where `realloc` put it: address and length at 2000.
        let code = format!(
            "(call $bytes (i64.const {len}) (i32.const 2000))
             (if (i32.ne (i32.load (i32.const 2004)) (i32.const {len})) (then unreachable)) {NOTHING}"
        );
        run(BYTES, &code, RANDOM).outcome.verdict
    };
    assert_eq!(bytes(10_000), Verdict::Done(Vec::new()));
    let Verdict::Failed(failure) = bytes(65_537) else { panic!("it is above the limit") };
    assert_eq!(
        (failure.code, &*failure.detail),
        (FailureCode::Trap, "65537 random bytes in one call, the limit is 65536")
    );
}
