//! Invalid pushes: the active version keeps serving, and the report names the cause.

use std::fs::{self, File};
use std::io::Write as _;
use std::time::Duration;

use sedge_core::deploy::digest;
use sedge_core::deploy::envelope::SignedEnvelope;
use sedge_core::deploy::keys::SigningKey;
use sedge_core::deploy::payload::{Module, Order, OrderChange};
use sedge_core::deploy::reason::Reason;
use sedge_core::deploy::report::DeployState;
use sedge_core::deploy::topics::{Target, Topics};
use serde_json::{Value, json};

use super::{CHUNK, FUNCTION, PATIENCE, Yard, answer, chunk};
use crate::disk::{inside, on_mount, unshare};
use crate::harness::daemon::{NODE, SEDGE};
use crate::harness::eventually;
use crate::harness::wire::{Publish, varint};

fn module(order: &mut Order) -> &mut Module {
    match &mut order.change {
        OrderChange::Install(install) => install.module.as_mut().expect("it brings the module"),
        _ => panic!("no install"),
    }
}

#[test]
fn an_unsigned_order_is_refused() {
    let yard = Yard::start();
    let order = yard.install(2);
    yard.send_bytes(&order, SignedEnvelope::sign(&order.to_json(), &[]).to_json());
    yard.refused(Reason::Unsigned, "has no signature");
}

#[test]
fn nothing_at_all_is_no_order() {
    let yard = Yard::start();
    let order = yard.install(2);
    yard.send_bytes(&order, "{");
    yard.refused(Reason::BadEnvelope, "not a DSSE envelope");
    yard.send_bytes(&order, Vec::new());
    yard.serves("v1");
}

#[test]
fn a_key_that_the_board_does_not_trust_is_refused() {
    let yard = Yard::start();
    let (order, other) = (yard.install(2), SigningKey::generate().unwrap());
    yard.send_bytes(&order, SignedEnvelope::sign(&order.to_json(), &[&other]).to_json());
    yard.refused(Reason::UnknownKey, &other.public().id().to_string()[..16]);
}

#[test]
fn a_key_for_other_functions_is_refused() {
    let yard = Yard::start_with(|setup| setup.set("deploy.keys.ops", "functions = [\"other-*\"]"));
    yard.send(&yard.install(2));
    yard.refused(Reason::KeyNotAllowed, "edition");
}

#[test]
fn a_key_for_other_topics_is_refused() {
    let yard = Yard::start_with(|setup| setup.set("deploy.keys.ops", "topics = [\"count/#\"]"));
    yard.send(&yard.install(2));
    yard.refused(Reason::KeyNotAllowed, "said/#");
}

#[test]
fn any_flipped_byte_of_the_envelope_is_refused() {
    let yard = Yard::start();
    let order = yard.install(2);
    // The key id is an unsigned hint; without it every byte is signed.
    let mut envelope: Value = serde_json::from_slice(&yard.sign(&order)).unwrap();
    envelope["signatures"][0].as_object_mut().unwrap().remove("keyid");
    let envelope = serde_json::to_vec(&envelope).unwrap();
    let topic = Topics::new("sedge").deploy(&order.target, FUNCTION);
    // Every byte of the envelope, and samples of the payload.
    let places: Vec<usize> =
        (0..envelope.len()).filter(|place| place % 29 == 0 || *place < 60 || *place + 140 > envelope.len()).collect();
    let mut refused = 0.0;
    for some in places.chunks(32) {
        for place in some {
            let mut flipped = envelope.clone();
            flipped[*place] ^= 1 << (place % 7);
            yard.publish(Publish::new(&topic, flipped));
        }
        refused += some.len() as f64;
        let counted = || yard.daemon.metric("sedge_deploy_orders_refused_total");
        assert!(eventually(PATIENCE, || counted() >= refused), "{refused} flipped, and {} refused", counted());
    }
    assert_eq!(yard.daemon.metric("sedge_deploy_orders_accepted_total"), 0.0);
    let report = yard.await_report(|report| report.state == DeployState::Rejected);
    assert!([Some(Reason::BadEnvelope), Some(Reason::UnknownKey)].contains(&report.reason), "{report:?}");
    yard.serves("v1");

    // The unchanged order is accepted.
    yard.send_chunks(&yard.module());
    yard.publish(Publish::new(&topic, envelope));
    yard.await_active(2);
}

