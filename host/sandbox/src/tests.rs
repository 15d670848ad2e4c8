//! Hostile guests: every limit once obeyed and once broken.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::testing::{Bench, LIMITS, LOG, NOTHING, component, component_of, message, module, module_of, run, run_with};
use super::{Sandbox, ScopeState};
use sedge_core::grants::Grants;
use sedge_core::isa::Class;
use sedge_core::limits::Limits;
use sedge_core::message::{FailureCode, Output, Verdict};

/// Loops `times` times.
fn count_to(times: u32) -> String {
    format!(
        "(local.set $n (i32.const {times}))
         (loop $l (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))"
    )
}

const FOREVER: &str = "(loop $l (br $l)) (unreachable)";
const ENDLESS: Limits = Limits { fuel: 1 << 60, timeout_ms: 30, ..LIMITS };

/// Returns `count` outputs, at `at`, after `code` has written them.
fn outputs(code: &str, at: u32, count: u32) -> String {
    format!(
        "{code} (i32.store (i32.const 24) (i32.const {at})) (i32.store (i32.const 28) (i32.const {count})) {NOTHING}"
    )
}

/// Makes `count` publications at 49152 with an empty topic and the same `bytes` of payload, again and again.
fn publications(count: u32, bytes: u32) -> String {
    let fill = format!(
        "(local.set $m (i32.const 49152))
         (local.set $n (i32.const {count}))
         (loop $l
            (i32.store (local.get $m) (i32.const 2))
            (i32.store (i32.add (local.get $m) (i32.const 20)) (i32.const {bytes}))
            (local.set $m (i32.add (local.get $m) (i32.const 56)))
            (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))"
    );
    outputs(&fill, 49_152, count)
}

#[track_caller]
fn check_fails(component: &[u8], limits: Limits, code: FailureCode, detail: &str) {
    let run = run(component, limits);
    let failure = run.failure();
    assert!(failure.code == code && failure.detail.contains(detail), "{failure:?}");
    assert!(run.outcome.writes.is_empty());
}

#[test]
fn time_is_limited() {
    assert_eq!(run(&component("", &format!("{} {NOTHING}", count_to(1000))), ENDLESS).outputs(), 0);
    let mut bench = Bench::default();
    let function = bench.load(&component("", FOREVER), ENDLESS);
    // On a busy machine the clock's thread may be late, but not every time.
    let late: Vec<Duration> = (0..40)
        .map(|_| {
            let started = Instant::now();
            let run = function.module.invoke(&message("t", b""), ScopeState::default());
            let took = started.elapsed();
            let failure = run.failure();
            assert!(
                failure.code == FailureCode::Deadline && failure.detail.contains("the limit is 30 ms"),
                "{failure:?}"
            );
            assert!(run.outcome.usage.elapsed_us >= 30_000, "stopped before its deadline: {:?}", run.outcome.usage);
            took - Duration::from_millis(30)
        })
        .take_while(|late| *late > Duration::from_millis(20))
        .collect();
    assert!(late.len() < 40, "never within 20 ms of its deadline: {late:?}");
}

/// The clock of a busy board catches up with many ticks at once.
#[test]
fn no_tick_ends_a_run_before_its_deadline() {
    let mut bench = Bench::default();
    let limits = Limits { fuel: 1 << 40, timeout_ms: 5000, ..LIMITS };
    let function = bench.load(&component("", &format!("{} {NOTHING}", count_to(10_000_000))), limits);
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                bench.tick();
            }
        });
        let run = function.invoke(&message("t", b""), ScopeState::default());
        ended.store(true, Ordering::Relaxed);
        assert_eq!(run.outputs(), 0);
    });
}

#[test]
fn time_is_limited_before_the_handler_too() {
    let spin = format!("(func $spin {FOREVER}) (start $spin)");
    check_fails(&component(&spin, NOTHING), ENDLESS, FailureCode::Deadline, "the limit is 30 ms");
    check_fails(&component(&spin, NOTHING), LIMITS, FailureCode::Fuel, "10000000");
    let realloc = module("", NOTHING).replace("(local.get $at))", &format!("{FOREVER})"));
    check_fails(&component_of(&realloc), ENDLESS, FailureCode::Deadline, "the limit is 30 ms");
}

