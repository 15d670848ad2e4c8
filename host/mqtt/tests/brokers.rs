//! Brokers that do less than the standard allows to hope for, played by a script.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says by panicking what is wrong")]

use std::collections::VecDeque;
use std::time::Duration;

use sedge_core::config::Connection;
use sedge_mqtt::{Event, Events, Link, Options};

#[path = "../../../tests/it/harness/fake.rs"]
#[allow(dead_code, reason = "the black-box tests use the rest")]
mod fake;
use fake::Fake;

/// Runs a client of the broker until `test` is done.
fn with_client<F: Future>(fake: &Fake, change: impl FnOnce(&mut Options), test: impl FnOnce(Link, Client) -> F) {
    let mut options = Options::brief(Connection::new(fake.url().parse().unwrap(), "client"));
    options.reconnect_max = Duration::from_secs(60);
    change(&mut options);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let (link, events, drive) = sedge_mqtt::connect(options).unwrap();
        tokio::task::spawn_local(drive);
        test(link, Client { events, queue: VecDeque::new() }).await;
    });
}

struct Client {
    events: Events,
    queue: VecDeque<Event>,
}

impl Client {
    async fn next(&mut self) -> Event {
        let patience = Duration::from_secs(30);
        if self.queue.is_empty() {
            let received = tokio::time::timeout(patience, self.events.receive(&mut self.queue)).await;
            received.expect("an event within 30 s");
        }
        self.queue.pop_front().unwrap()
    }

    /// Returns the limits of the broker.
    async fn connected(&mut self) -> Vec<String> {
        let event = self.next().await;
        let Event::Connected { limits, .. } = event else { panic!("{event:?}") };
        limits
    }

    /// Returns why.
    async fn disconnected(&mut self) -> String {
        let event = self.next().await;
        let Event::Disconnected { reason } = event else { panic!("{event:?}") };
        reason
    }
}

#[test]
fn a_subscription_that_is_refused_once_is_asked_for_again() {
    let refused = std::sync::atomic::AtomicUsize::new(0);
    let fake = Fake::start(move |packet| {
        let first = packet.kind() == 8 && refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
        Some(if first { packet.suback(0x87) } else { packet.welcome() })
    });
    with_client(
        &fake,
        |_| {},
        async |link, mut client| {
            client.connected().await;
            link.subscribe("t/#", Some(7));
            let Event::NotSubscribed { filter, reason } = client.next().await else { panic!("it was refused") };
            assert_eq!((&*filter, &*reason), ("t/#", "not authorized"));
            let Event::Subscribed { filter, is_lossy: false } = client.next().await else { panic!("it was granted") };
            assert_eq!(filter, "t/#");
        },
    );
    let asked = fake.seen(8);
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[0].body[2..], asked[1].body[2..], "the same subscription");
}

#[test]
fn a_subscription_that_is_granted_with_qos_0_is_reported_as_lossy() {
    let fake = Fake::start(|packet| Some(if packet.kind() == 8 { packet.suback(0) } else { packet.welcome() }));
    with_client(
        &fake,
        |_| {},
        async |link, mut client| {
            client.connected().await;
            link.watch("$SYS/broker/version");
            assert!(matches!(client.next().await, Event::Subscribed { is_lossy: false, .. }), "no more was asked for");
            link.subscribe("t/#", None);
            assert!(matches!(client.next().await, Event::Subscribed { is_lossy: true, .. }));
        },
    );
}

#[test]
fn pauses_grow_while_connections_end_soon_and_the_cause_is_supposed() {
    let fake = Fake::start(|packet| (packet.kind() == 1).then(|| packet.welcome()));
    let begin = std::time::Instant::now();
    with_client(
        &fake,
        |options| options.reconnect_max = Duration::from_secs(2),
        async |link, mut client| {
            for round in 1..=4 {
                client.connected().await;
                link.subscribe("t/#", None);
                let Event::Disconnected { reason } = client.next().await else { panic!("it was closed") };
                assert!(reason.starts_with("the broker closed the connection"), "{reason}");
                assert_eq!(reason.contains("is another client with the client_id \"client\" connected?"), round >= 3);
            }
        },
    );
    // Half of 500, 1,000 and 2,000 ms at least.
    assert!(begin.elapsed() >= Duration::from_millis(1750), "{:?}", begin.elapsed());
}

