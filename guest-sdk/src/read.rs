//! Numbers, words and texts of a payload, and why one cannot be read.

use alloc::string::String;

use crate::json::{eq_ignore_case, unescape, utf8, utf8_start};
use crate::piece::concat;
use crate::{Failure, number};

/// Why something that is in a payload has no value. A field that is absent is no error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// The payload, or the field, is not of this kind. The text says what was there.
    Unreadable(String),
    /// A number that is too large for the type that was asked for, as `1e999` is for `f64`.
    OutOfRange(String),
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        let (ReadError::Unreadable(why) | ReadError::OutOfRange(why)) = error;
        Self::Reject(why)
    }
}

/// How numbers in texts are written, for devices that do not write just a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NumberFormat<'a> {
    /// Whether `81,5` is 81.5. Otherwise it is unreadable.
    pub decimal_comma: bool,
    /// What may stand behind the number, as `°C`. Anything else there is unreadable.
    pub unit: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    NotA(&'static str),
    DecimalComma,
    TextBehind,
    OutOfRange,
}

impl Fault {
    #[cold]
    #[inline(never)]
    pub(crate) fn describe(self, name: &str, raw: &[u8]) -> ReadError {
        let (what, kind) = match self {
            Self::NotA(kind) => (", not ", kind),
            Self::DecimalComma => (", with a decimal comma", ""),
            Self::TextBehind => (", with text behind the number", ""),
            Self::OutOfRange => (", out of range", ""),
        };
        let why = concat(&[name, " is ", excerpt(raw), what, kind]);
        if self == Self::OutOfRange { ReadError::OutOfRange(why) } else { ReadError::Unreadable(why) }
    }
}

/// The start of a value, for a person.
fn excerpt(raw: &[u8]) -> &str {
    utf8_start(raw.get(..40).unwrap_or(raw))
}

/// Why a document is not JSON; `rest` is what follows the place.
#[cold]
#[inline(never)]
pub(crate) fn not_json(document: &[u8], rest: &[u8]) -> ReadError {
    let what = if rest.is_empty() {
        "the JSON of the payload is cut off at byte "
    } else {
        "the payload is not JSON at byte "
    };
    let at = document.len() - rest.len();
    ReadError::Unreadable(concat(&[what, number::decimal(at as u64, &mut [0; 20])]))
}

pub(crate) enum Payload<'a> {
    Empty,
    /// From its opening brace or bracket on.
    Json(&'a [u8]),
    /// A payload that is one value: text without white space and NUL around it.
    Plain(&'a [u8]),
}

/// Strips a byte order mark, white space and NUL, which some devices send behind a text.
pub(crate) fn payload(payload: &[u8]) -> Result<Payload<'_>, ReadError> {
    let text = trim(payload.strip_prefix(b"\xef\xbb\xbf").unwrap_or(payload));
    match text {
        [] => Ok(Payload::Empty),
        [0x1f, 0x8b, ..] => Err(not_text("compressed (gzip)")),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [b'{' | b'[' | b'"', 0, ..] => Err(not_text("UTF-16, not UTF-8")),
        [b'{' | b'[', ..] => Ok(Payload::Json(text)),
        _ if is_binary(text.get(..64).unwrap_or(text), text.len()) => {
            Err(not_text("binary, or text that is not UTF-8"))
        }
        _ => Ok(Payload::Plain(text)),
    }
}

/// Whether the start of a payload is no text: binary formats and compressed data have such bytes everywhere.
fn is_binary(start: &[u8], length: usize) -> bool {
    // The end of the start may lie within a character.
    let cut = if start.len() < length { 3 } else { 0 };
    start.iter().any(|byte| matches!(byte, 0..=8 | 14..=31 | 127)) || utf8_start(start).len() + cut < start.len()
}

#[cold]
#[inline(never)]
fn not_text(what: &str) -> ReadError {
    ReadError::Unreadable(concat(&["the payload is ", what]))
}

fn trim(mut text: &[u8]) -> &[u8] {
    while let [0 | b' ' | b'\t' | b'\r' | b'\n', rest @ ..] = text {
        text = rest;
    }
    while let [rest @ .., 0 | b' ' | b'\t' | b'\r' | b'\n'] = text {
        text = rest;
    }
    text
}

/// A string without its quotes and what is around the text in it, or the word itself.
fn word(raw: &[u8]) -> &[u8] {
    match raw {
        [b'"', inner @ .., b'"'] => trim(inner),
        _ => raw,
    }
}

/// Words for a value that is not there: of JSON, of number formatting, of Home Assistant.
fn is_none(word: &[u8]) -> bool {
    let unsigned = word.strip_prefix(b"-").or_else(|| word.strip_prefix(b"+")).unwrap_or(word);
    word.is_empty() || is_one_of(unsigned, &["null", "nan", "inf", "infinity", "none", "unknown", "unavailable"])
}

