//! Signed envelope of an order: DSSE version 1 (<https://github.com/secure-systems-lab/dsse>) with Ed25519.
//!
//! ```text
//! {"payloadType":"application/vnd.sedge.deploy+json","payload":"<base64>","signatures":[{"keyid":"<hex>","sig":"<base64>"}]}
//! ```
//!
//! The signed bytes are `DSSEv1 <length> <payloadType> <length> <payload>`. The key id is only a hint which key to try.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose};
use serde::{Deserialize, Serialize};

use super::keys::{Keys, SigningKey, TrustedKey};
use super::reason::{Reason, Refusal};

pub(crate) const PAYLOAD_TYPE: &str = "application/vnd.sedge.deploy+json";

/// Largest envelope that is read.
pub(crate) const MAX_BYTES: usize = 256 << 10;
/// More than one signature is for boards that trust another key.
const MAX_SIGNATURES: usize = 8;
/// Signatures without a key id are tried with every key, up to this many attempts.
const MAX_ATTEMPTS: usize = 64;

/// An envelope whose signatures are not verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedEnvelope {
    payload: Vec<u8>,
    signatures: Vec<Signature>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Signature {
    key_id: Option<String>,
    bytes: Vec<u8>,
}

impl SignedEnvelope {
    pub fn sign(payload: &[u8], keys: &[&SigningKey]) -> Self {
        let signed = pre_authentication_encoding(payload);
        let signature =
            |key: &&SigningKey| Signature { key_id: Some(key.public().id().to_string()), bytes: key.sign(&signed) };
        Self { payload: payload.to_vec(), signatures: keys.iter().map(signature).collect() }
    }

    pub fn to_json(&self) -> Vec<u8> {
        let encode = |bytes: &[u8]| general_purpose::STANDARD.encode(bytes);
        let signatures = self
            .signatures
            .iter()
            .map(|signature| WireSignature { keyid: signature.key_id.clone(), sig: encode(&signature.bytes) })
            .collect();
        let wire = Wire { payload_type: PAYLOAD_TYPE.into(), payload: encode(&self.payload), signatures };
        serde_json::to_vec(&wire).expect("an envelope has only string keys")
    }

    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let bad = |detail: String| Refusal::new(Reason::BadEnvelope, detail);
        if bytes.len() > MAX_BYTES {
            return Err(bad(format!("the envelope has {} bytes, more than the {MAX_BYTES} allowed", bytes.len())));
        }
        let wire: Wire = serde_json::from_slice(bytes).map_err(|error| bad(format!("not a DSSE envelope: {error}")))?;
        if wire.payload_type != PAYLOAD_TYPE {
            let found: String = wire.payload_type.chars().take(100).collect();
            return Err(bad(format!("the payload's type is {found:?}, not {PAYLOAD_TYPE:?}")));
        }
        let payload = decode(&wire.payload).ok_or_else(|| bad("the payload is not base64".into()))?;
        let mut signatures = Vec::new();
        for signature in wire.signatures.into_iter().take(MAX_SIGNATURES) {
            let bytes = decode(&signature.sig).ok_or_else(|| bad("a signature is not base64".into()))?;
            signatures.push(Signature { key_id: signature.keyid.filter(|id| !id.is_empty()), bytes });
        }
        Ok(Self { payload, signatures })
    }

    /// The payload, unverified: for display only. Use [`SignedEnvelope::verify`] before acting on it.
    pub fn unverified(&self) -> &[u8] {
        &self.payload
    }

    /// Returns the payload and the trusted keys that signed it.
    pub fn verify<'k>(&self, keys: &'k Keys) -> Result<(&[u8], Vec<&'k TrustedKey>), Refusal> {
        if self.signatures.is_empty() {
            return Err(Refusal::new(
                Reason::Unsigned,
                "the envelope has no signature; sign it with `sedge push --key`",
            ));
        }
        let signed = pre_authentication_encoding(&self.payload);
        let mut signers: Vec<&TrustedKey> = Vec::new();
        let mut named = None;
        let mut attempts = 0;
        for signature in &self.signatures {
            for key in keys.iter() {
                let hinted = match &signature.key_id {
                    Some(id) => *id == key.id().to_string(),
                    None => true,
                };
                if !hinted || attempts == MAX_ATTEMPTS || signers.iter().any(|known| known.id() == key.id()) {
                    continue;
                }
                attempts += 1;
                if key.public_key.verify(&signed, &signature.bytes) {
                    signers.push(key);
                } else if signature.key_id.is_some() {
                    named = Some(&key.name);
                }
            }
        }
        match named {
            _ if !signers.is_empty() => Ok((&self.payload, signers)),
            Some(name) => {
                let detail = format!("the signature is not that of key {name}: payload or signature was changed");
                Err(Refusal::new(Reason::BadSignature, detail))
            }
            None => Err(Refusal::new(Reason::UnknownKey, self.unknown(keys))),
        }
    }

    fn unknown(&self, keys: &Keys) -> String {
        if keys.is_empty() {
            return "this board trusts no key; add a section [deploy.keys.<name>] to its configuration".into();
        }
        let ids: Vec<String> = self
            .signatures
            .iter()
            .filter_map(|it| it.key_id.as_ref())
            // Anyone who may publish an order chooses this text. The id of a key is hex.
            .map(|id| match id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                true => id.chars().take(16).collect(),
                false => "a key id that is not hex".into(),
            })
            .collect();
        match ids.is_empty() {
            true => "the signature is not from a key that this board trusts".into(),
            false => format!("signed by {}, which this board does not trust", ids.join(", ")),
        }
    }
}

