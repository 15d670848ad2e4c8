//! Names that a module uses, to find types that are imported or exported like values.
//!
//! The engine would only say that there is no such export, since types are gone when it looks.

use std::collections::HashSet;

#[derive(Default)]
pub(crate) struct Names<'a> {
    /// Names that stand for values, anywhere in the module. Scopes are not told apart: a name that is both counts as a value.
    pub(crate) values: HashSet<&'a str>,
    /// Names in types.
    pub(crate) types: HashSet<&'a str>,
    /// Values that the module declares.
    pub(crate) declared_values: HashSet<&'a str>,
    /// Types that the module declares.
    pub(crate) declared_types: HashSet<&'a str>,
    imports: Vec<Use<'a>>,
    exports: Vec<Use<'a>>,
}

struct Use<'a> {
    at: u32,
    name: &'a str,
    fix: &'static str,
}

impl<'a> Names<'a> {
    /// `fix`: the import as it would be of a type, with `NAME` in the place of the name.
    pub(crate) fn import(&mut self, name: &'a str, at: u32, fix: &'static str) {
        self.declared_values.insert(name);
        self.imports.push(Use { at, name, fix });
    }

    pub(crate) fn export(&mut self, name: &'a str, at: u32) {
        self.exports.push(Use { at, name, fix: "export { type NAME }" });
    }

    pub(crate) fn problems(&self) -> impl Iterator<Item = (u32, String)> {
        let is_used_as_type = |it: &&Use<'a>| self.types.contains(it.name) && !self.values.contains(it.name);
        let is_type = |it: &&Use<'a>| self.declared_types.contains(it.name) && !self.declared_values.contains(it.name);
        let imports = self.imports.iter().filter(is_used_as_type);
        imports.chain(self.exports.iter().filter(is_type)).map(|it| {
            let fix = it.fix.replace("NAME", it.name);
            (
                it.at,
                format!(
                    "`{}` is used as a type only, and types are gone when the function runs: write `{fix}`",
                    it.name
                ),
            )
        })
    }
}
