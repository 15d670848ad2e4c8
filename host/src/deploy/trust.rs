//! The trusted keys: those of the configuration, changed by signed orders.

use std::io;

use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::keys::{Keys, MOST_KEYS, TrustedKey};
use super::payload::KeyUpdate;
use super::reason::{Reason, Refusal};
use super::record::{self, OrderHistory};
use crate::config;
use crate::key::KeyId;

const FILE: &str = "keys.record";
const MOST_REVOKED: usize = 1024;

#[derive(Debug, Default)]
pub(crate) struct Trust {
    configured: Vec<TrustedKey>,
    changes: Changes,
    effective: Keys,
}

/// The changes on disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Changes {
    #[serde(rename = "line")]
    history: OrderHistory,
    trusted: Vec<TrustedKey>,
    revoked: Vec<KeyId>,
}

impl Trust {
    /// A damaged file is set aside: the keys of the configuration apply again.
    pub(crate) fn open(disk: &Disk, config: &config::Deploy) -> io::Result<Self> {
        let changes = match disk.read("", FILE) {
            Ok(bytes) => match record::decode(&bytes) {
                Some(changes) => changes,
                None => {
                    let moved_to = disk.set_aside("", FILE)?;
                    tracing::error!(
                        moved_to = %moved_to.display(),
                        "the changes of the trusted keys are damaged: the keys of the configuration apply, also \
                         revoked ones; check them"
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

    pub(crate) fn configure(&mut self, config: &config::Deploy) {
        self.configured = config.keys.iter().filter_map(|(name, key)| TrustedKey::configured(name, key)).collect();
        self.effective = effective(&self.configured, &self.changes);
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.effective
    }

    pub(crate) fn history(&self) -> &OrderHistory {
        &self.changes.history
    }

    /// Changes nothing unless the change is on disk. `may_give_code`: all signers may send native code, so they may grant
    /// that permission.
    pub(crate) fn update(
        &mut self,
        disk: &Disk,
        update: &KeyUpdate,
        history: OrderHistory,
        may_give_code: bool,
    ) -> Result<(), OrderError> {
        let mut changes = Changes { history, ..self.changes.clone() };
        changes.trusted.retain(|known| !update.revoke.contains(&known.id()));
        for id in &update.revoke {
            if !changes.revoked.contains(id) {
                changes.revoked.push(*id);
            }
        }
        // A key in both lists is trusted: its permissions are replaced.
        for key in &update.trust {
            changes.revoked.retain(|revoked| *revoked != key.id());
            changes.trusted.retain(|known| known.public_key != key.public_key);
            changes.trusted.push(key.clone());
        }
        if self.configured.len() + changes.trusted.len() > MOST_KEYS || changes.revoked.len() > MOST_REVOKED {
            let detail = format!("a board keeps at most {MOST_KEYS} trusted and {MOST_REVOKED} revoked keys");
            return Err(Refusal::new(Reason::OverLimit, detail).into());
        }
        let effective = effective(&self.configured, &changes);
        // Checked on the result: a key that is trusted again gets the permissions of the configuration.
        let had = |key: &TrustedKey| self.effective.get(key.id()).is_some_and(|before| before.native_code);
        if let Some(key) = effective.iter().find(|key| key.native_code && !had(key) && !may_give_code) {
            let detail = format!(
                "key {} would then send native code, which a signer of this order may not: only keys with \
                 native_code = true grant it",
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

/// Failure to carry an order out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OrderError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("failed to write to the deploy folder")]
    Disk(#[from] io::Error),
}

/// The configuration takes precedence over orders.
fn effective(configured: &[TrustedKey], changes: &Changes) -> Keys {
    let all = configured.iter().chain(&changes.trusted);
    Keys::new(all.filter(|key| !changes.revoked.contains(&key.id())).cloned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::testing::board::trusted;
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
        let history = OrderHistory { serial: Some(3), ..OrderHistory::default() };
        trust.update(&disk, &update, history.clone(), false).unwrap();
        assert_eq!(names(&trust), ["new"]);
        let mut trust = Trust::open(&disk, &config).unwrap();
        assert_eq!((names(&trust), trust.history()), (vec!["new"], &history));
        trust.configure(&config);
        assert_eq!(names(&trust), ["new"], "a reload does not bring a revoked key back");
        // An order trusts it again.
        let update = KeyUpdate { trust: vec![trusted("again", &old)], revoke: vec![new.public().id()] };
        trust.update(&disk, &update, history, false).unwrap();
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
            .update(
                &disk,
                &KeyUpdate { trust: vec![], revoke: vec![old.public().id()] },
                OrderHistory::default(),
                false,
            )
            .unwrap();
        let whole = disk.read("", FILE).unwrap();
        std::fs::write(disk.path("", FILE), &whole[..whole.len() - 1]).unwrap();
        assert_eq!(names(&Trust::open(&disk, &config).unwrap()), ["old"]);
        assert!(disk.exists("", "keys.record.damaged") && !disk.exists("", FILE));
    }

    #[test]
    fn signers_grant_only_permissions_that_they_have() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path().join("deploy")).unwrap();
        let (old, new) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let mut config = config(&[("old", &old)]);
        config.keys.get_mut("old").unwrap().native_code = true;
        let mut trust = Trust::open(&disk, &config).unwrap();
        let sender = TrustedKey { native_code: true, ..trusted("new", &new) };
        let given = KeyUpdate { trust: vec![sender], revoke: vec![] };
        let gone = KeyUpdate { trust: vec![], revoke: vec![old.public().id()] };
        // The configuration still grants native code to the revoked key.
        let back = KeyUpdate { trust: vec![trusted("old", &old)], revoke: vec![] };
        let mut update =
            |update, may_give_code| trust.update(&disk, update, OrderHistory::default(), may_give_code).is_ok();
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
        assert!(matches!(trust.update(&disk, &update, OrderHistory::default(), false), Err(OrderError::Disk(_))));
        assert_eq!(names(&trust), ["old"]);
        assert!(disk.list("").unwrap().is_empty());
    }
}
