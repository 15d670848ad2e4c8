//! Checks of the configuration of Mosquitto on this board, for messages that it queues.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use sedge_core::finding::Finding;

const CHECK: &str = "mosquitto";
const DEFAULT_CONF: &str = "/etc/mosquitto/mosquitto.conf";
const DEFAULT_PORT: u16 = 1883;
/// Messages of at most this time may be lost in a power cut.
const MAX_AUTOSAVE_SECS: u64 = 60;
/// Ten messages per second for an hour.
const MIN_QUEUED_MESSAGES: u64 = 36_000;

/// Settings of `mosquitto.conf`. The defaults are those of Mosquitto 2.
#[derive(Debug, PartialEq, Eq)]
struct MosquittoConf {
    persistence: bool,
    autosave_interval: u64,
    /// Whether the interval counts changes instead of seconds.
    autosave_on_changes: bool,
    max_queued_messages: u64,
    client_expiration_secs: Option<u64>,
    tcp_nodelay: bool,
    /// Of `listener` and `port`. Empty: 1883, on this machine only.
    ports: Vec<u16>,
}

impl Default for MosquittoConf {
    fn default() -> Self {
        Self {
            persistence: false,
            autosave_interval: 1800,
            autosave_on_changes: false,
            max_queued_messages: 1000,
            client_expiration_secs: None,
            tcp_nodelay: false,
            ports: Vec::new(),
        }
    }
}

/// Which file was read, and why the running broker may not use it.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    conf: Option<PathBuf>,
    doubt: Option<String>,
}

/// A process of Mosquitto on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Running {
    /// `None`: it runs with its defaults.
    conf: Option<PathBuf>,
    port: Option<u16>,
}

/// `named`: the file that the person names. `port`: that of the broker, if it is on this machine.
pub(crate) fn inspect(named: Option<&Path>, port: Option<u16>, session_expiry_secs: u64) -> Vec<Finding> {
    let fix =
        "check for persistence true, autosave_interval at most 60, max_queued_messages 0 and set_tcp_nodelay true";
    let Some(port) = port else {
        return vec![Finding::unknown(CHECK, "the broker is on another machine", format!("there, {fix}"))];
    };
    let Source { conf, doubt } = source(named, &running(Path::new("/proc")), port);
    let settings = match &conf {
        None => Ok(MosquittoConf::default()),
        Some(conf) => read(conf),
    };
    let shown =
        conf.as_ref().map_or_else(|| "started without a configuration file".into(), |it| format!("{}", it.display()));
    match settings {
        Ok(settings) => {
            let elsewhere = !settings.ports.is_empty() && !settings.ports.contains(&port);
            let doubt = doubt.or_else(|| elsewhere.then(|| format!("it has no listener on port {port}")));
            let mut findings = evaluate(&settings, session_expiry_secs);
            for finding in &mut findings {
                finding.what.push_str(&format!(" ({shown})"));
            }
            findings.extend(doubt.map(|doubt| {
                let what = format!("the broker may not use {shown}: {doubt}");
                Finding::unknown(
                    CHECK,
                    what,
                    "name its file with --mosquitto-conf, or run it as root: sudo sedge doctor",
                )
            }));
            findings
        }
        Err(error) => {
            let what = format!("{shown} cannot be read: {error}");
            let fix = match error.kind() {
                ErrorKind::PermissionDenied => "run it as root: sudo sedge doctor".into(),
                _ => format!("name it with --mosquitto-conf; {fix}"),
            };
            vec![Finding::unknown(CHECK, what, fix)]
        }
    }
}

