//! Values that the host writes into a guest's memory and reads from it, byte for byte as the engine does for components.
//! Every run here goes both ways ([`crate::testing::Both`]).

#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use bytes::Bytes;

use crate::contract::Contract;
use crate::main_module::main_module;
use crate::testing::{
    BUCKET, Bench, CAS_DROP, CAS_NEW, DELETE, INCREMENT, LIMITS, LIST_KEYS, LOG, NOTHING, OPEN, SET, component,
    component_of, message, module, module_0_2, run, run_with,
};
use crate::{Run, ScopeState};
use sedge_core::grants::Grants;
use sedge_core::limits::Limits;
use sedge_core::message::{
    Alert, AlertStatus, FailureCode, Message, Output, Publication, Reply, Severity, Verdict, Wake,
};

const GET: &str = r#"(import "wasi:keyvalue/store@0.2.0-draft2" "[method]bucket.get"
    (func $get (param i32 i32 i32 i32)))"#;
const EXISTS: &str = r#"(import "wasi:keyvalue/store@0.2.0-draft2" "[method]bucket.exists"
    (func $exists (param i32 i32 i32 i32)))"#;
const BUCKET_DROP: &str = r#"(import "wasi:keyvalue/store@0.2.0-draft2" "[resource-drop]bucket"
    (func $bucket-drop (param i32)))"#;
const SWAP: &str = r#"(import "wasi:keyvalue/atomics@0.2.0-draft2" "swap" (func $swap (param i32 i32 i32 i32)))"#;
const CURRENT: &str = r#"(import "wasi:keyvalue/atomics@0.2.0-draft2" "[method]cas.current"
    (func $current (param i32 i32)))"#;
const SETTING: &str = r#"(import "wasi:config/store@0.2.0-rc.1" "get" (func $setting (param i32 i32 i32)))"#;
const SETTINGS: &str = r#"(import "wasi:config/store@0.2.0-rc.1" "get-all" (func $settings (param i32)))"#;
const BYTES: &str = r#"(import "wasi:random/random@0.2.0" "get-random-bytes" (func $bytes (param i64 i32)))"#;

/// At 900: a key that is stored, one that is not, a value, the name of a setting, the name of no bucket.
const TEXTS: &str = r#"(data (i32.const 900) "bnonewmaxelse")"#;

/// Publishes the memory from 1000 on, where results are written, and from 32768 on, where the allocator begins.
const SHOW: &str = "
    (i32.store (i32.const 49152) (i32.const 2))
    (i32.store (i32.const 49168) (i32.const 1000)) (i32.store (i32.const 49172) (i32.const 200))
    (i32.store (i32.const 49208) (i32.const 2))
    (i32.store (i32.const 49224) (i32.const 32768)) (i32.store (i32.const 49228) (i32.const 300))
    (i32.store (i32.const 24) (i32.const 49152)) (i32.store (i32.const 28) (i32.const 2))
    (i32.const 16)";

fn stored() -> ScopeState {
    ScopeState::from_entries([("a".into(), Bytes::from_static(b"old")), ("b".into(), Bytes::from_static(b"1"))])
}

/// Runs `code` both ways and returns the 200 bytes of results.
#[track_caller]
fn results(imports: &str, code: &str, limits: Limits) -> Bytes {
    let run = run_with(&component(&format!("{imports} {TEXTS}"), &format!("{code} {SHOW}")), limits, stored());
    let Verdict::Done(outputs) = run.outcome.verdict else { panic!("{:?}", run.outcome) };
    let [Output::Publish(results), Output::Publish(_)] = &outputs[..] else { panic!("{outputs:?}") };
    results.payload.clone()
}

#[test]
fn a_message_lies_in_memory_as_in_every_component() {
    let mut bench = Bench::default();
    let plain = message("sensors/a", b"21.5");
    for show in [component("", SHOW), component_of(&module_0_2("", &in_0_2(SHOW)))] {
        let function = bench.load(&show, LIMITS);
        for message in [&plain, &full()] {
            assert_eq!(function.invoke(message, ScopeState::default()).outputs(), 2);
        }
    }
}

