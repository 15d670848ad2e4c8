//! Forwarder between a store and two receivers that the test plays.

use super::*;
use crate::store::{Record, RecordId};

const BROKER: &str = "mqtts://example.org";
const WEBHOOK: &str = "https://example.org/in";

impl Forwarder {
    fn is_empty(&self) -> bool {
        self.lanes().all(|it| it.lane().is_empty())
    }
}

fn lane_to(name: &str, id: SinkId, has_connection: bool) -> SinkLane {
    SinkLane {
        id,
        name: name.into(),
        topic_prefix: "up/n/".into(),
        in_flight: if has_connection { 8 } else { 1 },
        answer_timeout: None,
        backoff_max: Duration::from_secs(60),
        patience: Some(Duration::from_secs(60)),
        has_connection,
    }
}

fn settings(sinks: Vec<SinkLane>) -> ForwardConfig {
    let home = sinks.first().map(|sink| sink.id);
    ForwardConfig { node: "n".into(), local_in_flight: 8, sinks, home, window_bytes: 512 << 10, seed: 1 }
}

fn forwarder(upstream: Option<&str>) -> (Forwarder, Arc<Metrics>) {
    let upstream = upstream.map(|url| lane_to("upstream", SinkId::UPSTREAM, url == BROKER));
    forwarder_to(upstream.into_iter().collect())
}

fn forwarder_to(sinks: Vec<SinkLane>) -> (Forwarder, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::default());
    let recovered = Recovered { store_id: "s".into(), ..Recovered::default() };
    (Forwarder::new(settings(sinks), &recovered, metrics.clone()), metrics)
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
        clock_synced: true,
        at_ms: 0,
        trace: None,
        is_folded: false,
    };
    StoredRecord { id: RecordId(id), record }
}

fn one_of_each() -> Vec<StoredRecord> {
    Stream::FIRST.into_iter().map(|stream| stored(stream, 1)).collect()
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
    forwarder.connected(Destination::UPSTREAM);
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
    assert_eq!(Stream::FIRST.map(|stream| metrics.forwarded[stream].get()), [1, 1, 1]);
    assert_eq!((metrics.broker.connected(), metrics.sink(SinkId::UPSTREAM).connected()), (Some(true), Some(true)));
}

#[test]
fn without_an_upstream_its_records_stay_in_the_store() {
    let now = Instant::now();
    let (mut forwarder, metrics) = forwarder(None);
    forwarder.connected(Destination::Local);
    forwarder.committed(one_of_each());
    assert_eq!(sent(&mut forwarder, now).len(), 1);
    assert_eq!(metrics.sink(SinkId::UPSTREAM).connected(), None);
}

#[test]
fn one_receiver_away_does_not_hold_up_the_other() {
    let now = Instant::now();
    let (mut forwarder, _) = forwarder(Some(BROKER));
    forwarder.connected(Destination::Local);
    forwarder.connected(Destination::UPSTREAM);
    forwarder.disconnected(Destination::UPSTREAM, now);
    forwarder.committed(one_of_each());
    let local = sent(&mut forwarder, now);
    assert_eq!(local.len(), 1);
    assert_eq!(local[0].0, Destination::Local);
}

#[test]
fn a_webhook_is_called_at_once_and_one_record_at_a_time() {
    let now = Instant::now();
    let (mut forwarder, metrics) = forwarder(Some(WEBHOOK));
    forwarder.committed((1..=2).map(|id| stored(Stream::DATA, id)).collect());
    let first = sent(&mut forwarder, now);
    assert_eq!(first.len(), 1);
    let again = Answer::Retry { reason: "connection refused".into(), after: None };
    forwarder.answered(Destination::UPSTREAM, first[0].1, again, now);
    assert_eq!(metrics.sink(SinkId::UPSTREAM).connected(), Some(false));
    assert_eq!(metrics.forward_errors(Destination::UPSTREAM).get(), 1);
    assert!(sent(&mut forwarder, now).is_empty());
    let later = forwarder.wake_at().unwrap();
    let again = sent(&mut forwarder, later);
    assert_eq!(again[0].2, "s-d-1", "a later record does not overtake");
    forwarder.answered(Destination::UPSTREAM, again[0].1, Answer::Accepted, now);
    assert_eq!(metrics.sink(SinkId::UPSTREAM).connected(), Some(true));
}

#[test]
fn a_webhook_never_overlaps_calls_and_mqtt_fills_its_window() {
    let now = Instant::now();
    for (url, in_flight) in [(WEBHOOK, 1), (BROKER, 8)] {
        let (mut forwarder, _) = forwarder(Some(url));
        forwarder.connected(Destination::UPSTREAM);
        forwarder.committed((1..=20).map(|id| stored(Stream::DATA, id)).collect());
        assert_eq!(sent(&mut forwarder, now).len(), in_flight, "{url}");
    }
}

