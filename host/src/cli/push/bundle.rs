//! What is pushed: a manifest and a component.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use bytes::Bytes;
use serde_json::{Value, json};

use super::Mode;
use crate::cli::build;
use crate::component;
use crate::deploy;
use crate::deploy::payload::Module;
use crate::manifest::{Manifest, TrialMode};

pub struct Bundle {
    pub manifest: Manifest,
    pub wasm: Bytes,
    pub module: Module,
}

impl Bundle {
    /// Builds the function if it is a Rust crate, and reads it.
    pub fn build(dir: &Path, chunk_size: u32) -> anyhow::Result<Self> {
        let manifest = Manifest::load(dir).map_err(anyhow::Error::new)?;
        if dir.join("Cargo.toml").is_file() {
            build::build(dir)?;
        }
        let path = deploy::component_path(dir, &manifest);
        let wasm = fs::read(&path).with_context(|| {
            format!(
                "failed to read {}; build it, or name the component in {}",
                path.display(),
                crate::manifest::FILE_NAME
            )
        })?;
        component::check_world(&wasm).with_context(|| path.display().to_string())?;
        let module = Module::of(&wasm, chunk_size);
        module.check(u64::MAX).with_context(|| path.display().to_string())?;
        Ok(Self { manifest, wasm: wasm.into(), module })
    }

    pub fn set_mode(&mut self, mode: Mode) {
        let trial = &mut self.manifest.trial;
        match mode {
            Mode::Live => (trial.mode, trial.differences) = (TrialMode::Live, None),
            Mode::Shadow => trial.mode = TrialMode::Shadow,
        }
    }

    pub fn chunk(&self, index: u32) -> Bytes {
        let range = self.module.range(index);
        self.wasm.slice(range.start as usize..range.end as usize)
    }

    pub fn module_json(&self) -> Value {
        json!({
            "digest": self.module.digest.to_string(),
            "size_bytes": self.module.size,
            "chunk_size": self.module.chunk_size,
            "chunks": self.module.chunks.len(),
        })
    }
}
