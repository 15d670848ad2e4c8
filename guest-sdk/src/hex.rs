//! Bytes as hexadecimal digits.

use alloc::string::String;
use alloc::vec::Vec;

/// Lower case, two digits for each byte.
pub fn encode(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from(if value < 10 { b'0' + value } else { b'a' + value - 10 });
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Digits of both cases. Spaces, `:` and `-` between bytes are ignored, as in `00:1A:2b`. `None` for anything else.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 2);
    let mut rest = text.trim_ascii().bytes();
    while let Some(high) = rest.next() {
        if matches!(high, b' ' | b':' | b'-') {
            continue;
        }
        let value = |digit: u8| char::from(digit).to_digit(16);
        bytes.push((value(high)? << 4 | value(rest.next()?)?) as u8);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&all)), Some(all));
        assert_eq!(encode(&[0, 0x1a, 0xff]), "001aff");
        assert_eq!(decode("00:1A:ff"), Some([0, 0x1a, 0xff].to_vec()));
        assert_eq!(decode(" 00 1a-FF\n"), Some([0, 0x1a, 0xff].to_vec()));
        assert_eq!(decode(""), Some(Vec::new()));
    }

    #[test]
    fn half_bytes_and_other_letters_are_refused() {
        for text in ["0", "001", "0g", "0x1a", "0 1", "é0"] {
            assert_eq!(decode(text), None, "{text}");
        }
    }
}
