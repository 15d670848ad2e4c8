use std::collections::HashMap;

use tokio::task::LocalSet;

use super::*;
use crate::message::Verdict;
use crate::sandbox::testing::{INCREMENT, LIMITS, NOTHING, OPEN, code, message};

fn settings(count: usize) -> Settings {
    Settings {
        isolate: Isolate::Thread,
        count,
        state_cache_bytes: 1 << 20,
        memory_bytes: 0,
        max_timeout: Duration::from_secs(60),
    }
}

fn loadable(number: u32, code: Bytes) -> Loadable {
    let permits =
        Permits { base_topic: "sedge".into(), publish: Vec::new(), grants: crate::sandbox::Grants::default() };
    Loadable {
        number,
        edition: 0,
        name: format!("f{number}").into(),
        limits: LIMITS,
        settings: Vec::new(),
        permits,
        code: code.into(),
    }
}

/// Counts its runs under `n`.
fn counter() -> Bytes {
    let count = "(call $open (i32.const 0) (i32.const 0) (i32.const 1000))
        (call $increment (i32.load (i32.const 1004)) (i32.const 900) (i32.const 1) (i64.const 1) (i32.const 1000))";
    code(&format!("{OPEN} {INCREMENT} (data (i32.const 900) \"n\")"), &format!("{count} {NOTHING}"))
}

fn job(id: u64, scope: JobScope, topic: &str) -> Job {
    Job { id, function: 0, edition: 0, scope, resumes: false, on_trial: false, message: message(topic, b"") }
}

fn check<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(120), test()).await.expect("it never comes to an end");
    });
}

/// Waits for events and takes all that are there.
async fn hear(pool: &mut Pool, into: &mut VecDeque<Event>) {
    pool.ready().await;
    while let Some(event) = pool.next_event() {
        // What is loaded without an error is of interest to one test alone.
        if !matches!(event, Event::Loaded { error: None, .. }) {
            into.push_back(event);
        }
    }
}

