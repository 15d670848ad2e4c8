//! The commands of operators and of the board's administrator. Nothing here depends on the daemon.

#[cfg(feature = "page")]
pub mod alerts;
#[cfg(feature = "page")]
mod api;
#[cfg(feature = "compiler")]
pub mod build;
pub mod check;
mod client;
#[cfg(feature = "compiler")]
pub mod compile;
mod data;
pub mod dead_letters;
#[cfg(feature = "demo")]
pub mod demo;
#[cfg(feature = "operator")]
pub mod dev;
pub mod doctor;
pub mod history;
pub mod invoke;
#[cfg(feature = "operator")]
pub mod operator;
#[cfg(any(feature = "demo", feature = "operator"))]
mod progress;
#[cfg(feature = "operator")]
mod recording;
#[cfg(feature = "operator")]
pub mod replay;
mod runner;
#[cfg(feature = "page")]
pub mod tail;
mod terminal;
#[cfg(feature = "compiler")]
pub mod test;
mod time;
#[cfg(feature = "page")]
pub mod token;
#[cfg(feature = "page")]
pub mod top;
#[cfg(feature = "page")]
pub mod trace;
#[cfg(feature = "compiler")]
mod watch;

use anyhow::Context as _;
use clap::Args;
use sedge_core::config::Problems;
use sedge_core::config::problem::Severity;
pub use sedge_core::text::printable;
use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;
pub use terminal::printable_lines;

/// `EX_CONFIG` of sysexits.h. The unit file tells systemd not to restart on it: a person must act first.
pub const EXIT_CONFIG: u8 = 78;

const DEFAULT_CONFIG: &str = "/etc/sedge/sedge.toml";

#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// Configuration file; conf.d/*.toml beside it is read as well [default: SEDGE_CONFIG, or /etc/sedge/sedge.toml]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigArgs {
    pub fn path(&self) -> PathBuf {
        let named = || std::env::var_os("SEDGE_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
        self.config.clone().or_else(named).unwrap_or_else(|| DEFAULT_CONFIG.into())
    }
}

/// Prints one line per problem to standard error, and the number of errors.
pub fn print_problems(problems: &Problems) {
    for problem in problems.iter() {
        let colour = match problem.severity {
            Severity::Error => RED,
            Severity::Warning => YELLOW,
        };
        // The location comes first, as editors and terminals expect.
        let (at, line) = (printable(&problem.at.to_string()), printable_lines(&problem.to_string()));
        eprintln!("{}{}", paint(colour, &at), line.strip_prefix(&at).unwrap_or(&line));
    }
    match problems.errors().count() {
        0 => {}
        1 => eprintln!("1 problem"),
        many => eprintln!("{many} problems"),
    }
}

pub const RED: &str = "31";

const YELLOW: &str = "33";

#[cfg(feature = "compiler")]
const GREEN: &str = "32";

/// Colours text for standard error if that is a terminal and `NO_COLOR` is unset (no-color.org).
pub fn paint(colour: &str, text: &str) -> String {
    painted(std::io::stderr().is_terminal(), colour, text)
}

/// The same for standard output.
#[cfg(feature = "compiler")]
fn paint_out(colour: &str, text: &str) -> String {
    painted(std::io::stdout().is_terminal(), colour, text)
}

fn painted(is_terminal: bool, colour: &str, text: &str) -> String {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if is_terminal && !refused { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Runs an MQTT client, which needs a [`LocalSet`](tokio::task::LocalSet), to its end.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

/// Writes a file under another name and renames it, so that a daemon reading the folder never sees half of it.
fn write_atomically(path: &std::path::Path, bytes: &[u8]) -> anyhow::Result<()> {
    write_atomically_as(path, bytes, |_| Ok(()))
}

/// [`write_atomically`] with what is to be done to the file while it has its other name, and is empty.
fn write_atomically_as(
    path: &std::path::Path,
    bytes: &[u8],
    prepare: impl FnOnce(&std::fs::File) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".part");
    let write = || {
        let mut file = std::fs::File::create(&unfinished)?;
        prepare(&file)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&unfinished, path)
    };
    write().with_context(|| format!("failed to write {}", path.display()))
}

/// The bytes of hexadecimal digits, with white space between them. `None`: it is something else.
fn unhex(text: &str) -> Option<bytes::Bytes> {
    let digits = text.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_digit(16));
    let digits: Vec<u32> = digits.collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| (high << 4 | low) as u8).collect())
}
