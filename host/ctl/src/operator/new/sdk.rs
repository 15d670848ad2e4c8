//! The SDK that a new function in Rust depends on: that of a checkout, or the one in this program.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use toml::{Table, Value};

/// The SDK's folder in a checkout of Sedge, and beside a function.
pub(super) const FOLDER: &str = "guest-sdk";
const NAME: &str = "sedge-function";
const MANIFEST: &str = "Cargo.toml";

/// Path and content of each file of the SDK.
const FILES: &[(&str, &[u8])] = &include!(concat!(env!("OUT_DIR"), "/sdk.rs"));

/// Where the SDK of a new function is.
pub(super) struct Sdk {
    folder: PathBuf,
    /// Written from this program, below the function's folder.
    pub(super) is_written: bool,
}

impl Sdk {
    /// The named folder, else that of the checkout around the new folder or around this program; else it is written.
    pub(super) fn find(named: Option<&Path>, dir: &Path) -> anyhow::Result<Self> {
        if let Some(named) = named {
            let folder = named.canonicalize().with_context(|| format!("failed to open {}", named.display()))?;
            if !is_sdk(&folder) {
                bail!("{} is not the SDK: its {MANIFEST} would name {NAME}", named.display());
            }
            return Ok(Self { folder, is_written: false });
        }
        let dir = dir.canonicalize().with_context(|| format!("failed to open {}", dir.display()))?;
        let program = std::env::current_exe().and_then(|program| program.canonicalize()).ok();
        let around = |start: &Path| start.ancestors().map(|folder| folder.join(FOLDER)).find(|sdk| is_sdk(sdk));
        match around(&dir).or_else(|| around(&program?)) {
            Some(folder) => Ok(Self { folder, is_written: false }),
            None => {
                let folder = dir.join(FOLDER);
                write(&folder)?;
                Ok(Self { folder, is_written: true })
            }
        }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The dependency in `Cargo.toml`. Inside the checkout its path is relative, so that the checkout can be moved.
    pub(super) fn dependency(&self, dir: &Path) -> anyhow::Result<String> {
        if self.is_written {
            return Ok(format!("path = {FOLDER:?}"));
        }
        let dir = dir.canonicalize().with_context(|| format!("failed to open {}", dir.display()))?;
        let path = match self.folder.parent().and_then(|checkout| dir.strip_prefix(checkout).ok()) {
            Some(below) => {
                let up = below.components().map(|_| "..").collect::<PathBuf>();
                up.join(self.folder.file_name().unwrap_or_default())
            }
            None => self.folder.clone(),
        };
        let path = path.to_str().with_context(|| format!("{} is not in UTF-8", path.display()))?;
        Ok(format!("path = {}", Value::from(path)))
    }
}

pub(super) fn is_sdk(folder: &Path) -> bool {
    fs::read_to_string(folder.join(MANIFEST)).is_ok_and(|text| text.contains(&format!("name = {NAME:?}")))
}

fn write(folder: &Path) -> anyhow::Result<()> {
    for (name, content) in FILES {
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("failed to create {}", parent.display()))?;
        }
        let content = if *name == MANIFEST { detached(content)?.into_bytes() } else { content.to_vec() };
        fs::write(&path, content).with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
}

/// The SDK's manifest without what it takes from the checkout's workspace.
fn detached(manifest: &[u8]) -> anyhow::Result<String> {
    let mut manifest: Table = toml::from_slice(manifest).context("the SDK's manifest in this program is damaged")?;
    manifest.remove("dev-dependencies");
    manifest.remove("lints");
    let package =
        manifest.get_mut("package").and_then(Value::as_table_mut).context("the SDK's manifest has a package")?;
    let inherited = [
        ("version", env!("CARGO_PKG_VERSION")),
        ("edition", "2024"),
        ("rust-version", env!("CARGO_PKG_RUST_VERSION")),
        ("license", env!("CARGO_PKG_LICENSE")),
    ];
    for (key, value) in inherited {
        package.insert(key.into(), Value::from(value));
    }
    Ok(toml::to_string(&manifest)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sdk_in_this_program_needs_no_workspace_and_no_other_crate() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path()).unwrap();
        assert!(is_sdk(folder.path()));
        let manifest = fs::read_to_string(folder.path().join(MANIFEST)).unwrap();
        assert!(!manifest.contains("workspace"), "{manifest}");
        let manifest: Table = manifest.parse().unwrap();
        assert!(manifest.keys().all(|key| !key.ends_with("dependencies")), "{manifest:?}");
        assert_eq!(manifest["package"]["version"].as_str(), Some(env!("CARGO_PKG_VERSION")));
        for file in [
            "src/lib.rs",
            "src/bindings.rs",
            "src/component-type.bin",
            "src/component-type-with-std.bin",
            "wit/world.wit",
        ] {
            assert!(folder.path().join(file).is_file(), "{file}");
        }
    }
}
