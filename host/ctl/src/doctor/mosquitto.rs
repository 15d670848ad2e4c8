//! Checks of the configuration of Mosquitto on this board, for messages that it queues.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::finding::Finding;

const CHECK: &str = "mosquitto";
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
}

impl Default for MosquittoConf {
    fn default() -> Self {
        Self {
            persistence: false,
            autosave_interval: 1800,
            autosave_on_changes: false,
            max_queued_messages: 1000,
            client_expiration_secs: None,
        }
    }
}

pub(crate) fn inspect(conf: &Path, is_here: bool, session_expiry_secs: u64) -> Vec<Finding> {
    let fix = "check for persistence true, autosave_interval at most 60 and max_queued_messages 0";
    if !is_here {
        return vec![Finding::unknown(CHECK, "the broker is on another machine", format!("there, {fix}"))];
    }
    match read(conf) {
        Ok(settings) => evaluate(&settings, session_expiry_secs),
        Err(error) => {
            let what = format!("{} cannot be read: {error}", conf.display());
            let fix = match error.kind() {
                ErrorKind::PermissionDenied => "run it as root: sudo sedge doctor".into(),
                _ => format!("name it with --mosquitto-conf; {fix}"),
            };
            vec![Finding::unknown(CHECK, what, fix)]
        }
    }
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
                "persistent_client_expiration" => self.client_expiration_secs = seconds(value),
                _ => {}
            }
        }
        folders
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
    if findings.is_empty() {
        findings.push(Finding::good(CHECK, "it keeps queued messages over restarts and power cuts"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    const WEEK: u64 = 7 * 24 * 3600;
    const GOOD: &str = "persistence true\nautosave_interval 30\nmax_queued_messages 0\n";

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
        assert_eq!(fixes.len(), 2, "{fixes:?}");
        assert!(fixes[0].contains("autosave_interval 30") && fixes[1].contains("max_queued_messages 0"), "{fixes:?}");
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
        assert_eq!(inspect(absent, false, WEEK)[0].verdict, Verdict::Unknown);
        let here = &inspect(absent, true, WEEK)[0];
        assert_eq!(here.verdict, Verdict::Unknown);
        assert!(here.fix.as_deref().unwrap().contains("--mosquitto-conf"));
    }
}
