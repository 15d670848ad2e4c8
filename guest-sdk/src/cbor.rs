//! CBOR (RFC 8949), which SenML, CoAP and many LoRaWAN devices use.

use alloc::string::String;

use crate::bytes::Reader;
use crate::json::push_string;
use crate::number::{decimal, push_number};
use crate::{ReadError, base64, text};

/// Number of arrays and maps that may lie within each other.
const MAX_DEPTH: u32 = 32;

/// One CBOR item as JSON text, by the advice of RFC 8949, 6.1: tags are left out, byte strings are base64url without padding, keys
/// that are no text are written as text, and what JSON lacks is null.
///
/// ```
/// # use sedge_function::{Message, cbor};
/// let mut message = Message::new("senml/cellar", b"\xa1\x61t\xf9\x4d\x60".to_vec());
/// message.payload = cbor::to_json(&message.payload)?.into_bytes();
/// assert_eq!(message.number("t"), Ok(Some(21.5)));
/// # Ok::<(), sedge_function::ReadError>(())
/// ```
pub fn to_json(bytes: &[u8]) -> Result<String, ReadError> {
    let mut reader = Reader::new(bytes);
    let mut json = String::with_capacity(bytes.len() * 2);
    item(&mut reader, &mut json, 0)?;
    if reader.is_empty() { Ok(json) } else { Err(invalid(&reader, "something follows the item")) }
}

#[cold]
#[inline(never)]
fn invalid(reader: &Reader<'_>, what: &str) -> ReadError {
    ReadError::Unreadable(text!("the payload is not CBOR: ", what, " at byte ", reader.position()))
}

/// The argument of a head; `None` for an indefinite length.
fn argument(reader: &mut Reader<'_>, info: u8) -> Result<Option<u64>, ReadError> {
    Ok(Some(match info {
        0..=23 => info.into(),
        24..=27 => reader.uint_be(1 << (info - 24))?,
        31 => return Ok(None),
        _ => return Err(invalid(reader, "a reserved length")),
    }))
}

fn item(reader: &mut Reader<'_>, json: &mut String, depth: u32) -> Result<(), ReadError> {
    if depth > MAX_DEPTH {
        return Err(invalid(reader, "too deep nesting"));
    }
    let mut head = reader.u8()?;
    while head >> 5 == 6 {
        argument(reader, head & 31)?;
        head = reader.u8()?;
    }
    let (major, info) = (head >> 5, head & 31);
    if major == 7 {
        return simple(reader, json, info);
    }
    let argument = argument(reader, info)?;
    match (major, argument) {
        (0, Some(value)) => json.push_str(decimal(value, &mut [0; 20])),
        (1, Some(value)) => match value.checked_add(1) {
            Some(value) => {
                json.push('-');
                json.push_str(decimal(value, &mut [0; 20]));
            }
            None => json.push_str("-18446744073709551616"),
        },
        (2 | 3, _) => string(reader, json, major, argument)?,
        (4 | 5, _) => {
            json.push(if major == 4 { '[' } else { '{' });
            let mut left = argument;
            let mut first = true;
            while more(reader, &mut left) {
                if !first {
                    json.push(',');
                }
                first = false;
                if major == 5 {
                    key(reader, json, depth)?;
                }
                item(reader, json, depth + 1)?;
            }
            json.push(if major == 4 { ']' } else { '}' });
        }
        _ => return Err(invalid(reader, "an indefinite number")),
    }
    Ok(())
}

/// Whether another member comes; passes the end of one of indefinite length.
fn more(reader: &mut Reader<'_>, left: &mut Option<u64>) -> bool {
    match left {
        Some(0) => false,
        Some(left) => {
            *left -= 1;
            true
        }
        None => reader.rest().first() != Some(&0xff) || reader.u8().is_err(),
    }
}

fn key(reader: &mut Reader<'_>, json: &mut String, depth: u32) -> Result<(), ReadError> {
    let mut name = String::new();
    item(reader, &mut name, depth + 1)?;
    if name.starts_with('"') {
        json.push_str(&name);
    } else {
        push_string(json, &name);
    }
    json.push(':');
    Ok(())
}

