//! Valid orders from push to removal.

use crate::deploy::disk::{MODULES, STAGING};
use crate::deploy::testing::board::{Board, FUNCTION, GROUP, failure, install, key, manifest, module, order, settings};
use sedge_core::deploy::payload::OrderChange;
use sedge_core::deploy::reason::Reason;
use sedge_core::deploy::report::{DeployState, Difference, Progress, TrialTally};
use sedge_core::deploy::topics::Target;
use sedge_core::deploy::{Request, TrialEvent};
use sedge_core::manifest::Manifest;

fn states(board: &Board) -> Vec<&str> {
    let reported = board.reported.iter().filter(|report| report.function == FUNCTION);
    let mut states: Vec<&str> = reported.map(|report| report.state.as_str()).collect();
    states.dedup();
    states
}

#[test]
fn a_push_goes_through_all_states() {
    let mut board = Board::new();
    board.push(1, &module(1));
    assert_eq!(states(&board), ["receiving", "verifying", "compiling", "trial", "active"]);
    let report = board.report();
    assert_eq!((report.serial, report.version.as_deref(), report.reason), (Some(1), Some("1.1.0"), None));
    let active = report.active.as_ref().unwrap();
    assert_eq!((active.version.serial, active.version.digest), (1, sedge_core::deploy::digest(&module(1))));
    assert_eq!(active.manifest["subscribe"][0], "s/#");
    assert_eq!(report.previous, None);
    assert_eq!(board.serving(), Some(1));

    board.push(2, &module(2));
    assert_eq!((board.serving(), board.report().state), (Some(2), DeployState::Active));
    assert_eq!(board.report().previous.as_ref().unwrap().serial, 1);
    board.tick(1);
    assert!(board.files(STAGING).is_empty());
    assert_eq!(board.files(MODULES).len(), 2);
    // After a third version nothing needs the first.
    board.push(3, &module(3));
    board.tick(1);
    assert_eq!(board.files(MODULES).len(), 2);
}

#[test]
fn a_restart_serves_the_active_version_without_a_broker() {
    let mut board = Board::new();
    board.push(1, &module(1));
    board.push(2, &module(2));
    let before = board.report().clone();
    let board = board.restart();
    assert_eq!(board.serving(), Some(2));
    let after = board.report();
    assert_eq!((&after.active, &after.previous, after.state), (&before.active, &before.previous, DeployState::Active));
    assert_eq!(after.serial, Some(2));
}

#[test]
fn redelivered_orders_change_nothing() {
    let mut board = Board::new();
    board.push(1, &module(1));
    let in_group = sedge_core::deploy::payload::Order {
        target: Target::Group(GROUP.into()),
        ..install(&manifest(2, ""), &module(2))
    };
    board.send(&in_group);
    board.chunks(&module(2));
    board.push(3, &module(3));
    for restart in [false, true] {
        if restart {
            board = board.restart();
        }
        let (files, compiled) = (board.files("functions"), board.compiled);
        board.tick(2);
        board.reported.clear();
        // The broker retains the last order of each topic.
        board.send(&in_group);
        board.send(&install(&manifest(3, ""), &module(3)));
        board.tick(5);
        assert!(board.reported.is_empty(), "{:?}", board.reported);
        assert_eq!((board.files("functions"), board.compiled, board.serving()), (files, compiled, Some(3)));
    }
}

#[test]
fn an_older_order_of_another_topic_is_reported_once() {
    let mut board = Board::new();
    board.push(5, &module(5));
    let in_group = sedge_core::deploy::payload::Order {
        target: Target::Group(GROUP.into()),
        ..install(&manifest(2, ""), &module(2))
    };
    board.send(&in_group);
    assert_eq!(board.state(), "rejected replayed-serial");
    board.push(6, &module(6));
    assert_eq!(board.state(), "active");
    board.send(&in_group);
    assert_eq!(board.state(), "active");
}

