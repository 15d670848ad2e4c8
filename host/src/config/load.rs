//! From files to a [`Config`], and from its folders to manifests.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::document::Table;
use super::problem::{Invalid, Location, Problem, Problems};
use super::{Config, Functions, sections};
use crate::manifest::{self, Manifest};

impl Config {
    /// Reads a file and `conf.d/*.toml` beside it. Who wants the warnings too calls [`Config::inspect`].
    pub fn load(path: &Path) -> Result<Self, Problems> {
        let (config, problems) = Self::inspect(path);
        if problems.has_errors() { Err(problems) } else { Ok(config) }
    }

    /// As much of the configuration as could be read, and all that is wrong with it.
    pub fn inspect(path: &Path) -> (Self, Problems) {
        let mut problems = Problems::default();
        let mut table = Table::empty(path);
        for file in files(path, &mut problems) {
            match std::fs::read_to_string(&file) {
                Ok(text) => {
                    let (over, syntax) = Table::from_toml(&text, &file);
                    problems.extend(syntax);
                    table.merge(over);
                }
                Err(error) => problems.push(unreadable(&file, &error)),
            }
        }
        Self::judge(&table, problems)
    }

    /// From text. Paths are relative to the folder of `file`, which need not exist.
    pub fn parse(text: &str, file: &Path) -> (Self, Problems) {
        let (table, syntax) = Table::from_toml(text, file);
        Self::judge(&table, syntax)
    }

    fn judge(table: &Table, mut problems: Problems) -> (Self, Problems) {
        let (config, mut rest, _) = sections::read(table);
        // What the parser made of a broken line, or of a file that is not there, says nothing more to a person.
        let told: Vec<Location> = problems.iter().map(|problem| problem.at.clone()).collect();
        rest.retain(|problem| !told.iter().any(|at| at.file == problem.at.file && at.line == problem.at.line));
        problems.extend(rest);
        problems.sort();
        (config, problems)
    }

    /// Every key that a configuration can have, in full, in the order of the sections.
    pub fn keys() -> Vec<String> {
        let (_, _, mut keys) = sections::read(&Table::empty(Path::new("")));
        let is_section =
            |key: &str| keys.iter().any(|other| other.strip_prefix(key).is_some_and(|it| it.starts_with('.')));
        let sections: Vec<String> = keys.iter().filter(|key| is_section(key)).cloned().collect();
        keys.retain(|key| !sections.contains(key));
        keys
    }
}

impl Functions {
    /// Like [`Functions::load`], without the folders that [`Config::inspect`] has complained about.
    pub fn load_present(&self) -> (Vec<(PathBuf, Manifest)>, Problems) {
        let mut paths: Vec<PathBuf> = Vec::new();
        for path in &self.paths {
            if path.join(manifest::FILE_NAME).is_file() && !paths.contains(path) {
                paths.push(path.clone());
            }
        }
        Self { paths, ..self.clone() }.load()
    }

    /// The manifests of all folders, each with its folder. Those that are good are returned even when others are not.
    pub fn load(&self) -> (Vec<(PathBuf, Manifest)>, Problems) {
        let mut loaded: Vec<(PathBuf, Manifest)> = Vec::new();
        let mut problems = Problems::default();
        for dir in &self.paths {
            match Manifest::load_within(dir, Some(self)) {
                Err(found) => problems.extend(found),
                Ok(manifest) => match loaded.iter().find(|(_, known)| known.name == manifest.name) {
                    None => loaded.push((dir.clone(), manifest)),
                    Some((first, _)) => {
                        let invalid =
                            Invalid::new(format!("{:?} is also the name of {}", manifest.name, first.display()));
                        let at = Location::whole(dir.join(manifest::FILE_NAME));
                        problems.push(Problem::error(at, "name", invalid.hint("give each function its own name")));
                    }
                },
            }
        }
        (loaded, problems)
    }
}

/// The main file, then `conf.d/*.toml` in the order of their names.
fn files(path: &Path, problems: &mut Problems) -> Vec<PathBuf> {
    let mut files = vec![path.to_owned()];
    let folder = path.parent().unwrap_or(Path::new("")).join("conf.d");
    match std::fs::read_dir(&folder) {
        Ok(entries) => {
            let mut parts: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            parts.retain(|path| path.extension().is_some_and(|extension| extension == "toml") && path.is_file());
            parts.sort();
            files.extend(parts);
        }
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {}
        Err(error) => problems.push(unreadable(&folder, &error)),
    }
    files
}

fn unreadable(path: &Path, error: &std::io::Error) -> Problem {
    let invalid = Invalid::new(format!("cannot be read: {error}"));
    let invalid = match error.kind() {
        std::io::ErrorKind::NotFound => invalid.hint("name the configuration with --config FILE or SEDGE_CONFIG"),
        _ => invalid,
    };
    Problem::error(Location::whole(path), "", invalid)
}

impl Table {
    fn empty(file: &Path) -> Self {
        Self { at: Location { file: Arc::from(file), line: 0, column: 0 }, entries: Vec::new() }
    }
}
