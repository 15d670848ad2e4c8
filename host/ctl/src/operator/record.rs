//! `sedge record`: has a board record a function, and fetches the recording; or takes one from a board's disk.

mod redact;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;
use tokio::time::Instant;

use super::broker::BrokerArgs;
use super::order::{function, with_json_answer};
use super::request::Asker;
use super::signing::{load_key, node};
use crate::progress::Progress;
use crate::recording::{Event, Reader};
use crate::terminal::say;
use redact::Redaction;
use sedge_core::deploy::requests::{MAX_PIECES, RequestKind};
use sedge_core::manifest::parse_period;
use sedge_core::recording::{Encoder, End, Header, Line, Why};

/// How often the board is asked how far it is.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// How long a recording may go on after its time.
const GRACE: Duration = Duration::from_secs(30);
const ATTEMPTS: u32 = 3;

#[derive(Debug, Args)]
pub struct RecordArgs {
    /// The board, by its node.name
    #[arg(long, value_name = "NAME", value_parser = node, requires = "function", required_unless_present = "data")]
    node: Option<String>,
    /// The function
    #[arg(long, value_name = "NAME", value_parser = function)]
    function: Option<String>,
    /// How long: 30s, 10m, 1h
    #[arg(long = "for", value_name = "TIME", default_value = "10m", value_parser = period)]
    time: Duration,
    /// End after so many messages
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    max_messages: u64,
    /// End when the file has about so many bytes. The board may allow less (recording.max_bytes)
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 20)]
    max_bytes: u64,
    /// Take the newest recording of the function from a board's data folder, without a broker
    #[arg(long, value_name = "DIR", conflicts_with = "node")]
    data: Option<PathBuf>,
    /// Replace what + and # stand for in topics by hashes, wherever it is: topic=sensors/+/temperature; repeatable
    #[arg(long, value_name = "topic=FILTER")]
    redact: Vec<String>,
    /// Leave out a part of messages: payload, payload.NAME of JSON, content_type, properties, response_topic,
    /// correlation_data; repeatable
    #[arg(long = "drop", value_name = "PART")]
    drops: Vec<String>,
    /// File to write
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// Private key of one that may record on the board, as `sedge keygen` writes it [default: SEDGE_KEY]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

pub(super) fn period(text: &str) -> Result<Duration, String> {
    parse_period(text).ok_or_else(|| format!("{text:?} is not a time: write 30s, 10m or 1h"))
}

/// Exits with 0 when the recording is in the file.
pub fn run(args: &RecordArgs) -> anyhow::Result<ExitCode> {
    with_json_answer(args.json, || {
        if args.out.exists() {
            bail!("{} exists: name another file, or remove it", args.out.display());
        }
        let redaction = Redaction::new(&args.redact, &args.drops)?;
        let fetched = match (&args.data, &args.node, &args.function) {
            (Some(data), ..) => Fetched { path: newest(data, args.function.as_deref())?, is_temporary: false },
            (None, Some(node), Some(function)) => fetch(args, node, function)?,
            _ => bail!("name the board and the function: --node NAME --function NAME"),
        };
        let written = write(&fetched.path, &args.out, redaction);
        let (header, end) = written.with_context(|| match fetched.is_temporary {
            true => format!("what came from the board is in {}", fetched.path.display()),
            false => format!("failed to take {}", fetched.path.display()),
        })?;
        if fetched.is_temporary {
            let _ = fs::remove_file(&fetched.path);
        }
        if !args.json {
            say!(
                "recording  {} of {}: {} messages; it ended because {}",
                header.function,
                header.node,
                end.runs,
                end.why
            );
            say!("file       {}, sha256:{}", args.out.display(), end.sha256);
            say!("replay     sedge replay {} FOLDER", args.out.display());
        }
        let answer = json!({
            "ok": true,
            "node": header.node,
            "function": header.function,
            "messages": end.runs,
            "ended": end.why,
            "file": args.out.display().to_string(),
            "sha256": end.sha256,
        });
        Ok((true, answer))
    })
}

/// A recording as the board has it.
struct Fetched {
    path: PathBuf,
    is_temporary: bool,
}

fn fetch(args: &RecordArgs, node: &str, function: &str) -> anyhow::Result<Fetched> {
    let key = load_key(args.key.as_deref())?;
    let mut path = args.out.as_os_str().to_owned();
    path.push(".part");
    let path = PathBuf::from(path);
    crate::block_on(async {
        let mut asker = Asker::connect(&args.broker, node, function, key).await?;
        let result = record(args, &mut asker, &path).await;
        asker.close().await;
        result
    })?;
    Ok(Fetched { path, is_temporary: true })
}

