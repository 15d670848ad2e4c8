//! The operator's commands, with a real broker and simulated boards.

mod board;
mod line;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use sedge_core::deploy::payload::OrderChange;
use serde_json::{Value, json};

use crate::harness::daemon::SEDGE;
use crate::harness::eventually;
use crate::harness::guest::{guest, variant};
use crate::harness::mosquitto::{Mosquitto, free_port};
use crate::harness::wire::Publish;
use board::{Board, Manner, retained};
use line::Line;

/// A broker, a compiled function, and a key.
struct Office {
    broker: Mosquitto,
    folder: tempfile::TempDir,
    function: PathBuf,
    key: PathBuf,
}

impl Office {
    fn open() -> Self {
        let broker = Mosquitto::start();
        let folder = tempfile::tempdir().expect("make a folder");
        let function = variant(&guest("count"), folder.path(), "warm", "warm/#", |manifest| {
            manifest.lines().filter(|line| !line.starts_with("serial")).collect::<Vec<_>>().join("\n")
        });
        let key = folder.path().join("ops.pem");
        let made = run(&["keygen", "--out", text(&key)]);
        assert!(made.status.success(), "{made:?}");
        Self { broker, folder, function, key }
    }

    fn public_key(&self) -> PathBuf {
        self.key.with_extension("pub.pem")
    }

    fn board(&self, node: &str, manner: Manner) -> Board {
        Board::start(self.broker.port, node, &self.public_key(), manner)
    }

    /// Runs a command with broker, key and a short timeout, and returns its JSON output.
    fn ask(&self, arguments: &[&str]) -> (Option<i32>, Value) {
        let (code, answer, _) = self.ask_through(self.broker.port, arguments);
        (code, answer)
    }

    fn ask_through(&self, port: u16, arguments: &[&str]) -> (Option<i32>, Value, String) {
        let url = format!("mqtt://127.0.0.1:{port}");
        let mut all = vec![arguments[0], "--json", "--broker", &url];
        if arguments[0] != "status" {
            all.extend(["--key", text(&self.key)]);
            if !arguments.contains(&"--timeout") {
                all.extend(["--timeout", "30"]);
            }
        }
        all.extend(&arguments[1..]);
        let output = run(&all);
        let says = String::from_utf8_lossy(&output.stderr).into_owned();
        let answer = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{arguments:?} printed no JSON ({error}): {output:?}"));
        (output.status.code(), answer, says)
    }

    fn push(&self, arguments: &[&str]) -> (Option<i32>, Value) {
        let mut all = vec!["push", text(&self.function)];
        all.extend(arguments);
        self.ask(&all)
    }

    /// Chunks of the function's module that the broker retains.
    fn chunks(&self) -> usize {
        retained(self.broker.port, "sedge/blob/+/+").len()
    }

