//! Reading of a function's folder.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::compiler::Compiler;
use super::script::{archive, packaged};
use super::{Function, Sandbox, SandboxError};
use sedge_core::config::Node;
use sedge_core::deploy::code::{Capabilities, CodeError};
use sedge_core::deploy::interface::{CompilerError, FolderFunction};
use sedge_core::deploy::source::{self, FolderError, Source, code_path, no_compiler, unpack};
use sedge_core::grants::{Grants, NotGranted};
use sedge_core::isa::Class;
use sedge_core::manifest::Manifest;
use sedge_core::message::Digest;
use sedge_core::version::Version;

/// The file that a function is made of: the component, or a script, which needs no name in the manifest.
pub fn component_path(dir: &Path, manifest: &Manifest) -> PathBuf {
    let scripts = [archive::MAIN, archive::MAIN_TYPESCRIPT].map(|name| dir.join(name));
    let script = scripts.into_iter().find(|path| manifest.component.is_none() && path.is_file());
    script.unwrap_or_else(|| source::component_path(dir, manifest))
}

/// Finds the component if the host can compile it, else native code if `takes_code` and the file exists.
pub fn find(dir: &Path, manifest: &Manifest, host: Capabilities, takes_code: bool) -> Source {
    let component = component_path(dir, manifest);
    let code = host.target.map(|target| code_path(dir, &manifest.name, target));
    match code.filter(|path| takes_code && path.is_file()) {
        Some(path) if !host.has_compiler || !component.is_file() => Source { path, is_code: true },
        _ => Source { path: component, is_code: false },
    }
}

#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("function {function}: failed to read {path}; build it with `sedge build {dir}`")]
    Read { function: Arc<str>, path: PathBuf, dir: PathBuf, source: io::Error },
    #[error("function {function}: {path} cannot run")]
    Compile { function: Arc<str>, path: PathBuf, source: CompilerError },
    #[error("function {function}: {path} may not run: {source}")]
    NotGranted { function: Arc<str>, path: PathBuf, source: NotGranted },
    #[error("function {function}: {what}")]
    NoCompiler { function: Arc<str>, what: String },
    #[error("function {function}: {what}")]
    TypeScript { function: Arc<str>, what: String },
    #[error("function {function}")]
    Folder { function: Arc<str>, source: FolderError },
}

/// Reads a component, or native code, in a folder. A script is read with the files that it imports, as one archive.
pub fn read(path: &Path) -> io::Result<Bytes> {
    if archive::is_source(path) {
        return archive::pack(path, None).map_err(io::Error::other);
    }
    std::fs::read(path).map(Bytes::from)
}

/// Reads what the deployer needs to know of a function's folder at the start.
pub fn inspect(dir: &Path, manifest: Manifest, host: Capabilities, takes_code: bool) -> FolderFunction {
    let source = find(dir, &manifest, host, takes_code);
    let digest = read(&source.path).ok().map(|file| sedge_core::deploy::digest(&file));
    let component = source.is_code.then(|| component_digest(dir, &manifest)).flatten();
    FolderFunction { manifest, source, digest, component }
}

fn component_digest(dir: &Path, manifest: &Manifest) -> Option<Digest> {
    read(&component_path(dir, manifest)).ok().map(|wasm| sedge_core::deploy::digest(&wasm))
}

/// Returns the digest of a file and the native code in it.
pub(crate) fn read_code(path: &Path, manifest: &Manifest, host: Capabilities) -> Result<(Digest, Bytes), FolderError> {
    let file = read(path).map_err(|error| FolderError::Read { path: path.to_owned(), error })?;
    let component = component_digest(path.parent().unwrap_or(Path::new("")), manifest);
    Ok((sedge_core::deploy::digest(&file), unpack(&file, path, component, manifest, host)?))
}

