//! The command line: one file per command.

pub mod run;
mod worker;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use sedge_core::config::Problems;
#[cfg(feature = "operator")]
use sedge_ctl::operator::{keygen, logs, new, order, push, record, settings, status, trust, withdraw};
use sedge_ctl::{EXIT_CONFIG, RED, paint, print_problems, printable_lines};

/// Run small WebAssembly functions beside the sensors
///
///   MQTT broker -> function, in a sandbox -> SQLite -> alerts and data upstream
///   A message is acknowledged once all of its results are on disk.
///   A message that no function can process becomes a dead letter, to be replayed.
///
/// For each command: sedge COMMAND --help
#[derive(Debug, Parser)]
#[command(name = "sedge", version, verbatim_doc_comment, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// In the order in which a new user needs them.
#[derive(Debug, Subcommand)]
enum Command {
    /// Run a demonstration: broker, sensors, three functions and an upstream
    ///
    /// Needs no installation and leaves nothing behind.
    /// Ends with a table that accounts for every message.
    ///
    ///   sedge demo
    ///   sedge demo --messages 20000 --json
    ///   sedge demo --data machine-temperature.csv --speed 3600
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "demo")]
    Demo(sedge_ctl::demo::DemoArgs),

    /// Create a new function: a folder that compiles, passes its test, can be pushed
    ///
    ///   sedge new door-alarm
    ///   sedge new door-alarm --dir functions/door-alarm --sdk ~/sedge/guest-sdk
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "operator")]
    New(new::NewArgs),

    /// Compile a function's folder into the component that boards run
    ///
    ///   sedge build examples/threshold-alert
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "compiler")]
    Build(sedge_ctl::build::BuildArgs),

    /// Compile a function to native code for boards without a compiler
    ///
    /// Writes NAME.TARGET.code into the folder; copy it into the folder on the board.
    /// Boards cannot verify native code: they load it from folders only with
    /// functions.native_code = true. `sedge push --code` sends it, signed.
    ///
    ///   sedge compile examples/decode --target aarch64
    ///   sedge compile examples/decode --target armv7,aarch64 --json
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "compiler")]
    Compile(sedge_ctl::compile::CompileArgs),

    /// Run one function on one message and show the result
    ///
    /// Applies the limits of production. Needs neither broker nor daemon.
    ///
    ///   sedge invoke examples/threshold-alert --topic attic/temperature --payload 81.5
    ///   sedge invoke examples/decode --topic lora/7 --payload @frame.bin
    #[command(verbatim_doc_comment)]
    Invoke(sedge_ctl::invoke::InvokeArgs),

    /// Run the test cases of a function, and compare what comes with what is expected
    ///
    /// Cases are files tests/NAME.toml in the function's folder: messages, settings,
    /// state and time, and of each message the outputs, the state or the failure.
    /// Applies the limits of production. Exits with 1 if a case fails.
    ///
    ///   sedge test examples/threshold-alert
    ///   sedge test door --bless      writes what comes into the cases
    ///   sedge test door --watch      again whenever a file changes
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "compiler")]
    Test(sedge_ctl::test::TestArgs),

    /// Run a function on live messages as a shadow on this computer, while you edit it
    ///
    /// Nothing that it returns reaches the broker. Each message is shown with its
    /// outputs, state, log, fuel and time. A changed file is built and runs with the
    /// next message; while it does not build, the last good build goes on. With a
    /// board or a recording, each message is shown with what differs from the alerts
    /// and publications of the board's own version.
    ///
    ///   sedge dev door-alarm --broker mqtt://plant
    ///   sedge dev door-alarm --broker mqtt://plant --node pump-3 --state-from now.rec
    ///   sedge dev door-alarm --recording night.rec --speed 10
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "operator")]
    Dev(Box<sedge_ctl::dev::DevArgs>),

    /// Record what a function on a board gets and returns, for `sedge replay`
    ///
    /// The board must allow it (recording.enabled), and trust the key with
    /// record = true. No message waits for a recording, and none is lost by it.
    ///
    ///   sedge record --node pump-3 --function door-alarm --for 10m -o night.rec
    ///   sedge record --data /var/lib/sedge --function door-alarm -o night.rec
    ///   sedge record --node pump-3 --function door-alarm -o night.rec \
    ///     --redact 'topic=doors/+/state' --drop payload.name
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "operator")]
    Record(Box<record::RecordArgs>),

    /// Show the log of a board through the broker
    ///
    /// The board must trust the key with logs = true. It keeps its latest 500 lines
    /// or 64 KiB; what came in between and is not there any more is counted.
    ///
    ///   sedge logs --node pump-3
    ///   sedge logs --node pump-3 --for 10m --key ops.pem
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "operator")]
    Logs(logs::LogsArgs),

    /// Run a recording again with a function's folder, and compare
    ///
    /// Outputs, state and failures of each message are compared with those that
    /// the board recorded; with the recorded version and settings, fuel as well.
    /// Applies the limits of production. Exits with 1 if anything differs.
    ///
    ///   sedge replay night.rec door-alarm
    ///   sedge replay night.rec door-alarm --set max=75 --json
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "operator")]
    Replay(sedge_ctl::replay::ReplayArgs),

    /// Check the configuration and every function in it, and show what would run
    ///
    /// Reports all problems at once, with file, line, key and fix.
    /// Exits with 78 if there are errors; warnings alone leave the exit code at 0.
    ///
    ///   sedge check --config sedge.toml
    #[command(verbatim_doc_comment)]
    Check(sedge_ctl::check::CheckArgs),

    /// Check board, broker and configuration for problems, and suggest fixes
    ///
    /// Run it as root for all checks: disk, clock, swap, Mosquitto's configuration.
    /// Exits with 1 on warnings, with 78 if the configuration is wrong.
    ///
    ///   sedge doctor
    ///   sedge doctor --config sedge.toml --json
    #[command(verbatim_doc_comment)]
    Doctor(sedge_ctl::doctor::DoctorArgs),

    /// Run the daemon until SIGTERM or Ctrl-C
    ///
    /// Starts and keeps running while the broker or upstream is unreachable.
    /// Finishes the messages in flight before it ends.
    ///
    ///   sedge run --config sedge.toml
    #[command(verbatim_doc_comment)]
    Run(run::RunArgs),

    /// List, show, replay or drop messages that no function could process
    ///
    /// Works with and without a running daemon.
    ///
    ///   sedge dead-letters list
    ///   sedge dead-letters show 17
    ///   sedge dead-letters replay --all --function decode
    #[command(verbatim_doc_comment)]
    DeadLetters(sedge_ctl::dead_letters::DeadLettersArgs),

    /// Print the results and alerts of the last days
    ///
    /// The board keeps them with history.days in its configuration. Run it on the
    /// board, as root or as the daemon's user. Works with and without a daemon.
    ///
    ///   sedge history --since 2h
    ///   sedge history --function freezer --kind alert --since 2026-01-05
    ///   sedge history --topic 'readings/+' --limit 0 --format csv > readings.csv
    #[command(verbatim_doc_comment)]
    History(sedge_ctl::history::HistoryArgs),

    /// Create a token for the page of a board, and print it
    ///
    /// The page is at http.listen, which is http://127.0.0.1:9464 if not configured.
    /// Counts and states need no token; payloads, state and all actions do.
    /// The data folder has only a digest of the token. Run it as root, or as the
    /// daemon's user.
    ///
    ///   sedge token
    ///   sedge token anna
    ///   sedge token anna --revoke
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "page")]
    Token(sedge_ctl::token::TokenArgs),

    /// Show the alerts of a board, acknowledge or mute them
    ///
    /// Reads the page of a board. What acts needs a token.
    ///
    ///   sedge alerts
    ///   sedge alerts --history --url http://127.0.0.1:9464
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "page")]
    Alerts(sedge_ctl::alerts::AlertsArgs),

    /// Show what functions on a board get and return, as it happens
    ///
    /// Reads the page of a board, which must know the token. Under load it shows a
    /// part of the runs and the number left out; no message waits for it.
    ///
    ///   sedge tail --token-file token
    ///   sedge tail --function door-alarm --topic 'doors/+/state' --json
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "page")]
    Tail(sedge_ctl::tail::TailArgs),

    /// Show the way of a message through a board, step by step
    ///
    /// Reads the page of a board, which must know the token. The board keeps the
    /// latest 200 traces: of messages that it samples (trace.sample), that senders
    /// sample, and that became dead letters. Without an id it lists them.
    ///
    ///   sedge trace --token-file token
    ///   sedge trace 4bf92f3577b34da6a3ce929d0e0e4736 --token-file token
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "page")]
    Trace(sedge_ctl::trace::TraceArgs),

    /// Show a board at a glance: problems, functions, and the alerts that fire
    ///
    /// Reads the page of a board.
    ///
    ///   sedge top
    ///   watch -n 2 sedge top
    ///   sedge top --json --url http://127.0.0.1:9464
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "page")]
    Top(sedge_ctl::top::TopArgs),

    /// Create a signing key, and print the configuration by which boards trust it
    ///
    /// Writes NAME.pem, the private key, and NAME.pub.pem, to be copied to boards.
    /// Never overwrites a file.
    ///
    ///   sedge keygen --out ops.pem
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "operator")]
    Keygen(keygen::KeygenArgs),

    /// Build and sign a function, send it to boards and wait until it is active
    ///
    /// The broker retains the module and the order for boards that connect later.
    /// An interrupted push can be repeated: chunks on the broker are not sent again.
    /// Exits with 0 only when the function is active on every board.
    ///
    ///   sedge push door-alarm --node pump-3 --key ops.pem
    ///   sedge push door-alarm --group pumps --key ops.pem --mode shadow
    ///   sedge push door-alarm --group pumps --dry-run
    ///   sedge push door-alarm --group zeros --key ops.pem --code armv6
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "operator")]
    Push(Box<push::PushArgs>),

    /// Set, unset or show settings of a function on boards
    ///
    /// Signed orders lay values over those of function.toml and of the boards' files.
    /// They take effect between two messages, and stay when a new version comes.
    ///
    ///   sedge settings set freezer max=-18 --node cellar --key ops.pem
    ///   sedge settings set freezer max=-25 --topic sensors/f7/t --node cellar
    ///   sedge settings show freezer --group kitchens
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "operator")]
    Settings(Box<settings::SettingsArgs>),

    /// List boards, their functions, versions and states
    ///
    /// Reads what the broker retains. Boards are not contacted.
    ///
    ///   sedge status
    ///   sedge status --node pump-3 --json
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "operator")]
    Status(status::StatusArgs),

    /// Remove an order from the broker that no board has taken
    ///
    /// `sedge status` lists such orders. Boards that have taken one keep it.
    ///
    ///   sedge withdraw door-alarm --node pmup-3
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "operator")]
    Withdraw(withdraw::WithdrawArgs),

    /// Return to the previous version of a function, or abort a trial
    ///
    ///   sedge rollback door-alarm --node pump-3 --key ops.pem
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "operator")]
    Rollback(order::FunctionOrderArgs),

    /// Replace the active version of a function by its shadow
    ///
    ///   sedge promote door-alarm --group pumps --key ops.pem
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "operator")]
    Promote(order::FunctionOrderArgs),

    /// Remove a function from boards
    ///
    ///   sedge remove door-alarm --node pump-3 --key ops.pem
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "operator")]
    Remove(order::FunctionOrderArgs),

    /// Change the keys that boards trust
    ///
    /// The key that signs the change must itself be allowed to change keys.
    ///
    ///   sedge trust ops-2.pub.pem --group pumps --key admin.pem
    ///   sedge trust guest.pub.pem --functions 'demo-*' --node pump-3 --key admin.pem
    ///   sedge trust --revoke KEY_ID --group pumps --key admin.pem
    #[command(verbatim_doc_comment)]
    #[cfg(feature = "operator")]
    Trust(trust::TrustArgs),
}

