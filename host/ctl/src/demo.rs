//! `sedge demo`: broker, sensors and upstream in this process, and the daemon as a child, as it runs on a board.
//!
//! The account compares what sensors and functions published with what the daemon reports.

mod broker;
mod report;
mod sensors;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Args;
use serde_json::Value;
use tokio::time::Instant;

use super::client::{Client, ClientEvent};
use super::progress::Progress;
use super::terminal::{self, say};
use report::{Report, Totals};
use sedge_core::deploy;
use sedge_core::manifest::{self, Manifest};
use sedge_sandbox::program;
use sensors::{Reading, Recording, Simulated};

const NODE: &str = "demo";
const UPSTREAM_PREFIX: &str = "upstream/";
/// Unacknowledged publishes of the sensors.
const SENSOR_WINDOW: u16 = 64;
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// The demo ends if nothing progresses for this time.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Number of messages that the sensors send, or that are replayed from the recording
    #[arg(long, short)]
    messages: Option<u64>,
    /// Recording to replay instead of simulated sensors: CSV with the columns timestamp,value
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Speed-up of the recording; 0 replays it as fast as possible
    #[arg(long, default_value_t = 0.0, requires = "data")]
    speed: f64,
    /// Folder with one subfolder per function, built with `sedge build` [default: examples, or those of the package]
    #[arg(long, value_name = "DIR")]
    functions: Option<PathBuf>,
    /// Print the result as one JSON object on standard output, everything else on standard error
    #[arg(long)]
    json: bool,
}

/// Returns exit code 0 only if every message is accounted for.
pub fn run(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let report = super::block_on(demo(args))?;
    if args.json {
        say!("{}", terminal::json(&report.as_json()));
    } else {
        report.print();
    }
    Ok(if report.totals.unaccounted() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn demo(args: &DemoArgs) -> anyhow::Result<Report> {
    let functions = functions(&args.functions.clone().unwrap_or_else(default_functions))?;
    let broker = broker::start()?;
    eprintln!("broker     on {broker}, in this process");
    let mut upstream = Upstream::connect(broker).await?;
    eprintln!("upstream   subscribes to {UPSTREAM_PREFIX}#");
    let scratch = Scratch::create()?;
    let http = free_port()?;
    let mut daemon = Daemon::start(&scratch.0, broker, http, &functions)?;
    eprintln!("daemon     starts with {} functions, and compiles the new ones", functions.len());
    upstream.wait_for_daemon(&mut daemon).await?;
    let mut sensors = Sensors::connect(broker).await?;
    let started = Instant::now();
    let (readings, count): (Box<dyn Iterator<Item = Reading>>, u64) = match &args.data {
        Some(path) => {
            let recording = Recording::open(path, args.messages)?;
            let count = recording.len();
            (Box::new(recording), count)
        }
        None => {
            let count = args.messages.unwrap_or(10_000);
            (Box::new(Simulated::new(count)), count)
        }
    };
    eprintln!("sensors    send {count} messages\n");
    for reading in readings {
        if args.speed > 0.0 && !reading.after.is_zero() {
            tokio::time::sleep(reading.after.div_f64(args.speed)).await;
        }
        sensors.publish(reading).await?;
        upstream.poll()?;
        let alerts = format!(" messages, {} alerts", upstream.alerts_firing + upstream.alerts_resolved);
        upstream.progress.set_count("sensors", sensors.acknowledged, count, &alerts, Instant::now());
        daemon.check()?;
    }
    sensors.finish().await?;
    let report = settle(&mut upstream, &mut daemon, sensors.acknowledged, http, started).await?;
    daemon.stop()?;
    Ok(report)
}

/// Waits until the daemon has nothing in flight, or makes no progress, and draws up the account.
async fn settle(
    upstream: &mut Upstream,
    daemon: &mut Daemon,
    sent: u64,
    http: SocketAddr,
    started: Instant,
) -> anyhow::Result<Report> {
    let mut last = (Totals::default(), Instant::now());
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        upstream.poll()?;
        daemon.check()?;
        let status = report::read(http)?;
        let mut totals = Totals::from_status(&status, sent);
        totals.alerts_firing = upstream.alerts_firing;
        totals.alerts_resolved = upstream.alerts_resolved;
        totals.data_upstream = upstream.data;
        // Twice the same: what the daemon was told is sent has reached this process as well.
        if totals.unaccounted() == 0 && totals.waiting == 0 && totals == last.0 {
            return Ok(Report { totals, status, took: started.elapsed() });
        }
        if totals != last.0 {
            last = (totals, Instant::now());
        } else if last.1.elapsed() > STALL_TIMEOUT {
            return Ok(Report { totals: last.0, status, took: started.elapsed() });
        }
    }
}

/// The functions of a checkout, or on a board those of the package.
fn default_functions() -> PathBuf {
    let (checkout, package) = (Path::new("examples"), Path::new("/usr/share/sedge/functions"));
    if package.is_dir() && !checkout.is_dir() { package.into() } else { checkout.into() }
}

/// Subfolders with a manifest.
fn functions(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir)
        .with_context(|| format!("failed to list {}; name the folder with --functions", dir.display()))?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join(manifest::FILE_NAME).is_file())
        .collect();
    found.sort();
    if found.is_empty() {
        bail!("no folder in {} holds a {}", dir.display(), manifest::FILE_NAME);
    }
    for folder in &found {
        let component = deploy::component_path(folder, &Manifest::load(folder, &sedge_sandbox::machine::MACHINE)?);
        if !component.is_file() {
            bail!("{} is missing: run `sedge build {}`", component.display(), folder.display());
        }
    }
    found.iter().map(|path| path.canonicalize().with_context(|| format!("failed to open {}", path.display()))).collect()
}

