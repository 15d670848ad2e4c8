//! The real program with its own configuration, data folder and metrics port.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::mosquitto::free_port;
use super::{eventually, patiently, process};

/// The build for this machine: runs the operator's commands and builds functions.
pub(crate) const SEDGE: &str = env!("CARGO_BIN_EXE_sedge");

/// The board's program. SEDGE_BINARY names one for another processor, which runs under qemu-user.
pub(crate) fn board_program() -> PathBuf {
    std::env::var_os("SEDGE_BINARY").map_or_else(|| SEDGE.into(), PathBuf::from)
}

/// Name of the node in every test.
pub(crate) const NODE: &str = "board";

/// Contents of a `sedge.toml`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setup {
    pub(crate) broker: String,
    pub(crate) upstream: Option<String>,
    pub(crate) functions: Vec<PathBuf>,
    /// Lines of further settings by section: `("store", "when_full = \"block\"")`.
    pub(crate) settings: Vec<(&'static str, String)>,
}

impl Setup {
    pub(crate) fn new(broker: String) -> Self {
        Self { broker, ..Self::default() }
    }

    pub(crate) fn function(mut self, folder: &Path) -> Self {
        self.functions.push(folder.to_owned());
        self
    }

    pub(crate) fn upstream(mut self, url: String) -> Self {
        self.upstream = Some(url);
        self
    }

    pub(crate) fn set(mut self, section: &'static str, line: impl Into<String>) -> Self {
        self.settings.push((section, line.into()));
        self
    }

    fn toml(&self, data: &Path, http_port: u16) -> String {
        let mut sections: Vec<(&str, Vec<String>)> = vec![
            ("node", vec![format!("name = {NODE:?}"), format!("data_dir = {data:?}")]),
            ("mqtt", vec![format!("url = {:?}", self.broker), "reconnect_max_secs = 1".into()]),
            ("functions", vec![format!("paths = {:?}", self.functions)]),
            ("http", vec![format!("listen = \"127.0.0.1:{http_port}\"")]),
        ];
        if let Some(url) = &self.upstream {
            sections.push(("upstream", vec![format!("url = {url:?}"), "backoff_max_secs = 1".into()]));
        }
        for (section, line) in &self.settings {
            let key = line.split('=').next().expect("a setting has a key").trim();
            let at = sections.iter().position(|(name, _)| name == section).unwrap_or_else(|| {
                sections.push((section, Vec::new()));
                sections.len() - 1
            });
            // A value of the test replaces the default of the harness.
            sections[at].1.retain(|other| other.split('=').next().map(str::trim) != Some(key));
            sections[at].1.push(line.clone());
        }
        sections.iter().map(|(name, lines)| format!("[{name}]\n{}\n\n", lines.join("\n"))).collect()
    }
}

pub(crate) struct Daemon {
    folder: tempfile::TempDir,
    pub(crate) http_port: u16,
    program: PathBuf,
    child: Option<Child>,
    /// Printed on failure, unless the test checks it.
    starts: usize,
}

impl Daemon {
    /// Writes the configuration and starts nothing.
    pub(crate) fn prepare(setup: &Setup) -> Self {
        Self::prepare_program(board_program(), setup)
    }

    /// The same for another program.
    pub(crate) fn prepare_program(program: PathBuf, setup: &Setup) -> Self {
        let folder = tempfile::tempdir().expect("make a folder for the daemon");
        let http_port = free_port();
        let data = folder.path().join("data");
        fs::create_dir(&data).expect("make the data folder");
        fs::write(folder.path().join("sedge.toml"), setup.toml(&data, http_port)).expect("write sedge.toml");
        Self { folder, http_port, program, child: None, starts: 0 }
    }

    /// Starts it and waits until it is ready.
    pub(crate) fn start(setup: &Setup) -> Self {
        let mut daemon = Self::prepare(setup);
        daemon.resume();
        daemon
    }