#[inline(never)]
fn is_one_of(word: &[u8], words: &[&str]) -> bool {
    words.iter().any(|known| eq_ignore_case(word, known.as_bytes()))
}

/// A number, bare or in a string; `None` for one that is not there.
#[inline]
pub(crate) fn parse(raw: &[u8], format: NumberFormat<'_>) -> Result<Option<f64>, Fault> {
    let word = word(raw);
    match number::parse_prefix(word) {
        Some((value, [])) if value.is_finite() => Ok(Some(value)),
        _ => parse_slowly(word, format),
    }
}

#[cold]
#[inline(never)]
fn parse_slowly(word: &[u8], format: NumberFormat<'_>) -> Result<Option<f64>, Fault> {
    if is_none(word) {
        return Ok(None);
    }
    let mut buffer = [0u8; 32];
    let mut word = word;
    if !format.unit.is_empty() {
        word = word.strip_suffix(format.unit.as_bytes()).map_or(word, trim);
    }
    if format.decimal_comma
        && !word.contains(&b'.')
        && let Some(copy) = buffer.get_mut(..word.len())
    {
        copy.copy_from_slice(word);
        copy.iter_mut().filter(|byte| **byte == b',').for_each(|byte| *byte = b'.');
        word = copy;
    }
    match number::parse_prefix(word) {
        Some((value, [])) if value.is_finite() => Ok(Some(value)),
        Some((_, [])) => Err(Fault::OutOfRange),
        Some((_, [b',', b'0'..=b'9', ..])) => Err(Fault::DecimalComma),
        Some(_) => Err(Fault::TextBehind),
        None => Err(Fault::NotA("a number")),
    }
}

pub(crate) fn number(raw: &[u8], name: &str, format: NumberFormat<'_>) -> Result<Option<f64>, ReadError> {
    parse(raw, format).map_err(|fault| fault.describe(name, raw))
}

/// All digits count, so that numbers beyond 2^53 are exact.
pub(crate) fn integer<T: TryFrom<i128>>(raw: &[u8], name: &str) -> Result<Option<T>, ReadError> {
    let word = word(raw);
    if is_none(word) {
        return Ok(None);
    }
    let value = match number::parse_integer(word) {
        Some(Some(value)) => T::try_from(value).map_err(|_| Fault::OutOfRange),
        Some(None) => Err(Fault::OutOfRange),
        None => Err(Fault::NotA("a whole number")),
    };
    value.map(Some).map_err(|fault| fault.describe(name, raw))
}

pub(crate) fn boolean(raw: &[u8], name: &str) -> Result<Option<bool>, ReadError> {
    let word = word(raw);
    if is_one_of(word, &["true", "on", "1"]) {
        Ok(Some(true))
    } else if is_one_of(word, &["false", "off", "0"]) {
        Ok(Some(false))
    } else if is_none(word) {
        Ok(None)
    } else {
        Err(Fault::NotA("on or off").describe(name, raw))
    }
}

