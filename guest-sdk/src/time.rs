//! Dates as text, RFC 3339 and what devices write of ISO 8601; and the local time of day, by a [`Zone`] that a setting gives.

mod local;
mod zone;

use alloc::string::String;

use crate::number::decimal;

pub use local::{LocalTime, TimeOfDay};
pub use zone::Zone;

const DAY_MS: i64 = 86_400_000;

/// Unix time in milliseconds of `2026-01-05T11:02:13.5+01:00`. `None` without an offset: see [`unix_ms_local`].
pub fn unix_ms(text: &str) -> Option<i64> {
    match parse(text)? {
        (local, Some(offset)) => Some(local - offset),
        (_, None) => None,
    }
}

/// The same for devices that write their own time without an offset, as Tasmota does (`2026-01-05T11:02:13`): minutes east of UTC
/// that count where the text has none.
pub fn unix_ms_local(text: &str, offset_minutes: i32) -> Option<i64> {
    let (local, offset) = parse(text)?;
    Some(local - offset.unwrap_or(i64::from(offset_minutes) * 60_000))
}

/// RFC 3339 in UTC, with milliseconds only where there are any: `2026-01-05T10:02:13Z`. For years 0 to 9999.
pub fn rfc3339(unix_ms: i64) -> String {
    let mut text = local_text(unix_ms);
    text.push('Z');
    text
}

/// The same in local time, with the offset in minutes east of UTC: `2026-01-05T11:02:13+01:00`.
pub fn rfc3339_local(unix_ms: i64, offset_minutes: i32) -> String {
    let mut text = local_text(unix_ms.saturating_add(i64::from(offset_minutes) * 60_000));
    let minutes = i64::from(offset_minutes.unsigned_abs());
    push(&mut text, if offset_minutes < 0 { "-" } else { "+" }, minutes / 60, 2);
    push(&mut text, ":", minutes % 60, 2);
    text
}

/// Date and time without an offset.
fn local_text(local_ms: i64) -> String {
    let (days, ms) = (local_ms.div_euclid(DAY_MS), local_ms.rem_euclid(DAY_MS));
    let (year, month, day) = civil(days);
    let mut text = String::with_capacity(29);
    push(&mut text, "", year, 4);
    push(&mut text, "-", month, 2);
    push(&mut text, "-", day, 2);
    push(&mut text, "T", ms / 3_600_000, 2);
    push(&mut text, ":", ms / 60_000 % 60, 2);
    push(&mut text, ":", ms / 1000 % 60, 2);
    if ms % 1000 != 0 {
        push(&mut text, ".", ms % 1000, 3);
    }
    text
}

#[inline(never)]
fn push(text: &mut String, before: &str, value: i64, digits: usize) {
    let mut buffer = [0; 20];
    let number = decimal(value.unsigned_abs(), &mut buffer);
    text.push_str(before);
    (number.len()..digits).for_each(|_| text.push('0'));
    text.push_str(number);
}

/// The time as if it were UTC, and the offset east of it, both in milliseconds.
fn parse(text: &str) -> Option<(i64, Option<i64>)> {
    let text = &mut text.trim_ascii().as_bytes();
    let year = digits(text, 4)?;
    let basic = !skip(text, b"-");
    let month = digits(text, 2)?;
    if !basic && !skip(text, b"-") {
        return None;
    }
    let day = digits(text, 2)?;
    if !(1..=12).contains(&month) || day < 1 || day > month_days(year, month) {
        return None;
    }
    let mut ms = days(year, month, day) * DAY_MS;
    if text.is_empty() {
        return Some((ms, None));
    }
    if !skip(text, b"Tt ") {
        return None;
    }
    let hour = digits(text, 2)?;
    skip(text, b":");
    let minute = digits(text, 2)?;
    let second = if skip(text, b":") || text.first().is_some_and(u8::is_ascii_digit) { digits(text, 2)? } else { 0 };
    // 60 is a leap second.
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    ms += hour * 3_600_000 + minute * 60_000 + second * 1000;
    if skip(text, b".,") {
        let mut unit = 100;
        let before = text.len();
        while let Some((digit @ b'0'..=b'9', rest)) = text.split_first() {
            ms += i64::from(digit - b'0') * unit;
            unit /= 10;
            *text = rest;
        }
        if text.len() == before {
            return None;
        }
    }
    let sign = match text.split_first() {
        None => return Some((ms, None)),
        Some((b'Z' | b'z', [])) => return Some((ms, Some(0))),
        Some((b'+', _)) => 1,
        Some((b'-', _)) => -1,
        Some(_) => return None,
    };
    skip(text, b"+-");
    let hours = digits(text, 2)?;
    skip(text, b":");
    let minutes = if text.is_empty() { 0 } else { digits(text, 2)? };
    let valid = text.is_empty() && hours < 24 && minutes < 60;
    valid.then_some((ms, Some(sign * (hours * 60 + minutes) * 60_000)))
}

