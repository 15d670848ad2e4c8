//! Checks of a board: clock, disk, swap, sandbox. `sedge doctor` and the page show them.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{major, statfs, statvfs};

use sedge_core::config::{Clock, Config, Isolate, Store};
use sedge_core::finding::Finding;

/// Limit of the median of synced writes. A good SD card takes 2 to 5 ms.
const SLOW: Duration = Duration::from_millis(20);
const VERY_SLOW: Duration = Duration::from_millis(500);
const SYNCS: usize = 15;
/// Reserve for the write-ahead log, compiled code and other programs.
const RESERVE_BYTES: u64 = 128 << 20;
/// Device number of SD cards and eMMC.
const MMC_MAJOR: u32 = 179;

const TMPFS: u64 = 0x0102_1994;
const RAMFS: u64 = 0x8584_58f6;
const OVERLAY: u64 = 0x794c_7630;

/// Whatever can be seen at once. `has_filter`: the kernel filters system calls.
pub fn inspect(config: &Config, has_filter: bool) -> Vec<Finding> {
    let dir = &config.node.data_dir;
    let mut findings = match Disk::of(dir) {
        Ok(disk) => evaluate_disk(dir, &disk, &config.store),
        Err(error) => vec![unreadable("disk", dir, &error)],
    };
    findings.push(match fs::read_to_string("/proc/swaps") {
        Ok(swaps) => evaluate_swap(&swap_on_mmc(&swaps, |path| Some(major(fs::metadata(path).ok()?.st_dev())))),
        Err(error) => unreadable("swap", Path::new("/proc/swaps"), &error),
    });
    findings.push(sandbox(config.worker.isolate, has_filter));
    findings
}

/// Writes to the data folder, and says how long that takes.
pub fn inspect_syncs(dir: &Path) -> Finding {
    match syncs(dir) {
        Ok(times) => evaluate_syncs(dir, times),
        Err(error) => unreadable("sync", dir, &error),
    }
}

pub fn clock(clock: Clock, is_synced: bool) -> Finding {
    if clock == Clock::Trusted {
        return Finding::good("clock", "taken for right (node.clock = \"trusted\")");
    }
    if is_synced {
        return Finding::good("clock", "synchronised since the board booted");
    }
    Finding::warning(
        "clock",
        "not known to be synchronised since the board booted; functions are told so, and schedules wait",
        "run `timedatectl set-ntp true`, or install chrony; without a network, add a real-time clock and set node.clock = \"trusted\"",
    )
}

struct Disk {
    free_bytes: u64,
    /// Size of the database.
    used_bytes: u64,
    kind: u64,
    is_read_only: bool,
}

impl Disk {
    fn of(dir: &Path) -> io::Result<Self> {
        let existing = dir.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
        let space = statvfs(existing)?;
        let used = fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|entry| entry.metadata().ok());
        Ok(Self {
            free_bytes: space.f_bavail.saturating_mul(space.f_frsize),
            used_bytes: used.filter(fs::Metadata::is_file).map(|file| file.len()).sum(),
            kind: u64::try_from(statfs(existing)?.f_type).unwrap_or(0) & 0xffff_ffff,
            is_read_only: space.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
        })
    }
}

fn evaluate_disk(dir: &Path, disk: &Disk, store: &Store) -> Vec<Finding> {
    let shown = dir.display();
    if disk.is_read_only {
        let what = format!("{shown} is on a read-only file system: the daemon cannot start");
        return vec![Finding::warning("disk", what, "mount it for writing, or set another node.data_dir")];
    }
    let mut findings = Vec::new();
    let volatile = match disk.kind {
        TMPFS | RAMFS => Some("in memory"),
        OVERLAY => Some("on an overlay, which is in memory on boards with a read-only root"),
        _ => None,
    };
    if let Some(place) = volatile {
        let what = format!("{shown} is {place}: a power cut loses acknowledged messages");
        findings.push(Finding::warning("disk", what, "set node.data_dir to a folder on a disk"));
    }
    let needed = (store.max_bytes.get() + store.dead_letter_max_bytes.get() + store.parked_max_bytes.get())
        .saturating_sub(disk.used_bytes)
        + RESERVE_BYTES;
    let (free, needed) = (disk.free_bytes >> 20, needed >> 20);
    findings.push(if free < needed {
        let what = format!("{shown} has {free} MiB of free space, and may need {needed} MiB more");
        Finding::warning("disk", what, format!("free {} MiB, or lower store.max_bytes", needed - free))
    } else {
        Finding::good("disk", format!("{shown} has {free} MiB of free space, and needs at most {needed} MiB more"))
    });
    findings
}

