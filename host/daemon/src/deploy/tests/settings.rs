//! Settings of the board's file and of orders: at the start, at a reload, and against what is pushed.

use std::collections::BTreeMap;
use std::path::Path;

use crate::deploy::testing::board::{Board, GROUP, NODE, TODAY_MS, install, key, manifest, module, settings, sign};
use sedge_core::config::Config;
use sedge_core::config::settings::BoardLayer;
use sedge_core::deploy::Request;
use sedge_core::deploy::envelope::SignedEnvelope;
use sedge_core::deploy::interface::StoredFile;
use sedge_core::deploy::keys::SigningKey;
use sedge_core::deploy::payload::{Order, OrderChange, SettingsUpdate};
use sedge_core::deploy::topics::{Target, Topics};

const DECLARED: &str =
    "[settings.max]\ntype = \"number\"\nmax = 200\ntext = \"alert above it\"\n[config]\nmax = 80\nmin = 1\n";
const REQUIRED: &str = "[settings.max]\ntype = \"number\"\nmax = 200\n";

fn layer(lines: &str) -> BoardLayer {
    let (config, problems) = Config::parse(&format!("[functions.settings.warm]\n{lines}"), Path::new("sedge.toml"));
    assert!(problems.is_empty(), "{problems}");
    config.functions.settings
}

fn board(lines: &str) -> Board {
    let mut settings = settings(&[("ops", &key())]);
    settings.functions.settings = layer(lines);
    Board::with(settings, Vec::new())
}

fn push(board: &mut Board, serial: u64, lines: &str) {
    let wasm = module(serial);
    board.send(&install(&manifest(serial, lines), &wasm));
    board.chunks(&wasm);
}

fn reload(board: &mut Board, lines: &str) {
    board.settings.functions.settings = layer(lines);
    board.handle(Request::Settings(Box::new(layer(lines))));
    board.tick(2);
}

/// Name, value and origin of what is reported.
fn reported(board: &mut Board) -> Vec<(String, String)> {
    board.tick(2);
    let settings = &board.report().settings;
    assert!(settings.iter().all(|setting| setting.from == "board"));
    settings.iter().map(|it| (it.name.clone(), it.value.clone().unwrap_or("(secret)".into()))).collect()
}

fn one(name: &str, value: &str) -> Vec<(String, String)> {
    vec![(name.to_owned(), value.to_owned())]
}

#[test]
fn settings_of_the_file_are_laid_over_pushed_versions_and_reported() {
    let mut board = board("max = 100");
    push(&mut board, 1, DECLARED);
    assert_eq!((board.setting("max").unwrap(), board.setting("min").unwrap()), ("100".into(), "1".into()));
    assert_eq!(reported(&mut board), one("max", "100"));
    push(&mut board, 2, DECLARED);
    assert_eq!((board.serving(), board.setting("max").unwrap()), (Some(2), "100".into()), "a new version has them");
    let mut board = board.restart();
    assert_eq!((board.setting("max").unwrap(), reported(&mut board)), ("100".into(), one("max", "100")));
}

#[test]
fn a_reload_changes_settings_and_keeps_version_serial_and_trial() {
    let mut board = board("max = 100");
    push(&mut board, 1, DECLARED);
    board.is_lenient = false;
    push(&mut board, 2, DECLARED);
    board.trial(sedge_core::deploy::TrialEvent::Ready);
    let (before, state, compiled) = (board.pipeline.clone(), board.state(), board.compiled);
    assert_eq!(state, "trial");
    reload(&mut board, "max = 120");
    let edition = |running: &crate::deploy::testing::board::Running| {
        (running.active.as_ref().unwrap().edition, running.candidate.as_ref().unwrap().edition)
    };
    assert_eq!(edition(&board.pipeline["warm"]), edition(&before["warm"]), "nothing is started anew");
    assert_eq!((board.state(), board.compiled), (state, compiled));
    assert_eq!((board.setting("max").unwrap(), reported(&mut board)), ("120".into(), one("max", "120")));
    reload(&mut board, "");
    assert_eq!((board.setting("max").unwrap(), reported(&mut board)), ("80".into(), Vec::new()));
}