fn string(reader: &mut Reader<'_>, json: &mut String, major: u8, length: Option<u64>) -> Result<(), ReadError> {
    let mut bytes = alloc::vec::Vec::new();
    match length {
        Some(length) => bytes.extend_from_slice(chunk(reader, length)?),
        None => {
            while more(reader, &mut None) {
                let head = reader.u8()?;
                let length = argument(reader, head & 31)?;
                match length {
                    Some(length) if head >> 5 == major => bytes.extend_from_slice(chunk(reader, length)?),
                    _ => return Err(invalid(reader, "a chunk of another kind")),
                }
            }
        }
    }
    if major == 3 {
        let text = core::str::from_utf8(&bytes).map_err(|_| invalid(reader, "text that is not UTF-8"))?;
        push_string(json, text);
        return Ok(());
    }
    json.push('"');
    for char in base64::encode(&bytes).chars() {
        match char {
            '+' => json.push('-'),
            '/' => json.push('_'),
            '=' => {}
            _ => json.push(char),
        }
    }
    json.push('"');
    Ok(())
}

fn chunk<'a>(reader: &mut Reader<'a>, length: u64) -> Result<&'a [u8], ReadError> {
    reader.take(usize::try_from(length).unwrap_or(usize::MAX))
}

fn simple(reader: &mut Reader<'_>, json: &mut String, info: u8) -> Result<(), ReadError> {
    match info {
        20 => json.push_str("false"),
        21 => json.push_str("true"),
        24 if reader.u8()? >= 32 => json.push_str("null"),
        ..=23 => json.push_str("null"),
        25 => push_number(json, half(reader.u16_be()?)),
        26 => push_number(json, reader.f32_be()?.into()),
        27 => push_number(json, reader.f64_be()?),
        _ => return Err(invalid(reader, "an invalid simple value")),
    }
    Ok(())
}

fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (u64::from(bits >> 10 & 31), u64::from(bits & 1023));
    let value = match exponent {
        // 2^-24 is the unit of what is below 2^-14.
        0 => fraction as f64 / 16_777_216.0,
        31 => f64::NAN,
        _ => f64::from_bits((exponent + 1023 - 15) << 52 | fraction << 42),
    };
    if bits >> 15 == 1 { -value } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], json: &str) {
        assert_eq!(to_json(bytes).as_deref(), Ok(json));
    }

    #[test]
    fn the_examples_of_the_standard() {
        check(b"\x00", "0");
        check(b"\x18\x64", "100");
        check(b"\x1b\xff\xff\xff\xff\xff\xff\xff\xff", "18446744073709551615");
        check(b"\x3b\xff\xff\xff\xff\xff\xff\xff\xff", "-18446744073709551616");
        check(b"\x38\x63", "-100");
        check(b"\xf9\x3e\x00", "1.5");
        check(b"\xf9\xc4\x00", "-4");
        check(b"\xf9\x04\x00", "0.00006103515625");
        check(b"\xf9\x7b\xff", "65504");
        check(b"\xfb\x3f\xf1\x99\x99\x99\x99\x99\x9a", "1.1");
        check(b"\xfa\x47\xc3\x50\x00", "100000");
        check(b"\xf9\x7c\x00", "null");
        check(b"\xf4", "false");
        check(b"\xf6", "null");
        check(b"\xc1\x1a\x51\x4b\x67\xb0", "1363896240");
        check(b"\x44\x01\x02\x03\x04", "\"AQIDBA\"");
        check(b"\x62\x22\x5c", r#""\"\\""#);
        check(b"\x83\x01\x82\x02\x03\x82\x04\x05", "[1,[2,3],[4,5]]");
        check(b"\xa2\x01\x02\x03\x04", r#"{"1":2,"3":4}"#);
        check(b"\xbf\x61a\x01\x61b\x9f\x02\x03\xff\xff", r#"{"a":1,"b":[2,3]}"#);
        check(b"\x7f\x65strea\x64ming\xff", "\"streaming\"");
        check(b"\xa0", "{}");
        check(b"\x9f\xff", "[]");
    }

    #[test]
    fn what_is_cut_off_or_invalid_is_unreadable() {
        let whole = b"\xbf\x61a\x01\x61b\x9f\x02\x19\x01\x00\xff\xff";
        for end in 0..whole.len() {
            assert!(to_json(&whole[..end]).is_err(), "{end}");
        }
        let deep = [0x81u8; 100];
        for bytes in [&b"\x1c"[..], b"\x1f", b"\xff", b"\x00\x00", b"\x61\xff", b"\x7f\x41a\xff", b"\xf8\x10", &deep] {
            assert!(to_json(bytes).is_err(), "{bytes:?}");
        }
        // As long as it claims to be, nothing is set aside for it.
        assert!(to_json(b"\x5b\x00\x00\x00\xff\xff\xff\xff\xff").is_err());
        assert!(to_json(b"\x9b\x00\x00\x00\xff\xff\xff\xff\xff").is_err());
    }
}
