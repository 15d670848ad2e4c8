//! The compiler in a child process with limits, and the cache in front of it. A hostile module can harm the child only.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use rustix::process::Signal;

use super::cache::Cache;
use super::codes::ScriptEngines;
use super::script::{self, archive, packaged};
use crate::program;
use sedge_core::deploy::code::Capabilities;
#[cfg(feature = "compiler")]
use sedge_core::deploy::code::Code;
use sedge_core::deploy::interface::CompilerError;
use sedge_core::isa::{Class, Isa};
use sedge_core::message::Digest;

/// Native code has about ten times the size of the wasm. More than this is an attack on the daemon's memory.
const MAX_CODE_BYTES: u64 = 128 << 20;
const MAX_REASON_BYTES: u64 = 4096;
/// A module that takes longer is heavy. Another program that compiles may be too old to be told.
const QUICK_CPU_SECS: Option<u64> = if cfg!(feature = "compiler") { Some(2) } else { None };

#[derive(Clone, Debug)]
pub struct Compiler;

/// This program, or for a build without a compiler the one that the board's administrator names.
fn compiler() -> Option<PathBuf> {
    if cfg!(feature = "compiler") {
        return Some(program::own());
    }
    std::env::var_os("SEDGE_COMPILER").filter(|path| !path.is_empty()).map(PathBuf::from)
}

impl Compiler {
    /// What this host can run.
    pub fn capabilities() -> Capabilities {
        let runs_scripts = cfg!(feature = "compiler") || packaged::is_there();
        Capabilities { has_compiler: compiler().is_some(), runs_scripts, target: Isa::HOST }
    }

    /// Compiles for a board without a compiler.
    #[cfg(feature = "compiler")]
    pub fn code_for(&self, wasm: &[u8], class: Class, target: Isa) -> Result<Code, CompilerError> {
        let bytes = self.compile(wasm, class, Some(target))?;
        Ok(Code::new(target, class, sedge_core::deploy::digest(wasm), bytes))
    }

    /// Compiles for this host, or for another target.
    pub fn compile(&self, wasm: &[u8], class: Class, target: Option<Isa>) -> Result<Bytes, CompilerError> {
        self.compile_within(wasm, class, target, None)
    }

    /// `cpu_secs`: gives up after this time already.
    fn compile_within(
        &self,
        wasm: &[u8],
        class: Class,
        target: Option<Isa>,
        cpu_secs: Option<u64>,
    ) -> Result<Bytes, CompilerError> {
        let secs = cpu_secs.map(|secs| secs.to_string());
        let secs = secs.iter().flat_map(|secs| ["--cpu-secs", secs.as_str()]);
        let target = target.iter().flat_map(|target| ["--target", target.as_str()]);
        self.run(wasm, ["--class", class.as_str()].into_iter().chain(secs).chain(target))
    }

    /// Compiles the engine for scripts of this class, or reads what the package brought.
    pub fn script_engine(&self, class: Class) -> Result<Bytes, CompilerError> {
        if !cfg!(feature = "compiler") {
            return packaged::load(class).map_err(|error| CompilerError::Refused(error.to_string()));
        }
        self.run(&[], ["--class", class.as_str(), "--script-engine"])
    }

    /// Compiles the engine for the packages of boards without a compiler.
    #[cfg(feature = "compiler")]
    pub fn script_engine_for(&self, target: Isa) -> Result<Code, CompilerError> {
        let class = Class::Small;
        let bytes = self.run(&[], ["--class", class.as_str(), "--script-engine", "--target", target.as_str()])?;
        Ok(Code::new(target, class, *script::DIGEST, bytes))
    }

    /// The engine for scripts of this class, from the cache of the user who runs this program, or compiled now. That takes seconds, so
    /// `compiling` is called before.
    pub fn cached_script_engine(&self, class: Class, compiling: impl FnOnce()) -> Result<Bytes, CompilerError> {
        if !cfg!(feature = "compiler") {
            return self.script_engine(class);
        }
        let folder = |name, below: &str| std::env::var_os(name).map(|folder| PathBuf::from(folder).join(below));
        let folder = folder("XDG_CACHE_HOME", "sedge").or_else(|| folder("HOME", ".cache/sedge"));
        // Without a folder of its own a user waits some seconds each time.
        let cache = folder.and_then(|folder| Cache::open(&folder.join("script-engine")).ok());
        if let Some(code) = cache.as_ref().and_then(|cache| cache.load(&script::DIGEST, class)) {
            return Ok(code);
        }
        compiling();
        let code = self.script_engine(class)?;
        if let Some(Err(error)) = cache.map(|cache| cache.store(&script::DIGEST, class, &code)) {
            tracing::debug!(%error, "failed to cache the engine for scripts");
        }
        Ok(code)
    }

