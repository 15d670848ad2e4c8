//! Checks of the local broker, by its answers.

use std::time::Duration;

use tokio::time::Instant;

use crate::client::{Client, ClientEvent};
use sedge_core::config::{Connection, Endpoint, Mqtt};
use sedge_core::finding::Finding;

const VERSION: &str = "$SYS/broker/version";
const DROPPED: &str = "$SYS/broker/publish/messages/dropped";
/// Wait for the broker's retained `$SYS` messages.
const SYS_TIMEOUT: Duration = Duration::from_secs(2);

/// Properties of a broker that answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Observed {
    pub(crate) version: Option<String>,
    /// Messages dropped since the broker started, by its own count.
    pub(crate) dropped: Option<u64>,
    pub(crate) retains: bool,
    /// What else it does not offer.
    pub(crate) limits: Vec<String>,
    /// Whether the broker accepts clients without credentials.
    pub(crate) is_anonymous: bool,
}

/// Warns of an address beyond this machine without TLS.
pub(crate) fn unencrypted(key: &str, url: &Endpoint) -> Option<Finding> {
    let what = format!(
        "{key} connects to {} without TLS: passwords and messages can be read and changed on the way",
        url.host()
    );
    let fix = "use mqtts:// (https:// for a webhook), with ca_file for a certificate of your own";
    (!url.is_tls() && !url.is_local()).then(|| Finding::warning("tls", what, fix))
}

/// Connects with and without credentials. The inner `Err` says why the broker cannot be reached.
pub(crate) fn inspect(mqtt: &Mqtt) -> anyhow::Result<Result<Observed, String>> {
    crate::block_on(async {
        let mut observed = match probe(options(mqtt, true)?).await {
            Ok(observed) => observed,
            Err(error) => return Ok(Err(format!("{error:#}"))),
        };
        observed.is_anonymous = probe(options(mqtt, false)?).await.is_ok();
        Ok(Ok(observed))
    })
}

fn options(mqtt: &Mqtt, with_credentials: bool) -> anyhow::Result<sedge_mqtt::Options> {
    let known = &mqtt.connection;
    let options = Client::options(known.url.clone(), "doctor")?;
    let connection = match with_credentials {
        true => Connection { client_id: options.connection.client_id, ..known.clone() },
        false => Connection { ca_file: known.ca_file.clone(), ..options.connection },
    };
    Ok(sedge_mqtt::Options {
        connection,
        connect_timeout: Duration::from_secs(mqtt.connect_timeout_secs.get().into()),
        ..options
    })
}

async fn probe(options: sedge_mqtt::Options) -> anyhow::Result<Observed> {
    let mut client = Client::connect(options).await?;
    let limits = client.limits().iter().filter(|limit| !limit.starts_with("no retained messages")).cloned().collect();
    let mut observed = Observed { retains: client.retains(), limits, ..Observed::default() };
    client.subscribe(VERSION);
    client.subscribe(DROPPED);
    let deadline = Instant::now() + SYS_TIMEOUT;
    while observed.version.is_none() || observed.dropped.is_none() {
        match client.next_event_until(deadline).await {
            Ok(Some(ClientEvent::Message { topic, payload })) => {
                let text = String::from_utf8_lossy(&payload).into_owned();
                match &*topic {
                    VERSION => observed.version = Some(text),
                    DROPPED => observed.dropped = text.parse().ok(),
                    _ => {}
                }
            }
            Ok(Some(ClientEvent::Disconnected(reason))) => anyhow::bail!("{reason}"),
            Ok(Some(_)) => {}
            // Brokers need not offer `$SYS`.
            Ok(None) | Err(_) => break,
        }
    }
    client.close().await;
    Ok(observed)
}

