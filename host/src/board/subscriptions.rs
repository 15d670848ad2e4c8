//! What the session at the broker is subscribed to, and which subscription serves which function.
//!
//! When a function wants other topics than before, the new filters are subscribed at once, but an old one that matches
//! some of the same topics is kept for a while and goes on serving: as long as both are subscribed the broker may send
//! a message once for each, and messages that it queued earlier name the old one. It is given up when nothing is on
//! the way, and the answer of the broker marks the place in the stream from which on the new one serves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use crate::router::Interest;
use crate::topic::TopicFilter;

#[derive(Debug, Default)]
pub struct Subscriptions {
    share_group: Option<String>,
    /// By function: all that is subscribed for it, in the order in which it serves.
    serving: BTreeMap<Arc<str>, Vec<TopicFilter>>,
    wanted: BTreeMap<Arc<str>, Vec<TopicFilter>>,
    /// What the session has, as far as we know.
    held: BTreeSet<TopicFilter>,
    /// A session of ours has had subscriptions: what is wanted before the first connection was never held.
    has_held: bool,
    /// The broker was asked to drop it and has not answered.
    leaving: Option<TopicFilter>,
}

/// What the broker is to be asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub subscribe: Vec<TopicFilter>,
    pub unsubscribe: Vec<TopicFilter>,
}

impl Subscriptions {
    /// With what [`Subscriptions::save`] wrote, in this process or an earlier one.
    pub fn restore(saved: Option<&Bytes>, share_group: Option<String>) -> Self {
        let saved: BTreeMap<String, Vec<String>> =
            saved.and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default();
        let parse = |filters: Vec<String>| filters.iter().filter_map(|filter| filter.parse().ok()).collect();
        let serving: BTreeMap<Arc<str>, Vec<TopicFilter>> =
            saved.into_iter().map(|(function, filters)| (function.into(), parse(filters))).collect();
        let held: BTreeSet<TopicFilter> = serving.values().flatten().cloned().collect();
        Self { share_group, serving, has_held: !held.is_empty(), held, ..Self::default() }
    }

    pub fn save(&self) -> Bytes {
        let serving: BTreeMap<&str, Vec<&str>> = self
            .serving
            .iter()
            .map(|(function, filters)| (&**function, filters.iter().map(TopicFilter::as_str).collect()))
            .collect();
        serde_json::to_vec(&serving).expect("only strings").into()
    }

    /// Whether there was a session that could have been lost, with what was queued in it.
    pub fn has_held(&self) -> bool {
        self.has_held
    }

    /// The filter as the broker knows it: shared with other hosts, or not.
    pub fn at_broker(&self, filter: &TopicFilter) -> String {
        let group = self.share_group.as_deref();
        group.map_or_else(|| filter.as_str().to_owned(), |group| format!("$share/{group}/{filter}"))
    }

