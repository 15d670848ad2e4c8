//! A loaded function, and one invocation of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::{Engine, Result, Store, UpdateDeadline};

use super::code::{Code, Image};
use super::component::ComponentFunction;
use super::draws::Draws;
use super::engine::EPOCH;
use super::host::HostState;
use super::imports::Imports;
use super::module::ModuleFunction;
use super::script::{ScriptEngine, ScriptFunction};
use super::wasi::{self, ProgramFunction};
use super::{Run, SandboxError, ScopeState};
use sedge_core::grants::Grants;
use sedge_core::limits::Limits;
use sedge_core::message::{Failure, LogLine, Message, Output, Usage, Verdict};

/// Name of a function that was not [named](Function::named).
const UNNAMED: &str = "function";

/// A function ready to run. Bound to the sandbox that loaded it.
pub struct Function {
    /// The first argument of a program.
    name: Arc<str>,
    body: Body,
    engine: Engine,
    limits: Limits,
    settings: Arc<[(String, String)]>,
    /// The code that `body` runs. The last field, so that it is dropped after `body`.
    _image: Option<Image>,
}

/// A script, a program for WASI, or one of the two ways to run a component: as its one module, or with all its parts.
/// `compile.rs` decides.
pub enum Body {
    Script(Box<ScriptFunction>),
    Program(ProgramFunction),
    Module(ModuleFunction),
    Component(ComponentFunction),
}

impl Body {
    pub fn new(imports: &mut Imports, code: &Code, grants: Grants) -> Result<Self, SandboxError> {
        Ok(match code {
            Code::Module(code) if wasi::is_command(code) => Self::Program(ProgramFunction::new(imports, code, grants)?),
            Code::Module(code) => Self::Module(ModuleFunction::new(imports, code, grants)?),
            Code::Component(code) => Self::Component(ComponentFunction::new(code, grants)?),
        })
    }
}

impl Function {
    pub fn new(
        engine: &Engine,
        body: Body,
        limits: Limits,
        settings: Arc<[(String, String)]>,
        image: Option<Image>,
    ) -> Self {
        Self { name: UNNAMED.into(), body, engine: engine.clone(), limits, settings, _image: image }
    }

    /// Names the function, for a program that looks at its first argument.
    #[must_use]
    pub fn named(self, name: Arc<str>) -> Self {
        Self { name, ..self }
    }

    pub(crate) fn script(
        engine: &ScriptEngine,
        script: ScriptFunction,
        limits: Limits,
        settings: Arc<[(String, String)]>,
    ) -> Self {
        Self::new(engine.engine(), Body::Script(Box::new(script)), limits, settings, None)
    }

    /// Loads compiled code into an engine that the caller set up. For the benchmarks, which compare engines.
    ///
    /// Deadlines hold only while the caller advances the engine's epoch. The code must come from this engine.
    pub fn in_engine(
        engine: &Engine,
        code: &[u8],
        limits: Limits,
        settings: Arc<[(String, String)]>,
    ) -> Result<Self, SandboxError> {
        let code = Code::copy(engine, code).map_err(SandboxError::Load)?;
        let body = Body::new(&mut Imports::new(engine), &code, Grants::default())?;
        Ok(Self::new(engine, body, limits, settings, None))
    }

    /// Runs the function on one message with the state of its scope.
    pub fn invoke(&self, message: &Message, state: ScopeState) -> Run {
        self.invoke_within(message, state, |_| Ok(()))
    }

    /// Runs the function as [`invoke`](Self::invoke) does. Outputs that are not `permitted` fail the run, and its state
    /// writes are dropped.
    pub fn invoke_within(
        &self,
        message: &Message,
        state: ScopeState,
        permitted: impl FnOnce(&[Output]) -> Result<(), Failure>,
    ) -> Run {
        self.invoke_with(Arc::clone(&self.settings), message, state, permitted)
    }

    /// Runs the function as [`invoke_within`](Self::invoke_within) does, with other settings than it was loaded with. No code
    /// depends on them: they are read while a message is handled.
    pub fn invoke_with(
        &self,
        settings: Arc<[(String, String)]>,
        message: &Message,
        state: ScopeState,
        permitted: impl FnOnce(&[Output]) -> Result<(), Failure>,
    ) -> Run {
        self.invoke_drawing(settings, message, state, Draws::Real, permitted)
    }

