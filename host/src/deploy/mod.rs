//! How functions come to a board and change there: pushed as signed orders over MQTT, or lying in folders.
//!
//! The words of it are plain data that board and command line share: [`keys`], [`envelope`], [`payload`], [`topics`],
//! [`reason`], [`report`]. [`deployer`] is the board's side, which [`thread`] runs. `docs/deploying.md` tells the whole.

pub mod code;
pub mod envelope;
pub mod keys;
pub mod payload;
pub mod reason;
pub mod report;
pub mod topics;

pub mod deployer;
pub mod thread;

mod action;
mod host;
mod request;

mod acceptance;
mod boot;
mod decision;
mod orders;
mod receiving;
mod trial;

mod function;
mod record;
mod staging;
mod trust;
mod unknown;

mod disk;
mod stats;

mod cache;
mod compiler;
mod folder;
mod workshop;

#[cfg(test)]
mod faults;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use code::CodeError;

pub use action::{Action, Start};
pub use cache::{Cache, CacheError};
pub use compiler::{CPU_SECS as COMPILE_CPU_SECS, Compiler, CompilerError, MEMORY_BYTES as COMPILE_MEMORY_BYTES};
pub use deployer::{Deployer, OpenError};
pub use folder::{FolderCode, FolderError, Source, code_path, component_path};
pub use host::Capabilities;
pub use request::{DeployerConfig, Request, TrialEvent};
pub use stats::DeployStats;
pub use workshop::{CachingCompiler, CompileBackend};

use crate::manifest::Manifest;
use crate::message::Digest;
use crate::sandbox::{Class, Grants, Limits, NotGranted};

/// A function that is ready to be loaded by workers.
#[derive(Clone, Debug)]
pub struct Installed {
    pub manifest: Arc<Manifest>,
    pub digest: Digest,
    /// Native code, made by this host or by somebody who may send such code to it.
    pub code: Bytes,
    pub from_cache: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("function {function}: {path} cannot be read; build it with `sedge build {dir}`")]
    Read { function: Arc<str>, path: PathBuf, dir: PathBuf, source: std::io::Error },
    #[error("function {function}: {path} cannot run")]
    Compile { function: Arc<str>, path: PathBuf, source: CompilerError },
    #[error("function {function}: {path} may not run: {source}")]
    NotGranted { function: Arc<str>, path: PathBuf, source: NotGranted },
    #[error("function {function}: {what}")]
    NoCompiler { function: Arc<str>, what: String },
    #[error("function {function}")]
    Folder { function: Arc<str>, source: FolderError },
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

    pub fn grants(&self) -> Grants {
        Grants::from(&self.manifest.allow)
    }

    pub fn settings(&self) -> Vec<(String, String)> {
        self.manifest.config.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

pub fn digest(wasm: &[u8]) -> Digest {
    Digest(Sha256::digest(wasm).into())
}

/// Makes a function of a folder ready to run. `takes_code`: also what was compiled elsewhere, if it is needed.
pub fn install(
    dir: &Path,
    manifest: Manifest,
    compiler: &Compiler,
    takes_code: bool,
) -> Result<Installed, InstallError> {
    let host = Capabilities::here();
    let Source { path, is_code } = Source::find(dir, &manifest, host, takes_code);
    let function = || Arc::clone(&manifest.name);
    let read = |source| InstallError::Read { function: function(), path: path.clone(), dir: dir.to_owned(), source };
    if is_code {
        return install_code(dir, manifest);
    }
    if !host.has_compiler {
        let what = folder::no_compiler(dir, &manifest.name, host, takes_code);
        return Err(InstallError::NoCompiler { function: function(), what });
    }
    let wasm = std::fs::read(&path).map_err(read)?;
    let class = Class::for_memory(manifest.limits.memory_bytes.get());
    let code = compiler.compile(&wasm, class, None).map_err(|source| InstallError::Compile {
        function: function(),
        path: path.clone(),
        source,
    })?;
    // After the compiler's own checks, which run in its process: what is read here is well-formed.
    Grants::from(&manifest.allow).check(&wasm).map_err(|source| InstallError::NotGranted {
        function: function(),
        path: path.clone(),
        source,
    })?;
    let digest = digest(&wasm);
    Ok(Installed { manifest: manifest.into(), digest, code, from_cache: false })
}

/// The same for the code that lies in a folder. Whoever calls this trusts it.
pub fn install_code(dir: &Path, manifest: Manifest) -> Result<Installed, InstallError> {
    let host = Capabilities::here();
    let failed = |source| InstallError::Folder { function: Arc::clone(&manifest.name), source };
    let target = host.target.ok_or(CodeError::NoTarget);
    let path = target.map(|target| code_path(dir, &manifest.name, target));
    let path = path.map_err(|error| failed(FolderError::Code { path: dir.to_owned(), error }))?;
    let FolderCode { digest, code } = folder::read_code(&path, &manifest, host).map_err(failed)?;
    Ok(Installed { manifest: manifest.into(), digest, code, from_cache: false })
}
