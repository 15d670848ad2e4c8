//! `sedge invoke DIR --topic T --payload P`: runs one function on one message, within the limits of production.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Args;
use serde_json::json;

use super::runner::{self, Runner, text_or_hex};
use super::terminal::{self, say};
use super::{printable, unhex};
use sedge_core::limits::MAX_LOG_LINES;
use sedge_core::manifest::Manifest;
use sedge_core::message::{Message, Output, StateWrite, Verdict};
use sedge_core::text::hex;
use sedge_core::time::rfc3339;
use sedge_core::topic::TopicFilter;
use sedge_core::{made, schedule};
use sedge_sandbox::{Run, ScopeState};

#[derive(Debug, Args)]
pub struct InvokeArgs {
    /// Folder with function.toml and the component or function.js
    dir: PathBuf,
    /// Topic of the message
    #[arg(long, short, required_unless_present_any = ["tick", "schedule"])]
    topic: Option<String>,
    /// Payload: text, @FILE for the bytes of a file, or - for standard input. Repeated: messages one after the other, with the state
    /// that they leave
    #[arg(
        long = "payload",
        short,
        value_name = "PAYLOAD",
        allow_hyphen_values = true,
        required_unless_present_any = ["tick", "schedule"]
    )]
    payloads: Vec<String>,
    /// Run on the tick of `every` instead of a message
    #[arg(long, conflicts_with_all = ["topic", "payloads"])]
    tick: bool,
    /// Run on the schedule of this name instead of a message
    #[arg(long, value_name = "NAME", conflicts_with_all = ["topic", "payloads", "tick"])]
    schedule: Option<String>,
    /// Time at which the message came: 2026-01-05T11:02:13Z [default: now]
    #[arg(long, value_name = "TIME", value_parser = time)]
    at: Option<u64>,
    /// Whether the board's clock was synchronised then [default: as this machine's]
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set)]
    clock_synced: Option<bool>,
    /// Number of the attempt, after retries
    #[arg(long, value_name = "N", default_value_t = 1)]
    attempt: u32,
    /// MQTT 5 content type
    #[arg(long)]
    content_type: Option<String>,
    /// MQTT 5 user property; repeatable
    #[arg(long = "property", value_name = "NAME=VALUE", value_parser = pair)]
    properties: Vec<(String, String)>,
    /// Mark the message as one that the broker retained
    #[arg(long)]
    retained: bool,
    /// MQTT 5 response topic
    #[arg(long, value_name = "TOPIC")]
    response_topic: Option<String>,
    /// MQTT 5 correlation data, as text
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    correlation_data: Option<String>,
    /// Stored state of the function; repeatable. The SDK stores numbers and booleans as text
    #[arg(long = "state", value_name = "KEY=VALUE", value_parser = pair)]
    state: Vec<(String, String)>,
    /// JSON object with the stored state; read if the file exists, and written with the state afterwards. A value that is not text
    /// is {"hex": "00ff"}
    #[arg(long, value_name = "FILE")]
    state_file: Option<PathBuf>,
    /// Override of a setting in section config of function.toml; repeatable
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = pair)]
    settings: Vec<(String, String)>,
    /// Run the native code that `sedge compile` wrote. A build without a compiler always does
    #[arg(long)]
    code: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn time(text: &str) -> anyhow::Result<u64> {
    super::time::unix_ms(&text.parse().context("write 2026-01-05T11:02:13Z")?)
}

