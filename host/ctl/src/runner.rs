//! A function of a folder that runs on this machine, within the limits and permissions of production.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use sedge_core::config::Node;
use sedge_core::deploy;
use sedge_core::manifest::Manifest;
use sedge_core::message::{LogLine, Message, Output, Publication, Verdict};
use sedge_core::permits::Permits;
use sedge_core::text::is_unprintable;
use sedge_core::version::Version;
#[cfg(feature = "operator")]
use sedge_sandbox::Draws;
use sedge_sandbox::compiler::Compiler;
use sedge_sandbox::folder::LoadError;
use sedge_sandbox::script::archive::{self, ArchiveError};
use sedge_sandbox::{Function, Run, Sandbox, ScopeState, folder};
use serde_json::{Value, json};

use sedge_core::text::hex;

pub(crate) struct Runner {
    function: Function,
    permits: Permits,
    _sandbox: Sandbox,
    /// The thread that measures deadlines ends with it.
    _alive: Arc<()>,
}

/// Compiles the function of a folder. `takes_code`: takes the native code that `sedge compile` wrote.
pub(crate) fn install(dir: &Path, manifest: Manifest, takes_code: bool) -> anyhow::Result<Version> {
    let path = component(dir, &manifest)?;
    if !takes_code && archive::is_typescript(&path) {
        let archive = read_script(&path).with_context(|| path.display().to_string())?;
        return Ok(Version::new(manifest, deploy::digest(&archive), archive, Node::BASE_TOPIC));
    }
    let is_script = archive::is_source(&path);
    Ok(match takes_code || !Compiler::capabilities().has_compiler && !is_script {
        true => folder::install_code(dir, manifest)?,
        false => folder::install(dir, manifest, &Compiler, false)?,
    })
}

/// The file that a function is made of. `function.ts` beside `function.js` may be its source, or the newer of two: only the author
/// knows.
pub(crate) fn component(dir: &Path, manifest: &Manifest) -> anyhow::Result<PathBuf> {
    let path = folder::component_path(dir, manifest);
    let [script, typescript] = [archive::MAIN, archive::MAIN_TYPESCRIPT].map(|name| dir.join(name));
    if manifest.component.is_none() && path == script && typescript.is_file() {
        bail!(
            "{} has both {} and {}: name the one that is the function as `component` in function.toml",
            dir.display(),
            archive::MAIN,
            archive::MAIN_TYPESCRIPT
        );
    }
    Ok(path)
}

/// Packs a script. Types are erased here, on the author's machine: boards get JavaScript.
pub(crate) fn read_script(path: &Path) -> Result<Bytes, ArchiveError> {
    #[cfg(feature = "operator")]
    return archive::pack(path, Some(erase_types));
    #[cfg(not(feature = "operator"))]
    archive::pack(path, None)
}

#[cfg(feature = "operator")]
fn erase_types(source: &str) -> Result<String, Vec<String>> {
    let line = |it: sedge_types::Problem| format!("{}:{}: {}", it.line, it.column, it.what);
    sedge_types::erase(source).map_err(|problems| problems.into_iter().map(line).collect())
}

/// Loads a version on this machine, and says why that takes long, if it does.
pub(crate) fn load(version: &Version, settings: Arc<[(String, String)]>) -> Result<(Sandbox, Function), LoadError> {
    let compiling = || eprintln!("{:<10} the engine for JavaScript, once: this takes some seconds", "compiling");
    folder::load(version, settings, &Compiler, compiling)
}

impl Runner {
    /// `settings` are laid over those of the manifest.
    pub(crate) fn load(installed: &Version, settings: &BTreeMap<String, String>) -> anyhow::Result<Self> {
        // As in a worker of a board with the default base topic.
        Self::load_below(installed, settings, Node::BASE_TOPIC)
    }

    /// As on a board with this base topic.
    pub(crate) fn load_below(
        installed: &Version,
        settings: &BTreeMap<String, String>,
        base_topic: &str,
    ) -> anyhow::Result<Self> {
        let mut all: BTreeMap<_, _> = installed.settings().into_iter().collect();
        all.extend(settings.iter().map(|(name, value)| (name.clone(), value.clone())));
        let all: Vec<_> = all.into_iter().collect();
        let (sandbox, function) = load(installed, all.into())?;
        let (ticker, alive) = (sandbox.ticker(), Arc::new(()));
        let watched = Arc::downgrade(&alive);
        std::thread::Builder::new().name("sedge-clock".into()).spawn(move || {
            while watched.strong_count() > 0 {
                std::thread::sleep(sedge_sandbox::EPOCH);
                ticker.tick();
            }
        })?;
        let permits = Permits::new(&installed.manifest.allow, base_topic);
        Ok(Self { function, permits, _sandbox: sandbox, _alive: alive })
    }

    /// What the top level of a script logged.
    pub(crate) fn load_log(&self) -> &[LogLine] {
        self.function.load_log()
    }

    pub(crate) fn run(&self, message: &Message, state: ScopeState) -> Run {
        self.function.invoke_within(message, state, |outputs| self.permits.check(outputs))
    }

    /// Runs a message of a recording, with the settings and the clock of then.
    #[cfg(feature = "operator")]
    pub(crate) fn replay(
        &self,
        settings: Arc<[(String, String)]>,
        message: &Message,
        state: ScopeState,
        draws: Draws,
    ) -> Run {
        self.function.invoke_drawing(settings, message, state, draws, |outputs| self.permits.check(outputs))
    }
}

/// What came of a run, as `sedge invoke --json` prints it.
pub(crate) fn as_json(run: &Run) -> Value {
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

pub(crate) fn output_json(output: &Output) -> Value {
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

pub(crate) fn text_or_hex(bytes: &[u8]) -> String {
    match str::from_utf8(bytes) {
        Ok(text) if !text.contains(is_unprintable) => text.to_owned(),
        _ => hex(bytes),
    }
}