    fn edit(&self, from: &str, to: &str) {
        let path = self.function.join("function.toml");
        let before = fs::read_to_string(&path).expect("read function.toml");
        assert!(before.contains(from), "no {from:?} in {before}");
        fs::write(path, before.replacen(from, to, 1)).expect("write function.toml");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(SEDGE);
    // Not a folder: no test learns boards from another.
    command.args(arguments).env_remove("SEDGE_BROKER").env_remove("SEDGE_KEY").stdin(Stdio::null());
    command.env("XDG_CONFIG_HOME", "/dev/null");
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().expect("run sedge")
}

#[test]
fn a_new_function_is_built_signed_sent_and_followed_until_it_is_active() {
    let office = Office::open();
    let board = office.board("pump-3", Manner::Obeys);
    let dir = office.folder.path().join("door-alarm");
    // As from a package: there is no checkout around it, and nothing is fetched.
    let program = office.folder.path().join("sedge");
    fs::copy(SEDGE, &program).expect("copy the program");
    let made = Command::new(&program).args(["new", "door-alarm", "--dir", text(&dir), "--json"]).output();
    let made = made.expect("run the copy");
    assert!(made.status.success(), "{made:?}");
    let told: Value = serde_json::from_slice(&made.stdout).expect("JSON");
    assert_eq!(told["sdk"], json!(dir.canonicalize().expect("a folder").join("guest-sdk")));
    let tested =
        Command::new("cargo").args(["test", "--quiet", "--offline"]).current_dir(&dir).output().expect("run cargo");
    assert!(tested.status.success(), "{tested:?}");

    let port = office.broker.port;
    let (code, answer, says) = office.ask_through(port, &["push", text(&dir), "--node", "pump-3"]);
    assert_eq!(code, Some(0), "{answer} {says}");
    assert_eq!(answer["ok"], true);
    assert_eq!((&answer["function"], &answer["version"]), (&json!("door-alarm"), &json!("0.1.0")));
    assert_eq!(answer["target"], json!({ "node": "pump-3" }));
    assert_eq!(answer["counts"], json!({ "active": 1 }));
    assert_eq!(answer["nodes"][0]["node"], "pump-3");
    assert_eq!(answer["nodes"][0]["active"]["serial"], answer["serial"]);
    assert_eq!(answer["chunks"]["sent"], answer["module"]["chunks"]);
    for state in ["chunks", "receiving", "compiling", "trial", "active"] {
        assert!(says.contains(state), "{state} is not told:\n{says}");
    }
    let seen = board.seen();
    assert_eq!(seen.modules, [fs::read(dir.join("door-alarm.wasm")).unwrap()]);
    assert_eq!(seen.orders.len(), 1);
}

#[test]
fn the_reason_of_a_refusal_ends_it() {
    let office = Office::open();
    let _board = office.board("pump-3", Manner::Refuses("over-limit", "it wants too much fuel"));
    let (code, answer) = office.push(&["--node", "pump-3"]);
    assert_eq!((code, &answer["ok"]), (Some(1), &json!(false)), "{answer}");
    let fate = &answer["nodes"][0];
    assert_eq!((&fate["state"], &fate["reason"]), (&json!("rejected"), &json!("over-limit")));
    assert_eq!(fate["error"], "it wants too much fuel");

    // Output for people.
    let url = office.broker.url();
    let (dir, key) = (text(&office.function), text(&office.key));
    let output = run(&["push", dir, "--node", "pump-3", "--broker", &url, "--key", key, "--timeout", "30"]);
    let says = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(says.contains("rejected") && says.contains("over-limit: it wants too much fuel"), "{says}");
}

#[test]
fn a_trial_that_fails_ends_it() {
    let office = Office::open();
    let _board = office.board("pump-3", Manner::RollsBack);
    let (code, answer) = office.push(&["--node", "pump-3"]);
    assert_eq!(code, Some(1), "{answer}");
    assert_eq!(
        (&answer["nodes"][0]["state"], &answer["nodes"][0]["reason"]),
        (&json!("rolled-back"), &json!("failed-trial"))
    );
}

#[test]
fn a_board_that_does_not_trust_the_key_says_so_without_a_serial() {
    let office = Office::open();
    let other = office.folder.path().join("other.pem");
    run(&["keygen", "--out", text(&other)]);
    let _board = Board::start(office.broker.port, "pump-3", &other.with_extension("pub.pem"), Manner::Obeys);
    let (code, answer) = office.push(&["--node", "pump-3"]);
    assert_eq!(code, Some(1), "{answer}");
    assert_eq!(
        (&answer["nodes"][0]["reason"], &answer["timed_out"]),
        (&json!("unknown-key"), &json!(false)),
        "{answer}"
    );
}

#[test]
fn a_push_that_was_killed_half_way_resumes() {
    let office = Office::open();
    let board = office.board("pump-3", Manner::Obeys);
    let line = Line::to(office.broker.port).stalls_after(6 << 10);
    let url = format!("mqtt://127.0.0.1:{}", line.port);
    let (dir, key) = (text(&office.function), text(&office.key));
    let mut child = command(&["push", dir, "--node", "pump-3", "--chunk-size", "1024", "--broker", &url, "--key", key])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start sedge");
    assert!(eventually(Duration::from_secs(20), || line.is_stalled()), "it has sent nothing");
    child.kill().expect("kill it");
    child.wait().expect("wait for it");
    assert!(eventually(Duration::from_secs(20), || office.chunks() > 0), "nothing came through");
    assert!(board.seen().orders.is_empty(), "it ordered what was not there");

    let (code, answer) = office.push(&["--node", "pump-3", "--chunk-size", "1024"]);
    assert_eq!(code, Some(0), "{answer}");
    let [kept, sent] = ["kept", "sent"].map(|which| answer["chunks"][which].as_u64().unwrap());
    assert!(kept > 0 && sent > 0, "{answer}");
    assert_eq!(answer["module"]["chunks"], kept + sent);
}

#[test]
fn a_connection_that_breaks_does_not_end_a_push() {
    let office = Office::open();
    let _board = office.board("pump-3", Manner::Obeys);
    let line = Line::to(office.broker.port).breaks_after(6 << 10);
    let (dir, arguments) = (text(&office.function), ["--node", "pump-3", "--chunk-size", "1024"]);
    let (code, answer, says) = office.ask_through(line.port, &[&["push", dir][..], &arguments].concat());
    assert_eq!(code, Some(0), "{answer}\n{says}");
    assert!(line.connections() >= 2, "nothing broke");
    assert!(says.contains("connecting again"), "{says}");
}

#[test]
fn what_the_broker_keeps_is_checked_and_sent_again_where_it_is_wrong() {
    let office = Office::open();
    let _board = office.board("pump-3", Manner::Obeys);
    let (code, answer) = office.push(&["--node", "pump-3", "--chunk-size", "1024"]);
    assert_eq!(code, Some(0), "{answer}");
    let topic = format!("sedge/blob/{}/3", answer["module"]["digest"].as_str().unwrap());
    let junk = Publish { retain: true, ..Publish::new(&topic, "junk") };
    office.broker.client("vandal").publish(junk).unwrap();
    let (code, answer) = office.push(&["--node", "pump-3", "--chunk-size", "1024"]);
    assert_eq!((code, &answer["chunks"]["sent"]), (Some(0), &json!(1)), "{answer}");
    assert!(retained(office.broker.port, &topic).iter().all(|message| message.payload.len() == 1024));
}

#[test]
fn the_same_push_again_is_the_same_order_and_a_changed_one_is_not() {
    let office = Office::open();
    let board = office.board("pump-3", Manner::Obeys);
    let (_, first) = office.push(&["--node", "pump-3"]);
    let (code, again) = office.push(&["--node", "pump-3"]);
    assert_eq!((code, &again["chunks"]["sent"]), (Some(0), &json!(0)), "{again}");
    assert_eq!(first["serial"], again["serial"]);
    assert_eq!(board.seen().orders.len(), 1);

    office.edit("version = \"1.0.0\"", "version = \"1.0.1\"");
    let (code, changed) = office.push(&["--node", "pump-3"]);
    assert_eq!(code, Some(0), "{changed}");
    assert!(changed["serial"].as_u64() > first["serial"].as_u64(), "{changed}");
    assert_eq!(board.seen().orders.len(), 2);
}

#[test]
fn a_serial_that_is_not_higher_is_refused_before_anything_is_sent() {
    let office = Office::open();
    let board = office.board("pump-3", Manner::Obeys);
    office.edit("version", "serial = 7\nversion");
    let (code, answer) = office.push(&["--node", "pump-3"]);
    assert_eq!((code, &answer["serial"]), (Some(0), &json!(7)), "{answer}");
    office.edit("serial = 7", "serial = 6");
    for arguments in [&["--node", "pump-3"][..], &["--node", "pump-3", "--dry-run"]] {
        let (code, answer) = office.push(arguments);
        assert_eq!((code, &answer["ok"]), (Some(1), &json!(false)), "{answer}");
        let error = answer["error"].as_str().unwrap();
        assert!(error.contains("pump-3 has taken serial 7") && error.contains("serial = 8"), "{error}");
    }
    assert_eq!(board.seen().orders.len(), 1);
}

#[test]
fn a_push_over_a_limit_is_corrected_under_its_serial() {
    let office = Office::open();
    office.edit("version", "serial = 7\nversion");
    let _board = office.board("pump-3", Manner::RefusesFirst("over-limit", "too much time"));
    let (code, answer) = office.push(&["--node", "pump-3"]);
    assert_eq!((code, &answer["nodes"][0]["reason"]), (Some(1), &json!("over-limit")), "{answer}");
    office.edit("timeout_ms = 100", "timeout_ms = 50");
    let (code, answer) = office.push(&["--node", "pump-3"]);
    assert_eq!((code, &answer["serial"]), (Some(0), &json!(7)), "{answer}");
}

#[test]
fn a_dry_run_shows_topics_limits_and_permissions_and_changes_nothing() {
    let office = Office::open();
    let board = office.board("pump-3", Manner::Obeys);
    office.edit("version", "serial = 7\nversion");
    let (code, answer) = office.push(&["--node", "pump-3"]);
    assert_eq!(code, Some(0), "{answer}");
    let before = retained(office.broker.port, "sedge/#");

    office.edit("serial = 7", "serial = 8");
    office.edit("warm/#", "warm/+/new");
    office.edit("timeout_ms = 100", "timeout_ms = 50\n[allow]\npublish = [\"derived/#\"]");
    let (code, answer) = office.push(&["--node", "pump-3", "--dry-run"]);
    assert_eq!((code, &answer["dry_run"]), (Some(0), &json!(true)), "{answer}");
    let expected = json!([
        { "key": "allow.publish", "added": ["derived/#"], "removed": [] },
        { "key": "limits.timeout_ms", "from": 100, "to": 50 },
        { "key": "serial", "from": 7, "to": 8 },
        { "key": "subscribe", "added": ["warm/+/new"], "removed": ["warm/#"] },
    ]);
    assert_eq!(answer["nodes"][0]["changes"], expected);

    // Without a key, output for people.
    let url = office.broker.url();
    let output = run(&["push", text(&office.function), "--node", "pump-3", "--broker", &url, "--dry-run"]);
    let says = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && says.contains("pump-3: warm 1.0.0 (serial 7) -> 1.0.0 (serial 8)"), "{says}");
    assert!(says.contains("+ allow.publish") && says.contains("derived/#"), "{says}");
    assert_eq!(retained(office.broker.port, "sedge/#"), before);
    assert_eq!(board.seen().orders.len(), 1);
}

