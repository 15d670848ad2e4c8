//! How the core modules of a component are connected, done again so that an instance costs less.
//!
//! An import is lowered to a core function that reads and writes the memory of the module that calls it, so the memory has
//! to be there first. `wit-component` lets the module import stand-ins from one more module, and fills in the table behind
//! them from a third:
//!
//! ```text
//! as it comes    shim (table) ──▶ function (memory) ──▶ lowered imports ──▶ fixup (fills the table)
//! here           memory and realloc ──▶ lowered imports ──▶ function
//! ```
//!
//! An instance of a module is most of what one message costs, and what took three takes two here.

use std::collections::HashMap;

use wasm_encoder::reencode::component_utils;
use wasm_encoder::reencode::{Error, Reencode, ReencodeComponent, RoundtripReencoder};
use wasm_encoder::{
    Alias, CanonicalFunctionSection, Component, ComponentAliasSection, ComponentSectionId, ExportKind, InstanceSection,
    ModuleArg, RawSection,
};
use wasmparser::{
    CanonicalFunction, CanonicalOption, ComponentAlias, Export, ExternalKind, Instance, InstantiationArg, Parser,
    Payload,
};

use super::memory::{self, Split};

/// Connects the modules directly. `None` if that gains nothing, or for a component that is not as `wit-component` makes it.
pub fn direct(component: &[u8]) -> Option<Vec<u8>> {
    Parts::read(component)?.connect()
}

/// A component, with what is about core modules taken apart.
#[derive(Default)]
struct Parts<'a> {
    modules: Vec<&'a [u8]>,
    instances: Vec<Instance<'a>>,
    functions: Vec<CoreFunction<'a>>,
    /// All that is left, in order.
    others: Vec<Other<'a>>,
}

enum CoreFunction<'a> {
    Export { instance: u32, name: &'a str },
    Canonical(CanonicalFunction),
}

