//! A pass over a JSON document, from its first byte to its last.

/// Number of objects and arrays that may lie within each other: one bit of a word for each.
const MAX_DEPTH: u32 = 64;

/// The rest of a document. Methods that return an option return `None` where the document is not JSON; the cursor then stands
/// at the offending byte, or at the end of a document that was cut off.
#[derive(Clone)]
pub(crate) struct Cursor<'a> {
    pub rest: &'a [u8],
}

/// Receiver of what a document holds, in its order.
pub(crate) trait Visit<'a> {
    fn open(&mut self, object: bool);
    fn close(&mut self);
    /// The name of the member whose value comes next, with its escapes.
    fn name(&mut self, name: &'a [u8]);
    /// An element of an array comes next.
    fn element(&mut self);
    /// A string with its quotes, or a bare word or number.
    fn scalar(&mut self, raw: &'a [u8]);
}

/// Ignores everything.
struct Skip;

impl Visit<'_> for Skip {
    fn open(&mut self, _: bool) {}
    fn close(&mut self) {}
    fn name(&mut self, _: &[u8]) {}
    fn element(&mut self) {}
    fn scalar(&mut self, _: &[u8]) {}
}

impl<'a> Cursor<'a> {
    /// The next byte that is not white space, without going past it.
    #[inline]
    pub(super) fn first(&mut self) -> Option<u8> {
        self.rest = skip_space(self.rest);
        self.rest.first().copied()
    }

    #[inline]
    pub(super) fn advance(&mut self) {
        self.rest = behind(self.rest);
    }

    /// The name of a member, without quotes and with its escapes; the colon is passed too.
    #[inline]
    pub(super) fn name(&mut self) -> Option<&'a [u8]> {
        if self.first()? != b'"' {
            return None;
        }
        let name = unquoted(self.string()?);
        if self.first()? != b':' {
            return None;
        }
        self.advance();
        Some(name)
    }

    /// A string with its quotes, or a bare word or number, from a byte that is not white space.
    #[inline]
    fn scalar(&mut self) -> Option<&'a [u8]> {
        if self.rest.first() == Some(&b'"') {
            return self.string();
        }
        let start = self.rest;
        self.rest = skip_word(start);
        // A word that the end of the document ends may be cut off.
        if self.rest.is_empty() {
            return None;
        }
        start.get(..start.len() - self.rest.len()).filter(|word| !word.is_empty())
    }

    #[inline]
    fn string(&mut self) -> Option<&'a [u8]> {
        let start = self.rest;
        let mut rest = start.get(1..)?;
        loop {
            let Some((byte, tail)) = skip_in_string(rest).split_first() else {
                self.rest = &[];
                return None;
            };
            if *byte == b'"' {
                self.rest = tail;
                return start.get(..start.len() - tail.len());
            }
            rest = behind(tail);
        }
    }

    /// Passes one value and tells the visitor what it holds.
    #[inline(always)]
    pub(super) fn walk(&mut self, visit: &mut impl Visit<'a>) -> Option<()> {
        // A copy that no call takes the address of.
        let mut cursor = self.clone();
        let walked = cursor.walk_on(visit);
        self.rest = cursor.rest;
        walked
    }

    #[inline(always)]
    fn walk_on(&mut self, visit: &mut impl Visit<'a>) -> Option<()> {
        // One bit for each open object or array, the innermost the lowest: whether it is an object.
        let mut objects = 0u64;
        let mut depth = 0;
        let mut member = None;
        loop {
            match member.take() {
                Some(true) => visit.name(self.name()?),
                Some(false) => visit.element(),
                None => {}
            }
            match self.first()? {
                opening @ (b'{' | b'[') => {
                    let object = opening == b'{';
                    if depth == MAX_DEPTH {
                        return None;
                    }
                    self.advance();
                    depth += 1;
                    objects = objects << 1 | u64::from(object);
                    visit.open(object);
                    if self.first()? != closing(object) {
                        member = Some(object);
                        continue;
                    }
                }
                _ => visit.scalar(self.scalar()?),
            }
            while depth > 0 {
                let object = objects & 1 == 1;
                let byte = self.first()?;
                if byte == b',' {
                    self.advance();
                    member = Some(object);
                    break;
                }
                if byte != closing(object) {
                    return None;
                }
                self.advance();
                visit.close();
                depth -= 1;
                objects >>= 1;
            }
            if member.is_none() {
                return Some(());
            }
        }
    }

    /// Passes one value and returns its text.
    #[inline]
    pub(super) fn value(&mut self) -> Option<&'a [u8]> {
        match self.first()? {
            b'{' | b'[' => self.container(),
            _ => self.scalar(),
        }
    }

    #[inline(never)]
    fn container(&mut self) -> Option<&'a [u8]> {
        let start = self.rest;
        self.walk(&mut Skip)?;
        start.get(..start.len() - self.rest.len())
    }
}

#[inline]
fn behind(text: &[u8]) -> &[u8] {
    text.get(1..).unwrap_or_default()
}

#[inline]
fn skip_space(mut text: &[u8]) -> &[u8] {
    while let Some((b' ' | b'\t' | b'\r' | b'\n', tail)) = text.split_first() {
        text = tail;
    }
    text
}

pub(crate) fn closing(object: bool) -> u8 {
    if object { b'}' } else { b']' }
}