#[test]
fn deadlines_hold_in_every_class_whichever_was_loaded_first() {
    let mut bench = Bench::default();
    let small = bench.load(&component("", FOREVER), ENDLESS);
    let large = bench.load(&component("", FOREVER), Limits { memory_bytes: Class::Large.memory_bytes(), ..ENDLESS });
    for function in [large, small] {
        let run = function.invoke(&message("t", b""), ScopeState::default());
        assert_eq!(run.failure().code, FailureCode::Deadline);
    }
}

#[test]
fn fuel_is_limited() {
    let limits = Limits { fuel: 100_000, ..LIMITS };
    let run = run(&component("", &format!("{} {NOTHING}", count_to(1000))), limits);
    assert_eq!(run.outputs(), 0);
    assert!((1000..100_000).contains(&run.outcome.usage.fuel), "{:?}", run.outcome.usage);
    let endless = component("", FOREVER);
    check_fails(&endless, limits, FailureCode::Fuel, "used up 100000 units of fuel");
    assert_eq!(super::testing::run(&endless, limits).outcome.usage.fuel, 100_000);
}

/// Instructions that make the host work cost fuel for that work.
#[test]
fn fuel_counts_bytes_and_pages() {
    let fuel = |code: &str| {
        let run = run(&component("(table $t 10 10000 funcref)", &format!("{code} {NOTHING}")), LIMITS);
        assert_eq!(run.outputs(), 0);
        run.outcome.usage.fuel
    };
    let grow = |pages| fuel(&format!("(drop (memory.grow (i32.const {pages})))"));
    assert_eq!(grow(32) - grow(0), 32 * 255);
    let fill = |bytes| fuel(&format!("(memory.fill (i32.const 65536) (i32.const 1) (i32.const {bytes}))"));
    assert_eq!(fill(60_000) - fill(0), 60_000);
    let copy = |bytes| fuel(&format!("(memory.copy (i32.const 65536) (i32.const 0) (i32.const {bytes}))"));
    assert_eq!(copy(60_000) - copy(0), 60_000);
    let table = |elements| fuel(&format!("(drop (table.grow $t (ref.null func) (i32.const {elements})))"));
    assert_eq!(table(9000) - table(0), 9000);
}

#[test]
fn the_same_message_takes_the_same_fuel() {
    let component = component("", &format!("{} {}", count_to(12_345), publications(3, 100)));
    let fuel = run(&component, LIMITS).outcome.usage.fuel;
    let function_again = Bench::default().load(&component, LIMITS);
    for _ in 0..20 {
        assert_eq!(
            function_again.invoke(&message("sensors/a", b"21.5"), ScopeState::default()).outcome.usage.fuel,
            fuel
        );
    }
}

#[test]
fn memory_is_limited() {
    let grow = |pages: u32| {
        component(
            "",
            &format!("(if (i32.eq (memory.grow (i32.const {pages})) (i32.const -1)) (then unreachable)) {NOTHING}"),
        )
    };
    let whole = run(&grow(62), LIMITS);
    assert_eq!(whole.outputs(), 0);
    assert_eq!(whole.outcome.usage.memory_bytes, 4 << 20);
    check_fails(&grow(63), LIMITS, FailureCode::Memory, "asked for 4259840 bytes of memory, the limit is 4194304");
    let tight = Limits { memory_bytes: 200_000, ..LIMITS };
    assert_eq!(run(&grow(1), tight).outputs(), 0);
    check_fails(&grow(2), tight, FailureCode::Memory, "asked for 262144 bytes of memory, the limit is 200000");
    // The whole address space costs more fuel than most functions have.
    check_fails(&grow(65_534), tight, FailureCode::Fuel, "used up 10000000 units");
    let rich = Limits { fuel: 1 << 40, ..tight };
    check_fails(&grow(65_534), rich, FailureCode::Memory, "asked for 4294967296 bytes of memory, the limit is 200000");
    let bomb = "(loop $l (drop (memory.grow (i32.const 1))) (br $l)) (unreachable)";
    check_fails(&component("", bomb), LIMITS, FailureCode::Memory, "the limit is 4194304");
    let large = Limits { memory_bytes: 20 << 20, ..LIMITS };
    assert_eq!(run(&grow(300), large).outputs(), 0);
    check_fails(&grow(400), large, FailureCode::Memory, "the limit is 20971520");
}

