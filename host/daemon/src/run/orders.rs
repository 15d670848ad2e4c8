//! Adapter between deployer, broker and pipeline: orders and module chunks go in, versions and reports come out.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::Daemon;
use crate::deploy::thread::DeployHandle;
use crate::recordings::ReplyPart;
use sedge_core::board::{Delivery, Input};
use sedge_core::config::Config;
use sedge_core::deploy::topics::{Target, Topic, Topics};
use sedge_core::deploy::{self, Action};
use sedge_core::store;
use sedge_sandbox::codes::ScriptEngines;

/// Meta key of the order filters that the session is subscribed to, one per line.
pub(super) const META_ORDERS: &str = "orders";

pub(super) struct Orders {
    pub(crate) handle: DeployHandle,
    /// Compiled engines for the scripts among the versions.
    engines: ScriptEngines,
    topics: Topics,
    /// Common prefix of all topics of Sedge.
    prefix: String,
    /// Order topics of this board and its groups.
    filters: Vec<String>,
    /// Filters of the session so far. Those of groups that the board has left are unsubscribed.
    held: BTreeSet<String>,
    pub(crate) config: Config,
    pub(crate) config_file: PathBuf,
}

impl Orders {
    pub(crate) fn new(
        handle: DeployHandle,
        engines: ScriptEngines,
        config: Config,
        config_file: PathBuf,
        held: Option<&Bytes>,
    ) -> Self {
        let topics = Topics::new(&config.node.base_topic);
        let node = Target::Node(config.node.name.as_str().into());
        let groups = config.node.groups.iter().map(|group| Target::Group(group.as_str().into()));
        let targets = std::iter::once(node).chain(groups);
        let filters = targets.flat_map(|target| [topics.deploys(&target), topics.all_settings(&target)]);
        // Brokers with an access list need not know of requests where there are none.
        let has_requests = config.recording.enabled || config.deploy.keys.values().any(|key| key.logs);
        let requests = has_requests.then(|| topics.requests(&config.node.name));
        let filters = filters.chain(requests).collect();
        let held = held.map(|bytes| String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect());
        Self {
            handle,
            engines,
            prefix: format!("{}/", config.node.base_topic),
            topics,
            filters,
            held: held.unwrap_or_default(),
            config,
            config_file,
        }
    }

    /// Whether this is a filter of orders or of module chunks.
    pub(crate) fn has_filter(&self, filter: &str) -> bool {
        let is_of_chunks = || filter.strip_prefix(&self.prefix).is_some_and(|rest| rest.starts_with("blob/"));
        self.filters.iter().any(|order| order == filter) || is_of_chunks()
    }

    /// Passes an order or a module chunk to the deployer. `false`: the delivery is neither, and is for functions.
    pub(crate) fn handle_delivery(&self, delivery: &Delivery) -> bool {
        if !delivery.topic.starts_with(self.prefix.as_bytes()) {
            return false;
        }
        let Ok(topic) = str::from_utf8(&delivery.topic) else { return false };
        match self.topics.parse(topic) {
            Some(Topic::Deploy { .. } | Topic::Settings { .. } | Topic::Blob { .. }) => {}
            // One that the broker kept would be carried out again and again.
            Some(Topic::Request { .. }) if delivery.retained => {
                tracing::warn!(
                    topic,
                    "a request that the broker retained is not carried out: publish it without retain"
                );
                return true;
            }
            Some(Topic::Request { .. }) => {}
            _ => return false,
        }
        // A copy: the payload is a slice of a whole read buffer.
        self.handle.deliver(topic, Bytes::copy_from_slice(&delivery.payload));
        true
    }
}

impl Daemon {
    /// Subscribes to orders. They are retained and arrive with each connection; known orders change nothing.
    pub(super) fn subscribe_orders(&mut self) {
        let orders = &mut self.orders;
        for left in orders.held.iter().filter(|filter| !orders.filters.contains(filter)) {
            self.broker.unsubscribe(left);
        }
        let held: BTreeSet<String> = orders.filters.iter().cloned().collect();
        if orders.held != held {
            let value = orders.filters.join("\n").into();
            orders.held = held;
            self.ask_store(store::StoreRequest::SetMeta { key: META_ORDERS, value });
        }
        self.fetch_orders();
        self.orders.handle.send(deploy::Request::Connected);
    }

    fn fetch_orders(&self) {
        for filter in &self.orders.filters {
            self.broker.fetch(filter);
        }
    }

    /// Carries out an action of the deployer.
    pub(super) fn carry_out(&mut self, action: Action) {
        match action {
            Action::Fetch { digest } => self.broker.fetch(&self.orders.topics.blobs(&digest)),
            Action::EndFetch { digest } => self.broker.unsubscribe(&self.orders.topics.blobs(&digest)),
            Action::FetchOrders => self.fetch_orders(),
            Action::Start(version) => {
                tracing::info!(
                    function = &*version.manifest.name,
                    version = &*version.manifest.version,
                    digest = %version.digest,
                    on_trial = version.trial.is_some(),
                    "version deployed"
                );
                self.board.handle(Input::Deploy(self.orders.engines.hold(*version).into()), self.now());
            }
            Action::Stop { function } => {
                tracing::info!(function = &*function, "function removed");
                self.board.handle(Input::Remove { function }, self.now());
            }
            Action::DropCandidate { function, edition } => {
                self.board.handle(Input::DropCandidate { function, edition }, self.now());
            }
            Action::Promote { function, edition } => {
                self.board.handle(Input::Promote { function, edition }, self.now());
            }
            Action::Settings { function, change, overlay } => {
                self.board.handle(Input::Settings { function, change, overlay }, self.now());
            }
            Action::Report { function, payload } => {
                self.shown.report(Arc::clone(&function), payload.clone());
                let now = self.now().monotonic;
                if let Some(home) = &mut self.home {
                    home.report(&function, &payload, now);
                }
                self.status.report(&self.broker, function, payload);
            }
            Action::Request(request) => self.carry_out_request(*request),
            Action::Reply { id, number, payload } => self.requests.add(ReplyPart { id, number, payload }),
            // The deploy thread carries these out itself.
            Action::Disk(_) | Action::Compile(_) | Action::RetainCode { .. } => {}
        }
    }

    pub(super) fn reload(&mut self) {
        self.notify.reloading();
        self.reload_config();
        self.notify.reloaded();
    }

    /// Reads the configuration again. Only `[deploy]` and `[functions.settings]` can change while the daemon runs.
    fn reload_config(&mut self) {
        let (config, problems) = Config::inspect(&self.orders.config_file, &sedge_sandbox::machine::MACHINE);
        if problems.has_errors() {
            for problem in problems.errors() {
                tracing::error!("{problem}");
            }
            tracing::error!("the configuration has problems; the previous one stays in force");
            return;
        }
        tracing::info!("configuration reloaded");
        self.orders.config.deploy = config.deploy.clone();
        self.orders.config.functions.settings = config.functions.settings.clone();
        if self.orders.config != config {
            tracing::warn!("changes outside [deploy] and [functions.settings] take effect at the next start");
        }
        self.orders.handle.send(deploy::Request::Settings(Box::new(config.functions.settings)));
        self.orders.handle.send(deploy::Request::Keys(Box::new(config.deploy)));
    }
}
