//! `sedge record` on a board, and `sedge replay` of what it recorded.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sedge_core::deploy::envelope::SignedEnvelope;
use sedge_core::deploy::keys::SigningKey;
use sedge_core::deploy::requests::{BoardRequest, RequestKind};
use serde_json::{Value, json};

use crate::dev::Dev;
use crate::harness::daemon::{Daemon, NODE, SEDGE, Setup};
use crate::harness::eventually;
use crate::harness::guest::{example, guest, variant};
use crate::harness::mosquitto::Mosquitto;
use crate::harness::wire::Publish;

const PATIENCE: Duration = Duration::from_secs(30);

const MANIFEST: &str =
    "name = \"warm\"\nversion = \"1.0.0\"\nsubscribe = [\"sensors/+/t\"]\nstate = \"topic\"\n[config]\nmax = 80\n";

const FUNCTION: &str = r#"
import { alert, reject, settings, state } from "sedge";

export function handle(message) {
  const value = Number(message.text);
  if (Number.isNaN(value)) reject(`${message.text} is not a number`);
  const count = Number(state.get("count") ?? 0) + 1;
  state.set("count", count);
  if (value > Number(settings.max)) return alert.firing(message.topic, { summary: `${value} at reading ${count}`, value });
}
"#;

struct Plant {
    daemon: Daemon,
    broker: Mosquitto,
    folder: tempfile::TempDir,
}

impl Plant {
    /// A board that may be recorded, with these functions.
    fn with(functions: &[&Path]) -> Self {
        Self::set(functions, |setup| setup.set("recording", "enabled = true"))
    }

    fn set(functions: &[&Path], change: impl FnOnce(Setup) -> Setup) -> Self {
        let mut plant = Self::prepare(functions, change);
        plant.daemon.resume();
        plant.broker.await_daemon();
        plant
    }