#[test]
fn memory_that_is_declared_counts() {
    let declares = |pages| component_of(&module_of("", &format!("(memory (export \"memory\") {pages})"), NOTHING));
    let limits = Limits { memory_bytes: 200_000, ..LIMITS };
    assert_eq!(run(&declares(3), limits).outputs(), 0);
    check_fails(&declares(4), limits, FailureCode::Memory, "asked for 262144 bytes of memory, the limit is 200000");
}

#[test]
fn tables_do_not_grow_beyond_their_limit() {
    let grow = |elements: u32| {
        let code = format!("(table.grow $t (ref.null func) (i32.const {elements})) (i32.const -1) (i32.eq)");
        component("(table $t 10 funcref)", &format!("{code} (if (then unreachable)) {NOTHING}"))
    };
    assert_eq!(run(&grow(9990), LIMITS).outputs(), 0);
    check_fails(&grow(9991), LIMITS, FailureCode::Trap, "unreachable");
}

#[test]
fn a_trap_says_what_it_was() {
    check_fails(&component("", "unreachable"), LIMITS, FailureCode::Trap, "`unreachable` instruction executed");
    let divide = "(i32.div_u (i32.const 1) (local.get $n))";
    check_fails(&component("", divide), LIMITS, FailureCode::Trap, "divide by zero");
    let outside = "(i32.load (i32.const 131072))";
    check_fails(&component("", outside), LIMITS, FailureCode::Trap, "out of bounds memory access");
    let empty = "(call_indirect (result i32) (i32.const 0))";
    check_fails(&component("(table 1 funcref)", empty), LIMITS, FailureCode::Trap, "uninitialized element");
}

#[test]
fn the_stack_is_limited() {
    let depth = |calls: u32| {
        let deep = "(func $deep (param $n i32) (if (local.get $n) (then
            (call $deep (i32.sub (local.get $n) (i32.const 1))))))";
        component(deep, &format!("(call $deep (i32.const {calls})) {NOTHING}"))
    };
    assert_eq!(run(&depth(1000), LIMITS).outputs(), 0);
    check_fails(&depth(100_000), LIMITS, FailureCode::Trap, "call stack exhausted");
}

#[test]
fn outputs_are_counted() {
    let zeros = |count| component("", &outputs("", 49_152, count));
    assert_eq!(run(&zeros(64), LIMITS).outputs(), 64);
    check_fails(&zeros(65), LIMITS, FailureCode::Output, "65 outputs, the limit is 64");
    check_fails(&zeros(1000), LIMITS, FailureCode::Output, "1000 outputs, the limit is 64");
}

#[test]
fn the_bytes_of_outputs_are_counted() {
    let run_ok = run(&component("", &publications(2, 32_768)), LIMITS);
    assert_eq!(run_ok.outputs(), 2);
    assert_eq!(run_ok.outcome.usage.output_bytes, 65_536);
    let too_many = component("", &publications(3, 21_846));
    check_fails(&too_many, LIMITS, FailureCode::Output, "65538 bytes of output, the limit is 65536");
}

/// A list may name the same bytes many times, so that a small guest returns gigabytes.
#[test]
fn the_bytes_that_one_call_copies_are_limited() {
    let bomb = component("", &publications(1400, 100_000));
    check_fails(&bomb, Limits { outputs: 10_000, ..LIMITS }, FailureCode::Output, "in one call");
    let line = "(call $log (i32.const 2) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 2000000))";
    let log = format!("(drop (memory.grow (i32.const 32))) {line} {NOTHING}");
    check_fails(&component(LOG, &log), LIMITS, FailureCode::Trap, "in one call");
}

