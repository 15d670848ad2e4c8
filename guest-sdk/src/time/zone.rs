use alloc::string::String;

use super::{DAY_MS, LocalTime, civil, days, digits, month_days, skip};
use crate::Setting;

/// What local time is at one place: a fixed offset from UTC, or a rule for summer time in the form of POSIX. There is no database of
/// zones in a function: `Europe/Berlin` is `CET-1CEST,M3.5.0,M10.5.0/3`, and if its government decides otherwise, the setting
/// changes.
///
/// | text | |
/// |---|---|
/// | `+01:00`, `-0330`, `UTC`, `Z` | a fixed offset, east of UTC |
/// | `CET-1` | the same in the form of POSIX, which counts west of UTC |
/// | `CET-1CEST,M3.5.0,M10.5.0/3` | summer time from the last Sunday (week 5, day 0) of March at 02:00 to that of October at 03:00, local time |
///
/// `tail -n 1 /usr/share/zoneinfo/Europe/Berlin` prints the rule of a place. Also `Jn` and `n` for days of the year, and `<+03>-3` for
/// names that are not letters, as in POSIX.1-2017, chapter 8.3. Past years follow the rule too.
///
/// ```
/// use sedge_function::time::{TimeOfDay, Zone};
///
/// // In a function: setting::<Zone>("zone")? and setting::<TimeOfDay>("from")?
/// let zone = Zone::parse("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
/// let (from, to) = (TimeOfDay::parse("22:00").unwrap(), TimeOfDay::parse("06:00").unwrap());
/// // 2026-07-01 at 20:30 in UTC
/// let local = zone.local(1_782_937_800_000);
/// assert_eq!((local.weekday, local.hour, local.minute), (3, 22, 30));
/// assert!(local.is_between(from, to));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zone {
    /// Seconds east of UTC.
    offset: i32,
    summer: Option<Summer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Summer {
    offset: i32,
    begins: Change,
    ends: Change,
}

/// A day of each year and a time, in seconds of the local time before the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    day: Day,
    second: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Day {
    /// The weekday (0 for Sunday) in the week of the month (5 for the last).
    Weekday { month: i64, week: i64, weekday: i64 },
    /// From 1, and 29 February is not counted.
    Julian(i64),
    /// From 0.
    Ordinal(i64),
}

impl Zone {
    pub const UTC: Self = Self { offset: 0, summer: None };

    /// A fixed offset in minutes east of UTC.
    pub fn fixed(offset_minutes: i32) -> Self {
        Self { offset: offset_minutes.saturating_mul(60), summer: None }
    }

    pub fn parse(text: &str) -> Option<Self> {
        let text = &mut text.trim_ascii().as_bytes();
        match *text {
            [] => None,
            b"UTC" | b"utc" | b"Z" | b"z" => Some(Self::UTC),
            [b'+' | b'-', ..] => {
                let offset = fixed_offset(text)?;
                Some(Self { offset, summer: None })
            }
            _ => rule(text),
        }
    }

    /// Minutes east of UTC at a Unix time in milliseconds.
    pub fn offset_minutes(&self, unix_ms: i64) -> i32 {
        self.offset_at(unix_ms.div_euclid(1000)) / 60
    }

    /// Calendar and clock at a Unix time in milliseconds.
    pub fn local(&self, unix_ms: i64) -> LocalTime {
        LocalTime::at_offset(unix_ms, self.offset_minutes(unix_ms))
    }

    fn offset_at(&self, unix: i64) -> i32 {
        let Some(summer) = &self.summer else { return self.offset };
        let (year, ..) = civil(unix.saturating_add(i64::from(self.offset)).div_euclid(DAY_MS / 1000));
        let begins = summer.begins.of_year(year) - i64::from(self.offset);
        let ends = summer.ends.of_year(year) - i64::from(summer.offset);
        let is_summer = if begins < ends { begins <= unix && unix < ends } else { unix < ends || begins <= unix };
        if is_summer { summer.offset } else { self.offset }
    }
}

impl Change {
    /// In seconds since 1970 of local time.
    #[inline(never)]
    fn of_year(self, year: i64) -> i64 {
        let first = days(year, 1, 1);
        let day = match self.day {
            Day::Ordinal(day) => first + day,
            Day::Julian(day) => {
                let leap = day > 59 && month_days(year, 2) == 29;
                first + day - 1 + i64::from(leap)
            }
            Day::Weekday { month, week, weekday } => {
                let first = days(year, month, 1);
                // 1970-01-01 was a Thursday, day 4.
                let to_weekday = (weekday - (first + 4)).rem_euclid(7);
                let day = to_weekday + 7 * (week - 1);
                first + if day < month_days(year, month) { day } else { day - 7 }
            }
        };
        day * (DAY_MS / 1000) + i64::from(self.second)
    }
}

