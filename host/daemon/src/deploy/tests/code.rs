//! Native code that was compiled elsewhere: which boards and keys may use it.

use bytes::Bytes;

use crate::deploy::disk::MODULES;
use crate::deploy::testing::board::{Board, CHUNK, FUNCTION, NODE, install, key, manifest, module, order, settings};
use sedge_core::deploy::code::{Abi, Code};
use sedge_core::deploy::envelope::SignedEnvelope;
use sedge_core::deploy::keys::{SigningKey, TrustedKey};
use sedge_core::deploy::payload::{KeyUpdate, Module, NativeCode, Order, OrderChange};
use sedge_core::deploy::topics::KEYS;
use sedge_core::deploy::{DeployerConfig, Request, TrialEvent};
use sedge_core::isa::{Class, Isa};
use sedge_core::message::Digest;

const TARGET: Isa = Isa::Aarch64;
const TOPIC: &str = "sedge/pump-3/deploy/warm";

/// A board without a compiler that trusts one key, which may send code.
fn runtime() -> DeployerConfig {
    let mut settings = settings(&[("ops", &key())]);
    settings.host.has_compiler = false;
    settings.deploy.keys.get_mut("ops").unwrap().native_code = true;
    settings
}

fn board() -> Board {
    Board::with(runtime(), Vec::new())
}

/// Native code in a file.
fn artefact(seed: u64, target: Isa) -> Bytes {
    let code = [b"code:", &*module(seed)].concat();
    Code::new(target, Class::Small, Digest([seed as u8; 32]), code.into()).to_bytes()
}

fn abi() -> Abi {
    Abi::of(TARGET, Class::Small)
}

/// An order with code and without a module.
fn code_order(serial: u64, parts: &[(Abi, &[u8])]) -> Order {
    let mut order = install(&manifest(serial, ""), b"");
    let OrderChange::Install(install) = &mut order.change else { unreachable!() };
    install.module = None;
    let part = |(abi, file): &(Abi, &[u8])| NativeCode::new(abi.clone(), Module::of(file, CHUNK));
    install.code = parts.iter().map(part).collect();
    order
}

fn push(board: &mut Board, serial: u64, file: &[u8]) {
    board.send(&code_order(serial, &[(abi(), file)]));
    board.chunks(file);
}

#[track_caller]
fn check(board: &mut Board, serving: Option<u64>, state: &str, says: &[&str]) {
    assert_eq!((board.state().as_str(), board.serving()), (state, serving), "{:?}", board.report().error);
    let error = board.report().error.clone().unwrap_or_default();
    assert!(says.iter().all(|says| error.contains(says)), "{error}");
}

#[test]
fn a_board_without_a_compiler_runs_pushed_code() {
    let mut board = board();
    let (ours, theirs) = (artefact(1, TARGET), artefact(1, Isa::Pulley32));
    board.send(&code_order(1, &[(Abi::of(Isa::Pulley32, Class::Small), &theirs), (abi(), &ours)]));
    assert_eq!(board.fetched, [sedge_core::deploy::digest(&ours)], "and fetches nothing else");
    board.chunks(&ours);
    check(&mut board, Some(1), "active", &[]);
    assert_eq!(board.compiled, 0);
    let active = &board.pipeline[FUNCTION].active.as_ref().unwrap();
    assert_eq!(active.code.bytes(), [b"code:", &*module(1)].concat());
    let version = board.report().active.as_ref().unwrap().version.clone();
    assert_eq!((version.native_code, version.digest), (true, sedge_core::deploy::digest(&ours)));

    push(&mut board, 2, &artefact(2, TARGET));
    let mut board = board.restart();
    check(&mut board, Some(2), "active", &[]);
    board.send(&order(3, OrderChange::Rollback));
    check(&mut board, Some(1), "rolled-back requested", &[]);
    assert_eq!(board.files(MODULES).len(), 2);
}

#[test]
fn a_board_with_a_compiler_takes_the_module_and_only_without_one_the_code() {
    let mut settings = runtime();
    settings.host.has_compiler = true;
    let mut board = Board::with(settings, Vec::new());
    let file = artefact(1, TARGET);
    let mut both = code_order(1, &[(abi(), &file)]);
    if let OrderChange::Install(install) = &mut both.change {
        install.module = Some(Module::of(&module(1), CHUNK));
    }
    board.send(&both);
    assert_eq!(board.fetched, [sedge_core::deploy::digest(&module(1))]);
    board.chunks(&module(1));
    check(&mut board, Some(1), "active", &[]);
    assert!(board.compiled == 1 && !board.report().active.as_ref().unwrap().version.native_code);
    push(&mut board, 2, &artefact(2, TARGET));
    check(&mut board, Some(2), "active", &[]);
    assert!(board.compiled == 1 && board.report().active.as_ref().unwrap().version.native_code);
}

