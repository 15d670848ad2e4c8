//! What makes a value good beyond its type: names that become topic levels, addresses, files.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::Read;
use std::net::Ipv6Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::problem::Invalid;
use super::reader::CREDENTIAL_STORE;
use crate::key::{KeyError, PublicKey};
use crate::topic;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    Mqtt,
    Mqtts,
    Http,
    Https,
}

impl Scheme {
    pub const LOCAL: &[Self] = &[Self::Mqtt, Self::Mqtts];
    pub const ALL: &[Self] = &[Self::Mqtt, Self::Mqtts, Self::Http, Self::Https];

    fn name(self) -> &'static str {
        match self {
            Self::Mqtt => "mqtt",
            Self::Mqtts => "mqtts",
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    pub fn is_mqtt(self) -> bool {
        matches!(self, Self::Mqtt | Self::Mqtts)
    }

    pub fn is_tls(self) -> bool {
        matches!(self, Self::Mqtts | Self::Https)
    }
}

/// The scheme of an address, when all of the address is good.
pub(crate) fn url(text: &str, allowed: &[Scheme]) -> Result<Scheme, Invalid> {
    let wrong = |why: &str| Invalid::new(format!("{text:?} is no address: {why}"));
    let schemes: Vec<String> = allowed.iter().map(|scheme| format!("{}://", scheme.name())).collect();
    let schemes = schemes.join(", ");
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(wrong("it has no scheme").hint(format!("write {}://{text}", allowed[0].name())));
    };
    let Some(scheme) = allowed.iter().copied().find(|known| known.name() == scheme) else {
        let meant = match scheme {
            "tcp" => Some("mqtt://"),
            "ssl" | "tls" => Some("mqtts://"),
            _ => None,
        };
        let hint = meant.map_or_else(|| format!("use one of {schemes}"), |meant| format!("write {meant}"));
        return Err(wrong(&format!("unknown scheme {scheme}://")).hint(hint));
    };
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(wrong("it holds white space").hint("remove it"));
    }
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err(Invalid::new("an address holds no user name and no password").hint(if scheme.is_mqtt() {
            "use username and password_file"
        } else {
            "use authorization_file"
        }));
    }
    if scheme.is_mqtt() && !path.is_empty() && path != "/" {
        return Err(wrong("MQTT has no path").hint(format!("remove {path}")));
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or_else(|| wrong("] is missing"))?;
            host.parse::<Ipv6Addr>().map_err(|_| wrong("no IPv6 address between [ and ]"))?;
            let port = if after.is_empty() { None } else { Some(after.strip_prefix(':').unwrap_or(after)) };
            (host, port)
        }
        None if authority.matches(':').count() > 1 => {
            return Err(wrong("an IPv6 address stands in brackets").hint("for example [::1]:1883"));
        }
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() {
        return Err(wrong("it names no host").hint(format!("for example {}://localhost", scheme.name())));
    }
    let in_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if let Some(bad) = host.chars().find(|c| !in_host(*c)) {
        return Err(wrong(&format!("{bad:?} cannot stand in a host name")));
    }
    match port.map(str::parse::<u16>) {
        None | Some(Ok(1..)) => Ok(scheme),
        _ => Err(wrong("the port is no number from 1 to 65535")),
    }
}

/// A name that becomes one level of topics.
pub(crate) fn level(text: &str) -> Result<(), Invalid> {
    if let Some(bad) = text.chars().find(|c| matches!(c, '/' | '+' | '#')) {
        let invalid = Invalid::new(format!("{text:?} holds {bad}, but it becomes one level of topics"));
        return Err(invalid.hint("use letters, digits, - and _"));
    }
    if text.starts_with('$') {
        return Err(Invalid::new(format!("{text:?} begins with $")).hint("topics with $ belong to the broker"));
    }
    topic::validate_name(text).map_err(|error| Invalid::new(error.to_string()))
}

/// The beginning of topics, with or without a slash at its end.
pub(crate) fn topic_prefix(text: &str) -> Result<(), Invalid> {
    topic::validate_name(text).map_err(|error| Invalid::new(error.to_string()).hint("for example plant-3/"))
}

/// Whether topics made with this prefix may have this first level.
pub(crate) fn may_begin(prefix: &str, level: &str) -> bool {
    match prefix.split_once('/') {
        Some((first, _)) => first == level,
        // The rest of the level is the sender's to choose.
        None => level.starts_with(prefix),
    }
}

/// Whether two good addresses are plainly of one broker. A name that is given to it elsewhere is not looked up.
pub(crate) fn same_broker(one: &str, other: &str) -> bool {
    let place = |url: &str| -> Option<(String, u16)> {
        let (scheme, rest) = url.split_once("://")?;
        let authority = rest.trim_end_matches('/').to_ascii_lowercase();
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
            _ => (&*authority, if scheme == "mqtts" { 8883 } else { 1883 }),
        };
        let host = if host == "[::1]" || host.starts_with("127.") { "localhost" } else { host };
        Some((host.to_owned(), port))
    };
    place(one).is_some() && place(one) == place(other)
}

