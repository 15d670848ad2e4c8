//! Native code through the real program: compiled, pushed, run, and refused. Code for this machine stands for code that a PC
//! compiles for a board; a full build accepts it when an order or a folder has no component.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use bytes::Bytes;
use sedge_core::deploy::code::{Abi, Code};
use sedge_core::deploy::payload::{Install, Module, NativeCode, Order, OrderChange};
use sedge_core::deploy::reason::Reason;
use sedge_core::deploy::report::DeployState;
use sedge_core::isa::{Class, Isa};
use sedge_core::message::Digest;
use serde_json::json;

use super::{CHUNK, Yard};
use crate::harness::daemon::SEDGE;
use crate::harness::guest::guest;

const TARGET: Isa = Isa::HOST.expect("the tests run where code is compiled for");

/// A board whose key may send native code.
fn yard() -> Yard {
    Yard::start_with(|setup| setup.set("deploy.keys.ops", "native_code = true"))
}

fn compile(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(SEDGE).arg("compile").arg(dir).args(arguments).output().expect("run sedge compile")
}

/// Output of `sedge compile` for the function in a folder.
fn artefact(yard: &Yard, dir: &Path) -> Bytes {
    let file = yard.folder.path().join("out.code");
    let output = compile(dir, &["--target", TARGET.as_str(), "--output", file.to_str().expect("a path in UTF-8")]);
    assert!(output.status.success(), "{output:?}");
    fs::read(file).expect("read what was compiled").into()
}

/// An order with this file, as code for `abi`.
fn install(yard: &Yard, serial: u64, abi: Abi, file: &[u8]) -> Order {
    let mut order = yard.install(serial);
    if let OrderChange::Install(install) = &mut order.change {
        let code = vec![NativeCode::new(abi, Module::of(file, CHUNK))];
        **install = Install { manifest: install.manifest.clone(), module: None, code };
    }
    order
}

fn abi() -> Abi {
    Abi::of(TARGET, Class::Small)
}

