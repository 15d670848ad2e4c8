//! Topic names and topic filters, as MQTT 5 defines them (OASIS MQTT 5.0, section 4.7).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Largest string that MQTT can carry: its length has 16 bits.
pub(crate) const MAX_BYTES: usize = 65_535;

/// Mosquitto's limit. It closes the connection of a client that uses a topic with more slashes, so a record with such a
/// topic would never leave the outbox.
pub(crate) const MAX_SLASHES: usize = 200;

/// A topic filter: `sensors/+/temperature`, `sensors/#`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicFilter(Arc<str>);

impl TopicFilter {
    pub fn parse(text: &str) -> Result<Self, TopicError> {
        check_text(text)?;
        if text == "$share" || text.starts_with("$share/") {
            return Err(TopicError::Shared);
        }
        let mut levels = text.split('/').peekable();
        while let Some(level) = levels.next() {
            match level {
                "+" => {}
                "#" if levels.peek().is_some() => return Err(TopicError::HashNotLast),
                "#" => {}
                _ if level.contains(['+', '#']) => return Err(TopicError::PartialWildcard { level: level.into() }),
                _ => {}
            }
        }
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the filter names this first level, instead of hearing it through a wildcard.
    pub fn names(&self, first_level: &str) -> bool {
        self.0.split('/').next() == Some(first_level)
    }

    /// Whether a topic name matches. The topic must be valid.
    pub fn matches(&self, topic: &str) -> bool {
        // Only at the beginning: `sensors/+` matches `sensors/$battery`.
        if topic.starts_with('$') && self.starts_with_wildcard() {
            return false;
        }
        let mut filter = self.0.split('/');
        let mut topic = topic.split('/');
        loop {
            match (filter.next(), topic.next()) {
                // Also with no level left: `sport/#` matches `sport`.
                (Some("#"), _) | (None, None) => return true,
                (Some("+"), Some(_)) => {}
                (Some(expected), Some(level)) if expected == level => {}
                _ => return false,
            }
        }
    }

    /// Whether some topic matches both filters.
    pub(crate) fn intersects(&self, other: &Self) -> bool {
        if self.misses_dollar(other) || other.misses_dollar(self) {
            return false;
        }
        let mut left = self.expanded().split('/');
        let mut right = other.expanded().split('/');
        loop {
            match (left.next(), right.next()) {
                (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
                (Some("+"), Some(_)) | (Some(_), Some("+")) => {}
                (Some(a), Some(b)) if a == b => {}
                _ => return false,
            }
        }
    }

    /// Whether every topic that matches `other` also matches this filter.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        if self.misses_dollar(other) {
            return false;
        }
        let mut wide = self.expanded().split('/');
        let mut narrow = other.expanded().split('/');
        loop {
            match (wide.next(), narrow.next()) {
                (Some("#"), _) | (None, None) => return true,
                // `a/#` also matches `a`, which `a/+` does not.
                (Some("+"), Some("#")) => return false,
                (Some("+"), Some(_)) => {}
                (Some(a), Some(b)) if a == b => {}
                _ => return false,
            }
        }
    }

    fn starts_with_wildcard(&self) -> bool {
        self.0.starts_with(['+', '#'])
    }

    /// The same filter in a form that shows that the empty string is not a topic: `#` needs at least one level.
    fn expanded(&self) -> &str {
        match &*self.0 {
            "#" => "+/#",
            "/#" => "/+/#",
            text => text,
        }
    }

    fn misses_dollar(&self, other: &Self) -> bool {
        self.starts_with_wildcard() && other.0.starts_with('$')
    }
}

/// Whether a function with these filters hears a topic.
pub(crate) fn is_heard(topic: &str, subscribe: &[TopicFilter], except: &[TopicFilter]) -> bool {
    let matches = |filters: &[TopicFilter]| filters.iter().any(|filter| filter.matches(topic));
    matches(subscribe) && !matches(except)
}

/// Checks a topic to publish to. No broker closes the connection over a topic that passes.
pub fn validate_name(topic: &str) -> Result<(), TopicError> {
    check_text(topic)?;
    match topic.find(['+', '#']) {
        Some(_) => Err(TopicError::WildcardInName),
        None => Ok(()),
    }
}

