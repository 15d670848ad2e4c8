//! A worker process as a model: the protocol of the real one, with functions that are a script.
//!
//! The code of a version is text: the topic that it publishes to, and letters at which it traps. The first letter of a
//! payload says what the function does with the message: `o` publishes payload and topic, `f` forwards them, `#` and `e`
//! publish where they may not, `b` publishes 60,000 bytes, `S` publishes and changes the
//! size of its state, `c` counts in state and publishes, `E` counts and publishes where it may not, `a` alerts, `r` rejects, `x` traps,
//! `R` publishes and answers a request, `t` asks once for another run, `T` always. `w` and `v` publish, and set and cancel wakes (see [`crate::wakes`]), whose runs
//! publish, too; so do those of schedules (see [`crate::schedules`]).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sedge_core::board::{Job, JobNo, Life, Load, WorkerCommand, WorkerEvent};
use sedge_core::manifest::StateScope;
use sedge_core::message::{
    Alert, AlertStatus, Failure, FailureCode, Message, Outcome, Output, Publication, Reply, Severity, StateGrowth,
    StateWrite, Usage, Verdict, Wake,
};
use sedge_core::settings::Settings;
use sedge_core::version::Version;
use sedge_core::{made, schedule, silence, wake};

use crate::disk::number;
use crate::{schedules, wakes};

/// Bytes of a large output.
const LARGE: usize = 60_000;

type State = BTreeMap<Box<str>, Bytes>;
type Key = (u32, Option<Arc<str>>);

#[derive(Debug, Default)]
pub struct Worker {
    life: Life,
    is_running: bool,
    versions: BTreeMap<(u32, u32), Script>,
    states: BTreeMap<Key, State>,
    /// Jobs whose state was asked for, and those of the same scope behind them.
    waiting: BTreeMap<Key, VecDeque<(JobNo, Job)>>,
    asked: BTreeMap<JobNo, Key>,
    /// Keys whose last job is to run again: jobs sent behind it must not overtake it.
    held: BTreeSet<Key>,
    commands: VecDeque<WorkerCommand>,
    said: VecDeque<WorkerEvent>,
    fails_next_start: bool,
    answers_twice: bool,
    run_time: Duration,
    /// Jobs of this life, by function and topic.
    given: BTreeSet<(u32, Arc<str>)>,
    /// Functions and topics over which a run failed or the process died.
    guilty: BTreeSet<(u32, Arc<str>)>,
    ran: Vec<Ran>,
}

/// A run, with the setting `n` that it had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    pub function: Arc<str>,
    pub payload: Bytes,
    pub setting: u64,
}

#[derive(Clone, Debug)]
struct Script {
    topic: String,
    traps_at: String,
    /// Publications name the topic of the message behind its payload.
    names_topics: bool,
    version: Arc<Version>,
    settings: Arc<Settings>,
}

impl Worker {
    /// A worker whose runs take this long, as it tells.
    pub fn that_takes(run_time: Duration) -> Self {
        Self { run_time, ..Self::default() }
    }

    /// From now on its runs take this long, as it tells.
    pub fn set_run_time(&mut self, run_time: Duration) {
        self.run_time = run_time;
    }

    /// Takes a command. It is carried out by `Worker::work`.
    pub fn apply(&mut self, life: Life, command: WorkerCommand) {
        match command {
            WorkerCommand::Start => {
                let fails = self.fails_next_start;
                let guilty = std::mem::take(&mut self.guilty);
                *self = Self { life, is_running: !fails, guilty, run_time: self.run_time, ..Self::default() };
                self.said.push_back(match fails {
                    true => WorkerEvent::NotStarted { error: "no memory".to_owned() },
                    false => WorkerEvent::Started,
                });
            }
            WorkerCommand::Kill if life == self.life => self.die("it was ended"),
            command if life == self.life && self.is_running => self.commands.push_back(command),
            _ => {}
        }
    }

    pub fn fail_next_start(&mut self) {
        self.fails_next_start = true;
    }

    /// The next answer comes twice.
    pub fn answer_twice(&mut self) {
        self.answers_twice = true;
    }

    /// Answers a job that it was not given.
    pub fn answer_wrongly(&mut self) {
        if self.is_running {
            self.said.push_back(WorkerEvent::Held { job: JobNo(u64::MAX) });
        }
    }

    pub fn life(&self) -> Life {
        self.life
    }