#[test]
fn code_from_the_command_line_serves_and_survives_a_restart() {
    let yard = yard();
    let dir = yard.source("v2", |toml| toml);
    let other = if TARGET == Isa::Aarch64 { "amd64" } else { "aarch64-unknown-linux-musl" };
    let codes = format!("{TARGET},{other},armv7");
    let push = ["push", dir.to_str().unwrap(), "--code", &codes, "--code-only"];
    let (code, dry) = yard.ask(&[&push[..], &["--dry-run"]].concat());
    let sizes: Vec<_> = dry["code"].as_array().unwrap().iter().map(|code| &code["size_bytes"]).collect();
    assert_eq!((code, &dry["module"], sizes.len()), (Some(0), &json!(null), 3), "{dry}");

    let (code, answer) = yard.ask(&push);
    assert_eq!((code, &answer["counts"]), (Some(0), &json!({ "active": 1 })), "{answer}");
    yard.serves("v2");
    let active = yard.await_report(|report| report.state == DeployState::Active).active.unwrap();
    let ours = answer["code"].as_array().unwrap().iter().find(|code| code["target"] == TARGET.as_str()).unwrap();
    assert_eq!((active.version.native_code, &json!(active.version.digest)), (true, &ours["digest"]));
    let output = yard.command(&["status"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("native code"), "{output:?}");

    // Compiling is deterministic, so nothing is sent again.
    let (code, again) = yard.ask(&push);
    assert_eq!((code, &again["serial"], &again["chunks"]["sent"]), (Some(0), &answer["serial"], &json!(0)), "{again}");

    let mut yard = yard;
    yard.daemon.terminate();
    yard.daemon.resume();
    yard.serves("v2");
    let (code, answer) = yard.ask(&["rollback", "edition"]);
    assert_eq!(code, Some(0), "{answer}");
    yard.serves("v1");
    let (code, answer) = yard.ask(&["rollback", "edition"]);
    assert_eq!(code, Some(0), "{answer}");
    yard.serves("v2");
}

#[test]
fn a_key_without_the_permission_sends_no_code() {
    let yard = Yard::start();
    let dir = yard.source("v2", |toml| toml);
    let (code, answer) = yard.ask(&["push", dir.to_str().unwrap(), "--code", TARGET.as_str(), "--code-only"]);
    assert_eq!((code, &answer["nodes"][0]["reason"]), (Some(1), &json!("code-not-allowed")), "{answer}");
    yard.serves("v1");
    // With the module in the order, a board with a compiler ignores the code.
    let (code, answer) = yard.ask(&["push", dir.to_str().unwrap(), "--code", TARGET.as_str()]);
    assert_eq!(code, Some(0), "{answer}");
    yard.serves("v2");
    let active = yard.await_report(|report| report.state == DeployState::Active).active.unwrap();
    assert!(!active.version.native_code);
}

#[test]
fn a_key_gives_no_permission_that_it_has_not() {
    let yard = Yard::start_with(|setup| setup.set("deploy.keys.ops", "keys = true"));
    super::new_key(yard.folder.path(), "next");
    let file = super::public(yard.folder.path(), "next");
    let (code, answer) = yard.ask(&["trust", file.to_str().unwrap(), "--native-code"]);
    assert_eq!((code, &answer["nodes"][0]["reason"]), (Some(1), &json!("key-not-allowed")), "{answer}");
}

#[test]
fn code_for_other_boards_and_other_versions_is_refused() {
    let yard = yard();
    let file = artefact(&yard, &guest("edition"));
    let pulley = Abi::of(Isa::Pulley32, Class::Small);
    let foreign = [pulley, Abi { wasmtime: 1, ..abi() }, Abi { settings: 999, ..abi() }];
    for (serial, other) in (2..).zip(foreign) {
        yard.send(&install(&yard, serial, other.clone(), &file));
        yard.refused(Reason::NoCode, &format!("the order brings {other}"));
    }
    // The order is right, the header of the file is not.
    let mut text = file.to_vec();
    let end = text.iter().skip(14).position(|byte| *byte == b'\n').unwrap();
    let header = String::from_utf8(text.splice(..14 + end, []).collect()).unwrap();
    let renamed = [header.replace("\"settings\":", "\"settings\":9").as_bytes(), &*text].concat();
    yard.send_chunks(&renamed);
    yard.send(&install(&yard, 9, abi(), &renamed));
    yard.refused(Reason::NoCode, "this board runs");
}

#[test]
fn code_that_is_none_leaves_the_version_before_at_work() {
    let yard = yard();
    let file = artefact(&yard, &guest("edition"));
    let code = Code::parse(&file).unwrap();
    let large = yard.source("large", |toml| toml.replace("[limits]", "[limits]\nmemory_bytes = 8_388_608"));
    let large = Code::parse(&artefact(&yard, &large)).unwrap();
    assert_eq!(large.header.abi().class, Class::Large);
    let fake = |bytes: Bytes| Code::new(TARGET, Class::Small, Digest([1; 32]), bytes).to_bytes();
    let cut = |at: usize| fake(code.bytes.slice(..code.bytes.len() / at));
    let files = [
        (yard.module().into(), Reason::InvalidModule),
        (fake(Bytes::new()), Reason::NotLoaded),
        (fake(Bytes::from_static(b"#!/bin/sh")), Reason::NotLoaded),
        (fake(vec![0x90; 100_000].into()), Reason::NotLoaded),
        (cut(2), Reason::NotLoaded),
        (cut(100), Reason::NotLoaded),
        // The header has the wrong class: the engine checks again.
        (fake(large.bytes), Reason::NotLoaded),
    ];
    let workers = yard.daemon.workers();
    for (serial, (file, reason)) in (2..).zip(files) {
        let file: Bytes = file;
        yard.send_chunks(&file);
        yard.send(&install(&yard, serial, abi(), &file));
        let report = yard.await_state(serial, DeployState::Rejected);
        assert_eq!(report.reason, Some(reason), "{report:?}");
        yard.serves("v1");
    }
    assert_eq!(yard.daemon.workers(), workers, "no worker died of it");
    yard.send_chunks(&file);
    yard.send(&install(&yard, 20, abi(), &file));
    yard.await_active(20);
}

#[test]
fn code_in_a_folder_runs_where_the_configuration_says_so() {
    let mut yard = Yard::prepare(|setup| setup.set("functions", "native_code = true"));
    let dir = yard.source("v1", |toml| toml.replace("name =", "serial = 1\nname ="));
    let config = fs::read_to_string(yard.daemon.config()).unwrap();
    let paths = format!("paths = [{:?}]", guest("edition"));
    assert!(config.contains(&paths), "{config}");
    fs::write(yard.daemon.config(), config.replace(&paths, &format!("paths = [{dir:?}]"))).unwrap();
    let output = compile(&dir, &["--target", TARGET.as_str()]);
    assert!(output.status.success(), "{output:?}");
    fs::remove_file(dir.join("edition.wasm")).unwrap();

    let check = yard.daemon.command(&["check"]);
    assert_eq!(check.status.code(), Some(0), "{check:?}");
    let mut invoke = Command::new(SEDGE);
    let invoked = invoke.arg("invoke").arg(&dir).args(["--code", "-t", "count/x", "-p", "1"]).output().expect("run it");
    assert_eq!(invoked.status.code(), Some(0), "{invoked:?}");
    yard.daemon.resume();
    yard.await_board();
    yard.serves("v1");
    yard.daemon.terminate();

    let config = fs::read_to_string(yard.daemon.config()).unwrap();
    fs::write(yard.daemon.config(), config.replace("native_code = true", "native_code = false")).unwrap();
    let check = yard.daemon.command(&["check"]);
    let said = String::from_utf8_lossy(&check.stderr);
    assert_eq!(check.status.code(), Some(78), "{check:?}");
    assert!(said.contains("edition.wasm") && said.contains("sedge build"), "{said}");
}

#[test]
fn what_cannot_be_compiled_is_one_sentence() {
    let yard_dir = tempfile::tempdir().unwrap();
    let told = |arguments: &[&str], code: i32, says: &[&str]| {
        let output = Command::new(SEDGE).arg("compile").args(arguments).output().expect("run sedge compile");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(says.iter().all(|says| said.contains(says)), "{said}");
    };
    let edition = guest("edition");
    let edition = edition.to_str().unwrap();
    told(&[edition, "--target", "mips"], 2, &["mips", "use aarch64, x86_64 or pulley32", "armv7"]);
    told(&[edition], 2, &["--target"]);
    let nowhere = yard_dir.path().to_str().unwrap();
    told(&[nowhere, "--target", "aarch64"], 78, &["function.toml"]);
    told(&[edition, "--target", "aarch64,armv6", "--output", "x"], 1, &["--output names one file"]);
    fs::write(yard_dir.path().join("function.toml"), fs::read(Path::new(edition).join("function.toml")).unwrap())
        .unwrap();
    told(&[nowhere, "--target", "aarch64"], 1, &["edition.wasm", "sedge build"]);
    fs::write(yard_dir.path().join("edition.wasm"), "no wasm").unwrap();
    told(&[nowhere, "--target", "aarch64"], 1, &["edition.wasm", "not WebAssembly"]);
}