#[test]
fn a_changed_payload_under_a_good_key_is_a_bad_signature() {
    let yard = Yard::start();
    let order = yard.install(2);
    let mut envelope: Value = serde_json::from_slice(&yard.sign(&order)).unwrap();
    let other: Value = serde_json::from_slice(&yard.sign(&yard.install(3))).unwrap();
    envelope["payload"] = other["payload"].clone();
    yard.send_bytes(&order, envelope.to_string());
    yard.refused(Reason::BadSignature, "key ops");
}

#[test]
fn a_flipped_byte_of_a_chunk_holds_nothing_up() {
    let yard = Yard::start();
    let wasm = yard.other_module(b'x');
    let mut flipped = chunk(&wasm, 1);
    flipped[100] ^= 4;
    yard.send(&yard.install_of(2, &wasm, |_| {}));
    yard.send_chunk(&wasm, 1, &flipped);
    let report = yard.await_report(|it| it.reason == Some(Reason::DigestMismatch));
    assert_eq!((report.state, report.active.unwrap().version.serial), (DeployState::Receiving, 1));
    yard.serves("v1");
    yard.send_chunks(&wasm);
    yard.await_active(2);
}

#[test]
fn a_chunk_under_the_number_of_another_holds_nothing_up() {
    let yard = Yard::start();
    let wasm = yard.other_module(b'x');
    yard.send(&yard.install_of(2, &wasm, |_| {}));
    yard.send_chunk(&wasm, 0, &chunk(&wasm, 1));
    let report = yard.await_report(|it| it.reason == Some(Reason::ChunkIndex));
    assert_eq!(report.state, DeployState::Receiving);
    yard.serves("v1");
    yard.send_chunks(&wasm);
    yard.await_active(2);
}

#[test]
fn a_truncated_push_ends_in_time() {
    let yard = Yard::start_with(|setup| setup.set("deploy", "receive_timeout_secs = 2"));
    let wasm = yard.other_module(b'x');
    let chunks = Module::of(&wasm, CHUNK).chunks.len() as u32;
    for index in 0..chunks - 1 {
        yard.send_chunk(&wasm, index, &chunk(&wasm, index));
    }
    yard.send(&yard.install_of(2, &wasm, |_| {}));
    yard.refused(Reason::Truncated, &format!("{} of {chunks} chunks arrived", chunks - 1));
    // The same order again is known; a new one continues with the chunks on disk.
    yard.send_chunk(&wasm, chunks - 1, &chunk(&wasm, chunks - 1));
    yard.send(&yard.install_of(3, &wasm, |_| {}));
    yard.await_active(3);
}

#[test]
fn more_chunks_than_the_size_needs_are_refused() {
    let yard = Yard::start();
    let mut order = yard.install(2);
    module(&mut order).chunks.push(digest(b"one more"));
    yard.send(&order);
    yard.refused(Reason::SizeMismatch, "chunks");
}

#[test]
fn chunks_beyond_the_last_are_left_alone() {
    let yard = Yard::start();
    let wasm = yard.other_module(b'x');
    for index in [4, 7, 1000, u32::MAX] {
        yard.send_chunk(&wasm, index, &chunk(&wasm, 0));
    }
    yard.send(&yard.install_of(2, &wasm, |_| {}));
    yard.await_report(|it| it.state == DeployState::Receiving && it.reason == Some(Reason::ChunkIndex));
    yard.serves("v1");
    yard.send_chunks(&wasm);
    yard.await_active(2);
}

#[test]
fn a_declared_size_smaller_than_the_real_one_is_refused() {
    let yard = Yard::start();
    let wasm = yard.other_module(b'x');
    let mut order = yard.install_of(2, &wasm, |_| {});
    module(&mut order).size -= 100;
    yard.send_chunks(&wasm);
    yard.send(&order);
    yard.refused(Reason::SizeMismatch, "bytes");
}

#[test]
fn a_module_that_is_too_large_is_refused_before_it_comes() {
    let yard = Yard::start_with(|setup| setup.set("deploy", "max_module_bytes = 10_000"));
    yard.send(&yard.install(2));
    yard.refused(Reason::OverLimit, "this board allows 10000");
    assert_eq!(yard.daemon.metric("sedge_deploy_chunks_total"), 0.0);
}

