//! A source, and the copy of it in which types are overwritten.

use std::collections::HashMap;
use std::ops::Range;

/// White space of JavaScript in two and in three bytes, so that a character of a type leaves one character in as many bytes.
const NO_BREAK_SPACE: &[u8] = "\u{a0}".as_bytes();
const EM_SPACE: &[u8] = "\u{2003}".as_bytes();

pub(crate) struct Text<'a> {
    source: &'a str,
    output: Vec<u8>,
    /// Start of what was overwritten, by its end.
    blanks: HashMap<usize, usize>,
}

impl<'a> Text<'a> {
    pub(crate) fn new(source: &'a str) -> Self {
        Self { source, output: source.into(), blanks: HashMap::new() }
    }

    pub(crate) fn get(&self, range: Range<usize>) -> &'a str {
        &self.source[range]
    }

    pub(crate) fn has_line_break(&self, range: Range<usize>) -> bool {
        self.source[range].contains(is_line_break)
    }

    pub(crate) fn is_at(&self, at: usize, text: &str) -> bool {
        self.source[at..].starts_with(text)
    }

    /// Where the next token begins: behind white space and comments.
    pub(crate) fn token(&self, mut at: usize) -> usize {
        loop {
            let rest = self.source[at..].trim_start_matches(|it: char| it.is_whitespace() || it == '\u{feff}');
            at = self.source.len() - rest.len();
            if rest.starts_with("//") {
                at += rest.find(is_line_break).unwrap_or(rest.len());
            } else if rest.starts_with("/*") {
                at += rest.find("*/").map_or(rest.len(), |end| end + 2);
            } else {
                return at;
            }
        }
    }

    /// The name or keyword that begins here. Empty if there is none.
    pub(crate) fn word(&self, at: usize) -> &'a str {
        let rest = &self.source[at..];
        let is_part = |it: char| it.is_alphanumeric() || matches!(it, '_' | '$' | '#');
        &rest[..rest.find(|it| !is_part(it)).unwrap_or(rest.len())]
    }

    /// Overwrites all characters but line breaks.
    pub(crate) fn blank(&mut self, range: Range<usize>) {
        for (offset, character) in self.source[range.clone()].char_indices() {
            let at = range.start + offset;
            let blank = match character.len_utf8() {
                _ if is_line_break(character) => continue,
                1 => b" ",
                2 => NO_BREAK_SPACE,
                3 => EM_SPACE,
                // No white space has four bytes.
                _ => "\u{a0}\u{a0}".as_bytes(),
            };
            self.output[at..at + blank.len()].copy_from_slice(blank);
        }
        self.blanks.insert(range.end, range.start);
    }

    /// Puts a character of one byte in the place of another, which is overwritten or a token of one byte.
    pub(crate) fn put(&mut self, at: usize, byte: u8) {
        let len = self.source[at..].chars().next().map_or(0, char::len_utf8);
        self.output[at..at + len].fill(b' ');
        self.output[at] = byte;
    }

    /// Puts a semicolon behind what ends here without one, if a type was the last of it.
    ///
    /// In JavaScript, `a as T` and a line that begins with `(`, `[` or a template would be one expression, once the type is gone.
    pub(crate) fn end_at(&mut self, end: usize) {
        if let Some(start) = self.blanks.get(&end).copied()
            && !self.source[..end].ends_with(';')
        {
            self.put(start, b';');
        }
    }

    pub(crate) fn into_output(self) -> String {
        String::from_utf8(self.output).expect("characters were overwritten as a whole")
    }
}

pub(crate) fn is_line_break(character: char) -> bool {
    matches!(character, '\n' | '\r' | '\u{2028}' | '\u{2029}')
}
