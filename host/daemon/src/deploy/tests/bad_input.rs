//! Bad orders and chunks: the active version keeps serving, and the report names the cause.

use std::path::Path;

use crate::deploy::disk::{MODULES, STAGING};
use crate::deploy::testing::board::{
    Board, CHUNK, FUNCTION, GROUP, HOUR_MS, TODAY_MS, install, key, manifest, module, order, settings, sign,
};
use sedge_core::config::machine::Machine;
use sedge_core::deploy::DeployerConfig;
use sedge_core::deploy::envelope::SignedEnvelope;
use sedge_core::deploy::keys::SigningKey;
use sedge_core::deploy::payload::{Document, Install, Module, Order, OrderChange};
use sedge_core::deploy::reason::Reason;
use sedge_core::deploy::topics::Target;
use sedge_core::manifest::Manifest;

const TOPIC: &str = "sedge/pump-3/deploy/warm";

/// A board on which version 1 is active.
fn working() -> Board {
    let mut board = Board::new();
    board.push(1, &module(1));
    board.tick(2);
    board
}

/// Version 1 still serves, the report names the reason, and no file is left.
#[track_caller]
fn check(board: &mut Board, expected: &str) {
    assert_eq!(board.state(), expected);
    assert_eq!(board.serving(), Some(1));
    let active = board.report().active.clone().expect("the active version is reported");
    assert_eq!(active.version.serial, 1);
    assert!(board.report().error.as_ref().is_some_and(|error| !error.is_empty()));
    assert_eq!((board.files(STAGING).len(), board.files(MODULES).len()), (0, 1));
    // The next valid order is accepted.
    board.push(TODAY_MS, &module(9));
    assert_eq!(board.serving(), Some(TODAY_MS));
}

fn with_module(change: impl FnOnce(&mut Module)) -> Order {
    let mut order = install(&manifest(2, ""), &module(2));
    if let OrderChange::Install(install) = &mut order.change {
        change(install.module.as_mut().unwrap());
    }
    order
}

#[test]
fn unsigned() {
    let mut board = working();
    let order = install(&manifest(2, ""), &module(2));
    board.deliver(TOPIC, &SignedEnvelope::sign(&order.to_json(), &[]).to_json());
    check(&mut board, "rejected unsigned");
}

#[test]
fn wrong_key() {
    let mut board = working();
    let order = install(&manifest(2, ""), &module(2));
    board.deliver(TOPIC, &SignedEnvelope::sign(&order.to_json(), &[&SigningKey::generate().unwrap()]).to_json());
    check(&mut board, "rejected unknown-key");
}

#[test]
fn key_not_allowed_for_this_function() {
    let other = SigningKey::generate().unwrap();
    let mut settings = settings(&[("ops", &key()), ("other", &other)]);
    settings.deploy.keys.get_mut("other").unwrap().functions = vec!["cold-*".into()];
    let mut board = Board::with(settings, Vec::new());
    board.push(1, &module(1));
    for change in [install(&manifest(2, ""), &module(2)).change, OrderChange::Remove, OrderChange::Rollback] {
        board.deliver(TOPIC, &SignedEnvelope::sign(&order(2, change).to_json(), &[&other]).to_json());
        assert_eq!(board.state(), "rejected key-not-allowed");
    }
    check(&mut board, "rejected key-not-allowed");
}

#[test]
fn key_not_allowed_for_these_topics() {
    let mut settings = settings(&[("ops", &key())]);
    settings.deploy.keys.get_mut("ops").unwrap().topics = vec!["s/#".parse().unwrap()];
    let mut board = Board::with(settings, Vec::new());
    board.push(1, &module(1));
    board.send(&install(&manifest(2, "[allow]\npublish = [\"other/x\"]"), &module(2)));
    check(&mut board, "rejected key-not-allowed");
}

