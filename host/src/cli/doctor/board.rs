//! The board: clock, disk, swap.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{major, statfs, statvfs};

use super::finding::Finding;
use crate::config::{Config, Isolate, Store};
use crate::worker::sandboxing;

/// One synced write in the middle of many. A good card takes 2 to 5 ms.
const SLOW: Duration = Duration::from_millis(20);
const VERY_SLOW: Duration = Duration::from_millis(500);
const SYNCS: usize = 15;
/// The write-ahead log, compiled code, and what the rest of the system writes.
const RESERVE_BYTES: u64 = 128 << 20;
/// Of SD cards and eMMC.
const MMC_MAJOR: u32 = 179;

const TMPFS: u64 = 0x0102_1994;
const RAMFS: u64 = 0x8584_58f6;
const OVERLAY: u64 = 0x794c_7630;

pub fn inspect(config: &Config) -> Vec<Finding> {
    let dir = &config.node.data_dir;
    let mut findings = match Disk::of(dir) {
        Ok(disk) => evaluate_disk(dir, &disk, &config.store),
        Err(error) => vec![unreadable("disk", dir, &error)],
    };
    findings.push(match syncs(dir) {
        Ok(times) => evaluate_syncs(dir, times),
        Err(error) => unreadable("sync", dir, &error),
    });
    findings.push(match fs::read_to_string("/proc/swaps") {
        Ok(swaps) => evaluate_swap(&swap_on_mmc(&swaps, |path| Some(major(fs::metadata(path).ok()?.st_dev())))),
        Err(error) => unreadable("swap", Path::new("/proc/swaps"), &error),
    });
    findings.push(sandbox(config.worker.isolate, sandboxing::has_filter()));
    findings
}

pub fn clock(is_synced: bool) -> Finding {
    if is_synced {
        return Finding::good("clock", "a time service has set it since the board booted");
    }
    Finding::warning(
        "clock",
        "nothing shows that a time service has set it since the board booted; functions are told so",
        "timedatectl set-ntp true, or install chrony; without a network, a real-time clock keeps the time over boots",
    )
}

struct Disk {
    free_bytes: u64,
    /// What the database takes already.
    used_bytes: u64,
    kind: u64,
    is_read_only: bool,
}

impl Disk {
    fn of(dir: &Path) -> io::Result<Self> {
        let there = dir.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
        let space = statvfs(there)?;
        let used = fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|entry| entry.metadata().ok());
        Ok(Self {
            free_bytes: space.f_bavail.saturating_mul(space.f_frsize),
            used_bytes: used.filter(fs::Metadata::is_file).map(|file| file.len()).sum(),
            kind: u64::try_from(statfs(there)?.f_type).unwrap_or(0) & 0xffff_ffff,
            is_read_only: space.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
        })
    }
}

fn evaluate_disk(dir: &Path, disk: &Disk, store: &Store) -> Vec<Finding> {
    let shown = dir.display();
    if disk.is_read_only {
        let what =
            format!("{shown} is on a read-only file system, so nothing can be kept and the daemon does not start");
        return vec![Finding::warning("disk", what, "mount it for writing, or name another node.data_dir")];
    }
    let mut findings = Vec::new();
    let volatile = match disk.kind {
        TMPFS | RAMFS => Some("in memory"),
        OVERLAY => Some("on an overlay, which a board with a read-only root keeps in memory"),
        _ => None,
    };
    if let Some(place) = volatile {
        let what = format!("{shown} is {place}: a power cut takes what was acknowledged");
        findings.push(Finding::warning("disk", what, "name a node.data_dir on a real disk"));
    }
    let needed = (store.max_bytes.get() + store.dead_letter_max_bytes.get() + store.parked_max_bytes.get())
        .saturating_sub(disk.used_bytes)
        + RESERVE_BYTES;
    let (free, needed) = (disk.free_bytes >> 20, needed >> 20);
    findings.push(if free < needed {
        let what = format!("{free} MiB are free for {shown}, and it may come to need {needed} MiB more");
        Finding::warning("disk", what, format!("free {} MiB, or lower store.max_bytes", needed - free))
    } else {
        Finding::good("disk", format!("{free} MiB are free for {shown}, which needs {needed} MiB at most"))
    });
    findings
}

/// How long synced writes of one page take, as the database does them.
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
        "a synced write to {} takes {:.1} ms, the longest of {} took {:.1} ms",
        dir.display(),
        ms(middle),
        times.len(),
        ms(longest)
    );
    if middle < SLOW && longest < VERY_SLOW {
        return Finding::good("sync", what);
    }
    let fix = "a message alone waits that long for its acknowledgement: an SSD, or a card of class A2, is faster; \
                store.flash_saver_ms lets more messages share a write";
    Finding::warning("sync", what, fix)
}