#[test]
fn a_group_is_counted_by_state_and_good_only_when_all_of_it_is() {
    let office = Office::open();
    let boards = [("pump-1", Manner::Obeys), ("pump-2", Manner::Obeys), ("pump-3", Manner::Silent)];
    let boards = boards.map(|(node, manner)| office.board(node, manner));
    let _stranger = Board::start_in(office.broker.port, "fan-1", &office.public_key(), Manner::Obeys, "fans");
    let (code, answer) = office.push(&["--group", "pumps", "--timeout", "5"]);
    assert_eq!(code, Some(1), "{answer}");
    assert_eq!(answer["counts"], json!({ "active": 2, "waiting": 1 }));
    assert_eq!((&answer["timed_out"], &answer["target"]), (&json!(true), &json!({ "group": "pumps" })));

    drop(boards);
    let (code, answer) = office.push(&["--group", "pumps", "--timeout", "2"]);
    assert_eq!((code, &answer["counts"]), (Some(1), &json!({ "active": 2, "offline": 1 })), "{answer}");
    let _late = office.board("pump-3", Manner::Obeys);
    let (code, answer) = office.push(&["--group", "pumps"]);
    assert_eq!((code, &answer["counts"]), (Some(0), &json!({ "active": 3 })), "{answer}");
    assert_eq!(answer["chunks"]["sent"], 0, "a module is kept once, however many boards there are");
}

