//! Functions with a standard library of WASI 0.2 and programs for it, as their main module runs: well-behaved and hostile.

#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use crate::contract::Contract;
use crate::engine;
use crate::testing::{LIMITS, NOTHING, load, message, module_0_2};
use crate::{Run, Sandbox, ScopeState};
use sedge_core::grants::Grants;
use sedge_core::isa::Class;
use sedge_core::message::{FailureCode, Output, Verdict};

const STDIN: &str = r#"(import "wasi:cli/stdin@0.2.4" "get-stdin" (func $stdin (result i32)))"#;
const STDOUT: &str = r#"(import "wasi:cli/stdout@0.2.4" "get-stdout" (func $stdout (result i32)))"#;
const STDERR: &str = r#"(import "wasi:cli/stderr@0.2.0" "get-stderr" (func $stderr (result i32)))"#;
const WRITE: &str = r#"(import "wasi:io/streams@0.2.4" "[method]output-stream.blocking-write-and-flush"
    (func $write (param i32 i32 i32 i32)))"#;
const READ: &str =
    r#"(import "wasi:io/streams@0.2.4" "[method]input-stream.blocking-read" (func $read (param i32 i64 i32)))"#;
const WALL: &str = r#"(import "wasi:clocks/wall-clock@0.2.4" "now" (func $wall (param i32)))"#;
const TICKS: &str = r#"(import "wasi:clocks/monotonic-clock@0.2.4" "now" (func $ticks (result i64)))"#;
const RANDOM: &str = r#"(import "wasi:random/random@0.2.4" "get-random-u64" (func $random (result i64)))"#;
const TEXT: &str = r#"(data (i32.const 3000) "one\ntwo\n\nthree")"#;

fn run_as(items: &str, code: &str, grants: Grants) -> Run {
    let module = wat::parse_str(module_0_2(items, code)).unwrap();
    let code = engine::for_compiling(Class::Small, None).unwrap().precompile_module(&module).unwrap();
    load(&mut Sandbox::new(), &code, LIMITS, grants).invoke(&message("a", b""), ScopeState::default())
}

fn run(items: &str, code: &str) -> Run {
    run_as(items, &format!("{code} {NOTHING}"), Grants::default())
}

#[track_caller]
fn check_ends(items: &str, code: &str, why: &str) {
    let run = run(items, code);
    let failure = run.failure();
    assert!(failure.code == FailureCode::Trap && failure.detail.contains(why), "{failure:?}");
}

fn write(stream: &str, at: u32, len: u32) -> String {
    format!("(call $write (call ${stream}) (i32.const {at}) (i32.const {len}) (i32.const 1000))")
}

/// Traps unless the 32 bits at the place are these.
fn expect(at: u32, value: u32) -> String {
    format!("(if (i32.ne (i32.load (i32.const {at})) (i32.const {value})) (then unreachable))")
}

#[test]
fn what_is_written_is_the_log_and_after_a_failure_the_reason() {
    let items = format!("{STDOUT} {STDERR} {WRITE} {TEXT}");
    let all = format!("{}{}{}", write("stdout", 3000, 5), write("stderr", 3000, 14), expect(1000, 0));
    let log = |run: &Run| run.log.iter().map(|line| line.text.clone()).collect::<Vec<_>>();
    let done = run(&items, &all);
    assert_eq!((done.outputs(), log(&done)), (0, ["one", "one", "two", "t", "three"].map(String::from).to_vec()));
    let failed = run(&items, &format!("{all} unreachable"));
    assert!(failed.failure().detail.starts_with("three ("), "{:?}", failed.failure());
    assert_eq!(log(&failed), log(&done));
}

#[test]
fn standard_input_is_at_its_end() {
    let read =
        format!("(call $read (call $stdin) (i64.const 100) (i32.const 1000)) {}{}", expect(1000, 1), expect(1004, 1));
    assert_eq!(run(&format!("{STDIN} {READ}"), &read).outputs(), 0);
}

