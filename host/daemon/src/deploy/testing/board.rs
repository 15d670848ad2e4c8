//! A board without threads: broker, compiler and pipeline are simulated, and time is an argument.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::deploy::disk::Disk;
use crate::deploy::shell::{self, Shell};
use crate::deploy::testing::faults::Faults;
use sedge_core::config;
use sedge_core::deploy::code::Capabilities;
use sedge_core::deploy::deployer::{Deployer, DeployerConfig};
use sedge_core::deploy::envelope::SignedEnvelope;
use sedge_core::deploy::interface::{Action, CompilerError, DiskRequest, Request, StoredFile, TrialEvent};
use sedge_core::deploy::keys::{SigningKey, TrustedKey};
use sedge_core::deploy::payload::{Document, Install, Module, Order, OrderChange};
use sedge_core::deploy::report::Report;
use sedge_core::deploy::requests::AcceptedRequest;
use sedge_core::deploy::topics::{Target, Topics};
use sedge_core::isa::{Class, Isa};
use sedge_core::manifest::Manifest;
use sedge_core::message::{Digest, Failure, FailureCode};
use sedge_core::settings::Overlay;
use sedge_core::time::Now;
use sedge_core::version::Version;
use sedge_sandbox::compiler::CompileBackend;

pub(crate) const NODE: &str = "pump-3";
pub(crate) const GROUP: &str = "pumps";
pub(crate) const FUNCTION: &str = "warm";
pub(crate) const CHUNK: u32 = 1024;
/// Wall clock of the tests.
pub(crate) const TODAY_MS: u64 = 1_767_225_600_000;
pub(crate) const HOUR_MS: u64 = 3_600_000;

pub(crate) struct Board {
    pub(crate) deployer: Deployer,
    disk: Disk,
    /// Number of disk requests so far.
    pub(crate) disk_requests: u64,
    /// Number after which the power is off: no request is answered any more.
    pub(crate) disk_requests_max: u64,
    /// Whether disk requests wait until [`Board::work_off`].
    pub(crate) is_disk_slow: bool,
    disk_request: Option<DiskRequest>,
    pub(crate) settings: DeployerConfig,
    pub(crate) folders: Vec<(PathBuf, Manifest)>,
    dir: Arc<tempfile::TempDir>,
    pub(crate) now: Now,
    /// Retained reports of the broker.
    pub(crate) reports: BTreeMap<String, Report>,
    pub(crate) reported: Vec<Report>,
    pub(crate) fetched: Vec<Digest>,
    pub(crate) orders_fetched: u32,
    /// Active and candidate version of each function in the workers.
    pub(crate) pipeline: BTreeMap<String, Running>,
    pub(crate) compiled: u32,
    /// Whether trials pass without an event of the test.
    pub(crate) is_lenient: bool,
    /// Results of the compiler that are held back.
    pub(crate) held: Option<VecDeque<Request>>,
    /// What is laid over the settings of functions, and the number of the change.
    pub(crate) overlays: BTreeMap<String, (u64, Overlay)>,
    /// Requests that were accepted, and the topics and texts of replies.
    pub(crate) requests: Vec<AcceptedRequest>,
    pub(crate) replies: Vec<(String, String)>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Running {
    pub(crate) active: Option<Version>,
    pub(crate) candidate: Option<Version>,
}

/// Prefixes the module with `code:`.
struct FakeCompiler;

impl CompileBackend for FakeCompiler {
    fn cached(&self, _: &Digest, _: Class) -> Option<Bytes> {
        None
    }

    fn compile(&self, _: &Digest, wasm: &[u8], _: Class) -> Result<Bytes, CompilerError> {
        match wasm {
            [b'w', b'o', b'r', b'l', b'd', ..] => Err(CompilerError::Refused("it is for another world".into())),
            [b'b', b'o', b'm', b'b', ..] => Err(CompilerError::Time),
            _ => Ok([b"code:", wasm].concat().into()),
        }
    }

