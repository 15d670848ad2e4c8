//! A memory cgroup for one test, of version 2 or 1. Needs root.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::eventually;

pub(crate) struct MemoryCgroup {
    dir: PathBuf,
    is_v2: bool,
}

impl MemoryCgroup {
    /// Returns `None` and prints the reason if none can be created.
    pub(crate) fn create(bytes: u64) -> Option<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("sedge-test-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let made = match Self::v2_root() {
            Some(root) => Self::make(&root.join(&name), true, bytes),
            None => Self::make(&Path::new("/sys/fs/cgroup/memory").join(&name), false, bytes),
        };
        match made {
            Ok(cgroup) => Some(cgroup),
            Err(error) => {
                eprintln!("skipped: no memory cgroup can be made here, which takes root and the controller: {error}");
                None
            }
        }
    }

    /// Path of the cgroup 2 hierarchy with the memory controller.
    fn v2_root() -> Option<PathBuf> {
        let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
        roots.into_iter().find(|root| {
            let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
            controllers.split_whitespace().any(|controller| controller == "memory")
        })
    }

    fn make(dir: &Path, is_v2: bool, bytes: u64) -> io::Result<Self> {
        if let (true, Some(root)) = (is_v2, dir.parent()) {
            fs::write(root.join("cgroup.subtree_control"), "+memory")?;
        } else if !fs::exists(dir.with_file_name("memory.limit_in_bytes"))? {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the memory controller is not mounted"));
        }
        fs::create_dir(dir)?;
        let cgroup = Self { dir: dir.to_owned(), is_v2 };
        let (limit, swap) = if is_v2 {
            ("memory.max", ("memory.swap.max", "0".to_owned()))
        } else {
            ("memory.limit_in_bytes", ("memory.memsw.limit_in_bytes", bytes.to_string()))
        };
        fs::write(cgroup.dir.join(limit), bytes.to_string())?;
        // Missing if the machine has no swap or does not account for it.
        let _ = fs::write(cgroup.dir.join(swap.0), swap.1);
        Ok(cgroup)
    }

    /// A command whose process is in the group, with its children, from the first instruction.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("sh");
        let procs = self.dir.join("cgroup.procs");
        command.args(["-c", r#"echo $$ > "$1" && shift && exec "$@""#, "sh"]).arg(procs).arg(program);
        command
    }

    /// Number of processes that the kernel killed here because memory ran out.
    pub(crate) fn kills(&self) -> u64 {
        let file = if self.is_v2 { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(self.dir.join(file)).expect("read the group's events");
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.and_then(|count| count.trim().parse().ok()).expect("the kernel counts its kills")
    }

    /// Private memory of its processes in KiB, which the kernel cannot reclaim.
    pub(crate) fn anonymous_kb(&self) -> u64 {
        let name = if self.is_v2 { "anon " } else { "total_rss " };
        let text = fs::read_to_string(self.dir.join("memory.stat")).expect("read the group's figures");
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|bytes| bytes.trim().parse::<u64>().ok()).expect("the kernel counts memory") / 1024
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // Killed processes leave the group a moment later.
        eventually(Duration::from_secs(5), || fs::remove_dir(&self.dir).is_ok());
    }
}