#[test]
fn the_same_module_is_not_fetched_again() {
    let mut board = Board::new();
    board.push(1, &module(1));
    board.fetched.clear();
    board.send(&install(&manifest(2, "[config]\nmax = 9"), &module(1)));
    assert_eq!((board.serving(), board.fetched.len()), (Some(2), 0));
    board.tick(1);
    assert_eq!(board.files(MODULES).len(), 1);
}

#[test]
fn a_push_continues_after_a_restart() {
    let mut board = Board::new();
    board.push(1, &module(1));
    board.send(&install(&manifest(2, ""), &module(2)));
    board.chunk(&module(2), 1);
    board.chunk(&module(2), 3);
    let mut board = board.restart();
    assert_eq!(board.serving(), Some(1));
    assert_eq!(board.report().progress, Some(Progress::Chunks { chunks: 4, received: 2 }));
    assert_eq!(
        board.fetched.first(),
        Some(&sedge_core::deploy::digest(&module(2))),
        "the broker is asked for the rest"
    );
    board.chunk(&module(2), 0);
    board.chunk(&module(2), 2);
    assert_eq!(board.serving(), Some(2));
}

#[test]
fn a_second_push_of_the_same_module_continues_the_first() {
    let mut board = Board::new();
    board.send(&install(&manifest(1, ""), &module(1)));
    board.chunk(&module(1), 0);
    board.tick(700);
    assert_eq!(board.state(), "rejected truncated");
    assert!(board.files(STAGING).is_empty(), "nothing needs the chunks");
    board.send(&install(&manifest(2, ""), &module(1)));
    board.chunk(&module(1), 0);
    board.send(&install(&manifest(3, ""), &module(1)));
    assert_eq!(board.report().progress, Some(Progress::Chunks { chunks: 4, received: 1 }));
    board.chunks(&module(1));
    assert_eq!(board.serving(), Some(3));
}

#[test]
fn missing_chunks_are_fetched_again_until_the_timeout() {
    let mut board = Board::new();
    board.send(&install(&manifest(1, ""), &module(1)));
    assert_eq!(board.fetched.len(), 1);
    board.tick(4);
    assert_eq!(board.fetched.len(), 1);
    board.tick(596);
    let count = board.fetched.len();
    assert!((10..20).contains(&count), "{count} fetches in ten minutes");
    assert_eq!(board.state(), "rejected truncated");
    assert_eq!(board.report().error.as_deref(), Some("0 of 4 chunks arrived, and none for 600 s; push it again"));
    board.tick(100);
    assert_eq!(board.fetched.len(), count);
}

#[test]
fn without_a_connection_no_time_passes_for_a_push() {
    let mut board = Board::new();
    board.send(&install(&manifest(1, ""), &module(1)));
    board.handle(Request::Disconnected);
    board.tick(10_000);
    assert_eq!((board.state(), board.fetched.len()), ("receiving".into(), 1));
    board.handle(Request::Connected);
    assert_eq!(board.fetched.len(), 2);
    board.chunks(&module(1));
    assert_eq!(board.serving(), Some(1));
}

#[test]
fn a_failed_trial_restores_the_previous_version() {
    let mut board = Board::new();
    board.push(1, &module(1));
    board.push(2, b"trap");
    assert_eq!((board.serving(), board.state()), (Some(1), "rolled-back failed-trial".into()));
    let report = board.report();
    assert_eq!(report.error.as_deref(), Some("trap: unreachable"));
    assert_eq!((report.serial, report.active.as_ref().unwrap().version.serial), (Some(2), 1));
    let board = board.restart();
    assert_eq!((board.serving(), board.compiled), (Some(1), 0), "it is not tried again");
    assert_eq!(board.report().state, DeployState::RolledBack);
}

#[test]
fn the_first_version_that_fails_leaves_nothing() {
    let mut board = Board::new();
    board.push(1, b"trap");
    assert_eq!((board.serving(), board.state()), (None, "rolled-back failed-trial".into()));
    assert_eq!(board.report().active, None);
    board.push(2, &module(2));
    assert_eq!((board.serving(), board.report().previous.as_ref()), (Some(2), None));
}