#[inline(never)]
fn skip(text: &mut &[u8], any: &[u8]) -> bool {
    match text.split_first() {
        Some((byte, rest)) if any.contains(byte) => {
            *text = rest;
            true
        }
        _ => false,
    }
}

#[inline(never)]
fn digits(text: &mut &[u8], count: usize) -> Option<i64> {
    let (digits, rest) = text.split_at_checked(count)?;
    *text = rest;
    digits.iter().try_fold(0, |value, digit| digit.is_ascii_digit().then(|| value * 10 + i64::from(digit - b'0')))
}

fn month_days(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01, by the algorithm of Howard Hinnant ("chrono-compatible low-level date algorithms").
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The inverse: year, month and day.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_devices_write() {
        for (text, ms) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2026-01-05T11:02:13Z", 1_767_610_933_000),
            ("2026-01-05T11:02:13.25Z", 1_767_610_933_250),
            ("2026-01-05 12:02:13,250999+01:00", 1_767_610_933_250),
            ("2026-01-05t06:32:13-0430", 1_767_610_933_000),
            ("20260105T110213Z", 1_767_610_933_000),
            ("2026-01-05T11:02Z", 1_767_610_920_000),
            ("2026-01-05T13:02:13+02", 1_767_610_933_000),
            ("1969-12-31T23:59:59.999Z", -1),
            ("2024-02-29T00:00:00Z", 1_709_164_800_000),
        ] {
            assert_eq!(unix_ms(text), Some(ms), "{text}");
        }
        assert_eq!(unix_ms("2026-01-05T11:02:13"), None);
        assert_eq!(unix_ms_local("2026-01-05T11:02:13", 60), Some(1_767_607_333_000));
        assert_eq!(unix_ms_local("2026-01-05T11:02:13Z", 60), Some(1_767_610_933_000));
        assert_eq!(unix_ms_local("2013-12-02 21:15:00", 0), Some(1_386_018_900_000));
        assert_eq!(unix_ms_local("2026-01-05", 0), Some(1_767_571_200_000));
    }

    #[test]
    fn refuses_dates_that_do_not_exist() {
        for text in [
            "",
            "2026",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-00-10",
            "2026-04-31",
            "2026-01-05T24:00:00Z",
            "2026-01-05T11:60:00Z",
            "2026-01-05T11:02:13X",
            "2026-01-05T11:02:13.Z",
            "2026-01-05T11:02:13+1",
            "2026-01-05T11:02:13Zx",
            "2026-0105T11:02:13Z",
            "21.5",
        ] {
            assert_eq!(unix_ms_local(text, 0), None, "{text}");
        }
    }

    #[test]
    fn every_day_comes_back() {
        for day in (-719_162..2_932_896).step_by(97) {
            let ms = day * DAY_MS + day.rem_euclid(86_400_000);
            assert_eq!(unix_ms(&rfc3339(ms)), Some(ms), "{}", rfc3339(ms));
        }
        assert_eq!(rfc3339(1_767_610_933_000), "2026-01-05T11:02:13Z");
        assert_eq!(rfc3339(1_767_610_933_050), "2026-01-05T11:02:13.050Z");
    }

    #[test]
    fn local_times_name_their_offset_and_come_back() {
        for (offset_minutes, text) in [
            (0, "2026-01-05T11:02:13+00:00"),
            (60, "2026-01-05T12:02:13+01:00"),
            (-210, "2026-01-05T07:32:13-03:30"),
            (845, "2026-01-06T01:07:13+14:05"),
        ] {
            assert_eq!(rfc3339_local(1_767_610_933_000, offset_minutes), text);
            assert_eq!(unix_ms(text), Some(1_767_610_933_000));
        }
    }
}
