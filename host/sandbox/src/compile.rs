//! Compiles components and programs. Runs in its own process (`sedge compile`): a compiler with untrusted input is a large attack
//! surface, and some small inputs take it minutes and gigabytes.

use wasmtime::Engine;

use super::SandboxError;
use super::engine::{self, CodeMemory};
use super::imports::Imports;
use super::main_module::main_module;
use super::shape::{self, ShapeError};
use crate::code::Code;
use crate::componentize::{self, ComponentError};
use crate::function::Body;
use crate::script::{self, EngineData, ScriptEngine};
use crate::wasi;
use sedge_core::grants::Grants;
use sedge_core::isa::{Class, Isa};

#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error(transparent)]
    Shape(#[from] ShapeError),
    #[error("this build of sedge compiles for {known} and not for {target}: use a full build on a PC (x86_64)", known = known())]
    Isa { target: Isa },
    #[error("failed to compile")]
    Compile(#[source] wasmtime::Error),
    /// The imports or exports are not those of the world.
    #[error(transparent)]
    World(#[from] ComponentError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// Checks the component's shape, compiles it and checks that it fits the world. Compiles its main module only, where that
/// is equivalent (`main_module.rs`).
pub fn component(wasm: &[u8], class: Class) -> Result<Vec<u8>, CompileError> {
    shape::check(wasm, class.memory_bytes())?;
    // The engine compares types only when it runs a function.
    check_interface(wasm)?;
    let code = precompile(&engine::for_compiling(class, None)?, wasm)?;
    // Loads the code as the worker will. An engine that runs code has more limits than one that compiles.
    let engine = engine::for_running(class, CodeMemory::Sealed)?;
    let loaded = Code::copy(&engine, &code).map_err(SandboxError::Load)?;
    // The cache serves any manifest. Grants are checked when a function is installed and loaded.
    Body::new(&mut Imports::new(&engine), &loaded, Grants::ALL)?;
    Ok(code)
}

/// Checks that a component fits the world, or that a program imports and exports what it may and must.
pub fn check_interface(wasm: &[u8]) -> Result<(), CompileError> {
    match wasi::is_program(wasm) {
        true => Ok(wasi::check(wasm).map_err(ShapeError::from)?),
        false => Ok(componentize::check_world(wasm)?),
    }
}

/// Compiles the engine for scripts, and checks that it can be loaded.
pub fn script_engine(class: Class) -> Result<Vec<u8>, CompileError> {
    let compiler = engine::for_compiling(class, None)?;
    let code = compiler.precompile_module(&script::engine::without_data()).map_err(CompileError::Compile)?;
    let engine = engine::for_scripts(class, CodeMemory::Sealed)?;
    let loaded = Code::copy(&engine, &code).map_err(SandboxError::Load)?;
    ScriptEngine::new(engine, EngineData::Copied(Box::default()), loaded)?;
    Ok(script::engine::with_data(code))
}

/// Compiles the engine for scripts for another architecture.
pub fn script_engine_for(class: Class, target: Isa) -> Result<Vec<u8>, CompileError> {
    if !crate::targets::COMPILED.contains(&target) {
        return Err(CompileError::Isa { target });
    }
    let compiler = engine::for_compiling(class, Some(target))?;
    let code = compiler.precompile_module(&script::engine::without_data()).map_err(CompileError::Compile)?;
    Ok(script::engine::with_data(code))
}

/// Compiles as [`component`] does, for the baseline of another architecture. Foreign code cannot be loaded here, so the checks
/// are made with code for this host.
pub fn component_for(wasm: &[u8], class: Class, target: Isa) -> Result<Vec<u8>, CompileError> {
    if !crate::targets::COMPILED.contains(&target) {
        return Err(CompileError::Isa { target });
    }
    component(wasm, class)?;
    precompile(&engine::for_compiling(class, Some(target))?, wasm)
}

/// Compiles for the target of this engine, without any check.
pub fn precompile(engine: &Engine, wasm: &[u8]) -> Result<Vec<u8>, CompileError> {
    let code = match main_module(wasm) {
        _ if wasi::is_program(wasm) => engine.precompile_module(wasm),
        Some(module) => engine.precompile_module(module),
        None => engine.precompile_component(wasm),
    };
    code.map_err(CompileError::Compile)
}

/// Whether a run instantiates one module only.
pub fn is_one_module(wasm: &[u8]) -> bool {
    wasi::is_program(wasm) || main_module(wasm).is_some()
}

pub fn known() -> String {
    crate::targets::COMPILED.iter().map(|target| target.as_str()).collect::<Vec<_>>().join(", ")
}
