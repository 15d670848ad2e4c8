//! `sedge dev`: a function on live messages while it is edited.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::harness::daemon::{Daemon, NODE, SEDGE, Setup};
use crate::harness::fake::Fake;
use crate::harness::mosquitto::Mosquitto;
use crate::harness::wire::Publish;
use crate::harness::{eventually, patiently};

const PATIENCE: Duration = Duration::from_secs(30);

fn function(folder: &Path, says: &str) -> PathBuf {
    let function = folder.join("warm");
    fs::create_dir_all(&function).expect("make a folder");
    let manifest = "name = \"warm\"\nversion = \"1.0.0\"\nsubscribe = [\"sensors/+/t\"]\nstate = \"topic\"\n[allow]\npublish = [\"said/#\"]\n";
    fs::write(function.join("function.toml"), manifest).expect("write a file");
    write(&function, says);
    function
}

fn write(function: &Path, says: &str) {
    let code = format!(
        "import {{ publish, state }} from \"sedge\";\nexport function handle(message) {{\n  const count = \
         Number(state.get(\"count\") ?? 0) + 1;\n  state.set(\"count\", count);\n  return publish(\"said/it\", `{says} \
         ${{message.text}} ${{count}}`);\n}}\n"
    );
    fs::write(function.join("function.js"), code).expect("write a file");
}

pub(crate) struct Dev {
    child: Child,
    lines: Receiver<String>,
    errors: Receiver<String>,
}

impl Dev {
    pub(crate) fn start(function: &Path, more: &[&str]) -> Self {
        let mut child = Command::new(SEDGE)
            .arg("dev")
            .arg(function)
            .arg("--json")
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run sedge dev");
        let lines = lines_of(child.stdout.take().expect("its output"));
        let errors = lines_of(child.stderr.take().expect("its errors"));
        Self { child, lines, errors }
    }

    #[track_caller]
    pub(crate) fn says(&self, text: &str) -> String {
        let deadline = Instant::now() + patiently(PATIENCE);
        let mut seen = Vec::new();
        while let Ok(line) = self.errors.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if line.contains(text) {
                return line;
            }
            seen.push(line);
        }
        panic!("{text:?} is not said: {seen:#?}");
    }

    #[track_caller]
    pub(crate) fn line(&self) -> Value {
        let line = self.lines.recv_timeout(patiently(PATIENCE)).expect("another line");
        serde_json::from_str(&line).expect("JSON")
    }

    /// The payload that the function returns for the next message.
    #[track_caller]
    fn next(&self) -> String {
        let line = self.line();
        line["outputs"][0]["payload"].as_str().unwrap_or_else(|| panic!("{line}")).to_owned()
    }

    /// Ends it as Ctrl-C does.
    pub(crate) fn interrupt(&mut self) {
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("signal sedge dev");
        assert!(self.child.wait().expect("wait for sedge dev").success());
    }
}

