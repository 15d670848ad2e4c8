//! `at`, `zone` and `catch_up`: times of the calendar at which the function runs.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::{Manifest, format_period, is_name, parse_period};
use crate::config::document::{Item, Value};
use crate::config::problem::{Invalid, Problems};
use crate::config::reader::{Read, Section, parsed, refuse, wrong_kind};
use crate::schedule;

/// Expressions of one function.
const MAX_EXPRESSIONS: usize = 32;
/// A run that is later than this is of no use to anybody.
const MAX_CATCH_UP: Duration = Duration::from_secs(7 * 24 * 3600);

/// How late a run may begin that fell into a time when the board was off, or did not know the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CatchUp(pub Duration);

impl Default for CatchUp {
    fn default() -> Self {
        Self(Duration::from_secs(3600))
    }
}

impl CatchUp {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Serialize for CatchUp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_period(self.0))
    }
}

impl Read for CatchUp {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        parsed(item, key, problems, |text| match parse_period(text) {
            Some(period) if period <= MAX_CATCH_UP => Ok(Self(period)),
            Some(_) => {
                Err(Invalid::new(format!("{text:?} is out of range")).hint("use 168h, which is a week, or less"))
            }
            None => Err(Invalid::new(format!("{text:?} is not a time"))
                .hint("write a whole number and s, m or h: \"30m\", \"1h\", or \"0s\" to make up for nothing")),
        })
    }
}

impl Manifest {
    /// Whether the topic is that of one of its schedules.
    pub fn has_schedule(&self, topic: &str) -> bool {
        topic.strip_prefix(schedule::PREFIX).is_some_and(|name| self.at.contains_key(name))
    }

    /// What makes a schedule of this name another one if it changes: its expressions and its zone.
    pub fn schedule_spec(&self, name: &str) -> String {
        let expressions = self.at.get(name).map(|it| it.join("; ")).unwrap_or_default();
        format!("{expressions} in {}", self.zone.as_deref().unwrap_or("the zone of the board"))
    }
}

pub(super) fn read(section: &mut Section<'_, '_>, manifest: &mut Manifest) {
    if section.item("at").is_some_and(|item| matches!(item.value, Value::Table(_))) {
        section.section("at", |at| {
            for (name, _) in at.entries() {
                let expressions = expressions(at, name);
                if !is_name(name) {
                    let invalid = Invalid::new(format!("{name:?} is not the name of a schedule"));
                    at.error(name, invalid.hint("use 1 to 64 of a-z, 0-9 and -"));
                }
                manifest.at.insert(name.to_owned(), expressions);
            }
        });
    } else if section.has("at") {
        let expressions = expressions(section, "at");
        manifest.at = BTreeMap::from([(manifest.name.to_string(), expressions)]);
    }
    let count = manifest.at.values().map(Vec::len).sum::<usize>();
    if count > MAX_EXPRESSIONS {
        let invalid = Invalid::new(format!("{count} expressions, the limit is {MAX_EXPRESSIONS}"));
        section.error("at", invalid.hint("use lists and ranges within an expression, or split the function"));
    }
    section.optional("zone", &mut manifest.zone);
    if let Some(zone) = manifest.zone.as_ref().filter(|zone| !schedule::is_zone_name(zone)) {
        let invalid = Invalid::new(format!("{zone:?} is not the name of a time zone"));
        section.error("zone", invalid.hint("name a place of the time zone database, for example \"Europe/Berlin\""));
    }
    section.value("catch_up", &mut manifest.catch_up);
    for key in ["zone", "catch_up"] {
        if section.has(key) && !section.has("at") {
            let invalid = Invalid::new("the function has no schedule");
            section.error(key, invalid.hint("add at = \"0 6 * * *\", or remove it"));
        }
    }
}

/// A text or a list of texts, each of which is an expression.
fn expressions(section: &mut Section<'_, '_>, key: &str) -> Vec<String> {
    let mut read = Expressions(Vec::new());
    if section.value(key, &mut read) && read.0.is_empty() {
        let invalid = Invalid::new("empty: it would never come");
        section.error(key, invalid.hint("name a time, for example \"0 6 * * *\", or remove it"));
    }
    read.0
}

struct Expressions(Vec<String>);

