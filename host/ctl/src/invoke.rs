//! `sedge invoke DIR --topic T --payload P`: runs one function on one message, within the limits of production.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;
use serde_json::json;

use super::hex;
use sedge_core::config::Node;
use sedge_core::manifest::Manifest;
use sedge_core::message::{Message, Output, Publication, Verdict};
use sedge_core::permits::Permits;
use sedge_sandbox::compiler::Compiler;
use sedge_sandbox::{Run, Sandbox, ScopeState};

#[derive(Debug, Args)]
pub struct InvokeArgs {
    /// Folder with function.toml and the component
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
    let installed = match args.code || !Compiler::capabilities().has_compiler {
        true => sedge_sandbox::folder::install_code(&args.dir, manifest)?,
        false => sedge_sandbox::folder::install(&args.dir, manifest, &Compiler, false)?,
    };
    let settings: BTreeMap<_, _> = installed.settings().into_iter().chain(args.settings.iter().cloned()).collect();
    let settings: Vec<_> = settings.into_iter().collect();
    let mut sandbox = Sandbox::new();
    let function = sandbox.load(&installed.code, installed.limits(), installed.grants(), settings.into())?;
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
    let permits = Permits {
        base_topic: Node::BASE_TOPIC.into(),
        publish: installed.manifest.allow.publish.clone(),
        grants: installed.grants(),
    };
    let run = function.invoke_within(&message, ScopeState::from_entries(entries), |outputs| permits.check(outputs));
    let succeeded = matches!(run.outcome.verdict, Verdict::Done(_));
    if args.json {
        println!("{}", as_json(&run));
    } else {
        print(&run);
    }
    Ok(if succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
        Ok(text) if !text.contains(char::is_control) => text.to_owned(),
        _ => hex(bytes),
    }
}

fn print(run: &Run) {
    let outcome = &run.outcome;
    for line in &run.log {
        println!("log      {} {}", line.level, line.text);
    }
    match &outcome.verdict {
        Verdict::Done(outputs) if outputs.is_empty() => println!("done     no outputs"),
        Verdict::Done(outputs) => outputs.iter().for_each(|output| match output {
            Output::Alert(alert) => println!(
                "alert    {} {:?} {:?}: {}{}",
                alert.key,
                alert.severity,
                alert.status,
                alert.summary,
                alert.value.map_or_else(String::new, |value| format!(" (value {value})"))
            ),
            Output::Forward(it) => println!("forward  {} {}", it.topic, text_or_hex(&it.payload)),
            Output::Publish(it) => println!("publish  {} {}", it.topic, text_or_hex(&it.payload)),
            Output::Wake(it) => match it.after_ms {
                Some(after_ms) => println!("wake     {} after {after_ms} ms", it.name),
                None => println!("wake     {} cancelled", it.name),
            },
            Output::Reply(it) => println!("reply    {} {}", it.status, text_or_hex(&it.body)),
        }),
        Verdict::Retry { after_ms, reason } => println!("retry    after {after_ms} ms: {reason}"),
        Verdict::Failed(failure) => println!("failed   {}: {}", failure.code.as_str(), failure.detail),
    }
    for write in &outcome.writes {
        match &write.value {
            Some(value) => println!("state    {} = {}", write.key, text_or_hex(value)),
            None => println!("state    {} removed", write.key),
        }
    }
    let usage = &outcome.usage;
    println!(
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
