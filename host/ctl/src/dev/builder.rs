//! Builds a function whenever a file of its folder changes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use sedge_core::manifest::Manifest;
use sedge_core::version::Version;
use sedge_sandbox::folder;
use tokio::sync::{Mutex, mpsc};

use crate::runner;
use crate::watch::{self, Files};

/// How often it looks. A look at a small folder takes some microseconds.
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(super) struct Builder {
    built: Mutex<mpsc::Receiver<anyhow::Result<Version>>>,
}

impl Builder {
    /// The folder was built just now.
    pub(super) fn spawn(dir: &Path) -> anyhow::Result<Self> {
        // One waits to be taken, which may take as long as a run.
        let (sender, built) = mpsc::channel(1);
        let dir = dir.to_owned();
        let mut known = files(&dir);
        std::thread::Builder::new().name("builder".into()).spawn(move || {
            while !sender.is_closed() {
                std::thread::sleep(LOOK_EVERY);
                let now = files(&dir);
                if now == known {
                    continue;
                }
                // From before the build, so that what is edited meanwhile is built again.
                known = now;
                if sender.blocking_send(build(&dir)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { built: Mutex::new(built) })
    }

    /// The next build. Fails only if nothing is built any more.
    pub(super) async fn next(&self) -> anyhow::Result<anyhow::Result<Version>> {
        self.built.lock().await.recv().await.context("the folder is not looked at any more")
    }
}

/// Builds the function of a folder.
pub(super) fn build(dir: &Path) -> anyhow::Result<Version> {
    let manifest = Manifest::load(dir, &sedge_sandbox::machine::MACHINE).map_err(|problems| anyhow!("{problems}"))?;
    if dir.join("Cargo.toml").is_file() {
        crate::build::build(dir)?;
    }
    runner::install(dir, manifest, false)
}

/// What a person writes. A module that is not built from a crate here is written by another tool.
fn files(dir: &Path) -> Files {
    let mut files = watch::files(&[PathBuf::from(dir)], None);
    if !dir.join("Cargo.toml").is_file()
        && let Ok(manifest) = Manifest::load(dir, &sedge_sandbox::machine::MACHINE)
    {
        watch::add(&mut files, folder::component_path(dir, &manifest));
    }
    files
}