/// `open`: whether other machines can reach the broker.
pub(crate) fn evaluate(mqtt: &Mqtt, seen: Result<Observed, String>, open: bool) -> Vec<Finding> {
    let seen = match seen {
        Ok(seen) => seen,
        Err(reason) => {
            let what = format!("{} cannot be reached: {reason}", mqtt.connection.url);
            let fix = if reason.contains(sedge_mqtt::NEEDS_MQTT_5) {
                "install a broker with MQTT 5, or name the port of one in mqtt.url"
            } else {
                "start it (systemctl status mosquitto), or correct [mqtt]: url, username, password_file, ca_file"
            };
            return vec![Finding::warning("broker", what, fix)];
        }
    };
    let version = seen.version.as_deref().unwrap_or("version unknown");
    let mut findings = vec![Finding::good("broker", format!("{} answers: {version}", mqtt.connection.url))];
    if !seen.retains {
        let what = "it does not support retained messages: the board's status is lost, and nothing can be pushed to it";
        findings.push(Finding::warning("broker", what, "in mosquitto.conf: retain_available true"));
    }
    for limit in &seen.limits {
        let what = format!("it has a limit: {limit}");
        findings.push(Finding::warning("broker", what, "lift it in the broker's configuration, or use another broker"));
    }
    if let Some(dropped) = seen.dropped.filter(|dropped| *dropped > 0) {
        let what = format!("it has dropped {dropped} messages since it started, for this or other clients");
        findings.push(Finding::warning("broker", what, "in mosquitto.conf: max_queued_messages 0"));
    }
    findings.push(match (seen.is_anonymous, open) {
        (true, true) => Finding::warning(
            "anonymous",
            "anyone who reaches the broker may publish and subscribe without credentials",
            "in mosquitto.conf: allow_anonymous false, and password_file; here: mqtt.username and password_file",
        ),
        (true, false) => Finding::good("anonymous", "no credentials needed, but the broker answers this machine only"),
        (false, _) => Finding::good("anonymous", "the broker requires credentials"),
    });
    findings
}

/// Whether a socket listens on this port for other machines.
pub(crate) fn is_open(port: u16) -> bool {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| std::fs::read_to_string(table).unwrap_or_default());
    tables.iter().any(|table| listens_openly(table, port))
}

/// Lines of `/proc/net/tcp`: `0: 0100007F:075B 00000000:0000 0A ...`, addresses in the byte order of the machine's words.
fn listens_openly(table: &str, port: u16) -> bool {
    const LISTEN: &str = "0A";
    table.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next(), fields.nth(1));
        let Some((address, at)) = local.and_then(|local| local.split_once(':')) else { return false };
        let is_loopback = match address.len() {
            8 => address.ends_with("7F") || address.starts_with("7F"),
            _ => address.ends_with("00000001") || address.ends_with("01000000"),
        };
        state == Some(LISTEN) && u16::from_str_radix(at, 16) == Ok(port) && !is_loopback
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sedge_core::finding::Verdict;

    fn warnings(seen: Result<Observed, String>, open: bool) -> Vec<&'static str> {
        let findings = evaluate(&Mqtt::new("board"), seen, open);
        findings.iter().filter(|it| it.verdict == Verdict::Warning).map(|it| it.check).collect()
    }

    #[test]
    fn missing_tls_is_a_warning_beyond_this_machine() {
        let evaluated = |url: &str| unencrypted("mqtt.url", &url.parse().unwrap()).map(|finding| finding.verdict);
        assert_eq!(evaluated("mqtt://broker.example.com"), Some(Verdict::Warning));
        assert_eq!(evaluated("http://10.0.0.1/in"), Some(Verdict::Warning));
        assert_eq!(evaluated("mqtts://broker.example.com"), None);
        assert_eq!(evaluated("mqtt://localhost:1884"), None);
    }

    #[test]
    fn an_anonymous_broker_is_a_warning_when_others_reach_it() {
        let anonymous = Observed { retains: true, is_anonymous: true, ..Observed::default() };
        assert_eq!(warnings(Ok(anonymous.clone()), true), ["anonymous"]);
        assert_eq!(warnings(Ok(anonymous.clone()), false), [""; 0]);
        assert_eq!(warnings(Ok(Observed { is_anonymous: false, ..anonymous }), true), [""; 0]);
    }

    #[test]
    fn the_properties_of_a_broker_are_evaluated() {
        let seen = Observed { retains: true, dropped: Some(0), ..Observed::default() };
        assert_eq!(warnings(Ok(seen.clone()), false), [""; 0]);
        assert_eq!(warnings(Ok(Observed { dropped: Some(3), ..seen.clone() }), false), ["broker"]);
        assert_eq!(warnings(Ok(Observed { retains: false, ..seen }), false), ["broker"]);
        assert_eq!(warnings(Err("connection refused".into()), false), ["broker"]);
    }

    #[test]
    fn listening_beyond_loopback_is_recognised() {
        let line = |address: &str, state: &str| {
            format!("  sl  local_address rem_address st\n   0: {address} 00000000:0000 {state} 00:0\n")
        };
        assert!(listens_openly(&line("00000000:075B", "0A"), 1883));
        assert!(listens_openly(&line("00000000000000000000000000000000:075B", "0A"), 1883));
        assert!(!listens_openly(&line("0100007F:075B", "0A"), 1883));
        assert!(!listens_openly(&line("00000000000000000000000001000000:075B", "0A"), 1883));
        assert!(!listens_openly(&line("00000000:075C", "0A"), 1883), "another port");
        assert!(!listens_openly(&line("00000000:075B", "01"), 1883), "a connection");
    }
}
