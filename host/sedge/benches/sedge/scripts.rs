//! Memory of a worker for functions in JavaScript.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Size;
use crate::durable::reading_of;
use crate::harness::daemon::{Daemon, Setup};
use crate::harness::guest::root;
use crate::harness::mosquitto::Mosquitto;
use crate::harness::wire::Publish;
use crate::harness::{eventually, process};
use crate::report::{Goal, Report};

const FUNCTIONS: usize = 20;
/// Each function gets so many messages, and thereby has all that it keeps between two.
const MESSAGES: usize = 20;

pub(crate) fn measure(report: &mut Report, _: &Size) -> io::Result<()> {
    eprintln!("memory of scripts");
    let one = private_kb(1)?;
    let many = private_kb(1 + FUNCTIONS)?;
    let each = (many - one) / FUNCTIONS as f64;
    let what = "private memory of a worker for each function in JavaScript, of 20 more";
    report.add("js_worker_kb_per_function", each, Goal::AtMost(150.0), what);
    Ok(())
}

/// Private memory of the one worker with so many copies of the example.
fn private_kb(functions: usize) -> io::Result<f64> {
    let broker = Mosquitto::start();
    let folder = tempfile::tempdir()?;
    let mut setup = Setup::new(broker.url()).set("worker", "count = 1");
    for index in 0..functions {
        setup = setup.function(&copy(folder.path(), index)?);
    }
    let daemon = Daemon::start(&setup);
    broker.await_daemon();
    let mut client = broker.client("load");
    for round in 0..MESSAGES {
        let value = if round % 2 == 0 { 70.5 } else { 81.5 };
        client.publish_all((0..functions).map(|index| Publish::new(&format!("scripts/{index}"), reading_of(value))))?;
    }
    let handled = || daemon.metric("sedge_function_invocations_total") >= (MESSAGES * functions) as f64;
    assert!(eventually(Duration::from_secs(60), handled), "log:\n{}", daemon.log());
    let workers = process::workers(daemon.pid());
    assert_eq!(workers.len(), 1, "{workers:?}");
    private_of(workers[0])
}

/// Memory of a process, in KiB, that no other one maps.
fn private_of(pid: u32) -> io::Result<f64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let private = rollup.lines().filter(|line| line.starts_with("Private_"));
    Ok(private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok()).sum())
}

fn copy(into: &Path, index: usize) -> io::Result<PathBuf> {
    let original = root().join("examples/javascript/threshold");
    let (name, folder) = (format!("script-{index}"), into.join(format!("script-{index}")));
    fs::create_dir(&folder)?;
    fs::copy(original.join("function.js"), folder.join("function.js"))?;
    let manifest = format!(
        "name = {name:?}\nversion = \"1.0.0\"\nsubscribe = [\"scripts/{index}\"]\nstate = \"topic\"\n\n\
         [config]\nfield = \"temperature\"\nmax = 80\nhysteresis = 2\n"
    );
    fs::write(folder.join("function.toml"), manifest)?;
    Ok(folder)
}