/// Makes the function of a folder ready to run. `takes_code`: native code may be used where there is no component.
pub fn install(dir: &Path, manifest: Manifest, compiler: &Compiler, takes_code: bool) -> Result<Version, InstallError> {
    let host = Compiler::capabilities();
    let Source { path, is_code } = find(dir, &manifest, host, takes_code);
    if is_code {
        return install_code(dir, manifest);
    }
    let function = Arc::clone(&manifest.name);
    if archive::is_typescript(&path) {
        return Err(InstallError::TypeScript { function, what: archive::needs_erasing(&path) });
    }
    if !host.takes_module(archive::is_source(&path)) {
        let what = match packaged::load(Class::Small) {
            Err(error) if archive::is_source(&path) => error.to_string(),
            _ => no_compiler(dir, &function, host, takes_code),
        };
        return Err(InstallError::NoCompiler { function, what });
    }
    let wasm = match read(&path) {
        Ok(wasm) => wasm,
        Err(source) => return Err(InstallError::Read { function, path, dir: dir.to_owned(), source }),
    };
    if archive::is_script(&wasm) {
        return Ok(Version::new(manifest, sedge_core::deploy::digest(&wasm), wasm, Node::BASE_TOPIC));
    }
    let class = Class::for_memory(manifest.limits.memory_bytes.get());
    let code = match compiler.compile(&wasm, class, None) {
        Ok(code) => code,
        Err(source) => return Err(InstallError::Compile { function, path, source }),
    };
    // After the compiler's checks, which run in its process: the component is well-formed.
    if let Err(source) = crate::check_imports(Grants::from(&manifest.allow), &wasm) {
        return Err(InstallError::NotGranted { function, path, source });
    }
    let digest = sedge_core::deploy::digest(&wasm);
    Ok(Version::new(manifest, digest, code, Node::BASE_TOPIC))
}

/// Makes the native code of a folder ready to run. The caller trusts it.
pub fn install_code(dir: &Path, manifest: Manifest) -> Result<Version, InstallError> {
    let host = Compiler::capabilities();
    let failed = |source| InstallError::Folder { function: Arc::clone(&manifest.name), source };
    let target = host.target.ok_or(CodeError::NoTarget);
    let path = target.map(|target| code_path(dir, &manifest.name, target));
    let path = path.map_err(|error| failed(FolderError::Code { path: dir.to_owned(), error }))?;
    let (digest, code) = read_code(&path, &manifest, host).map_err(failed)?;
    Ok(Version::new(manifest, digest, code, Node::BASE_TOPIC))
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("the engine for scripts cannot be compiled")]
    ScriptEngine(#[source] CompilerError),
    #[error(transparent)]
    Load(#[from] SandboxError),
}

/// Loads a version for the user who runs this program. A script's top level runs now. `compiling` is called before the engine for
/// scripts is compiled, which takes seconds.
pub fn load(
    version: &Version,
    settings: Arc<[(String, String)]>,
    compiler: &Compiler,
    compiling: impl FnOnce(),
) -> Result<(Sandbox, Function), LoadError> {
    let mut sandbox = Sandbox::new();
    let Version { manifest, limits, permits, code, .. } = version;
    if archive::is_script(code.bytes()) {
        let engine = compiler.cached_script_engine(version.class(), compiling).map_err(LoadError::ScriptEngine)?;
        sandbox.add_script_engine(version.class(), &engine)?;
    }
    let ticker = sandbox.ticker();
    let function = ticker.during(|| sandbox.load(code.bytes(), *limits, permits.grants, settings))?;
    Ok((sandbox, function.named(Arc::clone(&manifest.name))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sedge_core::deploy::code::Code;
    use sedge_core::isa::Isa;

    const TARGET: Isa = Isa::Aarch64;

    fn manifest() -> Manifest {
        let text = "name = \"warm\"\nversion = \"1\"\nserial = 7\nsubscribe = [\"s/#\"]";
        Manifest::from_toml(text, Path::new("function.toml"), None).unwrap()
    }

    #[test]
    fn code_is_taken_only_where_it_is_allowed_and_needed() {
        let dir = tempfile::tempdir().unwrap();
        let full = Capabilities { has_compiler: true, runs_scripts: true, target: Some(TARGET) };
        let small = Capabilities { has_compiler: false, ..full };
        let check = |host, takes_code, expected: &str| {
            let source = find(dir.path(), &manifest(), host, takes_code);
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
    fn code_of_another_component_or_for_another_engine_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = code_path(dir.path(), "warm", TARGET);
        let host = Capabilities { has_compiler: false, runs_scripts: false, target: Some(TARGET) };
        let read = |host| read_code(&path, &manifest(), host).map(|(_, code)| code).map_err(|error| error.to_string());
        assert!(read(host).unwrap_err().contains("failed to read"));
        let wasm = sedge_core::deploy::digest(b"wasm");
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