#[test]
fn a_client_that_was_thrown_out_says_by_whom() {
    let fake = Fake::start(|packet| {
        Some(match packet.kind() {
            // DISCONNECT, session taken over.
            8 => vec![0xe0, 2, 0x8e, 0],
            _ => packet.welcome(),
        })
    });
    with_client(
        &fake,
        |_| {},
        async |link, mut client| {
            client.connected().await;
            link.subscribe("t/#", None);
            let Event::Disconnected { reason } = client.next().await else { panic!("it was closed") };
            assert!(reason.ends_with("session taken over; another client with this client_id connected"), "{reason}");
        },
    );
}

#[test]
fn what_cannot_be_written_is_refused_and_the_connection_stands() {
    let fake = Fake::start(|packet| Some(packet.welcome()));
    with_client(
        &fake,
        |options| options.in_flight = 64,
        async |link, mut client| {
            client.connected().await;
            let (long, deep) = ("x".repeat(70_000), "/".repeat(201));
            let publications = [
                ("a\0b", None, "invalid-topic"),
                ("", None, "invalid-topic"),
                ("a/+", None, "invalid-topic"),
                (&*long, None, "invalid-topic"),
                (&*deep, None, "invalid-topic"),
                ("t", Some("a\0b"), "invalid-content-type"),
                ("t", Some(&*long), "invalid-content-type"),
            ];
            for (topic, content_type, expected) in publications {
                let token = sedge_core::message::PublishToken(1);
                let publication = sedge_mqtt::Publication {
                    topic,
                    payload: "1".into(),
                    content_type,
                    properties: &[],
                    retain: false,
                };
                link.publish(publication, token).unwrap();
                let Event::Published { result, .. } = client.next().await else { panic!("it was not refused") };
                assert_eq!(result, sedge_mqtt::PublishResult::Refused(expected));
            }
            let publication = sedge_mqtt::Publication {
                topic: "t",
                payload: "1".into(),
                content_type: None,
                properties: &[],
                retain: false,
            };
            link.publish(publication, sedge_core::message::PublishToken(2)).unwrap();
            let accepted = Event::Published {
                token: sedge_core::message::PublishToken(2),
                result: sedge_mqtt::PublishResult::Accepted,
            };
            assert_eq!(format!("{:?}", client.next().await), format!("{accepted:?}"));
        },
    );
}

/// The reason of the first failure to connect.
fn refusal(script: impl Fn(&fake::Packet) -> Option<Vec<u8>> + Send + Sync + 'static) -> String {
    let fake = Fake::start(script);
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    with_client(&fake, |_| {}, async |_, mut client| sender.send(client.disconnected().await).unwrap());
    receiver.recv().unwrap()
}

/// Protocol level of a CONNECT.
fn level(packet: &fake::Packet) -> u8 {
    packet.body[6]
}

#[test]
fn a_broker_of_an_older_version_is_named_at_the_first_attempt() {
    assert_eq!(refusal(|_| Some(vec![0x20, 2, 0, 1])), sedge_mqtt::NEEDS_MQTT_5);
    assert_eq!(refusal(|packet| (level(packet) == 4).then(|| vec![0x20, 2, 0, 0])), sedge_mqtt::NEEDS_MQTT_5);
    assert_eq!(refusal(|_| Some(vec![0x20, 3, 0, 0x84, 0])), sedge_mqtt::NEEDS_MQTT_5);
    let closed = refusal(|_| None);
    assert!(closed.contains("before it answered CONNECT") && closed.contains("mqtts://"), "{closed}");
}

