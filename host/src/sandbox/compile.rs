//! Wasm in, compiled code out. Runs in a process of its own (`sedge compile`): a compiler fed by a stranger is the
//! largest thing there is to attack, and some small inputs take it minutes and gigabytes.

use wasmtime::Engine;

use super::engine::{self, Class, CodeMemory};
use super::grants::Grants;
use super::imports::Imports;
use super::main_module::main_module;
use super::shape::{self, ShapeError};
use super::{Body, Isa, SandboxError};
use crate::component::{self, ComponentError};

#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error(transparent)]
    Shape(#[from] ShapeError),
    #[error("this build of sedge compiles for {known} and not for {target}: use a full build on a PC (x86_64)", known = known())]
    Isa { target: Isa },
    #[error("failed to compile")]
    Compile(#[source] wasmtime::Error),
    /// It imports more or exports less, or something else, than the world says.
    #[error(transparent)]
    World(#[from] ComponentError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// Checks the component's shape, compiles it and checks that it fits the world.
///
/// What is compiled is the component's one module, where it comes down to that.
pub fn component(wasm: &[u8], class: Class) -> Result<Vec<u8>, CompileError> {
    shape::check(wasm, class.memory_bytes())?;
    // The engine alone would compare the types at every run.
    component::check_world(wasm)?;
    let code = precompile(&engine::for_compiling(class, None)?, wasm)?;
    // As the worker will: an engine that runs code has limits that one that compiles has not.
    let engine = engine::for_running(class, CodeMemory::Sealed)?;
    let loaded = super::native::load(&engine, &code).map_err(SandboxError::Load)?;
    // Code is kept for any manifest; what this one allows is checked when it is installed and loaded.
    Body::new(&mut Imports::new(&engine), &loaded, Grants::ALL)?;
    Ok(code)
}

/// The same for another kind of processor, of which only the least is taken for granted.
///
/// Foreign code cannot be loaded here and held against the world: that the component loads is shown by this host's own.
pub fn component_for(wasm: &[u8], class: Class, target: Isa) -> Result<Vec<u8>, CompileError> {
    if !Isa::COMPILED.contains(&target) {
        return Err(CompileError::Isa { target });
    }
    component(wasm, class)?;
    precompile(&engine::for_compiling(class, Some(target))?, wasm)
}

pub(super) fn precompile(engine: &Engine, wasm: &[u8]) -> Result<Vec<u8>, CompileError> {
    let code = match main_module(wasm) {
        Some(module) => engine.precompile_module(module),
        None => engine.precompile_component(wasm),
    };
    code.map_err(CompileError::Compile)
}

/// Whether a run needs one instance of the component's modules, and not one of each.
pub fn is_one_module(wasm: &[u8]) -> bool {
    main_module(wasm).is_some()
}

fn known() -> String {
    Isa::COMPILED.iter().map(|target| target.as_str()).collect::<Vec<_>>().join(", ")
}
