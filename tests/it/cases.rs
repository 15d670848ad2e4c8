//! `sedge test`: cases in files beside a function, and `sedge invoke` with several messages.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::harness::daemon::SEDGE;

const MANIFEST: &str = "name = \"warm\"\nversion = \"1.0.0\"\nsubscribe = [\"sensors/+/temperature\"]\nevery = \"10s\"\nstate = \"function\"\n\
                        [config]\nmax = 80\n";

const FUNCTION: &str = r#"
import { alert, publish, reject, settings, state } from "sedge";

export function handle(message) {
  if (message.topic.startsWith("$timer/")) return state.set("ticked_at", message.receivedAtMs);
  const value = Number(message.text);
  if (Number.isNaN(value)) reject(`${message.text} is not a number`);
  const count = Number(state.get("count") ?? 0) + 1;
  state.set("count", count);
  console.log(`reading ${count}`);
  if (value > Number(settings.max)) return alert.firing(message.topic, { summary: `${value} is above ${settings.max}`, value });
}
"#;

const CASE: &str = r#"# What happens above the limit.
time = 2026-01-05T11:02:13Z

[settings]
max = 70

[state]
count = 4

# Still fine.
[[message]]
topic = "sensors/oven/temperature"
payload = "70"
expect.outputs = []

[[message]]
topic = "sensors/oven/temperature"
payload = 81.5
after = "10s"

[message.expect]
outputs = [{ kind = "alert", status = "firing", value = 81.5 }]
state = { count = 6 }
log = ["reading 6"]

[[message]]
topic = "sensors/oven/temperature"
payload = "hot"

[message.expect]
failure = "rejected"
detail = "hot is not a number"
state = { count = "6" }
"#;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("make a folder");
        fs::create_dir(folder.path().join("tests")).expect("make a folder");
        fs::write(folder.path().join("function.toml"), MANIFEST).expect("write a file");
        fs::write(folder.path().join("function.js"), FUNCTION).expect("write a file");
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn case(&self, name: &str, text: &str) -> &Self {
        fs::write(self.path().join("tests").join(name).with_extension("toml"), text).expect("write a file");
        self
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path().join("tests").join(name).with_extension("toml")).expect("read a case")
    }

    fn sedge(&self, command: &str, args: &[&str]) -> Output {
        Command::new(SEDGE).arg(command).arg(self.path()).args(args).output().expect("run sedge")
    }

    fn test(&self, args: &[&str]) -> (i32, String) {
        let output = self.sedge("test", args);
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).expect("it prints text")).concat();
        (output.status.code().expect("it ends by itself"), text)
    }
}

#[test]
fn a_case_runs_its_messages_with_its_state_settings_and_time() {
    let folder = Folder::new();
    let (code, text) = folder.case("too-warm", CASE).test(&[]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("test warm/too-warm ... ok"), "{text}");
    assert!(text.contains("test result: ok. 1 passed; 0 failed"), "{text}");
}

