//! Sizes of the programs that `make cross` made, and the memory of the runtime-only one.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Size;
use crate::harness::daemon::{Daemon, SEDGE, Setup};
use crate::harness::guest::guest;
use crate::harness::mosquitto::Mosquitto;
use crate::harness::process;
use crate::report::{Goal, Report};

const BOARD: &str = "aarch64-unknown-linux-gnu";

pub(crate) fn measure(report: &mut Report, _: &Size) -> io::Result<()> {
    eprintln!("shipped programs");
    let sizes = [
        (
            "binary_full_kb",
            "sedge",
            14_000.0,
            "the program for aarch64",
            "compile it: make cross TARGET=aarch64-unknown-linux-gnu",
        ),
        (
            "binary_runtime_kb",
            "sedge-runtime",
            5_000.0,
            "the runtime-only program for aarch64",
            "compile it: make cross TARGET=aarch64-unknown-linux-gnu RUNTIME_ONLY=1",
        ),
    ];
    for (key, name, most, what, hint) in sizes {
        match program(BOARD, name).metadata() {
            Ok(file) => report.add(key, file.len() as f64 / 1000.0, Goal::AtMost(most), what),
            Err(_) => report.add_missing(key, Goal::AtMost(most), hint),
        }
    }
    measure_memory(report)
}

/// Measures the runtime-only program for this machine, idle, with three functions that the full program compiled.
fn measure_memory(report: &mut Report) -> io::Result<()> {
    const KEY: &str = "rss_runtime_idle_kb";
    const GOAL: Goal = Goal::AtMost(8_000.0);
    let runtime = program(&format!("{}-unknown-linux-gnu", std::env::consts::ARCH), "sedge-runtime");
    if !runtime.exists() {
        report.add_missing(
            KEY,
            GOAL,
            "compile it: make cross TARGET=<this machine's, x86_64-unknown-linux-gnu> RUNTIME_ONLY=1",
        );
        return Ok(());
    }
    let broker = Mosquitto::start();
    let mut setup = Setup::new(broker.url());
    setup.functions = vec![guest("relay"), guest("count"), guest("misbehave")];
    let mut daemon = Daemon::prepare(&setup);
    let mut command = std::process::Command::new(runtime);
    command.arg("run").arg("--config").arg(daemon.config()).env("SEDGE_COMPILER", SEDGE);
    daemon.launch_as(command);
    daemon.wait_ready(Duration::from_secs(60));
    broker.await_daemon();
    // A ready daemon releases the memory that starting needed a little later.
    std::thread::sleep(Duration::from_secs(3));
    let pss = process::pss_kb(daemon.pid()) as f64;
    report.add(KEY, pss, GOAL, "PSS of daemon and workers of the runtime-only program, three functions, idle");
    Ok(())
}

/// Path of a program made by `cross/build.sh`.
fn program(target: &str, name: &str) -> PathBuf {
    let folder = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from);
    folder.join(target).join("dist").join(name)
}
