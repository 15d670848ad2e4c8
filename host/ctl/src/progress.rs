//! Progress on standard error: one changing line on a terminal, one line per step elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::printable;

/// Pause between lines of a count where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

const STATUS: &str = "{prefix:<10} {msg}";
const COUNT: &str = "{prefix:<10} [{bar:24}] {pos} of {len}{msg}";

/// Cleared when dropped.
pub(crate) struct Progress {
    /// Hidden where standard error is not a terminal.
    bar: ProgressBar,
    /// Template of the changing line.
    template: &'static str,
    last_line: String,
    last_count_at: Option<Instant>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        Self { bar, template: "", last_line: String::new(), last_count_at: None }
    }

    /// Prints a line that stays.
    pub(crate) fn print(&self, label: &str, text: &str) {
        let text = printable(text);
        self.bar.suspend(|| eprintln!("{label:<10} {text}"));
    }

    /// Replaces the changing line.
    pub(crate) fn set_status(&mut self, label: &str, text: &str) {
        let text = printable(text);
        self.draw(STATUS, label, &text);
        let line = format!("{label:<10} {text}");
        if self.bar.is_hidden() && line != self.last_line {
            eprintln!("{line}");
            self.last_line = line;
        }
    }

    /// Shows how much of something countable is done. `note` follows the figures.
    pub(crate) fn set_count(&mut self, label: &str, done: u64, total: u64, note: &str, now: Instant) {
        if self.bar.is_hidden() {
            let last = *self.last_count_at.get_or_insert(now);
            if done == total || now.duration_since(last) >= LINE_INTERVAL {
                self.last_count_at = Some(now);
                self.set_status(label, &format!("{done} of {total}{note}"));
            }
            return;
        }
        self.bar.set_length(total);
        self.bar.set_position(done);
        self.draw(COUNT, label, note);
    }

    fn draw(&mut self, template: &'static str, label: &str, message: &str) {
        if self.template != template {
            let style = ProgressStyle::with_template(template).expect("the template is valid");
            self.bar.set_style(style.progress_chars("# "));
            self.template = template;
        }
        self.bar.set_prefix(label.to_owned());
        self.bar.set_message(message.to_owned());
    }
}
