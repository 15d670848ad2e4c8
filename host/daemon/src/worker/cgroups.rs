//! Control groups (cgroup v2) of daemon and workers, where the service manager delegates them (`Delegate=cpu`). The kernel
//! divides the processor between groups by weight, so that a function that computes without end leaves their part to the
//! others and to the daemon.
//!
//! ```text
//! sedge.service       limits of the unit on memory and tasks: they hold for all groups below together
//!   ├─ daemon         weight 200; compilations are in it too
//!   └─ worker-1234    weight 100 or 33; named by the process id
//! ```
//!
//! Without delegation nothing happens, which is usual outside of the unit.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

const ROOT: &str = "/sys/fs/cgroup";
const DAEMON: &str = "daemon";
/// Prefix of the workers' groups.
const WORKER: &str = "worker-";

/// As much as two workers: the event loop and the store's writer are a thread each, and both work for every message.
const DAEMON_WEIGHT: u32 = 200;
/// The kernel's default.
const WORKER_WEIGHT: u32 = 100;
/// For workers that give way. A third, as by their nice value, which the kernel compares only within a group.
const GIVING_WAY_WEIGHT: u32 = 33;

/// The delegated group, divided.
#[derive(Debug)]
pub(crate) struct Cgroups {
    unit: PathBuf,
}

impl Cgroups {
    /// Moves this process with all its threads into a group of its own. `None`: nothing is delegated to it.
    ///
    /// Must come before the first child process, which would stay outside of the groups: the kernel enables no controller for
    /// the children of a group that has processes itself.
    pub(crate) fn enter() -> Option<Self> {
        let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::enter_at(Path::new(ROOT).join(own(&cgroups)?), std::process::id())
    }

    fn enter_at(unit: PathBuf, daemon: u32) -> Option<Self> {
        if !is_delegated(&unit, daemon) {
            tracing::debug!(cgroup = %unit.display(), "workers have no weights: the processor is not delegated");
            return None;
        }
        if let Err(error) = divide(&unit, daemon) {
            tracing::debug!(cgroup = %unit.display(), %error, "workers have no weights: the cgroup cannot be divided");
            return None;
        }
        tracing::info!("workers share the processor by cgroup");
        let cgroups = Self { unit };
        // Of a daemon that was killed.
        cgroups.sweep();
        Some(cgroups)
    }

    /// Moves a worker's process into a group of its own. A worker that `gives_way` has a third of the weight of others.
    ///
    /// Blocks for 5 to 15 ms: the kernel stops forks and exits meanwhile, and for that waits for every processor.
    pub(crate) fn place(&self, worker: u32, gives_way: bool) {
        let group = self.unit.join(format!("{WORKER}{worker}"));
        let weight = if gives_way { GIVING_WAY_WEIGHT } else { WORKER_WEIGHT };
        let placed = create(&group)
            .and_then(|()| write(&group, "cpu.weight", weight))
            .and_then(|()| write(&group, "cgroup.procs", worker));
        match placed {
            Ok(()) => {}
            // The process has ended already, which its socket reports.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::SRCH) => {}
            Err(error) => tracing::warn!(
                cgroup = %group.display(),
                %error,
                "a worker has no share of the processor of its own, and uses the daemon's"
            ),
        }
    }

    /// Removes the groups of workers that were reaped. The kernel refuses to remove the others, which have processes.
    pub(crate) fn sweep(&self) {
        for group in fs::read_dir(&self.unit).into_iter().flatten().flatten() {
            if group.file_name().to_string_lossy().starts_with(WORKER) {
                let _ = fs::remove_dir(group.path());
            }
        }
    }
}

/// Returns the path of the group of version 2 in `/proc/self/cgroup`, below the root of the hierarchy.
fn own(cgroups: &str) -> Option<&str> {
    cgroups.lines().find_map(|line| line.strip_prefix("0::/"))
}

/// Returns whether the processor can be divided within this group, and no other process is in it: a shell that started the
/// daemon is, and then the group is not the daemon's.
fn is_delegated(unit: &Path, daemon: u32) -> bool {
    let words = |file| fs::read_to_string(unit.join(file)).unwrap_or_default();
    words("cgroup.controllers").split_whitespace().any(|controller| controller == "cpu")
        && words("cgroup.procs").split_whitespace().eq([daemon.to_string()])
}

fn divide(unit: &Path, daemon: u32) -> io::Result<()> {
    let group = unit.join(DAEMON);
    create(&group)?;
    // First, as the kernel requires the unit's group to be empty for the next step.
    write(&group, "cgroup.procs", daemon)?;
    write(unit, "cgroup.subtree_control", "+cpu")?;
    write(&group, "cpu.weight", DAEMON_WEIGHT)
}