#[test]
fn a_reload_with_a_wrong_setting_leaves_those_of_the_function_as_they_were() {
    for wrong in ["max = 300\nmin = 2", "max = \"hot\"", "maxx = 5"] {
        let mut board = board("max = 100");
        push(&mut board, 1, DECLARED);
        reload(&mut board, wrong);
        assert_eq!(reported(&mut board), one("max", "100"), "{wrong}");
        reload(&mut board, "max = 110");
        assert_eq!(reported(&mut board), one("max", "110"), "after {wrong}");
    }
}

#[test]
fn a_version_that_the_settings_of_the_board_do_not_fit_is_refused_with_the_reason() {
    let mut board = board("max = 150");
    push(&mut board, 1, DECLARED);
    push(&mut board, 2, &DECLARED.replace("max = 200", "max = 120"));
    assert_eq!((board.serving(), board.state()), (Some(1), "rejected bad-setting".into()));
    let error = board.report().error.clone().unwrap();
    assert_eq!(
        error,
        "setting max (the board's file): \"150\" is above 120; use a number of at most 120 (alert above it)"
    );
    // A setting that only an older version had is no reason against a new one.
    push(&mut board, 3, "");
    assert_eq!((board.serving(), board.setting("max")), (Some(3), None));
}

#[test]
fn a_version_whose_required_setting_the_board_lacks_is_refused_until_it_has_it() {
    let mut board = board("");
    push(&mut board, 1, REQUIRED);
    assert_eq!((board.serving(), board.state()), (None, "rejected bad-setting".into()));
    let error = board.report().error.clone().unwrap();
    assert_eq!(
        error,
        "setting max has no value: set it in [functions.settings.warm] of this board, a number of at most 200"
    );
    reload(&mut board, "max = 5");
    push(&mut board, 2, REQUIRED);
    assert_eq!((board.serving(), board.setting("max").unwrap()), (Some(2), "5".into()));
    // It cannot be taken away again.
    reload(&mut board, "");
    assert_eq!(reported(&mut board), one("max", "5"));
}

#[test]
fn what_a_version_at_the_start_does_not_take_is_left_out() {
    let mut board = board("max = 100\nmin = 7");
    push(&mut board, 1, DECLARED);
    board.settings.functions.settings = layer("max = 300\nmin = 9");
    let mut board = board.restart();
    assert_eq!((board.setting("max").unwrap(), board.setting("min").unwrap()), ("80".into(), "9".into()));
    assert_eq!(reported(&mut board), one("min", "9"));
}

#[test]
fn a_removed_function_that_comes_again_has_its_settings() {
    let mut board = board("max = 100");
    push(&mut board, 1, DECLARED);
    let removal = Order { serial: 2, change: OrderChange::Remove, ..install(&manifest(2, ""), b"x") };
    board.send(&removal);
    push(&mut board, 3, DECLARED);
    assert_eq!((board.setting("max").unwrap(), reported(&mut board)), ("100".into(), one("max", "100")));
}

// ---- orders ----

fn ordered(serial: u64, base: u64, target: Target, values: &[(&str, &str)]) -> Order {
    let all = values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let change = OrderChange::Settings(SettingsUpdate { base, all, topics: BTreeMap::new() });
    Order { serial, target, change, ..install(&manifest(serial, ""), b"x") }
}

fn node() -> Target {
    Target::Node(NODE.into())
}

fn group() -> Target {
    Target::Group(GROUP.into())
}

fn order(board: &mut Board, order: &Order) {
    order_by(board, order, &key());
}

fn order_by(board: &mut Board, order: &Order, key: &SigningKey) {
    let topic = Topics::new("sedge").settings(&order.target, &order.function);
    board.deliver(&topic, &SignedEnvelope::sign(&order.to_json(), &[key]).to_json());
}

/// The last order of settings in the report: its serial, and state or reason.
fn last_order(board: &mut Board) -> (Option<u64>, String) {
    board.tick(2);
    let last = board.report().settings_orders.last().expect("an order was reported");
    (last.serial, last.reason.map_or_else(|| last.state.to_string(), |reason| reason.to_string()))
}

