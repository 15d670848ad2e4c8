//! Programs for WASI: from a compiler's output to an alert, without an SDK.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use super::{PATIENCE, Yard, answer, sedge, text};
use crate::harness::daemon::NODE;
use crate::harness::eventually;
use crate::harness::guest::root;
use crate::harness::upstream::Upstream;
use crate::harness::wire::Publish;

fn examples() -> PathBuf {
    root().join("examples/wasi")
}

/// A program that writes its payload to standard output, and exits with the first byte of the payload if that is below 32.
const ECHO: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "\00\04\00\00\00\f0\00\00") (data (i32.const 32) "\40\00\00\00\11\00\00\00") (data (i32.const 64) "told to reject it")
    (func (export "_start")
        (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 4)))
        (if (i32.lt_u (i32.load8_u (i32.const 1024)) (i32.const 32)) (then
            (drop (call $write (i32.const 2) (i32.const 32) (i32.const 1) (i32.const 16)))
            (call $exit (i32.load8_u (i32.const 1024)))))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))))"#;

fn folder(dir: &Path, version: &str, module: &str) {
    let manifest = format!(
        "name = \"echo\"\nversion = \"{version}\"\nsubscribe = [\"echo/#\"]\nstate = \"topic\"\n[trial]\nmessages = 1\nsecs = 1\n"
    );
    fs::create_dir_all(dir).expect("make a folder");
    fs::write(dir.join("function.toml"), manifest).expect("write function.toml");
    fs::write(dir.join("echo.wasm"), wat::parse_str(module).expect("valid text")).expect("write the program");
}

#[test]
fn a_program_is_checked_invoked_and_pushed() {
    let yard = Yard::start();
    let alerts = Upstream::collect_filter(yard.broker.port, "alerts", &format!("sedge/{NODE}/alerts/echo"));
    let dir = yard.folder.path().join("echo");
    folder(&dir, "1", ECHO);
    let before = fs::read(dir.join("echo.wasm")).expect("read the program");
    let built = sedge(&["build", text(&dir), "--json"]);
    let built: Value = serde_json::from_slice(&built.stdout).unwrap_or_else(|error| panic!("{error}: {built:?}"));
    assert_eq!((&built["core_instances"], &built["memory_bytes"]), (&json!(1), &json!(65_536)), "{built}");
    assert_eq!(built["imports"][2], "wasi_snapshot_preview1.proc_exit", "{built}");
    assert_eq!(fs::read(dir.join("echo.wasm")).expect("read the program"), before, "it is pushed as it is");

    // What `invoke` prints as an output is a line that a program may write.
    let invoke = |payload: &str| {
        let output = sedge(&["invoke", text(&dir), "--json", "--topic", "echo/a", "--payload", payload]);
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    };
    let line = r#"{"kind":"alert","key":"k","severity":"info","labels":{"a":"b"},"value":1.5}"#;
    let run = invoke(line);
    let again = invoke(&run["outputs"][0].to_string());
    assert_eq!((&run["result"], &run["outputs"]), (&json!("done"), &again["outputs"]), "{run} {again}");
    assert_eq!(run["outputs"][0]["labels"], json!([["a", "b"]]), "{run}");
    let rejected = invoke("\u{3}");
    assert_eq!(rejected["failure"], json!({ "reason": "rejected", "detail": "told to reject it" }), "{rejected}");
    assert_eq!(rejected["log"][0]["text"], "told to reject it", "{rejected}");

    let mut command = yard.command(&["push", text(&dir)]);
    let (code, answered) = answer(&command.arg("--json").output().expect("run sedge"));
    assert_eq!((code, &answered["counts"]), (Some(0), &json!({ "active": 1 })), "{answered}");
    yard.publish(Publish::new("echo/a", line));
    assert!(eventually(PATIENCE, || alerts.received().len() == 1), "{}", yard.daemon.log());
    for payload in ["\u{3}", "no JSON"] {
        yard.publish(Publish::new("echo/a", payload));
    }
    let letters = |reason: &str| yard.daemon.metric_with("sedge_dead_letters_total", &format!("reason=\"{reason}\""));
    assert!(eventually(PATIENCE, || letters("rejected") == 1.0 && letters("output") == 1.0), "{}", yard.daemon.log());
    yard.serves("v1");
}

