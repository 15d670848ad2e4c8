use alloc::string::String;

use super::{DAY_MS, civil, digits};
use crate::Setting;

/// A moment as calendar and clock show it at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalTime {
    pub year: i32,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 1 for Monday to 7 for Sunday, as in ISO 8601.
    pub weekday: u8,
    pub hour: u8,
    pub minute: u8,
    pub second: u8,
    /// Minutes east of UTC.
    pub offset_minutes: i32,
    /// Days since 1970-01-01 in local time: another number on another day, as a state key for "once a day".
    pub day_number: i64,
}

impl LocalTime {
    /// The local time at a Unix time in milliseconds, by an offset in minutes east of UTC.
    pub fn at_offset(unix_ms: i64, offset_minutes: i32) -> Self {
        let local_ms = unix_ms.saturating_add(i64::from(offset_minutes) * 60_000);
        let (days, ms) = (local_ms.div_euclid(DAY_MS), local_ms.rem_euclid(DAY_MS));
        let (year, month, day) = civil(days);
        Self {
            year: year as i32,
            month: month as u8,
            day: day as u8,
            // 1970-01-01 was a Thursday.
            weekday: (days + 3).rem_euclid(7) as u8 + 1,
            hour: (ms / 3_600_000) as u8,
            minute: (ms / 60_000 % 60) as u8,
            second: (ms / 1000 % 60) as u8,
            offset_minutes,
            day_number: days,
        }
    }

    pub fn time_of_day(&self) -> TimeOfDay {
        TimeOfDay { minutes: u16::from(self.hour) * 60 + u16::from(self.minute) }
    }

    /// Whether it is `from` or later and before `to`. If `from` is the later one, the time between them is that over midnight.
    pub fn is_between(&self, from: TimeOfDay, to: TimeOfDay) -> bool {
        let now = self.time_of_day();
        if from <= to { from <= now && now < to } else { from <= now || now < to }
    }
}

/// A time of day to the minute, as the setting `"06:30"`; `"24:00"` is the end of a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimeOfDay {
    minutes: u16,
}

impl TimeOfDay {
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim_ascii().as_bytes();
        let (hour, minute) = match text {
            [_, _, b':', ..] => text.split_at_checked(2)?,
            [_, b':', ..] => text.split_at_checked(1)?,
            _ => return None,
        };
        let hour = digits(&mut &*hour, hour.len())?;
        let minute = minute.get(1..).filter(|digits| digits.len() == 2)?;
        let minute = digits(&mut &*minute, 2)?;
        let is_time = minute < 60 && hour < 24 || (hour, minute) == (24, 0);
        is_time.then_some(Self { minutes: (hour * 60 + minute) as u16 })
    }

    /// Minutes since midnight.
    pub fn minutes(self) -> u16 {
        self.minutes
    }
}

impl Setting for TimeOfDay {
    const KIND: &'static str = "a time of day such as \"06:30\"";

    fn parse(text: String) -> Option<Self> {
        Self::parse(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::unix_ms;

    fn local(text: &str, offset_minutes: i32) -> LocalTime {
        LocalTime::at_offset(unix_ms(text).unwrap(), offset_minutes)
    }

    #[test]
    fn day_and_time_are_those_of_the_place() {
        let new_year = local("2025-12-31T23:30:05Z", 60);
        assert_eq!((new_year.year, new_year.month, new_year.day, new_year.weekday), (2026, 1, 1, 4));
        assert_eq!((new_year.hour, new_year.minute, new_year.second), (0, 30, 5));
        assert_eq!(new_year.day_number, local("2026-01-01T00:00:00Z", 0).day_number);
        assert_eq!(local("2026-11-29T12:00:00Z", 0).weekday, 7);
        assert_eq!(local("1969-12-31T12:00:00Z", 0).weekday, 3);
        assert_eq!(local("2024-03-01T03:00:00Z", -300).day, 29);
    }

    #[test]
    fn a_time_between_may_lie_over_midnight() {
        let time = |text: &str| TimeOfDay::parse(text).unwrap();
        for (now, from, to, expected) in [
            ("06:00", "06:00", "22:00", true),
            ("22:00", "06:00", "22:00", false),
            ("23:59", "22:00", "6:00", true),
            ("05:59", "22:00", "6:00", true),
            ("06:00", "22:00", "6:00", false),
            ("23:59", "00:00", "24:00", true),
            ("12:00", "12:00", "12:00", false),
        ] {
            let now = local(&std::format!("2026-01-05T{now}:00Z"), 0);
            assert_eq!(now.is_between(time(from), time(to)), expected, "{now:?} from {from} to {to}");
        }
    }

    #[test]
    fn what_is_no_time_of_day_is_refused() {
        assert_eq!(TimeOfDay::parse(" 6:05 ").map(TimeOfDay::minutes), Some(365));
        for text in ["", "6", "24:01", "12:60", "6:5", "06:30:00", "-1:00", "ab:cd", ":30", "006:30", "6:+5"] {
            assert_eq!(TimeOfDay::parse(text), None, "{text}");
        }
    }
}
