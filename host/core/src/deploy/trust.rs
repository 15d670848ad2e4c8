//! The trusted keys: those of the configuration, changed by signed orders.

use serde::{Deserialize, Serialize};

use super::keys::{Keys, MOST_KEYS, TrustedKey};
use super::payload::KeyUpdate;
use super::reason::{Reason, Refusal};
use super::record::OrderHistory;
use crate::config;
use crate::key::KeyId;

const MOST_REVOKED: usize = 1024;

#[derive(Debug, Default)]
pub struct Trust {
    configured: Vec<TrustedKey>,
    changes: Changes,
    effective: Keys,
}

/// The changes on disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Changes {
    #[serde(rename = "line")]
    history: OrderHistory,
    trusted: Vec<TrustedKey>,
    revoked: Vec<KeyId>,
}

impl Trust {
    /// `changes`: content of the file, or `None` to start without changes.
    pub fn new(changes: Option<Changes>, config: &config::Deploy) -> Self {
        let mut trust = Self { changes: changes.unwrap_or_default(), ..Self::default() };
        trust.configure(config);
        trust
    }

    pub(crate) fn configure(&mut self, config: &config::Deploy) {
        self.configured = config.keys.iter().filter_map(|(name, key)| TrustedKey::configured(name, key)).collect();
        self.effective = effective(&self.configured, &self.changes);
    }

    pub fn keys(&self) -> &Keys {
        &self.effective
    }

    pub fn history(&self) -> &OrderHistory {
        &self.changes.history
    }

    /// Refuses to leave the board without a key that may change keys and has proven itself by an order that was accepted:
    /// nobody could repair that from afar. `is_proven` counts the signers of this order.
    pub fn keeps_a_key_that_changes_keys(
        &self,
        update: &KeyUpdate,
        is_proven: impl Fn(&TrustedKey) -> bool,
    ) -> Result<(), Refusal> {
        let after = effective(&self.configured, &self.changed(update, OrderHistory::default()));
        if update.force || after.iter().any(|key| key.keys && !key.settings_only && is_proven(key)) {
            return Ok(());
        }
        let others: Vec<&str> = after.iter().filter(|key| key.keys).map(|key| &*key.name).collect();
        let detail = if others.is_empty() {
            "no key that may change the trusted keys would be left: trust another one first (`sedge trust KEY --keys`), and \
             let it sign an order; or insist with --force"
                .to_owned()
        } else {
            format!(
                "of the keys that may change the trusted keys, only {} would be left, of which this board has not accepted an \
                 order yet: push or trust something with it first; or insist with --force",
                others.join(", ")
            )
        };
        Err(Refusal::new(Reason::LastKey, detail))
    }

    /// Returns the changes on disk after `update`, which apply once they are there. `may_give_code`: all signers may send
    /// native code, so they may grant that permission.
    pub fn decide(&self, update: &KeyUpdate, history: OrderHistory, may_give_code: bool) -> Result<Changes, Refusal> {
        let changes = self.changed(update, history);
        if self.configured.len() + changes.trusted.len() > MOST_KEYS || changes.revoked.len() > MOST_REVOKED {
            let detail = format!("a board keeps at most {MOST_KEYS} trusted and {MOST_REVOKED} revoked keys");
            return Err(Refusal::new(Reason::OverLimit, detail));
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
            return Err(Refusal::new(Reason::KeyNotAllowed, detail));
        }
        Ok(changes)
    }

    fn changed(&self, update: &KeyUpdate, history: OrderHistory) -> Changes {
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
        changes
    }

    /// Applies changes that are on disk.
    pub fn apply(&mut self, changes: Changes) {
        self.effective = effective(&self.configured, &changes);
        self.changes = changes;
    }
}

/// The configuration takes precedence over orders.
fn effective(configured: &[TrustedKey], changes: &Changes) -> Keys {
    let all = configured.iter().chain(&changes.trusted);
    Keys::new(all.filter(|key| !changes.revoked.contains(&key.id())).cloned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::record;
    use crate::key::SigningKey;

    fn config(keys: &[(&str, &SigningKey)]) -> config::Deploy {
        let entry = |(name, key): &(&str, &SigningKey)| {
            let key = config::DeployKey { public_key: Some(key.public()), ..config::DeployKey::default() };
            ((*name).to_owned(), key)
        };
        config::Deploy { keys: keys.iter().map(entry).collect(), ..config::Deploy::default() }
    }

    fn trusted(name: &str, key: &SigningKey) -> TrustedKey {
        let config = config::DeployKey { public_key: Some(key.public()), ..config::DeployKey::default() };
        TrustedKey::configured(name, &config).unwrap()
    }

    fn names(trust: &Trust) -> Vec<&str> {
        trust.keys().iter().map(|key| &*key.name).collect()
    }

    #[test]
    fn keys_rotate_and_stay_rotated() {
        let (old, new) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let config = config(&[("old", &old)]);
        let mut trust = Trust::new(None, &config);
        assert_eq!(names(&trust), ["old"]);
        let update = KeyUpdate { trust: vec![trusted("new", &new)], revoke: vec![old.public().id()], force: false };
        let history = OrderHistory { serial: Some(3), ..OrderHistory::default() };
        let changes = trust.decide(&update, history.clone(), false).unwrap();
        assert_eq!(names(&trust), ["old"], "nothing changes before it is on disk");
        let file = record::encode(&changes);
        trust.apply(changes);
        assert_eq!(names(&trust), ["new"]);
        let mut trust = Trust::new(record::decode(&file), &config);
        assert_eq!((names(&trust), trust.history()), (vec!["new"], &history));
        trust.configure(&config);
        assert_eq!(names(&trust), ["new"], "a reload does not bring a revoked key back");
        // An order trusts it again.
        let update = KeyUpdate { trust: vec![trusted("again", &old)], revoke: vec![new.public().id()], force: false };
        let changes = trust.decide(&update, history, false).unwrap();
        trust.apply(changes);
        assert_eq!(names(&trust), ["old"]);
    }

    #[test]
    fn signers_grant_only_permissions_that_they_have() {
        let (old, new) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let mut config = config(&[("old", &old)]);
        config.keys.get_mut("old").unwrap().native_code = true;
        let mut trust = Trust::new(None, &config);
        let sender = TrustedKey { native_code: true, ..trusted("new", &new) };
        let given = KeyUpdate { trust: vec![sender], revoke: vec![], force: false };
        let gone = KeyUpdate { trust: vec![], revoke: vec![old.public().id()], force: false };
        // The configuration still grants native code to the revoked key.
        let back = KeyUpdate { trust: vec![trusted("old", &old)], revoke: vec![], force: false };
        let mut update = |update, may_give_code| {
            let changes = trust.decide(update, OrderHistory::default(), may_give_code);
            changes.map(|changes| trust.apply(changes)).is_ok()
        };
        assert!(!update(&given, false));
        assert!(update(&gone, false) && !update(&back, false));
        assert!(update(&back, true) && update(&given, true));
        assert_eq!(names(&trust), ["old", "new"]);
    }
}