/// `+01:00`, `-0330`, `+2`, in seconds.
fn fixed_offset(text: &mut &[u8]) -> Option<i32> {
    let negative = text.first() == Some(&b'-');
    skip(text, b"+-");
    let hours = if text.get(1).is_some_and(u8::is_ascii_digit) { digits(text, 2)? } else { digits(text, 1)? };
    skip(text, b":");
    let minutes = if text.is_empty() { 0 } else { digits(text, 2)? };
    let seconds = (hours * 3600 + minutes * 60) as i32;
    (text.is_empty() && hours < 24 && minutes < 60).then_some(if negative { -seconds } else { seconds })
}

/// A rule of POSIX.
fn rule(text: &mut &[u8]) -> Option<Zone> {
    let is_utc = matches!(**text, [b'U', b'T', b'C', ..] | [b'G', b'M', b'T', ..]);
    name(text)?;
    let offset = -clock(text)?;
    if text.is_empty() {
        // `UTC+1` says the opposite of what people mean by it.
        return (!is_utc || offset == 0).then_some(Zone { offset, summer: None });
    }
    name(text)?;
    let summer_offset = if text.first() == Some(&b',') { offset + 3600 } else { -clock(text)? };
    let (begins, ends) = (change(text)?, change(text)?);
    text.is_empty().then_some(Zone { offset, summer: Some(Summer { offset: summer_offset, begins, ends }) })
}

/// At least three letters, or anything in angle brackets.
#[inline(never)]
fn name(text: &mut &[u8]) -> Option<()> {
    let length = if skip(text, b"<") {
        text.iter().position(|byte| *byte == b'>')?
    } else {
        let letters = text.iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
        *text = text.get(letters..)?;
        return (letters >= 3).then_some(());
    };
    *text = text.get(length + 1..)?;
    (length >= 3).then_some(())
}

/// `-1`, `3:30`, `167:59:59`, in seconds.
#[inline(never)]
fn clock(text: &mut &[u8]) -> Option<i32> {
    let negative = text.first() == Some(&b'-');
    skip(text, b"+-");
    let mut seconds = number(text, 167)? * 3600;
    for unit in [60, 1] {
        if skip(text, b":") {
            seconds += number(text, 59)? * unit;
        }
    }
    let seconds = seconds as i32;
    Some(if negative { -seconds } else { seconds })
}

/// `,M3.5.0/2`, `,J60`, `,59/2:30`.
#[inline(never)]
fn change(text: &mut &[u8]) -> Option<Change> {
    if !skip(text, b",") {
        return None;
    }
    let day = if skip(text, b"M") {
        let month = number(text, 12).filter(|month| *month > 0)?;
        let week = skip(text, b".").then(|| number(text, 5)).flatten().filter(|week| *week > 0)?;
        let weekday = skip(text, b".").then(|| number(text, 6)).flatten()?;
        Day::Weekday { month, week, weekday }
    } else if skip(text, b"J") {
        Day::Julian(number(text, 365).filter(|day| *day > 0)?)
    } else {
        Day::Ordinal(number(text, 365)?)
    };
    let second = if skip(text, b"/") { clock(text)? } else { 7200 };
    Some(Change { day, second })
}

/// A whole number of one to three digits.
#[inline(never)]
fn number(text: &mut &[u8], at_most: i64) -> Option<i64> {
    let count = text.iter().take(3).take_while(|byte| byte.is_ascii_digit()).count();
    if count == 0 {
        return None;
    }
    digits(text, count).filter(|value| *value <= at_most)
}

impl Setting for Zone {
    const KIND: &'static str = "an offset from UTC such as \"+01:00\" or a rule such as \"CET-1CEST,M3.5.0,M10.5.0/3\": functions have \
                                no names of zones";