#[test]
fn routes_of_another_function() {
    let mut board = working();
    let text = "name = \"cold\"\nversion = \"1\"\nserial = 1\nhttp = [\"POST /a/{x}\"]";
    let cold = Manifest::from_toml(text, Path::new("function.toml"), None).unwrap();
    let order = Order { function: "cold".into(), ..install(&cold, &module(3)) };
    board.deliver("sedge/pump-3/deploy/cold", &sign(&order));
    board.send(&install(&manifest(2, "http = [\"POST /a/b\"]"), &module(2)));
    assert_eq!((board.state().as_str(), board.serving()), ("rejected route-taken", Some(1)));
    let error = board.report().error.clone().unwrap();
    assert!(error.contains("POST /a/b and POST /a/{x} of cold could both match one request"), "{error}");
    board.send(&install(&manifest(3, "http = [\"GET /a/b\"]"), &module(2)));
    assert_ne!(board.state(), "rejected route-taken");
}

#[test]
fn a_zone_that_the_board_does_not_have() {
    let machine = Machine { metadata: |_| Err(std::io::ErrorKind::NotFound.into()), ..sedge_sandbox::machine::MACHINE };
    let mut board = Board::with(DeployerConfig { machine, ..settings(&[("ops", &key())]) }, Vec::new());
    board.push(1, &module(1));
    board.send(&install(&manifest(2, "at = \"0 6 * * *\"\nzone = \"Europe/Berlin\""), &module(2)));
    assert_eq!((board.state().as_str(), board.serving()), ("rejected invalid-manifest", Some(1)));
    let error = board.report().error.clone().unwrap();
    assert!(
        error.contains("there is no time zone database") && error.contains("install the package tzdata"),
        "{error}"
    );
    board.send(&install(&manifest(3, "at = \"0 6 * * *\""), &module(2)));
    assert_ne!(board.state(), "rejected invalid-manifest", "its own zone it knows");
}

#[test]
fn any_flipped_byte_of_the_envelope() {
    let mut board = working();
    let good = sign(&install(&manifest(2, ""), &module(2)));
    let hint = good.windows(7).position(|window| window == b"\"keyid\"").unwrap();
    for place in (0..good.len()).filter(|place| !(hint..hint + 7).contains(place)) {
        let mut bad = good.clone();
        bad[place] ^= 1;
        board.deliver(TOPIC, &bad);
        assert!(board.deployer.functions[FUNCTION].candidate().is_none(), "byte {place}");
    }
    board.tick(2);
    let reason = board.report().reason.unwrap();
    assert!([Reason::BadEnvelope, Reason::BadSignature, Reason::UnknownKey].contains(&reason), "{reason}");
    let state = format!("rejected {reason}");
    check(&mut board, &state);
}

#[test]
fn any_flipped_byte_of_a_chunk() {
    let mut board = working();
    let wasm = module(2);
    board.send(&install(&manifest(2, ""), &wasm));
    let module = Module::of(&wasm, CHUNK);
    for place in 0..wasm.len() {
        let index = place as u32 / CHUNK;
        let range = module.range(index);
        let mut chunk = wasm[range.start as usize..range.end as usize].to_vec();
        chunk[place - range.start as usize] ^= 0x80;
        board.raw_chunk(&module.digest, index, &chunk);
    }
    assert_eq!(board.state(), "receiving digest-mismatch");
    assert!(board.report().error.as_ref().unwrap().contains("chunk 3 of 4"));
    assert_eq!(board.serving(), Some(1));
    // The right chunks are still accepted.
    board.chunks(&wasm);
    assert_eq!((board.serving(), board.state()), (Some(2), "active".into()));
    // If none arrives, the cause is reported.
    board.send(&install(&manifest(3, ""), &crate::deploy::testing::board::module(3)));
    board.raw_chunk(&sedge_core::deploy::digest(&crate::deploy::testing::board::module(3)), 0, b"bad");
    board.tick(600);
    assert_eq!((board.serving(), board.state()), (Some(2), "rejected digest-mismatch".into()));
}

#[test]
fn truncated_push() {
    let mut board = working();
    board.send(&install(&manifest(2, ""), &module(2)));
    for index in [0, 1, 3] {
        board.chunk(&module(2), index);
    }
    assert_eq!((board.state(), board.serving()), ("receiving".into(), Some(1)));
    board.tick(600);
    assert!(board.report().error.as_ref().unwrap().starts_with("3 of 4 chunks arrived"));
    check(&mut board, "rejected truncated");
}

