use bytes::Bytes;

use super::*;
use crate::board::ids::UnitId;
use crate::manifest::Trial;
use crate::message::{Message, Output, Publication, StateGrowth, StateWrite, Usage, Verdict};

const WORKER: WorkerNo = WorkerNo(0);

/// One worker whose words are the test's.
struct Rig {
    workers: Workers,
    now: Instant,
}

fn version(edition: u32) -> Arc<Version> {
    let toml = "name = \"f\"\nversion = \"1.0.0\"\nserial = 1\nsubscribe = [\"t/#\"]\nstate = \"function\"\n";
    let manifest = Manifest::from_toml(toml, std::path::Path::new("function.toml"), None).unwrap();
    Version::scripted(edition, manifest, crate::message::Digest([0; 32]), "derived/x", None).into()
}

fn job(unit: u32) -> Job {
    Job {
        id: JobId { unit: UnitId(unit), function: FunctionNo(0) },
        edition: 1,
        scope: StateScope::Function,
        resumes: false,
        on_trial: false,
        keeps_draws: false,
        message: Arc::new(Message::new("t", Bytes::new(), 0, true)),
        weight: Weight { message: 100, answer: 1000 },
    }
}

fn done(job: u64) -> WorkerEvent {
    done_with(job, Vec::new(), Vec::new(), 0)
}

fn done_with(job: u64, outputs: Vec<Output>, writes: Vec<StateWrite>, fuel: u64) -> WorkerEvent {
    let usage = Usage { fuel, ..Usage::default() };
    let outcome =
        Outcome { verdict: Verdict::Done(outputs), writes, growth: StateGrowth::default(), usage, drawn: None };
    WorkerEvent::Done { job: JobNo(job), outcome, log: Vec::new(), log_lines_dropped: 0 }
}

impl Rig {
    fn new() -> Self {
        let now = Instant::now();
        let config = WorkerConfig { count: 1, one_each: false, max_waiting: 100 };
        let mut rig = Self { workers: Workers::new(config, now), now };
        rig.workers.load(FunctionNo(0), version(1), Settings::default());
        assert_eq!(rig.start(), ["start", "load"]);
        rig
    }

    /// Confirms that the process runs.
    fn start(&mut self) -> Vec<&'static str> {
        let mut commands = self.commands();
        self.say(WorkerEvent::Started);
        commands.extend(self.commands());
        commands
    }

    fn life(&self) -> Life {
        self.workers.slots[0].life
    }

    fn say(&mut self, event: WorkerEvent) {
        let life = self.life();
        self.workers.set_now(self.now);
        self.workers.handle(WORKER, life, event);
        self.workers.hand_out(usize::MAX, true);
    }

    fn commands(&mut self) -> Vec<&'static str> {
        let name = |(_, it): (WorkerNo, Command)| match it.command {
            WorkerCommand::Start => "start",
            WorkerCommand::Kill => "kill",
            WorkerCommand::Load(_) => "load",
            WorkerCommand::Unload { .. } => "unload",
            WorkerCommand::Set { .. } => "set",
            WorkerCommand::Run { .. } => "run",
            WorkerCommand::State { .. } => "state",
            WorkerCommand::Forget { .. } => "forget",
        };
        std::iter::from_fn(|| self.workers.poll()).map(name).collect()
    }

    fn events(&mut self) -> Vec<String> {
        let name = |event: Event| match event {
            Event::Done { id, .. } => format!("done {}", id.unit.0),
            Event::Held { id, .. } => format!("held {}", id.unit.0),
            Event::Crashed { id, .. } => format!("crashed {}", id.unit.0),
            Event::NeedState { id, .. } => format!("needs state {}", id.unit.0),
            Event::Loaded { edition, error, .. } => format!("loaded {edition} {}", error.unwrap_or_default()),
            Event::Set { function, change } => format!("set {function} {change}"),
            Event::Died { status, .. } => format!("died: {status}"),
            Event::Late { function, all, .. } => format!("late {} {all}", function.0),
            Event::Measured(_) => "measured".to_owned(),
        };
        std::iter::from_fn(|| self.workers.next_event()).map(name).collect()
    }

    fn timeout(&mut self) {
        self.workers.set_now(self.now);
        self.workers.handle_timeout();
    }

    fn die(&mut self) -> Vec<String> {
        self.say(WorkerEvent::Ended { status: "signal 9".into() });
        self.events()
    }
}

