//! The deployer with what it asks for: the deploy folder, the functions' folders, the cache and the compiler.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flume::{Receiver, Sender};

use super::disk::{Disk, FUNCTIONS, SETTINGS};
use sedge_core::deploy::deployer::{Deployer, DeployerConfig};
use sedge_core::deploy::interface::{
    Action, Boot, Compilation, CompilerError, DiskAnswer, DiskRequest, Request, StoredFile,
};
use sedge_core::deploy::stats::DeployStats;
use sedge_core::deploy::steps::{MAX_EVENTS, MAX_MESSAGES};
use sedge_core::manifest::Manifest;
use sedge_core::settings::Overlay;
use sedge_core::time::Now;
use sedge_core::version::Version;
use sedge_sandbox::compiler::CompileBackend;
use sedge_sandbox::folder;

pub(crate) struct Shell {
    pub(super) deployer: Deployer,
    pub(super) disk: Disk,
    pub(super) compiler: Arc<dyn CompileBackend>,
    /// Actions from the start, which are returned first.
    pub(super) decided: VecDeque<Action>,
    /// Requests for the thread, among them the results of compilations that were postponed.
    pub(super) requests: (Sender<Request>, Receiver<Request>),
}

/// How long a start waits for the compiler, all modules together. What takes longer is compiled beside the functions that
/// serve already.
const COMPILE_AT_START: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
#[error("failed to open {path}")]
pub(crate) struct OpenError {
    path: PathBuf,
    source: io::Error,
}

impl Shell {
    /// Opens the deploy folder `dir` and compiles what is not in the cache. `folders` are the functions of the
    /// configuration, each with its folder. Returns also the versions that serve from the start.
    pub(crate) fn open(
        dir: &Path,
        config: DeployerConfig,
        folders: Vec<(PathBuf, Manifest)>,
        compiler: Arc<dyn CompileBackend>,
        now: Now,
    ) -> Result<(Self, Vec<Version>), OpenError> {
        let error = |source| OpenError { path: dir.to_owned(), source };
        let disk = Disk::open(dir.to_owned()).map_err(error)?;
        let boot = read(&disk, &config, folders).map_err(error)?;
        let deployer = Deployer::new(config, boot, now);
        let requests = flume::bounded(MAX_MESSAGES + MAX_EVENTS);
        let mut shell = Self { deployer, disk, compiler, decided: VecDeque::new(), requests };
        let versions = shell.boot(now).map_err(error)?;
        Ok((shell, versions))
    }

    fn boot(&mut self, now: Now) -> io::Result<Vec<Version>> {
        let mut versions = Vec::new();
        let until = Instant::now() + COMPILE_AT_START;
        while let Some(action) = self.deployer.poll() {
            match action {
                Action::Disk(request) => {
                    let must_succeed = matches!(request, DiskRequest::SetAside(_));
                    let answer = match answer(&self.disk, &*self.compiler, request) {
                        Err(error) if must_succeed => return Err(error),
                        answer => answer,
                    };
                    self.deployer.handle(Request::Disk(answer), now);
                }
                Action::Compile(compilation) => {
                    let request = self.compile_until(until, compilation);
                    self.deployer.handle(request, now);
                }
                Action::Start(version) => versions.push(*version),
                action => self.decided.push_back(action),
            }
        }
        debug_assert!(self.deployer.is_idle(), "all that the deployer waits for was answered");
        Ok(versions)
    }