#[test]
fn chunk_with_the_wrong_index() {
    let mut board = working();
    let wasm = module(2);
    board.send(&install(&manifest(2, ""), &wasm));
    let module = Module::of(&wasm, CHUNK);
    board.raw_chunk(&module.digest, 2, &wasm[..1024]);
    assert_eq!(board.state(), "receiving chunk-index");
    assert_eq!(board.report().error.as_deref(), Some("chunk 2 of 4 is chunk 0"));
    board.tick(600);
    check(&mut board, "rejected chunk-index");
}

#[test]
fn too_many_chunks() {
    let mut board = working();
    board.send(&with_module(|module| module.chunks.push(module.digest)));
    check(&mut board, "rejected size-mismatch");
    let mut board = working();
    board.send(&install(&manifest(2, ""), &module(2)));
    board.raw_chunk(&sedge_core::deploy::digest(&module(2)), 4, b"one more");
    assert_eq!(board.state(), "receiving chunk-index");
    board.chunks(&module(2));
    assert_eq!(board.serving(), Some(2));
}

#[test]
fn declared_size_smaller_than_real() {
    let mut board = working();
    board.send(&with_module(|module| module.size -= 1));
    board.chunks(&module(2));
    check(&mut board, "rejected size-mismatch");
}

#[test]
fn oversize() {
    let mut board = working();
    board.send(&with_module(|module| module.size = (16 << 20) + 1));
    check(&mut board, "rejected over-limit");
    let mut board = working();
    board.send(&with_module(|module| module.size = u64::MAX));
    check(&mut board, "rejected over-limit");
}

#[test]
fn limits_above_those_of_the_board() {
    let mut board = working();
    board.send(&install(&manifest(2, "[limits]\ntimeout_ms = 60_000"), &module(2)));
    assert!(
        board.report().error.as_ref().is_some_and(|error| error.contains("functions.max_timeout_ms"))
            || board.state() == "rejected over-limit"
    );
    check(&mut board, "rejected over-limit");
}

#[test]
fn more_functions_than_the_board_allows() {
    let mut settings = settings(&[("ops", &key())]);
    settings.deploy.max_functions = 1.try_into().unwrap();
    let mut board = Board::with(settings, Vec::new());
    board.push(1, &module(1));
    let mut second = manifest(2, "");
    second.name = "cold".into();
    board.send(&Order { function: "cold".into(), ..install(&second, &module(2)) });
    board.tick(2);
    assert_eq!(board.reports["cold"].reason, Some(Reason::OverLimit));
    assert_eq!((board.serving(), board.reports["cold"].active.as_ref()), (Some(1), None));
    // A new version of an installed function is allowed, and a removed function makes room.
    board.push(3, &module(3));
    assert_eq!(board.serving(), Some(3));
    board.send(&order(4, OrderChange::Remove));
    board.send(&Order { function: "cold".into(), ..install(&second, &module(2)) });
    board.chunks(&module(2));
    assert_eq!(board.reports["cold"].state.as_str(), "active");
}

/// Each leaves a record: whoever may push must not fill the disk with them.
#[test]
fn more_removed_functions_than_the_board_remembers() {
    let mut settings = settings(&[("ops", &key())]);
    settings.deploy.max_functions = 1.try_into().unwrap();
    let mut board = Board::with(settings, Vec::new());
    let push = |board: &mut Board, name: &str, serial: u64| {
        let mut manifest = manifest(serial, "");
        manifest.name = name.into();
        board.send(&Order { function: name.into(), ..install(&manifest, &module(1)) });
        board.reports[name].state.to_string()
    };
    for n in 0..16 {
        let name = format!("f{n}");
        assert_ne!(push(&mut board, &name, 1), "rejected", "{name}");
        board.send(&Order { function: name.as_str().into(), ..order(2, OrderChange::Remove) });
        assert_eq!(board.reports[&*name].state.as_str(), "removed", "{name}");
    }
    assert_eq!(push(&mut board, "more", 1), "rejected");
    let error = board.reports["more"].error.clone().unwrap();
    assert!(error.contains("16 functions, the removed ones included") && error.contains("max_functions"), "{error}");
    let mut board = board.restart();
    assert_eq!(push(&mut board, "more", 1), "rejected");
    // A name of before is free again.
    assert_ne!(push(&mut board, "f3", 3), "rejected");
}

