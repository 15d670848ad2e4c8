//! Subscriptions of the session at the broker, and which of them serves which function.
//!
//! When the topics of a function change, the new filters are subscribed at once. An old filter that intersects a new one
//! stays and keeps precedence: while both are subscribed the broker may send a message once for each, and messages that
//! it queued earlier name the old one. The old filter is unsubscribed when hardly any message is in flight, and the UNSUBACK
//! marks the place in the stream from which the new filter serves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use crate::router::{Heard, Interest};
use crate::topic::TopicFilter;

/// Stands for a function where filters are saved that no function needs. No function has an empty name.
const LEFT: &str = "";

#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    share_group: Option<String>,
    /// Filters at the broker by function, in order of precedence.
    serving: BTreeMap<Arc<str>, Vec<TopicFilter>>,
    wanted: BTreeMap<Arc<str>, Vec<TopicFilter>>,
    /// Filters of the session, as far as we know.
    held: BTreeSet<TopicFilter>,
    /// Whether a session of ours has had subscriptions; false before the first connection.
    has_held: bool,
    /// Filters that no function needs and that the session may still have: the broker has not confirmed their removal, or the
    /// board was not connected. Unsubscribed at each connection.
    left: BTreeSet<TopicFilter>,
    /// Filter whose UNSUBACK is awaited.
    unsubscribing: Option<TopicFilter>,
}

/// Requests to the broker.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) subscribe: Vec<TopicFilter>,
    pub(crate) unsubscribe: Vec<TopicFilter>,
}

impl Subscriptions {
    /// Restores what [`Subscriptions::save`] wrote, in this process or an earlier one.
    pub(crate) fn restore(saved: Option<&Bytes>, share_group: Option<String>) -> Self {
        let saved: BTreeMap<String, Vec<String>> =
            saved.and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default();
        let parse = |filters: Vec<String>| filters.iter().filter_map(|filter| filter.parse().ok()).collect();
        let mut serving: BTreeMap<Arc<str>, Vec<TopicFilter>> =
            saved.into_iter().map(|(function, filters)| (function.into(), parse(filters))).collect();
        let left: BTreeSet<TopicFilter> = serving.remove(LEFT).unwrap_or_default().into_iter().collect();
        let held: BTreeSet<TopicFilter> = serving.values().flatten().cloned().collect();
        Self { share_group, serving, has_held: !held.is_empty() || !left.is_empty(), held, left, ..Self::default() }
    }

    pub(crate) fn save(&self) -> Bytes {
        let mut serving: BTreeMap<&str, Vec<&str>> = self
            .serving
            .iter()
            .map(|(function, filters)| (&**function, filters.iter().map(TopicFilter::as_str).collect()))
            .collect();
        if !self.left.is_empty() {
            serving.insert(LEFT, self.left.iter().map(TopicFilter::as_str).collect());
        }
        serde_json::to_vec(&serving).expect("only strings").into()
    }

    /// Whether there was a session whose loss would lose queued messages.
    pub(crate) fn has_held(&self) -> bool {
        self.has_held
    }

    /// The filter as sent to the broker: with `$share/<group>/` if the load is shared.
    pub(crate) fn at_broker(&self, filter: &TopicFilter) -> String {
        let group = self.share_group.as_deref();
        group.map_or_else(|| filter.as_str().to_owned(), |group| format!("$share/{group}/{filter}"))
    }

    /// Replaces the filters of all functions.
    pub(crate) fn set_wanted(&mut self, functions: impl Iterator<Item = (Arc<str>, Vec<TopicFilter>)>) -> Changes {
        self.wanted = functions.collect();
        self.serving.retain(|function, _| self.wanted.contains_key(function));
        for (function, wanted) in &self.wanted {
            let serving = self.serving.entry(Arc::clone(function)).or_default();
            serving.retain(|old| wanted.iter().any(|new| new.intersects(old)));
            let missing: Vec<TopicFilter> = wanted.iter().filter(|new| !serving.contains(new)).cloned().collect();
            serving.extend(missing);
        }
        // The broker is dropping it: subscribe anew.
        if let Some(again) = self.unsubscribing.take_if(|filter| self.wanted.values().flatten().any(|it| it == filter))
        {
            self.held.remove(&again);
        }
        self.changes()
    }