    /// Everything in memory is gone.
    pub fn die(&mut self, status: &str) {
        if self.is_running {
            let mut guilty = std::mem::take(&mut self.guilty);
            guilty.append(&mut self.given);
            *self = Self { life: self.life, guilty, run_time: self.run_time, ..Self::default() };
            self.said.push_back(WorkerEvent::Ended { status: status.to_owned() });
        }
    }

    /// What a pause may be due to.
    pub fn take_guilty(&mut self) -> BTreeSet<(u32, Arc<str>)> {
        std::mem::take(&mut self.guilty)
    }

    /// Runs since this was last called.
    pub fn take_ran(&mut self) -> Vec<Ran> {
        std::mem::take(&mut self.ran)
    }

    /// Carries out one command. `false`: there is none.
    pub fn step(&mut self) -> bool {
        let Some(command) = self.commands.pop_front() else { return false };
        match command {
            WorkerCommand::Load(load) => {
                let edition = load.version.edition;
                let error = match Script::parse(&load.version, load.settings) {
                    Some(script) => {
                        self.versions.insert((load.function, edition), script);
                        None
                    }
                    None => Some("this is not a script".to_owned()),
                };
                self.said.push_back(WorkerEvent::Loaded { function: load.function, edition, error });
            }
            WorkerCommand::Unload { function, edition } => drop(self.versions.remove(&(function, edition))),
            WorkerCommand::Set { change, loads } => {
                for Load { function, version, settings } in loads {
                    if let Some(script) = self.versions.get_mut(&(function, version.edition)) {
                        script.settings = settings;
                    }
                }
                self.said.push_back(WorkerEvent::Set { change });
            }
            WorkerCommand::Forget { function, topics } => {
                self.states.retain(|key, _| key.0 != function || !(topics.is_empty() || topics.contains(&key.1)));
            }
            WorkerCommand::Run { number, job } => {
                self.given.insert((job.id.function.0, job.message.shared_state_topic()));
                self.accept(number, job);
            }
            WorkerCommand::State { job, entries } => self.resume(job, entries.into_iter().collect()),
            WorkerCommand::Start | WorkerCommand::Kill => {}
        }
        true
    }

    /// The next thing that the worker says.
    pub fn say(&mut self) -> Option<WorkerEvent> {
        self.said.pop_front()
    }

    /// Jobs that were given to the process and not answered.
    pub fn jobs(&self) -> usize {
        let runs = self.commands.iter().filter(|it| matches!(it, WorkerCommand::Run { .. }));
        runs.count() + self.waiting.values().map(VecDeque::len).sum::<usize>()
    }

    /// The job that runs with the next command, if there is one.
    pub fn next_job(&self) -> Option<&Job> {
        match self.commands.front() {
            Some(WorkerCommand::Run { job, .. }) => Some(job),
            _ => None,
        }
    }

    fn accept(&mut self, number: JobNo, job: Job) {
        if job.scope == StateScope::None {
            self.run(number, &job, State::new());
            return;
        }
        let key = key(&job);
        if let Some(queue) = self.waiting.get_mut(&key) {
            queue.push_back((number, job));
        } else if let Some(state) = self.states.remove(&key) {
            let state = self.run(number, &job, state);
            self.states.insert(key, state);
        } else {
            self.said.push_back(WorkerEvent::NeedState { job: number });
            self.asked.insert(number, key.clone());
            self.waiting.insert(key, VecDeque::from([(number, job)]));
        }
    }

    fn resume(&mut self, job: JobNo, mut state: State) {
        let Some(key) = self.asked.remove(&job) else { return };
        for (number, job) in self.waiting.remove(&key).into_iter().flatten() {
            state = self.run(number, &job, state);
        }
        self.states.insert(key, state);
    }

    fn run(&mut self, number: JobNo, job: &Job, mut state: State) -> State {
        let key = key(job);
        if job.resumes {
            self.held.remove(&key);
        } else if self.held.contains(&key) {
            self.said.push_back(WorkerEvent::Held { job: number });
            return state;
        }
        let script = self.versions.get(&(job.id.function.0, job.edition));
        let (verdict, writes) = match script {
            None => (failed(FailureCode::Trap, "the function could not be loaded"), Vec::new()),
            Some(script) => {
                self.ran.push(script.ran(job));
                script.run(job, &state)
            }
        };
        let runs_again = match &verdict {
            Verdict::Done(_) => false,
            Verdict::Retry { .. } => true,
            Verdict::Failed(failure) => job.on_trial && failure.code.is_misbehaviour(),
        };
        if runs_again {
            self.held.insert(key);
        }
        if matches!(&verdict, Verdict::Failed(failure) if failure.code.is_misbehaviour()) {
            self.guilty.insert((job.id.function.0, job.message.shared_state_topic()));
        }
        let before = size(&state);
        for StateWrite { key, value } in &writes {
            match value {
                Some(value) => drop(state.insert(key.clone(), value.clone())),
                None => drop(state.remove(key)),
            }
        }
        let usage = Usage { elapsed_us: self.run_time.as_micros() as u64, ..Usage::default() };
        let growth = StateGrowth::between(before, size(&state));
        let outcome = Outcome { verdict, writes, growth, usage, drawn: None };
        if std::mem::take(&mut self.answers_twice) {
            let (outcome, log) = (outcome.clone(), Vec::new());
            self.said.push_back(WorkerEvent::Done { job: number, outcome, log, log_lines_dropped: 0 });
        }
        self.said.push_back(WorkerEvent::Done { job: number, outcome, log: Vec::new(), log_lines_dropped: 0 });
        state
    }
}

