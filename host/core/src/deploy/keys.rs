//! The keys that a board trusts, with their permissions.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::reason::{Reason, Refusal};
use crate::config;
pub use crate::key::{KeyError, KeyId, PublicKey, SigningKey};
use crate::manifest::{self, Manifest};
use crate::request::HttpRoute;
use crate::topic::TopicFilter;

/// Bounds the time of verifying a signature.
pub(crate) const MOST_KEYS: usize = 64;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustedKey {
    /// Name for people.
    pub name: String,
    pub public_key: PublicKey,
    /// Functions that the key may change. Empty: all.
    #[serde(default)]
    pub functions: Vec<Pattern>,
    /// Topics that its functions may subscribe, publish and forward to. Empty: all.
    #[serde(default)]
    pub topics: Vec<TopicFilter>,
    /// Whether it may change the trusted keys.
    #[serde(default)]
    pub keys: bool,
    /// Whether it may send native code, which runs unchecked. Omitted when false, since older boards do not know it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub native_code: bool,
    /// Whether it may change settings and nothing else. Omitted when false, since older boards do not know it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub settings_only: bool,
    /// Whether it may record the messages of its functions. Omitted when false, since older boards do not know it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub record: bool,
    /// Whether it may read the log of the board. Omitted when false, since older boards do not know it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub logs: bool,
}

/// A function's name, or a prefix followed by `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

/// The effective keys: those of the configuration, changed by signed orders.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Keys(Vec<TrustedKey>);

impl TrustedKey {
    pub fn id(&self) -> KeyId {
        self.public_key.id()
    }

    pub fn configured(name: &str, key: &config::DeployKey) -> Option<Self> {
        Some(Self {
            name: name.to_owned(),
            public_key: key.public_key?,
            functions: key.functions.iter().map(|text| Pattern(text.clone())).collect(),
            topics: key.topics.clone(),
            keys: key.keys,
            native_code: key.native_code,
            settings_only: key.settings_only,
            record: key.record,
            logs: key.logs,
        })
    }

    /// Whether the key may push, remove and roll back a function.
    pub fn may_change(&self, function: &str) -> Result<(), Refusal> {
        self.is_for_more_than_settings()?;
        self.may_set(function)
    }

    fn is_for_more_than_settings(&self) -> Result<(), Refusal> {
        if !self.settings_only {
            return Ok(());
        }
        let detail = format!("key {} may change settings only (settings_only = true)", self.name);
        Err(Refusal::new(Reason::KeyNotAllowed, detail))
    }

    /// Whether the key may change the settings of a function.
    pub fn may_set(&self, function: &str) -> Result<(), Refusal> {
        if self.functions.is_empty() || self.functions.iter().any(|pattern| pattern.matches(function)) {
            return Ok(());
        }
        let allowed: Vec<&str> = self.functions.iter().map(|pattern| &*pattern.0).collect();
        let detail = format!("key {} may not change function {function}, only {}", self.name, allowed.join(", "));
        Err(Refusal::new(Reason::KeyNotAllowed, detail))
    }

    /// Whether the key may record a function and fetch recordings of it.
    pub(crate) fn may_record(&self, function: &str) -> Result<(), Refusal> {
        self.is_for_more_than_settings()?;
        if !self.record {
            let detail =
                format!("key {} may not record functions: set record = true in its section on the board", self.name);
            return Err(Refusal::new(Reason::KeyNotAllowed, detail));
        }
        self.may_set(function)
    }

    /// Whether the key may read the log of the board, which has lines of all functions.
    pub(crate) fn may_read_log(&self) -> Result<(), Refusal> {
        self.is_for_more_than_settings()?;
        if self.logs {
            return Ok(());
        }
        let detail = format!("key {} may not read the log: set logs = true in its section on the board", self.name);
        Err(Refusal::new(Reason::KeyNotAllowed, detail))
    }