/// What a function that escaped from its sandbox would run into.
fn sandbox(isolate: Isolate, has_filter: bool) -> Finding {
    match (isolate, has_filter) {
        (Isolate::Thread, _) => Finding::warning(
            "walls",
            "functions run in the daemon's own process: one that escapes from its sandbox has the daemon's keys",
            "worker.isolate = \"process\", where the memory suffices",
        ),
        (Isolate::Process, false) => Finding::warning(
            "walls",
            "this kernel does not filter system calls: the walls around functions are thinner",
            "run a kernel with CONFIG_SECCOMP_FILTER",
        ),
        (Isolate::Process, true) => {
            Finding::good("walls", "functions run in processes that can open nothing and reach nobody")
        }
    }
}

/// The swap areas on SD cards, by the device that the area or its file is on.
fn swap_on_mmc(swaps: &str, device: impl Fn(&Path) -> Option<u32>) -> Vec<PathBuf> {
    let areas = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    areas
        .filter(|area| area.starts_with("/dev/mmcblk") || device(Path::new(area)) == Some(MMC_MAJOR))
        .map(PathBuf::from)
        .collect()
}

fn evaluate_swap(swap_on_mmc: &[PathBuf]) -> Finding {
    let Some(area) = swap_on_mmc.first() else { return Finding::good("swap", "none on an SD card") };
    let what = format!(
        "{} is swap on an SD card: it wears the card out, and stalls everything while it is used",
        area.display()
    );
    Finding::warning(
        "swap",
        what,
        "swap to compressed memory instead: apt install zram-tools, and systemctl disable --now dphys-swapfile",
    )
}

fn unreadable(check: &'static str, path: &Path, error: &io::Error) -> Finding {
    let what = format!("{}: {error}", path.display());
    match error.kind() {
        ErrorKind::NotFound => Finding::unknown(check, what, "start the service once, and ask again"),
        ErrorKind::PermissionDenied => Finding::unknown(check, what, "ask again as root: sudo sedge doctor"),
        ErrorKind::ReadOnlyFilesystem => {
            Finding::warning(check, what, "mount it for writing, or name another node.data_dir")
        }
        ErrorKind::StorageFull => Finding::warning(check, what, "free some room"),
        _ => Finding::warning(check, what, "look at the disk: dmesg says what it answers"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
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
    fn little_room_hurts_and_what_is_used_already_counts() {
        assert_eq!(verdicts(&disk(GIB, EXT4)), [Verdict::Good]);
        assert_eq!(verdicts(&disk(400 << 20, EXT4)), [Verdict::Warning]);
        assert_eq!(verdicts(&Disk { used_bytes: 256 << 20, ..disk(400 << 20, EXT4) }), [Verdict::Good]);
        let findings = evaluate_disk(Path::new("/d"), &disk(400 << 20, EXT4), &Store::default());
        assert_eq!(findings[0].fix.as_deref(), Some("free 32 MiB, or lower store.max_bytes"));
    }

    #[test]
    fn a_disk_that_forgets_or_cannot_be_written_hurts() {
        assert_eq!(verdicts(&disk(GIB, TMPFS)), [Verdict::Warning, Verdict::Good]);
        assert_eq!(verdicts(&disk(GIB, OVERLAY)), [Verdict::Warning, Verdict::Good]);
        assert_eq!(verdicts(&Disk { is_read_only: true, ..disk(GIB, EXT4) }), [Verdict::Warning]);
    }

    #[test]
    fn slow_syncs_hurt_and_so_does_one_very_slow_one() {
        let evaluated = |ms: &[u64]| {
            evaluate_syncs(Path::new("/d"), ms.iter().copied().map(Duration::from_millis).collect()).verdict
        };
        assert_eq!(evaluated(&[1, 90, 2, 3, 4]), Verdict::Good);
        assert_eq!(evaluated(&[25, 30, 22, 1, 40]), Verdict::Warning);
        assert_eq!(evaluated(&[1, 1, 1, 1, 700]), Verdict::Warning);
    }

    #[test]
    fn syncs_are_measured_and_nothing_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(syncs(dir.path()).unwrap().len(), SYNCS);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let absent = syncs(&dir.path().join("absent")).unwrap_err();
        assert_eq!(unreadable("sync", dir.path(), &absent).verdict, Verdict::Unknown);
    }

    #[test]
    fn swap_on_a_card_hurts_and_in_memory_does_not() {
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
    fn thin_walls_hurt() {
        let evaluated = |isolate, has_filter| sandbox(isolate, has_filter).verdict;
        assert_eq!(evaluated(Isolate::Process, true), Verdict::Good);
        assert_eq!(evaluated(Isolate::Process, false), Verdict::Warning);
        assert_eq!(evaluated(Isolate::Thread, true), Verdict::Warning);
    }

    #[test]
    fn a_clock_that_nobody_set_hurts() {
        assert_eq!([clock(true).verdict, clock(false).verdict], [Verdict::Good, Verdict::Warning]);
    }
}
