//! The three standard streams of a program.

use bytes::Bytes;

use crate::component::bindings::wasi::logging::logging::Level;
use crate::host::{Exceeded, HostState};
use sedge_core::limits::MAX_LOG_LINE_BYTES;

/// Rust ends the report of each panic with this line.
const NO_REASON: &str = "note: run with `RUST_BACKTRACE=1`";

/// The payload.
pub(super) struct Stdin {
    rest: Bytes,
}

impl Stdin {
    pub(super) fn new(payload: Bytes) -> Self {
        Self { rest: payload }
    }

    /// Fills the place as far as there are bytes. Returns their number, which is 0 at the end.
    pub(super) fn read(&mut self, place: &mut [u8]) -> usize {
        let read = self.take(place.len());
        place[..read.len()].copy_from_slice(&read);
        read.len()
    }

    /// The next bytes, at most this many. None at the end.
    pub(super) fn take(&mut self, most: usize) -> Bytes {
        self.rest.split_to(most.min(self.rest.len()))
    }
}

/// Lines with outputs.
pub(super) struct Stdout {
    written: Vec<u8>,
    limit: usize,
}

impl Stdout {
    pub(super) fn new(limit: usize) -> Self {
        Self { written: Vec::new(), limit }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Exceeded> {
        if self.written.len() + bytes.len() > self.limit {
            return Err(Exceeded::Stdout { limit: self.limit });
        }
        self.written.extend_from_slice(bytes);
        Ok(())
    }

    pub(super) fn written(&self) -> &[u8] {
        &self.written
    }
}

/// Lines for the log. Empty ones are left out.
#[derive(Default)]
pub(super) struct LogLines {
    /// Begin of the line that is not finished yet, at most one byte longer than the log takes, so that the log marks the cut.
    line: Vec<u8>,
    last_line: Option<String>,
}

impl LogLines {
    pub(super) fn write(&mut self, bytes: &[u8], host: &mut HostState) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (content, is_end) = match piece.split_last() {
                Some((b'\n', content)) => (content, true),
                _ => (piece, false),
            };
            let room = MAX_LOG_LINE_BYTES + 1 - self.line.len();
            self.line.extend_from_slice(&content[..content.len().min(room)]);
            if is_end {
                self.end_line(host);
            }
        }
    }

    /// Returns the last line that was written, a line without its end included.
    pub(super) fn finish(&mut self, host: &mut HostState) -> Option<String> {
        self.end_line(host);
        self.last_line.take()
    }

    fn end_line(&mut self, host: &mut HostState) {
        let text = String::from_utf8_lossy(&self.line);
        let text = text.trim_ascii();
        if !text.is_empty() && !text.starts_with(NO_REASON) {
            host.log(Level::Info, "", text);
            let last_line = self.last_line.get_or_insert_default();
            last_line.clear();
            last_line.push_str(text);
        }
        self.line.clear();
    }
}
