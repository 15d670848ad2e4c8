//! The main module of a component: the core module that does the work, where the others only connect it.
//!
//! An import is lowered to a core function that accesses the memory of the calling module, so that memory must exist first.
//! `wit-component` therefore lets the main module import shims from a second module, whose table a third one fills:
//!
//! ```text
//! shim (table) ──▶ main (memory, realloc, handle) ──▶ lowered imports ──▶ fixup (fills the table)
//! ```
//!
//! Together they are equivalent to the main module with the imports that its own import section names. A host that knows
//! these by name needs one instance instead of three (`module.rs`). A module with a standard library also exports `_initialize`,
//! which a fourth module calls at its start; the host calls it instead.

use wasmparser::{
    CanonicalFunction, CanonicalOption, ComponentAlias, ComponentExternalKind, ComponentOuterAliasKind,
    ComponentTypeRef, ElementItems, ElementKind, ElementSectionReader, Export, ExternalKind, FromReader, FunctionBody,
    Instance, Operator, Parser, Payload, SectionLimited, TypeRef,
};

use super::contract::{Contract, is_run};
use super::module::{INITIALIZE, MEMORY, REALLOC};
use sedge_core::grants::is_of_library;

/// Returns the main module, or `None` for a component of another form. The component must have passed `shape::check`, which
/// validates it, and `component::check_world`.
pub(crate) fn main_module(component: &[u8]) -> Option<&[u8]> {
    let parts = Parts::read(component)?;
    let (main, module) = parts.main()?;
    let Instance::Instantiate { args, .. } = parts.instances.get(main as usize)? else { return None };
    for arg in args {
        let Instance::FromExports(items) = parts.instances.get(arg.index as usize)? else { return None };
        for item in items {
            if item.kind != ExternalKind::Func
                || !parts.matches_import(parts.lowered(main, item)?, main, arg.name, item.name)
            {
                return None;
            }
        }
    }
    // The other modules run no code of their own and change no call.
    let starter = if exports(module, INITIALIZE) { Some(parts.starter(main)?) } else { None };
    let is_other =
        |other: &&&[u8]| !std::ptr::eq(**other, module) && starter.is_none_or(|it| !std::ptr::eq(**other, it));
    let mut others = parts.modules.iter().filter(is_other);
    let most = 3 + usize::from(starter.is_some());
    (others.all(|other| only_connects(other).is_some()) && parts.modules.len() <= most).then_some(module)
}

/// Instance and name of an item that is an alias of an imported instance's export; `None` for other items.
type Imported<'a> = Option<(u32, &'a str)>;

/// The parts of a component that concern its core modules. Each list is one index space.
#[derive(Default)]
struct Parts<'a> {
    modules: Vec<&'a [u8]>,
    instances: Vec<Instance<'a>>,
    functions: Vec<CoreFunction<'a>>,
    lifts: Vec<CanonicalFunction>,
    /// Names of the component's own exports.
    exports: Vec<&'a str>,
    /// Names of imported instances; `None` for other instances.
    interfaces: Vec<Option<&'a str>>,
    imported_functions: Vec<Imported<'a>>,
    imported_types: Vec<Imported<'a>>,
    /// Instance and name.
    memories: Vec<(u32, &'a str)>,
}

enum CoreFunction<'a> {
    Export { instance: u32, name: &'a str },
    Canonical(CanonicalFunction),
}

