//! `sedge trust`: a signed change of the keys that boards trust.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;

use super::follow::Goal;
use super::order::{self, OrderArgs};
use crate::deploy::keys::{KeyId, Pattern, PublicKey, TrustedKey};
use crate::deploy::payload::{Change, KeyUpdate};
use crate::deploy::topics::KEYS;
use crate::topic::TopicFilter;

#[derive(Debug, Args)]
pub struct TrustArgs {
    /// Public keys to trust from now on, in PEM
    #[arg(value_name = "PUBLIC_KEY", required_unless_present = "revoke")]
    add: Vec<PathBuf>,
    /// Id of a key to trust no longer, as `sedge keygen` shows it; may be given several times
    #[arg(long, value_name = "KEY_ID")]
    revoke: Vec<KeyId>,
    /// What the new keys may push: names of functions, or their beginning and *; several with commas [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "add")]
    functions: Vec<Pattern>,
    /// What functions of the new keys may hear and publish to: topic filters; several with commas [default: all]
    #[arg(long, value_name = "FILTERS", value_delimiter = ',', requires = "add")]
    topics: Vec<TopicFilter>,
    /// The new keys may change the trusted keys as well
    #[arg(long, requires = "add")]
    keys: bool,
    /// The new keys may send code that was compiled elsewhere, which boards run unchecked
    #[arg(long, requires = "add")]
    native_code: bool,
    #[command(flatten)]
    order: OrderArgs,
}

pub fn run(args: &TrustArgs) -> anyhow::Result<ExitCode> {
    let trust = args.add.iter().map(|path| trusted(args, path)).collect::<anyhow::Result<_>>()?;
    let update = KeyUpdate { trust, revoke: args.revoke.clone() };
    order::run(&args.order, KEYS, Change::Keys(update), Goal::INSTALLED)
}

fn trusted(args: &TrustArgs, path: &Path) -> anyhow::Result<TrustedKey> {
    let pem = fs::read(path).with_context(|| format!("failed to read the key {}", path.display()))?;
    let public_key = PublicKey::from_pem(&pem).with_context(|| format!("cannot trust {}", path.display()))?;
    Ok(TrustedKey {
        name: name(path),
        public_key,
        functions: args.functions.clone(),
        topics: args.topics.clone(),
        keys: args.keys,
        native_code: args.native_code,
    })
}

/// `ops-2` of `keys/ops-2.pub.pem`.
fn name(path: &Path) -> String {
    let file = path.file_name().map(|file| file.to_string_lossy().into_owned()).unwrap_or_default();
    file.trim_end_matches(".pem").trim_end_matches(".pub").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_called_as_its_file() {
        for (path, expected) in [("keys/ops-2.pub.pem", "ops-2"), ("ops.pem", "ops"), ("/a/b", "b")] {
            assert_eq!(name(Path::new(path)), expected);
        }
    }
}