#[test]
fn a_trial_begins_anew_after_a_restart() {
    let mut board = Board::new();
    board.push(1, &module(1));
    board.is_lenient = false;
    board.push(2, &module(2));
    board.trial(TrialEvent::Ready);
    board.trial(TrialEvent::Progress { tally: TrialTally { run: 9, failed: 0, different: 0 }, samples: vec![] });
    assert_eq!(board.state(), "trial");
    let progress = Progress::Trial { messages: 10, run: 9, failed: 0, different: 0 };
    assert_eq!(board.report().progress, Some(progress));
    let mut board = board.restart();
    board.trial(TrialEvent::Ready);
    assert_eq!(board.report().progress, Some(Progress::Trial { messages: 10, run: 0, failed: 0, different: 0 }));
    assert_eq!(board.serving(), Some(1));
    board.trial(TrialEvent::Passed);
    assert_eq!((board.serving(), board.state()), (Some(2), "active".into()));
}

/// A board with the versions 1 and 2, of which the second has been on trial for its time without its messages.
fn unproven() -> Board {
    let mut board = Board::new();
    board.push(1, &module(1));
    board.push(2, &module(2));
    board.is_lenient = false;
    board.push(3, &module(3));
    board.trial(TrialEvent::Ready);
    board.trial(TrialEvent::Late);
    board
}

/// Serials of the version that serves, of the one a rollback returns to, and whether the first is proven.
fn shown(board: &Board) -> (Option<u64>, Option<u64>, Option<bool>) {
    let report = board.report();
    let active = report.active.as_ref().map(|active| active.version.serial);
    (active, report.previous.as_ref().map(|previous| previous.serial), report.proven)
}

#[test]
fn a_live_trial_shows_the_version_that_serves() {
    let mut board = Board::new();
    board.push(1, &module(1));
    board.is_lenient = false;
    board.push(2, &module(2));
    assert_eq!(shown(&board), (Some(1), None, None));
    board.trial(TrialEvent::Ready);
    assert_eq!((board.state().as_str(), shown(&board)), ("trial", (Some(2), Some(1), None)));
    board.trial(TrialEvent::Failed { failure: failure() });
    assert_eq!(shown(&board), (Some(1), None, None));
    board.send(&install(&manifest(3, "[trial]\nmode = \"shadow\""), &module(3)));
    board.chunks(&module(3));
    board.trial(TrialEvent::Ready);
    assert_eq!((board.state().as_str(), shown(&board)), ("trial", (Some(1), None, None)), "a shadow does not serve");
}

#[test]
fn a_trial_that_saw_no_message_ends_active_and_unproven() {
    let mut board = unproven();
    assert_eq!((board.state().as_str(), shown(&board)), ("active", (Some(3), Some(2), Some(false))));
    let progress = |run| Some(Progress::Trial { messages: 10, run, failed: 0, different: 0 });
    assert_eq!(board.report().progress, progress(0));
    board.trial(TrialEvent::Progress { tally: TrialTally { run: 4, failed: 0, different: 0 }, samples: vec![] });
    board.tick(2);
    assert_eq!(board.report().progress, progress(4));
    board.trial(TrialEvent::Passed);
    assert_eq!((board.state().as_str(), shown(&board)), ("active", (Some(3), Some(2), Some(true))));
    assert_eq!(board.report().progress, None);
    let board = board.restart();
    assert_eq!((board.serving(), shown(&board)), (Some(3), (Some(3), Some(2), Some(true))));
}

#[test]
fn an_unproven_version_that_fails_is_rolled_back() {
    for restart in [false, true] {
        let mut board = unproven();
        if restart {
            board = board.restart();
            assert_eq!((board.serving(), shown(&board)), (Some(2), (Some(3), Some(2), Some(false))));
            assert!(board.pipeline[FUNCTION].candidate.as_ref().unwrap().is_resumed);
        }
        board.trial(TrialEvent::Failed { failure: failure() });
        assert_eq!((board.serving(), board.state()), (Some(2), "rolled-back failed-trial".into()));
        assert_eq!(shown(&board), (Some(2), Some(1), None));
        assert_eq!(board.report().version.as_deref(), Some("1.3.0"), "the one that failed");
        let mut board = board.restart();
        assert_eq!((board.serving(), shown(&board)), (Some(2), (Some(2), Some(1), None)));
        assert!(board.pipeline[FUNCTION].candidate.is_none());
        board.tick(2);
        assert_eq!(board.files(MODULES).len(), 2);
    }
}

