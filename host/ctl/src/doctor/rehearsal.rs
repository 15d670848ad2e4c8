//! A rehearsal at the local broker of what the daemon needs: a retained last will, QoS 1 there and back, a large message.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::client::{Client, ClientEvent};
use sedge_core::config::{Config, Connection};
use sedge_core::finding::Finding;
use sedge_mqtt::Will;

const CHECK: &str = "rehearsal";
/// Wait for all answers of the broker.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How far the rehearsal came.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ended {
    /// Everything worked.
    Well(Duration),
    /// The broker took a connection before, but not with a retained last will.
    WithoutWill(String),
    /// This client may not read the topic of the test message, which the daemon need not do either.
    Unreadable(String),
    NotPublished(String),
    NotDelivered(String),
}

/// Sends a message of the largest payload that functions get to a topic of this board that nobody hears.
pub(super) fn inspect(config: &Config) -> anyhow::Result<Finding> {
    let topic = format!("{}/{}/doctor", config.node.base_topic, config.node.name);
    let bytes = config.mqtt.max_payload_bytes.get();
    let ended = crate::block_on(rehearse(config, &topic, bytes as usize))?;
    Ok(evaluate(&ended, &topic, bytes))
}

async fn rehearse(config: &Config, topic: &str, bytes: usize) -> anyhow::Result<Ended> {
    let mqtt = &config.mqtt;
    let brief = Client::options(mqtt.connection.url.clone(), "doctor")?;
    let options = sedge_mqtt::Options {
        connection: Connection { client_id: brief.connection.client_id.clone(), ..mqtt.connection.clone() },
        connect_timeout: Duration::from_secs(mqtt.connect_timeout_secs.get().into()),
        max_packet_bytes: mqtt.max_packet_bytes.get(),
        // Never sent, since the connection is closed in order; as a retained message it would be none.
        will: Some(Will { topic: topic.to_owned(), payload: String::new() }),
        ..brief
    };
    let mut client = match Client::connect(options).await {
        Ok(client) => client,
        Err(error) => return Ok(Ended::WithoutWill(format!("{error:#}"))),
    };
    let ended = there_and_back(&mut client, topic, bytes).await;
    client.close().await;
    Ok(ended)
}

async fn there_and_back(client: &mut Client, topic: &str, bytes: usize) -> Ended {
    let (started, deadline) = (Instant::now(), Instant::now() + TIMEOUT);
    client.subscribe(topic);
    loop {
        match client.next_event_until(deadline).await {
            Ok(Some(ClientEvent::Subscribed(_))) => break,
            Ok(Some(ClientEvent::Disconnected(reason))) => return Ended::Unreadable(reason),
            Ok(Some(_)) => {}
            Ok(None) => return Ended::Unreadable("no answer".to_owned()),
            Err(error) => return Ended::Unreadable(format!("{error:#}")),
        }
    }
    let Ok(token) = client.publish(topic, Bytes::from(vec![b' '; bytes]), false) else {
        return Ended::NotPublished("the broker takes no messages".to_owned());
    };
    let (mut is_published, mut is_delivered) = (false, false);
    while !(is_published && is_delivered) {
        let problem = match client.next_event_until(deadline).await {
            Ok(Some(ClientEvent::Published(it))) => {
                is_published |= it == token;
                continue;
            }
            Ok(Some(ClientEvent::Message { topic: of, payload })) => {
                is_delivered |= of == topic && payload.len() == bytes;
                continue;
            }
            Ok(Some(ClientEvent::Disconnected(reason))) => reason,
            Ok(Some(_)) => continue,
            Ok(None) => format!("nothing came within {} s", TIMEOUT.as_secs()),
            Err(error) => format!("{error:#}"),
        };
        return if is_published { Ended::NotDelivered(problem) } else { Ended::NotPublished(problem) };
    }
    Ended::Well(started.elapsed())
}

fn evaluate(ended: &Ended, topic: &str, bytes: u32) -> Finding {
    let limits =
        "in mosquitto.conf: a larger max_packet_size and message_size_limit, or none; or lower mqtt.max_payload_bytes";
    match ended {
        Ended::Well(took) => {
            let ms = took.as_millis();
            let what = format!("a last will was taken, and {bytes} bytes went there and back with QoS 1 in {ms} ms");
            Finding::good(CHECK, what)
        }
        Ended::WithoutWill(reason) => Finding::warning(
            CHECK,
            format!("the broker refuses a retained last will on {topic}: {reason}"),
            format!("allow this client to publish below {topic}, and in mosquitto.conf: retain_available true"),
        ),
        Ended::Unreadable(reason) => Finding::unknown(
            CHECK,
            format!("cannot read a test message on {topic}: {reason}"),
            format!("to try it, allow this client to subscribe to {topic}"),
        ),
        Ended::NotPublished(reason) => Finding::warning(
            CHECK,
            format!("the broker did not take a message of {bytes} bytes with QoS 1 on {topic}: {reason}"),
            format!("allow this client to publish on {topic}; {limits}"),
        ),
        Ended::NotDelivered(reason) => Finding::warning(
            CHECK,
            format!("the broker took a message of {bytes} bytes and did not deliver it: {reason}"),
            limits,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sedge_core::finding::Verdict;

    #[test]
    fn each_end_has_its_verdict_and_names_topic_and_size() {
        let why = || "because".to_owned();
        for (ended, verdict) in [
            (Ended::Well(Duration::from_millis(3)), Verdict::Good),
            (Ended::WithoutWill(why()), Verdict::Warning),
            (Ended::Unreadable(why()), Verdict::Unknown),
            (Ended::NotPublished(why()), Verdict::Warning),
            (Ended::NotDelivered(why()), Verdict::Warning),
        ] {
            let finding = evaluate(&ended, "sedge/a/doctor", 262_144);
            assert_eq!(finding.verdict, verdict, "{finding:?}");
            assert!(verdict == Verdict::Good || finding.what.contains("because"), "{finding:?}");
            assert!(finding.what.contains("sedge/a/doctor") || finding.what.contains("262144"), "{finding:?}");
        }
    }
}
