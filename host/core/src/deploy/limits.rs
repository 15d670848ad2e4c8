//! What a board accepts, as its status says, so that an operator's machine can check a push before it sends a byte.

use serde::{Deserialize, Serialize};

use super::acceptance::one_line;
use super::code::{Abi, Capabilities};
use super::payload::{Install, Module};
use super::reason::{Reason, Refusal};
use crate::config::{Ceilings, Config};
use crate::isa::{Class, SETTINGS_VERSION, WASMTIME_VERSION};
use crate::manifest::Manifest;

/// Member `limits` of a board's status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoardLimits {
    pub max_module_bytes: u64,
    pub max_fuel: u64,
    pub max_timeout_ms: u32,
    pub max_memory_bytes: u64,
    pub max_outputs: u32,
    pub max_output_bytes: u64,
    pub max_state_bytes: u64,
    /// Whether it compiles modules.
    pub compiler: bool,
    /// Whether it runs scripts also without a compiler. Boards of earlier versions do not.
    #[serde(default)]
    pub scripts: bool,
    /// Engine whose native code it runs. `None`: it knows no name for its processor.
    pub target: Option<Box<str>>,
    pub wasmtime: u32,
    pub settings: u32,
}

impl BoardLimits {
    pub fn new(config: &Config, host: Capabilities) -> Self {
        let Ceilings { fuel, timeout_ms, memory_bytes, outputs, output_bytes, state_bytes } = config.functions.ceilings;
        Self {
            max_module_bytes: config.deploy.max_module_bytes.get(),
            max_fuel: fuel.get(),
            max_timeout_ms: timeout_ms.get(),
            max_memory_bytes: memory_bytes.get() as u64,
            max_outputs: outputs,
            max_output_bytes: output_bytes as u64,
            max_state_bytes: state_bytes as u64,
            compiler: host.has_compiler,
            scripts: host.runs_scripts,
            target: host.target.map(|target| target.as_str().into()),
            wasmtime: WASMTIME_VERSION,
            settings: SETTINGS_VERSION,
        }
    }

    /// Refuses what the board would refuse: limits of the manifest, nothing to run, size of the module.
    pub fn check(&self, install: &Install) -> Result<(), Refusal> {
        let manifest = Manifest::from_json(&install.manifest.to_json(), self.ceilings().as_ref())
            .map_err(|problems| Refusal::new(Reason::OverLimit, one_line(&problems)))?;
        self.chosen(install, &manifest)?.check(self.max_module_bytes)
    }

    /// The module or code of an install that the board would take.
    fn chosen<'i>(&self, install: &'i Install, manifest: &Manifest) -> Result<&'i Module, Refusal> {
        let class = Class::for_memory(manifest.limits.memory_bytes.get());
        let takes_module = self.compiler || self.scripts && manifest.names_script();
        if let Some(module) = install.module.as_ref().filter(|_| takes_module) {
            return Ok(module);
        }
        let why = if self.compiler { "the push brings no module" } else { "the board has no compiler" };
        let Some(target) = self.target.clone() else {
            return Err(Refusal::new(
                Reason::NoCode,
                format!("{why}, and it runs no code that was compiled elsewhere"),
            ));
        };
        let abi = Abi { target, wasmtime: self.wasmtime, settings: self.settings, class };
        let code = install.code.iter().find(|code| code.abi() == abi);
        code.map(|code| &code.module).ok_or_else(|| {
            let fix = format!("push with `--code {}` and a sedge with Wasmtime {}", abi.target, abi.wasmtime);
            Refusal::new(Reason::NoCode, format!("{why} and runs code for {abi}: {fix}"))
        })
    }

    /// `None` for values that no board has.
    fn ceilings(&self) -> Option<Ceilings> {
        Some(Ceilings {
            fuel: self.max_fuel.try_into().ok()?,
            timeout_ms: self.max_timeout_ms.try_into().ok()?,
            memory_bytes: usize::try_from(self.max_memory_bytes).ok()?.try_into().ok()?,
            outputs: self.max_outputs,
            output_bytes: usize::try_from(self.max_output_bytes).ok()?,
            state_bytes: usize::try_from(self.max_state_bytes).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Node;
    use crate::deploy::payload::{Document, NativeCode};
    use crate::isa::Isa;

    fn limits(host: Capabilities) -> BoardLimits {
        let limits = BoardLimits::new(&Config::new(Node::new("n")), host);
        serde_json::from_str(&serde_json::to_string(&limits).unwrap()).unwrap()
    }

    #[test]
    fn a_push_is_refused_for_the_reasons_of_the_board() {
        let manifest = |more: &str| {
            let text = format!("name = \"a\"\nversion = \"1\"\nsubscribe = [\"t\"]\n{more}");
            Document::of(&Manifest::from_toml(&text, Path::new("function.toml"), None).unwrap())
        };
        let module = |bytes: u64| Module { size: bytes, ..Module::of(&vec![1; 2048], 1024) };
        let install =
            |more: &str, bytes| Install { manifest: manifest(more), module: Some(module(bytes)), code: vec![] };
        let full = limits(Capabilities { has_compiler: true, runs_scripts: true, target: Some(Isa::Aarch64) });
        let runtime = limits(Capabilities { has_compiler: false, runs_scripts: true, target: Some(Isa::Aarch64) });
        let reason = |board: &BoardLimits, install: &Install| board.check(install).err().map(|refusal| refusal.reason);
        assert_eq!(reason(&full, &install("", 2048)), None);
        assert_eq!(reason(&full, &install("", 1 << 40)), Some(Reason::OverLimit));
        assert_eq!(reason(&full, &install("limits.fuel = 9_000_000_000_000_000", 2048)), Some(Reason::OverLimit));
        assert_eq!(reason(&runtime, &install("", 2048)), Some(Reason::NoCode));
        let script = install("component = \"function.js\"", 2048);
        assert_eq!(reason(&runtime, &script), None);
        let without_engine = BoardLimits { scripts: false, ..runtime.clone() };
        assert_eq!(reason(&without_engine, &script), Some(Reason::NoCode));
        let abi = Abi::of(Isa::Aarch64, Class::for_memory(4 << 20));
        let code = NativeCode::new(abi, module(2048));
        let mut with_code = Install { code: vec![code], ..install("", 2048) };
        assert_eq!(reason(&runtime, &with_code), None);
        with_code.module = None;
        assert_eq!(reason(&full, &with_code), None);
        let newer = BoardLimits { wasmtime: WASMTIME_VERSION + 1, ..runtime };
        assert!(newer.check(&with_code).unwrap_err().detail.contains("--code aarch64"));
    }
}
