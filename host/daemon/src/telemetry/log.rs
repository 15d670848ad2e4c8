//! Log lines on standard error, as text. Under systemd the journal adds the time; elsewhere each line has its own.

use std::fmt;
use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;

use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
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
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(colour && !journal);
    let layer = if journal { layer.event_format(Journal::new()).boxed() } else { layer.boxed() };
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().map_err(|_| LogError::Installed)
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

    #[test]
    fn an_inherited_journal_stream_does_not_count() {
        let meta = std::fs::metadata("/proc/self/fd/2").unwrap();
        assert!(is_journal(&format!("{}:{}", meta.dev(), meta.ino())));
        assert!(!is_journal(&format!("{}:{}", meta.dev(), meta.ino() + 1)));
        assert!(!is_journal("nonsense"));
    }
}
