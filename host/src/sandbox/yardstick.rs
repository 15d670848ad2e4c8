//! The same functions under Wasmtime's defaults, and interpreted. Only the benchmark uses it, to say what our profile is
//! worth and what a board without a compiler pays.

use std::sync::Arc;

use wasmtime::component::Linker;
use wasmtime::{Config, Engine};

#[cfg(feature = "pulley")]
use super::engine;
use super::{Function, Limits, SandboxError, bindings, host};

/// Compiles a component and makes it runnable in an engine whose only settings are the two meters.
pub fn with_wasmtime_defaults(
    wasm: &[u8],
    limits: Limits,
    settings: Arc<[(String, String)]>,
) -> Result<Function, SandboxError> {
    let mut config = Config::new();
    config.consume_fuel(true).epoch_interruption(true);
    let engine = Engine::new(&config).map_err(SandboxError::Engine)?;
    runnable(engine, wasm, limits, settings)
}

/// Makes a component runnable by the interpreter, under our profile otherwise.
#[cfg(feature = "pulley")]
pub fn interpreted(wasm: &[u8], limits: Limits, settings: Arc<[(String, String)]>) -> Result<Function, SandboxError> {
    runnable(engine::interpreter(engine::Class::Small)?, wasm, limits, settings)
}

fn runnable(
    engine: Engine,
    wasm: &[u8],
    limits: Limits,
    settings: Arc<[(String, String)]>,
) -> Result<Function, SandboxError> {
    let mut linker = Linker::new(&engine);
    host::add_to_linker(&mut linker).map_err(SandboxError::Engine)?;
    let code = engine.precompile_component(wasm).map_err(SandboxError::Load)?;
    let component = super::native::component(&engine, &code).map_err(SandboxError::Load)?;
    let pre = linker.instantiate_pre(&component).and_then(bindings::FunctionPre::new).map_err(SandboxError::World)?;
    Ok(Function { pre, engine, limits, settings, _image: None })
}