fn full() -> Message {
    Message {
        topic: "gewächshaus/1".into(),
        payload: Bytes::new(),
        content_type: Some("application/json".into()),
        properties: vec![("origin".into(), "b1".into()), ("".into(), "ü".into())],
        received_at_ms: u64::MAX,
        clock_synced: false,
        attempt: u32::MAX,
        retained: true,
        response_topic: Some("antworten/ü".into()),
        correlation_data: Some([0, 255].into()),
        trace: None,
    }
}

/// Code for [`SHOW`]'s outputs with the distance between outputs of contract 0.2.0, which is 16 bytes more.
fn in_0_2(code: &str) -> String {
    code.replace("49228", "49244").replace("49224", "49240").replace("49208", "49224")
}

#[test]
fn the_record_of_a_message_has_its_fields_in_their_order() {
    let at_0_2 = "(memory.copy (i32.const 1000) (local.get $message) (i32.const 88))";
    let component = component_of(&module_0_2("", &format!("{at_0_2} {}", in_0_2(SHOW))));
    let message = full();
    let run = Bench::default().load(&component, LIMITS).invoke(&message, ScopeState::default());
    let Verdict::Done(outputs) = run.outcome.verdict else { panic!("{:?}", run.outcome) };
    let [Output::Publish(record), Output::Publish(memory)] = &outputs[..] else { panic!("{outputs:?}") };
    let record = &record.payload;
    let number = |at: usize| u32::from_le_bytes(record[at..at + 4].try_into().unwrap()) as usize;
    let bytes = |at: usize| &memory.payload[number(at) - 32_768..][..number(at + 4)];
    assert_eq!((bytes(0), bytes(8)), (message.topic.as_bytes(), &b""[..]));
    assert_eq!((record[16], bytes(20)), (1, &b"application/json"[..]));
    assert_eq!(number(32), 2, "properties");
    assert_eq!(record[40..48], u64::MAX.to_le_bytes());
    assert_eq!((record[48], number(52), record[56]), (0, u32::MAX as usize, 1));
    assert_eq!((record[60], bytes(64)), (1, "antworten/ü".as_bytes()));
    assert_eq!((record[72], bytes(76)), (1, &[0, 255][..]));
}

/// Outputs of contract 0.2.0 at 49152, and their texts at 900.
struct Outputs(Vec<u8>);

