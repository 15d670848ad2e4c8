//! Settings of functions: whether the board's file fits them, and what they are.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use serde_json::{Value, json};

use crate::printable;
use sedge_core::config::problem::{Invalid, Location};
use sedge_core::config::{Config, Problem, Problems};
use sedge_core::deploy::record::{self, Record};
use sedge_core::manifest::Manifest;
use sedge_core::settings::{Origin, Overlay, Resolved, Setting};

/// Checks `[functions.settings]` against the functions from folders and those that were pushed. The problems are errors for
/// functions that this board has, and warnings for others.
pub(super) fn check(config: &Config, folders: &[&Manifest], file: &Path) -> Problems {
    let mut problems = Problems::default();
    let settings = &config.functions.settings;
    let pushed = pushed(&config.node.data_dir.join("deploy").join("functions"));
    let pushed_manifests = pushed.as_deref().unwrap_or_default();
    let mut known = BTreeSet::new();
    for manifest in folders.iter().copied().chain(pushed_manifests) {
        known.insert(&*manifest.name);
        // Of a folder and a push, the one with the higher serial serves.
        let others = folders.iter().copied().chain(pushed_manifests).filter(|it| it.name == manifest.name);
        if others.map(|it| it.serial).max() == Some(manifest.serial) {
            problems.extend(config.functions.check_settings(manifest));
            problems.extend(missing(config, manifest, file));
        }
    }
    for (name, settings) in settings.iter().filter(|(name, _)| !known.contains(&***name)) {
        let values = settings.all.values().chain(settings.topics.values().flat_map(|values| values.values()));
        let at = values.map(|value| value.at.clone()).min().unwrap_or_else(|| Location::whole(file));
        let what = match pushed {
            Ok(_) => format!("no function {name} is installed, so these settings are for none"),
            Err(_) => format!("no folder holds a function {name}, and whether it was pushed cannot be read"),
        };
        let invalid = Invalid::new(what).hint("correct the name, or push the function");
        problems.push(Problem::warning(at, format!("functions.settings.{name}"), invalid));
    }
    problems
}

/// Declared settings without a value.
fn missing(config: &Config, manifest: &Manifest, file: &Path) -> Problems {
    let mut problems = Problems::default();
    for name in resolve(config, manifest).missing {
        let declaration = manifest.declaration(&name).map(ToString::to_string).unwrap_or_default();
        let invalid = Invalid::new(format!("{} has no value for setting {name}", manifest.name));
        let invalid = invalid.hint(format!("set it in [functions.settings.{}]: {declaration}", manifest.name));
        let key = format!("functions.settings.{}.{name}", manifest.name);
        problems.push(Problem::error(Location::whole(file), key, invalid));
    }
    problems
}

/// Manifests of the versions that were pushed and are active.
fn pushed(folder: &Path) -> Result<Vec<Manifest>, io::Error> {
    let files = match std::fs::read_dir(folder) {
        Ok(files) => files,
        // The daemon has not run yet.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let manifest = |bytes: Vec<u8>| {
        let active = record::decode::<Record>(&bytes)?.active?;
        Manifest::from_json(&active.manifest.to_json(), None).ok()
    };
    let mut manifests = Vec::new();
    for file in files {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "record") {
            manifests.extend(manifest(std::fs::read(path)?));
        }
    }
    Ok(manifests)
}

fn resolve(config: &Config, manifest: &Manifest) -> Resolved {
    let layer = config.functions.settings.get(&*manifest.name).map(|settings| (Origin::Board, settings.layer()));
    Overlay::new(layer).resolve(manifest)
}

/// One line for each setting: its value and where that comes from.
pub(super) fn print(out: &mut impl Write, config: &Config, manifest: &Manifest) -> io::Result<()> {
    let resolved = resolve(config, manifest);
    let mut line = |name: &str, setting: &Setting, topic: &str| {
        let unit = manifest.declaration(name).and_then(|it| it.unit.as_ref()).map(|unit| format!(" {unit}"));
        let value = match setting.is_secret {
            true => "(secret)".to_owned(),
            false => printable(&setting.text) + &unit.unwrap_or_default(),
        };
        writeln!(out, "  setting  {name} = {value}, from {}{topic}", setting.origin)
    };
    for (name, setting) in &resolved.all {
        line(name, setting, "")?;
    }
    for (filter, settings) in &resolved.topics {
        for (name, setting) in settings {
            line(name, setting, &format!(", for {}", filter.as_str()))?;
        }
    }
    Ok(())
}

