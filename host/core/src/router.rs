//! Finds the functions that a message is for: topics in, function numbers out. A change of functions makes a new router.
//!
//! Routes are cached by topic, so that a sensor's second message costs one look-up, however many functions there are.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hash as _, Hasher as _};
use std::sync::Arc;

use bytes::Bytes;
use siphasher::sip::SipHasher13;

use crate::board::MAX_TOPIC_BYTES;
use crate::topic::{TopicFilter, is_heard, validate_name};

/// Bound of the cache. A publisher that invents a topic for every message must not fill the memory.
const MAX_CACHE_BYTES: usize = 4 << 20;
/// Memory of a cached route beside its topic, which it has twice.
const ENTRY_BYTES: usize = 200;
/// The largest subscription identifier of MQTT 5.
const MAX_SUBSCRIPTION_ID: u64 = 268_435_455;

/// Subscriptions of one function.
#[derive(Clone, Debug)]
pub(crate) struct Interest {
    pub(crate) function: usize,
    /// One for each of its versions.
    pub(crate) heard: Vec<Heard>,
    /// Filters at the broker, in order of precedence: all that are heard, and earlier ones that are still subscribed.
    pub(crate) served_by: Vec<TopicFilter>,
}

/// Topics that one version of a function hears.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub(crate) subscribe: Vec<TopicFilter>,
    pub(crate) except: Vec<TopicFilter>,
}

#[derive(Debug)]
pub(crate) struct Router {
    /// First level of the board's own topics.
    base_topic: Arc<str>,
    interests: Vec<Interest>,
    subscriptions: BTreeMap<TopicFilter, usize>,
    cache: HashMap<Bytes, Arc<Route>, BuildHasherDefault<SipHasher13>>,
    cache_bytes: usize,
}

/// Functions of one topic.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) topic: Arc<str>,
    targets: Vec<Target>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    function: usize,
    /// Identifier of the one subscription that serves this function for this topic.
    subscription: usize,
}

/// A topic that is not UTF-8, or not a valid topic name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadTopic;

impl Router {
    pub(crate) fn new(interests: Vec<Interest>, base_topic: Arc<str>) -> Self {
        let mut subscriptions = BTreeMap::new();
        let mut taken = BTreeMap::new();
        for filter in interests.iter().flat_map(|interest| &interest.served_by) {
            if subscriptions.contains_key(filter) {
                continue;
            }
            let id = subscription_id(filter.as_str(), &mut taken);
            subscriptions.insert(filter.clone(), id);
        }
        Self { base_topic, interests, subscriptions, cache: HashMap::default(), cache_bytes: 0 }
    }

    /// Every filter to subscribe to, with its identifier.
    ///
    /// The identifier is derived from the filter's text, so that messages which the broker queued before a restart still
    /// name the right subscription.
    pub(crate) fn subscriptions(&self) -> impl Iterator<Item = (&TopicFilter, usize)> {
        self.subscriptions.iter().map(|(filter, id)| (filter, *id))
    }

    pub(crate) fn route(&mut self, topic: &Bytes) -> Result<Arc<Route>, BadTopic> {
        if let Some(route) = self.cache.get(topic) {
            return Ok(Arc::clone(route));
        }
        let name = str::from_utf8(topic).map_err(|_| BadTopic)?;
        validate_name(name).map_err(|_| BadTopic)?;
        let route = Arc::new(self.find(name));
        if name.len() > MAX_TOPIC_BYTES {
            return Ok(route);
        }
        let bytes = 2 * name.len() + ENTRY_BYTES;
        if self.cache_bytes + bytes > MAX_CACHE_BYTES {
            self.cache.clear();
            self.cache_bytes = 0;
        }
        self.cache_bytes += bytes;
        // A copy: the bytes of a delivery are a slice of a whole read buffer.
        self.cache.insert(Bytes::copy_from_slice(topic), Arc::clone(&route));
        Ok(route)
    }

