//! Makes components of core modules, and inspects components.
//!
//! A module carries its world in a custom section, put there by `export!` of the SDK or by the generators for other languages.
//! The component has no custom sections: names and producers would only be sent over the air, stored and hashed.

use std::borrow::Cow;

use thiserror::Error;
use wasmparser::{BinaryReader, BinaryReaderError, ComponentExternalKind, Instance, Parser, Payload};
use wit_component::ComponentEncoder;

use super::contract::{Contract, OtherContract, is_run};
use super::main_module::main_module;
use sedge_core::grants::is_of_library;

const CUSTOM_SECTION: u8 = 0;
const CORE_MODULE_SECTION: u8 = 1;
const COMPONENT_SECTION: u8 = 4;

#[derive(Debug, Error)]
pub enum ComponentError {
    #[error("this is not WebAssembly: it does not begin with `\\0asm`")]
    NotWasm,
    #[error("this is a component already, not a core module")]
    AlreadyComponent,
    #[error(
        "the module does not export `{handle}`, so it is not a Sedge function: end it with `sedge_function::export!(..)`, or in \
         another language with that function of the world `sedge:function/function`",
        handle = Contract::V0_2.handle()
    )]
    NoHandler,
    #[error(transparent)]
    OtherContract(#[from] OtherContract),
    #[error(
        "the module does not name its world: build it with `sedge_function::export!(..)`, or embed \
         `sedge:function` with a component tool"
    )]
    NoWorld,
    #[error(
        "the module imports `{module}` `{name}`, which no Sedge function may use: find the dependency that needs it"
    )]
    ForeignImport { module: String, name: String },
    #[error(
        "the component imports {}, which boards do not have: a function may import wasi:keyvalue, wasi:config, wasi:logging, \
         wasi:clocks, wasi:random, and for a standard library wasi:cli, wasi:io and wasi:filesystem{}",
        shown(.imports),
        hint(.imports)
    )]
    ForeignInterface { imports: Vec<String> },
    #[error(
        "the component imports WASI and is not one core module with the usual shims, as Rust's target wasm32-wasip2 makes it: it is \
         several programs joined, as a language runtime is, or it exports neither the handler of the SDK nor `wasi:cli/run`"
    )]
    SeveralParts,
    /// `wit-component` reports errors as `anyhow::Error`, here and below.
    #[error("the component does not fit the world `sedge:function/function`")]
    WrongWorld(#[source] anyhow::Error),
    #[error("cannot make a component of the module")]
    Encode(#[source] anyhow::Error),
    #[error("damaged WebAssembly: {0}")]
    Damaged(#[from] BinaryReaderError),
}

/// Facts about a component, for the person who builds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ComponentInfo {
    /// Interfaces, with their versions.
    pub imports: Vec<String>,
    pub(crate) exports: Vec<String>,
    /// Initial size of all memories, which are set up anew per message.
    pub memory_bytes: u64,
    /// Number of core module instances, including those that only connect others.
    pub core_instances: u32,
}

/// Makes a component of a module and checks it against the world.
pub fn from_module(module: &[u8]) -> Result<Vec<u8>, ComponentError> {
    if !module.starts_with(b"\0asm") {
        return Err(ComponentError::NotWasm);
    }
    if Parser::is_component(module) {
        return Err(ComponentError::AlreadyComponent);
    }
    check_module(module)?;
    let module = without_custom_sections(module, |name| name.starts_with("component-type"))?;
    let encoded = ComponentEncoder::default()
        .validate(true)
        .module(&module)
        .and_then(|mut encoder| encoder.encode())
        .map_err(ComponentError::Encode)?;
    let component = without_custom_sections(&encoded, |_| false)?;
    check_world(&component)?;
    Ok(component)
}

/// Reports common errors in terms of the source code. The encoder would report them by canonical names.
fn check_module(module: &[u8]) -> Result<(), ComponentError> {
    let (mut exports, mut world) = (Vec::new(), false);
    let mut foreign = None;
    for payload in Parser::new(0).parse_all(module) {
        match payload? {
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import?;
                    // The canonical names of imported interfaces are `package:name/interface@version`.
                    if !import.module.contains(':') && foreign.is_none() {
                        foreign = Some((import.module.to_owned(), import.name.to_owned()));
                    }
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    exports.push(export?.name);
                }
            }
            Payload::CustomSection(section) => world |= section.name().starts_with("component-type"),
            _ => {}
        }
    }
    let contract = Contract::of_exports(exports.into_iter())?;
    match foreign {
        _ if contract.is_none() => Err(ComponentError::NoHandler),
        Some((module, name)) => Err(ComponentError::ForeignImport { module, name }),
        None if !world => Err(ComponentError::NoWorld),
        None => Ok(()),
    }
}

/// At most three of the imports.
fn shown(imports: &[String]) -> String {
    let mut text = imports.iter().take(3).map(|import| format!("`{import}`")).collect::<Vec<_>>().join(", ");
    if imports.len() > 3 {
        text.push_str(&format!(" and {} more interfaces", imports.len() - 3));
    }
    text
}

