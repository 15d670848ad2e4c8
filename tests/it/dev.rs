//! `sedge dev`: a function on live messages while it is edited.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::harness::daemon::SEDGE;
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

struct Dev {
    child: Child,
    lines: Receiver<String>,
    errors: Receiver<String>,
}

impl Dev {
    fn start(function: &Path, more: &[&str]) -> Self {
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
    fn says(&self, text: &str) -> String {
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

    /// The payload that the function returns for the next message.
    #[track_caller]
    fn next(&self) -> String {
        let line = self.lines.recv_timeout(patiently(PATIENCE)).expect("a line for a message");
        let line: Value = serde_json::from_str(&line).expect("JSON");
        line["outputs"][0]["payload"].as_str().unwrap_or_else(|| panic!("{line}")).to_owned()
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
    let dev = Dev::start(&function, &["--broker", &broker.url()]);
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

    kill_process(Pid::from_child(&dev.child), Signal::INT).unwrap();
    let mut dev = dev;
    assert!(dev.child.wait().unwrap().success());
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
