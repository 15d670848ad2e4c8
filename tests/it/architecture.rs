//! Which part may know which: the table of ARCHITECTURE.md, checked against the source.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Modules that every part may use: plain data and the clock.
const VOCABULARY: [&str; 5] = ["message", "program", "stream", "time", "topic"];

/// What each part may name beside the vocabulary. `*`: everything.
const MAY_KNOW: [(&str, &[&str]); 24] = [
    ("message", &[]),
    ("topic", &[]),
    ("program", &[]),
    ("footprint", &[]),
    ("stream", &[]),
    ("time", &[]),
    ("key", &[]),
    ("config", &["manifest", "key"]),
    ("manifest", &["config"]),
    ("router", &["manifest"]),
    // The leaves: their own section of the configuration, never each other.
    ("mqtt", &["config"]),
    ("store", &["config"]),
    ("sandbox", &["config", "manifest", "component"]),
    ("component", &[]),
    ("telemetry", &["config"]),
    // The process around the sandbox.
    ("worker", &["config", "footprint", "manifest", "sandbox"]),
    ("compile", &["config", "sandbox", "component"]),
    // The spines know leaves. Functions run elsewhere: only deploying asks what the sandbox accepts.
    ("pipeline", &["config", "manifest", "mqtt", "router", "store", "telemetry", "worker", "forward"]),
    ("forward", &["config", "mqtt", "store", "telemetry"]),
    ("deploy", &["config", "key", "manifest", "component", "sandbox", "telemetry"]),
    // The roots.
    ("daemon", &["*"]),
    ("cli", &["*"]),
    ("lib", &["*"]),
    ("main", &["config", "telemetry", "daemon", "cli"]),
];

/// A crate, and the only part that names it.
const OWNERS: [(&str, &str); 3] = [("rumqttc", "mqtt"), ("rusqlite", "store"), ("wasmtime", "sandbox")];

#[test]
fn parts_know_only_what_the_table_allows() {
    let parts = parts();
    let table: BTreeMap<&str, &[&str]> = MAY_KNOW.into_iter().collect();
    let mut wrong = Vec::new();
    for (part, files) in &parts {
        let Some(allowed) = table.get(part.as_str()) else {
            wrong.push(format!("{part} is not in the table: decide what it may know, here and in ARCHITECTURE.md"));
            continue;
        };
        for (file, source) in files {
            for other in named(source, if part == "main" { "sedge::" } else { "crate::" }) {
                let known = other == *part
                    || VOCABULARY.contains(&other.as_str())
                    || allowed.contains(&"*")
                    || allowed.contains(&other.as_str());
                if parts.contains_key(&other) && !known {
                    wrong.push(format!("{} names {other}, which {part} may not know", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn one_part_names_each_of_the_large_crates() {
    let mut wrong = Vec::new();
    for (part, files) in parts() {
        for (file, source) in files {
            for (name, owner) in OWNERS {
                if part != owner && mentions(&source, name) {
                    wrong.push(format!("{} names {name}, which is {owner}'s", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_reading_of_source_finds_paths_in_code_only() {
    let source = code(
        "//! Like [`crate::store`].\nuse crate::{config, mqtt::Link};\nfn f() { crate::router::go() } // crate::forward\n#[cfg(test)]\nmod tests { use crate::deploy; }\n",
    );
    assert_eq!(named(&source, "crate::"), ["config", "mqtt", "router"].map(String::from).into());
    assert!(mentions("use wasmtime::Engine;", "wasmtime") && mentions("wasmtime::Store::new()", "wasmtime"));
    assert!(!mentions("let wasmtimes = \"wasmtime 48\";", "wasmtime"));
}

/// The top-level modules of the host, each with its files without comments and tests.
fn parts() -> BTreeMap<String, Vec<(PathBuf, String)>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut parts: BTreeMap<String, Vec<(PathBuf, String)>> = BTreeMap::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("read host/src").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            if path.extension().is_none_or(|extension| extension != "rs") || stem == "tests" || stem.ends_with("_tests")
            {
                continue;
            }
            let relative = path.strip_prefix(&root).expect("it lies below host/src");
            let part = relative.components().next().expect("a file has a name").as_os_str().to_string_lossy();
            let part = part.trim_end_matches(".rs").to_owned();
            let source = fs::read_to_string(&path).expect("read a source file");
            parts.entry(part).or_default().push((relative.to_owned(), code(&source)));
        }
    }
    assert!(parts.len() > 3, "there is no source to read in {}", root.display());
    parts
}

/// The source without comments, up to its unit tests.
fn code(source: &str) -> String {
    let source = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    source.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The modules behind the name of the crate.
fn named(source: &str, root: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in source.match_indices(root) {
        if source[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == '$') {
            continue;
        }
        let rest = &source[at + root.len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(group_heads(group)),
            None => found.extend(word(rest)),
        }
    }
    found
}

/// The first word of each member of `{a, b::c, d::{e, f}}`, whose opening brace is gone.
fn group_heads(group: &str) -> Vec<String> {
    let (mut depth, mut heads, mut at_head) = (1, Vec::new(), true);
    for (at, symbol) in group.char_indices() {
        match symbol {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => at_head = true,
            symbol if at_head && !symbol.is_whitespace() => {
                heads.extend(word(&group[at..]));
                at_head = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    heads
}

fn word(text: &str) -> Option<String> {
    let end = text.find(|symbol: char| !symbol.is_alphanumeric() && symbol != '_').unwrap_or(text.len());
    (end > 0).then(|| text[..end].to_owned())
}

/// Whether a crate is used: `name::` or `use name;`, as a word of its own.
fn mentions(source: &str, name: &str) -> bool {
    source.match_indices(name).any(|(at, _)| {
        let before = source[..at].chars().next_back();
        let after = &source[at + name.len()..];
        !before.is_some_and(|symbol| symbol.is_alphanumeric() || symbol == '_' || symbol == ':')
            && (after.starts_with("::") || (source[..at].trim_end().ends_with("use") && after.starts_with(';')))
    })
}