impl Read for Expressions {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        let expected = "an expression such as \"0 6 * * mon-fri\", a list of them, or a section with names";
        let items = match &item.value {
            Value::Array(items) => &items[..],
            Value::String(_) => std::slice::from_ref(item),
            _ => return wrong_kind(item, key, expected, problems),
        };
        let mut expressions: Vec<String> = Vec::new();
        for item in items {
            let Value::String(text) = &item.value else { return wrong_kind(item, key, expected, problems) };
            if let Err(invalid) = schedule::check(text) {
                return refuse(item, key, invalid, problems);
            }
            if expressions.contains(text) {
                return refuse(
                    item,
                    key,
                    Invalid::new(format!("{text:?} is listed twice")).hint("remove one"),
                    problems,
                );
            }
            expressions.push(text.clone());
        }
        Some(Self(expressions))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(lines: &str) -> Result<Manifest, String> {
        let text = format!("name = \"mow\"\nversion = \"1\"\n{lines}");
        Manifest::from_toml(&text, Path::new("function.toml"), None).map_err(|problems| problems.to_string())
    }

    #[test]
    fn a_schedule_has_the_name_of_the_function_or_one_of_its_own() {
        for (lines, expected) in [
            ("at = \"0 6 * * mon-fri\"", &[("mow", &["0 6 * * mon-fri"][..])][..]),
            ("at = [\"0 6 * * *\", \"@hourly\"]", &[("mow", &["0 6 * * *", "@hourly"])]),
            (
                "zone = \"Europe/Berlin\"\n[at]\nmorning = \"0 6 * * *\"\nevening = [\"0 18 * * *\"]",
                &[("evening", &["0 18 * * *"]), ("morning", &["0 6 * * *"])],
            ),
        ] {
            let manifest = read(lines).unwrap();
            let at: Vec<(&str, Vec<&str>)> =
                manifest.at.iter().map(|(name, it)| (&**name, it.iter().map(|it| &**it).collect())).collect();
            let expected: Vec<(&str, Vec<&str>)> = expected.iter().map(|(name, it)| (*name, it.to_vec())).collect();
            assert_eq!(at, expected, "{lines}");
            assert_eq!(Manifest::from_json(&manifest.to_json(), None).unwrap(), manifest, "{lines}");
        }
        assert_eq!(read("at = \"0 6 * * *\"").unwrap().catch_up, CatchUp(Duration::from_secs(3600)));
        let short = read("at = \"0 6 * * *\"\ncatch_up = \"0s\"").unwrap();
        assert_eq!(short.catch_up, CatchUp(Duration::ZERO));
        assert_eq!(Manifest::from_json(&short.to_json(), None).unwrap(), short);
        let plain = String::from_utf8(read("every = \"1s\"").unwrap().to_json()).unwrap();
        assert!(!plain.contains("\"at\"") && !plain.contains("zone") && !plain.contains("catch_up"), "{plain}");
    }

    #[test]
    fn problems_name_the_line_and_the_fix() {
        let many: Vec<String> = (0..33).map(|minute| format!("\"{minute} 6 * * *\"")).collect();
        let many = format!("at = [{}]", many.join(", "));
        for (lines, named) in [
            ("at = \"0 0 30 2 *\"", "3:6: at: \"0 0 30 2 *\" never comes"),
            ("at = [\"0 6 * * *\", \"0 25 * * *\"]", "\"0 25 * * *\" is not the expression of a schedule"),
            ("at = [\"0 6 * * *\", \"0 6 * * *\"]", "listed twice"),
            ("at = []", "empty: it would never come"),
            ("at = 6", "expected an expression such as"),
            ("[at]\nMorning = \"0 6 * * *\"", "\"Morning\" is not the name of a schedule"),
            ("[at]\nmorning = 6", "expected an expression such as"),
            (&*many, "33 expressions, the limit is 32"),
            ("at = \"0 6 * * *\"\nzone = \"../../etc/passwd\"", "\"../../etc/passwd\" is not the name of a time zone"),
            ("at = \"0 6 * * *\"\ncatch_up = \"soon\"", "\"soon\" is not a time"),
            ("at = \"0 6 * * *\"\ncatch_up = \"169h\"", "out of range; use 168h"),
            ("every = \"1s\"\nzone = \"UTC\"", "the function has no schedule"),
            ("every = \"1s\"\ncatch_up = \"1h\"", "the function has no schedule"),
            ("every = \"1s\"\nsubscribe = [\"$schedule/a\"]", "$schedule topics never come from the broker"),
            ("[at]", "the function would never run"),
        ] {
            let error = read(lines).unwrap_err();
            assert!(error.contains(named), "{lines}: {error}");
        }
    }
}