/// One death may be bad luck; a job over which the worker dies twice, alone, is at fault, and nobody else.
#[test]
fn the_job_at_fault_is_found() {
    let mut rig = Rig::new();
    (1..=3).for_each(|unit| rig.workers.submit(WORKER, job(unit), false));
    assert_eq!(rig.commands(), ["run"; 3]);
    assert_eq!(rig.die(), ["died: signal 9"]);
    assert_eq!(rig.start(), ["start", "load", "run"], "one at a time");
    assert_eq!(rig.die(), ["died: signal 9"]);
    rig.now += Duration::from_secs(1);
    rig.timeout();
    assert_eq!(rig.start(), ["start", "load", "run"]);
    assert_eq!(rig.die(), ["crashed 1", "died: signal 9"]);
    rig.now += Duration::from_secs(1);
    rig.timeout();
    assert_eq!(rig.start(), ["start", "load", "run"]);
    rig.say(done(0));
    assert_eq!(rig.events(), ["done 2"]);
    assert_eq!(rig.commands(), ["run"], "the last suspect");
}

#[test]
fn a_reset_ends_the_process_and_ignores_its_answers() {
    let mut rig = Rig::new();
    rig.workers.submit(WORKER, job(1), false);
    rig.say(WorkerEvent::NeedState { job: JobNo(0) });
    let Some(Event::NeedState { request, .. }) = rig.workers.next_event() else { panic!("it asked for state") };
    let before = rig.life();
    rig.workers.reset();
    assert_eq!(rig.start(), ["kill", "start", "load"]);
    rig.workers.provide_state(request, Vec::new());
    rig.workers.handle(WORKER, before, done(0));
    assert_eq!((rig.commands().len(), rig.events().len()), (0, 0));
    rig.workers.submit(WORKER, job(2), false);
    assert_eq!(rig.commands(), ["run"]);
}

#[track_caller]
fn check_ended(event: WorkerEvent, reason: &str) {
    let mut rig = Rig::new();
    rig.workers.submit(WORKER, job(7), false);
    rig.commands();
    rig.say(event);
    assert_eq!(rig.events(), [format!("died: {reason}")]);
    assert_eq!(rig.start(), ["kill", "start", "load", "run"], "its job runs in another process");
}

#[test]
fn a_captured_worker_gains_nothing() {
    for number in [1, 2, 99, u64::MAX] {
        check_ended(done(number), "an answer to no job");
        check_ended(WorkerEvent::Held { job: JobNo(number) }, "an answer to no job");
        check_ended(WorkerEvent::NeedState { job: JobNo(number) }, "a question for no job");
    }
    let mut rig = Rig::new();
    rig.workers.submit(WORKER, job(7), false);
    rig.say(done(0));
    rig.say(done(0));
    assert_eq!(rig.events(), ["done 7", "died: an answer to no job"]);
}

/// Anything that a worker said counted as a sign of life, so that a captured one could hold its jobs for ever.
#[test]
fn a_worker_that_only_chatters_is_ended() {
    let loaded = |edition| WorkerEvent::Loaded { function: 0, edition, error: None };
    check_ended(loaded(9), "an answer about a version that it was not given");
    let mut rig = Rig::new();
    rig.workers.submit(WORKER, job(7), false);
    rig.say(loaded(1));
    rig.say(loaded(1));
    assert_eq!(rig.events(), ["loaded 1 ", "died: an answer about a version that it was not given"]);

    let mut rig = Rig::new();
    rig.workers.submit(WORKER, job(7), false);
    rig.say(WorkerEvent::NeedState { job: JobNo(0) });
    rig.say(WorkerEvent::NeedState { job: JobNo(0) });
    assert_eq!(rig.events(), ["needs state 7", "died: a question that was answered before"]);

    // One that asks for state, gets it and asks again waits for nothing.
    let mut rig = Rig::new();
    rig.workers.submit(WORKER, job(7), false);
    rig.say(WorkerEvent::NeedState { job: JobNo(0) });
    let Some(Event::NeedState { request, .. }) = rig.workers.next_event() else { panic!("it asked for state") };
    rig.workers.provide_state(request, Vec::new());
    rig.say(WorkerEvent::NeedState { job: JobNo(0) });
    assert_eq!(rig.events(), ["died: a question that was answered before"]);
}

