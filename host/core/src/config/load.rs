//! From files to a [`Config`], and from its folders to manifests: all that the configuration asks of the machine.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::num::NonZeroU32;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::check::{self, Content, NamedFile};
use super::document::Table;
use super::machine::Machine;
use super::problem::{Invalid, Location, Problem, Problems, Severity};
use super::reader::{CREDENTIALS, Reader};
use super::{Ceilings, Config, DeployKey, Functions, Sinks, sections};
use crate::manifest::{self, Manifest};

/// Where the unit takes credentials from.
const CREDENTIAL_STORE: &str = "/etc/credstore";
/// Read of a file at most.
const MAX_FILE_BYTES: u64 = 1 << 20;

impl Config {
    /// Reads a file and `conf.d/*.toml` beside it: as much of the configuration as could be read, and all problems.
    pub fn inspect(path: &Path, machine: &Machine) -> (Self, Problems) {
        let mut problems = Problems::default();
        let mut table = Table::empty(path);
        for file in files(path, machine, &mut problems) {
            match machine.text(&file) {
                Ok(text) => {
                    let (over, syntax) = Table::from_toml(&text, &file);
                    problems.extend(syntax);
                    table.merge(over);
                }
                Err(error) => problems.push(unreadable(&file, &error)),
            }
        }
        let credentials =
            credentials(std::env::var_os("CREDENTIALS_DIRECTORY").as_deref(), CREDENTIAL_STORE.as_ref(), machine);
        if let Some(folder) = credentials {
            table.replace_prefix(CREDENTIALS, &folder.to_string_lossy());
        }
        let host_name = (machine.host_name)();
        let (mut config, mut reader) = sections::read(&table, host_name, (machine.memory_bytes)());
        inspect_files(&mut config, &mut reader, machine);
        (config, problems.with_later(reader.problems))
    }

    /// Reads text, without the files that it names. Paths are relative to the folder of `file`, which need not exist.
    #[cfg(any(test, feature = "testing"))]
    pub fn parse(text: &str, file: &Path) -> (Self, Problems) {
        let (table, syntax) = Table::from_toml(text, file);
        let (config, reader) = sections::read(&table, "board".into(), u64::MAX);
        (config, syntax.with_later(reader.problems))
    }
}

impl Functions {
    /// Reads the manifests of all folders that have one. Good ones are returned even when others are bad.
    /// `sinks`: those of the board.
    pub fn load(&self, sinks: &Sinks, machine: &Machine) -> (Vec<(PathBuf, Manifest)>, Problems) {
        let mut loaded: Vec<(PathBuf, Manifest)> = Vec::new();
        let mut problems = Problems::default();
        for (n, dir) in self.paths.iter().enumerate() {
            // The others have been reported by `Config::inspect`.
            if self.paths[..n].contains(dir) || !machine.is_file(&dir.join(manifest::FILE_NAME)) {
                continue;
            }
            let ceilings = self.ceilings.for_installed();
            match Manifest::load_within(dir, Some(&ceilings), machine) {
                Err(found) => problems.extend(found),
                Ok(manifest) => match loaded.iter().find(|(_, known)| known.name == manifest.name) {
                    None => {
                        problems.extend(overlap(&manifest, dir, &loaded));
                        if let Some(invalid) = sinks.refusal(&manifest) {
                            problems.push(Problem::error(
                                Location::whole(dir.join(manifest::FILE_NAME)),
                                "sink",
                                invalid,
                            ));
                        }
                        if let Some(invalid) = self.ceilings.warning(&manifest) {
                            let at = Location::whole(dir.join(manifest::FILE_NAME));
                            problems.push(Problem::warning(at, "limits.timeout_ms", invalid));
                        }
                        loaded.push((dir.clone(), manifest));
                    }
                    Some((first, _)) => {
                        let what = format!("{:?} is also the name of {}", manifest.name, first.display());
                        let invalid = Invalid::new(what).hint("give each function its own name");
                        let at = Location::whole(dir.join(manifest::FILE_NAME));
                        problems.push(Problem::error(at, "name", invalid));
                    }
                },
            }
        }
        (loaded, problems)
    }
}

/// Routes that another function takes already.
fn overlap(manifest: &Manifest, dir: &Path, loaded: &[(PathBuf, Manifest)]) -> Problems {
    let mut problems = Problems::default();
    for (of, other) in loaded {
        if let Some((own, their)) = manifest.overlapping_route(other) {
            let invalid = Invalid::new(format!("{own} and {their} of {} could both match one request", of.display()));
            let at = Location::whole(dir.join(manifest::FILE_NAME));
            problems.push(Problem::error(at, "http", invalid.hint("give one of them another path")));
        }
    }
    problems
}

