//! `sedge demo`: everything at once, in one process tree, with every message accounted for.
//!
//! A broker, sensors and an upstream on threads of this process; the daemon as a child, exactly as it runs on a board.
//! The account is made from the outside: what the sensors and functions published against what the daemon says it did.

mod broker;
mod report;
mod sensors;

use std::collections::VecDeque;
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Args;

use crate::deploy;
use crate::manifest::{self, Manifest};
use crate::mqtt::{self, Link};
use crate::program;
use report::{Report, Totals};
use sensors::{Reading, Recording, Simulated};

const NODE: &str = "demo";
const UPSTREAM_PREFIX: &str = "upstream/";
/// Publishes of the sensors under way at once.
const SENSOR_WINDOW: u16 = 64;
const START_PATIENCE: Duration = Duration::from_secs(60);
/// The daemon must make progress at least this often.
const STALL_PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// How many messages the simulated sensors send, or of the recording are replayed
    #[arg(long, short)]
    pub messages: Option<u64>,
    /// Replay a recording (CSV with the columns timestamp,value) instead of simulated sensors
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Replay the recording this many times faster than it was recorded; 0: as fast as it goes
    #[arg(long, default_value_t = 0.0, requires = "data")]
    pub speed: f64,
    /// Folder whose subfolders are the functions to run, built with `sedge build` [default: examples, or those of the
    /// package]
    #[arg(long, value_name = "DIR")]
    pub functions: Option<PathBuf>,
    /// Print the result as one JSON object on standard output; everything else goes to standard error
    #[arg(long)]
    pub json: bool,
}

/// Exit code 0 only if every message is accounted for.
pub fn run(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = tokio::task::LocalSet::new().block_on(&runtime, demo(args))?;
    if args.json {
        println!("{}", report.as_json());
    } else {
        report.print();
    }
    Ok(if report.totals.unaccounted() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn demo(args: &DemoArgs) -> anyhow::Result<Report> {
    let functions = functions(&args.functions.clone().unwrap_or_else(usual_functions))?;
    let broker = broker::start()?;
    eprintln!("broker     on {broker}, in this process");
    let mut upstream = Upstream::connect(broker).await?;
    eprintln!("upstream   listens on {UPSTREAM_PREFIX}#");
    let scratch = Scratch::create()?;
    let http = free_port()?;
    let mut daemon = Daemon::start(&scratch.0, broker, http, &functions)?;
    eprintln!("daemon     starts with {} functions; compiles what it has not seen before", functions.len());
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
    let mut progress = Progress::new(count);
    for reading in readings {
        if args.speed > 0.0 && !reading.after.is_zero() {
            tokio::time::sleep(reading.after.div_f64(args.speed)).await;
        }
        sensors.publish(&reading).await?;
        upstream.poll();
        progress.show(sensors.acknowledged, upstream.alerts_firing + upstream.alerts_resolved);
        daemon.check()?;
    }
    sensors.finish().await?;
    let report = settle(&mut upstream, &mut daemon, sensors.acknowledged, http, started).await?;
    progress.end();
    daemon.stop()?;
    Ok(report)
}

/// Waits until the daemon has nothing under way, then draws up the account.
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
        upstream.poll();
        daemon.check()?;
        let status = report::read(http)?;
        let mut totals = Totals::from_status(&status, sent);
        totals.alerts_firing = upstream.alerts_firing;
        totals.alerts_resolved = upstream.alerts_resolved;
        totals.data_upstream = upstream.data;
        if totals.unaccounted() == 0 && totals.waiting == 0 {
            return Ok(Report { totals, status, took: started.elapsed() });
        }
        if totals != last.0 {
            last = (totals, Instant::now());
        } else if last.1.elapsed() > STALL_PATIENCE {
            return Ok(Report { totals: last.0, status, took: started.elapsed() });
        }
    }
}

/// Those of a checkout, or on a board those of the package.
fn usual_functions() -> PathBuf {
    let (checkout, package) = (Path::new("examples"), Path::new("/usr/share/sedge/functions"));
    if package.is_dir() && !checkout.is_dir() { package.into() } else { checkout.into() }
}

/// Every subfolder with a manifest.
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
        let component = deploy::component_path(folder, &Manifest::load(folder)?);
        if !component.is_file() {
            bail!("there is no {}; make it with `sedge build {}`", component.display(), folder.display());
        }
    }
    found.iter().map(|path| path.canonicalize().with_context(|| format!("failed to open {}", path.display()))).collect()
}

/// A port that was free a moment ago.
fn free_port() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr())?)
}

fn client(broker: SocketAddr, name: &str) -> mqtt::Options {
    mqtt::Options {
        url: format!("mqtt://{broker}"),
        client_id: format!("demo-{name}"),
        username: None,
        password_file: None,
        ca_file: None,
        cert_file: None,
        key_file: None,
        keep_alive: Duration::from_secs(30),
        connect_timeout: Duration::from_secs(5),
        reconnect_max: Duration::from_secs(1),
        receive_maximum: 1024,
        max_packet_bytes: 1 << 20,
        session_expiry: Duration::from_secs(3600),
        in_flight: SENSOR_WINDOW,
        will: None,
    }
}

struct Sensors {
    link: Link,
    events: mqtt::Events,
    published: u64,
    acknowledged: u64,
}

