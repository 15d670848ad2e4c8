//! The figures: a table with goals for a person, `target/bench.json` for everything else.

use std::collections::BTreeMap;
use std::path::Path;

/// The goal of a figure.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
    /// Shown to explain the others.
    None,
}

impl Goal {
    fn is_met(self, value: f64) -> Option<bool> {
        match self {
            Self::AtMost(most) => Some(value <= most),
            Self::AtLeast(least) => Some(value >= least),
            Self::None => None,
        }
    }
}

struct Figure {
    key: &'static str,
    /// `None` if it could not be measured. `what` then says how to get it.
    value: Option<f64>,
    goal: Goal,
    what: &'static str,
}

#[derive(Default)]
pub(crate) struct Report {
    figures: Vec<Figure>,
    /// All runs behind each median.
    runs: BTreeMap<&'static str, Vec<f64>>,
}

impl Report {
    pub(crate) fn add(&mut self, key: &'static str, value: f64, goal: Goal, what: &'static str) {
        eprintln!("  {key} = {}", rounded(value));
        self.figures.push(Figure { key, value: Some(value), goal, what });
    }

    /// Adds a figure that could not be measured, and how to get it.
    pub(crate) fn add_missing(&mut self, key: &'static str, goal: Goal, hint: &'static str) {
        eprintln!("  {key}: not measured; {hint}");
        self.figures.push(Figure { key, value: None, goal, what: hint });
    }

    /// Adds the median of the runs, and records the runs.
    pub(crate) fn add_median(&mut self, key: &'static str, runs: Vec<f64>, goal: Goal, what: &'static str) {
        self.add(key, median(&runs), goal, what);
        self.runs.insert(key, runs);
    }

    pub(crate) fn print(&self) {
        println!("\n{:<24} {:>12} {:>12}  {:<5} what", "key", "value", "goal", "");
        for Figure { key, value, goal, what } in &self.figures {
            let wanted = match goal {
                Goal::AtMost(most) => format!("<= {}", rounded(*most)),
                Goal::AtLeast(least) => format!(">= {}", rounded(*least)),
                Goal::None => String::new(),
            };
            let verdict = match value.and_then(|value| goal.is_met(value)) {
                Some(true) => "pass",
                Some(false) => "FAIL",
                None => "",
            };
            let value = value.map_or_else(|| "-".into(), rounded);
            println!("{key:<24} {value:>12} {wanted:>12}  {verdict:<5} {what}");
        }
    }

    pub(crate) fn write(&self, path: &Path, machine: &serde_json::Value) -> std::io::Result<()> {
        let mut all = serde_json::Map::new();
        for Figure { key, value, goal, .. } in &self.figures {
            all.insert((*key).into(), (*value).into());
            if let Some(met) = value.and_then(|value| goal.is_met(value)) {
                all.insert(format!("{key}_met"), met.into());
            }
        }
        all.insert("runs".into(), serde_json::json!(self.runs));
        all.insert("machine".into(), machine.clone());
        std::fs::write(path, serde_json::to_vec_pretty(&all)?)
    }
}

pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 50.0)
}

/// Returns the nearest-rank percentile. NaN for an empty slice.
pub(crate) fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (percent / 100.0 * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

fn rounded(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}
