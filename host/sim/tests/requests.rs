//! Requests over HTTP: one answer each, after the commit, and the same for a repeat.

use sedge_core::manifest::{Manifest, StateScope, Trial, TrialMode};
use sedge_core::request::Response;
use sedge_core::store::DeadLetterId;
use sedge_sim::rig::{Rig, manifest, with_requests};

fn functions() -> Vec<Manifest> {
    vec![with_requests(manifest("f", "t/#", StateScope::Topic))]
}

fn rig() -> Rig {
    let mut rig = Rig::new(functions());
    rig.settle();
    rig
}

fn statuses(rig: &Rig) -> Vec<(u64, u16)> {
    rig.responses.iter().map(|(id, response)| (*id, response.status)).collect()
}

fn last(rig: &Rig) -> &Response {
    &rig.responses.last().expect("an answer").1
}

#[test]
fn a_request_is_answered_after_its_commit() {
    let mut rig = rig();
    rig.request(1, "POST /f/1", "c1", &[]);
    rig.work_until(|rig| rig.loads() > 0);
    rig.answer();
    rig.work_until(|rig| rig.commits() > 0);
    assert_eq!(rig.responses, [], "its commit is not on disk");
    rig.settle();
    assert_eq!(rig.responses, [(1, Response::DONE)]);
    assert_eq!((rig.disk.payloads(), rig.disk.count("f", Some("$http/f/1"))), (vec!["c1"], 1));
}

#[test]
fn a_reply_is_the_answer() {
    let mut rig = rig();
    rig.request(1, "POST /f/1", "R1", &[]);
    rig.settle();
    assert_eq!(
        (last(&rig).status, last(&rig).content_type.as_deref(), &last(&rig).body[..]),
        (201, Some("text/plain"), &b"R1"[..])
    );
    // One to a message from the broker goes nowhere.
    rig.receive("t/1", "R2", 1, false);
    rig.settle();
    assert_eq!((rig.responses.len(), rig.disk.payloads()), (1, vec!["R1", "R2"]));
}

#[test]
fn what_a_function_makes_of_a_request_decides_the_status() {
    let mut rig = rig();
    for (id, (body, status)) in [("-", 204), ("r1", 422), ("x1", 500), ("t1", 202), ("e1", 500)].into_iter().enumerate()
    {
        rig.request(id as u64, &format!("POST /f/{id}"), body, &[]);
        rig.settle();
        assert_eq!(statuses(&rig).last(), Some(&(id as u64, status)), "{body}");
    }
    let letters: Vec<_> = rig.responses.iter().map(|(_, response)| response.dead_letter).collect();
    assert_eq!(letters, [None, Some(DeadLetterId(1)), Some(DeadLetterId(2)), None, Some(DeadLetterId(3))]);
    assert_eq!(&rig.responses[1].1.body[..], b"no\n", "the reason alone");
    assert!(rig.responses[2].1.body.starts_with(b"trap: unreachable"));
    // What was parked runs later, and is answered no more.
    rig.pass(10);
    rig.settle();
    assert_eq!((rig.responses.len(), rig.disk.payloads()), (5, vec!["t1"]));
}

#[test]
fn a_path_that_no_function_takes_is_told_apart_from_another_method() {
    let mut rig = rig();
    rig.request(1, "POST /nobody", "o1", &[]);
    rig.request(2, "GET /f/1", "o2", &[]);
    rig.request(3, "POST /f/1/2", "o3", &[]);
    rig.perform();
    assert_eq!(statuses(&rig), [(1, 404), (2, 405), (3, 404)]);
    assert_eq!(rig.responses[1].1.allow.as_deref(), Some("POST"));
}

#[test]
fn a_repeat_under_its_id_takes_no_effect_and_has_the_first_answer() {
    let key = [("idempotency-key", "a")];
    let mut rig = rig();
    rig.request(1, "POST /f/1", "R1", &key);
    rig.request(2, "POST /f/1", "R1", &key);
    rig.perform();
    assert_eq!(rig.responses, [], "the second waits for the first");
    rig.settle();
    rig.request(3, "POST /f/1", "R1", &key);
    rig.settle();
    assert_eq!(statuses(&rig), [(1, 201), (2, 201), (3, 201)]);
    assert_eq!(rig.responses[0].1, rig.responses[2].1);
    assert_eq!(rig.disk.payloads(), ["R1"]);
    // The same id for something else is another request.
    rig.request(4, "POST /f/1", "R4", &key);
    rig.settle();
    assert_eq!(rig.disk.payloads(), ["R1", "R4"]);
    // Also for the next process.
    let mut next = Rig::over(functions(), rig.disk);
    next.settle();
    next.request(1, "POST /f/1", "R1", &key);
    next.settle();
    assert_eq!(&last(&next).body[..], b"R1");
    assert_eq!(next.disk.payloads(), ["R1", "R4"]);
}

