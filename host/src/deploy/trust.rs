//! Which keys are trusted now: those of the configuration, changed by signed orders since.

use std::io;

use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::keys::{Keys, MOST_KEYS, TrustedKey};
use super::payload::KeyUpdate;
use super::reason::{Reason, Refusal};
use super::record::{self, Line};
use crate::config;
use crate::key::KeyId;

const FILE: &str = "keys.record";

#[derive(Debug, Default)]
pub struct Trust {
    configured: Vec<TrustedKey>,
    changes: Changes,
    effective: Keys,
}

/// What is on disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Changes {
    line: Line,
    trusted: Vec<TrustedKey>,
    revoked: Vec<KeyId>,
}

impl Trust {
    /// A file that cannot be read is set aside: the configured keys count again, as a person at the board wrote them.
    pub fn open(disk: &Disk, config: &config::Deploy) -> io::Result<Self> {
        let changes = match disk.read("", FILE) {
            Ok(bytes) => match record::decode(&bytes) {
                Some(changes) => changes,
                None => {
                    let moved_to = disk.set_aside("", FILE)?;
                    tracing::error!(
                        moved_to = %moved_to.display(),
                        "what was changed about the trusted keys cannot be read: the keys of the configuration count, \
                         also those that were revoked since; check them"
                    );
                    Changes::default()
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Changes::default(),
            Err(error) => return Err(error),
        };
        let mut trust = Self { changes, ..Self::default() };
        trust.configure(config);
        Ok(trust)
    }

    pub fn configure(&mut self, config: &config::Deploy) {
        self.configured = config.keys.iter().filter_map(|(name, key)| TrustedKey::configured(name, key)).collect();
        self.effective = effective(&self.configured, &self.changes);
    }

    pub fn keys(&self) -> &Keys {
        &self.effective
    }

    pub fn line(&self) -> &Line {
        &self.changes.line
    }

    /// Nothing is changed unless all of it is on disk. Nobody hands on what he has not: `may_give_code` says whether all
    /// that signed the change may send native code themselves.
    pub fn update(
        &mut self,
        disk: &Disk,
        update: &KeyUpdate,
        line: Line,
        may_give_code: bool,
    ) -> Result<(), UpdateError> {
        let mut changes = Changes { line, ..self.changes.clone() };
        changes.trusted.retain(|known| !update.revoke.contains(&known.id()));
        for id in &update.revoke {
            if !changes.revoked.contains(id) {
                changes.revoked.push(*id);
            }
        }
        // Whoever is named in both is trusted: that is how a key is replaced by itself with other permissions.
        for key in &update.trust {
            changes.revoked.retain(|revoked| *revoked != key.id());
            changes.trusted.retain(|known| known.public_key != key.public_key);
            changes.trusted.push(key.clone());
        }
        if self.configured.len() + changes.trusted.len() > MOST_KEYS || changes.revoked.len() > MOST_REVOKED {
            let detail = format!("a board trusts at most {MOST_KEYS} keys, and remembers {MOST_REVOKED} revoked ones");
            return Err(Refusal::new(Reason::OverLimit, detail).into());
        }
        let effective = effective(&self.configured, &changes);
        // Of what comes of it, not of what it says: trusted again, a key has the permissions of the configuration.
        let had = |key: &TrustedKey| self.effective.get(key.id()).is_some_and(|before| before.native_code);
        if let Some(key) = effective.iter().find(|key| key.native_code && !had(key) && !may_give_code) {
            let detail = format!(
                "key {} would then send native code, which a key that signed this may not: only keys with \
                 native_code = true hand that on",
                key.name
            );
            return Err(Refusal::new(Reason::KeyNotAllowed, detail).into());
        }
        disk.replace("", FILE, &record::encode(&changes))?;
        self.effective = effective;
        self.changes = changes;
        Ok(())
    }
}

const MOST_REVOKED: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("failed to write the trusted keys")]
    Disk(#[from] io::Error),
}

/// What the configuration says of a key counts before what an order said.
fn effective(configured: &[TrustedKey], changes: &Changes) -> Keys {
    let all = configured.iter().chain(&changes.trusted);
    Keys::new(all.filter(|key| !changes.revoked.contains(&key.id())).cloned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::tests::board::trusted;
    use crate::key::SigningKey;

    fn config(keys: &[(&str, &SigningKey)]) -> config::Deploy {
        let entry = |(name, key): &(&str, &SigningKey)| {
            let key = config::DeployKey { public_key: Some(key.public()), ..config::DeployKey::default() };
            ((*name).to_owned(), key)
        };
        config::Deploy { keys: keys.iter().map(entry).collect(), ..config::Deploy::default() }
    }

    fn names(trust: &Trust) -> Vec<&str> {
        trust.keys().iter().map(|key| &*key.name).collect()
    }

    #[test]
    fn keys_rotate_and_stay_rotated() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path().join("deploy")).unwrap();
        let (old, new) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let config = config(&[("old", &old)]);
        let mut trust = Trust::open(&disk, &config).unwrap();
        assert_eq!(names(&trust), ["old"]);
        let update = KeyUpdate { trust: vec![trusted("new", &new)], revoke: vec![old.public().id()] };
        let line = Line { serial: Some(3), ..Line::default() };
        trust.update(&disk, &update, line.clone(), false).unwrap();
        assert_eq!(names(&trust), ["new"]);
        let mut trust = Trust::open(&disk, &config).unwrap();
        assert_eq!((names(&trust), trust.line()), (vec!["new"], &line));
        trust.configure(&config);
        assert_eq!(names(&trust), ["new"], "a reload does not bring a revoked key back");
        // Trusted again by an order, it is.
        let update = KeyUpdate { trust: vec![trusted("again", &old)], revoke: vec![new.public().id()] };
        trust.update(&disk, &update, line, false).unwrap();
        assert_eq!(names(&trust), ["old"]);
    }

