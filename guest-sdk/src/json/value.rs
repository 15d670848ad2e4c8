use alloc::string::String;

use super::cursor::{Cursor, closing};
use super::text::{is_escaped, unescape};
use crate::number;
use crate::read::{self, ReadError};

/// A value in a payload: of JSON, or a payload that is one plain value.
///
/// It stays where it is in the payload, and the document around it has been read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value<'a> {
    pub(crate) raw: &'a [u8],
    /// Whether it is the whole of a payload that is not JSON.
    pub(crate) plain: bool,
}

impl<'a> Value<'a> {
    pub(crate) fn json(raw: &'a [u8]) -> Self {
        Self { raw, plain: false }
    }

    /// The value that a text is, from its first byte to its last.
    pub(crate) fn parse(text: &'a [u8]) -> Option<Self> {
        let mut cursor = Cursor { rest: text };
        let raw = cursor.value()?;
        cursor.first().is_none().then_some(Self::json(raw))
    }

    /// The number, or the number in a string. `None` for null and for what stands for it ([`Message::number`]).
    ///
    /// [`Message::number`]: crate::Message::number
    pub fn number(self) -> Result<Option<f64>, ReadError> {
        read::number(self.raw, "the value", read::NumberFormat::default())
    }

    /// A whole number, exactly, also beyond 2^53.
    pub fn integer<T: TryFrom<i128>>(self) -> Result<Option<T>, ReadError> {
        read::integer(self.raw, "the value")
    }

    /// `true`, `on`, `1`, `false`, `off` or `0`, in any case, quoted or not.
    pub fn boolean(self) -> Result<Option<bool>, ReadError> {
        read::boolean(self.raw, "the value")
    }

    /// The text of a string.
    pub fn text(self) -> Result<Option<String>, ReadError> {
        read::text(self.raw, "the value", self.plain)
    }

    /// The value at a path, as in [`Message::value`](crate::Message::value).
    pub fn get(self, path: &str) -> Option<Value<'a>> {
        Cursor { rest: self.raw }.lookup(Some(path.as_bytes()))?.map(Value::json)
    }

    /// The elements of an array, and nothing for any other value.
    pub fn items(self) -> Items<'a> {
        Items(self.inside(b'['))
    }

    /// The members of an object, and nothing for any other value.
    pub fn members(self) -> Members<'a> {
        Members(self.inside(b'{'))
    }

    fn inside(self, opening: u8) -> Cursor<'a> {
        let rest = self.raw.split_first().filter(|(first, _)| **first == opening).map(|(_, rest)| rest);
        Cursor { rest: rest.unwrap_or_default() }
    }
}

/// The elements of an array, in order. See [`Value::items`].
#[derive(Clone)]
pub struct Items<'a>(Cursor<'a>);

impl<'a> Iterator for Items<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        if self.0.first()? == b',' {
            self.0.advance();
        }
        // The closing bracket is no value.
        self.0.value().map(Value::json)
    }
}

/// The members of an object, in order; of equal names all are there. See [`Value::members`].
#[derive(Clone)]
pub struct Members<'a>(Cursor<'a>);

impl<'a> Iterator for Members<'a> {
    type Item = (String, Value<'a>);

    fn next(&mut self) -> Option<(String, Value<'a>)> {
        if self.0.first()? == b',' {
            self.0.advance();
        }
        let name = unescape(self.0.name()?)?;
        Some((name, Value::json(self.0.value()?)))
    }
}

/// The text of the value at `path` in a document, which is read to its end.
pub(crate) fn lookup<'a>(document: &'a [u8], path: &str) -> Result<Option<Value<'a>>, ReadError> {
    let mut cursor = Cursor { rest: document };
    match cursor.lookup(Some(path.as_bytes())) {
        Some(found) if cursor.first().is_none() => Ok(found.map(Value::json)),
        _ => Err(read::not_json(document, cursor.rest)),
    }
}

impl<'a> Cursor<'a> {
    /// Passes one value and returns the text of the one at `path` in it: names after `.`, indices in brackets. Of members with
    /// equal names the last counts, and of those whose name contains a `.` or `[` the longest that leads to a value.
    ///
    /// Without a path it is the value itself.
    fn lookup(&mut self, path: Option<&[u8]>) -> Option<Option<&'a [u8]>> {
        let Some(path) = path else { return self.value().map(Some) };
        let opening = self.first()?;
        let object = opening == b'{';
        if !object && opening != b'[' {
            self.value()?;
            return Some(None);
        }
        self.advance();
        let mut found = None;
        // Of the name that led there.
        let mut longest = 0;
        let mut index = 0;
        if self.first()? == closing(object) {
            self.advance();
            return Some(None);
        }
        loop {
            let rest = match object {
                true => behind_name(path, self.name()?),
                false => behind_index(path, index),
            };
            match rest {
                Some((length, rest)) if length >= longest => {
                    let value = self.lookup(rest)?;
                    if value.is_some() || length == longest {
                        (found, longest) = (value, length);
                    }
                }
                _ => {
                    self.value()?;
                }
            }
            index += 1;
            let byte = self.first()?;
            if byte != b',' && byte != closing(object) {
                return None;
            }
            self.advance();
            if byte != b',' {
                return Some(found);
            }
        }
    }
}