fn pre_authentication_encoding(payload: &[u8]) -> Vec<u8> {
    let mut encoded = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len()).into_bytes();
    encoded.extend_from_slice(payload);
    encoded
}

/// Decodes both alphabets, as DSSE requires, with and without padding.
fn decode(text: &str) -> Option<Vec<u8>> {
    const LENIENT: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    const PLAIN: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
    const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);
    PLAIN.decode(text).or_else(|_| URL_SAFE.decode(text)).ok()
}

#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(rename = "payloadType")]
    payload_type: String,
    payload: String,
    signatures: Vec<WireSignature>,
}

#[derive(Serialize, Deserialize)]
struct WireSignature {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keyid: Option<String>,
    sig: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::keys::PublicKey;

    /// Signed with openssl, see the folder's README.
    const OPENSSL: &[u8] = include_bytes!("testdata/envelope.json");
    const OPENSSL_KEY: &[u8] = include_bytes!("testdata/public.pem");
    const PAYLOAD: &[u8] = include_bytes!("testdata/payload.json");

    fn trusted(public_key: PublicKey) -> TrustedKey {
        TrustedKey {
            name: "ops".into(),
            public_key,
            functions: vec![],
            topics: vec![],
            keys: false,
            native_code: false,
            settings_only: false,
            record: false,
            logs: false,
        }
    }

    fn check(envelope: &[u8], keys: &Keys, expected: Reason) {
        let found = SignedEnvelope::parse(envelope).and_then(|envelope| envelope.verify(keys).map(|_| ()));
        assert_eq!(found.unwrap_err().reason, expected);
    }

    #[test]
    fn what_openssl_signed_is_verified() {
        let keys = Keys::new([trusted(PublicKey::from_pem(OPENSSL_KEY).unwrap())]);
        let envelope = SignedEnvelope::parse(OPENSSL).unwrap();
        assert_eq!(envelope.verify(&keys).unwrap().0, PAYLOAD);
        // Ed25519 is deterministic: the same key makes the same envelope.
        let key = SigningKey::from_pem(include_bytes!("testdata/private.pem")).unwrap();
        assert_eq!(SignedEnvelope::sign(PAYLOAD, &[&key]), envelope);
    }

    /// The example of the DSSE protocol with our payload type.
    #[test]
    fn the_signed_bytes_are_those_of_the_protocol() {
        let encoded = pre_authentication_encoding(b"hello world");
        assert_eq!(encoded, b"DSSEv1 33 application/vnd.sedge.deploy+json 11 hello world");
    }