/// Chooses the file of the broker that listens on this port, as far as that is known.
fn source(named: Option<&Path>, running: &[Running], port: u16) -> Source {
    let listens = |it: &&Running| match (&it.port, &it.conf) {
        (Some(own), _) => *own == port,
        (None, None) => port == DEFAULT_PORT,
        (None, Some(conf)) => read(conf).is_ok_and(|settings| settings.listens(port)),
    };
    let ours = running.iter().find(listens).or(if running.len() == 1 { running.first() } else { None });
    let same = |one: &Path, other: &Path| one == other || one.canonicalize().ok() == other.canonicalize().ok();
    match (named, ours) {
        (Some(named), Some(Running { conf: Some(conf), .. })) if !same(named, conf) => {
            Source { conf: Some(named.into()), doubt: Some(format!("it was started with {}", conf.display())) }
        }
        (Some(named), Some(Running { conf: None, .. })) => {
            Source { conf: Some(named.into()), doubt: Some("it was started without a file".into()) }
        }
        (Some(named), _) => Source { conf: Some(named.into()), doubt: None },
        (None, Some(ours)) => Source { conf: ours.conf.clone(), doubt: None },
        (None, None) => {
            let doubt = "no process of Mosquitto with this port is visible here".into();
            Source { conf: Some(DEFAULT_CONF.into()), doubt: Some(doubt) }
        }
    }
}

/// Reads the command lines of all processes named `mosquitto`.
fn running(proc: &Path) -> Vec<Running> {
    let processes = fs::read_dir(proc).into_iter().flatten().flatten().map(|entry| entry.path());
    let of = |process: PathBuf| {
        if fs::read_to_string(process.join("comm")).ok()?.trim() != "mosquitto" {
            return None;
        }
        let line = fs::read(process.join("cmdline")).ok()?;
        let mut arguments = line.split(|byte| *byte == 0).map(|it| String::from_utf8_lossy(it).into_owned()).skip(1);
        let mut found = Running { conf: None, port: None };
        while let Some(argument) = arguments.next() {
            match &*argument {
                // Relative to its folder, if this user may see that.
                "-c" | "--config-file" => {
                    let conf = PathBuf::from(arguments.next()?);
                    let folder = fs::read_link(process.join("cwd")).unwrap_or_default();
                    found.conf = Some(folder.join(conf));
                }
                "-p" | "--port" => found.port = arguments.next()?.parse().ok(),
                _ => {}
            }
        }
        Some(found)
    };
    processes.filter_map(of).collect()
}

fn read(conf: &Path) -> io::Result<MosquittoConf> {
    let mut settings = MosquittoConf::default();
    for folder in settings.apply(&fs::read_to_string(conf)?) {
        let mut parts: Vec<PathBuf> = fs::read_dir(folder)?.flatten().map(|entry| entry.path()).collect();
        parts.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
        parts.sort();
        for part in parts {
            settings.apply(&fs::read_to_string(part)?);
        }
    }
    Ok(settings)
}

impl MosquittoConf {
    /// Applies a file, and returns the folders that it includes.
    fn apply(&mut self, text: &str) -> Vec<PathBuf> {
        let mut folders = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            let Some((key, value)) = line.split_once(char::is_whitespace) else { continue };
            let value = value.trim();
            let number = value.parse().ok();
            match key {
                "include_dir" => folders.push(value.into()),
                "persistence" => self.persistence = value == "true",
                "autosave_interval" => self.autosave_interval = number.unwrap_or(self.autosave_interval),
                "autosave_on_changes" => self.autosave_on_changes = value == "true",
                "max_queued_messages" => self.max_queued_messages = number.unwrap_or(self.max_queued_messages),
                "set_tcp_nodelay" => self.tcp_nodelay = value == "true",
                "listener" | "port" => {
                    self.ports.extend(value.split_whitespace().next().and_then(|port| port.parse::<u16>().ok()));
                }
                "persistent_client_expiration" => self.client_expiration_secs = seconds(value),
                _ => {}
            }
        }
        folders
    }
}

impl MosquittoConf {
    fn listens(&self, port: u16) -> bool {
        self.ports.contains(&port) || self.ports.is_empty() && port == DEFAULT_PORT
    }
}