    pub(crate) fn resume(&mut self) {
        self.launch();
        self.wait_ready(Duration::from_secs(60));
    }

    /// Starts the program without waiting for it.
    pub(crate) fn launch(&mut self) {
        let mut command = Command::new(&self.program);
        command.arg("run").arg("--config").arg(self.config());
        self.launch_as(command);
    }

    /// Starts it through another command, such as a wrapper that sets limits.
    pub(crate) fn launch_as(&mut self, mut command: Command) {
        assert!(self.child.is_none(), "the daemon already runs");
        self.starts += 1;
        let log = File::options().create(true).append(true).open(self.log_path()).expect("open the log");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("start sedge");
        self.child = Some(child);
    }

    pub(crate) fn wait_ready(&mut self, patience: Duration) {
        let ready = eventually(patience, || {
            if let Some(status) = self.child.as_mut().expect("it was started").try_wait().expect("ask for its end") {
                self.child = None;
                panic!("the daemon ended with {status} instead of getting ready; its log:\n{}", self.log());
            }
            self.get("/readyz").is_some_and(|(status, _)| status == 200)
        });
        assert!(ready, "the daemon does not get ready: {:?}; its log:\n{}", self.get("/readyz"), self.log());
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon runs").id()
    }

    pub(crate) fn workers(&self) -> Vec<u32> {
        process::workers(self.pid())
    }

    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait_end(Duration::from_secs(10));
    }

    /// Sends SIGTERM. Returns the exit status and the time until the exit.
    pub(crate) fn terminate(&mut self) -> (ExitStatus, Duration) {
        let asked = Instant::now();
        self.signal(Signal::TERM);
        (self.wait_end(Duration::from_secs(30)), asked.elapsed())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("the daemon runs");
        kill_process(Pid::from_child(child), signal).expect("signal the daemon");
    }

    pub(crate) fn wait_end(&mut self, patience: Duration) -> ExitStatus {
        let mut child = self.child.take().expect("the daemon runs");
        let mut ended = None;
        eventually(patience, || {
            ended = child.try_wait().expect("ask for its end");
            ended.is_some()
        });
        let Some(status) = ended else {
            self.child = Some(child);
            panic!("the daemon does not end; its log:\n{}", self.log());
        };
        status
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Runs another command of the program with this configuration.
    pub(crate) fn command(&self, arguments: &[&str]) -> Output {
        Command::new(&self.program)
            .args(arguments)
            .arg("--config")
            .arg(self.config())
            .stdin(Stdio::null())
            .output()
            .expect("run sedge")
    }

    /// Sum of a metric over the series whose labels contain `label`; 0 if there are none.
    pub(crate) fn metric_with(&self, name: &str, label: &str) -> f64 {
        let (_, page) = self.get("/metrics").unwrap_or_default();
        page.lines()
            .filter(|line| {
                line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
            })
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
    }

    pub(crate) fn metric(&self, name: &str) -> f64 {
        self.metric_with(name, "")
    }

    /// All counters and gauges that are not 0, for the message of a failure.
    pub(crate) fn counters(&self) -> String {
        let (_, page) = self.get("/metrics").unwrap_or_default();
        let shown =
            page.lines().filter(|line| !line.starts_with('#') && !line.ends_with(" 0") && !line.contains("_bucket{"));
        shown.collect::<Vec<_>>().join("\n")
    }

    /// Status and body of a page of its HTTP port, or `None` without an answer.
    pub(crate) fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.http_port)).ok()?;
        stream.set_read_timeout(Some(patiently(Duration::from_secs(5)))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("sedge.toml")
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Its stderr, of all runs.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Its children end when their socket is closed.
            drop(child.kill());
            drop(child.wait());
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines.len().saturating_sub(60);
            eprintln!(
                "the daemon was started {} times; the end of its log:\n{}",
                self.starts,
                lines[last..].join("\n")
            );
        }
    }
}
