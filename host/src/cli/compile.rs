//! `sedge compile`: a function's component as code for boards that have no compiler.
//!
//! The daemon and the command line itself start it in another form, `--class`, to compile in a process of its own: wasm on
//! standard input, compiled code on standard output, and what is wrong with it on standard error.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde_json::json;

use crate::deploy::{self, COMPILE_CPU_SECS, COMPILE_MEMORY_BYTES, Compiler};
use crate::manifest::Manifest;
use crate::sandbox::compile;
use crate::sandbox::shape::MAX_WASM_BYTES;
use crate::sandbox::{self, Grants, Isa};
use crate::worker::sandboxing::{self, ProcessLimits};

#[derive(Debug, Args)]
pub struct CompileArgs {
    /// The function's folder, with function.toml and the component that `sedge build` wrote
    #[arg(required_unless_present = "class")]
    dir: Option<PathBuf>,
    /// The boards: aarch64, x86_64, or pulley32 for 32-bit ARM (armv7, armv6); several with commas
    #[arg(long = "target", value_name = "TARGET", value_delimiter = ',', required_unless_present = "class")]
    targets: Vec<Isa>,
    /// File to write, of one target, instead of NAME.TARGET.code in the folder
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[arg(long, hide = true, conflicts_with_all = ["dir", "output", "json"])]
    class: Option<Class>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Class {
    Small,
    Large,
}

pub fn run(args: &CompileArgs) -> anyhow::Result<()> {
    match (args.class, &args.dir) {
        (Some(class), _) => from_input(class, args.targets.first().copied()),
        (None, Some(dir)) => folder(args, dir),
        (None, None) => anyhow::bail!("name the folder of a function"),
    }
}

fn from_input(class: Class, target: Option<Isa>) -> anyhow::Result<()> {
    sandboxing::enter(
        ProcessLimits { memory_bytes: COMPILE_MEMORY_BYTES, cpu_secs: Some(COMPILE_CPU_SECS) },
        None,
        None,
    )?;
    let mut wasm = Vec::new();
    std::io::stdin().take(MAX_WASM_BYTES as u64 + 1).read_to_end(&mut wasm).context("failed to read the module")?;
    let class = match class {
        Class::Small => sandbox::Class::Small,
        Class::Large => sandbox::Class::Large,
    };
    let code = match target {
        None => compile::component(&wasm, class)?,
        Some(target) => compile::component_for(&wasm, class, target)?,
    };
    std::io::stdout().lock().write_all(&code).context("failed to hand over the compiled code")
}

fn folder(args: &CompileArgs, dir: &Path) -> anyhow::Result<()> {
    let manifest = Manifest::load(dir).map_err(anyhow::Error::new)?;
    let targets: BTreeSet<Isa> = args.targets.iter().copied().collect();
    if args.output.is_some() && targets.len() > 1 {
        anyhow::bail!("--output names one file, and {} targets are asked for: leave it out", targets.len());
    }
    let component = deploy::component_path(dir, &manifest);
    let wasm = fs::read(&component).with_context(|| {
        format!("failed to read {}; build it with `sedge build {}`", component.display(), dir.display())
    })?;
    let class = sandbox::Class::for_memory(manifest.limits.memory_bytes.get());
    let mut written = Vec::new();
    for target in targets {
        let code = Compiler.code_for(&wasm, class, target).with_context(|| component.display().to_string())?;
        Grants::from(&manifest.allow).check(&wasm).with_context(|| manifest.name.to_string())?;
        let path = args.output.clone().unwrap_or_else(|| deploy::code_path(dir, &manifest.name, target));
        let bytes = code.to_bytes();
        // Renamed into place: a board that reads the folder never sees half of it.
        let unfinished = path.with_extension("code.part");
        fs::write(&unfinished, &bytes).with_context(|| format!("cannot write {}", unfinished.display()))?;
        fs::rename(&unfinished, &path).with_context(|| format!("cannot write {}", path.display()))?;
        if !args.json {
            println!("{:<10} {} ({} bytes)", target.as_str(), path.display(), bytes.len());
        }
        written.push(json!({
            "target": target.as_str(),
            "path": path,
            "size_bytes": bytes.len(),
            "digest": deploy::digest(&bytes).to_string(),
        }));
    }
    if args.json {
        let wasm = deploy::digest(&wasm).to_string();
        println!("{}", json!({ "function": &*manifest.name, "wasm": wasm, "code": written }));
    }
    Ok(())
}