    fn changes(&mut self) -> Changes {
        let needed: BTreeSet<TopicFilter> = self.serving.values().flatten().cloned().collect();
        let changes = Changes {
            subscribe: needed.difference(&self.held).cloned().collect(),
            unsubscribe: self.held.difference(&needed).cloned().collect(),
        };
        self.held = needed;
        self.left.extend(changes.unsubscribe.iter().cloned());
        let held = &self.held;
        self.left.retain(|filter| !held.contains(filter));
        changes
    }

    /// Forgets the subscriptions of a session that the broker has lost.
    pub(crate) fn session_lost(&mut self) {
        self.held.clear();
        self.left.clear();
        self.unsubscribing = None;
        for (function, serving) in &mut self.serving {
            let wanted = self.wanted.get(function);
            serving.retain(|filter| wanted.is_some_and(|wanted| wanted.contains(filter)));
        }
    }

    pub(crate) fn disconnected(&mut self) {
        self.unsubscribing = None;
    }

    /// Whether functions want anything that the session has not, as far as we know.
    pub(crate) fn has_new(&self) -> bool {
        self.serving.values().flatten().any(|filter| !self.held.contains(filter))
    }

    /// All filters of the session, to be subscribed at each connection. Subscribing again is harmless.
    pub(crate) fn all(&mut self) -> Vec<TopicFilter> {
        self.held = self.serving.values().flatten().cloned().collect();
        self.has_held = !self.held.is_empty();
        self.held.iter().cloned().collect()
    }

    /// Filters of a session that it has kept although no function needs them, to be unsubscribed at each connection.
    pub(crate) fn left(&self) -> impl Iterator<Item = &TopicFilter> {
        self.left.iter()
    }

    /// Whether the session has a filter that no function wants any more.
    pub(crate) fn has_unwanted(&self) -> bool {
        self.unsubscribing.is_none() && self.held.iter().any(|filter| !self.is_wanted(filter))
    }

    fn is_wanted(&self, filter: &TopicFilter) -> bool {
        self.wanted.values().flatten().any(|wanted| wanted == filter)
    }

    /// Next filter to unsubscribe because no function wants it. Call only while the broker holds no message back.
    pub(crate) fn next_to_unsubscribe(&mut self) -> Option<TopicFilter> {
        if self.unsubscribing.is_some() {
            return None;
        }
        self.unsubscribing = self.held.iter().find(|filter| !self.is_wanted(filter)).cloned();
        self.unsubscribing.clone()
    }

    /// Handles an UNSUBACK. Returns whether other filters serve from here on.
    pub(crate) fn unsubscribed(&mut self, at_broker: &str) -> bool {
        let group = self.share_group.as_deref();
        let prefix = group.map_or_else(String::new, |group| format!("$share/{group}/"));
        let Some(filter) = at_broker.strip_prefix(&prefix) else { return false };
        self.left.retain(|left| left.as_str() != filter);
        let Some(filter) = self.unsubscribing.take_if(|it| it.as_str() == filter) else { return false };
        self.held.remove(&filter);
        for serving in self.serving.values_mut() {
            serving.retain(|it| *it != filter);
        }
        true
    }

