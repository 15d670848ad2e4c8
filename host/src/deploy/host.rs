//! What this program can run: modules, if it has a compiler, and code that was compiled for it elsewhere.

use super::code::Abi;
use super::compiler::Compiler;
use super::payload::{Install, Module};
use super::reason::{Reason, Refusal};
use crate::sandbox::{Class, Isa};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    pub has_compiler: bool,
    pub target: Option<Isa>,
}

/// The part of an order that is for one board.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    pub module: Module,
    /// Compiled elsewhere.
    pub is_code: bool,
}

impl Capabilities {
    pub fn here() -> Self {
        Self { has_compiler: Compiler::is_there(), target: Isa::HOST }
    }

    /// The code that it runs. `None` for a processor without a name.
    pub fn abi(self, class: Class) -> Option<Abi> {
        Some(Abi::of(self.target?, class))
    }

    /// What of an order it takes: the module, which needs no trust, before code.
    pub fn choose(self, install: &Install, class: Class) -> Result<Chosen, Refusal> {
        if let Some(module) = install.module.as_ref().filter(|_| self.has_compiler) {
            return Ok(Chosen { module: module.clone(), is_code: false });
        }
        let abi = self.abi(class);
        match install.code.iter().find(|code| Some(code.abi()) == abi) {
            Some(code) => Ok(Chosen { module: code.module.clone(), is_code: true }),
            None => Err(Refusal::new(Reason::NoCode, self.missing(install, abi.as_ref()))),
        }
    }

    fn missing(self, install: &Install, abi: Option<&Abi>) -> String {
        let Some(abi) = abi else {
            return "this board has no compiler, and no code is compiled for its kind of processor".into();
        };
        let why = if self.has_compiler { "the order brings no module" } else { "this board has no compiler" };
        let brought = match &install.code[..] {
            [] => "none".to_owned(),
            code => code.iter().map(|code| code.abi().to_string()).collect::<Vec<_>>().join(", "),
        };
        format!(
            "{why} and takes code for {abi}; the order brings {brought}: push with `--code {}` and sedge {}",
            abi.target,
            env!("CARGO_PKG_VERSION")
        )
    }
}
