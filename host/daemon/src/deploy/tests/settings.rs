//! Settings of the board's file: at the start, at a reload, and against what is pushed.

use std::path::Path;

use crate::deploy::testing::board::{Board, install, key, manifest, module, settings};
use sedge_core::config::Config;
use sedge_core::config::settings::BoardLayer;
use sedge_core::deploy::Request;
use sedge_core::deploy::payload::{Order, OrderChange};

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
