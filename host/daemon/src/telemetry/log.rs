//! Log lines on standard error, as text. Under systemd the journal adds the time; elsewhere each line has its own.

mod kept;
mod rate;

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Instant;

pub(crate) use kept::{KeptLines, lines_after};
use rate::{LeftOut, Rate};
use sedge_core::text::Escaped;
use tracing::field::Field;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Format, Full, Writer, debug_fn};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error(
        "`{level}` is not a log level: write `error`, `warn`, `info`, `debug` or `trace`, or a list of `target=level` \
         such as `info,sedge::mqtt=debug`"
    )]
    Level { level: String },
    #[error("a log subscriber is already installed")]
    Installed,
}

/// Installs the log subscriber. Called once, before anything logs, with `log.level` of the configuration.
pub fn init(level: &str) -> Result<(), LogError> {
    let filter = parse(level)?;
    let journal = std::env::var("JOURNAL_STREAM").is_ok_and(|stream| is_journal(&stream));
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing_subscriber::registry()
        .with(layer(io::stderr, colour && !journal, journal).with_filter(filter))
        .try_init()
        .map_err(|_| LogError::Installed)
}

/// The one layer that writes lines: escaped fields, limited in rate.
fn layer<S, W>(writer: W, colour: bool, journal: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colour);
    let layer = layer.fmt_fields(debug_fn(write_field).delimited(" "));
    match journal {
        true => layer.event_format(Limited(Journal::new())).boxed(),
        false => layer.event_format(Limited(Format::default().with_ansi(colour))).boxed(),
    }
}

/// Writes a field. Texts come from devices, guests and the broker: none may end the line or control the terminal.
fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    match field.name() {
        "message" => {}
        name if writer.has_ansi_escapes() => write!(writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m")?,
        name => write!(writer, "{name}=")?,
    }
    write!(Escaped(writer), "{value:?}")
}

static RATE: LazyLock<Mutex<Rate>> = LazyLock::new(Mutex::default);

/// Logs how many lines were left out since they were last told. Called about once a second.
pub(crate) fn tell_left_out(now: Instant) {
    // Logged after the lock is released: the lines pass through the layer that takes it.
    let left_out = RATE.lock().unwrap_or_else(PoisonError::into_inner).left_out(now);
    for LeftOut { level, lines, like } in left_out {
        match level {
            Level::ERROR => tracing::error!(target: LEFT_OUT, lines, %like, "log lines were left out"),
            Level::WARN => tracing::warn!(target: LEFT_OUT, lines, %like, "log lines were left out"),
            _ => tracing::info!(target: LEFT_OUT, lines, %like, "log lines were left out"),
        }
    }
}

/// Target of the lines that count others. They have no limit of their own.
const LEFT_OUT: &str = "sedge::log";

/// A format whose lines are limited in rate.
struct Limited<F>(F);

impl<S, N, F> FormatEvent<S, N> for Limited<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let admitted = match event.metadata().target() {
            LEFT_OUT => Some(0),
            _ => RATE.lock().unwrap_or_else(PoisonError::into_inner).admit(event, Instant::now()),
        };
        // The line stays empty, and nothing is written.
        let Some(left_out) = admitted else { return Ok(()) };
        kept::keep(ctx, event);
        if left_out == 0 {
            return self.0.format_event(ctx, writer, event);
        }
        let mut line = String::new();
        self.0.format_event(ctx, Writer::new(&mut line), event)?;
        writeln!(writer, "{} ({left_out} like it were left out)", line.trim_end_matches('\n'))
    }
}

/// Parses a level filter. A bare level is for Sedge; libraries log every packet at `debug` and are held to warnings.
/// They can be named, as in `info,rumqttc=debug`.
pub(crate) fn parse(level: &str) -> Result<Targets, LogError> {
    let wrong = || LogError::Level { level: level.into() };
    let mut sedge = LevelFilter::INFO;
    let mut named = Vec::new();
    for directive in level.split(',').map(str::trim) {
        match directive.split_once('=') {
            // tracing parses the empty string as a level.
            None if directive.is_empty() => return Err(wrong()),
            None => sedge = directive.parse().map_err(|_| wrong())?,
            Some(("", _)) => return Err(wrong()),
            Some((target, level)) => {
                named.push((target.to_owned(), level.parse::<LevelFilter>().map_err(|_| wrong())?))
            }
        }
    }
    Ok(Targets::new().with_default(sedge.min(LevelFilter::WARN)).with_target("sedge", sedge).with_targets(named))
}

/// Whether standard error is the stream that `JOURNAL_STREAM` names: shells inherit the variable (systemd.exec(5)).
fn is_journal(stream: &str) -> bool {
    let Ok(meta) = std::fs::metadata("/proc/self/fd/2") else { return false };
    stream.split_once(':').is_some_and(|(dev, ino)| dev.parse() == Ok(meta.dev()) && ino.parse() == Ok(meta.ino()))
}