    #[test]
    fn a_damaged_file_of_keys_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path().join("deploy")).unwrap();
        let old = SigningKey::generate().unwrap();
        let config = config(&[("old", &old)]);
        let mut trust = Trust::open(&disk, &config).unwrap();
        trust
            .update(&disk, &KeyUpdate { trust: vec![], revoke: vec![old.public().id()] }, Line::default(), false)
            .unwrap();
        let whole = disk.read("", FILE).unwrap();
        std::fs::write(disk.path("", FILE), &whole[..whole.len() - 1]).unwrap();
        assert_eq!(names(&Trust::open(&disk, &config).unwrap()), ["old"]);
        assert!(disk.exists("", "keys.record.damaged") && !disk.exists("", FILE));
    }

    #[test]
    fn nobody_gives_a_permission_that_he_has_not() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path().join("deploy")).unwrap();
        let (old, new) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let mut config = config(&[("old", &old)]);
        config.keys.get_mut("old").unwrap().native_code = true;
        let mut trust = Trust::open(&disk, &config).unwrap();
        let sender = TrustedKey { native_code: true, ..trusted("new", &new) };
        let given = KeyUpdate { trust: vec![sender], revoke: vec![] };
        let gone = KeyUpdate { trust: vec![], revoke: vec![old.public().id()] };
        // Of a revoked key the configuration still says that it may.
        let back = KeyUpdate { trust: vec![trusted("old", &old)], revoke: vec![] };
        let mut update = |update, may_give_code| trust.update(&disk, update, Line::default(), may_give_code).is_ok();
        assert!(!update(&given, false));
        assert!(update(&gone, false) && !update(&back, false));
        assert!(update(&back, true) && update(&given, true));
        assert_eq!(names(&trust), ["old", "new"]);
    }

    #[test]
    fn on_a_full_disk_nothing_changes() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path().join("deploy")).unwrap();
        let old = SigningKey::generate().unwrap();
        let mut trust = Trust::open(&disk, &config(&[("old", &old)])).unwrap();
        disk.faults.set_room(Some(10));
        let update = KeyUpdate { trust: vec![], revoke: vec![old.public().id()] };
        assert!(matches!(trust.update(&disk, &update, Line::default(), false), Err(UpdateError::Disk(_))));
        assert_eq!(names(&trust), ["old"]);
        assert!(disk.list("").unwrap().is_empty());
    }
}