#[test]
fn a_program_that_boards_cannot_run_is_refused_by_every_command_and_by_the_board() {
    let yard = Yard::start();
    let dir = yard.folder.path().join("echo");
    let socket = ECHO.replace("\"proc_exit\" (func $exit (param i32))", "\"sock_accept\" (func $exit (param i32))");
    folder(&dir, "1", &socket);
    let expected = "imports wasi_snapshot_preview1.sock_accept, which Sedge does not have: a function has no network";
    let check = |output: &Output| {
        let says = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && says.contains(expected), "{says}");
    };
    check(&sedge(&["build", text(&dir)]));
    check(&sedge(&["invoke", text(&dir), "--topic", "echo/a", "--payload", ""]));
    check(&yard.command(&["push", text(&dir)]).output().expect("run sedge"));
    // The board finds out by itself what a push would have told.
    let wasm = fs::read(dir.join("echo.wasm")).expect("read the program");
    yard.send_chunks(&wasm);
    yard.send(&yard.install_of(2, &wasm, |_| {}));
    yard.refused(super::Reason::InvalidModule, "sock_accept");
}

/// Runs the example in this language: it must reject what is no number, fire once above the limit and resolve below it.
fn check_example(dir: &Path, name: &str) {
    let invoke = |payload: &str, more: &[&str]| {
        let base = ["invoke", text(dir), "--json", "--topic", "sensors/oven/temperature", "--payload", payload];
        let output = sedge(&[&base, more].concat());
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_else(|error| panic!("{name}: {error}: {output:?}"))
    };
    let run = invoke("81.5", &[]);
    let alert = &run["outputs"][0];
    assert_eq!(
        (&alert["key"], &alert["status"], &alert["value"]),
        (&json!("sensors/oven/temperature"), &json!("firing"), &json!(81.5)),
        "{name}: {run}"
    );
    assert_eq!(run["state"], json!([{ "key": "firing", "value": "true" }]), "{name}: {run}");
    let firing = ["--state", "firing=true"];
    for (payload, more) in [("79", &[][..]), ("81.5", &firing), ("79", &firing), ("81.5", &["--set", "max=90"])] {
        let run = invoke(payload, more);
        assert_eq!((&run["result"], &run["outputs"]), (&json!("done"), &json!([])), "{name}: {run}");
    }
    let run = invoke("78", &firing);
    assert_eq!(run["outputs"][0]["status"], "resolved", "{name}: {run}");
    assert_eq!(run["state"], json!([{ "key": "firing", "value": null }]), "{name}: {run}");
    let run = invoke("warm", &[]);
    assert_eq!(
        run["failure"],
        json!({ "reason": "rejected", "detail": "the payload is not a number: warm" }),
        "{name}: {run}"
    );
    println!(
        "{name}: {} bytes, {} fuel",
        fs::metadata(dir.join(format!("{name}.wasm"))).expect("a program").len(),
        run["fuel"]
    );
}

/// Compiles an example as docs/wasi.md says. `false` where the compiler or its library is not installed.
#[track_caller]
fn compiles(command: &mut Command, dir: &Path, language: &str) -> bool {
    let Ok(output) = command.output() else { return false };
    let says = String::from_utf8_lossy(&output.stderr);
    let is_missing = ["stdio.h' file not found", "crt1", "target may not be installed", "not find crate"];
    if !output.status.success() && is_missing.iter().any(|text| says.contains(text)) {
        return false;
    }
    assert!(output.status.success(), "{command:?}: {says}");
    fs::copy(examples().join(language).join("function.toml"), dir.join("function.toml")).expect("copy function.toml");
    true
}

