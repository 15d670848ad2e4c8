//! State of a board to begin with: at the end of a recording, or in the data folder of a daemon.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use sedge_core::manifest::{Manifest, StateScope};
use sedge_sandbox::ScopeState;
use sedge_store::States;

use crate::recording::{Event, Reader};
use crate::replay::recorded_writes;

/// Scopes, or entries of one, that are read at a time.
const PAGE: usize = 1000;

/// State by topic, or under the empty one where all share it.
pub(super) type Scopes = HashMap<Arc<str>, ScopeState>;

pub(super) fn of_board(path: &Path, manifest: &Manifest) -> anyhow::Result<Scopes> {
    if manifest.state == StateScope::None {
        bail!("--state-from {}: function.toml has state = \"none\": leave it out", path.display());
    }
    match path.is_dir() {
        true => stored(path, manifest),
        false => recorded(path, manifest),
    }
    .with_context(|| format!("--state-from {}", path.display()))
}

/// What the runs of a recording left.
fn recorded(path: &Path, manifest: &Manifest) -> anyhow::Result<Scopes> {
    let mut reader = Reader::open(path)?;
    reader.check(manifest)?;
    let mut scopes = Scopes::new();
    loop {
        match reader.next()? {
            Event::Version(_) => {}
            Event::End(_) => return Ok(scopes),
            Event::Run => {
                let run = &mut reader.run;
                let message = run.message.as_ref().context("a run without a message")?;
                let scope = match manifest.state {
                    StateScope::Topic => message.shared_state_topic(),
                    StateScope::None | StateScope::Function => "".into(),
                };
                let state = scopes.entry(scope).or_default();
                if let Some((_, before)) = run.state.take() {
                    *state = before;
                }
                // What the board did not take left its state as it was.
                if run.refused.is_none() {
                    state.apply(&recorded_writes(&run.outcome)?);
                }
            }
        }
    }
}

/// What the database holds now.
fn stored(dir: &Path, manifest: &Manifest) -> anyhow::Result<Scopes> {
    let (states, function) = (States::open(dir)?, &*manifest.name);
    let mut scopes = Scopes::new();
    let mut last: Option<String> = None;
    loop {
        let page = states.scopes(function, "", last.as_deref(), PAGE)?;
        let is_last = page.len() < PAGE;
        for scope in page {
            if scope.topic.is_none() != (manifest.state == StateScope::Function) {
                bail!("the board has its state by another `state` than function.toml says");
            }
            let state = entries(&states, function, scope.topic.as_deref())?;
            let topic = scope.topic.unwrap_or_default();
            scopes.insert(topic.as_str().into(), state);
            last = Some(topic);
        }
        if is_last {
            break;
        }
    }
    if scopes.is_empty() {
        bail!("it has no state of {function}: name the data folder of a board that runs it");
    }
    Ok(scopes)
}

fn entries(states: &States, function: &str, topic: Option<&str>) -> anyhow::Result<ScopeState> {
    let mut all = Vec::new();
    let mut last: Option<String> = None;
    loop {
        let page = states.entries(function, topic, last.as_deref(), PAGE)?.unwrap_or_default();
        last = page.last().map(|(key, _)| key.clone());
        let is_last = page.len() < PAGE;
        all.extend(page.into_iter().map(|(key, value)| (key.into(), value)));
        if is_last {
            return Ok(ScopeState::from_entries(all));
        }
    }
}
