//! The local broker, by what it answers.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::{Instant, timeout_at};

use super::address::Address;
use super::finding::Finding;
use crate::config::Mqtt;
use crate::mqtt::{self, Event};

const VERSION: &str = "$SYS/broker/version";
const DROPPED: &str = "$SYS/broker/publish/messages/dropped";
/// For what the broker tells about itself. It is retained, and comes at once or not at all.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a broker that answers was seen to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    pub version: Option<String>,
    /// Messages that it has dropped since it started, by its own count.
    pub dropped: Option<u64>,
    pub retains: bool,
    /// It takes clients that do not say who they are.
    pub is_anonymous: bool,
}

/// An address that passwords and messages go to in the clear.
pub fn unencrypted(key: &'static str, address: &Address) -> Option<Finding> {
    let what = format!("{key} leads to {} without TLS: everyone on the way can read and change it", address.host);
    let mend = "write mqtts:// (https:// for a webhook), and name the certificate in ca_file if it is your own";
    (!address.is_tls && !address.is_local()).then(|| Finding::warning("tls", what, fix))
}

/// `Err`: why the broker cannot be reached.
pub fn inspect(mqtt: &Mqtt) -> anyhow::Result<Result<Observed, String>> {
    crate::cli::block_on(async {
        let mut seen = match probe(options(mqtt, true)?).await {
            Ok(seen) => seen,
            Err(reason) => return Ok(Err(reason)),
        };
        seen.is_anonymous = probe(options(mqtt, false)?).await.is_ok();
        Ok(Ok(seen))
    })
}

fn options(mqtt: &Mqtt, with_name: bool) -> anyhow::Result<mqtt::Options> {
    let mut id = [0; 8];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty()).context("failed to draw a client id")?;
    Ok(mqtt::Options {
        url: mqtt.url.clone(),
        // Never the daemon's: the broker would close its connection.
        client_id: format!("sedge-doctor-{:016x}", u64::from_ne_bytes(id)),
        username: mqtt.username.clone().filter(|_| with_name),
        password_file: mqtt.password_file.clone().filter(|_| with_name),
        ca_file: mqtt.ca_file.clone(),
        cert_file: mqtt.cert_file.clone().filter(|_| with_name),
        key_file: mqtt.key_file.clone().filter(|_| with_name),
        keep_alive: Duration::from_secs(15),
        connect_timeout: Duration::from_secs(mqtt.connect_timeout_secs.get().into()),
        reconnect_max: Duration::from_secs(5),
        receive_maximum: 16,
        max_packet_bytes: 64 * 1024,
        session_expiry: Duration::ZERO,
        in_flight: 1,
        will: None,
    })
}