/// Takes events until `count` jobs are done. State that is asked for is nothing.
async fn done(pool: &mut Pool, count: usize) -> Vec<(u64, Outcome)> {
    let (mut done, mut events) = (Vec::new(), VecDeque::new());
    while done.len() < count {
        pool.flush();
        hear(pool, &mut events).await;
        for event in events.drain(..) {
            match event {
                Event::Done { token, outcome, .. } => done.push((token, outcome)),
                Event::NeedState { request, .. } => pool.provide_state(request, Vec::new()),
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
        let mut pool = Pool::start(settings(3), vec![loadable(0, counter())]).unwrap();
        for id in 0..3000 {
            let topic = id % 10;
            pool.submit(topic as usize % 3, job(id, JobScope::Topic, &format!("t{topic}")));
            if id % 100 == 0 {
                pool.flush();
            }
        }
        let mut last: HashMap<u64, u64> = HashMap::new();
        for (token, outcome) in done(&mut pool, 3000).await {
            let runs = last.entry(token % 10).or_default();
            assert_eq!(token / 10, *runs, "out of order");
            *runs += 1;
            assert_eq!(count(&outcome), *runs);
        }
    });
}

#[test]
fn jobs_gather_while_the_worker_has_not_answered() {
    check(|| async {
        let mut pool = Pool::start(settings(1), vec![loadable(0, counter())]).unwrap();
        let unsent = |pool: &Pool| pool.slots[0].running.as_ref().unwrap().out.borrow().len();
        let submit = |pool: &mut Pool, id, topic| {
            pool.submit(0, job(id, JobScope::Topic, topic));
            pool.flush();
        };
        submit(&mut pool, 0, "a");
        assert_eq!(done(&mut pool, 1).await.len(), 1);
        submit(&mut pool, 1, "b");
        assert_eq!(unsent(&pool), 0, "an idle worker gets it at once");
        submit(&mut pool, 2, "b");
        let one = unsent(&pool);
        assert!(one > 0);
        submit(&mut pool, 3, "b");
        assert_eq!(unsent(&pool), 2 * one);
        // The first one waits for its state meanwhile, which must not wait for an answer.
        assert_eq!(done(&mut pool, 3).await.len(), 3);
        for id in 4..4 + (GATHER_BYTES / one + 2) as u64 {
            submit(&mut pool, id, "b");
        }
        assert!(unsent(&pool) < GATHER_BYTES, "more than that is not held back");
    });
}

#[test]
fn a_reset_drops_what_was_under_way_and_all_state() {
    check(|| async {
        let mut pool = Pool::start(settings(1), vec![loadable(0, counter())]).unwrap();
        pool.submit(0, job(1, JobScope::Function, "a"));
        assert_eq!(count(&done(&mut pool, 1).await[0].1), 1);
        (2..100).for_each(|id| pool.submit(0, job(id, JobScope::Function, "a")));
        pool.flush();
        pool.reset();
        pool.submit(0, job(100, JobScope::Function, "a"));
        let after = done(&mut pool, 1).await;
        assert_eq!((after[0].0, count(&after[0].1)), (100, 1), "from a worker that knows nothing");
    });
}

#[test]
fn an_answer_to_an_earlier_life_is_ignored() {
    check(|| async {
        let mut pool = Pool::start(settings(1), vec![loadable(0, counter())]).unwrap();
        let mut events = VecDeque::new();
        pool.submit(0, job(1, JobScope::Function, "a"));
        pool.flush();
        while events.is_empty() {
            hear(&mut pool, &mut events).await;
        }
        let Some(Event::NeedState { request, scope }) = events.pop_front() else { panic!("{events:?}") };
        assert_eq!(scope, Scope { function: "f0".into(), topic: None });
        pool.reset();
        pool.submit(0, job(2, JobScope::Function, "a"));
        pool.provide_state(request, vec![("n".into(), Bytes::from_static(b"99"))]);
        let after = done(&mut pool, 1).await;
        assert_eq!((after[0].0, count(&after[0].1)), (2, 1));
    });
}

#[test]
fn a_function_that_cannot_be_loaded_is_told_and_its_jobs_are_answered() {
    check(|| async {
        let mut pool = Pool::start(settings(1), vec![loadable(0, Bytes::from_static(b"no code"))]).unwrap();
        let mut events = VecDeque::new();
        hear(&mut pool, &mut events).await;
        assert!(matches!(events.pop_front(), Some(Event::Loaded { function: 0, error: Some(_), .. })));
        pool.submit(0, job(1, JobScope::None, "a"));
        let done = done(&mut pool, 1).await;
        assert!(
            matches!(&done[0].1.verdict, Verdict::Failed(failure) if failure.detail.contains("could not be loaded"))
        );
    });
}

#[test]
fn more_code_than_a_socket_holds_is_passed_as_it_empties() {
    const FUNCTIONS: u32 = 600;
    check(|| async {
        let one = loadable(0, counter());
        let mut pool = Pool::start(settings(1), Vec::new()).unwrap();
        for number in 0..FUNCTIONS {
            pool.load(Loadable { number, ..one.clone() }, false);
        }
        let mut loaded = Vec::new();
        while loaded.len() < FUNCTIONS as usize {
            pool.flush();
            pool.ready().await;
            while let Some(event) = pool.next_event() {
                match event {
                    Event::Loaded { function, error: None, .. } => loaded.push(function),
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(loaded, (0..FUNCTIONS).collect::<Vec<_>>());
    });
}

/// The far end of a worker's socket, for playing a worker that was taken over.
async fn imposter(pool: &mut Pool) -> StdStream {
    let (near, far) = StdStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    pool.stop(0);
    let slot = &mut pool.slots[0];
    slot.life += 1;
    let (from_worker, to_worker) = UnixStream::from_std(near).unwrap().into_split();
    let stream = Rc::new(to_worker);
    let (out, wake_writer) = (Rc::default(), Rc::new(Notify::new()));
    slot.running = Some(Running {
        reader: tokio::task::spawn_local(read(from_worker, Rc::clone(&pool.queue), 0, slot.life)),
        writer: tokio::task::spawn_local(write(Rc::clone(&stream), Rc::clone(&out), Rc::clone(&wake_writer))),
        stream,
        out,
        wake_writer,
        codes: None,
        codes_waiting: VecDeque::new(),
        process: None,
    });
    far
}

#[test]
fn a_worker_that_lies_gains_nothing() {
    use std::io::Write as _;
    check(|| async {
        let mut pool = Pool::start(settings(1), vec![loadable(0, counter())]).unwrap();
        let mut far = imposter(&mut pool).await;
        pool.submit(0, job(7, JobScope::Function, "a"));
        let outcome =
            Outcome { verdict: Verdict::Done(Vec::new()), writes: Vec::new(), usage: crate::message::Usage::default() };
        let mut lies = Vec::new();
        // Outcomes of jobs that it was not given, and the same question over and over.
        for number in [1, 2, 99, u64::MAX] {
            Encoder::new(&mut lies).done(number, &outcome, &[], 0);
            Encoder::new(&mut lies).need_state(number);
            Encoder::new(&mut lies).held(number);
        }
        (0..1000).for_each(|_| Encoder::new(&mut lies).need_state(0));
        Encoder::new(&mut lies).done(0, &outcome, &[], 0);
        Encoder::new(&mut lies).done(0, &outcome, &[], 0);
        Encoder::new(&mut lies).need_state(0);
        far.write_all(&lies).unwrap();
        let (mut said, mut events) = (Vec::new(), VecDeque::new());
        while !said.contains(&"done") {
            hear(&mut pool, &mut events).await;
            said.extend(events.drain(..).map(|event| match event {
                Event::NeedState { .. } => "needs state",
                Event::Done { token: 7, .. } => "done",
                other => panic!("{other:?}"),
            }));
        }
        assert_eq!(said, ["needs state", "done"]);
        // Nonsense ends it, and its job runs elsewhere.
        pool.submit(0, job(8, JobScope::Function, "a"));
        far.write_all(&[0; 100]).unwrap();
        let mut died = false;
        loop {
            pool.flush();
            hear(&mut pool, &mut events).await;
            for event in events.drain(..) {
                match event {
                    Event::Died { status, .. } => {
                        assert!(status.contains("malformed"), "{status}");
                        died = true;
                    }
                    Event::NeedState { request, .. } => pool.provide_state(request, Vec::new()),
                    Event::Done { token, outcome, .. } => {
                        assert!(died && token == 8 && count(&outcome) == 1);
                        return;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    });
}

/// Once may be bad luck; a job over which its worker dies twice, alone, is at fault, and nobody else.
#[test]
fn the_job_at_fault_is_found() {
    check(|| async {
        let mut pool = Pool::start(settings(1), vec![loadable(0, counter())]).unwrap();
        let mut events = VecDeque::new();
        let mut crashed = Vec::new();
        let mut far = imposter(&mut pool).await;
        (1..=3).for_each(|id| pool.submit(0, job(id, JobScope::Function, "a")));
        pool.flush();
        // It dies with all three, then over the first alone, until that one is given up.
        let mut deaths = 0;
        while crashed.is_empty() {
            drop(far);
            while !events.iter().any(|event| matches!(event, Event::Died { .. })) {
                hear(&mut pool, &mut events).await;
            }
            deaths += 1;
            crashed.extend(events.drain(..).filter_map(|event| match event {
                Event::Crashed { token, .. } => Some(token),
                _ => None,
            }));
            if !crashed.is_empty() {
                break;
            }
            assert!(deaths < 10);
            // The replacement is an imposter too, with the suspect that it was given.
            let given = std::mem::take(&mut pool.slots[0].unfinished);
            far = imposter(&mut pool).await;
            pool.slots[0].unfinished = given;
            pool.slots[0].respawn_at = None;
            let suspects = pool.slots[0].unfinished.iter().flatten().count();
            assert!(suspects <= 1, "{suspects} at a time");
            if suspects == 0 {
                pool.slots[0].send_next();
            }
        }
        assert_eq!((crashed, deaths), (vec![1], 3));
        while pool.slots[0].running.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
            pool.tend();
        }
        let tokens: Vec<u64> = done(&mut pool, 2).await.into_iter().map(|(token, _)| token).collect();
        assert_eq!(tokens, [2, 3]);
    });
}

/// Answers to the one job that it is given, as a worker that was taken over; the job then runs in a replacement.
fn check_ended(answer: impl FnOnce(&mut Vec<u8>), reason: &'static str) {
    use std::io::Write as _;
    check(|| async move {
        let mut pool = Pool::start(settings(1), vec![loadable(0, counter())]).unwrap();
        let mut far = imposter(&mut pool).await;
        pool.submit(0, job(7, JobScope::Function, "a"));
        let mut said = Vec::new();
        answer(&mut said);
        far.write_all(&said).unwrap();
        let (mut died, mut events) = (None, VecDeque::new());
        loop {
            pool.flush();
            hear(&mut pool, &mut events).await;
            for event in events.drain(..) {
                match event {
                    Event::Died { status, .. } => died = Some(status),
                    Event::NeedState { request, .. } => pool.provide_state(request, Vec::new()),
                    Event::Done { token: 7, outcome, .. } => {
                        assert_eq!(died.as_deref(), Some(reason));
                        assert_eq!(count(&outcome), 1, "by a worker that works");
                        return;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    });
}

fn done_with(outputs: Vec<crate::message::Output>, writes: Vec<crate::message::StateWrite>, fuel: u64) -> Outcome {
    let usage = crate::message::Usage { fuel, ..Default::default() };
    Outcome { verdict: Verdict::Done(outputs), writes, usage }
}

#[test]
fn a_worker_that_answers_with_more_than_the_function_may_is_ended() {
    let publication = crate::message::Publication {
        topic: "a".into(),
        payload: Bytes::from(vec![0; 65_536]),
        content_type: None,
        retain: false,
    };
    let outputs = vec![crate::message::Output::Forward(publication)];
    let outcome = done_with(outputs, Vec::new(), 0);
    check_ended(
        |said| Encoder::new(said).done(0, &outcome, &[], 0),
        "answered with 65537 bytes of output, the limit is 65536",
    );
    let write = crate::message::StateWrite { key: "n".into(), value: Some(Bytes::from(vec![0; 65_536])) };
    let outcome = done_with(Vec::new(), vec![write], 0);
    check_ended(
        |said| Encoder::new(said).done(0, &outcome, &[], 0),
        "answered with 65537 bytes of state, the limit is 65536",
    );
    let outcome = done_with(Vec::new(), Vec::new(), u64::MAX);
    check_ended(
        |said| Encoder::new(said).done(0, &outcome, &[], 0),
        "answered with 18446744073709551615 units of fuel, the limit is 10000000",
    );
}

#[test]
fn a_worker_that_announces_an_endless_answer_is_ended_before_room_is_made() {
    let limit = bounds::frame_bytes([LIMITS].iter());
    assert!(limit < 4 << 20, "{limit}");
    let announced = u32::try_from(limit + 1).unwrap();
    let reason = format!("announced a frame of {announced} bytes, the limit is {limit}");
    check_ended(|said| said.extend_from_slice(&announced.to_le_bytes()), reason.leak());
}
