//! Strings of JSON: escapes resolved, and compared with names.

use alloc::string::String;
use alloc::vec::Vec;

/// Whether a name, given with its escapes, is `name` without regard to the case of ASCII letters; and if so, whether it is exactly
/// that.
#[inline]
pub(crate) fn compare(raw: &[u8], name: &[u8]) -> Option<bool> {
    if raw.len() != name.len() {
        return compare_escaped(raw, name);
    }
    if raw == name {
        return Some(true);
    }
    // Most names of that length differ in the first letter.
    let first = |text: &[u8]| text.first().map(|byte| byte | 0x20);
    if first(raw) == first(name) && eq_ignore_case(raw, name) { Some(false) } else { None }
}

#[inline(never)]
pub(crate) fn eq_ignore_case(one: &[u8], other: &[u8]) -> bool {
    one.eq_ignore_ascii_case(other)
}

#[inline(never)]
fn compare_escaped(raw: &[u8], name: &[u8]) -> Option<bool> {
    if !is_escaped(raw) {
        return None;
    }
    let text = unescape(raw)?;
    eq_ignore_case(text.as_bytes(), name).then(|| text.as_bytes() == name)
}

/// A loop, for `contains` is the larger the faster it is.
pub(crate) fn is_escaped(raw: &[u8]) -> bool {
    let mut rest = raw;
    while let [byte, tail @ ..] = rest {
        if *byte == b'\\' {
            return true;
        }
        rest = tail;
    }
    false
}

/// The text of a string that is given without quotes. `None` if an escape is invalid, or if it is not UTF-8.
#[inline(never)]
pub(crate) fn unescape(raw: &[u8]) -> Option<String> {
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        if *byte != b'\\' {
            out.push(*byte);
            continue;
        }
        let (escape, tail) = rest.split_first()?;
        rest = tail;
        out.push(match escape {
            b'n' => b'\n',
            b't' => b'\t',
            b'r' => b'\r',
            b'b' => 8,
            b'f' => 12,
            b'u' => {
                let (char, tail) = unescape_unicode(rest)?;
                rest = tail;
                out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
            b'"' | b'\\' | b'/' => *escape,
            _ => return None,
        });
    }
    utf8(&out).map(String::from)
}

/// The text that these bytes are, if they are UTF-8. The standard library's check brings a table that would be set up for every
/// message.
#[inline(never)]
#[allow(unsafe_code, reason = "the bytes have been checked")]
pub(crate) fn utf8(bytes: &[u8]) -> Option<&str> {
    if utf8_length(bytes) < bytes.len() {
        return None;
    }
    // SAFETY: all of them are UTF-8.
    Some(unsafe { core::str::from_utf8_unchecked(bytes) })
}

/// Number of bytes at the start that are UTF-8, by table 3-7 of the Unicode standard.
fn utf8_length(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while let Some((first, tail)) = rest.split_first() {
        if first.is_ascii() {
            rest = tail;
            continue;
        }
        let (following, second) = match first {
            0xc2..=0xdf => (1, 0x80..=0xbf),
            0xe0 => (2, 0xa0..=0xbf),
            0xed => (2, 0x80..=0x9f),
            0xe1..=0xef => (2, 0x80..=0xbf),
            0xf0 => (3, 0x90..=0xbf),
            0xf1..=0xf3 => (3, 0x80..=0xbf),
            0xf4 => (3, 0x80..=0x8f),
            _ => break,
        };
        let mut tail = tail;
        let mut valid = true;
        for index in 0..following {
            let Some((byte, after)) = tail.split_first() else { return bytes.len() - rest.len() };
            valid &= if index == 0 { second.contains(byte) } else { (0x80..=0xbf).contains(byte) };
            tail = after;
        }
        if !valid {
            break;
        }
        rest = tail;
    }
    bytes.len() - rest.len()
}

/// The longest start of these bytes that is UTF-8.
pub(crate) fn utf8_start(bytes: &[u8]) -> &str {
    bytes.get(..utf8_length(bytes)).and_then(utf8).unwrap_or_default()
}

#[cold]
#[inline(never)]
fn unescape_unicode(text: &[u8]) -> Option<(char, &[u8])> {
    let (unit, rest) = hex4(text)?;
    if !(0xd800..0xdc00).contains(&unit) {
        return Some((char::from_u32(unit)?, rest));
    }
    let (low, rest) = hex4(rest.strip_prefix(b"\\u")?)?;
    let low = low.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
    Some((char::from_u32(0x10000 + ((unit - 0xd800) << 10) + low)?, rest))
}

#[inline(never)]
fn hex4(text: &[u8]) -> Option<(u32, &[u8])> {
    let (digits, rest) = text.split_first_chunk::<4>()?;
    let value = digits.iter().try_fold(0, |value, digit| Some(value << 4 | char::from(*digit).to_digit(16)?))?;
    Some((value, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utf8_is_what_the_standard_library_takes_for_it() {
        let mut seed = 1u64;
        let edges = [0, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc1, 0xc2, 0xdf, 0xe0, 0xe1, 0xec, 0xed, 0xee, 0xef];
        let more = [0xf0, 0xf1, 0xf3, 0xf4, 0xf5, 0xff, b'a', b'z'];
        let mut bytes = [0u8; 6];
        for _ in 0..500_000 {
            for byte in &mut bytes {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let index = (seed >> 33) as usize % (edges.len() + more.len());
                *byte = edges.get(index).or_else(|| more.get(index - edges.len())).copied().unwrap_or(0);
            }
            let expected = core::str::from_utf8(&bytes);
            assert_eq!(utf8(&bytes), expected.ok(), "{bytes:x?}");
            let length = expected.map_or_else(|error| error.valid_up_to(), str::len);
            assert_eq!(utf8_start(&bytes).len(), length, "{bytes:x?}");
        }
    }

    #[test]
    fn escapes_are_resolved() {
        let text = unescape(br#"caf\u00e9 \ud83c\udf21 \"\\\/\b\f\n\r\t"#);
        assert_eq!(text.as_deref(), Some("café 🌡 \"\\/\u{8}\u{c}\n\r\t"));
        for invalid in [&b"\\"[..], b"\\x", b"\\u12", b"\\ud83c", b"\\ud83c\\u0041", b"\\udc00", b"\xff"] {
            assert_eq!(unescape(invalid), None, "{invalid:?}");
        }
        assert_eq!(compare(br"Temper\u0061ture", b"temperature"), Some(false));
        assert_eq!(compare(br"\u0061", b"a"), Some(true));
        assert_eq!(compare(b"temperatures", b"temperature"), None);
        assert_eq!(compare(b"TEMPERATURE", b"temperature"), Some(false));
        assert_eq!(compare(b"temperaturf", b"temperature"), None);
    }
}
