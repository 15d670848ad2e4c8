//! Trusted keys: permissions, rotation, revocation.

use crate::deploy::testing::board::{
    Board, HOUR_MS, NODE, TODAY_MS, install, key, manifest, module, order, settings, sign, trusted,
};
use sedge_core::deploy::envelope::SignedEnvelope;
use sedge_core::deploy::keys::{SigningKey, TrustedKey};
use sedge_core::deploy::payload::{KeyUpdate, Order, OrderChange};
use sedge_core::deploy::topics::{KEYS, Target};
use sedge_core::deploy::{Request, TrialEvent};

fn update(serial: u64, trust: Vec<TrustedKey>, revoke: &[&SigningKey]) -> Order {
    let revoke = revoke.iter().map(|key| key.public().id()).collect();
    let change = OrderChange::Keys(KeyUpdate { trust, revoke, force: false });
    Order { function: KEYS.into(), target: Target::Node(NODE.into()), ..order(serial, change) }
}

/// The same, although no key may be left that changes keys.
fn forced(mut order: Order) -> Order {
    let OrderChange::Keys(update) = &mut order.change else { panic!("only a change of keys is forced") };
    update.force = true;
    order
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
    board.send(&forced(update(1, vec![trusted("new", &new)], &[&key()])));
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
    board.send(&forced(update(1, vec![trusted("new", &new)], &[&key()])));
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
    board.send(&forced(update(1, vec![trusted("new", &new)], &[&key()])));
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

/// A key that may change the keys.
fn keeper(name: &str, key: &SigningKey) -> TrustedKey {
    TrustedKey { keys: true, ..trusted(name, key) }
}

/// State and reason of the last change of keys.
fn outcome(board: &mut Board) -> String {
    board.tick(2);
    let report = &board.reports[KEYS];
    format!("{} {}", report.state, report.reason.map_or("", |reason| reason.as_str()))
}

#[test]
fn the_only_key_that_may_change_keys_does_not_revoke_itself() {
    let new = SigningKey::generate().unwrap();
    let mut board = board();
    board.send(&update(1, vec![], &[&key()]));
    assert_eq!((outcome(&mut board).as_str(), key_names(&board)), ("rejected last-key", vec!["ops"]));
    let error = board.reports[KEYS].error.clone().unwrap();
    assert!(error.contains("--keys") && error.contains("--force"), "{error}");
    // Nor does it go for one that may not change keys.
    board.send(&update(2, vec![trusted("new", &new)], &[&key()]));
    assert_eq!((outcome(&mut board).as_str(), key_names(&board)), ("rejected last-key", vec!["ops"]));
    board.send(&forced(update(3, vec![], &[&key()])));
    assert_eq!((outcome(&mut board).as_str(), key_names(&board)), ("active ", vec![]));
}

#[test]
fn the_last_key_that_may_change_keys_goes_once_another_has_proven_itself() {
    let new = SigningKey::generate().unwrap();
    for proof in ["a push", "a change of keys", "before a restart"] {
        let mut board = board();
        board.push(1, &module(1));
        board.send(&update(1, vec![keeper("new", &new)], &[&key()]));
        assert_eq!(
            outcome(&mut board),
            "rejected last-key",
            "the order of the old one proves nothing about the new one"
        );
        board.send(&update(2, vec![keeper("new", &new)], &[]));
        board.send(&update(3, vec![], &[&key()]));
        assert_eq!(outcome(&mut board), "rejected last-key");
        let error = board.reports[KEYS].error.clone().unwrap();
        assert!(error.contains("only new would be left"), "{error}");
        // An order that is refused proves nothing.
        board.deliver("sedge/pump-3/deploy/warm", &signed(&install(&manifest(1, ""), &module(2)), &new));
        board.send(&update(4, vec![], &[&key()]));
        assert_eq!(outcome(&mut board), "rejected last-key");
        if proof == "a change of keys" {
            board.deliver("sedge/pump-3/deploy/_keys", &signed(&update(5, vec![], &[&key()]), &new));
        } else {
            board.deliver("sedge/pump-3/deploy/warm", &signed(&install(&manifest(2, ""), &module(2)), &new));
            if proof == "before a restart" {
                board = board.restart();
            }
            board.send(&update(5, vec![], &[&key()]));
        }
        assert_eq!((outcome(&mut board).as_str(), key_names(&board)), ("active ", vec!["new"]), "{proof}");
    }
}

#[test]
fn a_limited_key_cannot_lock_out_others_on_a_board_without_the_time() {
    let limited = SigningKey::generate().unwrap();
    let mut board = board();
    board.send(&update(
        1,
        vec![TrustedKey { functions: vec!["warm".parse().unwrap()], ..trusted("limited", &limited) }],
        &[],
    ));
    let mut board = board.restart();
    (board.now.synced, board.now.unix_ms) = (false, 0);
    let year_2100 = 4_102_444_800_000;
    let far = Order { issued_at_ms: year_2100, expires_at_ms: year_2100 + 1, ..install(&manifest(1, ""), &module(1)) };
    board.deliver("sedge/pump-3/deploy/warm", &signed(&far, &limited));
    board.chunks(&module(1));
    assert_eq!(board.serving(), Some(1));
    // Others go on, over a restart too.
    let mut board = board.restart();
    (board.now.synced, board.now.unix_ms) = (false, 0);
    board.push(2, &module(2));
    assert_eq!(board.serving(), Some(2));
    // The key itself is behind its own order, but for 400 days at most.
    let days = |days: u64| TODAY_MS + days * 24 * HOUR_MS;
    for (serial, expires_at_ms, serves) in [(3, days(300), 2), (4, days(1000), 4)] {
        let order = install(&manifest(serial, ""), &module(serial));
        let order = Order { expires_at_ms, ..order };
        board.deliver("sedge/pump-3/deploy/warm", &signed(&order, &limited));
        board.chunks(&module(serial));
        assert_eq!(board.serving(), Some(serves), "{serial}");
    }
    board.send(&update(2, vec![], &[&limited]));
    assert_eq!((outcome(&mut board).as_str(), key_names(&board)), ("active ", vec!["ops"]));
}

#[test]
fn the_floor_of_an_older_program_is_at_most_400_days_ahead() {
    let mut board = Board::new();
    board.push(1, &module(1));
    let path = board.record_path();
    let text = String::from_utf8(std::fs::read(&path).unwrap()).unwrap();
    let json = text.split_once('\n').unwrap().1.replace("\"floor_ms\":0", "\"floor_ms\":4102444800000");
    assert!(json.contains("4102444800000"), "{json}");
    std::fs::write(&path, format!("{}\n{json}", sedge_core::deploy::digest(json.as_bytes()))).unwrap();
    let mut board = board.restart();
    (board.now.synced, board.now.unix_ms) = (false, 0);
    for (serial, days, serves) in [(2, 300, 1), (3, 1000, 3)] {
        let order = install(&manifest(serial, ""), &module(serial));
        board.send(&Order { expires_at_ms: TODAY_MS + days * 24 * HOUR_MS, ..order });
        board.chunks(&module(serial));
        assert_eq!(board.serving(), Some(serves), "{serial}");
    }
}
