//! A time zone: the content of a TZif file (RFC 9636), which the caller has read.

use std::cmp::Ordering;

use croner::errors::CronError;
use croner::{CivilDate, CivilDateTime, CivilTime, CronDateTime, Resolution, Weekday};
use tz::TimeZone;

use crate::time::{civil, days};

/// Longest name of a zone; the longest of the database has 32 bytes.
const MAX_NAME_BYTES: usize = 64;
/// Size of a TZif file at most; the largest of the database has less than 4,000 bytes.
pub const MAX_FILE_BYTES: u64 = 1 << 16;
const DAY_SECS: i64 = 86_400;
/// A time farther away than this never comes. 29 February on one weekday comes after 40 years at most.
const YEARS_AHEAD: i32 = 50;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone(TimeZone);

impl Zone {
    pub fn utc() -> Self {
        Self(TimeZone::utc())
    }

    /// Reads the content of a TZif file.
    pub fn parse(file: &[u8]) -> Result<Self, String> {
        TimeZone::from_tz_data(file).map(Self).map_err(|error| error.to_string())
    }

    /// Seconds east of UTC at a Unix time in seconds.
    fn offset(&self, unix: i64) -> i64 {
        if let Ok(kind) = self.0.find_local_time_type(unix) {
            return kind.ut_offset().into();
        }
        // A file without a rule for the time after its last change: that holds on.
        let zone = self.0.as_ref();
        let last = zone.transitions().last().map_or(0, |it| it.local_time_type_index());
        zone.local_time_types().get(last).map_or(0, |it| it.ut_offset().into())
    }
}

/// Whether the text could name a zone: parts of letters, digits, `_`, `+` and `-` between slashes, so that no path leaves the
/// folder of zones.
pub fn is_name(text: &str) -> bool {
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'+' | b'-'))
    };
    text.len() <= MAX_NAME_BYTES && text.split('/').all(is_part)
}

/// A moment in a zone, as croner asks for it.
#[derive(Clone, Debug)]
pub(super) struct Local<'a> {
    pub(super) unix: i64,
    zone: &'a Zone,
    last_year: i32,
}

impl<'a> Local<'a> {
    pub(super) fn new(unix: i64, zone: &'a Zone) -> Self {
        let local = Self { unix, zone, last_year: i32::MAX };
        let last_year = local.to_civil().year().saturating_add(YEARS_AHEAD);
        Self { last_year, ..local }
    }

    /// Seconds since 1970 on the clocks of the place.
    fn wall(&self) -> i64 {
        self.unix + self.zone.offset(self.unix)
    }
}

impl CronDateTime for Local<'_> {
    fn to_civil(&self) -> CivilDateTime {
        let (days, second) = (self.wall().div_euclid(DAY_SECS), self.wall().rem_euclid(DAY_SECS) as u32);
        let (year, month, day) = civil(days);
        let time = CivilTime::from_parts_unchecked(second / 3600, second / 60 % 60, second % 60);
        CivilDateTime::new(CivilDate::from_parts_unchecked(year, month, day), time)
    }

    fn civil_weekday(&self) -> Weekday {
        // 1970-01-01 was a Thursday.
        Weekday::from_days_from_sunday((self.wall().div_euclid(DAY_SECS) + 4).rem_euclid(7) as u32)
    }

    fn resolve_civil(&self, civil: CivilDateTime) -> Result<Resolution<Self>, CronError> {
        if civil.year() > self.last_year {
            return Err(CronError::TimeSearchLimitExceeded);
        }
        let wall = days(civil.year(), civil.month(), civil.day()) * DAY_SECS
            + i64::from(civil.hour() * 3600 + civil.minute() * 60 + civil.second());
        // No zone changes its clock twice within two days.
        let (before, after) = (self.zone.offset(wall - DAY_SECS), self.zone.offset(wall + DAY_SECS));
        let at = |offset: i64| Self { unix: wall - offset, ..self.clone() };
        let exists = |offset: i64| self.zone.offset(wall - offset) == offset;
        Ok(match (exists(before), exists(after)) {
            (true, true) if before != after => Resolution::Ambiguous(at(before.max(after)), at(before.min(after))),
            (true, _) => Resolution::Single(at(before)),
            (false, true) => Resolution::Single(at(after)),
            (false, false) => Resolution::Gap,
        })
    }

    fn checked_add_seconds(&self, seconds: i64) -> Option<Self> {
        Some(Self { unix: self.unix.checked_add(seconds)?, ..self.clone() })
    }

    fn cmp_instant(&self, other: &Self) -> Ordering {
        self.unix.cmp(&other.unix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_of_a_zone_leaves_the_folder() {
        for name in
            ["Europe/Berlin", "UTC", "America/Argentina/Buenos_Aires", "Etc/GMT+5", "EST5EDT", "America/Port-au-Prince"]
        {
            assert!(is_name(name), "{name}");
        }
        let long = "a".repeat(MAX_NAME_BYTES + 1);
        for name in [
            "",
            "/etc/passwd",
            "../shadow",
            "Europe/../../etc",
            "Europe//Berlin",
            "a/",
            ".",
            "a b",
            "ä",
            "-a",
            "a\0",
            &*long,
        ] {
            assert!(!is_name(name), "{name:?}");
        }
    }

    #[test]
    fn what_is_no_zone_is_refused() {
        for file in [&b""[..], b"TZif", b"TZif2", &[0; 100], &[255; 4000]] {
            assert!(Zone::parse(file).is_err(), "{file:?}");
        }
    }
}
