//! Wasm in, compiled code out. Runs in a process of its own (`sedge compile`): a compiler fed by a stranger is the
//! largest thing there is to attack, and some small inputs take it minutes and gigabytes.

use wasmtime::component::Linker;

use super::engine::{self, Class, Executable};
use super::grants::Grants;
use super::host;
use super::shape::{self, ShapeError};
use super::{Isa, SandboxError, bindings};
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
pub fn component(wasm: &[u8], class: Class) -> Result<Vec<u8>, CompileError> {
    shape::check(wasm, class.memory_bytes())?;
    // The engine alone would compare the types at every run.
    component::check_world(wasm)?;
    let code = engine::for_compiling(class, None)?.precompile_component(wasm).map_err(CompileError::Compile)?;
    // As the worker will: an engine that runs code has limits that one that compiles has not.
    let engine = engine::for_running(class, Executable::Already)?;
    let component = super::native::component(&engine, &code).map_err(SandboxError::Load)?;
    let mut linker = Linker::new(&engine);
    host::add_to_linker(&mut linker).map_err(SandboxError::Engine)?;
    // Code is kept for any manifest; what this one allows is checked when it is installed and loaded.
    Grants::ALL.add_to_linker(&mut linker).map_err(SandboxError::Engine)?;
    linker.instantiate_pre(&component).and_then(bindings::FunctionPre::new).map_err(SandboxError::World)?;
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
    engine::for_compiling(class, Some(target))?.precompile_component(wasm).map_err(CompileError::Compile)
}

fn known() -> String {
    Isa::COMPILED.iter().map(|target| target.as_str()).collect::<Vec<_>>().join(", ")
}
