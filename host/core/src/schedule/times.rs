//! When a schedule is due.

use croner::Cron;
use croner::parser::{CronParser, Year};

use super::zone::{Local, Zone};
use crate::config::problem::Invalid;

const MAX_EXPRESSION_BYTES: usize = 200;
/// A Friday, from which it is looked whether an expression ever comes: 2026-01-02 in UTC.
const ANY_DAY_SECS: i64 = 1_767_312_000;

/// The times of one schedule: those of all its expressions, in its zone. Summer time is croner's: a fixed time that the clock
/// skips is due right after the gap, and one that comes twice is due the first time; what is due every so often is left out in
/// the gap, and runs in both hours.
#[derive(Clone, Debug)]
pub struct Times {
    expressions: Vec<Cron>,
    zone: Zone,
}

impl Times {
    /// `Err`: one of the expressions is none.
    pub fn new<T: AsRef<str>>(expressions: &[T], zone: Zone) -> Result<Self, Invalid> {
        let expressions = expressions.iter().map(|text| parse(text.as_ref())).collect::<Result<_, _>>()?;
        Ok(Self { expressions, zone })
    }

    /// The first time after this one, in milliseconds since 1970. `None`: there is none within fifty years.
    pub fn next(&self, after_ms: u64) -> Option<u64> {
        let after = Local::new(i64::try_from(after_ms / 1000).ok()?, &self.zone);
        let next = |cron: &Cron| u64::try_from(cron.find_next_occurrence(&after, false).ok()?.unix).ok();
        self.expressions.iter().filter_map(next).min()?.checked_mul(1000)
    }
}

/// Reads an expression of cron, of five fields, or of six with seconds before them.
fn parse(text: &str) -> Result<Cron, Invalid> {
    let hint = "write minute, hour, day of month, month and day of week, as in \"0 6 * * mon-fri\"";
    if text.len() > MAX_EXPRESSION_BYTES {
        let what = format!("an expression of {} bytes, the limit is {MAX_EXPRESSION_BYTES}", text.len());
        return Err(Invalid::new(what).hint("make a list of several"));
    }
    let parser = CronParser::builder().year(Year::Disallowed).build();
    let cron = parser.parse(text).map_err(|error| {
        let why = error.to_string();
        let why = why.trim_end_matches('.');
        Invalid::new(format!("{text:?} is not the expression of a schedule: {why}")).hint(hint)
    })?;
    match cron.find_next_occurrence(&Local::new(ANY_DAY_SECS, &Zone::utc()), false) {
        Ok(_) => Ok(cron),
        Err(_) => Err(Invalid::new(format!("{text:?} never comes: no day of any year is one of its days"))
            .hint("correct day of month and month")),
    }
}

/// Fails unless it is an expression whose time comes.
pub(crate) fn check(text: &str) -> Result<(), Invalid> {
    parse(text).map(drop)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may read clocks and files")]
mod tests;
