use std::io::ErrorKind;

use bytes::Bytes;

use super::*;
use sedge_core::isa::Class;
use sedge_core::limits::Limits;
use sedge_core::message::Output;
use sedge_core::settings::Settings;
use sedge_sandbox::testing::{INCREMENT, LIMITS, NOTHING, OPEN, SET, code, message};

/// A worker thread and the daemon's end of its socket.
struct Served {
    socket: UnixStream,
    input: BytesMut,
    worker: std::thread::JoinHandle<io::Result<()>>,
}

/// Function that publishes nothing and counts its runs under `n`.
fn counter() -> Bytes {
    let count = "(call $open (i32.const 0) (i32.const 0) (i32.const 1000))
        (call $increment (i32.load (i32.const 1004)) (i32.const 900) (i32.const 1) (i64.const 1) (i32.const 1000))";
    code(&format!("{OPEN} {INCREMENT} (data (i32.const 900) \"n\")"), &format!("{count} {NOTHING}"))
}

fn job(id: u64, function: u32, scope: JobScope, topic: &str) -> Job {
    Job {
        id,
        function,
        edition: 0,
        scope,
        resumes: false,
        on_trial: false,
        keeps_draws: false,
        message: message(topic, b"").into(),
    }
}

impl Served {
    fn new(state_cache_bytes: usize) -> Self {
        let (socket, far) = UnixStream::pair().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let worker = std::thread::spawn(move || Worker::new(far, None, Clock::start()?, state_cache_bytes).serve());
        Self { socket, input: BytesMut::new(), worker }
    }

    fn with(function: u32, limits: Limits, code: Bytes) -> Self {
        let mut served = Self::new(1 << 20);
        assert_eq!(served.load(function, limits, code), None);
        served
    }

    fn send(&mut self, frames: &[ToWorker]) {
        let mut out = Vec::new();
        frames.iter().for_each(|frame| Encoder::new(&mut out).encode_to_worker(frame));
        self.socket.write_all(&out).unwrap();
    }

    fn run(&mut self, jobs: impl IntoIterator<Item = Job>) {
        self.send(&jobs.into_iter().map(|job| ToWorker::Run(job.id, job)).collect::<Vec<_>>());
    }

    fn state(&mut self, job: u64, count: u64) {
        let entries = vec![("n".into(), Bytes::from(count.to_string()))];
        self.send(&[ToWorker::State { job, entries }]);
    }

    fn load(&mut self, function: u32, limits: Limits, code: Bytes) -> Option<String> {
        let permits = Permits::new(&sedge_core::manifest::Allow::default(), "sedge");
        let name = "function".into();
        self.send(&[ToWorker::Load { function, edition: 0, name, limits, settings: Box::default(), permits, code }]);
        match self.receive() {
            FromWorker::Loaded { function: loaded, error, .. } if loaded == function => error,
            other => panic!("{other:?}"),
        }
    }

    fn receive(&mut self) -> FromWorker {
        loop {
            if let Some(frame) = split_frame(&mut self.input).unwrap() {
                return FromWorker::decode(frame).unwrap();
            }
            assert!(read_some(&mut self.socket, &mut [0; 4096], &mut self.input).unwrap() > 0, "the worker is gone");
        }
    }

    /// Next answer in short: its kind, the job, and the counter that the run wrote.
    fn next_answer(&mut self) -> (&'static str, u64, u64) {
        match self.receive() {
            FromWorker::NeedState { job } => ("needs state", job, 0),
            FromWorker::Held { job } => ("held", job, 0),
            FromWorker::Done { job, outcome, .. } => {
                let written = outcome.writes.first().and_then(|write| write.value.as_ref());
                let count = written.map_or(0, |value| str::from_utf8(value).unwrap().parse().unwrap());
                let what = match outcome.verdict {
                    Verdict::Done(_) => "done",
                    Verdict::Retry { .. } => "retry",
                    Verdict::Failed(failure) => failure.code.as_str(),
                };
                (what, job, count)
            }
            other @ (FromWorker::Loaded { .. } | FromWorker::Set { .. }) => panic!("{other:?}"),
        }
    }

    fn end(self) -> io::Result<()> {
        drop(self.socket);
        self.worker.join().unwrap()
    }
}