/// Wasmtime's error for the same limit in a component is private, and so recognised by its text.
#[test]
fn wasmtime_words_the_transfer_limit_as_expected() {
    let expected = format!("passed more than {} bytes to the host in one call", LIMITS.transfer_bytes());
    let returned = component("", &publications(1400, 100_000));
    let line = "(call $log (i32.const 2) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 2000000))";
    let passed = component(LOG, &format!("(drop (memory.grow (i32.const 32))) {line} {NOTHING}"));
    for wasm in [returned, passed] {
        let function = Bench::default().load(&wasm, LIMITS).component;
        let run = function.invoke(&message("t", b""), ScopeState::default());
        assert_eq!(run.failure().detail, expected, "wasmtime has another text: see WASMTIME_TRANSFER_ERROR");
    }
}

#[test]
fn returned_values_must_lie_in_the_guests_memory() {
    let huge = component("", &outputs("", 0, 19_000_000));
    check_fails(&huge, LIMITS, FailureCode::Output, "out of bounds");
    let outside = component("", &outputs("", 4_000_000_000, 1));
    check_fails(&outside, LIMITS, FailureCode::Output, "out of bounds");
    let odd = component("", &outputs("", 49_153, 1));
    check_fails(&odd, LIMITS, FailureCode::Output, "align");
    check_fails(&component("", "(i32.const 131064)"), LIMITS, FailureCode::Output, "out of bounds");
    let nonsense = component("", "(i32.store (i32.const 16) (i32.const 7)) (i32.const 16)");
    check_fails(&nonsense, LIMITS, FailureCode::Output, "discriminant");
    let no_text = outputs(
        "(i32.store8 (i32.const 0) (i32.const 255)) (i32.store (i32.const 49160) (i32.const 0))
         (i32.store (i32.const 49164) (i32.const 1))",
        49_152,
        1,
    );
    check_fails(&component("", &no_text), LIMITS, FailureCode::Output, "utf-8");
    let realloc = module("", NOTHING).replace("(local.get $at))", "(i32.const 4000000000))");
    check_fails(&component_of(&realloc), LIMITS, FailureCode::Output, "realloc");
}

#[test]
fn a_guest_may_reject_or_ask_for_a_retry() {
    let reject = component(
        "",
        "(i32.store (i32.const 16) (i32.const 1))
         (i32.store (i32.const 32) (local.get $payload)) (i32.store (i32.const 36) (local.get $payload-len))
         (i32.const 16)",
    );
    check_fails(&reject, LIMITS, FailureCode::Rejected, "21.5");
    let retry = component(
        "",
        "(i32.store (i32.const 16) (i32.const 1)) (i32.store (i32.const 24) (i32.const 1))
         (i64.store (i32.const 32) (i64.const 1500)) (i32.const 16)",
    );
    let run_retry = run(&retry, LIMITS);
    assert_eq!(run_retry.outcome.verdict, Verdict::Retry { after_ms: 1500, reason: String::new() });
    // A reason as long as the memory is cut.
    let long = component(
        "",
        "(i32.store (i32.const 16) (i32.const 1)) (i32.store (i32.const 36) (i32.const 100000)) (i32.const 16)",
    );
    assert!(run(&long, LIMITS).failure().detail.len() < 1000);
}

