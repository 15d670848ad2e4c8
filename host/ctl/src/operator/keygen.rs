//! `sedge keygen`: a signing key, and the configuration by which boards trust it.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;

use crate::terminal;
use sedge_core::deploy::keys::SigningKey;

#[derive(Debug, Args)]
pub struct KeygenArgs {
    /// File of the private key; the public key goes beside it, as NAME.pub.pem
    #[arg(long, value_name = "FILE", default_value = "sedge-key.pem")]
    out: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: &KeygenArgs) -> anyhow::Result<()> {
    let private_path = &args.out;
    let public_path = private_path.with_extension("pub.pem");
    if public_path.exists() {
        bail!("{} already exists: name another file with --out", public_path.display());
    }
    let key = SigningKey::generate()?;
    write_new(private_path, 0o600, &key.to_pem())?;
    write_new(&public_path, 0o644, &key.public().to_pem()).inspect_err(|_| drop(fs::remove_file(private_path)))?;

    let id = key.public().id().to_string();
    let name = section(private_path);
    let file_name = public_path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let config = format!("[deploy.keys.{name}]\nfile = \"/etc/sedge/keys/{file_name}\"\n");
    let mut out = terminal::out();
    if args.json {
        let answer = json!({ "key_id": id, "private_key": private_path, "public_key": public_path, "config": config });
        writeln!(out, "{}", terminal::json(&answer))?;
        return Ok(());
    }
    writeln!(out, "key id     {id}")?;
    writeln!(out, "private    {}: keep it secret, it controls what your boards run", private_path.display())?;
    writeln!(out, "public     {}: copy it to the boards", public_path.display())?;
    writeln!(out, "\nAdd this to a board's sedge.toml to trust the key:\n\n{config}")?;
    Ok(())
}

/// Writes a new file. Overwriting a key could lock its owner out of all boards.
fn write_new(path: &Path, mode: u32, text: &str) -> anyhow::Result<()> {
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(mode).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("{} already exists: name another file with --out", path.display())
        }
        Err(error) => return Err(error).with_context(|| format!("failed to create {}", path.display())),
    };
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .with_context(|| format!("failed to write {}", path.display()))
}

/// Name of the configuration section, a bare key of TOML.
fn section(path: &Path) -> String {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let bare = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '-' };
    let name: String = stem.chars().map(bare).collect();
    if name.is_empty() { "ops".into() } else { name }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use sedge_core::deploy::keys::PublicKey;

    #[test]
    fn key_files_match_and_are_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("ops.pem");
        let args = KeygenArgs { out: out.clone(), json: true };
        run(&args).unwrap();
        assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);
        let private = fs::read(&out).unwrap();
        let key = SigningKey::from_pem(&private).unwrap();
        let public = PublicKey::from_pem(&fs::read(dir.path().join("ops.pub.pem")).unwrap()).unwrap();
        assert_eq!(key.public(), public);

        assert!(run(&args).unwrap_err().to_string().contains("ops.pub.pem already exists"));
        fs::remove_file(dir.path().join("ops.pub.pem")).unwrap();
        assert!(run(&args).unwrap_err().to_string().contains("ops.pem already exists"));
        assert_eq!(fs::read(&out).unwrap(), private);
        assert!(!dir.path().join("ops.pub.pem").exists());
    }

    #[test]
    fn section_names_are_bare_keys() {
        for (path, expected) in [("keys/ops.pem", "ops"), ("My key.pem", "My-key"), ("", "ops")] {
            assert_eq!(section(Path::new(path)), expected);
        }
    }
}
