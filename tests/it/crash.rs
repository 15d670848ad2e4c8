//! Processes are killed under load, and every message still takes effect exactly once.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::guest::{guest, variant};
use crate::harness::ledger::Ledger;
use crate::harness::traffic::Traffic;
use crate::harness::wire::Publish;
use crate::harness::{Site, eventually};

const BLOWS: usize = 20;

#[test]
fn nothing_is_lost_or_doubled_when_the_daemon_is_killed_20_times_under_load() {
    let mut site = Site::start();
    let traffic = Traffic::start(site.broker.port, 20);
    for blow in 0..BLOWS {
        // A different distance each time, so that kills hit different moments of a batch.
        site.progress(50 + blow * 37 % 200);
        site.daemon.kill();
        site.daemon.resume();
    }
    let ledger = traffic.stop();
    site.settle(&ledger);
    assert_eq!(site.daemon.metric("sedge_dead_letters_total"), 0.0);
}

#[test]
fn nothing_is_lost_or_doubled_when_a_worker_is_killed_20_times_under_load() {
    let site = Site::start();
    let traffic = Traffic::start(site.broker.port, 20);
    for blow in 0..BLOWS {
        site.progress(50 + blow * 37 % 200);
        let workers = site.daemon.workers();
        let victim = workers[blow % workers.len()];
        let pid = Pid::from_raw(victim.cast_signed()).expect("a worker is not process 0");
        kill_process(pid, Signal::KILL).unwrap();
        let replaced = eventually(Duration::from_secs(20), || {
            let now = site.daemon.workers();
            now.len() == workers.len() && !now.contains(&victim)
        });
        assert!(replaced, "worker {victim} of {workers:?} was not replaced: {:?}", site.daemon.workers());
        // A message during which the worker dies a second time would be considered the cause, and none of these is.
        let under_way = site.daemon.metric("sedge_messages_received_total");
        let done = eventually(Duration::from_secs(20), || {
            site.daemon.metric("sedge_messages_acknowledged_total") >= under_way
        });
        assert!(done, "the messages of the worker that died are not processed again");
    }
    let ledger = traffic.stop();
    site.settle(&ledger);
    assert_eq!(site.daemon.metric("sedge_worker_restarts_total"), BLOWS as f64);
    assert_eq!(site.daemon.metric("sedge_dead_letters_total"), 0.0, "none of the messages is to blame");
}

/// Minutes long: `cargo test --package sedge --test it many_starts -- --ignored`, with SEDGE_STARTS for another number.
#[test]
#[ignore = "takes minutes"]
fn a_function_with_much_memory_is_loaded_in_each_of_many_starts() {
    let starts: u32 = std::env::var("SEDGE_STARTS").map_or(2000, |text| text.parse().expect("a number"));
    let folder = tempfile::tempdir().unwrap();
    let large = variant(&guest("count"), folder.path(), "large", "large/#", |manifest| {
        manifest.replace("timeout_ms = 100", "timeout_ms = 100\nmemory_bytes = 16_777_216")
    });
    let site = Site::start_with(|setup| setup.function(&large).set("worker", "count = 1"));
    let mut sensor = site.broker.client("sensor");
    let recorded = || site.daemon.metric("sedge_messages_recorded_total");
    for start in 0..starts {
        let victim = site.daemon.workers()[0];
        let pid = Pid::from_raw(victim.cast_signed()).expect("a worker is not process 0");
        kill_process(pid, Signal::KILL).unwrap();
        let replaced = || site.daemon.workers().first().is_some_and(|now| *now != victim);
        assert!(eventually(Duration::from_secs(60), replaced), "start {start}: the worker is not replaced");
        let goal = recorded() + 1.0;
        sensor.publish(Publish::new("large/a", start.to_string())).unwrap();
        let done = eventually(Duration::from_secs(60), || recorded() >= goal);
        assert!(done, "start {start}: the function does not run; log:\n{}", site.daemon.log());
    }
    assert!(!site.daemon.log().contains("could not load"), "{}", site.daemon.log());
    assert_eq!(site.daemon.metric("sedge_dead_letters_total"), 0.0);
}

/// All messages waited 105 s for a worker that stood still, and the board said that it was ready.
#[test]
fn a_worker_that_stands_still_is_named_and_ended() {
    let site = Site::start();
    let traffic = Traffic::start(site.broker.port, 20);
    site.progress(50);
    let victim = site.daemon.workers()[0];
    kill_process(Pid::from_raw(victim.cast_signed()).expect("a worker is not process 0"), Signal::STOP).unwrap();
    let is_named = || site.daemon.get("/readyz").is_some_and(|(status, page)| status == 503 && page.contains("worker"));
    assert!(eventually(Duration::from_secs(20), is_named), "{:?}", site.daemon.get("/readyz"));
    let is_replaced = || !site.daemon.workers().contains(&victim) && !is_named();
    assert!(eventually(Duration::from_secs(20), is_replaced), "{:?}", site.daemon.get("/readyz"));
    site.settle(&traffic.stop());
}

/// The daemon ends over one message again and again; only that message is given up.
#[test]
fn a_message_over_which_the_daemon_aborts_becomes_a_dead_letter() {
    let folder = tempfile::tempdir().unwrap();
    let slow = variant(&guest("misbehave"), folder.path(), "slow", "slow/#", |manifest| {
        manifest.replace("fuel = 20_000_000", "fuel = 10_000_000_000")
    });
    let mut site = Site::start_with(|setup| setup.function(&slow));
    let abort = |site: &mut Site| {
        site.daemon.signal(Signal::ABORT);
        site.daemon.wait_end(Duration::from_secs(10));
        site.daemon.resume();
    };
    for _ in 0..3 {
        abort(&mut site);
    }
    let note = site.daemon.data().join("running.json");
    let is_alone = || std::fs::read_to_string(&note).is_ok_and(|note| !note.starts_with("{\"alone\":null"));
    let mut sensors = site.broker.client("sensors");
    sensors.publish(Publish::new("slow/a", "loop")).unwrap();
    for _ in 0..3 {
        assert!(eventually(Duration::from_secs(20), is_alone), "log:\n{}", site.daemon.log());
        abort(&mut site);
    }
    let letters = || site.daemon.metric_with("sedge_dead_letters_total", "reason=\"daemon-crashed\"");
    assert!(eventually(Duration::from_secs(20), || letters() == 1.0), "log:\n{}", site.daemon.log());
    let mut ledger = Ledger::default();
    sensors.publish_all(ledger.batch(5, 100)).unwrap();
    site.settle(&ledger);
    // Kills by a person are no reason for caution.
    for _ in 0..4 {
        site.daemon.kill();
        site.daemon.resume();
    }
    assert_eq!(site.daemon.log().matches("one at a time").count(), 4);
}

#[test]
fn a_killed_daemon_leaves_no_worker_behind() {
    let mut site = Site::start();
    let workers = site.daemon.workers();
    assert!(!workers.is_empty(), "functions run in processes of their own");
    site.daemon.kill();
    let alive = || workers.iter().filter(|pid| std::fs::exists(format!("/proc/{pid}/exe")).unwrap_or(false)).count();
    assert!(eventually(Duration::from_secs(10), || alive() == 0), "{} of {workers:?} are left", alive());
}
