use std::future::Future;
use std::io::Write as _;
use std::time::Duration;

use tokio::task::LocalSet;

use super::*;
use sedge_core::board::ids::UnitId;
use sedge_core::board::{FunctionNo, JobId, Weight};
use sedge_core::manifest::Manifest;
use sedge_core::message::{Digest, Outcome, Verdict};
use sedge_core::version::Version;
use sedge_sandbox::codes::ScriptEngines;
use sedge_sandbox::testing::{INCREMENT, LIMITS, NOTHING, OPEN, code, message};

const WORKER: WorkerNo = WorkerNo(0);
const LIFE: Life = Life(1);

fn processes() -> Processes {
    let config = ProcessConfig { isolate: Isolate::Thread, state_cache_bytes: 1 << 20, memory_bytes: 0 };
    let mut processes = Processes::new(config, 1, None);
    processes.apply(WORKER, LIFE, WorkerCommand::Start);
    processes
}

fn load(function: u32, code: Bytes) -> WorkerCommand {
    let toml = "name = \"f\"\nversion = \"1.0.0\"\nserial = 1\nsubscribe = [\"t/#\"]\n";
    let manifest = Manifest::from_toml(toml, std::path::Path::new("function.toml"), None).unwrap();
    let version = ScriptEngines::default().hold(Version::new(manifest, Digest([0; 32]), code, "sedge"));
    let version = Version { limits: LIMITS, ..version };
    WorkerCommand::Load(Load { function, version: version.into(), settings: Arc::default() })
}

/// Counts its runs under `n`.
fn counter() -> Bytes {
    let count = "(call $open (i32.const 0) (i32.const 0) (i32.const 1000))
        (call $increment (i32.load (i32.const 1004)) (i32.const 900) (i32.const 1) (i64.const 1) (i32.const 1000))";
    code(&format!("{OPEN} {INCREMENT} (data (i32.const 900) \"n\")"), &format!("{count} {NOTHING}"))
}

fn run(number: u64, scope: StateScope, topic: &str) -> WorkerCommand {
    let job = board::Job {
        id: JobId { unit: UnitId(0), function: FunctionNo(0) },
        edition: 0,
        scope,
        resumes: false,
        on_trial: false,
        keeps_draws: false,
        weight: Weight::default(),
        message: message(topic, b"").into(),
    };
    WorkerCommand::Run { number: JobNo(number), job }
}

fn check<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(120), test()).await.expect("it never comes to an end");
    });
}

