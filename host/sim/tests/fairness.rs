//! No function, and no sender, takes the workers or the window from the others.

use std::time::Duration;

use sedge_core::board::{Input, WorkerNo};
use sedge_core::manifest::{Manifest, StateScope};
use sedge_sim::rig::{Rig, manifest, with_requests};

const RUN: Duration = Duration::from_millis(40);

fn two() -> Vec<Manifest> {
    vec![manifest("hog", "h/#", StateScope::Topic), manifest("victim", "v/#", StateScope::Topic)]
}

/// A board whose workers take their time, and know it.
fn slow(manifests: Vec<Manifest>) -> Rig {
    let mut rig = Rig::new(manifests);
    rig.settle();
    rig.workers.iter_mut().for_each(|worker| worker.set_run_time(RUN));
    // The board learns what runs take.
    for id in 1..=40 {
        rig.receive(&format!("h/{}", id % 8), "o", id, false);
    }
    rig.settle();
    rig
}

/// Each worker runs one job, which takes time, and the store commits.
fn turn(rig: &mut Rig) {
    rig.now += RUN;
    for n in 0..rig.workers.len() {
        rig.workers[n].step();
        let life = rig.workers[n].life();
        while let Some(event) = rig.workers[n].say() {
            rig.handle(Input::Worker { worker: WorkerNo(n as u32), life, event });
        }
    }
    rig.handle(Input::Timeout);
    rig.perform();
    while !rig.requests.is_empty() {
        rig.answer();
        rig.perform();
    }
}

fn turns_until(rig: &mut Rig, payload: &str) -> usize {
    for turns in 1..1000 {
        turn(rig);
        if rig.disk.payloads().contains(&payload) {
            return turns;
        }
    }
    panic!("{payload} never runs");
}

/// A backlog of one function let the messages of all others wait until it was gone.
#[test]
fn a_busy_function_leaves_others_their_turn() {
    let mut rig = slow(two());
    for id in 100..200 {
        rig.receive(&format!("h/{}", id % 8), "o", id, false);
    }
    rig.receive("v/1", "o-victim", 200, false);
    rig.perform();
    let turns = turns_until(&mut rig, "o-victim");
    assert!(turns <= 10, "after {turns} jobs");
}

#[test]
fn the_figures_say_which_function_holds_memory() {
    let mut rig = slow(two());
    let held = |rig: &Rig| ["hog", "victim"].map(|function| rig.held_bytes(function));
    assert_eq!(held(&rig), [0, 0]);
    let payload = "o".repeat(900);
    for id in 100..400 {
        rig.receive(&format!("h/{}", id % 8), &payload, id, false);
    }
    rig.perform();
    // They wait in memory, then in the store. The count is of the last second.
    for turns in [26, 26] {
        (0..turns).for_each(|_| turn(&mut rig));
        let [hog, victim] = held(&rig);
        assert!(hog > 200 * 900 && victim == 0, "{hog} {victim}");
    }
    rig.settle();
    assert_eq!(held(&rig), [0, 0]);
}

/// Messages of one slow function held up the acknowledgements, and so the deliveries, of all.
#[test]
fn what_waits_for_longer_than_a_second_is_in_the_store_and_acknowledged() {
    let mut rig = slow(two());
    let before = rig.disk.payloads().len();
    rig.acknowledged.clear();
    for id in 100..200 {
        rig.receive("h/1", &format!("o{id}"), id, false);
    }
    rig.perform();
    while rig.acknowledged.len() < 100 {
        turn(&mut rig);
        let turns = (rig.now.elapsed(), rig.disk.parked.len());
        assert!(rig.disk.parked.len() <= 100, "{turns:?}");
    }
    // Within a second, and the time of what was with the worker.
    let ran = rig.disk.payloads().len() - before;
    assert!((20..40).contains(&ran), "{ran} have run");
    rig.settle();
    let expected: Vec<String> = (100..200).map(|id| format!("o{id}")).collect();
    assert_eq!(rig.disk.payloads()[before..], expected);
    assert_eq!(rig.disk.dead_letters, []);
}