    fn find(&self, topic: &str) -> Route {
        // A function that hears everything does not hear the board itself: its own alerts would come back to it.
        let is_own = topic.split('/').next() == Some(&*self.base_topic);
        let targets = self.interests.iter().filter_map(|interest| {
            let is_named = |filter: &TopicFilter| filter.names(&self.base_topic) && filter.matches(topic);
            let hears = |heard: &Heard| {
                is_heard(topic, &heard.subscribe, &heard.except) && (!is_own || heard.subscribe.iter().any(is_named))
            };
            if !interest.heard.iter().any(hears) {
                return None;
            }
            // The first matching filter alone serves the function: where several match, the broker may send the
            // message once for each.
            let filter = interest.served_by.iter().find(|filter| filter.matches(topic))?;
            Some(Target { function: interest.function, subscription: self.subscriptions[filter] })
        });
        Route { topic: topic.into(), targets: targets.collect() }
    }
}

impl Route {
    /// Functions that this copy of the message is for. `subscriptions` are the identifiers in the packet; a broker without
    /// identifiers sends none, and then every function that matches is meant.
    pub(crate) fn functions<'a>(&'a self, subscriptions: &'a [usize]) -> impl Iterator<Item = usize> + 'a {
        self.targets
            .iter()
            .filter(move |target| subscriptions.is_empty() || subscriptions.contains(&target.subscription))
            .map(|target| target.function)
    }
}

