//! Events of the local broker.

use super::{BROKER_VERSION_TOPIC, Daemon, FAILED, answer, status};
use sedge_core::board::{BrokerEvent, Input, SinkEvent};
use sedge_core::deploy;
use sedge_core::forward::Destination;
use sedge_core::time::Now;

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
            sedge_mqtt::Event::Delivery(delivery) => {
                let is_order = !self.store_failed && self.orders.handle_delivery(&delivery);
                if is_order { BrokerEvent::Other(delivery) } else { BrokerEvent::Delivery(delivery) }
            }
            sedge_mqtt::Event::Connected { session_present } => {
                tracing::info!(session_present, "connected to the broker");
                self.broker.watch(BROKER_VERSION_TOPIC);
                self.board.handle(Input::Broker(BrokerEvent::Connected { session_present }), now);
                self.status.connected(&self.broker);
                self.subscribe_orders();
                self.notify.status("running");
                return;
            }
            sedge_mqtt::Event::Disconnected { reason } => {
                self.orders.handle.send(deploy::Request::Disconnected);
                self.status.disconnected(&reason);
                self.give_back_at.get_or_insert(now.monotonic + FAILED);
                BrokerEvent::Disconnected
            }
            sedge_mqtt::Event::Published { token, result } => {
                if token != status::TOKEN {
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
            sedge_mqtt::Event::Subscribed { .. } => return,
            sedge_mqtt::Event::NotSubscribed { filter, reason } => {
                tracing::error!(filter, reason, "the broker refused a subscription: its functions receive no messages");
                return;
            }
        };
        self.board.handle(Input::Broker(event), now);
    }
}
