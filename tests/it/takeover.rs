//! A data folder and retained orders that the first release's program wrote (commit dbb8041), before it was killed with records in
//! its outbox, dead letters, a message that waits for a retry, and a function that was pushed.
//!
//! `files/dbb8041.tar.gz`: `data`, `functions`, the public key of the operator, and `retained.txt` with topics and payloads in hex.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::harness::daemon::{Daemon, Setup};
use crate::harness::eventually;
use crate::harness::mosquitto::Mosquitto;
use crate::harness::upstream::Upstream;
use crate::harness::wire::Publish;

const PATIENCE: Duration = Duration::from_secs(30);

fn unpack(folder: &Path) {
    let archive = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/it/files/dbb8041.tar.gz");
    let status = Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(folder).status().expect("run tar");
    assert!(status.success());
}

fn unhex(digits: &str) -> Vec<u8> {
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    assert!(rest.is_empty());
    let byte = |pair: &[u8; 2]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
    pairs.iter().map(byte).collect::<Option<_>>().expect("hexadecimal digits")
}

/// Payloads upstream of a topic's messages, in order.
fn texts(upstream: &Upstream, topic: &str) -> Vec<String> {
    upstream.received().into_iter().filter(|it| it.topic.ends_with(topic)).map(|it| it.text()).collect()
}

#[test]
fn what_the_first_release_left_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    unpack(folder.path());
    let (broker, cloud) = (Mosquitto::start(), Mosquitto::start());
    let upstream = Upstream::collect(cloud.port);
    let said = Upstream::collect_filter(broker.port, "said", "said/#");
    let mut hand = broker.client("hand");
    for line in fs::read_to_string(folder.path().join("retained.txt")).unwrap().lines() {
        let (topic, payload) = line.split_once(' ').unwrap();
        hand.publish(Publish { retain: true, ..Publish::new(topic, unhex(payload)) }).unwrap();
    }
    let functions = ["count", "misbehave", "edition"].map(|name| folder.path().join("functions").join(name));
    let key = folder.path().join("ops.pub.pem");
    let setup = functions.iter().fold(Setup::new(broker.url()), |setup, dir| setup.function(dir));
    let setup = setup
        .upstream(cloud.url())
        .set("node", "groups = [\"pumps\"]")
        .set("deploy.keys.ops", format!("file = {key:?}"));
    let mut daemon = Daemon::prepare(&setup);
    let copied = Command::new("cp").arg("-a").arg(folder.path().join("data/.")).arg(daemon.data()).status().unwrap();
    assert!(copied.success());
    daemon.resume();
    broker.await_daemon();

    // The outbox, in its order. Two functions heard each message.
    let numbered = |letter, last| -> Vec<String> {
        (1..=last).flat_map(|n| std::iter::repeat_n(format!("{letter}{n} {n}"), 2)).collect()
    };
    let came = eventually(PATIENCE, || texts(&upstream, "/count/oven").len() >= 24);
    assert!(came, "{:?}; log:\n{}", upstream.received(), daemon.log());
    assert_eq!(texts(&upstream, "/count/oven"), numbered("r", 12));
    assert_eq!(texts(&upstream, "/count/door"), numbered("d", 5));
    let first = &upstream.received()[0];
    assert!(first.topic.ends_with("/alerts/count") && first.text().contains("count/oven/10"), "{first:?}");

    // State and versions go on.
    hand.publish(Publish::new("count/oven", "r13")).unwrap();
    assert!(eventually(PATIENCE, || texts(&upstream, "/count/oven").last().is_some_and(|it| it == "r13 13")));
    assert!(eventually(PATIENCE, || !said.received().is_empty()), "the pushed function does not serve");
    assert!(said.received().iter().all(|it| it.topic == "said/v2"), "{:?}", said.received());
    assert!(!daemon.log().contains("on trial"), "{}", daemon.log());

    // The message that waited runs again.
    assert!(eventually(PATIENCE, || texts(&upstream, "/retried") == ["5"]), "{}", daemon.log());

    // Dead letters are listed, and replayed where that helps.
    let listed = daemon.command(&["dead-letters", "list"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(listed.lines().filter(|line| line.contains("misbehave/a")).count(), 2, "{listed}");
    assert!(daemon.command(&["dead-letters", "replay", "--all"]).status.success());
    assert!(eventually(PATIENCE, || texts(&upstream, "/once") == ["again"]), "{}", daemon.log());
}