#[test]
fn a_board_without_a_compiler_takes_scripts_where_it_has_their_engine() {
    let script = |serial: u64| install(&manifest(serial, "component = \"function.js\""), &module(serial));
    let mut board = board();
    board.send(&script(1));
    board.chunks(&module(1));
    check(&mut board, Some(1), "active", &[]);
    assert!(!board.report().active.as_ref().unwrap().version.native_code);
    // A component needs a compiler as before, and so does a script on a board that lacks the engine.
    board.fetched.clear();
    board.push(2, &module(2));
    check(&mut board, Some(1), "rejected no-code", &["has no compiler"]);
    let mut settings = runtime();
    settings.host.runs_scripts = false;
    let mut board = Board::with(settings, Vec::new());
    board.send(&script(1));
    check(&mut board, None, "rejected no-code", &["has no compiler"]);
    assert!(board.fetched.is_empty());
}

#[test]
fn code_is_taken_only_from_keys_that_may_send_it() {
    let mut board = Board::with(DeployerConfig { host: runtime().host, ..settings(&[("ops", &key())]) }, Vec::new());
    push(&mut board, 1, &artefact(1, TARGET));
    check(&mut board, None, "rejected code-not-allowed", &["key ops", "native_code = true"]);
    assert!(board.fetched.is_empty(), "nothing of it is fetched");

    // Both signers need the permission.
    let other = SigningKey::generate().unwrap();
    let mut settings = settings(&[("ops", &key()), ("other", &other)]);
    settings.host.has_compiler = false;
    settings.deploy.keys.get_mut("ops").unwrap().native_code = true;
    let mut board = Board::with(settings, Vec::new());
    let file = artefact(1, TARGET);
    let order = code_order(1, &[(abi(), &file)]);
    board.deliver(TOPIC, &SignedEnvelope::sign(&order.to_json(), &[&key(), &other]).to_json());
    check(&mut board, None, "rejected code-not-allowed", &["key other"]);
    push(&mut board, 2, &file);
    check(&mut board, Some(2), "active", &[]);
}

#[test]
fn code_for_other_boards_is_refused_before_it_is_fetched() {
    let mut board = board();
    push(&mut board, 1, &artefact(1, TARGET));
    board.fetched.clear();
    let file = artefact(2, TARGET);
    let foreign = [
        Abi::of(Isa::Pulley32, Class::Small),
        Abi { target: "riscv64".into(), ..abi() },
        Abi { wasmtime: 47, ..abi() },
        Abi { settings: 99, ..abi() },
        Abi { class: Class::Large, ..abi() },
    ];
    for (serial, other) in (2..).zip(foreign) {
        board.send(&code_order(serial, &[(other.clone(), &file)]));
        let (ours, theirs) = (abi().to_string(), other.to_string());
        check(&mut board, Some(1), "rejected no-code", &["no compiler", &ours, &theirs, "--code aarch64"]);
    }
    // The board cannot run a module.
    board.send(&install(&manifest(9, ""), &module(9)));
    check(&mut board, Some(1), "rejected no-code", &["the order brings none"]);
    assert!(board.fetched.is_empty());
    assert_eq!(board.restart().serving(), Some(1));
}

#[test]
fn invalid_code_is_refused() {
    let mut board = board();
    push(&mut board, 1, &artefact(1, TARGET));
    // The file contradicts the order.
    let large = Code::new(TARGET, Class::Large, Digest([2; 32]), Bytes::from_static(b"code:")).to_bytes();
    let files: [(&[u8], &str, &str); 5] = [
        (&module(2), "invalid-module", "not compiled code"),
        (b"sedge-code 1\n{}\ncode:", "invalid-module", "damaged"),
        (&artefact(2, TARGET)[..40], "invalid-module", "damaged"),
        (&artefact(2, Isa::X86_64), "no-code", "x86_64"),
        (&large, "no-code", "class large"),
    ];
    for (serial, (file, reason, says)) in (2..).zip(files) {
        push(&mut board, serial, file);
        check(&mut board, Some(1), &format!("rejected {reason}"), &[says]);
    }
    let mut board = board.restart();
    push(&mut board, 9, &artefact(9, TARGET));
    check(&mut board, Some(9), "active", &[]);
}

#[test]
fn a_changed_chunk_of_code_is_refused() {
    let mut board = board();
    let file = artefact(1, TARGET);
    let module = Module::of(&file, CHUNK);
    board.send(&code_order(1, &[(abi(), &file)]));
    let mut changed = file[..CHUNK as usize].to_vec();
    changed[500] ^= 1;
    board.raw_chunk(&module.digest, 0, &changed);
    assert_eq!(board.state(), "receiving digest-mismatch");
    board.chunks(&file);
    check(&mut board, Some(1), "active", &[]);
}

