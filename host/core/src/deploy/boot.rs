//! Start of the deployer: records and folders become functions, and the active versions serve.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::deployer::{Deployer, KNOWN, compile_refusal};
use super::function::{FolderFile, TrackedFunction, TrialProgress};
use super::interface::{Action, Compilation, CompilerError, DiskAnswer, DiskRequest, FolderFunction, StoredFile};
use super::payload::Document;
use super::reason::{Reason, Refusal};
use super::record::{self, OrderOutcome, Record, StoredVersion};
use super::report::DeployState;
use super::source::{self, FolderError, no_compiler};
use super::steps::{Step, Wait};
use crate::code::Code;
use crate::manifest::{Trial, TrialMode, is_script_file};
use crate::message::Digest;
use crate::version::Version;

/// Place of an installed version in the record of its function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Active,
    /// Stands behind an active version that has not proven itself.
    Fallback,
}

/// Content of the file that an active version is installed from.
enum Content {
    Wasm(Bytes),
    Code(Bytes),
}

impl Deployer {
    /// Adds the steps that make the active versions serve. Orders in progress continue with the first request.
    pub fn boot(&mut self) {
        let names: Vec<Arc<str>> = self.functions.keys().cloned().collect();
        for name in &names {
            self.then(Step::Install(Arc::clone(name), Place::Fallback));
            self.then(Step::Install(Arc::clone(name), Place::Active));
        }
        names.into_iter().for_each(|name| self.then(Step::StartCandidate(name)));
        self.then(Step::EndOrphans);
    }

    /// Makes the version in a folder the active one, unless an order of the same or a higher serial was accepted.
    pub(super) fn place_folder(&mut self, folder: FolderFunction) {
        let FolderFunction { manifest, source, digest, component } = folder;
        let name = Arc::clone(&manifest.name);
        let function = self.functions.entry(Arc::clone(&name)).or_insert_with(|| TrackedFunction::new(name));
        if function.record.history.serial.is_some_and(|serial| serial >= manifest.serial) {
            tracing::info!(
                function = &*manifest.name,
                source = %source.path.display(),
                serial = manifest.serial,
                "ignoring the folder: a newer version was pushed"
            );
            return;
        }
        // Without a component there is no digest, and the function does not run.
        let digest = digest.unwrap_or(Digest([0; 32]));
        let (serial, is_code) = (manifest.serial, source.is_code);
        let manifest = Document::of(&manifest);
        let active = StoredVersion { manifest, digest, is_code, confined_to: Vec::new() };
        let record = &mut function.record;
        if let Some(pushed) = record.active.take() {
            record.previous = record.unproven.take().and_then(|unproven| unproven.fallback).or(Some(pushed));
        }
        record.active = Some(active);
        record.candidate = None;
        record.outcome = None;
        record.history.serial = Some(serial);
        function.folder = Some(FolderFile { path: source.path, component });
    }

    pub fn install(&mut self, name: &Arc<str>, place: Place) {
        let Some(stored) = self.functions[name].record.at(place).cloned() else { return };
        let edition = self.next_edition();
        let version = match self.version(&stored, Bytes::new()) {
            Ok(version) => Box::new(Version { edition, ..version }),
            Err(refusal) => return self.not_installed(name, place, refusal),
        };
        if let Some(warning) = self.config.functions.ceilings.warning(&version.manifest) {
            tracing::warn!(function = &**name, %warning, "the function may run for longer than a new one");
        }
        if place == Place::Active {
            self.log_settings(&version.manifest);
        }
        if stored.is_code {
            self.read_active(place, version);
        } else {
            let request = DiskRequest::ReadCache { digest: version.digest, class: version.class() };
            self.ask(request, Wait::ReadCache(place, version));
        }
    }

    /// Whether the version that is installed is native code that was compiled elsewhere.
    fn is_code(&self, place: Place, version: &Version) -> bool {
        let record = &self.functions[&version.manifest.name].record;
        record.at(place).is_some_and(|stored| stored.is_code)
    }

    pub(super) fn cache_read(&mut self, place: Place, version: Box<Version>, answer: DiskAnswer) {
        match answer {
            Ok(code) => self.installed(place, *version, code, true),
            Err(_) => self.read_active(place, version),
        }
    }

    fn read_active(&mut self, place: Place, version: Box<Version>) {
        let name = &version.manifest.name;
        let request = match &self.functions[name].folder {
            Some(FolderFile { path, .. })
                if !self.is_code(place, &version) && !self.config.host.takes_module(is_script_file(path)) =>
            {
                let dir = path.parent().unwrap_or(Path::new(""));
                let why = no_compiler(dir, name, self.config.host, self.config.functions.native_code);
                return self.active_failed(place, *version, Refusal::new(Reason::NoCode, why));
            }
            Some(FolderFile { path, .. }) => DiskRequest::ReadSource(path.clone()),
            None => DiskRequest::Read(StoredFile::Module(version.digest)),
        };
        self.ask(request, Wait::ReadActive(place, version));
    }