#[test]
fn what_else_answers_on_the_port_is_said() {
    assert!(refusal(|_| Some(vec![0x15, 3, 3, 0, 2, 2, 70])).contains("write mqtts://"));
    assert!(refusal(|_| Some(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())).contains("web server"));
    let text = b"no such user";
    let refused = [&[0x20, 18, 0, 0x86, 15, 0x1f, 0, text.len() as u8][..], text].concat();
    assert_eq!(
        refusal(move |_| Some(refused.clone())),
        "the broker refused the connection: bad user name password (\"no such user\")"
    );
    // A client that begins with TLS is answered in plain text.
    let fake = Fake::start(|packet| Some(packet.welcome()));
    let change = |options: &mut Options| {
        options.connection.url = fake.url().replace("mqtt:", "mqtts:").parse().unwrap();
        options.connection.tls_pin_sha256 = Some(sedge_core::message::Digest([0; 32]));
    };
    with_client(&fake, change, async |_, mut client| {
        let reason = client.disconnected().await;
        assert!(reason.contains("the port is not for TLS"), "{reason}");
    });
}

#[test]
fn a_broker_that_does_less_is_used_as_far_as_it_goes() {
    let fake = Fake::start(|packet| {
        Some(match packet.kind() {
            // No retained messages, no QoS 1, no subscription identifiers, another client id.
            1 => vec![0x20, 14, 0, 0, 11, 0x24, 0, 0x25, 0, 0x29, 0, 0x12, 0, 2, b'm', b'e'],
            8 => packet.suback(0),
            _ => packet.welcome(),
        })
    });
    with_client(
        &fake,
        |_| {},
        async |link, mut client| {
            let limits = client.connected().await;
            for part in ["calls this client \"me\"", "no retained", "QoS 0", "subscription identifiers"] {
                assert!(limits.iter().any(|limit| limit.contains(part)), "{part}: {limits:?}");
            }
            link.subscribe("t/#", Some(7));
            assert!(matches!(client.next().await, Event::Subscribed { is_lossy: true, .. }));
            for n in 0..5 {
                let token = sedge_core::message::PublishToken(n);
                let publication = sedge_mqtt::Publication {
                    topic: "t",
                    payload: "1".into(),
                    content_type: None,
                    properties: &[],
                    retain: true,
                };
                link.publish(publication, token).unwrap();
                let event = client.next().await;
                let Event::Published { token: answered, result } = event else { panic!("{event:?}") };
                assert_eq!((answered, result), (token, sedge_mqtt::PublishResult::Accepted));
            }
        },
    );
    let subscribe = &fake.seen(8)[0];
    assert_eq!(subscribe.body[2], 0, "no identifier is sent");
    assert!(fake.seen(3).iter().all(|packet| packet.header == 0x30), "QoS 0, not retained");
}

#[test]
fn a_will_that_the_broker_does_not_take_is_sent_as_it_takes_it() {
    let fake = Fake::start(|packet| {
        Some(match (packet.kind(), packet.connection) {
            (1, 1) => vec![0x20, 3, 0, 0x9a, 0],
            (1, 2) => vec![0x20, 3, 0, 0x9b, 0],
            _ => packet.welcome(),
        })
    });
    let change = |options: &mut Options| {
        options.will = Some(sedge_mqtt::Will { topic: "status".into(), payload: "offline".into() });
    };
    with_client(&fake, change, async |_, mut client| drop(client.connected().await));
    // Flags of CONNECT: will, its QoS, its retain flag.
    let flags: Vec<u8> = fake.seen(1).iter().map(|packet| packet.body[7] & 0x3c).collect();
    assert_eq!(flags, [0x2c, 0x0c, 0x04]);
}

#[test]
fn a_connection_whose_other_end_is_gone_is_found_within_one_and_a_half_keep_alives() {
    let fake = Fake::start(|packet| Some(if packet.kind() == 1 { packet.welcome() } else { Vec::new() }));
    with_client(
        &fake,
        |options| options.keep_alive = Duration::from_secs(2),
        async |_, mut client| {
            client.connected().await;
            let begin = std::time::Instant::now();
            assert_eq!(client.disconnected().await, "the broker is silent, and does not answer a ping");
            assert!(begin.elapsed() < Duration::from_millis(3900), "{:?}", begin.elapsed());
        },
    );
    let fake = Fake::start(|packet| Some(packet.welcome()));
    with_client(
        &fake,
        |options| options.keep_alive = Duration::from_secs(1),
        async |_, mut client| {
            client.connected().await;
            let stands = tokio::time::timeout(Duration::from_secs(4), client.next()).await.is_err();
            assert!(stands, "one that answers its pings stands");
        },
    );
}