#[test]
fn orders_of_settings_are_laid_over_the_file_and_that_of_the_board_over_that_of_its_group() {
    let mut board = board("max = 100\nmin = 5");
    push(&mut board, 7, DECLARED);
    // Serials of settings have nothing to do with those of versions, nor those of the group with those of the board.
    order(&mut board, &ordered(3, 0, node(), &[("max", "120")]));
    order(&mut board, &ordered(2, 0, group(), &[("max", "110"), ("min", "6")]));
    let value = |board: &Board, name| board.setting(name).unwrap();
    assert_eq!((value(&board, "max"), value(&board, "min")), ("120".into(), "6".into()));
    assert_eq!(last_order(&mut board), (Some(2), "in-force".into()));
    let settings: Vec<(String, String)> =
        board.report().settings.iter().map(|it| (it.name.clone(), it.from.clone())).collect();
    assert_eq!(settings, [("max".into(), "node".into()), ("min".into(), format!("group {GROUP}"))]);
    assert_eq!(board.state(), "active", "the state of the version is its own");
    push(&mut board, 8, DECLARED);
    let mut board = board.restart();
    assert_eq!((board.serving(), value(&board, "max"), value(&board, "min")), (Some(8), "120".into(), "6".into()));
    board.tick(2);
    let layers: Vec<Option<u64>> = board.report().settings_orders.iter().map(|order| order.serial).collect();
    assert_eq!(layers, [Some(3), Some(2)]);
    // An order without values empties the layer.
    order(&mut board, &ordered(4, 3, node(), &[]));
    assert_eq!((value(&board, "max"), value(&board, "min")), ("110".into(), "6".into()));
}

#[test]
fn of_two_operators_at_once_the_later_one_is_told_and_changes_nothing() {
    let mut board = board("");
    push(&mut board, 1, DECLARED);
    order(&mut board, &ordered(10, 0, node(), &[("max", "90")]));
    order(&mut board, &ordered(20, 10, node(), &[("max", "91")]));
    let late = ordered(21, 10, node(), &[("min", "3")]);
    order(&mut board, &late);
    assert_eq!(last_order(&mut board), (Some(21), "conflict".into()));
    let error = board.report().settings_orders.last().unwrap().error.clone().unwrap();
    assert!(error.starts_with("built on serial 10, but the order with serial 20 came first"), "{error}");
    assert_eq!((board.setting("max").unwrap(), board.setting("min").unwrap()), ("91".into(), "1".into()));
    order(&mut board, &ordered(20, 20, node(), &[("max", "92")]));
    assert_eq!(last_order(&mut board), (Some(20), "replayed-serial".into()));
    order(&mut board, &ordered(22, 20, node(), &[("max", "91"), ("min", "3")]));
    assert_eq!(last_order(&mut board), (Some(22), "in-force".into()));
    // What the broker retains comes again with each connection.
    let mut board = board.restart();
    order(&mut board, &late);
    order(&mut board, &ordered(22, 20, node(), &[("max", "91"), ("min", "3")]));
    assert_eq!((board.setting("max").unwrap(), board.setting("min").unwrap()), ("91".into(), "3".into()));
}

#[test]
fn orders_of_settings_that_a_board_refuses() {
    let mut board = board("");
    push(&mut board, 1, &format!("{DECLARED}[settings.token]\ntype = \"text\"\nsecret = true\n"));
    assert_eq!(board.state(), "rejected bad-setting", "it lacks its secret");
    push(&mut board, 2, DECLARED);
    let mut refused = |order_: Order, expected: &str| {
        order(&mut board, &order_);
        assert_eq!(last_order(&mut board), (Some(order_.serial), expected.into()), "{order_:?}");
    };
    refused(ordered(1, 0, node(), &[("max", "300")]), "bad-setting");
    refused(ordered(2, 0, node(), &[("max", "hot")]), "bad-setting");
    refused(ordered(3, 0, node(), &[("maxx", "1")]), "bad-setting");
    refused(Order { expires_at_ms: TODAY_MS - 1, issued_at_ms: 0, ..ordered(4, 0, node(), &[]) }, "expired");
    assert_eq!(board.setting("max").unwrap(), "80");
    // Under another topic, or for another board, nothing happens either.
    board.deliver("sedge/pump-3/deploy/warm", &sign(&ordered(5, 0, node(), &[("max", "1")])));
    assert_eq!(board.state(), "rejected bad-envelope");
    board.deliver("sedge/pump-3/settings/warm", &sign(&ordered(6, 0, group(), &[("max", "1")])));
    board.deliver("sedge/pump-3/settings/warm", &sign(&install(&manifest(9, ""), b"x")));
    board.deliver("sedge/pump-3/settings/warm", b"junk");
    assert_eq!(last_order(&mut board).0, None);
    assert_eq!((board.serving(), board.setting("max").unwrap()), (Some(2), "80".into()));
}