impl<'a> Parts<'a> {
    fn read(component: &'a [u8]) -> Option<Self> {
        let mut parts = Self::default();
        let mut depth = 0;
        for payload in Parser::new(0).parse_all(component) {
            match payload.ok()? {
                Payload::Version { .. } => depth += 1,
                Payload::End(_) => depth -= 1,
                // A nested component names the exports. It must do nothing else.
                Payload::ModuleSection { .. } | Payload::ComponentCanonicalSection(_) if depth > 1 => return None,
                _ if depth > 1 => {}
                Payload::ModuleSection { unchecked_range, .. } => parts.modules.push(&component[unchecked_range]),
                Payload::CoreTypeSection(_) | Payload::ComponentStartSection { .. } => return None,
                Payload::InstanceSection(section) => parts.instances.append(&mut items(section)?),
                Payload::ComponentImportSection(section) => {
                    for import in items(section)? {
                        match import.ty {
                            ComponentTypeRef::Instance(_) => parts.interfaces.push(Some(import.name.name)),
                            ComponentTypeRef::Type(_) => parts.imported_types.push(None),
                            _ => return None,
                        }
                    }
                }
                Payload::ComponentInstanceSection(section) => {
                    parts.interfaces.extend((0..section.count()).map(|_| None));
                }
                Payload::ComponentTypeSection(section) => {
                    parts.imported_types.extend((0..section.count()).map(|_| None));
                }
                Payload::ComponentExportSection(section) => {
                    for export in items(section)? {
                        parts.exports.push(export.name.name);
                        // An export adds an item to the index space of its kind.
                        match export.kind {
                            ComponentExternalKind::Instance => parts.interfaces.push(None),
                            ComponentExternalKind::Type => parts.imported_types.push(None),
                            _ => return None,
                        }
                    }
                }
                Payload::ComponentAliasSection(section) => {
                    items(section)?.into_iter().try_for_each(|alias| parts.add_alias(alias))?;
                }
                Payload::ComponentCanonicalSection(section) => {
                    for canonical in items(section)? {
                        match canonical {
                            lift @ CanonicalFunction::Lift { .. } => {
                                parts.imported_functions.push(None);
                                parts.lifts.push(lift);
                            }
                            other => parts.functions.push(CoreFunction::Canonical(other)),
                        }
                    }
                }
                _ => {}
            }
        }
        Some(parts)
    }

    fn add_alias(&mut self, alias: ComponentAlias<'a>) -> Option<()> {
        match alias {
            ComponentAlias::CoreInstanceExport { kind, instance_index, name } => match kind {
                ExternalKind::Func => self.functions.push(CoreFunction::Export { instance: instance_index, name }),
                ExternalKind::Memory => self.memories.push((instance_index, name)),
                ExternalKind::Table => {}
                _ => return None,
            },
            ComponentAlias::InstanceExport { kind, instance_index, name } => match kind {
                ComponentExternalKind::Func => self.imported_functions.push(Some((instance_index, name))),
                ComponentExternalKind::Type => self.imported_types.push(Some((instance_index, name))),
                _ => return None,
            },
            ComponentAlias::Outer { kind: ComponentOuterAliasKind::Type, .. } => self.imported_types.push(None),
            ComponentAlias::Outer { .. } => return None,
        }
        Some(())
    }

    /// Returns the instance that exports the handler or starts the program, and its module, if all exports have the standard names.
    fn main(&self) -> Option<(u32, &'a [u8])> {
        let [CanonicalFunction::Lift { core_func_index, options, .. }] = &self.lifts[..] else { return None };
        let CoreFunction::Export { instance, name } = self.functions.get(*core_func_index as usize)? else {
            return None;
        };
        let Instance::Instantiate { module_index, .. } = self.instances.get(*instance as usize)? else { return None };
        let module = *self.modules.get(*module_index as usize)?;
        // The host runs a module by the newest contract that it exports, and as a program where it exports none.
        let contract = Contract::of_exports(self.exports.iter().copied()).ok()?;
        let newer = Contract::ALL.into_iter().rev().take_while(|other| Some(*other) != contract);
        let is_newest = newer.map(Contract::handle).all(|handle| !exports(module, handle));
        let is_entry = match contract {
            Some(contract) => *name == contract.handle(),
            None => self.exports.iter().any(|export| is_run(export) && name.strip_suffix("#run") == Some(*export)),
        };
        let no_other_memory = self.memories.iter().all(|memory| *memory == (*instance, MEMORY));
        (is_entry && is_newest && no_other_memory && self.are_standard(*instance, options))
            .then_some((*instance, module))
    }

