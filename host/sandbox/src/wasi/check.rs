//! What a program must export and may import, checked before a compiler sees it, in words of its author.

use wasmparser::{BinaryReaderError, Encoding, ExternalKind, Parser, Payload, TypeRef};

use super::calls::is_known;
use super::{PREVIEW_1, START};
use crate::contract::Contract;
use crate::module::MEMORY;

#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("the program imports {module}.{name}, which Sedge does not have: {hint}", hint = hint(module, name))]
    Import { module: String, name: String },
    #[error(
        "the program imports the {what} {module}.{name}, and a program brings its own: link it without options such as \
         --import-memory"
    )]
    NotAFunction { what: &'static str, module: String, name: String },
    #[error(
        "the module imports WASI and does not export `{START}`, so it is a library and not a program: give it a main function \
         and link it as a command (for C without -mexec-model=reactor, for Rust as a binary and not as a cdylib)"
    )]
    NoStart,
    #[error("the program does not export its memory under the name `{MEMORY}`")]
    NoMemory,
    #[error("the program is malformed: {0}")]
    Malformed(#[from] BinaryReaderError),
}

fn hint(module: &str, name: &str) -> &'static str {
    match module {
        PREVIEW_1 if name.starts_with("sock_") => {
            "a function has no network; leave out what uses it, and publish or forward by lines on standard output"
        }
        PREVIEW_1 => "leave out what uses it (docs/wasi.md has the functions of WASI preview 1 that work)",
        "wasi_unstable" | "wasi" => "build it for WASI preview 1, without threads, with a current compiler",
        _ => "a program may import functions of wasi_snapshot_preview1 only",
    }
}

/// Whether a file is a program for WASI, or one that was meant to be: a core module that starts or imports WASI and has no
/// handler of the contract.
pub fn is_program(wasm: &[u8]) -> bool {
    let (mut is_module, mut starts, mut imports_wasi, mut has_handler) = (false, false, false, false);
    for payload in Parser::new(0).parse_all(wasm) {
        match payload {
            Ok(Payload::Version { encoding: Encoding::Module, .. }) => is_module = true,
            Ok(Payload::Version { .. }) | Err(_) => break,
            Ok(Payload::ImportSection(section)) => {
                imports_wasi |= section.into_imports().flatten().any(|import| import.module.starts_with("wasi_"));
            }
            Ok(Payload::ExportSection(section)) => {
                let names: Vec<_> = section.into_iter().flatten().map(|export| export.name).collect();
                starts |= names.contains(&START);
                has_handler |= !matches!(Contract::of_exports(names.into_iter()), Ok(None));
            }
            Ok(_) => {}
        }
    }
    is_module && (starts || imports_wasi) && !has_handler
}

/// Names of all imports.
pub fn imports(program: &[u8]) -> Vec<String> {
    let sections = Parser::new(0).parse_all(program).flatten().filter_map(|payload| match payload {
        Payload::ImportSection(section) => Some(section),
        _ => None,
    });
    let imports = sections.flat_map(|section| section.into_imports().flatten());
    imports.map(|import| format!("{}.{}", import.module, import.name)).collect()
}

/// Checks imports and exports of a program.
pub(crate) fn check(program: &[u8]) -> Result<(), ProgramError> {
    let (mut starts, mut has_memory) = (false, false);
    for payload in Parser::new(0).parse_all(program) {
        match payload? {
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import?;
                    let (module, name) = (import.module.to_owned(), import.name.to_owned());
                    match import.ty {
                        TypeRef::Func(_) if import.module == PREVIEW_1 && is_known(import.name) => {}
                        TypeRef::Func(_) => return Err(ProgramError::Import { module, name }),
                        TypeRef::Memory(_) => return Err(ProgramError::NotAFunction { what: "memory", module, name }),
                        TypeRef::Table(_) => return Err(ProgramError::NotAFunction { what: "table", module, name }),
                        _ => return Err(ProgramError::NotAFunction { what: "item", module, name }),
                    }
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export?;
                    starts |= export.kind == ExternalKind::Func && export.name == START;
                    has_memory |= export.kind == ExternalKind::Memory && export.name == MEMORY;
                }
            }
            _ => {}
        }
    }
    match (starts, has_memory) {
        (false, _) => Err(ProgramError::NoStart),
        (true, false) => Err(ProgramError::NoMemory),
        (true, true) => Ok(()),
    }
}
