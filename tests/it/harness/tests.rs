//! The harness against Mosquitto alone: a checker that is not checked proves nothing.

use std::time::Duration;

use super::client::Client;
use super::eventually;
use super::mosquitto::Mosquitto;
use super::process;
use super::upstream::Upstream;
use super::wire::{self, Hello, Packet, Publish};

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
    assert!(eventually(Duration::from_secs(20), || collector.count() >= 6000), "{} arrived", collector.count());
    let mut texts: Vec<String> = collector.received().iter().map(Publish::text).collect();
    // What was under way when the broker stopped comes twice, one right behind the other batch.
    texts.sort_by_key(|text| text.parse::<u32>().unwrap());
    texts.dedup();
    assert_eq!(texts, (0..6000).map(|number: u32| number.to_string()).collect::<Vec<_>>());
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
