//! How functions come to a board and change there: pushed as signed orders over MQTT, or lying in folders.
//!
//! The words of it are plain data that board and command line share: [`keys`], [`envelope`], [`payload`], [`topics`],
//! [`reason`], [`report`]. [`deployer`] is the board's side, which [`thread`] runs. `docs/deploying.md` tells the whole.

pub mod envelope;
pub mod keys;
pub mod payload;
pub mod reason;
pub mod report;
pub mod topics;

pub mod deployer;
pub mod thread;

mod acceptance;
mod orders;
mod receiving;
mod trial;

mod function;
mod record;
mod staging;
mod strangers;
mod trust;

mod disk;
mod figures;

mod cache;
mod compiler;
mod workshop;

#[cfg(test)]
mod faults;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

pub use cache::{Cache, CacheError};
pub use compiler::{CPU_SECS as COMPILE_CPU_SECS, CompileFailed, Compiler, MEMORY_BYTES as COMPILE_MEMORY_BYTES};
pub use deployer::{Action, Deployer, Now, OpenFailed, Request, Settings, Start, TrialEvent};
pub use figures::Figures;
pub use workshop::{Compile, Workshop};

use crate::manifest::Manifest;
use crate::message::Digest;
use crate::sandbox::{Class, Limits};

/// A function that is ready to be loaded by workers.
#[derive(Clone, Debug)]
pub struct Installed {
    pub manifest: Arc<Manifest>,
    pub digest: Digest,
    /// Native code, made by this host.
    pub code: Bytes,
    pub from_cache: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("function {function}: {path} cannot be read; build it with `sedge build {dir}`")]
    Read { function: Arc<str>, path: PathBuf, dir: PathBuf, source: std::io::Error },
    #[error("function {function}: {path} cannot run")]
    Compile { function: Arc<str>, path: PathBuf, source: CompileFailed },
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl Installed {
    pub fn limits(&self) -> Limits {
        let limits = &self.manifest.limits;
        Limits {
            fuel: limits.fuel.get(),
            timeout_ms: limits.timeout_ms.get(),
            memory_bytes: limits.memory_bytes.get(),
            outputs: limits.outputs as usize,
            output_bytes: limits.output_bytes,
            state_bytes: match self.manifest.state {
                crate::manifest::StateScope::None => 0,
                _ => limits.state_bytes,
            },
        }
    }

    pub fn settings(&self) -> Vec<(String, String)> {
        self.manifest.config.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

/// The component's file of a function's folder.
pub fn component_path(dir: &Path, manifest: &Manifest) -> PathBuf {
    dir.join(manifest.component.clone().unwrap_or_else(|| format!("{}.wasm", manifest.name)))
}

pub fn digest(wasm: &[u8]) -> Digest {
    Digest(Sha256::digest(wasm).into())
}

/// Reads a function's component and compiles it, unless this host has compiled the same before.
pub fn install(
    dir: &Path,
    manifest: Manifest,
    compiler: &Compiler,
    cache: Option<&Cache>,
) -> Result<Installed, InstallError> {
    let path = component_path(dir, &manifest);
    let wasm = std::fs::read(&path).map_err(|source| InstallError::Read {
        function: Arc::clone(&manifest.name),
        path: path.clone(),
        dir: dir.to_owned(),
        source,
    })?;
    let digest = digest(&wasm);
    let class = Class::for_memory(manifest.limits.memory_bytes.get());
    if let Some(code) = cache.and_then(|cache| cache.load(&digest, class)) {
        return Ok(Installed { manifest: manifest.into(), digest, code, from_cache: true });
    }
    let code = compiler.compile(&wasm, class).map_err(|source| InstallError::Compile {
        function: Arc::clone(&manifest.name),
        path,
        source,
    })?;
    if let Some(cache) = cache {
        cache.store(&digest, class, &code)?;
    }
    Ok(Installed { manifest: manifest.into(), digest, code, from_cache: false })
}