/// Returns exit code 0 when the function succeeded, 1 when a message would become a dead letter or be retried.
pub fn run(args: &InvokeArgs) -> anyhow::Result<ExitCode> {
    let manifest = Manifest::load(&args.dir, &sedge_sandbox::machine::MACHINE)?;
    let topic = match (&args.topic, &args.schedule) {
        (Some(topic), _) => topic.clone(),
        (None, Some(name)) => format!("{}{name}", schedule::PREFIX),
        (None, None) => format!("$timer/{}", manifest.name),
    };
    check_topic(&topic)?;
    check_settings(&args.settings, "--set ", &manifest)?;
    if !hears(&manifest, &topic) {
        let list = |filters: &[TopicFilter]| filters.iter().map(TopicFilter::as_str).collect::<Vec<_>>().join(", ");
        let (filters, except) = (list(&manifest.subscribe), list(&manifest.except));
        eprintln!(
            "note: a board would not run {} for this topic: function.toml subscribes to {}{}{except}{}{}",
            manifest.name,
            if filters.is_empty() { "nothing" } else { &filters },
            if except.is_empty() { "" } else { " except " },
            if args.tick {
                ", and has no every"
            } else if args.schedule.is_some() {
                ", and has no schedule of this name in at"
            } else {
                ""
            },
            if topic.starts_with("$http") { ", and takes other requests in http" } else { "" },
        );
    }
    let mut state = args.state_file.as_deref().map_or(Ok(ScopeState::default()), read_state)?;
    state.apply(&args.state.iter().map(set).collect::<Vec<_>>());
    let installed = runner::install(&args.dir, manifest, args.code)?;
    let runner = Runner::load(&installed, &args.settings.iter().cloned().collect())?;
    for line in runner.load_log().iter().filter(|_| !args.json) {
        say!("log      {} {} (top level of the script)", line.level, line.text);
    }
    let tick = [String::new()];
    let payloads = if args.tick || args.schedule.is_some() { &tick[..] } else { &args.payloads };
    let mut succeeded = true;
    for payload in payloads {
        let run = runner.run(&message(args, &topic, payload)?, state.clone());
        let is_done = matches!(run.outcome.verdict, Verdict::Done(_));
        if args.json {
            say!("{}", terminal::json(&runner::as_json(&run)));
        } else {
            print(&run);
        }
        succeeded &= is_done;
        if is_done {
            state = run.state;
        }
    }
    if let Some(path) = &args.state_file {
        write_state(path, &state)?;
    }
    Ok(if succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn message(args: &InvokeArgs, topic: &str, text: &str) -> anyhow::Result<Message> {
    let now = sedge_sandbox::clock::now(sedge_sandbox::clock::clock_synced());
    let received_at_ms = args.at.unwrap_or(now.unix_ms);
    let mut properties: Vec<(Box<str>, Box<str>)> =
        args.properties.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect();
    if args.schedule.is_some() && !args.properties.iter().any(|(name, _)| name == schedule::DUE) {
        properties.push((schedule::DUE.into(), rfc3339(received_at_ms / 1000 * 1000).into()));
    }
    Ok(Message {
        topic: topic.into(),
        payload: payload(text)?,
        content_type: args.content_type.as_deref().map(Into::into),
        properties,
        received_at_ms,
        clock_synced: args.clock_synced.unwrap_or(now.synced),
        attempt: args.attempt,
        retained: args.retained,
        response_topic: args.response_topic.as_deref().map(Into::into),
        correlation_data: args.correlation_data.as_ref().map(|data| data.as_bytes().into()),
        trace: None,
    })
}

fn set((key, value): &(String, String)) -> StateWrite {
    StateWrite { key: key.as_str().into(), value: Some(Bytes::from(value.clone())) }
}

/// The state in a file, nothing if there is no file yet.
pub(crate) fn read_state(path: &Path) -> anyhow::Result<ScopeState> {
    let text = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(ScopeState::default()),
        read => read.with_context(|| format!("failed to read {}", path.display()))?,
    };
    let entries: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&text)
        .with_context(|| format!("{} is no JSON object of keys and values", path.display()))?;
    let entries = entries.iter().map(|(key, value)| {
        let bytes = match value {
            serde_json::Value::String(text) => Bytes::from(text.clone()),
            serde_json::Value::Object(fields) => {
                let hex = fields.get("hex").and_then(serde_json::Value::as_str).and_then(unhex);
                hex.with_context(|| format!("{}: {key}: write {{\"hex\": \"00ff\"}}", path.display()))?
            }
            other => Bytes::from(other.to_string()),
        };
        Ok((key.as_str().into(), bytes))
    });
    Ok(ScopeState::from_entries(entries.collect::<anyhow::Result<Vec<_>>>()?))
}

