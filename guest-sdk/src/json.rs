//! JSON as sensors send it: looked up in place, without building a tree, and written piece by piece.

use alloc::string::String;
use alloc::vec::Vec;

use crate::number;

/// The text of the value called `path` in a JSON object, and whatever follows it.
///
/// A name matches without regard to case, at any depth; the one nearest to the top wins. In `sensor.temperature` each further
/// name is a direct member of the value before it. The rest of the document is not checked.
fn find<'a>(document: &'a [u8], path: &str) -> Option<&'a [u8]> {
    let path = path.as_bytes();
    let whole = search(document, path, usize::MAX);
    if whole.is_some() || !path.contains(&b'.') {
        return whole;
    }
    let mut value = document;
    let mut deepest = usize::MAX;
    for name in path.split(|byte| *byte == b'.') {
        value = search(value, name, deepest)?;
        deepest = 1;
    }
    Some(value)
}

/// Looks for a key in the object that `document` begins with, down to `deepest` levels.
fn search<'a>(document: &'a [u8], name: &[u8], deepest: usize) -> Option<&'a [u8]> {
    let mut rest = trim_start(document);
    if rest.first() != Some(&b'{') {
        return None;
    }
    let mut depth = 0usize;
    let mut nearest = deepest.saturating_add(1);
    let mut found = None;
    while let Some((&byte, tail)) = skip_to_any(rest, [b'"', b'{', b'}'], 0x20).and_then(<[u8]>::split_first) {
        rest = tail;
        // This bit is all that tells a brace from a bracket.
        match byte | 0x20 {
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    break;
                }
            }
            _ => {
                let (text, after) = string(tail)?;
                rest = trim_start(after);
                if let Some((b':', value)) = rest.split_first() {
                    rest = trim_start(value);
                    if depth < nearest && text.eq_ignore_ascii_case(name) {
                        if depth == 1 {
                            return Some(rest);
                        }
                        nearest = depth;
                        found = Some(rest);
                    }
                }
            }
        }
    }
    found
}

/// Splits behind the quote that ends a string; `text` begins behind the one that starts it.
#[inline]
fn string(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut rest = text;
    loop {
        let (byte, tail) = skip_to_any(rest, [b'"', b'\\', b'\\'], 0)?.split_first()?;
        if *byte == b'"' {
            return Some((text.get(..text.len() - tail.len() - 1)?, tail));
        }
        rest = tail.get(1..)?;
    }
}

/// `text` from the first of these bytes on, the bits of `mask` ignored. Eight bytes are looked at in one go: a payload is
/// mostly names, and this is most of what reading one costs.
#[inline]
fn skip_to_any(text: &[u8], bytes: [u8; 3], mask: u8) -> Option<&[u8]> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let mut rest = text;
    while let Some((eight, tail)) = rest.split_first_chunk() {
        let eight = u64::from_le_bytes(*eight) | (ONES * u64::from(mask));
        let hits = bytes.iter().fold(0, |hits, byte| {
            // The highest bit of each byte that is zero here, and perhaps of some after the first such byte.
            let differences = eight ^ (ONES * u64::from(*byte));
            hits | (differences.wrapping_sub(ONES) & !differences & (ONES << 7))
        });
        if hits != 0 {
            return rest.get(hits.trailing_zeros() as usize / 8..);
        }
        rest = tail;
    }
    while let Some((byte, tail)) = rest.split_first() {
        if bytes.contains(&(byte | mask)) {
            return Some(rest);
        }
        rest = tail;
    }
    None
}

/// White space, and what has no place in JSON.
#[inline]
fn trim_start(mut text: &[u8]) -> &[u8] {
    while let Some((0..=b' ', tail)) = text.split_first() {
        text = tail;
    }
    text
}