/// What functions could ask for by default in version 0.1.0.
const INSTALLED_TIMEOUT_MS: NonZeroU32 = NonZeroU32::new(10_000).expect("it is not zero");

impl Ceilings {
    /// The most that a function may ask for that is on the board already: a longer run than a new one.
    pub(crate) fn for_installed(&self) -> Self {
        Self { timeout_ms: self.timeout_ms.max(INSTALLED_TIMEOUT_MS), ..*self }
    }

    /// What is to be said about an installed function whose runs may be longer than those of a new one.
    pub(crate) fn warning(&self, manifest: &Manifest) -> Option<Invalid> {
        let (asked, most) = (manifest.limits.timeout_ms, self.timeout_ms);
        let what = format!("{asked} is above functions.max_timeout_ms of this board ({most}), and is kept");
        (asked > most)
            .then(|| Invalid::new(what).hint(format!("set functions.max_timeout_ms = {asked}, or lower it here")))
    }
}

impl Manifest {
    /// Reads `function.toml` of a folder. Every problem in it is reported.
    pub fn load(dir: &Path, machine: &Machine) -> Result<Self, Problems> {
        Self::load_within(dir, None, machine)
    }

    /// Like [`Self::load`], with its limits checked against what the board allows.
    pub(crate) fn load_within(dir: &Path, ceilings: Option<&Ceilings>, machine: &Machine) -> Result<Self, Problems> {
        let file = dir.join(manifest::FILE_NAME);
        match machine.text(&file) {
            Ok(text) => {
                let manifest = Self::from_toml(&text, &file, ceilings)?;
                // A laptop without a database cannot know the zones of boards.
                if let Some(zone) =
                    manifest.zone.as_deref().filter(|_| ceilings.is_some() || machine.zone_database().is_some())
                    && let Err(invalid) = machine.zone(Some(zone))
                {
                    return Err(Problem::error(Location::whole(file), "zone", invalid).into());
                }
                Ok(manifest)
            }
            Err(error) => {
                let invalid = Invalid::new(format!("cannot be read: {error}"));
                Err(Problem::error(Location::whole(file), "", invalid).into())
            }
        }
    }
}

/// The main file, then `conf.d/*.toml` in the order of their names.
fn files(path: &Path, machine: &Machine, problems: &mut Problems) -> Vec<PathBuf> {
    let mut files = vec![path.to_owned()];
    let folder = path.parent().unwrap_or(Path::new("")).join("conf.d");
    match (machine.list)(&folder) {
        Ok(mut parts) => {
            parts.retain(|path| path.extension().is_some_and(|extension| extension == "toml") && machine.is_file(path));
            parts.sort();
            files.extend(parts);
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
        Err(error) => problems.push(unreadable(&folder, &error)),
    }
    files
}

fn unreadable(path: &Path, error: &std::io::Error) -> Problem {
    let mut invalid = Invalid::new(format!("cannot be read: {error}"));
    if error.kind() == ErrorKind::NotFound {
        invalid = invalid.hint("name the configuration with --config FILE or SEDGE_CONFIG");
    }
    Problem::error(Location::whole(path), "", invalid)
}

/// The folder where systemd has put the credentials; for a command that a person runs, the folder that it takes them from.
fn credentials(given: Option<&OsStr>, store: &Path, machine: &Machine) -> Option<PathBuf> {
    given.map(PathBuf::from).or_else(|| machine.is_dir(store).then(|| store.to_owned()))
}

/// Inspects the files and folders that values name, and fills in the trusted keys and the settings that are files.
fn inspect_files(config: &mut Config, reader: &mut Reader, machine: &Machine) {
    let (keys, settings): (&mut BTreeMap<String, DeployKey>, _) =
        (&mut config.deploy.keys, &mut config.functions.settings);
    for NamedFile { path, content, at, key } in std::mem::take(&mut reader.files) {
        let result = match &content {
            Content::DataDir => data_dir(&path, machine).map(|()| None),
            Content::FunctionFolder => function_folder(&path, machine).map(|()| None),
            Content::PublicKey(name) => {
                read(&path, machine).and_then(|(text, _)| check::public_key(&path, &text)).and_then(|public_key| {
                    if let Some((other, _)) = keys.iter().find(|(_, other)| other.public_key == Some(public_key)) {
                        let invalid = Invalid::new(format!("the same key as deploy.keys.{other}"));
                        return Err(invalid.hint("remove one: a key has one set of permissions"));
                    }
                    keys.get_mut(name).expect("the key's section was read").public_key = Some(public_key);
                    Ok(None)
                })
            }
            Content::Setting { function, topic, name } => read(&path, machine).and_then(|(text, mode)| {
                let value = settings.get_mut(function).and_then(|it| it.value_mut(topic.as_ref(), name));
                value.expect("the value was read").text = setting(&path, &text)?.into();
                check::file(&path, &text, mode, &content)
            }),
            Content::Secret | Content::Token | Content::Certificate | Content::PrivateKey => {
                read(&path, machine).and_then(|(text, mode)| check::file(&path, &text, mode, &content))
            }
        };
        let (severity, invalid) = match result {
            Ok(None) => continue,
            Ok(Some(warning)) => (Severity::Warning, warning),
            Err(invalid) => (Severity::Error, invalid),
        };
        reader.problems.push(Problem { severity, ..Problem::error(at, key, invalid) });
    }
}

/// The value of a setting: the text of its file without the line's end.
fn setting<'t>(path: &Path, text: &'t [u8]) -> Result<&'t str, Invalid> {
    let text = str::from_utf8(text).map_err(|_| Invalid::new(format!("{} is not text", path.display())))?;
    Ok(text.trim_end_matches(['\r', '\n']))
}

