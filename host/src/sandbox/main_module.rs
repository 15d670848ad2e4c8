//! The one core module of a component that does the work, where the others only connect it.
//!
//! An import is lowered to a core function that reads and writes the memory of the module that calls it, so that memory has
//! to be there first. `wit-component` therefore lets the module import stand-ins from one more module, and fills in the table
//! behind them from a third:
//!
//! ```text
//! shim (table) ──▶ main (memory, realloc, handle) ──▶ lowered imports ──▶ fixup (fills the table)
//! ```
//!
//! What all of it amounts to is the main module with the imports that its own import section names. A host that knows these
//! by name needs one instance for it instead of three (`module.rs`).

use wasmparser::{
    CanonicalFunction, CanonicalOption, ComponentAlias, ComponentExternalKind, ComponentOuterAliasKind,
    ComponentTypeRef, ElementItems, ElementKind, ElementSectionReader, Export, ExternalKind, FunctionBody, Instance,
    Operator, Parser, Payload, TypeRef,
};

use super::module::{HANDLE, MEMORY, REALLOC};

/// The main module, or `None` for a component that is put together in another way. It has passed `shape::check`, which
/// validates it, and `component::check_world`.
pub fn main_module(component: &[u8]) -> Option<&[u8]> {
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
    // Whatever else there is runs no code of its own, and stands between nobody.
    let mut others = parts.modules.iter().filter(|other| !std::ptr::eq(**other, module));
    (others.all(|other| only_connects(other)) && parts.modules.len() <= 3).then_some(module)
}

/// Something that a component has by the name that an imported instance gives it.
type Imported<'a> = Option<(u32, &'a str)>;

/// A component, as far as it is about its core modules.
#[derive(Default)]
struct Parts<'a> {
    modules: Vec<&'a [u8]>,
    instances: Vec<Instance<'a>>,
    functions: Vec<CoreFunction<'a>>,
    lifts: Vec<CanonicalFunction>,
    /// Names of the imported instances; what else is an instance has none.
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
                // What is nested gives names to what the component exports. It must not have a say in it.
                Payload::ModuleSection { .. } | Payload::ComponentCanonicalSection(_) if depth > 1 => return None,
                _ if depth > 1 => {}
                Payload::ModuleSection { unchecked_range, .. } => parts.modules.push(&component[unchecked_range]),
                Payload::CoreTypeSection(_) | Payload::ComponentStartSection { .. } => return None,
                Payload::InstanceSection(section) => {
                    for instance in section {
                        parts.instances.push(instance.ok()?);
                    }
                }
                Payload::ComponentImportSection(section) => {
                    for import in section {
                        let import = import.ok()?;
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
                    for export in section {
                        // An export is one more thing of its kind.
                        match export.ok()?.kind {
                            ComponentExternalKind::Instance => parts.interfaces.push(None),
                            ComponentExternalKind::Type => parts.imported_types.push(None),
                            _ => return None,
                        }
                    }
                }
                Payload::ComponentAliasSection(section) => {
                    for alias in section {
                        parts.add_alias(alias.ok()?)?;
                    }
                }
                Payload::ComponentCanonicalSection(section) => {
                    for canonical in section {
                        match canonical.ok()? {
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

    /// The instance that has the handler, and its module, with everything under the usual names.
    fn main(&self) -> Option<(u32, &'a [u8])> {
        let [CanonicalFunction::Lift { core_func_index, options, .. }] = &self.lifts[..] else { return None };
        let CoreFunction::Export { instance, name } = self.functions.get(*core_func_index as usize)? else {
            return None;
        };
        let Instance::Instantiate { module_index, .. } = self.instances.get(*instance as usize)? else { return None };
        let module = *self.modules.get(*module_index as usize)?;
        // Called once the module is set up, by the fixup.
        let starts_late = exports(module, "_initialize");
        let no_other_memory = self.memories.iter().all(|memory| *memory == (*instance, MEMORY));
        (*name == HANDLE && !starts_late && no_other_memory && self.are_standard(*instance, options))
            .then_some((*instance, module))
    }

    /// Whether a function is lifted or lowered by way of the main instance's memory and allocator, and of text as UTF-8.
    fn are_standard(&self, main: u32, options: &[CanonicalOption]) -> bool {
        options.iter().all(|option| match option {
            CanonicalOption::UTF8 | CanonicalOption::Memory(_) => true,
            CanonicalOption::Realloc(function) => matches!(
                self.functions.get(*function as usize),
                Some(CoreFunction::Export { instance, name: REALLOC }) if *instance == main
            ),
            // It frees what was returned: all of the instance is about to go.
            CanonicalOption::PostReturn(_) => true,
            _ => false,
        })
    }

    /// What one of the main module's imports is: given as it is, or what the fixup puts in a stand-in's place.
    fn lowered(&self, main: u32, item: &Export<'a>) -> Option<&CanonicalFunction> {
        let stand_in = match self.functions.get(item.index as usize)? {
            CoreFunction::Canonical(canonical) => return Some(canonical),
            CoreFunction::Export { instance, .. } if *instance == main => return None,
            CoreFunction::Export { name, .. } => *name,
        };
        let fixup = self.instances.iter().find_map(|instance| match instance {
            Instance::FromExports(exports) if exports.iter().any(|it| it.kind == ExternalKind::Table) => Some(exports),
            _ => None,
        })?;
        let filled = fixup.iter().find(|it| it.name == stand_in && it.kind == ExternalKind::Func)?;
        match self.functions.get(filled.index as usize)? {
            CoreFunction::Canonical(canonical) => Some(canonical),
            CoreFunction::Export { .. } => None,
        }
    }

    /// Whether it is the import that the main module's own words for it say.
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
        *called == name && self.interfaces.get(*instance as usize) == Some(&Some(interface))
    }
}

/// Whether a module does what its names say, and nothing begins in it: each stand-in is called by the place in the table that it
/// calls, and each import that fills the table in by the place that it comes to.
fn only_connects(module: &[u8]) -> bool {
    connects(module).is_some()
}

fn connects(module: &[u8]) -> Option<()> {
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
            Payload::FunctionSection(section) => types = section.into_iter().collect::<Result<_, _>>().ok()?,
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export.ok()?;
                    match export.kind {
                        ExternalKind::Func if export.name == export.index.to_string() => {}
                        ExternalKind::Table => {}
                        _ => return None,
                    }
                }
            }
            Payload::CodeSectionEntry(body) if imported == 0 => {
                passes_on(&body, bodies, *types.get(bodies as usize)?)?;
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

/// All parameters in their order, and a call of what is at that place of the table.
fn passes_on(body: &FunctionBody<'_>, place: u32, own_type: u32) -> Option<()> {
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
    (value.cast_unsigned() == place && *type_index == own_type && parameters.iter().enumerate().all(in_order))
        .then_some(())
}

/// From the first place on, the functions in their order.
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
        for (place, function) in functions.into_iter().enumerate() {
            if function.ok()? as usize != place {
                return None;
            }
        }
    }
    Some(())
}

fn exports(module: &[u8], name: &str) -> bool {
    Parser::new(0).parse_all(module).any(|payload| match payload {
        Ok(Payload::ExportSection(section)) => section.into_iter().flatten().any(|export| export.name == name),
        _ => false,
    })
}
