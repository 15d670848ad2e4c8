//! `sedge token`: tokens for the page and its API.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::Path;

use anyhow::{Context as _, bail};
use clap::Args;
use rustix::rand::{GetRandomFlags, getrandom};
use serde_json::json;

use super::data::DataArgs;
use super::terminal;
use sedge_core::deploy::digest;
use sedge_core::text::hex;
use sedge_core::tokens;

#[derive(Debug, Args)]
pub struct TokenArgs {
    /// Name of the person or program that gets the token; appears in the log with each action
    #[arg(value_name = "NAME", default_value = "admin", value_parser = name)]
    name: String,
    /// Withdraw the token of that name
    #[arg(long)]
    revoke: bool,
    /// List the names
    #[arg(long, conflicts_with = "revoke")]
    list: bool,
    #[command(flatten)]
    data: DataArgs,
}

fn name(text: &str) -> Result<String, String> {
    let is_fit = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
    match !text.is_empty() && text.len() <= 64 && text.chars().all(is_fit) {
        true => Ok(text.to_owned()),
        false => Err("a name has 1 to 64 letters, digits, and characters of -_.@".to_owned()),
    }
}

pub fn run(args: &TokenArgs) -> anyhow::Result<()> {
    let dir = args.data.data_dir()?;
    let path = dir.join(tokens::FILE);
    let known = match fs::read_to_string(&path) {
        Ok(known) => known,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("failed to read {}", path.display())),
    };
    let mut out = terminal::out();
    if args.list {
        let names: Vec<_> = tokens::tokens(&known).map(|(name, _)| name).collect();
        match (args.data.json, names.is_empty()) {
            (true, _) => writeln!(out, "{}", terminal::json(&json!({ "tokens": names })))?,
            (false, true) => writeln!(out, "no tokens")?,
            (false, false) => writeln!(out, "{}", names.join("\n"))?,
        }
        return Ok(());
    }
    let is_known = tokens::tokens(&known).any(|(name, _)| name == args.name);
    let others = tokens::tokens(&known).filter(|(name, _)| *name != args.name);
    let mut file: String = others.map(|(name, digest)| tokens::line(name, digest)).collect();
    if args.revoke {
        if !is_known {
            bail!("there is no token {}: see sedge token --list", args.name);
        }
        write(&dir, &path, &file)?;
        match args.data.json {
            true => writeln!(out, "{}", terminal::json(&json!({ "revoked": args.name })))?,
            false => writeln!(out, "revoked the token {}", args.name)?,
        }
        return Ok(());
    }
    if is_known {
        bail!("there is a token {} already: withdraw it with --revoke, or give another name", args.name);
    }
    let token = draw()?;
    file.push_str(&tokens::line(&args.name, digest(token.as_bytes())));
    write(&dir, &path, &file)?;
    if args.data.json {
        writeln!(out, "{}", terminal::json(&json!({ "name": args.name, "token": token })))?;
        return Ok(());
    }
    writeln!(out, "{token}")?;
    eprintln!("Enter it on the page. It is not stored and cannot be shown again; the daemon knows it at once.");
    Ok(())
}

fn draw() -> anyhow::Result<String> {
    let mut bytes = [0; 32];
    let count = getrandom(&mut bytes, GetRandomFlags::empty()).context("failed to draw a token")?;
    anyhow::ensure!(count == bytes.len(), "the system gave too few random bytes");
    Ok(hex(&bytes))
}

/// Writes the file for the owner of the data folder, which is the daemon's user.
fn write(dir: &Path, path: &Path, text: &str) -> anyhow::Result<()> {
    let failed = || format!("failed to write {}; run it as root, or as the daemon's user", path.display());
    let owner = fs::metadata(dir).with_context(failed)?;
    super::write_atomically_as(path, text.as_bytes(), |file| {
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        let has = file.metadata()?;
        if (has.uid(), has.gid()) != (owner.uid(), owner.gid()) {
            fchown(file, Some(owner.uid()), Some(owner.gid()))?;
        }
        Ok(())
    })
    .with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_make_no_lines() {
        assert!(name("anna").is_ok() && name("ci@plant-3.example").is_ok());
        for bad in ["", "a b", "a\nb", &"a".repeat(65)] {
            assert!(name(bad).is_err(), "{bad:?}");
        }
    }
}
