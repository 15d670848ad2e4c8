//! What every signed order is told on the command line: for whom, with which key, until when, and how long to wait for it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;

use crate::config::check;
use crate::deploy::envelope::Envelope;
use crate::deploy::keys::{Keys, SigningKey, TrustedKey};
use crate::deploy::payload::{Change, Order};
use crate::deploy::topics::Target;
use crate::time;

/// A retained order waits for boards that are switched off for a season's repair; a stolen one must end some day.
const DEFAULT_EXPIRES_IN_SECS: u64 = 30 * 24 * 3600;

/// A live trial takes up to a minute by default, after receiving and compiling.
const DEFAULT_TIMEOUT_SECS: u64 = 300;

#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
pub struct TargetArgs {
    /// The board, by its node.name
    #[arg(long, value_name = "NAME", value_parser = node)]
    node: Option<String>,
    /// All boards of a group, by its name in their node.groups
    #[arg(long, value_name = "NAME", value_parser = level)]
    group: Option<String>,
}

impl TargetArgs {
    pub fn target(&self) -> Target {
        match (&self.node, &self.group) {
            (Some(node), _) => Target::Node(node.as_str().into()),
            (None, group) => Target::Group(group.as_deref().unwrap_or_default().into()),
        }
    }
}

fn level(text: &str) -> Result<String, String> {
    check::level(text).map(|()| text.to_owned()).map_err(|misfit| misfit.what)
}

pub fn node(text: &str) -> Result<String, String> {
    match text {
        "group" | "blob" => Err("this is a level of Sedge's own topics, and no board".into()),
        _ => level(text),
    }
}

#[derive(Clone, Debug, Args)]
pub struct KeyArgs {
    /// Private key that signs, as `sedge keygen` makes it [default: SEDGE_KEY]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Boards that see the order later than this do not carry it out
    #[arg(long, value_name = "SECS", default_value_t = DEFAULT_EXPIRES_IN_SECS, hide_default_value = true)]
    expires_in: u64,
}

impl KeyArgs {
    pub fn load(&self) -> anyhow::Result<Signer> {
        let named = || std::env::var_os("SEDGE_KEY").filter(|path| !path.is_empty()).map(PathBuf::from);
        let Some(path) = self.key.clone().or_else(named) else {
            bail!("no key to sign with: name its file with --key or in SEDGE_KEY; `sedge keygen` makes one");
        };
        let pem = fs::read(&path).with_context(|| format!("failed to read the key {}", path.display()))?;
        let key = SigningKey::from_pem(&pem).with_context(|| format!("cannot sign with {}", path.display()))?;
        Ok(Signer { key, expires_in: Duration::from_secs(self.expires_in) })
    }
}

/// The key, and how long what it signs is good for.
pub struct Signer {
    key: SigningKey,
    expires_in: Duration,
}

impl Signer {
    pub fn key_id(&self) -> String {
        self.key.public().id().to_string()
    }

    pub fn order(&self, function: &str, serial: u64, target: &Target, change: Change) -> Order {
        let now = time::now_ms();
        Order {
            function: function.into(),
            serial,
            target: target.clone(),
            issued_at_ms: now,
            expires_at_ms: now.saturating_add(u64::try_from(self.expires_in.as_millis()).unwrap_or(u64::MAX)),
            change,
        }
    }

    pub fn sign(&self, order: &Order) -> Vec<u8> {
        Envelope::sign(&order.to_json(), &[&self.key]).to_json()
    }

    /// The order in an envelope, if this key has signed it.
    pub fn verify_own(&self, envelope: &[u8]) -> Option<Order> {
        let key = TrustedKey {
            name: "own".into(),
            public_key: self.key.public(),
            functions: Vec::new(),
            topics: Vec::new(),
            keys: true,
            native_code: true,
        };
        let keys = Keys::new([key]);
        let envelope = Envelope::parse(envelope).ok()?;
        let (payload, _) = envelope.verify(&keys).ok()?;
        Order::parse(payload).ok()
    }
}

#[derive(Clone, Debug, Args)]
pub struct WaitArgs {
    /// End when the broker has the order, and leave the boards to themselves
    #[arg(long)]
    pub no_wait: bool,
    /// How long it may take in all
    #[arg(long, value_name = "SECS", default_value_t = DEFAULT_TIMEOUT_SECS)]
    pub timeout: u64,
}

impl WaitArgs {
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_orders_are_told_from_others() {
        let signer = |_| Signer { key: SigningKey::generate().unwrap(), expires_in: Duration::from_secs(60) };
        let [mine, other] = [1, 2].map(signer);
        let order = mine.order("warm", 3, &Target::Node("a".into()), Change::Remove);
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
        assert!(wrong.contains("public.pem") && wrong.contains("private one"), "{wrong}");
    }
}