#[test]
fn a_board_that_says_nothing_is_waited_for_until_the_time_is_up() {
    let office = Office::open();
    let started = Instant::now();
    let (code, answer) = office.push(&["--node", "nobody", "--timeout", "2"]);
    assert_eq!((code, &answer["timed_out"]), (Some(1), &json!(true)), "{answer}");
    assert_eq!(answer["nodes"][0]["state"], "waiting");
    assert!(started.elapsed() >= Duration::from_secs(2));
    assert_eq!(retained(office.broker.port, "sedge/nobody/deploy/warm").len(), 1, "for when it comes");

    let (code, answer) = office.push(&["--node", "nobody", "--no-wait"]);
    assert_eq!((code, &answer["waited"]), (Some(0), &json!(false)), "{answer}");
    let (code, answer) = office.push(&["--group", "nobody", "--timeout", "1"]);
    assert_eq!((code, &answer["nodes"]), (Some(1), &json!([])), "{answer}");
}

#[test]
fn a_broker_that_is_away_is_named_at_once() {
    let office = Office::open();
    let port = free_port();
    let started = Instant::now();
    for arguments in [&["push", text(&office.function), "--node", "pump-3"][..], &["status"]] {
        let (code, answer, says) = office.ask_through(port, arguments);
        assert_eq!((code, &answer["ok"]), (Some(1), &json!(false)));
        assert!(answer["error"].as_str().unwrap().contains(&format!("127.0.0.1:{port}")), "{answer}");
        assert!(says.contains(&format!("127.0.0.1:{port}")), "{says}");
    }
    assert!(started.elapsed() < Duration::from_secs(20), "it waited for nobody");
}