#[test]
fn limits_above_the_ceiling_are_refused() {
    let yard = Yard::start_with(|setup| setup.set("functions", "max_timeout_ms = 10_000"));
    yard.send(&yard.install_of(2, &yard.module(), |manifest| manifest["limits"]["timeout_ms"] = json!(10_001)));
    yard.refused(Reason::OverLimit, "timeout_ms");
}

#[test]
fn an_old_order_that_comes_again_is_refused_and_hides_nothing() {
    let yard = Yard::start();
    yard.send_chunks(&yard.module());
    let old = yard.install(2);
    yard.send(&old);
    yard.await_active(2);
    yard.send(&yard.install(3));
    yard.await_active(3);
    yard.send(&old);
    yard.refused_beside(Reason::ReplayedSerial, "serial 2 is not above 3", 3);
}

#[test]
fn a_lower_serial_is_refused() {
    let yard = Yard::start();
    for serial in [0, 1] {
        yard.send(&yard.install(serial));
        yard.refused(Reason::ReplayedSerial, &format!("serial {serial} is not above 1"));
    }
}

#[test]
fn a_serial_near_the_end_does_not_lock_the_function_out() {
    let yard = Yard::start();
    yard.send_chunks(&yard.module());
    yard.send(&yard.install(u64::MAX));
    yard.refused(Reason::SerialTooHigh, "Unix time in milliseconds");
    yard.send(&yard.install(2));
    yard.await_active(2);
    yard.send(&yard.install(sedge_sandbox::clock::now_ms()));
    yard.await_report(|it| it.state == DeployState::Active && it.serial > Some(2));
}

/// Sets whether the board's clock counts as synchronised, independent of this machine's.
fn with_clock(is_synced: bool, order: impl FnOnce(&Yard) -> Order) -> Option<(Yard, Order)> {
    let mut unshare = unshare()?;
    let mut yard = Yard::prepare(|setup| setup);
    let mark =
        if is_synced { "mkdir -p /run/systemd/timesync && touch /run/systemd/timesync/synchronized &&" } else { "" };
    let hide = "for dir in /run /var/lib/chrony /var/lib/ntpsec /var/lib/ntp; do \
                [ ! -d $dir ] || mount -t tmpfs none $dir || exit; done;";
    unshare.args(["sh", "-c", &format!("{hide} {mark} exec \"$@\""), "sh", SEDGE, "run", "--config"]);
    unshare.arg(yard.daemon.config());
    yard.daemon.launch_as(unshare);
    yard.daemon.wait_ready(PATIENCE);
    yard.await_board();
    let report = yard.await_report(|_| true);
    assert_eq!(report.clock_synced, is_synced);
    let order = order(&yard);
    Some((yard, order))
}

fn expired(order: Order) -> Order {
    Order { issued_at_ms: order.issued_at_ms - 7_200_000, expires_at_ms: order.expires_at_ms - 7_200_000, ..order }
}

#[test]
fn an_expired_order_is_refused() {
    let Some((yard, order)) = with_clock(true, |yard| expired(yard.install(2))) else { return };
    yard.send(&order);
    yard.refused(Reason::Expired, "it expired 36");
}

#[test]
fn a_board_without_the_time_refuses_what_expired_before_the_latest_order() {
    let Some((yard, order)) = with_clock(false, |yard| expired(yard.install(2))) else { return };
    // The board cannot tell that it is too old.
    yard.send_chunks(&yard.module());
    yard.send(&order);
    yard.await_active(2);
    yard.send(&yard.install(3));
    yard.await_active(3);
    // Now it can.
    yard.send(&expired(yard.install(4)));
    yard.refused_beside(Reason::Expired, "before the latest order", 3);
}