    fn run<'a>(&self, wasm: &[u8], args: impl IntoIterator<Item = &'a str>) -> Result<Bytes, CompilerError> {
        let mut child = Command::new(compiler().ok_or(CompilerError::NoCompiler)?)
            .arg0("sedge")
            .arg("compile")
            .args(args)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().expect("standard input is a pipe");
        let stdout = child.stdout.take().expect("standard output is a pipe");
        let stderr = child.stderr.take().expect("standard error is a pipe");
        let mut code = Vec::new();
        let mut reason = String::new();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // A child that refuses early closes the pipe; its exit code says why.
                let _ = stdin.write_all(wasm);
            });
            scope.spawn(|| {
                let mut bytes = Vec::new();
                let _ = stderr.take(MAX_REASON_BYTES).read_to_end(&mut bytes);
                reason = String::from_utf8_lossy(&bytes).trim().trim_start_matches("error: ").to_owned();
            });
            stdout.take(MAX_CODE_BYTES).read_to_end(&mut code)
        })?;
        let status = child.wait()?;
        match (status.code(), status.signal()) {
            (Some(0), _) => Ok(code.into()),
            (Some(1), _) => Err(CompilerError::Refused(reason)),
            (_, Some(signal)) if signal == Signal::XCPU.as_raw() => Err(CompilerError::Time),
            (_, Some(signal)) if signal == Signal::KILL.as_raw() => Err(CompilerError::Killed),
            (_, Some(signal)) if signal == Signal::ABORT.as_raw() => Err(CompilerError::Memory),
            _ => Err(CompilerError::Ended(format!("{status}: {reason}"))),
        }
    }
}

/// A source of native code for modules.
pub trait CompileBackend: Send + Sync {
    fn cached(&self, digest: &Digest, class: Class) -> Option<Bytes>;

    /// Blocks for as long as the compiler runs.
    fn compile(&self, digest: &Digest, wasm: &[u8], class: Class) -> Result<Bytes, CompilerError>;

    /// Deletes cached code of all other modules.
    fn retain(&self, digests: &BTreeSet<Digest>);
}

/// The compiler behind this host's cache.
pub struct CachingCompiler {
    cache: Cache,
    compiler: Compiler,
    engines: ScriptEngines,
    heavy: Mutex<()>,
}

impl CachingCompiler {
    pub fn new(cache: Cache, compiler: Compiler, engines: ScriptEngines) -> Self {
        Self { cache, compiler, engines, heavy: Mutex::new(()) }
    }

    /// Checks a script as far as that is possible without running it, and has the engine for it ready.
    fn script(&self, archive: &[u8], class: Class) -> Result<Bytes, CompilerError> {
        archive::files(archive).map_err(|error| CompilerError::Refused(error.to_string()))?;
        if !self.engines.has(class) {
            let code = match self.cache.load(&script::DIGEST, class) {
                Some(code) => code,
                None if !cfg!(feature = "compiler") => self.compiler.script_engine(class)?,
                None => self.store(&script::DIGEST, class, self.compiler.script_engine(class)?),
            };
            self.engines.add(class, code);
        }
        Ok(Bytes::copy_from_slice(archive))
    }

    fn store(&self, digest: &Digest, class: Class, code: Bytes) -> Bytes {
        if let Err(error) = self.cache.store(digest, class, &code) {
            let error = anyhow::Error::from(error);
            tracing::warn!(%error, "failed to cache compiled code; the next start compiles it again");
        }
        code
    }
}

/// Text of a refusal that the same module gets again from this program on this processor: the limits of the compiler do not
/// depend on what else the board does.
fn format_refusal(error: &CompilerError) -> Option<String> {
    match error {
        CompilerError::Refused(reason) => Some(format!("refused {reason}")),
        CompilerError::Time => Some("time".to_owned()),
        CompilerError::Memory => Some("memory".to_owned()),
        CompilerError::Killed | CompilerError::Ended(_) | CompilerError::Run(_) | CompilerError::NoCompiler => None,
    }
}

fn parse_refusal(text: &str) -> Option<CompilerError> {
    match text {
        "time" => Some(CompilerError::Time),
        "memory" => Some(CompilerError::Memory),
        _ => text.strip_prefix("refused ").map(|reason| CompilerError::Refused(reason.to_owned())),
    }
}

impl CompileBackend for CachingCompiler {
    fn cached(&self, digest: &Digest, class: Class) -> Option<Bytes> {
        self.cache.load(digest, class)
    }

    fn compile(&self, digest: &Digest, wasm: &[u8], class: Class) -> Result<Bytes, CompilerError> {
        if archive::is_script(wasm) {
            return self.script(wasm, class);
        }
        if let Some(refusal) = self.cache.refusal(digest, class).and_then(|text| parse_refusal(&text)) {
            return Err(refusal);
        }
        let compiled = match self.compiler.compile_within(wasm, class, None, QUICK_CPU_SECS) {
            // It takes up to half a minute of a processor and much of a small board's memory: one at a time, so that light
            // modules do not wait for it.
            Err(CompilerError::Time) if QUICK_CPU_SECS.is_some() => {
                let _turn = self.heavy.lock().unwrap_or_else(PoisonError::into_inner);
                self.compiler.compile(wasm, class, None)
            }
            compiled => compiled,
        };
        let stored = match &compiled {
            Ok(code) => self.cache.store(digest, class, code),
            Err(error) => match format_refusal(error) {
                Some(text) => self.cache.store_refusal(digest, class, &text),
                None => Ok(()),
            },
        };
        if let Err(error) = stored {
            let error = anyhow::Error::from(error);
            tracing::warn!(%error, "failed to cache what the compiler made; the next start compiles again");
        }
        compiled
    }

    fn retain(&self, digests: &BTreeSet<Digest>) {
        let mut digests = digests.clone();
        digests.insert(*script::DIGEST);
        self.cache.retain(&digests);
    }
}
