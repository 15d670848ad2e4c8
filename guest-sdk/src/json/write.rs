use alloc::string::String;
use alloc::vec::Vec;

use crate::number;

/// A JSON object under construction: `JsonObject::new().number("temperature", 21.5).text("unit", "C")`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonObject {
    /// Everything but the closing brace.
    text: String,
}

/// A JSON array under construction: `JsonArray::new().number(21.5).number(22.0)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonArray {
    /// Everything but the closing bracket.
    text: String,
}

impl Default for JsonObject {
    fn default() -> Self {
        Self::new()
    }
}

impl JsonObject {
    pub fn new() -> Self {
        Self { text: opened('{') }
    }

    /// At most 15 significant digits are written; what is not finite becomes `null`.
    pub fn number(mut self, key: &str, value: f64) -> Self {
        number::push_number(self.key(key), value);
        self
    }

    /// A whole number with all of its digits.
    pub fn integer(mut self, key: &str, value: impl Into<i128>) -> Self {
        push_integer(self.key(key), value.into());
        self
    }

    pub fn boolean(mut self, key: &str, value: bool) -> Self {
        self.key(key).push_str(boolean(value));
        self
    }

    pub fn text(mut self, key: &str, value: &str) -> Self {
        push_string(self.key(key), value);
        self
    }

    pub fn null(mut self, key: &str) -> Self {
        self.key(key).push_str("null");
        self
    }

    pub fn object(mut self, key: &str, value: Self) -> Self {
        self.key(key).push_str(&value.into_string());
        self
    }

    pub fn array(mut self, key: &str, value: JsonArray) -> Self {
        self.key(key).push_str(&value.into_string());
        self
    }

    pub fn is_empty(&self) -> bool {
        self.text.len() == 1
    }

    pub fn into_string(mut self) -> String {
        self.text.push('}');
        self.text
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.into_string().into_bytes()
    }

    fn key(&mut self, key: &str) -> &mut String {
        separate(&mut self.text);
        push_string(&mut self.text, key);
        self.text.push(':');
        &mut self.text
    }
}

impl Default for JsonArray {
    fn default() -> Self {
        Self::new()
    }
}

impl JsonArray {
    pub fn new() -> Self {
        Self { text: opened('[') }
    }

    /// At most 15 significant digits are written; what is not finite becomes `null`.
    pub fn number(mut self, value: f64) -> Self {
        number::push_number(separate(&mut self.text), value);
        self
    }

    /// A whole number with all of its digits.
    pub fn integer(mut self, value: impl Into<i128>) -> Self {
        push_integer(separate(&mut self.text), value.into());
        self
    }

    pub fn boolean(mut self, value: bool) -> Self {
        separate(&mut self.text).push_str(boolean(value));
        self
    }

    pub fn text(mut self, value: &str) -> Self {
        push_string(separate(&mut self.text), value);
        self
    }

    pub fn null(mut self) -> Self {
        separate(&mut self.text).push_str("null");
        self
    }

    pub fn object(mut self, value: JsonObject) -> Self {
        separate(&mut self.text).push_str(&value.into_string());
        self
    }

    pub fn array(mut self, value: Self) -> Self {
        separate(&mut self.text).push_str(&value.into_string());
        self
    }

    pub fn is_empty(&self) -> bool {
        self.text.len() == 1
    }

    pub fn into_string(mut self) -> String {
        self.text.push(']');
        self.text
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.into_string().into_bytes()
    }
}

impl From<JsonObject> for Vec<u8> {
    fn from(object: JsonObject) -> Self {
        object.into_bytes()
    }
}

impl From<JsonArray> for Vec<u8> {
    fn from(array: JsonArray) -> Self {
        array.into_bytes()
    }
}

fn opened(bracket: char) -> String {
    let mut text = String::with_capacity(64);
    text.push(bracket);
    text
}

/// Appends a comma, unless nothing but the bracket is there.
fn separate(text: &mut String) -> &mut String {
    if text.len() > 1 {
        text.push(',');
    }
    text
}

fn boolean(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

fn push_integer(text: &mut String, value: i128) {
    match u64::try_from(value.unsigned_abs()) {
        Ok(digits) => {
            if value < 0 {
                text.push('-');
            }
            text.push_str(number::decimal(digits, &mut [0; 20]));
        }
        // No reader keeps such digits.
        Err(_) => number::push_number(text, value as f64),
    }
}

pub(crate) fn push_string(text: &mut String, value: &str) {
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
    fn writes_objects() {
        assert_eq!(JsonObject::new().into_bytes(), b"{}");
        let object = JsonObject::new()
            .number("t", 21.5)
            .text("n\"", "a\\b\n")
            .boolean("ok", true)
            .object("o", JsonObject::new().number("x", f64::NAN));
        assert_eq!(object.into_bytes(), br#"{"t":21.5,"n\"":"a\\b\u000a","ok":true,"o":{"x":null}}"#);
    }

    #[test]
    fn writes_arrays_within_each_other() {
        assert_eq!(JsonArray::new().into_string(), "[]");
        let inner = JsonArray::new().integer(1).array(JsonArray::new()).null().boolean(false).text("x");
        let object = JsonObject::new().array("a", inner.object(JsonObject::new().null("n"))).number("z", 1.0);
        assert_eq!(object.into_string(), r#"{"a":[1,[],null,false,"x",{"n":null}],"z":1}"#);
    }

    #[test]
    fn writes_whole_numbers_with_all_digits() {
        let object = JsonObject::new().integer("a", u64::MAX).integer("b", i64::MIN).integer("c", i128::MAX);
        assert_eq!(
            object.into_string(),
            r#"{"a":18446744073709551615,"b":-9223372036854775808,"c":1.70141183460469e38}"#
        );
    }

    #[test]
    fn infinity_is_written_as_null() {
        let array = JsonArray::new().number(f64::INFINITY).number(f64::NEG_INFINITY).number(f64::NAN);
        assert_eq!(array.into_string(), "[null,null,null]");
    }
}
