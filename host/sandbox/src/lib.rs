//! Runs functions. The only folder that names wasmtime.
//!
//! Plain code: an invocation goes in, an outcome comes out. This part holds no handle to the store, to MQTT or to files,
//! and knows nothing of processes. The worker, `sedge invoke` and the tests are thin shells around it.
//!
//! Every invocation gets a fresh store and instance, its [`Limits`], and the state of its scope. A guest's failure is part
//! of the [`Outcome`](sedge_core::message::Outcome); an error is what the host itself could not do.

pub mod function;
pub mod run;
pub mod state;
#[cfg(feature = "compiler")]
mod targets;

pub mod engine;

pub mod code;
mod sealed;

#[cfg(feature = "compiler")]
pub mod compile;
#[cfg(feature = "compiler")]
mod main_module;
#[cfg(feature = "compiler")]
pub mod shape;

mod draws;
pub mod grants;
pub mod host;

pub mod component;
mod contract;

pub mod abi;
pub mod handles;
pub mod imports;
pub mod module;

pub mod script;
pub mod wasi;

pub mod cache;
pub mod clock;
pub mod codes;
pub mod compiler;
#[cfg(feature = "compiler")]
pub mod componentize;
pub mod folder;
pub mod machine;
pub mod program;
pub mod sandboxing;
#[cfg(all(any(test, feature = "testing"), feature = "compiler"))]
pub mod testing;
#[cfg(all(test, feature = "compiler"))]
mod tests;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use wasmtime::Engine;

use code::{Code, Image};
pub use contract::OtherContract;
pub use draws::Draws;
use engine::CodeMemory;
pub use engine::EPOCH;
pub use engine::{reserved_bytes, running_config};
use function::Body;
pub use function::Function;
pub use grants::check_imports;
use imports::Imports;
use sedge_core::grants::{Grants, NotGranted};
use sedge_core::isa::Class;