/// A function that asks for a retry while others wait behind it keeps its place.
#[test]
fn a_retry_before_what_waits_too_long_keeps_its_place() {
    let mut rig = slow(two());
    let before = rig.disk.payloads().len();
    for id in 100..140 {
        let letter = if id == 101 || id == 126 { 't' } else { 'o' };
        rig.receive("h/1", &format!("{letter}{id}"), id, false);
    }
    rig.perform();
    for _ in 0..60 {
        turn(&mut rig);
    }
    rig.pass(2);
    rig.settle();
    rig.pass(2);
    rig.settle();
    let ran: Vec<u32> = rig.disk.payloads()[before..].iter().map(|it| it[1..].parse().unwrap()).collect();
    assert_eq!(ran, (100..140).collect::<Vec<u32>>());
}

/// Requests over HTTP that had waited for too long ran after later ones of their key, which were parked.
#[test]
fn requests_that_wait_too_long_keep_their_order_among_messages() {
    let mut rig = slow(vec![with_requests(manifest("hog", "h/#", StateScope::Function)), two().remove(1)]);
    let before = rig.disk.payloads().len();
    for id in 100..125 {
        match id {
            101..=108 => rig.request(id.into(), "POST /hog/1", &format!("o{id}"), &[]),
            _ => rig.receive("h/1", &format!("o{id}"), id, false),
        }
    }
    rig.perform();
    // Twice nothing moves for longer than a message may wait.
    for _ in 0..2 {
        rig.pass(2);
        rig.handle(Input::Timeout);
        rig.perform();
        (0..4).for_each(|_| turn(&mut rig));
    }
    rig.settle();
    let ran: Vec<u32> = rig.disk.payloads()[before..].iter().map(|it| it[1..].parse().unwrap()).collect();
    assert_eq!(ran, (100..125).collect::<Vec<u32>>());
    let parked = rig.responses.iter().filter(|(_, response)| response.status == 202).count();
    assert_eq!((rig.responses.len(), parked > 0), (8, true), "some were stored");
}

#[test]
fn one_function_fills_no_more_than_its_share_of_the_store() {
    let mut rig = slow(two());
    let payload = "o".repeat(900);
    for id in 100..1100 {
        rig.receive("h/1", &payload, id, false);
    }
    rig.perform();
    for _ in 0..40 {
        turn(&mut rig);
    }
    let reasons = rig.disk.reasons();
    assert!(reasons.len() > 600 && reasons.iter().all(|reason| *reason == "over-share"), "{}", reasons.len());
    let parked: usize = rig.disk.parked.values().map(|it| it.message.payload.len()).sum();
    assert!((150_000..=263_000).contains(&parked), "{parked} bytes");
    rig.receive("v/1", "o-victim", 2000, false);
    rig.perform();
    assert!(turns_until(&mut rig, "o-victim") <= 10);
}

/// A board with one function made dead letters of what a broker had kept for it during an outage.
#[test]
fn the_backlog_of_an_only_function_waits_at_the_broker_and_none_of_it_is_given_up() {
    let mut rig = slow(vec![manifest("hog", "h/#", StateScope::Topic)]);
    let before = rig.disk.payloads().len();
    let mut left = 100..1100_u16;
    let mut was_full = false;
    for _ in 0..10_000 {
        while !rig.board.is_full() {
            let Some(id) = left.next() else { break };
            rig.receive("h/1", &format!("o{id}{}", " ".repeat(900)), id, false);
        }
        was_full |= rig.board.is_full();
        let parked: usize = rig.disk.parked.values().map(|it| it.message.payload.len()).sum();
        assert!(parked <= 400_000, "{parked} bytes, the share is 262,144");
        rig.perform();
        turn(&mut rig);
        if left.is_empty() && rig.disk.parked.is_empty() && rig.disk.payloads().len() == before + 1000 {
            break;
        }
    }
    assert!(was_full, "the store filled up to the share");
    assert_eq!(rig.disk.dead_letters, []);
    let ran: Vec<u16> = rig.disk.payloads()[before..].iter().map(|it| it[1..].trim_end().parse().unwrap()).collect();
    assert_eq!(ran, (100..1100).collect::<Vec<u16>>());
}

