//! Compiles in a child process: what a compiler does with a stranger's input, however much of it and for how long, stays
//! there.

use std::io::{self, Read as _, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use bytes::Bytes;
use rustix::process::Signal;

use super::code::Code;
use crate::program;
use crate::sandbox::{Class, Isa};

/// What one compilation may use. A small function takes 50 ms and 7 MB, and the program itself 50 MB of addresses.
pub const MEMORY_BYTES: u64 = 512 << 20;
pub const CPU_SECS: u64 = 30;

/// Compiled code is some ten times the wasm; more than this is an attack on the daemon's memory.
const MAX_CODE_BYTES: u64 = 128 << 20;
const MAX_REASON_BYTES: u64 = 4096;

#[derive(Clone, Debug, Default)]
pub struct Compiler;

#[derive(Debug, thiserror::Error)]
pub enum CompilerError {
    /// The child's own words: what is wrong with the module.
    #[error("{0}")]
    Refused(String),
    #[error("compiling took more than {CPU_SECS} s: the module is too complex for this host")]
    Time,
    #[error("compiling took more than {} MiB of memory: the module is too complex for this host", MEMORY_BYTES >> 20)]
    Memory,
    /// Nobody else sends it that signal on a board, a person aside.
    #[error(
        "the kernel killed the compiler, as it does when memory runs out: give the board or the service more of it, or push \
         the function with code that was compiled elsewhere"
    )]
    Killed,
    #[error("the compiler ended with {0}")]
    Ended(String),
    #[error("failed to run the compiler")]
    Run(#[from] io::Error),
    #[error(
        "this build of sedge has no compiler and has not run this module before: push code that was compiled for this \
         board (`sedge push --code`), or install a full build of sedge {}",
        env!("CARGO_PKG_VERSION")
    )]
    NoCompiler,
}

/// This program, or the one that a build without a compiler is told of. What it makes is kept like our own: it is the
/// board's administrator who names it.
fn compiler() -> Option<PathBuf> {
    if cfg!(feature = "compiler") {
        return Some(program::own());
    }
    std::env::var_os("SEDGE_COMPILER").filter(|path| !path.is_empty()).map(PathBuf::from)
}

impl Compiler {
    pub fn is_there() -> bool {
        compiler().is_some()
    }

    /// To be carried to a host without a compiler.
    pub fn code_for(&self, wasm: &[u8], class: Class, target: Isa) -> Result<Code, CompilerError> {
        let bytes = self.compile(wasm, class, Some(target))?;
        Ok(Code::new(target, class, super::digest(wasm), bytes))
    }

    /// For this host, or for another target.
    pub fn compile(&self, wasm: &[u8], class: Class, target: Option<Isa>) -> Result<Bytes, CompilerError> {
        let mut child = Command::new(compiler().ok_or(CompilerError::NoCompiler)?)
            .arg0("sedge")
            .args(["compile", "--class", class.as_str()])
            .args(target.iter().flat_map(|target| ["--target", target.as_str()]))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (Some(mut stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(io::Error::other("the child has no pipes").into());
        };
        let mut code = Vec::new();
        let mut reason = String::new();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // A child that refuses early closes the pipe; its exit says why.
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
