//! The daemon's dealings with the local broker: deliveries, and what the session is subscribed to.

use std::sync::Arc;
use std::time::Instant;

use super::{BROKER_VERSION_TOPIC, Daemon, FAILED, META_SUBSCRIPTIONS, answer, status};
use crate::deploy;
use crate::forward::Route;
use crate::mqtt;
use crate::router::Router;
use crate::store;
use crate::topic::TopicFilter;

impl Daemon {
    pub(super) fn broker_event(&mut self, event: mqtt::Event, ending: bool, now: Instant, now_ms: u64) {
        match event {
            mqtt::Event::Delivery(delivery) if *delivery.topic == *BROKER_VERSION_TOPIC.as_bytes() => {
                // It numbers its packets from 1 to 65,535 for each client, and starts over only then.
                if delivery.payload.starts_with(b"mosquitto ") {
                    self.pipeline.set_counts_upwards();
                }
            }
            // Unacknowledged, it comes again: when the disk works, or to the next daemon.
            mqtt::Event::Delivery(_) if self.store_failed || ending => {}
            mqtt::Event::Delivery(delivery) => {
                if self.orders.take(&delivery) {
                    self.pipeline.pass_over(&delivery);
                } else {
                    self.pipeline.deliver(delivery, now, now_ms);
                }
            }
            mqtt::Event::Connected { session_present } => self.broker_connected(session_present),
            mqtt::Event::Disconnected { reason } => {
                self.subscriptions.disconnected();
                self.orders.handle.send(deploy::Request::Disconnected);
                self.pipeline.disconnected();
                self.forwarder.disconnected(Route::Local, now);
                self.status.disconnected(&reason);
                self.give_back_at.get_or_insert(now + FAILED);
            }
            mqtt::Event::Published { token, result } => {
                if token != status::TOKEN {
                    self.forwarder.answered(Route::Local, token, answer(result), now);
                }
            }
            mqtt::Event::Unsubscribed { filter } => {
                if self.subscriptions.left(&filter) {
                    self.make_router();
                    self.save_subscriptions();
                }
            }
            mqtt::Event::Subscribed { .. } => {}
            mqtt::Event::NotSubscribed { filter, reason } => {
                tracing::error!(filter, reason, "the broker refused a subscription: its functions get no messages");
            }
        }
    }

    fn broker_connected(&mut self, session_present: bool) {
        tracing::info!(session_present, "connected to the broker");
        if !session_present {
            if self.subscriptions.has_held() {
                self.metrics.sessions_lost.inc();
                tracing::warn!("the broker has forgotten our session: what it had queued for this board is lost");
            }
            self.pipeline.session_lost();
            self.subscriptions.session_lost();
            self.make_router();
        }
        self.broker.watch(BROKER_VERSION_TOPIC);
        let all = self.subscriptions.all();
        self.save_subscriptions();
        self.subscribe(&all);
        self.forwarder.connected(Route::Local);
        self.status.connected(&self.broker);
        self.hear_orders();
        self.notify.status("running");
    }

    /// Functions want other topics than before.
    pub(super) fn routes_changed(&mut self) {
        let wanted = self.pipeline.functions().iter().filter(|it| it.is_routed());
        let changes = self.subscriptions.want(wanted.map(|it| (Arc::clone(&it.name), it.wanted())));
        self.make_router();
        let installed = self.pipeline.functions().iter().filter(|it| it.serving().is_some());
        self.ask_store(store::StoreRequest::Installed(installed.map(|it| Arc::clone(&it.name)).collect()));
        if changes.subscribe.is_empty() && changes.unsubscribe.is_empty() {
            return;
        }
        self.save_subscriptions();
        // Not connected, all of it follows at the next connection.
        self.subscribe(&changes.subscribe);
        for filter in &changes.unsubscribe {
            self.broker.unsubscribe(&self.subscriptions.at_broker(filter));
        }
    }

    fn subscribe(&self, filters: &[TopicFilter]) {
        for (filter, id) in self.pipeline.router().subscriptions().filter(|(filter, _)| filters.contains(filter)) {
            self.broker.subscribe(&self.subscriptions.at_broker(filter), Some(id));
        }
    }

    fn make_router(&mut self) {
        let functions = self.pipeline.functions();
        let number = |name: &str| functions.iter().position(|it| *it.name == *name);
        let router = Router::new(self.subscriptions.interests(number));
        self.pipeline.set_router(router);
    }

    fn save_subscriptions(&mut self) {
        let value = self.subscriptions.save();
        if self.subscriptions_saved != value {
            self.subscriptions_saved = value.clone();
            self.ask_store(store::StoreRequest::SetMeta { key: META_SUBSCRIPTIONS, value });
        }
    }

    /// Gives up a filter that is no longer wanted, when so little is on the way that the broker holds nothing back: then
    /// its answer stands where the last copy for that filter has passed.
    pub(super) fn tidy_subscriptions(&mut self) {
        if self.broker.is_connected()
            && self.pipeline.is_nearly_idle()
            && let Some(filter) = self.subscriptions.leave()
        {
            self.broker.unsubscribe(&self.subscriptions.at_broker(&filter));
        }
    }
}