/// Takes events until `count` jobs are done. State that is asked for is nothing.
async fn done(processes: &mut Processes, count: usize) -> Vec<(u64, Outcome)> {
    let mut done = Vec::new();
    while done.len() < count {
        processes.flush();
        processes.ready().await;
        while let Some((_, life, event)) = processes.next_event() {
            match event {
                WorkerEvent::Done { job, outcome, .. } => done.push((job.0, outcome)),
                WorkerEvent::NeedState { job } => {
                    processes.apply(WORKER, life, WorkerCommand::State { job, entries: Vec::new() });
                }
                WorkerEvent::Started | WorkerEvent::Loaded { error: None, .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
    done
}

fn count(outcome: &Outcome) -> u64 {
    let value = outcome.writes[0].value.as_ref().unwrap();
    str::from_utf8(value).unwrap().parse().unwrap()
}

#[test]
fn outcomes_of_a_key_come_in_the_order_of_its_jobs() {
    check(|| async {
        let mut processes = processes();
        processes.apply(WORKER, LIFE, load(0, counter()));
        for number in 0..3000 {
            processes.apply(WORKER, LIFE, run(number, StateScope::Topic, &format!("t{}", number % 10)));
            if number % 100 == 0 {
                processes.flush();
            }
        }
        let mut last = BTreeMap::<u64, u64>::new();
        for (number, outcome) in done(&mut processes, 3000).await {
            let runs = last.entry(number % 10).or_default();
            assert_eq!(number / 10, *runs, "out of order");
            *runs += 1;
            assert_eq!(count(&outcome), *runs);
        }
    });
}

#[test]
fn jobs_gather_while_the_worker_has_not_answered() {
    check(|| async {
        let mut processes = processes();
        processes.apply(WORKER, LIFE, load(0, counter()));
        let unsent = |processes: &Processes| processes.slots[0].running.as_ref().unwrap().out.borrow().len();
        let submit = |processes: &mut Processes, number, topic| {
            processes.apply(WORKER, LIFE, run(number, StateScope::Topic, topic));
            processes.flush();
        };
        submit(&mut processes, 0, "a");
        assert_eq!(done(&mut processes, 1).await.len(), 1);
        submit(&mut processes, 1, "b");
        assert_eq!(unsent(&processes), 0, "an idle worker gets it at once");
        submit(&mut processes, 2, "b");
        let one = unsent(&processes);
        assert!(one > 0);
        submit(&mut processes, 3, "b");
        assert_eq!(unsent(&processes), 2 * one);
        // The first waits for its state meanwhile, which must not wait for an answer.
        assert_eq!(done(&mut processes, 3).await.len(), 3);
        for number in 4..4 + (GATHER_BYTES / one + 2) as u64 {
            submit(&mut processes, number, "b");
        }
        assert!(unsent(&processes) < GATHER_BYTES, "more than that is not held back");
    });
}

#[test]
fn another_life_knows_nothing_and_is_not_sent_what_was_for_the_one_before() {
    check(|| async {
        let mut processes = processes();
        processes.apply(WORKER, LIFE, load(0, counter()));
        processes.apply(WORKER, LIFE, run(1, StateScope::Function, "a"));
        assert_eq!(count(&done(&mut processes, 1).await[0].1), 1);
        processes.apply(WORKER, LIFE, WorkerCommand::Kill);
        processes.apply(WORKER, Life(2), WorkerCommand::Start);
        processes.apply(WORKER, LIFE, run(2, StateScope::Function, "a"));
        processes.apply(WORKER, Life(2), load(0, counter()));
        processes.apply(WORKER, Life(2), run(3, StateScope::Function, "a"));
        let after = done(&mut processes, 1).await;
        assert_eq!((after[0].0, count(&after[0].1)), (3, 1));
    });
}

#[test]
fn a_function_that_cannot_be_loaded_is_reported_and_its_jobs_are_answered() {
    check(|| async {
        let mut processes = processes();
        processes.apply(WORKER, LIFE, load(0, Bytes::from_static(b"no code")));
        let mut error = None;
        while error.is_none() {
            processes.flush();
            processes.ready().await;
            if let Some((_, _, WorkerEvent::Loaded { error: said, .. })) = processes.next_event() {
                error = Some(said.expect("this is not code"));
            }
        }
        processes.apply(WORKER, LIFE, run(1, StateScope::None, "a"));
        let done = done(&mut processes, 1).await;
        assert!(
            matches!(&done[0].1.verdict, Verdict::Failed(failure) if failure.detail.contains("could not be loaded"))
        );
    });
}

#[test]
fn more_code_than_a_socket_holds_is_passed_as_it_empties() {
    const FUNCTIONS: u32 = 600;
    check(|| async {
        let mut processes = processes();
        let code = counter();
        (0..FUNCTIONS).for_each(|number| processes.apply(WORKER, LIFE, load(number, code.clone())));
        let mut loaded = Vec::new();
        while loaded.len() < FUNCTIONS as usize {
            processes.flush();
            processes.ready().await;
            while let Some((_, _, event)) = processes.next_event() {
                match event {
                    WorkerEvent::Loaded { function, error: None, .. } => loaded.push(function),
                    WorkerEvent::Started => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(loaded, (0..FUNCTIONS).collect::<Vec<_>>());
    });
}

/// What a worker that was captured sends, and the status under which it ends.
fn check_ended(sent: Vec<u8>, reason: &str) {
    check(|| async move {
        let mut processes = processes();
        processes.apply(WORKER, LIFE, load(0, counter()));
        let (near, mut far) = StdStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let (from_worker, _to_worker) = UnixStream::from_std(near).unwrap().into_split();
        tokio::task::spawn_local(read(from_worker, Rc::clone(&processes.inbox), WORKER, LIFE));
        far.write_all(&sent).unwrap();
        loop {
            processes.ready().await;
            if let Some((_, _, WorkerEvent::Ended { status })) = processes.next_event() {
                assert!(status.contains(reason), "{status}");
                return;
            }
        }
    });
}

#[test]
fn a_worker_that_announces_an_endless_answer_is_ended_before_room_is_made() {
    let limit = bounds::frame_bytes([LIMITS].iter());
    assert!(limit < 4 << 20, "{limit}");
    let announced = u32::try_from(limit + 1).unwrap();
    let reason = format!("announced a frame of {announced} bytes, the limit is {limit}");
    check_ended(announced.to_le_bytes().to_vec(), &reason);
}

#[test]
fn a_worker_that_sends_nonsense_is_ended() {
    check_ended(vec![0; 100], "malformed");
}

/// A worker may not write to files, so that nothing told why it died where the daemon logs to one.
#[test]
fn the_last_words_of_a_process_are_part_of_its_status() {
    let script = "printf 'memory allocation of 60040 bytes failed\\n\\033[2J' >&2; kill -ABRT $$";
    let process = Command::new("sh").args(["-c", script]).stderr(Stdio::piped()).spawn().unwrap();
    let status = last_words(process).unwrap();
    assert!(status.starts_with("signal: 6"), "{status}");
    assert!(status.ends_with(": memory allocation of 60040 bytes failed  [2J"), "{status}");
    let silent = Command::new("true").stderr(Stdio::piped()).spawn().unwrap();
    assert_eq!(last_words(silent).unwrap(), "exit status: 0");
}
