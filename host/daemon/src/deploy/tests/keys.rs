//! Trusted keys: permissions, rotation, revocation.

use crate::deploy::testing::board::{Board, NODE, install, key, manifest, module, order, settings, sign, trusted};
use sedge_core::deploy::envelope::SignedEnvelope;
use sedge_core::deploy::keys::{SigningKey, TrustedKey};
use sedge_core::deploy::payload::{KeyUpdate, Order, OrderChange};
use sedge_core::deploy::topics::{KEYS, Target};
use sedge_core::deploy::{Request, TrialEvent};

fn update(serial: u64, trust: Vec<TrustedKey>, revoke: &[&SigningKey]) -> Order {
    let revoke = revoke.iter().map(|key| key.public().id()).collect();
    let change = OrderChange::Keys(KeyUpdate { trust, revoke });
    Order { function: KEYS.into(), target: Target::Node(NODE.into()), ..order(serial, change) }
}

/// A board whose key may change the keys.
fn board() -> Board {
    let mut settings = settings(&[("ops", &key())]);
    settings.deploy.keys.get_mut("ops").unwrap().keys = true;
    Board::with(settings, Vec::new())
}

fn signed(order: &Order, key: &SigningKey) -> Vec<u8> {
    SignedEnvelope::sign(&order.to_json(), &[key]).to_json()
}

#[test]
fn keys_rotate_by_a_signed_order_at_once() {
    let new = SigningKey::generate().unwrap();
    let mut board = board();
    let second = install(&manifest(2, ""), &module(2));
    board.push(1, &module(1));
    board.send(&update(1, vec![trusted("new", &new)], &[&key()]));
    let report = &board.reports[KEYS];
    assert_eq!(report.state.as_str(), "active");
    assert_eq!(report.keys.as_ref().unwrap().iter().map(|key| &*key.name).collect::<Vec<_>>(), ["new"]);
    assert_eq!(board.orders_fetched, 1);
    board.send(&second);
    assert_eq!((board.serving(), board.state()), (Some(1), "rejected unknown-key".into()));
    board.deliver("sedge/pump-3/deploy/warm", &signed(&second, &new));
    board.chunks(&module(2));
    assert_eq!(board.serving(), Some(2));
    let mut board = board.restart();
    board.push(3, &module(3));
    assert_eq!((board.serving(), board.state()), (Some(2), "rejected unknown-key".into()));
}

#[test]
fn keys_change_only_by_a_permitted_key() {
    let stranger = SigningKey::generate().unwrap();
    let mut board = Board::new();
    board.send(&update(1, vec![trusted("new", &stranger)], &[]));
    board.tick(2);
    let reason = |board: &Board| board.reports[KEYS].reason.unwrap().to_string();
    assert_eq!(reason(&board), "key-not-allowed");
    board.deliver("sedge/pump-3/deploy/_keys", &signed(&update(2, vec![], &[]), &stranger));
    board.tick(2);
    assert_eq!(reason(&board), "unknown-key");
    // A change of keys is refused under a function's topic, and the other way round.
    board.deliver("sedge/pump-3/deploy/warm", &sign(&update(3, vec![], &[])));
    assert_eq!(board.state(), "rejected wrong-target");
    board.deliver("sedge/pump-3/deploy/_keys", &sign(&install(&manifest(4, ""), b"x")));
    board.tick(2);
    assert_eq!(reason(&board), "wrong-target");
}

#[test]
fn a_change_of_keys_cannot_be_replayed() {
    let (one, two) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let mut board = board();
    let first = update(1, vec![trusted("one", &one)], &[]);
    board.send(&first);
    board.send(&update(2, vec![trusted("two", &two)], &[&one]));
    board.send(&first);
    board.tick(2);
    let report = &board.reports[KEYS];
    assert_eq!(report.reason.unwrap().as_str(), "replayed-serial");
    let names: Vec<&str> = report.keys.as_ref().unwrap().iter().map(|key| &*key.name).collect();
    assert_eq!(names, ["ops", "two"]);
}

#[test]
fn a_reload_adds_and_removes_keys() {
    let new = SigningKey::generate().unwrap();
    let mut board = Board::new();
    board.push(1, &module(1));
    let second = signed(&install(&manifest(2, ""), &module(2)), &new);
    board.deliver("sedge/pump-3/deploy/warm", &second);
    assert_eq!(board.state(), "rejected unknown-key");
    board.handle(Request::Keys(Box::new(settings(&[("new", &new)]).deploy)));
    assert_eq!(board.orders_fetched, 1, "refused orders are fetched again");
    board.deliver("sedge/pump-3/deploy/warm", &second);
    board.chunks(&module(2));
    assert_eq!(board.serving(), Some(2));
    board.push(3, &module(3));
    assert_eq!((board.serving(), board.state()), (Some(2), "rejected unknown-key".into()));
}

#[test]
fn orders_in_progress_end_with_their_key_and_the_active_version_serves() {
    let other = SigningKey::generate().unwrap();
    for stage in ["receiving", "compiling", "trial"] {
        let mut board = Board::new();
        board.push(1, &module(1));
        board.is_lenient = false;
        board.send(&install(&manifest(2, ""), &module(2)));
        if stage == "compiling" {
            board.held = Some(Default::default());
        }
        if stage != "receiving" {
            board.chunks(&module(2));
        }
        if stage == "trial" {
            board.trial(TrialEvent::Ready);
        }
        assert_eq!(board.state(), stage);
        board.handle(Request::Keys(Box::new(settings(&[("other", &other)]).deploy)));
        board.release();
        assert_eq!((board.serving(), board.state()), (Some(1), "rejected unknown-key".into()), "{stage}");
        assert!(board.pipeline["warm"].candidate.is_none());
        assert_eq!(board.restart().serving(), Some(1));
    }
}

#[test]
fn a_key_removed_while_the_board_was_off_ends_its_orders() {
    let mut board = Board::new();
    board.push(1, &module(1));
    board.send(&install(&manifest(2, ""), &module(2)));
    board.settings = settings(&[]);
    let mut board = board.restart();
    assert_eq!((board.serving(), board.state()), (Some(1), "rejected unknown-key".into()));
    board.chunks(&module(2));
    assert_eq!(board.serving(), Some(1));
}

fn key_names(board: &Board) -> Vec<&str> {
    board.deployer.trust.keys().iter().map(|key| &*key.name).collect()
}

#[test]
fn a_damaged_file_of_keys_is_set_aside() {
    let new = SigningKey::generate().unwrap();
    let mut board = board();
    board.send(&update(1, vec![trusted("new", &new)], &[&key()]));
    assert_eq!(key_names(&board), ["new"]);
    let path = board.keys_path();
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let board = board.restart();
    assert_eq!(key_names(&board), ["ops"]);
    assert!(!path.exists() && path.with_file_name("keys.record.damaged").exists());
}

#[test]
fn on_a_full_disk_no_key_changes_until_there_is_room() {
    let new = SigningKey::generate().unwrap();
    let mut board = board();
    board.faults().set_room(Some(10));
    board.send(&update(1, vec![trusted("new", &new)], &[&key()]));
    board.tick(2);
    let report = &board.reports[KEYS];
    assert_eq!((report.state.as_str(), report.reason.unwrap().as_str()), ("receiving", "disk-full"));
    assert_eq!(key_names(&board), ["ops"]);
    assert!(board.files("").is_empty());
    board.faults().set_room(None);
    board.tick(2);
    assert_eq!(key_names(&board), ["new"]);
    assert_eq!(board.files("").len(), 1);
}
