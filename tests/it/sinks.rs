//! Sinks with names, each with a copy of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::daemon::{Daemon, Setup};
use crate::harness::eventually;
use crate::harness::guest::guest;
use crate::harness::mosquitto::Mosquitto;
use crate::harness::upstream::Upstream;
use crate::harness::webhook::Webhook;
use crate::harness::wire::Publish;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn each_sink_gets_everything_and_one_that_is_away_holds_up_no_other() {
    let (broker, cloud) = (Mosquitto::start(), Mosquitto::start());
    let upstream = Upstream::collect(cloud.port);
    let is_there = Arc::new(AtomicBool::new(false));
    let there = Arc::clone(&is_there);
    let hook = Webhook::start(move |_, _| (!there.load(Ordering::Relaxed)).then_some(503));
    let setup = Setup::new(broker.url())
        .upstream(cloud.url())
        .set("sink.hook", "type = \"webhook\"")
        .set("sink.hook", format!("url = {:?}", hook.url))
        .set("sink.hook", "backoff_max_secs = 1")
        .set("sinks", "alerts = [\"upstream\", \"hook\"]")
        .set("sinks", "forwards = [\"hook\", \"upstream\"]")
        .function(&guest("count"));
    let mut daemon = Daemon::start(&setup);
    broker.await_daemon();
    broker.client("sensor").publish_all((1..=100).map(|n| Publish::new("count/a", n.to_string()))).unwrap();
    assert!(eventually(PATIENCE, || upstream.count() == 110), "{} of 110", upstream.count());
    let waiting = |daemon: &Daemon, sink: &str| daemon.metric_with("sedge_outbox_records", &format!("sink=\"{sink}\""));
    assert!(eventually(PATIENCE, || waiting(&daemon, "upstream") == 0.0), "{}", daemon.counters());
    assert_eq!(waiting(&daemon, "hook"), 110.0);
    let (_, ready) = daemon.get("/readyz").unwrap();
    assert!(ready.contains(r#""hook":"away""#) && ready.contains(r#""upstream":"connected""#), "{ready}");

    daemon.kill();
    is_there.store(true, Ordering::Relaxed);
    daemon.resume();
    assert!(eventually(PATIENCE, || hook.taken().len() == 110), "{} of 110", hook.taken().len());
    let forwards: Vec<_> =
        hook.taken().into_iter().filter(|call| call.header("ce-type") == Some("io.sedge.data")).collect();
    let payloads: Vec<String> = forwards.iter().map(|call| call.body.clone()).collect();
    assert_eq!(payloads, (1..=100).map(|n| format!("{n} {n}")).collect::<Vec<_>>());
    assert!(forwards.iter().all(|call| call.header("ce-id").is_some_and(|id| id.contains("-d1-"))));
    assert_eq!(upstream.count(), 110, "upstream had all of it before");
}
