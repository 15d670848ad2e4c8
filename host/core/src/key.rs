//! Ed25519 keys as PEM files, in the format of `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout`, and their
//! ids.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use rustls::pki_types::pem::{self, SectionKind};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};

use crate::message::Digest;

/// Prefix of the 32 bytes of a public key in its SubjectPublicKeyInfo (RFC 8410, section 4).
const PUBLIC_DER: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// Prefix of the 32 bytes of a private key in PKCS#8, version 1, without attributes (RFC 8410, section 7).
const PRIVATE_DER: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
pub const KEY_BYTES: usize = 32;

/// SHA-256 of the key's SubjectPublicKeyInfo, shown as hex: `openssl pkey -pubin -outform DER | sha256sum`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(Digest);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; KEY_BYTES]);

/// A private key.
pub struct SigningKey {
    seed: [u8; KEY_BYTES],
    pair: Ed25519KeyPair,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("not PEM: no complete `-----BEGIN` section")]
    NotPem,
    #[error("a private key where a public one is expected: `openssl pkey -in private.pem -pubout -out public.pem`")]
    Private,
    #[error("a public key where the private key is expected")]
    Public,
    #[error("the key is encrypted; decrypt it once: `openssl pkey -in encrypted.pem -out key.pem`")]
    Encrypted,
    #[error("a certificate where a key is expected")]
    Certificate,
    #[error("not an Ed25519 key: make one with `sedge keygen`, or `openssl genpkey -algorithm ed25519`")]
    OtherAlgorithm,
    #[error("failed to draw a random key")]
    Random,
}

impl PublicKey {
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let der = match section(pem) {
            Ok((SectionKind::PublicKey, der)) => der,
            // Also damaged and encrypted ones.
            _ if contains(pem, b"PRIVATE KEY-----") => return Err(KeyError::Private),
            Ok((SectionKind::Certificate, _)) => return Err(KeyError::Certificate),
            Ok(_) => return Err(KeyError::NotPem),
            Err(error) => return Err(error),
        };
        let key = der.strip_prefix(&PUBLIC_DER).ok_or(KeyError::OtherAlgorithm)?;
        key.try_into().map(Self).map_err(|_| KeyError::OtherAlgorithm)
    }

    pub fn to_pem(&self) -> String {
        armoured("PUBLIC KEY", &self.der())
    }

    pub fn id(&self) -> KeyId {
        KeyId(Digest(Sha256::digest(self.der()).into()))
    }

    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, signature).is_ok()
    }

    fn der(&self) -> Vec<u8> {
        [&PUBLIC_DER[..], &self.0].concat()
    }
}

impl SigningKey {
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = [0; KEY_BYTES];
        SystemRandom::new().fill(&mut seed).map_err(|_| KeyError::Random)?;
        Self::from_seed(seed)
    }

    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let der = match section(pem)? {
            (SectionKind::PrivateKey, der) => der,
            (SectionKind::PublicKey, _) => return Err(KeyError::Public),
            (SectionKind::Certificate, _) => return Err(KeyError::Certificate),
            (kind, _) if is_private(kind) => return Err(KeyError::OtherAlgorithm),
            _ => return Err(KeyError::NotPem),
        };
        let seed = der.strip_prefix(&PRIVATE_DER).ok_or(KeyError::OtherAlgorithm)?;
        Self::from_seed(seed.try_into().map_err(|_| KeyError::OtherAlgorithm)?)
    }

    pub fn to_pem(&self) -> String {
        armoured("PRIVATE KEY", &[&PRIVATE_DER[..], &self.seed].concat())
    }

    pub fn public(&self) -> PublicKey {
        let public = self.pair.public_key().as_ref();
        PublicKey(public.try_into().expect("an Ed25519 public key has 32 bytes"))
    }

    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }

    fn from_seed(seed: [u8; KEY_BYTES]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| KeyError::OtherAlgorithm)?;
        Ok(Self { seed, pair })
    }
}

/// The first section of a kind that the PEM reader knows. It skips others.
fn section(pem: &[u8]) -> Result<(SectionKind, Vec<u8>), KeyError> {
    match pem::from_buf(&mut &*pem) {
        Ok(Some(section)) => Ok(section),
        _ if contains(pem, b"-----BEGIN ENCRYPTED PRIVATE KEY-----") => Err(KeyError::Encrypted),
        _ if contains(pem, b"-----BEGIN CERTIFICATE-----") => Err(KeyError::Certificate),
        _ => Err(KeyError::NotPem),
    }
}