#[test]
fn an_unproven_first_version_that_fails_leaves_nothing() {
    let mut board = Board::new();
    board.is_lenient = false;
    board.push(1, &module(1));
    board.trial(TrialEvent::Ready);
    board.trial(TrialEvent::Late);
    let mut board = board.restart();
    assert_eq!(shown(&board), (Some(1), None, Some(false)));
    board.trial(TrialEvent::Failed { failure: failure() });
    assert_eq!((board.serving(), board.state()), (None, "rolled-back failed-trial".into()));
    assert_eq!(shown(&board), (None, None, None));
}

#[test]
fn orders_for_an_unproven_version() {
    let mut board = unproven();
    board.is_lenient = true;
    board.send(&order(4, OrderChange::Rollback));
    assert_eq!((board.serving(), board.state()), (Some(2), "rolled-back requested".into()));
    assert_eq!(shown(&board), (Some(2), Some(3), None));
    assert_eq!(board.restart().serving(), Some(2));

    let mut board = unproven();
    board.send(&order(4, OrderChange::Promote));
    assert_eq!((board.state().as_str(), shown(&board)), ("active", (Some(3), Some(2), Some(true))));
    assert_eq!((board.serving(), board.restart().serving()), (Some(3), Some(3)));

    let mut board = unproven();
    board.send(&order(4, OrderChange::Remove));
    assert_eq!((board.serving(), board.state()), (None, "removed requested".into()));
    assert_eq!(board.restart().serving(), None);
}

#[test]
fn a_version_that_fails_gives_its_place_back_to_an_unproven_one() {
    let mut board = unproven();
    let edition = |board: &Board| board.pipeline[FUNCTION].candidate.as_ref().map(|version| version.edition);
    let first = edition(&board);
    // Refused before it served: nothing changes.
    board.push(4, b"world");
    assert_eq!((board.state().as_str(), edition(&board)), ("rejected invalid-module", first));
    board.push(5, &module(5));
    board.trial(TrialEvent::Ready);
    assert_eq!(shown(&board), (Some(5), Some(2), None), "what is proven stands behind it");
    board.trial(TrialEvent::Failed { failure: failure() });
    assert_eq!(board.state(), "rolled-back failed-trial");
    assert_eq!(shown(&board), (Some(3), Some(2), Some(false)));
    let again = board.pipeline[FUNCTION].candidate.as_ref().unwrap();
    assert_eq!((again.manifest.serial, again.is_resumed), (3, true));
    board.trial(TrialEvent::Failed { failure: failure() });
    assert_eq!(shown(&board), (Some(2), Some(1), None));
    // A version that passes leaves the proven one to return to.
    let mut board = unproven();
    board.push(4, &module(4));
    board.trial(TrialEvent::Ready);
    board.trial(TrialEvent::Passed);
    assert_eq!(shown(&board), (Some(4), Some(2), Some(true)));
}

#[test]
fn an_unproven_version_that_cannot_be_loaded_again_is_rolled_back() {
    let board = unproven();
    std::fs::remove_file(board.module_path(&module(3))).unwrap();
    let mut board = board.restart();
    assert_eq!((board.serving(), board.state()), (Some(2), "rolled-back module-missing".into()));
    let mut board = unproven().restart();
    board.trial(TrialEvent::NotLoaded { error: "no memory".into() });
    assert_eq!((board.serving(), board.state()), (Some(2), "rolled-back not-loaded".into()));
}