    /// Compiles. Returns the result, or [`Request::Postponed`], and the result follows to the thread.
    fn compile_until(&self, until: Instant, compilation: Compilation) -> Request {
        // Handed over, or not: what nobody takes goes to the thread.
        let (done, result) = flume::bounded(0);
        let (function, edition) = (Arc::clone(&compilation.function), compilation.edition);
        let (compiler, requests) = (Arc::clone(&self.compiler), self.requests.0.clone());
        let work = move || {
            let compiled = compile(compilation, &*compiler);
            if let Err(flume::SendError(compiled)) = done.send(compiled) {
                let _ = requests.send(compiled);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("compile".into()).spawn(work) {
            return Request::Compiled { function, edition, result: Err(CompilerError::Run(error)) };
        }
        result.recv_deadline(until).unwrap_or(Request::Postponed)
    }

    pub(crate) fn stats(&self) -> &Arc<DeployStats> {
        self.deployer.stats()
    }

    /// What is laid over the settings of functions.
    pub(crate) fn overlays(&self) -> impl Iterator<Item = (&Arc<str>, u64, &Overlay)> {
        self.deployer.overlays()
    }

    /// Returns the next action that needs more than files.
    pub(super) fn poll(&mut self, now: Now) -> Option<Action> {
        loop {
            match self.decided.pop_front().or_else(|| self.deployer.poll())? {
                Action::Disk(request) => {
                    let answer = answer(&self.disk, &*self.compiler, request);
                    self.deployer.handle(Request::Disk(answer), now);
                }
                Action::RetainCode { digests } => self.compiler.retain(&digests),
                action => return Some(action),
            }
        }
    }
}

/// Compiles a module. Blocks for as long as the compiler runs.
pub(super) fn compile(compilation: Compilation, compiler: &dyn CompileBackend) -> Request {
    let Compilation { function, edition, digest, wasm, class } = compilation;
    let result = match compiler.cached(&digest, class) {
        Some(code) => Ok(code),
        None => compiler.compile(&digest, &wasm, class),
    };
    Request::Compiled { function, edition, result }
}

/// Reads what the deployer starts from.
fn read(disk: &Disk, config: &DeployerConfig, folders: Vec<(PathBuf, Manifest)>) -> io::Result<Boot> {
    let keys = match disk.read(&StoredFile::Keys) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let record = |function: Arc<str>, file: fn(Arc<str>) -> StoredFile| {
        let bytes = disk.read(&file(Arc::clone(&function)));
        let log = |error: &io::Error| tracing::error!(function = &*function, %error, "failed to read a record");
        let bytes = bytes.inspect_err(log).ok();
        (function, bytes)
    };
    let records = |folder, file| -> io::Result<Vec<_>> {
        Ok(disk.recorded(folder)?.into_iter().map(|function| record(function, file)).collect())
    };
    let settings = records(SETTINGS, StoredFile::Settings)?;
    let records = records(FUNCTIONS, StoredFile::Record)?;
    let takes_code = config.functions.native_code;
    let inspect = |(dir, manifest): (PathBuf, _)| folder::inspect(&dir, manifest, config.host, takes_code);
    Ok(Boot { keys, records, settings, folders: folders.into_iter().map(inspect).collect() })
}

/// Carries out an operation on files.
pub(super) fn answer(disk: &Disk, compiler: &dyn CompileBackend, request: DiskRequest) -> DiskAnswer {
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    let result = match request {
        DiskRequest::Read(file) => return disk.read(&file),
        DiskRequest::ReadSource(path) => return folder::read(&path),
        DiskRequest::ReadCache { digest, class } => return compiler.cached(&digest, class).ok_or_else(missing),
        DiskRequest::Exists(file) => {
            if disk.exists(&file) {
                Ok(())
            } else {
                Err(missing())
            }
        }
        DiskRequest::Replace(file, bytes) => disk.replace(&file, &bytes),
        DiskRequest::WriteAt { file, offset, bytes } => disk.write_at(&file, &bytes, offset),
        DiskRequest::Finish { function, digest } => disk.finish(&function, digest),
        DiskRequest::Remove(file) => disk.remove(&file),
        DiskRequest::SetAside(file) => disk.set_aside(&file),
        DiskRequest::Retain { modules, staging } => disk.retain(&modules, &staging),
    };
    result.map(|()| Bytes::new())
}
