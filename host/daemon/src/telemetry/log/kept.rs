//! The latest lines of the log, for those who may read them from elsewhere.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use sedge_core::time::rfc3339;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent as _, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Lines that are kept, and their bytes.
const MAX_LINES: usize = 500;
const MAX_BYTES: usize = 64 << 10;
/// A longer line is cut.
const MAX_LINE_BYTES: usize = 2000;

static KEPT: Mutex<Kept> = Mutex::new(Kept { lines: VecDeque::new(), bytes: 0, last: 0 });

/// Lines from oldest to newest.
#[derive(Debug)]
struct Kept {
    lines: VecDeque<String>,
    bytes: usize,
    /// Number of the newest, from 1.
    last: u64,
}

/// An answer to whoever reads the log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct KeptLines {
    pub(crate) lines: Vec<String>,
    pub(crate) last: u64,
    /// Lines that are not there any more.
    pub(crate) left_out: u64,
}

impl Kept {
    fn add(&mut self, line: String) {
        self.bytes += line.len();
        self.last += 1;
        self.lines.push_back(line);
        while self.lines.len() > MAX_LINES || self.bytes > MAX_BYTES {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= oldest.len();
        }
    }

    fn after(&self, after: u64) -> KeptLines {
        // A number of an earlier run of the daemon says nothing.
        let after = if after > self.last { 0 } else { after };
        let new = self.last - after;
        let kept = (self.lines.len() as u64).min(new);
        let lines = self.lines.iter().skip(self.lines.len() - kept as usize).cloned().collect();
        KeptLines { lines, last: self.last, left_out: if after == 0 { 0 } else { new - kept } }
    }
}

/// Keeps a line that is written. It has no colours, and its texts are escaped.
pub(super) fn keep<S, N>(ctx: &FmtContext<'_, S, N>, event: &Event<'_>)
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    let mut line = format!("{} ", rfc3339(sedge_sandbox::clock::now_ms()));
    let format = Format::default().without_time().with_ansi(false);
    if format.format_event(ctx, Writer::new(&mut line), event).is_ok() {
        line.truncate(line.floor_char_boundary(MAX_LINE_BYTES.min(line.trim_end().len())));
        KEPT.lock().unwrap_or_else(PoisonError::into_inner).add(line);
    }
}

/// The kept lines after this number.
pub(crate) fn lines_after(after: u64) -> KeptLines {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).after(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_lines_are_kept_within_bounds_and_what_is_missing_is_counted() {
        let mut kept = Kept { lines: VecDeque::new(), bytes: 0, last: 0 };
        assert_eq!(kept.after(0), KeptLines { lines: Vec::new(), last: 0, left_out: 0 });
        (1..=3).for_each(|n| kept.add(n.to_string()));
        assert_eq!(kept.after(1), KeptLines { lines: vec!["2".into(), "3".into()], last: 3, left_out: 0 });
        assert_eq!(kept.after(3).lines, Vec::<String>::new());
        assert_eq!(kept.after(99).lines.len(), 3, "the daemon began anew");
        (4..=2000).for_each(|n| kept.add(n.to_string()));
        let KeptLines { lines, last, left_out } = kept.after(3);
        assert_eq!((lines.len(), last, left_out), (MAX_LINES, 2000, 1997 - MAX_LINES as u64));
        (0..100).for_each(|_| kept.add("x".repeat(MAX_LINE_BYTES)));
        assert!(kept.bytes <= MAX_BYTES && kept.lines.len() == MAX_BYTES / MAX_LINE_BYTES);
    }
}