type Behind<'a> = Option<(usize, Option<&'a [u8]>)>;

/// The length of a name that `path` begins with, and the path behind it.
fn behind_name<'a>(path: &'a [u8], name: &[u8]) -> Behind<'a> {
    let length = match path.strip_prefix(name) {
        Some(_) => name.len(),
        None if is_escaped(name) => unescape(name).filter(|name| path.starts_with(name.as_bytes()))?.len(),
        None => return None,
    };
    behind(path, length)
}

fn behind_index(path: &[u8], index: usize) -> Behind<'_> {
    let end = path.iter().position(|byte| *byte == b']')?;
    let wanted = number::parse_integer(path.get(1..end)?)??;
    if path.first() != Some(&b'[') || wanted != index as i128 {
        return None;
    }
    behind(path, end + 1)
}

fn behind(path: &[u8], length: usize) -> Behind<'_> {
    match path.get(length..)?.split_first() {
        None => Some((length, None)),
        Some((b'.', rest)) => Some((length, Some(rest))),
        Some((b'[', _)) => Some((length, path.get(length..))),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[track_caller]
    fn check(document: &str, path: &str, expected: Option<&str>) {
        let found = lookup(document.as_bytes(), path).unwrap();
        assert_eq!(found.map(|value| core::str::from_utf8(value.raw).unwrap()), expected, "{path} in {document}");
    }

    #[test]
    fn a_path_leads_to_exactly_one_value() {
        let document = r#"{"a":{"b":[{"c":1},{"c":"x"}],"B":2},"c":3,"1.8.0":12.5,"l":[[1,2],[3]]}"#;
        check(document, "a.b[0].c", Some("1"));
        check(document, "a.b[1].c", Some("\"x\""));
        check(document, "a.b[2].c", None);
        check(document, "a.b", Some(r#"[{"c":1},{"c":"x"}]"#));
        check(document, "a.B", Some("2"));
        check(document, "c", Some("3"));
        check(document, "b", None);
        check(document, "C", None);
        check(document, "c.d", None);
        check(document, "a.", None);
        check(document, "", None);
        check(document, "1.8.0", Some("12.5"));
        check(document, "l[0][1]", Some("2"));
        check(document, "l[1][0]", Some("3"));
        check(document, "l.0", None);
        check(r#"[{"t":1},{"t":2}]"#, "[1].t", Some("2"));
        check(r#"{"":{"t":1}}"#, ".t", Some("1"));
        check(r#"{"caf\u00e9":1}"#, "café", Some("1"));
        check(r#"{"a[0]":1,"a":[2]}"#, "a[0]", Some("1"));
        check(r#"{"a.b":1,"a":{"b":{"c":2}}}"#, "a.b.c", Some("2"));
    }

    #[test]
    fn the_last_of_equal_names_wins_at_every_level() {
        check(r#"{"t":1,"t":2}"#, "t", Some("2"));
        check(r#"{"t":1,"t":null}"#, "t", Some("null"));
        check(r#"{"a":{"t":1},"a":{}}"#, "a.t", None);
        check(r#"{"a":{"t":1},"a":{"t":2}}"#, "a.t", Some("2"));
        check(r#"{"t":1,"\u0074":2}"#, "t", Some("2"));
    }

    #[test]
    fn lists_and_objects_are_walked() {
        let document = br#"{"readings":[ {"v":1} , 2, "x" ],"none":[]}"#;
        let value = lookup(document, "readings").unwrap().unwrap();
        let items: Vec<&[u8]> = value.items().map(|item| item.raw).collect();
        assert_eq!(items, [&br#"{"v":1}"#[..], b"2", b"\"x\""]);
        assert_eq!(value.items().next().unwrap().get("v").unwrap().number(), Ok(Some(1.0)));
        assert_eq!(value.members().next(), None);
        assert_eq!(lookup(document, "none").unwrap().unwrap().items().next(), None);
        let whole = Value::json(document);
        let names: Vec<String> = whole.members().map(|(name, _)| name).collect();
        assert_eq!(names, ["readings", "none"]);
    }

    #[test]
    fn a_document_that_was_cut_off_is_unreadable_also_behind_the_value() {
        let document = br#"{"t":21.5,"x":[1,{"y":2}]}"#;
        for end in 1..document.len() {
            let error = lookup(&document[..end], "t").unwrap_err();
            assert!(matches!(error, ReadError::Unreadable(_)), "{error:?}");
        }
        assert!(lookup(br#"{"t":21.5} {"t":22}"#, "t").is_err());
    }
}