#[test]
fn a_key_may_be_limited_to_settings() {
    let night = SigningKey::generate().unwrap();
    let mut settings = settings(&[("ops", &key()), ("night", &night)]);
    let limited = settings.deploy.keys.get_mut("night").unwrap();
    (limited.settings_only, limited.functions) = (true, vec!["warm*".into()]);
    let mut board = Board::with(settings, Vec::new());
    push(&mut board, 1, DECLARED);
    order_by(&mut board, &ordered(1, 0, node(), &[("max", "7")]), &night);
    assert_eq!(board.setting("max").unwrap(), "7");
    let pushed = install(&manifest(2, ""), &module(2));
    board.deliver("sedge/pump-3/deploy/warm", &SignedEnvelope::sign(&pushed.to_json(), &[&night]).to_json());
    assert_eq!((board.serving(), board.state()), (Some(1), "rejected key-not-allowed".into()));
    let stranger = SigningKey::generate().unwrap();
    order_by(&mut board, &ordered(3, 1, node(), &[("max", "8")]), &stranger);
    assert_eq!(last_order(&mut board), (None, "unknown-key".into()));
    assert_eq!(board.setting("max").unwrap(), "7");
}

#[test]
fn an_order_for_a_function_that_is_not_there_is_kept_for_when_it_is_pushed() {
    let mut board = board("");
    push(&mut board, 1, REQUIRED);
    assert_eq!(board.state(), "rejected bad-setting");
    let fetched = board.orders_fetched;
    order(&mut board, &ordered(1, 0, group(), &[("max", "5")]));
    assert_eq!((last_order(&mut board), board.orders_fetched), ((Some(1), "kept".into()), fetched + 1));
    let mut board = board.restart();
    // The broker sends the order of the version again.
    push(&mut board, 1, REQUIRED);
    assert_eq!((board.serving(), board.setting("max").unwrap()), (Some(1), "5".into()));
    // What it requires stays.
    order(&mut board, &ordered(2, 1, group(), &[]));
    assert_eq!((last_order(&mut board), board.setting("max").unwrap()), ((Some(2), "bad-setting".into()), "5".into()));
}

#[test]
fn a_loss_of_power_leaves_the_older_or_the_newer_settings_and_the_order_comes_again() {
    for requests in 0..3 {
        let mut board = board("");
        push(&mut board, 1, DECLARED);
        order(&mut board, &ordered(1, 0, node(), &[("max", "90")]));
        board.disk_requests_max = board.disk_requests + requests;
        let second = ordered(2, 1, node(), &[("max", "91")]);
        order(&mut board, &second);
        let mut board = board.restart();
        let value = board.setting("max").unwrap();
        assert!(matches!(&*value, "90" | "91"), "{value}");
        order(&mut board, &second);
        assert_eq!(board.setting("max").unwrap(), "91");
    }
}

#[test]
fn a_damaged_record_of_settings_is_set_aside_and_the_order_that_comes_again_repairs_it() {
    let mut board = board("");
    push(&mut board, 1, DECLARED);
    let first = ordered(1, 0, node(), &[("max", "90")]);
    order(&mut board, &first);
    std::fs::write(board.disk().path(&StoredFile::Settings("warm".into())), b"damaged").unwrap();
    let mut board = board.restart();
    assert_eq!(board.setting("max").unwrap(), "80");
    assert_eq!(board.files("settings").into_iter().collect::<Vec<_>>(), ["warm.record.damaged"]);
    order(&mut board, &first);
    assert_eq!(board.setting("max").unwrap(), "90");
}
