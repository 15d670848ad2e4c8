//! `sedge doctor` with various brokers and boards.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use crate::harness::daemon::{Daemon, Setup};
use crate::harness::guest::guest;
use crate::harness::mosquitto::Mosquitto;

struct Findings {
    code: Option<i32>,
    all: Vec<Value>,
}

impl Findings {
    fn of(daemon: &Daemon, broker: &Mosquitto) -> Self {
        let conf = broker.config();
        let output = daemon.command(&["doctor", "--json", "--mosquitto-conf", conf.to_str().expect("a path in UTF-8")]);
        let said = String::from_utf8_lossy(&output.stdout);
        let json: Value = serde_json::from_str(&said)
            .unwrap_or_else(|error| panic!("{error}: {said}{}", String::from_utf8_lossy(&output.stderr)));
        let all = json["findings"].as_array().expect("a list of findings").clone();
        Self { code: output.status.code(), all }
    }

    /// Findings of a check with this verdict, each as one text with its fix.
    fn that(&self, check: &str, verdict: &str) -> Vec<String> {
        let these = self.all.iter().filter(|it| it["check"] == check && it["verdict"] == verdict);
        these.map(|it| format!("{}; {}", it["what"], it["mend"])).collect()
    }

    #[track_caller]
    fn has(&self, check: &str, verdict: &str, text: &str) {
        let found = self.that(check, verdict);
        assert!(found.iter().any(|it| it.contains(text)), "no {check} that {verdict} with {text:?}: {:#?}", self.all);
    }
}

#[test]
fn the_doctor_sees_what_the_broker_would_lose_and_disturbs_nobody() {
    let mut broker = Mosquitto::reserve("max_queued_messages 50\nautosave_interval 1800");
    broker.resume();
    let mut daemon = Daemon::start(&Setup::new(broker.url()).function(&guest("count")));
    broker.await_daemon();
    let findings = Findings::of(&daemon, &broker);
    assert_eq!(findings.code, Some(1));
    findings.has("broker", "good", "mosquitto version");
    findings.has("anonymous", "good", "this machine only");
    findings.has("mosquitto", "hurts", "autosave_interval 30");
    findings.has("mosquitto", "hurts", "max_queued_messages 0");
    assert_eq!(findings.that("sync", "unknown"), [""; 0], "the data folder is there and can be written");
    assert_eq!(findings.that("configuration", "hurts"), [""; 0]);
    let log = broker.log();
    assert!(!log.contains("already connected"), "it took the daemon's session over:\n{log}");
    assert!(daemon.is_running());
}

#[test]
fn the_doctor_finds_nothing_wrong_with_a_good_broker() {
    let broker = Mosquitto::start_with("autosave_interval 30");
    let daemon = Daemon::prepare(&Setup::new(broker.url()).function(&guest("count")));
    let findings = Findings::of(&daemon, &broker);
    assert_eq!(findings.that("mosquitto", "hurts"), [""; 0]);
    findings.has("mosquitto", "good", "power cuts");
    findings.has("rehearsal", "good", "262144 bytes went there and back");
}

#[test]
fn the_doctor_says_why_the_broker_does_not_let_it_in() {
    let away = Mosquitto::reserve("");
    let findings = Findings::of(&Daemon::prepare(&Setup::new(away.url()).function(&guest("count"))), &away);
    assert_eq!(findings.code, Some(1));
    findings.has("broker", "hurts", "refused");
    findings.has("broker", "hurts", "systemctl status mosquitto");
}

#[test]
fn the_doctor_reads_the_configuration_first() {
    let broker = Mosquitto::start();
    let setup = Setup::new(broker.url()).set("mqtt", "username = \"u\"").set("mqtt", "password_file = \"secret\"");
    let daemon = Daemon::prepare(&setup.function(&guest("count")));
    let secret = daemon.config().with_file_name("secret");
    let findings = Findings::of(&daemon, &broker);
    assert_eq!(findings.code, Some(78));
    findings.has("configuration", "hurts", "secret cannot be read");

    fs::write(&secret, "hush").expect("write the password");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).expect("open the password to all");
    let findings = Findings::of(&daemon, &broker);
    assert_eq!(findings.code, Some(1));
    findings.has("configuration", "hurts", "chmod o=");
}