#[test]
fn a_wrong_key_file_sends_nothing() {
    let office = Office::open();
    let url = office.broker.url();
    let missing = office.folder.path().join("missing.pem");
    let public = office.public_key();
    for (key, complaint) in [(&missing, "missing.pem"), (&public, "private key is expected")] {
        let output = run(&["push", text(&office.function), "--node", "a", "--broker", &url, "--key", text(key)]);
        let says = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{says}");
        assert!(says.contains(complaint), "{says}");
    }
    let output = run(&["push", text(&office.function), "--node", "a", "--broker", &url]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("--key"), "{output:?}");
    assert_eq!(retained(office.broker.port, "sedge/#"), []);
}

#[test]
fn a_component_that_is_too_large_for_every_board_is_not_sent() {
    let office = Office::open();
    let path = office.function.join("warm.wasm");
    let mut wasm = fs::read(&path).unwrap();
    // A custom section of 12 MB: its length in LEB128, a name, and zeros.
    let mut length = 12_000_000_u32;
    wasm.push(0);
    while length >= 0x80 {
        wasm.push(length as u8 | 0x80);
        length >>= 7;
    }
    wasm.push(length as u8);
    wasm.extend([3, b't', b'a', b'g']);
    wasm.resize(wasm.len() + 12_000_000 - 4, 0);
    let bytes = wasm.len();
    fs::write(&path, wasm).unwrap();
    let (code, answer) = office.push(&["--node", "a"]);
    assert_eq!(code, Some(1), "{answer}");
    let error = answer["error"].as_str().unwrap();
    assert!(error.contains(&format!("{bytes} bytes")) && error.contains("8388608"), "{error}");
    assert_eq!(retained(office.broker.port, "sedge/#"), []);
}

/// Publishes the status of a board that is not simulated.
fn say_status(office: &Office, node: &str, limits: &Value) {
    let status = json!({ "state": "online", "groups": ["pumps"], "limits": limits }).to_string();
    let message = Publish { retain: true, ..Publish::new(&format!("sedge/{node}/status"), status) };
    office.broker.client("herald").publish(message).expect("publish");
}