/// What may follow a number or a word inside an object. The end may not: the document was cut off, perhaps within the
/// number.
fn ends_value(rest: &[u8]) -> bool {
    matches!(rest.first(), Some(b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n'))
}

fn is_object(document: &[u8]) -> bool {
    trim_start(document).first() == Some(&b'{')
}

/// A number, or a string that holds one. A document that is nothing but a number has every name.
pub(crate) fn number(document: &[u8], path: &str) -> Option<f64> {
    if !is_object(document) {
        return number::parse(document).or_else(|| number::parse(unquoted(document)));
    }
    let value = find(document, path)?;
    if let Some((b'"', text)) = value.split_first() {
        return number::parse(string(text)?.0);
    }
    let (number, rest) = number::parse_prefix(value)?;
    ends_value(rest).then_some(number)
}

/// `true` and `false`, in the spellings of devices: `ON`, `"off"`, `1`, `"open"` and so on are left to the caller but for
/// on, off, 1 and 0.
pub(crate) fn boolean(document: &[u8], path: &str) -> Option<bool> {
    let word = if is_object(document) {
        let value = find(document, path)?;
        match value.split_first() {
            Some((b'"', text)) => string(text)?.0,
            _ => {
                let length = value.iter().take_while(|byte| byte.is_ascii_alphanumeric()).count();
                let (word, rest) = value.split_at_checked(length)?;
                if !ends_value(rest) {
                    return None;
                }
                word
            }
        }
    } else {
        unquoted(document)
    };
    let is = |words: [&str; 3]| words.iter().any(|known| word.eq_ignore_ascii_case(known.as_bytes()));
    if is(["true", "on", "1"]) {
        Some(true)
    } else if is(["false", "off", "0"]) {
        Some(false)
    } else {
        None
    }
}

/// A string, with its escapes resolved. A document that is no object is the string itself.
pub(crate) fn text(document: &[u8], path: &str) -> Option<String> {
    if !is_object(document) {
        return core::str::from_utf8(unquoted(document)).ok().map(String::from);
    }
    match find(document, path)?.split_first() {
        Some((b'"', text)) => unescape(core::str::from_utf8(string(text)?.0).ok()?),
        _ => None,
    }
}

fn unquoted(document: &[u8]) -> &[u8] {
    let text = document.trim_ascii();
    text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")).unwrap_or(text)
}

fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.bytes().position(|byte| byte == b'\\') {
        let (before, after) = (rest.get(..at)?, rest.get(at + 1..)?);
        out.push_str(before);
        let escape = *after.as_bytes().first()?;
        rest = after.get(1..)?;
        out.push(match escape {
            b'n' => '\n',
            b't' => '\t',
            b'r' => '\r',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'u' => {
                let (unit, after) = hex4(rest)?;
                rest = after;
                if (0xd800..0xdc00).contains(&unit) {
                    let (low, after) = hex4(rest.strip_prefix("\\u")?)?;
                    rest = after;
                    let low = low.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
                    char::from_u32(0x10000 + ((unit - 0xd800) << 10) + low)?
                } else {
                    char::from_u32(unit)?
                }
            }
            b'"' | b'\\' | b'/' => char::from(escape),
            _ => return None,
        });
    }
    out.push_str(rest);
    Some(out)
}

fn hex4(text: &str) -> Option<(u32, &str)> {
    let digits = text.get(..4)?;
    let value = digits.bytes().try_fold(0, |value, byte| Some(value << 4 | char::from(byte).to_digit(16)?))?;
    Some((value, text.get(4..)?))
}

/// A JSON object under construction: `JsonObject::new().number("temperature", 21.5).text("unit", "C")`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonObject {
    /// Everything but the closing brace.
    text: String,
}

impl Default for JsonObject {
    fn default() -> Self {
        Self::new()
    }
}

impl JsonObject {
    pub fn new() -> Self {
        let mut text = String::with_capacity(64);
        text.push('{');
        Self { text }
    }

    /// At most 15 significant digits are written; what is not finite becomes `null`.
    pub fn number(mut self, key: &str, value: f64) -> Self {
        self.key(key);
        number::push_number(&mut self.text, value);
        self
    }

    pub fn boolean(mut self, key: &str, value: bool) -> Self {
        self.key(key);
        self.text.push_str(if value { "true" } else { "false" });
        self
    }

    pub fn text(mut self, key: &str, value: &str) -> Self {
        self.key(key);
        push_string(&mut self.text, value);
        self
    }

    pub fn object(mut self, key: &str, value: Self) -> Self {
        self.key(key);
        self.text.push_str(&value.text);
        self.text.push('}');
        self
    }

    pub fn is_empty(&self) -> bool {
        self.text.len() == 1
    }

    pub fn into_bytes(mut self) -> Vec<u8> {
        self.text.push('}');
        self.text.into_bytes()
    }

    fn key(&mut self, key: &str) {
        if !self.is_empty() {
            self.text.push(',');
        }
        push_string(&mut self.text, key);
        self.text.push(':');
    }
}

