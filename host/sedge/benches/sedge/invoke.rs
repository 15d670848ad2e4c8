//! One invocation, from a fresh store to the drop of everything: JSON, a threshold, a setting, state read and written, fuel
//! and epochs on. Sedge's engine profile against Wasmtime's defaults, interleaved, on one thread.

use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sedge_core::grants::Grants;
use sedge_core::isa::Class;
use sedge_core::limits::Limits;
use sedge_core::message::{Message, Verdict};
use sedge_sandbox::script::archive;
use sedge_sandbox::{Function, Run, Sandbox, ScopeState, compile, running_config};
use wasmtime::{Config, Engine};

use crate::Size;
use crate::harness::guest::guest;
use crate::report::{Goal, Report};

/// Duration of one measurement: long against a scheduler tick, short enough for many interleaved ones.
const SLICE: Duration = Duration::from_millis(100);

pub(crate) const LIMITS: Limits = Limits {
    fuel: 10_000_000,
    timeout_ms: 100,
    memory_bytes: 4 << 20,
    outputs: 64,
    output_bytes: 65_536,
    state_bytes: 65_536,
};

pub(crate) fn measure(report: &mut Report, size: &Size) -> io::Result<()> {
    eprintln!("invocation");
    let wasm = std::fs::read(guest("last").join("last.wasm"))?;
    let ours = native(&wasm)?;
    let mut defaults = Config::new();
    defaults.consume_fuel(true).epoch_interruption(true);
    let default = whole_component(&defaults, &wasm)?;
    let whole = whole_component(&running_config(Class::Small), &wasm)?;
    let script = script()?;
    let program = program()?;
    let (mut ours_us, mut whole_us, mut ratios, mut script_us) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut program_us = Vec::new();
    #[cfg(feature = "bench")]
    let (mut over_kept_us, mut kept) = (Vec::new(), script.in_kept_instance().expect("it is a script"));
    for _ in 0..size.rounds * 4 {
        let (ours, whole, default) = (microseconds(&ours), microseconds(&whole), microseconds(&default));
        ours_us.push(ours);
        whole_us.push(whole);
        ratios.push(default / ours);
        script_us.push(slice(&script, [70.0, 90.0].map(reading), 1));
        #[cfg(feature = "bench")]
        {
            let kept_us = slice_of(&mut kept, [70.0, 90.0].map(reading), 1);
            eprintln!("  the script in an instance that is kept: {kept_us:.1} us");
            over_kept_us.push(script_us[script_us.len() - 1] - 1.2 * kept_us);
        }
        program_us.extend(program.iter().map(|program| slice(program, [70.0, 90.0].map(number), 1)));
    }
    report.add_median(
        "invoke_fresh_us",
        ours_us,
        Goal::AtMost(5.0),
        "store, instance, JSON threshold, state get and set, drop",
    );
    report.add_median(
        "invoke_component_us",
        whole_us,
        Goal::None,
        "the same as a whole component, as components of other tools run",
    );
    report.add_median(
        "invoke_default_ratio",
        ratios,
        Goal::AtLeast(7.0),
        "the same in Wasmtime's default engine, over ours",
    );
    report.add_median(
        "js_invoke_fresh_us",
        script_us,
        Goal::AtMost(40.0),
        "the example threshold in JavaScript: store, instance, frozen memory, state get and set, an alert per message",
    );
    let (key, goal) = ("js_over_kept_us", Goal::AtMost(8.0));
    #[cfg(feature = "bench")]
    report.add_median(key, over_kept_us, goal, "the same, less 1.2 times a run in an instance that is kept");
    #[cfg(not(feature = "bench"))]
    report.add_missing(key, goal, "run the bench as `make bench` does, with `--features bench`");
    if !program_us.is_empty() {
        report.add_median(
            "wasi_p1_invoke_us",
            program_us,
            Goal::AtMost(10.0),
            "the example threshold in C: store, instance, environment with state, JSON lines, an alert per message",
        );
    }
    Ok(())
}

