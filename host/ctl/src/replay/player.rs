//! Runs what was recorded, with the state that the runs themselves leave.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use sedge_core::manifest::{Manifest, StateScope};
use sedge_core::message::{FailureCode, Verdict};
use sedge_core::recording::{self, Drawn, Header, RecordedVersion};
use sedge_core::text::printable;
use sedge_core::topic::TopicFilter;
use sedge_core::version::Version;
use sedge_sandbox::{Draws, ScopeState};

use super::case::Case;
use super::compare::{Compared, compare, recorded_writes};
use super::report::{Report, Skipped};
use crate::invoke::check_settings;
use crate::recording::RecordedRun;
use crate::runner::Runner;

type Settings = Arc<[(String, String)]>;

pub(super) struct Player<'a> {
    runner: Runner,
    installed: &'a Version,
    manifest: &'a Manifest,
    /// Given by the person who replays.
    given: &'a [(String, String)],
    settings: Settings,
    /// Settings of topics that a filter matches.
    of_topics: Vec<(TopicFilter, BTreeMap<String, String>)>,
    topics: HashMap<Arc<str>, Topic>,
    /// Where all topics share the state.
    state: ScopeState,
    /// The recorded version, with the recorded settings: everything must be the same, the fuel as well.
    is_same: bool,
    /// Other texts cost other fuel.
    is_redacted: bool,
    line: Vec<u8>,
    /// Written when its message comes.
    pub(super) case: Option<Case>,
}

/// What is known of a topic.
struct Topic {
    is_heard: bool,
    settings: Settings,
    state: ScopeState,
}

impl<'a> Player<'a> {
    pub(super) fn new(installed: &'a Version, header: &Header, given: &'a [(String, String)]) -> anyhow::Result<Self> {
        let manifest = &*installed.manifest;
        for (name, value) in given {
            manifest.check_setting(name, value).map_err(|invalid| anyhow::anyhow!("--set {name}: {invalid}"))?;
        }
        Ok(Self {
            runner: Runner::load_below(installed, &BTreeMap::new(), &header.base_topic)?,
            installed,
            manifest,
            given,
            settings: Arc::new([]),
            of_topics: Vec::new(),
            topics: HashMap::new(),
            state: ScopeState::default(),
            is_same: false,
            is_redacted: !header.redacted.is_empty(),
            line: Vec::new(),
            case: None,
        })
    }

    /// The settings of the function in its folder, those of the board over them, and over those what was given.
    pub(super) fn set_version(&mut self, version: &RecordedVersion, report: &mut Report) -> anyhow::Result<()> {
        let takes = |(name, value): &(&String, &String)| self.manifest.check_setting(name, value).is_ok();
        let mut all: BTreeMap<String, String> =
            version.settings.iter().filter(takes).map(|(name, value)| (name.clone(), value.clone())).collect();
        all.extend(self.given.iter().cloned());
        let has = |name: &String| all.contains_key(name) || self.manifest.config.contains_key(name);
        if let Some(name) = version.secret.iter().find(|name| self.manifest.has_setting(name) && !has(name)) {
            bail!("setting {name} is secret, and recordings do not hold secrets: add --set {name}=VALUE");
        }
        let list: Vec<_> = all.clone().into_iter().collect();
        check_settings(&list, "--set ", self.manifest)?;
        let own: BTreeMap<_, _> = self.installed.settings().into_iter().collect();
        self.is_same = version.digest == self.installed.digest && self.given.is_empty() && own == version.config;
        let all: BTreeMap<_, _> = own.into_iter().chain(all).collect();
        self.settings = all.into_iter().collect();
        self.of_topics.clear();
        for (filter, settings) in &version.topics {
            let filter = TopicFilter::parse(filter).with_context(|| format!("filter {}", printable(filter)))?;
            let is_given = |name: &String| self.given.iter().any(|(given, _)| given == name);
            let settings = settings.iter().filter(takes).filter(|(name, _)| !is_given(name));
            self.of_topics.push((filter, settings.map(|(name, value)| (name.clone(), value.clone())).collect()));
        }
        for (name, topic) in &mut self.topics {
            topic.settings = settings_of(name, &self.settings, &self.of_topics);
        }
        report.version(version, self.is_same);
        Ok(())
    }