    pub(super) fn active_read(&mut self, place: Place, version: Box<Version>, answer: DiskAnswer) {
        let digest = version.digest;
        let is_damaged = answer.as_ref().is_ok_and(|file| super::digest(file) != digest);
        match self.content(place, &version, answer) {
            Ok(Content::Code(code)) => self.installed(place, *version, code, false),
            Ok(Content::Wasm(wasm)) => {
                let (function, edition, class) = (Arc::clone(&version.manifest.name), version.edition, version.class());
                self.actions.push_back(Action::Compile(Compilation { function, edition, digest, wasm, class }));
                self.wait_for(Wait::Compile(place, version));
            }
            Err(refusal) => {
                let is_stored = self.functions[&version.manifest.name].folder.is_none();
                self.active_failed(place, *version, refusal);
                if is_damaged && is_stored {
                    self.ask(DiskRequest::Remove(StoredFile::Module(digest)), Wait::Anything);
                }
            }
        }
    }

    fn content(&self, place: Place, version: &Version, answer: DiskAnswer) -> Result<Content, Refusal> {
        let Version { manifest, digest, .. } = version;
        let is_code = self.is_code(place, version);
        let missing = |why: String| Refusal::new(Reason::ModuleMissing, why);
        let Some(FolderFile { path, component }) = &self.functions[&manifest.name].folder else {
            let module = answer.and_then(|module| verify(module, digest));
            let module =
                module.map_err(|error| missing(format!("failed to read module {digest} ({error}); push it again")))?;
            return if is_code {
                self.unpack(&module, version.class()).map(Content::Code)
            } else {
                Ok(Content::Wasm(module))
            };
        };
        if is_code {
            let file = answer.map_err(|error| FolderError::Read { path: path.clone(), error });
            let code = file.and_then(|file| source::unpack(&file, path, *component, manifest, self.config.host));
            return code.map(Content::Code).map_err(|error| Refusal::new(Reason::NoCode, error.to_string()));
        }
        answer.map(Content::Wasm).map_err(|error| {
            missing(format!("failed to read {} ({error}); build it with `sedge build`", path.display()))
        })
    }

    /// Compiling takes long: the version has its place, where messages wait, and the others start meanwhile.
    pub(super) fn postpone(&mut self, place: Place, version: Box<Version>) {
        let function = &version.manifest.name;
        tracing::warn!(
            function = &**function,
            "compiling takes long: the function starts later, and its messages wait"
        );
        self.functions.get_mut(function).expect(KNOWN).serving = Some(version.edition);
        self.actions.push_back(Action::Start(Box::new(Version { is_awaited: true, ..Version::clone(&version) })));
        self.postponed.insert(version.edition, (place, version));
    }

    /// Takes the result of compiling a version that was postponed. Returns any other.
    pub(super) fn postponed_compiled(
        &mut self,
        edition: u32,
        result: Result<Bytes, CompilerError>,
    ) -> Option<Result<Bytes, CompilerError>> {
        let Some((place, mut version)) = self.postponed.remove(&edition) else { return Some(result) };
        let serving = self.functions.get(&version.manifest.name).and_then(|it| it.serving);
        // Otherwise a newer version took its place.
        if serving == Some(edition) {
            version.edition = self.next_edition();
            self.active_compiled(place, *version, result);
        }
        None
    }

    pub(super) fn active_compiled(&mut self, place: Place, version: Version, result: Result<Bytes, CompilerError>) {
        match result {
            Ok(code) => self.installed(place, version, code, false),
            Err(error) => self.active_failed(place, version, compile_refusal(error)),
        }
    }

    fn installed(&mut self, place: Place, version: Version, code: Bytes, from_cache: bool) {
        let Version { edition, manifest, digest, .. } = &version;
        let (name, number) = (&*manifest.name, &*manifest.version);
        tracing::info!(function = name, version = number, %digest, from_cache, "function installed");
        let function = self.functions.get_mut(name).expect(KNOWN);
        let trial = Trial { mode: TrialMode::Live, ..manifest.trial.clone() };
        let mut trial = Some(trial).filter(|_| function.record.unproven.is_some());
        match place {
            Place::Fallback => (function.fallback, trial) = (Some(*edition), None),
            Place::Active => {
                function.serving = Some(*edition);
                if let Some(trial) = &trial {
                    function.guarded = TrialProgress::of(trial);
                }
            }
        }
        let (code, is_resumed) = (Code::Plain(code), trial.is_some());
        self.actions.push_back(Action::Start(Box::new(Version { code, trial, is_resumed, ..version })));
    }

    fn active_failed(&mut self, place: Place, version: Version, why: Refusal) {
        let name = &version.manifest.name;
        let has_fallback = self.functions[name].fallback.is_some();
        self.not_installed(name, place, why);
        if place == Place::Active && !has_fallback {
            // Without code no worker can load it. Its messages become dead letters instead of being lost.
            self.actions.push_back(Action::Start(Box::new(version)));
        }
    }

