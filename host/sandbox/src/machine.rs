//! This machine, as the reading of a configuration sees it.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};
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
    memory_bytes,
};

/// Memory that this process may use: the least of the machine's, the limits of its cgroups, and its own resource limits.
pub fn memory_bytes() -> u64 {
    let total = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_memory(&text));
    let limits = [Resource::Data, Resource::As].map(|resource| getrlimit(resource).current);
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let cgroups = cgroup_files(&cgroups).filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
    total.into_iter().chain(limits.into_iter().flatten()).chain(cgroups).min().unwrap_or(u64::MAX)
}

fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The files with the memory limits of the cgroups in `/proc/self/cgroup` and of those around them, of both versions.
fn cgroup_files(cgroups: &str) -> impl Iterator<Item = PathBuf> {
    cgroups.lines().filter_map(memory_cgroup).flat_map(|(root, path, file)| {
        Path::new(path.trim_start_matches('/')).ancestors().map(move |path| Path::new(root).join(path).join(file))
    })
}

fn memory_cgroup(line: &str) -> Option<(&'static str, &str, &'static str)> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    match controllers {
        "" => Some(("/sys/fs/cgroup", path, "memory.max")),
        _ if controllers.split(',').any(|it| it == "memory") => {
            Some(("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_of_all_cgroups_around_are_found() {
        let files = |text| cgroup_files(text).map(|file| file.display().to_string()).collect::<Vec<_>>();
        assert_eq!(
            files("0::/system.slice/sedge.service\n"),
            [
                "/sys/fs/cgroup/system.slice/sedge.service/memory.max",
                "/sys/fs/cgroup/system.slice/memory.max",
                "/sys/fs/cgroup/memory.max"
            ]
        );
        assert_eq!(
            files("3:cpuset:/a\n2:cpu,memory:/b\n")[..1],
            ["/sys/fs/cgroup/memory/b/memory.limit_in_bytes".to_owned()]
        );
    }

    #[test]
    fn the_memory_of_the_machine_is_known() {
        assert_eq!(total_memory("MemTotal:       24105000 kB\nMemFree: 1 kB\n"), Some(24_105_000 << 10));
        assert!((1 << 20..1 << 50).contains(&memory_bytes()));
    }
}