/// Creates a group, unless a daemon before this one left it.
fn create(group: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).create(group)
}

/// Writes to a file of a group. The kernel creates these files with the group.
fn write(group: &Path, file: &str, value: impl ToString) -> io::Result<()> {
    OpenOptions::new().write(true).open(group.join(file))?.write_all(value.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    const PROCESS: u32 = 7;

    /// Makes a group with the files that a kernel has in it, as far as they are used.
    fn group(path: &Path, files: &[&str]) {
        fs::create_dir_all(path).unwrap();
        files.iter().for_each(|file| fs::write(path.join(file), "").unwrap());
    }

    /// Makes a group that is delegated to `PROCESS`.
    fn unit() -> TempDir {
        let unit = TempDir::new().unwrap();
        group(unit.path(), &["cgroup.subtree_control"]);
        group(&unit.path().join("daemon"), &["cgroup.procs", "cpu.weight"]);
        fs::write(unit.path().join("cgroup.controllers"), "cpuset cpu memory pids\n").unwrap();
        fs::write(unit.path().join("cgroup.procs"), "7\n").unwrap();
        unit
    }

    fn read(unit: &TempDir, file: &str) -> String {
        fs::read_to_string(unit.path().join(file)).unwrap()
    }

    fn enter(unit: &TempDir) -> Option<Cgroups> {
        Cgroups::enter_at(unit.path().to_owned(), PROCESS)
    }

    #[test]
    fn the_group_of_version_2_is_found_beside_others() {
        assert_eq!(own("1:cpu:/\n0::/system.slice/sedge.service\n"), Some("system.slice/sedge.service"));
        assert_eq!(own("2:cpu:/a\n1:name=systemd:/b\n"), None);
    }

    #[test]
    fn the_daemon_has_a_group_below_the_one_that_is_delegated() {
        let unit = unit();
        assert!(enter(&unit).is_some());
        let written = ["cgroup.subtree_control", "daemon/cgroup.procs", "daemon/cpu.weight"].map(|it| read(&unit, it));
        assert_eq!(written, ["+cpu", "7", "200"]);
    }

    #[test]
    fn a_group_that_is_not_delegated_is_left_alone() {
        for (file, text) in
            [("cgroup.controllers", "cpuset memory pids\n"), ("cgroup.procs", "6\n7\n"), ("cgroup.procs", "")]
        {
            let unit = unit();
            fs::write(unit.path().join(file), text).unwrap();
            assert!(enter(&unit).is_none(), "{file}: {text}");
            let written = ["cgroup.subtree_control", "daemon/cgroup.procs"].map(|it| read(&unit, it));
            assert_eq!(written, ["", ""], "{file}: {text}");
        }
        assert!(Cgroups::enter_at("/there/is/none".into(), PROCESS).is_none());
    }

    /// Root may write to everything, so that a missing file stands for one that cannot be written to.
    #[test]
    fn a_group_that_cannot_be_written_to_is_not_divided() {
        let unit = unit();
        fs::remove_file(unit.path().join("daemon/cgroup.procs")).unwrap();
        assert!(enter(&unit).is_none());
        assert_eq!(read(&unit, "cgroup.subtree_control"), "");
    }

    #[test]
    fn groups_that_a_killed_daemon_left_are_removed() {
        let unit = unit();
        let path = |name| unit.path().join(name);
        group(&path("worker-1"), &[]);
        group(&path(".control"), &[]);
        // Of a process that has not ended yet: as the kernel does, the file system refuses to remove it.
        group(&path("worker-2"), &["cgroup.procs"]);
        assert!(enter(&unit).is_some());
        assert!(!path("worker-1").exists());
        assert!(path("worker-2").exists() && path(".control").exists());
    }

    #[test]
    fn a_worker_has_a_group_until_it_is_reaped() {
        let unit = unit();
        let files = ["cpu.weight", "cgroup.procs"];
        let (common, own) = (unit.path().join("worker-10"), unit.path().join("worker-11"));
        let cgroups = enter(&unit).unwrap();
        for (group_of, process, gives_way, weight) in [(&common, 10, false, "100"), (&own, 11, true, "33")] {
            group(group_of, &files);
            cgroups.place(process, gives_way);
            let written = files.map(|file| fs::read_to_string(group_of.join(file)).unwrap());
            assert_eq!(written, [weight, &process.to_string()]);
        }
        // The kernel's files are no obstacle to removing a group.
        files.iter().for_each(|file| fs::remove_file(common.join(file)).unwrap());
        cgroups.sweep();
        assert!(!common.exists() && own.exists());
    }
}