enum Other<'a> {
    Section(RawSection<'a>),
    Alias(ComponentAlias<'a>),
    Lift(CanonicalFunction),
}

impl<'a> Parts<'a> {
    fn read(component: &'a [u8]) -> Option<Self> {
        let mut parts = Self::default();
        let mut depth = 0;
        for payload in Parser::new(0).parse_all(component) {
            let payload = payload.ok()?;
            match payload {
                Payload::Version { .. } => depth += 1,
                Payload::End(_) => depth -= 1,
                _ if depth > 1 => {}
                Payload::ModuleSection { ref unchecked_range, .. } => {
                    parts.modules.push(&component[unchecked_range.clone()]);
                }
                Payload::InstanceSection(section) => {
                    for instance in section {
                        parts.instances.push(instance.ok()?);
                    }
                }
                Payload::ComponentAliasSection(section) => {
                    for alias in section {
                        parts.take_alias(alias.ok()?)?;
                    }
                }
                Payload::ComponentCanonicalSection(section) => {
                    for canonical in section {
                        match canonical.ok()? {
                            lift @ CanonicalFunction::Lift { .. } => parts.others.push(Other::Lift(lift)),
                            other => parts.functions.push(CoreFunction::Canonical(other)),
                        }
                    }
                }
                Payload::CoreTypeSection(_) => return None,
                other => {
                    let (id, range) = other.as_section()?;
                    parts.others.push(Other::Section(RawSection { id, data: &component[range] }));
                }
            }
        }
        Some(parts)
    }

    fn take_alias(&mut self, alias: ComponentAlias<'a>) -> Option<()> {
        match alias {
            ComponentAlias::CoreInstanceExport { kind: ExternalKind::Func, instance_index, name } => {
                self.functions.push(CoreFunction::Export { instance: instance_index, name });
            }
            // Those of memory and table lead to the modules that are replaced.
            ComponentAlias::CoreInstanceExport { kind: ExternalKind::Memory | ExternalKind::Table, .. } => {}
            ComponentAlias::CoreInstanceExport { .. } => return None,
            other => self.others.push(Other::Alias(other)),
        }
        Some(())
    }

    fn connect(&self) -> Option<Vec<u8>> {
        let main = self.main()?;
        let Instance::Instantiate { module_index, args } = self.instances.get(main as usize)? else { return None };
        let realloc = self.realloc(main)?;
        let exports = self.lifted_exports(main)?;
        let Split { owner, rest } = memory::split(self.modules.get(*module_index as usize)?, realloc, &exports)?;

        let mut out = Component::new();
        let first_lift = self.others.iter().position(|other| matches!(other, Other::Lift(_)))?;
        // Core functions get new numbers: realloc, what is lowered, what is lifted.
        let mut rewire = Rewire { functions: HashMap::new() };
        for (index, function) in self.functions.iter().enumerate() {
            if matches!(function, CoreFunction::Export { instance, name } if *instance == main && *name == realloc) {
                rewire.functions.insert(index as u32, 0);
            }
        }
        for other in &self.others[..first_lift] {
            other.copy(&mut out, &mut rewire)?;
        }
        for module in [&owner, &rest] {
            out.section(&RawSection { id: ComponentSectionId::CoreModule.into(), data: module });
        }
        out.section(InstanceSection::new().instantiate(0, None::<(&str, ModuleArg)>));
        out.section(ComponentAliasSection::new().alias(core_export(0, ExportKind::Memory, memory::MEMORY)));
        out.section(ComponentAliasSection::new().alias(core_export(0, ExportKind::Func, memory::REALLOC)));

        let mut canonicals = CanonicalFunctionSection::new();
        let mut instances = InstanceSection::new();
        let mut given = Vec::new();
        let mut functions = 1;
        for arg in args {
            let mut items = Vec::new();
            for export in self.exports(arg)? {
                let canonical = self.lowered(main, export.index)?.clone();
                rewire.parse_component_canonical(&mut canonicals, canonical).ok()?;
                items.push((export.name, ExportKind::Func, functions));
                functions += 1;
            }
            instances.export_items(items);
            given.push((arg.name, ModuleArg::Instance(given.len() as u32 + 1)));
        }
        given.push((memory::MEMORY, ModuleArg::Instance(0)));
        let connected = given.len() as u32;
        instances.instantiate(1, given);
        out.section(&canonicals).section(&instances);

        let mut aliases = ComponentAliasSection::new();
        for (index, function) in self.functions.iter().enumerate() {
            if let CoreFunction::Export { instance, name } = function
                && *instance == main
                && exports.contains(name)
            {
                aliases.alias(core_export(connected, ExportKind::Func, name));
                rewire.functions.insert(index as u32, functions);
                functions += 1;
            }
        }
        out.section(&aliases);
        for other in &self.others[first_lift..] {
            other.copy(&mut out, &mut rewire)?;
        }
        Some(out.finish())
    }

    /// The instance that has the exports, if there are others to get rid of.
    fn main(&self) -> Option<u32> {
        if self.modules.len() < 2 {
            return None;
        }
        self.others.iter().find_map(|other| match other {
            Other::Lift(CanonicalFunction::Lift { core_func_index, .. }) => {
                match self.functions.get(*core_func_index as usize)? {
                    CoreFunction::Export { instance, .. } => Some(*instance),
                    CoreFunction::Canonical(_) => None,
                }
            }
            _ => None,
        })
    }

    /// The name of the export that allocates, which has to be one and the same in every place.
    fn realloc(&self, main: u32) -> Option<&'a str> {
        let lifts = self.others.iter().filter_map(|other| match other {
            Other::Lift(lift) => Some(lift),
            _ => None,
        });
        let lowers = self.functions.iter().filter_map(|function| match function {
            CoreFunction::Canonical(lower) => Some(lower),
            CoreFunction::Export { .. } => None,
        });
        let mut found = None;
        for canonical in lifts.chain(lowers) {
            for option in options(canonical) {
                let CanonicalOption::Realloc(function) = option else { continue };
                let name = self.export_of(main, *function)?;
                if *found.get_or_insert(name) != name {
                    return None;
                }
            }
        }
        found
    }

    /// What the lifted functions need: themselves, and what is called after them.
    fn lifted_exports(&self, main: u32) -> Option<Vec<&'a str>> {
        let mut names = Vec::new();
        for other in &self.others {
            let Other::Lift(lift) = other else { continue };
            if let CanonicalFunction::Lift { core_func_index, .. } = lift {
                names.push(self.export_of(main, *core_func_index)?);
            }
            for option in options(lift) {
                if let CanonicalOption::PostReturn(function) | CanonicalOption::Callback(function) = option {
                    names.push(self.export_of(main, *function)?);
                }
            }
        }
        Some(names)
    }

    fn export_of(&self, main: u32, function: u32) -> Option<&'a str> {
        match self.functions.get(function as usize)? {
            CoreFunction::Export { instance, name } if *instance == main => Some(name),
            _ => None,
        }
    }

    /// The items of an instance that exists only to be given to another.
    fn exports(&self, arg: &InstantiationArg<'a>) -> Option<&[Export<'a>]> {
        match self.instances.get(arg.index as usize)? {
            Instance::FromExports(exports) if exports.iter().all(|e| e.kind == ExternalKind::Func) => Some(exports),
            _ => None,
        }
    }

    /// The function behind one that the main module is given: itself, or what the fixup puts in the stand-in's place.
    fn lowered(&self, main: u32, function: u32) -> Option<&CanonicalFunction> {
        let stand_in = match self.functions.get(function as usize)? {
            CoreFunction::Canonical(canonical) => return Some(canonical),
            CoreFunction::Export { instance, .. } if *instance == main => return None,
            CoreFunction::Export { name, .. } => *name,
        };
        let fixup = self.instances.iter().find_map(|instance| match instance {
            Instance::FromExports(exports) if exports.iter().any(|e| e.kind == ExternalKind::Table) => Some(exports),
            _ => None,
        })?;
        let item = fixup.iter().find(|item| item.name == stand_in && item.kind == ExternalKind::Func)?;
        match self.functions.get(item.index as usize)? {
            CoreFunction::Canonical(canonical) => Some(canonical),
            CoreFunction::Export { .. } => None,
        }
    }
}

