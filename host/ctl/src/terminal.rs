//! Standard output of the commands: all text passes through here, so that none controls the terminal, and a reader that leaves
//! early ends the command quietly.

use std::io::{self, StdoutLock, Write};

use serde::Serialize;

use sedge_core::text::{is_unprintable, printable};

/// Exit code of a program that SIGPIPE ended, as shells report it.
const EXIT_SIGPIPE: i32 = 128 + 13;

/// Standard output. Unprintable characters are escaped, but not the end of a line.
pub(crate) struct Out(StdoutLock<'static>);

pub(crate) fn out() -> Out {
    Out(io::stdout().lock())
}

/// Prints a line to standard output.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        // A reader that left ends the process in `Out`. On a full disk the exit code of the command is all that is left.
        let _ = writeln!($crate::terminal::out(), $($arg)*);
    }};
}
pub(crate) use say;

/// Prints text that holds colours. Whatever else is in it must be printable already.
#[cfg(feature = "compiler")]
pub(crate) fn raw(text: &str) {
    let _ = checked(io::stdout().write_all(text.as_bytes()));
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // `write!` passes whole texts.
        let text = String::from_utf8_lossy(bytes);
        let result = match text.contains(|c| c != '\n' && is_unprintable(c)) {
            true => self.0.write_all(printable_lines(&text).as_bytes()),
            false => self.0.write_all(bytes),
        };
        checked(result).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        checked(self.0.flush())
    }
}

#[expect(clippy::exit, clippy::disallowed_methods, reason = "as SIGPIPE would, which Rust programs ignore")]
fn checked(result: io::Result<()>) -> io::Result<()> {
    match &result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(EXIT_SIGPIPE),
        _ => result,
    }
}

/// Escapes unprintable characters and keeps the lines.
pub fn printable_lines(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// JSON on one line. Characters that a terminal would act on are escaped as JSON escapes them.
pub(crate) fn json(value: &impl Serialize) -> String {
    escaped(&serde_json::to_string(value).expect("the answers have only string keys"))
}

/// JSON on several lines.
pub(crate) fn pretty_json(value: &impl Serialize) -> String {
    escaped(&serde_json::to_string_pretty(value).expect("the answers have only string keys"))
}

/// Outside of strings JSON has no such characters but the end of a line, so that an escape is the same text.
fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c != '\n' && is_unprintable(c) {
            true => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| text.push_str(&format!("\\u{unit:04x}"))),
            false => text.push(c),
        }
    }
    text
}

/// Prints columns as wide as their widest cell. The first row has their names.
#[cfg(any(feature = "operator", feature = "page"))]
pub(crate) fn table<const N: usize>(out: &mut impl Write, rows: &[[String; N]]) -> io::Result<()> {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in rows {
        let line: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(out, "{}", line.join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_the_same_text_and_safe_on_a_terminal() {
        let text = "a\n\u{1b}[2J\u{202e}\u{2028}\u{9b}\u{e0041}ü";
        for json in [json(&[text]), pretty_json(&[text])] {
            assert!(!json.chars().any(|c| c != '\n' && is_unprintable(c)), "{json}");
            assert_eq!(serde_json::from_str::<[String; 1]>(&json).unwrap(), [text]);
        }
    }

    #[test]
    fn lines_are_kept_and_nothing_else() {
        assert_eq!(printable_lines("a\nb\r\u{2029}c"), "a\nb\\r\\u{2029}c");
    }
}
