//! `sedge history`: results and alerts that the board keeps, as a table, CSV or JSON.

use std::io::{self, Write};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use toml::value::Datetime;

use super::data::DataArgs;
use super::terminal;
use super::time::unix_ms;
use sedge_core::manifest::parse_period;
use sedge_core::store::Record;
use sedge_core::text::hex;
use sedge_core::time::rfc3339;
use sedge_core::topic::TopicFilter;
use sedge_store::{History, HistoryFilter, HistoryKind, HistoryPlace};

/// Characters of a payload that the table shows.
const SHOWN_CHARS: usize = 80;

#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// Only what this function returned
    #[arg(long, value_name = "NAME")]
    function: Option<String>,
    /// Only these topics: of a result where it went, of an alert the topic of the message
    #[arg(long, value_name = "FILTER", value_parser = filter)]
    topic: Option<TopicFilter>,
    /// Only alerts, or only what was forwarded or published locally
    #[arg(long, value_name = "KIND", value_parser = kind)]
    kind: Option<HistoryKind>,
    /// Only from this time on: 2026-01-05, 2026-01-05T11:02:13Z, or 2h ago
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<u64>,
    /// Only before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<u64>,
    /// The last N of them; 0: all
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
    #[arg(long, value_enum, default_value_t, conflicts_with = "json")]
    format: Format,
    #[command(flatten)]
    store: DataArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One line per entry, long payloads cut
    #[default]
    Table,
    /// With a header, as RFC 4180 says
    Csv,
    /// One object
    Json,
}

fn filter(text: &str) -> Result<TopicFilter, String> {
    TopicFilter::parse(text).map_err(|error| error.to_string())
}

fn kind(text: &str) -> Result<HistoryKind, String> {
    HistoryKind::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
        let names: Vec<_> = HistoryKind::ALL.into_iter().map(HistoryKind::as_str).collect();
        format!("the kinds are {}", names.join(", "))
    })
}

fn time(text: &str) -> Result<u64, String> {
    if let Some(ago) = parse_period(text) {
        let ago_ms = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
        return Ok(sedge_sandbox::clock::now_ms().saturating_sub(ago_ms));
    }
    let time: Datetime =
        text.parse().map_err(|_| format!("{text:?} is not a time: write 2026-01-05, 2026-01-05T11:02:13Z or 2h"))?;
    unix_ms(&time).map_err(|error| error.to_string())
}

pub fn run(args: &HistoryArgs) -> anyhow::Result<()> {
    execute(args, &mut terminal::out())
}

fn execute(args: &HistoryArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let data_dir = args.store.data_dir()?;
    let history =
        History::open(&data_dir).with_context(|| format!("failed to read the history in {}", data_dir.display()))?;
    let format = if args.store.json { Format::Json } else { args.format };
    let filter = HistoryFilter {
        kind: args.kind,
        function: args.function.clone(),
        topic: args.topic.clone(),
        since_ms: args.since,
        until_ms: args.until,
    };
    let mut printer = Printer { out, format, count: 0 };
    printer.begin()?;
    let more = match args.limit {
        0 => {
            all(&history, &filter, &mut printer)?;
            false
        }
        limit => {
            let (entries, more) = last(&history, &filter, limit)?;
            entries.iter().try_for_each(|(kind, record)| printer.entry(*kind, record))?;
            more
        }
    };
    printer.end(more, args.limit)
}

/// Prints them as they are read: they need not fit into memory.
fn all(history: &History, filter: &HistoryFilter, printer: &mut Printer<'_, impl Write>) -> anyhow::Result<()> {
    let mut place = Some(HistoryPlace::After(0));
    while let Some(from) = place {
        let page = history.page(filter, from)?;
        page.entries.iter().try_for_each(|(kind, record)| printer.entry(*kind, record))?;
        place = page.next;
    }
    Ok(())
}

/// The last ones, oldest first, and whether there are more.
fn last(history: &History, filter: &HistoryFilter, limit: usize) -> anyhow::Result<(Vec<(HistoryKind, Record)>, bool)> {
    let mut entries = Vec::new();
    let mut place = Some(HistoryPlace::Before(u64::MAX));
    while let Some(from) = place.filter(|_| entries.len() <= limit) {
        let page = history.page(filter, from)?;
        entries.extend(page.entries);
        place = page.next;
    }
    let more = entries.len() > limit;
    entries.truncate(limit);
    entries.reverse();
    Ok((entries, more))
}

