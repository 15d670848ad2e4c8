//! Alerts that somebody muted for a time: recorded and counted, and not sent upstream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crate::message::AlertStatus;

/// An alert that is not to be sent for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mute {
    pub function: Arc<str>,
    pub key: Arc<str>,
    pub until: Instant,
}

/// The muted alerts, by function and key. Whoever sets them has a bound on their number.
#[derive(Debug, Default)]
pub(crate) struct Mutes(BTreeMap<Arc<str>, BTreeMap<Arc<str>, Muted>>);

#[derive(Debug)]
struct Muted {
    until: Instant,
    /// Upstream was told that it does not fire.
    is_resolved: bool,
}

impl Mutes {
    /// Replaces all of them.
    pub(crate) fn set(&mut self, mutes: Vec<Mute>) {
        let mut before = std::mem::take(&mut self.0);
        for Mute { function, key, until } in mutes {
            let known = before.get_mut(&function).and_then(|it| it.remove(&key));
            let muted = Muted { until, is_resolved: known.is_some_and(|it| it.is_resolved) };
            self.0.entry(function).or_default().insert(key, muted);
        }
    }

    /// Whether an alert is not sent. Upstream, which may have been told that it fires, is told once that it does not any more.
    pub(crate) fn covers(&mut self, function: &str, key: &str, status: AlertStatus, now: Instant) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let muted = self.0.get_mut(function).and_then(|it| it.get_mut(key)).filter(|muted| now < muted.until);
        muted.is_some_and(|muted| match status {
            AlertStatus::Firing => true,
            AlertStatus::Resolved => std::mem::replace(&mut muted.is_resolved, true),
        })
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may read clocks and files")]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_muted_alert_is_not_sent_until_its_time_but_its_end_is_once() {
        let now = Instant::now();
        let until = now + Duration::from_secs(60);
        let mute = |key: &str| Mute { function: "f".into(), key: key.into(), until };
        let mut mutes = Mutes::default();
        assert!(!mutes.covers("f", "a", AlertStatus::Firing, now));
        mutes.set(vec![mute("a")]);
        assert!(mutes.covers("f", "a", AlertStatus::Firing, now));
        assert!(!mutes.covers("f", "b", AlertStatus::Firing, now) && !mutes.covers("g", "a", AlertStatus::Firing, now));
        let ends = [(); 2].map(|()| mutes.covers("f", "a", AlertStatus::Resolved, now));
        assert_eq!(ends, [false, true]);
        mutes.set(vec![mute("a"), mute("b")]);
        assert!(mutes.covers("f", "a", AlertStatus::Resolved, now), "it stands as it was");
        assert!(!mutes.covers("f", "a", AlertStatus::Firing, until), "its time is over");
        mutes.set(Vec::new());
        assert!(!mutes.covers("f", "b", AlertStatus::Firing, now));
    }
}