/// A string of JSON. A plain payload is the text itself, unless it is quoted.
pub(crate) fn text(raw: &[u8], name: &str, plain: bool) -> Result<Option<String>, ReadError> {
    let text = match raw {
        b"null" => return Ok(None),
        [b'"', inner @ .., b'"'] => unescape(inner),
        _ if plain => utf8(raw).map(String::from),
        _ => None,
    };
    text.map(Some).ok_or_else(|| Fault::NotA("text in UTF-8").describe(name, raw))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;
    use std::string::ToString;

    const PLAIN: NumberFormat<'_> = NumberFormat { decimal_comma: false, unit: "" };

    #[test]
    fn infinity_is_never_a_value() {
        assert_eq!(parse(b"1e999", PLAIN), Err(Fault::OutOfRange));
        assert_eq!(parse(b"-1e999", PLAIN), Err(Fault::OutOfRange));
        assert_eq!(parse(b"\"1e999\"", PLAIN), Err(Fault::OutOfRange));
        assert!(matches!(parse(b"1.7e308", PLAIN), Ok(Some(value)) if value.is_finite()));
        for word in ["Infinity", "-Infinity", "+inf", "NaN", "nan"] {
            assert_eq!(parse(word.as_bytes(), PLAIN), Ok(None), "{word}");
        }
    }

    #[test]
    fn a_decimal_comma_or_a_unit_is_an_error_unless_asked_for() {
        let comma = NumberFormat { decimal_comma: true, unit: "" };
        let celsius = NumberFormat { decimal_comma: false, unit: "°C" };
        let both = NumberFormat { decimal_comma: true, unit: "°C" };
        for (word, format, expected) in [
            ("81,5", PLAIN, Err(Fault::DecimalComma)),
            ("81,5", comma, Ok(Some(81.5))),
            ("\"-81,5\"", comma, Ok(Some(-81.5))),
            ("81.5", comma, Ok(Some(81.5))),
            ("1.081,5", comma, Err(Fault::DecimalComma)),
            ("1,081,5", comma, Err(Fault::TextBehind)),
            ("81.5 °C", PLAIN, Err(Fault::TextBehind)),
            ("81.5 °C", celsius, Ok(Some(81.5))),
            ("81.5°C", celsius, Ok(Some(81.5))),
            ("81.5", celsius, Ok(Some(81.5))),
            ("178 °F", celsius, Err(Fault::TextBehind)),
            ("81,5 °C", celsius, Err(Fault::DecimalComma)),
            ("81,5 °C", both, Ok(Some(81.5))),
            ("hot", both, Err(Fault::NotA("a number"))),
            ("°C", celsius, Err(Fault::NotA("a number"))),
            ("", both, Ok(None)),
        ] {
            assert_eq!(parse(word.as_bytes(), format), expected, "{word} as {format:?}");
        }
    }

    #[test]
    fn whole_numbers_beyond_2_to_the_53rd_are_exact() {
        assert_eq!(integer(b"9007199254740993", "id"), Ok(Some(9_007_199_254_740_993u64)));
        assert_eq!(integer(b"18446744073709551615", "id"), Ok(Some(u64::MAX)));
        assert_eq!(integer(b"\"-9223372036854775808\"", "id"), Ok(Some(i64::MIN)));
        assert_eq!(integer(b"21.0", "id"), Ok(Some(21u8)));
        assert_eq!(integer::<u8>(b"null", "id"), Ok(None));
        assert!(matches!(integer::<i64>(b"18446744073709551615", "id"), Err(ReadError::OutOfRange(_))));
        assert!(matches!(integer::<u64>(b"18446744073709551616", "id"), Err(ReadError::OutOfRange(_))));
        assert!(matches!(integer::<u8>(b"256", "id"), Err(ReadError::OutOfRange(_))));
        assert!(matches!(integer::<u8>(b"-1", "id"), Err(ReadError::OutOfRange(_))));
        for word in ["21.5", "x", "1e3", "21.", "1 2", "-"] {
            assert!(matches!(integer::<i64>(word.as_bytes(), "id"), Err(ReadError::Unreadable(_))), "{word}");
        }
    }

    #[test]
    fn what_is_around_a_plain_number_is_stripped() {
        for text in ["\u{feff}81.5", "81.5\0", "\0 81.5\r\n\0\0", "\"81.5\"\n", "\" 81.5 \""] {
            let Ok(Payload::Plain(raw)) = payload(text.as_bytes()) else { panic!("{text:?}") };
            assert_eq!(parse(raw, PLAIN), Ok(Some(81.5)), "{text:?}");
        }
        assert!(matches!(payload("\u{feff} {\"t\":1}\0".as_bytes()), Ok(Payload::Json(br#"{"t":1}"#))));
        assert!(matches!(payload(b"\0 \n"), Ok(Payload::Empty)));
        // What is looked at ends within a character.
        assert!(matches!(payload("a°".repeat(50).as_bytes()), Ok(Payload::Plain(_))));
        assert!(matches!(payload("°".repeat(50).as_bytes()), Ok(Payload::Plain(_))));
    }

    #[test]
    fn what_is_no_text_is_named() {
        let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<std::vec::Vec<u8>>();
        for (bytes, what) in [
            (&b"\x1f\x8b\x08\x00\x00"[..], "gzip"),
            (&utf16("\u{feff}{\"t\":1}"), "UTF-16"),
            (&utf16("{\"t\":1}"), "UTF-16"),
            (&"{\"t\":1}".encode_utf16().flat_map(u16::to_be_bytes).collect::<std::vec::Vec<u8>>(), "UTF-16"),
            (&utf16("81.5"), "binary"),
            (b"\x01\x67\x01\x10", "binary"),
            (b"x\x9c\xabVJ", "binary"),
            (b"81.5 \xb0C", "not UTF-8"),
        ] {
            let Err(ReadError::Unreadable(why)) = payload(bytes) else { panic!("{bytes:?}") };
            assert!(why.contains(what), "{why}");
        }
    }

    #[test]
    fn errors_show_what_was_there_and_not_all_of_it() {
        let error = number("hot".repeat(1000).as_bytes(), "t", PLAIN).unwrap_err();
        assert_eq!(error, ReadError::Unreadable(format!("t is {}, not a number", &"hot".repeat(14)[..40])));
        let error = number(b"\xff\xfe", "t", PLAIN).unwrap_err();
        assert_eq!(error, ReadError::Unreadable("t is , not a number".to_string()));
    }
}