pub use run::Run;
use script::{EngineData, ScriptEngine, ScriptError, archive};
use sealed::IS_NATIVE;
use sedge_core::code::SealedCode;
use sedge_core::limits::Limits;
pub use state::ScopeState;

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("failed to set up the sandbox engine")]
    Engine(#[source] wasmtime::Error),
    #[error("failed to load compiled code")]
    Load(#[source] wasmtime::Error),
    /// Compiling failed before, for a reason that was reported then.
    #[error("there is no compiled code")]
    NoCode,
    #[error("failed to map compiled code")]
    Map(#[source] io::Error),
    #[error("the component does not fit the world sedge:function/function")]
    World(#[source] wasmtime::Error),
    #[error(transparent)]
    OtherContract(#[from] OtherContract),
    #[error(transparent)]
    NotGranted(#[from] NotGranted),
    #[error(transparent)]
    Script(#[from] ScriptError),
    #[error("the engine for scripts is not there; the reason was reported when it was compiled")]
    NoScriptEngine,
    #[error("the compiled engine for scripts is damaged: its data does not end where it says")]
    DamagedScriptEngine,
}

impl SandboxError {
    /// Whether the cause may be that this host lacks memory now, and not the function.
    pub fn is_of_this_host(&self) -> bool {
        matches!(self, Self::Engine(_) | Self::Load(_) | Self::Map(_))
    }
}

/// The engines of one thread. Their pools hold what one run at a time needs, so they are not shared.
#[derive(Default)]
pub struct Sandbox {
    classes: BTreeMap<Class, (Engine, Imports)>,
    scripts: BTreeMap<Class, Arc<ScriptEngine>>,
    code_memory: CodeMemory,
}

impl Sandbox {
    pub fn new() -> Self {
        Self::default()
    }

    /// A sandbox that never makes memory executable: native code runs from sealed files only.
    pub fn of_sealed_code() -> Self {
        Self { code_memory: CodeMemory::Sealed, ..Self::default() }
    }

    /// Makes compiled code runnable.
    ///
    /// The bytes are native code. The caller has checked that they come unchanged from this host's own compiler
    /// (`deploy::cache`), or from a signer who may send native code (`deploy::code`). The engine checks version and settings.
    pub fn load(
        &mut self,
        code: &[u8],
        limits: Limits,
        grants: Grants,
        settings: Arc<[(String, String)]>,
    ) -> Result<Function, SandboxError> {
        if code.is_empty() {
            return Err(SandboxError::NoCode);
        }
        if archive::is_script(code) {
            return self.load_script(code, limits, grants, settings);
        }
        if IS_NATIVE && self.code_memory == CodeMemory::Sealed {
            let code = sealed::seal(code).map_err(SandboxError::Map)?;
            return self.load_sealed(&code, limits, grants, settings);
        }
        let (engine, imports) = self.class(limits)?;
        let code = Code::copy(engine, code).map_err(SandboxError::Load)?;
        let body = Body::new(imports, &code, grants)?;
        Ok(Function::new(engine, body, limits, settings, None))
    }

    /// Makes code in a sealed file runnable; the file can be closed afterwards. The sandbox must be
    /// [`of_sealed_code`](Self::of_sealed_code).
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
        // Declared before the code and so dropped after it, also when the rest fails.
        let image = Image::map(code).map_err(SandboxError::Map)?;
        let (engine, imports) = self.class(limits)?;
        let code = image.load(engine).map_err(SandboxError::Load)?;
        let body = Body::new(imports, &code, grants)?;
        Ok(Function::new(engine, body, limits, settings, Some(image)))
    }

    /// Runs the top level of a script. The engine for its class must have been added.
    fn load_script(
        &self,
        archive: &[u8],
        limits: Limits,
        grants: Grants,
        settings: Arc<[(String, String)]>,
    ) -> Result<Function, SandboxError> {
        let engine = self.scripts.get(&Class::for_memory(limits.memory_bytes)).ok_or(SandboxError::NoScriptEngine)?;
        Ok(Function::script(engine, engine.load(archive, limits, grants)?, limits, settings))
    }

    /// Makes the compiled engine for scripts ready. As for [`load`](Self::load), the caller has checked where the code is from.
    pub fn add_script_engine(&mut self, class: Class, code: &[u8]) -> Result<(), SandboxError> {
        if IS_NATIVE && self.code_memory == CodeMemory::Sealed {
            return self.add_sealed_script_engine(class, &sealed::seal(code).map_err(SandboxError::Map)?);
        }
        let (code_bytes, data) = script::engine::split(code).ok_or(SandboxError::DamagedScriptEngine)?;
        let engine = engine::for_scripts(class, self.code_memory)?;
        let loaded = Code::copy(&engine, &code[..code_bytes]).map_err(SandboxError::Load)?;
        let data = EngineData::Copied(code[data].into());
        self.scripts.insert(class, Arc::new(ScriptEngine::new(engine, data, loaded)?));
        Ok(())
    }

    /// Does the same with code in a sealed file, which can be closed afterwards.
    pub fn add_sealed_script_engine(&mut self, class: Class, code: &SealedCode) -> Result<(), SandboxError> {
        // Declared before the code and so dropped after it, also when the rest fails.
        let image = Image::map(code).map_err(SandboxError::Map)?;
        let (code_bytes, data) = script::engine::split(image.bytes()).ok_or(SandboxError::DamagedScriptEngine)?;
        let engine = engine::for_scripts(class, self.code_memory)?;
        let code = image.load_first(&engine, code_bytes).map_err(SandboxError::Load)?;
        let data = EngineData::Mapped(image, data);
        self.scripts.insert(class, Arc::new(ScriptEngine::new(engine, data, code)?));
        Ok(())
    }

    fn class(&mut self, limits: Limits) -> Result<(&Engine, &mut Imports), SandboxError> {
        let class = Class::for_memory(limits.memory_bytes);
        let (engine, imports) = match self.classes.entry(class) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let engine = engine::for_running(class, self.code_memory)?;
                let imports = Imports::new(&engine);
                entry.insert((engine, imports))
            }
        };
        Ok((engine, imports))
    }

    /// Returns the clock that deadlines are kept by, for the engines loaded so far.
    pub fn ticker(&self) -> Ticker {
        let functions = self.classes.values().map(|(engine, _)| engine);
        Ticker { engines: functions.chain(self.scripts.values().map(|engine| engine.engine())).cloned().collect() }
    }
}

/// Advances the deadlines of a sandbox from another thread, which calls [`tick`](Self::tick) every [`EPOCH`].
pub struct Ticker {
    engines: Vec<Engine>,
}

impl Ticker {
    pub fn tick(&self) {
        self.engines.iter().for_each(Engine::increment_epoch);
    }

    /// Does `work` while a thread keeps the deadlines. For commands: a worker may start no thread.
    pub fn during<R>(&self, work: impl FnOnce() -> R) -> R {
        struct End<'a>(&'a AtomicBool);

        // Also if the work panics, since the scope waits for the thread.
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }

        let has_ended = AtomicBool::new(false);
        thread::scope(|scope| {
            let _end = End(&has_ended);
            scope.spawn(|| {
                while !has_ended.load(Ordering::Relaxed) {
                    thread::sleep(EPOCH);
                    self.tick();
                }
            });
            work()
        })
    }
}
