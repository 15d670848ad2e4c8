//! `sedge dev DIR`: runs a function on live messages, or on a recording, as a shadow on this computer while a person edits it.
//!
//! A thread looks at the folder and builds; the latest good build runs. Outputs are shown and go nowhere: the session at the
//! broker only subscribes, and ends with the command. With a board each message is shown beside what its own version answered.

mod answer;
mod board;
mod builder;
mod compare;
mod show;
mod source;
mod state;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use sedge_core::manifest::{StateScope, parse_period};
use sedge_core::message::{Message, Verdict};
use sedge_core::topic::TopicFilter;
use sedge_core::version::Version;
use sedge_sandbox::ScopeState;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::invoke::{check_settings, pair, read_state};
use super::operator::broker::BrokerArgs;
use super::operator::signing::node;
use super::runner::Runner;
use super::terminal;
use super::{GREEN, RED, paint};
use answer::Answer;
use board::{Board, Said};
use builder::Builder;
use compare::{Comparison, Ran};
use show::{Shown, print_unplaced};
use source::{Came, Source};
use state::Scopes;

/// Topics whose state is kept, when each has its own. Those beyond begin anew.
const MAX_TOPICS: usize = 100_000;
/// How long a board's retained report may take to arrive.
const REPORT_WAIT: Duration = Duration::from_secs(5);
/// When nothing is due.
const FAR: Duration = Duration::from_secs(3600);

#[derive(Debug, Args)]
pub struct DevArgs {
    /// Folder with function.toml and the function
    dir: PathBuf,
    /// Compare with what this board's own version answers, by its node.name
    #[arg(long, value_name = "NAME", value_parser = node, conflicts_with = "recording")]
    node: Option<String>,
    /// How long the board may take to answer a message, which is shown then
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = period, requires = "node")]
    wait: Duration,
    /// How long the board folds repeats of an alert: its fold_secs
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = period, requires = "node")]
    fold: Duration,
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
    /// State of a board to begin with: a recording, whose last state it is, or a board's data folder
    #[arg(long, value_name = "PATH", conflicts_with_all = ["state_file", "recording"])]
    state_from: Option<PathBuf>,
    /// Print a JSON object for each message
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

fn period(text: &str) -> Result<Duration, String> {
    parse_period(text).ok_or_else(|| format!("{text:?} is not a time: write 500ms, 2s or 5m"))
}

/// Runs until Ctrl-C, or to the end of the recording.
pub fn run(args: &DevArgs) -> anyhow::Result<()> {
    if !(args.speed > 0.0 && args.speed.is_finite()) {
        bail!("--speed {}: use a number above 0", args.speed);
    }
    // The first build must succeed: there is no good one to go on with.
    let first = builder::build(&args.dir)?;
    let mut shadow = Shadow::new(args, first)?;
    let builder = Builder::spawn(&args.dir)?;
    crate::block_on(async {
        let mut source = match &args.recording {
            Some(file) => Source::recording(file, args.speed, &shadow.installed.manifest)?,
            None => Source::broker(args.broker.options("dev")?, args.broker.base()).await?,
        };
        let result = shadow.follow(&mut source, &builder).await;
        shadow.end();
        source.close().await;
        result
    })
}

/// The function as it is now, with the state that its runs leave.
struct Shadow<'a> {
    args: &'a DevArgs,
    installed: Version,
    runner: Runner,
    initial: ScopeState,
    /// By topic where each has its own, else under the empty one.
    states: Scopes,
    board: Option<Board>,
    comparison: Option<Comparison<Shown>>,
}

impl<'a> Shadow<'a> {
    fn new(args: &'a DevArgs, installed: Version) -> anyhow::Result<Self> {
        let runner = load(&installed, args)?;
        let manifest = &installed.manifest;
        let initial = args.state_file.as_deref().map_or_else(|| Ok(ScopeState::default()), read_state)?;
        let states = args.state_from.as_ref().map_or_else(|| Ok(Scopes::new()), |it| state::of_board(it, manifest))?;
        let board = args.node.as_ref().map(|node| Board::new(&args.broker.base(), node, &manifest.name));
        let comparison = match (&board, &args.recording) {
            (Some(_), _) => Some(Comparison::new(args.wait, args.fold)),
            // A recording has the alerts from before they are folded.
            (None, Some(_)) => Some(Comparison::new(Duration::ZERO, Duration::ZERO)),
            (None, None) => None,
        };
        Ok(Self { args, installed, runner, initial, states, board, comparison })
    }

    fn subscribe(&self, source: &mut Source, inputs: &[TopicFilter]) -> anyhow::Result<()> {
        let of_board = self.board.as_ref().map(|board| board.filters(&self.installed.manifest)).transpose()?;
        source.set_filters(inputs, &of_board.unwrap_or_default());
        Ok(())
    }