    fn retain(&self, _: &BTreeSet<Digest>) {}
}

/// A trusted key without further permissions.
pub(crate) fn trusted(name: &str, key: &SigningKey) -> TrustedKey {
    TrustedKey {
        name: name.into(),
        public_key: key.public(),
        functions: vec![],
        topics: vec![],
        keys: false,
        native_code: false,
        settings_only: false,
        record: false,
        logs: false,
    }
}

pub(crate) fn settings(keys: &[(&str, &SigningKey)]) -> DeployerConfig {
    let entry = |(name, key): &(&str, &SigningKey)| {
        ((*name).to_owned(), config::DeployKey { public_key: Some(key.public()), ..config::DeployKey::default() })
    };
    DeployerConfig {
        node: NODE.into(),
        groups: vec![GROUP.into()],
        base_topic: "sedge".into(),
        host: Capabilities { has_compiler: true, runs_scripts: true, target: Some(Isa::Aarch64) },
        deploy: config::Deploy { keys: keys.iter().map(entry).collect(), ..config::Deploy::default() },
        functions: config::Functions::default(),
        sinks: config::Sinks::default(),
        machine: sedge_sandbox::machine::MACHINE,
    }
}

/// The key of all tests.
pub(crate) fn key() -> SigningKey {
    SigningKey::from_pem(include_bytes!("../../../../core/src/deploy/testdata/private.pem")).unwrap()
}

pub(crate) fn manifest(serial: u64, more: &str) -> Manifest {
    let text =
        format!("name = \"{FUNCTION}\"\nversion = \"1.{serial}.0\"\nserial = {serial}\nsubscribe = [\"s/#\"]\n{more}");
    Manifest::from_toml(&text, Path::new("function.toml"), None).unwrap()
}

/// A module of several chunks; all chunks of all modules differ.
pub(crate) fn module(seed: u64) -> Vec<u8> {
    (0..3500_u64).map(|n| (n.wrapping_mul(seed + 7) >> 3) as u8 ^ (n >> 8) as u8).collect()
}

pub(crate) fn install(manifest: &Manifest, wasm: &[u8]) -> Order {
    let module = Some(Module::of(wasm, CHUNK));
    let install = Install { manifest: Document::of(manifest), module, code: Vec::new() };
    Order {
        function: FUNCTION.into(),
        serial: manifest.serial,
        target: Target::Node(NODE.into()),
        issued_at_ms: TODAY_MS,
        expires_at_ms: TODAY_MS + HOUR_MS,
        change: OrderChange::Install(Box::new(install)),
    }
}

pub(crate) fn order(serial: u64, change: OrderChange) -> Order {
    Order { serial, change, ..install(&manifest(serial, ""), b"x") }
}

pub(crate) fn sign(order: &Order) -> Vec<u8> {
    SignedEnvelope::sign(&order.to_json(), &[&key()]).to_json()
}

impl Board {
    pub(crate) fn new() -> Self {
        Self::with(settings(&[("ops", &key())]), Vec::new())
    }

    pub(crate) fn with(settings: DeployerConfig, folders: Vec<(PathBuf, Manifest)>) -> Self {
        Self::on(tempfile::tempdir().unwrap().into(), settings, folders, true)
    }

    fn on(
        dir: Arc<tempfile::TempDir>,
        settings: DeployerConfig,
        folders: Vec<(PathBuf, Manifest)>,
        is_lenient: bool,
    ) -> Self {
        let path = dir.path().join("deploy");
        let now = Now { monotonic: Instant::now(), unix_ms: TODAY_MS, synced: true };
        let opened = Shell::open(&path, settings.clone(), folders.clone(), Arc::new(FakeCompiler), now);
        let (Shell { deployer, disk, decided, .. }, versions) = opened.unwrap();
        let mut board = Self {
            deployer,
            disk,
            disk_requests: 0,
            disk_requests_max: u64::MAX,
            is_disk_slow: false,
            disk_request: None,
            settings,
            folders,
            dir,
            now,
            reports: BTreeMap::new(),
            reported: Vec::new(),
            fetched: Vec::new(),
            orders_fetched: 0,
            pipeline: BTreeMap::new(),
            compiled: 0,
            is_lenient,
            held: None,
            overlays: BTreeMap::new(),
            requests: Vec::new(),
            replies: Vec::new(),
        };
        // Before the first version, as the daemon does.
        let laid =
            |(function, change, overlay): (&Arc<str>, u64, &Overlay)| (Arc::clone(function), change, overlay.clone());
        let laid: Vec<_> = board.deployer.overlays().map(laid).collect();
        for version in versions {
            board.start(version);
        }
        for action in decided {
            board.carry_out(action, &mut VecDeque::new());
        }
        for (function, change, overlay) in laid {
            board.handle_action(Action::Settings { function, change, overlay });
        }
        board.handle(Request::Connected);
        board.tick(1);
        board
    }

    /// Restarts on the same folder.
    pub(crate) fn restart(self) -> Self {
        let Self { dir, settings, folders, deployer, is_lenient, .. } = self;
        drop(deployer);
        Self::on(dir, settings, folders, is_lenient)
    }

    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }

    pub(crate) fn faults(&self) -> Faults {
        self.disk.faults.clone()
    }

    pub(crate) fn handle(&mut self, request: Request) {
        let mut requests = VecDeque::from([request]);
        while let Some(request) = requests.pop_front() {
            self.deployer.handle(request, self.now);
            while let Some(action) = self.deployer.poll() {
                self.carry_out(action, &mut requests);
            }
        }
    }

    fn handle_action(&mut self, action: Action) {
        let mut requests = VecDeque::new();
        self.carry_out(action, &mut requests);
        requests.into_iter().for_each(|request| self.handle(request));
    }

    /// The value that a setting of [`FUNCTION`] has in the pipeline.
    pub(crate) fn setting(&self, name: &str) -> Option<String> {
        let manifest = &self.pipeline.get(FUNCTION)?.active.as_ref()?.manifest;
        let overlay = self.overlays.get(FUNCTION).map(|(_, overlay)| overlay.clone()).unwrap_or_default();
        Some(overlay.resolve(manifest).all.get(name)?.text.to_string())
    }

    /// Carries out the disk request that waits.
    fn disk_answer(&mut self) -> Option<Request> {
        let request = self.disk_request.take()?;
        let answer = shell::answer(&self.disk, &FakeCompiler, request);
        self.disk_requests += 1;
        (self.disk_requests <= self.disk_requests_max).then_some(Request::Disk(answer))
    }

    /// Carries out what waits for a slow disk, which is fast again.
    pub(crate) fn work_off(&mut self) {
        self.is_disk_slow = false;
        while let Some(answer) = self.disk_answer() {
            self.handle(answer);
        }
    }

    fn carry_out(&mut self, action: Action, requests: &mut VecDeque<Request>) {
        match action {
            Action::Disk(request) => {
                assert!(self.deployer.poll().is_none(), "nothing has an effect before the disk answers");
                let before = self.disk_request.replace(request);
                assert!(before.is_none(), "the deployer asks once at a time");
                if !self.is_disk_slow {
                    requests.extend(self.disk_answer());
                }
            }
            Action::Fetch { digest } => self.fetched.push(digest),
            Action::EndFetch { .. } | Action::RetainCode { .. } => {}
            Action::Request(request) => self.requests.push(*request),
            Action::Reply { id, payload, .. } => {
                self.replies.push((id.to_string(), String::from_utf8(payload.to_vec()).unwrap()));
            }
            Action::FetchOrders => self.orders_fetched += 1,
            Action::Compile(compilation) => {
                self.compiled += 1;
                let request = shell::compile(compilation, &FakeCompiler);
                match &mut self.held {
                    Some(held) => held.push_back(request),
                    None => requests.push_back(request),
                }
            }
            Action::Start(version) => {
                let (function, edition) = (Arc::clone(&version.manifest.name), version.edition);
                let traps = version.code.bytes().starts_with(b"code:trap");
                let is_trial = version.trial.is_some();
                self.start(*version);
                if self.is_lenient {
                    let mut tell = |event| {
                        requests.push_back(Request::Trial { function: Arc::clone(&function), edition, event });
                    };
                    tell(TrialEvent::Ready);
                    if is_trial && traps {
                        tell(TrialEvent::Failed { failure: failure() });
                    } else if is_trial {
                        tell(TrialEvent::Passed);
                    }
                }
                if is_trial && self.is_lenient {
                    let running = self.pipeline.get_mut(&*function).unwrap();
                    let candidate = running.candidate.take();
                    if !traps {
                        running.active = candidate;
                    }
                }
            }
            Action::Stop { function } => {
                self.pipeline.remove(&*function);
            }
            Action::DropCandidate { function, edition } => {
                let running = self.pipeline.get_mut(&*function).expect("only what was started is dropped");
                let candidate = running.candidate.take().expect("only a candidate is dropped");
                assert_eq!(candidate.edition, edition);
            }
            Action::Promote { function, edition } => {
                let running = self.pipeline.get_mut(&*function).expect("only what was started is promoted");
                if let Some(candidate) = running.candidate.take() {
                    assert_eq!(candidate.edition, edition);
                    running.active = Some(candidate);
                }
            }
            Action::Settings { function, change, overlay } => {
                let before = self.overlays.insert(function.to_string(), (change, overlay));
                assert!(before.is_none_or(|(before, _)| before < change), "changes are numbered upwards");
                requests.push_back(Request::SettingsInForce { function, change });
            }
            Action::Report { function, payload } => {
                if payload.is_empty() {
                    self.reports.remove(&*function);
                    return;
                }
                let report = Report::parse(&payload).unwrap();
                assert_eq!(report.function, *function);
                self.reported.push(report.clone());
                self.reports.insert(function.to_string(), report);
            }
        }
    }