#[test]
fn a_shadow_without_messages_waits_and_says_so() {
    let mut board = Board::new();
    board.push(1, &module(1));
    board.is_lenient = false;
    board.send(&install(&manifest(2, "[trial]\nmode = \"shadow\"\ndifferences = 0"), &module(2)));
    board.chunks(&module(2));
    board.trial(TrialEvent::Ready);
    board.trial(TrialEvent::Late);
    assert_eq!((board.state().as_str(), shown(&board)), ("trial", (Some(1), None, Some(false))));
    board.trial(TrialEvent::Passed);
    assert_eq!((board.state().as_str(), shown(&board)), ("active", (Some(2), Some(1), Some(true))));
}

#[test]
fn events_of_ended_editions_are_ignored() {
    let mut board = Board::new();
    board.push(1, &module(1));
    board.is_lenient = false;
    board.push(2, &module(2));
    let edition = board.pipeline[FUNCTION].candidate.as_ref().unwrap().edition;
    board.push(3, &module(3));
    let before = board.report().clone();
    for event in [TrialEvent::Ready, TrialEvent::Passed, TrialEvent::Failed { failure: failure() }] {
        board.handle(Request::Trial { function: FUNCTION.into(), edition, event });
    }
    assert_eq!(*board.report(), before);
    board.trial(TrialEvent::Ready);
    board.trial(TrialEvent::Passed);
    assert_eq!(board.report().active.as_ref().unwrap().version.serial, 3);
}

#[test]
fn the_newest_of_several_pushes_wins_and_the_last_good_one_is_kept() {
    let mut board = Board::new();
    board.push(1, &module(1));
    board.send(&install(&manifest(2, ""), &module(2)));
    board.chunk(&module(2), 0);
    board.held = Some(Default::default());
    board.push(3, &module(3));
    board.send(&install(&manifest(4, ""), &module(4)));
    // Late chunks and results of superseded orders.
    board.chunks(&module(2));
    board.release();
    board.chunks(&module(4));
    assert_eq!((board.serving(), board.state()), (Some(4), "active".into()));
    assert_eq!(board.report().previous.as_ref().unwrap().serial, 1);
    board.tick(1);
    assert_eq!((board.files(MODULES).len(), board.files(STAGING).len()), (2, 0));
}

#[test]
fn a_rollback_swaps_active_and_previous() {
    let mut board = Board::new();
    board.push(1, &module(1));
    board.push(2, &module(2));
    board.send(&order(3, OrderChange::Rollback));
    assert_eq!((board.serving(), board.state()), (Some(1), "rolled-back requested".into()));
    let report = board.report();
    assert_eq!((report.serial, report.version.as_deref()), (Some(3), Some("1.1.0")));
    assert_eq!(report.previous.as_ref().unwrap().serial, 2);
    let mut board = board.restart();
    assert_eq!(board.serving(), Some(1));
    board.send(&order(4, OrderChange::Rollback));
    assert_eq!(board.serving(), Some(2));
    // Serials continue above the version that was rolled back.
    board.push(4, &module(3));
    assert_eq!(board.state(), "rejected replayed-serial");
}

#[test]
fn a_rollback_ends_a_trial() {
    let mut board = Board::new();
    board.push(1, &module(1));
    board.is_lenient = false;
    board.push(2, &module(2));
    board.trial(TrialEvent::Ready);
    board.send(&order(3, OrderChange::Rollback));
    assert!(board.pipeline[FUNCTION].candidate.is_none());
    assert_eq!((board.serving(), board.state()), (Some(1), "rolled-back requested".into()));
    assert_eq!(board.restart().serving(), Some(1));
}

#[test]
fn a_rollback_without_a_previous_version_is_refused() {
    let mut board = Board::new();
    board.send(&order(1, OrderChange::Rollback));
    assert_eq!(board.state(), "rejected not-installed");
    board.push(2, &module(2));
    board.send(&order(3, OrderChange::Rollback));
    assert_eq!((board.serving(), board.state()), (Some(2), "rejected no-previous".into()));
    board.send(&order(4, OrderChange::Promote));
    assert_eq!(board.state(), "rejected no-trial");
}