#[test]
fn a_worker_that_answers_all_but_its_oldest_job_is_ended() {
    let mut rig = Rig::new();
    let begun = rig.now;
    rig.workers.submit(WORKER, job(0), false);
    for number in 1..1000 {
        rig.now += Duration::from_secs(1);
        rig.timeout();
        rig.workers.submit(WORKER, job(number), false);
        rig.say(done(number.into()));
        if rig.commands().contains(&"kill") {
            assert_eq!(rig.now - begun, Duration::from_secs(60));
            return;
        }
    }
    panic!("it holds its job for ever");
}

#[test]
fn a_worker_that_answers_with_more_than_the_function_may_is_ended() {
    let payload = Bytes::from(vec![0; 65_536]);
    let publication =
        Publication { topic: "a".into(), payload: payload.clone(), content_type: None, retain: false, sink: None };
    check_ended(
        done_with(0, vec![Output::Forward(publication)], Vec::new(), 0),
        "answered with 65537 bytes of output, the limit is 65536",
    );
    let write = StateWrite { key: "n".into(), value: Some(payload) };
    check_ended(done_with(0, Vec::new(), vec![write], 0), "answered with 65537 bytes of state, the limit is 65536");
    check_ended(
        done_with(0, Vec::new(), Vec::new(), u64::MAX),
        "answered with 18446744073709551615 units of fuel, the limit is 10000000",
    );
}

#[test]
fn a_worker_that_does_not_answer_is_ended() {
    let mut rig = Rig::new();
    assert_eq!(rig.workers.poll_timeout(), None, "an idle worker owes nothing");
    rig.workers.submit(WORKER, job(1), false);
    let at = rig.workers.poll_timeout().unwrap();
    assert_eq!(at.duration_since(rig.now), Duration::from_secs(1), "health tells of it");
    rig.now = at;
    rig.timeout();
    let at = rig.workers.poll_timeout().unwrap();
    assert_eq!(at.duration_since(rig.now), Duration::from_secs(5), "ten times the deadline of what is loaded, and 5 s");
    rig.commands();
    assert_eq!(rig.workers.silent(at - Duration::from_secs(5)), None);
    assert!(rig.workers.silent(at - Duration::from_secs(4)).is_some());
    rig.now = at;
    rig.timeout();
    assert_eq!(rig.commands(), ["kill"]);
    // While it waits for its state it owes nothing either.
    let mut rig = Rig::new();
    rig.workers.submit(WORKER, job(1), false);
    rig.say(WorkerEvent::NeedState { job: JobNo(0) });
    assert_eq!(rig.workers.poll_timeout(), None);
}

/// The board told its workers the time only when one of them spoke, so that the first job after a quiet time was late at once.
#[test]
fn a_worker_that_was_idle_is_not_silent() {
    let mut rig = Rig::new();
    rig.now += Duration::from_secs(3600);
    rig.workers.set_now(rig.now);
    rig.workers.submit(WORKER, job(1), false);
    rig.timeout();
    assert_eq!(rig.commands(), ["run"]);
    assert_eq!(rig.workers.silent(rig.now), None);
}

#[test]
fn jobs_are_handed_out_while_their_answers_fit_and_one_always_is() {
    let mut rig = Rig::new();
    rig.workers.hand_out(2500, true);
    (1..=5).for_each(|unit| rig.workers.submit(WORKER, job(unit), false));
    assert_eq!((rig.commands().len(), rig.workers.handed_out_bytes()), (2, 2200));
    // What the first left takes the room of the next.
    let life = rig.life();
    rig.workers.handle(WORKER, life, done(0));
    rig.workers.hand_out(2000, true);
    assert_eq!(rig.commands().len(), 0);
    rig.workers.handle(WORKER, life, done(1));
    rig.workers.hand_out(0, false);
    assert_eq!(rig.commands().len(), 0, "a commit will make room");
    rig.workers.hand_out(0, true);
    assert_eq!(rig.commands().len(), 1, "nothing else makes room");
    rig.workers.hand_out(3300, true);
    assert_eq!(rig.commands().len(), 2);
    rig.die();
    assert_eq!(rig.workers.handed_out_bytes(), 0);
}

