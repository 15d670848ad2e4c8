//! A real Mosquitto on its own loopback port, with its files in its own folder.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::client::Client;
use super::daemon::NODE;
use super::eventually;
use super::wire::Hello;

pub(crate) struct Mosquitto {
    folder: tempfile::TempDir,
    pub(crate) port: u16,
    child: Option<Child>,
}

impl Mosquitto {
    /// A broker that keeps its sessions over a clean restart and queues without limit.
    pub(crate) fn start() -> Self {
        let mut broker = Self::reserve("");
        broker.resume();
        broker
    }

    /// A broker with further lines of configuration.
    pub(crate) fn start_with(extra: &str) -> Self {
        let mut broker = Self::reserve(extra);
        broker.resume();
        broker
    }

    /// A port and a configuration; does not listen until [`resume`](Self::resume).
    pub(crate) fn reserve(extra: &str) -> Self {
        let folder = tempfile::tempdir().expect("make a folder for mosquitto");
        let port = free_port();
        // Started by root, Mosquitto changes to the user `mosquitto`, which cannot write here.
        let user = if rustix::process::getuid().is_root() { "user root\n" } else { "" };
        let config = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\n{user}\
             persistence true\npersistence_location {}/\nautosave_interval 0\n\
             max_queued_messages 0\nmax_inflight_messages 1000\nset_tcp_nodelay true\nlog_dest file {}\n\
             log_type error\nlog_type warning\nlog_type notice\nlog_type subscribe\n{extra}\n",
            folder.path().display(),
            folder.path().join("log").display(),
        );
        fs::write(folder.path().join("mosquitto.conf"), config).expect("write mosquitto.conf");
        Self { folder, port, child: None }
    }

    pub(crate) fn resume(&mut self) {
        assert!(self.child.is_none(), "mosquitto already runs");
        let child = Command::new(program())
            .arg("-c")
            .arg(self.config())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start mosquitto: install it (Debian: apt install mosquitto) or name it in SEDGE_MOSQUITTO");
        self.child = Some(child);
        let answers = eventually(Duration::from_secs(20), || Client::connect(self.port, &Hello::new("probe")).is_ok());
        assert!(answers, "mosquitto does not answer; its log:\n{}", self.log());
    }

    /// Sends SIGTERM: sessions and queued messages are saved.
    pub(crate) fn stop(&mut self) {
        self.end(Signal::TERM);
    }

    /// Sends SIGKILL: data in memory is lost.
    pub(crate) fn kill(&mut self) {
        self.end(Signal::KILL);
    }

    pub(crate) fn restart(&mut self) {
        self.stop();
        self.resume();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("mosquitto runs").id()
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("mosquitto.conf")
    }

    pub(crate) fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    pub(crate) fn client(&self, id: &str) -> Client {
        Client::connect(self.port, &Hello::new(id)).expect("connect to mosquitto")
    }

    /// Waits until the daemon has subscribed for its functions. A daemon is ready even without a broker, and messages published
    /// before the first subscription are lost. Subscriptions to its own topics come earlier.
    #[track_caller]
    pub(crate) fn await_daemon(&self) {
        let line = format!(": sedge-{NODE} 1 ");
        let is_function = |text: &str| text.split_once(&line).is_some_and(|(_, filter)| !filter.starts_with("sedge/"));
        let subscribed = eventually(Duration::from_secs(30), || self.log().lines().any(is_function));
        assert!(subscribed, "the daemon does not subscribe; the broker's log:\n{}", self.log());
    }

    /// Waits until the daemon has subscribed to a matching filter this number of times.
    #[track_caller]
    pub(crate) fn await_subscription(&self, filter: &str, times: usize) {
        let client = format!(": sedge-{NODE} ");
        let subscriptions = || {
            let log = self.log();
            log.lines().filter(|line| line.contains(&client) && line.contains(filter)).count()
        };
        let came = eventually(Duration::from_secs(30), || subscriptions() >= times);
        assert!(came, "{} subscriptions to {filter}; the broker's log:\n{}", subscriptions(), self.log());
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn end(&mut self, signal: Signal) {
        if let Some(mut child) = self.child.take() {
            let pid = Pid::from_child(&child);
            kill_process(pid, signal).expect("signal mosquitto");
            child.wait().expect("wait for mosquitto");
        }
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.end(Signal::KILL);
    }
}

/// A free loopback port. The kernel assigns them in turn, so two tests rarely get the same.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind a loopback port");
    listener.local_addr().expect("the port that was bound").port()
}

/// Path of Mosquitto. Debian installs it in /usr/sbin, which is not in every user's PATH.
fn program() -> PathBuf {
    if let Some(named) = std::env::var_os("SEDGE_MOSQUITTO") {
        return named.into();
    }
    let debian = PathBuf::from("/usr/sbin/mosquitto");
    if debian.exists() { debian } else { "mosquitto".into() }
}
