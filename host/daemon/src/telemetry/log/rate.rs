//! Rate limit of log lines: a token bucket for each source of lines, and one for each text.
//!
//! A source is a statement that logs, for one function if the line names one. Texts are equal if they differ only in digits,
//! or in a field that a sender or a guest chooses. The lines of a function are its own texts, to the last digit.
//! `debug` and `trace` are asked for by an operator and have no limit, but in functions.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level};

use sedge_core::board::GUEST_LOG;

/// A text is logged this often at once, then once every `TEXT_EVERY`.
const TEXT_BURST: f64 = 10.0;
const TEXT_EVERY: Duration = Duration::from_secs(10);
/// A source logs this many lines at once, then one every `SOURCE_EVERY`.
const SOURCE_BURST: f64 = 100.0;
const SOURCE_EVERY: Duration = Duration::from_millis(200);
/// Buckets that are kept. Beyond it, a new text has no bucket of its own, and only its source limits it.
const MAX_BUCKETS: usize = 2048;
/// Bytes of a text that are remembered to say what was left out.
const MAX_LABEL_BYTES: usize = 120;
/// Fields that do not tell one text from another.
const CHOSEN_OUTSIDE: [&str; 2] = ["topic", "detail"];

#[derive(Debug, Default)]
pub(super) struct Rate {
    buckets: HashMap<u64, Bucket>,
    purged: Option<Instant>,
}

#[derive(Debug)]
struct Bucket {
    burst: f64,
    every: Duration,
    tokens: f64,
    at: Instant,
    left_out: u64,
    level: Level,
    label: Box<str>,
}

/// Lines that were left out and not counted in a later one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub(super) level: Level,
    pub(super) lines: u64,
    pub(super) like: Box<str>,
}

impl Rate {
    /// Returns how many lines like this one were left out before it, or `None` if this one is left out as well.
    pub(super) fn admit(&mut self, event: &Event<'_>, now: Instant) -> Option<u64> {
        let (meta, is_guest) = (event.metadata(), event.metadata().target() == GUEST_LOG);
        if *meta.level() > Level::INFO && !is_guest {
            return Some(0);
        }
        let mut keys = Keys { source: DefaultHasher::new(), text: DefaultHasher::new(), is_guest };
        if is_guest {
            GUEST_LOG.hash(&mut keys.source);
        } else {
            meta.callsite().hash(&mut keys.source);
        }
        event.record(&mut keys);
        let source = keys.source.finish();
        (source, meta.level()).hash(&mut keys.text);
        let text = keys.text.finish();
        let mut left_out = 0;
        for (key, burst, every) in [(text, TEXT_BURST, TEXT_EVERY), (source, SOURCE_BURST, SOURCE_EVERY)] {
            if !self.buckets.contains_key(&key) {
                if key == text && !self.has_room(now) {
                    continue;
                }
                let label = if key == text { label(event) } else { source_label(event) };
                self.buckets.insert(
                    key,
                    Bucket { burst, every, tokens: burst, at: now, left_out: 0, level: *meta.level(), label },
                );
            }
            let bucket = self.buckets.get_mut(&key).expect("it was inserted");
            left_out += bucket.take(now)?;
        }
        Some(left_out)
    }

    fn has_room(&mut self, now: Instant) -> bool {
        if self.buckets.len() < MAX_BUCKETS {
            return true;
        }
        if self.purged.is_none_or(|at| now.duration_since(at) >= Duration::from_secs(1)) {
            self.purged = Some(now);
            self.buckets.retain(|_, bucket| !bucket.is_idle(now));
        }
        self.buckets.len() < MAX_BUCKETS
    }

    /// Takes what was left out and is not told by a line like it within the time of a text.
    pub(super) fn left_out(&mut self, now: Instant) -> Vec<LeftOut> {
        let due = |bucket: &&mut Bucket| bucket.left_out > 0 && now.duration_since(bucket.at) > TEXT_EVERY;
        let told = |bucket: &mut Bucket| {
            bucket.at = now;
            LeftOut { level: bucket.level, lines: std::mem::take(&mut bucket.left_out), like: bucket.label.clone() }
        };
        self.buckets.values_mut().filter(due).map(told).collect()
    }
}

impl Bucket {
    /// Takes a token, and returns how many lines were left out since the last.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let tokens = self.tokens_at(now);
        if tokens < 1.0 {
            self.left_out += 1;
            return None;
        }
        (self.tokens, self.at) = (tokens - 1.0, now);
        Some(std::mem::take(&mut self.left_out))
    }

    fn tokens_at(&self, now: Instant) -> f64 {
        let gained = now.duration_since(self.at).as_secs_f64() / self.every.as_secs_f64();
        (self.tokens + gained).min(self.burst)
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.left_out == 0 && self.tokens_at(now) >= self.burst
    }
}

struct Keys {
    source: DefaultHasher,
    text: DefaultHasher,
    is_guest: bool,
}

impl Visit for Keys {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "function" {
            let _ = write!(Hashed { hasher: &mut self.source, keeps_digits: true, was_digit: false }, "{value:?}");
        } else if !CHOSEN_OUTSIDE.contains(&field.name()) {
            field.name().hash(&mut self.text);
            let hashed = Hashed { hasher: &mut self.text, keeps_digits: self.is_guest, was_digit: false };
            let _ = { hashed }.write_fmt(format_args!("{value:?}"));
        }
    }
}

/// Hashes text without storing it. A run of digits counts as one.
struct Hashed<'a> {
    hasher: &'a mut DefaultHasher,
    keeps_digits: bool,
    was_digit: bool,
}

impl Write for Hashed<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            let is_digit = byte.is_ascii_digit() && !self.keeps_digits;
            match (is_digit, self.was_digit) {
                (true, true) => {}
                (true, false) => self.hasher.write_u8(b'0'),
                (false, _) => self.hasher.write_u8(byte),
            }
            self.was_digit = is_digit;
        }
        Ok(())
    }
}

/// Text of a line, cut, to say what was left out.
fn label(event: &Event<'_>) -> Box<str> {
    struct Label(String);
    impl Visit for Label {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            if self.0.len() >= MAX_LABEL_BYTES || CHOSEN_OUTSIDE.contains(&field.name()) {
                return;
            }
            let _ = match field.name() {
                "message" => write!(self.0, "{value:?}"),
                name => write!(self.0, " {name}={value:?}"),
            };
        }
    }
    let mut text = Label(String::new());
    event.record(&mut text);
    text.0.truncate(text.0.floor_char_boundary(MAX_LABEL_BYTES));
    text.0.into()
}

fn source_label(event: &Event<'_>) -> Box<str> {
    struct Function(String);
    impl Visit for Function {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            if field.name() == "function" {
                let _ = write!(self.0, " function={value:?}");
            }
        }
    }
    let mut name = Function(event.metadata().target().to_owned());
    event.record(&mut name);
    name.0.into()
}
