//! Writes the manual pages and shell completions of the command line: `cargo run --example pages -- FOLDER`. An example,
//! because the generators are development dependencies and must not be part of the program.

use std::io;
use std::path::PathBuf;

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use sedge::Cli;

fn main() -> io::Result<()> {
    let folder = PathBuf::from(std::env::args_os().nth(1).unwrap_or_else(|| "host/sedge/debian/pages".into()));
    std::fs::create_dir_all(&folder)?;
    // `sedge.1`, and one page per command.
    clap_mangen::generate_to(Cli::command(), &folder)?;
    let mut command = without_hidden(&Cli::command());
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, "sedge", &folder)?;
    }
    Ok(())
}

/// Removes the hidden commands, which only the daemon starts. Completions would offer them.
fn without_hidden(command: &Command) -> Command {
    let shown = command.get_subcommands().filter(|below| !below.is_hide_set()).cloned();
    Command::new("sedge").version(env!("CARGO_PKG_VERSION")).disable_help_subcommand(true).subcommands(shown)
}