#[test]
fn replayed_old_envelope() {
    let mut board = Board::new();
    let old = sign(&install(&manifest(0, ""), &module(8)));
    board.deliver(TOPIC, &old);
    board.chunks(&module(8));
    assert_eq!(board.serving(), Some(0));
    board.push(1, &module(1));
    // A rollback returns to the first version.
    board.push(2, &module(1));
    board.send(&order(3, OrderChange::Rollback));
    assert_eq!(board.serving(), Some(1));
    board.deliver(TOPIC, &old);
    assert_eq!((board.serving(), board.state()), (Some(1), "rejected replayed-serial".into()));
    let mut board = board.restart();
    board.deliver(TOPIC, &old);
    assert_eq!((board.serving(), board.state()), (Some(1), "rejected replayed-serial".into()));
}

#[test]
fn lower_and_equal_serial() {
    for serial in [0, 1] {
        let mut board = working();
        board.push(serial, &module(2));
        check(&mut board, "rejected replayed-serial");
    }
}

#[test]
fn serial_near_the_maximum_does_not_lock_the_function_out() {
    for serial in [u64::MAX, u64::MAX - 1, (1 << 42) + 2] {
        let mut board = working();
        board.push(serial, &module(2));
        check(&mut board, "rejected serial-too-high");
    }
    let mut board = working();
    board.push((1 << 42) + 1, &module(2));
    assert_eq!(board.serving(), Some((1 << 42) + 1));
    board.push((1 << 42) + 2, &module(3));
    assert_eq!(board.serving(), Some((1 << 42) + 2));
}

#[test]
fn expired() {
    let mut board = working();
    let order = install(&manifest(2, ""), &module(2));
    board.send(&Order { issued_at_ms: TODAY_MS - 2 * HOUR_MS, expires_at_ms: TODAY_MS - HOUR_MS, ..order.clone() });
    check(&mut board, "rejected expired");
    let mut board = working();
    board.send(&Order { issued_at_ms: TODAY_MS + 2, expires_at_ms: TODAY_MS + 1, ..order });
    check(&mut board, "rejected expired");
}

#[test]
fn expiry_while_the_clock_is_not_synced() {
    let mut board = working();
    board.now.synced = false;
    board.now.unix_ms = 0;
    let order = install(&manifest(2, ""), &module(2));
    // Expired before the latest accepted order was issued.
    board.send(&Order { issued_at_ms: TODAY_MS - 2 * HOUR_MS, expires_at_ms: TODAY_MS - 1, ..order.clone() });
    assert_eq!((board.serving(), board.state()), (Some(1), "rejected expired".into()));
    // The floor survives a restart and applies to all functions.
    let mut board = board.restart();
    board.now.synced = false;
    let mut other = manifest(2, "");
    other.name = "cold".into();
    let cold = Order { function: "cold".into(), ..install(&other, &module(2)) };
    board.send(&Order { issued_at_ms: 0, expires_at_ms: TODAY_MS - 1, ..cold });
    board.tick(2);
    assert_eq!(board.reports["cold"].reason, Some(Reason::Expired));
    // An order that may be valid is accepted.
    board.send(&order);
    board.chunks(&module(2));
    assert_eq!(board.serving(), Some(2));
}

#[test]
fn an_order_from_a_clock_far_ahead_does_not_make_later_ones_expire() {
    let mut board = working();
    let future = TODAY_MS + 1000 * 24 * HOUR_MS;
    let order = |serial| install(&manifest(serial, ""), &module(serial));
    board.send(&Order { issued_at_ms: future, expires_at_ms: future + 1, ..order(2) });
    board.chunks(&module(2));
    assert_eq!(board.serving(), Some(2));
    board.now.synced = false;
    board.send(&Order { issued_at_ms: TODAY_MS + 48 * HOUR_MS, expires_at_ms: TODAY_MS + 49 * HOUR_MS, ..order(3) });
    board.chunks(&module(3));
    assert_eq!(board.serving(), Some(3));
    // Accepted without a synced clock it does, until the clock is synced.
    board.send(&Order { issued_at_ms: future, expires_at_ms: future + 1, ..order(4) });
    board.chunks(&module(4));
    board.send(&Order { issued_at_ms: TODAY_MS, expires_at_ms: TODAY_MS + 60 * HOUR_MS, ..order(5) });
    assert_eq!((board.serving(), board.state()), (Some(4), "rejected expired".into()));
    (board.now.synced, board.now.unix_ms) = (true, TODAY_MS);
    board.send(&Order { issued_at_ms: TODAY_MS, expires_at_ms: TODAY_MS + 60 * HOUR_MS, ..order(5) });
    board.chunks(&module(5));
    assert_eq!(board.serving(), Some(5));
}

