//! The same functions in other ways: under Wasmtime's defaults, as components whole, and interpreted. The benchmark says with
//! it what our profile is worth and what a board without a compiler pays.

use std::sync::Arc;

use wasmtime::{Config, Engine};

#[cfg(feature = "pulley")]
use super::compile;
use super::compile::CompileError;
use super::engine::{self, Class, CodeMemory};
use super::imports::Imports;
use super::{Body, Function, Grants, Limits, SandboxError, native};

/// Compiles a component and makes it runnable in an engine whose only settings are the two meters.
pub fn with_wasmtime_defaults(
    wasm: &[u8],
    limits: Limits,
    settings: Arc<[(String, String)]>,
) -> Result<Function, CompileError> {
    let mut config = Config::new();
    config.consume_fuel(true).epoch_interruption(true);
    whole(Engine::new(&config).map_err(SandboxError::Engine)?, wasm, limits, settings)
}

/// Makes a component runnable under our profile with all its parts, even if one of them would do.
pub fn as_component(wasm: &[u8], limits: Limits, settings: Arc<[(String, String)]>) -> Result<Function, CompileError> {
    let engine = engine::for_running(Class::for_memory(limits.memory_bytes), CodeMemory::Engine)?;
    whole(engine, wasm, limits, settings)
}

/// Makes a component runnable by the interpreter, under our profile otherwise.
#[cfg(feature = "pulley")]
pub fn interpreted(wasm: &[u8], limits: Limits, settings: Arc<[(String, String)]>) -> Result<Function, CompileError> {
    let engine = engine::interpreter(Class::Small)?;
    let code = compile::precompile(&engine, wasm)?;
    runnable(engine, &code, limits, settings)
}

fn whole(
    engine: Engine,
    wasm: &[u8],
    limits: Limits,
    settings: Arc<[(String, String)]>,
) -> Result<Function, CompileError> {
    let code = engine.precompile_component(wasm).map_err(CompileError::Compile)?;
    runnable(engine, &code, limits, settings)
}

fn runnable(
    engine: Engine,
    code: &[u8],
    limits: Limits,
    settings: Arc<[(String, String)]>,
) -> Result<Function, CompileError> {
    let code = native::load(&engine, code).map_err(SandboxError::Load)?;
    let body = Body::new(&mut Imports::new(&engine), &code, Grants::default())?;
    Ok(Function { body, engine, limits, settings, _image: None })
}
