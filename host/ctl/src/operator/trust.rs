//! `sedge trust`: signed changes of the keys that boards trust.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;

use super::follow;
use super::order::{self, OrderArgs};
use sedge_core::deploy::keys::{KeyId, Pattern, PublicKey, TrustedKey};
use sedge_core::deploy::payload::{KeyUpdate, OrderChange};
use sedge_core::deploy::topics::KEYS;
use sedge_core::topic::TopicFilter;

#[derive(Debug, Args)]
pub struct TrustArgs {
    /// Files of public keys to trust, in PEM
    #[arg(value_name = "PUBLIC_KEY", required_unless_present = "revoke")]
    add: Vec<PathBuf>,
    /// Id of a key to revoke, as `sedge keygen` prints it; repeatable
    #[arg(long, value_name = "KEY_ID")]
    revoke: Vec<KeyId>,
    /// Functions that the new keys may push: names or prefixes with *, separated by commas [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "add")]
    functions: Vec<Pattern>,
    /// Topic filters that functions of the new keys may subscribe and publish to, separated by commas [default: all]
    #[arg(long, value_name = "FILTERS", value_delimiter = ',', requires = "add")]
    topics: Vec<TopicFilter>,
    /// Let the new keys change the trusted keys
    #[arg(long, requires = "add")]
    keys: bool,
    /// Let the new keys send native code, which boards cannot verify
    #[arg(long, requires = "add")]
    native_code: bool,
    /// Let the new keys change settings and nothing else
    #[arg(long, requires = "add", conflicts_with_all = ["keys", "native_code"])]
    settings_only: bool,
    /// Let the new keys record the messages of functions, on boards that allow it
    #[arg(long, requires = "add", conflicts_with = "settings_only")]
    record: bool,
    /// Let the new keys read the log of boards
    #[arg(long)]
    logs: bool,
    /// Apply the change although it may leave the boards without a key that can change the trusted keys
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    order: OrderArgs,
}

pub fn run(args: &TrustArgs) -> anyhow::Result<ExitCode> {
    let trust = args.add.iter().map(|path| trusted(args, path)).collect::<anyhow::Result<_>>()?;
    let update = KeyUpdate { trust, revoke: args.revoke.clone(), force: args.force };
    order::run(&args.order, KEYS, OrderChange::Keys(update), follow::INSTALLED)
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
        settings_only: args.settings_only,
        record: args.record,
        logs: args.logs,
    })
}

/// Name of a key, after its file: `ops-2` for `keys/ops-2.pub.pem`.
fn name(path: &Path) -> String {
    let file = path.file_name().map(|file| file.to_string_lossy().into_owned()).unwrap_or_default();
    file.trim_end_matches(".pem").trim_end_matches(".pub").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_named_after_its_file() {
        for (path, expected) in [("keys/ops-2.pub.pem", "ops-2"), ("ops.pem", "ops"), ("/a/b", "b")] {
            assert_eq!(name(Path::new(path)), expected);
        }
    }
}