#[test]
fn an_order_for_another_board_or_group_is_refused() {
    let yard = Yard::start();
    let topic = Topics::new("sedge").deploy(&Target::Node(NODE.into()), FUNCTION);
    for target in [Target::Node("pump-4".into()), Target::Group("pumps".into())] {
        let order = Order { target: target.clone(), ..yard.install(2) };
        yard.retain(&topic, yard.sign(&order));
        yard.refused(Reason::WrongTarget, &format!("signed for {target}"));
    }
    // An order for another function.
    let order = Order { function: "other".into(), ..yard.install(2) };
    yard.retain(&topic, yard.sign(&order));
    yard.refused(Reason::WrongTarget, "function other");
    // The board does not subscribe to groups that it is not in.
    yard.send(&Order { target: Target::Group("fans".into()), ..yard.install(2) });
    yard.serves("v1");
    assert_eq!(yard.daemon.metric("sedge_deploy_orders_accepted_total"), 0.0);
}

#[test]
fn a_manifest_with_the_module_of_another_order_is_refused() {
    let yard = Yard::start_with(|setup| setup.set("deploy", "receive_timeout_secs = 2"));
    let (wasm, other) = (yard.other_module(b'a'), yard.other_module(b'b'));
    // The content of one module under the digest of the other.
    let ours = digest(&wasm);
    for (index, piece) in other.chunks(CHUNK as usize).enumerate() {
        yard.retain(&Topics::new("sedge").blob(&ours, index as u32), piece);
    }
    yard.send(&yard.install_of(2, &wasm, |_| {}));
    yard.refused(Reason::DigestMismatch, "chunk");
    // The manifest of another function.
    yard.send(&yard.install_of(3, &wasm, |manifest| manifest["name"] = json!("other")));
    yard.refused(Reason::InvalidManifest, "other");
    yard.send(&yard.install_of(3, &wasm, |manifest| manifest["serial"] = json!(4)));
    yard.refused(Reason::InvalidManifest, "serial 4");
}

#[test]
fn a_function_that_would_hear_itself_is_refused() {
    let yard = Yard::start();
    yard.send(&yard.install_of(2, &yard.module(), |manifest| manifest["allow"]["publish"] = json!(["count/again"])));
    yard.refused(Reason::FeedbackLoop, "count/again");
}

#[test]
fn a_module_for_another_world_is_refused() {
    let yard = Yard::start();
    // A component without exports, and a file that is not WebAssembly.
    for (serial, wasm) in [(2, b"\0asm\x0d\0\x01\0".to_vec()), (3, vec![7; 5000])] {
        yard.send_chunks(&wasm);
        yard.send(&yard.install_of(serial, &wasm, |_| {}));
        let report = yard.await_state(serial, DeployState::Rejected);
        assert_eq!(report.reason, Some(Reason::InvalidModule), "{report:?}");
        yard.serves("v1");
    }
}

/// The function's component and a core module with one long function that compresses to few bytes.
fn bomb(component: &[u8], rounds: usize) -> Vec<u8> {
    let section = |id: u8, body: &[u8], out: &mut Vec<u8>| {
        out.push(id);
        varint(body.len(), out);
        out.extend(body);
    };
    // (local i64): local = local * local + local, repeated.
    let mut code = vec![1, 1, 0x7e];
    for _ in 0..rounds {
        code.extend([0x20, 0, 0x20, 0, 0x20, 0, 0x7e, 0x7c, 0x21, 0]);
    }
    code.push(0x0b);
    let mut body = vec![1];
    varint(code.len(), &mut body);
    body.extend(code);
    let mut module = b"\0asm\x01\0\0\0".to_vec();
    section(1, &[1, 0x60, 0, 0], &mut module);
    section(3, &[1, 0], &mut module);
    section(10, &body, &mut module);
    let mut wasm = component.to_vec();
    section(1, &module, &mut wasm);
    wasm
}

#[test]
fn a_compile_bomb_is_refused() {
    let yard = Yard::start();
    let wasm = bomb(&yard.module(), 700_000);
    let mut order = yard.install_of(2, &wasm, |_| {});
    let big = 256 << 10;
    *module(&mut order) = Module::of(&wasm, big);
    for (index, piece) in wasm.chunks(big as usize).enumerate() {
        yard.send_chunk(&wasm, index as u32, piece);
    }
    yard.send(&order);
    // Permitted modules that take too long to compile are tested with the deployer.
    yard.refused(Reason::InvalidModule, "bytes in one function body, the limit is");
}