impl Sensors {
    async fn connect(broker: SocketAddr) -> anyhow::Result<Self> {
        let (link, events, drive) = mqtt::connect(client(broker, "sensors"))?;
        tokio::task::spawn_local(drive);
        let mut sensors = Self { link, events, published: 0, acknowledged: 0 };
        while !sensors.link.is_connected() {
            sensors.wait().await?;
        }
        Ok(sensors)
    }

    async fn publish(&mut self, reading: &Reading) -> anyhow::Result<()> {
        loop {
            let publication = mqtt::Publication {
                topic: &reading.topic,
                payload: Bytes::copy_from_slice(&reading.payload),
                content_type: None,
                properties: &[],
                retain: false,
            };
            if self.link.publish(publication, self.published).is_ok() {
                self.published += 1;
                return Ok(());
            }
            self.wait().await?;
        }
    }

    async fn finish(&mut self) -> anyhow::Result<()> {
        while self.acknowledged < self.published {
            self.wait().await?;
        }
        Ok(())
    }

    async fn wait(&mut self) -> anyhow::Result<()> {
        let mut events = VecDeque::new();
        tokio::time::timeout(STALL_PATIENCE, self.events.receive(&mut events))
            .await
            .context("the demo's broker takes no messages")?;
        for event in events {
            match event {
                mqtt::Event::Published { result: mqtt::PublishResult::Taken, .. } => self.acknowledged += 1,
                mqtt::Event::Published { result, .. } => bail!("the demo's broker refused a message: {result:?}"),
                mqtt::Event::Disconnected { reason } if self.published > 0 => {
                    bail!("the demo's broker is gone: {reason}")
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The stand-in for what is far away: counts what arrives and shows alerts.
struct Upstream {
    link: Link,
    events: mqtt::Events,
    daemon_online: bool,
    alerts_firing: u64,
    alerts_resolved: u64,
    data: u64,
}

impl Upstream {
    async fn connect(broker: SocketAddr) -> anyhow::Result<Self> {
        let (link, events, drive) = mqtt::connect(client(broker, "upstream"))?;
        tokio::task::spawn_local(drive);
        let mut upstream = Self { link, events, daemon_online: false, alerts_firing: 0, alerts_resolved: 0, data: 0 };
        while !upstream.link.is_connected() {
            upstream.receive(START_PATIENCE).await?;
        }
        upstream.link.subscribe(&format!("{UPSTREAM_PREFIX}#"), None);
        upstream.link.subscribe(&format!("sedge/{NODE}/status"), None);
        Ok(upstream)
    }

    async fn wait_for_daemon(&mut self, daemon: &mut Daemon) -> anyhow::Result<()> {
        let until = Instant::now() + START_PATIENCE;
        while !self.daemon_online {
            daemon.check()?;
            if Instant::now() > until {
                bail!("the daemon did not come online");
            }
            let _ = self.receive(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Takes what is there, without waiting.
    fn poll(&mut self) {
        let mut events = VecDeque::new();
        self.events.take(&mut events);
        for event in events {
            self.handle_event(event);
        }
    }

    async fn receive(&mut self, patience: Duration) -> anyhow::Result<()> {
        let mut events = VecDeque::new();
        tokio::time::timeout(patience, self.events.receive(&mut events)).await.context("nothing came upstream")?;
        for event in events {
            self.handle_event(event);
        }
        Ok(())
    }

    fn handle_event(&mut self, event: mqtt::Event) {
        let mqtt::Event::Delivery(delivery) = event else { return };
        if let Some(ack) = delivery.ack {
            self.link.acknowledge(ack);
        }
        let topic = String::from_utf8_lossy(&delivery.topic);
        let Some(topic) = topic.strip_prefix(UPSTREAM_PREFIX) else {
            self.daemon_online |= serde_json::from_slice::<serde_json::Value>(&delivery.payload)
                .is_ok_and(|status| status["state"] == "online");
            return;
        };
        if !topic.starts_with("alerts/") {
            self.data += 1;
            return;
        }
        let Ok(alert) = serde_json::from_slice::<serde_json::Value>(&delivery.payload) else { return };
        let firing = alert["status"] == "firing";
        if firing {
            self.alerts_firing += 1;
        } else {
            self.alerts_resolved += 1;
        }
        report::show_alert(&alert);
    }
}

/// The daemon under its own configuration, as on a board.
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

/// A folder for the daemon's data, gone with the demo.
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

/// One line that is written over itself, where there is a terminal.
struct Progress {
    total: u64,
    shown: Instant,
    terminal: bool,
}

impl Progress {
    fn new(total: u64) -> Self {
        Self { total, shown: Instant::now(), terminal: std::io::stderr().is_terminal() }
    }

    fn show(&mut self, sent: u64, alerts: u64) {
        let every = Duration::from_millis(if self.terminal { 200 } else { 5000 });
        if self.shown.elapsed() < every {
            return;
        }
        self.shown = Instant::now();
        let percent = sent * 100 / self.total.max(1);
        if self.terminal {
            eprint!("\r{sent} of {} messages ({percent} %), {alerts} alerts ", self.total);
            let _ = std::io::stderr().flush();
        } else {
            eprintln!("{sent} of {} messages ({percent} %), {alerts} alerts", self.total);
        }
    }

    fn end(&self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}

/// A plain GET of the daemon's own HTTP port.
fn get(addr: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&addr, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the daemon's answer has no body")?;
    anyhow::ensure!(head.starts_with("HTTP/1.1 200"), "the daemon answered {path} with {:?}", head.lines().next());
    Ok(body.to_owned())
}