/// Seconds of a duration in hours, days, weeks, months or years: `14d`, `2m`.
fn seconds(value: &str) -> Option<u64> {
    let (number, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let hours = match unit {
        "h" => 1,
        "d" => 24,
        "w" => 7 * 24,
        "m" => 30 * 24,
        "y" => 365 * 24,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(hours * 3600)
}

fn evaluate(settings: &MosquittoConf, session_expiry_secs: u64) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut warn = |what: String, fix: &str| {
        findings.push(Finding::warning(CHECK, what, format!("in mosquitto.conf: {fix}")));
    };
    let interval = settings.autosave_interval;
    if !settings.persistence {
        warn(
            "it keeps sessions and queued messages in memory only, and loses them when it stops".into(),
            "persistence true, and persistence_location /var/lib/mosquitto/",
        );
    } else if interval == 0 {
        warn(
            "it saves queued messages only when it stops: a power cut loses all of them".into(),
            "autosave_interval 30",
        );
    } else if !settings.autosave_on_changes && interval > MAX_AUTOSAVE_SECS {
        warn(
            format!("it saves queued messages every {interval} s: a power cut loses those since"),
            "autosave_interval 30",
        );
    }
    if settings.max_queued_messages != 0 && settings.max_queued_messages < MIN_QUEUED_MESSAGES {
        warn(
            format!(
                "it queues {} messages per client and drops the rest: while sedge is stopped, or when it starts with \
                 many retained messages",
                settings.max_queued_messages
            ),
            "max_queued_messages 0, and max_queued_bytes 100000000 to bound its memory",
        );
    }
    if let Some(secs) = settings.client_expiration_secs.filter(|secs| *secs < session_expiry_secs) {
        warn(
            format!("it drops sessions after {} h, before mqtt.session_expiry_secs", secs / 3600),
            "a longer persistent_client_expiration, or none",
        );
    }
    if !settings.tcp_nodelay {
        warn(
            "it waits for more to send (Nagle's algorithm): messages come up to 40 ms late when alerts are frequent"
                .into(),
            "set_tcp_nodelay true",
        );
    }
    if findings.is_empty() {
        findings.push(Finding::good(CHECK, "it keeps queued messages over restarts and power cuts"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use sedge_core::finding::Verdict;

    const WEEK: u64 = 7 * 24 * 3600;
    /// What the package recommends is what the checks ask for.
    const GOOD: &str = include_str!("../../../../systemd/mosquitto.conf");

    fn found(text: &str) -> Vec<String> {
        let mut settings = MosquittoConf::default();
        settings.apply(text);
        let findings = evaluate(&settings, WEEK);
        findings.into_iter().filter(|it| it.verdict == Verdict::Warning).map(|it| it.fix.unwrap_or_default()).collect()
    }

    #[test]
    fn the_defaults_of_debian_lose_messages() {
        let fixes = found(
            "# As installed\npid_file /run/mosquitto/mosquitto.pid\n\npersistence true\npersistence_location /var/lib/mosquitto/\n",
        );
        assert_eq!(fixes.len(), 3, "{fixes:?}");
        assert!(fixes[0].contains("autosave_interval 30") && fixes[1].contains("max_queued_messages 0"), "{fixes:?}");
        assert!(fixes[2].contains("set_tcp_nodelay true"), "{fixes:?}");
    }

    #[test]
    fn each_setting_is_evaluated_by_itself() {
        assert_eq!(found(GOOD), [""; 0]);
        let one = |change: &str, expected: &str| {
            let fixes = found(&format!("{GOOD}{change}\n"));
            assert!(fixes.len() == 1 && fixes[0].contains(expected), "{change}: {fixes:?}");
        };
        one("persistence false", "persistence true");
        one("autosave_interval 0", "autosave_interval 30");
        one("autosave_interval 61", "autosave_interval 30");
        one("max_queued_messages 100", "max_queued_messages 0");
        one("set_tcp_nodelay false", "set_tcp_nodelay true");
        one("persistent_client_expiration 1d", "persistent_client_expiration");
        assert_eq!(found(&format!("{GOOD}persistent_client_expiration 2m\n#persistence false\n")), [""; 0]);
        assert_eq!(found(&format!("{GOOD}autosave_on_changes true\nautosave_interval 100\n")), [""; 0]);
    }

    #[test]
    fn included_folders_are_read_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let (conf, included) = (folder.path().join("mosquitto.conf"), folder.path().join("conf.d"));
        fs::create_dir(&included).unwrap();
        fs::write(&conf, format!("persistence false\ninclude_dir {}\n", included.display())).unwrap();
        fs::write(included.join("b.conf"), "persistence true\n").unwrap();
        fs::write(included.join("a.conf"), "persistence false\nmax_queued_messages 7\n").unwrap();
        fs::write(included.join("c.old"), "max_queued_messages 9\n").unwrap();
        let settings = read(&conf).unwrap();
        assert_eq!((settings.persistence, settings.max_queued_messages), (true, 7));
    }

    #[test]
    fn a_broker_elsewhere_or_without_a_file_is_unknown() {
        let absent = Path::new("/nonexistent/mosquitto.conf");
        assert_eq!(inspect(Some(absent), None, WEEK)[0].verdict, Verdict::Unknown);
        let here = &inspect(Some(absent), Some(1), WEEK)[0];
        assert_eq!(here.verdict, Verdict::Unknown);
        assert!(here.what.contains("/nonexistent/mosquitto.conf"), "{here:?}");
        assert!(here.fix.as_deref().unwrap().contains("--mosquitto-conf"));
    }

    #[test]
    fn the_file_of_the_running_broker_is_read_and_doubts_are_reported() {
        let folder = tempfile::tempdir().unwrap();
        let conf = folder.path().join("other.conf");
        fs::write(&conf, "listener 1884\n").unwrap();
        let with = |conf: Option<&Path>, port| Running { conf: conf.map(Into::into), port };
        let chosen = |named, running: &[Running], port| {
            let Source { conf, doubt } = source(named, running, port);
            (conf, doubt.unwrap_or_default())
        };
        let default = Some(PathBuf::from(DEFAULT_CONF));
        let both = [with(None, None), with(Some(&conf), None)];
        assert_eq!(chosen(None, &both, 1884), (Some(conf.clone()), String::new()));
        assert_eq!(chosen(None, &both, 1883), (None, String::new()), "with its defaults");
        assert_eq!(chosen(None, &[with(None, Some(1885))], 1885), (None, String::new()));
        let (found, doubt) = chosen(None, &[], 1883);
        assert!(found == default && doubt.contains("no process"), "{doubt}");
        let (found, doubt) = chosen(Some(Path::new(DEFAULT_CONF)), &both, 1884);
        assert!(found == default && doubt.contains("other.conf"), "{doubt}");
        assert_eq!(chosen(Some(&conf), &both, 1884), (Some(conf.clone()), String::new()));
        // A file without the port is not that of the broker.
        let findings = inspect(Some(&conf), Some(1), WEEK);
        assert!(findings.iter().any(|it| it.what.contains("no listener on port 1")), "{findings:?}");
        assert!(findings.iter().all(|it| it.what.contains("other.conf")), "{findings:?}");
    }

    #[test]
    fn command_lines_name_the_file() {
        let proc = tempfile::tempdir().unwrap();
        let process = |pid: &str, comm: &str, line: &str| {
            let dir = proc.path().join(pid);
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("comm"), comm).unwrap();
            fs::write(dir.join("cmdline"), line.replace(' ', "\0")).unwrap();
            std::os::unix::fs::symlink("/srv", dir.join("cwd")).unwrap();
        };
        process("1", "mosquitto\n", "/usr/sbin/mosquitto -c /etc/a.conf");
        process("2", "mosquitto\n", "mosquitto -p 1884");
        process("3", "mosquitto\n", "mosquitto --config-file b.conf");
        process("4", "sshd\n", "sshd -c /etc/c.conf");
        let mut found = running(proc.path());
        found.sort_by_key(|it| it.conf.clone());
        let conf = |path: &str| Running { conf: Some(path.into()), port: None };
        assert_eq!(found, [Running { conf: None, port: Some(1884) }, conf("/etc/a.conf"), conf("/srv/b.conf")]);
    }
}