/// Compiles and loads the example in C. `None` without its compiler.
fn program() -> io::Result<Option<Function>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the package lies in the workspace");
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("threshold.wasm");
    let compiled = Command::new("clang-19")
        .args(["--target=wasm32-wasi", "-Os", "-Wl,-z,stack-size=16384", "-Wl,--strip-all", "-o"])
        .args([&path, &root.join("examples/wasi/c/threshold.c")])
        .output();
    if !compiled.is_ok_and(|output| output.status.success()) {
        eprintln!("no compiler for C (clang-19, wasi-libc): wasi_p1_invoke_us is left out");
        return Ok(None);
    }
    native(&std::fs::read(path)?).map(Some)
}

/// Loads the example in JavaScript.
fn script() -> io::Result<Function> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the package lies in the workspace");
    let archive = archive::pack(&root.join("examples/javascript/threshold").join(archive::MAIN), None);
    let engine = compile::script_engine(Class::Small).map_err(io::Error::other)?;
    let mut sandbox = Sandbox::new();
    sandbox.add_script_engine(Class::Small, &engine).map_err(io::Error::other)?;
    let settings = [("field", "temperature"), ("max", "80"), ("hysteresis", "2")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    sandbox.load(&archive.map_err(io::Error::other)?, LIMITS, Grants::default(), settings).map_err(io::Error::other)
}

/// Loads a function as boards with a compiler do.
pub(crate) fn native(wasm: &[u8]) -> io::Result<Function> {
    let code = compile::component(wasm, Class::Small).map_err(io::Error::other)?;
    Sandbox::new().load(&code, LIMITS, Grants::default(), settings()).map_err(io::Error::other)
}

/// Compiles a component with all its parts, even if its main module would do, for an engine with this configuration.
fn whole_component(config: &Config, wasm: &[u8]) -> io::Result<Function> {
    let engine = Engine::new(config).expect("the configuration is valid");
    let code = engine.precompile_component(wasm).expect("the component compiles");
    Function::in_engine(&engine, &code, LIMITS, settings()).map_err(io::Error::other)
}

pub(crate) fn settings() -> Arc<[(String, String)]> {
    [("max".to_owned(), "80".to_owned())].into()
}

/// Microseconds per message, averaged over a slice of time.
pub(crate) fn microseconds(function: &Function) -> f64 {
    slice(function, [21.5, 22.5].map(reading), 0)
}

/// A payload as Zigbee devices send it.
fn reading(value: f64) -> Bytes {
    format!("{{\"battery\":97,\"humidity\":48.2,\"linkquality\":120,\"temperature\":{value}}}").into()
}

fn number(value: f64) -> Bytes {
    value.to_string().into()
}

/// The same for two alternating payloads, so that every run changes the state, and the number of outputs of each.
fn slice(function: &Function, readings: [Bytes; 2], outputs: usize) -> f64 {
    slice_of(|message, state| function.invoke(message, state), readings, outputs)
}

fn slice_of(mut invoke: impl FnMut(&Message, ScopeState) -> Run, readings: [Bytes; 2], outputs: usize) -> f64 {
    let mut message = Message::new("last/greenhouse", Bytes::new(), 1_760_000_000_000, true);
    let mut state = ScopeState::default();
    let mut runs = 0_u32;
    let started = Instant::now();
    while started.elapsed() < SLICE {
        for reading in readings.iter().cycle().take(64) {
            message.payload = reading.clone();
            let run = invoke(&message, state);
            let has_outputs = matches!(&run.outcome.verdict, Verdict::Done(made) if made.len() == outputs);
            assert!(has_outputs || runs == 0 && outputs > 0, "{:?}", run.outcome.verdict);
            assert!(runs == 0 || run.outcome.writes.len() == 1, "every run changes the state");
            state = run.state;
            runs += 1;
        }
    }
    started.elapsed().as_secs_f64() * 1e6 / f64::from(runs)
}