    /// Returns the module that calls `_initialize` of the main instance at its start, and does nothing else.
    fn starter(&self, main: u32) -> Option<&'a [u8]> {
        let initializes = |function: u32| {
            let function = self.functions.get(function as usize);
            matches!(function, Some(CoreFunction::Export { instance, name: INITIALIZE }) if *instance == main)
        };
        self.instances.iter().find_map(|instance| {
            let Instance::Instantiate { module_index, args } = instance else { return None };
            let [arg] = &args[..] else { return None };
            let Instance::FromExports(items) = self.instances.get(arg.index as usize)? else { return None };
            let [item] = &items[..] else { return None };
            let module = *self.modules.get(*module_index as usize)?;
            let is_standard = item.kind == ExternalKind::Func && initializes(item.index) && arg.name == item.name;
            (is_standard && only_starts(module, item.name).is_some()).then_some(module)
        })
    }

    /// Whether a function is lifted or lowered with the main instance's memory and allocator, and UTF-8.
    fn are_standard(&self, main: u32, options: &[CanonicalOption]) -> bool {
        options.iter().all(|option| match option {
            CanonicalOption::UTF8 | CanonicalOption::Memory(_) => true,
            CanonicalOption::Realloc(function) => matches!(
                self.functions.get(*function as usize),
                Some(CoreFunction::Export { instance, name: REALLOC }) if *instance == main
            ),
            // It would free the returned value, but the whole instance is dropped.
            CanonicalOption::PostReturn(_) => true,
            _ => false,
        })
    }

    /// Returns the function behind one of the main module's imports: itself, or the one that the fixup puts in a shim's slot.
    fn lowered(&self, main: u32, item: &Export<'a>) -> Option<&CanonicalFunction> {
        let shim = match self.functions.get(item.index as usize)? {
            CoreFunction::Canonical(canonical) => return Some(canonical),
            CoreFunction::Export { instance, .. } if *instance == main => return None,
            CoreFunction::Export { name, .. } => *name,
        };
        let fixup = self.instances.iter().find_map(|instance| match instance {
            Instance::FromExports(exports) if exports.iter().any(|it| it.kind == ExternalKind::Table) => Some(exports),
            _ => None,
        })?;
        let filled = fixup.iter().find(|it| it.name == shim && it.kind == ExternalKind::Func)?;
        match self.functions.get(filled.index as usize)? {
            CoreFunction::Canonical(canonical) => Some(canonical),
            CoreFunction::Export { .. } => None,
        }
    }

    /// Whether the lowered function matches the import's module and field name.
    fn matches_import(&self, canonical: &CanonicalFunction, main: u32, interface: &str, name: &str) -> bool {
        let (imported, name) = match canonical {
            CanonicalFunction::Lower { func_index, options } if self.are_standard(main, options) => {
                (self.imported_functions.get(*func_index as usize), name)
            }
            CanonicalFunction::ResourceDrop { resource } => match name.strip_prefix("[resource-drop]") {
                Some(name) => (self.imported_types.get(*resource as usize), name),
                None => return false,
            },
            _ => return false,
        };
        let Some(Some((instance, called))) = imported else { return false };
        let imported = self.interfaces.get(*instance as usize).copied().flatten();
        *called == name && imported.is_some_and(|imported| is_same_interface(imported, interface))
    }
}

/// Whether two names are of one interface. Versions of WASI 0.2 are compatible: a component imports the newest that a part of it asks
/// for, and other parts name the one that they were made with.
fn is_same_interface(imported: &str, asked: &str) -> bool {
    let settled = |name| {
        let is_settled = is_of_library(name) || name.starts_with("wasi:clocks/") || name.starts_with("wasi:random/");
        name.find("@0.2.").filter(|_| is_settled).map(|at| &name[..at])
    };
    imported == asked || settled(imported).is_some_and(|interface| settled(asked) == Some(interface))
}

