//! A search for numbers by name, at any depth of a document.

use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use super::cursor::{Cursor, Visit};
use super::text::{compare, is_escaped, unescape, utf8};
use super::value::Value;
use crate::number::decimal;
use crate::read::{self, NumberFormat, ReadError};

/// A number that a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading<'a> {
    /// Index of its name among those searched for.
    pub field: usize,
    /// Where it is, as [`Message::number`](crate::Message::number) takes it: `DS18B20-1.Temperature`, `probes[2].temperature`. The
    /// name itself for a payload that is only a number.
    pub path: String,
    /// The number, or why it cannot be read.
    pub value: Result<f64, ReadError>,
    /// What is there, to read it as something else.
    pub raw: Value<'a>,
}

/// A child of an object or array: its name, or its index and no name.
#[derive(Clone, Copy, PartialEq)]
struct Step<'a> {
    name: Option<&'a [u8]>,
    index: usize,
}

/// An open object or array.
struct Level<'a> {
    /// The child that the search is in.
    step: Step<'a>,
    /// Number of matches before it.
    before: usize,
    /// For an array: the match that its name made, which counts for its elements.
    name: Option<NameMatch>,
    /// One bit for each field that a member with exactly its name was found for.
    exact: u32,
}

#[derive(Clone, Copy)]
struct NameMatch {
    field: u16,
    /// Level of the object whose member has the name.
    level: u16,
    exact: bool,
}

struct Match<'a> {
    name: NameMatch,
    /// Its place in the steps of all matches.
    steps: Range<usize>,
    raw: &'a [u8],
    value: Result<f64, read::Fault>,
    /// Whether a later member takes its place.
    hidden: bool,
}

struct Search<'a, 'n> {
    fields: &'n [&'n str],
    format: NumberFormat<'n>,
    levels: Vec<Level<'a>>,
    matches: Vec<Match<'a>>,
    steps: Vec<Step<'a>>,
    /// The match that the name of the value to come makes.
    name: Option<NameMatch>,
}

/// All numbers whose name is one of `fields` without regard to case, in the order of the document, in one pass.
///
/// The elements of an array count as having its name. Null is no match. Of members with equal names the last counts, and in one
/// object a member with exactly the name hides those with other case.
#[inline(never)]
pub(crate) fn find_numbers<'a>(
    document: &'a [u8],
    fields: &[&str],
    format: NumberFormat<'_>,
) -> Result<Vec<Reading<'a>>, ReadError> {
    let mut search = Search {
        fields,
        format,
        // Room for what most payloads need, so that it does not grow.
        levels: Vec::with_capacity(8),
        matches: Vec::with_capacity(4),
        steps: Vec::with_capacity(8),
        name: None,
    };
    let mut cursor = Cursor { rest: document };
    let whole = cursor.walk(&mut search);
    if whole.is_none() || cursor.first().is_some() {
        return Err(read::not_json(document, cursor.rest));
    }
    let mut readings = Vec::with_capacity(search.matches.len());
    for found in search.matches {
        if !found.hidden {
            let path = path(search.steps.get(found.steps).unwrap_or_default());
            let value = found.value.map_err(|fault| fault.describe(&path, found.raw));
            readings.push(Reading { field: found.name.field.into(), path, value, raw: Value::json(found.raw) });
        }
    }
    Ok(readings)
}