#[test]
fn what_a_board_would_refuse_is_not_sent() {
    let office = Office::open();
    let limits = json!({
        "max_module_bytes": 16 << 20, "max_fuel": 1_000_000_000_000_u64, "max_timeout_ms": 10_000,
        "max_memory_bytes": 64 << 20, "max_outputs": 1024, "max_output_bytes": 1 << 20, "max_state_bytes": 1 << 20,
        "compiler": true, "target": "aarch64", "wasmtime": 48, "settings": 2,
    });
    for (key, value, says) in [
        ("max_module_bytes", json!(2048), "deploy.max_module_bytes"),
        ("max_timeout_ms", json!(5), "functions.max_timeout_ms"),
        ("compiler", json!(false), "no compiler"),
    ] {
        let mut lower = limits.clone();
        lower[key] = value;
        say_status(&office, "pump-3", &lower);
        for target in [["--node", "pump-3"], ["--group", "pumps"]] {
            let (code, answer) = office.push(&target);
            let error = answer["error"].as_str().unwrap_or_default();
            assert!(code == Some(1) && error.contains("board pump-3") && error.contains(says), "{key}: {answer}");
        }
        assert_eq!(retained(office.broker.port, "sedge/+/deploy/+").len() + office.chunks(), 0, "{key}");
    }
    say_status(&office, "pump-3", &limits);
    assert_eq!(office.push(&["--node", "pump-3", "--no-wait"]).0, Some(0));
    say_status(&office, "pump-4", &json!({ "some": "other shape" }));
    assert_eq!(
        office.push(&["--node", "pump-4", "--no-wait"]).0,
        Some(0),
        "limits that it does not know check nothing"
    );
}

#[test]
fn a_mistyped_board_name_gets_a_suggestion_and_an_unclaimed_order_is_listed_and_withdrawn() {
    let office = Office::open();
    let _board = office.board("cellar", Manner::Obeys);
    let (code, answer) = office.push(&["--node", "Cellar"]);
    assert!(code == Some(1) && answer["error"].as_str().unwrap().contains("did you mean cellar?"), "{answer}");
    assert_eq!(retained(office.broker.port, "sedge/Cellar/#"), []);
    let (_, answer) = office.ask(&["status", "--node", "celar"]);
    assert!(answer["error"].as_str().unwrap().contains("did you mean cellar?"), "{answer}");

    assert_eq!(office.push(&["--node", "cellar"]).0, Some(0));
    assert_eq!(office.ask(&["status"]).1["orders"], Value::Null);
    assert_eq!(office.push(&["--node", "Cellar", "--force", "--no-wait"]).0, Some(0));
    let orders = office.ask(&["status"]).1["orders"].clone();
    assert_eq!(
        (&orders[0]["function"], &orders[0]["target"]),
        (&json!("warm"), &json!({ "node": "Cellar" })),
        "{orders}"
    );
    let output = run(&["status", "--broker", &office.broker.url()]);
    let says = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(says.contains("did you mean cellar?") && says.contains("sedge withdraw warm --node Cellar"), "{says}");

    let withdraw = |node: &str| {
        let output = run(&["withdraw", "warm", "--node", node, "--json", "--broker", &office.broker.url()]);
        output.status.code()
    };
    assert_eq!((withdraw("Cellar"), withdraw("Cellar")), (Some(0), Some(1)));
    assert_eq!(office.ask(&["status"]).1["orders"], Value::Null);
}

#[test]
fn other_code_under_the_same_version_is_refused_unless_forced() {
    let office = Office::open();
    let board = office.board("pump-3", Manner::Obeys);
    assert_eq!(office.push(&["--node", "pump-3"]).0, Some(0));
    let path = office.function.join("warm.wasm");
    let mut wasm = fs::read(&path).unwrap();
    wasm.extend([0, 5, 3, b't', b'a', b'g', b'x']);
    fs::write(&path, wasm).unwrap();
    let (code, answer) = office.push(&["--node", "pump-3"]);
    assert!(code == Some(1) && answer["error"].as_str().unwrap().contains("version 1.0.0"), "{answer}");
    assert_eq!(board.seen().orders.len(), 1);
    assert_eq!(office.push(&["--node", "pump-3", "--force"]).0, Some(0));
    office.edit("version = \"1.0.0\"", "version = \"1.0.1\"");
    assert_eq!(office.push(&["--node", "pump-3"]).0, Some(0));
}

