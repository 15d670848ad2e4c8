//! What recording costs a board, and how fast a recording runs again.

use std::io;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::Size;
use crate::durable::reading;
use crate::harness::daemon::{Daemon, NODE, SEDGE, Setup};
use crate::harness::eventually;
use crate::harness::guest::guest;
use crate::harness::mosquitto::Mosquitto;
use crate::harness::process;
use crate::harness::wire::Publish;
use crate::load::Load;
use crate::report::{Goal, Report};

const PATIENCE: Duration = Duration::from_secs(120);
const TOPICS: usize = 16;

pub(crate) fn measure(report: &mut Report, size: &Size) -> io::Result<()> {
    let (mut ratios, mut rates) = (Vec::new(), Vec::new());
    for round in 0..size.rounds {
        eprintln!("recordings, round {} of {}", round + 1, size.rounds);
        let Round { plain_us, recorded_us, replayed_per_s } = run(size.messages / 4)?;
        ratios.push(recorded_us / plain_us);
        rates.push(replayed_per_s);
    }
    let what = "CPU of daemon and workers per message while a function is recorded, over without";
    report.add_median("record_cpu_ratio", ratios, Goal::AtMost(1.05), what);
    let what = "messages of a recording per second, a small Rust function with state, one core";
    report.add_median("replay_msgs_per_s", rates, Goal::AtLeast(50_000.0), what);
    Ok(())
}

struct Round {
    plain_us: f64,
    recorded_us: f64,
    replayed_per_s: f64,
}

fn run(count: usize) -> io::Result<Round> {
    let broker = Mosquitto::start();
    let folder = tempfile::tempdir()?;
    let (key, file) = (folder.path().join("ops.pem"), folder.path().join("night.rec"));
    let made = Command::new(SEDGE).args(["keygen", "--out"]).arg(&key).stdout(Stdio::null()).status()?;
    assert!(made.success(), "sedge keygen failed");
    let setup = Setup::new(broker.url())
        .function(&guest("count"))
        .set("recording", "enabled = true")
        .set("recording", "max_bytes = 1_000_000_000")
        .set("deploy.keys.ops", format!("file = {:?}", key.with_extension("pub.pem")))
        .set("deploy.keys.ops", "record = true");
    let daemon = Daemon::start(&setup);
    broker.await_daemon();
    let messages: Vec<Publish> =
        (0..1000).map(|index| Publish::new(&format!("count/s{}", index % TOPICS), reading(index))).collect();
    let mut load = Load::connect(broker.port, "load", &messages)?;
    let mut sent = load.flood(count / 10)?;
    wait(&daemon, sent);

    let mut flood = |record: bool| -> io::Result<(f64, usize)> {
        let child = record.then(|| {
            Command::new(SEDGE)
                .args(["record", "--node", NODE, "--function", "count", "--for", "10m", "--broker", &broker.url()])
                .args(["--max-messages", &count.to_string(), "--max-bytes", "400000000", "--key"])
                .arg(&key)
                .arg("-o")
                .arg(&file)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
        });
        let child = child.transpose()?;
        if child.is_some() {
            assert!(eventually(PATIENCE, || daemon.log().contains("request accepted")), "nothing is recorded");
            std::thread::sleep(Duration::from_millis(500));
        }
        let cpu = process::cpu_ns(daemon.pid());
        let flooded = load.flood(count)?;
        sent += flooded;
        wait(&daemon, sent);
        let cpu_us = (process::cpu_ns(daemon.pid()) - cpu) as f64 / 1e3 / flooded as f64;
        if let Some(mut child) = child {
            assert!(child.wait()?.success(), "sedge record failed; log:\n{}", daemon.log());
        }
        Ok((cpu_us, flooded))
    };
    let (plain_us, _) = flood(false)?;
    let (recorded_us, _) = flood(true)?;
    let output = Command::new(SEDGE).arg("replay").arg(&file).arg(guest("count")).arg("--json").output()?;
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(answer["equal"], true, "{answer}");
    let figure = |name: &str| answer[name].as_f64().unwrap_or_default();
    Ok(Round { plain_us, recorded_us, replayed_per_s: figure("messages") * 1000.0 / figure("elapsed_ms").max(1.0) })
}

/// Until the daemon has handled so many messages.
fn wait(daemon: &Daemon, messages: usize) {
    let handled = || daemon.metric("sedge_function_invocations_total") >= messages as f64;
    assert!(eventually(PATIENCE, handled), "log:\n{}", daemon.log());
}
