//! `sedge dev DIR`: runs a function on live messages, or on a recording, as a shadow on this computer while a person edits it.
//!
//! A thread looks at the folder and builds; the latest good build runs. Outputs are shown and go nowhere: the session at the
//! broker only subscribes, and ends with the command.

mod builder;
mod source;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use sedge_core::deploy::Installed;
use sedge_core::manifest::{Manifest, StateScope};
use sedge_core::message::{Message, Verdict};
use sedge_core::text::printable;
use sedge_core::time::rfc3339;
use sedge_sandbox::ScopeState;
use serde_json::json;
use tokio::time::Instant;

use super::invoke::{check_settings, pair, print, read_state};
use super::operator::broker::BrokerArgs;
use super::runner::{self, Runner, text_or_hex};
use super::terminal::{self, say};
use super::{GREEN, RED, paint, paint_out};
use builder::Builder;
use source::{Came, Source};

const SHOWN_PAYLOAD_CHARS: usize = 200;
/// Topics whose state is kept, when each has its own. Those beyond begin anew.
const MAX_TOPICS: usize = 100_000;

#[derive(Debug, Args)]
pub struct DevArgs {
    /// Folder with function.toml and the function
    dir: PathBuf,
    /// Run on the messages of a recording instead of live ones
    #[arg(long, value_name = "FILE")]
    recording: Option<PathBuf>,
    /// How many times faster than it was recorded
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, requires = "recording")]
    speed: f64,
    /// Setting to run with instead of that of function.toml; repeatable
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = pair)]
    settings: Vec<(String, String)>,
    /// JSON object with the state to begin with, as `sedge invoke` writes it; with state = "topic", that of each topic
    #[arg(long, value_name = "FILE")]
    state_file: Option<PathBuf>,
    /// Print a JSON object for each message
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

/// Runs until Ctrl-C, or to the end of the recording.
pub fn run(args: &DevArgs) -> anyhow::Result<()> {
    if !(args.speed > 0.0 && args.speed.is_finite()) {
        bail!("--speed {}: use a number above 0", args.speed);
    }
    // The first build must succeed: there is no good one to go on with.
    let first = builder::build(&args.dir)?;
    let initial = args.state_file.as_deref().map_or_else(|| Ok(ScopeState::default()), read_state)?;
    let mut shadow = Shadow::new(args, first, initial)?;
    let builder = Builder::spawn(&args.dir)?;
    crate::block_on(async {
        let filters = shadow.filters();
        let mut source = match &args.recording {
            Some(file) => Source::recording(file, args.speed, &shadow.installed.manifest)?,
            None => Source::broker(args.broker.options("dev")?, &filters).await?,
        };
        let result = shadow.follow(&mut source, &builder).await;
        source.close().await;
        result
    })
}

/// The function as it is now, with the state that its runs leave.
struct Shadow<'a> {
    args: &'a DevArgs,
    installed: Installed,
    runner: Runner,
    initial: ScopeState,
    /// By topic where each has its own, else under the empty one.
    states: HashMap<Arc<str>, ScopeState>,
    messages: u64,
}

impl<'a> Shadow<'a> {
    fn new(args: &'a DevArgs, installed: Installed, initial: ScopeState) -> anyhow::Result<Self> {
        let runner = load(&installed, args)?;
        Ok(Self { args, installed, runner, initial, states: HashMap::new(), messages: 0 })
    }

    fn filters(&self) -> Vec<String> {
        self.installed.manifest.subscribe.iter().map(ToString::to_string).collect()
    }

