//! What makes a value good beyond its type: names that become topic levels, and the content of files. No I/O.

use std::path::{Path, PathBuf};

use super::problem::{Invalid, Location};
use crate::key::{KeyError, PublicKey};
use crate::settings::TopicText;
use crate::topic;

/// Checks a name that becomes one level of topics.
pub fn level(text: &str) -> Result<(), Invalid> {
    if let Some(bad) = text.chars().find(|c| matches!(c, '/' | '+' | '#')) {
        let invalid = Invalid::new(format!("{text:?} contains {bad}, but it becomes one level of topics"));
        return Err(invalid.hint("use letters, digits, - and _"));
    }
    if text.starts_with('$') {
        return Err(Invalid::new(format!("{text:?} begins with $")).hint("topics with $ belong to the broker"));
    }
    topic::validate_name(text).map_err(|error| Invalid::new(error.to_string()))
}

/// Checks a prefix of topics, with or without a slash at its end. It may be empty.
pub(crate) fn topic_prefix(text: &str) -> Result<(), Invalid> {
    // Alerts have the longest of Sedge's own topics.
    let longest = format!("{text}alerts/{}", "x".repeat(64));
    topic::validate_name(&longest).map_err(|error| Invalid::new(error.to_string()).hint("for example plant-3/"))
}

/// Checks the first levels of topics that belong to another program.
pub(crate) fn discovery_prefix(text: &str, base_topic: &str) -> Result<(), Invalid> {
    const HINT: &str = "write it as in Home Assistant, for example \"homeassistant\"";
    if text.split('/').any(str::is_empty) {
        return Err(Invalid::new(format!("{text:?} has an empty level")).hint(HINT));
    }
    if text.starts_with('$') {
        return Err(Invalid::new(format!("{text:?} begins with $")).hint("topics with $ belong to the broker"));
    }
    if text.split('/').next() == Some(base_topic) {
        let invalid = Invalid::new(format!("{base_topic:?} is the first level of Sedge's own topics"));
        return Err(invalid.hint(HINT));
    }
    // Two names and three levels come behind it.
    let longest = format!("{text}/device/{}/config", "x".repeat(256));
    topic::validate_name(&longest).map_err(|error| Invalid::new(error.to_string()).hint(HINT))
}

/// Whether topics with this prefix may have this first level.
pub(crate) fn may_begin(prefix: &str, level: &str) -> bool {
    match prefix.split_once('/') {
        Some((first, _)) => first == level,
        // The rest of the level is the sender's to choose.
        None => level.starts_with(prefix),
    }
}

/// Checks a string against MQTT's limits.
pub(crate) fn mqtt_string(text: &str) -> Result<(), Invalid> {
    if text.len() > topic::MAX_BYTES {
        return Err(Invalid::new(format!("{} bytes are too long", text.len())).hint("use at most 65535"));
    }
    match text.chars().find(|c| c.is_control()) {
        Some(bad) => Err(Invalid::new(format!("contains the character {}", bad.escape_unicode())).hint("remove it")),
        None => Ok(()),
    }
}

/// A file or folder that a value names. Reading the values collects them, [`super::load`] inspects them.
pub(crate) struct NamedFile {
    pub(crate) path: PathBuf,
    pub(crate) content: Content,
    /// Place and full name of the key.
    pub(crate) at: Location,
    pub(crate) key: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Secret,
    /// A secret that lets requests in: nobody else may know it.
    Token,
    Certificate,
    PrivateKey,
    /// Of `deploy.keys.<name>`.
    PublicKey(String),
    /// Of `functions.settings.<function>`, for all topics or one filter.
    Setting {
        function: String,
        topic: Option<TopicText>,
        name: String,
    },
    /// May be created later.
    DataDir,
    FunctionFolder,
}

/// Reads an Ed25519 public key in PEM.
pub(crate) fn public_key(path: &Path, text: &[u8]) -> Result<PublicKey, Invalid> {
    PublicKey::from_pem(text).map_err(|error| {
        let (what, hint) = match error {
            KeyError::Private => (
                "is a private key, which does not belong on a board",
                "keep it with whoever pushes, and put the public one here: openssl pkey -in private.pem -pubout",
            ),
            KeyError::Certificate => ("is a certificate, not a public key", "name the file that sedge keygen wrote"),
            KeyError::OtherAlgorithm => {
                ("is a public key, but not of Ed25519", "make a pair with sedge keygen, and name its .pub.pem")
            }
            _ => ("contains no public key in PEM", "name the .pub.pem file that sedge keygen wrote"),
        };
        Invalid::new(format!("{} {what}", path.display())).hint(hint)
    })
}

/// Checks whether a file is what its key asks for. `Ok(Some(_))` is a warning.
pub(crate) fn file(path: &Path, text: &[u8], mode: u32, content: &Content) -> Result<Option<Invalid>, Invalid> {
    const PEM_HINT: &str = "convert it: openssl x509 or openssl pkey, -inform DER -outform PEM";
    let shown = path.display();
    let has = |marker: &str| text.windows(marker.len()).any(|window| window == marker.as_bytes());
    let (has_certificate, has_key) = (has("-----BEGIN CERTIFICATE-----"), has("PRIVATE KEY-----"));
    let invalid = match content {
        Content::Secret | Content::Token | Content::Setting { .. } if text.trim_ascii().is_empty() => {
            Invalid::new(format!("{shown} is empty")).hint("write the secret into it")
        }
        Content::Certificate if !has_certificate => {
            let hint = if has_key { "this is a private key: is it the other file?" } else { PEM_HINT };
            Invalid::new(format!("{shown} contains no certificate in PEM")).hint(hint)
        }
        Content::PrivateKey if !has_key => {
            let hint = if has_certificate { "this is a certificate: is it the other file?" } else { PEM_HINT };
            Invalid::new(format!("{shown} contains no private key in PEM")).hint(hint)
        }
        Content::PrivateKey if has("-----BEGIN ENCRYPTED PRIVATE KEY-----") => {
            let hint = "decrypt it once: openssl pkey -in encrypted.pem -out key.pem";
            Invalid::new(format!("{shown} is encrypted, and nobody is there to type its password")).hint(hint)
        }
        Content::Token if mode & 0o004 != 0 => {
            let what = format!("{shown} can be read by every user (mode {mode:o}), who could then send requests");
            Invalid::new(what).hint(format!("chmod o= {shown}"))
        }
        Content::Secret | Content::PrivateKey | Content::Setting { .. } if mode & 0o004 != 0 => {
            let invalid = Invalid::new(format!("{shown} can be read by every user (mode {mode:o})"));
            return Ok(Some(invalid.hint(format!("chmod o= {shown}"))));
        }
        _ => return Ok(None),
    };
    Err(invalid)
}