#[test]
fn a_repeat_of_what_failed_names_the_same_dead_letter() {
    let key = [("idempotency-key", "a")];
    let mut rig = rig();
    for id in 1..=2 {
        rig.request(id, "POST /f/1", "x1", &key);
        rig.settle();
    }
    assert_eq!(rig.responses[0].1, rig.responses[1].1);
    assert_eq!((last(&rig).status, last(&rig).dead_letter), (500, Some(DeadLetterId(1))));
    assert_eq!(rig.disk.reasons(), ["trap"]);
}

#[test]
fn what_is_turned_away_leaves_nothing_and_may_come_again() {
    let key = [("idempotency-key", "a")];
    let mut rig = rig();
    for id in 0..3 {
        rig.request(id, "POST /f/1", &format!("x{id}"), &[]);
        rig.settle();
    }
    assert_eq!(rig.paused_topics("f"), 1);
    rig.request(4, "POST /f/1", "R4", &key);
    rig.settle();
    assert_eq!((last(&rig).status, last(&rig).retry_after_secs.is_some()), (503, true));
    rig.request(5, "POST /f/2", "o5", &[]);
    rig.settle();
    assert_eq!(last(&rig).status, 204, "another path");
    rig.pass(10);
    rig.request(6, "POST /f/1", "R4", &key);
    rig.settle();
    assert_eq!(last(&rig).status, 201);
    assert_eq!((rig.disk.reasons(), rig.disk.payloads()), (vec!["trap"; 3], vec!["o5", "R4"]));
}

#[test]
fn a_request_over_the_limits_of_messages_is_refused_without_a_dead_letter() {
    let mut rig = rig();
    rig.request(1, "POST /f/1", &"o".repeat(3000), &[]);
    rig.request(2, &format!("POST /f/{}", "x".repeat(1100)), "o1", &[]);
    rig.request(3, "POST /f/1", "o1", &[("idempotency-key", "")]);
    rig.request(4, "POST /f/1", "o1", &[("sedge-hops", "4")]);
    rig.settle();
    assert_eq!(statuses(&rig), [(1, 413), (2, 414), (3, 400), (4, 508)]);
    assert_eq!(rig.disk.reasons(), ["too-many-hops"]);
}

#[test]
fn a_message_that_waits_behind_a_retry_is_answered_as_stored() {
    let mut rig = rig();
    rig.request(1, "POST /f/1", "t1", &[]);
    rig.settle();
    rig.request(2, "POST /f/1", "c2", &[]);
    rig.settle();
    assert_eq!(statuses(&rig), [(1, 202), (2, 202)]);
    rig.pass(10);
    rig.settle();
    assert_eq!(rig.disk.payloads(), ["t1", "c2"], "in order");
}

#[test]
fn after_a_failed_trial_the_version_before_answers() {
    let mut rig = rig();
    let trial = Trial { mode: TrialMode::Live, ..Trial::default() };
    let edition = rig.deploy(functions().remove(0), "derived/y R", Some(trial));
    rig.until_ready(edition);
    rig.request(1, "POST /f/1", "R1", &[]);
    rig.settle();
    assert_eq!((last(&rig).status, rig.ran()), (201, vec![('x', "R1")]));
}

#[test]
fn a_shadow_answers_nothing() {
    let mut rig = rig();
    let trial = Trial { mode: TrialMode::Shadow, ..Trial::default() };
    let edition = rig.deploy(functions().remove(0), "derived/y Rx", Some(trial));
    rig.until_ready(edition);
    rig.request(1, "POST /f/1", "R1", &[]);
    rig.settle();
    assert_eq!((rig.responses.len(), last(&rig).status, rig.ran()), (1, 201, vec![('x', "R1")]));
}

#[test]
fn while_the_disk_fails_nobody_is_told_that_it_was_done() {
    let key = [("idempotency-key", "a")];
    let mut rig = rig();
    rig.request(1, "POST /f/1", "R1", &key);
    rig.work_until(|rig| rig.loads() > 0);
    rig.answer();
    rig.work_until(|rig| rig.commits() > 0);
    rig.fail_disk();
    rig.settle();
    assert_eq!(statuses(&rig), [(1, 503)]);
    assert_eq!(rig.disk.payloads(), Vec::<&str>::new());
    rig.request(2, "POST /f/1", "R1", &key);
    rig.settle();
    assert_eq!((last(&rig).status, rig.disk.payloads()), (201, vec!["R1"]));
}

#[test]
fn a_burst_beyond_the_window_is_told_to_come_again() {
    let mut rig = rig();
    for id in 0..30 {
        rig.request(id, "POST /f/1", &format!("o{id}"), &[]);
    }
    rig.settle();
    let turned_away = rig.responses.iter().filter(|(_, response)| response.status == 503).count();
    assert_eq!((rig.responses.len(), turned_away, rig.disk.payloads().len()), (30, 10, 20));
}