#[test]
fn a_rollback_whose_module_is_lost_keeps_what_runs() {
    let mut board = Board::new();
    board.push(1, &module(1));
    board.push(2, &module(2));
    std::fs::write(board.module_path(&module(1)), b"rot").unwrap();
    board.send(&order(3, OrderChange::Rollback));
    assert_eq!((board.serving(), board.state()), (Some(2), "rejected module-missing".into()));
}

#[test]
fn a_removed_function_stays_removed_and_its_serials_known() {
    let mut board = Board::new();
    board.send(&order(1, OrderChange::Remove));
    assert_eq!(board.state(), "rejected not-installed");
    board.push(2, &module(2));
    board.send(&order(3, OrderChange::Remove));
    assert_eq!((board.serving(), board.state()), (None, "removed requested".into()));
    board.tick(1);
    assert!(board.files(MODULES).is_empty());
    let mut board = board.restart();
    assert_eq!((board.serving(), board.state()), (None, "removed requested".into()));
    board.push(2, &module(2));
    assert_eq!(board.state(), "rejected replayed-serial");
    board.push(4, &module(4));
    assert_eq!((board.serving(), board.report().previous.as_ref()), (Some(4), None));
}

#[test]
fn a_shadow_waits_for_a_promotion() {
    let mut board = Board::new();
    board.push(1, &module(1));
    board.is_lenient = false;
    board.send(&install(&manifest(2, "[trial]\nmode = \"shadow\""), &module(2)));
    board.chunks(&module(2));
    board.trial(TrialEvent::Ready);
    let long: Box<str> = "é".repeat(400).into();
    let sample = Difference { topic: "s/1".into(), active: long.clone(), candidate: "2".into() };
    let samples = vec![sample; 9];
    board.trial(TrialEvent::Progress { tally: TrialTally { run: 10, failed: 0, different: 9 }, samples });
    assert_eq!(board.state(), "trial");
    let report = board.report();
    assert_eq!(report.differences.len(), 5);
    assert_eq!(report.differences[0].active.len(), 512);
    assert_eq!(report.progress, Some(Progress::Trial { messages: 10, run: 10, failed: 0, different: 9 }));
    board.tick(1000);
    assert_eq!((board.serving(), board.state()), (Some(1), "trial".into()));
    board.send(&order(3, OrderChange::Promote));
    assert_eq!((board.serving(), board.state()), (Some(2), "active".into()));
    assert_eq!(board.report().previous.as_ref().unwrap().serial, 1);
    assert_eq!(board.restart().serving(), Some(2));
}

#[test]
fn a_paused_function_is_reported_as_quarantined() {
    let mut board = Board::new();
    board.push(1, &module(1));
    board.tick(1);
    board.handle(Request::Quarantined { function: FUNCTION.into(), is_quarantined: true });
    assert_eq!(board.state(), "quarantined quarantined");
    assert!(board.report().active.is_some());
    board.handle(Request::Quarantined { function: FUNCTION.into(), is_quarantined: false });
    assert_eq!(board.state(), "active");
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new(wasm: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(format!("{FUNCTION}.wasm")), wasm).unwrap();
        Self(dir)
    }

    fn listed(&self, manifest: Manifest) -> Vec<(std::path::PathBuf, Manifest)> {
        vec![(self.0.path().to_owned(), manifest)]
    }
}

#[test]
fn a_folder_is_version_zero_and_can_be_returned_to() {
    let folder = Folder::new(&module(0));
    let mut board = Board::with(settings(&[("ops", &key())]), folder.listed(manifest(0, "")));
    assert_eq!((board.serving(), board.state()), (Some(0), "active".into()));
    assert!(board.files("functions").is_empty() && board.files(MODULES).is_empty());
    board.push(1, &module(1));
    assert_eq!(board.serving(), Some(1));
    // The folder may vanish: its component was copied.
    std::fs::remove_file(folder.0.path().join(format!("{FUNCTION}.wasm"))).unwrap();
    let mut board = board.restart();
    assert_eq!(board.serving(), Some(1));
    board.send(&order(2, OrderChange::Rollback));
    assert_eq!(board.serving(), Some(0));
    board.folders.clear();
    assert_eq!(board.restart().serving(), Some(0));
}