#[test]
fn a_function_that_may_run_for_long_has_a_worker_of_its_own() {
    let with_timeout = |mut manifest: Manifest, ms: u32| {
        manifest.limits.timeout_ms = ms.try_into().unwrap();
        manifest
    };
    let mut rig = slow(two());
    assert_eq!(rig.workers.len(), 2);
    // While jobs are under way, and in the middle of a key.
    for id in 100..120 {
        rig.receive("h/1", &format!("o{id}"), id, false);
    }
    rig.perform();
    rig.deploy(with_timeout(two().remove(0), 500), "derived/x", None);
    for id in 120..140 {
        rig.receive("h/1", &format!("o{id}"), id, false);
    }
    rig.settle();
    assert_eq!(rig.workers.len(), 3);
    let ran = rig.disk.payloads();
    let ran: Vec<&str> = ran[ran.len() - 40..].to_vec();
    assert_eq!(ran, (100..140).map(|id| format!("o{id}")).collect::<Vec<_>>());
    // Others do not wait for it, however long it runs.
    rig.receive("h/1", "o-hog", 200, false);
    rig.receive("v/1", "o-victim", 201, false);
    rig.perform();
    while rig.disk.payloads().last() != Some(&"o-victim") {
        rig.perform();
        let mut any = !rig.requests.is_empty();
        for n in 0..2 {
            any |= rig.workers[n].step();
            let life = rig.workers[n].life();
            while let Some(event) = rig.workers[n].say() {
                rig.handle(Input::Worker { worker: WorkerNo(n as u32), life, event });
            }
        }
        rig.perform();
        rig.answer();
        assert!(any, "it waits for the other function");
    }
    assert!(!rig.disk.payloads().contains(&"o-hog"));
    rig.settle();
    // One that may run for more than a second holds up no acknowledgement either.
    let very_long = rig.deploy(with_timeout(two().remove(0), 2_000), "derived/x", None);
    rig.until_ready(very_long);
    rig.acknowledged.clear();
    rig.receive("h/1", "o-long", 300, false);
    rig.perform();
    rig.answer();
    rig.perform();
    assert_eq!((rig.acknowledged(), rig.disk.parked.len()), (vec![300], 1));
    rig.settle();
    assert_eq!(rig.disk.payloads().last(), Some(&"o-long"));
}

/// A slow machine, or one with a burst behind an outage, wrote messages down that it could as well have left at the broker, and made
/// dead letters of ordinary work.
#[test]
fn a_burst_for_functions_with_short_runs_waits_at_the_broker() {
    let mut rig = Rig::new(vec![manifest("a", "h/#", StateScope::Topic), manifest("b", "h/#", StateScope::Topic)]);
    rig.settle();
    rig.workers.iter_mut().for_each(|worker| worker.set_run_time(Duration::from_micros(20)));
    let mut left = 1..1500_u16;
    let payload = "o".repeat(900);
    for _ in 0..20_000 {
        while !rig.board.is_full() {
            let Some(id) = left.next() else { break };
            rig.receive(&format!("h/{}", id % 8), &payload, id, false);
        }
        rig.perform();
        // Much longer than the runs: others have the processor.
        turn(&mut rig);
        if left.is_empty() && rig.disk.payloads().len() == 2 * 1499 {
            break;
        }
    }
    assert_eq!(rig.disk.payloads().len(), 2 * 1499);
    assert_eq!((rig.disk.dead_letters.len(), rig.disk.parked.len()), (0, 0));
}