fn write_state(path: &Path, state: &ScopeState) -> anyhow::Result<()> {
    let value = |bytes: &Bytes| match str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "hex": hex(bytes) }),
    };
    let entries: BTreeMap<&str, serde_json::Value> = state.entries().map(|(key, bytes)| (key, value(bytes))).collect();
    super::write_atomically(path, (terminal::pretty_json(&entries) + "\n").as_bytes())
}

/// Refuses what no message can have as its topic.
pub(crate) fn check_topic(topic: &str) -> anyhow::Result<()> {
    if topic.is_empty() {
        bail!("the topic is empty: no message has such a topic");
    }
    if topic.contains(['+', '#']) {
        bail!("{topic:?} is a filter, not a topic: name one topic that it matches");
    }
    if topic.contains('\0') || topic.len() > usize::from(u16::MAX) {
        bail!("no message has such a topic: it is longer than 65,535 bytes, or holds U+0000");
    }
    Ok(())
}

/// Refuses settings that a board would refuse, and a declared setting that has no value. `by`: how one is given, "--set ".
pub(crate) fn check_settings(settings: &[(String, String)], by: &str, manifest: &Manifest) -> anyhow::Result<()> {
    for (name, value) in settings {
        manifest.check_setting(name, value).map_err(|invalid| anyhow::anyhow!("{by}{name}: {invalid}"))?;
    }
    let is_set = |name: &String| manifest.config.contains_key(name) || settings.iter().any(|(set, _)| set == name);
    if let Some((name, declaration)) = manifest.settings.iter().find(|(name, _)| !is_set(name)) {
        bail!("setting {name} has no value in function.toml, as boards give it: add {by}{name}=..., {declaration}");
    }
    Ok(())
}

/// Whether a board would run the function on a message with this topic, on a tick, on a wake or by a schedule.
fn hears(manifest: &Manifest, topic: &str) -> bool {
    manifest.hears(topic)
        || made::is_topic(topic)
        || manifest.has_schedule(topic)
        || manifest.every.is_some() && topic == format!("$timer/{}", manifest.name)
}

fn payload(text: &str) -> anyhow::Result<Bytes> {
    if text == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).context("failed to read the payload from standard input")?;
        return Ok(bytes.into());
    }
    match text.strip_prefix('@') {
        Some(path) => {
            Ok(std::fs::read(path).with_context(|| format!("failed to read the payload from {path}"))?.into())
        }
        None => Ok(Bytes::copy_from_slice(text.as_bytes())),
    }
}

