//! Limits of size and parts of a component or a program, checked by reading it before a compiler sees it.

use wasmparser::{ComponentInstance, Encoding, Instance, Parser, Payload, Validator, WasmFeatures};

use super::engine::{MAX_CORE_INSTANCES, MAX_TABLE_ELEMENTS, MAX_TABLES};
use super::wasi::{self, ProgramError};

// For comparison: a small guest has about 60 functions, and bodies of a few KiB at most.
pub const MAX_WASM_BYTES: usize = 8 << 20;
const MAX_FUNCTIONS: u32 = 20_000;
const MAX_BODY_BYTES: usize = 256 << 10;
const MAX_MEMORIES: u32 = 1;
const MAX_MODULES: u32 = 8;
/// Number of components, the outermost included.
const MAX_COMPONENTS: u32 = 8;
/// Number of instances as written. Nested ones multiply, which the engine counts.
const MAX_COMPONENT_INSTANCES: u32 = 16;
const WASM_PAGE: u64 = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum ShapeError {
    #[error("not WebAssembly: it starts with {start:02x?}; give the file that `sedge build` wrote")]
    NotWasm { start: Vec<u8> },
    #[error(
        "this is a core module, not a component: for a crate in Rust run `sedge build` on its folder; for other languages \
         remove its Cargo.toml if it has one and run `sedge build` all the same, which makes a component of the module"
    )]
    CoreModule,
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(
        "the component has {found} memories, the limit is {MAX_MEMORIES}: it is several programs joined, as a language runtime \
         and its adapter for WASI are; build it without WASI"
    )]
    Memories { found: u64 },
    #[error("the component is malformed: {0}")]
    Malformed(#[from] wasmparser::BinaryReaderError),
    #[error("the component has {found} {what}, the limit is {limit}")]
    OverLimit { what: &'static str, found: u64, limit: u64 },
}

/// Checks size, kind and counts of a component or a program for WASI, then validates it. `memory_bytes`: the most memory of any function in its class.
pub(crate) fn check(wasm: &[u8], memory_bytes: usize) -> Result<(), ShapeError> {
    check_bytes(wasm.len() as u64)?;
    if wasm.get(..4) != Some(b"\0asm") {
        return Err(ShapeError::NotWasm { start: wasm[..wasm.len().min(4)].to_vec() });
    }
    count(wasm, memory_bytes)?;
    Validator::new_with_features(features()).validate_all(wasm)?;
    Ok(())
}

/// Checks the size of a component.
pub fn check_bytes(bytes: u64) -> Result<(), ShapeError> {
    at_most("bytes", bytes, MAX_WASM_BYTES as u64)
}

fn count(wasm: &[u8], memory_bytes: usize) -> Result<(), ShapeError> {
    let (mut functions, mut memories, mut tables) = (0, 0, 0);
    let (mut modules, mut instances, mut components, mut component_instances) = (0, 0, 0, 0);
    for payload in Parser::new(0).parse_all(wasm) {
        match payload? {
            Payload::Version { encoding: Encoding::Module, range, .. } => {
                if range.start == 0 {
                    if !wasi::is_program(wasm) {
                        return Err(ShapeError::CoreModule);
                    }
                    wasi::check(wasm)?;
                }
                modules += 1;
                at_most("core modules", modules, MAX_MODULES.into())?;
            }
            Payload::Version { encoding: Encoding::Component, .. } => {
                components += 1;
                at_most("components", components, MAX_COMPONENTS.into())?;
            }
            Payload::FunctionSection(section) => {
                functions += u64::from(section.count());
                at_most("functions", functions, MAX_FUNCTIONS.into())?;
            }
            Payload::CodeSectionEntry(body) => {
                at_most("bytes in one function body", body.range().len() as u64, MAX_BODY_BYTES as u64)?;
            }
            Payload::MemorySection(section) => {
                memories += u64::from(section.count());
                for memory in section {
                    let bytes = memory?.initial.saturating_mul(WASM_PAGE);
                    at_most("bytes of memory to start with", bytes, memory_bytes as u64)?;
                }
            }
            Payload::TableSection(section) => {
                tables += u64::from(section.count());
                at_most("tables", tables, MAX_TABLES.into())?;
                for table in section {
                    at_most("elements in one table", table?.ty.initial, MAX_TABLE_ELEMENTS.into())?;
                }
            }
            Payload::InstanceSection(section) => {
                for instance in section {
                    // Instances made of exports alone cost nothing at run time.
                    instances += u64::from(matches!(instance?, Instance::Instantiate { .. }));
                    at_most("core instances", instances, MAX_CORE_INSTANCES.into())?;
                }
            }
            Payload::ComponentInstanceSection(section) => {
                for instance in section {
                    component_instances += u64::from(matches!(instance?, ComponentInstance::Instantiate { .. }));
                    at_most("component instances", component_instances, MAX_COMPONENT_INSTANCES.into())?;
                }
            }
            _ => {}
        }
    }
    if memories > u64::from(MAX_MEMORIES) {
        return Err(ShapeError::Memories { found: memories });
    }
    Ok(())
}

fn at_most(what: &'static str, found: u64, limit: u64) -> Result<(), ShapeError> {
    if found > limit { Err(ShapeError::OverLimit { what, found, limit }) } else { Ok(()) }
}

/// Proposals that functions may use. Every other one would be needless attack surface.
fn features() -> WasmFeatures {
    WasmFeatures::MUTABLE_GLOBAL
        | WasmFeatures::SATURATING_FLOAT_TO_INT
        | WasmFeatures::SIGN_EXTENSION
        | WasmFeatures::REFERENCE_TYPES
        | WasmFeatures::MULTI_VALUE
        | WasmFeatures::BULK_MEMORY
        | WasmFeatures::SIMD
        | WasmFeatures::FLOATS
        | WasmFeatures::EXTENDED_CONST
        | WasmFeatures::COMPONENT_MODEL
        | WasmFeatures::GC_TYPES
}

#[cfg(all(test, feature = "compiler"))]
mod tests;