    /// The daemon does not run yet.
    fn prepare(functions: &[&Path], change: impl FnOnce(Setup) -> Setup) -> Self {
        let folder = tempfile::tempdir().expect("make a folder");
        let broker = Mosquitto::start();
        let key = folder.path().join("ops.pem");
        let made = Command::new(SEDGE).args(["keygen", "--out"]).arg(&key).output().expect("run sedge keygen");
        assert!(made.status.success(), "{made:?}");
        let setup = functions.iter().fold(Setup::new(broker.url()), |setup, function| setup.function(function));
        let setup = setup.set("deploy.keys.ops", format!("file = {:?}", key.with_extension("pub.pem")));
        let daemon = Daemon::prepare(&change(setup.set("deploy.keys.ops", "record = true")));
        Self { daemon, broker, folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn publish(&self, messages: impl IntoIterator<Item = (String, String)>) {
        let messages = messages.into_iter().map(|(topic, payload)| Publish::new(&topic, payload));
        self.broker.client("sensor").publish_all(messages).expect("publish");
    }

    /// Starts `sedge record`, and returns once the board records.
    fn record(&self, function: &str, more: &[&str]) -> Child {
        let child = Command::new(SEDGE)
            .args(["record", "--node", NODE, "--function", function, "--broker", &self.broker.url(), "--key"])
            .arg(self.file("ops.pem"))
            .arg("-o")
            .arg(self.file("night.rec"))
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run sedge record");
        let begun = eventually(PATIENCE, || self.recordings().iter().any(|file| file.extension().is_some()));
        assert!(begun, "nothing is recorded; log:\n{}", self.daemon.log());
        child
    }

    /// Files of recordings on the board.
    fn recordings(&self) -> Vec<PathBuf> {
        let folder = self.daemon.data().join("recordings");
        fs::read_dir(folder).map_or_else(|_| Vec::new(), |files| files.flatten().map(|file| file.path()).collect())
    }

    /// Exit code and JSON of a replay.
    fn replay(&self, function: &Path, more: &[&str]) -> (Option<i32>, Value) {
        let output = replay(&self.file("night.rec"), function, more);
        let answer = serde_json::from_slice(&output.stdout);
        (output.status.code(), answer.unwrap_or_else(|error| panic!("no JSON ({error}): {output:?}")))
    }
}

fn replay(file: &Path, function: &Path, more: &[&str]) -> Output {
    Command::new(SEDGE)
        .arg("replay")
        .arg(file)
        .arg(function)
        .arg("--json")
        .args(more)
        .output()
        .expect("run sedge replay")
}

#[track_caller]
fn succeeds(child: Child) -> String {
    let output = child.wait_with_output().expect("wait for sedge");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn script(folder: &Path, code: &str) -> PathBuf {
    let function = folder.join("warm");
    fs::create_dir_all(&function).expect("make a folder");
    fs::write(function.join("function.toml"), MANIFEST).expect("write a file");
    fs::write(function.join("function.js"), code).expect("write a file");
    function
}

/// Readings of four sensors, some above the limit and some that are none.
fn readings(count: usize) -> impl Iterator<Item = (String, String)> {
    (0..count).map(|number| {
        let payload = if number % 50 == 7 { "broken".to_owned() } else { (number * 37 % 120).to_string() };
        (format!("sensors/s{}/t", number % 4), payload)
    })
}

#[test]
fn two_thousand_messages_replay_equal_and_a_change_shows_what_it_changes() {
    let folder = tempfile::tempdir().unwrap();
    let function = script(folder.path(), FUNCTION);
    let plant = Plant::with(&[&function]);
    // State from before the recording.
    plant.publish(readings(100));
    let recording = plant.record("warm", &["--max-messages", "2000"]);
    plant.publish(readings(2100));
    let said = succeeds(recording);
    assert!(
        said.contains("warm of board: 2000 messages; it ended because as many messages as were asked for"),
        "{said}"
    );
    assert!(plant.recordings().is_empty(), "the board keeps nothing that was fetched");
    assert_eq!(plant.daemon.metric("sedge_function_invocations_total"), 2200.0, "no message waits for a recording");

    let (code, answer) = plant.replay(&function, &[]);
    assert_eq!((code, &answer["equal"], &answer["same_version"]), (Some(0), &true.into(), &true.into()), "{answer}");
    assert_eq!((answer["messages"].as_u64(), answer["compared"].as_u64()), (Some(2000), Some(2000)));
    assert_eq!(answer["fuel_recorded"], answer["fuel_now"], "{answer}");

    // Other settings: more alerts, at these topics.
    let (code, answer) = plant.replay(&function, &["--set", "max=60", "--show", "3"]);
    assert_eq!((code, answer["differences"].as_array().unwrap().len()), (Some(1), 3), "{answer}");
    let alerts = answer["alerts"].as_array().unwrap();
    assert_eq!(alerts.len(), 4);
    assert!(alerts.iter().all(|it| it["now"].as_u64() > it["recorded"].as_u64()), "{answer}");
    assert_eq!(answer["differences"][0]["what"][0], "outputs");

    // Another version: everything that it does differently, and nothing else.
    script(folder.path(), &FUNCTION.replace("reject(", "console.log("));
    let (code, answer) = plant.replay(&function, &[]);
    let broken = readings(2100).filter(|(_, payload)| payload == "broken").count() as u64;
    assert_eq!((code, answer["same_version"].as_bool()), (Some(1), Some(false)));
    assert!(answer["different"].as_u64().unwrap() >= broken - 3, "{answer}");
    assert_eq!(answer["differences"][0]["what"][0], "ends", "{answer}");
}

/// Messages of the next test. `make cross-all` has an armv7 program record 100,000.
const RECORDED_MESSAGES: &str = "SEDGE_RECORDED_MESSAGES";

/// Of a function with floating-point numbers in its state. The board's program may be one for another processor.
#[test]
fn what_a_board_recorded_replays_equal_on_this_computer() {
    let count: u32 = std::env::var(RECORDED_MESSAGES).map_or(2000, |it| it.parse().expect("a number of messages"));
    let function = example("anomaly");
    let config = |setup: Setup| setup.set("recording", "enabled = true\nmax_bytes = 1_000_000_000");
    let plant = Plant::set(&[&function], config);
    let (messages, bytes) = (count.to_string(), "1000000000");
    let recording =
        plant.record("anomaly", &["--for", "5h", "--max-messages", &messages, "--max-bytes", bytes, "--json"]);
    plant.publish((0..count).map(|number| {
        let value = f64::from(number * 37 % 120) / 7.0 + f64::from(number % 1000 / 990 * 400);
        (format!("sensors/s{}/temperature", number % 4), format!("{{\"temperature\":{value}}}"))
    }));
    let said = succeeds(recording);
    let (code, answer) = plant.replay(&function, &[]);
    assert_eq!((code, answer["compared"].as_u64()), (Some(0), Some(count.into())), "{answer}\n{said}");
    assert_eq!(answer["fuel_recorded"], answer["fuel_now"], "{answer}");
}

#[test]
fn dev_runs_a_recording_beside_what_the_board_answered_and_goes_on_from_its_state() {
    let folder = tempfile::tempdir().unwrap();
    let function = script(folder.path(), FUNCTION);
    let plant =
        Plant::set(&[&function], |setup| setup.set("recording", "enabled = true").set("sinks", "fold_secs = 0"));
    plant.publish(readings(10));
    let has_run = || plant.daemon.metric("sedge_function_invocations_total") == 10.0;
    assert!(eventually(PATIENCE, has_run), "{}", plant.daemon.log());
    let recording = plant.record("warm", &["--max-messages", "40"]);
    plant.publish(readings(40));
    succeeds(recording);
    let night = plant.file("night.rec");
    let night = night.to_str().unwrap();

    let newer = script(&folder.path().join("newer"), &FUNCTION.replace("at reading ${count}", "at ${count}"));
    let output = Command::new(SEDGE)
        .arg("dev")
        .arg(&newer)
        .args(["--json", "--speed", "1000", "--recording", night])
        .output()
        .expect("run sedge dev");
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let above = readings(40).filter(|(_, payload)| payload.parse().is_ok_and(|value: u32| value > 80)).count();
    let totals = &lines[40]["totals"];
    assert_eq!((&totals["messages"], &totals["different"]), (&json!(40), &json!(above)), "{totals}");
    assert_eq!((&totals["answers"]["changed"], &totals["not_compared"]), (&json!(above), &json!(0)), "{totals}");
    let differs = |line: &&Value| line["board"]["differences"][0]["board"]["summary"].is_string();
    assert_eq!(lines.iter().filter(differs).count(), above);

    // The number of the reading is in the alert: equal only with the board's state, from either place.
    let data = plant.daemon.data();
    for (n, from) in [night, data.to_str().unwrap()].into_iter().enumerate() {
        let mut dev = Dev::start(
            &function,
            &["--broker", &plant.broker.url(), "--node", NODE, "--state-from", from, "--wait", "3s"],
        );
        dev.says("compared with warm 1.0.0 of board");
        dev.says("warm runs on sensors/+/t of");
        let is_subscription = |line: &&str| line.contains("sedge-dev-") && line.contains(" sensors/+/t");
        let subscriptions = || plant.broker.log().lines().filter(is_subscription).count();
        assert!(eventually(PATIENCE, || subscriptions() > n), "{}", plant.broker.log());
        // The recording ended before what the first round publishes.
        plant.publish([(format!("sensors/s{n}/t"), "100".to_owned())]);
        let line = dev.line();
        assert_eq!((&line["board"]["equal"], &line["board"]["differences"]), (&json!(1), &json!([])), "{line}");
        dev.interrupt();
    }
}

#[test]
fn a_damaged_or_foreign_recording_is_refused_in_one_sentence_with_the_fix() {
    let folder = tempfile::tempdir().unwrap();
    let function = script(folder.path(), FUNCTION);
    let plant = Plant::with(&[&function]);
    let recording = plant.record("warm", &["--max-messages", "20"]);
    plant.publish(readings(20));
    succeeds(recording);
    let whole = fs::read_to_string(plant.file("night.rec")).unwrap();
    let refused = |text: &str, function: &Path| {
        let file = plant.file("other.rec");
        fs::write(&file, text).unwrap();
        let output = replay(&file, function, &[]);
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(error.trim_end().lines().count(), 1, "{error}");
        error
    };
    assert!(refused(&whole[..whole.len() / 2], &function).contains("other.rec was cut"));
    assert!(refused(&whole.replacen("\"37\"", "\"38\"", 1), &function).contains("was changed after it was recorded"));
    assert!(
        refused(&whole.replacen("@0.2.0", "@9.0.0", 1), &function).contains("the version of sedge that the board has")
    );
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("function.toml"), MANIFEST.replace("\"warm\"", "\"cold\"")).unwrap();
    fs::write(other.join("function.js"), FUNCTION).unwrap();
    assert!(refused(&whole, &other).contains("the recording is of warm, and function.toml names cold"));
    fs::write(function.join("function.js"), "export function handle(").unwrap();
    assert!(refused(&whole, &function).contains("function.js:1:"));
}

#[test]
fn clocks_and_random_numbers_are_recorded_and_given_again() {
    let plant = Plant::with(&[&guest("granted")]);
    let recording = plant.record("granted", &["--max-messages", "20"]);
    plant.publish((0..20).map(|number| (format!("granted/{number}"), String::new())));
    succeeds(recording);
    let (code, answer) = plant.replay(&guest("granted"), &[]);
    assert_eq!(
        (code, answer["compared"].as_u64(), answer["ran_out"].as_u64()),
        (Some(0), Some(20), Some(0)),
        "{answer}"
    );
}

#[test]
fn a_secret_setting_is_never_written_and_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let function = script(folder.path(), FUNCTION);
    let manifest = format!("{MANIFEST}\n[settings.token]\ntype = \"text\"\nsecret = true\n");
    fs::write(function.join("function.toml"), manifest).unwrap();
    let secret = folder.path().join("token");
    fs::write(&secret, "hush-hush").unwrap();
    let plant = Plant::set(&[&function], |setup| {
        let setup = setup.set("recording", "enabled = true");
        setup.set("functions.settings.warm", format!("token = {{ file = {secret:?} }}"))
    });
    let recording = plant.record("warm", &["--max-messages", "5"]);
    plant.publish(readings(5));
    succeeds(recording);
    assert!(!fs::read_to_string(plant.file("night.rec")).unwrap().contains("hush"));
    let output = replay(&plant.file("night.rec"), &function, &[]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        error.contains("setting token is secret, and recordings do not hold secrets: add --set token=VALUE"),
        "{error}"
    );
    let (code, answer) = plant.replay(&function, &["--set", "token=x"]);
    assert_eq!((code, answer["compared"].as_u64()), (Some(0), Some(5)), "{answer}");
}

#[test]
fn a_recording_leaves_the_site_without_what_is_hashed_or_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let function = script(folder.path(), FUNCTION);
    let plant = Plant::with(&[&function]);
    let more = ["--max-messages", "8", "--redact", "topic=sensors/+/t", "--drop", "properties"];
    let recording = plant.record("warm", &more);
    plant.publish((0..8).map(|number| ("sensors/maria-kitchen/t".to_owned(), (number * 20).to_string())));
    succeeds(recording);
    assert!(!fs::read_to_string(plant.file("night.rec")).unwrap().contains("maria"));
    let (code, answer) = plant.replay(&function, &[]);
    assert_eq!(
        (code, answer["compared"].as_u64()),
        (Some(0), Some(8)),
        "the hash stands for the name everywhere: {answer}"
    );
    assert_eq!(answer["redacted"][0], "topic=sensors/+/t");
}

