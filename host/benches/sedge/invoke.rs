//! One invocation, from a fresh store to the drop of everything: JSON, a threshold, a setting, state read and written, fuel
//! and epochs on. Ours against Wasmtime's default engine, in turn, on one thread.

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sedge::message::{Message, Verdict};
use sedge::sandbox::{Class, Function, Limits, Sandbox, ScopeState, compile, yardstick};

use crate::Size;
use crate::harness::guest::guest;
use crate::report::{Goal, Report};

/// Long enough that a tick of the scheduler does not show, short enough to be interleaved often.
const SLICE: Duration = Duration::from_millis(100);

pub const LIMITS: Limits = Limits {
    fuel: 10_000_000,
    timeout_ms: 100,
    memory_bytes: 4 << 20,
    outputs: 64,
    output_bytes: 65_536,
    state_bytes: 65_536,
};

pub fn measure(report: &mut Report, size: &Size) -> io::Result<()> {
    eprintln!("invocation");
    let wasm = std::fs::read(guest("last").join("last.wasm"))?;
    let settings = || vec![("max".to_owned(), "80".to_owned())].into();
    let code = compile::component(&wasm, Class::Small).map_err(io::Error::other)?;
    let mut sandbox = Sandbox::new();
    let ours = sandbox.load(&code, LIMITS, settings()).map_err(io::Error::other)?;
    let default = yardstick::with_wasmtime_defaults(&wasm, LIMITS, settings()).map_err(io::Error::other)?;
    let whole = yardstick::as_component(&wasm, LIMITS, settings()).map_err(io::Error::other)?;
    let (mut ours_us, mut whole_us, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..size.rounds * 4 {
        let (ours, whole, default) = (microseconds(&ours), microseconds(&whole), microseconds(&default));
        ours_us.push(ours);
        whole_us.push(whole);
        ratios.push(default / ours);
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
        "the same as a component with all its parts, which is what others' are run as",
    );
    report.add_median(
        "invoke_default_ratio",
        ratios,
        Goal::AtLeast(7.0),
        "the same in Wasmtime's default engine, over ours",
    );
    Ok(())
}

/// What a message takes, on average over a slice of time.
pub fn microseconds(function: &Function) -> f64 {
    let mut message = Message {
        topic: "last/greenhouse".into(),
        payload: Bytes::new(),
        content_type: None,
        properties: Vec::new(),
        received_at_ms: 1_760_000_000_000,
        clock_synced: true,
        attempt: 1,
    };
    // Two readings in turn, so that every run finds a state that it must change.
    let readings = [21.5, 22.5].map(|value| {
        Bytes::from(format!("{{\"battery\":97,\"humidity\":48.2,\"linkquality\":120,\"temperature\":{value}}}"))
    });
    let mut state = ScopeState::default();
    let mut runs = 0_u32;
    let started = Instant::now();
    while started.elapsed() < SLICE {
        for reading in readings.iter().cycle().take(64) {
            message.payload = reading.clone();
            let run = function.invoke(&message, state);
            assert_eq!(run.outcome.verdict, Verdict::Done(Vec::new()));
            assert!(runs == 0 || run.outcome.writes.len() == 1, "every run changes the state");
            state = run.state;
            runs += 1;
        }
    }
    started.elapsed().as_secs_f64() * 1e6 / f64::from(runs)
}
