//! `sedge invoke DIR --topic T --payload P`: runs one function on one message, within the limits of production.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Args;
use serde_json::json;

use super::{
    hex, printable,
    terminal::{self, say},
};
use sedge_core::config::Node;
use sedge_core::limits::MAX_LOG_LINES;
use sedge_core::manifest::Manifest;
use sedge_core::message::{Message, Output, Publication, Verdict};
use sedge_core::permits::Permits;
use sedge_core::text::is_unprintable;
use sedge_core::topic::TopicFilter;
use sedge_sandbox::compiler::Compiler;
use sedge_sandbox::{Run, ScopeState};

#[derive(Debug, Args)]
pub struct InvokeArgs {
    /// Folder with function.toml and the component or function.js
    dir: PathBuf,
    /// Topic of the message
    #[arg(long, short)]
    topic: String,
    /// Payload: text, @FILE for the bytes of a file, or - for standard input
    #[arg(long, short, allow_hyphen_values = true)]
    payload: String,
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

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Returns exit code 0 when the function succeeded, 1 when the message would become a dead letter or be retried.
pub fn run(args: &InvokeArgs) -> anyhow::Result<ExitCode> {
    let manifest = Manifest::load(&args.dir, &sedge_sandbox::machine::MACHINE)?;
    check_topic(&args.topic)?;
    check_settings(&args.settings, &manifest)?;
    if !hears(&manifest, &args.topic) {
        let list = |filters: &[TopicFilter]| filters.iter().map(TopicFilter::as_str).collect::<Vec<_>>().join(", ");
        let (filters, except) = (list(&manifest.subscribe), list(&manifest.except));
        eprintln!(
            "note: a board would not run {} for this topic: function.toml subscribes to {}{}{except}",
            manifest.name,
            if filters.is_empty() { "nothing" } else { &filters },
            if except.is_empty() { "" } else { " except " },
        );
    }
    let installed = match args.code || !Compiler::capabilities().has_compiler {
        true => sedge_sandbox::folder::install_code(&args.dir, manifest)?,
        false => sedge_sandbox::folder::install(&args.dir, manifest, &Compiler, false)?,
    };
    let settings: BTreeMap<_, _> = installed.settings().into_iter().chain(args.settings.iter().cloned()).collect();
    let settings: Vec<_> = settings.into_iter().collect();
    let (sandbox, function) = sedge_sandbox::folder::load(&installed, settings.into(), &Compiler)?;
    for line in function.load_log().iter().filter(|_| !args.json) {
        say!("log      {} {} (top level of the script)", line.level, line.text);
    }
    let ticker = sandbox.ticker();
    std::thread::Builder::new().name("sedge-clock".into()).spawn(move || {
        loop {
            std::thread::sleep(sedge_sandbox::EPOCH);
            ticker.tick();
        }
    })?;
    let now = sedge_sandbox::clock::now(sedge_sandbox::clock::clock_synced());
    let message = Message {
        topic: args.topic.as_str().into(),
        payload: payload(&args.payload)?,
        content_type: args.content_type.as_deref().map(Into::into),
        properties: args.properties.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect(),
        received_at_ms: now.unix_ms,
        clock_synced: now.synced,
        attempt: 1,
        retained: args.retained,
        response_topic: args.response_topic.as_deref().map(Into::into),
        correlation_data: args.correlation_data.as_ref().map(|data| data.as_bytes().into()),
    };
    let entries = args.state.iter().map(|(key, value)| (key.as_str().into(), Bytes::from(value.clone())));
    // As in a worker of a board with the default base topic.
    let permits = Permits::new(&installed.manifest.allow, Node::BASE_TOPIC);
    let run = function.invoke_within(&message, ScopeState::from_entries(entries), |outputs| permits.check(outputs));
    let succeeded = matches!(run.outcome.verdict, Verdict::Done(_));
    if args.json {
        say!("{}", terminal::json(&as_json(&run)));
    } else {
        print(&run);
    }
    Ok(if succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Refuses what no message can have as its topic.
fn check_topic(topic: &str) -> anyhow::Result<()> {
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

/// Refuses settings that a board would refuse, and a declared setting that has no value.
fn check_settings(settings: &[(String, String)], manifest: &Manifest) -> anyhow::Result<()> {
    for (name, value) in settings {
        manifest.check_setting(name, value).map_err(|invalid| anyhow::anyhow!("--set {name}: {invalid}"))?;
    }
    let is_set = |name: &String| manifest.config.contains_key(name) || settings.iter().any(|(set, _)| set == name);
    if let Some((name, declaration)) = manifest.settings.iter().find(|(name, _)| !is_set(name)) {
        bail!("setting {name} has no value in function.toml, as boards give it: add --set {name}=..., {declaration}");
    }
    Ok(())
}

/// Whether a board would run the function on a message with this topic, or on a tick.
fn hears(manifest: &Manifest, topic: &str) -> bool {
    manifest.hears(topic) || manifest.every.is_some() && topic == format!("$timer/{}", manifest.name)
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

fn as_json(run: &Run) -> serde_json::Value {
    let outcome = &run.outcome;
    let (result, outputs, failure) = match &outcome.verdict {
        Verdict::Done(outputs) => ("done", outputs.iter().map(output_json).collect(), None),
        Verdict::Retry { after_ms, reason } => {
            ("retry", Vec::new(), Some(json!({ "after_ms": after_ms, "detail": reason })))
        }
        Verdict::Failed(failure) => {
            ("failed", Vec::new(), Some(json!({ "reason": failure.code.as_str(), "detail": failure.detail })))
        }
    };
    json!({
        "result": result,
        "outputs": outputs,
        "failure": failure,
        "state": outcome.writes.iter().map(|write| json!({
            "key": write.key,
            "value": write.value.as_ref().map(|value| text_or_hex(value)),
        })).collect::<Vec<_>>(),
        "log": run.log.iter().map(|line| json!({ "level": line.level.as_str(), "text": line.text })).collect::<Vec<_>>(),
        "log_lines_dropped": run.log_lines_dropped,
        "fuel": outcome.usage.fuel,
        "elapsed_us": outcome.usage.elapsed_us,
        "memory_bytes": outcome.usage.memory_bytes,
        "output_bytes": outcome.usage.output_bytes,
    })
}

fn output_json(output: &Output) -> serde_json::Value {
    let publication = |kind: &str, it: &Publication| {
        json!({
            "kind": kind,
            "topic": it.topic,
            "payload": text_or_hex(&it.payload),
            "content_type": it.content_type,
            "retain": it.retain,
            "sink": it.sink,
        })
    };
    match output {
        Output::Alert(alert) => {
            let mut value = serde_json::to_value(alert).unwrap_or_default();
            value["kind"] = json!("alert");
            value["sink"] = json!(alert.sink);
            value
        }
        Output::Forward(it) => publication("forward", it),
        Output::Publish(it) => publication("publish", it),
        Output::Wake(it) => json!({ "kind": "wake", "name": it.name, "after_ms": it.after_ms }),
        Output::Reply(it) => json!({
            "kind": "reply",
            "status": it.status,
            "content_type": it.content_type,
            "body": text_or_hex(&it.body),
        }),
    }
}

fn text_or_hex(bytes: &[u8]) -> String {
    match str::from_utf8(bytes) {
        Ok(text) if !text.contains(is_unprintable) => text.to_owned(),
        _ => hex(bytes),
    }
}

fn print(run: &Run) {
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
        Manifest::from_toml(&text, std::path::Path::new("function.toml"), None).unwrap()
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
        let set = |name: &str, manifest: &Manifest| check_settings(&[(name.into(), "1".into())], manifest);
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
            check_settings(&settings, &declared).map_err(|error| error.to_string())
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
            assert_eq!(line.args.payload, payload);
        }
    }
}