    fn not_installed(&mut self, name: &Arc<str>, place: Place, refusal: Refusal) {
        let function = self.functions.get_mut(name).expect(KNOWN);
        if place == Place::Fallback {
            tracing::warn!(function = &**name, %refusal, "the previous version cannot run: it guards the active one no more");
            if let Some(unproven) = &mut function.record.unproven {
                unproven.fallback = None;
            }
            return;
        }
        if function.fallback.is_some() {
            return self.fall_back(name, &refusal);
        }
        tracing::error!(
            function = &**name,
            %refusal,
            "the function cannot run: its messages become dead letters, which can be replayed later"
        );
        self.functions.get_mut(name).expect(KNOWN).load_error = Some(refusal);
    }
}

/// Returns the content of a module if it has its digest.
pub(super) fn verify(module: Bytes, digest: &Digest) -> DiskAnswer {
    if super::digest(&module) == *digest {
        Ok(module)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "it was damaged on the disk"))
    }
}

/// Returns the functions that have a record, and those whose record is damaged.
pub(super) fn load(records: Vec<(Arc<str>, Option<Bytes>)>) -> (BTreeMap<Arc<str>, TrackedFunction>, Vec<Arc<str>>) {
    let (mut functions, mut damaged) = (BTreeMap::new(), Vec::new());
    for (name, bytes) in records {
        let record = bytes.and_then(|bytes| record::decode::<Record>(&bytes));
        let function = match record.filter(|record| *record.function == *name) {
            Some(record) => {
                let stored = Some(record.clone());
                let mut function = TrackedFunction::with_record(record, Arc::clone(&name));
                function.stored = stored;
                function
            }
            None => {
                tracing::error!(
                    function = &*name,
                    "the record of a function is damaged, and the function is not installed any more; push it again"
                );
                damaged.push(Arc::clone(&name));
                let mut function = TrackedFunction::new(Arc::clone(&name));
                let detail = "its record on the disk was damaged and set aside; push it again";
                let why = Refusal::new(Reason::DamagedRecord, detail);
                function.record.outcome = Some(OrderOutcome::new(DeployState::Rejected, Some(&why)));
                function
            }
        };
        functions.insert(name, function);
    }
    (functions, damaged)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may read clocks and files")]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::config;
    use crate::deploy::code::Capabilities;
    use crate::deploy::deployer::DeployerConfig;
    use crate::deploy::interface::{Boot, Request};
    use crate::deploy::source::Source;
    use crate::manifest::Manifest;
    use crate::time::Now;

    #[test]
    fn a_folder_is_compiled_before_the_first_request_is_handled() {
        let text = "name = \"warm\"\nversion = \"1\"\nserial = 7\nsubscribe = [\"s/#\"]";
        let manifest = Manifest::from_toml(text, Path::new("function.toml"), None).unwrap();
        let source = Source { path: "functions/warm/warm.wasm".into(), is_code: false };
        let digest = Some(crate::deploy::digest(b"wasm"));
        let folder = FolderFunction { manifest, source, digest, component: None };
        let config = DeployerConfig {
            node: "pump-3".into(),
            groups: Vec::new(),
            base_topic: "sedge".into(),
            host: Capabilities { has_compiler: true, runs_scripts: true, target: None },
            deploy: config::Deploy::default(),
            functions: config::Functions::default(),
            sinks: config::Sinks::default(),
            machine: config::machine::testing::MACHINE,
        };
        let now = Now { monotonic: Instant::now(), unix_ms: 0, synced: false };
        let boot = Boot { keys: None, records: Vec::new(), settings: Vec::new(), folders: vec![folder] };
        let mut deployer = Deployer::new(config, boot, now);
        deployer.handle(Request::Connected, now);

        assert!(matches!(deployer.poll(), Some(Action::Disk(DiskRequest::ReadCache { .. }))));
        assert!(deployer.poll().is_none(), "nothing else before the answer");
        deployer.handle(Request::Disk(Err(io::ErrorKind::NotFound.into())), now);
        assert!(matches!(deployer.poll(), Some(Action::Disk(DiskRequest::ReadSource(_)))));
        deployer.handle(Request::Disk(Ok(Bytes::from_static(b"wasm"))), now);
        let Some(Action::Compile(compilation)) = deployer.poll() else { panic!("it is compiled") };
        let Compilation { function, edition, .. } = compilation;
        assert!(deployer.poll().is_none() && !deployer.is_idle());
        deployer.handle(Request::Compiled { function, edition, result: Ok(Bytes::from_static(b"code")) }, now);
        let Some(Action::Start(version)) = deployer.poll() else { panic!("it serves") };
        assert_eq!((version.edition, version.code.bytes()), (edition, &b"code"[..]));
        assert!(matches!(deployer.poll(), Some(Action::Report { .. })), "the connection counts now");
        assert!(deployer.poll().is_none() && deployer.is_idle());
    }
}
