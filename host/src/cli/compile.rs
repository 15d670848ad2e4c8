//! `sedge compile`: started by the daemon. Wasm on standard input, compiled code on standard output, and what is wrong
//! with it on standard error.

use std::io::{Read as _, Write as _};

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use crate::deploy::{COMPILE_CPU_SECS, COMPILE_MEMORY_BYTES};
use crate::sandbox::compile;
use crate::sandbox::shape::MAX_WASM_BYTES;
use crate::sandbox::{self};
use crate::worker::wall::{self, Room};

#[derive(Debug, Args)]
pub struct CompileArgs {
    #[arg(long)]
    class: Class,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Class {
    Small,
    Large,
}

pub fn run(args: &CompileArgs) -> anyhow::Result<()> {
    wall::enclose(Room { memory_bytes: COMPILE_MEMORY_BYTES, cpu_secs: Some(COMPILE_CPU_SECS) }, None, None)?;
    let mut wasm = Vec::new();
    std::io::stdin().take(MAX_WASM_BYTES as u64 + 1).read_to_end(&mut wasm).context("failed to read the module")?;
    let class = match args.class {
        Class::Small => sandbox::Class::Small,
        Class::Large => sandbox::Class::Large,
    };
    let code = compile::component(&wasm, class)?;
    std::io::stdout().lock().write_all(&code).context("failed to hand over the compiled code")
}
