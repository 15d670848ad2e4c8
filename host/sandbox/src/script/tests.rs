//! Scripts, well-behaved and hostile, each run with the whole memory compared with its image before (`ScriptFunction::call`).

#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

mod helpers;

use std::fs;
use std::sync::{Arc, LazyLock};

use super::super::testing::{LIMITS, message};
use super::super::{Function, Run, Sandbox, SandboxError, ScopeState};
use super::archive;
use crate::compile;
use sedge_core::grants::Grants;
use sedge_core::isa::{Class, Isa};
use sedge_core::limits::Limits;
use sedge_core::message::{AlertStatus, FailureCode, Output, Severity, Verdict};

/// Compiled once for all tests.
static ENGINE: LazyLock<Vec<u8>> = LazyLock::new(|| compile::script_engine(Class::Small).unwrap());

const RANDOM: Grants = Grants { clock: false, random: true };

fn sandbox() -> Sandbox {
    let mut sandbox = Sandbox::new();
    sandbox.add_script_engine(Class::Small, &ENGINE).unwrap();
    sandbox
}

fn pack(files: &[(&str, &str)]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    archive::pack(&dir.path().join(files[0].0), None).unwrap().into()
}

fn load_in(
    sandbox: &mut Sandbox,
    files: &[(&str, &str)],
    limits: Limits,
    grants: Grants,
) -> Result<Function, SandboxError> {
    let settings = Arc::from([("max".to_owned(), "80".to_owned()), ("unit".to_owned(), "C".to_owned())]);
    sandbox.load(&pack(files), limits, grants, settings)
}

#[track_caller]
fn load(source: &str) -> Function {
    load_in(&mut sandbox(), &[("function.js", source)], LIMITS, Grants::default())
        .unwrap_or_else(|error| panic!("{:#}", anyhow::Error::from(error)))
}

#[track_caller]
fn check_load_fails(source: &str, expected: &str) {
    let error = load_in(&mut sandbox(), &[("function.js", source)], LIMITS, Grants::default());
    let error = error.err().expect("it must not load").to_string();
    assert!(error.contains(expected), "{error}");
}

fn handler(body: &str) -> String {
    format!("export function handle(message) {{ {body} }}")
}