/// What is between the quotes of a string.
pub(crate) fn unquoted(string: &[u8]) -> &[u8] {
    string.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")).unwrap_or(string)
}

/// One bit in each byte: the lowest, and the highest.
const ONES: u64 = u64::from_ne_bytes([1; 8]);
const HIGH: u64 = ONES << 7;

// The highest bit of each byte that is meant, and perhaps of some after the first such byte.
#[inline]
fn equal(eight: u64, byte: u8) -> u64 {
    less(eight ^ (ONES * u64::from(byte)), 1)
}

#[inline]
fn less(eight: u64, byte: u8) -> u64 {
    eight.wrapping_sub(ONES * u64::from(byte)) & !eight & HIGH
}

/// `text` from the first byte on that `hits` finds in eight bytes, or `is_hit` in one. Eight are looked at in one go: this is most of
/// what reading a payload costs.
#[inline(always)]
fn skip(text: &[u8], hits: impl Fn(u64) -> u64, is_hit: impl Fn(u8) -> bool) -> &[u8] {
    let mut rest = text;
    while let Some((eight, tail)) = rest.split_first_chunk() {
        let hits = hits(u64::from_le_bytes(*eight));
        if hits != 0 {
            return rest.get(hits.trailing_zeros() as usize / 8..).unwrap_or_default();
        }
        rest = tail;
    }
    while let Some((byte, tail)) = rest.split_first() {
        if is_hit(*byte) {
            break;
        }
        rest = tail;
    }
    rest
}

/// `text` from the first `"` or `\` on.
#[inline]
fn skip_in_string(text: &[u8]) -> &[u8] {
    skip(text, |eight| equal(eight, b'"') | equal(eight, b'\\'), |byte| matches!(byte, b'"' | b'\\'))
}

/// `text` behind a bare word or number: from white space, a comma, a quote or a bracket on. All but the brackets are below `-`, and
/// so is `+`, which an exponent may have.
#[inline]
fn skip_word(text: &[u8]) -> &[u8] {
    let mut rest = text;
    loop {
        rest = skip(
            rest,
            |eight| less(eight, b'-') | equal(eight | ONES << 5, b'}'),
            |byte| byte < b'-' || byte | 0x20 == b'}',
        );
        match rest.split_first() {
            Some((b'+', tail)) => rest = tail,
            _ => return rest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(document: &str) -> bool {
        let mut cursor = Cursor { rest: document.as_bytes() };
        cursor.value().is_some() && cursor.first().is_none()
    }

    #[test]
    fn accepts_what_other_readers_accept() {
        for document in [
            "{}",
            "[]",
            "[[],{}]",
            r#"{"a":1}"#,
            r#" { "a" : [ 1 , "x\"]}" , { } ] , "b" : null } "#,
            r#"{"a":NaN,"b":-Infinity}"#,
            r#""text""#,
        ] {
            assert!(accepts(document), "{document}");
        }
    }

    #[test]
    fn refuses_what_was_cut_off_or_is_no_json() {
        let document = r#"{"a":[1,{"b":"x\\\"y"}],"c":{"d":-1.5e3}}"#;
        for end in 0..document.len() {
            assert!(!accepts(&document[..end]), "{}", &document[..end]);
        }
        for document in [
            r#"{"temperature":81,5}"#,
            r#"{"a":1,}"#,
            "[1,]",
            "[,1]",
            r#"{"a" 1}"#,
            r#"{"a":}"#,
            r#"{"a":1]"#,
            r#"{"a":1 2}"#,
            r#"{a:1}"#,
            r#"{"a":1}}"#,
            r#"{"a":1}{"a":2}"#,
            r#"{"a":"1"2}"#,
            "[1}",
        ] {
            assert!(!accepts(document), "{document}");
        }
    }

    #[test]
    fn nests_as_deep_as_any_sensor_does() {
        use std::string::String;
        let nested = |depth: usize| -> String {
            core::iter::repeat_n("[", depth).chain(core::iter::repeat_n("]", depth)).collect()
        };
        assert!(accepts(&nested(64)));
        assert!(!accepts(&nested(65)));
    }

    #[test]
    fn skips_like_a_loop_over_bytes() {
        let mut seed = 1u32;
        let mut text = [0u8; 40];
        let others =
            [b'!', b'#', b'[', b']', b'}', b'|', b'+', b',', b'-', b' ', 0xa2, 0xdc, 0xac, 0, 0xff, b'a', b'7'];
        for _ in 0..40_000 {
            for byte in &mut text {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Mostly the bytes looked for and their neighbours, where carries could mislead.
                *byte = match seed as usize % 97 % 23 {
                    0 => b'"',
                    1 => b'\\',
                    other => others[other % others.len()],
                };
            }
            let start = seed as usize % 40;
            let text = &text[start..];
            let expected = text.iter().position(|byte| matches!(byte, b'"' | b'\\')).unwrap_or(text.len());
            assert_eq!(text.len() - skip_in_string(text).len(), expected, "{text:?}");
            let ends = |byte: &u8| *byte < b'-' && *byte != b'+' || matches!(byte, b']' | b'}');
            let expected = text.iter().position(ends).unwrap_or(text.len());
            assert_eq!(text.len() - skip_word(text).len(), expected, "{text:?}");
        }
    }
}
