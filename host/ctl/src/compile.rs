//! `sedge compile`: compiles a function's component to native code for boards without a compiler.
//!
//! With `--class` it is the compiler process of the daemon and the command line: wasm on standard input, compiled code on
//! standard output, errors on standard error.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use serde_json::json;

use super::terminal::{self, say};
use sedge_core::deploy::{self, COMPILE_CPU_SECS, COMPILE_MEMORY_BYTES};
use sedge_core::grants::Grants;
use sedge_core::isa::{Class, Isa};
use sedge_core::manifest::Manifest;
use sedge_sandbox::compile;
use sedge_sandbox::compiler::Compiler;
use sedge_sandbox::folder;
use sedge_sandbox::sandboxing::{self, Descriptors, ProcessLimits};
use sedge_sandbox::script::archive;
use sedge_sandbox::shape::{self, MAX_WASM_BYTES};

#[derive(Debug, Args)]
pub struct CompileArgs {
    /// Folder with function.toml and the component
    #[arg(required_unless_present_any = ["class", "script_engine"])]
    dir: Option<PathBuf>,
    /// Targets: aarch64, x86_64, or pulley32 for 32-bit ARM (armv7, armv6); separated by commas
    #[arg(long = "target", value_name = "TARGET", value_delimiter = ',', required_unless_present = "class")]
    targets: Vec<Isa>,
    /// File to write instead of NAME.TARGET.code in the folder; for one target only
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[arg(long, hide = true, value_parser = class, conflicts_with_all = ["dir", "output", "json"])]
    class: Option<Class>,
    /// Compile the engine for scripts, for the package of a board without a compiler
    #[arg(long, hide = true, conflicts_with = "dir")]
    script_engine: bool,
    #[arg(long, hide = true, default_value_t = COMPILE_CPU_SECS)]
    cpu_secs: u64,
}

fn class(name: &str) -> Result<Class, String> {
    let class = [Class::Small, Class::Large].into_iter().find(|class| class.as_str() == name);
    class.ok_or_else(|| "the classes are small and large".into())
}

pub fn run(args: &CompileArgs) -> anyhow::Result<()> {
    match (args.class, &args.dir) {
        (Some(class), _) => from_input(class, args.targets.first().copied(), args.script_engine, args.cpu_secs),
        (None, Some(dir)) => folder(args, dir),
        (None, None) if args.script_engine => packaged_engine(args),
        (None, None) => anyhow::bail!("name the folder of a function"),
    }
}

fn from_input(class: Class, target: Option<Isa>, script_engine: bool, cpu_secs: u64) -> anyhow::Result<()> {
    // The engine is our own, and a program that is not optimised takes long for it.
    let most = if script_engine { 4 * COMPILE_CPU_SECS } else { cpu_secs.min(COMPILE_CPU_SECS) };
    sandboxing::enter(
        ProcessLimits { memory_bytes: COMPILE_MEMORY_BYTES, cpu_secs: Some(most) },
        Descriptors::default(),
    )?;
    let (mut wasm, mut stdin) = (Vec::new(), std::io::stdin());
    (&mut stdin).take(MAX_WASM_BYTES as u64 + 1).read_to_end(&mut wasm).context("failed to read the module")?;
    if wasm.len() > MAX_WASM_BYTES {
        // Not kept, but counted, for the message.
        let rest = std::io::copy(&mut stdin, &mut std::io::sink()).context("failed to read the module")?;
        shape::check_bytes(wasm.len() as u64 + rest)?;
    }
    let code = match target {
        None if script_engine => compile::script_engine(class)?,
        Some(target) if script_engine => compile::script_engine_for(class, target)?,
        None => compile::component(&wasm, class)?,
        Some(target) => compile::component_for(&wasm, class, target)?,
    };
    std::io::stdout().lock().write_all(&code).context("failed to write the compiled code")
}

/// Writes the engine for scripts as the package of a board brings it.
fn packaged_engine(args: &CompileArgs) -> anyhow::Result<()> {
    let [target] = &args.targets[..] else {
        anyhow::bail!("name one --target: the package of a board has the code for it alone")
    };
    let path = args.output.clone().unwrap_or_else(|| format!("script-engine.{target}.code").into());
    let bytes = Compiler.script_engine_for(*target).context("the engine for scripts")?.to_bytes();
    super::write_atomically(&path, &bytes)?;
    say!("{:<10} {} ({} bytes)", target.as_str(), path.display(), bytes.len());
    Ok(())
}

fn folder(args: &CompileArgs, dir: &Path) -> anyhow::Result<()> {
    let manifest = Manifest::load(dir, &sedge_sandbox::machine::MACHINE)?;
    let targets: BTreeSet<Isa> = args.targets.iter().copied().collect();
    if args.output.is_some() && targets.len() > 1 {
        anyhow::bail!("--output names one file for {} targets: leave it out", targets.len());
    }
    let component = folder::component_path(dir, &manifest);
    if archive::is_source(&component) {
        anyhow::bail!("{} is a script: it is pushed as it is, and there is no native code of it", component.display());
    }
    let wasm = fs::read(&component).with_context(|| {
        format!("failed to read {}; build it with `sedge build {}`", component.display(), dir.display())
    })?;
    let class = Class::for_memory(manifest.limits.memory_bytes.get());
    let mut written = Vec::new();
    for target in targets {
        let code = Compiler.code_for(&wasm, class, target).with_context(|| component.display().to_string())?;
        sedge_sandbox::check_imports(Grants::from(&manifest.allow), &wasm)
            .with_context(|| manifest.name.to_string())?;
        let path = args.output.clone().unwrap_or_else(|| deploy::code_path(dir, &manifest.name, target));
        let bytes = code.to_bytes();
        super::write_atomically(&path, &bytes)?;
        if !args.json {
            say!("{:<10} {} ({} bytes)", target.as_str(), path.display(), bytes.len());
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
        say!("{}", terminal::json(&json!({ "function": &*manifest.name, "wasm": wasm, "code": written })));
    }
    Ok(())
}