#[test]
fn a_newer_folder_wins_at_the_start_and_a_removed_one_does_not() {
    let folder = Folder::new(&module(9));
    let mut board = Board::new();
    board.push(1, &module(1));
    board.push(2, &module(2));
    board.folders = folder.listed(manifest(2, ""));
    let mut board = board.restart();
    assert_eq!(board.report().active.as_ref().unwrap().version.digest, sedge_core::deploy::digest(&module(2)));
    board.folders = folder.listed(manifest(5, ""));
    let mut board = board.restart();
    assert_eq!((board.serving(), board.report().previous.as_ref().unwrap().serial), (Some(5), 2));
    board.tick(2);
    assert_eq!(board.files(MODULES).len(), 2, "what the record names is kept");
    board.push(4, &module(4));
    assert_eq!(board.state(), "rejected replayed-serial");
    board.send(&order(6, OrderChange::Remove));
    let board = board.restart();
    assert_eq!(board.serving(), None);
}

#[test]
fn a_folder_without_its_component_is_reported() {
    let folder = Folder::new(b"world");
    let mut board = Board::with(settings(&[]), folder.listed(manifest(0, "")));
    assert_eq!((board.serving(), board.state()), (None, "rejected invalid-module".into()));
    std::fs::remove_file(folder.0.path().join(format!("{FUNCTION}.wasm"))).unwrap();
    let mut board = board.restart();
    assert_eq!((board.serving(), board.state()), (None, "rejected module-missing".into()));
    assert_eq!(board.report().active, None);
}

#[test]
fn a_lost_module_is_reported_and_a_push_replaces_it() {
    let mut board = Board::new();
    board.push(1, &module(1));
    std::fs::remove_file(board.module_path(&module(1))).unwrap();
    let mut board = board.restart();
    assert_eq!((board.serving(), board.state()), (None, "rejected module-missing".into()));
    board.push(2, &module(2));
    assert_eq!((board.serving(), board.state()), (Some(2), "active".into()));
}

#[test]
fn reports_are_made_at_most_once_a_second_between_changes_of_state() {
    let mut board = Board::new();
    let wasm = [module(1), module(2), module(3), module(4)].concat();
    board.send(&install(&manifest(1, ""), &wasm));
    let before = board.reported.len();
    for index in 0..13 {
        board.chunk(&wasm, index);
    }
    assert_eq!(board.reported.len(), before);
    board.tick(1);
    assert_eq!(board.report().progress, Some(Progress::Chunks { chunks: 14, received: 13 }));
    assert_eq!(board.reported.len(), before + 1);
    board.tick(5);
    assert_eq!(board.reported.len(), before + 1, "nothing new");
}

#[test]
fn a_version_that_workers_cannot_load_is_rejected() {
    let mut board = Board::new();
    board.push(1, &module(1));
    board.is_lenient = false;
    board.push(2, &module(2));
    board.trial(TrialEvent::NotLoaded { error: "out of memory".into() });
    assert_eq!((board.serving(), board.state()), (Some(1), "rejected not-loaded".into()));
    assert!(board.pipeline[FUNCTION].candidate.is_none());
}

#[test]
fn a_compiler_that_cannot_be_run_is_tried_three_times() {
    let mut board = Board::new();
    board.push(1, &module(1));
    board.held = Some(Default::default());
    board.push(2, &module(2));
    for attempt in 1..=3 {
        let Some(Request::Compiled { function, edition, .. }) = board.held.as_mut().unwrap().pop_front() else {
            panic!("attempt {attempt} was not made");
        };
        let result = Err(std::io::Error::from(std::io::ErrorKind::OutOfMemory).into());
        board.handle(Request::Compiled { function, edition, result });
        board.tick(1);
    }
    assert_eq!((board.serving(), board.state()), (Some(1), "rejected compiler-failed".into()));
    assert_eq!(board.report().reason, Some(Reason::CompilerFailed));
}
