//! A message as it is shown: what the function returned for it here, and what differs from the board's own version.

use std::sync::Arc;

use sedge_core::message::{Message, Verdict};
use sedge_core::text::printable;
use sedge_core::time::rfc3339;
use sedge_sandbox::Run;
use serde_json::{Value, json};

use super::answer::{Answer, Difference};
use super::compare::{Compared, Settled, Totals};
use crate::invoke::print;
use crate::runner::{self, text_or_hex};
use crate::terminal::{self, say};
use crate::{GREEN, RED, paint_out};

const SHOWN_PAYLOAD_CHARS: usize = 200;

pub(super) struct Shown {
    pub(super) message: Message,
    /// That ran it here.
    pub(super) version: Arc<str>,
    pub(super) run: Run,
}

impl Shown {
    pub(super) fn print(&self, settled: Option<&Settled>, as_json: bool) {
        match as_json {
            true => say!("{}", terminal::json(&self.to_json(settled))),
            false => self.print_text(settled),
        }
    }

    fn to_json(&self, settled: Option<&Settled>) -> Value {
        let message = &self.message;
        let mut line = runner::as_json(&self.run);
        line["topic"] = json!(&*message.topic);
        line["payload"] = json!(text_or_hex(&message.payload));
        line["received_at_ms"] = json!(message.received_at_ms);
        line["retained"] = json!(message.retained);
        line["version"] = json!(&*self.version);
        if let Some(settled) = settled {
            line["board"] = settled.to_json();
        }
        line
    }

    fn print_text(&self, settled: Option<&Settled>) {
        let message = &self.message;
        let payload: String = text_or_hex(&message.payload).chars().take(SHOWN_PAYLOAD_CHARS).collect();
        let retained = if message.retained { " (retained)" } else { "" };
        let head = format!("{}  {}{retained}  {payload}", rfc3339(message.received_at_ms), printable(&message.topic));
        let colour = if matches!(self.run.outcome.verdict, Verdict::Done(_)) { GREEN } else { RED };
        terminal::raw(&format!("\n{}\n", paint_out(colour, &head)));
        print(&self.run);
        match settled {
            None => {}
            Some(Settled::NotCompared(why)) => say!("board    not compared: {why}"),
            Some(Settled::Compared(compared)) => compared.print(),
        }
    }
}

impl Settled {
    fn to_json(&self) -> Value {
        let side = |answer: &Option<Answer>| answer.as_ref().map(Answer::to_json);
        match self {
            Self::NotCompared(why) => json!({ "compared": false, "why": why }),
            Self::Compared(Compared { equal, differences, folded, folds }) => json!({
                "compared": true,
                "equal": equal,
                "differences": differences
                    .iter()
                    .map(|Difference { board, here }| json!({ "board": side(board), "here": side(here) }))
                    .collect::<Vec<_>>(),
                "folded": folded,
                "folds": folds
                    .iter()
                    .map(|(key, board, here)| json!({ "key": key, "board": board, "here": here }))
                    .collect::<Vec<_>>(),
            }),
        }
    }
}

impl Compared {
    fn print(&self) {
        let Self { equal, differences, folded, folds } = self;
        match (equal, differences.len()) {
            (0, 0) if folded.is_empty() => say!("board    equal: no alert and no publication"),
            (0, 0) => {}
            (_, 0) => say!("board    equal: {equal}"),
            (_, many) => say!("board    equal: {equal}, different: {many} (- the board's, + here)"),
        }
        for Difference { board, here } in differences {
            for (sign, colour, answer) in [('-', RED, board), ('+', GREEN, here)] {
                if let Some(answer) = answer {
                    let line = format!("{sign} {}", terminal::json(&answer.to_json()));
                    terminal::raw(&format!("{}\n", paint_out(colour, &line)));
                }
            }
        }
        for key in folded {
            say!("board    alert {}: a repeat, which it folds if it gave one", printable(key));
        }
        for (key, board, here) in folds {
            let key = printable(key);
            say!("board    alert {key}: it folded {board} repeats since the last one, and here were {here}");
        }
    }
}

/// An answer of the board to nothing that ran here.
pub(super) fn print_unplaced(answer: &Answer, as_json: bool) {
    let answer = answer.to_json();
    match as_json {
        true => say!("{}", terminal::json(&json!({ "board_answered_no_message": answer }))),
        false => say!("\nboard    to no message here: {}", terminal::json(&answer)),
    }
}

impl Totals {
    pub(super) fn print(&self, as_json: bool) {
        if as_json {
            say!("{}", terminal::json(&json!({ "totals": self.to_json() })));
            return;
        }
        let Self { messages, different, not_compared, equal, changed, only_board, only_here, folded, unplaced } = self;
        say!("\ncompared {messages} messages, of which {different} differ; {not_compared} were not compared");
        say!(
            "answers  {equal} equal, {changed} with another content, {only_board} only the board's, {only_here} only here, \
             {folded} perhaps folded; {unplaced} of the board to no message here"
        );
    }
}