/// Measures synced writes of one page, as the database does them.
fn syncs(dir: &Path) -> io::Result<Vec<Duration>> {
    let path = dir.join(format!(".sedge-doctor-{}", std::process::id()));
    let measure = || {
        let mut file = File::create_new(&path)?;
        let mut times = Vec::with_capacity(SYNCS);
        for _ in 0..SYNCS {
            let start = Instant::now();
            file.write_all(&[0x5e; 4096])?;
            file.sync_data()?;
            times.push(start.elapsed());
        }
        Ok(times)
    };
    let times = measure();
    let _ = fs::remove_file(&path);
    times
}

fn evaluate_syncs(dir: &Path, mut times: Vec<Duration>) -> Finding {
    times.sort();
    let middle = times.get(times.len() / 2).copied().unwrap_or_default();
    let longest = times.last().copied().unwrap_or_default();
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let what = format!(
        "a synced write to {} takes {:.1} ms, the slowest of {} took {:.1} ms",
        dir.display(),
        ms(middle),
        times.len(),
        ms(longest)
    );
    if middle < SLOW && longest < VERY_SLOW {
        return Finding::good("sync", what);
    }
    let fix = "use an SSD or a card of class A2, as every acknowledgement waits for a write; store.flash_saver_ms lets more \
               messages share one";
    Finding::warning("sync", what, fix)
}

/// The process sandbox, which holds a function that escapes from its WebAssembly sandbox.
fn sandbox(isolate: Isolate, has_filter: bool) -> Finding {
    match (isolate, has_filter) {
        (Isolate::Thread, _) => Finding::warning(
            "sandbox",
            "functions run in the daemon's process: one that escapes from WebAssembly has the daemon's keys",
            "set worker.isolate = \"process\" if memory suffices",
        ),
        (Isolate::Process | Isolate::Function, false) => Finding::warning(
            "sandbox",
            "this kernel does not filter system calls of functions' processes",
            "use a kernel with CONFIG_SECCOMP_FILTER",
        ),
        (Isolate::Process | Isolate::Function, true) => {
            Finding::good("sandbox", "functions run in processes without files and network")
        }
    }
}

/// Swap areas and files on SD cards.
fn swap_on_mmc(swaps: &str, device: impl Fn(&Path) -> Option<u32>) -> Vec<PathBuf> {
    let areas = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    areas
        .filter(|area| area.starts_with("/dev/mmcblk") || device(Path::new(area)) == Some(MMC_MAJOR))
        .map(PathBuf::from)
        .collect()
}

fn evaluate_swap(swap_on_mmc: &[PathBuf]) -> Finding {
    let Some(area) = swap_on_mmc.first() else { return Finding::good("swap", "none on an SD card") };
    let what = format!("{} is swap on an SD card: it wears the card out and stalls the board", area.display());
    Finding::warning(
        "swap",
        what,
        "use compressed memory instead: apt install zram-tools, systemctl disable --now dphys-swapfile",
    )
}

fn unreadable(check: &'static str, path: &Path, error: &io::Error) -> Finding {
    let what = format!("{}: {error}", path.display());
    match error.kind() {
        ErrorKind::NotFound => Finding::unknown(check, what, "start the service once, then run this again"),
        ErrorKind::PermissionDenied => Finding::unknown(check, what, "run it as root: sudo sedge doctor"),
        ErrorKind::ReadOnlyFilesystem => {
            Finding::warning(check, what, "mount it for writing, or set another node.data_dir")
        }
        ErrorKind::StorageFull => Finding::warning(check, what, "free some space"),
        _ => Finding::warning(check, what, "check the disk: dmesg shows its errors"),
    }
}

#[cfg(test)]
mod tests {
    use sedge_core::finding::Verdict;

    use super::*;