struct Printer<'a, W> {
    out: &'a mut W,
    format: Format,
    count: usize,
}

impl<W: Write> Printer<'_, W> {
    fn begin(&mut self) -> io::Result<()> {
        match self.format {
            Format::Table => Ok(()),
            Format::Csv => writeln!(self.out, "at,clock_synced,kind,function,topic,payload,payload_hex"),
            Format::Json => write!(self.out, "{{\"entries\":["),
        }
    }

    fn entry(&mut self, kind: HistoryKind, record: &Record) -> anyhow::Result<()> {
        let (function, topic) = (&*record.function, &*record.topic);
        let (at, kind) = (rfc3339(record.at_ms), kind.as_str());
        let text = str::from_utf8(&record.payload).ok();
        match self.format {
            Format::Table => {
                let payload = text.map_or_else(|| format!("hex {}", hex(&record.payload)), one_line);
                writeln!(self.out, "{at}  {kind:<7}  {function}  {topic}  {}", cut(&payload))?;
            }
            Format::Csv => {
                let digits = if text.is_none() { hex(&record.payload) } else { String::new() };
                let synced = if record.clock_synced { "true" } else { "false" };
                let cells = [&at, synced, kind, function, topic, text.unwrap_or_default(), &digits];
                writeln!(self.out, "{}", cells.map(cell).join(","))?;
            }
            Format::Json => {
                let comma = if self.count > 0 { "," } else { "" };
                write!(self.out, "{comma}\n{}", terminal::json(&as_json(kind, record)))?;
            }
        }
        self.count += 1;
        Ok(())
    }

    fn end(self, more: bool, limit: usize) -> anyhow::Result<()> {
        let Self { out, format, count } = self;
        match format {
            Format::Json => writeln!(out, "\n],\"more\":{more}}}")?,
            Format::Table if count == 0 => writeln!(out, "nothing: see [history] days in the configuration")?,
            Format::Table | Format::Csv if more => {
                eprintln!("... and older ones: --limit {}, or --limit 0 for all", limit.saturating_mul(10));
            }
            Format::Table | Format::Csv => {}
        }
        Ok(())
    }
}

fn as_json(kind: &str, record: &Record) -> Value {
    let text = str::from_utf8(&record.payload).ok();
    json!({
        "at": rfc3339(record.at_ms),
        "clock_synced": record.clock_synced,
        "kind": kind,
        "function": &*record.function,
        "topic": &*record.topic,
        "content_type": record.content_type,
        "payload": text,
        "payload_hex": text.is_none().then(|| hex(&record.payload)),
    })
}