impl Outputs {
    fn set(mut self, place: usize, bytes: &[u8]) -> Self {
        self.0[place..place + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn text(self, place: usize, at: u32, len: u32) -> Self {
        self.set(place, &at.to_le_bytes()).set(place + 4, &len.to_le_bytes())
    }

    fn option(self, place: usize, at: u32, len: u32) -> Self {
        self.set(place, &[1]).text(place + 4, at, len)
    }

    #[track_caller]
    fn run(&self) -> Run {
        let data: String = self.0.iter().map(|byte| format!("\\{byte:02x}")).collect();
        let count = self.0.len() / 72;
        let items = format!("{TEXTS} (data (i32.const 49152) \"{data}\")");
        let code = format!(
            "(i32.store (i32.const 24) (i32.const 49152)) (i32.store (i32.const 28) (i32.const {count})) (i32.const 16)"
        );
        run(&component_of(&module_0_2(&items, &code)), LIMITS)
    }
}

fn all_outputs() -> Outputs {
    let alert = Outputs(vec![0; 6 * 72])
        .text(8, 900, 1)
        .set(16, &[2, 1])
        .text(20, 901, 4)
        .set(32, &[1])
        .set(40, &21.5_f64.to_le_bytes())
        .option(56, 909, 4);
    let forward =
        alert.set(72, &[1]).text(80, 900, 1).text(88, 903, 3).option(96, 901, 4).set(108, &[1]).option(112, 909, 4);
    let publish = forward.set(144, &[2]).text(152, 903, 3);
    let wake = publish.set(216, &[3]).text(224, 900, 1).set(232, &[1]).set(240, &300_000_u64.to_le_bytes());
    let cancel = wake.set(288, &[3]).text(296, 903, 3);
    cancel.set(360, &[4]).set(368, &404_u16.to_le_bytes()).option(372, 901, 4).text(384, 903, 3)
}

#[test]
fn every_output_of_contract_0_2_arrives_as_it_was_returned() {
    let sink = || Some("else".into());
    let expected = vec![
        Output::Alert(Alert {
            key: "b".into(),
            severity: Severity::Critical,
            status: AlertStatus::Resolved,
            summary: "none".into(),
            value: Some(21.5),
            labels: Vec::new(),
            sink: sink(),
        }),
        Output::Forward(Publication {
            topic: "b".into(),
            payload: Bytes::from_static(b"new"),
            content_type: Some("none".into()),
            retain: true,
            sink: sink(),
        }),
        Output::Publish(Publication {
            topic: "new".into(),
            payload: Bytes::new(),
            content_type: None,
            retain: false,
            sink: None,
        }),
        Output::Wake(Wake { name: "b".into(), after_ms: Some(300_000) }),
        Output::Wake(Wake { name: "new".into(), after_ms: None }),
        Output::Reply(Reply { status: 404, content_type: Some("none".into()), body: Bytes::from_static(b"new") }),
    ];
    assert_eq!(all_outputs().run().outcome.verdict, Verdict::Done(expected));
}

#[test]
fn nonsense_in_an_output_of_contract_0_2_fails_the_run() {
    let far = [0xff; 4];
    for (place, bytes) in [
        (0, &[5][..]),
        (16, &[3]),
        (17, &[2]),
        (32, &[2]),
        (56, &[2]),
        (60, &far),
        (96, &[2]),
        (112, &[2]),
        (116, &far),
        (224, &far),
        (232, &[2]),
        (372, &[2]),
        (376, &far),
        (384, &far),
        (388, &far),
    ] {
        let failure = all_outputs().set(place, bytes).run();
        assert_eq!(failure.failure().code, FailureCode::Output, "{place}");
    }
    // Contract 0.1.0 has no case 3.
    let code = "(i32.store8 (i32.const 49152) (i32.const 3)) (i32.store (i32.const 24) (i32.const 49152))
        (i32.store (i32.const 28) (i32.const 1)) (i32.const 16)";
    assert_eq!(run(&component("", code), LIMITS).failure().code, FailureCode::Output);
}

#[test]
fn parameters_arrive_in_their_order() {
    let text = module("", SHOW).replace("(param i32 i32 i32 i32 i32 i64 i32)", "(param $is i32) (param $kind i32) (param $kind-len i32) (param $props i32) (param $props-len i32) (param $at i64) (param $synced i32)");
    let code = "(i32.store (i32.const 1000) (local.get $is)) (i32.store (i32.const 1004) (local.get $kind-len))
        (i32.store (i32.const 1008) (local.get $props-len)) (i64.store (i32.const 1016) (local.get $at))
        (i32.store (i32.const 1024) (local.get $synced)) (i32.store (i32.const 1028) (local.get $attempt))
        (i32.store (i32.const 1032) (local.get $topic-len)) (i32.store (i32.const 1036) (local.get $payload-len))";
    let component = component_of(&text.replace(SHOW, &format!("{code} {SHOW}")));
    let message = Message {
        content_type: Some("text".into()),
        properties: vec![("a".into(), "b".into()); 3],
        clock_synced: true,
        attempt: 7,
        ..message("sensors/a", b"21.5")
    };
    let run = Bench::default().load(&component, LIMITS).invoke(&message, ScopeState::default());
    let Verdict::Done(outputs) = run.outcome.verdict else { panic!("{:?}", run.outcome) };
    let Output::Publish(results) = &outputs[0] else { panic!("{outputs:?}") };
    let number = |at: usize| u32::from_le_bytes(results.payload[at..at + 4].try_into().unwrap());
    assert_eq!([0, 4, 8, 24, 28, 32, 36].map(number), [1, 4, 3, 1, 7, 9, 4]);
    assert_eq!(results.payload[16..24], 1_700_000_000_000_u64.to_le_bytes());
}

#[test]
fn results_lie_in_memory_as_in_every_component() {
    let bucket = format!("{BUCKET} (local.set $bucket)");
    let call = |name: &str, key: u32, len: u32, at: u32| {
        format!("(call ${name} (local.get $bucket) (i32.const {key}) (i32.const {len}) (i32.const {at}))")
    };
    let found = results(
        &format!("{OPEN} {GET} {EXISTS} {DELETE}"),
        &format!(
            "(call $open (i32.const 906) (i32.const 4) (i32.const 1160)) {bucket} {} {} {} {} {} {} {}",
            call("get", 900, 1, 1016),
            call("get", 901, 4, 1032),
            call("exists", 900, 1, 1048),
            call("exists", 901, 4, 1064),
            call("delete", 900, 1, 1080),
            call("get", 900, 1, 1096),
            call("get", 900, 0, 1112),
        ),
        LIMITS,
    );
    // No such bucket; some, of one byte; none; exists; does not; deleted; none.
    assert_eq!((found[160], found[164]), (1, 0));
    assert_eq!((found[16], found[20], found[28]), (0, 1, 1));
    assert_eq!([32, 36, 48, 52, 64, 68, 80, 96, 100].map(|at: usize| found[at]), [0, 0, 0, 1, 0, 0, 0, 0, 0]);

    let sums = results(
        &format!("{OPEN} {INCREMENT} {LIST_KEYS} {SET}"),
        &format!(
            "{bucket}
             (call $increment (local.get $bucket) (i32.const 900) (i32.const 1) (i64.const 41) (i32.const 1016))
             (call $set (local.get $bucket) (i32.const 901) (i32.const 4) (i32.const 902) (i32.const 3) (i32.const 1040))
             (call $increment (local.get $bucket) (i32.const 901) (i32.const 4) (i64.const 1) (i32.const 1064))
             (call $list-keys (local.get $bucket) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1096))
             (call $list-keys (local.get $bucket) (i32.const 1) (i32.const 900) (i32.const 1) (i32.const 1128))"
        ),
        LIMITS,
    );
    assert_eq!((sums[16], sums[24], sums[64], sums[72]), (0, 42, 1, 2), "42, and no number");
    assert_eq!((sums[96], sums[104], sums[128], sums[136]), (0, 3, 0, 1), "a, b, none; none");

    let none = Limits { state_bytes: 0, ..LIMITS };
    let imports = format!("{OPEN} {GET} {EXISTS} {DELETE} {SET} {INCREMENT} {LIST_KEYS} {CAS_NEW}");
    let code = format!(
        "{bucket} {} {} {} (call $set (local.get $bucket) (i32.const 901) (i32.const 4) (i32.const 902) (i32.const 3) (i32.const 1064))
         (call $increment (local.get $bucket) (i32.const 901) (i32.const 4) (i64.const 0) (i32.const 1080))
         (call $increment (local.get $bucket) (i32.const 901) (i32.const 4) (i64.const 1) (i32.const 1104))
         (call $list-keys (local.get $bucket) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1128))
         (call $cas-new (local.get $bucket) (i32.const 901) (i32.const 4) (i32.const 1152))",
        call("get", 901, 4, 1016),
        call("exists", 901, 4, 1032),
        call("delete", 901, 4, 1048),
    );
    let found =
        run_with(&component(&format!("{imports} {TEXTS}"), &format!("{code} {SHOW}")), none, ScopeState::default());
    let Verdict::Done(outputs) = found.outcome.verdict else { panic!("{:?}", found.outcome) };
    let Output::Publish(found) = &outputs[0] else { panic!("{outputs:?}") };
    let found = &found.payload;
    // Reads find nothing.
    assert_eq!([0, 16, 20, 32, 36, 80, 88, 128, 136].map(|at: usize| found[at]), [0; 9]);
    // Delete, set, increment and compare-and-swap: access denied.
    assert_eq!([48, 52, 64, 68, 104, 112, 152, 156].map(|at: usize| found[at]), [1; 8]);
}

