//! What recording costs a board, and how fast a recording runs again.

use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::Size;
use crate::durable::reading;
use crate::harness::client::Client;
use crate::harness::daemon::{Daemon, NODE, SEDGE, Setup};
use crate::harness::eventually;
use crate::harness::guest::guest;
use crate::harness::mosquitto::Mosquitto;
use crate::harness::process;
use crate::harness::wire::{Hello, Publish};
use crate::load::{Load, paced};
use crate::report::{Goal, Report};

const PATIENCE: Duration = Duration::from_secs(120);
const TOPICS: usize = 16;

/// Messages per second of boards with much to do.
const PER_SECOND: u32 = 1000;

pub(crate) fn measure(report: &mut Report, size: &Size) -> io::Result<()> {
    let (mut floods, mut paces, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..size.rounds {
        eprintln!("recordings, round {} of {}", round + 1, size.rounds);
        let bench = Bench::start()?;
        let count = size.messages / 4;
        let flood = |bench: &Bench| {
            let mut load = Load::connect(bench.broker.port, "load", &messages())?;
            load.flood(count)
        };
        let pace = |bench: &Bench| {
            let (mut stream, _) = Client::connect(bench.broker.port, &Hello::new("paced"))?.into_parts();
            let messages = messages();
            paced(&mut stream, PER_SECOND, count / 2, |index| messages[index % messages.len()].clone())
                .map(|due| due.len())
        };
        bench.cpu_us(flood)?;
        for _ in 0..3 {
            let plain = bench.cpu_us(pace)?;
            paces.push(bench.recorded(|bench| bench.cpu_us(pace))? / plain);
        }
        let plain = bench.cpu_us(flood)?;
        floods.push(bench.recorded(|bench| bench.cpu_us(flood))? / plain);
        rates.push(bench.replay()?);
    }
    let what = "CPU of daemon and workers per message while a function is recorded, over without, 1,000 messages/s";
    report.add_median("record_cpu_ratio", paces, Goal::AtMost(1.05), what);
    report.add_median("record_flood_cpu_ratio", floods, Goal::None, "the same, as fast as it goes");
    let what = "messages of a recording per second, a small Rust function with state, one core";
    report.add_median("replay_msgs_per_s", rates, Goal::AtLeast(50_000.0), what);
    Ok(())
}

fn messages() -> Vec<Publish> {
    (0..1000).map(|index| Publish::new(&format!("count/s{}", index % TOPICS), reading(index))).collect()
}

struct Bench {
    daemon: Daemon,
    broker: Mosquitto,
    folder: tempfile::TempDir,
}

impl Bench {
    fn start() -> io::Result<Self> {
        let broker = Mosquitto::start();
        let folder = tempfile::tempdir()?;
        let key = folder.path().join("ops.pem");
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
        Ok(Self { daemon, broker, folder })
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("night.rec")
    }

    /// CPU of daemon and workers per message, while `send` sends some.
    fn cpu_us(&self, send: impl Fn(&Self) -> io::Result<usize>) -> io::Result<f64> {
        let before = self.handled();
        let cpu = process::cpu_ns(self.daemon.pid());
        let sent = send(self)?;
        let all = || self.handled() >= before + sent as f64;
        assert!(eventually(PATIENCE, all), "log:\n{}", self.daemon.log());
        Ok((process::cpu_ns(self.daemon.pid()) - cpu) as f64 / 1e3 / sent as f64)
    }

    fn handled(&self) -> f64 {
        self.daemon.metric("sedge_function_invocations_total")
    }

    /// Measures while the function is recorded.
    fn recorded(&self, measure: impl Fn(&Self) -> io::Result<f64>) -> io::Result<f64> {
        let accepted = || self.daemon.log().matches("request accepted").count();
        let before = accepted();
        let _ = std::fs::remove_file(self.file());
        let mut record = Command::new(SEDGE)
            .args(["record", "--node", NODE, "--function", "count", "--for", "10m", "--broker", &self.broker.url()])
            .args(["--max-messages", "1000000", "--max-bytes", "400000000", "--key"])
            .arg(self.folder.path().join("ops.pem"))
            .arg("-o")
            .arg(self.file())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        assert!(eventually(PATIENCE, || accepted() > before), "nothing is recorded; log:\n{}", self.daemon.log());
        std::thread::sleep(Duration::from_millis(500));
        let figure = measure(self)?;
        // As with Ctrl-C: it ends the recording, and fetches it.
        let pid = Pid::from_child(&record);
        kill_process(pid, Signal::INT)?;
        let status = record.wait()?;
        assert!(self.file().exists(), "sedge record ended with {status}; log:\n{}", self.daemon.log());
        Ok(figure)
    }

    /// Messages of the recording per second.
    fn replay(&self) -> io::Result<f64> {
        let output = Command::new(SEDGE).arg("replay").arg(self.file()).arg(guest("count")).arg("--json").output()?;
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        assert_eq!(answer["equal"], true, "{answer}");
        let figure = |name: &str| answer[name].as_f64().unwrap_or_default();
        Ok(figure("messages") * 1000.0 / figure("elapsed_ms").max(1.0))
    }
}
