//! Forwarder between a store and two receivers that the test plays.

use super::*;
use crate::store::{Record, RecordId};

const BROKER: &str = "mqtts://example.org";
const WEBHOOK: &str = "https://example.org/in";

impl Forwarder {
    fn is_empty(&self) -> bool {
        self.local.is_empty() && self.upstream.as_ref().is_none_or(Lane::is_empty)
    }
}

fn settings(upstream: Option<&str>) -> ForwardConfig {
    let upstream = upstream.map(|url| config::Upstream {
        in_flight: 8.try_into().unwrap(),
        backoff_max_secs: 60.try_into().unwrap(),
        give_up_secs: Some(60.try_into().unwrap()),
        ..config::Upstream::new(url.parse().unwrap(), "n")
    });
    ForwardConfig { node: "n".into(), local_in_flight: 8, upstream, window_bytes: 512 << 10, seed: 1 }
}

fn forwarder(upstream: Option<&str>) -> (Forwarder, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::default());
    let recovered = Recovered { store_id: "s".into(), ..Recovered::default() };
    (Forwarder::new(settings(upstream), &recovered, metrics.clone()), metrics)
}

fn stored(stream: Stream, id: u64) -> StoredRecord {
    let record = Record {
        stream,
        function: "f".into(),
        topic: "t".into(),
        payload: "{}".into(),
        content_type: None,
        retain: false,
        hops: 1,
        fan_out: 9,
        at_ms: 0,
    };
    StoredRecord { id: RecordId(id), record }
}

fn one_of_each() -> Vec<StoredRecord> {
    Stream::ALL.into_iter().map(|stream| stored(stream, 1)).collect()
}

/// What is sent now, by receiver and id.
fn sent(forwarder: &mut Forwarder, now: Instant) -> Vec<(Destination, PublishToken, String)> {
    let mut sent = Vec::new();
    while let Some(action) = forwarder.poll(now) {
        if let Action::Send { destination, token, envelope } = action {
            sent.push((destination, token, envelope.property("id").unwrap().to_owned()));
        }
    }
    sent
}

#[test]
fn each_stream_goes_to_its_receiver() {
    let now = Instant::now();
    let (mut forwarder, metrics) = forwarder(Some(BROKER));
    forwarder.committed(one_of_each());
    assert!(sent(&mut forwarder, now).is_empty(), "nobody is connected");
    forwarder.connected(Destination::Upstream);
    let upstream = sent(&mut forwarder, now);
    assert_eq!(upstream.iter().map(|(_, _, id)| &**id).collect::<Vec<_>>(), ["s-a-1", "s-d-1"]);
    forwarder.connected(Destination::Local);
    let local = sent(&mut forwarder, now);
    assert_eq!(local.iter().map(|(_, _, id)| &**id).collect::<Vec<_>>(), ["s-l-1"]);
    for (destination, token, _) in upstream.into_iter().chain(local) {
        assert!(!forwarder.is_empty());
        forwarder.answered(destination, token, Answer::Accepted, now);
    }
    assert!(forwarder.is_empty());
    assert_eq!(Stream::ALL.map(|stream| metrics.forwarded[stream].get()), [1, 1, 1]);
    assert_eq!((metrics.broker.connected(), metrics.upstream.connected()), (Some(true), Some(true)));
}

#[test]
fn without_an_upstream_its_records_stay_in_the_store() {
    let now = Instant::now();
    let (mut forwarder, metrics) = forwarder(None);
    forwarder.connected(Destination::Local);
    forwarder.committed(one_of_each());
    assert_eq!(sent(&mut forwarder, now).len(), 1);
    assert_eq!(metrics.upstream.connected(), None);
}

#[test]
fn one_receiver_away_does_not_hold_up_the_other() {
    let now = Instant::now();
    let (mut forwarder, _) = forwarder(Some(BROKER));
    forwarder.connected(Destination::Local);
    forwarder.connected(Destination::Upstream);
    forwarder.disconnected(Destination::Upstream, now);
    forwarder.committed(one_of_each());
    let local = sent(&mut forwarder, now);
    assert_eq!(local.len(), 1);
    assert_eq!(local[0].0, Destination::Local);
}

#[test]
fn a_webhook_is_called_at_once_and_one_record_at_a_time() {
    let now = Instant::now();
    let (mut forwarder, metrics) = forwarder(Some(WEBHOOK));
    forwarder.committed((1..=2).map(|id| stored(Stream::Data, id)).collect());
    let first = sent(&mut forwarder, now);
    assert_eq!(first.len(), 1);
    let again = Answer::Retry { reason: "connection refused".into(), after: None };
    forwarder.answered(Destination::Upstream, first[0].1, again, now);
    assert_eq!(metrics.upstream.connected(), Some(false));
    assert_eq!(metrics.forward_errors.get(), 1);
    assert!(sent(&mut forwarder, now).is_empty());
    let later = forwarder.wake_at().unwrap();
    let again = sent(&mut forwarder, later);
    assert_eq!(again[0].2, "s-d-1", "a later record does not overtake");
    forwarder.answered(Destination::Upstream, again[0].1, Answer::Accepted, now);
    assert_eq!(metrics.upstream.connected(), Some(true));
}

#[test]
fn a_webhook_never_overlaps_calls_and_mqtt_fills_its_window() {
    let now = Instant::now();
    for (url, in_flight) in [(WEBHOOK, 1), (BROKER, 8)] {
        let (mut forwarder, _) = forwarder(Some(url));
        forwarder.connected(Destination::Upstream);
        forwarder.committed((1..=20).map(|id| stored(Stream::Data, id)).collect());
        assert_eq!(sent(&mut forwarder, now).len(), in_flight, "{url}");
    }
}

#[test]
fn after_a_new_file_ids_are_of_the_new_file() {
    let now = Instant::now();
    let (mut forwarder, _) = forwarder(Some(BROKER));
    forwarder.connected(Destination::Upstream);
    forwarder.committed(vec![stored(Stream::Alert, 7)]);
    let old = sent(&mut forwarder, now);
    forwarder.reopened(&Recovered { store_id: "fresh".into(), ..Recovered::default() });
    forwarder.committed(vec![stored(Stream::Alert, 1)]);
    let new = sent(&mut forwarder, now);
    assert_eq!(new[0].2, "fresh-a-1");
    forwarder.answered(Destination::Upstream, old[0].1, Answer::Accepted, now);
    assert!(!forwarder.is_empty(), "an answer for the old file does not count");
    forwarder.answered(Destination::Upstream, new[0].1, Answer::Accepted, now);
    assert!(forwarder.is_empty());
}
