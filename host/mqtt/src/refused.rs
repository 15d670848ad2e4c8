//! Subscriptions that the broker has refused. Each is asked for again with growing pauses: a broker whose authentication
//! backend is away for a moment refuses what it grants later.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::RetainForwardRule;

use sedge_core::time::Backoff;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// A subscription as it is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Subscription {
    pub(crate) filter: String,
    pub(crate) id: Option<usize>,
    pub(crate) retained: RetainForwardRule,
    pub(crate) qos: QoS,
    /// A refusal is reported, and the subscription is asked for again.
    pub(crate) is_needed: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Refused {
    by_filter: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    subscription: Subscription,
    backoff: Backoff,
    /// `None`: it is being asked for.
    due: Option<Instant>,
}

impl Refused {
    pub(crate) fn refused(&mut self, subscription: Subscription, now: Instant) {
        let entry = self.by_filter.entry(subscription.filter.clone()).or_insert_with(|| Entry {
            subscription: subscription.clone(),
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE, crate::random_seed()),
            due: None,
        });
        entry.subscription = subscription;
        entry.due = Some(now + entry.backoff.failed());
    }

    /// The broker has granted it, or nobody wants it any more.
    pub(crate) fn forget(&mut self, filter: &str) {
        if !self.by_filter.is_empty() {
            self.by_filter.remove(filter);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.by_filter.clear();
    }

    /// When the next one is to be asked for.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.by_filter.values().filter_map(|entry| entry.due).min()
    }

    /// Takes the subscriptions to ask for now.
    pub(crate) fn take_due(&mut self, now: Instant) -> Vec<Subscription> {
        let due = self.by_filter.values_mut().filter(|entry| entry.due.is_some_and(|due| due <= now));
        due.map(|entry| {
            entry.due = None;
            entry.subscription.clone()
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscription(filter: &str) -> Subscription {
        Subscription {
            filter: filter.into(),
            id: Some(7),
            retained: RetainForwardRule::OnNewSubscribe,
            qos: QoS::AtLeastOnce,
            is_needed: true,
        }
    }

    #[test]
    fn a_refused_subscription_is_asked_for_again_with_growing_pauses() {
        let mut now = Instant::now();
        let mut refused = Refused::default();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            refused.refused(subscription("t/#"), now);
            assert!(refused.take_due(now).is_empty());
            let due = refused.due().unwrap();
            pauses.push(due - now);
            now = due;
            assert_eq!(refused.take_due(now)[0].id, Some(7));
            assert!(refused.take_due(now).is_empty() && refused.due().is_none(), "its answer is awaited");
        }
        assert!(pauses[0] <= Duration::from_secs(1) && pauses[3] >= Duration::from_secs(4), "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= LONGEST_PAUSE), "{pauses:?}");
        refused.forget("t/#");
        refused.refused(subscription("t/#"), now);
        assert!(refused.due().unwrap() - now <= FIRST_PAUSE, "what was granted begins anew");
    }
}
