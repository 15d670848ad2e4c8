//! Builds the parts of the daemon from its configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::board_key;
use super::exits::Exits;
use super::orders::{META_ORDERS, Orders};
use super::requests::Requests;
use super::status::Status;
use super::store_figures;
use super::{Daemon, STARTED};
use crate::home_assistant::{self, HomeAssistant};
#[cfg(feature = "page")]
use crate::page::Page;
use crate::page::Shown;
use crate::sinks::Receivers;
use crate::sources::http::HttpTrigger;
use crate::telemetry::{Beside, ConnectionLog, Health, Http, Notifier};
use crate::traces::Exporter;
use crate::worker::cgroups::Cgroups;
use crate::worker::processes::{ProcessConfig, Processes};
use sedge_core::board::{
    self, Board, BoardConfig, Budget, CautionConfig, Input, PauseConfig, RecorderConfig, SinkRoute, WorkerConfig,
};
use sedge_core::config::{Clock, Config, Isolate, Sink};
use sedge_core::deploy::DeployerConfig;
use sedge_core::forward::SinkLane;
use sedge_core::manifest::Manifest;
use sedge_core::metrics::Metrics;
use sedge_core::stream::SinkId;
use sedge_core::{forward, store};
use sedge_sandbox::cache::Cache;
use sedge_sandbox::codes::ScriptEngines;
use sedge_sandbox::compiler::{CachingCompiler, Compiler};
use sedge_sandbox::sandboxing;
use sedge_store::Store;

/// Our own publishes in flight to the local broker. Few, because the client scans this window at every flush.
const LOCAL_IN_FLIGHT: u16 = 64;
/// Name of the condition that `/readyz` waits for during startup.
pub(super) const STARTING: &str = "functions";
/// Name of the condition that `/readyz` names while a worker is silent.
pub(super) const SILENT: &str = "worker";
/// The message loop counts as dead after this time without an iteration.
const HEARTBEAT: Duration = Duration::from_secs(10);
const MAX_WORKERS: usize = 4;
/// Least memory of a stream's window: a few records of any size are sent well.
const MIN_WINDOW_BYTES: usize = 16 << 10;

