//! A disk that is full or read-only. Needs a mount namespace: as root, or a user namespace.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::harness::daemon::{Daemon, SEDGE, Setup};
use crate::harness::eventually;
use crate::harness::guest::guest;
use crate::harness::ledger::Ledger;
use crate::harness::mosquitto::Mosquitto;
use crate::harness::upstream::Upstream;

/// `unshare` with the options that this user needs to mount.
pub(crate) fn unshare() -> Option<Command> {
    let flags = if rustix::process::getuid().is_root() { "-m" } else { "-rm" };
    let works = Command::new("unshare").args([flags, "mount", "-t", "tmpfs", "none", "/mnt"]).output();
    if !works.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this machine lets nobody mount a file system in a namespace of its own");
        return None;
    }
    let mut command = Command::new("unshare");
    command.arg(flags);
    Some(command)
}

/// The daemon with its data folder on a separate file system with these mount options.
pub(crate) fn on_mount(mut unshare: Command, daemon: &Daemon, options: &str) -> Command {
    unshare
        .args(["sh", "-c", r#"mount -t tmpfs -o "$1" none "$2" && shift 2 && exec "$@""#, "sh", options])
        .arg(daemon.data())
        .args([SEDGE, "run", "--config"])
        .arg(daemon.config());
    unshare
}

/// The data folder as the daemon sees it.
pub(crate) fn inside(daemon: &Daemon) -> PathBuf {
    let data = daemon.data();
    Path::new("/proc")
        .join(daemon.pid().to_string())
        .join("root")
        .join(data.strip_prefix("/").expect("an absolute path"))
}

#[test]
fn a_full_disk_stops_the_intake_is_reported_and_loses_nothing() {
    let Some(unshare) = unshare() else { return };
    let broker = Mosquitto::start();
    let mut cloud = Mosquitto::start();
    let upstream = Upstream::collect(cloud.port);
    let setup = Setup::new(broker.url()).upstream(cloud.url()).function(&guest("count"));
    let mut daemon = Daemon::prepare(&setup);
    let command = on_mount(unshare, &daemon, "size=24m");
    daemon.launch_as(command);
    daemon.wait_ready(Duration::from_secs(30));
    broker.await_daemon();

    // Upstream is unreachable, so the outbox fills the disk.
    cloud.stop();
    let filler = inside(&daemon).join("filler");
    let mut file = File::create(&filler).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    drop(file);
    let mut ledger = Ledger::default();
    let mut sensors = broker.client("sensors");
    let is_ready = |daemon: &Daemon| daemon.get("/readyz").is_some_and(|(status, _)| status == 200);
    let stopped = eventually(Duration::from_secs(60), || {
        sensors.publish_all(ledger.batch(10, 2000)).unwrap();
        !is_ready(&daemon)
    });
    assert!(stopped, "the disk is full and the daemon says it is ready; log:\n{}", daemon.log());
    assert_eq!(daemon.get("/healthz").map(|(status, _)| status), Some(200), "it is not its own fault");
    let acknowledged = daemon.metric("sedge_messages_acknowledged_total");
    assert!(acknowledged < ledger.total() as f64, "what is not on disk is not acknowledged");

    fs::remove_file(&filler).unwrap();
    assert!(eventually(Duration::from_secs(60), || is_ready(&daemon)), "it does not recover; log:\n{}", daemon.log());
    assert!(daemon.is_running());
    cloud.resume();
    eventually(Duration::from_secs(120), || ledger.is_complete(&upstream.received()));
    ledger.check(&upstream.received());
}

#[test]
fn a_data_folder_that_cannot_be_written_is_named_and_nothing_is_taken() {
    let Some(unshare) = unshare() else { return };
    let broker = Mosquitto::start();
    let cloud = Mosquitto::start();
    let upstream = Upstream::collect(cloud.port);
    let setup = Setup::new(broker.url()).upstream(cloud.url()).function(&guest("count"));
    let mut daemon = Daemon::start(&setup);
    broker.await_daemon();
    daemon.terminate();
    let mut ledger = Ledger::default();
    broker.client("sensors").publish_all(ledger.batch(3, 50)).unwrap();

    let command = on_mount(unshare, &daemon, "ro");
    daemon.launch_as(command);
    let data = daemon.data().display().to_string();
    assert!(eventually(Duration::from_secs(20), || daemon.log().contains(&data)), "log:\n{}", daemon.log());
    assert_ne!(daemon.get("/readyz").map(|(status, _)| status), Some(200));
    // Not 78: a restart may find it mounted for writing.
    assert_eq!(daemon.wait_end(Duration::from_secs(20)).code(), Some(1));
    assert!(daemon.log().contains("mount it for writing, or name another node.data_dir"), "{}", daemon.log());
    daemon.resume();
    eventually(Duration::from_secs(60), || ledger.is_complete(&upstream.received()));
    ledger.check(&upstream.received());
}
