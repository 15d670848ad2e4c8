//! `sedge replay FILE DIR`: runs the inputs of a recording again, on the real sandbox with the limits of production, and
//! compares what comes with what the board recorded.

mod case;
mod compare;
mod player;
mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use sedge_core::manifest::Manifest;

use super::progress::Progress;
use super::recording::{Event, Reader};
use super::runner;
use case::Case;
pub(crate) use compare::recorded_writes;
use player::Player;
pub(crate) use report::Report;

/// Progress is shown from then on.
const SHOW_PROGRESS_AFTER: Duration = Duration::from_secs(1);
/// Runs between two looks at the time.
const LOOK_EVERY: u64 = 1024;

#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// Recording, as `sedge record` wrote it
    file: PathBuf,
    /// Folder with function.toml and the function, the recorded version or another
    dir: PathBuf,
    /// Setting to run with instead of the recorded one; repeatable
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = super::invoke::pair)]
    settings: Vec<(String, String)>,
    /// Write the message with this number as a case for `sedge test`, tests/recorded-N.toml, with state and settings of then and
    /// what the function returns for it now
    #[arg(long, value_name = "N")]
    case: Option<u64>,
    /// How many of the messages that differ are shown
    #[arg(long, value_name = "N", default_value_t = 20)]
    show: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Exits with 1 if anything differs.
pub fn run(args: &ReplayArgs) -> anyhow::Result<ExitCode> {
    let replay = Replay { settings: &args.settings, show: args.show, case: args.case };
    let report = self::replay(&args.file, &args.dir, &replay)?;
    match args.json {
        true => report.print_json(),
        false => report.print(),
    }
    Ok(if report.different == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What to do beside running it.
#[derive(Default)]
pub(crate) struct Replay<'a> {
    /// Instead of those that were recorded.
    pub(crate) settings: &'a [(String, String)],
    /// Messages that differ and are shown.
    pub(crate) show: usize,
    /// Number of a message that becomes a case.
    pub(crate) case: Option<u64>,
}

/// Runs a recording with the function of a folder.
pub(crate) fn replay(file: &Path, dir: &Path, how: &Replay<'_>) -> anyhow::Result<Report> {
    // A wrong file is told before a build that takes a minute.
    let mut reader = Reader::open(file)?;
    let manifest = Manifest::load(dir, &sedge_sandbox::machine::MACHINE)?;
    if dir.join("Cargo.toml").is_file() {
        super::build::build(dir)?;
    }
    let installed = runner::install(dir, manifest, false)?;
    reader.check(&installed.manifest)?;
    let mut player = Player::new(&installed, &reader.header, how.settings)?;
    let mut report = Report::new(reader.header.clone(), how.show);
    let total = std::fs::metadata(file)?.len();
    let begun = Instant::now();
    player.case = how.case.map(|number| Case { number, dir: dir.to_owned() });
    let mut progress = None;
    loop {
        match reader.next()? {
            Event::Version(version) => player.set_version(&version, &mut report)?,
            Event::Run => player.play(&mut reader.run, &mut report)?,
            Event::End(end) => {
                if let Some(case) = player.case {
                    bail!(
                        "no case was written: message {} was not run; the recording has {} messages",
                        case.number,
                        end.runs
                    );
                }
                report.ended(end, begun.elapsed());
                return Ok(report);
            }
        }
        if report.messages.is_multiple_of(LOOK_EVERY) && begun.elapsed() >= SHOW_PROGRESS_AFTER {
            let progress = progress.get_or_insert_with(Progress::new);
            let note = format!(" KiB, {} messages, {} differ", report.messages, report.different);
            progress.set_count("replaying", reader.bytes_read >> 10, total >> 10, &note, Instant::now().into());
        }
    }
}