/// A string as MQTT carries them.
pub(crate) fn mqtt_string(text: &str) -> Result<(), Invalid> {
    if text.len() > topic::MAX_BYTES {
        return Err(Invalid::new(format!("{} bytes are too long", text.len())).hint("use at most 65535"));
    }
    match text.chars().find(|c| c.is_control()) {
        Some(bad) => Err(Invalid::new(format!("it holds the character {}", bad.escape_unicode())).hint("remove it")),
        None => Ok(()),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Secret,
    Certificate,
    PrivateKey,
}

/// The Ed25519 key of a file that everybody may read.
pub(crate) fn public_key(path: &Path) -> Result<PublicKey, Invalid> {
    let (text, _) = read(path)?;
    PublicKey::from_pem(&text).map_err(|error| {
        let (what, hint) = match error {
            KeyError::Private => (
                "is a private key, which does not belong on a board",
                "keep it with whoever pushes, and put the public one here: openssl pkey -in private.pem -pubout",
            ),
            KeyError::Certificate => ("is a certificate, not a public key", "name the file that sedge keygen wrote"),
            KeyError::OtherAlgorithm => {
                ("is a public key, but not of Ed25519", "make a pair with sedge keygen, and name its .pub.pem")
            }
            _ => ("holds no public key in PEM", "name the .pub.pem file that sedge keygen wrote"),
        };
        Invalid::new(format!("{} {what}", path.display())).hint(hint)
    })
}

/// Whether the file can be read and is what it should be. `Ok(Some(_))` is a warning.
pub(crate) fn file(path: &Path, content: Content) -> Result<Option<Invalid>, Invalid> {
    let shown = path.display();
    let (text, metadata) = read(path)?;
    let has = |marker: &str| text.windows(marker.len()).any(|window| window == marker.as_bytes());
    match content {
        Content::Secret if text.trim_ascii().is_empty() => {
            return Err(Invalid::new(format!("{shown} is empty")).hint("write the secret into it"));
        }
        Content::Certificate if !has("-----BEGIN CERTIFICATE-----") => {
            return Err(Invalid::new(format!("{shown} holds no certificate in PEM")).hint(
                if has("PRIVATE KEY-----") { "this is a private key: is it the other file?" } else { PEM_HINT },
            ));
        }
        Content::PrivateKey if !has("PRIVATE KEY-----") => {
            return Err(Invalid::new(format!("{shown} holds no private key in PEM")).hint(
                if has("-----BEGIN CERTIFICATE-----") {
                    "this is a certificate: is it the other file?"
                } else {
                    PEM_HINT
                },
            ));
        }
        Content::PrivateKey if has("-----BEGIN ENCRYPTED PRIVATE KEY-----") => {
            let hint = "decrypt it once: openssl pkey -in encrypted.pem -out key.pem";
            return Err(
                Invalid::new(format!("{shown} is encrypted, and nobody is there to type its password")).hint(hint)
            );
        }
        _ => {}
    }
    let mode = metadata.permissions().mode() & 0o777;
    if content != Content::Certificate && mode & 0o004 != 0 {
        let invalid = Invalid::new(format!("{shown} can be read by every user (mode {mode:o})"));
        return Ok(Some(invalid.hint(format!("chmod o= {shown}"))));
    }
    Ok(None)
}

/// The beginning of a file that holds a text.
fn read(path: &Path) -> Result<(Vec<u8>, Metadata), Invalid> {
    let shown = path.display();
    let unreadable = |error: std::io::Error| {
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => absent(path, std::env::var_os("CREDENTIALS_DIRECTORY").as_deref()),
            std::io::ErrorKind::PermissionDenied => {
                format!("let {} read it, or hand it over with LoadCredential= in the unit", user())
            }
            _ => "correct the path".into(),
        };
        Invalid::new(format!("{shown} cannot be read: {error}")).hint(hint)
    };
    // Opening a pipe would wait for its writer, perhaps for ever.
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(Invalid::new(format!("{shown} is no file")).hint("correct the path"));
    }
    let mut text = Vec::new();
    File::open(path).and_then(|file| file.take(MOST_BYTES).read_to_end(&mut text)).map_err(unreadable)?;
    Ok((text, metadata))
}

/// How to mend that there is no such file, or no such credential.
fn absent(path: &Path, credentials: Option<&OsStr>) -> String {
    match credentials.and_then(|folder| path.strip_prefix(folder).ok()) {
        Some(name) => {
            let name = name.display();
            format!("write it to {CREDENTIAL_STORE}/{name}, or name its file in the unit: LoadCredential={name}:FILE")
        }
        None => "create it, or correct the path".into(),
    }
}

const MOST_BYTES: u64 = 1 << 20;
const PEM_HINT: &str = "convert it: openssl x509 or openssl pkey, -inform DER -outform PEM";

fn user() -> String {
    format!("user {}", rustix::process::geteuid().as_raw())
}

/// A folder that the daemon may still have to create.
pub(crate) fn data_dir(path: &Path) -> Result<(), Invalid> {
    match std::fs::metadata(path) {
        Ok(metadata) if !metadata.is_dir() => {
            Err(Invalid::new(format!("{} is no folder", path.display())).hint("name a folder"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_that_is_not_there_is_told_from_a_file() {
        let path = Path::new("/run/credentials/sedge.service/sedge.mqtt-password");
        let hint = absent(path, Some("/run/credentials/sedge.service".as_ref()));
        assert_eq!(
            hint,
            "write it to /etc/credstore/sedge.mqtt-password, or name its file in the unit: \
             LoadCredential=sedge.mqtt-password:FILE"
        );
        assert_eq!(absent(path, Some("/run/other".as_ref())), "create it, or correct the path");
        assert_eq!(absent(path, None), "create it, or correct the path");
    }
}
