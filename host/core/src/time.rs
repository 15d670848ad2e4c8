//! Clocks and time formats. The wall clock may be wrong: a board without an RTC boots in the past.

pub mod backoff;

use std::time::{Instant, SystemTime, UNIX_EPOCH};

pub use backoff::Backoff;

/// The time as an argument. Every part below the daemon's event loop takes it and reads no clock itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For timers, deadlines and durations. Never jumps.
    pub monotonic: Instant,
    /// Wall clock, milliseconds since 1970 in UTC. May jump, and is wrong until `synced`.
    pub unix_ms: u64,
    /// Whether a time service has set the wall clock since the board booted.
    pub synced: bool,
}

impl Now {
    /// Both clocks, as who may read them has read them.
    pub fn at(monotonic: Instant, wall: SystemTime, synced: bool) -> Self {
        Self { monotonic, unix_ms: unix_ms(wall), synced }
    }
}

/// Unix time in milliseconds; 0 for a clock before 1970.
pub fn unix_ms(wall: SystemTime) -> u64 {
    let since = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Formats a time as RFC 3339 in UTC with milliseconds: `2026-03-01T12:00:00.250Z`.
pub fn rfc3339(unix_ms: u64) -> String {
    let (days, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let (year, month, day) = civil(days as i64);
    let (secs, ms) = (ms / 1000, ms % 1000);
    let (hour, minute, second) = (secs / 3600, secs / 60 % 60, secs % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// Days from 1970-01-01 to a Gregorian date (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
pub fn days(year: i32, month: u32, day: u32) -> i64 {
    let year = i64::from(year) - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((i64::from(month) + 9) % 12) + 2) / 5 + i64::from(day) - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The reverse of [`days`].
pub(crate) fn civil(days: i64) -> (i32, u32, u32) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u32;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 } as u32;
    ((year_of_era + era * 400) as i32 + i32::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_dates_are_each_others_reverse() {
        for day in -200_000..200_000 {
            let (year, month, date) = civil(day);
            assert_eq!(days(year, month, date), day, "{year}-{month}-{date}");
        }
        assert_eq!((civil(0), civil(20_514)), ((1970, 1, 1), (2026, 3, 2)));
    }

    #[test]
    fn dates_agree_with_date_u() {
        for (secs, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (68_169_599, "1972-02-28T23:59:59.000Z"),
            (68_169_600, "1972-02-29T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_386_656_700, "2013-12-10T06:25:00.000Z"),
            (1_767_225_599, "2025-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(secs * 1000), expected);
        }
        assert_eq!(rfc3339(1_700_000_000_042), "2023-11-14T22:13:20.042Z");
    }
}
