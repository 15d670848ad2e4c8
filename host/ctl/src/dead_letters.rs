//! `sedge dead-letters`: lists, shows, replays and drops messages that no function could process.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::data::DataArgs;
use super::{printable, terminal};
use sedge_core::message::FailureCode;
use sedge_core::store::{DeadLetter, DeadLetterId};
use sedge_core::text::hex;
use sedge_core::time::{self};
use sedge_store::{DeadLetterFilter, DeadLetters};

#[derive(Debug, Args)]
pub struct DeadLettersArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the newest, one per line: number, time, function, reason, topic
    ///
    ///   sedge dead-letters list --function decode
    #[command(verbatim_doc_comment)]
    List(ListArgs),
    /// Show messages in full, with the failure and the resources used
    ///
    ///   sedge dead-letters show 17
    #[command(verbatim_doc_comment)]
    Show(ShowArgs),
    /// Run messages again, after their function was fixed
    ///
    /// A running daemon takes them within about a second, otherwise the next one does.
    /// A message that fails again becomes a dead letter again.
    ///
    ///   sedge dead-letters replay 17 18
    ///   sedge dead-letters replay --all --function decode --reason trap
    #[command(verbatim_doc_comment)]
    Replay(SelectArgs),
    /// Delete messages permanently
    ///
    ///   sedge dead-letters drop 17
    ///   sedge dead-letters drop --all --reason rejected
    #[command(verbatim_doc_comment)]
    Drop(SelectArgs),
}

#[derive(Debug, Args)]
struct FilterArgs {
    /// Only dead letters of this function
    #[arg(long, value_name = "NAME")]
    function: Option<String>,
    /// Only dead letters with this reason: rejected, trap, fuel, deadline, ...
    #[arg(long, value_name = "CODE", value_parser = reason)]
    reason: Option<FailureCode>,
}

#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Maximum number of lines
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
    #[command(flatten)]
    store: DataArgs,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// Numbers of dead letters
    #[arg(value_name = "ID", required = true)]
    ids: Vec<u64>,
    #[command(flatten)]
    store: DataArgs,
}

#[derive(Debug, Args)]
#[group(id = "which", required = true, multiple = false, args = ["ids", "all"])]
struct SelectArgs {
    /// Numbers of dead letters
    #[arg(value_name = "ID", conflicts_with_all = ["function", "reason"])]
    ids: Vec<u64>,
    /// All dead letters, or all that match --function and --reason
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    store: DataArgs,
}

fn reason(name: &str) -> Result<FailureCode, String> {
    FailureCode::from_name(name).ok_or_else(|| {
        let names: Vec<_> = FailureCode::ALL.into_iter().map(FailureCode::as_str).collect();
        format!("the reasons are {}", names.join(", "))
    })
}

/// Returns exit code 1 when a number does not exist.
pub fn run(args: &DeadLettersArgs) -> anyhow::Result<ExitCode> {
    execute(args, &mut terminal::out())
}

fn execute(args: &DeadLettersArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::List(args) => list(args, out),
        Command::Show(args) => show(args, out),
        Command::Replay(args) => {
            let count = open(&args.store)?.replay(&args.filter(), sedge_sandbox::clock::now(false).unix_ms)?;
            report(out, args, "replayed", count)
        }
        Command::Drop(args) => {
            let count = open(&args.store)?.drop(&args.filter())?;
            report(out, args, "dropped", count)
        }
    }
}

fn open(args: &DataArgs) -> anyhow::Result<DeadLetters> {
    let data_dir = args.data_dir()?;
    DeadLetters::open(&data_dir).with_context(|| format!("failed to read the dead letters in {}", data_dir.display()))
}

impl SelectArgs {
    fn filter(&self) -> DeadLetterFilter {
        let ids = (!self.all).then(|| self.ids.iter().copied().map(DeadLetterId).collect());
        DeadLetterFilter {
            ids,
            function: self.filter.function.clone(),
            reason: self.filter.reason,
            ..DeadLetterFilter::default()
        }
    }
}