/// A slot of the pool is wiped before the next function gets it.
#[test]
fn memory_is_zero_before_every_run() {
    let mut bench = Bench::default();
    let mark = "(drop (memory.grow (i32.const 62)))
        (if (global.get $ran) (then unreachable)) (global.set $ran (i32.const 1))
        (memory.fill (i32.const 0) (i32.const 165) (i32.const 4194304))
        (memory.fill (i32.const 16) (i32.const 0) (i32.const 32))";
    let writer = component("(global $ran (mut i32) (i32.const 0))", &format!("{mark} {NOTHING}"));
    // Skips the message, which the host wrote from 32768 on.
    let search = "(drop (memory.grow (i32.const 62)))
        (loop $l
            (if (i64.ne (i64.load (local.get $n)) (i64.const 0)) (then
                (if (i32.or (i32.lt_u (local.get $n) (i32.const 32768)) (i32.ge_u (local.get $n) (i32.const 33000)))
                    (then unreachable))))
            (br_if $l (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 8))) (i32.const 4194304))))";
    let reader = component("", &format!("{search} {NOTHING}"));
    let limits = Limits { fuel: 100_000_000, ..LIMITS };
    let (writer, reader) = (bench.load(&writer, limits), bench.load(&reader, limits));
    let sees_itself =
        bench.load(&component("", &format!("(i32.store (i32.const 2000) (i32.const 1)) {search} {NOTHING}")), limits);
    let message = message("sensors/a", b"21.5");
    assert_eq!(
        sees_itself.invoke(&message, ScopeState::default()).failure().code,
        FailureCode::Trap,
        "the search works"
    );
    for _ in 0..6 {
        assert_eq!(writer.invoke(&message, ScopeState::default()).outputs(), 0, "a global of the run before");
        assert_eq!(reader.invoke(&message, ScopeState::default()).outputs(), 0, "memory of the run before");
    }
}

/// After failures of every kind, the sandbox runs the next message.
#[test]
fn after_a_failure_others_run_as_before() {
    let mut bench = Bench::default();
    let good = bench.load(&component("", &publications(2, 10)), LIMITS);
    let deep = "(func $deep (call $deep))";
    let bad = [
        bench.load(&component("", FOREVER), ENDLESS),
        bench.load(&component("", FOREVER), LIMITS),
        bench.load(&component("", "unreachable"), LIMITS),
        bench.load(&component(deep, &format!("(call $deep) {NOTHING}")), LIMITS),
        bench.load(&component("", "(drop (memory.grow (i32.const 64))) unreachable"), LIMITS),
        bench.load(&component("", &outputs("", 0, 19_000_000)), LIMITS),
    ];
    let message = message("t", b"");
    for _ in 0..3 {
        for bad in &bad {
            bad.invoke(&message, ScopeState::default()).failure();
            assert_eq!(good.invoke(&message, ScopeState::default()).outputs(), 2);
        }
    }
}

#[test]
fn missing_code_is_named() {
    for mut sandbox in [Sandbox::new(), Sandbox::of_sealed_code()] {
        let loaded = sandbox.load(b"", LIMITS, Grants::default(), Arc::from([]));
        assert_eq!(loaded.err().unwrap().to_string(), "there is no compiled code");
    }
}

#[test]
fn outputs_arrive_as_they_were_returned() {
    let fields = "(i32.store (i32.const 49152) (i32.const 2))
        (i32.store (i32.const 49160) (local.get $topic)) (i32.store (i32.const 49164) (local.get $topic-len))
        (i32.store (i32.const 49168) (local.get $payload)) (i32.store (i32.const 49172) (local.get $payload-len))
        (i32.store8 (i32.const 49188) (i32.const 1))";
    let run = run_with(&component("", &outputs(fields, 49_152, 1)), LIMITS, ScopeState::default());
    let Verdict::Done(outputs) = &run.outcome.verdict else { panic!("{:?}", run.outcome) };
    let [Output::Publish(publication)] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!((&*publication.topic, &publication.payload[..]), ("sensors/a", &b"21.5"[..]));
    assert!(publication.retain && publication.content_type.is_none());
}