#[test]
fn waiting_for_state_holds_up_its_scope_alone() {
    let mut served = Served::with(1, LIMITS, counter());
    served.run([
        job(1, 1, JobScope::Topic, "a"),
        job(2, 1, JobScope::Topic, "b"),
        job(3, 1, JobScope::Topic, "a"),
        job(4, 1, JobScope::None, "a"),
        job(5, 1, JobScope::Function, "a"),
    ]);
    assert_eq!(served.next_answer(), ("needs state", 1, 0));
    assert_eq!(served.next_answer(), ("needs state", 2, 0));
    assert_eq!(served.next_answer(), ("done", 4, 1), "a job without state does not wait");
    assert_eq!(served.next_answer(), ("needs state", 5, 0));
    served.state(2, 20);
    assert_eq!(served.next_answer(), ("done", 2, 21));
    served.run([job(6, 1, JobScope::Topic, "a"), job(7, 1, JobScope::Topic, "b")]);
    assert_eq!(served.next_answer(), ("done", 7, 22), "its state is in memory now");
    served.state(1, 10);
    assert_eq!(served.next_answer(), ("done", 1, 11));
    assert_eq!(served.next_answer(), ("done", 3, 12));
    assert_eq!(served.next_answer(), ("done", 6, 13));
    // State that no job asked for is ignored.
    served.state(1, 100);
    served.state(99, 100);
    served.run([job(8, 1, JobScope::Topic, "a")]);
    assert_eq!(served.next_answer(), ("done", 8, 14));
    served.end().unwrap();
}

#[test]
fn jobs_of_one_read_run_grouped_by_function() {
    let mut served = Served::with(1, LIMITS, counter());
    assert_eq!(served.load(2, LIMITS, counter()), None);
    let run = |id, function| ToWorker::Run(id, job(id, function, JobScope::None, "a"));
    let unload = ToWorker::Unload { function: 1, edition: 0 };
    served.send(&[run(1, 2), run(2, 1), run(3, 2), run(4, 1), unload, run(5, 2), run(6, 1)]);
    let answers: Vec<_> = (0..6).map(|_| served.next_answer()).map(|(what, job, _)| (what, job)).collect();
    let before = [("done", 2), ("done", 4), ("done", 1), ("done", 3)];
    assert_eq!(answers[..4], before, "jobs sent after `unload` wait");
    assert_eq!(answers[4..], [("trap", 6), ("done", 5)], "function 1 is unloaded");
    served.end().unwrap();
}

#[test]
fn a_job_of_an_unloaded_function_fails() {
    let mut served = Served::with(1, LIMITS, counter());
    served.send(&[ToWorker::Unload { function: 1, edition: 0 }]);
    served.run([job(3, 1, JobScope::None, "b")]);
    assert_eq!(served.next_answer(), ("trap", 3, 0));
    served.end().unwrap();
}

#[test]
fn a_small_cache_asks_more_often_and_loses_nothing() {
    let mut served = Served::new(10_000);
    assert_eq!(served.load(1, LIMITS, counter()), None);
    let mut stored = [0; 100];
    let mut asked = 0;
    for round in 0..3 {
        for topic in 0..100 {
            let id = round * 100 + topic;
            served.run([job(id, 1, JobScope::Topic, &format!("t{topic}"))]);
            let mut answer = served.next_answer();
            if answer.0 == "needs state" {
                asked += 1;
                served.state(id, stored[topic as usize]);
                answer = served.next_answer();
            }
            assert_eq!((answer.0, answer.1), ("done", id));
            stored[topic as usize] = answer.2;
        }
    }
    assert_eq!(stored, [3; 100]);
    assert!(asked > 150, "{asked}: the cache holds more than it may");
    served.end().unwrap();
}