/// Runs a handler of this body on `{"temperature":90}`.
fn run(body: &str) -> Run {
    load(&handler(body)).invoke(&message("sensors/a", br#"{"temperature":90}"#), ScopeState::default())
}

#[track_caller]
fn check_fails(body: &str, code: FailureCode, detail: &str) {
    let run = run(body);
    let failure = run.failure();
    assert!(failure.code == code && failure.detail.contains(detail), "{failure:?}");
    assert!(run.outcome.writes.is_empty());
}

/// The payload of the only forward of a run.
#[track_caller]
fn forwarded(run: &Run) -> &str {
    match &run.outcome.verdict {
        Verdict::Done(outputs) => match &outputs[..] {
            [Output::Forward(publication)] => str::from_utf8(&publication.payload).unwrap(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

const THRESHOLD: &str = r#"import { alert, state, settings } from "sedge";
export function handle(message) {
    const value = message.json.temperature;
    const firing = state.get("firing") ?? false;
    const key = `${message.topic}/temperature`;
    const more = { severity: "critical", summary: `it is ${value} ${settings.unit}`, value, labels: { topic: message.topic } };
    if (!firing && value > settings.max) {
        state.set("firing", true);
        return alert.firing(key, more);
    }
    if (firing && value <= settings.max - 2) {
        state.set("firing", false);
        return [false, alert.resolved(key, more)];
    }
}"#;

#[test]
fn a_threshold_fires_and_resolves() {
    let function = load(THRESHOLD);
    let mut state = ScopeState::default();
    let mut statuses = Vec::new();
    for value in ["79", "81.5", "90", "79", "78", "70"] {
        let run = function.invoke(&message("oven", format!("{{\"temperature\":{value}}}").as_bytes()), state);
        let Verdict::Done(outputs) = &run.outcome.verdict else { panic!("{:?}", run.outcome) };
        for output in outputs {
            let Output::Alert(alert) = output else { panic!("{output:?}") };
            assert_eq!((&*alert.key, alert.severity), ("oven/temperature", Severity::Critical));
            assert_eq!(alert.labels, [("topic".to_owned(), "oven".to_owned())]);
            assert_eq!(alert.summary, format!("it is {value} C"));
            statuses.push((alert.status, alert.value.unwrap()));
        }
        state = run.state;
    }
    assert_eq!(statuses, [(AlertStatus::Firing, 81.5), (AlertStatus::Resolved, 78.0)]);
}

#[test]
fn what_the_interface_offers() {
    let run = run(
        r#"state.set("a", { b: [1, null] }); state.increment("n", 5); state.increment("n"); state.set("gone", 1); state.delete("gone");
        console.log("hi", { a: 1 }, 5n, [message.attempt]); console.warn(new RangeError("careful"));
        return [
            forward("f", { keys: state.keys(), a: state.get("a"), n: state.get("n"), no: state.get("no") ?? "no" }),
            forward("bytes", message.bytes, { contentType: "x/y", retain: true }),
            publish("p", `${message.text}|${message.contentType}|${message.properties.id}|${message.clockSynced}`),
            publish("settings", [settings.max, settings.unit, settings.none, Object.keys(settings), "max" in settings]),
            publish("time", [Date.now(), new Date().toISOString(), new Date().getTimezoneOffset(), message.receivedAtMs]),
        ];"#,
    );
    let Verdict::Done(outputs) = &run.outcome.verdict else { panic!("{:?}", run.outcome.verdict) };
    let texts: Vec<_> = outputs
        .iter()
        .map(|output| match output {
            Output::Forward(it) | Output::Publish(it) => {
                (&*it.topic, str::from_utf8(&it.payload).unwrap(), it.content_type.as_deref(), it.retain)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    let json = Some("application/json");
    assert_eq!(
        texts,
        [
            ("f", r#"{"keys":["a","n"],"a":{"b":[1,null]},"n":6,"no":"no"}"#, json, false),
            ("bytes", r#"{"temperature":90}"#, Some("x/y"), true),
            ("p", r#"{"temperature":90}|undefined|undefined|true"#, None, false),
            ("settings", r#"[80,"C",null,["max","unit"],true]"#, json, false),
            ("time", r#"[1700000000000,"2023-11-14T22:13:20.000Z",0,1700000000000]"#, json, false),
        ]
    );
    let lines: Vec<_> = run.log.iter().map(|line| (line.level, &*line.text)).collect();
    assert_eq!(lines, [(tracing::Level::INFO, r#"hi {"a":1} 5 [1]"#), (tracing::Level::WARN, "RangeError: careful")]);
    let stored: Vec<_> =
        run.state.entries().map(|(key, value)| (key, str::from_utf8(value).unwrap().to_owned())).collect();
    assert_eq!(stored, [("a", r#"{"b":[1,null]}"#.to_owned()), ("n", "6".to_owned())]);
}

#[test]
fn settings_cannot_be_changed() {
    for change in
        ["settings.max = 5", "settings.more = 5", "delete settings.max", "Object.assign(settings, { max: 5 })"]
    {
        check_fails(change, FailureCode::Exception, "TypeError: ");
    }
    assert_eq!(
        forwarded(&run("const { max, other = 7 } = settings; return forward('x', [max, other, { ...settings }])")),
        r#"[80,7,{"max":80,"unit":"C"}]"#
    );
}

#[test]
fn what_contract_0_2_0_adds_is_handed_in_and_read() {
    let function = load(&handler(
        "return [wake('later', 1500), wake('later'), reply(201, { a: 1 }), alert.firing('k', { sink: 's' }), forward('f', 'x', { sink: 's' }), \
         publish('p', [message.retained, message.responseTopic, [...message.correlationData]])]",
    ));
    let message = sedge_core::message::Message {
        retained: true,
        response_topic: Some("answers".into()),
        correlation_data: Some([7, 0].into()),
        ..message("t", b"")
    };
    let run = function.invoke(&message, ScopeState::default());
    let Verdict::Done(outputs) = &run.outcome.verdict else { panic!("{:?}", run.outcome.verdict) };
    let [
        Output::Wake(wake),
        Output::Wake(cancelled),
        Output::Reply(reply),
        Output::Alert(alert),
        Output::Forward(forward),
        Output::Publish(publish),
    ] = &outputs[..]
    else {
        panic!("{outputs:?}")
    };
    assert_eq!((&*wake.name, wake.after_ms, cancelled.after_ms), ("later", Some(1500), None));
    assert_eq!(
        (reply.status, reply.content_type.as_deref(), &reply.body[..]),
        (201, Some("application/json"), &b"{\"a\":1}"[..])
    );
    assert_eq!((alert.sink.as_deref(), forward.sink.as_deref(), publish.sink.as_deref()), (Some("s"), Some("s"), None));
    assert_eq!(publish.payload, r#"[true,"answers",[7,0]]"#);
    let run = load(&handler(
        "return publish('p', [message.retained, message.responseTopic ?? 'none', message.correlationData ?? 'none'])",
    ))
    .invoke(&super::super::testing::message("t", b""), ScopeState::default());
    let Verdict::Done(outputs) = &run.outcome.verdict else { panic!("{:?}", run.outcome.verdict) };
    let [Output::Publish(publish)] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!(publish.payload, r#"[false,"none","none"]"#);
}

#[test]
fn a_payload_that_is_not_json_rejects_the_message() {
    let function = load(&handler("message.json"));
    for payload in ["", "nonsense", "{", "\u{feff}{}", "[1,]", "\0"] {
        let run = function.invoke(&message("t", payload.as_bytes()), ScopeState::default());
        let failure = run.failure();
        assert!(
            failure.code == FailureCode::Rejected && failure.detail.starts_with("the payload is not JSON"),
            "{failure:?}"
        );
    }
    for payload in ["{}", " [1] ", "21.5", "null", "\"x\""] {
        assert_eq!(function.invoke(&message("t", payload.as_bytes()), ScopeState::default()).outputs(), 0, "{payload}");
    }
}

#[test]
fn numbers_are_read_as_the_sdk_reads_them() {
    let function = load(
        r#"export function handle(message) { return forward("x", [message.number("a.b[1]") ?? "none", message.number() ?? "none"]) }"#,
    );
    let check = |topic: &str, payload: &str, expected: &str| {
        let run = function.invoke(&message(topic, payload.as_bytes()), ScopeState::default());
        match &run.outcome.verdict {
            Verdict::Failed(failure) => assert!(failure.detail.contains(expected), "{payload}: {failure:?}"),
            _ => assert_eq!(forwarded(&run), expected, "{payload}"),
        }
    };
    check("t", "21.5", "[\"none\",21.5]");
    check("x/A.B[1]", "\"21.5\"", "[21.5,21.5]");
    check("t", "\"unavailable\"", "[\"none\",\"none\"]");
    check("t", "true", "is not a number: true");
    check("t", r#"{"a":{"b":[0,"high"]}}"#, r#""a.b[1]" is not a number: "high""#);
    check("t", r#"{"a":{"b":[0,2.5]}}"#, "the payload is not a number: an object");
    let nested = load(r#"export function handle(message) { return forward("x", message.number("a.b[1]") ?? "none") }"#);
    for (payload, expected) in [
        (r#"{"a":{"b":[0,"2.5"]}}"#, "2.5"),
        (r#"{"a":{"b":[0]}}"#, "none"),
        (r#"{"a":null}"#, "none"),
        (r#"{"a":{"b":[0,null]}}"#, "none"),
        (r#"{"a":{"b":"constructor"}}"#, "none"),
    ] {
        assert_eq!(forwarded(&nested.invoke(&message("t", payload.as_bytes()), ScopeState::default())), expected);
    }
}

#[test]
fn a_message_is_rejected_or_tried_again() {
    check_fails(r#"state.set("a", 1); reject(`bad ${1}`); return 5"#, FailureCode::Rejected, "bad 1");
    check_fails(r#"(async () => reject("later"))()"#, FailureCode::Rejected, "later");
    let run = run(r#"state.set("a", 1); retry(1500.4, "not yet")"#);
    assert_eq!(run.outcome.verdict, Verdict::Retry { after_ms: 1500, reason: "not yet".into() });
    assert!(run.outcome.writes.is_empty());
    check_fails(r#"retry("soon")"#, FailureCode::Exception, "retry: \"soon\" is not a time");
    let run = self::run(r#"retry("2s")"#);
    assert_eq!(run.outcome.verdict, Verdict::Retry { after_ms: 2000, reason: String::new() });
}

#[test]
fn a_time_is_a_number_of_milliseconds_or_a_period() {
    let times = [
        ("1500.4", Some(1500)),
        ("'1500'", Some(1500)),
        ("'500ms'", Some(500)),
        ("'10s'", Some(10_000)),
        ("'5m'", Some(300_000)),
        ("'2h'", Some(7_200_000)),
        ("null", None),
    ];
    for (time, after_ms) in times {
        let run = run(&format!("return wake('later', {time})"));
        let Verdict::Done(outputs) = &run.outcome.verdict else { panic!("{time}: {:?}", run.outcome.verdict) };
        let [Output::Wake(wake)] = &outputs[..] else { panic!("{outputs:?}") };
        assert_eq!(wake.after_ms, after_ms, "{time}");
    }
    for time in ["'5 m'", "'-1s'", "-1", "NaN", "'1d'", "{}"] {
        let said = "is not a time: use milliseconds, or \"500ms\", \"10s\", \"5m\" or \"1h\"";
        check_fails(&format!("return wake('later', {time})"), FailureCode::Exception, said);
    }
}

#[test]
fn exceptions_name_the_place_in_the_source() {
    let function = load("export function handle(m) {\n  const a = undefined;\n  return a.b;\n}");
    let failure = function.invoke(&message("t", b""), ScopeState::default()).failure().clone();
    assert_eq!(failure.code, FailureCode::Exception);
    assert_eq!(failure.detail, "TypeError: cannot read property 'b' of undefined (function.js:3:10)");
    let files = [
        ("function.js", "import { f } from './lib/f.js';\nexport const handle = (m) => f(m);"),
        ("lib/f.js", "\n\nexport const f = (m) => JSON.parse('{');"),
    ];
    let function = load_in(&mut sandbox(), &files, LIMITS, Grants::default()).unwrap();
    let failure = function.invoke(&message("t", b""), ScopeState::default()).failure().clone();
    assert!(failure.detail.ends_with("(lib/f.js:3:30)"), "{failure:?}");
    // Not the place in the interface, but where it was called.
    check_fails(
        "const a = {}; a.a = a; return forward('x', a)",
        FailureCode::Exception,
        "circular reference (function.js:1:",
    );
    check_fails("return forward('x', 5n)", FailureCode::Exception, "(function.js:1:");
    check_fails("return alert.firing('k', { severty: 'info' })", FailureCode::Exception, "unknown option \"severty\"");
    check_fails("throw 'text'", FailureCode::Exception, "threw text");
    check_fails("throw { code: 5 }", FailureCode::Exception, "threw {\"code\":5}");
    check_fails("throw undefined", FailureCode::Exception, "threw undefined");
    check_fails("throw { toJSON() { throw 1 } }", FailureCode::Exception, "cannot be shown");
    check_fails("const e = new Error('x'); e.stack = {}; e.toString = 5; throw e", FailureCode::Exception, "");
    check_fails("throw new Error('x'.repeat(100000))", FailureCode::Exception, "xxx");
}

#[test]
fn scripts_that_cannot_be_loaded_say_why() {
    check_load_fails("let a = 1;", "function.js does not export a function `handle`");
    check_load_fails("export const handle = 5;", "does not export a function `handle`");
    check_load_fails("function handle() {}", "does not export a function `handle`");
    check_load_fails("export function handle(m) {\n  return m.\n}", "SyntaxError");
    check_load_fails("export function handle(m) {\n  return m.\n}", "(function.js:3:1)");
    check_load_fails(
        "let x = nothing;\nexport function handle() {}",
        "ReferenceError: nothing is not defined (function.js:1:",
    );
    check_load_fails("while (true) {}", "the top level of the script failed: used up 200000000 units of fuel");
    check_load_fails(
        "const a = []; for (let i = 0; i < 100; i++) a.push(new Uint8Array(1 << 20).fill(1)); export function handle() {}",
        "bytes of memory, the limit is 4194304",
    );
    check_load_fails("const f = () => f(); f(); export function handle() {}", "Maximum call stack size exceeded");
    check_load_fails("await new Promise(() => {}); export function handle() {}", "waits for a promise");
    check_load_fails("Promise.reject(new Error('lost')); export function handle() {}", "Error: lost (function.js:1:");
    for what in ["state.get('x')", "state.keys()", "settings.max", "Object.keys(settings)"] {
        check_load_fails(&format!("{what}; export function handle() {{}}"), "while a message is handled");
    }
    check_load_fails("Math.random(); export function handle() {}", "Math.random needs `random = true`");
    check_load_fails(
        "import 'lodash'; export function handle() {}",
        "cannot import \"lodash\" (imported by function.js)",
    );
    check_load_fails("import './x.js'; export function handle() {}", "cannot import \"x.js\": there is no such file");
    check_load_fails("import '../x.js'; export function handle() {}", "outside of the function's folder");
    check_load_fails("import { nothing } from 'sedge'; export function handle() {}", "nothing");
    check_load_fails("reject('at once'); export function handle() {}", "at once");
    check_load_fails("export function handle() {}\n\0", "");
    let tiny = Limits { memory_bytes: 65_536, ..LIMITS };
    let error = load_in(&mut sandbox(), &[("function.js", &handler(""))], tiny, Grants::default()).err().unwrap();
    assert!(error.to_string().contains("the limit is 65536"), "{error}");
    let error = Sandbox::new().load(&pack(&[("function.js", "")]), LIMITS, Grants::default(), Arc::from([])).err();
    assert!(matches!(error, Some(SandboxError::NoScriptEngine)));
}

/// What `sedge compile --script-engine` writes into the packages of boards without a compiler.
#[test]
fn the_engine_compiled_for_a_package_runs_scripts() {
    let code = compile::script_engine_for(Class::Small, Isa::HOST.unwrap()).unwrap();
    assert!(code.len() < 3_000_000, "{} bytes", code.len());
    let mut sandbox = Sandbox::new();
    sandbox.add_script_engine(Class::Small, &code).unwrap();
    let files = [("function.js", "export const handle = (m) => forward('x', [m.json.a, 0.1 + 0.2]);")];
    let function = load_in(&mut sandbox, &files, LIMITS, Grants::default()).unwrap();
    let run = function.invoke(&message("t", b"{\"a\":5}"), ScopeState::default());
    assert_eq!(forwarded(&run), "[5,0.30000000000000004]");
}

#[test]
fn the_top_level_has_a_deadline() {
    let sandbox = sandbox();
    let engine = Arc::clone(&sandbox.scripts[&Class::Small]);
    let limits = Limits { fuel: u64::MAX / 4, timeout_ms: 50, ..LIMITS };
    let loaded = sandbox
        .ticker()
        .during(|| engine.load_within(&pack(&[("function.js", "for (;;) {}")]), limits, Grants::default()));
    let error = loaded.err().expect("it must not load").to_string();
    assert!(
        error.contains("the top level of the script failed: ran ") && error.contains("the limit is 50 ms"),
        "{error}"
    );
}

/// What JSON lacks cannot be sent or stored. The error names the line of the source.
#[test]
fn values_that_json_lacks_are_told_with_their_line() {
    for (line, expected) in [
        ("const a = []; a.push(a); return forward('x', a)", "circular reference"),
        ("const a = {}; a.b = { c: a }; return publish('x', a)", "circular reference"),
        ("const a = {}; a.a = a; state.set('k', a)", "circular reference"),
        ("return forward('x', 5n)", "BigInt"),
        ("return forward('x', { n: 5n })", "BigInt"),
        ("state.set('k', 5n)", "BigInt"),
        ("return forward('x', () => 5)", "cannot be sent"),
        ("return alert.firing('k', { value: 5n })", "the value must be a number, and is 5"),
        ("return forward('x', { toJSON() { throw new RangeError('no') } })", "RangeError: no"),
    ] {
        check_fails(&format!("\n\n{line}"), FailureCode::Exception, expected);
        check_fails(&format!("\n\n{line}"), FailureCode::Exception, "(function.js:3:");
    }
    check_fails("return 5n", FailureCode::Exception, "not an output (5)");
    check_fails("const a = []; a.push(a); return a", FailureCode::Exception, "an object without a kind");
    check_fails("const a = { kind: 'alert' }; a.key = a; return a", FailureCode::Exception, "`key` is not a string");
    check_load_fails("const a = []; a.push(a);\nJSON.stringify(a); export function handle() {}", "(function.js:2:");
}

#[test]
fn the_top_level_may_log_and_see_no_clock() {
    let function = load(
        "console.log('loading', Date.now()); const at = Date.now();\n export const handle = () => forward('x', [at, Date.now()]);",
    );
    assert_eq!(function.load_log()[0].text, "loading 0");
    let run = function.invoke(&message("t", b""), ScopeState::default());
    assert_eq!(forwarded(&run), "[0,1700000000000]");
}

#[test]
fn an_invalid_return_value_is_reported() {
    for (returned, expected) in [
        ("42", "not an output (42)"),
        ("'text'", "not an output (text)"),
        ("[forward('x', 1), [forward('x', 1)]]", "an object without a kind"),
        ("{}", "an object without a kind"),
        ("() => 5", "not an output"),
        ("Symbol('x')", ""),
        ("{ kind: 'mail' }", "`kind` is unknown: mail"),
        ("{ kind: 'alert' }", "`key` is not a string"),
        (
            "{ kind: 'alert', key: 'k', summary: 's', severity: 'high', status: 'firing' }",
            "`severity` is unknown: high",
        ),
        ("{ kind: 'forward', topic: 't', payload: 5 }", "`payload` is not a string"),
        ("{ kind: 'forward', topic: 't', payload: {} }", "`payload` is neither text nor a Uint8Array"),
        ("new Array(1000000)", "1000000 outputs"),
        ("{ get kind() { throw new Error('got') } }", "got"),
        ("new Promise(() => {})", "waits for a promise that nothing can settle"),
        ("forward(5, 1)", "forward: the topic must be a string, and is 5"),
        ("forward('x', undefined)", "cannot be sent"),
        ("alert.firing('')", "must not be empty"),
        ("alert.firing('k', { value: '5' })", "the value must be a number"),
    ] {
        check_fails(&format!("return {returned}"), FailureCode::Exception, expected);
    }
    for nothing in ["undefined", "null", "[]", "[null, false, undefined]", "new Array(5)", "Promise.resolve()"] {
        assert_eq!(run(&format!("return {nothing}")).outputs(), 0, "{nothing}");
    }
    check_fails("return new Array(65).fill(publish('x', 'y'))", FailureCode::Output, "65 outputs, the limit is 64");
}

#[test]
fn async_handlers_run_until_their_jobs_are_done() {
    let function = load(
        "const later = async (n) => n; export async function handle(m) { let n = 0; for (let i = 0; i < 50; i++) n += await later(i); \
         Promise.resolve().then(() => state.set('after', true)); return forward('x', n); }",
    );
    let state = LIMITS;
    let run = function.invoke(&message("t", b""), ScopeState::default());
    assert_eq!(forwarded(&run), "1225");
    assert_eq!((run.outcome.writes.len(), state.outputs), (1, 64));
    check_fails(
        "(async () => { await 1; throw new RangeError('lost') })()",
        FailureCode::Exception,
        "RangeError: lost",
    );
    assert_eq!(
        run_ok("try { await Promise.reject(new Error('caught')) } catch (e) { return forward('x', e.message) }"),
        "caught"
    );
    check_fails("const f = () => Promise.resolve().then(f); f()", FailureCode::Fuel, "units of fuel");
}

fn run_ok(body: &str) -> String {
    let function = load(&format!("export async function handle(message) {{ {body} }}"));
    forwarded(&function.invoke(&message("t", b""), ScopeState::default())).to_owned()
}

/// Each must cost its own message only: the run after it starts from the image again, and counts from one.
const HOSTILE: [(&str, Option<FailureCode>); 16] = [
    ("", None),
    ("throw new Error('no')", Some(FailureCode::Exception)),
    ("for (;;) {}", Some(FailureCode::Fuel)),
    ("const f = () => f() + 1; f()", Some(FailureCode::Exception)),
    ("const a = []; for (;;) a.push(new Array(100).fill(count))", Some(FailureCode::Fuel)),
    ("const a = []; for (;;) a.push(new Uint8Array(100000).fill(1))", Some(FailureCode::Memory)),
    ("/^(a+)+$/.test('a'.repeat(40) + 'b')", Some(FailureCode::Fuel)),
    ("'x'.repeat(1 << 29)", Some(FailureCode::Exception)),
    ("Object.prototype.seen = 1; Array.prototype.push = null; JSON.parse = null; globalThis.left = 1", None),
    ("state.get = null; console.log = null", None),
    ("globalThis.state = null; globalThis.forward = null", Some(FailureCode::Exception)),
    (
        "let a = []; let b = a; for (let i = 0; i < 20000; i++) { const c = []; b.push(c); b = c } JSON.stringify(a)",
        Some(FailureCode::Fuel),
    ),
    ("eval('('.repeat(20000))", Some(FailureCode::Fuel)),
    ("new Proxy({}, { get() { return count } }).x; new Date().getTime(); Symbol.for('left')", None),
    ("state.set('k'.repeat(70000), 1)", Some(FailureCode::State)),
    ("return new Array(100).fill(publish('x', 'y'))", Some(FailureCode::Output)),
];

#[test]
fn nothing_of_a_message_is_left_for_the_next() {
    // Each body comes by the payload, so that one function sees them all.
    let source = "let count = 0; const kept = { list: [] };
        export function handle(message) {
            count++; kept.list.push(count);
            const body = message.text;
            const seen = [count, kept.list.length, typeof seen_global(), ({}).seen ?? 'no', Symbol.keyFor(Symbol('left')) ?? 'no'];
            const result = new Function('count', 'state', 'forward', 'publish', body)(count, state, forward, publish);
            return result ?? forward('x', seen);
        }
        const seen_global = () => globalThis.left;";
    let function = load(source);
    let fresh = r#"[1,1,"undefined","no","no"]"#;
    for (body, expected) in HOSTILE {
        let first = function.invoke(&message("t", body.as_bytes()), ScopeState::default());
        match (&first.outcome.verdict, expected) {
            (Verdict::Failed(failure), Some(code)) => assert_eq!(failure.code, code, "{body}: {failure:?}"),
            (Verdict::Failed(failure), None) => assert_eq!(failure.code, FailureCode::Trap, "{body}: {failure:?}"),
            (_, Some(code)) => panic!("{body}: {code:?} was expected, and it is {:?}", first.outcome.verdict),
            _ => {}
        }
        let next = function.invoke(&message("t", b""), ScopeState::default());
        assert_eq!(forwarded(&next), fresh, "after {body}");
    }
}

#[test]
fn two_scripts_of_one_worker_see_nothing_of_each_other() {
    let mut sandbox = sandbox();
    let mut load = |name: &str| {
        let source = format!(
            "let own = '{name}'; globalThis.mark ??= '{name}'; \
             export function handle(m) {{ own += '!'; Object.prototype[own] = 1; return forward('x', own + mark + Object.keys(globalThis)); }}"
        );
        load_in(&mut sandbox, &[("function.js", &source)], LIMITS, Grants::default()).unwrap()
    };
    let functions = [load("one"), load("two")];
    for _ in 0..3 {
        for (function, name) in functions.iter().zip(["one", "two"]) {
            let run = function.invoke(&message("t", b""), ScopeState::default());
            assert_eq!(forwarded(&run), format!("{name}!{name}mark"));
        }
    }
}

#[test]
fn the_same_message_has_the_same_outcome() {
    let source = "const made = new Map([[1, 2]]);
        export function handle(m) {
            const o = { z: 1, a: 2, 5: 3 }; const s = new Set('hello');
            return forward('x', [Date.now(), new Date(2024, 0, 31).toString(), Object.keys(o), [...s], [...made], 0.1 + 0.2, NaN, 1e21, [3,1,2].sort(),
                (1234.5).toLocaleString(), 'ä'.localeCompare('z'), new Error('x').stack]);
        }";
    let (one, other) = (load(source), load(source));
    let first = one.invoke(&message("t", b"{}"), ScopeState::default());
    for function in [&one, &other] {
        let run = function.invoke(&message("t", b"{}"), ScopeState::default());
        assert_eq!(run.outcome.verdict, first.outcome.verdict);
        assert_eq!(run.outcome.usage.fuel, first.outcome.usage.fuel);
    }
}

#[test]
fn random_numbers_need_a_permission_and_differ_then() {
    check_fails("return forward('x', Math.random())", FailureCode::Exception, "Math.random needs `random = true`");
    let source = handler("return forward('x', [Math.random(), Math.random()])");
    let function = load_in(&mut sandbox(), &[("function.js", &source)], LIMITS, RANDOM).unwrap();
    let numbers = || {
        let run = function.invoke(&message("t", b""), ScopeState::default());
        forwarded(&run).trim_matches(['[', ']']).split(',').map(|it| it.parse().unwrap()).collect::<Vec<f64>>()
    };
    let (one, other) = (numbers(), numbers());
    assert!(one[0] != one[1] && one != other && one.iter().all(|number| (0.0..1.0).contains(number)), "{one:?}");
    let error = load_in(&mut sandbox(), &[("function.js", "Math.random()")], LIMITS, RANDOM).err().unwrap().to_string();
    assert!(error.contains("while a message is handled"), "{error}");
}

#[test]
fn state_needs_a_scope() {
    let none = Limits { state_bytes: 0, ..LIMITS };
    let function =
        load_in(&mut sandbox(), &[("function.js", &handler("state.set('x', 1)"))], none, Grants::default()).unwrap();
    let failure = function.invoke(&message("t", b""), ScopeState::default()).failure().clone();
    assert!(failure.detail.contains("set state = \"topic\" or \"function\""), "{failure:?}");
    check_fails("state.set('x', undefined)", FailureCode::Exception, "undefined cannot be stored under \"x\"");
    check_fails("state.set('x', () => 1)", FailureCode::Exception, "cannot be stored");
    check_fails("state.get(5)", FailureCode::Exception, "the key must be a string");
    check_fails("state.increment('x', 0.5)", FailureCode::Exception, "not a whole number");
    let stored = ScopeState::from_entries([("x".into(), "not json".into())]);
    let run = load(&handler("state.get('x')")).invoke(&message("t", b""), stored);
    assert!(run.failure().detail.contains("is not JSON: \"not json\""), "{:?}", run.failure());
}

#[test]
fn deep_payloads_and_large_ones() {
    let function =
        load(&handler("try { return forward('x', message.json.length) } catch (e) { return forward('x', e.name) }"));
    let nested = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
    let run = function.invoke(&message("t", &nested(200)), ScopeState::default());
    assert_eq!(forwarded(&run), "1");
    let huge = Limits { memory_bytes: 4 << 20, fuel: 1_000_000_000, ..LIMITS };
    let source = handler("return forward('x', message.json.length)");
    let function = load_in(&mut sandbox(), &[("function.js", &source)], huge, Grants::default()).unwrap();
    // A megabyte of nested JSON.
    let run = function.invoke(&message("t", &nested(500_000)), ScopeState::default());
    let failure = run.failure();
    assert!(failure.code == FailureCode::Rejected && failure.detail.contains("Maximum call stack size"), "{failure:?}");
    let run = function.invoke(&message("t", &nested(100)), ScopeState::default());
    assert_eq!(forwarded(&run), "1");
}

#[test]
fn files_are_imported_by_relative_paths() {
    let files = [
        (
            "function.js",
            "import './decoder.js' with { type: 'script' };\nimport table from './data/table.json';\nimport { twice } from './lib/twice.js';\n\
             import text from './lib/note.txt' with { type: 'text' };\n\
             export const handle = (m) => forward('x', [Decoder(m.bytes, 5), table.rows[1], twice(4), text, i]);",
        ),
        ("decoder.js", "function Decoder(bytes, port) { i = port; var o = {}; o.first = bytes[0]; return o; }"),
        ("data/table.json", "{\"rows\": [1, 2]}"),
        ("lib/twice.js", "import { two } from '../two.js'; export const twice = (n) => two * n;"),
        ("two.js", "export const two = 2;"),
        ("lib/note.txt", "a note"),
    ];
    let function = load_in(&mut sandbox(), &files, LIMITS, Grants::default()).unwrap();
    let run = function.invoke(&message("t", b"A"), ScopeState::default());
    assert_eq!(forwarded(&run), r#"[{"first":65},2,8,"a note",5]"#);
    check_fails("return import('./x.js').then(() => 5)", FailureCode::Exception, "import it at the top of a file");
}