#[test]
fn wrong_node_or_group() {
    let order = install(&manifest(2, ""), &module(2));
    for target in [Target::Node("pump-4".into()), Target::Group("valves".into())] {
        let strange = Order { target, ..order.clone() };
        let mut board = working();
        // Copied to this board's topic by another publisher.
        board.deliver(TOPIC, &sign(&strange));
        check(&mut board, "rejected wrong-target");
        let mut board = working();
        board.send(&strange);
        check(&mut board, "rejected wrong-target");
    }
    let mut board = working();
    board.deliver("sedge/group/pumps/deploy/warm", &sign(&order));
    check(&mut board, "rejected wrong-target");
    let mut board = working();
    board.send(&Order { target: Target::Group(GROUP.into()), ..order.clone() });
    board.chunks(&module(2));
    assert_eq!(board.serving(), Some(2));
    let mut board = working();
    board.deliver("sedge/pump-3/deploy/cold", &sign(&order));
    board.tick(2);
    assert_eq!(board.reports["cold"].reason, Some(Reason::WrongTarget));
    assert_eq!(board.serving(), Some(1));
}

#[test]
fn mix_of_manifest_a_and_module_b() {
    // The chunks of another module, under the digest that was signed.
    let mut board = working();
    board.send(&install(&manifest(2, ""), &module(2)));
    let (signed, other) = (Module::of(&module(2), CHUNK), module(3));
    for index in 0..4 {
        let range = signed.range(index);
        board.raw_chunk(&signed.digest, index, &other[range.start as usize..range.end as usize]);
    }
    assert_eq!(board.state(), "receiving digest-mismatch");
    board.tick(600);
    check(&mut board, "rejected digest-mismatch");
    // The chunks of one, the digest of another: both signed.
    let mut board = working();
    let digest = sedge_core::deploy::digest(&module(3));
    let mixed = with_module(|module| module.digest = digest);
    board.send(&mixed);
    for index in 0..4 {
        let range = signed.range(index);
        board.raw_chunk(&digest, index, &module(2)[range.start as usize..range.end as usize]);
    }
    check(&mut board, "rejected digest-mismatch");
    // The manifest of another function, or of another serial.
    let mut board = working();
    let mut other = manifest(2, "");
    other.name = "cold".into();
    board.send(&Order { function: FUNCTION.into(), ..install(&other, &module(2)) });
    check(&mut board, "rejected invalid-manifest");
    let mut board = working();
    board.send(&Order { serial: 3, ..install(&manifest(2, ""), &module(2)) });
    check(&mut board, "rejected invalid-manifest");
}

