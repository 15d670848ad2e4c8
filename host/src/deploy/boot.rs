//! Start of the deployer: loads records and folders, and makes the active versions serve.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::deployer::{Deployer, KNOWN, compile_refusal};
use super::disk::{Disk, FUNCTIONS};
use super::folder::{self, Source, no_compiler, read_code};
use super::function::TrackedFunction;
use super::interface::{CompileBackend, Installed, Start};
use super::payload::{Document, digest};
use super::reason::{Reason, Refusal};
use super::record::{self, OrderOutcome, Record, SUFFIX, StoredVersion};
use super::report::DeployState;
use crate::manifest::{self, Manifest};
use crate::message::Digest;
use crate::sandbox::Class;
use crate::time::Now;

impl Deployer {
    /// Returns the versions that serve from the start. Orders in progress continue with the first request.
    pub(crate) fn boot(&mut self, compile: &dyn CompileBackend, now: Now) -> Vec<Start> {
        let mut starts = Vec::new();
        let names: Vec<Arc<str>> = self.functions.keys().cloned().collect();
        for name in &names {
            let Some(active) = self.functions[name].record.active.clone() else { continue };
            let edition = self.next_edition();
            let installed = self.install(name, &active, compile);
            let function = self.functions.get_mut(name).expect(KNOWN);
            match installed {
                Ok(installed) => {
                    function.serving = Some(edition);
                    starts.push(Start { edition, installed, trial: None });
                }
                Err(refusal) => {
                    tracing::error!(
                        function = &**name,
                        %refusal,
                        "the function cannot run: its messages become dead letters, which can be replayed later"
                    );
                    function.load_error = Some(refusal);
                    // Without code no worker can load it. Its messages become dead letters instead of being lost.
                    if let Ok(manifest) = self.manifest(&active) {
                        let installed = Installed::new(manifest, active.digest, Bytes::new());
                        starts.push(Start { edition, installed, trial: None });
                    }
                }
            }
        }
        for name in &names {
            self.start_candidate(name, now);
        }
        self.end_orphans(now);
        starts
    }

    /// Makes the version in a folder the active one, unless an order of the same or a higher serial was accepted.
    pub(super) fn place_folder(&mut self, dir: &Path, manifest: &Manifest) {
        let name = Arc::clone(&manifest.name);
        let function = self.functions.entry(Arc::clone(&name)).or_insert_with(|| TrackedFunction::new(name));
        if function.record.history.serial.is_some_and(|serial| serial >= manifest.serial) {
            tracing::info!(
                function = &*manifest.name,
                folder = %dir.display(),
                serial = manifest.serial,
                "ignoring the folder: a newer version was pushed"
            );
            return;
        }
        let takes_code = self.config.functions.native_code;
        let Source { path, is_code } = Source::find(dir, manifest, self.config.host, takes_code);
        // Without a component there is no digest, and the function does not run.
        let digest = folder::read(&path).map_or(Digest([0; 32]), |file| digest(&file));
        let active = StoredVersion { manifest: Document::of(manifest), digest, is_code };
        let record = &mut function.record;
        if let Some(pushed) = record.active.take() {
            record.previous = Some(pushed);
        }
        record.active = Some(active);
        record.candidate = None;
        record.outcome = None;
        record.history.serial = Some(manifest.serial);
        function.folder = Some(path);
    }

    fn install(&self, name: &str, stored: &StoredVersion, compile: &dyn CompileBackend) -> Result<Installed, Refusal> {
        let manifest = self.manifest(stored)?;
        let class = Class::for_memory(manifest.limits.memory_bytes.get());
        let digest = stored.digest;
        if !stored.is_code
            && let Some(code) = compile.cached(&digest, class)
        {
            return Ok(Installed { manifest: manifest.into(), digest, code, from_cache: true });
        }
        let missing = |why: String| Refusal::new(Reason::ModuleMissing, why);
        let module = || {
            let read = self.read_module(&digest);
            read.map_err(|error| missing(format!("failed to read module {digest} ({error}); push it again")))
        };
        let folder = self.functions.get(name).and_then(|function| function.folder.as_deref());
        let code = match folder {
            Some(path) if stored.is_code => {
                let read = read_code(path, &manifest, self.config.host);
                read.map_err(|error| Refusal::new(Reason::NoCode, error.to_string()))?.1
            }
            Some(path) if !self.config.host.has_compiler => {
                let dir = path.parent().unwrap_or(Path::new(""));
                let takes_code = self.config.functions.native_code;
                return Err(Refusal::new(Reason::NoCode, no_compiler(dir, name, self.config.host, takes_code)));
            }
            Some(path) => {
                let wasm = folder::read(path).map_err(|error| {
                    missing(format!("failed to read {} ({error}); build it with `sedge build`", path.display()))
                })?;
                compile.compile(&digest, &wasm, class).map_err(compile_refusal)?
            }
            None if stored.is_code => self.unpack(&module()?, class)?,
            None => compile.compile(&digest, &module()?, class).map_err(compile_refusal)?,
        };
        Ok(Installed::new(manifest, digest, code))
    }
}

/// Loads the records of all functions. A damaged record is set aside.
pub(super) fn load(disk: &Disk) -> io::Result<BTreeMap<Arc<str>, TrackedFunction>> {
    let mut functions = BTreeMap::new();
    for file in disk.list(FUNCTIONS)? {
        let Some(name) = file.strip_suffix(SUFFIX).filter(|name| manifest::is_name(name)) else { continue };
        let record: Option<Record> = match disk.read(FUNCTIONS, &file) {
            Ok(bytes) => record::decode(&bytes),
            Err(error) => {
                tracing::error!(function = name, %error, "failed to read a record");
                None
            }
        };
        let name: Arc<str> = name.into();
        match record.filter(|record| *record.function == *name) {
            Some(record) => {
                let stored = Some(record.clone());
                let mut function = TrackedFunction::with_record(record, Arc::clone(&name));
                function.stored = stored;
                functions.insert(name, function);
            }
            None => {
                let moved_to = disk.set_aside(FUNCTIONS, &file)?;
                tracing::error!(
                    function = &*name,
                    moved_to = %moved_to.display(),
                    "the record of a function is damaged, and the function is not installed any more; push it again"
                );
                let mut function = TrackedFunction::new(Arc::clone(&name));
                let detail = "its record on the disk was damaged and set aside; push it again";
                let why = Refusal::new(Reason::DamagedRecord, detail);
                function.record.outcome = Some(OrderOutcome::new(DeployState::Rejected, Some(&why)));
                functions.insert(name, function);
            }
        }
    }
    Ok(functions)
}
