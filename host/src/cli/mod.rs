//! The command line: one file a command.

#[cfg(feature = "compiler")]
pub mod build;
pub mod check;
#[cfg(feature = "compiler")]
pub mod compile;
pub mod dead_letters;
#[cfg(feature = "demo")]
pub mod demo;
pub mod doctor;
pub mod invoke;
#[cfg(feature = "operator")]
pub mod operator;
pub mod run;
pub mod worker;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::Problems;
use crate::config::problem::Severity;
#[cfg(feature = "operator")]
use operator::{keygen, new, promote, push, remove, rollback, status, trust};

/// `EX_CONFIG` of sysexits.h. The unit file tells systemd not to restart on it: a person must act first.
pub const EXIT_CONFIG: u8 = 78;

const DEFAULT_CONFIG: &str = "/etc/sedge/sedge.toml";

/// Small WebAssembly functions beside the sensors
///
///   MQTT broker -> function, in a sandbox -> SQLite -> alerts and data upstream
///   The broker gets its acknowledgement only when all that came of it is on disk.
///   What a function cannot process is kept as a dead letter and can be replayed.
///
/// Every command explains itself: sedge COMMAND --help
#[derive(Debug, Parser)]
#[command(name = "sedge", version, verbatim_doc_comment, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// In the order in which a person comes to need them.
#[derive(Debug, Subcommand)]
enum Command {
    /// See it work: a broker, sensors, three functions and an upstream, in one command
    ///
    /// Nothing has to be installed and nothing is left behind.
    /// At the end a table accounts for every message.
    ///
    ///   sedge demo
    ///   sedge demo --messages 20000 --json
    ///   sedge demo --data machine-temperature.csv --speed 3600
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "demo")]
    Demo(demo::DemoArgs),

    /// Begin a function: a folder that compiles, passes its test and can be pushed
    ///
    ///   sedge new door-alarm
    ///   sedge new door-alarm --dir functions/door-alarm --sdk ~/sedge/guest-sdk
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "operator")]
    New(new::NewArgs),

    /// Compile a function's folder into the component that the board runs
    ///
    ///   sedge build examples/threshold-alert
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "compiler")]
    Build(build::BuildArgs),

    /// Compile a function here for boards that have no compiler
    ///
    /// Writes NAME.TARGET.code into the folder, for the folder on the board.
    /// Boards run it unchecked: they take it from folders only with
    /// functions.native_code = true. `sedge push --code` sends it, signed.
    ///
    ///   sedge compile examples/decode --target aarch64
    ///   sedge compile examples/decode --target armv7,aarch64 --json
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "compiler")]
    Compile(compile::CompileArgs),

    /// Run one message through one function and show what comes out
    ///
    /// The limits are those of production; no broker and no daemon is needed.
    ///
    ///   sedge invoke examples/threshold-alert --topic attic/temperature --payload 81.5
    ///   sedge invoke examples/decode --topic lora/7 --payload @frame.bin
    #[command(verbatim_doc_comment)]
    Invoke(invoke::InvokeArgs),

    /// Check the configuration and every function in it, and show what would run
    ///
    /// All problems are reported at once, with file, line, key and how to mend it.
    /// The exit code is 78 if there are any; warnings alone leave it at 0.
    ///
    ///   sedge check --config sedge.toml
    #[command(verbatim_doc_comment)]
    Check(check::CheckArgs),

    /// Say what of the board, the broker and the configuration will hurt, and the mend
    ///
    /// Best run as root, which may see more: disk, clock, swap, Mosquitto's settings.
    /// The exit code is 1 if something will hurt, 78 if the configuration is wrong.
    ///
    ///   sedge doctor
    ///   sedge doctor --config sedge.toml --json
    #[command(verbatim_doc_comment)]
    Doctor(doctor::DoctorArgs),

    /// Run the daemon until SIGTERM or Ctrl-C
    ///
    /// It starts and stays up while the broker or upstream is away.
    /// Ended, it finishes what is in flight first.
    ///
    ///   sedge run --config sedge.toml
    #[command(verbatim_doc_comment)]
    Run(run::RunArgs),

    /// Look at messages that no function could process, replay or drop them
    ///
    /// The daemon may be running or not.
    ///
    ///   sedge dead-letters list
    ///   sedge dead-letters show 17
    ///   sedge dead-letters replay --all --function decode
    #[command(verbatim_doc_comment)]
    DeadLetters(dead_letters::DeadLettersArgs),

    /// Make a key to sign with, and the lines by which boards trust it
    ///
    /// Writes NAME.pem, which stays with you, and NAME.pub.pem, which goes to boards.
    /// Nothing is written over.
    ///
    ///   sedge keygen --out ops.pem
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "operator")]
    Keygen(keygen::KeygenArgs),

    /// Build a function, sign it, send it to boards and follow it until it is active
    ///
    /// The broker keeps the module and the order, for boards that come later.
    /// Interrupted, run it again: what the broker has is not sent twice.
    /// The exit code is 0 only when it is active on every board.
    ///
    ///   sedge push door-alarm --node pump-3 --key ops.pem
    ///   sedge push door-alarm --group pumps --key ops.pem --mode shadow
    ///   sedge push door-alarm --group pumps --dry-run
    ///   sedge push door-alarm --group zeros --key ops.pem --code armv6
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "operator")]
    Push(Box<push::PushArgs>),

    /// List boards, their functions, versions and states
    ///
    /// From what the broker keeps; no board is asked.
    ///
    ///   sedge status
    ///   sedge status --node pump-3 --json
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "operator")]
    Status(status::StatusArgs),

    /// Go back to the version before, or end a trial
    ///
    ///   sedge rollback door-alarm --node pump-3 --key ops.pem
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "operator")]
    Rollback(rollback::RollbackArgs),

    /// Let a shadow take the place of the version that it runs beside
    ///
    ///   sedge promote door-alarm --group pumps --key ops.pem
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "operator")]
    Promote(promote::PromoteArgs),

    /// Remove a function from boards
    ///
    ///   sedge remove door-alarm --node pump-3 --key ops.pem
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "operator")]
    Remove(remove::RemoveArgs),

    /// Change the keys that boards trust, signed by one that may change keys
    ///
    ///   sedge trust ops-2.pub.pem --group pumps --key admin.pem
    ///   sedge trust guest.pub.pem --functions 'demo-*' --node pump-3 --key admin.pem
    ///   sedge trust --revoke KEY_ID --group pumps --key admin.pem
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "operator")]
    Trust(trust::TrustArgs),

    #[command(hide = true)]
    Worker(worker::WorkerArgs),
}