fn is_private(kind: SectionKind) -> bool {
    matches!(kind, SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey)
}

fn contains(text: &[u8], marker: &[u8]) -> bool {
    text.windows(marker.len()).any(|window| window == marker)
}

/// Encodes PEM (RFC 7468). A key fits on one line of base64.
fn armoured(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for KeyId {
    type Err = crate::message::NotADigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id())
    }
}

/// Shows the id, never the key.
impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(of {})", self.public().id())
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_pem())
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let pem = String::deserialize(deserializer)?;
        Self::from_pem(pem.as_bytes()).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with openssl 3.0.
    const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIFwOERBqviPyHizeJN45l0ha8UGghb6U+6m/bCvxH4Fp\n-----END PRIVATE KEY-----\n";
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA8JhXTyXpizwiitRlfTJi+hDG4/ewwjJpKDG3UhNlVgc=\n-----END PUBLIC KEY-----\n";

    #[test]
    fn keys_of_openssl_round_trip() {
        let key = SigningKey::from_pem(PRIVATE.as_bytes()).unwrap();
        assert_eq!(key.to_pem(), PRIVATE);
        assert_eq!(key.public().to_pem(), PUBLIC);
        assert_eq!(PublicKey::from_pem(PUBLIC.as_bytes()).unwrap(), key.public());
        let id = "3e36d0121dcbd4c28b1c77d10215d3454a15a09ef328d50f46496d0e0e04e6fb";
        assert_eq!(key.public().id().to_string(), id);
        assert_eq!(id.parse::<KeyId>().unwrap(), key.public().id());
        assert!(!format!("{key:?}").contains("XA4REGq"));
    }

    #[test]
    fn generated_keys_differ_and_sign() {
        let (one, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        assert_ne!(one.public(), other.public());
        let again = SigningKey::from_pem(one.to_pem().as_bytes()).unwrap();
        let signature = again.sign(b"order");
        assert!(one.public().verify(b"order", &signature));
        assert!(!one.public().verify(b"orders", &signature));
        assert!(!other.public().verify(b"order", &signature));
        assert!(!one.public().verify(b"order", &signature[1..]));
    }

    #[test]
    fn a_wrong_file_is_recognised() {
        let public = |pem: &str| PublicKey::from_pem(pem.as_bytes()).unwrap_err();
        let private = |pem: &str| SigningKey::from_pem(pem.as_bytes()).unwrap_err();
        assert_eq!(public(PRIVATE), KeyError::Private);
        assert_eq!(private(PUBLIC), KeyError::Public);
        for text in
            ["", "no key", "-----BEGIN PUBLIC KEY-----\n", "-----BEGIN PUBLIC KEY-----\n!\n-----END PUBLIC KEY-----"]
        {
            assert_eq!(public(text), KeyError::NotPem, "{text:?}");
            assert_eq!(private(text), KeyError::NotPem, "{text:?}");
        }
        assert_eq!(public(&armoured("CERTIFICATE", b"x")), KeyError::Certificate);
        assert_eq!(public(&armoured("EC PRIVATE KEY", b"x")), KeyError::Private);
        assert_eq!(private(&armoured("RSA PRIVATE KEY", b"x")), KeyError::OtherAlgorithm);
        assert_eq!(private(&armoured("ENCRYPTED PRIVATE KEY", b"x")), KeyError::Encrypted);
        let x25519 = PUBLIC.replace("MCowBQYDK2Vw", "MCowBQYDK2Vu");
        assert_eq!(public(&x25519), KeyError::OtherAlgorithm);
        let longer = [&PUBLIC_DER[..], &[7; 33]].concat();
        assert_eq!(public(&armoured("PUBLIC KEY", &longer)), KeyError::OtherAlgorithm);
    }

    #[test]
    fn json_holds_pem() {
        let key = PublicKey::from_pem(PUBLIC.as_bytes()).unwrap();
        let json = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<PublicKey>(&json).unwrap(), key);
        assert!(serde_json::from_str::<PublicKey>("\"x\"").is_err());
    }
}
