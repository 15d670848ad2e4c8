//! Section `[silence]` of a manifest: after how long without a message on one of its topics the function is called.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::{Manifest, format_period};
use crate::config::problem::Invalid;
use crate::config::reader::Section;
use crate::topic;

/// Shorter silences cost more than they are worth.
const MIN_AFTER: Duration = Duration::from_secs(1);
/// What stands for each of `names` in `expect`.
const PLACE: &str = "{name}";
const MAX_TOPICS: u32 = 10_000;
/// What a function may ask for: each topic holds memory.
const MOST_TOPICS: u32 = 100_000;

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Silence {
    #[serde(serialize_with = "as_period")]
    pub after: Duration,
    /// Calls the function once more when a topic that was silent speaks again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub back: bool,
    /// Topics that are silent although they have never spoken, with `{name}` for each of `names`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub expect: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Topics beyond are not watched.
    pub max_topics: NonZeroU32,
}

fn as_period<S: Serializer>(period: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format_period(*period))
}

impl Silence {
    /// Of the topics that are heard, without a call when they speak again.
    pub fn after(after: Duration) -> Self {
        let max_topics = NonZeroU32::new(MAX_TOPICS).expect("a default is not zero");
        Self { after, back: false, expect: Vec::new(), names: Vec::new(), max_topics }
    }

    /// Topics that are expected to speak.
    pub fn expected(&self) -> impl Iterator<Item = String> {
        self.expect.iter().flat_map(move |topic| {
            let count = if topic.contains(PLACE) { self.names.len() } else { 1 };
            (0..count).map(move |n| match self.names.get(n) {
                Some(name) => topic.replace(PLACE, name),
                None => topic.clone(),
            })
        })
    }

    /// Number of [`Silence::expected`].
    fn expected_count(&self) -> usize {
        self.expect.iter().map(|topic| if topic.contains(PLACE) { self.names.len() } else { 1 }).sum()
    }
}

/// Reads the section, if there is one.
pub(super) fn read(section: &mut Section<'_, '_>, manifest: &mut Manifest) {
    if !section.has("silence") {
        return;
    }
    let mut silence = Silence::after(MIN_AFTER);
    section.section("silence", |section| {
        section.require("after", "\"10m\"");
        section.value("after", &mut silence.after);
        section.value("back", &mut silence.back);
        section.value("expect", &mut silence.expect);
        section.value("names", &mut silence.names);
        section.value("max_topics", &mut silence.max_topics);
        if silence.after < MIN_AFTER {
            section.error("after", Invalid::new("shorter than a second").hint("use 1s or more"));
        }
        if silence.max_topics.get() > MOST_TOPICS {
            let invalid = Invalid::new(format!("more than {MOST_TOPICS} topics"));
            section.error("max_topics", invalid.hint("use less, or several functions with filters of their own"));
        }
        check_expected(section, &silence, manifest);
    });
    manifest.silence = Some(silence);
}

fn check_expected(section: &mut Section<'_, '_>, silence: &Silence, manifest: &Manifest) {
    if manifest.subscribe.is_empty() {
        let invalid = Invalid::new("the function hears no topic that could be silent");
        return section.error("after", invalid.hint("name topic filters in subscribe"));
    }
    let has_place = silence.expect.iter().any(|topic| topic.contains(PLACE));
    if has_place == silence.names.is_empty() {
        let invalid = Invalid::new(format!("names are what {PLACE} in expect stands for, and one of both is missing"));
        return section.error(
            "names",
            invalid.hint("for example expect = [\"sensors/{name}/temperature\"] and names = [\"f1\"]"),
        );
    }
    let (count, most) = (silence.expected_count(), silence.max_topics.get() as usize);
    if count > most {
        let invalid = Invalid::new(format!("{count} topics are expected, the limit is {most} (max_topics)"));
        return section.error("expect", invalid.hint("expect fewer, or raise max_topics"));
    }
    for topic in silence.expected() {
        if let Err(error) = topic::validate_name(&topic) {
            return section.error("expect", Invalid::new(format!("{topic:?} is not a topic: {error}")));
        }
        if !manifest.hears(&topic) {
            let invalid = Invalid::new(format!("{topic} is not heard, so it would always be silent"));
            return section.error("expect", invalid.hint("name topics that a filter of subscribe matches"));
        }
    }
}
