//! Between the deployer, the broker and the pipeline: orders and pieces of modules go in, versions and reports come out.

use std::collections::BTreeSet;
use std::path::PathBuf;

use bytes::Bytes;

use super::{Daemon, parts};
use crate::board::Input;
use crate::config::Config;
use crate::deploy::thread::DeployHandle;
use crate::deploy::topics::{Target, Topic, Topics};
use crate::deploy::{self, Action};
use crate::mqtt::Delivery;
use crate::store;

/// The meta key under which it is kept which orders the session is subscribed to, one filter a line.
pub(super) const META_ORDERS: &str = "orders";

pub(super) struct Orders {
    pub handle: DeployHandle,
    topics: Topics,
    /// All of our own topics begin with it.
    prefix: String,
    /// For this board and for its groups.
    filters: Vec<String>,
    /// What the session had before: a group that the board has left is no longer heard.
    held: BTreeSet<String>,
    pub config: Config,
    pub config_file: PathBuf,
}

impl Orders {
    pub fn new(handle: DeployHandle, config: Config, config_file: PathBuf, held: Option<&Bytes>) -> Self {
        let topics = Topics::new(&config.node.base_topic);
        let node = Target::Node(config.node.name.as_str().into());
        let groups = config.node.groups.iter().map(|group| Target::Group(group.as_str().into()));
        let filters = std::iter::once(node).chain(groups).map(|target| topics.deploys(&target)).collect();
        let held = held.map(|bytes| String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect());
        Self {
            handle,
            prefix: format!("{}/", config.node.base_topic),
            topics,
            filters,
            held: held.unwrap_or_default(),
            config,
            config_file,
        }
    }

    /// Whether it is an order or a piece of a module, which no function gets to see.
    pub fn take(&self, delivery: &Delivery) -> bool {
        if !delivery.topic.starts_with(self.prefix.as_bytes()) {
            return false;
        }
        let Ok(topic) = str::from_utf8(&delivery.topic) else { return false };
        if !matches!(self.topics.parse(topic), Some(Topic::Deploy { .. } | Topic::Blob { .. })) {
            return false;
        }
        // A copy: the bytes of a delivery are a slice of a whole read buffer.
        self.handle.deliver(topic, Bytes::copy_from_slice(&delivery.payload));
        true
    }
}

impl Daemon {
    /// Subscribes to orders. They are retained and come with each connection; those that are known change nothing.
    pub(super) fn hear_orders(&mut self) {
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

    /// Carries out what the deployer decided.
    pub(super) fn carry_out(&mut self, action: Action) {
        match action {
            Action::Fetch { digest } => self.broker.fetch(&self.orders.topics.blobs(&digest)),
            Action::EndFetch { digest } => self.broker.unsubscribe(&self.orders.topics.blobs(&digest)),
            Action::FetchOrders => self.fetch_orders(),
            Action::Start(deploy::Start { edition, installed, trial }) => {
                tracing::info!(
                    function = &*installed.manifest.name,
                    version = &*installed.manifest.version,
                    digest = %installed.digest,
                    on_trial = trial.is_some(),
                    "a version is put into service"
                );
                let version = parts::version(&self.orders.config, edition, &installed, trial);
                self.board.handle(Input::Deploy(version), self.now());
            }
            Action::Stop { function } => {
                tracing::info!(function = &*function, "the function is removed");
                self.board.handle(Input::Remove { function }, self.now());
            }
            Action::DropCandidate { function, edition } => {
                self.board.handle(Input::DropCandidate { function, edition }, self.now());
            }
            Action::Promote { function, edition } => {
                self.board.handle(Input::Promote { function, edition }, self.now());
            }
            Action::Report { function, payload } => self.status.report(&self.broker, function, payload),
            // The thread of deploying does these itself.
            Action::Compile { .. } | Action::RetainCode { .. } => {}
        }
    }

    pub(super) fn reload(&mut self) {
        self.notify.reloading();
        self.read_again();
        self.notify.reloaded();
    }

    /// Reads the configuration again. Of it the trusted keys can change while the daemon runs.
    fn read_again(&mut self) {
        let (config, problems) = Config::inspect(&self.orders.config_file);
        if problems.has_errors() {
            for problem in problems.errors() {
                tracing::error!("{problem}");
            }
            tracing::error!("the configuration has problems; the one from before stays in force");
            return;
        }
        tracing::info!("the configuration was read again");
        self.orders.config.deploy = config.deploy.clone();
        if self.orders.config != config {
            tracing::warn!("other parts than [deploy] have changed too: they count from the next start");
        }
        self.orders.handle.send(deploy::Request::Keys(Box::new(config.deploy)));
    }
}