fn lines_of(from: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = sync_channel(10_000);
    std::thread::spawn(move || {
        BufReader::new(from).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    lines
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_change_is_live_with_the_next_message_and_one_that_does_not_build_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let function = function(folder.path(), "one");
    let broker = Mosquitto::start();
    let mut listener = broker.client("listener");
    listener.subscribe(&["said/#"]).unwrap();
    let mut dev = Dev::start(&function, &["--broker", &broker.url()]);
    dev.says("warm runs on sensors/+/t");
    assert!(eventually(PATIENCE, || broker.log().contains(" sensors/+/t")), "{}", broker.log());
    let mut sensor = broker.client("sensor");
    let mut publish = |payload: &str| sensor.publish(Publish::new("sensors/a/t", payload)).unwrap();
    publish("20");
    assert_eq!(dev.next(), "one 20 1");

    fs::write(function.join("function.js"), "export function handle(").unwrap();
    dev.says("function.js:1:");
    dev.says("the last good build goes on");
    publish("21");
    assert_eq!(dev.next(), "one 21 2");

    // From saving the file to the first message through it.
    let saved = Instant::now();
    write(&function, "two");
    let mut count = 2;
    while saved.elapsed() < PATIENCE {
        publish("22");
        count += 1;
        let said = dev.next();
        assert!(said.ends_with(&format!(" 22 {count}")), "state goes on: {said}");
        if said.starts_with("two") {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("dev_live_ms {}", saved.elapsed().as_millis());
    publish("23");
    assert!(dev.next().starts_with("two 23"), "it never became live");
    // What it returned reached nobody.
    assert!(listener.receive(Duration::from_millis(300)).unwrap().is_none());

    dev.interrupt();
    let ended = || broker.log().lines().any(|line| line.contains("Client sedge-dev-") && line.contains("disconnected"));
    assert!(eventually(PATIENCE, ended), "its session is ended:\n{}", broker.log());
}

#[test]
fn a_broker_that_does_not_let_it_subscribe_is_one_sentence_with_the_fix() {
    let folder = tempfile::tempdir().unwrap();
    let function = function(folder.path(), "one");
    let fake = Fake::start(|packet| Some(if packet.kind() == 8 { packet.suback(0x87) } else { packet.welcome() }));
    let mut dev = Dev::start(&function, &["--broker", &fake.url()]);
    let line = dev.says("does not let this client subscribe to sensors/+/t (not authorized): log in as a user");
    assert!(line.contains("--username"), "{line}");
    assert!(!dev.child.wait().unwrap().success());
    let connect = &fake.seen(1)[0];
    // Protocol name and version, then the flags: 2 is a clean start, 4 would be a last will.
    assert_eq!((connect.body[7] & 6, fake.seen(3).len()), (2, 0), "a session of its own, and no publication");
    let output =
        Command::new(SEDGE).arg("dev").arg(&function).args(["--broker", "mqtt://127.0.0.1:1"]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && error.contains("cannot connect to the broker at mqtt://127.0.0.1:1"),
        "{error}"
    );
}

/// A function that publishes each value, alerts above a limit, and says a value below 20 in its own way.
fn compared(folder: &Path, version: &str, limit: u32, low: &str) -> PathBuf {
    let function = folder.join("warm");
    fs::create_dir_all(&function).expect("make a folder");
    let manifest = format!(
        "name = \"warm\"\nversion = \"{version}\"\nsubscribe = [\"sensors/+/t\"]\n[allow]\npublish = [\"said/#\"]\n"
    );
    fs::write(function.join("function.toml"), manifest).expect("write a file");
    let code = format!(
        "import {{ alert, publish }} from \"sedge\";\nexport function handle(message) {{\n  const value = \
         Number(message.text);\n  const said = publish(message.topic.replace(\"sensors\", \"said\"), value < 20 ? \"{low}\" : \
         message.text, {{ retain: true }});\n  if (value <= {limit}) return said;\n  return [said, alert.firing(message.topic, {{ \
         summary: `${{value}} °C`, value: value / 3 }})];\n}}\n"
    );
    fs::write(function.join("function.js"), code).expect("write a file");
    function
}

#[test]
fn each_message_is_shown_beside_what_the_boards_own_version_answers() {
    let folder = tempfile::tempdir().unwrap();
    let (on_board, on_laptop) = (folder.path().join("board"), folder.path().join("laptop"));
    let on_board = compared(&on_board, "1.0.0", 80, "low");
    let on_laptop = compared(&on_laptop, "1.1.0", 90, "cold");
    let broker = Mosquitto::start();
    let _daemon = Daemon::start(&Setup::new(broker.url()).function(&on_board));
    broker.await_daemon();
    let mut sensor = broker.client("sensor");
    // Retained by the board, and from before.
    sensor.publish(Publish::new("sensors/c/t", "33")).unwrap();
    let mut listener = broker.client("listener");
    listener.subscribe(&["said/#", "sedge/board/alerts/#"]).unwrap();
    assert!(listener.receive(PATIENCE).unwrap().is_some());
    let mut dev = Dev::start(&on_laptop, &["--broker", &broker.url(), "--node", NODE, "--wait", "4s"]);
    dev.says("compared with warm 1.0.0 of board");
    dev.says("warm runs on sensors/+/t of");
    assert!(eventually(PATIENCE, || broker.log().matches(" sensors/+/t").count() > 1), "{}", broker.log());
    // Somebody else on the topics of the function is not the board.
    sensor.publish(Publish::new("said/a/t", "by hand")).unwrap();
    let messages = [("a", "50"), ("a", "10"), ("b", "85"), ("c", "95"), ("c", "96"), ("d", "70")];
    for (name, value) in messages {
        sensor.publish(Publish::new(&format!("sensors/{name}/t"), value)).unwrap();
    }
    let said =
        |name: &str, payload: &str| json!({ "kind": "publish", "topic": format!("said/{name}/t"), "payload": payload });
    let alert = |name: &str, value: f64| {
        json!({
            "kind": "alert", "key": format!("sensors/{name}/t"), "severity": "warning", "status": "firing",
            "summary": format!("{value} °C"), "value": value / 3.0,
        })
    };
    let differs = |board: Value, here: Value| json!([{ "board": board, "here": here }]);
    let expected = [
        (1, json!([]), json!([])),
        (0, differs(said("a", "low"), said("a", "cold")), json!([])),
        (1, differs(alert("b", 85.0), Value::Null), json!([])),
        (2, json!([]), json!([])),
        // A repeat of the alert, which the board folds.
        (1, json!([]), json!(["sensors/c/t"])),
        (1, json!([]), json!([])),
    ];
    for ((name, value), (equal, differences, folded)) in messages.iter().zip(expected) {
        let line = dev.line();
        assert_eq!((&line["topic"], &line["payload"]), (&json!(format!("sensors/{name}/t")), &json!(value)), "{line}");
        let board =
            json!({ "compared": true, "equal": equal, "differences": differences, "folded": folded, "folds": [] });
        assert_eq!(line["board"], board, "{line}");
    }
    dev.interrupt();
    let answers = json!({
        "equal": 6, "changed": 1, "only_board": 1, "only_here": 0, "folded": 1, "to_no_message": 0,
    });
    let totals = json!({ "messages": 6, "different": 2, "not_compared": 0, "answers": answers });
    assert_eq!(dev.line(), json!({ "totals": totals }));
}

#[test]
fn a_board_that_cannot_be_heard_is_one_sentence_with_the_fix() {
    let folder = tempfile::tempdir().unwrap();
    let function = function(folder.path(), "one");
    // A broker that says so, and one that lets a client subscribe and sends nothing.
    let fake = Fake::start(|packet| {
        let is_refused = packet.kind() == 8 && packet.is_about("sedge/board/alerts/warm");
        Some(if is_refused { packet.suback(0x87) } else { packet.welcome() })
    });
    let mut dev = Dev::start(&function, &["--broker", &fake.url(), "--node", NODE]);
    dev.says("does not let this client subscribe to sedge/board/alerts/warm (not authorized): log in as a user");
    assert!(!dev.child.wait().unwrap().success());
    assert_eq!(fake.seen(3).len(), 0);

    let rules = folder.path().join("acl");
    fs::write(&rules, "topic readwrite sensors/#\ntopic write sedge/#\ntopic read sedge/board/deploy/#\n").unwrap();
    let broker = Mosquitto::start_with(&format!("acl_file {}", rules.display()));
    let _daemon = Daemon::start(&Setup::new(broker.url()).function(&function));
    broker.await_daemon();
    let mut dev = Dev::start(&function, &["--broker", &broker.url(), "--node", NODE]);
    let line = dev.says("board reports no warm: check --node, --broker and --base-topic");
    assert!(line.contains("log in as a user that may read sedge/board/functions/warm"), "{line}");
    assert!(!dev.child.wait().unwrap().success());
}
