//! Invalid command lines, configurations and folders of functions.

use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::harness::daemon::SEDGE;
use crate::harness::guest::{guest, variant};
use crate::harness::wire::Publish;
use crate::harness::{Site, eventually};

fn sedge(arguments: &[&str]) -> Output {
    Command::new(SEDGE).args(arguments).output().expect("run sedge")
}

/// Exit code and stderr of a command with a configuration.
fn on_config(command: &str, toml: &str) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().expect("make a folder");
    let path = folder.path().join("sedge.toml");
    fs::write(&path, toml).expect("write the configuration");
    let output = sedge(&[command, "--config", path.to_str().expect("a path in UTF-8")]);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn every_problem_of_a_configuration_is_reported_at_once_and_the_code_is_78() {
    let toml = r#"
[node]
data_dir = "/tmp/sedge-test-nobody-writes-here"

[mqtt]
url = "nonsense"
recieve_maximum = 10

[store]
when_full = "explode"

[upstream]
url = "ftp://example.org"
"#;
    for command in ["check", "run"] {
        let (code, says) = on_config(command, toml);
        assert_eq!(code, Some(78), "{command} says:\n{says}");
        for part in
            ["sedge.toml", "url", "recieve_maximum", "receive_maximum", "when_full", "drop-oldest-data", "upstream"]
        {
            assert!(says.contains(part), "{command} does not mention {part}:\n{says}");
        }
        for line in [6, 7, 10, 13] {
            assert!(says.contains(&format!(":{line}")), "{command} does not name line {line}:\n{says}");
        }
    }
}

#[test]
fn a_configuration_that_is_not_there_or_not_toml_is_78() {
    let missing = sedge(&["run", "--config", "/nowhere/sedge.toml"]);
    assert_eq!(missing.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/nowhere/sedge.toml"));
    let (code, says) = on_config("check", "[mqtt\nurl = 1");
    assert_eq!(code, Some(78), "{says}");
}

#[test]
fn wrong_usage_is_2_and_every_command_has_help() {
    assert_eq!(sedge(&["frobnicate"]).status.code(), Some(2));
    assert_eq!(sedge(&["run", "--frobnicate"]).status.code(), Some(2));
    for command in ["run", "check", "invoke", "build", "demo", "dead-letters"] {
        let help = sedge(&[command, "--help"]);
        assert_eq!(help.status.code(), Some(0), "{command} --help");
        assert!(String::from_utf8_lossy(&help.stdout).contains("Usage"), "{command} --help");
    }
}

/// As in `sedge check | head -1`, when `head` has gone.
#[test]
fn a_reader_that_leaves_early_ends_a_command_quietly() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("sedge.toml");
    let data = folder.path().join("data");
    fs::write(&config, format!("[node]\nname = \"a\"\ndata_dir = {data:?}\n[mqtt]\nurl = \"mqtt://127.0.0.1:1\"\n"))
        .unwrap();
    let config = config.to_str().unwrap();
    let count = guest("count");
    let count = count.to_str().unwrap();
    let new = folder.path().join("new");
    let key = folder.path().join("key.pem");
    for arguments in [
        &["check", "-c", config][..],
        &["check", "-c", config, "--json"],
        &["doctor", "-c", config],
        &["doctor", "-c", config, "--json"],
        &["dead-letters", "list", "--data-dir", folder.path().to_str().unwrap()],
        &["invoke", count, "-t", "count/a", "-p", "1"],
        &["invoke", count, "-t", "count/a", "-p", "1", "--json"],
        &["build", count],
        &["build", count, "--json"],
        &["new", "a", "--dir", new.to_str().unwrap()],
        &["keygen", "--out", key.to_str().unwrap()],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(SEDGE);
        let output = command.args(arguments).stdin(Stdio::null()).stdout(writer).output().unwrap();
        let says = String::from_utf8_lossy(&output.stderr);
        assert!(!says.contains("panicked") && !says.contains("Broken pipe"), "{arguments:?}: {says}");
        // 128 + SIGPIPE; what fails before it prints has its own code.
        let is_quiet = output.status.code() == Some(141) || says.contains("error:");
        assert!(is_quiet, "{arguments:?} ended with {}: {says}", output.status);
    }
}