async fn probe(options: mqtt::Options) -> Result<Observed, String> {
    let (link, events, drive) = match mqtt::connect(options) {
        Ok(parts) => parts,
        Err(error) => return Err(error.to_string()),
    };
    let driver = tokio::task::spawn_local(drive);
    let mut seen = Observed::default();
    let mut queue = VecDeque::new();
    // To connect takes as long as it takes: the client itself gives up in time.
    let mut until = Instant::now() + Duration::from_secs(120);
    let mut result = Err("it does not answer".to_owned());
    'talk: while timeout_at(until, events.receive(&mut queue)).await.is_ok() {
        for event in queue.drain(..) {
            match event {
                Event::Connected { .. } => {
                    result = Ok(());
                    seen.retains = link.retains();
                    until = Instant::now() + PATIENCE;
                    link.subscribe(VERSION, None);
                    link.subscribe(DROPPED, None);
                }
                Event::Disconnected { reason } => {
                    result = Err(reason);
                    break 'talk;
                }
                Event::Delivery(delivery) => {
                    let text = String::from_utf8_lossy(&delivery.payload).into_owned();
                    match &*delivery.topic {
                        topic if topic == VERSION.as_bytes() => seen.version = Some(text),
                        topic if topic == DROPPED.as_bytes() => seen.dropped = text.parse().ok(),
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        if seen.version.is_some() && seen.dropped.is_some() {
            break;
        }
    }
    link.close();
    let _ = tokio::time::timeout(Duration::from_secs(1), driver).await;
    result.map(|()| seen)
}

/// `open`: whether others than this machine can reach the broker.
pub fn evaluate(mqtt: &Mqtt, seen: Result<Observed, String>, open: bool) -> Vec<Finding> {
    let seen = match seen {
        Ok(seen) => seen,
        Err(reason) => {
            let what = format!("{} cannot be reached: {reason}", mqtt.url);
            let fix = "start it (systemctl status mosquitto), or correct [mqtt]: url, username, password_file, ca_file";
            return vec![Finding::warning("broker", what, fix)];
        }
    };
    let version = seen.version.as_deref().unwrap_or("a broker that does not say which");
    let mut findings = vec![Finding::good("broker", format!("{} answers: {version}", mqtt.url))];
    if !seen.retains {
        let what = "it keeps no retained messages: this board's status is not seen, and nothing can be pushed to it";
        findings.push(Finding::warning("broker", what, "in mosquitto.conf: retain_available true"));
    }
    if let Some(dropped) = seen.dropped.filter(|dropped| *dropped > 0) {
        let what = format!("it has dropped {dropped} messages since it started, for one client or another");
        findings.push(Finding::warning("broker", what, "in mosquitto.conf: max_queued_messages 0"));
    }
    findings.push(match (seen.is_anonymous, open) {
        (true, true) => Finding::warning(
            "anonymous",
            "everyone who reaches the broker may publish and subscribe, without a name",
            "in mosquitto.conf: allow_anonymous false, and password_file; here: mqtt.username and password_file",
        ),
        (true, false) => Finding::good("anonymous", "the broker asks for no name, and answers to this machine only"),
        (false, _) => Finding::good("anonymous", "the broker asks who is there"),
    });
    findings
}

/// Whether something listens on this port for others than this machine.
pub fn is_open(port: u16) -> bool {
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
    use super::super::finding::Verdict;
    use super::*;

    fn warnings(seen: Result<Observed, String>, open: bool) -> Vec<&'static str> {
        let findings = evaluate(&Mqtt::default(), seen, open);
        findings.iter().filter(|it| it.verdict == Verdict::Warning).map(|it| it.check).collect()
    }

    #[test]
    fn no_tls_hurts_beyond_this_machine() {
        let evaluated = |url| unencrypted("mqtt.url", &Address::of(url).unwrap()).map(|finding| finding.verdict);
        assert_eq!(evaluated("mqtt://broker.example.com"), Some(Verdict::Warning));
        assert_eq!(evaluated("http://10.0.0.1/in"), Some(Verdict::Warning));
        assert_eq!(evaluated("mqtts://broker.example.com"), None);
        assert_eq!(evaluated("mqtt://localhost:1884"), None);
    }

    #[test]
    fn a_nameless_broker_hurts_when_others_reach_it() {
        let nameless = Observed { retains: true, is_anonymous: true, ..Observed::default() };
        assert_eq!(warnings(Ok(nameless.clone()), true), ["anonymous"]);
        assert_eq!(warnings(Ok(nameless.clone()), false), [""; 0]);
        assert_eq!(warnings(Ok(Observed { is_anonymous: false, ..nameless }), true), [""; 0]);
    }

    #[test]
    fn what_the_broker_tells_of_itself() {
        let seen = Observed { retains: true, dropped: Some(0), ..Observed::default() };
        assert_eq!(warnings(Ok(seen.clone()), false), [""; 0]);
        assert_eq!(warnings(Ok(Observed { dropped: Some(3), ..seen.clone() }), false), ["broker"]);
        assert_eq!(warnings(Ok(Observed { retains: false, ..seen }), false), ["broker"]);
        assert_eq!(warnings(Err("connection refused".into()), false), ["broker"]);
    }

    #[test]
    fn listening_for_others_is_told_from_loopback() {
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