/// Where the configuration is.
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

pub fn run(cli: Cli) -> ExitCode {
    let result = match &cli.command {
        #[cfg(feature = "demo")]
        Command::Demo(args) => demo::run(args),
        #[cfg(feature = "operator")]
        Command::New(args) => new::run(args).map(|()| ExitCode::SUCCESS),
        #[cfg(feature = "compiler")]
        Command::Build(args) => build::run(args).map(|()| ExitCode::SUCCESS),
        Command::Invoke(args) => invoke::run(args),
        Command::Check(args) => check::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Run(args) => run::run(args),
        Command::DeadLetters(args) => dead_letters::run(args),
        #[cfg(feature = "operator")]
        Command::Keygen(args) => keygen::run(args).map(|()| ExitCode::SUCCESS),
        #[cfg(feature = "operator")]
        Command::Push(args) => push::run(args),
        #[cfg(feature = "operator")]
        Command::Status(args) => status::run(args),
        #[cfg(feature = "operator")]
        Command::Rollback(args) => rollback::run(args),
        #[cfg(feature = "operator")]
        Command::Promote(args) => promote::run(args),
        #[cfg(feature = "operator")]
        Command::Remove(args) => remove::run(args),
        #[cfg(feature = "operator")]
        Command::Trust(args) => trust::run(args),
        Command::Worker(args) => worker::run(args).map(|()| ExitCode::SUCCESS),
        #[cfg(feature = "compiler")]
        Command::Compile(args) => compile::run(args).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| match error.downcast_ref::<Problems>() {
        Some(problems) => {
            print_problems(problems);
            ExitCode::from(EXIT_CONFIG)
        }
        None => {
            eprintln!("{} {error:#}", paint(RED, "error:"));
            ExitCode::FAILURE
        }
    })
}

/// Prints every problem, one a line, and how many there are.
pub fn print_problems(problems: &Problems) {
    for problem in problems.iter() {
        let colour = match problem.severity {
            Severity::Error => RED,
            Severity::Warning => YELLOW,
        };
        // The place comes first, as editors and terminals expect it.
        let (at, line) = (problem.at.to_string(), problem.to_string());
        eprintln!("{}{}", paint(colour, &at), line.strip_prefix(&at).unwrap_or(&line));
    }
    match problems.errors().count() {
        0 => {}
        1 => eprintln!("1 problem"),
        many => eprintln!("{many} problems"),
    }
}

const RED: &str = "31";
const YELLOW: &str = "33";

/// Colours for standard error, where a person looks at it and has not said no (no-color.org).
fn paint(colour: &str, text: &str) -> String {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if std::io::stderr().is_terminal() && !refused { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Runs a command's conversation with the broker.
fn block_on<T>(talk: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, talk)
}

/// Text from elsewhere without what would move the cursor or change colours.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example() {
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let help = command.get_long_about().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains(&format!("  sedge {}", command.get_name())), "{}:\n{help}", command.get_name());
            // Wrapped a second time by a narrow terminal, it is hard to read.
            assert!(help.lines().all(|line| line.chars().count() <= 80), "{}:\n{help}", command.get_name());
        }
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\r\n\u{9b}ü"), "a\\u{1b}[2Jb\\r\\n\\u{9b}ü");
    }
}