    fn parse(text: String) -> Option<Self> {
        Self::parse(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Board;
    use crate::time::unix_ms;
    use crate::{Failure, setting};

    #[track_caller]
    fn check(rule: &str, expected: &[(&str, i32)]) {
        let zone = Zone::parse(rule).unwrap();
        for (time, offset_minutes) in expected {
            assert_eq!(zone.offset_minutes(unix_ms(time).unwrap()), *offset_minutes, "{rule} at {time}");
        }
    }

    #[test]
    fn offsets_count_east_and_rules_of_posix_west() {
        for (text, offset_minutes) in [
            ("UTC", 0),
            ("Z", 0),
            ("+01:00", 60),
            (" -0330 ", -210),
            ("+2", 120),
            ("+14", 840),
            ("CET-1", 60),
            ("<-03>3", -180),
            ("<+0545>-5:45", 345),
            ("UTC0", 0),
        ] {
            assert_eq!(Zone::parse(text), Some(Zone::fixed(offset_minutes)), "{text}");
        }
    }

    #[test]
    fn summer_time_begins_and_ends_at_the_second() {
        check(
            "CET-1CEST,M3.5.0,M10.5.0/3",
            &[
                ("2026-03-29T00:59:59Z", 60),
                ("2026-03-29T01:00:00Z", 120),
                ("2026-10-25T00:59:59Z", 120),
                ("2026-10-25T01:00:00Z", 60),
                ("2025-12-31T23:30:00Z", 60),
                ("2024-03-31T00:59:59Z", 60),
                ("2024-03-31T01:00:00Z", 120),
                ("2024-02-29T12:00:00Z", 60),
            ],
        );
        check(
            "EST5EDT,M3.2.0,M11.1.0",
            &[
                ("2026-03-08T06:59:59Z", -300),
                ("2026-03-08T07:00:00Z", -240),
                ("2026-11-01T05:59:59Z", -240),
                ("2026-11-01T06:00:00Z", -300),
            ],
        );
    }

    #[test]
    fn in_the_south_summer_is_over_new_year() {
        check(
            "AEST-10AEDT,M10.1.0,M4.1.0/3",
            &[
                ("2025-12-31T13:30:00Z", 660),
                ("2026-01-01T00:00:00Z", 660),
                ("2026-04-04T15:59:59Z", 660),
                ("2026-04-04T16:00:00Z", 600),
                ("2026-10-03T15:59:59Z", 600),
                ("2026-10-03T16:00:00Z", 660),
            ],
        );
        check("<+1030>-10:30<+11>-11,M10.1.0,M4.1.0", &[("2026-01-01T00:00:00Z", 660), ("2026-07-01T00:00:00Z", 630)]);
    }

    #[test]
    fn odd_rules_of_posix() {
        // Nuuk: a change on the day before. Dublin: the winter is the exception.
        check("<-02>2<-01>,M3.5.0/-1,M10.5.0/0", &[("2026-03-29T00:59:59Z", -120), ("2026-03-29T01:00:00Z", -60)]);
        check("IST-1GMT0,M10.5.0,M3.5.0/1", &[("2026-01-05T00:00:00Z", 0), ("2026-07-01T00:00:00Z", 60)]);
        // Days of the year: 1 March is J60, and 59 in years without a leap day.
        check("AAA0BBB,J60/0,J300/0", &[("2024-02-29T23:59:59Z", 0), ("2024-03-01T00:00:00Z", 60)]);
        check("AAA0BBB,59/0,300/0", &[("2026-03-01T00:00:00Z", 60), ("2024-02-29T00:00:00Z", 60)]);
        // Summer all year, as in RFC 8536.
        check("EST5EDT,0/0,J365/25", &[("2026-01-01T05:00:00Z", -240), ("2026-12-31T23:00:00Z", -240)]);
    }

    #[test]
    fn what_is_no_zone_is_refused_and_the_setting_says_what_to_write() {
        for text in [
            "",
            "Europe/Berlin",
            "CET",
            "CET-1CEST",
            "CET-1CEST,M3.5.0",
            "CET-1CEST,M13.5.0,M10.5.0",
            "CET-1CEST,M3.6.0,M10.5.0",
            "CET-1CEST,M3.5.7,M10.5.0",
            "CET-1CEST,M3.5.0,M10.5.0/3x",
            "CET-1CEST,J0,J300",
            "CET-1CEST,J366,J300",
            "UTC+1",
            "GMT-3",
            "+25:00",
            "+01:60",
            "+",
            "<+03-3",
            "<>0",
            "1",
        ] {
            assert_eq!(Zone::parse(text), None, "{text}");
        }
        let error = Board::new().setting("zone", "Europe/Berlin").with_state(|| setting::<Zone>("zone")).unwrap_err();
        let Failure::Reject(why) = error else { panic!("{error:?}") };
        assert!(why.contains("\"zone\" is not an offset") && why.contains("CET-1CEST,M3.5.0,M10.5.0/3"), "{why}");
    }

    #[test]
    fn times_beyond_the_calendar_do_not_panic() {
        for rule in ["CET-1CEST,M3.5.0,M10.5.0/3", "+01:00", "EST5EDT,0/0,J365/25"] {
            let zone = Zone::parse(rule).unwrap();
            for unix_ms in [i64::MIN, i64::MIN / 1000, -1, 0, i64::MAX / 1000, i64::MAX] {
                let _ = zone.local(unix_ms);
            }
        }
    }
}