    /// Takes in what the functions want from now on.
    pub fn want(&mut self, functions: impl Iterator<Item = (Arc<str>, Vec<TopicFilter>)>) -> Changes {
        self.wanted = functions.collect();
        self.serving.retain(|function, _| self.wanted.contains_key(function));
        for (function, wanted) in &self.wanted {
            let serving = self.serving.entry(Arc::clone(function)).or_default();
            serving.retain(|old| wanted.iter().any(|new| new.intersects(old)));
            let missing: Vec<TopicFilter> = wanted.iter().filter(|new| !serving.contains(new)).cloned().collect();
            serving.extend(missing);
        }
        // The broker drops it, and must be asked for it anew.
        if let Some(again) = self.leaving.take_if(|filter| self.wanted.values().flatten().any(|it| it == filter)) {
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
        changes
    }

    /// The session is new: what was subscribed before is not.
    pub fn session_lost(&mut self) {
        self.held.clear();
        self.leaving = None;
        for (function, serving) in &mut self.serving {
            let wanted = self.wanted.get(function);
            serving.retain(|filter| wanted.is_some_and(|wanted| wanted.contains(filter)));
        }
    }

    pub fn disconnected(&mut self) {
        self.leaving = None;
    }

    /// All that the session is to hold; asking for it again does no harm.
    pub fn all(&mut self) -> Vec<TopicFilter> {
        self.held = self.serving.values().flatten().cloned().collect();
        self.has_held = !self.held.is_empty();
        self.held.iter().cloned().collect()
    }

    /// Whether the session has a filter that no function wants any more.
    pub fn has_unwanted(&self) -> bool {
        self.leaving.is_none() && self.held.iter().any(|filter| !self.is_wanted(filter))
    }

    fn is_wanted(&self, filter: &TopicFilter) -> bool {
        self.wanted.values().flatten().any(|wanted| wanted == filter)
    }

    /// A filter that no function wants any more. To be called when nothing is on the way.
    pub fn leave(&mut self) -> Option<TopicFilter> {
        if self.leaving.is_some() {
            return None;
        }
        self.leaving = self.held.iter().find(|filter| !self.is_wanted(filter)).cloned();
        self.leaving.clone()
    }

    /// The broker has dropped a filter. `true` if other ones serve from here on.
    pub fn left(&mut self, at_broker: &str) -> bool {
        let Some(filter) = self.leaving.take_if(|filter| {
            let group = self.share_group.as_deref();
            let prefix = group.map_or_else(String::new, |group| format!("$share/{group}/"));
            at_broker.strip_prefix(&prefix) == Some(filter.as_str())
        }) else {
            return false;
        };
        self.held.remove(&filter);
        for serving in self.serving.values_mut() {
            serving.retain(|it| *it != filter);
        }
        true
    }

    /// For the router. `number` gives a function's place.
    pub fn interests(&self, number: impl Fn(&str) -> Option<usize>) -> Vec<Interest> {
        let interest = |(function, wanted): (&Arc<str>, &Vec<TopicFilter>)| {
            let served_by = self.serving.get(function).cloned().unwrap_or_default();
            Some(Interest { function: number(function)?, wanted: wanted.clone(), served_by })
        };
        self.wanted.iter().filter_map(interest).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(texts: &[&str]) -> Vec<TopicFilter> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn want(subscriptions: &mut Subscriptions, functions: &[(&str, &[&str])]) -> Changes {
        subscriptions.want(functions.iter().map(|(name, wanted)| ((*name).into(), filters(wanted))))
    }

    fn changes(subscribe: &[&str], unsubscribe: &[&str]) -> Changes {
        Changes { subscribe: filters(subscribe), unsubscribe: filters(unsubscribe) }
    }

    #[test]
    fn an_old_filter_serves_until_the_broker_has_dropped_it() {
        let mut subscriptions = Subscriptions::default();
        assert_eq!(want(&mut subscriptions, &[("f", &["a/+", "b"])]), changes(&["a/+", "b"], &[]));
        assert_eq!(subscriptions.leave(), None);
        // `b` is wanted by nobody and in nobody's way; `a/+` meets `a/#`.
        assert_eq!(want(&mut subscriptions, &[("f", &["a/#"])]), changes(&["a/#"], &["b"]));
        let served_by = |subscriptions: &Subscriptions| subscriptions.interests(|_| Some(0))[0].served_by.clone();
        assert_eq!(served_by(&subscriptions), filters(&["a/+", "a/#"]));
        // A process that ends here knows it when it comes back.
        let mut subscriptions = Subscriptions::restore(Some(&subscriptions.save()), None);
        assert_eq!(want(&mut subscriptions, &[("f", &["a/#"])]), changes(&[], &[]));
        assert_eq!(served_by(&subscriptions), filters(&["a/+", "a/#"]));
        assert_eq!(subscriptions.leave(), filters(&["a/+"]).pop());
        assert_eq!(subscriptions.leave(), None, "one at a time");
        assert!(!subscriptions.left("a/x"));
        assert!(subscriptions.left("a/+"));
        assert_eq!(served_by(&subscriptions), filters(&["a/#"]));
    }

    #[test]
    fn a_filter_that_is_wanted_again_stays() {
        let mut subscriptions = Subscriptions::default();
        want(&mut subscriptions, &[("f", &["a/+"])]);
        want(&mut subscriptions, &[("f", &["a/#"])]);
        assert!(subscriptions.leave().is_some());
        assert_eq!(want(&mut subscriptions, &[("f", &["a/+"])]), changes(&["a/+"], &[]));
        assert!(!subscriptions.left("a/+"));
        assert_eq!(subscriptions.leave(), filters(&["a/#"]).pop());
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
    fn shared_filters_are_known_by_their_own_name() {
        let mut subscriptions = Subscriptions::restore(None, Some("g".into()));
        want(&mut subscriptions, &[("f", &["a/+"])]);
        want(&mut subscriptions, &[("f", &["a/#"])]);
        let leaving = subscriptions.leave().unwrap();
        assert_eq!(subscriptions.at_broker(&leaving), "$share/g/a/+");
        assert!(!subscriptions.left("a/+"));
        assert!(subscriptions.left("$share/g/a/+"));
    }
}