    async fn follow(&mut self, source: &mut Source, builder: &Builder) -> anyhow::Result<()> {
        let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
        let mut next_tick = self.next_tick();
        self.note(&format!("{} runs on {source}; Ctrl-C ends it", self.installed.manifest.name));
        loop {
            let tick = next_tick.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                biased;
                _ = &mut interrupted => return Ok(()),
                built = builder.next() => {
                    self.built(built?);
                    source.set_filters(&self.filters());
                    next_tick = self.next_tick();
                }
                came = source.next() => match came? {
                    Came::Message(message) => self.run(&message),
                    Came::State(topic, state) => drop(self.states.insert(topic, state)),
                    Came::Note(note) => self.note(&note),
                    Came::End => return Ok(()),
                },
                () = tokio::time::sleep_until(tick), if next_tick.is_some() && source.is_live() => {
                    let now = sedge_sandbox::clock::now(sedge_sandbox::clock::clock_synced());
                    let topic = format!("$timer/{}", self.installed.manifest.name);
                    self.run(&Message::new(topic, bytes::Bytes::new(), now.unix_ms, now.synced));
                    next_tick = self.next_tick();
                }
            }
        }
    }

    fn next_tick(&self) -> Option<Instant> {
        self.installed.manifest.every.map(|every| Instant::now() + every)
    }

    /// Takes a new build. One that cannot be used leaves the last good one.
    fn built(&mut self, built: anyhow::Result<Installed>) {
        let loaded = built.and_then(|installed| Ok((load(&installed, self.args)?, installed)));
        match loaded {
            Ok((runner, installed)) => {
                if installed.manifest.state != self.installed.manifest.state {
                    self.states.clear();
                }
                (self.runner, self.installed) = (runner, installed);
                let manifest = &self.installed.manifest;
                self.note(&paint(GREEN, &format!("{} {} is live", manifest.name, manifest.version)));
            }
            Err(error) => {
                let error = terminal::printable_lines(&format!("{error:#}"));
                eprintln!("{}\nthe last good build goes on", paint(RED, &error));
            }
        }
    }

    fn note(&self, text: &str) {
        eprintln!("{text}");
    }

    fn run(&mut self, message: &Message) {
        let manifest = &self.installed.manifest;
        // A wake of a recording belongs to the topic of the message that set it.
        let topic = message.shared_state_topic();
        let is_tick = manifest.every.is_some() && topic.starts_with("$timer/");
        if !is_tick && !manifest.hears(&topic) && !manifest.has_schedule(&topic) {
            return;
        }
        let scope: Arc<str> = match manifest.state {
            StateScope::Topic => topic,
            StateScope::None | StateScope::Function => "".into(),
        };
        let before = self.states.get_mut(&scope).map(std::mem::take).unwrap_or_else(|| self.initial.clone());
        let run = self.runner.run(message, before);
        self.messages += 1;
        if self.args.json {
            let mut line = runner::as_json(&run);
            line["topic"] = json!(&*message.topic);
            line["payload"] = json!(text_or_hex(&message.payload));
            line["received_at_ms"] = json!(message.received_at_ms);
            line["retained"] = json!(message.retained);
            line["version"] = json!(&*self.installed.manifest.version);
            say!("{}", terminal::json(&line));
        } else {
            let payload: String = text_or_hex(&message.payload).chars().take(SHOWN_PAYLOAD_CHARS).collect();
            let retained = if message.retained { " (retained)" } else { "" };
            let head =
                format!("{}  {}{retained}  {payload}", rfc3339(message.received_at_ms), printable(&message.topic));
            let colour = if matches!(run.outcome.verdict, Verdict::Done(_)) { GREEN } else { RED };
            terminal::raw(&format!("\n{}\n", paint_out(colour, &head)));
            print(&run);
        }
        if manifest_keeps(&self.installed.manifest) {
            if self.states.len() >= MAX_TOPICS && !self.states.contains_key(&scope) {
                self.states.clear();
            }
            self.states.insert(scope, run.state);
        }
    }
}

fn manifest_keeps(manifest: &Manifest) -> bool {
    manifest.state != StateScope::None
}

fn load(installed: &Installed, args: &DevArgs) -> anyhow::Result<Runner> {
    check_settings(&args.settings, "--set ", &installed.manifest)?;
    let settings: BTreeMap<_, _> = args.settings.iter().cloned().collect();
    Runner::load(installed, &settings).with_context(|| args.dir.display().to_string())
}