    pub(crate) fn may_change_keys(&self) -> Result<(), Refusal> {
        self.is_for_more_than_settings()?;
        if self.keys {
            return Ok(());
        }
        let detail = format!("key {} may not change the trusted keys; use one with keys = true", self.name);
        Err(Refusal::new(Reason::KeyNotAllowed, detail))
    }

    pub(crate) fn may_send_code(&self) -> Result<(), Refusal> {
        self.is_for_more_than_settings()?;
        if self.native_code {
            return Ok(());
        }
        let detail = format!(
            "key {} may not send native code: set native_code = true in its section on the board, or push the module to a \
             board with a compiler",
            self.name
        );
        Err(Refusal::new(Reason::CodeNotAllowed, detail))
    }

    /// Checks that the function subscribes, publishes, forwards and retains only within the key's topics. A manifest that
    /// does not say where it forwards is confined to them (see `StoredVersion::confined_to`).
    pub(crate) fn may_use(&self, manifest: &Manifest) -> Result<(), Refusal> {
        if self.topics.is_empty() {
            return Ok(());
        }
        let subscribed = manifest.subscribe.iter().map(|filter| ("subscribe to", filter));
        let published = manifest.allow.publish.iter().map(|filter| ("publish to", filter));
        let allow = &manifest.allow;
        let forwarded = allow.forward.iter().flatten().map(|filter| ("forward to", filter));
        let retained = allow.retain.iter().flatten().map(|filter| ("retain messages on", filter));
        let routes: Vec<TopicFilter> = manifest.http.iter().map(HttpRoute::filter).collect();
        let requested = routes.iter().map(|filter| ("take requests over HTTP as", filter));
        let mut all = subscribed.chain(requested).chain(published).chain(forwarded).chain(retained);
        match all.find(|(_, filter)| !self.topics.iter().any(|topics| topics.covers(filter))) {
            None => Ok(()),
            Some((what, filter)) => {
                let allowed: Vec<&str> = self.topics.iter().map(TopicFilter::as_str).collect();
                let detail =
                    format!("key {} may not let a function {what} {filter}, only {}", self.name, allowed.join(", "));
                Err(Refusal::new(Reason::KeyNotAllowed, detail))
            }
        }
    }
}

impl Pattern {
    pub fn matches(&self, function: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(prefix) => function.starts_with(prefix),
            None => function == self.0,
        }
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match manifest::check_pattern(text) {
            Ok(()) => Ok(Self(text.to_owned())),
            Err(invalid) => Err(invalid.what),
        }
    }
}

impl Keys {
    /// Of several entries with the same key the first counts.
    pub fn new(keys: impl IntoIterator<Item = TrustedKey>) -> Self {
        let mut known: Vec<TrustedKey> = Vec::new();
        for key in keys {
            if !known.iter().any(|other| other.public_key == key.public_key) {
                known.push(key);
            }
        }
        known.truncate(MOST_KEYS);
        Self(known)
    }

    pub fn iter(&self) -> impl Iterator<Item = &TrustedKey> {
        self.0.iter()
    }