#[test]
fn a_worker_is_given_few_large_messages_at_a_time() {
    let mut rig = Rig::new();
    let large = |unit| Job { weight: Weight { message: 5 << 20, answer: 0 }, ..job(unit) };
    (1..=3).for_each(|unit| rig.workers.submit(WORKER, large(unit), false));
    assert_eq!(rig.commands(), ["run"]);
    rig.say(done(0));
    assert_eq!(rig.commands(), ["run"]);
}

#[test]
fn a_version_over_which_workers_die_is_given_up() {
    let mut rig = Rig::new();
    rig.say(WorkerEvent::Loaded { function: 0, edition: 1, error: None });
    let on_trial = Version { trial: Some(Trial::default()), ..Version::clone(&version(2)) };
    rig.workers.load(FunctionNo(0), on_trial.into(), Settings::default());
    assert_eq!(rig.events(), ["loaded 1 "]);
    assert_eq!(rig.die(), ["died: signal 9"]);
    assert_eq!(rig.start(), ["load", "start", "load", "load"]);
    assert_eq!(rig.die(), ["loaded 2 the worker died twice while it loaded this", "died: signal 9"]);
}

#[test]
fn a_worker_that_cannot_be_started_is_tried_again_ever_later() {
    let mut rig = Rig::new();
    rig.workers.submit(WORKER, job(1), false);
    rig.die();
    let mut pauses = Vec::new();
    for _ in 0..4 {
        rig.commands();
        rig.say(WorkerEvent::NotStarted { error: "no memory".into() });
        let at = rig.workers.poll_timeout().unwrap();
        pauses.push(at.duration_since(rig.now).as_millis());
        rig.now = at;
        rig.timeout();
    }
    assert_eq!(pauses, [100, 200, 400, 800]);
    assert_eq!(rig.start(), ["start", "load", "run"]);
}

/// Which settings a job has is decided by its place behind the command.
#[test]
fn new_settings_are_in_force_when_the_worker_says_so_and_never_told_twice() {
    let mut rig = Rig::new();
    let set = |rig: &mut Rig, change| rig.workers.set(&"f".into(), change, |_| Settings::default());
    rig.workers.submit(WORKER, job(1), false);
    set(&mut rig, 1);
    set(&mut rig, 2);
    rig.workers.submit(WORKER, job(2), false);
    assert_eq!(rig.commands(), ["run", "set", "set", "run"]);
    assert!(rig.events().is_empty() && rig.workers.is_setting());
    rig.say(done(0));
    assert_eq!(rig.events(), ["done 1"]);
    rig.say(WorkerEvent::Set { change: 1 });
    assert_eq!(rig.events(), ["set f 1"]);
    rig.say(WorkerEvent::Set { change: 2 });
    assert_eq!(rig.events(), ["set f 2"]);
    assert!(!rig.workers.is_setting());
    rig.say(WorkerEvent::Set { change: 2 });
    assert_eq!(rig.commands(), ["kill", "start"], "it was captured");
}

#[test]
fn a_worker_that_dies_holds_up_no_change_of_settings_and_starts_with_the_newest() {
    let mut rig = Rig::new();
    rig.workers.submit(WORKER, job(1), false);
    let newest = Settings { all: vec![("n".into(), "1".into())], topics: Vec::new() };
    rig.workers.set(&"f".into(), 1, |_| newest.clone());
    rig.workers.set(&"other".into(), 2, |_| Settings::default());
    assert_eq!(rig.events(), ["set other 2"], "nobody runs it");
    rig.commands();
    assert_eq!(rig.die(), ["died: signal 9", "set f 1"]);
    rig.commands();
    rig.say(WorkerEvent::Started);
    let load = rig.workers.poll().map(|(_, it)| it.command);
    assert!(matches!(load, Some(WorkerCommand::Load(load)) if *load.settings == newest));
}