/// The beginning of a text file, and its permissions.
fn read(path: &Path, machine: &Machine) -> Result<(Vec<u8>, u32), Invalid> {
    let shown = path.display();
    let unreadable = |error: std::io::Error| {
        let hint = match error.kind() {
            ErrorKind::NotFound => absent(path, std::env::var_os("CREDENTIALS_DIRECTORY").as_deref()),
            ErrorKind::PermissionDenied => {
                let user = (machine.user)();
                format!("let user {user} read it, or pass it with LoadCredential= in the unit")
            }
            _ => "correct the path".into(),
        };
        Invalid::new(format!("{shown} cannot be read: {error}")).hint(hint)
    };
    // Opening a pipe would wait for its writer, perhaps for ever.
    let metadata = (machine.metadata)(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(Invalid::new(format!("{shown} is not a file")).hint("correct the path"));
    }
    let text = (machine.read)(path, MAX_FILE_BYTES).map_err(unreadable)?;
    Ok((text, metadata.permissions().mode() & 0o777))
}

/// Hint for a file, or a credential, that does not exist.
fn absent(path: &Path, credentials: Option<&OsStr>) -> String {
    match credentials.and_then(|folder| path.strip_prefix(folder).ok()) {
        Some(name) => {
            let name = name.display();
            format!("write it to {CREDENTIAL_STORE}/{name}, or name its file in the unit: LoadCredential={name}:FILE")
        }
        None => "create it, or correct the path".into(),
    }
}

/// Checks a folder that the daemon may still have to create.
fn data_dir(path: &Path, machine: &Machine) -> Result<(), Invalid> {
    match (machine.metadata)(path) {
        Ok(metadata) if !metadata.is_dir() => {
            Err(Invalid::new(format!("{} is not a folder", path.display())).hint("name a folder"))
        }
        _ => Ok(()),
    }
}

fn function_folder(path: &Path, machine: &Machine) -> Result<(), Invalid> {
    let shown = path.display();
    if !machine.is_dir(path) {
        return Err(Invalid::new(format!("there is no folder {shown}")).hint("create it, or correct the path"));
    }
    if machine.is_file(&path.join(manifest::FILE_NAME)) {
        return Ok(());
    }
    let invalid = Invalid::new(format!("{shown} contains no {}", manifest::FILE_NAME));
    // The likeliest mistake is to name the parent of the functions' folders.
    let inner = (machine.list)(path).into_iter().flatten();
    let first = inner.filter(|path| machine.is_file(&path.join(manifest::FILE_NAME))).min();
    Err(match first {
        Some(first) => invalid.hint(format!("list each function, for example {:?}", first.display().to_string())),
        None => invalid.hint("name the folder of a function"),
    })
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may read clocks and files")]
mod tests {
    use super::*;
    use crate::config::machine::testing::MACHINE;

    #[test]
    fn credentials_are_where_systemd_says_or_where_it_takes_them_from() {
        let store = tempfile::tempdir().unwrap();
        assert_eq!(credentials(Some("/run/given".as_ref()), store.path(), &MACHINE), Some("/run/given".into()));
        assert_eq!(credentials(None, store.path(), &MACHINE), Some(store.path().to_owned()));
        assert_eq!(credentials(None, &store.path().join("absent"), &MACHINE), None);
    }

    #[test]
    fn an_absent_credential_has_its_own_hint() {
        let path = Path::new("/run/credentials/sedge.service/sedge.mqtt-password");
        let hint = absent(path, Some("/run/credentials/sedge.service".as_ref()));
        assert_eq!(
            hint,
            "write it to /etc/credstore/sedge.mqtt-password, or name its file in the unit: \
             LoadCredential=sedge.mqtt-password:FILE"
        );
        assert_eq!(absent(path, Some("/run/other".as_ref())), "create it, or correct the path");
        assert_eq!(absent(path, None), "create it, or correct the path");
    }
}
