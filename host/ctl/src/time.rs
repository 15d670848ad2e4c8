//! Points in time as people write them.

use anyhow::{Context as _, bail};
use sedge_core::time::days;
use toml::value::{Datetime, Offset};

/// Milliseconds since 1970 of a date, or of a date with a time. Without an offset it is UTC.
pub(crate) fn unix_ms(time: &Datetime) -> anyhow::Result<u64> {
    let Some(date) = time.date else { bail!("{time} has no date: write 2026-01-05T11:02:13Z") };
    let days = days(date.year.into(), date.month.into(), date.day.into());
    let of_day = time.time.map_or(0, |time| {
        let seconds = i64::from(time.hour) * 3600 + i64::from(time.minute) * 60 + i64::from(time.second.unwrap_or(0));
        seconds * 1000 + i64::from(time.nanosecond.unwrap_or(0) / 1_000_000)
    });
    let offset = match time.offset {
        Some(Offset::Custom { minutes }) => i64::from(minutes) * 60_000,
        Some(Offset::Z) | None => 0,
    };
    u64::try_from(days * 86_400_000 + of_day - offset).with_context(|| format!("{time} is before 1970"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sedge_core::time::rfc3339;

    #[test]
    fn times_are_read_as_they_are_written() {
        for text in [
            "1970-01-01T00:00:00.000Z",
            "2024-02-29T23:59:59.999Z",
            "2026-11-28T01:02:03.004Z",
            "2100-03-01T00:00:00.000Z",
        ] {
            assert_eq!(rfc3339(unix_ms(&text.parse().unwrap()).unwrap()), text);
        }
        let ms = |text: &str| unix_ms(&text.parse().unwrap());
        assert_eq!(ms("2026-01-05").unwrap(), ms("2026-01-05T02:00:00+02:00").unwrap());
        assert!(ms("11:02:13").unwrap_err().to_string().contains("no date"));
        assert!(ms("1969-12-31T00:00:00Z").unwrap_err().to_string().contains("before 1970"));
    }
}