/// Number of keys, and bytes.
fn size(state: &State) -> (usize, usize) {
    (state.len(), state.iter().map(|(key, value)| key.len() + value.len()).sum())
}

fn key(job: &Job) -> Key {
    let topic = (job.scope != StateScope::Function).then(|| job.message.shared_state_topic());
    (job.id.function.0, topic)
}

fn failed(code: FailureCode, detail: &str) -> Verdict {
    Verdict::Failed(Failure { code, detail: detail.to_owned() })
}

impl Script {
    fn parse(version: &Arc<Version>, settings: Arc<Settings>) -> Option<Self> {
        let text = version.script()?;
        let (topic, traps_at) = text.split_once(' ').unwrap_or((text, ""));
        if topic.is_empty() {
            return None;
        }
        let (topic, names_topics) = topic.strip_suffix('+').map_or((topic, false), |topic| (topic, true));
        let (topic, traps_at) = (topic.to_owned(), traps_at.to_owned());
        Some(Self { topic, traps_at, names_topics, version: Arc::clone(version), settings })
    }

    fn ran(&self, job: &Job) -> Ran {
        let all = &self.settings.all;
        let setting = all.iter().find(|(name, _)| name == "n").and_then(|(_, text)| text.parse().ok());
        let (function, payload) = (Arc::clone(&self.version.manifest.name), job.message.payload.clone());
        Ran { function, payload, setting: setting.unwrap_or(0) }
    }

    fn run(&self, job: &Job, state: &State) -> (Verdict, Vec<StateWrite>) {
        let message = &job.message;
        let letter = match made::is_topic(&message.topic) {
            true => 'W',
            false if schedule::is_topic(&message.topic) => 'Y',
            false => message.payload.first().map_or('-', |byte| char::from(*byte)),
        };
        if self.traps_at.contains(letter) {
            return (failed(FailureCode::Trap, "unreachable"), Vec::new());
        }
        let publication = |topic: &str| {
            let mut payload = message.payload.to_vec();
            if self.names_topics {
                payload.push(b' ');
                payload.extend_from_slice(message.state_topic().as_bytes());
            }
            if letter == 'b' {
                payload.resize(LARGE, b' ');
            }
            Publication { topic: topic.into(), payload: payload.into(), content_type: None, retain: false, sink: None }
        };
        let publish = |topic: &str| Output::Publish(publication(topic));
        let count = || {
            let before = state.get("n").map_or(0, |value| number(value));
            vec![StateWrite { key: "n".into(), value: Some((before + 1).to_string().into()) }]
        };
        let wake = |name: &str, after_ms| Output::Wake(Wake { name: name.into(), after_ms });
        if let Some(name) = message.topic.strip_prefix(wake::PREFIX) {
            return self.woken(job, name);
        }
        if message.topic.starts_with(silence::TOPIC) {
            return self.silent(job);
        }
        if let Some(name) = message.topic.strip_prefix(schedule::PREFIX) {
            return (self.scheduled(message, name), Vec::new());
        }
        let (outputs, writes) = match letter {
            'w' | 'v' => {
                let asked = str::from_utf8(&message.payload).ok().and_then(wakes::asked);
                let asked = asked.map(|(name, after_ms)| wake(&name, after_ms));
                ([publish(&self.topic)].into_iter().chain(asked).collect(), Vec::new())
            }
            'o' | 'b' => (vec![publish(&self.topic)], Vec::new()),
            '#' => (vec![publish("derived/#")], Vec::new()),
            'e' => (vec![publish("elsewhere")], Vec::new()),
            'R' => (vec![publish(&self.topic), reply(&message.payload)], Vec::new()),
            'c' => (vec![publish(&self.topic)], count()),
            'S' => (vec![publish(&self.topic)], swell(&message.payload, state)),
            'E' => (vec![publish("elsewhere")], count()),
            'f' => (vec![Output::Forward(publication("up"))], Vec::new()),
            'a' | 'A' => (vec![alert(&message.payload)], Vec::new()),
            'F' => {
                let sink = named_sink(&message.payload);
                (vec![Output::Forward(Publication { sink, ..publication("up") })], Vec::new())
            }
            'r' => return (failed(FailureCode::Rejected, "no"), Vec::new()),
            'x' => return (failed(FailureCode::Trap, "unreachable"), Vec::new()),
            't' if message.attempt > 1 => (vec![publish(&self.topic)], Vec::new()),
            't' | 'T' => return (Verdict::Retry { after_ms: 1000, reason: String::new() }, Vec::new()),
            _ => (Vec::new(), Vec::new()),
        };
        // As in the real worker, where a run that breaks a permission can still be undone.
        match self.version.permits.check(&outputs) {
            Ok(()) => (Verdict::Done(outputs), if job.scope == StateScope::None { Vec::new() } else { writes }),
            Err(failure) => (Verdict::Failed(failure), Vec::new()),
        }
    }
}