/// Jobs of a key that were already sent do not overtake one that runs again.
#[test]
fn after_a_retry_its_key_is_held() {
    let code = code(
        "",
        &format!(
            "(if (local.get $payload-len) (then
                (i32.store (i32.const 16) (i32.const 1)) (i32.store (i32.const 24) (i32.const 1)))) {NOTHING}"
        ),
    );
    for scope in [JobScope::None, JobScope::Topic, JobScope::Function] {
        let mut served = Served::with(1, LIMITS, code.clone());
        let wants_retry = |id| Job { message: message("a", b"r").into(), ..job(id, 1, scope, "a") };
        served.run([wants_retry(1), job(2, 1, scope, "a"), job(3, 1, scope, "b"), wants_retry(4)]);
        let mut answers = Vec::new();
        while answers.len() < 4 {
            match served.next_answer() {
                ("needs state", id, _) => served.state(id, 0),
                other => answers.push((other.1, other.0)),
            }
        }
        answers.sort_unstable();
        let other_topic = if scope == JobScope::Function { "held" } else { "done" };
        assert_eq!(answers, [(1, "retry"), (2, "held"), (3, other_topic), (4, "held")], "{scope:?}");
        // Only the job that resumes the key ends the hold, and it may ask for a third run.
        served.run([job(5, 1, scope, "a"), Job { resumes: true, ..wants_retry(6) }, job(7, 1, scope, "a")]);
        assert_eq!((served.next_answer().0, served.next_answer().0, served.next_answer().0), ("held", "retry", "held"));
        served.run([Job { resumes: true, ..job(8, 1, scope, "a") }, job(9, 1, scope, "a"), job(10, 1, scope, "b")]);
        assert_eq!((served.next_answer().0, served.next_answer().0, served.next_answer().0), ("done", "done", "done"));
        served.end().unwrap();
    }
}

#[test]
fn a_function_that_failed_to_load_fails_its_message() {
    let mut served = Served::new(1 << 20);
    let error = served.load(1, LIMITS, Bytes::from_static(b"no code")).unwrap();
    assert!(error.contains("failed to load compiled code"), "{error}");
    served.run([job(1, 1, JobScope::None, "a"), job(2, 9, JobScope::Topic, "a")]);
    assert_eq!(served.next_answer(), ("trap", 1, 0));
    assert_eq!(served.next_answer(), ("needs state", 2, 0));
    served.state(2, 0);
    assert_eq!(served.next_answer(), ("trap", 2, 0));
    served.end().unwrap();
}

#[test]
fn a_run_with_a_forbidden_output_writes_no_state() {
    // Counts, then publishes to the empty topic.
    let publishes = "(i32.store (i32.const 49152) (i32.const 2)) (i32.store (i32.const 24) (i32.const 49152))
        (i32.store (i32.const 28) (i32.load8_u (local.get $payload)))";
    let count = "(call $open (i32.const 0) (i32.const 0) (i32.const 1000))
        (call $increment (i32.load (i32.const 1004)) (i32.const 900) (i32.const 1) (i64.const 1) (i32.const 1000))";
    let code =
        code(&format!("{OPEN} {INCREMENT} (data (i32.const 900) \"n\")"), &format!("{count} {publishes} {NOTHING}"));
    let mut served = Served::with(1, LIMITS, code);
    let with = |id, payload: &[u8]| Job { message: message("a", payload).into(), ..job(id, 1, JobScope::Topic, "a") };
    served.run([with(1, &[0]), with(2, &[1]), with(3, &[0])]);
    assert_eq!(served.next_answer(), ("needs state", 1, 0));
    served.state(1, 10);
    assert_eq!(served.next_answer(), ("done", 1, 11));
    assert_eq!(served.next_answer(), ("invalid-topic", 2, 0));
    assert_eq!(served.next_answer(), ("done", 3, 12));
    served.end().unwrap();
}

#[test]
fn the_clock_stops_functions_of_every_class_in_each_batch() {
    let endless = || code("", "(loop $l (br $l)) (unreachable)");
    let limits = Limits { fuel: 1 << 60, timeout_ms: 30, ..LIMITS };
    let mut served = Served::with(1, limits, endless());
    let large = Limits { memory_bytes: Class::Large.memory_bytes(), ..limits };
    let component = sedge_sandbox::testing::component("", "(loop $l (br $l)) (unreachable)");
    let code = sedge_sandbox::compile::component(&component, Class::Large).unwrap();
    assert_eq!(served.load(2, large, code.into()), None);
    for (id, function) in [(1, 1), (2, 2), (3, 1)] {
        served.run([job(id, function, JobScope::None, "a")]);
        assert_eq!(served.next_answer(), ("deadline", id, 0));
    }
    served.end().unwrap();
}

#[test]
fn a_malformed_frame_ends_the_worker() {
    for bytes in [&[0, 0, 0, 0][..], &[255, 255, 255, 255], &[1, 0, 0, 0, 77], &[2, 0, 0, 0, 2, 1], &[2, 0, 0, 0, 5, 1]]
    {
        let mut served = Served::new(0);
        served.socket.write_all(bytes).unwrap();
        let ended = served.worker.join().unwrap();
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::InvalidData, "{bytes:?}");
    }
    // A frame that is cut off means that the daemon ended.
    let mut served = Served::new(0);
    served.socket.write_all(&[9, 0, 0, 0, 2]).unwrap();
    served.end().unwrap();
}