#[test]
fn a_swap_succeeds_only_while_nothing_changed() {
    let imports = format!("{OPEN} {SET} {CAS_NEW} {CURRENT} {SWAP} {CAS_DROP} {BUCKET_DROP}");
    let swap = |at: u32| format!("(call $swap (local.get $n) (i32.const 902) (i32.const 3) (i32.const {at}))");
    let new = format!(
        "{BUCKET} (local.set $bucket)
         (call $cas-new (local.get $bucket) (i32.const 900) (i32.const 1) (i32.const 1016))
         (local.set $n (i32.load (i32.const 1020)))"
    );
    let change = "(call $set (local.get $bucket) (i32.const 900) (i32.const 1) (i32.const 900) (i32.const 4)
        (i32.const 1032))";
    let again = "(local.set $n (i32.load (i32.const 1056)))";
    let swapped = results(
        &imports,
        &format!(
            "{new} (call $current (local.get $n) (i32.const 1080)) {change} {} {again} {}",
            swap(1048),
            swap(1112)
        ),
        LIMITS,
    );
    assert_eq!((swapped[80], swapped[84], swapped[92]), (0, 1, 1), "the value observed");
    assert_eq!((swapped[48], swapped[52], swapped[112]), (1, 1, 0), "changed, then swapped");

    let gone = [
        format!("{new} {} {} {NOTHING}", swap(1048), swap(1048)),
        format!("{new} (call $cas-drop (local.get $n)) {} {NOTHING}", swap(1048)),
        format!("{new} (call $cas-drop (local.get $n)) (call $cas-drop (local.get $n)) {NOTHING}"),
        format!("{new} (call $cas-drop (local.get $bucket)) {NOTHING}"),
        format!("{new} (call $bucket-drop (local.get $n)) {NOTHING}"),
        format!("{new} (call $bucket-drop (local.get $bucket)) {change} {NOTHING}"),
        format!("{new} (call $bucket-drop (i32.const 0)) {NOTHING}"),
    ];
    for code in gone {
        let run = run_with(&component(&imports, &code), LIMITS, stored());
        assert_eq!(run.failure().code, FailureCode::Trap, "{:?}", run.failure());
        assert!(run.outcome.writes.is_empty());
    }
    // A released handle is used again.
    let anew =
        format!("{new} (call $cas-drop (local.get $n)) (call $bucket-drop (local.get $bucket)) {new} {}", swap(1048));
    assert_eq!(results(&imports, &anew, LIMITS)[48], 0);
}

