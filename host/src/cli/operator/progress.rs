//! What a command is doing, on standard error: one line that changes on a terminal, a line for each step elsewhere.

use std::io::{IsTerminal as _, Write as _};

const BAR_WIDTH: usize = 24;

pub struct Progress {
    is_terminal: bool,
    /// What the changing line shows.
    shown: String,
}

impl Progress {
    pub fn new() -> Self {
        Self { is_terminal: std::io::stderr().is_terminal(), shown: String::new() }
    }

    /// A line that stays.
    pub fn print(&mut self, what: &str, text: &str) {
        self.clear();
        eprintln!("{what:<10} {text}");
    }

    /// The state of something that is under way.
    pub fn set_status(&mut self, what: &str, text: &str) {
        let line = format!("{what:<10} {text}");
        if line == self.shown {
            return;
        }
        if self.is_terminal {
            eprint!("\r\x1b[K{line}");
            let _ = std::io::stderr().flush();
        } else {
            eprintln!("{line}");
        }
        self.shown = line;
    }

    /// How much of something countable is done. Where there is no terminal only its end is worth a line.
    pub fn set_count(&mut self, what: &str, done: usize, whole: usize) {
        if self.is_terminal {
            self.set_status(what, &format!("{} {done} of {whole}", bar(done, whole)));
        } else if done == whole {
            self.set_status(what, &format!("{done} of {whole}"));
        }
    }

    fn clear(&mut self) {
        if self.is_terminal && !self.shown.is_empty() {
            eprint!("\r\x1b[K");
        }
        self.shown.clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn bar(done: usize, whole: usize) -> String {
    let filled = (done * BAR_WIDTH).checked_div(whole).unwrap_or(BAR_WIDTH).min(BAR_WIDTH);
    format!("[{}{}]", "#".repeat(filled), " ".repeat(BAR_WIDTH - filled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars() {
        assert_eq!(bar(0, 4), format!("[{}]", " ".repeat(24)));
        assert_eq!(bar(1, 4), format!("[{}{}]", "#".repeat(6), " ".repeat(18)));
        assert_eq!(bar(4, 4), format!("[{}]", "#".repeat(24)));
        assert_eq!(bar(0, 0), format!("[{}]", "#".repeat(24)));
        assert_eq!(bar(5, 4), bar(4, 4));
    }
}