    /// Input of the router. `function` maps a function's name to its number and to what its versions hear.
    pub(crate) fn interests(&self, function: impl Fn(&str) -> Option<(usize, Vec<Heard>)>) -> Vec<Interest> {
        let interest = |name: &Arc<str>| {
            let (function, heard) = function(name)?;
            let served_by = self.serving.get(name).cloned().unwrap_or_default();
            Some(Interest { function, heard, served_by })
        };
        self.wanted.keys().filter_map(interest).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(texts: &[&str]) -> Vec<TopicFilter> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn want(subscriptions: &mut Subscriptions, functions: &[(&str, &[&str])]) -> Changes {
        subscriptions.set_wanted(functions.iter().map(|(name, wanted)| ((*name).into(), filters(wanted))))
    }

    fn changes(subscribe: &[&str], unsubscribe: &[&str]) -> Changes {
        Changes { subscribe: filters(subscribe), unsubscribe: filters(unsubscribe) }
    }

    #[test]
    fn an_old_filter_serves_until_the_broker_has_dropped_it() {
        let mut subscriptions = Subscriptions::default();
        assert_eq!(want(&mut subscriptions, &[("f", &["a/+", "b"])]), changes(&["a/+", "b"], &[]));
        assert_eq!(subscriptions.next_to_unsubscribe(), None);
        // Nobody wants `b`, and it intersects nothing; `a/+` intersects `a/#`.
        assert_eq!(want(&mut subscriptions, &[("f", &["a/#"])]), changes(&["a/#"], &["b"]));
        let served_by =
            |subscriptions: &Subscriptions| subscriptions.interests(|_| Some((0, Vec::new())))[0].served_by.clone();
        assert_eq!(served_by(&subscriptions), filters(&["a/+", "a/#"]));
        // Survives a restart.
        let mut subscriptions = Subscriptions::restore(Some(&subscriptions.save()), None);
        assert_eq!(want(&mut subscriptions, &[("f", &["a/#"])]), changes(&[], &[]));
        assert_eq!(served_by(&subscriptions), filters(&["a/+", "a/#"]));
        assert_eq!(subscriptions.next_to_unsubscribe(), filters(&["a/+"]).pop());
        assert_eq!(subscriptions.next_to_unsubscribe(), None, "one at a time");
        assert!(!subscriptions.unsubscribed("a/x"));
        assert!(subscriptions.unsubscribed("a/+"));
        assert_eq!(served_by(&subscriptions), filters(&["a/#"]));
    }

    #[test]
    fn a_filter_that_is_wanted_again_stays() {
        let mut subscriptions = Subscriptions::default();
        want(&mut subscriptions, &[("f", &["a/+"])]);
        want(&mut subscriptions, &[("f", &["a/#"])]);
        assert!(subscriptions.next_to_unsubscribe().is_some());
        assert_eq!(want(&mut subscriptions, &[("f", &["a/+"])]), changes(&["a/+"], &[]));
        assert!(!subscriptions.unsubscribed("a/+"));
        assert_eq!(subscriptions.next_to_unsubscribe(), filters(&["a/#"]).pop());
    }

    #[test]
    fn a_filter_that_was_dropped_while_the_board_was_away_is_unsubscribed_once_it_is_connected() {
        let mut subscriptions = Subscriptions::default();
        want(&mut subscriptions, &[("f", &["a/#", "b/#"])]);
        let mut subscriptions = Subscriptions::restore(Some(&subscriptions.save()), None);
        want(&mut subscriptions, &[("f", &["b/#"])]);
        // Neither this connection nor the next process forgets it.
        let left = |subscriptions: &Subscriptions| subscriptions.left().cloned().collect::<Vec<_>>();
        assert_eq!(left(&subscriptions), filters(&["a/#"]));
        let mut subscriptions = Subscriptions::restore(Some(&subscriptions.save()), None);
        want(&mut subscriptions, &[("f", &["b/#"])]);
        assert_eq!(left(&subscriptions), filters(&["a/#"]));
        assert_eq!(subscriptions.all(), filters(&["b/#"]));
        assert!(!subscriptions.unsubscribed("a/#"), "nothing else serves from there on");
        assert_eq!(left(&subscriptions), []);
        want(&mut subscriptions, &[("f", &["b/#", "c"])]);
        want(&mut subscriptions, &[("f", &["b/#"])]);
        want(&mut subscriptions, &[("f", &["b/#", "c"])]);
        assert_eq!(left(&subscriptions), [], "it is wanted again");
        want(&mut subscriptions, &[("f", &["b/#"])]);
        subscriptions.session_lost();
        assert_eq!(left(&subscriptions), [], "a new session has nothing");
    }

    #[test]
    fn functions_share_a_subscription() {
        let mut subscriptions = Subscriptions::default();
        want(&mut subscriptions, &[("f", &["a"]), ("g", &["a", "b"])]);
        assert_eq!(want(&mut subscriptions, &[("g", &["a", "b"])]), changes(&[], &[]));
        assert_eq!(want(&mut subscriptions, &[("g", &["b"])]), changes(&[], &["a"]));
    }

    #[test]
    fn a_new_session_holds_only_what_is_wanted() {
        let mut subscriptions = Subscriptions::default();
        want(&mut subscriptions, &[("f", &["a/+"])]);
        want(&mut subscriptions, &[("f", &["a/#"])]);
        subscriptions.session_lost();
        assert!(!subscriptions.has_held());
        assert_eq!(subscriptions.all(), filters(&["a/#"]));
    }

    #[test]
    fn shared_filters_are_recognised() {
        let mut subscriptions = Subscriptions::restore(None, Some("g".into()));
        want(&mut subscriptions, &[("f", &["a/+"])]);
        want(&mut subscriptions, &[("f", &["a/#"])]);
        let unsubscribing = subscriptions.next_to_unsubscribe().unwrap();
        assert_eq!(subscriptions.at_broker(&unsubscribing), "$share/g/a/+");
        assert!(!subscriptions.unsubscribed("a/+"));
        assert!(subscriptions.unsubscribed("$share/g/a/+"));
    }
}
