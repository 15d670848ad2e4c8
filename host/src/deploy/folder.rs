//! A function's folder: its component, and beside it perhaps code that was compiled from that elsewhere.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::code::{Code, CodeError};
use super::host::Capabilities;
use crate::manifest::Manifest;
use crate::message::Digest;
use crate::sandbox::{Class, Isa};

/// The file of a folder that a host runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub path: PathBuf,
    /// Compiled elsewhere.
    pub is_code: bool,
}

/// Each is told as one sentence, with its cause in it.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("{path} cannot be read ({error}): `sedge compile` makes it")]
    Read { path: PathBuf, error: io::Error },
    #[error("{path} cannot run: {error}")]
    Code { path: PathBuf, error: CodeError },
    #[error("{path} was compiled from another component than {component}: run `sedge compile` again")]
    Stale { path: PathBuf, component: PathBuf },
}

/// The component's file of a function's folder.
pub fn component_path(dir: &Path, manifest: &Manifest) -> PathBuf {
    dir.join(manifest.component.clone().unwrap_or_else(|| format!("{}.wasm", manifest.name)))
}

/// Where `sedge compile` puts code, and a host without a compiler looks for it.
pub fn code_path(dir: &Path, name: &str, target: Isa) -> PathBuf {
    dir.join(format!("{name}.{target}.code"))
}

impl Source {
    /// The component, if the host can compile it; else code, if code from folders is taken and is there.
    pub fn find(dir: &Path, manifest: &Manifest, host: Capabilities, takes_code: bool) -> Self {
        let component = component_path(dir, manifest);
        let code = host.target.map(|target| code_path(dir, &manifest.name, target));
        match code.filter(|path| takes_code && path.is_file()) {
            Some(path) if !host.has_compiler || !component.is_file() => Self { path, is_code: true },
            _ => Self { path: component, is_code: false },
        }
    }
}

/// Code of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderCode {
    /// Of the file.
    pub digest: Digest,
    /// Ready to be loaded.
    pub code: Bytes,
}

pub fn read_code(path: &Path, manifest: &Manifest, host: Capabilities) -> Result<FolderCode, FolderError> {
    let file = std::fs::read(path).map_err(|error| FolderError::Read { path: path.to_owned(), error })?;
    let digest = super::digest(&file);
    let wrong = |error| FolderError::Code { path: path.to_owned(), error };
    let code = Code::parse(&file.into()).map_err(wrong)?;
    // Where the component is there as well, they belong together: new code of a function comes with its old name.
    let component = component_path(path.parent().unwrap_or(Path::new("")), manifest);
    if std::fs::read(&component).is_ok_and(|wasm| super::digest(&wasm) != code.header.wasm) {
        return Err(FolderError::Stale { path: path.to_owned(), component });
    }
    let class = Class::for_memory(manifest.limits.memory_bytes.get());
    let code = code.fitting(host.abi(class)).map_err(wrong)?;
    Ok(FolderCode { digest, code })
}

/// What to do where nothing can be compiled.
pub fn no_compiler(dir: &Path, name: &str, host: Capabilities, takes_code: bool) -> String {
    let Some(target) = host.target else {
        return "this build of sedge has no compiler, and no code is compiled for its kind of processor; install a full \
                build"
            .into();
    };
    let (path, dir) = (code_path(dir, name, target), dir.display());
    let allow = if takes_code { "" } else { " and set functions.native_code = true" };
    format!(
        "this build of sedge has no compiler, and there is no {file} that it may use: with a full build of sedge \
         {version} run `sedge compile {dir} --target {target}`, put {file} here{allow}",
        file = path.display(),
        version = env!("CARGO_PKG_VERSION"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Isa = Isa::Aarch64;

    fn manifest() -> Manifest {
        let text = "name = \"warm\"\nversion = \"1\"\nserial = 7\nsubscribe = [\"s/#\"]";
        Manifest::from_toml(text, Path::new("function.toml"), None).unwrap()
    }

    #[test]
    fn code_is_taken_only_where_it_is_allowed_and_needed() {
        let dir = tempfile::tempdir().unwrap();
        let full = Capabilities { has_compiler: true, target: Some(TARGET) };
        let small = Capabilities { has_compiler: false, ..full };
        let check = |host, takes_code, expected: &str| {
            let source = Source::find(dir.path(), &manifest(), host, takes_code);
            assert_eq!(source.path, dir.path().join(expected));
            assert_eq!(source.is_code, expected.ends_with(".code"));
        };
        check(small, true, "warm.wasm");
        std::fs::write(code_path(dir.path(), "warm", TARGET), "code").unwrap();
        check(full, true, "warm.aarch64.code");
        check(small, true, "warm.aarch64.code");
        check(small, false, "warm.wasm");
        check(full, false, "warm.wasm");
        check(Capabilities { target: Some(Isa::X86_64), ..small }, true, "warm.wasm");
        check(Capabilities { target: None, ..small }, true, "warm.wasm");
        std::fs::write(dir.path().join("warm.wasm"), "wasm").unwrap();
        check(full, true, "warm.wasm");
        check(small, true, "warm.aarch64.code");
    }

    #[test]
    fn code_of_another_component_or_for_another_engine_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = code_path(dir.path(), "warm", TARGET);
        let host = Capabilities { has_compiler: false, target: Some(TARGET) };
        let read = |host| read_code(&path, &manifest(), host).map(|it| it.code).map_err(|error| error.to_string());
        assert!(read(host).unwrap_err().contains("cannot be read"));
        let wasm = super::super::digest(b"wasm");
        let code = Code::new(TARGET, Class::Small, wasm, Bytes::from_static(b"native"));
        std::fs::write(&path, code.to_bytes()).unwrap();
        assert_eq!(read(host).unwrap(), "native");
        let error = read(Capabilities { target: Some(Isa::Pulley32), ..host }).unwrap_err();
        assert!(error.contains("warm.aarch64.code") && error.contains("pulley32"), "{error}");
        std::fs::write(dir.path().join("warm.wasm"), "wasm").unwrap();
        assert_eq!(read(host).unwrap(), "native");
        std::fs::write(dir.path().join("warm.wasm"), "newer").unwrap();
        let error = read(host).unwrap_err();
        assert!(error.contains("warm.wasm: run `sedge compile` again"), "{error}");
        let other = Code::new(TARGET, Class::Small, Digest([0; 32]), Bytes::new());
        std::fs::write(&path, other.to_bytes()).unwrap();
        assert!(read(host).is_err());
    }
}