#[test]
fn clocks_show_the_time_of_the_message_unless_more_is_allowed() {
    let items = format!("{STDOUT} {WALL} {TICKS}");
    let is_message = "(call $wall (i32.const 1000))
        (i32.and (i64.eq (i64.load (i32.const 1000)) (i64.const 1700000000))
                 (i64.eq (call $ticks) (i64.const 1700000000000000000)))";
    let without =
        run_as(&items, &format!("(if (i32.eqz {is_message}) (then unreachable)) {NOTHING}"), Grants::default());
    assert_eq!(without.outcome.verdict, Verdict::Done(Vec::new()));
    let clock = Grants { clock: true, random: false };
    let with = run_as(&items, &format!("(if {is_message} (then unreachable)) {NOTHING}"), clock);
    assert_eq!(with.outcome.verdict, Verdict::Done(Vec::new()));
}

#[test]
fn random_numbers_need_the_permission_when_they_are_used() {
    let items = format!("{STDOUT} {RANDOM}");
    assert_eq!(run(&items, "").outputs(), 0);
    check_ends(&items, "(drop (call $random))", "write `random = true` under [allow]");
    let random = Grants { clock: false, random: true };
    let run = run_as(&items, &format!("(drop (call $random)) {NOTHING}"), random);
    assert_eq!(run.outcome.verdict, Verdict::Done(Vec::new()));
}

#[test]
fn there_is_no_environment_and_there_are_no_folders() {
    let items = r#"(import "wasi:cli/environment@0.2.0" "get-environment" (func $environment (param i32)))
        (import "wasi:cli/environment@0.2.4" "get-arguments" (func $arguments (param i32)))
        (import "wasi:cli/environment@0.2.4" "initial-cwd" (func $cwd (param i32)))
        (import "wasi:cli/terminal-stdout@0.2.0" "get-terminal-stdout" (func $terminal (param i32)))
        (import "wasi:filesystem/preopens@0.2.0" "get-directories" (func $folders (param i32)))"#;
    let calls: String = ["environment", "arguments", "cwd", "terminal", "folders"]
        .map(|name| {
            let len = if matches!(name, "cwd" | "terminal") { 1000 } else { 1004 };
            format!("(i32.store (i32.const 1004) (i32.const 1)) (call ${name} (i32.const 1000)) {}", expect(len, 0))
        })
        .concat();
    assert_eq!(run(items, &calls).outputs(), 0);
}

#[test]
fn what_a_function_cannot_do_ends_the_run_with_the_reason() {
    let open = r#"(import "wasi:filesystem/types@0.2.0" "[method]descriptor.open-at"
        (func $open (param i32 i32 i32 i32 i32 i32 i32)))"#;
    let zeros = "(i32.const 0)".repeat(7);
    check_ends(
        open,
        &format!("(call $open {zeros})"),
        "`[method]descriptor.open-at`, and a function has no files and no network",
    );
    let exit = r#"(import "wasi:cli/exit@0.2.0" "exit" (func $exit (param i32)))"#;
    check_ends(exit, "(call $exit (i32.const 1))", "ended its process, with exit code 1");
    let sleep = format!(
        "{STDOUT} {}",
        r#"(import "wasi:clocks/monotonic-clock@0.2.0" "subscribe-duration" (func $sleep (param i64) (result i32)))"#
    );
    check_ends(&sleep, "(drop (call $sleep (i64.const 1000)))", "asked to wait, and a function does not");
}