#[test]
fn the_example_in_c_runs_as_its_compiler_made_it() {
    let dir = tempfile::tempdir().expect("make a folder");
    let mut clang = Command::new("clang-19");
    clang
        .args([
            "--target=wasm32-wasi",
            "-Os",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wl,-z,stack-size=16384",
            "-Wl,--strip-all",
            "-o",
        ])
        .arg(dir.path().join("c-threshold.wasm"))
        .arg(examples().join("c/threshold.c"));
    if compiles(&mut clang, dir.path(), "c") {
        check_example(dir.path(), "c-threshold");
    }
}

#[test]
fn the_example_in_rust_runs_as_its_compiler_made_it_for_each_wasi() {
    for target in ["wasm32-wasip1", "wasm32-wasip2"] {
        let dir = tempfile::tempdir().expect("make a folder");
        let mut rustc = Command::new("rustc");
        rustc
            .args(["--edition", "2024", "--target", target, "-Copt-level=s", "-Clto=fat", "-Cpanic=abort"])
            .args(["-Cstrip=symbols", "-Clink-arg=-zstack-size=16384", "-o"])
            .arg(dir.path().join("rust-threshold.wasm"))
            .arg(examples().join("rust/threshold.rs"));
        if compiles(&mut rustc, dir.path(), "rust") {
            check_example(dir.path(), "rust-threshold");
        }
    }
}

/// A function with the SDK and `std`, for `wasm32-wasip2`: it prints, and counts with a `HashMap`.
#[test]
fn a_function_with_std_is_pushed_and_what_it_prints_is_logged() {
    let yard = Yard::start();
    let words = Upstream::collect_filter(yard.broker.port, "words", "most");
    let dir = yard.folder.path().join("count-words");
    let Some(()) = with_std(&dir) else { return };
    let mut command = yard.command(&["push", text(&dir)]);
    let (code, answered) = answer(&command.arg("--json").output().expect("run sedge"));
    assert_eq!((code, &answered["counts"]), (Some(0), &json!({ "active": 1 })), "{answered}");
    for _ in 0..2 {
        yard.publish(Publish::new("words/in", "b a b"));
    }
    assert!(eventually(PATIENCE, || words.received().len() == 2), "{}", yard.daemon.log());
    assert!(words.received().iter().all(|it| *it.payload == *b"b 2"), "{:?}", words.received());
    assert!(yard.daemon.log().contains("2 different words"), "{}", yard.daemon.log());
    yard.publish(Publish::new("words/in", ""));
    yard.serves("v1");
}

/// Builds the function of the guide. `None` where the target is not installed.
fn with_std(dir: &Path) -> Option<()> {
    let guide = fs::read_to_string(root().join("docs/writing-functions.md")).expect("read the guide");
    let (_, section) = guide.split_once("### Functions with `std`").expect("the guide has the section");
    let (_, code) = section.split_once("```rust\n").expect("the section has a function");
    let (code, _) = code.split_once("```").expect("the function ends");
    fs::create_dir_all(dir.join("src")).expect("make a folder");
    let manifest = "name = \"count-words\"\nversion = \"1\"\nsubscribe = [\"words/in\"]\nstate = \"none\"\n\
        [allow]\npublish = [\"most\"]\n[build]\ntarget = \"wasm32-wasip2\"\n[trial]\nmessages = 1\nsecs = 1\n";
    let cargo = format!(
        "[package]\nname = \"count-words\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[lib]\ncrate-type = [\"cdylib\"]\n\
         [dependencies]\nsedge-function = {{ path = {:?}, features = [\"std\"] }}\n[workspace]\n",
        root().join("guest-sdk")
    );
    for (file, content) in [
        ("function.toml", manifest),
        ("Cargo.toml", &cargo),
        ("src/lib.rs", &code.replace("Output::forward", "Output::publish")),
    ] {
        fs::write(dir.join(file), content).expect("write a file of the function");
    }
    let built = sedge(&["build", text(dir), "--json"]);
    let says = String::from_utf8_lossy(&built.stderr);
    if says.contains("`rustup target add wasm32-wasip2`") {
        return None;
    }
    assert!(built.status.success(), "{says}");
    let built: Value = serde_json::from_slice(&built.stdout).expect("one object");
    println!("count-words: {} bytes", built["size_bytes"]);
    assert_eq!(built["core_instances"], 1, "{built}");
    Some(())
}