#[test]
fn settings_are_found_by_name_or_listed() {
    let found = results(
        &format!("{SETTING} {SETTINGS}"),
        "(call $setting (i32.const 906) (i32.const 3) (i32.const 1000))
         (call $setting (i32.const 900) (i32.const 1) (i32.const 1016)) (call $settings (i32.const 1032))",
        LIMITS,
    );
    assert_eq!((found[0], found[4], found[12], found[16], found[20]), (0, 1, 2, 0, 0), "`max` is 80");
    assert_eq!((found[32], found[40]), (0, 1));
}

#[test]
fn random_bytes_are_as_many_as_were_asked_for() {
    let load = |count: u64| {
        let code = format!(
            "(call $bytes (i64.const {count}) (i32.const 1000))
            (if (i32.ne (i32.load (i32.const 1004)) (i32.const {count})) (then unreachable)) {NOTHING}"
        );
        Bench::default()
            .load_granted(&component(BYTES, &code), LIMITS, Grants::ALL)
            .invoke(&message("a", b""), ScopeState::default())
    };
    assert_eq!(load(0).outputs(), 0);
    assert_eq!(load(1000).outputs(), 0);
    assert!(load(65_537).failure().detail.contains("the limit is 65536"));
}

#[test]
fn an_alert_arrives_as_it_was_returned() {
    let alert = |more: &str| {
        let code = format!(
            "(i64.store (i32.const 49160) (i64.const 0x0000000100000384))  ;; key: 900, 1
             (i32.store8 (i32.const 49168) (i32.const 2)) (i32.store8 (i32.const 49169) (i32.const 1))
             (i64.store (i32.const 49172) (i64.const 0x0000000400000385))  ;; summary: 901, 4
             (i32.store8 (i32.const 49184) (i32.const 1)) (f64.store (i32.const 49192) (f64.const 21.5))
             (i64.store (i32.const 49200) (i64.const 0x000000010000c400))  ;; labels: 50176, 1
             (i64.store (i32.const 50176) (i64.const 0x000000030000038a))  ;; max
             (i64.store (i32.const 50184) (i64.const 0x000000040000038d))  ;; else
             (i32.store (i32.const 24) (i32.const 49152)) (i32.store (i32.const 28) (i32.const 1))
             {more} (i32.const 16)"
        );
        run(&component(TEXTS, &code), LIMITS)
    };
    let expected = Alert {
        key: "b".into(),
        severity: Severity::Critical,
        status: AlertStatus::Resolved,
        summary: "none".into(),
        value: Some(21.5),
        labels: vec![("max".into(), "else".into())],
        sink: None,
    };
    assert_eq!(alert("").outcome.verdict, Verdict::Done(vec![Output::Alert(expected)]));
    let nonsense = [
        "(i32.store8 (i32.const 49152) (i32.const 3))",
        "(i32.store8 (i32.const 49168) (i32.const 3))",
        "(i32.store8 (i32.const 49169) (i32.const 2))",
        "(i32.store8 (i32.const 49184) (i32.const 2))",
        "(i32.store (i32.const 49200) (i32.const 50177))",
        "(i32.store (i32.const 49204) (i32.const 100000000))",
        "(i32.store (i32.const 50176) (i32.const -1))",
        "(i32.store (i32.const 49172) (i32.const -1))",
        "(i32.store8 (i32.const 16) (i32.const 2))",
        "(i32.store8 (i32.const 16) (i32.const 1)) (i32.store8 (i32.const 24) (i32.const 2))",
    ];
    for nonsense in nonsense {
        assert_eq!(alert(nonsense).failure().code, FailureCode::Output, "{nonsense}");
    }
}

