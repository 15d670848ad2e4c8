//! Programs, well-behaved and hostile, written as text.

#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::sync::Arc;

use bytes::Bytes;

use crate::state::ScopeState;
use crate::testing::{LIMITS, message};
use crate::{Function, Run, Sandbox, compile};
use sedge_core::grants::Grants;
use sedge_core::isa::Class;
use sedge_core::limits::Limits;
use sedge_core::message::{
    Alert, AlertStatus, FailureCode, Message, Output, Publication, Reply, Severity, Verdict, Wake,
};

const WASI: &str = "wasi_snapshot_preview1";

/// A program that has a function to write, `$say`, and one to read all of the payload to address 4096, `$payload`.
fn program(items: &str, code: &str) -> Vec<u8> {
    let text = format!(
        r#"(module
            (import "{WASI}" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
            (import "{WASI}" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (import "{WASI}" "proc_exit" (func $exit (param i32)))
            {items}
            (memory (export "memory") 2)
            (func $say (param $file i32) (param $at i32) (param $len i32)
                (loop $more
                    (i32.store (i32.const 8) (local.get $at)) (i32.store (i32.const 12) (local.get $len))
                    (if (call $write (local.get $file) (i32.const 8) (i32.const 1) (i32.const 16)) (then unreachable))
                    (local.set $at (i32.add (local.get $at) (i32.load (i32.const 16))))
                    (local.set $len (i32.sub (local.get $len) (i32.load (i32.const 16))))
                    (br_if $more (local.get $len))))
            (func $payload (result i32)
                (i32.store (i32.const 8) (i32.const 4096)) (i32.store (i32.const 12) (i32.const 60000))
                (if (call $read (i32.const 0) (i32.const 8) (i32.const 1) (i32.const 16)) (then unreachable))
                (i32.load (i32.const 16)))
            (func (export "_start") (local $n i32) (local $m i32) {code}))"#
    );
    wat::parse_str(text).unwrap_or_else(|error| panic!("{error}"))
}

/// A program that writes its payload to a stream.
fn echo(file: u32) -> Vec<u8> {
    program("", &format!("(call $say (i32.const {file}) (i32.const 4096) (call $payload))"))
}

fn load_granted(wasm: &[u8], limits: Limits, grants: Grants) -> (Sandbox, Function) {
    let code = compile::component(wasm, Class::for_memory(limits.memory_bytes));
    let code = code.unwrap_or_else(|error| panic!("{:#}", anyhow::Error::from(error)));
    let mut sandbox = Sandbox::new();
    let settings = [("max", "80"), ("SEDGE_TOPIC", "forged"), ("oven.max", "240")];
    let settings: Vec<_> = settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let function = sandbox.load(&code, limits, grants, settings.into()).unwrap();
    (sandbox, function.named(Arc::from("too-warm")))
}

fn load(wasm: &[u8]) -> Function {
    load_granted(wasm, LIMITS, Grants::default()).1
}

fn run(wasm: &[u8], payload: &[u8]) -> Run {
    load(wasm).invoke(&message("sensors/a", payload), ScopeState::default())
}

/// Runs a program that writes these lines.
fn lines(text: &str) -> Run {
    run(&echo(1), text.as_bytes())
}

#[track_caller]
fn outputs(run: &Run) -> &[Output] {
    match &run.outcome.verdict {
        Verdict::Done(outputs) => outputs,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn check_fails(run: &Run, code: FailureCode, detail: &str) {
    let failure = run.failure();
    assert!(failure.code == code && failure.detail.contains(detail), "{failure:?}");
    assert!(run.outcome.writes.is_empty());
}

#[track_caller]
fn check_refused(wasm: &[u8], expected: &str) {
    let error = compile::component(wasm, Class::Small).map(drop).unwrap_err();
    let error = format!("{:#}", anyhow::Error::from(error));
    assert!(error.contains(expected), "{error}");
    assert!(compile::check_interface(wasm).unwrap_err().to_string().contains(expected));
}

fn publication(topic: &str, payload: &[u8], content_type: Option<&str>) -> Publication {
    Publication {
        topic: topic.into(),
        payload: Bytes::copy_from_slice(payload),
        content_type: content_type.map(Into::into),
        retain: false,
        sink: None,
    }
}

#[test]
fn each_line_is_an_output() {
    let run = lines(
        r#"{"kind":"alert","key":"warm","severity":"critical","status":"resolved","summary":"it is warm","value":81.5,"labels":{"topic":"a","line":4}}

{"kind":"alert","key":"k","labels":[["b","2"],["a","1"]],"sink":"mail"}
{"kind":"forward","topic":"f","payload":"text","content_type":"text/plain","retain":true}
{"kind":"publish","topic":"p","payload":{"b":[1,null],"a":2.5}}
  {"topic":"p","kind":"publish","payload_base64":"AP8="}
{"kind":"wake","name":"later","after_ms":500}
{"kind":"reply","status":200,"body":true}"#,
    );
    let alert = |key: &str, labels: [(&str, &str); 2]| Alert {
        key: key.to_owned(),
        severity: Severity::Warning,
        status: AlertStatus::Firing,
        summary: key.to_owned(),
        value: None,
        labels: labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        sink: None,
    };
    let json = Some("application/json");
    let expected = [
        Output::Alert(Alert {
            severity: Severity::Critical,
            status: AlertStatus::Resolved,
            summary: "it is warm".to_owned(),
            value: Some(81.5),
            ..alert("warm", [("topic", "a"), ("line", "4")])
        }),
        Output::Alert(Alert { sink: Some("mail".into()), ..alert("k", [("b", "2"), ("a", "1")]) }),
        Output::Forward(Publication { retain: true, ..publication("f", b"text", Some("text/plain")) }),
        Output::Publish(publication("p", br#"{"a":2.5,"b":[1,null]}"#, json)),
        Output::Publish(publication("p", b"\0\xff", None)),
        Output::Wake(Wake { name: "later".into(), after_ms: Some(500) }),
        Output::Reply(Reply { status: 200, content_type: json.map(Into::into), body: Bytes::from_static(b"true") }),
    ];
    assert_eq!(outputs(&run), expected);
    for nothing in ["", "\n \n\r\n"] {
        assert_eq!(lines(nothing).outputs(), 0);
    }
}

#[test]
fn a_line_that_cannot_be_read_is_named() {
    for (text, expected) in [
        (
            "{\"kind\":\"wake\",\"name\":\"x\"}\n\nhello",
            "line 3 of standard output is not a JSON object with an output",
        ),
        ("[]", "line 1 of standard output is not a JSON object"),
        ("{\"kind\":\"wake\",}", "line 1 of standard output is not JSON (trailing comma at column 16)"),
        ("{\"kind\":\"wake\"", "is not JSON (EOF while parsing an object"),
        ("{\"kind\":\"wake\",\"name\":\"\u{1}\"}", "control character"),
        ("{\"kind\":\"mail\"}", "unknown variant `mail`, expected one of `alert`, `forward`, `publish`"),
        ("{\"key\":\"x\"}", "missing field `kind`"),
        ("{\"kind\":\"alert\"}", "missing field `key`"),
        ("{\"kind\":\"alert\",\"key\":\"\"}", "an alert with an empty `key`"),
        ("{\"kind\":\"alert\",\"key\":\"k\",\"sevrity\":\"info\"}", "unknown field `sevrity`"),
        ("{\"kind\":\"alert\",\"key\":\"k\",\"severity\":\"high\"}", "unknown variant `high`"),
        ("{\"kind\":\"alert\",\"key\":\"k\",\"value\":\"5\"}", "invalid type: string \"5\", expected f64"),
        ("{\"kind\":\"forward\",\"topic\":\"t\"}", "has neither `payload` nor `payload_base64`"),
        ("{\"kind\":\"forward\",\"topic\":\"t\",\"payload\":1,\"payload_base64\":\"\"}", "has both"),
        ("{\"kind\":\"forward\",\"topic\":\"t\",\"payload_base64\":\"a\"}", "not Base64"),
        ("{\"kind\":\"forward\",\"topic\":\"t\",\"payload\":1,\"retain\":1}", "expected a boolean"),
        (&format!("{{\"kind\":\"forward\",\"payload\":{}", "[".repeat(30_000)), "recursion limit exceeded"),
    ] {
        check_fails(&lines(text), FailureCode::Output, expected);
    }
    let run = run(&echo(1), b"{\"kind\":\"wake\",\"name\":\"\xff\"}");
    check_fails(&run, FailureCode::Output, "line 1 of standard output is not JSON");
}

#[test]
fn the_message_comes_by_arguments_environment_and_standard_input() {
    let items = format!(
        r#"(import "{WASI}" "args_sizes_get" (func $args_sizes (param i32 i32) (result i32)))
           (import "{WASI}" "args_get" (func $args (param i32 i32) (result i32)))
           (import "{WASI}" "environ_sizes_get" (func $environ_sizes (param i32 i32) (result i32)))
           (import "{WASI}" "environ_get" (func $environ (param i32 i32) (result i32)))
           (data (i32.const 60) "\n")"#
    );
    // The texts end with a byte 0, which is a space in the log.
    let show = |sizes: &str, get: &str| {
        format!(
            "(drop (call ${sizes} (i32.const 32) (i32.const 36))) (drop (call ${get} (i32.const 1024) (i32.const 2048)))
             (call $say (i32.const 2) (i32.const 2048) (i32.load (i32.const 36)))
             (call $say (i32.const 2) (i32.const 60) (i32.const 1))"
        )
    };
    let second = "(if (i32.ne (i32.load (i32.const 1028)) (i32.const 2057)) (then unreachable))
        (if (i32.ne (i32.load (i32.const 32)) (i32.const 2)) (then unreachable))";
    let code = format!(
        "{} {second} {} (call $say (i32.const 2) (i32.const 4096) (call $payload)) (if (call $payload) (then unreachable))",
        show("args_sizes", "args"),
        show("environ_sizes", "environ")
    );
    let mut message = Message::new("sensors/a", Bytes::from_static(b"21.5"), 1_700_000_000_123, false);
    message.content_type = Some("text/plain".into());
    message.properties = vec![("id".into(), "7".into()), ("a=b".into(), "no".into()), ("zero".into(), "\0".into())];
    message.response_topic = Some("answers".into());
    message.correlation_data = Some([0, 255].into());
    let state = ScopeState::from_entries(
        [("n", &b"5"[..]), ("text", b"it is"), ("bytes", b"\xff"), ("list", b" [1,\"\\u0000\"]\n")]
            .map(|(key, value)| (key.into(), Bytes::copy_from_slice(value))),
    );
    let (_sandbox, function) = load_granted(&program(&items, &code), LIMITS, Grants::default());
    let run = function.invoke(&message, state);
    assert_eq!(run.outputs(), 0);
    let texts: Vec<_> = run.log.iter().map(|line| line.text.trim_end()).collect();
    assert_eq!(
        texts,
        [
            "too-warm sensors/a",
            "SEDGE_TOPIC=sensors/a SEDGE_RECEIVED_AT_MS=1700000000123 SEDGE_CLOCK_SYNCED=false SEDGE_ATTEMPT=1 \
             SEDGE_RETAINED=false SEDGE_CONTENT_TYPE=text/plain SEDGE_RESPONSE_TOPIC=answers SEDGE_CORRELATION_DATA=00ff \
             SEDGE_PROPERTY_id=7 SEDGE_STATE={\"list\":[1,\"\\u0000\"],\"n\":5,\"text\":\"it is\"} max=80 oven.max=240",
            "21.5",
        ]
    );
}

#[test]
fn state_is_written_as_json_and_only_by_a_run_that_succeeds() {
    let text = r#"{"kind":"state","key":"firing","value":true}
{"kind":"state","key":"last","value":{"at":5}}
{"kind":"state","key":"old","value":null}"#;
    let stored = || ScopeState::from_entries([("old".into(), Bytes::from_static(b"1"))]);
    let function = load(&echo(1));
    let run = function.invoke(&message("t", text.as_bytes()), stored());
    let entries: Vec<_> = run.state.entries().map(|(key, value)| (key, &value[..])).collect();
    assert_eq!(entries, [("firing", &b"true"[..]), ("last", b"{\"at\":5}")]);
    assert_eq!(run.outcome.writes.len(), 3);
    let run = function.invoke(&message("t", format!("{text}\nnonsense").as_bytes()), stored());
    check_fails(&run, FailureCode::Output, "line 4");
    assert_eq!(run.state.entries().count(), 1);

    let none = Limits { state_bytes: 0, ..LIMITS };
    let (_sandbox, function) = load_granted(&echo(1), none, Grants::default());
    let run = function.invoke(&message("t", text.as_bytes()), ScopeState::default());
    check_fails(&run, FailureCode::Output, "set state = \"topic\" or \"function\" in function.toml");
}

#[test]
fn a_retry_is_asked_for_by_a_line() {
    let run = lines(
        "{\"kind\":\"wake\",\"name\":\"x\"}\n{\"kind\":\"state\",\"key\":\"k\",\"value\":1}\n{\"kind\":\"retry\",\"after_ms\":500,\"reason\":\"busy\"}",
    );
    assert_eq!(run.outcome.verdict, Verdict::Retry { after_ms: 500, reason: "busy".to_owned() });
    assert!(run.outcome.writes.is_empty());
}

#[test]
fn an_exit_code_rejects_the_message_with_the_last_line_of_standard_error() {
    let exits = |code: u32| {
        program(
            "",
            &format!("(call $say (i32.const 2) (i32.const 4096) (call $payload)) (call $exit (i32.const {code}))"),
        )
    };
    for (code, written, expected) in [
        (1, "reading\ncannot parse the payload\n\n", "cannot parse the payload"),
        (3, "no end of line", "no end of line"),
        (255, "\n", "the program ended with exit code 255 and wrote nothing to standard error"),
    ] {
        let run = run(&exits(code), written.as_bytes());
        check_fails(&run, FailureCode::Rejected, expected);
    }
    let run = run(&exits(0), b"all is well");
    assert_eq!((run.outputs(), &*run.log[0].text), (0, "all is well"));
}

#[test]
fn a_panic_is_a_trap_with_what_it_said() {
    let code = "(call $say (i32.const 2) (i32.const 4096) (call $payload)) unreachable";
    let report =
        b"\nthread 'main' panicked at src/main.rs:3:5:\ntoo warm\nnote: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n";
    let run = run(&program("", code), report);
    check_fails(&run, FailureCode::Trap, "too warm (wasm trap: wasm `unreachable` instruction executed");
    assert_eq!(run.log.len(), 2);
}

#[test]
fn standard_error_is_the_log_and_bounded() {
    let text = format!("{}\n\u{1b}[2J{}\n{}", "x".repeat(3000), "tab\there", "more\n".repeat(50));
    let run = run(&echo(2), text.as_bytes());
    assert_eq!((run.outputs(), run.log.len(), run.log_lines_dropped), (0, 32, 20));
    assert_eq!(run.log[0].text.chars().filter(|c| *c == 'x').count(), 1024);
    assert!(run.log[0].text.ends_with('…') && run.log[1].text.starts_with(" [2J"), "{:?}", &run.log[..2]);
}

/// Runs a program with ticks, as a worker does.
fn run_ticking(wasm: &[u8], limits: Limits, payload: &[u8]) -> Run {
    let (sandbox, function) = load_granted(wasm, limits, Grants::default());
    sandbox.ticker().during(|| function.invoke(&message("t", payload), ScopeState::default()))
}

#[test]
fn a_program_that_reads_for_ever_ends() {
    let forever = program("", "(loop $again (drop (call $payload)) (br $again))");
    check_fails(&run(&forever, b"21.5"), FailureCode::Fuel, "used up 10000000 units of fuel");
    let limits = Limits { fuel: u64::MAX / 4, timeout_ms: 50, ..LIMITS };
    check_fails(&run_ticking(&forever, limits, b"21.5"), FailureCode::Deadline, "the limit is 50 ms");
    let spins = program("", "(loop $again (br $again))");
    check_fails(&run(&spins, b""), FailureCode::Fuel, "units of fuel");
}

#[test]
fn a_program_that_writes_a_gigabyte_ends() {
    // 1024 parts of 64 KiB for each call.
    let write = |file: u32, calls: u32| {
        program(
            "",
            &format!(
                "(loop $part
                    (i32.store offset=4096 (local.get $n) (i32.const 65536)) (i32.store offset=4100 (local.get $n) (i32.const 65536))
                    (br_if $part (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 8))) (i32.const 8192))))
                 (loop $again
                    (if (call $write (i32.const {file}) (i32.const 4096) (i32.const 1024) (i32.const 16)) (then unreachable))
                    (br_if $again (i32.lt_u (local.tee $m (i32.add (local.get $m) (i32.const 1))) (i32.const {calls}))))"
            ),
        )
    };
    let limit = LIMITS.transfer_bytes();
    check_fails(
        &run(&write(1, 16_384), b""),
        FailureCode::Output,
        &format!("wrote more than {limit} bytes to standard output"),
    );
    // A line without an end: the log takes its begin, and the rest is not kept.
    let run = run(&write(2, 2048), b"");
    assert_eq!((run.outputs(), run.log.len()), (0, 1));
    assert!(run.log[0].text.len() <= 1024 + '…'.len_utf8());
}

#[test]
fn the_limits_of_all_functions_hold() {
    let wakes = "{\"kind\":\"wake\",\"name\":\"n\"}\n";
    assert_eq!(lines(&wakes.repeat(64)).outputs(), 64);
    check_fails(&lines(&wakes.repeat(65)), FailureCode::Output, "65 outputs, the limit is 64");
    let large =
        |bytes: usize| format!("{{\"kind\":\"forward\",\"topic\":\"t\",\"payload\":\"{}\"}}", "x".repeat(bytes));
    let small = Limits { output_bytes: 1000, ..LIMITS };
    let run_small = |text: &str| {
        load_granted(&echo(1), small, Grants::default()).1.invoke(&message("t", text.as_bytes()), ScopeState::default())
    };
    assert_eq!(run_small(&large(999)).outputs(), 1);
    check_fails(&run_small(&large(1000)), FailureCode::Output, "1001 bytes of output, the limit is 1000");
    let state = |bytes: usize| format!("{{\"kind\":\"state\",\"key\":\"k\",\"value\":\"{}\"}}", "x".repeat(bytes));
    let limits = Limits { state_bytes: 100, ..LIMITS };
    let (_sandbox, function) = load_granted(&echo(1), limits, Grants::default());
    let run_state = |bytes: usize| function.invoke(&message("t", state(bytes).as_bytes()), ScopeState::default());
    assert_eq!(run_state(97).outcome.writes.len(), 1);
    check_fails(&run_state(98), FailureCode::State, "101 bytes of state, the limit is 100");
    let one = "{\"kind\":\"state\",\"key\":\"k\",\"value\":1}\n";
    assert_eq!(lines(&one.repeat(1024)).outcome.writes.len(), 1);
    check_fails(&lines(&one.repeat(1025)), FailureCode::State, "changed more than 1024 keys of state in one run");
    let grow = "(loop $more (br_if $more (i32.ge_s (memory.grow (i32.const 1)) (i32.const 0))))";
    check_fails(&run(&program("", grow), b""), FailureCode::Memory, "bytes of memory, the limit is 4194304");
    let deep = program("(func $deep (call $deep))", "(call $deep)");
    check_fails(&run(&deep, b""), FailureCode::Trap, "call stack exhausted");
}

#[test]
fn nothing_of_a_message_is_left_for_the_next() {
    let items = "(global $runs (mut i32) (i32.const 48)) (data (i32.const 64) \"{\\\"kind\\\":\\\"wake\\\",\\\"name\\\":\\\"00\\\"}\")";
    let count = |end: &str| {
        program(
            items,
            &format!(
                "(global.set $runs (i32.add (global.get $runs) (i32.const 1)))
                 (i32.store8 (i32.const 87) (global.get $runs))
                 (i32.store8 (i32.const 88) (i32.add (i32.load8_u (i32.const 88)) (i32.const 1)))
                 (call $say (i32.const 1) (i32.const 64) (i32.const 27)) {end}"
            ),
        )
    };
    let function = load(&count("(if (i32.eqz (call $payload)) (then unreachable))"));
    for payload in [&b"1"[..], b"", b"2", b""] {
        let run = function.invoke(&message("t", payload), ScopeState::default());
        match payload {
            b"" => check_fails(&run, FailureCode::Trap, "unreachable"),
            _ => assert_eq!(outputs(&run), [Output::Wake(Wake { name: "11".into(), after_ms: None })]),
        }
    }
}

#[test]
fn there_are_no_files() {
    let items = format!(
        r#"(import "{WASI}" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
           (import "{WASI}" "fd_prestat_get" (func $prestat (param i32 i32) (result i32)))
           (import "{WASI}" "fd_close" (func $close (param i32) (result i32)))
           (import "{WASI}" "fd_seek" (func $seek (param i32 i64 i32 i32) (result i32)))
           (import "{WASI}" "fd_fdstat_get" (func $stat (param i32 i32) (result i32)))
           (import "{WASI}" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
           (import "{WASI}" "sched_yield" (func $yield (result i32)))
           (func $expect (param $is i32) (param $should i32)
               (if (i32.ne (local.get $is) (local.get $should)) (then (call $exit (local.get $is)))))"#
    );
    let open = |folder: u32| {
        format!(
            "(call $open (i32.const {folder}) (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 0) (i64.const -1) (i64.const -1)
             (i32.const 0) (i32.const 16))"
        )
    };
    let code = [
        (open(3), 8),
        (open(0), 76),
        ("(call $prestat (i32.const 3) (i32.const 64))".to_owned(), 8),
        ("(call $seek (i32.const 1) (i64.const 0) (i32.const 1) (i32.const 64))".to_owned(), 70),
        ("(call $seek (i32.const 3) (i64.const 0) (i32.const 1) (i32.const 64))".to_owned(), 8),
        ("(call $poll (i32.const 64) (i32.const 128) (i32.const 1) (i32.const 16))".to_owned(), 58),
        ("(call $yield)".to_owned(), 0),
        ("(call $read (i32.const 1) (i32.const 64) (i32.const 1) (i32.const 16))".to_owned(), 8),
        ("(call $write (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 16))".to_owned(), 8),
        ("(call $write (i32.const 4) (i32.const 64) (i32.const 1) (i32.const 16))".to_owned(), 8),
        ("(call $write (i32.const 1) (i32.const 64) (i32.const 1025) (i32.const 16))".to_owned(), 28),
        ("(call $stat (i32.const 1) (i32.const 128))".to_owned(), 0),
        ("(i32.load8_u (i32.const 128))".to_owned(), 0),
        ("(i32.wrap_i64 (i64.load (i32.const 136)))".to_owned(), 64),
        ("(call $stat (i32.const 3) (i32.const 128))".to_owned(), 8),
        ("(call $close (i32.const 3))".to_owned(), 8),
        ("(call $close (i32.const 0))".to_owned(), 0),
        ("(call $read (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 16))".to_owned(), 8),
    ]
    .map(|(call, expected)| format!("(call $expect {call} (i32.const {expected}))"));
    assert_eq!(run(&program(&items, &code.concat()), b"").outputs(), 0);
}

#[test]
fn the_clock_is_the_time_of_the_message_unless_the_manifest_allows_more() {
    let items = format!(
        r#"(import "{WASI}" "clock_time_get" (func $time (param i32 i64 i32) (result i32)))
           (import "{WASI}" "clock_res_get" (func $resolution (param i32 i32) (result i32)))"#
    );
    // Exits with 1 unless both clocks show the time of the message, and with 2 at an error.
    let code = "(loop $each
            (if (call $resolution (local.get $n) (i32.const 64)) (then (call $exit (i32.const 2))))
            (if (call $time (local.get $n) (i64.const 0) (i32.const 64)) (then (call $exit (i32.const 2))))
            (if (i64.ne (i64.load (i32.const 64)) (i64.const 1700000000000000000)) (then (call $exit (i32.const 1))))
            (br_if $each (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 2))))
        (if (i32.ne (call $time (i32.const 2) (i64.const 0) (i32.const 64)) (i32.const 58)) (then (call $exit (i32.const 3))))";
    let wasm = program(&items, code);
    assert_eq!(run(&wasm, b"").outputs(), 0);
    let (_sandbox, function) = load_granted(&wasm, LIMITS, Grants { clock: true, random: false });
    check_fails(&function.invoke(&message("t", b""), ScopeState::default()), FailureCode::Rejected, "exit code 1");
}