#[test]
fn a_board_records_only_for_a_key_that_may_and_only_where_it_is_enabled() {
    let folder = tempfile::tempdir().unwrap();
    let function = script(folder.path(), FUNCTION);
    let refused = |plant: &Plant, function: &str| {
        let output = Command::new(SEDGE)
            .args(["record", "--node", NODE, "--function", function, "--broker", &plant.broker.url(), "--key"])
            .arg(plant.file("ops.pem"))
            .arg("-o")
            .arg(plant.file("night.rec"))
            .output()
            .expect("run sedge record");
        assert!(!output.status.success() && !plant.file("night.rec").exists());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let plant = Plant::set(&[&function], |setup| {
        setup.set("recording", "enabled = true").set("deploy.keys.ops", "record = false")
    });
    let error = refused(&plant, "warm");
    assert!(error.contains("board refused it (key-not-allowed): key ops may not record functions"), "{error}");
    let plant = Plant::with(&[&function]);
    let error = refused(&plant, "cold");
    assert!(error.contains("cold is not installed on this board"), "{error}");
    let plant = Plant::set(&[&function], |setup| setup);
    let error = refused(&plant, "warm");
    assert!(error.contains("nothing is recorded there (recording.enabled = true in its configuration"), "{error}");
}

#[test]
fn a_recording_is_taken_from_the_disk_of_a_board_that_lost_power() {
    let folder = tempfile::tempdir().unwrap();
    let function = variant(&guest("count"), folder.path(), "counts", "n/#", |manifest| manifest);
    let mut plant = Plant::with(&[&function]);
    let mut recording = plant.record("counts", &[]);
    plant.publish((0..500).map(|number| (format!("n/{}", number % 3), number.to_string())));
    let written = || plant.recordings().first().and_then(|file| fs::metadata(file).ok()).map_or(0, |it| it.len());
    assert!(eventually(PATIENCE, || written() > 50_000), "{}", written());
    plant.daemon.kill();
    recording.kill().expect("end sedge record");
    recording.wait().expect("wait for sedge record");
    let output = Command::new(SEDGE)
        .args(["record", "--function", "counts", "--json", "--data"])
        .arg(plant.daemon.data())
        .arg("-o")
        .arg(plant.file("disk.rec"))
        .output()
        .expect("run sedge record");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(answer["ended"], "daemon-ended", "{answer}");
    let output = replay(&plant.file("disk.rec"), &function, &[]);
    let replayed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((output.status.code(), &replayed["messages"]), (Some(0), &answer["messages"]), "{replayed}");
    assert!(replayed["messages"].as_u64().unwrap() > 100, "{replayed}");
}

#[test]
fn a_request_that_the_broker_retained_is_not_carried_out() {
    let folder = tempfile::tempdir().unwrap();
    let function = script(folder.path(), FUNCTION);
    // With a session the request would come as a message like others, once.
    let mut plant = Plant::prepare(&[&function], |setup| setup.set("recording", "enabled = true"));
    let key = SigningKey::from_pem(&fs::read(plant.file("ops.pem")).unwrap()).unwrap();
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let envelope = |id: &str| {
        let request = BoardRequest {
            id: id.into(),
            node: NODE.into(),
            function: "warm".into(),
            issued_at_ms: now_ms,
            expires_at_ms: now_ms + 600_000,
            request: RequestKind::Record { secs: 600, messages: 5, bytes: 100_000 },
        };
        SignedEnvelope::sign(&request.to_json(), &[&key]).to_json()
    };
    let topic = format!("sedge/{NODE}/request/kept");
    let kept = Publish { retain: true, ..Publish::new(&topic, envelope("kept")) };
    plant.broker.client("operator").publish(kept).unwrap();
    plant.daemon.resume();
    let told = || plant.daemon.log().contains("a request that the broker retained is not carried out");
    assert!(eventually(PATIENCE, told), "{}", plant.daemon.log());
    // The same, sent now, is.
    plant
        .broker
        .client("operator")
        .publish(Publish::new(&format!("sedge/{NODE}/request/now"), envelope("now")))
        .unwrap();
    assert!(eventually(PATIENCE, || !plant.recordings().is_empty()), "{}", plant.daemon.log());
    assert!(plant.recordings()[0].ends_with("now.rec"), "{:?}", plant.recordings());
}

/// The blocks of code of a page: language and text.
fn blocks(page: &str) -> Vec<(&str, &str)> {
    page.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n')).collect()
}

/// Whether a line is the one of the page, where `…` stands for anything.
fn is_like(line: &str, expected: &str) -> bool {
    let parts: Vec<&str> = expected.split('…').collect();
    let Some(mut rest) = line.strip_prefix(parts[0]) else { return false };
    parts[1..].iter().all(|part| match rest.find(part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

#[test]
fn the_page_about_testing_leads_from_an_alarm_to_a_push() {
    let page = fs::read_to_string(crate::harness::guest::root().join("docs/testing-functions.md")).unwrap();
    let (_, page) = page.split_once("## From an alarm at three in the morning to a push").unwrap();
    let page = page.split_once("\n## ").unwrap().0.replace("cellar", NODE);
    let blocks = blocks(&page);
    let folder = tempfile::tempdir().unwrap();
    let (on_board, on_laptop) = (folder.path().join("board/freezer"), folder.path().join("functions/freezer"));
    let [("toml", manifest), ("js", code), rest @ ..] = &blocks[..] else { panic!("{blocks:?}") };
    for copy in [&on_board, &on_laptop] {
        fs::create_dir_all(copy).unwrap();
        fs::write(copy.join("function.toml"), manifest).unwrap();
        fs::write(copy.join("function.js"), code).unwrap();
    }
    let plant = Plant::with(&[&on_board]);
    let sedge = |command: &str| {
        let arguments = command.strip_prefix("$ sedge ").unwrap_or_else(|| panic!("{command}")).split(' ');
        let mut sedge = Command::new(SEDGE);
        sedge
            .args(arguments)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        sedge
            .env("SEDGE_KEY", plant.file("ops.pem"))
            .env("SEDGE_BROKER", plant.broker.url())
            .env("XDG_CONFIG_HOME", "/dev/null");
        sedge.spawn().expect("run sedge")
    };
    // The night: a door that is opened once, and a freezer that breaks.
    let reading = |number: u32| match number {
        31 => "-9",
        51.. => "-10",
        _ => "-20",
    };
    let night = || (1..=60).map(|number| ("sensors/f7/temperature".to_owned(), reading(number).to_owned()));
    for (language, text) in rest {
        match *language {
            "console" => {
                let mut lines: Vec<&str> = text.lines().collect();
                while let Some(command) = (!lines.is_empty()).then(|| lines.remove(0)) {
                    let mut child = sedge(command);
                    if command.contains(" record ") {
                        let begun = eventually(PATIENCE, || !plant.recordings().is_empty());
                        assert!(begun, "log:\n{}", plant.daemon.log());
                        plant.publish(night());
                    }
                    // What is pushed is tried on messages.
                    while command.contains(" push ") && child.try_wait().unwrap().is_none() {
                        plant.publish([("sensors/f9/temperature".to_owned(), "-20".to_owned())]);
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    let output = child.wait_with_output().unwrap();
                    let said = [output.stdout, output.stderr].map(|it| String::from_utf8(it).unwrap()).concat();
                    while lines.first().is_some_and(|line| !line.starts_with("$ ")) {
                        let expected = lines.remove(0);
                        assert!(said.lines().any(|line| is_like(line, expected)), "{command}\n{expected}\n{said}");
                    }
                }
            }
            "js" => {
                fs::write(on_laptop.join("function.js"), text).unwrap();
                fs::write(on_laptop.join("function.toml"), manifest.replace("1.0.0", "1.1.0")).unwrap();
            }
            "toml" => {
                let path = on_laptop.join("tests/recorded-31.toml");
                let case = fs::read_to_string(&path).unwrap();
                let (before, _) = case.split_once("[message.expect]").unwrap();
                fs::write(path, format!("{before}{text}")).unwrap();
            }
            other => panic!("a block of {other}"),
        }
    }
    let status = Command::new(SEDGE).args(["status", "--json", "--broker", &plant.broker.url()]).output().unwrap();
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("\"1.1.0\""), "{status}");
}
