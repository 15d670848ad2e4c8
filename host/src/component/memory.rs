//! A core module in two: one that owns the memory and can allocate in it, and one that does everything else.
//!
//! The owner has a copy of `cabi_realloc` and of what that calls. It works on the same memory as the original, so it
//! takes the same bytes for its next block. That is possible only for an allocator that keeps all it knows in memory, as
//! the SDK's does.

use wasm_encoder::reencode::{Error, Reencode, RoundtripReencoder};
use wasm_encoder::{
    CodeSection, EntityType, ExportKind, ExportSection, FunctionSection, ImportSection, MemorySection, MemoryType,
    Module, RawSection, SectionId,
};
use wasmparser::{ExportSectionReader, ExternalKind, FunctionBody, ImportSectionReader, Parser, Payload, TypeRef};

/// What the owner exports, and under which name the rest imports it.
pub const MEMORY: &str = "memory";
pub const REALLOC: &str = "realloc";

pub struct Split {
    pub owner: Vec<u8>,
    /// Imports `memory` from `memory`, and what the module imported. Exports only what is asked for.
    pub rest: Vec<u8>,
}

/// `None` for a module whose allocator needs more than the memory.
pub fn split(module: &[u8], realloc: &str, exports: &[&str]) -> Option<Split> {
    let mut types = None;
    let mut signatures = Vec::new();
    let mut bodies = Vec::new();
    let mut imported = 0;
    let mut memory = None;
    let mut realloc_index = None;
    let mut rest = Module::new();
    for payload in Parser::new(0).parse_all(module) {
        let payload = payload.ok()?;
        match &payload {
            Payload::TypeSection(section) => types = Some(&module[section.range()]),
            Payload::ImportSection(section) => {
                imported = functions_in(section.clone())?;
                // The memory is defined further down; its place among the imports is here.
                memory = Some(only_memory(module)?);
                rest.section(&with_memory(section.clone(), memory?)?);
                continue;
            }
            Payload::FunctionSection(section) => {
                signatures = section.clone().into_iter().collect::<Result<Vec<u32>, _>>().ok()?;
            }
            Payload::MemorySection(_) => continue,
            Payload::ExportSection(section) => {
                realloc_index = function_named(realloc, section.clone());
                rest.section(&only_exports(exports, section.clone())?);
                continue;
            }
            Payload::CodeSectionEntry(body) => bodies.push(body.clone()),
            _ => {}
        }
        if let Some((id, range)) = payload.as_section() {
            rest.section(&RawSection { id, data: &module[range] });
        }
    }
    let owner = owner(types?, &signatures, &bodies, imported, realloc_index?, memory?)?;
    Some(Split { owner, rest: rest.finish() })
}

fn owner(
    types: &[u8],
    signatures: &[u32],
    bodies: &[FunctionBody<'_>],
    imported: u32,
    realloc: u32,
    memory: MemoryType,
) -> Option<Vec<u8>> {
    let (mut functions, mut code) = (FunctionSection::new(), CodeSection::new());
    let mut closure = Closure { imported, functions: Vec::new() };
    closure.function_index(realloc).ok()?;
    let mut copied = 0;
    while let Some(function) = closure.functions.get(copied) {
        let place = (function - imported) as usize;
        functions.function(*signatures.get(place)?);
        closure.parse_function_body(&mut code, bodies.get(place)?.clone()).ok()?;
        copied += 1;
    }
    let mut memories = MemorySection::new();
    memories.memory(memory);
    let mut exports = ExportSection::new();
    exports.export(MEMORY, ExportKind::Memory, 0).export(REALLOC, ExportKind::Func, 0);
    let mut owner = Module::new();
    owner
        .section(&RawSection { id: SectionId::Type.into(), data: types })
        .section(&functions)
        .section(&memories)
        .section(&exports)
        .section(&code);
    Some(owner.finish())
}

/// Copies functions, and numbers them and what they call anew in the order in which they are met.
struct Closure {
    imported: u32,
    functions: Vec<u32>,
}

/// It needs something that the owner of the memory has not.
struct NeedsMore;

impl Reencode for Closure {
    type Error = NeedsMore;

    fn function_index(&mut self, function: u32) -> Result<u32, Error<NeedsMore>> {
        if function < self.imported {
            return Err(Error::UserError(NeedsMore));
        }
        let known = self.functions.iter().position(|known| *known == function);
        let place = known.unwrap_or_else(|| {
            self.functions.push(function);
            self.functions.len() - 1
        });
        Ok(place as u32)
    }

    fn global_index(&mut self, _: u32) -> Result<u32, Error<NeedsMore>> {
        Err(Error::UserError(NeedsMore))
    }

    fn table_index(&mut self, _: u32) -> Result<u32, Error<NeedsMore>> {
        Err(Error::UserError(NeedsMore))
    }

    fn data_index(&mut self, _: u32) -> Result<u32, Error<NeedsMore>> {
        Err(Error::UserError(NeedsMore))
    }

    fn element_index(&mut self, _: u32) -> Result<u32, Error<NeedsMore>> {
        Err(Error::UserError(NeedsMore))
    }

    fn tag_index(&mut self, _: u32) -> Result<u32, Error<NeedsMore>> {
        Err(Error::UserError(NeedsMore))
    }
}

/// The type of the one memory that the module defines.
fn only_memory(module: &[u8]) -> Option<MemoryType> {
    for payload in Parser::new(0).parse_all(module) {
        if let Payload::MemorySection(section) = payload.ok()? {
            let memory = section.into_iter().next()?.ok()?;
            return RoundtripReencoder.memory_type(memory).ok();
        }
    }
    None
}

fn functions_in(section: ImportSectionReader<'_>) -> Option<u32> {
    let mut functions = 0;
    for import in section.into_imports() {
        // Only functions can be lowered.
        let TypeRef::Func(_) = import.ok()?.ty else { return None };
        functions += 1;
    }
    Some(functions)
}

fn with_memory(section: ImportSectionReader<'_>, memory: MemoryType) -> Option<ImportSection> {
    let mut imports = ImportSection::new();
    RoundtripReencoder.parse_import_section(&mut imports, section).ok()?;
    imports.import(MEMORY, MEMORY, EntityType::Memory(memory));
    Some(imports)
}

fn function_named(name: &str, section: ExportSectionReader<'_>) -> Option<u32> {
    let mut exports = section.into_iter().filter_map(Result::ok);
    exports.find(|export| export.name == name && export.kind == ExternalKind::Func).map(|export| export.index)
}

fn only_exports(names: &[&str], section: ExportSectionReader<'_>) -> Option<ExportSection> {
    let mut exports = ExportSection::new();
    for export in section {
        let export = export.ok()?;
        if names.contains(&export.name) {
            RoundtripReencoder.parse_export(&mut exports, export).ok()?;
        }
    }
    Some(exports)
}