/// A loopback port that was just free.
fn free_port() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr())?)
}

async fn connect(broker: SocketAddr, name: &str) -> anyhow::Result<Client> {
    let url = format!("mqtt://{broker}").parse()?;
    let options = sedge_mqtt::Options {
        receive_maximum: 1024,
        session_expiry: Duration::from_secs(3600),
        in_flight: SENSOR_WINDOW,
        ..Client::options(url, &format!("demo-{name}"))?
    };
    Client::connect(options).await.context("cannot connect to the demo's broker")
}

struct Sensors {
    client: Client,
    published: u64,
    acknowledged: u64,
}

impl Sensors {
    async fn connect(broker: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self { client: connect(broker, "sensors").await?, published: 0, acknowledged: 0 })
    }

    async fn publish(&mut self, reading: Reading) -> anyhow::Result<()> {
        let payload = Bytes::from(reading.payload);
        while self.client.publish(&reading.topic, payload.clone(), false).is_err() {
            self.wait().await?;
        }
        self.published += 1;
        Ok(())
    }

    async fn finish(&mut self) -> anyhow::Result<()> {
        while self.acknowledged < self.published {
            self.wait().await?;
        }
        Ok(())
    }

    async fn wait(&mut self) -> anyhow::Result<()> {
        let event = tokio::time::timeout(STALL_TIMEOUT, self.client.next_event()).await;
        match event.context("the demo's broker does not acknowledge messages")?? {
            ClientEvent::Published(_) => self.acknowledged += 1,
            ClientEvent::Disconnected(reason) => bail!("lost the demo's broker: {reason}"),
            _ => {}
        }
        Ok(())
    }
}

/// The receiver upstream: counts messages and prints alerts.
struct Upstream {
    client: Client,
    daemon_online: bool,
    alerts_firing: u64,
    alerts_resolved: u64,
    data: u64,
    progress: Progress,
}

impl Upstream {
    async fn connect(broker: SocketAddr) -> anyhow::Result<Self> {
        let mut client = connect(broker, "upstream").await?;
        client.subscribe(&format!("{UPSTREAM_PREFIX}#"));
        client.subscribe(&format!("sedge/{NODE}/status"));
        let progress = Progress::new();
        Ok(Self { client, daemon_online: false, alerts_firing: 0, alerts_resolved: 0, data: 0, progress })
    }

    async fn wait_for_daemon(&mut self, daemon: &mut Daemon) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.daemon_online {
            daemon.check()?;
            if Instant::now() > deadline {
                bail!("the daemon did not come online");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            self.poll()?;
        }
        Ok(())
    }

    /// Handles the events that have arrived, without waiting.
    fn poll(&mut self) -> anyhow::Result<()> {
        while let Some(event) = self.client.poll_event()? {
            if let ClientEvent::Message { topic, payload } = event {
                self.handle_message(&topic, &payload);
            }
        }
        Ok(())
    }

    fn handle_message(&mut self, topic: &str, payload: &[u8]) {
        let json: Value = serde_json::from_slice(payload).unwrap_or_default();
        let Some(topic) = topic.strip_prefix(UPSTREAM_PREFIX) else {
            self.daemon_online |= json["state"] == "online";
            return;
        };
        if !topic.starts_with("alerts/") {
            self.data += 1;
            return;
        }
        let Some(status) = json["status"].as_str() else { return };
        match status {
            "firing" => self.alerts_firing += 1,
            _ => self.alerts_resolved += 1,
        }
        self.progress.print(&status.to_uppercase(), &report::alert_text(&json));
    }
}

/// The daemon, with a configuration of its own.
struct Daemon {
    child: Child,
}

impl Daemon {
    fn start(dir: &Path, broker: SocketAddr, http: SocketAddr, functions: &[PathBuf]) -> anyhow::Result<Self> {
        let paths: Vec<String> = functions.iter().map(|path| format!("{:?}", path.display().to_string())).collect();
        let config = format!(
            "[node]\nname = \"{NODE}\"\ndata_dir = {:?}\n\n[mqtt]\nurl = \"mqtt://{broker}\"\n\n\
             [functions]\npaths = [{}]\n\n[upstream]\nurl = \"mqtt://{broker}\"\n\
             topic_prefix = \"{UPSTREAM_PREFIX}\"\nfold_secs = 0\n\n[http]\nlisten = \"{http}\"\n\n\
             [log]\nlevel = \"warn\"\n",
            dir.join("data").display().to_string(),
            paths.join(", "),
        );
        let path = dir.join("sedge.toml");
        std::fs::write(&path, config).with_context(|| format!("failed to write {}", path.display()))?;
        let child = Command::new(program::own())
            .arg("run")
            .arg("--config")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("failed to start the daemon")?;
        Ok(Self { child })
    }

    fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("the daemon ended: {status}"),
            None => Ok(()),
        }
    }

    fn stop(mut self) -> anyhow::Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = self.child.wait()?;
        anyhow::ensure!(status.success(), "the daemon ended with {status}");
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder for the daemon's data, removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn create() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("sedge-demo-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("failed to create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