#[test]
fn arguments_must_lie_in_the_guests_memory() {
    let trap = |imports: &str, code: &str| {
        let run = run_with(&component(&format!("{imports} {TEXTS}"), &format!("{code} {NOTHING}")), LIMITS, stored());
        assert_eq!(run.failure().code, FailureCode::Trap, "{code}: {:?}", run.failure());
    };
    let bucket = format!("{BUCKET} (local.set $bucket)");
    trap(OPEN, "(call $open (i32.const -1) (i32.const 2) (i32.const 1000))");
    trap(OPEN, "(call $open (i32.const 131071) (i32.const 2) (i32.const 1000))");
    trap(OPEN, "(call $open (i32.const 0) (i32.const 0) (i32.const 1001))");
    trap(OPEN, "(call $open (i32.const 0) (i32.const 0) (i32.const 131064))");
    trap(OPEN, "(call $open (i32.const 0) (i32.const 0) (i32.const -4))");
    let no_text = "(i32.store8 (i32.const 2000) (i32.const 255))";
    trap(OPEN, &format!("{no_text} (call $open (i32.const 2000) (i32.const 1) (i32.const 1000))"));
    let with_get = format!("{OPEN} {GET}");
    trap(&with_get, &format!("{bucket} (call $get (local.get $bucket) (i32.const -8) (i32.const 9) (i32.const 1000))"));
    trap(&with_get, "(call $get (i32.const 7) (i32.const 0) (i32.const 0) (i32.const 1000))");
    let with_list = format!("{OPEN} {LIST_KEYS}");
    let list = "(call $list-keys (local.get $bucket) (i32.const 2) (i32.const 0) (i32.const 0) (i32.const 1000))";
    trap(&with_list, &format!("{bucket} {list}"));
    trap(LOG, "(call $log (i32.const 6) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))");
    trap(LOG, "(call $log (i32.const 2) (i32.const 131072) (i32.const 1) (i32.const 0) (i32.const 0))");
}

/// Otherwise an allocator could call the host, which calls the allocator, and so on without end.
#[test]
fn an_allocator_cannot_call_the_host() {
    let calls = |when: &str| {
        let log = "(call $log (i32.const 2) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))";
        let text = module(
            &format!("{OPEN} {SETTING} {LOG} {TEXTS} (global $on (mut i32) (i32.const 0))"),
            &format!("{when} (call $setting (i32.const 906) (i32.const 3) (i32.const 1000)) {NOTHING}"),
        );
        run(
            &component_of(
                &text.replace("(local.get $at))", &format!("(if (global.get $on) (then {log})) (local.get $at))")),
            ),
            LIMITS,
        )
    };
    assert_eq!(calls("").outputs(), 0);
    let run = calls("(global.set $on (i32.const 1))");
    assert_eq!((run.failure().code, run.log.len()), (FailureCode::Trap, 0));
}

