//! Secrets of tokens and signatures: compared in constant time, and read once.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use ring::rand::SystemRandom;

use super::TriggerError;

/// Compares secrets by their tags under a random key: how long it takes says nothing about them.
#[derive(Debug)]
pub(super) struct Comparer(hmac::Key);

/// A secret that can be compared and not be read.
#[derive(Debug)]
pub(super) struct Secret(hmac::Tag);

impl Comparer {
    pub(super) fn new() -> Result<Self, TriggerError> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        let failed = |_| TriggerError::File { path: "tokens".into(), reason: "no random key could be drawn".into() };
        key.map(Self).map_err(failed)
    }

    pub(super) fn secret(&self, text: &[u8]) -> Secret {
        Secret(hmac::sign(&self.0, text))
    }

    pub(super) fn is_same(&self, secret: &Secret, given: &[u8]) -> bool {
        hmac::verify(&self.0, given, secret.0.as_ref()).is_ok()
    }
}

/// Whether a header has the HMAC-SHA256 of a body: hex or base64, perhaps after `sha256=`.
pub(super) fn is_signed(key: &hmac::Key, header: &str, body: &[u8]) -> bool {
    let text = header.strip_prefix("sha256=").unwrap_or(header);
    let tag = match text.len() {
        64 => from_hex(text),
        _ => STANDARD.decode(text).ok(),
    };
    tag.is_some_and(|tag| hmac::verify(key, body, &tag).is_ok())
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect::<Option<_>>()?;
    Some(digits.as_chunks::<2>().0.iter().map(|[high, low]| high << 4 | low).collect())
}

/// The content of a file, without white space around it.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, TriggerError> {
    let failed = |reason: String| TriggerError::File { path: path.display().to_string(), reason };
    let text = std::fs::read(path).map_err(|error| failed(format!("cannot be read: {error}")))?;
    match text.trim_ascii() {
        [] => Err(failed("is empty; write the secret into it".into())),
        secret => Ok(secret.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_compared_whole() {
        let comparer = Comparer::new().unwrap();
        let secret = comparer.secret(b"s3cret");
        assert!(comparer.is_same(&secret, b"s3cret"));
        for other in [&b""[..], b"s3cre", b"s3cret ", b"S3cret"] {
            assert!(!comparer.is_same(&secret, other));
        }
    }

    /// The example of GitHub's documentation, "Validating webhook deliveries".
    #[test]
    fn a_signature_of_github_is_accepted() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"It's a Secret to Everybody");
        let hex = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        assert!(is_signed(&key, &format!("sha256={hex}"), b"Hello, World!"));
        assert!(is_signed(&key, hex, b"Hello, World!"));
        let base64 = STANDARD.encode(from_hex(hex).unwrap());
        assert!(is_signed(&key, &base64, b"Hello, World!"));
        for (header, body) in [(hex, "Hello, World"), ("sha256=", "Hello, World!"), ("", "Hello, World!"), ("zz", "")] {
            assert!(!is_signed(&key, header, body.as_bytes()), "{header} {body}");
        }
    }
}