/// Checks that a valid prefix and a valid topic behind it are a topic together.
pub(crate) fn validate_prefixed(prefix: &str, topic: &str) -> Result<(), TopicError> {
    check_size(prefix.len() + topic.len(), slashes(prefix) + slashes(topic))
}

fn slashes(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b'/').count()
}

fn check_size(bytes: usize, slashes: usize) -> Result<(), TopicError> {
    if bytes > MAX_BYTES {
        return Err(TopicError::TooLong { bytes });
    }
    if slashes > MAX_SLASHES {
        return Err(TopicError::TooDeep { slashes });
    }
    Ok(())
}

/// Checks MQTT's rules for every topic string, and those that Mosquitto adds.
fn check_text(text: &str) -> Result<(), TopicError> {
    if text.is_empty() {
        return Err(TopicError::Empty);
    }
    check_size(text.len(), slashes(text))?;
    // MQTT forbids NUL and lets a broker refuse the others (section 1.5.4); Mosquitto does.
    match text.chars().find(|c| c.is_control() || is_noncharacter(*c)) {
        Some(character) => Err(TopicError::Character { character }),
        None => Ok(()),
    }
}

pub(crate) fn is_noncharacter(c: char) -> bool {
    matches!(c, '\u{fdd0}'..='\u{fdef}') || (c as u32) & 0xfffe == 0xfffe
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    #[error("empty topic")]
    Empty,
    #[error("topic of {bytes} bytes, at most {MAX_BYTES} are allowed")]
    TooLong { bytes: usize },
    #[error("topic with {slashes} slashes, at most {MAX_SLASHES} are allowed")]
    TooDeep { slashes: usize },
    #[error("topic contains the character {}", character.escape_unicode())]
    Character { character: char },
    #[error("topic name contains a wildcard (+ or #)")]
    WildcardInName,
    #[error("# must be the last level")]
    HashNotLast,
    #[error("wildcard inside the level {level:?}: + and # must stand alone between slashes")]
    PartialWildcard { level: Box<str> },
    /// Sharing is a setting of the board's session (`mqtt.share_group`), not of a function.
    #[error("$share/ subscriptions are set with mqtt.share_group")]
    Shared,
}

impl fmt::Display for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for TopicFilter {
    type Err = TopicError;

    fn from_str(text: &str) -> Result<Self, TopicError> {
        Self::parse(text)
    }
}

