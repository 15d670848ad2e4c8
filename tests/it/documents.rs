//! Functions that README.md and the guides show whole, and the sizes that they name.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::harness::daemon::SEDGE;
use crate::harness::guest::{example, root};

/// How far sizes and fuel may be from the documents, in percent: other compilers make other code.
const TOLERANCE: u64 = 5;

fn document(path: &str) -> String {
    fs::read_to_string(root().join(path)).expect("read a document")
}

/// The blocks of code in a language, in order.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).filter_map(|rest| Some(rest.split_once("```")?.0.to_owned())).collect()
}

/// The folder of a function.
fn write(folder: &Path, name: &str, manifest: &str, cargo: &str, code: &str) -> PathBuf {
    let folder = folder.join(name);
    let sdk = root().join("guest-sdk");
    fs::create_dir_all(folder.join("src")).expect("make a folder for the function");
    fs::write(folder.join("function.toml"), manifest).expect("write function.toml");
    fs::write(folder.join("Cargo.toml"), cargo.replace("../../guest-sdk", sdk.to_str().expect("a path in UTF-8")))
        .expect("write Cargo.toml");
    fs::write(folder.join("src/lib.rs"), code).expect("write the code");
    folder
}

/// What a command prints as JSON.
fn json(arguments: &[&str], folder: &Path) -> Value {
    let mut command = Command::new(SEDGE);
    if env::var_os("CARGO_TARGET_DIR").is_none() {
        command.env("CARGO_TARGET_DIR", root().join("target/guests"));
    }
    let output = command.args(arguments).arg("--json").arg(folder).output().expect("run sedge");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("the output is JSON")
}

fn size(folder: &Path) -> u64 {
    json(&["build"], folder)["size_bytes"].as_u64().expect("a size in bytes")
}

/// The number behind a text, with or without commas.
#[track_caller]
fn number_behind(document: &str, text: &str) -> u64 {
    let (_, rest) = document.split_once(text).unwrap_or_else(|| panic!("{text:?} is not in the document"));
    let digits: String = rest.chars().take_while(|char| char.is_ascii_digit() || *char == ',').collect();
    digits.replace(',', "").parse().unwrap_or_else(|_| panic!("no number is behind {text:?}"))
}

#[track_caller]
fn near(what: &str, named: u64, measured: u64) {
    assert!(
        named.abs_diff(measured) * 100 <= named * TOLERANCE,
        "{what}: the document has {named}, measured is {measured}"
    );
}

#[test]
fn the_function_of_the_readme_is_as_large_and_as_fast_as_it_and_the_guide_say() {
    let (readme, guide) = (document("README.md"), document("docs/writing-functions.md"));
    let (_, section) = readme.split_once("## A function").expect("the README has the section");
    let (code, toml) = (blocks(section, "rust"), blocks(section, "toml"));
    let folder = tempfile::tempdir().unwrap();
    let function = write(folder.path(), "too-warm", &toml[0], &toml[1], &code[0]);
    let named = number_behind(section, "\nsize       ");
    near("size of too-warm", named, size(&function));
    assert_eq!(number_behind(&guide, "\n| the README's | "), named, "the guide names another size than the README");
    let run = json(&["invoke", "--topic", "sensors/oven/temperature", "--payload", "81.5"], &function);
    near("fuel of too-warm", number_behind(section, "\nused     "), run["fuel"].as_u64().expect("fuel"));
    let alert = &run["outputs"][0];
    assert!(alert.to_string().contains("81.5 °C"), "{run}");
}

#[test]
fn the_example_functions_are_as_large_as_the_guide_says() {
    let guide = document("docs/writing-functions.md");
    for name in ["threshold-alert", "anomaly", "decode"] {
        let named = number_behind(&guide, &format!("\n| `{name}` | "));
        near(name, named, size(&example(name)));
    }
}

#[test]
fn the_whole_functions_of_the_guide_build_within_40_kb() {
    let guide = document("docs/writing-functions.md");
    let readme = document("README.md");
    let (_, section) = readme.split_once("## A function").expect("the README has the section");
    let cargo = blocks(section, "toml").remove(1);
    let folder = tempfile::tempdir().unwrap();
    let whole: Vec<String> = blocks(&guide, "rust")
        .into_iter()
        .filter(|code| code.contains("export!(") && !code.contains("use std::"))
        .collect();
    assert!(whole.len() >= 2, "the guide shows the helpers of state and local time as whole functions");
    for (index, code) in whole.iter().enumerate() {
        let name = format!("shown-{index}");
        let manifest = format!(
            "name = {name:?}\nversion = \"0.1.0\"\nsubscribe = [\"a/#\"]\nevery = \"1m\"\nstate = \"function\"\n"
        );
        let cargo = cargo.replace("\"too-warm\"", &format!("{name:?}")).replace("panic-text", "panic-handler");
        let function = write(folder.path(), &name, &manifest, &cargo, code);
        let size = size(&function);
        assert!(size <= 40 << 10, "{size} bytes:\n{code}");
        if code.contains("DeviceMap") {
            check_devices(&function, &format!("$timer/{name}"));
        }
    }
}

/// A tick finds the devices of the state. Eight letters are the bytes of a number.
fn check_devices(function: &Path, tick: &str) {
    let mut arguments = vec!["invoke", "--topic", tick, "--payload", ""];
    for state in ["latest/b=BBBBBBBB", "latest/a=AAAAAAAA", "latest/old=1", "latest=AAAAAAAA"] {
        arguments.extend(["--state", state]);
    }
    let run = json(&arguments, function);
    let payload = run["outputs"][0]["payload"].as_str().expect("a payload");
    assert_eq!(payload, format!("{{\"lowest\":\"a\",\"level\":{:.8}}}", f64::from_le_bytes(*b"AAAAAAAA")));
}

#[test]
fn the_scripts_of_the_guide_for_javascript_run() {
    let guide = document("docs/javascript.md");
    let of = |language: &'static str| blocks(&guide, language).into_iter().map(move |code| (language, code));
    assert!(of("js").count() >= 2 && of("ts").count() >= 1, "the guide shows scripts");
    let folder = tempfile::tempdir().unwrap();
    for (index, (language, code)) in of("js").chain(of("ts")).enumerate() {
        let function = folder.path().join(format!("shown-{index}"));
        fs::create_dir(&function).unwrap();
        let manifest = format!(
            "name = \"shown-{index}\"\nversion = \"0.1.0\"\nsubscribe = [\"a/#\"]\nstate = \"topic\"\nconfig.max = 80\n"
        );
        fs::write(function.join("function.toml"), manifest).unwrap();
        fs::write(function.join(format!("function.{language}")), code).unwrap();
        let run = json(&["invoke", "--topic", "a/temperature", "--payload", "81.5"], &function);
        assert_eq!(
            (&run["outputs"][0]["key"], &run["outputs"][0]["status"]),
            (&"too-warm".into(), &"firing".into()),
            "{run}"
        );
    }
}
