//! Functions that are scripts, run by the JavaScript engine.
//!
//! ```text
//! load     instance of the engine, its data, the script's top level ──▶ the memory is frozen: the image
//! message  fresh store and instance, the image copied into its memory ──▶ handle
//! ```
//!
//! The image and the engine's one global, the stack pointer, are all that a run starts from. Whatever a script changes ends with its
//! message. `docs/decisions/0010-javascript.md` has the reasons and the figures.

pub mod archive;
pub(crate) mod engine;
mod image;
pub(crate) mod packaged;
#[cfg(all(test, feature = "compiler"))]
mod tests;

use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use wasmtime::{AsContextMut as _, Engine, Module, ModuleExport, Result, Store, format_err};

use super::SandboxError;
use super::abi::{CallContext, GuestExports, Reader, u32_at};
use super::code::{self, Code};
use super::contract::Contract;
use super::function::arm;
use super::host::HostState;
use super::imports::Imports;
use super::module::{ModuleFunction, lift};
use super::run::{failure, shorten};
use image::Image;
use sedge_core::grants::Grants;
use sedge_core::limits::Limits;
use sedge_core::message::{Failure, FailureCode, LogLine, Message, Usage, Verdict};

pub use engine::DIGEST;

/// The engine's version, which reports and errors name.
pub const ENGINE: &str = "QuickJS-ng 0.16.2";

const LOAD: &str = "sedge:script/engine#load";

/// Limits of a script's top level, which also sets up the engine. A table of 100,000 entries takes a tenth of the fuel.
const LOAD_FUEL: u64 = 200_000_000;
const LOAD_TIMEOUT_MS: u32 = 5_000;

/// A script without anything of its own.
const EMPTY: &str = "export function handle() {}";

/// What is wrong with a script, in terms of its source.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ScriptError(String);

/// The engine in one class of functions.
pub(crate) struct ScriptEngine {
    engine: Engine,
    /// With and without the permission `allow.random`.
    with_random: ModuleFunction,
    without_random: ModuleFunction,
    load: ModuleExport,
    /// The memory after the top level of a script without anything of its own, most of which is that of every script.
    base: OnceLock<Option<Arc<Image>>>,
    /// The data segments, behind the code that the modules run. The last field, so that it is dropped after them.
    data: EngineData,
}

/// Where the data segments of the engine are.
pub(crate) enum EngineData {
    Copied(Box<[u8]>),
    /// In a part of the sealed file that has the code as well.
    Mapped(code::Image, Range<usize>),
}

impl EngineData {
    fn section(&self) -> &[u8] {
        match self {
            Self::Copied(section) => section,
            Self::Mapped(image, part) => image.bytes().get(part.clone()).unwrap_or_default(),
        }
    }
}

/// A script ready to run.
pub struct ScriptFunction {
    engine: Arc<ScriptEngine>,
    allows_random: bool,
    image: Image,
    /// Lines that the top level logged.
    log: Vec<LogLine>,
}

