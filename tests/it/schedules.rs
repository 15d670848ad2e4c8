//! Schedules of functions: over the death of the daemon, as figures, and of zones that are not there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::harness::Site;
use crate::harness::client::Client;
use crate::harness::daemon::SEDGE;
use crate::harness::guest::root;

const PATIENCE: Duration = Duration::from_secs(30);
const SCRIPT: &str = r#"
import { publish } from "sedge";

export function handle(message) {
  const { "sedge-due": due, "sedge-late": late } = message.properties;
  return publish("ran", { due, late: Number(late ?? 0), schedule: message.topic });
}
"#;

fn function(folder: &Path, lines: &str) -> PathBuf {
    let folder = folder.join("clockwork");
    fs::create_dir_all(&folder).expect("make the folder of the function");
    let manifest = format!("name = \"clockwork\"\nversion = \"1.0.0\"\nallow.publish = [\"ran\"]\n{lines}\n");
    fs::write(folder.join("function.toml"), manifest).expect("write the manifest");
    fs::write(folder.join("function.js"), SCRIPT).expect("write the script");
    folder
}

/// The next run: when it was due, and how late it began in milliseconds.
fn run(listener: &mut Client) -> (String, u64) {
    let ran = listener.receive(PATIENCE).expect("read from the broker").expect("a run");
    let json: serde_json::Value = serde_json::from_str(&ran.text()).expect("a run is JSON");
    assert_eq!(json["schedule"], "$schedule/clockwork");
    (json["due"].as_str().expect("a time").to_owned(), json["late"].as_u64().expect("a number"))
}

#[test]
fn a_schedule_runs_and_is_made_up_for_after_the_daemon_was_killed() {
    let folder = tempfile::tempdir().expect("make a folder");
    let clockwork = function(folder.path(), "at = \"*/10 * * * * *\"");
    let mut site = Site::start_with(|setup| setup.function(&clockwork).set("node", "clock = \"trusted\""));
    let mut listener = site.broker.client("listener");
    listener.subscribe(&["ran"]).expect("subscribe to runs");
    let (first, _) = run(&mut listener);
    site.daemon.kill();
    // One is due meanwhile, two seconds before the daemon starts again.
    let second = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs() % 10;
    std::thread::sleep(Duration::from_secs(12 - second));
    site.daemon.resume();
    site.broker.await_daemon();
    // The message of the first run may be sent again: nobody noted that it had arrived.
    let after_first = |listener: &mut Client| {
        std::iter::repeat_with(|| run(listener)).find(|(due, _)| *due != first).expect("there is always another run")
    };
    let (made_up, late) = after_first(&mut listener);
    assert!(late >= 1_000 && made_up > first, "{made_up} after {first} was {late} ms late");
    let (next, _) = after_first(&mut listener);
    assert!(next > made_up, "{next} after {made_up}");
    assert!(site.daemon.metric("sedge_schedules_total") >= 2.0);
    assert!(site.daemon.metric("sedge_schedules_late_total") >= 1.0);
    assert_eq!(site.daemon.metric("sedge_schedules_awaiting_clock"), 0.0);
    assert_eq!(site.daemon.metric("sedge_dead_letters_total"), 0.0);
}

fn sedge(arguments: &[&str], folder: &Path) -> Output {
    let mut command = Command::new(SEDGE);
    command.args(arguments).arg(folder).env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
    command.output().expect("run sedge")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn what_is_wrong_is_said_on_the_laptop_with_the_fix() {
    let folder = tempfile::tempdir().expect("make a folder");
    for (lines, named) in [
        ("at = \"0 0 30 2 *\"", "\"0 0 30 2 *\" never comes"),
        ("at = \"0 25 * * *\"", "\"0 25 * * *\" is not the expression of a schedule"),
        ("at = \"0 6 * * *\"\nzone = \"Europe/Berlim\"", "time zone \"Europe/Berlim\" is not in"),
        ("at = \"0 6 * * *\"\nzone = \"../../etc/passwd\"", "is not the name of a time zone"),
    ] {
        if lines.contains("Berlim") && !Path::new("/usr/share/zoneinfo").is_dir() {
            continue;
        }
        let function = function(folder.path(), lines);
        let output = sedge(&["invoke", "--schedule", "clockwork"], &function);
        assert!(!output.status.success() && said(&output).contains(named), "{lines}: {}", said(&output));
        let config = folder.path().join("sedge.toml");
        fs::write(&config, format!("[functions]\npaths = [{function:?}]\n")).expect("write the configuration");
        let output = sedge(&["check", "--config"], &config);
        assert!(!output.status.success() && said(&output).contains(named), "{lines}: {}", said(&output));
    }
}

#[test]
fn a_schedule_is_run_by_hand() {
    let folder = tempfile::tempdir().expect("make a folder");
    let function = function(folder.path(), "at = \"0 6 * * *\"");
    let output = sedge(&["invoke", "--schedule", "clockwork", "--at", "2026-01-05T06:00:00Z"], &function);
    assert!(output.status.success() && said(&output).contains("2026-01-05T06:00:00.000Z"), "{}", said(&output));
}

#[test]
fn the_cases_of_the_example_pass() {
    let output = sedge(&["test"], &root().join("examples/javascript/daily-report"));
    assert!(output.status.success(), "{}", said(&output));
}