#[test]
fn differences_are_shown_line_by_line_and_end_with_exit_code_1() {
    let folder = Folder::new();
    folder.case("fine", CASE).case(
        "off",
        &CASE
            .replace("value = 81.5 }]", "value = 90 }]")
            .replace("state = { count = 6 }", "state = { count = 7, gone = true }")
            .replace("reading 6", "reading 7")
            .replace("\"rejected\"", "\"trap\""),
    );
    let report = folder.path().join("report.xml");
    let (code, text) = folder.test(&["--junit", report.to_str().unwrap()]);
    assert_eq!(code, 1, "{text}");
    for expected in [
        "test warm/fine ... ok",
        "test warm/off ... FAILED",
        "message 2: outputs differ (- expected, + came)",
        "- {\"kind\":\"alert\",\"status\":\"firing\",\"value\":90}",
        "+ {\"kind\":\"alert\",\"status\":\"firing\",\"value\":81.5}",
        "- count = \"7\"\n+ count = \"6\"\n- gone = \"true\"",
        "- reading 7\n+ reading 6",
        "message 3: ends differ (- expected, + came)\n- failed: trap: hot is not a number\n+ failed: rejected: hot is not a number",
        "test result: FAILED. 1 passed; 1 failed",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in:\n{text}");
    }
    let report = fs::read_to_string(report).unwrap();
    assert!(report.contains("tests=\"2\" failures=\"1\""), "{report}");
    assert!(report.contains("- {&quot;kind&quot;:&quot;alert&quot;"), "{report}");

    let output = folder.sedge("test", &["--json", "--filter", "off"]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((json["passed"].as_u64(), json["failed"].as_u64()), (Some(0), Some(1)));
    assert_eq!(json["cases"][0]["problems"][0]["message"], 2);
}

#[test]
fn bless_writes_what_came_and_keeps_the_rest_of_the_file() {
    let folder = Folder::new();
    let bare: String = CASE.split_inclusive('\n').filter(|line| !line.starts_with("expect.outputs")).collect();
    let (bare, _) = bare.split_once("\n[message.expect]").unwrap();
    let bare = format!("{bare}\n[[message]]\ntick = true\nafter = \"1s\"\n");
    let (code, text) = folder.case("new", &bare).test(&[]);
    assert!(code == 1 && text.contains("it expects nothing"), "{text}");
    let (code, text) = folder.test(&["--bless"]);
    assert!(code == 0 && text.contains("test warm/new ... written"), "{text}");
    let written = folder.read("new");
    assert!(written.starts_with("# What happens above the limit.\ntime = 2026-01-05T11:02:13Z\n"), "{written}");
    assert!(written.contains("# Still fine.\n[[message]]"), "{written}");
    assert!(written.contains("summary = \"81.5 is above 70\""), "{written}");
    assert!(written.contains("ticked_at = \"1767610944000\""), "{written}");
    let (code, text) = folder.test(&[]);
    assert!(code == 0 && text.contains("... ok"), "{text}");
    let (_, text) = folder.test(&["--bless"]);
    assert!(text.contains("... ok"), "nothing is left to write: {text}");
    assert_eq!(folder.read("new"), written);
}

#[test]
fn a_wake_runs_when_it_is_due_with_the_state_of_its_topic() {
    let folder = Folder::new();
    let manifest = "name = \"warm\"\nversion = \"1.0.0\"\nsubscribe = [\"doors/+\"]\nstate = \"topic\"\n";
    fs::write(folder.path().join("function.toml"), manifest).unwrap();
    let function = r#"
import { alert, state, wake } from "sedge";

export function handle(message) {
  if (message.topic === "$wake/open") return alert.firing("open", { summary: `open since ${state.get("since")}` });
  if (message.text === "closed") return wake("open");
  state.set("since", message.receivedAtMs);
  return wake("open", 60_000);
}
"#;
    fs::write(folder.path().join("function.js"), function).unwrap();
    let case = r#"
[[message]]
topic = "doors/1"
payload = "open"
[message.expect]
outputs = [{ kind = "wake", name = "open", after_ms = 60000 }]

[[message]]
topic = "doors/2"
payload = "open"
after = "30s"

[[message]]
wake = "open"
topic = "doors/1"
[message.expect]
outputs = [{ kind = "alert", summary = "open since 1767225600000" }]

[[message]]
topic = "doors/2"
payload = "closed"
"#;
    let recorded = "[[message]]\ntopic = \"$wake/open\"\nproperties = { sedge-topic = \"doors/3\" }\n\
                    [message.expect]\noutputs = [{ kind = \"alert\" }]\n";
    let (code, text) = folder.case("recorded", recorded).test(&[]);
    assert_eq!(code, 0, "{text}");
    let (_, text) = folder.case("recorded", "[[message]]\ntopic = \"$wake/open\"\nexpect.outputs = []\n").test(&[]);
    assert!(text.contains("message 1: name the topic that it is about"), "{text}");
    fs::remove_file(folder.path().join("tests/recorded.toml")).unwrap();
    let late = "\n[[message]]\nwake = \"open\"\n";
    let (code, text) = folder.case("door", case).test(&[]);
    assert_eq!(code, 0, "{text}");
    let (code, text) = folder.case("door", &format!("{case}{late}")).test(&[]);
    assert!(code == 1 && text.contains("message 5: no wake \"open\" waits"), "{text}");
    let both = case.replace("wake = \"open\"\ntopic = \"doors/1\"", "wake = \"open\"");
    let (_, text) = folder.case("door", &both).test(&[]);
    assert!(text.contains("message 3: 2 wakes \"open\" wait: name the topic"), "{text}");
    let early = case
        .replace("topic = \"doors/1\"\n[message", "topic = \"doors/1\"\nafter = \"10s\"\n[message")
        .replacen("payload = \"open\"\nafter = \"10s\"", "payload = \"open\"", 1);
    let (_, text) = folder.case("door", &early).test(&[]);
    assert!(text.contains("message 3: wake \"open\" is due 20000 ms later"), "{text}");
}

#[test]
fn a_call_about_silence_has_the_state_of_the_topic_that_it_names() {
    let folder = Folder::new();
    let manifest = "name = \"warm\"\nversion = \"1.0.0\"\nsubscribe = [\"s/+\"]\nstate = \"topic\"\n";
    let silence = "[silence]\nafter = \"10m\"\nback = true\nexpect = [\"s/2\"]\n";
    fs::write(folder.path().join("function.toml"), manifest.to_owned() + silence).unwrap();
    let function = r#"
import { alert, state } from "sedge";

export function handle(message) {
  const topic = message.properties["sedge-topic"];
  const ms = message.properties["sedge-silent-ms"];
  if (message.topic === "$silence") return alert.firing(topic, `last ${state.get("last") ?? null}, ${ms} ms ago`);
  if (message.topic === "$silence/back") return alert.resolved(topic, `back after ${ms} ms`);
  state.set("last", message.text);
}
"#;
    fs::write(folder.path().join("function.js"), function).unwrap();
    let case = r#"
[[message]]
topic = "s/1"
payload = "21"

[[message]]
silence = "s/1"
[message.expect]
outputs = [{ kind = "alert", status = "firing", key = "s/1", summary = "last 21, 600000 ms ago" }]

[[message]]
topic = "s/1"
payload = "22"
after = "5m"

[[message]]
back = "s/1"
[message.expect]
outputs = [{ kind = "alert", status = "resolved", key = "s/1", summary = "back after 900000 ms" }]

[[message]]
silence = "s/2"
[message.expect]
outputs = [{ kind = "alert", key = "s/2", summary = "last null, 900000 ms ago" }]
"#;
    let fails = |case: &str, said: &str| {
        let (code, text) = folder.case("silent", case).test(&[]);
        assert!(code == 1 && text.contains(said), "{said}: {text}");
    };
    let (code, text) = folder.case("silent", case).test(&[]);
    assert_eq!(code, 0, "{text}");
    let recorded = "[[message]]\ntopic = \"$silence\"\nproperties = { sedge-topic = \"s/1\" }\n[message.expect]\n";
    assert_eq!(folder.case("silent", recorded).test(&[]).0, 0);
    let about = "message 1: name the topic that it is about: properties = { sedge-topic = \"a/topic\" }";
    fails(&recorded.replace("properties = ", "# "), about);
    fails(
        &case.replace("silence = \"s/2\"", "silence = \"s/3\""),
        "message 5: s/3 was not heard: send a message of it first",
    );
    fails(
        &case.replace("silence = \"s/2\"", "silence = \"s/1\"\nafter = \"9m\""),
        "s/1 is silent 60000 ms later: remove after",
    );
    fails(&case.replace("back = \"s/1\"", "silence = \"s/1\""), "message 4: the silence of s/1 was told already");
    fails(&case.replace("back = \"s/1\"", "back = \"s/2\""), "s/2 does not speak again: tell that it is silent");
    fails(
        &case.replace("back = \"s/1\"", "back = \"s/1\"\ntick = true"),
        "name one of tick, wake, silence, back and schedule",
    );
    fails(&case.replace("back = \"s/1\"", "back = \"s/1\"\npayload = \"1\""), "has no payload: remove it");
    fs::write(folder.path().join("function.toml"), manifest.to_owned() + "[silence]\nafter = \"10m\"\n").unwrap();
    fails(case, "add back = true to section silence there");
    fs::write(folder.path().join("function.toml"), manifest).unwrap();
    fails(case, "function.toml has no section silence");
}

#[test]
fn a_schedule_runs_at_its_next_time_in_its_zone() {
    let folder = Folder::new();
    let manifest = "name = \"warm\"\nversion = \"1.0.0\"\n[at]\nmorning = \"0 6 * * *\"\n";
    fs::write(folder.path().join("function.toml"), manifest).unwrap();
    let function = r#"
import { forward } from "sedge";

export function handle(message) {
  return forward("due", `${message.topic} ${message.properties["sedge-due"]} ${message.properties["sedge-late"]}`);
}
"#;
    fs::write(folder.path().join("function.js"), function).unwrap();
    let step = |lines: &str, said: &str| {
        let outputs = format!("outputs = [{{ kind = \"forward\", payload = \"$schedule/morning {said}\" }}]");
        format!("\n[[message]]\n{lines}\n[message.expect]\n{outputs}\n")
    };
    let morning = step("schedule = \"morning\"", "2026-01-01T06:00:00.000Z undefined");
    let late = step("schedule = \"morning\"\nafter = \"25h\"", "2026-01-02T06:00:00.000Z 3600000");
    let recorded = "topic = \"$schedule/morning\"\nproperties = { sedge-due = \"then\" }";
    let recorded = step(recorded, "then undefined");
    let (code, text) = folder.case("warm", &format!("{morning}{late}{recorded}")).test(&[]);
    assert_eq!(code, 0, "{text}");
    for (lines, said) in [
        ("schedule = \"evening\"", "function.toml has no schedule \"evening\""),
        ("schedule = \"morning\"\nafter = \"1h\"", "schedule \"morning\" is due 18000000 ms later"),
        ("schedule = \"morning\"\ntick = true", "name one of tick, wake, silence, back and schedule"),
    ] {
        let (code, text) = folder.case("warm", &step(lines, "")).test(&[]);
        assert!(code == 1 && text.contains(said), "{lines}: {text}");
    }
}

#[test]
fn mistakes_in_cases_are_named_with_file_and_fix_and_others_run() {
    let message =
        |lines: &str| format!("[[message]]\ntopic = \"sensors/a/temperature\"\nexpect.outputs = []\n{lines}\n");
    for (case, expected) in [
        (message("paylod = 1"), "wrong.toml:4: unknown field `paylod`"),
        (message("payload = 1").replace("sensors/a/temperature", "other"), "message 1: other is not heard"),
        (message("payload = 1\n[settings]\nmaxx = 1"), "settings.maxx: warm has no such setting"),
        (message("payload = 1\nafter = \"soon\""), "message 1: after = \"soon\" is not a time"),
        (message("payload_file = \"gone.bin\""), "gone.bin"),
        ("[[message]]\nexpect.outputs = []".to_owned(), "message 1: topic is missing"),
        ("state.a = 1".to_owned(), "no message: add a section [[message]]"),
    ] {
        let folder = Folder::new();
        let (code, text) = folder.case("fine", CASE).case("wrong", &case).test(&[]);
        assert!(code == 1 && text.contains(expected), "{expected:?}:\n{text}");
        assert!(text.contains("test result: FAILED. 1 passed; 1 failed"), "{text}");
    }
    let folder = Folder::new();
    let (code, text) = folder.test(&[]);
    assert!(code != 0 && text.contains("no case in"), "{text}");
}

#[test]
fn a_case_that_is_edited_runs_again_while_it_is_watched() {
    use std::io::{BufRead as _, BufReader};
    use std::process::Stdio;

    let folder = Folder::new();
    folder.case("too-warm", CASE);
    let mut child = Command::new(SEDGE)
        .arg("test")
        .arg(folder.path())
        .arg("--watch")
        .stdout(Stdio::piped())
        .spawn()
        .expect("run sedge test");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.starts_with("test result: ok")));
    // While the run may not have ended yet: no edit is missed.
    folder.case("too-warm", &CASE.replace("reading 6", "reading 7"));
    assert!(lines.any(|line| line.starts_with("test result: FAILED")));
    assert!(lines.any(|line| line.starts_with("waiting for a change")));
    folder.case("too-warm", CASE);
    assert!(lines.any(|line| line.starts_with("test result: ok")));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn invoke_takes_a_sequence_and_carries_the_state_in_a_file() {
    let folder = Folder::new();
    let state = folder.path().join("state.json");
    let invoke = |args: &[&str]| -> Vec<Value> {
        let file = [
            "--json",
            "--state-file",
            state.to_str().unwrap(),
            "--at",
            "2026-01-05T11:02:13Z",
            "--clock-synced",
            "false",
        ];
        let output = folder.sedge("invoke", &[args, &file].concat());
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let topic = "sensors/a/temperature";
    let runs = invoke(&["-t", topic, "-p", "1", "-p", "81", "-p", "hot"]);
    let results: Vec<_> = runs.iter().map(|run| run["result"].as_str().unwrap()).collect();
    assert_eq!(results, ["done", "done", "failed"]);
    assert_eq!(runs[1]["outputs"][0]["kind"], "alert");
    let runs = invoke(&["-t", topic, "-p", "2", "--attempt", "3"]);
    assert_eq!(runs[0]["log"][0]["text"], "reading 3");
    let runs = invoke(&["--tick"]);
    assert_eq!(runs[0]["state"][0]["value"], "1767610933000");
    let kept: Value = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
    assert_eq!(kept, serde_json::json!({ "count": "3", "ticked_at": "1767610933000" }));

    fs::write(&state, "{\"count\": {\"hex\": \"zz\"}}").unwrap();
    let output = folder.sedge("invoke", &["-t", topic, "-p", "1", "--state-file", state.to_str().unwrap()]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("state.json: count: write {\"hex\": \"00ff\"}"));
}