/// Checks that a module imports one function, of this name, and calls it at its start.
fn only_starts(module: &[u8], name: &str) -> Option<()> {
    let (mut imports, mut starts) = (0, false);
    for payload in Parser::new(0).parse_all(module) {
        match payload.ok()? {
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import.ok()?;
                    let is_it = matches!(import.ty, TypeRef::Func(_)) && (import.module, import.name) == (name, name);
                    is_it.then_some(())?;
                    imports += 1;
                }
            }
            Payload::StartSection { func: 0, .. } => starts = true,
            Payload::Version { .. } | Payload::TypeSection(_) | Payload::CustomSection(_) | Payload::End(_) => {}
            _ => return None,
        }
    }
    (imports == 1 && starts).then_some(())
}

/// Checks that a module is a shim or a fixup and runs no code at its start. Each shim calls the table slot that its name
/// says, and each import fills the slot that its name says.
fn only_connects(module: &[u8]) -> Option<()> {
    let (mut imported, mut bodies, mut types) = (0_u32, 0_u32, Vec::new());
    for payload in Parser::new(0).parse_all(module) {
        match payload.ok()? {
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import.ok()?;
                    match import.ty {
                        TypeRef::Func(_) if import.name == imported.to_string() => imported += 1,
                        TypeRef::Table(_) => {}
                        _ => return None,
                    }
                }
            }
            Payload::FunctionSection(section) => types = items(section)?,
            Payload::ExportSection(section) => {
                for export in items(section)? {
                    match export.kind {
                        ExternalKind::Func if export.name == export.index.to_string() => {}
                        ExternalKind::Table => {}
                        _ => return None,
                    }
                }
            }
            Payload::CodeSectionEntry(body) if imported == 0 => {
                forwards_to_slot(&body, bodies, *types.get(bodies as usize)?)?;
                bodies += 1;
            }
            Payload::ElementSection(section) if section.count() == 1 => fills_in_order(section)?,
            Payload::Version { .. }
            | Payload::TypeSection(_)
            | Payload::TableSection(_)
            | Payload::CodeSectionStart { .. }
            | Payload::CustomSection(_)
            | Payload::End(_) => {}
            _ => return None,
        }
    }
    Some(())
}

/// Checks that a function passes its parameters in order to the function in this slot of the table.
fn forwards_to_slot(body: &FunctionBody<'_>, slot: u32, own_type: u32) -> Option<()> {
    let operators = body.get_operators_reader().ok()?.into_iter().collect::<Result<Vec<_>, _>>().ok()?;
    let [
        parameters @ ..,
        Operator::I32Const { value },
        Operator::CallIndirect { type_index, table_index: 0 },
        Operator::End,
    ] = &operators[..]
    else {
        return None;
    };
    let in_order = |(number, operator): (usize, &Operator<'_>)| matches!(operator, Operator::LocalGet { local_index } if *local_index as usize == number);
    (value.cast_unsigned() == slot && *type_index == own_type && parameters.iter().enumerate().all(in_order))
        .then_some(())
}

/// Checks that the functions fill the table from the first slot on, in order.
fn fills_in_order(section: ElementSectionReader<'_>) -> Option<()> {
    for element in section {
        let element = element.ok()?;
        let ElementKind::Active { table_index: None | Some(0), offset_expr } = element.kind else { return None };
        let offset = offset_expr.get_operators_reader().into_iter().collect::<Result<Vec<_>, _>>().ok()?;
        let ([Operator::I32Const { value: 0 }, Operator::End], ElementItems::Functions(functions)) =
            (&offset[..], element.items)
        else {
            return None;
        };
        if !items(functions)?.into_iter().zip(0..).all(|(function, slot)| function == slot) {
            return None;
        }
    }
    Some(())
}

/// Reads all items of a section.
fn items<'a, T: FromReader<'a>>(section: SectionLimited<'a, T>) -> Option<Vec<T>> {
    section.into_iter().collect::<Result<_, _>>().ok()
}

fn exports(module: &[u8], name: &str) -> bool {
    Parser::new(0).parse_all(module).any(|payload| match payload {
        Ok(Payload::ExportSection(section)) => section.into_iter().flatten().any(|export| export.name == name),
        _ => false,
    })
}
