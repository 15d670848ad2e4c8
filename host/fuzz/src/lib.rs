//! Fuzz targets: each reads arbitrary bytes where Sedge reads what a stranger, a device or a guest wrote, and panics if it finds
//! a rule broken.
//!
//! `scripts/fuzz.sh` runs each for a minute with the mutations of [`mutate`], on a stable compiler. With `cargo fuzz`, which
//! needs a nightly one, a target is `fuzz_target!(|data: &[u8]| sedge_fuzz::targets::orders(data))`, and its corpus the same.
//! An input that broke a rule is kept in the corpus, where `cargo test --package sedge-fuzz` runs it.

pub mod mutate;
pub mod targets;

use std::fs;
use std::path::{Path, PathBuf};

/// Inputs are cut to this length. Longer ones find little more and take long.
pub const MAX_BYTES: usize = 16 << 10;

/// One target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Words of the format, which chance would not find.
    pub words: &'static [&'static str],
}

/// All targets.
pub const TARGETS: [Target; 10] = [
    Target { name: "frames", run: targets::frames, words: &[] },
    Target { name: "rows", run: targets::rows, words: &[] },
    Target { name: "records", run: targets::records, words: &["{\"", "\":", "null", "[]"] },
    Target {
        name: "orders",
        run: targets::orders,
        words: &[
            "payloadType",
            "application/vnd.sedge.deploy+json",
            "payload",
            "signatures",
            "keyid",
            "sig",
            "\"",
            "\\u0000",
        ],
    },
    Target {
        name: "manifest",
        run: targets::manifest,
        words: &[
            "name",
            "subscribe",
            "[limits]",
            "[config]",
            "allow.publish",
            "every",
            "trial",
            "#",
            "+/",
            "\"\"\"",
            "'",
            "1e400",
        ],
    },
    Target {
        name: "configuration",
        run: targets::configuration,
        words: &[
            "[mqtt]",
            "url",
            "mqtts://",
            "wss://",
            "[store]",
            "[deploy.keys.a]",
            "when_full",
            "inf",
            "nan",
            "\\u202e",
            "1979-05-27",
        ],
    },
    Target {
        name: "requests",
        run: targets::requests,
        words: &["POST /", "GET /", "/{sensor}", "%2F", "%25", "+", "#", "=", "&", "/*", "\n"],
    },
    Target {
        name: "topics",
        run: targets::topics,
        words: &["+", "#", "/", "$share/", "sedge/", "deploy/", "blob/", "\0", "é"],
    },
    Target {
        name: "payloads",
        run: targets::payloads,
        words: &[
            "{\"",
            "\":",
            "temperature",
            "1e999",
            "NaN",
            "-0",
            "\u{feff}",
            ",5",
            "[[",
            "\\ud800",
            "9007199254740993",
        ],
    },
    Target { name: "modules", run: targets::modules, words: &[] },
];

/// The inputs of a target's corpus, in order of their names.
pub fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).into_iter().flatten().flatten().map(|it| it.path()).collect();
    paths.sort();
    paths.into_iter().filter_map(|path| fs::read(&path).ok().map(|bytes| (path, bytes))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_and_mutations_of_it_break_no_rule() {
        for Target { name, run, words } in TARGETS {
            let corpus = corpus(name);
            assert!(!corpus.is_empty(), "{name} has no corpus");
            let seeds: Vec<Vec<u8>> = corpus.into_iter().map(|(_, bytes)| bytes).collect();
            seeds.iter().for_each(|seed| run(seed));
            let mut mutator = mutate::Mutator::new(7, words);
            // Modules are compiled.
            let times = if name == "modules" { 20 } else { 2000 };
            (0..times).for_each(|_| run(&mutator.input(&seeds)));
        }
    }
}