impl ScriptEngine {
    /// The parameters are in this order so that the code is dropped before the file that it lies in, also when this fails.
    pub(crate) fn new(engine: Engine, data: EngineData, code: Code) -> Result<Self, SandboxError> {
        let Code::Module(module) = &code else {
            return Err(SandboxError::World(format_err!("the engine for scripts is not a core module")));
        };
        let load = module.get_export_index(LOAD);
        let load = load.ok_or_else(|| SandboxError::World(format_err!("the engine for scripts has no `{LOAD}`")))?;
        let connect = |imports: &mut Imports, module: &Module| ModuleFunction::connect(imports, module);
        Ok(Self {
            with_random: connect(&mut Imports::new(&engine), module)?,
            without_random: connect(&mut Imports::without_random(&engine), module)?,
            load,
            base: OnceLock::new(),
            engine,
            data,
        })
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Runs the top level of a script.
    pub(crate) fn load(
        self: &Arc<Self>,
        archive: &[u8],
        limits: Limits,
        grants: Grants,
    ) -> Result<ScriptFunction, SandboxError> {
        self.load_within(archive, Limits { fuel: LOAD_FUEL, timeout_ms: LOAD_TIMEOUT_MS, ..limits }, grants)
    }

    /// The deadline holds while the caller has the engine's epoch advanced.
    fn load_within(
        self: &Arc<Self>,
        archive: &[u8],
        limits: Limits,
        grants: Grants,
    ) -> Result<ScriptFunction, SandboxError> {
        let files = archive::files(archive).map_err(|error| SandboxError::Script(ScriptError(error.to_string())))?;
        let base = self.base.get_or_init(|| {
            let limits = Limits { memory_bytes: limits.memory_bytes.max(1 << 20), fuel: LOAD_FUEL, ..limits };
            let (image, _) = self.image(&archive::entry(archive::MAIN, EMPTY), limits, false, None).ok()?;
            Some(Arc::new(image))
        });
        let (image, log) = self.image(files, limits, grants.random, base.as_ref())?;
        Ok(ScriptFunction { engine: Arc::clone(self), allows_random: grants.random, image, log })
    }

    /// Runs the top level of a script. Returns its memory, and what it logged.
    fn image(
        &self,
        files: &[u8],
        limits: Limits,
        allows_random: bool,
        base: Option<&Arc<Image>>,
    ) -> Result<(Image, Vec<LogLine>), SandboxError> {
        let limits = Limits { state_bytes: 0, ..limits };
        let started = Instant::now();
        let host = HostState::new(limits, Arc::from([]), super::ScopeState::default(), started);
        let mut store = Store::new(&self.engine, host);
        let ended = self.run_top_level(&mut store, files, allows_random, base);
        let elapsed_us = started.elapsed().as_micros().try_into().unwrap_or(u64::MAX);
        match ended {
            Ok(Ok(image)) => Ok((image, store.into_data().log)),
            Ok(Err(error)) => Err(SandboxError::Script(ScriptError(error))),
            Err(error) => {
                let Failure { detail, .. } = failure(&error, &limits, &Usage { elapsed_us, ..Usage::default() });
                Err(SandboxError::Script(ScriptError(format!("the top level of the script failed: {detail}"))))
            }
        }
    }

    /// Returns the image, or the script's own error.
    fn run_top_level(
        &self,
        store: &mut Store<HostState>,
        files: &[u8],
        allows_random: bool,
        base: Option<&Arc<Image>>,
    ) -> Result<Result<Image, String>> {
        arm(store)?;
        let function = &self.without_random;
        let instance = function.instantiate(store)?;
        let guest = function.guest(store, &instance)?;
        let memory = guest.memory;
        for (at, bytes) in engine::segments(self.data.section()) {
            memory.write(&mut *store, at, bytes)?;
        }
        let load = instance.get_module_export(&mut *store, &self.load).and_then(|export| export.into_func());
        let load = load.ok_or_else(|| format_err!("`{LOAD}` is not a function"))?;
        let load = load.typed::<(u32, u32, u32), u32>(&*store)?;
        let mut call = CallContext::new(store.as_context_mut(), guest);
        let files = call.lower_bytes(files)?;
        // The script may write to the log. There is no state, and there are no settings.
        let guest = call.into_guest();
        store.data_mut().guest = Some(guest);
        let at = load.call(&mut *store, (u32_at(&files, 0), u32_at(&files, 4), allows_random.into()))?;
        let Some(guest) = store.data_mut().guest.take() else {
            wasmtime::bail!("the script returned from within a call to the host")
        };
        let mut call = CallContext::new(store.as_context_mut(), guest);
        let mut reader = call.reader().0;
        let loaded: &[u8; 12] = reader.record(at, 4)?;
        if u32_at(loaded, 0) != 0 {
            return Ok(Err(shorten(reader.text(u32_at(loaded, 4), u32_at(loaded, 8))?.to_owned())));
        }
        Ok(Ok(Image::of(memory.data(&*store), base)))
    }
}

/// An instance that is kept, of which only the memory is put back: what a fresh one costs is measured against it.
#[cfg(feature = "bench")]
pub(crate) struct Kept {
    store: Store<HostState>,
    instance: wasmtime::Instance,
}

#[cfg(feature = "bench")]
impl ScriptFunction {
    pub(crate) fn keep(&self, host: HostState) -> Result<Kept> {
        let mut store = Store::new(self.engine.engine(), host);
        arm(&mut store)?;
        let instance = self.engine.without_random.instantiate(&mut store)?;
        Ok(Kept { store, instance })
    }

    pub(crate) fn call_kept(
        &self,
        kept: &mut Kept,
        host: HostState,
        message: &Message,
    ) -> (Result<Verdict>, HostState) {
        let Kept { store, instance } = kept;
        *store.data_mut() = host;
        let ended = self.call_in(store, instance, message);
        let next = HostState::new(store.data().limits, Arc::from([]), super::ScopeState::default(), Instant::now());
        (ended, std::mem::replace(store.data_mut(), next))
    }

    fn call_in(
        &self,
        store: &mut Store<HostState>,
        instance: &wasmtime::Instance,
        message: &Message,
    ) -> Result<Verdict> {
        arm(store)?;
        let function = &self.engine.without_random;
        let guest = function.guest(store, instance)?;
        guest.memory.data_mut(&mut *store).fill(0);
        self.put_back(store, &guest)?;
        function.handle(store, instance, guest, message, lift_verdict)
    }
}

impl ScriptFunction {
    pub(crate) fn call(&self, store: &mut Store<HostState>, message: &Message) -> Result<Verdict> {
        let function = if self.allows_random { &self.engine.with_random } else { &self.engine.without_random };
        let instance = function.instantiate(store)?;
        let guest = function.guest(store, &instance)?;
        self.put_back(store, &guest)?;
        #[cfg(test)]
        assert!(self.image.equals(guest.memory.data(&*store)), "something is left of another run");
        function.handle(store, &instance, guest, message, lift_verdict)
    }

    /// Makes a memory of zeros the image.
    fn put_back(&self, store: &mut Store<HostState>, guest: &GuestExports) -> Result<()> {
        let has = guest.memory.data_size(&*store);
        if let Some(missing) = self.image.size.checked_sub(has).filter(|missing| *missing > 0) {
            guest.memory.grow(&mut *store, missing.div_ceil(64 << 10) as u64)?;
        }
        self.image.restore(guest.memory.data_mut(&mut *store));
        Ok(())
    }

    pub(crate) fn image_bytes(&self) -> usize {
        self.image.bytes()
    }

    #[cfg(all(test, feature = "compiler"))]
    pub(crate) fn memory(&self) -> Vec<u8> {
        let mut memory = vec![0; self.image.size];
        self.image.restore(&mut memory);
        memory
    }

    pub(crate) fn log(&self) -> &[LogLine] {
        &self.log
    }
}

/// A verdict of the contract, or an exception that nobody caught: a third case of failure.
fn lift_verdict(reader: &mut Reader<'_>, at: u32) -> Result<Verdict> {
    let result: &[u8; 32] = reader.record(at, 8)?;
    if (result[0], result[8]) != (1, 2) {
        return lift(reader, at, Contract::V0_2);
    }
    let detail = shorten(reader.text(u32_at(result, 16), u32_at(result, 20))?.to_owned());
    Ok(Verdict::Failed(Failure { code: FailureCode::Exception, detail }))
}