#[test]
fn random_numbers_need_a_permission() {
    let items = format!(r#"(import "{WASI}" "random_get" (func $random (param i32 i32) (result i32)))"#);
    let code = |len: u32| {
        format!(
            "(if (call $random (i32.const 4096) (i32.const {len})) (then (call $exit (i32.const 1))))
             (if (i64.eq (i64.load (i32.const 4096)) (i64.load (i32.const 4104))) (then (call $exit (i32.const 2))))"
        )
    };
    check_fails(
        &run(&program(&items, &code(16)), b""),
        FailureCode::Trap,
        "write `random = true` under [allow] in function.toml",
    );
    let granted = |len: u32| {
        let random = Grants { clock: false, random: true };
        let (_sandbox, function) = load_granted(&program(&items, &code(len)), LIMITS, random);
        function.invoke(&message("t", b""), ScopeState::default())
    };
    assert_eq!(granted(16).outputs(), 0);
    check_fails(&granted(65_537), FailureCode::Rejected, "exit code 1");
}

/// Functions with their parameters, `l` for 64 bits.
const CALLS: [(&str, &str); 12] = [
    ("args_get", "ii"),
    ("args_sizes_get", "ii"),
    ("environ_get", "ii"),
    ("environ_sizes_get", "ii"),
    ("clock_time_get", "ili"),
    ("clock_res_get", "ii"),
    ("fd_fdstat_get", "ii"),
    ("fd_read", "iiii"),
    ("fd_write", "iiii"),
    ("fd_seek", "ilii"),
    ("path_open", "iiiiillii"),
    ("random_get", "ii"),
];

#[test]
fn addresses_outside_of_the_memory_are_errors() {
    let numbers = [0, 1, 2, 7, 65_536, 131_071, 131_072, i32::MAX.cast_unsigned(), u32::MAX - 7, u32::MAX];
    for (name, parameters) in CALLS {
        let types: Vec<_> = parameters.chars().map(|kind| if kind == 'l' { "i64" } else { "i32" }).collect();
        let items = format!("(import \"{WASI}\" \"{name}\" (func $f (param {}) (result i32)))", types.join(" "));
        let arguments: String = (types.iter().zip(0..))
            .map(|(kind, place)| {
                format!("({kind}.load{} (i32.const {}))", if *kind == "i64" { "32_u" } else { "" }, 4096 + 4 * place)
            })
            .collect();
        let wasm = program(
            &items,
            &format!("(drop (call $payload)) (if (i32.gt_u (call $f {arguments}) (i32.const 76)) (then unreachable))"),
        );
        let (_sandbox, function) = load_granted(&wasm, LIMITS, Grants::ALL);
        // Each parameter takes each number while the others keep one of three.
        for others in [0, 1, u32::MAX] {
            for place in 0..types.len() {
                for number in numbers {
                    let mut payload = vec![others; types.len()];
                    payload[place] = number;
                    let payload: Vec<u8> = payload.iter().flat_map(|number| number.to_le_bytes()).collect();
                    let run = function.invoke(&message("t", &payload), ScopeState::default());
                    // Some bytes were written to standard output, and are not JSON.
                    let is_fine = match &run.outcome.verdict {
                        Verdict::Failed(failure) => failure.code == FailureCode::Output,
                        verdict => *verdict == Verdict::Done(Vec::new()),
                    };
                    assert!(is_fine, "{name} {payload:?}: {:?}", run.outcome.verdict);
                }
            }
        }
    }
}

#[test]
fn what_a_program_imports_and_exports_is_checked() {
    let import =
        |module: &str, name: &str| program(&format!("(import \"{module}\" \"{name}\" (func (result i32)))"), "");
    check_refused(
        &import(WASI, "sock_accept"),
        "imports wasi_snapshot_preview1.sock_accept, which Sedge does not have: a function has no network",
    );
    check_refused(&import(WASI, "proc_raise"), "imports wasi_snapshot_preview1.proc_raise, which Sedge does not have");
    check_refused(&import("wasi_unstable", "fd_write"), "build it for WASI preview 1");
    check_refused(
        &import("env", "sin"),
        "imports env.sin, which Sedge does not have: a program may import functions of wasi_snapshot_preview1 only",
    );
    let text = |text: &str| wat::parse_str(text).unwrap();
    let memory = text("(module (import \"env\" \"memory\" (memory 1)) (func (export \"_start\")))");
    check_refused(&memory, "imports the memory env.memory");
    let library =
        text(&format!("(module (import \"{WASI}\" \"proc_exit\" (func (param i32))) (func (export \"_initialize\")))"));
    check_refused(&library, "does not export `_start`, so it is a library");
    check_refused(&text("(module (func (export \"_start\")))"), "does not export its memory");
    let refused = |wasm: &[u8], expected: &str| {
        let error = format!("{:#}", anyhow::Error::from(compile::component(wasm, Class::Small).unwrap_err()));
        assert!(error.contains(expected), "{error}");
    };
    let parameters = text("(module (memory (export \"memory\") 1) (func (export \"_start\") (param i32)))");
    refused(&parameters, "`_start` of the program is not a function without parameters and results");
    refused(&import(WASI, "fd_close"), "incompatible import type");
    refused(&program(&"(func)".repeat(20_000), ""), "functions, the limit is 20000");
    let mut damaged = echo(1);
    damaged.truncate(damaged.len() - 3);
    refused(&damaged, "malformed");
}

#[test]
fn a_start_function_may_not_call_the_host() {
    let wasm = wat::parse_str(format!(
        "(module (import \"{WASI}\" \"proc_exit\" (func $exit (param i32)))
            (import \"{WASI}\" \"args_sizes_get\" (func $sizes (param i32 i32) (result i32)))
            (memory (export \"memory\") 1) (start $begin)
            (func $begin (drop (call $sizes (i32.const 0) (i32.const 4)))) (func (export \"_start\")))"
    ));
    let run = run(&wasm.unwrap(), b"");
    check_fails(&run, FailureCode::Trap, "called the host before `_start` was called");
}
