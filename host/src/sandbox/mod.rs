//! Runs functions. The only folder that names wasmtime.
//!
//! Plain code: an invocation goes in, an outcome comes out. It holds no handle to the store, to MQTT or to a file, and
//! knows nothing of processes; the worker is a thin shell around it, and so are `sedge invoke` and the tests.
//!
//! Every invocation gets a fresh store and instance, four limits, and the state of its scope. A guest's failure is an
//! [`Outcome`]; an error is only what the host itself could not do.

mod abi;
#[cfg(feature = "compiler")]
pub mod compile;
mod component;
mod engine;
mod grants;
mod handles;
mod host;
mod imports;
mod isa;
#[cfg(feature = "compiler")]
mod main_module;
mod module;
pub mod sealed;
pub mod shape;
mod state;
#[cfg(all(test, feature = "compiler"))]
pub mod testing;
#[cfg(all(test, feature = "compiler"))]
mod tests;
#[cfg(feature = "compiler")]
pub mod yardstick;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::{Engine, Store, Trap, UpdateDeadline, WasmBacktrace};

use crate::message::{Failure, FailureCode, LogLine, Message, Outcome, Output, Usage, Verdict};
use abi::TransferLimitExceeded;
use component::ComponentFunction;
use engine::CodeMemory;
pub use engine::{Class, SETTINGS_VERSION, WASMTIME_VERSION};
pub use grants::{Grants, NotGranted};
use host::{Exceeded, HostState};
pub use host::{MAX_LOG_LINE_BYTES, MAX_LOG_LINES};
use imports::Imports;
pub use isa::{Isa, UnknownIsa};
use module::ModuleFunction;
use sealed::{IS_NATIVE, Image, SealedCode};
pub use state::ScopeState;

