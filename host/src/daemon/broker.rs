//! The daemon's dealings with the local broker.

use super::{BROKER_VERSION_TOPIC, Daemon, FAILED, answer, status};
use crate::board::{BrokerEvent, Input, SinkEvent};
use crate::deploy;
use crate::forward::Destination;
use crate::mqtt;
use crate::time::Now;

impl Daemon {
    pub(super) fn broker_event(&mut self, event: mqtt::Event, now: Now) {
        let event = match event {
            mqtt::Event::Delivery(delivery) if *delivery.topic == *BROKER_VERSION_TOPIC.as_bytes() => {
                // Mosquitto numbers its packets from 1 to 65,535 for each client, and starts over only then.
                if !delivery.payload.starts_with(b"mosquitto ") {
                    return;
                }
                BrokerEvent::CountsUpwards
            }
            mqtt::Event::Delivery(delivery) => {
                let is_order = !self.store_failed && self.orders.take(&delivery);
                if is_order { BrokerEvent::Other(delivery) } else { BrokerEvent::Delivery(delivery) }
            }
            mqtt::Event::Connected { session_present } => {
                tracing::info!(session_present, "connected to the broker");
                self.broker.watch(BROKER_VERSION_TOPIC);
                self.board.handle(Input::Broker(BrokerEvent::Connected { session_present }), now);
                self.status.connected(&self.broker);
                self.hear_orders();
                self.notify.status("running");
                return;
            }
            mqtt::Event::Disconnected { reason } => {
                self.orders.handle.send(deploy::Request::Disconnected);
                self.status.disconnected(&reason);
                self.give_back_at.get_or_insert(now.monotonic + FAILED);
                BrokerEvent::Disconnected
            }
            mqtt::Event::Published { token, result } => {
                if token != status::TOKEN {
                    self.sink(Destination::Local, SinkEvent::Answered { token, answer: answer(result) });
                }
                return;
            }
            mqtt::Event::Unsubscribed { filter } => BrokerEvent::Unsubscribed { filter },
            mqtt::Event::Subscribed { .. } => return,
            mqtt::Event::NotSubscribed { filter, reason } => {
                tracing::error!(filter, reason, "the broker refused a subscription: its functions get no messages");
                return;
            }
        };
        self.board.handle(Input::Broker(event), now);
    }
}