#[test]
fn what_is_no_function_is_not_sent() {
    let office = Office::open();
    fs::write(office.function.join("warm.wasm"), b"\0asm").unwrap();
    let (code, answer) = office.push(&["--node", "a"]);
    assert_eq!((code, &answer["ok"]), (Some(1), &json!(false)));
    assert!(answer["error"].as_str().unwrap().contains("warm.wasm"), "{answer}");
    fs::write(office.function.join("function.toml"), "name = 1").unwrap();
    let (code, answer) = office.push(&["--node", "a"]);
    assert_eq!((code, &answer["ok"]), (Some(78), &json!(false)), "{answer}");
    assert_eq!(retained(office.broker.port, "sedge/#"), []);
}

#[test]
fn going_back_removing_and_promoting_take_the_next_serial() {
    let office = Office::open();
    let board = office.board("pump-3", Manner::Obeys);
    let (code, answer) = office.ask(&["rollback", "warm", "--node", "pump-3", "--timeout", "5"]);
    assert_eq!(code, Some(1));
    assert!(answer["error"].as_str().unwrap().contains("nothing is known of warm"), "{answer}");

    office.edit("version", "serial = 7\nversion");
    assert_eq!(office.push(&["--node", "pump-3"]).0, Some(0));
    for (command, state, serial) in
        [("rollback", "rolled-back", 8), ("promote", "active", 9), ("remove", "removed", 10)]
    {
        let (code, answer) = office.ask(&[command, "warm", "--node", "pump-3"]);
        assert_eq!(code, Some(0), "{answer}");
        assert_eq!((&answer["action"], &answer["serial"]), (&json!(command), &json!(serial)));
        assert_eq!(answer["counts"], json!({ state: 1 }));
    }
    let orders = board.seen().orders;
    let changes: Vec<&str> = orders.iter().map(|order| order.change.as_str()).collect();
    assert_eq!(changes, ["install", "rollback", "promote", "remove"]);
    let (code, answer) = office.push(&["--node", "pump-3"]);
    assert_eq!(code, Some(1), "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("serial = 11"), "{answer}");
}

#[test]
fn a_shadow_that_a_person_promotes_is_done_when_it_runs() {
    let office = Office::open();
    let board = office.board("pump-3", Manner::Shadows);
    let (code, answer) = office.push(&["--node", "pump-3", "--mode", "shadow"]);
    assert_eq!((code, &answer["counts"]), (Some(0), &json!({ "trial": 1 })), "{answer}");
    let OrderChange::Install(install) = &board.seen().orders[0].change else { panic!("no install") };
    assert_eq!(install.manifest.as_value()["trial"]["mode"], "shadow");
}

#[test]
fn keys_are_trusted_and_revoked_by_a_signed_order() {
    let office = Office::open();
    let board = office.board("pump-3", Manner::Obeys);
    let second = office.folder.path().join("ops-2.pem");
    let made = run(&["keygen", "--json", "--out", text(&second)]);
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(fs::metadata(&second).unwrap().permissions().mode() & 0o777, 0o600);
    let id = made["key_id"].as_str().unwrap();
    let public = second.with_extension("pub.pem");
    let arguments = ["trust", text(&public), "--functions", "warm,cold-*", "--topics", "a/#", "--node", "pump-3"];
    let (code, answer) = office.ask(&arguments);
    assert_eq!((code, &answer["function"]), (Some(0), &json!("_keys")), "{answer}");
    let (code, later) = office.ask(&["trust", "--revoke", id, "--node", "pump-3"]);
    assert_eq!(code, Some(0), "{later}");
    assert!(later["serial"].as_u64() > answer["serial"].as_u64());

    let orders = board.seen().orders;
    let [OrderChange::Keys(trust), OrderChange::Keys(revoke)] = &[0, 1].map(|n| orders[n].change.clone()) else {
        panic!("{orders:?}")
    };
    let key = &trust.trust[0];
    assert_eq!((&*key.name, key.id().to_string(), key.keys), ("ops-2", id.to_owned(), false));
    assert!(key.may_change("cold-room").is_ok() && key.may_change("hot-room").is_err());
    assert_eq!(key.topics.len(), 1);
    assert_eq!(revoke.revoke.iter().map(ToString::to_string).collect::<Vec<_>>(), [id]);
}

#[test]
fn pruning_removes_this_module_or_all_that_nobody_names() {
    let office = Office::open();
    let _board = office.board("pump-3", Manner::Obeys);
    let stranger = "ab".repeat(32);
    let mut client = office.broker.client("leftover");
    for index in 0..3 {
        let topic = format!("sedge/blob/{stranger}/{index}");
        client.publish(Publish { retain: true, ..Publish::new(&topic, "old") }).unwrap();
    }
    let (code, answer) = office.push(&["--node", "pump-3", "--prune-unused"]);
    assert_eq!((code, &answer["removed"]), (Some(0), &json!(3)), "{answer}");
    let chunks = office.chunks();
    assert_eq!(answer["module"]["chunks"], chunks);
    let (code, answer) = office.push(&["--node", "pump-3", "--prune"]);
    assert_eq!((code, &answer["removed"]), (Some(0), &json!(chunks)), "{answer}");
    assert_eq!(office.chunks(), 0);

    let refusing = office.board("pump-4", Manner::Refuses("over-limit", "no"));
    let (code, answer) = office.push(&["--node", "pump-4", "--prune"]);
    assert_eq!((code, &answer["removed"]), (Some(1), &json!(0)), "{answer}");
    assert_eq!(office.chunks(), chunks, "what failed may be tried again");
    drop(refusing);
}

#[test]
fn status_lists_boards_functions_versions_and_states() {
    let office = Office::open();
    let (code, answer) = office.ask(&["status"]);
    assert_eq!((code, &answer), (Some(0), &json!({ "ok": true, "nodes": [] })));
    let board = office.board("pump-3", Manner::Obeys);
    drop(office.board("pump-4", Manner::Obeys));
    assert_eq!(office.push(&["--node", "pump-3"]).0, Some(0));
    let (code, answer) = office.ask(&["status"]);
    assert_eq!(code, Some(0));
    let nodes = answer["nodes"].as_array().unwrap();
    assert_eq!(nodes.iter().map(|node| &node["node"]).collect::<Vec<_>>(), ["pump-3", "pump-4"]);
    assert_eq!((&nodes[0]["state"], &nodes[1]["state"]), (&json!("online"), &json!("offline")));
    assert_eq!(nodes[0]["groups"], json!(["pumps"]));
    let function = &nodes[0]["functions"][0];
    assert_eq!((&function["function"], &function["state"]), (&json!("warm"), &json!("active")));
    assert_eq!(function["active"]["version"], "1.0.0");

    let (_, one) = office.ask(&["status", "--node", "pump-4"]);
    assert_eq!(one["nodes"].as_array().unwrap().len(), 1);
    let (code, none) = office.ask(&["status", "--node", "pump-5"]);
    assert_eq!((code, &none["ok"]), (Some(1), &json!(false)));
    let output = run(&["status", "--broker", &office.broker.url()]);
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(table.contains("pump-3") && table.contains("warm") && table.contains("1.0.0"), "{table}");
    drop(board);
}

#[test]
fn a_command_without_a_target_is_wrong_usage() {
    for arguments in [
        &["push", "."][..],
        &["push", ".", "--node", "a", "--group", "b"],
        &["rollback", "warm"],
        &["push", ".", "--node", "a/b"],
        &["push", ".", "--node", "a", "--chunk-size", "10"],
        &["trust", "--node", "a"],
        &["new", "9lives"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    }
}