/// How often the epoch moves, and so how exactly a deadline is kept: a function is stopped at most this much late.
pub const EPOCH: Duration = Duration::from_millis(5);

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("failed to set up the sandbox engine")]
    Engine(#[source] wasmtime::Error),
    #[error("failed to load compiled code")]
    Load(#[source] wasmtime::Error),
    /// It could not be compiled, for a reason that was given before.
    #[error("there is no compiled code")]
    NoCode,
    #[error("failed to map compiled code")]
    Map(#[source] io::Error),
    #[error("the component does not fit the world sedge:function/function")]
    World(#[source] wasmtime::Error),
    #[error(transparent)]
    NotGranted(#[from] NotGranted),
}

/// The limits of one invocation, all enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Limits {
    pub fuel: u64,
    pub timeout_ms: u32,
    pub memory_bytes: usize,
    pub outputs: usize,
    /// Topics, payloads and texts of all outputs together.
    pub output_bytes: usize,
    /// Keys and values of the scope together.
    pub state_bytes: usize,
}

/// What a guest may hand over in one call beyond what it may keep: a line that is cut, a value that is refused with its
/// size.
const TRANSFER_SLACK_BYTES: usize = 1 << 20;
/// Handles to buckets and to compare-and-swap that one run may hold.
const MAX_HANDLES: usize = 1024;
/// What an output takes here beside its bytes, and less on a processor of 32 bits: a limit is the same everywhere.
const OUTPUT_BYTES: usize = 256;

impl Limits {
    /// The most that is copied from the guest in one call. Its memory is no bound: a list may name the same bytes again
    /// and again.
    pub fn transfer_bytes(&self) -> usize {
        let outputs = self.outputs.saturating_mul(OUTPUT_BYTES).saturating_add(self.output_bytes);
        outputs.max(self.state_bytes).saturating_add(TRANSFER_SLACK_BYTES)
    }
}

/// What a run left, besides the outcome.
#[derive(Debug)]
pub struct Run {
    pub outcome: Outcome,
    /// The scope's state after the run.
    pub state: ScopeState,
    pub log: Vec<LogLine>,
    pub log_lines_dropped: u32,
}

/// A function ready to run. Bound to the sandbox that loaded it.
pub struct Function {
    body: Body,
    engine: Engine,
    limits: Limits,
    settings: Arc<[(String, String)]>,
    /// What `body` runs. Dropped after it, as the last of the fields.
    _image: Option<Image>,
}

/// Two ways to the same: what a component comes down to decides which one it takes (`compile.rs`).
enum Body {
    Module(ModuleFunction),
    Component(ComponentFunction),
}

impl Body {
    fn new(imports: &mut Imports, code: &Code, grants: Grants) -> Result<Self, SandboxError> {
        Ok(match code {
            Code::Module(code) => Self::Module(ModuleFunction::new(imports, code, grants)?),
            Code::Component(code) => Self::Component(ComponentFunction::new(code, grants)?),
        })
    }

    fn call(&self, store: &mut Store<HostState>, message: &Message) -> wasmtime::Result<Verdict> {
        match self {
            Self::Module(ready) => ready.call(store, message),
            Self::Component(ready) => ready.call(store, message),
        }
    }
}

/// The engines of one thread. Not shared: the pool holds what one run at a time needs.
#[derive(Default)]
pub struct Sandbox {
    classes: BTreeMap<Class, (Engine, Imports)>,
    executable: CodeMemory,
}

impl Sandbox {
    pub fn new() -> Self {
        Self::default()
    }

    /// One that never makes memory executable, and takes sealed code alone where code is native.
    pub fn of_sealed_code() -> Self {
        Self { executable: CodeMemory::Sealed, ..Self::default() }
    }

    fn class(&mut self, class: Class) -> Result<&mut (Engine, Imports), SandboxError> {
        use std::collections::btree_map::Entry;
        match self.classes.entry(class) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let engine = engine::for_running(class, self.executable)?;
                let imports = Imports::new(&engine);
                Ok(entry.insert((engine, imports)))
            }
        }
    }

    /// Makes compiled code runnable.
    ///
    /// The bytes are native code: they must come unchanged from this host's own compiler (`deploy::cache`), or from somebody
    /// who may send such code (`deploy::code`). The caller has checked that; the engine checks version and settings.
    pub fn load(
        &mut self,
        code: &[u8],
        limits: Limits,
        settings: Arc<[(String, String)]>,
    ) -> Result<Function, SandboxError> {
        self.load_granted(code, limits, Grants::default(), settings)
    }

    /// The same for a function whose manifest asks for more than every function has.
    pub fn load_granted(
        &mut self,
        code: &[u8],
        limits: Limits,
        grants: Grants,
        settings: Arc<[(String, String)]>,
    ) -> Result<Function, SandboxError> {
        if code.is_empty() {
            return Err(SandboxError::NoCode);
        }
        if IS_NATIVE && self.executable == CodeMemory::Sealed {
            let code = SealedCode::seal(code).map_err(SandboxError::Map)?;
            return self.load_sealed(&code, limits, grants, settings);
        }
        self.load_with(limits, grants, settings, |engine| Ok((None, native::load(engine, code)?)))
    }

    /// The same for code in a sealed file, which can be closed afterwards. For a sandbox [`of_sealed_code`](Self::of_sealed_code).
    pub fn load_sealed(
        &mut self,
        code: &SealedCode,
        limits: Limits,
        grants: Grants,
        settings: Arc<[(String, String)]>,
    ) -> Result<Function, SandboxError> {
        if code.is_empty() {
            return Err(SandboxError::NoCode);
        }
        let image = Image::new(code).map_err(SandboxError::Map)?;
        self.load_with(limits, grants, settings, |engine| {
            let code = image.load(engine)?;
            Ok((Some(image), code))
        })
    }

    fn load_with(
        &mut self,
        limits: Limits,
        grants: Grants,
        settings: Arc<[(String, String)]>,
        load: impl FnOnce(&Engine) -> wasmtime::Result<(Option<Image>, Code)>,
    ) -> Result<Function, SandboxError> {
        let (engine, imports) = self.class(Class::for_memory(limits.memory_bytes))?;
        // In this order: whatever fails below, the code is dropped first.
        let (image, code) = load(engine).map_err(SandboxError::Load)?;
        let body = Body::new(imports, &code, grants)?;
        Ok(Function { body, engine: engine.clone(), limits, settings, _image: image })
    }

    /// Moves the clock that deadlines are kept by. Called every [`EPOCH`] while anything runs.
    pub fn ticker(&self) -> Ticker {
        Ticker { engines: self.classes.values().map(|(engine, _)| engine.clone()).collect() }
    }
}

/// Advances the deadlines of a sandbox from another thread.
pub struct Ticker {
    engines: Vec<Engine>,
}

impl Ticker {
    pub fn tick(&self) {
        for engine in &self.engines {
            engine.increment_epoch();
        }
    }
}

/// Compiled code, loaded.
enum Code {
    Module(wasmtime::Module),
    Component(wasmtime::component::Component),
}

/// The one place that turns bytes into executable code.
#[expect(unsafe_code, reason = "wasmtime cannot check that compiled code is what a compiler made")]
mod native {
    use wasmtime::component::Component;
    use wasmtime::{Engine, Module, Precompiled};

    use super::Code;

    pub fn load(engine: &Engine, code: &[u8]) -> wasmtime::Result<Code> {
        // SAFETY: `code` was made by `compile::component` of this host and is authenticated by the cache's key before it
        // gets here, or it is signed by keys that the board's administrator lets send native code, or lies in a folder whose
        // owner may; the engine refuses other versions and settings.
        Ok(unsafe {
            match Engine::detect_precompiled(code) {
                Some(Precompiled::Module) => Code::Module(Module::deserialize(engine, code)?),
                _ => Code::Component(Component::deserialize(engine, code)?),
            }
        })
    }
}

impl Function {
    /// Runs the function on one message with the state of its scope.
    pub fn invoke(&self, message: &Message, state: ScopeState) -> Run {
        self.invoke_within(message, state, |_| Ok(()))
    }

    /// The same. Outputs that are not `permitted` fail the run, like any other failure: what it wrote does not count.
    pub fn invoke_within(
        &self,
        message: &Message,
        state: ScopeState,
        permitted: impl FnOnce(&[Output]) -> Result<(), Failure>,
    ) -> Run {
        let started = Instant::now();
        let host = HostState::new(self.limits, Arc::clone(&self.settings), state, started);
        let mut store = Store::new(&self.engine, host);
        store.limiter(|host| host);
        let ended = self.call(&mut store, message);
        let fuel_left = store.get_fuel().unwrap_or(0);
        let host = store.into_data();
        let usage = Usage {
            fuel: self.limits.fuel - fuel_left.min(self.limits.fuel),
            elapsed_us: started.elapsed().as_micros().try_into().unwrap_or(u64::MAX),
            memory_bytes: host.memory_bytes as u64,
            output_bytes: 0,
        };
        self.evaluate(ended, host, usage, permitted)
    }

    fn call(&self, store: &mut Store<HostState>, message: &Message) -> wasmtime::Result<Verdict> {
        store.set_fuel(self.limits.fuel)?;
        store.set_epoch_deadline(ticks_in(Duration::from_millis(self.limits.timeout_ms.into())));
        // The clock's thread may be late and then make up for it with many ticks at once. They stop nobody before his time.
        store.epoch_deadline_callback(|store| {
            let left = store.data().deadline.saturating_duration_since(Instant::now());
            Ok(if left.is_zero() { UpdateDeadline::Interrupt } else { UpdateDeadline::Continue(ticks_in(left)) })
        });
        self.body.call(store, message)
    }

    fn evaluate(
        &self,
        ended: wasmtime::Result<Verdict>,
        host: HostState,
        mut usage: Usage,
        permitted: impl FnOnce(&[Output]) -> Result<(), Failure>,
    ) -> Run {
        let verdict = match ended {
            Ok(Verdict::Done(outputs)) => {
                usage.output_bytes = outputs.iter().map(Output::bytes).sum::<usize>() as u64;
                match self.check_outputs(&outputs, usage.output_bytes).map_or_else(|| permitted(&outputs), Err) {
                    Ok(()) => Verdict::Done(outputs),
                    Err(failure) => Verdict::Failed(failure),
                }
            }
            Ok(verdict) => verdict,
            Err(error) => Verdict::Failed(self.failure(&error, &host, &usage)),
        };
        let HostState { view, log, log_lines_dropped, .. } = host;
        let (state, writes) = view.finish(matches!(verdict, Verdict::Done(_)));
        Run { outcome: Outcome { verdict, writes, usage }, state, log, log_lines_dropped }
    }

    fn check_outputs(&self, outputs: &[Output], bytes: u64) -> Option<Failure> {
        let detail = if outputs.len() > self.limits.outputs {
            format!("{} outputs, the limit is {}", outputs.len(), self.limits.outputs)
        } else if bytes > self.limits.output_bytes as u64 {
            format!("{bytes} bytes of output, the limit is {}", self.limits.output_bytes)
        } else {
            return None;
        };
        Some(Failure { code: FailureCode::Output, detail })
    }

    fn failure(&self, error: &wasmtime::Error, host: &HostState, usage: &Usage) -> Failure {
        let limits = &self.limits;
        match host.exceeded {
            Some(Exceeded::Memory { wanted }) => {
                let detail = format!("asked for {wanted} bytes of memory, the limit is {}", limits.memory_bytes);
                return Failure { code: FailureCode::Memory, detail };
            }
            Some(Exceeded::State { wanted }) => {
                let detail = format!("{wanted} bytes of state, the limit is {}", limits.state_bytes);
                return Failure { code: FailureCode::State, detail };
            }
            None => {}
        }
        match error.downcast_ref::<Trap>() {
            Some(Trap::OutOfFuel) => {
                Failure { code: FailureCode::Fuel, detail: format!("used up {} units of fuel", limits.fuel) }
            }
            Some(Trap::Interrupt) => Failure {
                code: FailureCode::Deadline,
                detail: format!("ran {} ms, the limit is {} ms", usage.elapsed_us / 1000, limits.timeout_ms),
            },
            Some(trap) => Failure { code: FailureCode::Trap, detail: trap.to_string() },
            None => {
                let cause = error.root_cause().to_string();
                // Wasmtime has a type of its own for it, which it keeps to itself.
                let is_too_much = error.is::<TransferLimitExceeded>() || cause.contains("fuel allocated for hostcalls");
                let detail = if is_too_much {
                    format!("handed over more than {} bytes in one call", limits.transfer_bytes())
                } else {
                    shorten(cause)
                };
                // With a guest's function on the stack it was a call to the host that broke the rules. Otherwise what
                // the guest returned cannot be read: it lies outside its memory, or is no text.
                let in_call = error.downcast_ref::<WasmBacktrace>().is_some();
                Failure { code: if in_call { FailureCode::Trap } else { FailureCode::Output }, detail }
            }
        }
    }
}

/// One more than the quotient: the tick that is under way has already passed in part.
const fn ticks_in(time: Duration) -> u64 {
    (time.as_millis() / EPOCH.as_millis()) as u64 + 1
}

fn shorten(mut text: String) -> String {
    const MAX_BYTES: usize = 512;
    if text.len() > MAX_BYTES {
        let end = (0..=MAX_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}
