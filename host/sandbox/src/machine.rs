//! This machine, as the reading of a configuration sees it.

use std::fs::{self, File};
use std::io::Read as _;

use sedge_core::config::machine::Machine;

pub const MACHINE: Machine = Machine {
    read: |path, limit| {
        let mut bytes = Vec::new();
        File::open(path)?.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    },
    metadata: |path| fs::metadata(path),
    list: |path| Ok(fs::read_dir(path)?.flatten().map(|entry| entry.path()).collect()),
    host_name: || rustix::system::uname().nodename().to_string_lossy().into_owned(),
    user: || rustix::process::geteuid().as_raw(),
};