#[test]
fn a_module_that_starts_by_calling_the_host_fails() {
    let start = "(func $early (call $log (i32.const 2) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)))
        (start $early)";
    let run = run(&component(&format!("{LOG} {start}"), NOTHING), LIMITS);
    assert_eq!((run.failure().code, run.log.len()), (FailureCode::Trap, 0));
}

/// A component that differs from the encoder's output in any way runs whole.
#[test]
fn only_a_component_of_the_standard_form_runs_as_one_module() {
    let usual = |text: &str| main_module(&component_of(text)).is_some();
    let function = module(&format!("{OPEN} {SET} {CAS_DROP} {LOG}"), NOTHING);
    assert!(usual(&function));
    assert!(usual(&module("", NOTHING)));
    let places = |component: &[u8], name: &[u8]| -> Vec<usize> {
        (0..component.len()).filter(|at| component[*at..].starts_with(name)).collect()
    };
    let module_end = |component: &[u8]| places(component, Contract::V0_1.handle().as_bytes())[0];

    // What must run before the handler, unless the component runs something else.
    let early = "(func (export \"_initialize\")) (func (export \"_initialise\"))";
    let mut started = component(&format!("{LOG} {early}"), NOTHING);
    assert!(main_module(&started).is_some());
    let end = module_end(&started);
    let calls: Vec<usize> = places(&started, b"_initialize").into_iter().filter(|at| *at > end).collect();
    assert!(!calls.is_empty());
    for at in calls {
        started[at..][..11].copy_from_slice(b"_initialise");
        assert!(main_module(&started).is_none(), "at {at}");
        started[at..][..11].copy_from_slice(b"_initialize");
    }

    // Imports that are exchanged, by names of the same length.
    let mut component = component(&format!("{OPEN} {DELETE} {EXISTS}"), NOTHING);
    let module_end = module_end(&component);
    let mixed: Vec<usize> = places(&component, b"bucket.delete").into_iter().filter(|at| *at > module_end).collect();
    assert!(mixed.len() >= 2, "an alias and an argument of the module: {mixed:?}");
    for at in mixed {
        component[at..][..13].copy_from_slice(b"bucket.exists");
        assert!(main_module(&component).is_none(), "at {at}");
        component[at..][..13].copy_from_slice(b"bucket.delete");
    }
    assert!(main_module(&component).is_some());
    // Shims that call each other's slot, and a table with two slots exchanged.
    for (names, exchanged) in [
        (&b"\x011\x00\x01\x012\x00\x02"[..], &b"\x011\x00\x02\x012\x00\x01"[..]),
        (b"\x41\x00\x0b\x03\x00\x01\x02", b"\x41\x00\x0b\x03\x00\x02\x01"),
    ] {
        let [at] = places(&component, names)[..] else { panic!("{names:x?}") };
        component[at..][..names.len()].copy_from_slice(exchanged);
        assert!(main_module(&component).is_none(), "{exchanged:x?}");
        component[at..][..names.len()].copy_from_slice(names);
    }
    for wasm in [&b""[..], b"\0asm\x01\0\0\0", b"\0asm\x0d\0\x01\0"] {
        assert!(main_module(wasm).is_none());
    }
    assert!(main_module(&component[..component.len() / 2]).is_none());
}

#[test]
fn a_module_costs_less_fuel_than_a_component() {
    let function = component(&format!("{OPEN} {SET}"), &format!("{BUCKET} (drop) {NOTHING}"));
    let mut bench = Bench::default();
    let both = bench.load(&function, LIMITS);
    let fuel = |run: Run| run.outcome.usage.fuel;
    let message = message("a", b"");
    assert!(
        fuel(both.module.invoke(&message, ScopeState::default()))
            < fuel(both.component.invoke(&message, ScopeState::default()))
    );
}