async fn record(args: &RecordArgs, asker: &mut Asker, path: &Path) -> anyhow::Result<()> {
    let mut progress = Progress::new();
    let (secs, messages, bytes) = (args.time.as_secs().max(1), args.max_messages, args.max_bytes);
    let begun = asker.ask(&RequestKind::Record { secs, messages, bytes }).await?;
    let of: Box<str> = begun.id.as_str().into();
    progress.set_status("recording", &format!("{secs} s, or {messages} messages; Ctrl-C ends it"));
    let deadline = Instant::now() + args.time + GRACE;
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let mut is_ending = false;
    let answer = loop {
        let question = RequestKind::Recording { of: of.clone(), from: 0, pieces: 0 };
        // A board that is offline, or behind with its messages, records on: the recording is not given up before its time is over.
        let may_wait = !is_ending && Instant::now() < deadline;
        let answered =
            if may_wait { asker.try_ask(&question).await? } else { Some(asker.ask_again(&question, ATTEMPTS).await?) };
        let status = match answered.map(|it| it.answer) {
            Some(answer) if answer.state != "recording" => break answer,
            Some(_) if Instant::now() >= deadline => {
                bail!("the board does not end the recording {of}; look at its log")
            }
            Some(answer) => format!("{} messages, {} KiB", answer.runs, answer.bytes >> 10),
            None => "the board does not answer: it is offline, or behind with its messages".to_owned(),
        };
        progress.set_status("recording", &status);
        let pause = if is_ending { Duration::from_millis(200) } else { LOOK_EVERY.min(args.time) };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = &mut interrupted, if !is_ending => {
                is_ending = true;
                asker.ask_again(&RequestKind::EndRecording { of: of.clone() }, ATTEMPTS).await?;
            }
        }
    };
    let mut file = File::create(path).with_context(|| format!("failed to write {}", path.display()))?;
    let (mut from, mut written) = (0, 0);
    while written < answer.bytes {
        let question = RequestKind::Recording { of: of.clone(), from, pieces: MAX_PIECES };
        let pieces = asker.ask_again(&question, ATTEMPTS).await?.pieces;
        if pieces.is_empty() {
            bail!("the board sent {written} of {} bytes and has no more", answer.bytes);
        }
        from += pieces.len() as u32;
        for piece in pieces {
            file.write_all(&piece).with_context(|| format!("failed to write {}", path.display()))?;
            written += piece.len() as u64;
        }
        progress.set_count("fetching", written >> 10, answer.bytes >> 10, " KiB", Instant::now());
    }
    // It is here, and may be personal: the board need not keep it.
    asker.ask_again(&RequestKind::DropRecording { of }, ATTEMPTS).await?;
    Ok(())
}

/// The newest recording in a data folder.
fn newest(data: &Path, function: Option<&str>) -> anyhow::Result<PathBuf> {
    let folder = data.join("recordings");
    let entries = fs::read_dir(&folder)
        .with_context(|| format!("{} has no recordings: name the data folder of a board", folder.display()))?;
    let mut found = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        let Ok(reader) = Reader::open(&path) else { continue };
        if function.is_none_or(|function| reader.header.function == function) {
            found.push((reader.header.begun_at_ms, path));
        }
    }
    let of = function.map_or_else(String::new, |function| format!(" of {function}"));
    Ok(found.into_iter().max().with_context(|| format!("{} has no recording{of}", folder.display()))?.1)
}

/// Writes a recording without what is to be left out. One that the board could not end is ended at its last whole run.
fn write(from: &Path, to: &Path, mut redaction: Redaction) -> anyhow::Result<(Header, End)> {
    let mut reader = Reader::open(from)?;
    // Once as a whole: what was damaged on the way must not become a new recording.
    let why = loop {
        match reader.next() {
            Ok(Event::End(end)) => break end.why,
            Ok(_) => {}
            Err(error) if reader.is_cut() => {
                eprintln!("note: {error:#}; it is ended there");
                break Why::DaemonEnded;
            }
            Err(error) => return Err(error),
        }
    };
    let runs = reader.runs();
    let mut header = reader.header;
    header.redacted = redaction.names();
    let mut encoder = Encoder::default();
    encoder.header(&header);
    let mut out = BufWriter::new(File::create(to).with_context(|| format!("failed to write {}", to.display()))?);
    let mut input = BufReader::new(File::open(from)?);
    let (mut line, mut of_run) = (Vec::new(), Vec::new());
    input.read_until(b'\n', &mut line)?;
    while encoder.runs() < runs {
        line.clear();
        input.read_until(b'\n', &mut line)?;
        of_run.push(std::mem::take(&mut line));
        let last = of_run.last().map(Vec::as_slice).unwrap_or_default();
        if last.starts_with(b"{\"outcome\":") {
            redaction.run(&of_run, &mut encoder)?;
            of_run.clear();
            out.write_all(&encoder.lines)?;
            encoder.lines.clear();
        }
    }
    let end = encoder.end(why);
    out.write_all(&encoder.lines)?;
    out.flush().with_context(|| format!("failed to write {}", to.display()))?;
    Ok((header, end))
}

/// Reads a line of a message.
fn message_of(line: &[u8]) -> anyhow::Result<Option<sedge_core::recording::MessageLine<'_>>> {
    Ok(match serde_json::from_slice(line)? {
        Line::Message(message) => Some(*message),
        _ => None,
    })
}