#[test]
fn two_pushes_at_once_end_with_the_later_one() {
    let yard = Yard::start();
    let pushes = ["v2", "v3"].map(|label| yard.begin_push(&yard.source(label, |toml| toml)));
    let mut answers: Vec<(Option<i32>, Value)> =
        pushes.map(|push| answer(&push.wait_with_output().expect("wait for the push"))).into();
    answers.sort_by_key(|(_, answer)| answer["serial"].as_u64());
    let [first, last] = &answers[..] else { panic!("{answers:?}") };
    let serial = last.1["serial"].as_u64();
    let report = yard.await_report(|it| it.state == DeployState::Active && it.serial == serial);
    let label = report.active.unwrap().manifest["config"]["label"].as_str().unwrap().to_owned();
    yard.serves(&label);
    // Both may have the same serial if started in the same millisecond: then the board accepts one, and the other push fails.
    let winners = if first.1["serial"] == last.1["serial"] { &answers[..] } else { std::slice::from_ref(last) };
    assert_eq!(winners.iter().filter(|(code, _)| *code == Some(0)).count(), 1, "{answers:?}");
}

#[test]
fn a_push_during_a_shutdown_continues_after_the_restart() {
    let mut yard = Yard::start();
    yard.send_chunks(&yard.module());
    yard.send(&yard.install(2));
    let (status, took) = yard.daemon.terminate();
    assert!(status.success() && took < Duration::from_secs(5), "{status} after {took:?}");
    yard.daemon.resume();
    yard.await_active(2);
}

#[test]
fn a_full_disk_holds_a_push_up_and_no_more() {
    let Some(unshare) = unshare() else { return };
    let mut yard = Yard::prepare(|setup| setup);
    let command = on_mount(unshare, &yard.daemon, "size=24m");
    yard.daemon.launch_as(command);
    yard.daemon.wait_ready(PATIENCE);
    yard.await_board();
    let filler = inside(&yard.daemon).join("filler");
    let mut wasm = yard.module();
    // A custom section that enlarges the module to 1 MB.
    let tail = vec![7; 1 << 20];
    let mut section = vec![3, b'b', b'i', b'g'];
    section.extend(&tail);
    wasm.push(0);
    varint(section.len(), &mut wasm);
    wasm.extend(section);
    yard.send(&yard.install_of(2, &wasm, |_| {}));
    yard.await_state(2, DeployState::Receiving);
    let mut file = File::create(&filler).unwrap();
    while file.write_all(&[0; 65_536]).is_ok() {}
    drop(file);
    // The store has enough room to continue; only the module has not.
    File::options()
        .write(true)
        .open(&filler)
        .unwrap()
        .set_len(fs::metadata(&filler).unwrap().len() - (300 << 10))
        .unwrap();
    yard.send_chunks(&wasm);
    let report = yard.await_report(|it| it.reason == Some(Reason::DiskFull));
    assert_eq!((report.state, report.active.unwrap().version.serial), (DeployState::Receiving, 1));
    yard.serves("v1");
    fs::remove_file(&filler).unwrap();
    yard.await_active(2);
}

#[test]
fn a_flood_of_junk_orders_stops_neither_messages_nor_a_push() {
    let yard = Yard::start();
    let (port, topics) = (yard.broker.port, Topics::new("sedge"));
    let flood = std::thread::spawn(move || {
        let mut vandal =
            crate::harness::client::Client::connect(port, &crate::harness::wire::Hello::new("vandal")).unwrap();
        let node = Target::Node(NODE.into());
        let junk = |n: usize| {
            let topic = match n % 4 {
                0 => topics.deploy(&node, FUNCTION),
                1 => topics.deploy(&Target::Group("pumps".into()), FUNCTION),
                2 => topics.deploy(&node, "_keys"),
                _ => topics.deploy(&node, &format!("f{n}")),
            };
            Publish::new(&topic, format!("junk {n}"))
        };
        vandal.publish_all((0..20_000).map(junk)).unwrap();
    });
    let (code, answer) = yard.push(&yard.source("v2", |toml| toml));
    assert_eq!(code, Some(0), "{answer}");
    yard.serves("v2");
    flood.join().unwrap();
    yard.serves("v2");
    let names: std::collections::BTreeSet<String> = yard.reports.received().into_iter().map(|it| it.topic).collect();
    assert!(names.len() <= 40, "{} functions are reported", names.len());
}
