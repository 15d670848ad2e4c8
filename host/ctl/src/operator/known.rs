//! Keys of boards, as this computer has seen them: trust on first use, as SSH does with hosts.
//!
//! ```text
//! ~/.config/sedge/known_boards
//! <broker>/<base topic> <public key in base64> <name of the board>
//! ```

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use sedge_core::deploy::keys::PublicKey;

const FILE: &str = "known_boards";
const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const END: &str = "-----END PUBLIC KEY-----";

/// The known boards of one broker.
#[derive(Debug, Default)]
pub(crate) struct KnownBoards {
    /// `None`: there is no home folder, and nothing is remembered.
    path: Option<PathBuf>,
    broker: String,
    keys: BTreeMap<Arc<str>, PublicKey>,
    added: Vec<String>,
}

impl KnownBoards {
    /// The boards behind a broker, in `$XDG_CONFIG_HOME/sedge`, or `~/.config/sedge`.
    pub(crate) fn open(broker: &str) -> Self {
        let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let config = folder("XDG_CONFIG_HOME").or_else(|| Some(folder("HOME")?.join(".config")));
        Self::read(config.map(|config| config.join("sedge").join(FILE)), broker)
    }

    fn read(path: Option<PathBuf>, broker: &str) -> Self {
        let text = path.as_ref().and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        let entry = |line: &str| {
            let (of, rest) = line.split_once(' ')?;
            let (key, node) = rest.split_once(' ')?;
            let key = PublicKey::from_pem(format!("{BEGIN}\n{key}\n{END}\n").as_bytes()).ok()?;
            (of == broker).then(|| (node.into(), key))
        };
        Self { path, broker: broker.to_owned(), keys: text.lines().filter_map(entry).collect(), added: Vec::new() }
    }

    pub(crate) fn get(&self, node: &str) -> Option<&PublicKey> {
        self.keys.get(node)
    }

    /// Trusts a board that was not known.
    pub(crate) fn add(&mut self, node: &Arc<str>, key: PublicKey) {
        let pem = key.to_pem();
        let base64 = pem.lines().nth(1).unwrap_or_default();
        self.added.push(format!("{} {base64} {node}\n", self.broker));
        self.keys.insert(Arc::clone(node), key);
    }

    /// Remembers the boards that were added.
    pub(crate) fn save(&mut self) {
        let lines = std::mem::take(&mut self.added).concat();
        let Some(path) = self.path.as_ref().filter(|_| !lines.is_empty()) else { return };
        let append = || {
            fs::create_dir_all(path.parent().unwrap_or(path))?;
            // One write: lines of commands that run at once do not mix.
            OpenOptions::new().append(true).create(true).mode(0o600).open(path)?.write_all(lines.as_bytes())
        };
        if let Err(error) = append() {
            eprintln!("note: the keys of boards could not be remembered in {}: {error}", path.display());
        }
    }

    /// How to accept another key of a board.
    pub(crate) fn fix(&self, node: &str) -> String {
        let place = self.path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        format!(
            "if the board was set up anew, remove the line of {node} at {} from {place}; otherwise somebody publishes in its name",
            self.broker
        )
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use sedge_core::deploy::keys::SigningKey;

    #[test]
    fn keys_are_remembered_by_broker_and_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sedge").join(FILE);
        let (one, two) = (SigningKey::generate().unwrap().public(), SigningKey::generate().unwrap().public());
        let mut known = KnownBoards::read(Some(path.clone()), "mqtt://a/sedge");
        known.add(&"cold room".into(), one);
        known.save();
        let mut other = KnownBoards::read(Some(path.clone()), "mqtt://b/sedge");
        assert_eq!(other.get("cold room"), None);
        other.add(&"cold room".into(), two);
        other.save();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, fs::read_to_string(&path).unwrap() + "damaged line\n").unwrap();
        let known = KnownBoards::read(Some(path.clone()), "mqtt://a/sedge");
        assert_eq!(known.get("cold room"), Some(&one));
        assert_eq!(KnownBoards::read(Some(path), "mqtt://b/sedge").get("cold room"), Some(&two));
        KnownBoards::read(None, "mqtt://a/sedge").save();
    }
}