#[test]
fn streams_are_ready_when_they_are_asked() {
    let items = format!(
        "{STDOUT} {}",
        r#"(import "wasi:io/streams@0.2.0" "[method]output-stream.subscribe" (func $subscribe (param i32) (result i32)))
        (import "wasi:io/streams@0.2.0" "[method]output-stream.check-write" (func $check (param i32 i32)))
        (import "wasi:io/streams@0.2.0" "[resource-drop]output-stream" (func $drop (param i32)))
        (import "wasi:io/poll@0.2.0" "[method]pollable.ready" (func $ready (param i32) (result i32)))
        (import "wasi:io/poll@0.2.0" "[method]pollable.block" (func $block (param i32)))
        (import "wasi:io/poll@0.2.0" "[resource-drop]pollable" (func $forget (param i32)))
        (import "wasi:io/poll@0.2.0" "poll" (func $poll (param i32 i32 i32)))"#
    );
    let code = format!(
        "(local.set $n (call $stdout)) (local.set $m (call $subscribe (local.get $n)))
        (call $check (local.get $n) (i32.const 1000)) {}{}
        (if (i32.eqz (call $ready (local.get $m))) (then unreachable))
        (call $block (local.get $m))
        (i32.store (i32.const 2000) (local.get $m)) (i32.store (i32.const 2004) (local.get $m))
        (call $poll (i32.const 2000) (i32.const 2) (i32.const 1000)) {}
        (if (i32.ne (i32.load (i32.add (i32.load (i32.const 1000)) (i32.const 4))) (i32.const 1)) (then unreachable))
        (call $forget (local.get $m)) (call $drop (local.get $n))",
        expect(1000, 0),
        expect(1008, 65_536),
        expect(1004, 2)
    );
    assert_eq!(run(&items, &code).outputs(), 0);
    check_ends(&items, &format!("{code} (call $drop (local.get $n))"), "unknown handle");
    check_ends(&items, "(drop (call $subscribe (i32.const 9)))", "unknown handle");
    check_ends(&items, "(call $forget (call $stdout))", "of another kind");
    check_ends(&items, "(call $poll (i32.const 0) (i32.const 0) (i32.const 1000))", "without anything to wait for");
    check_ends(&items, "(call $poll (i32.const 0) (i32.const 0x7fffffff) (i32.const 1000))", "out of bounds");
}

#[test]
fn addresses_and_handles_are_checked() {
    let items = format!("{STDIN} {STDOUT} {WRITE} {READ}");
    check_ends(&items, &write("stdin", 0, 1), "of another kind");
    check_ends(&items, &write("stdout", 0xffff_fff0, 32), "out of bounds");
    check_ends(&items, &write("stdout", 0, 65_537), "65537 bytes in one write");
    check_ends(&items, "(call $write (call $stdout) (i32.const 0) (i32.const 1) (i32.const 1001))", "not aligned");
    check_ends(&items, "(call $read (call $stdout) (i64.const 1) (i32.const 1000))", "of another kind");
    check_ends(&items, "(loop $again (drop (call $stdout)) (br $again))", "handles at a time");
}