    fn start(&mut self, version: Version) {
        let name = version.manifest.name.to_string();
        // Workers cannot load empty code.
        if version.code.bytes().is_empty() {
            return;
        }
        assert!(version.code.bytes().starts_with(b"code:"));
        let running = self.pipeline.entry(name).or_default();
        match version.trial {
            Some(_) => running.candidate = Some(version),
            None => *running = Running { active: Some(version), candidate: None },
        }
    }

    /// Delivers the results that were held back.
    pub(crate) fn release(&mut self) {
        for request in self.held.take().unwrap_or_default() {
            self.handle(request);
        }
    }

    pub(crate) fn deliver(&mut self, topic: &str, payload: &[u8]) {
        self.handle(Request::Message { topic: topic.into(), payload: Bytes::copy_from_slice(payload) });
    }

    /// Delivers a signed order under its topic.
    pub(crate) fn send(&mut self, order: &Order) {
        let topic = Topics::new("sedge").deploy(&order.target, &order.function);
        self.deliver(&topic, &sign(order));
    }

    pub(crate) fn chunk(&mut self, wasm: &[u8], index: u32) {
        let module = Module::of(wasm, CHUNK);
        let range = module.range(index);
        self.raw_chunk(&module.digest, index, &wasm[range.start as usize..range.end as usize]);
    }

    pub(crate) fn raw_chunk(&mut self, digest: &Digest, index: u32, bytes: &[u8]) {
        self.deliver(&Topics::new("sedge").blob(digest, index), bytes);
    }

    pub(crate) fn chunks(&mut self, wasm: &[u8]) {
        for index in 0..Module::of(wasm, CHUNK).chunks.len() as u32 {
            self.chunk(wasm, index);
        }
    }

    /// Delivers order and chunks of a new version.
    pub(crate) fn push(&mut self, serial: u64, wasm: &[u8]) {
        self.send(&install(&manifest(serial, ""), wasm));
        self.chunks(wasm);
    }

    pub(crate) fn tick(&mut self, secs: u64) {
        for _ in 0..secs {
            self.now.monotonic += Duration::from_secs(1);
            self.now.unix_ms += 1000;
            self.handle(Request::Tick);
        }
    }

    /// Delivers an event of the running trial.
    pub(crate) fn trial(&mut self, event: TrialEvent) {
        let edition = self.pipeline[FUNCTION].candidate.as_ref().expect("a trial runs").edition;
        let function: Arc<str> = FUNCTION.into();
        match event {
            TrialEvent::Passed => {
                let running = self.pipeline.get_mut(FUNCTION).unwrap();
                running.active = running.candidate.take();
            }
            TrialEvent::Failed { .. } => self.pipeline.get_mut(FUNCTION).unwrap().candidate = None,
            _ => {}
        }
        self.handle(Request::Trial { function, edition, event });
    }

    #[track_caller]
    pub(crate) fn report(&self) -> &Report {
        self.reports.get(FUNCTION).expect("the function was reported")
    }

    /// State and reason of the latest order, after delayed reports.
    pub(crate) fn state(&mut self) -> String {
        self.tick(2);
        let report = self.report();
        match report.reason {
            None => report.state.to_string(),
            Some(reason) => format!("{} {reason}", report.state),
        }
    }

    /// Serial of the version that serves.
    pub(crate) fn serving(&self) -> Option<u64> {
        Some(self.pipeline.get(FUNCTION)?.active.as_ref()?.manifest.serial)
    }

    pub(crate) fn files(&self, folder: &str) -> BTreeSet<String> {
        self.disk().list(folder).unwrap().into_iter().collect()
    }

    /// Path of the record of [`FUNCTION`].
    pub(crate) fn record_path(&self) -> PathBuf {
        self.disk.path(&StoredFile::Record(FUNCTION.into()))
    }

    pub(crate) fn keys_path(&self) -> PathBuf {
        self.disk.path(&StoredFile::Keys)
    }

    pub(crate) fn module_path(&self, wasm: &[u8]) -> PathBuf {
        self.disk.path(&StoredFile::Module(sedge_core::deploy::digest(wasm)))
    }
}

pub(crate) fn failure() -> Failure {
    Failure { code: FailureCode::Trap, detail: "unreachable".into() }
}