fn list(args: &ListArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let filter = DeadLetterFilter {
        function: args.filter.function.clone(),
        reason: args.filter.reason,
        ..DeadLetterFilter::default()
    };
    // One more than shown, to learn whether there are more.
    let mut letters = open(&args.store)?.list(&filter, args.limit.saturating_add(1))?;
    let more = letters.len() > args.limit;
    letters.truncate(args.limit);
    if args.store.json {
        let letters: Vec<Value> = letters.iter().map(|(id, letter)| letter.to_json(*id)).collect();
        writeln!(out, "{}", terminal::pretty_json(&json!({ "dead_letters": letters, "more": more })))?;
        return Ok(ExitCode::SUCCESS);
    }
    if letters.is_empty() {
        writeln!(out, "no dead letters")?;
    }
    let width = |text: fn(&DeadLetter) -> &str| letters.iter().map(|(_, letter)| text(letter).len()).max().unwrap_or(0);
    let (functions, reasons) = (width(|it| &it.function), width(|it| it.failure.code.as_str()));
    for (id, DeadLetter { function, failure, message, at_ms, .. }) in &letters {
        let (at, reason) = (time::rfc3339(*at_ms), failure.code.as_str());
        writeln!(out, "{id:>6}  {at}  {function:functions$}  {reason:reasons$}  {}", printable(&message.topic))?;
    }
    if more {
        writeln!(out, "... and older ones: --limit {}", args.limit.saturating_mul(10))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show(args: &ShowArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let dead_letters = open(&args.store)?;
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for id in args.ids.iter().copied().map(DeadLetterId) {
        match dead_letters.show(id)? {
            Some(letter) => found.push((id, letter)),
            None => missing.push(id.0),
        }
    }
    if args.store.json {
        let letters: Vec<Value> = found.iter().map(|(id, letter)| letter.to_json(*id)).collect();
        writeln!(out, "{}", terminal::pretty_json(&json!({ "dead_letters": letters, "missing": missing })))?;
    } else {
        for (id, letter) in &found {
            print(out, *id, letter)?;
        }
        for id in &missing {
            writeln!(out, "no dead letter {id}")?;
        }
    }
    Ok(if missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(out: &mut impl Write, id: DeadLetterId, letter: &DeadLetter) -> io::Result<()> {
    let DeadLetter { function, version, message, failure, usage, at_ms } = letter;
    writeln!(out, "dead letter {id}")?;
    writeln!(out, "  at         {}", time::rfc3339(*at_ms))?;
    writeln!(out, "  function   {function} {version}")?;
    writeln!(out, "  reason     {}: {}", failure.code.as_str(), printable(&failure.detail))?;
    writeln!(
        out,
        "  used       fuel {}, {} us, memory {} bytes, output {} bytes",
        usage.fuel, usage.elapsed_us, usage.memory_bytes, usage.output_bytes
    )?;
    writeln!(out, "  topic      {}", printable(&message.topic))?;
    let clock = if message.clock_synced { "" } else { ", clock not synchronised" };
    let retained = if message.retained { ", retained" } else { "" };
    let received_at = time::rfc3339(message.received_at_ms);
    writeln!(out, "  received   {received_at}{clock}{retained}, attempt {}", message.attempt)?;
    if let Some(content_type) = &message.content_type {
        writeln!(out, "  type       {}", printable(content_type))?;
    }
    if let Some(topic) = &message.response_topic {
        writeln!(out, "  response   {}", printable(topic))?;
    }
    if let Some(data) = &message.correlation_data {
        writeln!(out, "  correlates {}", hex(data))?;
    }
    for (name, value) in &message.properties {
        writeln!(out, "  property   {}={}", printable(name), printable(value))?;
    }
    match std::str::from_utf8(&message.payload) {
        Ok(text) => writeln!(out, "  payload    {}", printable(text)),
        Err(_) => writeln!(out, "  payload    {} bytes, hex {}", message.payload.len(), hex(&message.payload)),
    }
}

fn report(out: &mut impl Write, args: &SelectArgs, done: &str, count: u64) -> anyhow::Result<ExitCode> {
    if args.store.json {
        writeln!(out, "{}", terminal::json(&json!({ done: count })))?;
    } else {
        writeln!(out, "{done} {count} dead letter{}", if count == 1 { "" } else { "s" })?;
    }
    let mut ids = args.ids.clone();
    ids.sort_unstable();
    ids.dedup();
    let missing = (ids.len() as u64).saturating_sub(count);
    if missing > 0 {
        eprintln!("{missing} of the given numbers {}", if missing == 1 { "does not exist" } else { "do not exist" });
    }
    Ok(if missing == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use clap::Parser;

    use super::*;
    use sedge_core::config;
    use sedge_core::message::{Failure, Message, Usage};
    use sedge_core::store::{BatchNo, Commit, StoreEvent, StoreRequest};
    use sedge_store::Store;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: DeadLettersArgs,
    }

    fn parse(line: &str) -> Result<DeadLettersArgs, String> {
        let line = Line::try_parse_from(["sedge"].into_iter().chain(line.split_whitespace()));
        line.map(|line| line.args).map_err(|error| error.to_string())
    }

    #[test]
    fn replay_and_drop_need_an_explicit_selection() {
        assert!(parse("drop").unwrap_err().contains("<ID|--all>"));
        assert!(parse("replay --function decode").is_err());
        assert!(parse("drop 3 --all").is_err());
        assert!(parse("drop 3 --function decode").is_err(), "numbers or a filter");
        assert!(parse("show").is_err());
        assert!(parse("drop --all --reason trap").is_ok());
        assert!(parse("replay 3 4 --data-dir d").is_ok());
    }

    #[test]
    fn a_wrong_reason_is_answered_with_the_right_ones() {
        let error = parse("list --reason oom").unwrap_err();
        assert!(error.contains("the reasons are rejected, retries-exhausted, trap"), "{error}");
    }

    #[test]
    fn dead_letters_are_listed_shown_replayed_and_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let (handle, mut events, _) =
            Store::open(&config::Store::default(), dir.path(), 1, sedge_sandbox::clock::now(true)).unwrap();
        let letter = |payload: &'static [u8], code| DeadLetter {
            function: "decode".into(),
            version: "1.2.0".into(),
            message: Message {
                properties: vec![("id".into(), "a\x07".into())],
                ..Message::new("lora/7", Bytes::from_static(payload), 1_800_000_000_000, false)
            }
            .into(),
            failure: Failure { code, detail: "unreachable".into() },
            usage: Usage { fuel: 42, ..Usage::default() },
            at_ms: 1_800_000_000_000,
        };
        let dead_letters = vec![letter(b"\xff\x00", FailureCode::Trap), letter(b"text", FailureCode::Fuel)];
        let commits = vec![Commit { dead_letters, ..Commit::default() }];
        handle.send(StoreRequest::Commit { batch: BatchNo(1), commits }).unwrap();
        assert!(matches!(events.blocking_recv(), Some(StoreEvent::Committed { batch: BatchNo(1), .. })));

        let output = |line: &str| {
            let mut out = Vec::new();
            execute(&parse(&format!("{line} --data-dir {}", dir.path().display())).unwrap(), &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            output("list"),
            "     2  2027-01-15T08:00:00.000Z  decode  fuel  lora/7\n     1  2027-01-15T08:00:00.000Z  decode  trap  lora/7\n"
        );
        assert!(output("list --limit 1").ends_with("... and older ones: --limit 10\n"));
        let shown = output("show 1");
        assert!(shown.contains("payload    2 bytes, hex ff00") && shown.contains("id=a\\u{7}"), "{shown}");
        let shown: Value = serde_json::from_str(&output("show 2 9 --json")).unwrap();
        assert_eq!(shown["dead_letters"][0]["message"]["payload"], "text");
        assert_eq!(shown["missing"], json!([9]));
        assert_eq!(output("replay --all --reason trap"), "replayed 1 dead letter\n");
        assert_eq!(output("drop 2 --json"), "{\"dropped\":1}\n");
        assert_eq!(output("list"), "no dead letters\n");
    }

    #[test]
    fn a_folder_without_a_store_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let args = parse(&format!("list --data-dir {}", dir.path().display())).unwrap();
        let error = run(&args).unwrap_err();
        assert!(format!("{error:#}").contains("sedge.db"), "{error:#}");
    }
}
