//! Test harness: real processes on separate loopback ports, and a ledger of sent messages.

pub(crate) mod cgroup;
pub(crate) mod client;
pub(crate) mod daemon;
pub(crate) mod fake;
pub(crate) mod guest;
pub(crate) mod ledger;
pub(crate) mod mosquitto;
pub(crate) mod process;
pub(crate) mod traffic;
pub(crate) mod upstream;
pub(crate) mod webhook;
pub(crate) mod wire;

use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// Longest wait with a native program. SEDGE_PATIENCE is the factor for an emulated one.
pub(crate) fn patiently(time: Duration) -> Duration {
    static FACTOR: LazyLock<f64> = LazyLock::new(|| {
        let factor = std::env::var("SEDGE_PATIENCE").ok();
        factor.map_or(1.0, |text| text.parse().expect("SEDGE_PATIENCE is a number"))
    });
    time.mul_f64(*FACTOR)
}

/// Polls a condition until it holds or patience ends.
pub(crate) fn eventually(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patiently(patience);
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Two brokers, a collector upstream and a daemon with the function `count` between them.
pub(crate) struct Site {
    // Dropped in this order: the daemon before its brokers.
    pub(crate) daemon: daemon::Daemon,
    pub(crate) upstream: upstream::Upstream,
    pub(crate) broker: mosquitto::Mosquitto,
    pub(crate) cloud: mosquitto::Mosquitto,
}

impl Site {
    pub(crate) fn start() -> Self {
        Self::start_with(|setup| setup)
    }

    /// The same with changes to the daemon's configuration.
    pub(crate) fn start_with(change: impl FnOnce(daemon::Setup) -> daemon::Setup) -> Self {
        let broker = mosquitto::Mosquitto::start();
        let cloud = mosquitto::Mosquitto::start();
        let upstream = upstream::Upstream::collect(cloud.port);
        let setup = daemon::Setup::new(broker.url()).upstream(cloud.url()).function(&guest::guest("count"));
        let daemon = daemon::Daemon::start(&change(setup));
        broker.await_daemon();
        Self { daemon, upstream, broker, cloud }
    }

    /// Waits until all messages have records upstream, then checks them.
    #[track_caller]
    pub(crate) fn settle(&self, ledger: &ledger::Ledger) {
        if !eventually(Duration::from_secs(60), || ledger.is_complete(&self.upstream.received())) {
            eprintln!("what the daemon counts:\n{}", self.daemon.counters());
        }
        ledger.check(&self.upstream.received());
    }

    /// Waits until this number of further messages has reached upstream, so that the next fault hits a busy system.
    #[track_caller]
    pub(crate) fn progress(&self, messages: usize) {
        let goal = self.upstream.count() + messages;
        let reached = eventually(Duration::from_secs(60), || self.upstream.count() >= goal);
        assert!(reached, "{} messages upstream, waiting for {goal}", self.upstream.count());
    }
}
