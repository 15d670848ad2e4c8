//! Tests of the harness itself, with Mosquitto alone.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::harness::client::Client;
use crate::harness::daemon::NODE;
use crate::harness::ledger::Ledger;
use crate::harness::mosquitto::Mosquitto;
use crate::harness::upstream::Upstream;
use crate::harness::wire::{self, Hello, Packet, Publish};
use crate::harness::{eventually, process};

#[test]
fn packets_come_back_as_they_were_written() {
    let mut message = Publish::new("a/b", "x".repeat(300)).with_property("id", "1").with_property("id", "2");
    message.content_type = Some("text/plain".into());
    message.packet_id = 7;
    message.dup = true;
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    assert!(wire::decode(&bytes[..bytes.len() - 1]).unwrap().is_none(), "a part of a packet is no packet");
    let (packet, length) = wire::decode(&bytes).unwrap().unwrap();
    assert_eq!(length, bytes.len());
    assert!(matches!(packet, Packet::Publish(read) if read == message));
}

#[test]
fn a_collector_gets_all_that_is_published_in_order_across_a_restart() {
    let mut broker = Mosquitto::start();
    let collector = Upstream::collect_filter(broker.port, "collector", "t/#");
    let numbered = |range: std::ops::Range<u32>| range.map(|number| Publish::new("t/a", number.to_string()));
    broker.client("sensor").publish_all(numbered(0..5000)).unwrap();
    broker.restart();
    broker.client("sensor").publish_all(numbered(5000..6000)).unwrap();
    // Messages in flight when the broker stopped arrive twice.
    let missing = || {
        let received = collector.received();
        let arrived: BTreeSet<u32> = received.iter().map(|message| message.text().parse().unwrap()).collect();
        (0..6000).filter(|number| !arrived.contains(number)).collect::<Vec<u32>>()
    };
    assert!(eventually(Duration::from_secs(20), || missing().is_empty()), "{:?} are missing", missing());
}

#[test]
fn the_broker_keeps_a_session_over_a_stop() {
    let mut broker = Mosquitto::start();
    let hello = Hello::lasting("board");
    let mut board = Client::connect(broker.port, &hello).unwrap();
    board.subscribe(&["t/#"]).unwrap();
    drop(board);
    broker.client("sensor").publish(Publish::new("t/a", "kept")).unwrap();
    broker.restart();
    let mut board = Client::connect(broker.port, &hello).unwrap();
    assert!(board.session_present);
    assert_eq!(board.receive(Duration::from_secs(5)).unwrap().map(|message| message.text()), Some("kept".into()));
}

#[test]
fn what_proc_says_of_a_process_is_read() {
    let broker = Mosquitto::start();
    let own = std::process::id();
    assert!(process::children(own).iter().any(|(pid, arguments)| *pid == broker.pid() && arguments[1] == "-c"));
    assert!(process::workers(own).is_empty());
    assert!(process::pss_kb(broker.pid()) > 500, "{} kB", process::pss_kb(broker.pid()));
    let before = process::cpu_ns(broker.pid());
    broker.client("sensor").publish_all((0..2000).map(|_| Publish::new("t", "x"))).unwrap();
    assert!(process::cpu_ns(broker.pid()) > before);
}

fn record(topic: &str, sequence: u64, count: u64, id: &str) -> Publish {
    Publish::new(&format!("up/{NODE}/{topic}"), format!("{sequence} {count}")).with_property("id", id)
}

fn sent(count: usize) -> Ledger {
    let mut ledger = Ledger::default();
    ledger.batch(1, count);
    ledger
}

/// Violations that the checker reports for records of `count/s0`, given as sequence, count and id.
fn verdict(count: usize, records: &[(u64, u64, &str)]) -> Option<String> {
    let received: Vec<_> = records.iter().map(|(s, c, id)| record("count/s0", *s, *c, id)).collect();
    let caught = std::panic::catch_unwind(|| sent(count).check(&received));
    caught.err().map(|panic| panic.downcast_ref::<String>().cloned().unwrap_or_default())
}

#[test]
fn each_once_in_order_is_right_and_repeats_under_one_id_are_allowed() {
    assert_eq!(verdict(3, &[(1, 1, "a"), (2, 2, "b"), (3, 3, "c")]), None);
    assert_eq!(verdict(2, &[(1, 1, "a"), (2, 2, "b"), (1, 1, "a"), (2, 2, "b")]), None);
}

#[test]
fn what_is_lost_doubled_out_of_order_or_miscounted_is_found() {
    let says = |records: &[(u64, u64, &str)], what: &str| {
        let verdict = verdict(3, records).expect("the checker finds it");
        assert!(verdict.contains(what), "{verdict}");
    };
    says(&[(1, 1, "a"), (3, 3, "c")], "1 of 3 lost: 2");
    says(&[(1, 1, "a"), (2, 2, "b"), (2, 2, "x"), (3, 3, "c")], "1 in the outbox twice: 2");
    says(&[(2, 2, "b"), (1, 1, "a"), (3, 3, "c")], "2 came before 1");
    says(&[(1, 1, "a"), (2, 3, "b"), (3, 4, "c")], "the state counted 3 at message 2");
}