impl Script {
    /// The call about a silent topic, and about one that speaks again.
    fn silent(&self, job: &Job) -> (Verdict, Vec<StateWrite>) {
        let (message, about) = (&job.message, job.message.state_topic());
        let is_back = &*message.topic == silence::BACK;
        if about.ends_with('1') && message.attempt == 1 && !is_back {
            return (Verdict::Retry { after_ms: 1000, reason: String::new() }, Vec::new());
        }
        let payload = format!("{} {about}", if is_back { "B" } else { "S" }).into();
        let topic = self.topic.as_str().into();
        let published = Publication { topic, payload, content_type: None, retain: false, sink: None };
        (Verdict::Done(vec![Output::Publish(published)]), Vec::new())
    }

    /// The run of a wake.
    fn woken(&self, job: &Job, name: &str) -> (Verdict, Vec<StateWrite>) {
        if wakes::retries(name) && job.message.attempt == 1 {
            return (Verdict::Retry { after_ms: 1000, reason: String::new() }, Vec::new());
        }
        let payload = format!("W{name} {}", job.message.state_topic()).into();
        let topic = self.topic.as_str().into();
        let published = Publication { topic, payload, content_type: None, retain: false, sink: None };
        let chained = wakes::chained(name)
            .map(|(name, after_ms)| Output::Wake(Wake { name: name.into(), after_ms: Some(after_ms) }));
        (Verdict::Done([Output::Publish(published)].into_iter().chain(chained).collect()), Vec::new())
    }
}

impl Script {
    /// The run of a schedule.
    fn scheduled(&self, message: &Message, name: &str) -> Verdict {
        if schedules::retries(name) && message.attempt == 1 {
            return Verdict::Retry { after_ms: 1000, reason: String::new() };
        }
        if name == "bad" {
            return failed(FailureCode::Trap, "unreachable");
        }
        let due = message.property(schedule::DUE).unwrap_or_default();
        let payload = format!("Y{name}@{due} {}", message.topic).into();
        let topic = self.topic.as_str().into();
        Verdict::Done(vec![Output::Publish(Publication {
            topic,
            payload,
            content_type: None,
            retain: false,
            sink: None,
        })])
    }
}

/// Writes a value that is larger for some messages than for others, or removes it.
fn swell(payload: &[u8], state: &State) -> Vec<StateWrite> {
    let number: usize = str::from_utf8(&payload[1..]).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let value = match number % 5 {
        0 => state.get("swell").map(|_| None),
        size => Some(Some(vec![b' '; size * 300].into())),
    };
    value.into_iter().map(|value| StateWrite { key: "swell".into(), value }).collect()
}

fn reply(body: &[u8]) -> Output {
    let content_type = Some("text/plain".into());
    Output::Reply(Reply { status: 201, content_type, body: Bytes::copy_from_slice(body) })
}

fn alert(key: &[u8]) -> Output {
    Output::Alert(Alert {
        key: String::from_utf8_lossy(key).into_owned(),
        severity: Severity::Info,
        status: AlertStatus::Firing,
        summary: String::new(),
        value: None,
        labels: Vec::new(),
        sink: named_sink(key),
    })
}

/// What stands behind a `>`.
fn named_sink(payload: &[u8]) -> Option<Box<str>> {
    let (_, name) = str::from_utf8(payload).ok()?.split_once('>')?;
    Some(name.into())
}