fn hint(imports: &[String]) -> &'static str {
    match imports.iter().any(|import| needs_network(import) || import.starts_with("wasi:http/")) {
        true => ", and a function has no network: publish or forward instead",
        false => "",
    }
}

/// Checks that a component imports no more and exports no less than the world of the contract that it names by its export.
pub fn check_world(component: &[u8]) -> Result<(), ComponentError> {
    let info = inspect(component)?;
    let contract = Contract::of_exports(info.exports.iter().map(|name| &**name))?;
    let mut carrier = b"\0asm\x01\0\0\0".to_vec();
    // A component without any handler lacks that of the newest contract.
    push_world(&mut carrier, contract.unwrap_or(Contract::V0_2));
    let (_, mut metadata) = wit_component::metadata::decode(&carrier).map_err(ComponentError::Encode)?;
    // These interfaces are stable: 0.2.7 has all of 0.2.0. The check compares whole names, so the world takes the component's
    // version.
    let is_known = |import: &String| {
        let interface = |name: &str| name.split_once('@').map_or(name, |(interface, _)| interface).to_owned();
        let world = &metadata.resolve.worlds[metadata.world];
        world.imports.iter().any(|(key, _)| interface(&metadata.resolve.name_world_key(key)) == interface(import))
    };
    let is_served = |import: &String| is_known(import) || is_of_library(import) && !needs_network(import);
    let foreign: Vec<String> = info.imports.iter().filter(|import| !is_served(import)).cloned().collect();
    if !foreign.is_empty() {
        return Err(ComponentError::ForeignInterface { imports: foreign });
    }
    // A program, or a function with a standard library, imports more than the world. It runs as one module, whose imports are compared
    // with those of the host one by one when it is loaded.
    let is_program = || contract.is_none() && info.exports.iter().any(|export| is_run(export));
    if info.imports.iter().any(|import| is_of_library(import)) || is_program() {
        return main_module(component).map(drop).ok_or(ComponentError::SeveralParts);
    }
    for import in info.imports {
        let Some((name, version)) = import.split_once('@') else { continue };
        let Some((package, _)) = name.strip_prefix("wasi:").and_then(|name| name.split_once('/')) else { continue };
        if !matches!(package, "clocks" | "random") || !version.starts_with("0.2.") {
            continue;
        }
        let packages = metadata.resolve.packages.iter_mut().map(|(_, it)| &mut it.name);
        packages
            .filter(|it| it.namespace == "wasi" && it.name == package)
            .for_each(|it| it.version = version.parse().ok());
    }
    wit_component::targets(&metadata.resolve, metadata.world, component).map_err(ComponentError::WrongWorld)
}

/// Whether only a function that opens sockets or looks up names imports it.
fn needs_network(import: &str) -> bool {
    ["tcp-create-socket", "udp-create-socket", "ip-name-lookup"]
        .iter()
        .any(|it| import.strip_prefix("wasi:sockets/").is_some_and(|rest| rest.starts_with(it)))
}

/// Reads the facts about a component.
pub fn inspect(component: &[u8]) -> Result<ComponentInfo, ComponentError> {
    let mut info = ComponentInfo::default();
    let mut depth = 0;
    for payload in Parser::new(0).parse_all(component) {
        match payload? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth -= 1,
            Payload::MemorySection(section) => {
                for memory in section {
                    let memory = memory?;
                    info.memory_bytes += memory.initial << memory.page_size_log2.unwrap_or(16);
                }
            }
            Payload::InstanceSection(section) => {
                for instance in section {
                    info.core_instances += u32::from(matches!(instance?, Instance::Instantiate { .. }));
                }
            }
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    info.imports.push(import?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    let export = export?;
                    if export.kind != ComponentExternalKind::Type {
                        info.exports.push(export.name.name.to_owned());
                    }
                }
            }
            _ => {}
        }
    }
    Ok(info)
}

/// Copies a module or component and everything nested in it, without the custom sections that `keep` refuses.
fn without_custom_sections(wasm: &[u8], keep: fn(&str) -> bool) -> Result<Vec<u8>, ComponentError> {
    let mut out = wasm.get(..8).unwrap_or_default().to_vec();
    let is_component = Parser::is_component(wasm);
    for (id, contents) in sections(wasm)? {
        if id == CUSTOM_SECTION && !keep(BinaryReader::new(contents, 0).read_string()?) {
            continue;
        }
        let contents = match id {
            CORE_MODULE_SECTION | COMPONENT_SECTION if is_component => {
                Cow::Owned(without_custom_sections(contents, keep)?)
            }
            _ => Cow::Borrowed(contents),
        };
        push_section(&mut out, id, &contents);
    }
    Ok(out)
}