impl Daemon {
    pub(super) fn build(
        config_file: &Path,
        config: Config,
        functions: Vec<(PathBuf, Manifest)>,
    ) -> anyhow::Result<Self> {
        let now = Instant::now();
        sedge_sandbox::clock::trust(config.node.clock == Clock::Trusted);
        let metrics = Arc::new(Metrics::new(sedge_sandbox::clock::now_ms()));
        let health = Arc::new(Health::new(now, HEARTBEAT));
        // Answers from the start, as a board may have much to compile.
        health.missing(STARTING, "functions are being loaded");
        raise_descriptors();
        let data_dir = &config.node.data_dir;
        sedge_store::prepare(data_dir)?;
        let shown = Shown::new(&config);
        #[cfg(feature = "page")]
        let beside = Beside::from(&Page::new(&config, Arc::clone(&metrics), Arc::clone(&health), shown.clone()));
        #[cfg(not(feature = "page"))]
        let beside = Beside::default();
        let http = Http::spawn(&config.http, data_dir, Arc::clone(&metrics), Arc::clone(&health), beside)?;
        let (store, store_events, recovered) = {
            let remembered = board::window_memory(config.mqtt.receive_maximum.get());
            Store::open(
                &config.store,
                data_dir,
                remembered,
                sedge_sandbox::clock::now(sedge_sandbox::clock::clock_synced()),
            )?
        };
        // The folder is this process's alone now.
        let (exits, caution) =
            Exits::open(&config.node.data_dir, true).context("failed to note that the daemon runs")?;
        store_figures::join(&metrics, store.stats(), recovered.sinks.clone());
        let home = HomeAssistant::new(&config, meta(&recovered, home_assistant::META), &metrics, store.stats());

        // Before the first compilation, which is a process.
        let cgroups = if config.worker.isolate == Isolate::Thread { None } else { Cgroups::enter() };
        let clock_synced = sedge_sandbox::clock::clock_synced();
        let now = sedge_sandbox::clock::now(clock_synced);
        let engines = ScriptEngines::default();
        let compiler = Arc::new(CachingCompiler::new(Cache::open(data_dir)?, Compiler, engines.clone()));
        let (deploy_shell, versions) = crate::deploy::shell::Shell::open(
            &data_dir.join("deploy"),
            DeployerConfig::new(&config, Compiler::capabilities(), sedge_sandbox::machine::MACHINE),
            functions,
            compiler,
            now,
        )?;
        deploy_shell.stats().register(&metrics);
        if config.worker.isolate != Isolate::Thread && !sandboxing::has_filter() {
            tracing::warn!(
                hint = "run a kernel with CONFIG_SECCOMP_FILTER",
                "this kernel does not filter system calls: the sandbox is weaker"
            );
        }
        let board_config = BoardConfig { caution, ..board_config(&config, &recovered) };
        let workers = Processes::new(process_config(&config), board_config.workers.count, cgroups);
        let forward = forward::ForwardConfig {
            node: config.node.name.clone(),
            local_in_flight: LOCAL_IN_FLIGHT.into(),
            sinks: lanes(&config, &recovered),
            home: config.sinks.home().and_then(|name| recovered.sink(name)),
            window_bytes: window_bytes(&config),
            seed: sedge_mqtt::random_seed(),
        };
        let mut board = Board::new(board_config, forward, &recovered, Arc::clone(&metrics), now);
        for (function, change, overlay) in deploy_shell.overlays() {
            let (function, overlay) = (Arc::clone(function), overlay.clone());
            board.handle(Input::Settings { function, change, overlay }, now);
        }
        board.handle(Input::Mute(shown.mutes(now)), now);
        for version in versions {
            board.handle(Input::Deploy(engines.hold(version).into()), now);
        }
        let (handle, decisions) = crate::deploy::thread::spawn(deploy_shell).context("failed to start deploying")?;
        // A full disk must not keep a board from starting after an upgrade.
        let log = |error: &anyhow::Error| {
            tracing::error!("status and reports are not signed until the next start: {error:#}")
        };
        let key = board_key::open(&config.node.data_dir).inspect_err(log).ok();
        let orders_held = meta(&recovered, META_ORDERS).cloned();

        let status = Status::new(&config, key, Arc::clone(&metrics));
        let options = sedge_mqtt::Options::local(&config.mqtt, LOCAL_IN_FLIGHT, Some(status.will()));
        let (broker, broker_events, drive) = sedge_mqtt::connect(options)?;
        if board.is_cautious() {
            tracing::warn!("the daemon ended by faults again and again: messages are taken one at a time for a while");
            broker.bound_receive_maximum(1);
        }
        tokio::task::spawn_local(drive);
        let sinks = Receivers::start(&config, &recovered)?;
        board.restore(recovered, now);
        let requests = Requests::new(&config)?;
        let exporter = Exporter::spawn(&config.node.name, &config.trace, &metrics, sedge_mqtt::random_seed())?;
        // Last: from here on requests are taken.
        let http_trigger = HttpTrigger::spawn(&config.http_trigger, &metrics)?;
        Ok(Self {
            board,
            workers,
            store,
            store_events,
            broker,
            broker_events,
            broker_log: ConnectionLog::default(),
            http_trigger,
            sinks,
            status,
            home,
            health,
            notify: Notifier::from_env(),
            watchdog_fed: now.monotonic,
            _http: http,
            shown,
            exporter,
            store_failed: false,
            is_worker_silent: false,
            exits,
            refused: BTreeMap::new(),
            subscribing: None,
            decisions,
            requests,
            orders: Orders::new(handle, engines, config, config_file.to_owned(), orders_held.as_ref()),
            clock_checked: now.monotonic,
            clock_synced,
            give_back_at: Some(now.monotonic + STARTED),
        })
    }
}

/// Open files that the daemon may want: workers, blobs, database, connections.
const DESCRIPTORS: u64 = 8192;

