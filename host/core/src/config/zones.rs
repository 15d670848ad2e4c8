//! The time zones of a machine.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::machine::Machine;
use super::problem::Invalid;
use crate::schedule::{MAX_FILE_BYTES, Zone, is_zone_name};

/// Where systems have the time zone database.
const DATABASES: [&str; 3] = ["/usr/share/zoneinfo", "/usr/lib/zoneinfo", "/etc/zoneinfo"];
/// The zone of the machine itself. Without the file that is UTC (localtime(5)).
const OWN: &str = "/etc/localtime";

impl Machine {
    /// The folder of the time zone database.
    pub fn zone_database(&self) -> Option<PathBuf> {
        DATABASES.iter().map(PathBuf::from).find(|folder| self.is_dir(folder))
    }

    /// The zone of this name, or that of the machine.
    pub fn zone(&self, name: Option<&str>) -> Result<Zone, Invalid> {
        let Some(name) = name else { return self.own_zone() };
        let Some(database) = self.zone_database() else {
            let what = format!("time zone {name:?} is not known: there is no time zone database in {}", DATABASES[0]);
            return Err(Invalid::new(what).hint("install the package tzdata, or remove zone to go by the board's own"));
        };
        let path = database.join(name);
        if !is_zone_name(name) || !self.is_file(&path) {
            let what = format!("time zone {name:?} is not in {}", database.display());
            return Err(
                Invalid::new(what).hint("correct it (`timedatectl list-timezones`), or update the package tzdata")
            );
        }
        self.read_zone(&path).unwrap_or_else(|| Err(Invalid::new(format!("{} is gone", path.display()))))
    }

    fn own_zone(&self) -> Result<Zone, Invalid> {
        self.read_zone(Path::new(OWN)).unwrap_or_else(|| Ok(Zone::utc()))
    }

    /// `None`: there is no such file.
    fn read_zone(&self, path: &Path) -> Option<Result<Zone, Invalid>> {
        let fail = |why: String| {
            let invalid = Invalid::new(format!("{} cannot be read as a time zone: {why}", path.display()));
            Some(Err(invalid.hint("install the package tzdata anew")))
        };
        match (self.read)(path, MAX_FILE_BYTES) {
            Ok(file) => match Zone::parse(&file) {
                Ok(zone) => Some(Ok(zone)),
                Err(why) => fail(why),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => fail(error.to_string()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may read clocks and files")]
mod tests {
    use std::io;

    use super::*;
    use crate::config::machine::testing::MACHINE;

    fn error(machine: &Machine, name: Option<&str>) -> String {
        machine.zone(name).unwrap_err().to_string()
    }

    #[test]
    fn a_zone_that_does_not_exist_and_a_board_without_a_database_are_told_apart() {
        let none = Machine { metadata: |_| Err(ErrorKind::NotFound.into()), ..MACHINE };
        assert!(error(&none, Some("Europe/Berlin")).contains("there is no time zone database in /usr/share/zoneinfo"));
        if MACHINE.zone_database().is_none() {
            return;
        }
        for name in ["Europe/Berlim", "Europe", "../../../etc/passwd", ""] {
            let error = error(&MACHINE, Some(name));
            assert!(error.contains("is not in /usr/share/zoneinfo; correct it"), "{error}");
        }
        assert!(MACHINE.zone(Some("Europe/Berlin")).is_ok());
    }

    #[test]
    fn a_machine_without_a_zone_of_its_own_has_utc() {
        let none = Machine { read: |_, _| Err(ErrorKind::NotFound.into()), ..MACHINE };
        assert_eq!(none.zone(None), Ok(Zone::utc()));
        let damaged = Machine { read: |_, _| Ok(b"TZif2".to_vec()), ..MACHINE };
        assert!(error(&damaged, None).contains("/etc/localtime cannot be read as a time zone"));
        let failing = Machine { read: |_, _| Err(io::Error::other("bad sector")), ..MACHINE };
        assert!(error(&failing, None).contains("bad sector; install the package tzdata anew"));
    }
}