fn path(steps: &[Step<'_>]) -> String {
    let mut path = String::new();
    for step in steps {
        match step.name {
            Some(name) => {
                if !path.is_empty() {
                    path.push('.');
                }
                match utf8(name) {
                    Some(name) if !is_escaped(name.as_bytes()) => path.push_str(name),
                    _ => path.push_str(unescape(name).as_deref().unwrap_or("?")),
                }
            }
            None => {
                path.push('[');
                path.push_str(decimal(step.index as u64, &mut [0; 20]));
                path.push(']');
            }
        }
    }
    path
}

impl<'a> Visit<'a> for Search<'a, '_> {
    #[inline(always)]
    fn open(&mut self, object: bool) {
        let name = if object { None } else { self.name };
        self.name = None;
        // An array counts its elements from here.
        let step = Step { name: None, index: usize::MAX };
        self.levels.push(Level { step, before: self.matches.len(), name, exact: 0 });
    }

    #[inline(always)]
    fn close(&mut self) {
        self.levels.pop();
    }

    #[inline(always)]
    fn name(&mut self, name: &'a [u8]) {
        let Some(object) = self.levels.last_mut() else { return };
        object.step.name = Some(name);
        if self.matches.len() > object.before {
            self.forget();
        }
        self.name = None;
        for (field, wanted) in self.fields.iter().enumerate() {
            // Escapes make a name longer.
            if name.len() >= wanted.len()
                && let Some(exact) = compare(name, wanted.as_bytes())
            {
                let level = self.levels.len().wrapping_sub(1) as u16;
                self.name = Some(NameMatch { field: field as u16, level, exact });
                break;
            }
        }
    }

    #[inline(always)]
    fn element(&mut self) {
        let Some(array) = self.levels.last_mut() else { return };
        array.step.index = array.step.index.wrapping_add(1);
        self.name = array.name;
    }

    #[inline(always)]
    fn scalar(&mut self, raw: &'a [u8]) {
        if let Some(name) = self.name {
            self.record(name, raw);
        }
    }
}

impl<'a> Search<'a, '_> {
    /// Hides the matches below an earlier member with the name of the present one.
    #[inline(never)]
    fn forget(&mut self) {
        let level = self.levels.len().wrapping_sub(1);
        let Some(object) = self.levels.last() else { return };
        for found in self.matches.get_mut(object.before..).unwrap_or_default() {
            let step = self.steps.get(found.steps.start + level);
            found.hidden |= step == Some(&object.step);
        }
    }

    #[inline(never)]
    fn record(&mut self, name: NameMatch, raw: &'a [u8]) {
        let value = match read::parse(raw, self.format) {
            Ok(None) => return,
            Ok(Some(value)) => Ok(value),
            Err(fault) => Err(fault),
        };
        let Some(object) = self.levels.get_mut(usize::from(name.level)) else { return };
        let bit = 1 << (name.field & 31);
        let mut hidden = false;
        if name.exact {
            object.exact |= bit;
            for found in self.matches.get_mut(object.before..).unwrap_or_default() {
                let other = found.name;
                found.hidden |= other.level == name.level && other.field == name.field && !other.exact;
            }
        } else {
            hidden = object.exact & bit != 0;
        }
        let start = self.steps.len();
        self.steps.extend(self.levels.iter().map(|level| level.step));
        self.matches.push(Match { name, steps: start..self.steps.len(), raw, value, hidden });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::lookup;
    use std::format;
    use std::string::ToString;

    #[track_caller]
    fn check(document: &str, fields: &[&str], expected: &[(&str, f64)]) {
        let found = find_numbers(document.as_bytes(), fields, NumberFormat::default()).unwrap();
        let found: Vec<(&str, f64)> =
            found.iter().map(|reading| (reading.path.as_str(), *reading.value.as_ref().unwrap())).collect();
        assert_eq!(found, expected, "{fields:?} in {document}");
        for (path, value) in found {
            let there = lookup(document.as_bytes(), path).unwrap().unwrap();
            assert_eq!(there.number(), Ok(Some(value)), "{path} in {document}");
        }
    }

    #[test]
    fn the_second_of_two_sensors_is_found() {
        let both = r#"{"DS18B20-1":{"Temperature":21.4},"DS18B20-2":{"Temperature":95.1}}"#;
        check(both, &["temperature"], &[("DS18B20-1.Temperature", 21.4), ("DS18B20-2.Temperature", 95.1)]);
    }

    #[test]
    fn a_null_does_not_hide_the_next_sensor() {
        let null = r#"{"DS18B20-1":{"Temperature":null},"DS18B20-2":{"Temperature":95.1}}"#;
        check(null, &["temperature"], &[("DS18B20-2.Temperature", 95.1)]);
        for word in ["NaN", "Infinity", "-Infinity", "nan", "\"\"", "\"unavailable\""] {
            let document = format!(r#"{{"a":{{"t":{word}}},"t":95.1}}"#);
            check(&document, &["t"], &[("t", 95.1)]);
        }
    }

    #[test]
    fn arrays_are_searched() {
        check(
            r#"{"probes":[{"temperature":1},{"x":[{"temperature":2}]}],"temperature":[3,[4,null]]}"#,
            &["temperature"],
            &[
                ("probes[0].temperature", 1.0),
                ("probes[1].x[0].temperature", 2.0),
                ("temperature[0]", 3.0),
                ("temperature[1][0]", 4.0),
            ],
        );
        check(r#"[{"t":1},{"t":2}]"#, &["t"], &[("[0].t", 1.0), ("[1].t", 2.0)]);
        check(r#"{"t":{"t":{"v":1}}}"#, &["t"], &[]);
        check(r#"{"t":[{"v":1}]}"#, &["t"], &[]);
    }

    #[test]
    fn several_fields_are_found_in_one_pass() {
        let document = r#"{"BME280":{"Temperature":-3.0,"Humidity":"48.5"},"TempUnit":"C"}"#;
        let found = find_numbers(document.as_bytes(), &["humidity", "temperature"], NumberFormat::default()).unwrap();
        let found: Vec<_> = found.into_iter().map(|reading| (reading.field, reading.value.unwrap())).collect();
        assert_eq!(found, [(1, -3.0), (0, 48.5)]);
    }

    #[test]
    fn the_last_of_equal_names_wins() {
        check(r#"{"t":95,"t":20}"#, &["t"], &[("t", 20.0)]);
        check(r#"{"t":95,"t":null}"#, &["t"], &[]);
        check(r#"{"t":[95,96],"t":20}"#, &["t"], &[("t", 20.0)]);
        check(r#"{"a":{"t":95},"b":{"t":1},"a":{"t":20}}"#, &["t"], &[("b.t", 1.0), ("a.t", 20.0)]);
        check(r#"{"a":{"t":95},"a":null}"#, &["t"], &[]);
        check(r#"{"b":{"t":1},"a":{"b":{"t":2}}}"#, &["t"], &[("b.t", 1.0), ("a.b.t", 2.0)]);
    }

    #[test]
    fn the_exact_name_wins_over_another_case() {
        check(r#"{"Temperature":99,"temperature":20}"#, &["temperature"], &[("temperature", 20.0)]);
        check(r#"{"temperature":20,"Temperature":99}"#, &["temperature"], &[("temperature", 20.0)]);
        check(r#"{"Temperature":[98,99],"temperature":20}"#, &["temperature"], &[("temperature", 20.0)]);
        check(
            r#"{"a":{"Temperature":1},"temperature":2,"b":{"Temperature":3}}"#,
            &["temperature"],
            &[("a.Temperature", 1.0), ("temperature", 2.0), ("b.Temperature", 3.0)],
        );
        check(r#"{"temperature":null,"Temperature":20}"#, &["temperature"], &[("Temperature", 20.0)]);
        check(r#"{"Temper\u0061ture":1}"#, &["temperature"], &[("Temperature", 1.0)]);
    }

    #[test]
    fn an_unreadable_value_is_reported_in_its_place() {
        let document = br#"{"a":{"t":"81,5"},"b":{"t":1e999},"c":{"t":7}}"#;
        let found = find_numbers(document, &["t"], NumberFormat::default()).unwrap();
        let [a, b, c] = &found[..] else { panic!("{found:?}") };
        assert!(matches!(&a.value, Err(ReadError::Unreadable(why)) if why.contains("a.t")), "{a:?}");
        assert!(matches!(&b.value, Err(ReadError::OutOfRange(why)) if why.contains("b.t")), "{b:?}");
        assert_eq!(c.value, Ok(7.0));
    }

    #[test]
    fn every_path_leads_back_to_its_number() {
        // Documents put together at random, with many equal names.
        let names = ["t", "T", "a", "b"];
        let mut seed = 7u64;
        let mut next = move |below: usize| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as usize % below
        };
        fn value(next: &mut impl FnMut(usize) -> usize, names: &[&str], depth: usize) -> String {
            let count = next(4);
            match next(if depth == 0 { 2 } else { 5 }) {
                0 => next(1000).to_string(),
                1 => "null".into(),
                2 => {
                    let items: Vec<String> = (0..count).map(|_| value(next, names, depth - 1)).collect();
                    format!("[{}]", items.join(","))
                }
                _ => {
                    let mut member = || format!("\"{}\":{}", names[next(names.len())], value(next, names, depth - 1));
                    let members: Vec<String> = (0..count).map(|_| member()).collect();
                    format!("{{{}}}", members.join(","))
                }
            }
        }
        let mut seen = 0;
        for _ in 0..5_000 {
            let document = value(&mut next, &names, 4);
            if !document.starts_with(['{', '[']) {
                continue;
            }
            let found = find_numbers(document.as_bytes(), &["t"], NumberFormat::default()).unwrap();
            for reading in &found {
                let there = lookup(document.as_bytes(), &reading.path).unwrap().unwrap();
                assert_eq!(there.number().unwrap(), reading.value.clone().ok(), "{} in {document}", reading.path);
                seen += 1;
            }
        }
        assert!(seen > 1000, "{seen}");
    }
}
