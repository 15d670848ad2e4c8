//! Writes what came into the file of a case, and leaves everything else in it as it is.

use std::fmt::Write as _;

use anyhow::{Context as _, bail};
use sedge_core::message::Verdict;
use sedge_core::text::is_unprintable;
use sedge_sandbox::{Run, ScopeState};
use serde_json::Value as Json;
use toml::{Table, Value};

use super::compare::{outputs_of, without_nulls};
use sedge_core::text::hex;

const MESSAGE: &str = "[[message]]";
const EXPECT: &str = "[message.expect]";

/// The section `expect` that a run meets.
pub(crate) fn expectation(run: &Run, state: &ScopeState) -> String {
    let mut section = format!("{EXPECT}\n");
    let mut line = |key: &str, value: Value| {
        let _ = writeln!(section, "{key} = {value}");
    };
    match &run.outcome.verdict {
        Verdict::Done(_) => {
            let outputs = outputs_of(run);
            let lines: String = outputs.iter().map(|output| format!("    {},\n", of_output(output))).collect();
            let _ = match lines.as_str() {
                "" => writeln!(section, "outputs = []"),
                lines => writeln!(section, "outputs = [\n{lines}]"),
            };
        }
        Verdict::Retry { after_ms, reason } => {
            line("retry_after_ms", Value::Integer(i64::try_from(*after_ms).unwrap_or(i64::MAX)));
            line("detail", reason.as_str().into());
        }
        Verdict::Failed(failure) => {
            line("failure", failure.code.as_str().into());
            line("detail", failure.detail.as_str().into());
        }
    }
    if state.entries().next().is_some() {
        let entries: Table = state.entries().map(|(key, bytes)| (key.to_owned(), of_bytes(bytes))).collect();
        let _ = writeln!(section, "state = {}", Value::Table(entries));
    }
    section
}

/// Most outputs are not retained, and most fields of an output are not set.
fn of_output(output: &Json) -> Value {
    let fields = without_nulls(output).into_iter().filter(|(_, field)| *field != Json::Bool(false));
    Value::Table(fields.map(|(name, field)| (name, of_json(&field))).collect())
}

pub(crate) fn of_bytes(bytes: &[u8]) -> Value {
    match str::from_utf8(bytes) {
        Ok(text) if !text.contains(is_unprintable) => text.into(),
        _ => Value::Table([("hex".to_owned(), hex(bytes).into())].into_iter().collect()),
    }
}

fn of_json(json: &Json) -> Value {
    match json {
        Json::Null => "".into(),
        Json::Bool(is_on) => (*is_on).into(),
        Json::Number(number) => match number.as_i64() {
            Some(number) => number.into(),
            None => number.as_f64().unwrap_or_default().into(),
        },
        Json::String(text) => text.as_str().into(),
        Json::Array(items) => Value::Array(items.iter().map(of_json).collect()),
        Json::Object(fields) => {
            Value::Table(fields.iter().map(|(name, field)| (name.clone(), of_json(field))).collect())
        }
    }
}

/// Puts a section `expect` at the end of each message, in the place of the one that is there. `came`: one for each message.
///
/// The text is taken apart by its lines and not by its syntax, which keeps comments and spaces. Whether that went well is
/// checked: all but `expect` must mean what it meant before.
pub(super) fn write(text: &str, came: &[String]) -> anyhow::Result<String> {
    // The first message may stand at the beginning of the file.
    let text = format!("\n{text}");
    let separator = format!("\n{MESSAGE}");
    let (before, messages) = text.split_once(&separator).unwrap_or((&text, ""));
    let mut written = format!("{before}\n");
    let rest: Vec<&str> = messages.split(&separator).collect();
    for (n, message) in rest.iter().enumerate() {
        let (message, comment) = trailing_comment(without_expectation(message));
        let _ = write!(written, "{MESSAGE}{}\n\n{}", message.trim_end(), came.get(n).map_or("", String::as_str));
        if n + 1 < rest.len() {
            let _ = write!(written, "\n{comment}");
        }
    }
    let written = written.trim_start_matches('\n').to_owned();
    let (old, new) = (without(&text)?, without(&written).unwrap_or_default());
    if old != new || rest.len() != came.len() {
        bail!(
            "--bless cannot write into this file: end each section {MESSAGE} with its expectation, in a section {EXPECT} of its own"
        );
    }
    Ok(written)
}