/// Processors disagree about the bits of a NaN: without canonicalization the first is negative on x86, and the second keeps
/// its payload.
#[test]
fn a_nan_has_the_same_bits_on_every_processor() {
    let nan = "(f64.reinterpret_i64 (i64.const 0xfff4000000000123))";
    let numbers = format!(
        "(f64.store (i32.const 1000) (f64.div (f64.load (i32.const 900)) (f64.load (i32.const 900))))
         (f64.store (i32.const 1008) (f64.add {nan} (f64.const 1)))
         (f64.store (i32.const 1016) (f64.promote_f32 (f32.sqrt (f32.sub (f32.load (i32.const 900)) (f32.const 1)))))
         (f64.store (i32.const 1024) (f64.min {nan} (f64.const 1)))
         (v128.store (i32.const 1032) (f64x2.mul (f64x2.splat {nan}) (v128.load (i32.const 900))))"
    );
    let publish = "(i32.store (i32.const 49152) (i32.const 2))
        (i32.store (i32.const 49168) (i32.const 1000)) (i32.store (i32.const 49172) (i32.const 48))";
    let run = run(&component("", &format!("{numbers} {}", outputs(publish, 49_152, 1))), LIMITS);
    let Verdict::Done(outputs) = &run.outcome.verdict else { panic!("{:?}", run.outcome) };
    let [Output::Publish(publication)] = &outputs[..] else { panic!("{outputs:?}") };
    let bits: Vec<_> = publication.payload.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
    assert_eq!(bits, [0x7ff8_0000_0000_0000; 6], "{bits:x?}");
}

/// `tests/guests/relay` as it was built with the SDK of contract 0.1.0.
#[test]
fn a_component_of_contract_0_1_runs_as_it_was_built() {
    let relay = include_bytes!("../../../tests/guests/relay-0.1.0.wasm");
    let function = Bench::default().load(relay, LIMITS);
    let invoke = |payload: &[u8]| function.invoke(&message("relay/a", payload), ScopeState::default()).outcome.verdict;
    let Verdict::Done(outputs) = invoke(b"21.5") else { panic!("it failed") };
    let [Output::Forward(publication)] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!((&*publication.topic, &publication.payload[..]), ("relay/a", &b"21.5"[..]));
    let Verdict::Done(outputs) = invoke(b"!hot") else { panic!("it failed") };
    let [Output::Alert(alert)] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!((&*alert.key, &alert.sink), ("hot", &None));
}

/// The address space that the sandbox takes, against what Wasmtime's own settings would take.
#[cfg(target_pointer_width = "64")]
mod address_space {
    use std::process::Command;

    use rustix::process::{Resource, Rlimit, setrlimit};
    use wasmtime::{Config, Engine, Instance, InstanceAllocationStrategy, Module, Store};

    use super::*;
    use crate::testing::code;

    /// Set for the child process of the test below: a process cannot raise its limit again.
    const CHILD: &str = "SEDGE_TEST_CONFINED";
    /// As in `tests/it/boards.rs`.
    const ADDRESSES_BYTES: u64 = 600_000 << 10;

    #[test]
    fn confined() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        println!();
        let function = code("", NOTHING);
        let wasm = wat::parse_str("(module (memory 1))").unwrap();
        setrlimit(Resource::As, Rlimit { current: Some(ADDRESSES_BYTES), maximum: Some(ADDRESSES_BYTES) }).unwrap();
        let mut sandbox = Sandbox::new();
        let run = sandbox
            .load(&function, LIMITS, Grants::default(), Arc::from([]))
            .map(|it| it.invoke(&message("t", b""), ScopeState::default()));
        println!("sandbox: {}", run.is_ok_and(|run| run.outputs() == 0));
        let on_demand = Engine::new(&Config::new()).and_then(|engine| {
            let module = Module::new(&engine, &wasm)?;
            Instance::new(&mut Store::new(&engine, ()), &module, &[])
        });
        println!("usual memory: {}", on_demand.is_ok());
        let mut pooled = Config::new();
        pooled.allocation_strategy(InstanceAllocationStrategy::pooling());
        println!("usual pool: {}", Engine::new(&pooled).is_ok());
    }

    #[test]
    fn the_sandbox_fits_where_the_usual_reservations_do_not() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::address_space::confined", "--nocapture", "--test-threads=1"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        for line in ["sandbox: true", "usual memory: false", "usual pool: false"] {
            assert!(said.lines().any(|it| it == line), "no {line:?}: {said}");
        }
    }
}

/// Logs the text at 64 at `critical` and traps.
fn last_words(text: &str, before: &str) -> Vec<u8> {
    let items = format!("{LOG} (data (i32.const 64) \"{text}\")");
    let words = format!(
        "{before} (call $log (i32.const 5) (i32.const 0) (i32.const 0) (i32.const 64) (i32.const {})) (unreachable)",
        text.len()
    );
    component(&items, &words)
}

