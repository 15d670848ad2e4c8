//! SPECIFICATION.md names tests and rules that exist, and every rule.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::fs;
use std::path::{Path, PathBuf};

/// Source files below a folder, by their path from the root, with their text.
fn sources(root: &Path, folder: &Path, into: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            sources(root, &path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            into.push((path.strip_prefix(root).unwrap().to_owned(), text));
        }
    }
}

/// Whether the modules of a test occur in the path of its file, in this order.
fn lies_in(path: &Path, modules: &[&str]) -> bool {
    let mut names = path.iter().filter_map(|name| name.to_str()).map(|name| name.trim_end_matches(".rs"));
    modules.iter().all(|module| names.any(|name| name == *module))
}

fn has_test(text: &str, name: &str) -> bool {
    text.match_indices(&format!("fn {name}(")).any(|(at, _)| {
        let attributes = text[..at].rsplit("\n\n").next().unwrap();
        attributes.contains("#[test]")
    })
}

#[test]
fn every_named_test_and_rule_exists_and_no_rule_is_missing() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let specification = fs::read_to_string(root.join("SPECIFICATION.md")).unwrap();
    let mut files = Vec::new();
    sources(root, &root.join("host"), &mut files);
    sources(root, &root.join("tests/it"), &mut files);
    sources(root, &root.join("guest-sdk/src"), &mut files);
    let reference = fs::read_to_string(root.join("host/sim/src/reference.rs")).unwrap();
    let constants = reference.lines().filter(|line| line.starts_with("pub const") && line.contains(": &str = "));
    let rules: Vec<&str> = constants.map(|line| line.split('"').nth(1).unwrap()).collect();

    let promises = specification.split("\n## ").skip(1).flat_map(str::lines).filter(|line| line.starts_with('|'));
    let mut wrong: Vec<String> = Vec::new();
    let mut named_rules = Vec::new();
    for promise in promises.filter(|line| !line.starts_with("| promise") && !line.starts_with("|---")) {
        let (promise, held_by) = promise.trim_matches('|').trim().rsplit_once(" | ").unwrap();
        let names: Vec<&str> = held_by.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            wrong.push(format!("nothing holds: {promise}"));
        }
        for name in names {
            if let Some(rule) = name.strip_prefix("rule: ") {
                named_rules.push(rule);
                continue;
            }
            let modules: Vec<&str> = name.split("::").collect();
            let (test, modules) = modules.split_last().unwrap();
            if modules.is_empty() || !files.iter().any(|(path, text)| lies_in(path, modules) && has_test(text, test)) {
                wrong.push(format!("no such test: {name}"));
            }
        }
    }
    wrong.extend(named_rules.iter().filter(|rule| !rules.contains(rule)).map(|rule| format!("no such rule: {rule}")));
    wrong.extend(rules.iter().filter(|rule| !named_rules.contains(rule)).map(|rule| format!("not named: {rule}")));
    assert!(!rules.is_empty() && wrong.is_empty(), "SPECIFICATION.md: {wrong:#?}");
}