#[test]
fn a_module_that_cannot_run_is_refused_with_the_reason() {
    let refused = |wasm: &[u8]| {
        let folder = tempfile::tempdir().unwrap();
        let manifest = "name = \"wrong\"\nversion = \"1.0.0\"\nserial = 1\nsubscribe = [\"a\"]\nstate = \"none\"\n";
        fs::write(folder.path().join("function.toml"), manifest).unwrap();
        fs::write(folder.path().join("wrong.wasm"), wasm).unwrap();
        let output = sedge(&["invoke", folder.path().to_str().unwrap(), "--topic", "a", "--payload", "1"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let says = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(says.matches("error:").count(), 1, "one error, told once: {says}");
        says
    };
    let says = refused(b"#!/bin/sh\necho hello\n");
    assert!(says.contains("not WebAssembly"), "{says}");
    let says = refused(b"\0asm\x01\0\0\0");
    assert!(says.contains("component"), "{says}");
    // A component without exports.
    let says = refused(b"\0asm\x0d\0\x01\0");
    assert!(says.contains("handle"), "{says}");
}

#[test]
fn building_names_every_problem_of_the_manifest_as_checking_does() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = "name = \"Wrong Name\"\nversion = \"1\"\nsubscribe = [\"a/#/b\"]\n[limits]\nfuell = 1\n";
    fs::write(folder.path().join("function.toml"), manifest).unwrap();
    let dir = folder.path().to_str().unwrap();
    let built = sedge(&["build", dir]);
    assert_eq!(built.status.code(), Some(78), "{built:?}");
    let says = String::from_utf8_lossy(&built.stderr).into_owned();
    for part in [
        "function.toml:1:",
        "function.toml:3:",
        "function.toml:5:",
        "Wrong Name",
        "subscribe[0]",
        "fuell",
        "3 problems",
    ] {
        assert!(says.contains(part), "no {part} in:\n{says}");
    }
    let (_, checked) = on_config("check", &format!("[functions]\npaths = [{dir:?}]\n"));
    for line in says.lines().filter(|line| line.contains("function.toml")) {
        assert!(checked.contains(line), "check does not say {line}:\n{checked}");
    }
    fs::remove_file(folder.path().join("function.toml")).unwrap();
    let says = sedge(&["build", dir]);
    assert!(String::from_utf8_lossy(&says.stderr).contains("no function.toml in"), "{says:?}");
}

#[test]
fn functions_with_one_component_share_its_compiled_code() {
    let folder = tempfile::tempdir().unwrap();
    let one = variant(&guest("count"), folder.path(), "one", "one/#", |manifest| manifest);
    let two = folder.path().join("two");
    fs::create_dir(&two).unwrap();
    let manifest = fs::read_to_string(one.join("function.toml")).unwrap();
    let manifest = manifest.replace("\"one\"", "\"two\"").replace("\"one/#\"", "\"two/#\"");
    let (name, rest) = manifest.split_once('\n').unwrap();
    fs::write(two.join("function.toml"), format!("{name}\ncomponent = \"../one/one.wasm\"\n{rest}")).unwrap();

    let site = Site::start_with(|setup| setup.function(&one).function(&two));
    let mut sensors = site.broker.client("sensors");
    for topic in ["one/a", "two/a", "two/a"] {
        sensors.publish(Publish::new(topic, "1")).unwrap();
    }
    assert!(eventually(Duration::from_secs(20), || site.daemon.metric("sedge_messages_recorded_total") == 3.0));
    assert_eq!(site.daemon.metric("sedge_dead_letters_total"), 0.0);
    let code = fs::read_dir(site.daemon.data().join("cache")).unwrap().count();
    assert_eq!(code, 1, "count, one and two have the same component");
}