/// Hashes a topic, with the same result in every run and on every board.
pub(crate) fn hash(text: &str) -> u64 {
    let mut hasher = SipHasher13::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// Derives an identifier from the filter's text; the next free one if it is taken.
fn subscription_id(filter: &str, taken: &mut BTreeMap<usize, ()>) -> usize {
    let mut id = hash(filter) % MAX_SUBSCRIPTION_ID + 1;
    while taken.insert(id as usize, ()).is_some() {
        id = id % MAX_SUBSCRIPTION_ID + 1;
    }
    id as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router(interests: &[&[&str]]) -> Router {
        let interests = interests.iter().enumerate().map(|(function, wanted)| {
            let wanted = filters(wanted);
            Interest { function, served_by: wanted.clone(), heard: vec![heard(wanted, &[])] }
        });
        Router::new(interests.collect(), "sedge".into())
    }

    fn filters(texts: &[&str]) -> Vec<TopicFilter> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn heard(subscribe: Vec<TopicFilter>, except: &[&str]) -> Heard {
        Heard { subscribe, except: filters(except) }
    }

    fn id(router: &Router, filter: &str) -> usize {
        router.subscriptions().find(|(it, _)| it.as_str() == filter).unwrap().1
    }

    fn functions(router: &mut Router, topic: &str, subscriptions: &[usize]) -> Vec<usize> {
        router.route(&Bytes::copy_from_slice(topic.as_bytes())).unwrap().functions(subscriptions).collect()
    }

    #[test]
    fn a_message_goes_to_every_function_that_wants_it() {
        let mut router = router(&[&["a/+"], &["a/b", "c"], &["d"]]);
        assert_eq!(functions(&mut router, "a/b", &[]), [0, 1]);
        assert_eq!(functions(&mut router, "c", &[]), [1]);
        assert_eq!(functions(&mut router, "x", &[]), Vec::<usize>::new());
    }

    #[test]
    fn a_function_that_hears_everything_does_not_hear_the_board_itself() {
        let mut router = router(&[&["#"], &["+/+/+"], &["#", "sedge/+/status"], &["sedge/#"]]);
        assert_eq!(functions(&mut router, "sedge/board/status", &[]), [2, 3]);
        assert_eq!(functions(&mut router, "sedge", &[]), [3]);
        assert_eq!(functions(&mut router, "sedges/board/status", &[]), [0, 1, 2]);
        let hash = id(&router, "#");
        assert_eq!(functions(&mut router, "sedge/board/status", &[hash]), [2], "the first filter that matches serves");
    }

    #[test]
    fn copies_of_overlapping_subscriptions_reach_each_function_once() {
        let mut router = router(&[&["a/+", "a/b"], &["a/b"]]);
        let (plus, literal) = (id(&router, "a/+"), id(&router, "a/b"));
        assert_eq!(functions(&mut router, "a/b", &[plus]), [0]);
        assert_eq!(functions(&mut router, "a/b", &[literal]), [1]);
        assert_eq!(functions(&mut router, "a/b", &[literal, plus]), [0, 1]);
    }

    #[test]
    fn an_earlier_subscription_serves_until_it_is_gone() {
        let interest = |subscribe: &str, served_by: &[&str]| Interest {
            function: 0,
            heard: vec![heard(filters(&[subscribe]), &[])],
            served_by: filters(served_by),
        };
        let mut router = Router::new(vec![interest("a/#", &["a/+", "a/#"])], "sedge".into());
        let (old, new) = (id(&router, "a/+"), id(&router, "a/#"));
        assert_eq!(functions(&mut router, "a/b", &[old]), [0]);
        assert_eq!(functions(&mut router, "a/b", &[new]), Vec::<usize>::new(), "the copy for the new subscription");
        assert_eq!(functions(&mut router, "a/b/c", &[new]), [0]);
        let mut router = Router::new(vec![interest("a/b", &["a/+", "a/b"])], "sedge".into());
        assert_eq!(functions(&mut router, "a/x", &[old]), Vec::<usize>::new(), "not wanted any more");
    }

    #[test]
    fn a_topic_is_excluded_only_if_each_version_that_hears_it_excludes_it() {
        let all = || filters(&["z/#"]);
        let route = |heard: Vec<Heard>, topic: &str| {
            let mut router = Router::new(vec![Interest { function: 0, heard, served_by: all() }], "sedge".into());
            functions(&mut router, topic, &[])
        };
        let excluding = || heard(all(), &["z/bridge/#"]);
        for excluded in ["z/bridge", "z/bridge/devices"] {
            assert_eq!(route(vec![excluding()], excluded), Vec::<usize>::new());
            assert_eq!(route(vec![excluding(), heard(filters(&["z/a"]), &[])], excluded), Vec::<usize>::new());
            assert_eq!(route(vec![excluding(), heard(all(), &[])], excluded), [0]);
        }
        assert_eq!(route(vec![excluding()], "z/kitchen/oven"), [0]);
        assert_eq!(route(vec![excluding()], "z/bridges"), [0]);
    }

    #[test]
    fn identifiers_stay_the_same_when_functions_change() {
        let before = router(&[&["a/+"], &["b"]]);
        let after = router(&[&["c"], &["a/+"]]);
        assert_eq!(id(&before, "a/+"), id(&after, "a/+"));
        assert_ne!(id(&before, "a/+"), id(&before, "b"));
    }

    #[test]
    fn identifiers_differ_even_when_hashes_collide() {
        let mut taken = BTreeMap::new();
        let first = subscription_id("a", &mut taken);
        let second = subscription_id("a", &mut taken);
        assert_ne!(first, second);
        assert!((1..=MAX_SUBSCRIPTION_ID as usize).contains(&second));
    }

    #[test]
    fn bad_topics_are_refused_and_the_cache_is_bounded() {
        let mut router = router(&[&["#"]]);
        assert_eq!(router.route(&Bytes::from_static(b"\xff")), Err(BadTopic));
        assert_eq!(router.route(&Bytes::from_static(b"a/+")), Err(BadTopic));
        let mut most = 0;
        for n in 0..5000 {
            router.route(&Bytes::from(format!("{n:01024}"))).unwrap();
            most = most.max(router.cache.len());
        }
        assert!((1000..=MAX_CACHE_BYTES / 2048).contains(&most), "{most}");
        let cached = router.cache.len();
        router.route(&Bytes::from("t".repeat(1025))).unwrap();
        assert_eq!(router.cache.len(), cached, "a longer topic is not worth keeping");
    }
}
