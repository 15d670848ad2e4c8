//! Functions in TypeScript: from a new folder to an alert, with places of the source in errors.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::{PATIENCE, Yard, answer, cached, sedge, text};
use crate::harness::daemon::{Daemon, NODE, Setup};
use crate::harness::eventually;
use crate::harness::guest::root;
use crate::harness::mosquitto::Mosquitto;
use crate::harness::upstream::Upstream;
use crate::harness::wire::Publish;

#[track_caller]
fn new_function(dir: &Path) {
    let made = sedge(&["new", "--lang", "ts", "too-warm", "--dir", text(dir)]);
    assert!(made.status.success(), "{made:?}");
}

#[test]
fn a_new_function_in_typescript_passes_its_test_and_runs_on_a_board() {
    let yard = Yard::start();
    let alerts = Upstream::collect_filter(yard.broker.port, "alerts", &format!("sedge/{NODE}/alerts/too-warm"));
    let dir = yard.folder.path().join("too-warm");
    new_function(&dir);
    let tested = sedge(&["test", text(&dir)]);
    assert!(tested.status.success(), "{tested:?}");
    let path = dir.join("function.toml");
    let manifest = fs::read_to_string(&path).unwrap().replace("sensors/+/temperature", "warm/#");
    fs::write(path, manifest + "\n[trial]\nmessages = 1\nsecs = 1\n").unwrap();

    let push = || {
        let mut command = yard.command(&["push", text(&dir)]);
        command.arg("--json");
        answer(&cached(command))
    };
    let (code, answered) = push();
    assert_eq!((code, &answered["counts"]), (Some(0), &json!({ "active": 1 })), "{answered}");
    yard.publish(Publish::new("warm/oven", "{\"temperature\":90}"));
    assert!(eventually(PATIENCE, || !alerts.received().is_empty()), "{}", yard.daemon.log());
    yard.serves("v1");

    // The place is that of the author's file, on the board too.
    let source = "type Reading = { a?: { b: { c: number } } };\nexport function handle(message: any): void {\n  \
                  const reading = message.json as Reading; if ('a' in reading) reading.a!.b.c;\n}\n";
    fs::write(dir.join("function.ts"), source).unwrap();
    let path = dir.join("function.toml");
    fs::write(&path, fs::read_to_string(&path).unwrap().replace("\"0.1.0\"", "\"0.2.0\"")).unwrap();
    let (code, answered) = push();
    assert_eq!(code, Some(0), "{answered}");
    // The first message proves the version; until then a failure would roll it back.
    yard.publish(Publish::new("warm/oven", "{}"));
    yard.publish(Publish::new("warm/oven", "{\"a\":{}}"));
    let letters = || yard.daemon.metric_with("sedge_dead_letters_total", "reason=\"exception\"");
    assert!(eventually(PATIENCE, || letters() == 1.0), "{}", yard.daemon.log());
    let shown = String::from_utf8_lossy(&yard.daemon.command(&["dead-letters", "show", "1"]).stdout).into_owned();
    assert!(shown.contains("cannot read property 'c' of undefined (function.ts:3:64)"), "{shown}");
}

#[test]
fn what_cannot_be_erased_is_refused_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("wrong");
    new_function(&dir);
    fs::create_dir(dir.join("lib")).unwrap();
    fs::write(dir.join("function.ts"), "import { Level } from './lib/level.ts';\nexport function handle() { Level }\n")
        .unwrap();
    fs::write(dir.join("lib/level.ts"), "export const a = 1;\nexport enum Level { Low, High }\n").unwrap();
    for arguments in
        [&["build", text(&dir)][..], &["invoke", text(&dir), "--topic", "a", "--payload", "1"], &["test", text(&dir)]]
    {
        let output = sedge(arguments);
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(!output.status.success(), "{said}");
        let expected = "lib/level.ts:2:8: an enum makes code: write `const Level = { ... } as const`";
        assert!(said.contains(expected), "{said}");
    }
    // Two problems have a line each.
    fs::write(dir.join("lib/level.ts"), "export enum Level {}\nexport let a = <any>1;\n").unwrap();
    let said = String::from_utf8_lossy(&sedge(&["build", text(&dir)]).stderr).into_owned();
    assert!(
        said.contains("2 problems\n  lib/level.ts:1:8: an enum") && said.contains("\n  lib/level.ts:2:16: `<T>value`"),
        "{said}"
    );
}

#[test]
fn the_example_passes_its_test() {
    let tested = sedge(&["test", text(&root().join("examples/typescript/threshold"))]);
    assert!(tested.status.success(), "{tested:?}");
}

#[test]
fn a_board_takes_no_typescript_from_its_folders() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("too-warm");
    new_function(&dir);
    let broker = Mosquitto::start();
    let mut board = Daemon::prepare(&Setup::new(broker.url()).function(&dir));
    board.launch();
    let why = "function.ts is TypeScript, and boards run JavaScript";
    assert!(eventually(PATIENCE, || board.log().contains(why)), "{}", board.log());
    let check = board.command(&["check"]);
    let said = String::from_utf8_lossy(&check.stderr);
    assert!(!check.status.success() && said.contains(why), "{said}");
}