#[test]
fn what_must_run_first_runs_before_the_handler_and_may_write() {
    let items = format!(
        "{STDOUT} {WRITE} {TEXT} (global $done (mut i32) (i32.const 0))
        (func (export \"_initialize\") {} (global.set $done (i32.const 1)))",
        write("stdout", 3000, 4)
    );
    let run = run(&items, "(if (i32.eqz (global.get $done)) (then unreachable))");
    assert_eq!((run.outputs(), &*run.log[0].text), (0, "one"));
    let fails = items.replace("(global.set $done (i32.const 1))", "unreachable");
    check_ends(&fails, "", "unreachable");
}

/// Runs a program on the payload `LINE`.
fn run_program(items: &str, code: &str) -> Run {
    let main = format!("(func (export \"wasi:cli/run@0.2.3#run\") (result i32) (local $n i32) (local $m i32) {code})");
    let text = module_0_2(&format!("{items} {main}"), NOTHING).replace(Contract::V0_2.handle(), "unused");
    let module = wat::parse_str(text).unwrap();
    let code = engine::for_compiling(Class::Small, None).unwrap().precompile_module(&module).unwrap();
    load(&mut Sandbox::new(), &code, LIMITS, Grants::default()).invoke(&message("a", LINE), ScopeState::default())
}

const LINE: &[u8] = br#"{"kind":"forward","topic":"t","payload":1}"#;

/// Reads at most `most` bytes, which it writes to standard output.
fn pass_on(most: u32) -> String {
    format!(
        "(call $read (local.get $n) (i64.const {most}) (i32.const 1000)) {}
         (call $write (local.get $m) (i32.load (i32.const 1004)) (i32.load (i32.const 1008)) (i32.const 1000))",
        expect(1000, 0)
    )
}

const OPENED: &str = "(local.set $n (call $stdin)) (local.set $m (call $stdout))";

#[test]
fn a_program_reads_the_payload_and_writes_outputs() {
    let items = format!("{STDIN} {STDOUT} {READ} {WRITE}");
    let at_end = format!(
        "(call $read (local.get $n) (i64.const 100) (i32.const 1000)) {}{} (i32.const 0)",
        expect(1000, 1),
        expect(1004, 1)
    );
    let run = run_program(&items, &format!("{OPENED} {}{} {at_end}", pass_on(10), pass_on(1000)));
    let Verdict::Done(outputs) = &run.outcome.verdict else { panic!("{:?}", run.outcome) };
    assert!(matches!(&outputs[..], [Output::Forward(forward)] if &*forward.topic == "t"), "{outputs:?}");
    assert!(run.log.is_empty(), "standard output is no log");
    let skip = r#"(import "wasi:io/streams@0.2.4" "[method]input-stream.skip" (func $skip (param i32 i64 i32)))"#;
    let skipped = format!(
        "{OPENED} (call $skip (local.get $n) (i64.const 1000) (i32.const 1000)) {}{} {at_end}",
        expect(1000, 0),
        expect(1008, LINE.len() as u32)
    );
    assert_eq!(run_program(&format!("{skip} {items}"), &skipped).outputs(), 0);
}

#[test]
fn a_program_has_arguments_and_an_environment() {
    let items = format!(
        "{STDOUT} {}",
        r#"(import "wasi:cli/environment@0.2.0" "get-arguments" (func $arguments (param i32)))
        (import "wasi:cli/environment@0.2.0" "get-environment" (func $environment (param i32)))"#
    );
    // The second argument is the topic, and so is the value of the first variable, SEDGE_TOPIC.
    let code = format!(
        "(call $arguments (i32.const 1000)) {} (local.set $n (i32.load (i32.const 1000)))
         (call $environment (i32.const 1000)) (local.set $m (i32.load (i32.const 1000)))
         (if (i32.ne (i32.load8_u (i32.load offset=8 (local.get $n))) (i32.const 0x61)) (then unreachable))
         (if (i32.ne (i32.load offset=4 (local.get $m)) (i32.const 11)) (then unreachable))
         (if (i32.ne (i32.load8_u (i32.load offset=8 (local.get $m))) (i32.const 0x61)) (then unreachable)) (i32.const 0)",
        expect(1004, 2)
    );
    assert_eq!(run_program(&items, &code).outputs(), 0);
}

#[test]
fn a_program_that_ends_with_an_error_rejects_the_message() {
    let items = format!(
        "{STDERR} {WRITE} {} {TEXT}",
        r#"(import "wasi:cli/exit@0.2.0" "exit" (func $exit (param i32)))
        (import "wasi:cli/exit@0.2.4" "exit-with-code" (func $exit-with (param i32)))"#
    );
    let say = write("stderr", 3000, 14);
    let endings =
        ["(i32.const 1)", "(call $exit (i32.const 1)) (i32.const 0)", "(call $exit-with (i32.const 7)) (i32.const 0)"];
    for ending in endings {
        let run = run_program(&items, &format!("{say} {ending}"));
        assert_eq!((run.failure().code, &*run.failure().detail), (FailureCode::Rejected, "three"), "{ending}");
        let silent = run_program(&items, ending);
        assert!(silent.failure().detail.starts_with("the program ended with exit code "), "{:?}", silent.failure());
    }
    assert_eq!(run_program(&items, "(call $exit (i32.const 0)) (i32.const 1)").outputs(), 0);
}

#[test]
fn a_program_that_writes_without_end_is_ended() {
    let forever = format!("(loop $again {} (br $again)) (i32.const 0)", write("stdout", 0, 65_536));
    let run =
        run_program(&format!("{STDOUT} {WRITE}"), &forever.replace("(call $stdout)", "(local.tee $n (call $stdout))"));
    assert!(matches!(run.failure().code, FailureCode::Output), "{:?}", run.failure());
}
