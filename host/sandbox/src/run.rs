//! The result of one invocation, and the classification of what went wrong.

use wasmtime::{FrameInfo, Trap, WasmBacktrace};

use super::ScopeState;
use super::abi::TransferLimitExceeded;
use super::draws::Draws;
use super::host::{Exceeded, HostState};
use sedge_core::limits::{Limits, MAX_LABELS};
use sedge_core::message::{Failure, FailureCode, LogLine, Outcome, Output, Usage, Verdict};
use sedge_core::text::printable;

/// Part of the error that Wasmtime reports for [`TransferLimitExceeded`] in a component. Its type is private to Wasmtime.
const WASMTIME_TRANSFER_ERROR: &str = "fuel allocated for hostcalls";

/// The result of one invocation.
#[derive(Debug)]
pub struct Run {
    pub outcome: Outcome,
    /// The scope's state after the run.
    pub state: ScopeState,
    pub log: Vec<LogLine>,
    pub log_lines_dropped: u32,
    /// Where clocks and random numbers came from.
    pub draws: Draws,
}

impl Run {
    pub fn evaluate(
        ended: wasmtime::Result<Verdict>,
        host: HostState,
        mut usage: Usage,
        permitted: impl FnOnce(&[Output]) -> Result<(), Failure>,
    ) -> Self {
        let verdict = match ended {
            Ok(Verdict::Done(outputs)) => {
                usage.output_bytes = outputs.iter().map(Output::bytes).sum::<usize>() as u64;
                match check_outputs(&outputs, usage.output_bytes, &host.limits).and_then(|()| permitted(&outputs)) {
                    Ok(()) => Verdict::Done(outputs),
                    Err(failure) => Verdict::Failed(failure),
                }
            }
            Ok(verdict) => verdict,
            Err(error) => {
                let mut failure = failure(&error, &host.limits, &usage);
                if let Some(words) = &host.last_words
                    && failure.code == FailureCode::Trap
                {
                    failure.detail = shorten(format!("{words} ({})", failure.detail));
                }
                Verdict::Failed(failure)
            }
        };
        let HostState { view, log, log_lines_dropped, mut draws, .. } = host;
        let (state, writes, growth) = view.finish(matches!(verdict, Verdict::Done(_)));
        Self {
            outcome: Outcome { verdict, writes, growth, usage, drawn: draws.take_kept() },
            state,
            log,
            log_lines_dropped,
            draws,
        }
    }
}

fn check_outputs(outputs: &[Output], bytes: u64, limits: &Limits) -> Result<(), Failure> {
    let detail = if outputs.len() > limits.outputs {
        format!("{} outputs, the limit is {}", outputs.len(), limits.outputs)
    } else if bytes > limits.output_bytes as u64 {
        format!("{bytes} bytes of output, the limit is {}", limits.output_bytes)
    } else if let Some(labels) = outputs.iter().map(labels).find(|labels| *labels > MAX_LABELS) {
        format!("an alert with {labels} labels, the limit is {MAX_LABELS}")
    } else {
        return Ok(());
    };
    Err(Failure { code: FailureCode::Output, detail })
}

fn labels(output: &Output) -> usize {
    if let Output::Alert(alert) = output { alert.labels.len() } else { 0 }
}

pub(crate) fn failure(error: &wasmtime::Error, limits: &Limits, usage: &Usage) -> Failure {
    let (code, detail) = match (error.downcast_ref::<Exceeded>(), error.downcast_ref::<Trap>()) {
        (Some(memory @ Exceeded::Memory { .. }), _) => (FailureCode::Memory, memory.to_string()),
        (Some(output @ Exceeded::Stdout { .. }), _) => (FailureCode::Output, output.to_string()),
        (Some(state), _) => (FailureCode::State, state.to_string()),
        (None, Some(Trap::OutOfFuel)) => (FailureCode::Fuel, format!("used up {} units of fuel", limits.fuel)),
        (None, Some(Trap::Interrupt)) => {
            let detail = format!("ran {} ms, the limit is {} ms", usage.elapsed_us / 1000, limits.timeout_ms);
            (FailureCode::Deadline, detail)
        }
        (None, Some(trap)) => (FailureCode::Trap, describe(*trap, error)),
        (None, None) => {
            let cause = error.root_cause().to_string();
            let detail = if error.is::<TransferLimitExceeded>() || cause.contains(WASMTIME_TRANSFER_ERROR) {
                format!("passed more than {} bytes to the host in one call", limits.transfer_bytes())
            } else {
                shorten(cause)
            };
            // A backtrace means that a call to the host broke its rules. Without one, the returned value cannot be read.
            let in_call = error.downcast_ref::<WasmBacktrace>().is_some();
            (if in_call { FailureCode::Trap } else { FailureCode::Output }, detail)
        }
    };
    Failure { code, detail }
}

/// Names the trap, the function in which it occurred if the component has names, and a stack that was too small.
fn describe(trap: Trap, error: &wasmtime::Error) -> String {
    let frames = error.downcast_ref::<WasmBacktrace>().map(WasmBacktrace::frames).unwrap_or_default();
    let place = frames.iter().find_map(FrameInfo::func_name).map(|name| format!(" in `{}`", printable(name)));
    let text = format!("{trap}{}", place.unwrap_or_default());
    shorten(match error.downcast_ref::<OverStack>() {
        Some(over) => format!("{over} ({text})"),
        None => text,
    })
}

/// A memory fault of a function whose stack is at the bottom of its memory, as `sedge build` links it.
#[derive(Debug, thiserror::Error)]
#[error(
    "stack overflow{}: the function has {stack_bytes} bytes of stack (raise build.stack_bytes in function.toml and build \
     it again)",
    if *.is_certain { "" } else { ", most likely" }
)]
pub(super) struct OverStack {
    pub(super) stack_bytes: u32,
    /// Whether the stack pointer is outside of the stack. It may not be when the last function calls no other.
    pub(super) is_certain: bool,
}

/// Cuts a text from the guest to a length that is fit for reports.
pub(super) fn shorten(mut text: String) -> String {
    const MAX_BYTES: usize = 512;
    if text.len() > MAX_BYTES {
        text.truncate(text.floor_char_boundary(MAX_BYTES));
        text.push('…');
    }
    text
}