impl Serialize for TopicFilter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TopicFilter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filter(text: &str) -> TopicFilter {
        TopicFilter::parse(text).unwrap()
    }

    /// The definition of matching, recursively.
    fn naive(filter: &[&str], topic: &[&str], first: bool) -> bool {
        let hidden = first && topic.first().is_some_and(|level| level.starts_with('$'));
        match (filter, topic) {
            ([], []) => true,
            (["#"], _) => !hidden,
            (["+", filter @ ..], [_, topic @ ..]) => !hidden && naive(filter, topic, false),
            ([a, filter @ ..], [b, topic @ ..]) => a == b && naive(filter, topic, false),
            _ => false,
        }
    }

    fn levels(text: &str) -> Vec<&str> {
        text.split('/').collect()
    }

    /// Every string of up to `depth` levels from `alphabet`, except the empty string.
    fn every(alphabet: &[&str], depth: usize) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        let mut longest: Vec<String> = alphabet.iter().map(|level| (*level).to_owned()).collect();
        for _ in 0..depth {
            all.extend(longest.iter().cloned());
            longest = longest.iter().flat_map(|head| alphabet.iter().map(move |l| format!("{head}/{l}"))).collect();
        }
        all.retain(|text| !text.is_empty());
        all
    }

    #[test]
    fn matches_as_the_standard_says() {
        let check = |text: &str, topic: &str, expected: bool| {
            assert_eq!(filter(text).matches(topic), expected, "{text} on {topic}");
        };
        check("sport/tennis/player1/#", "sport/tennis/player1", true);
        check("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true);
        check("sport/#", "sport", true);
        check("sport/#", "sports", false);
        check("sport/tennis/+", "sport/tennis/player1", true);
        check("sport/tennis/+", "sport/tennis/player1/ranking", false);
        check("sport/+", "sport", false);
        check("sport/+", "sport/", true);
        check("+/+", "/finance", true);
        check("/+", "/finance", true);
        check("+", "/finance", false);
        check("#", "a/b/c", true);
        check("#", "$SYS/uptime", false);
        check("+/uptime", "$SYS/uptime", false);
        check("$SYS/#", "$SYS/uptime", true);
        check("$SYS/+", "$SYS/uptime", true);
        check("sensors/+", "sensors/$battery", true);
        check("Sensors/a", "sensors/a", false);
    }

    #[test]
    fn refuses_invalid_filters() {
        let check = |text: &str, expected: TopicError| assert_eq!(TopicFilter::parse(text), Err(expected), "{text:?}");
        check("", TopicError::Empty);
        check("a/#/b", TopicError::HashNotLast);
        check("#/", TopicError::HashNotLast);
        check("a/b#", TopicError::PartialWildcard { level: "b#".into() });
        check("a+/b", TopicError::PartialWildcard { level: "a+".into() });
        check("a/++", TopicError::PartialWildcard { level: "++".into() });
        check("$share/group/a", TopicError::Shared);
        check("$share", TopicError::Shared);
        check("a\0b", TopicError::Character { character: '\0' });
        check("a\u{7f}", TopicError::Character { character: '\u{7f}' });
        check("a\u{1ffff}", TopicError::Character { character: '\u{1ffff}' });
        check(&"a".repeat(MAX_BYTES + 1), TopicError::TooLong { bytes: MAX_BYTES + 1 });
        check(&"/".repeat(MAX_SLASHES + 1), TopicError::TooDeep { slashes: MAX_SLASHES + 1 });
        assert!(TopicFilter::parse(&"a".repeat(MAX_BYTES)).is_ok());
        assert!(TopicFilter::parse(&"/".repeat(MAX_SLASHES)).is_ok());
        assert!(TopicFilter::parse("$shared/a").is_ok());
        assert!(TopicFilter::parse("küche/温度").is_ok());
    }

    #[test]
    fn refuses_invalid_names() {
        assert_eq!(validate_name("a/b"), Ok(()));
        assert_eq!(validate_name("/"), Ok(()));
        assert_eq!(validate_name("a/+"), Err(TopicError::WildcardInName));
        assert_eq!(validate_name("a#"), Err(TopicError::WildcardInName));
        assert_eq!(validate_name(""), Err(TopicError::Empty));
        assert_eq!(validate_name("a\nb"), Err(TopicError::Character { character: '\n' }));
    }

    /// All pairs of filters of up to three levels, against all topics of up to four. One level more than the filters have
    /// is enough to distinguish any two of them.
    #[test]
    fn intersects_and_covers_agree_with_enumeration() {
        let topics = every(&["", "a", "b", "$a"], 4);
        let filters: Vec<TopicFilter> =
            every(&["", "a", "$a", "+", "#"], 3).iter().filter_map(|text| TopicFilter::parse(text).ok()).collect();
        let sets: Vec<Vec<bool>> =
            filters.iter().map(|f| topics.iter().map(|topic| f.matches(topic)).collect()).collect();
        for (left, left_set) in filters.iter().zip(&sets) {
            for (right, right_set) in filters.iter().zip(&sets) {
                let pairs = || left_set.iter().zip(right_set);
                assert_eq!(left.intersects(right), pairs().any(|(a, b)| *a && *b), "{left} intersects {right}");
                assert_eq!(left.covers(right), pairs().all(|(a, b)| *a || !*b), "{left} covers {right}");
            }
        }
    }

    proptest! {
        #[test]
        fn matches_agrees_with_the_naive_matcher(
            text in prop::collection::vec(prop::sample::select(vec!["", "a", "b", "$a", "+", "#"]), 1..6),
            topic in prop::collection::vec(prop::sample::select(vec!["", "a", "b", "$a"]), 1..6),
        ) {
            let (text, topic) = (text.join("/"), topic.join("/"));
            prop_assume!(!topic.is_empty());
            if let Ok(filter) = TopicFilter::parse(&text) {
                prop_assert_eq!(filter.matches(&topic), naive(&levels(&text), &levels(&topic), true));
            }
        }

        #[test]
        fn parse_never_panics_and_a_filter_without_wildcards_is_a_name(text in ".{0,40}") {
            if let Ok(filter) = TopicFilter::parse(&text) {
                let is_name = validate_name(&text).is_ok();
                prop_assert_eq!(!text.contains(['+', '#']), is_name);
                prop_assert!(!is_name || filter.matches(&text));
            }
        }
    }
}