    async fn follow(&mut self, source: &mut Source, builder: &Builder) -> anyhow::Result<()> {
        self.find_board(source).await?;
        self.subscribe(source, &self.installed.manifest.subscribe)?;
        let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
        let mut next_tick = self.next_tick();
        eprintln!("{} runs on {source}; Ctrl-C ends it", self.installed.manifest.name);
        loop {
            let tick = next_tick.unwrap_or_else(|| Instant::now() + FAR);
            let end = self.comparison.as_ref().and_then(Comparison::next_end).unwrap_or_else(|| Instant::now() + FAR);
            tokio::select! {
                biased;
                _ = &mut interrupted => return Ok(()),
                built = builder.next() => {
                    self.built(built?);
                    self.subscribe(source, &self.installed.manifest.subscribe)?;
                    next_tick = self.next_tick();
                }
                came = source.next() => match came? {
                    Came::Live { message, is_input, is_of_board } => {
                        if is_of_board && self.heard(&message) {
                            self.subscribe(source, &self.installed.manifest.subscribe)?;
                        }
                        if is_input {
                            let board = if message.retained { Err("the broker retained it") } else { Ok(None) };
                            self.run(*message, board);
                        }
                    }
                    Came::Recorded { message, board } => self.run(*message, board.map(Some)),
                    Came::State(topic, state) => drop(self.states.insert(topic, state)),
                    Came::Note(note) => eprintln!("{note}"),
                    Came::Broken(note) => {
                        eprintln!("{note}");
                        self.comparison.iter_mut().for_each(|it| it.stop("the connection broke"));
                    }
                    Came::End => return Ok(()),
                },
                () = sleep_until(tick), if next_tick.is_some() && source.is_live() => {
                    let now = sedge_sandbox::clock::now(sedge_sandbox::clock::clock_synced());
                    let topic = format!("$timer/{}", self.installed.manifest.name);
                    let tick = Message::new(topic, bytes::Bytes::new(), now.unix_ms, now.synced);
                    self.run(tick, Err("the board has its ticks at other times"));
                    next_tick = self.next_tick();
                }
                // After all that came: an answer that was read late counts.
                () = sleep_until(end) => {}
            }
            self.settle();
        }
    }

    /// Waits until the board has reported what it runs.
    async fn find_board(&mut self, source: &mut Source) -> anyhow::Result<()> {
        let Some(node) = &self.args.node else { return Ok(()) };
        self.subscribe(source, &[])?;
        let deadline = Instant::now() + REPORT_WAIT;
        while self.board.as_ref().is_some_and(|board| !board.runs()) {
            let Ok(came) = timeout_at(deadline, source.next()).await else {
                bail!(
                    "{node} reports no {}: check --node, --broker and --base-topic (`sedge status` lists what boards run), or log in \
                     as a user that may read {}",
                    self.installed.manifest.name,
                    self.board.as_ref().map(Board::report_topic).unwrap_or_default()
                );
            };
            if let Came::Live { message, .. } = came? {
                self.heard(&message);
            }
        }
        Ok(())
    }

    /// Takes a message of the board. Returns whether it runs something else now.
    fn heard(&mut self, message: &Message) -> bool {
        let Some(said) = self.board.as_mut().and_then(|board| board.says(message)) else { return false };
        match said {
            Said::Version(note) => eprintln!("{note}"),
            Said::Answer(echo) => {
                let unplaced = self.comparison.as_mut().and_then(|it| it.answered(echo, Instant::now()));
                unplaced.iter().for_each(|answer| print_unplaced(answer, self.args.json));
                return false;
            }
        }
        true
    }

    fn next_tick(&self) -> Option<Instant> {
        self.installed.manifest.every.map(|every| Instant::now() + every)
    }

    /// Takes a new build. One that cannot be used leaves the last good one.
    fn built(&mut self, built: anyhow::Result<Version>) {
        let loaded = built.and_then(|installed| Ok((load(&installed, self.args)?, installed)));
        match loaded {
            Ok((runner, installed)) => {
                if installed.manifest.state != self.installed.manifest.state {
                    self.states.clear();
                }
                (self.runner, self.installed) = (runner, installed);
                let manifest = &self.installed.manifest;
                eprintln!("{}", paint(GREEN, &format!("{} {} is live", manifest.name, manifest.version)));
            }
            Err(error) => {
                let error = terminal::printable_lines(&format!("{error:#}"));
                eprintln!("{}\nthe last good build goes on", paint(RED, &error));
            }
        }
    }

    /// `board`: see [`Ran::new`].
    fn run(&mut self, message: Message, board: Result<Option<Vec<Answer>>, &'static str>) {
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
        let came_at = Instant::now();
        let before = self.states.get_mut(&scope).map(std::mem::take).unwrap_or_else(|| self.initial.clone());
        let mut run = self.runner.run(&message, before);
        let state = std::mem::take(&mut run.state);
        if manifest.state != StateScope::None {
            if self.states.len() >= MAX_TOPICS && !self.states.contains_key(&scope) {
                self.states.clear();
            }
            self.states.insert(scope, state);
        }
        let version = Arc::clone(&manifest.version);
        let Some(comparison) = &mut self.comparison else {
            return Shown { message, version, run }.print(None, self.args.json);
        };
        let here = match &run.outcome.verdict {
            Verdict::Done(outputs) => outputs.iter().filter_map(Answer::of).collect(),
            Verdict::Retry { .. } | Verdict::Failed(_) => Vec::new(),
        };
        comparison.ran(Ran::new(&message, here, board, came_at), Shown { message, version, run });
    }

    /// Shows the messages whose time for answers is over.
    fn settle(&mut self) {
        let Some(comparison) = &mut self.comparison else { return };
        while let Some((shown, settled)) = comparison.settle(Instant::now()) {
            shown.print(Some(&settled), self.args.json);
        }
    }

    /// Shows what is left, and the totals.
    fn end(&mut self) {
        if let Some(comparison) = &mut self.comparison {
            comparison.stop("the command ended before the board's time to answer");
        }
        self.settle();
        if let Some(comparison) = &self.comparison {
            comparison.totals.print(self.args.json);
        }
    }
}

fn load(installed: &Version, args: &DevArgs) -> anyhow::Result<Runner> {
    check_settings(&args.settings, "--set ", &installed.manifest)?;
    let settings: BTreeMap<_, _> = args.settings.iter().cloned().collect();
    let runner = Runner::load_below(installed, &settings, &args.broker.base());
    runner.with_context(|| args.dir.display().to_string())
}