    pub fn get(&self, id: KeyId) -> Option<&TrustedKey> {
        self.0.iter().find(|key| key.id() == id)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn key(functions: &[&str], topics: &[&str]) -> TrustedKey {
        TrustedKey {
            name: "ops".into(),
            public_key: SigningKey::generate().unwrap().public(),
            functions: functions.iter().map(|text| text.parse().unwrap()).collect(),
            topics: topics.iter().map(|text| text.parse().unwrap()).collect(),
            keys: false,
            native_code: false,
            settings_only: false,
            record: false,
            logs: false,
        }
    }

    #[test]
    fn functions_by_name_and_by_prefix() {
        let check = |functions: &[&str], function: &str, expected: bool| {
            assert_eq!(key(functions, &[]).may_change(function).is_ok(), expected, "{functions:?} {function}");
        };
        check(&[], "any", true);
        check(&["threshold"], "threshold", true);
        check(&["threshold"], "threshold-2", false);
        check(&["threshold-*"], "threshold-2", true);
        check(&["threshold-*"], "threshold", false);
        check(&["a", "b*"], "bb", true);
        check(&["*"], "x", true);
        for wrong in ["", "A", "a*b", "**", "_keys", "a/b"] {
            assert!(wrong.parse::<Pattern>().is_err(), "{wrong}");
        }
        let refusal = key(&["a"], &[]).may_change("b").unwrap_err();
        assert_eq!(refusal.to_string(), "key-not-allowed: key ops may not change function b, only a");
    }

    #[test]
    fn topics_must_cover_all_subscriptions_and_publishes() {
        let check = |topics: &[&str], expected: Option<&str>| {
            let text = "name = \"a\"\nversion = \"1\"\nsubscribe = [\"sensors/+/t\"]\nallow.publish = [\"derived/#\"]";
            let manifest = Manifest::from_toml(text, Path::new("function.toml"), None).unwrap();
            let found = key(&[], topics).may_use(&manifest).map_err(|refusal| refusal.detail).err();
            assert_eq!(found.as_deref(), expected, "{topics:?}");
        };
        check(&[], None);
        check(&["sensors/#", "derived/#"], None);
        check(&["#"], None);
        check(&["sensors/#"], Some("key ops may not let a function publish to derived/#, only sensors/#"));
        check(
            &["sensors/1/t", "derived/#"],
            Some("key ops may not let a function subscribe to sensors/+/t, only sensors/1/t, derived/#"),
        );
        check(
            &["sensors/+/t", "derived/+"],
            Some("key ops may not let a function publish to derived/#, only sensors/+/t, derived/+"),
        );
    }

    #[test]
    fn topics_must_cover_forwards_and_what_is_retained() {
        let check = |allow: &str, expected: Option<&str>| {
            let text = format!("name = \"a\"\nversion = \"1\"\nsubscribe = [\"lim/t\"]\n[allow]\n{allow}");
            let manifest = Manifest::from_toml(&text, Path::new("function.toml"), None).unwrap();
            let found = key(&[], &["lim/#"]).may_use(&manifest).map_err(|refusal| refusal.detail).err();
            assert_eq!(found.as_deref(), expected, "{allow}");
        };
        check("", None);
        check("forward = [\"lim/up\"]\nretain = [\"lim/up\"]", None);
        check("retain = false", None);
        check("forward = [\"other/#\"]", Some("key ops may not let a function forward to other/#, only lim/#"));
        check("retain = [\"#\"]", Some("key ops may not let a function retain messages on #, only lim/#"));
    }

    #[test]
    fn topics_must_cover_requests_over_http() {
        let text = "name = \"a\"\nversion = \"1\"\nhttp = [\"POST /readings/{sensor}\"]";
        let manifest = Manifest::from_toml(text, Path::new("function.toml"), None).unwrap();
        let check = |topics: &[&str]| key(&[], topics).may_use(&manifest).map_err(|refusal| refusal.detail);
        check(&[]).unwrap();
        check(&["$http/readings/#"]).unwrap();
        let detail = check(&["#"]).unwrap_err();
        assert_eq!(detail, "key ops may not let a function take requests over HTTP as $http/readings/+, only #");
    }

    #[test]
    fn a_key_counts_once() {
        let one = key(&["a"], &[]);
        let same = TrustedKey { name: "again".into(), functions: vec![], ..one.clone() };
        let keys = Keys::new([one.clone(), same]);
        assert_eq!(keys.len(), 1);
        assert_eq!(keys.get(one.id()), Some(&one));
        assert_eq!(keys.get(key(&[], &[]).id()), None);
        let json = serde_json::to_string(&one).unwrap();
        assert_eq!(serde_json::from_str::<TrustedKey>(&json).unwrap(), one);
        assert!(serde_json::from_str::<TrustedKey>(&json.replace("topics", "topic")).is_err());
    }
}