fn push_string(text: &mut String, value: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    text.push('"');
    for char in value.chars() {
        match char {
            '"' | '\\' => {
                text.push('\\');
                text.push(char);
            }
            '\0'..'\u{20}' => {
                text.push_str("\\u00");
                text.push(char::from(b'0' + (char as u8 >> 4)));
                text.push(char::from(HEX[char as usize & 15]));
            }
            _ => text.push(char),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_numbers_as_devices_send_them() {
        let zigbee =
            br#"{"battery":97,"humidity":48.2,"linkquality":120,"temperature":21.53,"update":{"state":"idle"}}"#;
        let tasmota = br#"{"Time":"2026-01-05T11:02:13","DS18B20":{"Id":"0316","Temperature":20.6},"BME280":{"Temperature":-3.0,"Pressure":1013.2},"TempUnit":"C"}"#;
        #[track_caller]
        fn check(document: &[u8], path: &str, expected: Option<f64>) {
            assert_eq!(number(document, path), expected, "{path}");
        }
        check(b"21.5", "temperature", Some(21.5));
        check(b" 21.5\n", "anything", Some(21.5));
        check(b"\"21.5\"", "anything", Some(21.5));
        check(b"nan", "temperature", None);
        check(zigbee, "temperature", Some(21.53));
        check(zigbee, "state", None);
        check(zigbee, "missing", None);
        check(tasmota, "temperature", Some(20.6));
        check(tasmota, "BME280.Temperature", Some(-3.0));
        check(tasmota, "bme280.pressure", Some(1013.2));
        check(tasmota, "DS18B20.Pressure", None);
        check(tasmota, "Id", Some(316.0));
        check(br#"{"a":{"t":1},"t":2}"#, "t", Some(2.0));
        check(br#"{"x":"t","y":{"\"t":5,"t":7}}"#, "t", Some(7.0));
        check(br#"{"1.8.0": 12.5}"#, "1.8.0", Some(12.5));
        check(br#"{ "t" : "4e2" }"#, "t", Some(400.0));
        check(br#"{"t":null}"#, "t", None);
        check(br#"{"t":2"#, "t", None);
        check(br#"{"t":2x}"#, "t", None);
        check(br#"{"t"#, "t", None);
        check(b"}", "t", None);
        check(b"", "t", None);
    }

    #[test]
    fn reads_words_and_strings() {
        let contact = br#"{"contact":true,"state":"OFF","name":"caf\u00e9 \ud83c\udf21 \"x\"","n":1}"#;
        assert_eq!(boolean(contact, "contact"), Some(true));
        assert_eq!(boolean(contact, "state"), Some(false));
        assert_eq!(boolean(contact, "n"), Some(true));
        assert_eq!(boolean(contact, "name"), None);
        assert_eq!(boolean(b"ON", "x"), Some(true));
        assert_eq!(text(contact, "name").as_deref(), Some("café 🌡 \"x\""));
        assert_eq!(text(contact, "n"), None);
        assert_eq!(text(b"idle", "x").as_deref(), Some("idle"));
        assert_eq!(text(br#"{"a":"\ud83c"}"#, "a"), None);
    }

    #[test]
    fn skips_like_a_loop_over_bytes() {
        let mut seed = 1u32;
        let mut text = [0u8; 40];
        for _ in 0..20_000 {
            for byte in &mut text {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Mostly the bytes looked for and their neighbours, where carries could mislead.
                *byte = [b'"', b'!', b'#', b'{', b'z', b'[', b'}', 0xa2, 0, 0xff, b'a', b'7'][seed as usize % 97 % 12];
            }
            let start = seed as usize % 40;
            let text = &text[start..];
            let expected = text.iter().position(|byte| matches!(byte | 0x20, b'"' | b'{' | b'}'));
            let got = skip_to_any(text, [b'"', b'{', b'}'], 0x20).map(|rest| text.len() - rest.len());
            assert_eq!(got, expected, "{text:?}");
        }
    }

    #[test]
    fn never_panics_on_damaged_documents() {
        let document = br#"{"a":[1,{"b":"x\\\"y\u00e9"}],"c":{"d":-1.5e3},"e":"f"}"#;
        for cut in 0..document.len() {
            for flip in [0u8, 1, 0x20, 0x80] {
                let mut damaged = document[..cut].to_vec();
                if let Some(last) = damaged.last_mut() {
                    *last ^= flip;
                }
                for path in ["a", "b", "c.d", "e", "", "."] {
                    let _ = (number(&damaged, path), boolean(&damaged, path), text(&damaged, path));
                }
            }
        }
    }

    #[test]
    fn writes_objects() {
        assert_eq!(JsonObject::new().into_bytes(), b"{}");
        let object = JsonObject::new()
            .number("t", 21.5)
            .text("n\"", "a\\b\n")
            .boolean("ok", true)
            .object("o", JsonObject::new().number("x", f64::NAN));
        assert_eq!(object.into_bytes(), br#"{"t":21.5,"n\"":"a\\b\u000a","ok":true,"o":{"x":null}}"#);
    }
}