#[test]
fn after_a_new_file_ids_are_of_the_new_file() {
    let now = Instant::now();
    let (mut forwarder, _) = forwarder(Some(BROKER));
    forwarder.connected(Destination::UPSTREAM);
    forwarder.committed(vec![stored(Stream::ALERT, 7)]);
    let old = sent(&mut forwarder, now);
    forwarder.reopened(&Recovered { store_id: "fresh".into(), ..Recovered::default() });
    forwarder.committed(vec![stored(Stream::ALERT, 1)]);
    let new = sent(&mut forwarder, now);
    assert_eq!(new[0].2, "fresh-a-1");
    forwarder.answered(Destination::UPSTREAM, old[0].1, Answer::Accepted, now);
    assert!(!forwarder.is_empty(), "an answer for the old file does not count");
    forwarder.answered(Destination::UPSTREAM, new[0].1, Answer::Accepted, now);
    assert!(forwarder.is_empty());
}

#[test]
fn each_sink_has_its_own_copy_and_one_that_is_away_does_not_hold_up_the_others() {
    let now = Instant::now();
    let [lake, stick] = [1, 2].map(|number| SinkId::new(number).unwrap());
    let sinks = [("upstream", SinkId::UPSTREAM), ("lake", lake), ("stick", stick)];
    let (mut forwarder, metrics) = forwarder_to(sinks.map(|(name, id)| lane_to(name, id, true)).into());
    let copies = sinks.map(|(_, id)| stored(Stream::data(id), 1));
    forwarder.committed(copies.into());
    forwarder.connected(Destination::Sink(stick));
    let first = sent(&mut forwarder, now);
    assert_eq!(
        first.iter().map(|(to, _, id)| (*to, &**id)).collect::<Vec<_>>(),
        [(Destination::Sink(stick), "s-d2-1")]
    );
    let again = Answer::Retry { reason: "busy".into(), after: None };
    forwarder.answered(Destination::Sink(stick), first[0].1, again, now);
    forwarder.connected(Destination::UPSTREAM);
    let second = sent(&mut forwarder, now);
    assert_eq!(second.iter().map(|(_, _, id)| &**id).collect::<Vec<_>>(), ["s-d-1"]);
    forwarder.answered(Destination::UPSTREAM, second[0].1, Answer::Accepted, now);
    let errors = |sink| metrics.forward_errors(Destination::Sink(sink)).get();
    assert_eq!((errors(lake), errors(stick)), (0, 1));
    let connected: Vec<_> = metrics.connected_sinks().collect();
    assert_eq!(connected, [("upstream", true), ("lake", false), ("stick", true)]);
    let text = metrics.render(crate::time::Now { monotonic: now, unix_ms: 0, synced: true });
    for line in [
        "sedge_forwarded_total{stream=\"data\",sink=\"upstream\"} 1",
        "sedge_forwarded_total{stream=\"data\",sink=\"lake\"} 0",
        "sedge_forward_errors_total{sink=\"stick\"} 1",
        "sedge_connected{peer=\"lake\"} 0",
    ] {
        assert!(text.contains(&format!("\n{line}\n")), "{line}:\n{text}");
    }
}

#[test]
fn gaps_go_to_the_sink_that_lost_records_and_those_of_the_local_broker_home() {
    let now = Instant::now();
    let lake = SinkId::new(1).unwrap();
    let (mut forwarder, _) =
        forwarder_to(vec![lane_to("upstream", SinkId::UPSTREAM, true), lane_to("lake", lake, true)]);
    forwarder.connected(Destination::UPSTREAM);
    forwarder.connected(Destination::Sink(lake));
    let gap = |stream| Gap {
        stream,
        reason: "full".into(),
        first_id: RecordId(1),
        last_id: RecordId(1),
        records: 1,
        bytes: 2,
        first_at_ms: 0,
        last_at_ms: 0,
    };
    forwarder.gaps(lake, vec![(GapId(1), gap(Stream::data(lake)))]);
    forwarder.gaps(SinkId::UPSTREAM, vec![(GapId(2), gap(Stream::LOCAL))]);
    let sent = sent(&mut forwarder, now);
    let ids: Vec<_> = sent.iter().map(|(to, _, id)| (*to, &**id)).collect();
    assert_eq!(ids, [(Destination::UPSTREAM, "s-g-l-1-1"), (Destination::Sink(lake), "s-g-d1-1-1")]);
    forwarder.answered(Destination::Sink(lake), sent[1].1, Answer::Accepted, now);
    let reported = std::iter::from_fn(|| forwarder.poll(now)).find_map(|action| match action {
        Action::Store(StoreRequest::GapsReported { sink, through }) => Some((sink, through)),
        _ => None,
    });
    assert_eq!(reported, Some((lake, GapId(1))));
}