#[test]
fn code_of_another_wasmtime_does_not_run_after_an_upgrade_until_it_is_pushed_again() {
    let mut board = board();
    push(&mut board, 1, &artefact(1, TARGET));
    // Another target has the effect of an upgrade.
    board.settings.host.target = Some(Isa::Pulley32);
    let mut board = board.restart();
    assert_eq!(board.serving(), None);
    check(&mut board, None, "rejected no-code", &["aarch64", "pulley32", "push it again"]);
    let file = artefact(2, Isa::Pulley32);
    board.send(&code_order(2, &[(Abi::of(Isa::Pulley32, Class::Small), &file)]));
    board.chunks(&file);
    check(&mut board, Some(2), "active", &[]);
}

#[test]
fn an_order_in_progress_ends_when_its_key_may_no_longer_send_code() {
    let mut board = board();
    let file = artefact(1, TARGET);
    board.send(&code_order(1, &[(abi(), &file)]));
    board.handle(Request::Keys(Box::new(settings(&[("ops", &key())]).deploy)));
    board.chunks(&file);
    check(&mut board, None, "rejected unknown-key", &["no longer trusted"]);
}

#[test]
fn signers_grant_only_permissions_that_they_have() {
    let new = SigningKey::generate().unwrap();
    let trusted = TrustedKey {
        name: "new".into(),
        public_key: new.public(),
        functions: vec![],
        topics: vec![],
        keys: false,
        native_code: true,
        settings_only: false,
        record: false,
        logs: false,
    };
    let update = |serial| {
        let update = KeyUpdate { trust: vec![trusted.clone()], revoke: vec![], force: false };
        let order = Order { function: KEYS.into(), ..order(serial, OrderChange::Keys(update)) };
        SignedEnvelope::sign(&order.to_json(), &[&key()]).to_json()
    };
    let topic = format!("sedge/{NODE}/deploy/{KEYS}");
    let board = |native_code| {
        let mut settings = runtime();
        let ops = settings.deploy.keys.get_mut("ops").unwrap();
        (ops.keys, ops.native_code) = (true, native_code);
        Board::with(settings, Vec::new())
    };
    let mut refusing = board(false);
    refusing.deliver(&topic, &update(1));
    refusing.tick(2);
    let report = &refusing.reports[KEYS];
    assert_eq!(report.reason.unwrap().as_str(), "key-not-allowed");
    assert!(report.error.as_ref().unwrap().contains("key new would then send native code"), "{report:?}");

    let mut board = board(true);
    board.deliver(&topic, &update(1));
    let mut board = board.restart();
    let file = artefact(1, TARGET);
    board.deliver(TOPIC, &SignedEnvelope::sign(&code_order(1, &[(abi(), &file)]).to_json(), &[&new]).to_json());
    board.chunks(&file);
    check(&mut board, Some(1), "active", &[]);
}

#[test]
fn code_in_a_folder_runs_where_that_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("warm.aarch64.code");
    let folders = vec![(dir.path().to_owned(), manifest(1, ""))];
    let refused = |settings: DeployerConfig, says: &[&str]| {
        let mut board = Board::with(settings, folders.clone());
        check(&mut board, None, "rejected no-code", says);
    };
    let allowed = || {
        let mut settings = runtime();
        settings.functions.native_code = true;
        settings
    };
    refused(allowed(), &["no compiler", "warm.aarch64.code", "sedge compile", "--target aarch64"]);
    std::fs::write(&path, artefact(1, TARGET)).unwrap();
    refused(runtime(), &["functions.native_code = true"]);
    std::fs::write(&path, artefact(1, Isa::X86_64)).unwrap();
    refused(allowed(), &["warm.aarch64.code", "x86_64"]);
    std::fs::write(&path, artefact(1, TARGET)).unwrap();
    let mut board = Board::with(allowed(), folders.clone());
    check(&mut board, Some(1), "active", &[]);
    // A push replaces it, and a rollback returns to it.
    push(&mut board, 2, &artefact(2, TARGET));
    board.send(&order(3, OrderChange::Rollback));
    check(&mut board, Some(1), "rolled-back requested", &[]);
}

#[test]
fn any_key_of_the_function_may_roll_back_to_code() {
    let other = SigningKey::generate().unwrap();
    let mut settings = settings(&[("ops", &key()), ("other", &other)]);
    settings.host.has_compiler = false;
    settings.deploy.keys.get_mut("ops").unwrap().native_code = true;
    let mut board = Board::with(settings, Vec::new());
    push(&mut board, 1, &artefact(1, TARGET));
    push(&mut board, 2, &artefact(2, TARGET));
    board.is_lenient = false;
    board.deliver(TOPIC, &SignedEnvelope::sign(&order(3, OrderChange::Rollback).to_json(), &[&other]).to_json());
    assert_eq!(board.state(), "compiling", "it is loaded");
    let deploy = board.settings.deploy.clone();
    board.handle(Request::Keys(Box::new(deploy)));
    let edition = board.pipeline[FUNCTION].active.as_ref().unwrap().edition;
    board.handle(Request::Trial { function: FUNCTION.into(), edition, event: TrialEvent::Ready });
    check(&mut board, Some(1), "rolled-back requested", &[]);
}