#[test]
fn many_jobs_at_once_are_answered_in_order() {
    let mut served = Served::with(1, LIMITS, counter());
    served.run((0..2000).map(|id| job(id, 1, JobScope::None, "a")));
    for id in 0..2000 {
        assert_eq!(served.next_answer(), ("done", id, 1));
    }
    served.end().unwrap();
}

#[test]
fn outcomes_carry_the_outputs_of_the_function() {
    let publish = "(i32.store (i32.const 49152) (i32.const 1))
        (i32.store (i32.const 49160) (local.get $topic)) (i32.store (i32.const 49164) (local.get $topic-len))
        (i32.store (i32.const 24) (i32.const 49152)) (i32.store (i32.const 28) (i32.const 1))";
    let mut served = Served::with(1, LIMITS, code("", &format!("{publish} {NOTHING}")));
    served.run([job(1, 1, JobScope::None, "a/b")]);
    let FromWorker::Done { outcome, .. } = served.receive() else { panic!("no outcome") };
    let Verdict::Done(outputs) = outcome.verdict else { panic!("{outcome:?}") };
    assert!(matches!(&outputs[..], [Output::Forward(it)] if &*it.topic == "a/b"), "{outputs:?}");
    assert!(outcome.usage.fuel > 0 && outcome.usage.memory_bytes == 128 << 10);
    served.end().unwrap();
}

/// Stores the setting `n` under the key `n`.
fn reader() -> Bytes {
    let setting = r#"(import "wasi:config/store@0.2.0-rc.1" "get" (func $setting (param i32 i32 i32)))"#;
    let read = "(call $setting (i32.const 900) (i32.const 1) (i32.const 2000))
        (call $open (i32.const 0) (i32.const 0) (i32.const 1000))
        (call $set (i32.load (i32.const 1004)) (i32.const 900) (i32.const 1) (i32.load (i32.const 2008)) (i32.load (i32.const 2012))
          (i32.const 1016))";
    code(&format!("{OPEN} {SET} {setting} (data (i32.const 900) \"n\")"), &format!("{read} {NOTHING}"))
}

#[test]
fn settings_change_between_two_jobs_and_by_the_topic() {
    let mut served = Served::new(1 << 20);
    let own = |number: u32| vec![("n".to_owned(), number.to_string())];
    let settings = |all, topics: &[(&str, u32)]| Settings {
        all: own(all),
        topics: topics.iter().map(|(filter, number)| (filter.parse().unwrap(), own(*number))).collect(),
    };
    let permits = Permits::new(&sedge_core::manifest::Allow::default(), "sedge");
    let load = |settings| ToWorker::Load {
        function: 1,
        edition: 0,
        name: "function".into(),
        limits: LIMITS,
        settings: Box::new(settings),
        permits: permits.clone(),
        code: reader(),
    };
    served.send(&[load(settings(1, &[]))]);
    assert!(matches!(served.receive(), FromWorker::Loaded { error: None, .. }));
    let run = |id, topic| ToWorker::Run(id, job(id, 1, JobScope::Topic, topic));
    // The first two wait for their state, so that they run behind the command: with the newer settings as a whole.
    served.send(&[run(1, "a"), run(2, "b")]);
    assert_eq!((served.next_answer(), served.next_answer()), (("needs state", 1, 0), ("needs state", 2, 0)));
    served.state(1, 0);
    assert_eq!(served.next_answer(), ("done", 1, 1));
    let change =
        ToWorker::Set { change: 7, settings: vec![(1, 0, settings(2, &[("b/+", 9)])), (1, 5, settings(3, &[]))] };
    served.send(&[run(3, "a"), change, run(4, "a")]);
    assert_eq!(served.next_answer(), ("done", 3, 0), "the state does not change");
    assert!(matches!(served.receive(), FromWorker::Set { change: 7 }));
    assert_eq!(served.next_answer(), ("done", 4, 2));
    served.state(2, 0);
    assert_eq!(served.next_answer(), ("done", 2, 2));
    served.run([job(5, 1, JobScope::Topic, "b/1")]);
    assert_eq!(served.next_answer(), ("needs state", 5, 0));
    served.state(5, 0);
    assert_eq!(served.next_answer(), ("done", 5, 9));
    served.end().unwrap();
}
