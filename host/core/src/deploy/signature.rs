//! A board's signature under its status and its reports.
//!
//! ```text
//! {"state":"online", ..., "signature":"<base64 of 64 bytes>"}
//! ```
//!
//! The member is the last one. What is signed is `sedge-board <topic>\n` and the JSON without it, so that a message does not
//! pass for that of another board or function. Ed25519, by a key that the board makes at its first start.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::key::{PublicKey, SigningKey};

const MEMBER: &[u8] = b",\"signature\":\"";
const END: &[u8] = b"\"}";
/// 64 bytes in base64.
const SIGNATURE_CHARS: usize = 88;

/// Adds the signature to a JSON object with at least one member.
pub fn sign(key: &SigningKey, topic: &str, json: &[u8]) -> Vec<u8> {
    let Some(members) = json.strip_suffix(b"}") else { return json.to_vec() };
    let signature = STANDARD.encode(key.sign(&signed(topic, members)));
    [members, MEMBER, signature.as_bytes(), END].concat()
}

/// Whether the message has a signature, right or wrong.
pub fn is_signed(payload: &[u8]) -> bool {
    split(payload).is_some()
}

pub fn verify(key: &PublicKey, topic: &str, payload: &[u8]) -> bool {
    split(payload).is_some_and(|(members, signature)| key.verify(&signed(topic, members), &signature))
}

fn signed(topic: &str, members: &[u8]) -> Vec<u8> {
    [b"sedge-board ", topic.as_bytes(), b"\n", members, b"}"].concat()
}

/// The object up to the signature, without its end, and the signature.
fn split(payload: &[u8]) -> Option<(&[u8], Vec<u8>)> {
    let rest = payload.strip_suffix(END)?;
    let (rest, signature) = rest.split_at_checked(rest.len().checked_sub(SIGNATURE_CHARS)?)?;
    Some((rest.strip_suffix(MEMBER)?, STANDARD.decode(signature).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPIC: &str = "sedge/pump-3/status";

    #[test]
    fn a_changed_byte_or_another_topic_is_seen() {
        let key = SigningKey::generate().unwrap();
        let message = sign(&key, TOPIC, br#"{"state":"online","groups":[]}"#);
        let json: serde_json::Value = serde_json::from_slice(&message).unwrap();
        assert_eq!((&json["state"], json["signature"].as_str().unwrap().len()), (&"online".into(), SIGNATURE_CHARS));
        assert!(is_signed(&message) && verify(&key.public(), TOPIC, &message));
        assert!(!verify(&key.public(), "sedge/pump-4/status", &message));
        assert!(!verify(&SigningKey::generate().unwrap().public(), TOPIC, &message));
        for place in 0..message.len() {
            let mut changed = message.clone();
            changed[place] ^= 1;
            assert!(!verify(&key.public(), TOPIC, &changed), "byte {place}");
        }
        for len in 0..message.len() {
            assert!(!verify(&key.public(), TOPIC, &message[..len]), "{len} bytes");
        }
        let twice = sign(&key, TOPIC, &message);
        assert!(verify(&key.public(), TOPIC, &twice), "the last signature counts, and covers the first");
    }

    #[test]
    fn what_is_not_signed_is_not() {
        for text in ["", "{}", r#"{"state":"online"}"#, r#"{"signature":"AA"}"#] {
            assert!(!is_signed(text.as_bytes()), "{text}");
        }
    }
}
