//! Figures of the last hour by the minute and of the last week by the hour, since the start of the daemon.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use sedge_core::metrics::Metrics;
use sedge_core::time::Now;

const MINUTES: usize = 60;
const HOURS: usize = 7 * 24;
const MINUTES_PER_DAY: u128 = 24 * 60;
/// Less says nothing about a day.
const MIN_MINUTES: usize = 5;

#[derive(Debug, Default)]
pub(super) struct Charts(Mutex<Series>);

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Series {
    /// Of this run of the daemon.
    #[serde(skip)]
    last: Totals,
    minutes: VecDeque<Totals>,
    hours: VecDeque<Totals>,
    /// Minutes that the latest hour has.
    of_hour: usize,
}

/// Counts since the start, or within a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Totals {
    messages: u64,
    alerts: u64,
    dead_letters: u64,
    written_bytes: u64,
}

impl Charts {
    /// To be called each minute. Returns whether anything was counted in it.
    pub(super) fn minute(&self, metrics: &Metrics, now: Now) -> bool {
        let totals = Totals {
            messages: metrics.received.get(),
            alerts: metrics.alerts(),
            dead_letters: metrics.dead_lettered.get(),
            written_bytes: metrics.sum("sedge_store_written_bytes_total", now),
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).add(totals)
    }

    pub(super) fn series(&self) -> Series {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Continues with what was saved so many minutes ago.
    pub(super) fn restore(&self, mut series: Series, minutes_ago: u64) {
        series.minutes.truncate(MINUTES);
        series.hours.truncate(HOURS);
        series.of_hour %= MINUTES;
        for _ in 0..minutes_ago.min((HOURS * MINUTES) as u64) {
            series.add(Totals::default());
        }
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = series;
    }

    /// Bytes written per day, as in the last week. `None`: too little is known of it.
    pub(super) fn written_per_day(&self) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).written_per_day()
    }

    /// Oldest first.
    pub(super) fn to_json(&self) -> Value {
        let series = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let columns = |of: &VecDeque<Totals>| {
            let column = |get: fn(&Totals) -> u64| of.iter().map(get).collect::<Vec<_>>();
            json!({
                "messages": column(|it| it.messages),
                "alerts": column(|it| it.alerts),
                "dead_letters": column(|it| it.dead_letters),
                "written_bytes": column(|it| it.written_bytes),
            })
        };
        json!({ "minutes": columns(&series.minutes), "hours": columns(&series.hours) })
    }
}

impl Series {
    fn add(&mut self, totals: Totals) -> bool {
        let minute = totals.since(self.last);
        self.last = totals;
        self.minutes.push_back(minute);
        if self.minutes.len() > MINUTES {
            self.minutes.pop_front();
        }
        if self.of_hour == 0 {
            self.hours.push_back(Totals::default());
            if self.hours.len() > HOURS {
                self.hours.pop_front();
            }
        }
        if let Some(hour) = self.hours.back_mut() {
            hour.add(minute);
        }
        self.of_hour = (self.of_hour + 1) % MINUTES;
        minute != Totals::default()
    }
}

impl Series {
    fn written_per_day(&self) -> Option<u64> {
        let of_last = if self.of_hour == 0 { MINUTES } else { self.of_hour };
        let minutes = self.hours.len().checked_sub(1)? * MINUTES + of_last;
        let written: u64 = self.hours.iter().map(|it| it.written_bytes).sum();
        (minutes >= MIN_MINUTES).then(|| (u128::from(written) * MINUTES_PER_DAY / minutes as u128) as u64)
    }
}

impl Totals {
    fn since(self, before: Self) -> Self {
        Self {
            messages: self.messages.saturating_sub(before.messages),
            alerts: self.alerts.saturating_sub(before.alerts),
            dead_letters: self.dead_letters.saturating_sub(before.dead_letters),
            written_bytes: self.written_bytes.saturating_sub(before.written_bytes),
        }
    }

    fn add(&mut self, more: Self) {
        self.messages += more.messages;
        self.alerts += more.alerts;
        self.dead_letters += more.dead_letters;
        self.written_bytes += more.written_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_moves_on_by_the_time_that_passed() {
        let charts = Charts::default();
        charts.0.lock().unwrap().add(Totals { messages: 7, ..Totals::default() });
        let saved = charts.series();
        charts.restore(saved.clone(), 2);
        let shown = charts.to_json();
        assert_eq!(shown["minutes"]["messages"], json!([7, 0, 0]));
        assert_eq!(shown["hours"]["messages"], json!([7]));
        charts.restore(saved, u64::MAX);
        assert_eq!(charts.to_json()["hours"]["messages"], json!(vec![0; HOURS]));
    }

    #[test]
    fn what_is_written_per_day_is_that_of_the_minutes_that_are_known() {
        let mut series = Series::default();
        for minute in 1..=90 {
            series.add(Totals { written_bytes: 1000 * minute, ..Totals::default() });
            let expected = (minute >= MIN_MINUTES as u64).then_some(1_440_000);
            assert_eq!(series.written_per_day(), expected, "after {minute} minutes");
        }
    }

    #[test]
    fn minutes_add_up_to_hours_and_both_are_bounded() {
        let mut series = Series::default();
        for minute in 1..=(HOURS as u64 + 2) * 60 {
            series.add(Totals { messages: 10 * minute, ..Totals::default() });
        }
        assert_eq!((series.minutes.len(), series.hours.len()), (MINUTES, HOURS));
        assert!(series.minutes.iter().all(|it| it.messages == 10));
        assert!(series.hours.iter().all(|it| it.messages == 600));
        series.add(Totals { messages: 10 * (HOURS as u64 + 2) * 60 + 7, ..Totals::default() });
        assert_eq!(series.hours.back().map(|it| it.messages), Some(7));
    }
}