    pub(super) fn play(&mut self, run: &mut RecordedRun, report: &mut Report) -> anyhow::Result<()> {
        let message = run.message.take().context("a run without a message")?;
        report.message(&message);
        let of_state = message.shared_state_topic();
        let topic = match self.topics.get_mut(&of_state) {
            Some(topic) => topic,
            None => {
                let is_tick = self.manifest.every.is_some() && of_state.starts_with("$timer/");
                let topic = Topic {
                    is_heard: is_tick || self.manifest.hears(&of_state) || self.manifest.has_schedule(&of_state),
                    settings: settings_of(&of_state, &self.settings, &self.of_topics),
                    state: ScopeState::default(),
                };
                self.topics.entry(of_state).or_insert(topic)
            }
        };
        let settings = Arc::clone(&topic.settings);
        let state = if self.manifest.state == StateScope::Function { &mut self.state } else { &mut topic.state };
        if let Some((_, before)) = run.state.take() {
            *state = before;
        }
        if let Some(why) = not_replayable(run) {
            report.skipped(why);
            // Later runs build on what it wrote.
            if run.refused.is_none() && self.manifest.state != StateScope::None {
                state.apply(&recorded_writes(&run.outcome)?);
            }
            return Ok(());
        }
        if !topic.is_heard {
            report.differs(&message, Compared::not_heard(&run.outcome)?);
            return Ok(());
        }
        let case = self.case.take_if(|case| case.number == report.messages);
        // What the board did not take left its state as it was.
        let before = (run.refused.is_some() || case.is_some()).then(|| state.clone());
        let draws = Draws::given(run.drawn.take().unwrap_or_default(), message.received_at_ms);
        let came = self.runner.replay(Arc::clone(&settings), &message, std::mem::take(state), draws);
        report.has_run(came.draws.ran_out());
        if let Some(case) = case {
            let own = self.installed.settings();
            let settings = settings.iter().filter(|setting| !own.contains(setting)).cloned().collect();
            case.write(self.manifest, &settings, &message, before.clone().unwrap_or_default(), &came)?;
        }
        let before = before.filter(|_| run.refused.is_some());
        self.line.clear();
        recording::outcome_of(&came.outcome, &mut self.line);
        let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
        *state = match (self.manifest.state, before) {
            (StateScope::None, _) => ScopeState::default(),
            (_, Some(before)) => before,
            (_, None) => came.state,
        };
        report.fuel_now += came.outcome.usage.fuel;
        if *line == *run.outcome {
            report.fuel_recorded += came.outcome.usage.fuel;
            return Ok(());
        }
        let (compared, fuel) = compare(&run.outcome, line, self.is_same && !self.is_redacted)?;
        report.fuel_recorded += fuel;
        if let Some(compared) = compared {
            report.differs(&message, compared);
        }
        if matches!(&came.outcome.verdict, Verdict::Failed(failure) if failure.code == FailureCode::Deadline) {
            report.deadlines_here += 1;
        }
        Ok(())
    }
}

fn settings_of(topic: &str, all: &Settings, of_topics: &[(TopicFilter, BTreeMap<String, String>)]) -> Settings {
    let mut matching = of_topics.iter().filter(|(filter, _)| filter.matches(topic)).peekable();
    if matching.peek().is_none() {
        return Arc::clone(all);
    }
    let mut settings: BTreeMap<String, String> = all.iter().cloned().collect();
    settings.extend(matching.flat_map(|(_, settings)| settings.clone()));
    settings.into_iter().collect()
}

/// Why a run cannot be compared: its end was due to the board, and not to its input.
fn not_replayable(run: &RecordedRun) -> Option<Skipped> {
    if run.is_unsure {
        return Some(Skipped::Unsure);
    }
    if run.drawn.as_ref().is_some_and(|Drawn { is_cut, .. }| *is_cut) {
        return Some(Skipped::ManyDraws);
    }
    if !recording::has_failed(&run.outcome) {
        return None;
    }
    let failed = |code: FailureCode| {
        let reason = format!("{{\"outcome\":{{\"failed\":{{\"reason\":\"{}\"", code.as_str());
        run.outcome.starts_with(reason.as_bytes())
    };
    match () {
        () if failed(FailureCode::Deadline) => Some(Skipped::Deadline),
        () if failed(FailureCode::WorkerCrashed) => Some(Skipped::WorkerCrashed),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_due_to_the_board_is_not_run_again() {
        let failed = |code: FailureCode| {
            let failure = sedge_core::message::Failure { code, detail: "\"failed\":".to_owned() };
            let mut outcome = Vec::new();
            recording::outcome_of(&sedge_core::message::Outcome::failed(failure), &mut outcome);
            RecordedRun { outcome, ..RecordedRun::default() }
        };
        assert_eq!(not_replayable(&failed(FailureCode::Deadline)), Some(Skipped::Deadline));
        assert_eq!(not_replayable(&failed(FailureCode::WorkerCrashed)), Some(Skipped::WorkerCrashed));
        for code in FailureCode::ALL {
            let is_skipped = matches!(code, FailureCode::Deadline | FailureCode::WorkerCrashed);
            assert_eq!(not_replayable(&failed(code)).is_some(), is_skipped, "{code:?}");
        }
        let unsure = RecordedRun { is_unsure: true, ..failed(FailureCode::Rejected) };
        assert_eq!(not_replayable(&unsure), Some(Skipped::Unsure));
        let cut = Drawn { is_cut: true, ..Drawn::default() };
        let cut = RecordedRun { drawn: Some(cut), ..failed(FailureCode::Rejected) };
        assert_eq!(not_replayable(&cut), Some(Skipped::ManyDraws));
    }

    #[test]
    fn recorded_changes_of_state_are_read_back() {
        let line = br#"{"outcome":{"outputs":[],"state":[["a","1"],["b","base64:/w=="],["c",null]],"fuel":1}}"#;
        let mut state = ScopeState::from_entries([("c".into(), bytes::Bytes::new())]);
        state.apply(&recorded_writes(line).unwrap());
        let entries: Vec<_> = state.entries().map(|(key, value)| (key, &**value)).collect();
        assert_eq!(entries, [("a", &b"1"[..]), ("b", &[255])]);
    }
}