pub(super) fn as_json(config: &Config, manifest: &Manifest) -> Value {
    let resolved = resolve(config, manifest);
    let entry = |name: &String, setting: &Setting, topic: Option<&str>| {
        let value = (!setting.is_secret).then_some(&*setting.text);
        json!({ "name": name, "topic": topic, "value": value, "from": setting.origin.word() })
    };
    let all = resolved.all.iter().map(|(name, setting)| entry(name, setting, None));
    let of_topics = resolved.topics.iter().flat_map(|(filter, settings)| {
        settings.iter().map(|(name, setting)| entry(name, setting, Some(filter.as_str())))
    });
    all.chain(of_topics).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sedge_core::deploy::payload::Document;
    use sedge_core::deploy::record::StoredVersion;
    use sedge_core::message::Digest;

    fn manifest(lines: &str) -> Manifest {
        let text = format!("name = \"freezer\"\nversion = \"1\"\nserial = 3\nsubscribe = [\"s/#\"]\n{lines}");
        Manifest::from_toml(&text, Path::new("function.toml"), None).unwrap()
    }

    const DECLARED: &str = "[settings.max]\ntype = \"number\"\nmax = 0\nunit = \"°C\"\n[config]\nmode = \"day\"";

    fn config(text: &str) -> (Config, tempfile::TempDir) {
        let data = tempfile::tempdir().unwrap();
        let text = format!("[node]\nname = \"b\"\ndata_dir = {:?}\n{text}", data.path());
        let (config, problems) = Config::parse(&text, Path::new("sedge.toml"));
        assert_eq!(problems, Problems::default());
        (config, data)
    }

    fn checked(config: &Config, folders: &[&Manifest]) -> Vec<String> {
        check(config, folders, Path::new("sedge.toml")).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn settings_show_where_they_come_from() {
        let manifest = manifest(DECLARED);
        let (config, _data) = config(
            "[functions.settings.freezer]\nmax = -18.5\n[functions.settings.freezer.topics.\"s/7\"]\nmax = -20\n",
        );
        assert_eq!(checked(&config, &[&manifest]), [""; 0]);
        let mut out = Vec::new();
        print(&mut out, &config, &manifest).unwrap();
        let expected = "  setting  max = -18.5 °C, from the board's file\n  setting  mode = day, from function.toml\n  \
                        setting  max = -20 °C, from the board's file, for s/7\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        let json = as_json(&config, &manifest);
        assert_eq!(
            (&json[0]["value"], &json[0]["from"], &json[2]["topic"]),
            (&"-18.5".into(), &"board".into(), &"s/7".into())
        );
    }

    #[test]
    fn settings_that_are_missing_wrong_or_for_no_function_are_named() {
        let manifest = manifest(DECLARED);
        let (bare, _data) = config("");
        assert_eq!(
            checked(&bare, &[&manifest]),
            ["sedge.toml: functions.settings.freezer.max: freezer has no value for setting max; set it in \
              [functions.settings.freezer]: a number of at most 0 °C"]
        );
        let (wrong, _data) = config("[functions.settings.freezer]\nmax = 300\n[functions.settings.frezer]\nmax = 1\n");
        let found = checked(&wrong, &[&manifest]);
        assert!(found[0].contains("functions.settings.freezer.max: \"300\" is above 0"), "{found:?}");
        assert!(
            found[1].starts_with("sedge.toml:7:7: warning: functions.settings.frezer: no function frezer is installed"),
            "{found:?}"
        );
    }

    #[test]
    fn a_pushed_function_is_known_and_decides_if_its_serial_is_higher() {
        let (config, data) = config("[functions.settings.freezer]\nmax = -5\n");
        let folder = data.path().join("deploy/functions");
        std::fs::create_dir_all(&folder).unwrap();
        let pushed = |serial: u64| {
            let text = format!(
                "name = \"freezer\"\nversion = \"2\"\nserial = {serial}\nevery = \"1s\"\n[settings.max]\ntype = \"number\"\nmax = -10"
            );
            let pushed = Manifest::from_toml(&text, Path::new("function.toml"), None).unwrap();
            let (manifest, digest) = (Document::of(&pushed), Digest([0; 32]));
            let active = Some(StoredVersion { manifest, digest, is_code: false, confined_to: Vec::new() });
            let record = Record { active, ..Record::new("freezer") };
            std::fs::write(folder.join("freezer.record"), record::encode(&record)).unwrap();
        };
        pushed(7);
        let found = checked(&config, &[]);
        assert!(found.len() == 1 && found[0].contains("is above -10"), "{found:?}");
        pushed(2);
        assert_eq!(checked(&config, &[&manifest(DECLARED)]), [""; 0]);
    }
}
