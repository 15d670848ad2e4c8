//! The file in a function's folder that a host runs: its component, or native code that was compiled from it elsewhere.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::code::{Capabilities, Code, CodeError};
use crate::isa::{Class, Isa};
use crate::manifest::Manifest;
use crate::message::Digest;

/// The file that a host runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub path: PathBuf,
    /// Native code that was compiled elsewhere.
    pub is_code: bool,
}

/// Each message contains its cause.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("failed to read {path} ({error}): `sedge compile` creates it")]
    Read { path: PathBuf, error: io::Error },
    #[error("{path} cannot run: {error}")]
    Code { path: PathBuf, error: CodeError },
    #[error("{path} was compiled from another component than {component}: run `sedge compile` again")]
    Stale { path: PathBuf, component: PathBuf },
}

/// Path of the component in a function's folder.
pub fn component_path(dir: &Path, manifest: &Manifest) -> PathBuf {
    dir.join(manifest.component.clone().unwrap_or_else(|| format!("{}.wasm", manifest.name)))
}

/// Path to which `sedge compile` writes code and where a host without a compiler looks for it.
pub fn code_path(dir: &Path, name: &str, target: Isa) -> PathBuf {
    dir.join(format!("{name}.{target}.code"))
}

/// Returns the native code in a file. If the component exists too, the code must be made from it: both keep their names
/// when the function changes.
pub fn unpack(
    file: &Bytes,
    path: &Path,
    component: Option<Digest>,
    manifest: &Manifest,
    host: Capabilities,
) -> Result<Bytes, FolderError> {
    let wrong = |error| FolderError::Code { path: path.to_owned(), error };
    let code = Code::parse(file).map_err(wrong)?;
    if component.is_some_and(|digest| digest != code.header.wasm) {
        let component = component_path(path.parent().unwrap_or(Path::new("")), manifest);
        return Err(FolderError::Stale { path: path.to_owned(), component });
    }
    let class = Class::for_memory(manifest.limits.memory_bytes.get());
    code.fitting(host.abi(class)).map_err(wrong)
}

/// Explains what a host without a compiler needs.
pub fn no_compiler(dir: &Path, name: &str, host: Capabilities, takes_code: bool) -> String {
    let Some(target) = host.target else {
        return "this build of sedge has no compiler, and code for its processor cannot be compiled elsewhere; install a \
                full build"
            .into();
    };
    let (path, dir) = (code_path(dir, name, target), dir.display());
    let allow = if takes_code { "" } else { " and set functions.native_code = true" };
    format!(
        "this build of sedge has no compiler and no {file} that it may use: run `sedge compile {dir} --target {target}` \
         with a full build of sedge {version}, put {file} here{allow}",
        file = path.display(),
        version = env!("CARGO_PKG_VERSION"),
    )
}