/// Raises the soft limit on open files, as far as the hard limit allows: 1,024 is a default for programs that use `select`.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(DESCRIPTORS, |hard| hard.min(DESCRIPTORS));
    if limit.current.is_some_and(|soft| soft < wanted)
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit })
    {
        tracing::debug!(%error, "failed to raise the limit on open files");
    }
}

pub(super) fn meta<'a>(recovered: &'a store::Recovered, key: &str) -> Option<&'a Bytes> {
    recovered.meta.iter().find(|(name, _)| name == key).map(|(_, value)| value)
}

fn process_config(config: &Config) -> ProcessConfig {
    ProcessConfig {
        isolate: config.worker.isolate,
        state_cache_bytes: config.worker.state_cache_bytes.get(),
        memory_bytes: config.worker.memory_bytes.get(),
    }
}

/// Workers that functions have in common.
pub(crate) fn worker_count(config: &Config) -> usize {
    match config.worker.count {
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().min(MAX_WORKERS)),
        count => count,
    }
}

fn board_config(config: &Config, recovered: &store::Recovered) -> BoardConfig {
    let functions = &config.functions;
    let count = worker_count(config);
    let one_each = config.worker.isolate == Isolate::Function;
    BoardConfig {
        recorder: RecorderConfig {
            node: config.node.name.as_str().into(),
            base_topic: config.node.base_topic.as_str().into(),
            sinks: lanes(config, recovered).into_iter().map(route).collect(),
            alerts: numbers(&config.sinks.alerts, recovered),
            forwards: numbers(&config.sinks.forwards, recovered),
            fold: config.fold(),
            keeps_history: config.store.history.days.is_some(),
        },
        workers: WorkerConfig {
            count: if one_each { 0 } else { count },
            one_each,
            max_waiting: usize::from(config.mqtt.receive_maximum.get()).div_ceil(4),
        },
        pause: PauseConfig {
            after: functions.quarantine.after.get(),
            first: Duration::from_secs(functions.quarantine.secs.get().into()),
            max: Duration::from_secs(functions.quarantine.max_secs.get().into()),
        },
        caution: CautionConfig::default(),
        receive_maximum: config.mqtt.receive_maximum.get(),
        share_group: config.mqtt.share_group.clone(),
        max_payload_bytes: config.mqtt.max_payload_bytes.get() as usize,
        max_hops: functions.max_hops.get(),
        max_fan_out: functions.max_fan_out.get(),
        max_wakes: functions.max_wakes.get(),
        retry_attempts: functions.retry.attempts.get(),
        retry_max_delay: Duration::from_secs(functions.retry.max_delay_secs.get().into()),
        parked_max_bytes: (config.store.parked_max_bytes.get() as usize).min(budget(config).parked()),
        state_max_bytes: config.store.state_max_bytes.get(),
        budget: budget(config),
        trace_sample: config.trace.sample,
        seed: sedge_mqtt::random_seed(),
    }
}

fn budget(config: &Config) -> Budget {
    config.budget(sedge_sandbox::machine::memory_bytes())
}

/// The sinks with their numbers.
fn lanes(config: &Config, recovered: &store::Recovered) -> Vec<SinkLane> {
    let lane = |sink: &Sink| {
        let id = recovered.sink(&sink.name).expect("the store numbers each sink");
        SinkLane::new(sink, id, &config.node.name)
    };
    config.sinks.list.iter().map(lane).collect()
}

fn route(lane: SinkLane) -> SinkRoute {
    SinkRoute { id: lane.id, name: lane.name, topic_prefix: lane.topic_prefix.into() }
}

fn numbers(names: &[String], recovered: &store::Recovered) -> Vec<SinkId> {
    names.iter().filter_map(|name| recovered.sink(name)).collect()
}

/// Bytes of one stream's records in memory. More sinks than one share what one would have.
fn window_bytes(config: &Config) -> usize {
    let streams = 2 * config.sinks.list.len() + 1;
    (budget(config).window() * 3 / streams.max(3)).max(MIN_WINDOW_BYTES)
}