impl Other<'_> {
    fn copy(&self, out: &mut Component, rewire: &mut Rewire) -> Option<()> {
        match self {
            Self::Section(section) => out.section(section),
            Self::Alias(alias) => {
                let alias = component_utils::component_alias(&mut RoundtripReencoder, alias.clone()).ok()?;
                out.section(ComponentAliasSection::new().alias(alias))
            }
            Self::Lift(lift) => {
                let mut section = CanonicalFunctionSection::new();
                rewire.parse_component_canonical(&mut section, lift.clone()).ok()?;
                out.section(&section)
            }
        };
        Some(())
    }
}

fn options(canonical: &CanonicalFunction) -> &[CanonicalOption] {
    match canonical {
        CanonicalFunction::Lift { options, .. } | CanonicalFunction::Lower { options, .. } => options,
        _ => &[],
    }
}

fn core_export(instance: u32, kind: ExportKind, name: &str) -> Alias<'_> {
    Alias::CoreInstanceExport { instance, kind, name }
}

/// Writes canonical functions with the new numbers of the core functions that they name.
struct Rewire {
    functions: HashMap<u32, u32>,
}

/// A core function that is not there any more.
struct Gone;

impl Reencode for Rewire {
    type Error = Gone;

    fn function_index(&mut self, function: u32) -> Result<u32, Error<Gone>> {
        self.functions.get(&function).copied().ok_or(Error::UserError(Gone))
    }

    /// There is one.
    fn memory_index(&mut self, _: u32) -> Result<u32, Error<Gone>> {
        Ok(0)
    }
}

impl ReencodeComponent for Rewire {}