/// Format without a time, and with the level as the prefix that `journalctl -p` reads (sd-daemon(3)).
struct Journal(Format<Full, ()>);

impl Journal {
    fn new() -> Self {
        Self(Format::default().without_time().with_ansi(false))
    }
}

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(ctx, writer, event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_level_is_for_sedge_and_warnings_for_the_rest() {
        let filter = parse("debug").unwrap();
        assert!(filter.would_enable("sedge::pipeline", &Level::DEBUG));
        assert!(!filter.would_enable("sedge::pipeline", &Level::TRACE));
        assert!(filter.would_enable("rumqttc", &Level::WARN));
        assert!(!filter.would_enable("rumqttc", &Level::INFO));
        assert!(!parse("error").unwrap().would_enable("rumqttc", &Level::WARN));
    }

    #[test]
    fn targets_can_be_named_and_the_rest_stays_at_info() {
        let filter = parse("sedge::mqtt=debug, rumqttc=trace").unwrap();
        assert!(filter.would_enable("sedge::mqtt", &Level::DEBUG));
        assert!(filter.would_enable("rumqttc::framed", &Level::TRACE));
        assert!(filter.would_enable("sedge::store", &Level::INFO));
        assert!(!filter.would_enable("sedge::store", &Level::DEBUG));
    }

    #[test]
    fn nonsense_is_refused_with_the_choices() {
        for level in ["", "loud", "=debug", "sedge=loud", "info,"] {
            let error = parse(level).unwrap_err().to_string();
            assert!(error.contains("`debug`"), "{level}: {error}");
        }
    }

    /// Lines that reach a writer through the layer.
    fn lines(log: impl FnOnce()) -> Vec<String> {
        #[derive(Clone, Default)]
        struct Shared(std::sync::Arc<Mutex<Vec<u8>>>);
        impl io::Write for Shared {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let written = Shared::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::registry().with(layer(move || writer.clone(), false, true));
        tracing::subscriber::with_default(subscriber, log);
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_stranger_does_not_write_lines_into_the_log() {
        let forged = "x\n<3>FORGED\x1b[2J\u{202e}\u{2028}";
        let shown = lines(|| tracing::warn!(key = %forged, plain = forged, "refused: {forged}"));
        assert_eq!(shown.len(), 1, "{shown:?}");
        assert!(shown[0].starts_with("<4> WARN") && shown[0].contains("refused: x\\n<3>FORGED\\u{1b}[2J"), "{shown:?}");
        assert!(shown[0].contains("key=x\\n<3>") && shown[0].contains("plain=\"x\\n<3>"), "{shown:?}");
        assert!(!shown[0].chars().any(sedge_core::text::is_unprintable), "{shown:?}");
    }

    #[test]
    fn a_function_does_not_flood_the_log() {
        let line =
            |function: &str, n: u32| tracing::info!(target: sedge_core::board::GUEST_LOG, function, "reading {n}");
        // The same text; then other texts; and another function.
        assert_eq!(lines(|| (0..1000).for_each(|_| line("flood-text", 7))).len(), 10);
        let shown = lines(|| (0..1000).for_each(|n| line("flood-source", n)));
        assert!((100..200).contains(&shown.len()), "{}", shown.len());
        assert_eq!(lines(|| line("quiet", 7)).len(), 1);
        let told = lines(|| tell_left_out(Instant::now() + std::time::Duration::from_secs(60)));
        assert!(told.iter().any(|it| it.contains("lines=990") && it.contains("reading 7")), "{told:?}");
        assert!(told.iter().any(|it| it.contains("function=\"flood-source\"")), "{told:?}");
    }

    #[test]
    fn dead_letters_with_other_figures_are_one_text() {
        let shown = lines(|| {
            for n in 0..100_u32 {
                let (topic, detail) = (format!("t/{n}x"), format!("{n} what a sender chose"));
                tracing::warn!(function = "letters", reason = "rejected", topic, detail, count = n, "dead letter");
            }
            tracing::warn!(function = "letters", reason = "fuel", topic = "t", detail = "d", count = 1, "dead letter");
        });
        assert_eq!(shown.len(), 11, "{shown:?}");
    }

    #[test]
    fn an_inherited_journal_stream_does_not_count() {
        let meta = std::fs::metadata("/proc/self/fd/2").unwrap();
        assert!(is_journal(&format!("{}:{}", meta.dev(), meta.ino())));
        assert!(!is_journal(&format!("{}:{}", meta.dev(), meta.ino() + 1)));
        assert!(!is_journal("nonsense"));
    }
}