#[test]
fn manifest_with_a_feedback_loop_or_errors() {
    let with = |json: &str| {
        let mut order = install(&manifest(2, ""), &module(2));
        let manifest: Document = serde_json::from_str(json).unwrap();
        let OrderChange::Install(install) = &order.change else { unreachable!() };
        order.change =
            OrderChange::Install(Box::new(Install { manifest, module: install.module.clone(), code: Vec::new() }));
        order
    };
    let mut board = working();
    board.send(&with(r#"{"name":"warm","version":"1","serial":2,"subscribe":["a/#"],"allow":{"publish":["a/b"]}}"#));
    check(&mut board, "rejected feedback-loop");
    for json in ["{}", r#"{"name":"warm","version":"1","serial":2,"subscribe":["a"],"later":1}"#] {
        let mut board = working();
        board.send(&with(json));
        check(&mut board, "rejected invalid-manifest");
    }
}

#[test]
fn module_for_another_world() {
    let mut board = working();
    board.push(2, b"world of others");
    check(&mut board, "rejected invalid-module");
}

#[test]
fn compile_bomb() {
    let mut board = working();
    board.push(2, b"bomb");
    check(&mut board, "rejected over-limit");
}

#[test]
fn two_pushes_at_once() {
    let (two, three) = (install(&manifest(2, ""), &module(2)), install(&manifest(3, ""), &module(3)));
    for newer_first in [false, true] {
        let mut board = working();
        let orders = if newer_first { [&three, &two] } else { [&two, &three] };
        for index in 0..4 {
            for order in orders.iter().filter(|_| index == 0) {
                board.send(order);
            }
            board.chunk(&module(2), index);
            board.chunk(&module(3), index);
        }
        assert_eq!(board.serving(), Some(3));
        assert_eq!(board.state(), "active");
        assert_eq!(board.report().previous.as_ref().unwrap().serial, 1);
    }
}

#[test]
fn refused_orders_do_not_hide_one_in_progress() {
    let mut board = working();
    board.send(&install(&manifest(5, ""), &module(5)));
    board.chunk(&module(5), 0);
    board.tick(2);
    let before = board.reported.len();
    let order = install(&manifest(2, ""), &module(2));
    board.deliver(TOPIC, b"junk");
    board.deliver(TOPIC, &SignedEnvelope::sign(&order.to_json(), &[]).to_json());
    board.send(&order);
    board.send(&Order { expires_at_ms: TODAY_MS - 1, issued_at_ms: 0, ..order });
    board.tick(5);
    assert_eq!(board.reported.len(), before);
    // A refusal of a trusted key's order is reported, and then the order in progress again.
    board.send(&install(&manifest(6, "[limits]\ntimeout_ms = 60_000"), &module(6)));
    board.tick(3);
    let reported: Vec<_> =
        board.reported[before..].iter().map(|report| (report.state.as_str(), report.serial)).collect();
    assert_eq!(reported, [("rejected", Some(6)), ("receiving", Some(5))]);
    board.chunks(&module(5));
    assert_eq!(board.serving(), Some(5));
}

#[test]
fn deploy_topic_flooded_with_junk() {
    let mut board = working();
    board.send(&install(&manifest(2, ""), &module(2)));
    board.reported.clear();
    for n in 0..3000 {
        board.deliver(TOPIC, format!("junk {n}").as_bytes());
        board.deliver(&format!("sedge/pump-3/deploy/f{n}"), b"junk");
        board.deliver(&format!("sedge/pump-3/deploy/F{n}"), b"junk");
        board.deliver(&format!("sedge/blob/{}/{n}", sedge_core::deploy::digest(b"no")), b"junk");
        if n % 100 == 0 {
            board.tick(1);
        }
    }
    let unknown = board.reports.keys().filter(|name| *name != FUNCTION && *name != "_keys").count();
    assert_eq!(unknown, 32);
    assert!(board.reported.len() < 32 + 100, "{} reports", board.reported.len());
    assert!(board.reports.keys().all(|name| !name.starts_with('F')));
    assert_eq!((board.serving(), board.report().state.as_str()), (Some(1), "receiving"));
    assert_eq!(board.deployer.stats().orders_refused(Reason::BadEnvelope), 6000);
    assert!(board.files("functions").len() == 1 && board.files(STAGING).is_empty());
    board.chunks(&module(2));
    assert_eq!(board.serving(), Some(2));
    // An old name makes room for a new one, and its report is deleted.
    board.tick(100);
    board.deliver("sedge/pump-3/deploy/new-name", b"junk");
    assert!(board.reports.contains_key("new-name"));
    assert_eq!(board.reports.len(), 32 + 2);
}

#[test]
fn an_empty_message_changes_nothing() {
    let mut board = working();
    board.reported.clear();
    board.deliver(TOPIC, b"");
    board.deliver("sedge/pump-3/deploy/cold", b"");
    board.tick(3);
    assert!(board.reported.is_empty());
    assert_eq!(board.serving(), Some(1));
}