    const EXT4: u64 = 0xef53;
    const GIB: u64 = 1 << 30;

    fn disk(free_bytes: u64, kind: u64) -> Disk {
        Disk { free_bytes, used_bytes: 0, kind, is_read_only: false }
    }

    fn verdicts(disk: &Disk) -> Vec<Verdict> {
        evaluate_disk(Path::new("/d"), disk, &Store::default()).iter().map(|finding| finding.verdict).collect()
    }

    #[test]
    fn low_disk_space_is_a_warning_and_the_database_counts() {
        assert_eq!(verdicts(&disk(GIB, EXT4)), [Verdict::Good]);
        assert_eq!(verdicts(&disk(400 << 20, EXT4)), [Verdict::Warning]);
        assert_eq!(verdicts(&Disk { used_bytes: 256 << 20, ..disk(400 << 20, EXT4) }), [Verdict::Good]);
        let findings = evaluate_disk(Path::new("/d"), &disk(400 << 20, EXT4), &Store::default());
        assert_eq!(findings[0].fix.as_deref(), Some("free 32 MiB, or lower store.max_bytes"));
    }

    #[test]
    fn volatile_and_read_only_disks_are_warnings() {
        assert_eq!(verdicts(&disk(GIB, TMPFS)), [Verdict::Warning, Verdict::Good]);
        assert_eq!(verdicts(&disk(GIB, OVERLAY)), [Verdict::Warning, Verdict::Good]);
        assert_eq!(verdicts(&Disk { is_read_only: true, ..disk(GIB, EXT4) }), [Verdict::Warning]);
    }

    #[test]
    fn slow_syncs_are_warnings_and_one_very_slow_one_is() {
        let evaluated = |ms: &[u64]| {
            evaluate_syncs(Path::new("/d"), ms.iter().copied().map(Duration::from_millis).collect()).verdict
        };
        assert_eq!(evaluated(&[1, 90, 2, 3, 4]), Verdict::Good);
        assert_eq!(evaluated(&[25, 30, 22, 1, 40]), Verdict::Warning);
        assert_eq!(evaluated(&[1, 1, 1, 1, 700]), Verdict::Warning);
    }

    #[test]
    fn measuring_syncs_leaves_no_file_behind() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(syncs(dir.path()).unwrap().len(), SYNCS);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let absent = syncs(&dir.path().join("absent")).unwrap_err();
        assert_eq!(unreadable("sync", dir.path(), &absent).verdict, Verdict::Unknown);
    }

    #[test]
    fn swap_is_a_warning_on_a_card_and_not_in_memory() {
        let swaps = "Filename\tType\tSize\tUsed\tPriority\n/dev/zram0 partition 1 0 100\n/var/swap file 1 0 -2\n";
        let found = |major_of_file| {
            swap_on_mmc(swaps, |path| Some(if path == Path::new("/var/swap") { major_of_file } else { 6 }))
        };
        assert_eq!(found(MMC_MAJOR), [Path::new("/var/swap")]);
        assert_eq!(evaluate_swap(&found(MMC_MAJOR)).verdict, Verdict::Warning);
        assert_eq!(evaluate_swap(&found(8)).verdict, Verdict::Good);
        let partition = swap_on_mmc("head\n/dev/mmcblk0p3 partition 1 0 -2\n", |_| None);
        assert_eq!(evaluate_swap(&partition).verdict, Verdict::Warning);
    }

    #[test]
    fn a_weak_sandbox_is_a_warning() {
        let evaluated = |isolate, has_filter| sandbox(isolate, has_filter).verdict;
        assert_eq!(evaluated(Isolate::Process, true), Verdict::Good);
        assert_eq!(evaluated(Isolate::Process, false), Verdict::Warning);
        assert_eq!(evaluated(Isolate::Thread, true), Verdict::Warning);
    }

    #[test]
    fn an_unsynchronised_clock_is_a_warning() {
        let verdict = |set, is_synced| clock(set, is_synced).verdict;
        assert_eq!([verdict(Clock::Auto, true), verdict(Clock::Auto, false)], [Verdict::Good, Verdict::Warning]);
        assert_eq!(verdict(Clock::Trusted, false), Verdict::Good);
    }
}
