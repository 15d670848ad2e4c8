//! `sedge logs`: the log of a board, through the broker.

use std::process::{Command, Output};
use std::time::Duration;

use crate::harness::daemon::{Daemon, NODE, SEDGE, Setup};
use crate::harness::eventually;
use crate::harness::guest::guest;
use crate::harness::mosquitto::Mosquitto;
use crate::harness::wire::Publish;

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn the_log_of_a_board_is_read_through_the_broker_by_those_who_may() {
    let folder = tempfile::tempdir().expect("make a folder");
    let broker = Mosquitto::start();
    let mut setup = Setup::new(broker.url()).function(&guest("misbehave"));
    for (name, section) in [("may", "deploy.keys.may"), ("other", "deploy.keys.other")] {
        let key = folder.path().join(format!("{name}.pem"));
        let made = Command::new(SEDGE).args(["keygen", "--out"]).arg(&key).output().expect("run sedge keygen");
        assert!(made.status.success(), "{made:?}");
        setup = setup.set(section, format!("file = {:?}", key.with_extension("pub.pem")));
    }
    let daemon = Daemon::start(&setup.set("deploy.keys.may", "logs = true"));
    broker.await_daemon();
    let logs = |key: &str, more: &[&str]| -> Output {
        let mut command = Command::new(SEDGE);
        command.args(["logs", "--node", NODE, "--broker", &broker.url(), "--key"]).arg(folder.path().join(key));
        command.args(more).output().expect("run sedge logs")
    };

    broker.client("hand").publish(Publish::new("misbehave/<b>", "reject \u{1b}[2J")).unwrap();
    assert!(eventually(PATIENCE, || daemon.metric("sedge_messages_dead_lettered_total") >= 1.0));
    let shown = logs("may.pem", &[]);
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.status.success() && text.contains("ready functions=1"), "{shown:?}");
    assert!(text.contains("dead letter function=\"misbehave\" reason=\"rejected\""), "{text}");
    assert!(!text.contains('\u{1b}'), "nothing that a terminal acts on: {text:?}");
    let json = logs("may.pem", &["--json"]);
    let first = String::from_utf8_lossy(&json.stdout).lines().next().map(str::to_owned).expect("there are lines");
    let first: serde_json::Value = serde_json::from_str(&first).expect("it is JSON");
    assert_eq!(first["node"], NODE);

    let refused = logs("other.pem", &[]);
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && refused.stdout.is_empty(), "{refused:?}");
    assert!(error.contains("key other may not read the log: set logs = true"), "{error}");
}