    /// Runs the function as [`invoke_with`](Self::invoke_with) does, with clocks and random numbers of `draws`.
    pub fn invoke_drawing(
        &self,
        settings: Arc<[(String, String)]>,
        message: &Message,
        state: ScopeState,
        draws: Draws,
        permitted: impl FnOnce(&[Output]) -> Result<(), Failure>,
    ) -> Run {
        let started = Instant::now();
        let mut host = HostState::new(self.limits, settings, state, started);
        host.draws = draws;
        let mut store = Store::new(&self.engine, host);
        let ended = self.call(&mut store, message);
        let fuel_left = store.get_fuel().unwrap_or(0);
        let host = store.into_data();
        let usage = Usage {
            fuel: self.limits.fuel - fuel_left.min(self.limits.fuel),
            elapsed_us: started.elapsed().as_micros().try_into().unwrap_or(u64::MAX),
            memory_bytes: host.memory_bytes as u64,
            output_bytes: 0,
        };
        Run::evaluate(ended, host, usage, permitted)
    }

    /// Runs a script message by message in one instance, of which only the memory is put back. `None` for other functions.
    #[cfg(feature = "bench")]
    pub fn in_kept_instance(&self) -> Option<impl FnMut(&Message, ScopeState) -> Run> {
        let Body::Script(script) = &self.body else { return None };
        let host = |state| HostState::new(self.limits, Arc::clone(&self.settings), state, Instant::now());
        let mut kept = script.keep(host(ScopeState::default())).ok()?;
        Some(move |message: &Message, state| {
            let (ended, host) = script.call_kept(&mut kept, host(state), message);
            Run::evaluate(ended, host, Usage::default(), |_| Ok(()))
        })
    }

    fn call(&self, store: &mut Store<HostState>, message: &Message) -> Result<Verdict> {
        arm(store)?;
        match &self.body {
            Body::Script(function) => function.call(store, message),
            Body::Program(function) => function.call(store, message, &self.name),
            Body::Module(function) => function.call(store, message, &self.name),
            Body::Component(function) => function.call(store, message),
        }
    }

    /// Lines that the top level of a script logged while it was loaded.
    pub fn load_log(&self) -> &[LogLine] {
        match &self.body {
            Body::Script(function) => function.log(),
            Body::Program(_) | Body::Module(_) | Body::Component(_) => &[],
        }
    }

    /// Memory that a script's image takes, beside the engine's code. Zero for other functions.
    pub fn image_bytes(&self) -> usize {
        match &self.body {
            Body::Script(function) => function.image_bytes(),
            Body::Program(_) | Body::Module(_) | Body::Component(_) => 0,
        }
    }

    /// The memory with which each message of a script starts.
    #[cfg(all(test, feature = "compiler"))]
    pub(crate) fn image(&self) -> Option<Vec<u8>> {
        match &self.body {
            Body::Script(function) => Some(function.memory()),
            Body::Program(_) | Body::Module(_) | Body::Component(_) => None,
        }
    }

    #[cfg(all(any(test, feature = "testing"), feature = "compiler"))]
    pub fn is_one_module(&self) -> bool {
        matches!(self.body, Body::Module(_))
    }
}

/// Puts the limits of its host state on a store.
pub(crate) fn arm(store: &mut Store<HostState>) -> Result<()> {
    store.limiter(|host| host);
    let limits = store.data().limits;
    store.set_fuel(limits.fuel)?;
    store.set_epoch_deadline(ticks_in(Duration::from_millis(limits.timeout_ms.into())));
    // A ticker that was late catches up with many ticks at once. They must not end a run before its deadline.
    store.epoch_deadline_callback(|store| {
        let left = store.data().deadline.saturating_duration_since(Instant::now());
        Ok(if left.is_zero() { UpdateDeadline::Interrupt } else { UpdateDeadline::Continue(ticks_in(left)) })
    });
    Ok(())
}

/// Number of ticks until `time` has surely passed. One more than the quotient, because the current tick has begun already.
const fn ticks_in(time: Duration) -> u64 {
    (time.as_millis() / EPOCH.as_millis()) as u64 + 1
}