#[test]
fn a_panic_says_place_and_text_in_the_failure_and_the_log() {
    let text = "panicked at src/lib.rs:25:13: told to";
    let run = run(&last_words(text, ""), LIMITS);
    let failure = run.failure();
    assert!(failure.code == FailureCode::Trap && failure.detail.starts_with(text), "{failure:?}");
    assert!(failure.detail.contains("unreachable"), "{failure:?}");
    assert!(run.log[0].level == tracing::Level::ERROR && run.log[0].text == text, "{:?}", run.log);
}

#[test]
fn the_last_words_behind_a_full_log_are_bounded_and_of_this_run() {
    let chatter = "(local.set $n (i32.const 100))
        (loop $l
            (call $log (i32.const 2) (i32.const 0) (i32.const 0) (i32.const 64) (i32.const 1))
            (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))";
    let mut bench = Bench::default();
    let long = bench.load(&last_words(&"x".repeat(5000), chatter), LIMITS);
    let silent = bench.load(&component("", "(unreachable)"), LIMITS);
    let run = long.invoke(&message("t", b""), ScopeState::default());
    assert!(run.failure().detail.starts_with("xxx") && run.failure().detail.len() < 600, "{:?}", run.failure());
    assert_eq!((run.log.len(), run.log_lines_dropped), (32, 69));
    let run = silent.invoke(&message("t", b""), ScopeState::default());
    assert_eq!(run.failure().detail, "wasm trap: wasm `unreachable` instruction executed");
}

#[test]
fn a_critical_line_of_a_run_that_works_is_a_line_and_no_more() {
    let items = format!("{LOG} (data (i32.const 64) \"hot\")");
    let code = format!("(call $log (i32.const 5) (i32.const 0) (i32.const 0) (i32.const 64) (i32.const 3)) {NOTHING}");
    let run = run(&component(&items, &code), LIMITS);
    assert!(run.outputs() == 0 && run.log[0].text == "hot");
}

#[test]
fn an_overflow_of_the_guests_stack_is_called_that_with_its_size() {
    let stack = r#"(global $sp (export "__stack_pointer") (mut i32) (i32.const 16384))"#;
    let frame = "(global.set $sp (i32.sub (global.get $sp) (i32.const 20000)))
        (i32.store (global.get $sp) (i32.const 1)) (unreachable)";
    // The last function of a chain does not move the pointer.
    let leaf = "(i32.store (i32.sub (global.get $sp) (i32.const 20000)) (i32.const 1)) (unreachable)";
    for (code, words) in [(frame, "stack overflow: "), (leaf, "stack overflow, most likely: ")] {
        let mut bench = Bench::default();
        let function = bench.load(&component(stack, code), LIMITS);
        for _ in 0..2 {
            let run = function.invoke(&message("t", b""), ScopeState::default());
            let failure = run.failure();
            let expected = format!("{words}the function has 16384 bytes of stack (raise build.stack_bytes");
            assert!(failure.code == FailureCode::Trap && failure.detail.starts_with(&expected), "{failure:?}");
        }
    }
    // Without a stack pointer, and for other traps, nothing is guessed.
    check_fails(
        &component("", "(i32.load (i32.const -4)) (drop) (unreachable)"),
        LIMITS,
        FailureCode::Trap,
        "out of bounds",
    );
    check_fails(&component(stack, "(unreachable)"), LIMITS, FailureCode::Trap, "wasm trap: wasm `unreachable`");
}

#[test]
fn a_trap_names_the_function_if_the_component_has_names() {
    let mut module =
        wat::parse_str(module("(func $measure (unreachable))", &format!("(call $measure) {NOTHING}"))).unwrap();
    super::componentize::push_world(&mut module, super::contract::Contract::V0_1);
    let named = wit_component::ComponentEncoder::default().validate(true).module(&module).unwrap().encode().unwrap();
    let run = run(&named, LIMITS);
    assert!(run.failure().detail.ends_with("in `measure`"), "{:?}", run.failure());
}