/// Splits a module or component into the ids and contents of its sections.
pub fn sections(wasm: &[u8]) -> Result<Vec<(u8, &[u8])>, BinaryReaderError> {
    let mut sections = Vec::new();
    let mut reader = BinaryReader::new(wasm.get(8..).unwrap_or_default(), 8);
    while !reader.eof() {
        let id = reader.read_u8()?;
        let size = reader.read_var_u32()? as usize;
        sections.push((id, reader.read_bytes(size)?));
    }
    Ok(sections)
}

/// Appends the contract's world as the custom section that `wit-component` looks for.
pub(crate) fn push_world(module: &mut Vec<u8>, contract: Contract) {
    let mut section = Vec::new();
    push_leb(&mut section, "component-type".len());
    section.extend_from_slice(b"component-type");
    section.extend_from_slice(contract.world());
    push_section(module, CUSTOM_SECTION, &section);
}

/// Appends a section to a module or component.
pub fn push_section(wasm: &mut Vec<u8>, id: u8, contents: &[u8]) {
    wasm.push(id);
    push_leb(wasm, contents.len());
    wasm.extend_from_slice(contents);
}

pub fn push_leb(wasm: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        wasm.push(value as u8 | 0x80);
        value >>= 7;
    }
    wasm.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest module that is a function. Returns no outputs.
    fn module(import: &str, export: &str) -> Vec<u8> {
        wat::parse_str(text(import, export)).unwrap()
    }

    fn text(import: &str, export: &str) -> String {
        format!(
            r#"(module {import}
                (memory (export "memory") 1)
                (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024)
                (func (export "{export}")
                    (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i64 i32 i32) (result i32) i32.const 16))"#
        )
    }

    fn with_world(module: Vec<u8>) -> Vec<u8> {
        with_world_of(Contract::V0_1, module)
    }

    fn with_world_of(contract: Contract, mut module: Vec<u8>) -> Vec<u8> {
        push_world(&mut module, contract);
        module
    }

    #[track_caller]
    fn check_refused(module: &[u8], expected: &str) {
        let error = from_module(module).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    const HANDLE: &str = Contract::V0_1.handle();

    #[test]
    fn makes_components_of_each_contract() {
        for contract in Contract::ALL {
            let mut text = text("", contract.handle());
            if contract == Contract::V0_2 {
                text = text.replace("(param i32 i32 i32 i32 i32 i32 i32 i32 i32 i64 i32 i32)", "(param i32)");
            }
            let component = from_module(&with_world_of(contract, wat::parse_str(text).unwrap())).unwrap();
            assert_eq!(inspect(&component).unwrap().exports, [contract.export()]);
            check_world(&component).unwrap();
        }
    }

    #[test]
    fn a_function_for_another_contract_is_refused_with_those_that_this_host_speaks() {
        let known =
            "exports `sedge:function/handler@0.3.0`, and this version of sedge runs the versions 0.1.0 and 0.2.0";
        check_refused(&with_world(module("", "sedge:function/handler@0.3.0#handle")), known);
        let component = wat::parse_str(
            "(component (instance $handler) (export \"sedge:function/handler@0.3.0\" (instance $handler)))",
        );
        let error = check_world(&component.unwrap()).unwrap_err().to_string();
        assert!(error.contains(known), "{error}");
    }

    #[test]
    fn makes_a_component_without_unused_imports() {
        let component = from_module(&with_world(module("", HANDLE))).unwrap();
        let info = inspect(&component).unwrap();
        assert_eq!(info.imports, Vec::<String>::new());
        assert_eq!(info.exports, [Contract::V0_1.export()]);
        assert_eq!(info.memory_bytes, 65_536);
        check_world(&component).unwrap();
        assert!(!String::from_utf8_lossy(&component).contains("producers"));
    }

    #[test]
    fn names_the_interfaces_that_are_used() {
        let import = r#"(import "wasi:logging/logging@0.1.0-draft" "log" (func (param i32 i32 i32 i32 i32)))"#;
        let component = from_module(&with_world(module(import, HANDLE))).unwrap();
        assert_eq!(inspect(&component).unwrap().imports, ["wasi:logging/logging@0.1.0-draft"]);
    }

    #[test]
    fn modules_that_are_not_functions_are_named() {
        check_refused(b"#!/bin/sh", "not WebAssembly");
        check_refused(&wat::parse_str("(component)").unwrap(), "a component already");
        check_refused(&with_world(module("", "run")), "does not export");
        check_refused(&module("", HANDLE), "does not name its world");
        check_refused(&with_world(module(r#"(import "env" "sin" (func))"#, HANDLE)), "imports `env` `sin`");
        let unknown = r#"(import "wasi:sockets/tcp@0.2.0" "x" (func))"#;
        check_refused(&with_world(module(unknown, HANDLE)), "cannot make a component");
        let mut cut = with_world(module("", HANDLE));
        cut.truncate(60);
        check_refused(&cut, "damaged");
        assert!(check_world(&wat::parse_str("(component)").unwrap()).is_err());
    }
}
