//! The content of a push: a manifest, a component, and native code compiled from it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use serde_json::{Value, json};

use super::Mode;
use crate::{build, runner};
use sedge_core::config::Node;
use sedge_core::deploy;
use sedge_core::deploy::code::Abi;
use sedge_core::deploy::payload::{Document, Install, Module, NativeCode};
use sedge_core::grants::Grants;
use sedge_core::isa::{Class, Isa};
use sedge_core::manifest::{Manifest, TrialMode};
use sedge_core::message::Digest;
use sedge_core::version::Version;
use sedge_sandbox::compile;
use sedge_sandbox::compiler::Compiler;
use sedge_sandbox::script::archive;
use sedge_sandbox::shape::MAX_WASM_BYTES;

pub(crate) struct Bundle {
    pub(crate) manifest: Manifest,
    /// At least one.
    pub(crate) parts: Vec<Part>,
}

/// A file that boards may fetch.
pub(crate) struct Part {
    /// Target of native code. `None` is the component, for boards with a compiler.
    pub(crate) abi: Option<Abi>,
    pub(crate) module: Module,
    bytes: Bytes,
}

impl Bundle {
    /// Builds the function if it is a Rust crate, and compiles it for the targets.
    pub(crate) fn build(dir: &Path, targets: &[Isa], code_only: bool, chunk_size: u32) -> anyhow::Result<Self> {
        let manifest = Manifest::load(dir, &sedge_sandbox::machine::MACHINE)?;
        if dir.join("Cargo.toml").is_file() {
            build::build(dir)?;
        }
        let path = runner::component(dir, &manifest)?;
        if archive::is_source(&path) {
            return Self::script(manifest, &path, targets, chunk_size);
        }
        let wasm = fs::read(&path).with_context(|| {
            format!("failed to read {}; build it, or name the component in function.toml", path.display())
        })?;
        check_size(&wasm)
            .and_then(|()| Ok(compile::check_interface(&wasm)?))
            .with_context(|| path.display().to_string())?;
        let class = Class::for_memory(manifest.limits.memory_bytes.get());
        if !code_only && Compiler::capabilities().has_compiler {
            // Whatever a board's compiler refuses is refused here, with the same words.
            Compiler.compile(&wasm, class, None).with_context(|| path.display().to_string())?;
        }
        sedge_sandbox::check_imports(Grants::from(&manifest.allow), &wasm)
            .with_context(|| manifest.name.to_string())?;
        let mut parts = Vec::new();
        for target in targets.iter().copied().collect::<BTreeSet<_>>() {
            let code = Compiler.code_for(&wasm, class, target).with_context(|| path.display().to_string())?;
            parts.push(Part::new(Some(Abi::of(target, class)), code.to_bytes(), chunk_size));
        }
        if !code_only {
            parts.insert(0, Part::new(None, wasm.into(), chunk_size));
        }
        for part in &parts {
            part.module.check(u64::MAX).with_context(|| path.display().to_string())?;
        }
        Ok(Self { manifest, parts })
    }

    /// Packs a script, after it was loaded here once to find its mistakes.
    fn script(manifest: Manifest, path: &Path, targets: &[Isa], chunk_size: u32) -> anyhow::Result<Self> {
        if !targets.is_empty() {
            bail!("{} is a script, and there is no native code of it: leave out --code", path.display());
        }
        let archive = runner::read_script(path).with_context(|| path.display().to_string())?;
        let installed = Version::new(manifest, deploy::digest(&archive), archive.clone(), Node::BASE_TOPIC);
        runner::load(&installed, installed.settings().into()).with_context(|| path.display().to_string())?;
        let mut manifest = Manifest::clone(&installed.manifest);
        // A board without a compiler learns that what comes is a script before it fetches it.
        manifest.component = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        Ok(Self { manifest, parts: vec![Part::new(None, archive, chunk_size)] })
    }

    pub(crate) fn set_mode(&mut self, mode: Mode) {
        let trial = &mut self.manifest.trial;
        match mode {
            Mode::Live => (trial.mode, trial.differences) = (TrialMode::Live, None),
            Mode::Shadow => trial.mode = TrialMode::Shadow,
        }
    }

    pub(crate) fn install(&self) -> Install {
        let code = |part: &Part| Some(NativeCode::new(part.abi.clone()?, part.module.clone()));
        Install {
            manifest: Document::of(&self.manifest),
            module: self.component().cloned(),
            code: self.parts.iter().filter_map(code).collect(),
        }
    }

    pub(crate) fn component(&self) -> Option<&Module> {
        self.parts.iter().find(|part| part.abi.is_none()).map(|part| &part.module)
    }

    pub(crate) fn digests(&self) -> impl Iterator<Item = Digest> {
        self.parts.iter().map(|part| part.module.digest)
    }

    /// Number of chunks of all parts.
    pub(crate) fn chunks(&self) -> usize {
        self.parts.iter().map(|part| part.module.chunks.len()).sum()
    }

    /// The component and the native code as JSON.
    pub(crate) fn json(&self) -> (Value, Value) {
        let code = self.parts.iter().filter_map(|part| {
            let mut json = module_json(&part.module);
            json["target"] = json!(part.abi.as_ref()?.target);
            Some(json)
        });
        (self.component().map_or(Value::Null, module_json), code.collect())
    }
}

impl Part {
    fn new(abi: Option<Abi>, bytes: Bytes, chunk_size: u32) -> Self {
        Self { abi, module: Module::of(&bytes, chunk_size), bytes }
    }

    pub(crate) fn chunk(&self, index: u32) -> Bytes {
        let range = self.module.range(index);
        self.bytes.slice(range.start as usize..range.end as usize)
    }

    /// `module`, or the target of native code.
    pub(crate) fn name(&self) -> &str {
        self.abi.as_ref().map_or("module", |abi| &abi.target)
    }
}

/// The limit of every board, which an order cannot raise.
fn check_size(wasm: &[u8]) -> anyhow::Result<()> {
    if wasm.len() > MAX_WASM_BYTES {
        bail!("the component has {} bytes, and boards take at most {MAX_WASM_BYTES}", wasm.len());
    }
    Ok(())
}

fn module_json(module: &Module) -> Value {
    json!({
        "digest": module.digest.to_string(),
        "size_bytes": module.size,
        "chunk_size": module.chunk_size,
        "chunks": module.chunks.len(),
    })
}