    #[test]
    fn a_flipped_bit_never_changes_the_verified_payload() {
        let key = SigningKey::generate().unwrap();
        let keys = Keys::new([trusted(key.public())]);
        let payload = br#"{"serial":7}"#;
        let good = SignedEnvelope::sign(payload, &[&key]).to_json();
        // Without the hint `keyid` the signature is tried with every key.
        let hint = good.windows(7).position(|window| window == b"\"keyid\"").unwrap();
        for place in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[place] ^= 1 << bit;
                if let Ok(Ok((verified, _))) =
                    SignedEnvelope::parse(&bad).as_ref().map(|envelope| envelope.verify(&keys))
                {
                    assert_eq!(verified, payload, "byte {place}, bit {bit}");
                    assert!((hint..hint + 7).contains(&place), "byte {place}, bit {bit}");
                }
            }
        }
    }

    #[test]
    fn an_envelope_without_a_valid_signature_is_refused() {
        let (key, stranger) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let keys = Keys::new([trusted(key.public())]);
        check(&SignedEnvelope::sign(b"{}", &[]).to_json(), &keys, Reason::Unsigned);
        check(&SignedEnvelope::sign(b"{}", &[&stranger]).to_json(), &keys, Reason::UnknownKey);
        check(&SignedEnvelope::sign(b"{}", &[&key]).to_json(), &Keys::default(), Reason::UnknownKey);
        let mut moved = SignedEnvelope::sign(b"{}", &[&key]);
        moved.payload = b"[]".to_vec();
        check(&moved.to_json(), &keys, Reason::BadSignature);
        // A foreign key id does not make the signature valid.
        let mut named = SignedEnvelope::sign(b"{}", &[&stranger]);
        named.signatures[0].key_id = Some(key.public().id().to_string());
        check(&named.to_json(), &keys, Reason::BadSignature);
        named.signatures[0].key_id = None;
        check(&named.to_json(), &keys, Reason::UnknownKey);
    }

    #[test]
    fn malformed_envelopes_are_refused() {
        let keys = Keys::default();
        let good =
            String::from_utf8(SignedEnvelope::sign(b"{}", &[&SigningKey::generate().unwrap()]).to_json()).unwrap();
        for bad in [
            "",
            "{}",
            "null",
            "hello",
            &good[..good.len() - 1],
            &good.replace("vnd.sedge", "vnd.other"),
            &good.replace("\"payload\":\"", "\"payload\":\"*"),
            &good.replace("\"sig\":\"", "\"sig\":\"*"),
            &good.replacen('{', "{\"payload\":\"\",", 1),
            &"[".repeat(10_000),
            &format!("{}{good}", " ".repeat(MAX_BYTES)),
        ] {
            check(bad.as_bytes(), &keys, Reason::BadEnvelope);
        }
        check(&[0xff; 100], &keys, Reason::BadEnvelope);
    }

    #[test]
    fn one_good_signature_among_others_is_enough() {
        let (key, stranger) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let keys = Keys::new([trusted(key.public())]);
        let envelope = SignedEnvelope::sign(b"{}", &[&stranger, &key]);
        assert_eq!(envelope.verify(&keys).unwrap().1.len(), 1);
        let mut anonymous = envelope.clone();
        anonymous.signatures.iter_mut().for_each(|signature| signature.key_id = None);
        assert_eq!(anonymous.verify(&keys).unwrap().1.len(), 1);
        // Signatures beyond the limit are ignored.
        let mut late = envelope;
        late.signatures = [vec![late.signatures[0].clone(); MAX_SIGNATURES], vec![late.signatures[1].clone()]].concat();
        check(&late.to_json(), &keys, Reason::UnknownKey);
    }

    #[test]
    fn both_alphabets_are_read_and_other_members_ignored() {
        let key = SigningKey::generate().unwrap();
        let keys = Keys::new([trusted(key.public())]);
        let payload = b"{\"\xc3\xbf\":\"???>>>~~~\"}";
        let good = String::from_utf8(SignedEnvelope::sign(payload, &[&key]).to_json()).unwrap();
        let url_safe = good.replace('+', "-").replace("deploy-json", "deploy+json").replace('/', "_").replace('=', "");
        let url_safe = url_safe.replace("application_", "application/");
        assert_ne!(good, url_safe);
        let noted = good.replacen('{', "{\"note\":1,", 1);
        for envelope in [url_safe, noted] {
            assert_eq!(SignedEnvelope::parse(envelope.as_bytes()).unwrap().verify(&keys).unwrap().0, payload);
        }
    }
}