/// A comment right before the next message belongs to that.
fn trailing_comment(message: String) -> (String, String) {
    let lines: Vec<&str> = message.lines().collect();
    let comment = lines.iter().rev().take_while(|line| line.starts_with('#')).count();
    let is_apart = comment > 0 && lines.len() > comment && lines[lines.len() - comment - 1].trim().is_empty();
    if !is_apart {
        return (message, String::new());
    }
    let (message, comment) = lines.split_at(lines.len() - comment);
    (message.join("\n"), comment.join("\n") + "\n")
}

/// The lines of a message without those of its section `expect`, up to a comment before the next message.
fn without_expectation(message: &str) -> String {
    let mut kept = String::new();
    let mut is_expectation = false;
    let mut lines = message.split_inclusive('\n').peekable();
    while let Some(line) = lines.next() {
        if line.starts_with(EXPECT) {
            is_expectation = true;
        } else if line.starts_with('[') {
            is_expectation = false;
        } else if is_expectation && line.trim().is_empty() && lines.peek().is_some_and(|next| next.starts_with('#')) {
            // An empty line and a comment: of the next message.
            is_expectation = false;
        }
        let is_inline = line.starts_with("expect.") || line.starts_with("expect ");
        if !is_expectation && !is_inline {
            kept.push_str(line);
        }
    }
    kept
}

/// The content of a case without its expectations.
fn without(text: &str) -> anyhow::Result<Table> {
    let mut table: Table = text.parse().context("it is not TOML")?;
    if let Some(messages) = table.get_mut("message").and_then(Value::as_array_mut) {
        messages.iter_mut().filter_map(Value::as_table_mut).for_each(|message| drop(message.remove("expect")));
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: &str = "[message.expect]\noutputs = []\n";

    fn blessed(text: &str, messages: usize) -> Result<String, String> {
        write(text, &vec![NEW.to_owned(); messages]).map_err(|error| error.to_string())
    }

    #[test]
    fn comments_and_order_stay() {
        let text = "# A case.\ntime = 2026-01-05\n\n# One.\n[[message]]\ntopic = \"a\" # here\n\n# Two,\n# with a list.\n[[message]]\n\
                    topic = \"b\"\n\n[message.expect]\noutputs = [\n    { kind = \"alert\" },\n]\n\n# Three.\n[[message]]\ntick = true\n";
        let expected = "# A case.\ntime = 2026-01-05\n\n# One.\n[[message]]\ntopic = \"a\" # here\n\n[message.expect]\noutputs = []\n\n\
                        # Two,\n# with a list.\n[[message]]\ntopic = \"b\"\n\n[message.expect]\noutputs = []\n\n\
                        # Three.\n[[message]]\ntick = true\n\n[message.expect]\noutputs = []\n";
        assert_eq!(blessed(text, 3).unwrap(), expected);
        assert_eq!(blessed(expected, 3).unwrap(), expected, "a second time changes nothing");
    }

    #[test]
    fn a_file_may_begin_with_a_message_and_have_expectations_in_its_lines() {
        let text =
            "[[message]]\ntopic = \"a\"\nexpect.outputs = [{ kind = \"alert\" }]\n[message.properties]\nid = \"7\"\n";
        let expected =
            "[[message]]\ntopic = \"a\"\n[message.properties]\nid = \"7\"\n\n[message.expect]\noutputs = []\n";
        assert_eq!(blessed(text, 1).unwrap(), expected);
    }

    #[test]
    fn what_cannot_be_taken_apart_is_refused_and_not_damaged() {
        for text in [
            "message = [{ topic = \"a\" }]",
            "[[message]]\ntopic = \"a\"\nexpect = { outputs = [\n{ kind = \"alert\" }] }\n",
            "[[message]]\ntopic = \"a\"\npayload = \"\"\"\n[message.expect]\n\"\"\"\n",
            "[[message]]\ntopic = \"a\"\npayload = \"\"\"\n[[message]]\n\"\"\"\n",
        ] {
            let error = blessed(text, 1).unwrap_err();
            assert!(error.contains("cannot write into this file"), "{text}: {error}");
        }
    }
}
