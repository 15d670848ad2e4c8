//! `[functions.settings.<function>]`, its merging and its mistakes.

use super::*;
use crate::manifest::Manifest;
use crate::settings::{Origin, Overlay};

fn manifest(lines: &str) -> Manifest {
    let text = format!("name = \"freezer\"\nversion = \"1\"\nsubscribe = [\"s/#\"]\n{lines}");
    Manifest::from_toml(&text, Path::new("function.toml"), None).unwrap()
}

fn overlay(config: &Config) -> Overlay {
    Overlay::new(config.functions.settings.get("freezer").map(|settings| (Origin::Board, settings.layer())))
}

type Pairs = Vec<(String, String)>;

/// The settings of all topics, and those of one.
fn resolved(text: &str, manifest: &Manifest, topic: &str) -> (Pairs, Pairs) {
    let (config, found) = inspect(text);
    assert_eq!(found, [""; 0], "in:\n{text}");
    let settings = overlay(&config).resolve(manifest).settings();
    let of_topic = settings.of_topic(topic).unwrap_or_default();
    (settings.all, of_topic)
}

fn pairs(pairs: &[(&str, &str)]) -> Pairs {
    pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

#[test]
fn the_boards_file_is_laid_over_the_settings_of_a_function() {
    let manifest = manifest("[config]\nmax = -15\nmode = \"day\"\nlevels = [1, 2]\n[config.oven]\nmax = 240\nmin = 5");
    let text = "[functions.settings.freezer]\nmax = -18.5\nlevels = [7]\n\"oven.min\" = 6\n[functions.settings.freezer.oven]\nmax = 250\n\
                [functions.settings.other]\nmax = 1\n";
    let expected = [("levels", "[7]"), ("max", "-18.5"), ("mode", "day"), ("oven.max", "250"), ("oven.min", "6")];
    assert_eq!(resolved(text, &manifest, "s/1"), (pairs(&expected), Vec::new()));
    let (config, _) = inspect(text);
    let resolved = overlay(&config).resolve(&manifest);
    assert_eq!((&resolved.all["max"].origin, &resolved.all["mode"].origin), (&Origin::Board, &Origin::Function));
    let nothing = Overlay::default().resolve(&manifest).settings();
    assert_eq!(
        nothing.all,
        pairs(&[("levels", "[1,2]"), ("max", "-15"), ("mode", "day"), ("oven.max", "240"), ("oven.min", "5")])
    );
}

#[test]
fn topics_have_values_of_their_own_and_an_exact_topic_counts_most() {
    let manifest = manifest("[config]\nmax = 1\nmin = 0");
    let text = "[functions.settings.freezer]\nmax = 2\n[functions.settings.freezer.topics.\"s/7/t\"]\nmax = 5\n\
                [functions.settings.freezer.topics.\"s/+/t\"]\nmax = 3\nmin = 1\n[functions.settings.freezer.topics.\"s/#\"]\nmin = -1\n";
    let all = pairs(&[("max", "2"), ("min", "0")]);
    for (topic, max, min) in [("s/7/t", "5", "1"), ("s/8/t", "3", "1"), ("s/8/h", "2", "-1")] {
        assert_eq!(resolved(text, &manifest, topic), (all.clone(), pairs(&[("max", max), ("min", min)])), "{topic}");
    }
    assert_eq!(resolved(text, &manifest, "t/1"), (all, Vec::new()));
}

#[test]
fn the_settings_of_a_function_are_held_against_its_declarations() {
    let manifest = manifest(
        "[settings.max]\ntype = \"number\"\nmax = 0\nunit = \"°C\"\n[settings.token]\ntype = \"text\"\nsecret = true\n[config]\nmin = 1",
    );
    let text = "[functions.settings.freezer]\nmax = 300\nmaxx = 1\ntoken = \"open\"\n\
                [functions.settings.freezer.topics.\"s/1\"]\nmax = \"warm\"\nmin = 3\n";
    let (config, found) = inspect(text);
    assert_eq!(found, [""; 0]);
    let problems: Vec<String> = config.functions.check_settings(&manifest).iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "sedge.toml:2:7: functions.settings.freezer.max: \"300\" is above 0; use a number of at most 0 °C",
            "sedge.toml:3:8: functions.settings.freezer.maxx: freezer has no such setting; did you mean max?",
            "sedge.toml:4:9: functions.settings.freezer.token: declared as secret, and only a file of the board may hold it; in \
             the board's configuration write token = { file = \"...\" }",
            "sedge.toml:6:7: functions.settings.freezer.topics.\"s/1\".max: \"warm\" is not a number; use a number of at most 0 \
             °C",
        ]
    );
    // What is refused is left out, and the rest applies.
    let resolved = overlay(&config).resolve(&manifest);
    assert_eq!((resolved.refused.len(), resolved.missing.len()), (4, 0));
    assert_eq!(Overlay::default().resolve(&manifest).missing, ["max", "token"]);
    assert_eq!(resolved.settings().of_topic("s/1").unwrap(), pairs(&[("min", "3")]));
}

#[test]
fn mistakes_in_the_section_of_settings() {
    check(
        "[functions.settings]\nmax = 3\n[functions.settings.Freezer]\nmax = 1\n[functions.settings.f]\nwhen = 2026-01-01\n\
         [functions.settings.f.topics.\"a/#/b\"]\nmax = 1\n",
        &[
            "sedge.toml:2:7: functions.settings.max: expected a section, found a number; write it as [functions.settings.max]",
            "sedge.toml:3:1: functions.settings.Freezer: \"Freezer\" is not a function name; write [functions.settings.NAME] with \
             the name in function.toml",
            "sedge.toml:6:8: functions.settings.f.when: expected a string, a number, true, false, a list or a section, found a date",
            "sedge.toml:7:1: functions.settings.f.topics.a/#/b: # must be the last level",
        ],
    );
}

#[test]
fn a_secret_comes_from_its_file_and_is_not_shown() {
    let board = Folder::new().file("token", 0o600, "hunter2\n").file(
        "sedge.toml",
        0o644,
        "[functions.settings.freezer]\ntoken = { file = \"token\" }\n\"oven.file\" = \"plain\"\n",
    );
    let (config, problems) = board.inspect();
    assert_eq!(problems, [""; 0]);
    let manifest = manifest("[settings.token]\ntype = \"text\"\nsecret = true\n[config]\noven.file = \"x\"");
    let resolved = overlay(&config).resolve(&manifest);
    assert_eq!((&*resolved.all["token"].text, resolved.all["token"].is_secret), ("hunter2", true));
    let settings = resolved.settings();
    assert!(settings.all.contains(&("token".to_owned(), "hunter2".to_owned())));
    for shown in
        [format!("{config:?}"), format!("{resolved:?}"), format!("{settings:?}"), format!("{:?}", overlay(&config))]
    {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

#[test]
fn a_file_of_a_setting_that_is_not_there_is_a_problem() {
    let board = Folder::new().file("sedge.toml", 0o644, "[functions.settings.freezer]\ntoken = { file = \"gone\" }\n");
    let (_, problems) = board.inspect();
    assert!(
        problems[0].contains("functions.settings.freezer.token.file") && problems[0].contains("gone cannot be read"),
        "{problems:?}"
    );
}
