//! Between the loop and what Home Assistant is told.

use std::time::Instant;

use super::{Daemon, store};
use crate::home_assistant::META;
use sedge_core::board::Delivery;
use sedge_core::forward::Envelope;
use sedge_mqtt::Full;

impl Daemon {
    /// Shows an alert to Home Assistant before its echo is published.
    pub(super) fn show_alert(&mut self, envelope: &Envelope) -> Result<(), Full> {
        match &mut self.home {
            Some(home) => home.echo(&self.broker, envelope, Instant::now()),
            None => Ok(()),
        }
    }

    pub(super) fn flush_home(&mut self) {
        let Some(home) = &mut self.home else { return };
        home.flush(&self.broker, Instant::now());
        if let Some(value) = home.take_note() {
            self.ask_store(store::StoreRequest::SetMeta { key: META, value });
        }
    }

    pub(super) fn home_connected(&mut self) {
        let Some(home) = &mut self.home else { return };
        home.connected(Instant::now());
        match home.is_on() {
            true => self.broker.watch(&home.filter()),
            // The session keeps the subscription of an earlier run.
            false => self.broker.unsubscribe(&home.filter()),
        }
    }

    /// Whether a delivery is for nobody but the daemon: Home Assistant's word that it has started, by the subscription to it.
    pub(super) fn is_birth(&mut self, delivery: &Delivery) -> bool {
        let Some(home) = &mut self.home else { return false };
        let Delivery { topic, payload, retained, subscriptions, ack, .. } = delivery;
        home.heard(topic, payload, *retained, Instant::now()) && ack.is_none() && subscriptions.is_empty()
    }
}
