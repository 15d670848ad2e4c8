//! Programs for WASI preview 1: a core module with `_start` that reads the message and writes outputs.
//!
//! ```text
//! standard input   the payload                      arguments     name of the function, topic
//! standard output  one output per line, as JSON     environment   the rest of the message, settings, state
//! standard error   the log                          exit code     0, or the message is rejected
//! ```
//!
//! There are no files, no folders and no network. `docs/decisions/0011-wasi-preview-1.md` has the reasons, `docs/wasi.md` the
//! contract with authors.

mod calls;
#[cfg(feature = "compiler")]
mod check;
mod environment;
mod lines;
mod preview_2;
mod streams;
#[cfg(all(test, feature = "compiler"))]
mod tests;

use wasmtime::{InstancePre, Memory, Module, ModuleExport, Result, Store, format_err};

use super::SandboxError;
use super::contract::{Contract, is_run};
use super::host::HostState;
use super::imports::Imports;
use super::module::MEMORY;
use super::run::shorten;
pub(crate) use calls::define;
#[cfg(feature = "compiler")]
pub(crate) use check::check;
#[cfg(feature = "compiler")]
pub use check::{ProgramError, imports, is_program};
use environment::Texts;
pub(crate) use preview_2::{Library, WAITS, define as define_preview_2};
use sedge_core::grants::Grants;
use sedge_core::message::{Failure, FailureCode, Message, Verdict};
use streams::{LogLines, Stdin, Stdout};

/// The module name of all imports.
pub(crate) const PREVIEW_1: &str = "wasi_snapshot_preview1";
const START: &str = "_start";

/// A program ready to be instantiated.
pub struct ProgramFunction {
    pre: InstancePre<HostState>,
    memory: ModuleExport,
    start: ModuleExport,
    grants: Grants,
    has_environment: bool,
}

/// The host's side of a program that runs.
pub(crate) struct Program {
    memory: Memory,
    arguments: Texts,
    environment: Texts,
    stdin: Stdin,
    stdout: Stdout,
    stderr: LogLines,
    /// Which of the three streams the program closed.
    is_closed: [bool; 3],
    received_at_ms: u64,
    grants: Grants,
}

/// The end of a program by `proc_exit`.
#[derive(Debug, thiserror::Error)]
#[error("the program ended with exit code {0}")]
struct Exit(u32);

/// Whether compiled code is a program, and not a function of the contract.
pub(crate) fn is_command(module: &Module) -> bool {
    let names = || module.exports().map(|export| export.name());
    let is_other = || !matches!(Contract::of_exports(names()), Ok(None)) || names().any(is_run);
    module.get_export_index(START).is_some() && !is_other()
}

impl ProgramFunction {
    pub(crate) fn new(imports: &mut Imports, module: &Module, grants: Grants) -> Result<Self, SandboxError> {
        let export = |name: &str| {
            let export = module.get_export_index(name);
            export.ok_or_else(|| SandboxError::World(format_err!("the program does not export `{name}`")))
        };
        let start = module.get_export(START).and_then(|start| start.func().cloned());
        if !start.is_some_and(|start| start.params().len() == 0 && start.results().len() == 0) {
            let what = format_err!("`{START}` of the program is not a function without parameters and results");
            return Err(SandboxError::World(what));
        }
        Ok(Self {
            memory: export(MEMORY)?,
            start: export(START)?,
            grants,
            has_environment: module.imports().any(|import| import.name() == "environ_get"),
            pre: imports.connect(module).map_err(SandboxError::World)?,
        })
    }

    /// Sets up an instance and runs it to its end.
    pub(crate) fn call(&self, store: &mut Store<HostState>, message: &Message, name: &str) -> Result<Verdict> {
        let instance = self.pre.instantiate(&mut *store)?;
        let memory = instance.get_module_export(&mut *store, &self.memory).and_then(|export| export.into_memory());
        let start = instance.get_module_export(&mut *store, &self.start).and_then(|export| export.into_func());
        let start = start.ok_or_else(|| format_err!("`{START}` is not a function"))?.typed::<(), ()>(&*store)?;
        let host = store.data_mut();
        host.program = Some(Box::new(Program {
            memory: memory.ok_or_else(|| format_err!("`{MEMORY}` is not a memory"))?,
            arguments: environment::arguments(name, message),
            environment: if self.has_environment { environment::of(message, host) } else { Texts::default() },
            stdin: Stdin::new(message.payload.clone()),
            stdout: Stdout::new(host.limits.transfer_bytes()),
            stderr: LogLines::default(),
            is_closed: [false; 3],
            received_at_ms: message.received_at_ms,
            grants: self.grants,
        }));
        let ended = start.call(&mut *store, ());
        let host = store.data_mut();
        let mut program = host.program.take().ok_or_else(|| format_err!("the program is gone"))?;
        let last_line = program.stderr.finish(host);
        verdict(host, ended.map(|()| 0), last_line, &program.stdout)
    }
}

/// What a program that ended with this exit code has said. `last_line`: of standard error.
fn verdict(host: &mut HostState, code: Result<u32>, last_line: Option<String>, stdout: &Stdout) -> Result<Verdict> {
    let code = match code {
        Ok(code) => code,
        Err(error) => match error.downcast_ref() {
            Some(Exit(code)) => *code,
            None => {
                host.last_words = last_line;
                return Err(error);
            }
        },
    };
    if code != 0 {
        let detail = last_line
            .unwrap_or_else(|| format!("the program ended with exit code {code} and wrote nothing to standard error"));
        return Ok(Verdict::Failed(Failure { code: FailureCode::Rejected, detail: shorten(detail) }));
    }
    lines::read(stdout.written(), host)
}
