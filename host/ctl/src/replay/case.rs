//! A message of a recording as a case for `sedge test`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use sedge_core::manifest::{Manifest, StateScope};
use sedge_core::message::{Message, Verdict};
use sedge_core::text::is_unprintable;
use sedge_core::time::rfc3339;
use sedge_sandbox::{Run, ScopeState};
use toml::{Table, Value};

use crate::test::bless::{expectation, of_bytes};
use sedge_core::text::hex;

/// Where the case of a message goes.
pub(super) struct Case {
    pub(super) number: u64,
    /// Folder of the function.
    pub(super) dir: PathBuf,
}

impl Case {
    /// `before`: the state; `run`: what came of the message now.
    pub(super) fn write(
        self,
        manifest: &Manifest,
        settings: &BTreeMap<String, String>,
        message: &Message,
        before: ScopeState,
        run: &Run,
    ) -> anyhow::Result<()> {
        let path = self.dir.join("tests").join(format!("recorded-{}.toml", self.number));
        if path.exists() {
            bail!("{} exists: remove it, or name another message", path.display());
        }
        let folder = path.parent().context("a case has a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("failed to make {}", folder.display()))?;
        let text = text(self.number, manifest, settings, message, before, run);
        super::super::write_atomically(&path, text.as_bytes())?;
        eprintln!("written    {}", path.display());
        Ok(())
    }
}

fn text(
    number: u64,
    manifest: &Manifest,
    settings: &BTreeMap<String, String>,
    message: &Message,
    before: ScopeState,
    run: &Run,
) -> String {
    let mut text =
        format!("# Message {number} of a recording, and what the function returned for it. Change what is expected.\n");
    let _ = writeln!(text, "time = {}\nclock_synced = {}", rfc3339(message.received_at_ms), message.clock_synced);
    if !settings.is_empty() {
        text.push_str("\n[settings]\n");
        for (name, value) in settings {
            let _ = writeln!(text, "{} = {}", key(name), Value::from(value.as_str()));
        }
    }
    if before.entries().next().is_some() {
        let of_topic = (manifest.state == StateScope::Topic).then(|| format!(".{}", key(message.state_topic())));
        let _ = writeln!(text, "\n[state{}]", of_topic.unwrap_or_default());
        for (name, value) in before.entries() {
            let _ = writeln!(text, "{} = {}", key(name), of_bytes(value));
        }
    }
    let _ = write!(text, "\n[[message]]\n{}", fields(manifest, message));
    let after = match run.outcome.verdict {
        Verdict::Done(_) if manifest.state != StateScope::None => &run.state,
        _ => &before,
    };
    let _ = write!(text, "\n{}", expectation(run, after));
    text
}

fn fields(manifest: &Manifest, message: &Message) -> String {
    let mut lines = String::new();
    let mut line = |name: &str, value: Value| {
        let _ = writeln!(lines, "{name} = {value}");
    };
    if manifest.every.is_some() && *message.topic == *format!("$timer/{}", manifest.name) {
        line("tick", true.into());
        return lines;
    }
    line("topic", (&*message.topic).into());
    match str::from_utf8(&message.payload) {
        Ok(text) if !text.contains(is_unprintable) => line("payload", text.into()),
        _ => line("payload_hex", hex(&message.payload).into()),
    }
    if let Some(kind) = &message.content_type {
        line("content_type", (&**kind).into());
    }
    if !message.properties.is_empty() {
        let properties: Table =
            message.properties.iter().map(|(name, value)| (name.to_string(), (&**value).into())).collect();
        line("properties", Value::Table(properties));
    }
    if message.retained {
        line("retained", true.into());
    }
    if message.attempt > 1 {
        line("attempt", i64::from(message.attempt).into());
    }
    if let Some(topic) = &message.response_topic {
        line("response_topic", (&**topic).into());
    }
    if let Some(text) = message.correlation_data.as_ref().and_then(|data| str::from_utf8(data).ok()) {
        line("correlation_data", text.into());
    }
    lines
}

/// A key as TOML takes it.
fn key(name: &str) -> String {
    Value::from(name).to_string()
}
