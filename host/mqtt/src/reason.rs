//! Why a connection ended, in words. The same cause always gives the same text, so that it is logged once.

use std::error::Error;
use std::fmt::Write as _;

use rumqttc::mqttbytes::v5::{ConnectReturnCode, DisconnectReasonCode};
use rumqttc::{ConnectionError, StateError};

use super::greeting::Said;
use super::tls;

/// Said of a broker that speaks only an older version.
pub const NEEDS_MQTT_5: &str = "the broker speaks only MQTT 3.1.1, and sedge needs MQTT 5: use Mosquitto 1.6 or later, or another broker with MQTT 5";

/// `said`: the broker's first packet. `is_tls`: of the address. `speaks_old`: it answered a CONNECT of MQTT 3.1.1.
pub(crate) fn reason(error: &ConnectionError, said: &Said, is_tls: bool, speaks_old: bool) -> String {
    let other_port = if is_tls { "" } else { ": is it the port for TLS (mqtts://), or of another service?" };
    match (said, error) {
        (Said::OldConnAck, _) => NEEDS_MQTT_5.into(),
        (Said::Closed | Said::Nothing, _) if speaks_old => NEEDS_MQTT_5.into(),
        (_, ConnectionError::ConnectionRefused(ConnectReturnCode::UnsupportedProtocolVersion)) => NEEDS_MQTT_5.into(),
        (Said::Failed(words), _) => words.clone(),
        (Said::Other(bytes), _) if bytes.starts_with(&[0x15, 3]) => "the port is for TLS: write mqtts://".into(),
        (Said::Other(bytes), _) if bytes.starts_with(b"HTTP") => "the port is of a web server, not of a broker".into(),
        (Said::Closed, _) => format!("the broker closed the connection before it answered CONNECT{other_port}"),
        (Said::Nothing, ConnectionError::Timeout(_)) => format!("the broker did not answer in time{other_port}"),
        (_, ConnectionError::Timeout(_)) => "the broker did not answer in time".into(),
        (_, ConnectionError::ConnectionRefused(code)) => {
            let mut text = format!("the broker refused the connection: {}", words(code));
            if let Said::ConnAck { reason: Some(reason), .. } = said {
                let _ = write!(text, " ({reason:?})");
            }
            text
        }
        (_, ConnectionError::Io(error)) => tls::explain(error).unwrap_or_else(|| describe(error)),
        (_, ConnectionError::MqttState(StateError::ConnectionAborted)) => "the broker closed the connection".into(),
        (_, ConnectionError::MqttState(StateError::AwaitPingResp)) => "the broker did not answer a ping".into(),
        (_, ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, reason_string })) => {
            let mut text = format!("the broker ended the connection: {}", words(reason_code));
            if let Some(said) = reason_string {
                let _ = write!(text, " ({said:?})");
            }
            if *reason_code == DisconnectReasonCode::SessionTakenOver {
                text.push_str("; another client with this client_id connected");
            }
            text
        }
        (_, other) => describe(other),
    }
}

/// Name of a reason code in words: `NotAuthorized` as "not authorized".
pub(crate) fn words(code: impl std::fmt::Debug) -> String {
    let mut words = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.push(letter.to_ascii_lowercase());
    }
    words
}

/// Text of an error with its causes. The last cause usually names what to fix.
pub(crate) fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text
}
