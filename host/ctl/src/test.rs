//! `sedge test DIR`: runs the cases of a function, on the real sandbox with the limits of production.
//!
//! A case is a file `tests/NAME.toml`: messages in their order, and what is expected of each. The clock of a case is its own,
//! so that a run today and one in a year have the same outcome.

pub(crate) mod bless;
mod case;
mod compare;
mod junit;
mod silent;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use sedge_core::manifest::{Manifest, StateScope};
use sedge_core::message::{Message, Output, Verdict};
use sedge_core::schedule::{Times, Zone};
use sedge_core::text::printable;
use sedge_core::time::Now;
use sedge_core::version::Version;
use sedge_core::{made, schedule, silence, wake};
use sedge_sandbox::{Run, ScopeState};
use serde_json::json;

use super::invoke::{check_settings, check_topic};
use super::runner::{self, Runner};
use super::terminal::{self, say};
use super::{GREEN, RED, paint_out, watch};
use case::{Case, Step};
use compare::Difference;
use silent::Silences;

/// Folder of the cases, in that of the function.
const CASES: &str = "tests";
/// How often `--watch` looks for changed files.
const LOOK_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub struct TestArgs {
    /// Folders with function.toml and tests/*.toml
    #[arg(required = true, value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// Run only cases whose name contains this
    #[arg(long, short, value_name = "TEXT")]
    filter: Option<String>,
    /// Write what came into the files as what is expected
    #[arg(long)]
    bless: bool,
    /// Run again whenever a file of the folders changes, until Ctrl-C
    #[arg(long, conflicts_with = "json")]
    watch: bool,
    /// Write the results as JUnit XML, for continuous integration
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What became of a case.
#[derive(Debug)]
struct Tested {
    function: String,
    case: String,
    took: Duration,
    /// Empty if it passed.
    problems: Vec<Problem>,
    is_blessed: bool,
}

#[derive(Debug)]
struct Problem {
    /// Message of the case, from 1; `None` for the case itself.
    message: Option<usize>,
    what: String,
    differences: Vec<Difference>,
}

impl Problem {
    fn of_case(error: &anyhow::Error) -> Self {
        Self { message: None, what: format!("{error:#}"), differences: Vec::new() }
    }

    /// Lines for a terminal and for a report.
    fn lines(&self) -> Vec<String> {
        let at = self.message.map_or_else(String::new, |number| format!("message {number}: "));
        let mut lines = vec![format!("{at}{}", self.what)];
        lines.extend(self.differences.iter().map(ToString::to_string));
        lines
    }
}

/// Exits with 1 if a case failed.
pub fn run(args: &TestArgs) -> anyhow::Result<ExitCode> {
    if !args.watch {
        return Ok(if test(args)? { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    loop {
        // From before the run, so that what is edited meanwhile runs again.
        let files = || watch::files(&args.dirs, args.junit.as_deref());
        let tested = files();
        if let Err(error) = test(args) {
            eprintln!("{}", paint_out(RED, &printable(&format!("{error:#}"))));
        }
        say!("\nwaiting for a change ...");
        while files() == tested {
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// Runs all cases once. Returns whether they passed.
fn test(args: &TestArgs) -> anyhow::Result<bool> {
    let begun = Instant::now();
    let mut tested = Vec::new();
    for dir in &args.dirs {
        test_function(dir, args, &mut tested)?;
    }
    if tested.is_empty() {
        match &args.filter {
            Some(filter) => bail!("no case has {filter:?} in its name"),
            None => bail!("no case in {}: write one, for example {CASES}/first.toml", list(&args.dirs)),
        }
    }
    let failed = tested.iter().filter(|it| !it.problems.is_empty()).count();
    let passed = tested.len() - failed;
    if let Some(path) = &args.junit {
        fs::write(path, junit::report(&tested)).with_context(|| format!("failed to write {}", path.display()))?;
    }
    if args.json {
        say!("{}", terminal::json(&as_json(&tested)));
        return Ok(failed == 0);
    }
    print_failures(&tested);
    let word = if failed == 0 { paint_out(GREEN, "ok") } else { paint_out(RED, "FAILED") };
    terminal::raw(&format!(
        "\ntest result: {word}. {passed} passed; {failed} failed; finished in {:.2}s\n",
        begun.elapsed().as_secs_f64()
    ));
    Ok(failed == 0)
}

fn list(dirs: &[PathBuf]) -> String {
    dirs.iter().map(|dir| dir.join(CASES).display().to_string()).collect::<Vec<_>>().join(", ")
}

fn test_function(dir: &Path, args: &TestArgs, tested: &mut Vec<Tested>) -> anyhow::Result<()> {
    let manifest = Manifest::load(dir, &sedge_sandbox::machine::MACHINE)?;
    let mut cases: Vec<PathBuf> = match fs::read_dir(dir.join(CASES)) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).with_context(|| format!("failed to read {}", dir.join(CASES).display())),
    };
    cases.retain(|path| path.extension().is_some_and(|it| it == "toml"));
    cases.retain(|path| args.filter.as_ref().is_none_or(|filter| name(path).contains(filter.as_str())));
    cases.sort();
    if cases.is_empty() {
        return Ok(());
    }
    if dir.join("Cargo.toml").is_file() {
        super::build::build(dir)?;
    }
    let installed = runner::install(dir, manifest, false)?;
    for path in cases {
        let begun = Instant::now();
        let outcome = test_case(&path, &installed, args.bless);
        let (problems, is_blessed) = outcome.unwrap_or_else(|error| (vec![Problem::of_case(&error)], false));
        let function = installed.manifest.name.to_string();
        let it = Tested { function, case: name(&path), took: begun.elapsed(), problems, is_blessed };
        if !args.json {
            let word = match (it.problems.is_empty(), it.is_blessed) {
                (true, true) => paint_out(GREEN, "written"),
                (true, false) => paint_out(GREEN, "ok"),
                (false, _) => paint_out(RED, "FAILED"),
            };
            terminal::raw(&format!("test {} ... {word}\n", printable(&format!("{}/{}", it.function, it.case))));
        }
        tested.push(it);
    }
    Ok(())
}

fn name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Returns what differs, and whether the file was written anew.
fn test_case(path: &Path, installed: &Version, bless: bool) -> anyhow::Result<(Vec<Problem>, bool)> {
    let text = fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
    let case = Case::read(path, &text)?;
    if !bless && !case.expects_something() {
        bail!("it expects nothing: write [message.expect], or let --bless write what comes");
    }
    let dir = path.parent().unwrap_or(Path::new(""));
    let mut player = Player::new(&case, installed)?;
    let mut problems = Vec::new();
    let mut came = Vec::new();
    for (n, step) in case.messages.iter().enumerate() {
        let at = || format!("message {}", n + 1);
        step.check().with_context(at)?;
        let (run, state) = player.play(step, dir).with_context(at)?;
        match bless {
            true => came.push(bless::expectation(&run, &state)),
            false => problems.extend(
                compare::compare(step.expect.as_ref(), &run, &state)
                    .with_context(at)?
                    .map(|(what, differences)| Problem { message: Some(n + 1), what, differences }),
            ),
        }
    }
    let mut is_blessed = false;
    if bless {
        let blessed = bless::write(&text, &came).with_context(|| path.display().to_string())?;
        is_blessed = blessed != text;
        if is_blessed {
            super::write_atomically(path, blessed.as_bytes())?;
        }
    }
    Ok((problems, is_blessed))
}

/// Runs the messages of a case one after the other, with state and clock of the case.
struct Player<'a> {
    runner: Runner,
    manifest: &'a Manifest,
    now_ms: u64,
    clock_synced: bool,
    /// By topic where each has its own, else under the empty one.
    states: BTreeMap<String, ScopeState>,
    /// Wakes that wait, by name and by the topic of their scope, which is empty where the state is the function's.
    wakes: BTreeMap<(String, String), Wake>,
    silences: Silences<'a>,
}

/// A wake that waits.
struct Wake {
    due_ms: u64,
    /// The topic that has set it.
    topic: String,
}

impl<'a> Player<'a> {
    fn new(case: &Case, installed: &'a Version) -> anyhow::Result<Self> {
        let settings = case.settings()?;
        let given: Vec<_> = settings.clone().into_iter().collect();
        check_settings(&given, "settings.", &installed.manifest)?;
        let manifest = &*installed.manifest;
        Ok(Self {
            runner: Runner::load(installed, &settings)?,
            manifest,
            now_ms: case.start_ms()?,
            silences: Silences::new(manifest, case.start_ms()?),
            clock_synced: case.clock_synced(),
            states: states(case, manifest.state)?,
            wakes: BTreeMap::new(),
        })
    }

    /// Returns the run and the state after it.
    fn play(&mut self, step: &Step, dir: &Path) -> anyhow::Result<(Run, ScopeState)> {
        let mut properties: Vec<(Box<str>, Box<str>)> =
            step.properties.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect();
        let silence = self.call_about_silence(step, &mut properties)?;
        let (topic, origin) = match (silence, &step.schedule, &step.wake, &step.topic) {
            (Some(call), ..) => call,
            (None, Some(name), ..) => {
                let due_ms = self.reach_schedule(name, step.after_ms()?)?;
                let message = schedule::message(name, due_ms, self.now());
                properties.extend(message.properties);
                (message.topic.to_string(), message.topic.to_string())
            }
            (None, None, Some(name), about) => {
                let wake = self.take_wake(name, about.as_deref(), step.after_ms()?)?;
                properties.push((made::ORIGIN.into(), wake.topic.as_str().into()));
                (format!("{}{name}", wake::PREFIX), wake.topic)
            }
            // A wake and a call about silence as a recording has them.
            (None, None, None, Some(topic)) if made::is_topic(topic) => {
                self.now_ms += step.after_ms()?.unwrap_or(0);
                if !topic.starts_with(wake::PREFIX) {
                    self.silences.check(topic)?;
                }
                let about = step.properties.get(made::ORIGIN);
                let about = about.with_context(|| {
                    format!("name the topic that it is about: properties = {{ {} = \"a/topic\" }}", made::ORIGIN)
                })?;
                (topic.clone(), about.clone())
            }
            (None, None, None, Some(topic)) => {
                self.now_ms += step.after_ms()?.unwrap_or(0);
                check_topic(topic)?;
                if !self.manifest.hears(topic) && !self.manifest.has_schedule(topic) {
                    bail!("{topic} is not heard: no filter of subscribe in function.toml matches it, or except does");
                }
                if !step.retained {
                    self.silences.heard(topic, self.now_ms);
                }
                (topic.clone(), topic.clone())
            }
            (None, None, None, None) if self.manifest.every.is_some() => {
                self.now_ms += step.after_ms()?.unwrap_or(0);
                let topic = format!("$timer/{}", self.manifest.name);
                (topic.clone(), topic)
            }
            (None, None, None, None) => bail!("a tick, and function.toml has no every: add every = \"10s\" there"),
        };
        let message = Message {
            topic: topic.as_str().into(),
            payload: step.payload(dir)?,
            content_type: step.content_type.as_deref().map(Into::into),
            properties,
            received_at_ms: self.now_ms,
            clock_synced: self.clock_synced,
            attempt: step.attempt.unwrap_or(1),
            retained: step.retained,
            response_topic: step.response_topic.as_deref().map(Into::into),
            correlation_data: step.correlation_data.as_ref().map(|data| data.as_bytes().into()),
            trace: None,
        };
        let scope = match self.manifest.state {
            StateScope::Topic => origin.clone(),
            StateScope::None | StateScope::Function => String::new(),
        };
        let before = self.states.get(&scope).cloned().unwrap_or_default();
        let run = self.runner.run(&message, before.clone());
        let is_kept = matches!(run.outcome.verdict, Verdict::Done(_)) && self.manifest.state != StateScope::None;
        let after = if is_kept { run.state.clone() } else { before };
        self.states.insert(scope, after.clone());
        self.keep_wakes(&run, &origin);
        Ok((run, after))
    }

    /// The topic of the call that a topic is silent or speaks again, and that topic. It is the time at which it is made.
    fn call_about_silence(
        &mut self,
        step: &Step,
        properties: &mut Vec<(Box<str>, Box<str>)>,
    ) -> anyhow::Result<Option<(String, String)>> {
        let (about, call) = match (&step.silence, &step.back) {
            (Some(about), _) => (about, self.silences.silent(about, self.now_ms, step.after_ms()?)?),
            (None, Some(about)) => (about, self.silences.back(about, self.now_ms, step.after_ms()?)?),
            (None, None) => return Ok(None),
        };
        self.now_ms = call.at_ms;
        properties.push((made::ORIGIN.into(), about.as_str().into()));
        properties.push((silence::SILENT_MS.into(), call.silent_ms.to_string().into()));
        Ok(Some((call.topic.to_owned(), about.clone())))
    }

    /// Takes a wake that waits. It is the time at which it is due, or `after_ms` behind the message before, if that is later.
    fn take_wake(&mut self, name: &str, about: Option<&str>, after_ms: Option<u64>) -> anyhow::Result<Wake> {
        let is_meant =
            |(known, _): &(String, String), wake: &Wake| known == name && about.is_none_or(|about| about == wake.topic);
        let found: Vec<_> =
            self.wakes.iter().filter(|(key, wake)| is_meant(key, wake)).map(|(key, _)| key.clone()).collect();
        let [key] = &found[..] else {
            match found.len() {
                0 => bail!("no wake {name:?} waits: no message before has set it, or it was cancelled"),
                many => bail!("{many} wakes {name:?} wait: name the topic that has set the one that is meant"),
            }
        };
        let wake = self.wakes.remove(key).context("a wake that was found")?;
        let at = self.now_ms + after_ms.unwrap_or(0);
        if after_ms.is_some() && at < wake.due_ms {
            bail!("wake {name:?} is due {} ms later: remove after, or raise it", wake.due_ms - at);
        }
        self.now_ms = at.max(wake.due_ms);
        Ok(wake)
    }

    fn now(&self) -> Now {
        Now { unix_ms: self.now_ms, ..sedge_sandbox::clock::now(self.clock_synced) }
    }

    /// Lets time pass until a schedule is due next, or until `after_ms` behind the message before, if that is later. Returns when it
    /// was due.
    fn reach_schedule(&mut self, name: &str, after_ms: Option<u64>) -> anyhow::Result<u64> {
        let Some(expressions) = self.manifest.at.get(name) else {
            bail!("function.toml has no schedule {name:?}: name one of at there");
        };
        // The zone of the board is not known here.
        let zone = match &self.manifest.zone {
            Some(zone) => {
                sedge_sandbox::machine::MACHINE.zone(Some(zone)).map_err(|invalid| anyhow::anyhow!("{invalid}"))?
            }
            None => Zone::utc(),
        };
        let times = Times::new(expressions, zone).map_err(|invalid| anyhow::anyhow!("{invalid}"))?;
        let due_ms = times.next(self.now_ms).with_context(|| format!("schedule {name:?} never comes again"))?;
        let at = self.now_ms + after_ms.unwrap_or(0);
        if after_ms.is_some() && at < due_ms {
            bail!("schedule {name:?} is due {} ms later: remove after, or raise it", due_ms - at);
        }
        self.now_ms = at.max(due_ms);
        Ok(due_ms)
    }

    fn keep_wakes(&mut self, run: &Run, origin: &str) {
        let Verdict::Done(outputs) = &run.outcome.verdict else { return };
        let scope = if self.manifest.state == StateScope::Function { "" } else { origin };
        for output in outputs {
            let Output::Wake(wake) = output else { continue };
            let key = (wake.name.to_string(), scope.to_owned());
            match wake.after_ms {
                Some(after_ms) => {
                    let wake = Wake { due_ms: self.now_ms + after_ms, topic: origin.to_owned() };
                    self.wakes.insert(key, wake);
                }
                None => drop(self.wakes.remove(&key)),
            }
        }
    }
}

fn states(case: &Case, scope: StateScope) -> anyhow::Result<BTreeMap<String, ScopeState>> {
    let entries = |table: &mut dyn Iterator<Item = (&String, &toml::Value)>| {
        let entries = table.map(|(key, value)| Ok((key.as_str().into(), case::bytes(value)?)));
        Ok::<_, anyhow::Error>(ScopeState::from_entries(entries.collect::<anyhow::Result<Vec<_>>>()?))
    };
    if case.state.is_empty() {
        return Ok(BTreeMap::new());
    }
    match scope {
        StateScope::None => bail!("section state, and function.toml has state = \"none\": nothing is kept"),
        StateScope::Function => Ok([(String::new(), entries(&mut case.state.iter())?)].into()),
        StateScope::Topic => {
            let of_topic = |(topic, value): (&String, &toml::Value)| match value {
                toml::Value::Table(table) => Ok((topic.clone(), entries(&mut table.iter())?)),
                _ => bail!("state belongs to topics here (state = \"topic\"): write [state.\"a/topic\"]"),
            };
            case.state.iter().map(of_topic).collect()
        }
    }
}

fn print_failures(tested: &[Tested]) {
    for it in tested.iter().filter(|it| !it.problems.is_empty()) {
        say!("\n---- {}/{} ----", it.function, it.case);
        for problem in &it.problems {
            for (n, line) in problem.lines().iter().enumerate() {
                let line = terminal::printable_lines(line);
                let line = match line.as_bytes().first() {
                    Some(b'-') if n > 0 => paint_out(RED, &line),
                    Some(b'+') if n > 0 => paint_out(GREEN, &line),
                    _ => line,
                };
                terminal::raw(&format!("{line}\n"));
            }
        }
    }
}

fn as_json(tested: &[Tested]) -> serde_json::Value {
    let case = |it: &Tested| {
        json!({
            "function": it.function,
            "case": it.case,
            "passed": it.problems.is_empty(),
            "written": it.is_blessed,
            "elapsed_ms": u64::try_from(it.took.as_millis()).unwrap_or(u64::MAX),
            "problems": it.problems.iter().map(|problem| json!({
                "message": problem.message,
                "text": problem.what,
                "expected": problem.differences.iter().filter_map(Difference::expected).collect::<Vec<_>>(),
                "came": problem.differences.iter().filter_map(Difference::came).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
        })
    };
    json!({
        "passed": tested.iter().filter(|it| it.problems.is_empty()).count(),
        "failed": tested.iter().filter(|it| !it.problems.is_empty()).count(),
        "cases": tested.iter().map(case).collect::<Vec<_>>(),
    })
}
