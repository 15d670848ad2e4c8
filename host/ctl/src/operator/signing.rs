//! Options of all signed orders: target, key, expiry and how long to wait.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;

use sedge_core::config::check;
use sedge_core::deploy::envelope::SignedEnvelope;
use sedge_core::deploy::keys::{Keys, SigningKey, TrustedKey};
use sedge_core::deploy::payload::{Order, OrderChange};
use sedge_core::deploy::topics::Target;
use sedge_core::time::Now;

/// Long enough for boards that are switched off for weeks, short enough that a stolen order expires.
const DEFAULT_EXPIRES_IN_SECS: u64 = 30 * 24 * 3600;

/// A live trial takes up to a minute by default, after receiving and compiling.
const DEFAULT_TIMEOUT_SECS: u64 = 300;

#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct TargetArgs {
    /// The board, by its node.name
    #[arg(long, value_name = "NAME", value_parser = node)]
    node: Option<String>,
    /// All boards of a group, by its name in their node.groups
    #[arg(long, value_name = "NAME", value_parser = level)]
    group: Option<String>,
}

impl TargetArgs {
    pub(crate) fn target(&self) -> Target {
        match (&self.node, &self.group) {
            (Some(node), _) => Target::Node(node.as_str().into()),
            (None, group) => Target::Group(group.as_deref().unwrap_or_default().into()),
        }
    }
}

fn level(text: &str) -> Result<String, String> {
    check::level(text).map(|()| text.to_owned()).map_err(|invalid| invalid.what)
}

pub(crate) fn node(text: &str) -> Result<String, String> {
    match text {
        "group" | "blob" => Err("this name is reserved for Sedge's own topics".into()),
        _ => level(text),
    }
}

#[derive(Clone, Debug, Args)]
pub(crate) struct KeyArgs {
    /// Private key to sign with, as `sedge keygen` writes it [default: SEDGE_KEY]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Lifetime of the order: boards that receive it later refuse it [default: 30 days]
    #[arg(long, value_name = "SECS", default_value_t = DEFAULT_EXPIRES_IN_SECS, hide_default_value = true)]
    expires_in: u64,
}

impl KeyArgs {
    pub(crate) fn load(&self) -> anyhow::Result<Signer> {
        Ok(Signer { key: load_key(self.key.as_deref())?, expires_in_secs: self.expires_in })
    }
}

/// The key in a file, or in the one that `SEDGE_KEY` names.
pub(crate) fn load_key(path: Option<&Path>) -> anyhow::Result<SigningKey> {
    let named = || std::env::var_os("SEDGE_KEY").filter(|path| !path.is_empty()).map(PathBuf::from);
    let Some(path) = path.map(Path::to_owned).or_else(named) else {
        bail!("no key to sign with: name its file with --key or in SEDGE_KEY; `sedge keygen` creates one");
    };
    let pem = fs::read(&path).with_context(|| format!("failed to read the key {}", path.display()))?;
    SigningKey::from_pem(&pem).with_context(|| format!("cannot sign with {}", path.display()))
}

/// A signing key, and the lifetime of its orders.
pub(crate) struct Signer {
    key: SigningKey,
    expires_in_secs: u64,
}

impl Signer {
    pub(crate) fn key_id(&self) -> String {
        self.key.public().id().to_string()
    }

    pub(crate) fn order(&self, function: &str, target: &Target, serial: u64, change: OrderChange, now: Now) -> Order {
        let lifetime_ms = self.expires_in_secs.saturating_mul(1000);
        Order {
            function: function.into(),
            serial,
            target: target.clone(),
            issued_at_ms: now.unix_ms,
            expires_at_ms: now.unix_ms.saturating_add(lifetime_ms),
            change,
        }
    }

    pub(crate) fn sign(&self, order: &Order) -> Vec<u8> {
        SignedEnvelope::sign(&order.to_json(), &[&self.key]).to_json()
    }

    /// Returns the order of an envelope that this key has signed.
    pub(crate) fn verify_own(&self, envelope: &[u8]) -> Option<Order> {
        let key = TrustedKey {
            name: "own".into(),
            public_key: self.key.public(),
            functions: Vec::new(),
            topics: Vec::new(),
            keys: true,
            native_code: true,
            settings_only: false,
            record: false,
            logs: false,
        };
        let keys = Keys::new([key]);
        let envelope = SignedEnvelope::parse(envelope).ok()?;
        let (payload, _) = envelope.verify(&keys).ok()?;
        Order::parse(payload).ok()
    }
}

#[derive(Clone, Debug, Args)]
pub(crate) struct WaitArgs {
    /// Exit once the broker has the order, without waiting for boards
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Maximum duration of the whole command
    #[arg(long, value_name = "SECS", default_value_t = DEFAULT_TIMEOUT_SECS)]
    pub(crate) timeout: u64,
}

impl WaitArgs {
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signer_recognises_only_its_own_orders() {
        let signer = |_| Signer { key: SigningKey::generate().unwrap(), expires_in_secs: 60 };
        let [mine, other] = [1, 2].map(signer);
        let order =
            mine.order("warm", &Target::Node("a".into()), 3, OrderChange::Remove, sedge_sandbox::clock::now(true));
        assert_eq!(order.expires_at_ms - order.issued_at_ms, 60_000);
        let envelope = mine.sign(&order);
        assert_eq!(mine.verify_own(&envelope), Some(order));
        assert_eq!(other.verify_own(&envelope), None);
        assert_eq!(mine.verify_own(b"{}"), None);
    }

    #[test]
    fn a_missing_or_wrong_key_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let load = |path: PathBuf| {
            let error = KeyArgs { key: Some(path), expires_in: 1 }.load().err().unwrap();
            format!("{error:#}")
        };
        let missing = load(dir.path().join("none.pem"));
        assert!(missing.contains("none.pem"), "{missing}");
        let public = dir.path().join("public.pem");
        fs::write(&public, SigningKey::generate().unwrap().public().to_pem()).unwrap();
        let wrong = load(public);
        assert!(wrong.contains("public.pem") && wrong.contains("private key is expected"), "{wrong}");
    }
}
