//! Events of the local broker.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{BROKER_VERSION_TOPIC, Daemon, FAILED, answer, requests, status};
use crate::home_assistant;
use sedge_core::board::{BrokerEvent, Input, SinkEvent};
use sedge_core::deploy;
use sedge_core::forward::Destination;
use sedge_core::time::Now;

/// Name of the condition that `/readyz` shows until the broker has answered all subscriptions, and while it refuses one.
const SUBSCRIPTIONS: &str = "subscriptions";

/// A broker that has not answered a subscription in this time is not waited for.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// Subscriptions of a new connection. Whoever waits for a board to be online sends it messages next, and those that the
/// broker gets before the subscription are lost.
#[derive(Debug)]
pub(super) struct Subscribing {
    since: Instant,
    unanswered: BTreeSet<String>,
}

impl Subscribing {
    fn new(since: Instant) -> Self {
        Self { since, unanswered: BTreeSet::new() }
    }

    pub(super) fn asked(&mut self, filter: String) {
        self.unanswered.insert(filter);
    }
}

impl Daemon {
    pub(super) fn broker_event(&mut self, event: sedge_mqtt::Event, now: Now) {
        let event = match event {
            sedge_mqtt::Event::Delivery(delivery) if *delivery.topic == *BROKER_VERSION_TOPIC.as_bytes() => {
                // Mosquitto numbers packets per client from 1 to 65,535 before it starts over.
                if !delivery.payload.starts_with(b"mosquitto ") {
                    return;
                }
                BrokerEvent::CountsUpwards
            }
            sedge_mqtt::Event::Delivery(delivery) if self.is_birth(&delivery) => return,
            sedge_mqtt::Event::Delivery(delivery) => {
                let is_order = !self.store_failed && self.orders.handle_delivery(&delivery);
                if is_order { BrokerEvent::Other(delivery) } else { BrokerEvent::Delivery(delivery) }
            }
            sedge_mqtt::Event::Connected { session_present, limits } => {
                if self.broker_log.connected(now.monotonic) {
                    tracing::info!(session_present, "connected to the broker");
                }
                for limit in limits.iter().filter(|limit| !self.status.has_limit(limit)) {
                    tracing::warn!(limit, "the broker has a limit");
                }
                self.status.set_limits(limits);
                self.broker.watch(BROKER_VERSION_TOPIC);
                self.board.handle(Input::Broker(BrokerEvent::Connected { session_present }), now);
                self.home_connected();
                self.subscribing = Some(Subscribing::new(now.monotonic));
                self.health.missing(SUBSCRIPTIONS, "not answered by the broker yet");
                self.subscribe_orders();
                return;
            }
            sedge_mqtt::Event::Disconnected { reason } => {
                self.orders.handle.send(deploy::Request::Disconnected);
                if self.broker_log.disconnected(&reason, now.monotonic) {
                    tracing::warn!(reason, "not connected to the broker; connecting again");
                }
                if let Some(home) = &mut self.home {
                    home.disconnected();
                }
                // The next connection asks for everything anew.
                self.subscribing = None;
                self.status.disconnected();
                self.refused.clear();
                self.show_refused();
                self.give_back_at.get_or_insert(now.monotonic + FAILED);
                BrokerEvent::Disconnected
            }
            sedge_mqtt::Event::Published { token, result } => {
                if token == requests::TOKEN {
                    if let Some(reason) = result.not_accepted() {
                        tracing::warn!(
                            reason,
                            "the broker did not accept a reply: allow this client to publish below reply/ of its own topic"
                        );
                    }
                } else if token == home_assistant::TOKEN {
                    if let Some(home) = &mut self.home {
                        home.answered(&result);
                    }
                } else if token != status::TOKEN {
                    self.sink(Destination::Local, SinkEvent::Answered { token, answer: answer(result) });
                } else if let Some(reason) = result.not_accepted() {
                    tracing::warn!(
                        reason,
                        "the broker did not accept a status of this board: operators see an old one; allow this client to \
                         publish below its own topic"
                    );
                }
                return;
            }
            sedge_mqtt::Event::Unsubscribed { filter } => BrokerEvent::Unsubscribed { filter },
            sedge_mqtt::Event::Subscribed { filter, is_lossy } => {
                if is_lossy {
                    tracing::warn!(
                        filter,
                        "the broker grants QoS 0 only for this subscription: what it publishes while the board is away, or \
                         while the connection breaks, is lost"
                    );
                }
                self.answered(&filter);
                if self.refused.remove(&filter).is_some() {
                    tracing::info!(filter, "the broker has granted the subscription");
                    self.show_refused();
                }
                return;
            }
            sedge_mqtt::Event::NotSubscribed { filter, reason } => {
                self.answered(&filter);
                if self.refused.get(&filter) != Some(&reason) {
                    tracing::error!(
                        filter,
                        reason,
                        "the broker refused a subscription: nothing arrives for it; it is asked for again"
                    );
                    self.refused.insert(filter, reason);
                    self.show_refused();
                }
                return;
            }
        };
        self.board.handle(Input::Broker(event), now);
    }

    fn answered(&mut self, filter: &str) {
        if let Some(subscribing) = &mut self.subscribing {
            subscribing.unanswered.remove(filter);
        }
    }

    /// Says that the board is online once the broker has answered its subscriptions.
    pub(super) fn show_subscribed(&mut self) {
        let Some(Subscribing { since, unanswered }) = &self.subscribing else { return };
        // With many messages in flight the answers are read late.
        let is_done = self.board.hears_all() || self.board.has_subscribed() && unanswered.is_empty();
        if !is_done && since.elapsed() < ANSWER_PATIENCE {
            return;
        }
        if !is_done {
            tracing::warn!(?unanswered, "the broker does not answer subscriptions");
        }
        self.subscribing = None;
        self.show_refused();
        let now = self.now();
        self.status.connected(&self.broker, now);
        self.notify.status("running");
    }

    /// Shows refused subscriptions in `/readyz` and the status. Those of orders do not keep functions from their messages.
    fn show_refused(&mut self) {
        let text = |(filter, reason): (&String, &String)| format!("{filter}: {reason}");
        let of_functions = self.refused.iter().filter(|(filter, _)| !self.orders.has_filter(filter));
        let of_functions: Vec<String> = of_functions.map(text).collect();
        match &of_functions[..] {
            [] if self.subscribing.is_some() => {}
            [] => self.health.ready(SUBSCRIPTIONS),
            some => self.health.missing(SUBSCRIPTIONS, format!("refused by the broker: {}", some.join(", "))),
        }
        self.status.set_refused(&self.broker, self.refused.iter().map(text).collect());
    }
}