pub(crate) fn print(run: &Run) {
    let outcome = &run.outcome;
    for line in &run.log {
        say!("log      {} {}", line.level, line.text);
    }
    if run.log_lines_dropped > 0 {
        say!("log      ... and {} more: a run has at most {MAX_LOG_LINES} lines", run.log_lines_dropped);
    }
    match &outcome.verdict {
        Verdict::Done(outputs) if outputs.is_empty() => say!("done     no outputs"),
        Verdict::Done(outputs) => outputs.iter().for_each(|output| match output {
            Output::Alert(alert) => say!(
                "alert    {} {:?} {:?}: {}{}",
                printable(&alert.key),
                alert.severity,
                alert.status,
                printable(&alert.summary),
                alert.value.map_or_else(String::new, |value| format!(" (value {value})"))
            ),
            Output::Forward(it) => say!("forward  {} {}", printable(&it.topic), text_or_hex(&it.payload)),
            Output::Publish(it) => say!("publish  {} {}", printable(&it.topic), text_or_hex(&it.payload)),
            Output::Wake(it) => match it.after_ms {
                Some(after_ms) => say!("wake     {} after {after_ms} ms", printable(&it.name)),
                None => say!("wake     {} cancelled", printable(&it.name)),
            },
            Output::Reply(it) => say!("reply    {} {}", it.status, text_or_hex(&it.body)),
        }),
        Verdict::Retry { after_ms, reason } => say!("retry    after {after_ms} ms: {}", printable(reason)),
        Verdict::Failed(failure) => say!("failed   {}: {}", failure.code.as_str(), printable(&failure.detail)),
    }
    for write in &outcome.writes {
        match &write.value {
            Some(value) => say!("state    {} = {}", printable(&write.key), text_or_hex(value)),
            None => say!("state    {} removed", printable(&write.key)),
        }
    }
    let usage = &outcome.usage;
    say!(
        "used     {} fuel, {} µs, {} KiB memory, {} bytes of output",
        usage.fuel,
        usage.elapsed_us,
        usage.memory_bytes / 1024,
        usage.output_bytes
    );
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn manifest(text: &str) -> Manifest {
        let text = format!("name = \"warm\"\nversion = \"1\"\n{text}");
        Manifest::from_toml(&text, Path::new("function.toml"), None).unwrap()
    }

    #[test]
    fn what_no_message_can_be_is_refused() {
        for topic in ["", "#", "a/+/b", "zigbee2mqtt/#", "a\0b", &"a".repeat(65_536)] {
            assert!(check_topic(topic).is_err(), "{topic}");
        }
        for topic in ["a", "/", "$timer/warm", "a b/ü"] {
            check_topic(topic).unwrap();
        }
    }

    #[test]
    fn a_setting_that_does_not_exist_is_refused_with_those_that_do() {
        let set = |name: &str, manifest: &Manifest| check_settings(&[(name.into(), "1".into())], "--set ", manifest);
        let with = manifest("subscribe = [\"a\"]\n[config]\nmax = \"80\"\nmin = \"1\"");
        set("max", &with).unwrap();
        set("oven.max", &with).unwrap();
        set("oven.door", &manifest("subscribe = [\"a\"]\n[config.oven]\ndoor = 1")).unwrap();
        assert!(set("oven.maxx", &with).is_err());
        let refused = |name: &str, manifest: &Manifest| set(name, manifest).unwrap_err().to_string();
        assert_eq!(refused("maxx", &with), "--set maxx: warm has no such setting; did you mean max?");
        assert_eq!(refused("door", &with), "--set door: warm has no such setting; it has max, min");
        assert!(refused("max", &manifest("subscribe = [\"a\"]")).contains("neither [settings] nor [config]"));
    }

    #[test]
    fn a_setting_is_held_against_its_declaration_and_may_be_required() {
        let declared = manifest("subscribe = [\"a\"]\n[settings.max]\ntype = \"number\"\nmax = 200\nunit = \"°C\"");
        let check = |value: Option<&str>| {
            let settings: Vec<_> = value.map(|value| ("max".to_owned(), value.to_owned())).into_iter().collect();
            check_settings(&settings, "--set ", &declared).map_err(|error| error.to_string())
        };
        check(Some("80")).unwrap();
        assert_eq!(check(Some("300")).unwrap_err(), "--set max: \"300\" is above 200; use a number of at most 200 °C");
        assert_eq!(
            check(None).unwrap_err(),
            "setting max has no value in function.toml, as boards give it: add --set max=..., a number of at most 200 °C"
        );
    }

    #[test]
    fn a_topic_that_the_function_does_not_hear_is_noticed() {
        let one = manifest("subscribe = [\"sensors/+/t\"]\nexcept = [\"sensors/x/#\"]");
        assert!(!hears(&one, "sensors/x/t"));
        assert!(hears(&one, "sensors/a/t") && !hears(&one, "sensors/a/h") && !hears(&one, "$timer/warm"));
        let timer = manifest("every = \"10s\"");
        assert!(hears(&timer, "$timer/warm") && !hears(&timer, "$timer/cold") && !hears(&timer, "a"));
        let schedule = manifest("at = \"0 6 * * *\"");
        assert!(hears(&schedule, "$schedule/warm") && !hears(&schedule, "$schedule/cold"));
    }

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: InvokeArgs,
    }

    #[test]
    fn a_payload_may_be_a_negative_number_or_standard_input() {
        for payload in ["-60", "-60.5", "-"] {
            let line = Line::try_parse_from(["invoke", "dir", "-t", "a", "-p", payload]).unwrap();
            assert_eq!(line.args.payloads, [payload]);
        }
    }
}