/// A cell of CSV, quoted where it must be.
fn cell(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '\r', '\t'], " ")
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use clap::Parser;

    use super::*;
    use sedge_core::config::{self, Store as StoreConfig};
    use sedge_core::store::{BatchNo, Commit, StoreEvent, StoreRequest};
    use sedge_core::stream::Stream;
    use sedge_store::{Store, StoreEvents, StoreHandle};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: HistoryArgs,
    }

    fn parse(line: &str) -> Result<HistoryArgs, String> {
        let line = Line::try_parse_from(["sedge"].into_iter().chain(line.split_whitespace()));
        line.map(|line| line.args).map_err(|error| error.to_string())
    }

    fn entry(stream: Stream, topic: &str, payload: &'static [u8], secs: u64) -> Record {
        Record {
            stream,
            function: if stream == Stream::ALERT { "freezer".into() } else { "decode".into() },
            topic: topic.into(),
            payload: Bytes::from_static(payload),
            content_type: None,
            retain: false,
            hops: 0,
            fan_out: 0,
            clock_synced: true,
            at_ms: 1_800_000_000_000 + secs * 1000,
            trace: None,
            is_folded: false,
        }
    }

    /// A folder with a history, and the daemon's side of its store, which goes on running.
    fn folder() -> (tempfile::TempDir, StoreHandle, StoreEvents) {
        let dir = tempfile::tempdir().unwrap();
        let history = config::History { days: Some(7.try_into().unwrap()), ..config::History::default() };
        let config = StoreConfig { history, ..StoreConfig::default() };
        let (handle, mut events, _) = Store::open(&config, dir.path(), 1, sedge_sandbox::clock::now(true)).unwrap();
        let commits = [
            vec![entry(Stream::DATA, "t/1", b"{\"t\":21.5,\"say\":\"a\"}", 0)],
            vec![entry(Stream::ALERT, "door/2", b"{}", 60), entry(Stream::LOCAL, "lamp", b"\xff\x1b[2J", 60)],
            vec![entry(Stream::DATA, "t/2", b"two\nlines", 120)],
        ];
        for (n, history) in commits.into_iter().enumerate() {
            let batch = BatchNo(n as u64 + 1);
            handle
                .send(StoreRequest::Commit { batch, commits: vec![Commit { history, ..Commit::default() }] })
                .unwrap();
            assert!(matches!(events.blocking_recv(), Some(StoreEvent::Committed { batch: of, .. }) if of == batch));
        }
        (dir, handle, events)
    }

    fn output(dir: &tempfile::TempDir, line: &str) -> String {
        let mut out = Vec::new();
        execute(&parse(&format!("{line} --data-dir {}", dir.path().display())).unwrap(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_history_is_printed_as_table_csv_and_json_while_the_daemon_runs() {
        let (dir, _handle, _events) = folder();
        let expected = "\
2027-01-15T08:00:00.000Z  forward  decode  t/1  {\"t\":21.5,\"say\":\"a\"}
2027-01-15T08:01:00.000Z  alert    freezer  door/2  {}
2027-01-15T08:01:00.000Z  publish  decode  lamp  hex ff1b5b324a
2027-01-15T08:02:00.000Z  forward  decode  t/2  two lines
";
        assert_eq!(output(&dir, ""), expected);
        assert_eq!(output(&dir, "--limit 0"), expected);
        let csv = output(&dir, "--format csv --kind forward");
        let expected = "\
at,clock_synced,kind,function,topic,payload,payload_hex
2027-01-15T08:00:00.000Z,true,forward,decode,t/1,\"{\"\"t\"\":21.5,\"\"say\"\":\"\"a\"\"}\",
2027-01-15T08:02:00.000Z,true,forward,decode,t/2,\"two\nlines\",
";
        assert_eq!(csv, expected);
        for line in ["--json", "--format json", "--limit 0 --json"] {
            let answer: Value = serde_json::from_str(&output(&dir, line)).unwrap();
            assert_eq!((answer["entries"].as_array().map(Vec::len), &answer["more"]), (Some(4), &json!(false)));
            assert_eq!(answer["entries"][2]["payload_hex"], "ff1b5b324a");
        }
        let answer: Value = serde_json::from_str(&output(&dir, "--limit 1 --json")).unwrap();
        assert_eq!((&answer["entries"][0]["topic"], &answer["more"]), (&json!("t/2"), &json!(true)));
    }

    #[test]
    fn entries_are_chosen_by_function_topic_and_time() {
        let (dir, _handle, _events) = folder();
        let topics = |line: &str| -> Vec<String> {
            let answer: Value = serde_json::from_str(&output(&dir, &format!("{line} --json"))).unwrap();
            let entries = answer["entries"].as_array().unwrap().iter();
            entries.map(|it| it["topic"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(topics("--function freezer"), ["door/2"]);
        assert_eq!(topics("--topic t/+"), ["t/1", "t/2"]);
        assert_eq!(topics("--topic t/+ --since 2027-01-15T08:00:01Z"), ["t/2"]);
        assert_eq!(topics("--since 2027-01-15T10:01:00+02:00 --until 2027-01-15T08:02:00Z"), ["door/2", "lamp"]);
        assert_eq!(topics("--until 2027-01-15"), [""; 0]);
        let far: Vec<String> = topics("--since 1h");
        assert!(far.is_empty() || far.len() == 4, "the entries are of 2027");
        assert_eq!(output(&dir, "--function nobody"), "nothing: see [history] days in the configuration\n");
    }

    #[test]
    fn what_is_not_a_time_a_kind_or_a_filter_is_named() {
        for (line, expected) in [
            ("--since yesterday", "write 2026-01-05"),
            ("--since 11:02:13", "no date"),
            ("--kind alarm", "the kinds are alert, forward, publish"),
            ("--topic a/#/b", "#"),
            ("--format xml", "possible values: table, csv, json"),
            ("--format csv --json", "cannot be used with"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