/// Runs a worker process if this is to be one. It does not read the commands for people, whose help would stay in its memory.
pub fn run_worker() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1).peekable();
    let is_worker = arguments.peek().is_some_and(|name| name == worker::NAME);
    is_worker.then(|| exit_code(worker::run(&worker::WorkerArgs::parse_from(arguments)).map(|()| ExitCode::SUCCESS)))
}

/// Runs the command and returns its exit code: 0 done, 1 failed, 78 wrong configuration.
pub fn run(cli: Cli) -> ExitCode {
    let done = |()| ExitCode::SUCCESS;
    let result = match &cli.command {
        #[cfg(feature = "demo")]
        Command::Demo(args) => sedge_ctl::demo::run(args),
        #[cfg(feature = "operator")]
        Command::New(args) => new::run(args).map(done),
        #[cfg(feature = "compiler")]
        Command::Build(args) => sedge_ctl::build::run(args).map(done),
        #[cfg(feature = "compiler")]
        Command::Compile(args) => sedge_ctl::compile::run(args).map(done),
        Command::Invoke(args) => sedge_ctl::invoke::run(args),
        #[cfg(feature = "compiler")]
        Command::Test(args) => sedge_ctl::test::run(args),
        #[cfg(feature = "operator")]
        Command::Dev(args) => sedge_ctl::dev::run(args).map(done),
        #[cfg(feature = "operator")]
        Command::Record(args) => record::run(args),
        #[cfg(feature = "operator")]
        Command::Logs(args) => logs::run(args).map(done),
        #[cfg(feature = "operator")]
        Command::Replay(args) => sedge_ctl::replay::run(args),
        Command::Check(args) => sedge_ctl::check::run(args),
        Command::Doctor(args) => sedge_ctl::doctor::run(args),
        Command::Run(args) => run::run(args).map(done),
        Command::DeadLetters(args) => sedge_ctl::dead_letters::run(args),
        Command::History(args) => sedge_ctl::history::run(args).map(done),
        #[cfg(feature = "page")]
        Command::Token(args) => sedge_ctl::token::run(args).map(done),
        #[cfg(feature = "page")]
        Command::Alerts(args) => sedge_ctl::alerts::run(args).map(done),
        #[cfg(feature = "page")]
        Command::Tail(args) => sedge_ctl::tail::run(args).map(done),
        #[cfg(feature = "page")]
        Command::Trace(args) => sedge_ctl::trace::run(args).map(done),
        #[cfg(feature = "page")]
        Command::Top(args) => sedge_ctl::top::run(args).map(done),
        #[cfg(feature = "operator")]
        Command::Keygen(args) => keygen::run(args).map(done),
        #[cfg(feature = "operator")]
        Command::Push(args) => push::run(args),
        #[cfg(feature = "operator")]
        Command::Settings(args) => settings::run(args),
        #[cfg(feature = "operator")]
        Command::Status(args) => status::run(args),
        #[cfg(feature = "operator")]
        Command::Withdraw(args) => withdraw::run(args),
        #[cfg(feature = "operator")]
        Command::Rollback(args) => order::rollback(args),
        #[cfg(feature = "operator")]
        Command::Promote(args) => order::promote(args),
        #[cfg(feature = "operator")]
        Command::Remove(args) => order::remove(args),
        #[cfg(feature = "operator")]
        Command::Trust(args) => trust::run(args),
    };
    exit_code(result)
}

fn exit_code(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| match error.downcast_ref::<Problems>() {
        Some(problems) => {
            print_problems(problems);
            ExitCode::from(EXIT_CONFIG)
        }
        None => {
            eprintln!("{} {}", paint(RED, "error:"), printable_lines(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Names and help of all visible commands, as typed: `sedge dead-letters list`.
    fn helps(command: &clap::Command, parents: &str) -> Vec<(String, String)> {
        let name = format!("{parents}{}", command.get_name());
        let below = command.get_subcommands().filter(|command| !command.is_hide_set());
        let below: Vec<_> = below.flat_map(|command| helps(command, &format!("{name} "))).collect();
        let help = command.get_long_about().map(ToString::to_string).unwrap_or_default();
        [(name, help)].into_iter().chain(below).collect()
    }

    #[test]
    fn every_command_shows_an_example_within_80_columns() {
        for (name, help) in helps(&Cli::command(), "") {
            assert!(name == "sedge" || help.contains(&format!("  {name}")), "{name}:\n{help}");
            assert!(help.lines().all(|line| line.chars().count() <= 80), "{name}:\n{help}");
        }
    }
}
