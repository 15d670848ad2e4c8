//! `sedge build`: compiles a function's Rust crate to a component beside its `function.toml`.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::{runner, terminal};
use sedge_core::config::Node;
use sedge_core::deploy;
use sedge_core::grants::Grants;
use sedge_core::isa::Class;
use sedge_core::manifest::{self, BuildTarget, Manifest};
use sedge_core::version::Version;
use sedge_sandbox::compiler::Compiler;
use sedge_sandbox::script::archive;
use sedge_sandbox::{compile, componentize, wasi};

/// The host finds an overflow of the stack by it.
const STACK_POINTER: &str = "-Clink-arg=--export=__stack_pointer";

#[derive(Clone, Debug, clap::Args)]
pub struct BuildArgs {
    /// Folder with function.toml and Cargo.toml
    dir: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Built {
    pub(crate) name: String,
    pub(crate) component: PathBuf,
    /// SHA-256 of the component, in hex.
    pub(crate) digest: String,
    pub(crate) size_bytes: usize,
    pub(crate) imports: Vec<String>,
    pub(crate) memory_bytes: u64,
    pub(crate) core_instances: u32,
}

pub fn run(args: &BuildArgs) -> anyhow::Result<()> {
    let built = build(&args.dir)?;
    let mut out = terminal::out();
    if args.json {
        writeln!(out, "{}", terminal::json(&built))?;
        return Ok(());
    }
    writeln!(out, "function   {}", built.name)?;
    writeln!(out, "component  {}", built.component.display())?;
    writeln!(out, "digest     sha256:{}", built.digest)?;
    writeln!(out, "size       {} bytes", built.size_bytes)?;
    writeln!(out, "memory     {} bytes at the start of a run", built.memory_bytes)?;
    writeln!(out, "instances  {}", built.core_instances)?;
    writeln!(out, "imports    {}", if built.imports.is_empty() { "none".into() } else { built.imports.join(", ") })?;
    Ok(())
}

/// Builds the function in a folder. Cargo's messages go to standard error.
pub(crate) fn build(dir: &Path) -> anyhow::Result<Built> {
    if !dir.join(manifest::FILE_NAME).exists() {
        bail!("no function.toml in {}: name a folder with function.toml and Cargo.toml", dir.display());
    }
    let manifest = Manifest::load(dir, &sedge_sandbox::machine::MACHINE)?;
    let component = runner::component(dir, &manifest)?;
    if archive::is_source(&component) {
        return script(manifest, component);
    }
    let module_path = if dir.join("Cargo.toml").is_file() {
        let toolchain = Toolchain::from_environment();
        toolchain.check_target(dir, manifest.build.target)?;
        compile(dir, manifest.build, &toolchain)?
    } else {
        if !component.is_file() {
            bail!(
                "{} has neither function.js, function.ts, Cargo.toml nor {}: `sedge build` checks a script or a program for WASI, compiles a crate in \
                 Rust, or makes a component of a module that another compiler wrote under that name",
                dir.display(),
                component.display()
            );
        }
        component.clone()
    };
    let module = fs::read(&module_path).with_context(|| format!("failed to read {}", module_path.display()))?;
    if wasi::is_program(&module) {
        return program(&manifest, module_path, &module);
    }
    let wasm = component_of(&module).with_context(|| module_path.display().to_string())?;
    let info = componentize::inspect(&wasm)?;

    // Boards refuse others.
    let imports = info.imports.iter().map(String::as_str);
    Grants::from(&manifest.allow).check(imports).with_context(|| manifest.name.to_string())?;
    super::write_atomically(&component, &wasm)?;
    Ok(Built {
        name: manifest.name.to_string(),
        component,
        digest: deploy::digest(&wasm).to_string(),
        size_bytes: wasm.len(),
        imports: info.imports,
        memory_bytes: info.memory_bytes,
        core_instances: if compile::is_one_module(&wasm) { 1 } else { info.core_instances },
    })
}

/// A component is as it should be already, if it fits the world.
fn component_of(wasm: &[u8]) -> Result<Vec<u8>, componentize::ComponentError> {
    match componentize::from_module(wasm) {
        Err(componentize::ComponentError::AlreadyComponent) => {
            componentize::check_world(wasm)?;
            Ok(wasm.to_vec())
        }
        result => result,
    }
}

/// Checks a program for WASI. Nothing is written: a push sends the program itself.
fn program(manifest: &Manifest, path: PathBuf, wasm: &[u8]) -> anyhow::Result<Built> {
    let class = Class::for_memory(manifest.limits.memory_bytes.get());
    Compiler.compile(wasm, class, None).with_context(|| path.display().to_string())?;
    let info = componentize::inspect(wasm)?;
    Ok(Built {
        name: manifest.name.to_string(),
        component: path,
        digest: deploy::digest(wasm).to_string(),
        size_bytes: wasm.len(),
        imports: wasi::imports(wasm),
        memory_bytes: info.memory_bytes,
        core_instances: 1,
    })
}

/// Loads a script once, which finds its mistakes. Nothing is written: a push sends the script itself.
fn script(manifest: Manifest, path: PathBuf) -> anyhow::Result<Built> {
    let archive = runner::read_script(&path).with_context(|| path.display().to_string())?;
    let digest = deploy::digest(&archive);
    let installed = Version::new(manifest, digest, archive, Node::BASE_TOPIC);
    let (_sandbox, function) =
        runner::load(&installed, installed.settings().into()).with_context(|| path.display().to_string())?;
    Ok(Built {
        name: installed.manifest.name.to_string(),
        component: path,
        digest: digest.to_string(),
        size_bytes: installed.code.bytes().len(),
        imports: Vec::new(),
        memory_bytes: function.image_bytes() as u64,
        core_instances: 1,
    })
}

/// The cargo that compiles functions. `cross/wasm-target.sh` explains the variables.
struct Toolchain {
    /// `SEDGE_GUEST_CARGO`, or `cargo`.
    cargo: OsString,
    /// `SEDGE_GUEST_TOOLCHAIN=debian`: Debian's `rustc-web` has the source of the standard library but no wasm build of it.
    builds_std: bool,
}

impl Toolchain {
    fn from_environment() -> Self {
        let builds_std = env::var_os("SEDGE_GUEST_TOOLCHAIN").is_some_and(|name| name == "debian");
        let usual = if builds_std { "/usr/bin/cargo" } else { "cargo" };
        Self { cargo: env::var_os("SEDGE_GUEST_CARGO").unwrap_or_else(|| usual.into()), builds_std }
    }

    /// The compiler beside the cargo, else the one in the path.
    fn rustc(&self) -> PathBuf {
        let beside = Path::new(&self.cargo).with_file_name("rustc");
        if beside.is_absolute() { beside } else { "rustc".into() }
    }

    /// Fails with a better message than cargo's when the wasm target is not installed.
    fn check_target(&self, dir: &Path, target: BuildTarget) -> anyhow::Result<()> {
        let name = target.name();
        if self.builds_std {
            if target != BuildTarget::Unknown {
                bail!("Debian's Rust cannot compile for {name} (build.target): install Rust with https://rustup.rs");
            }
            return Ok(());
        }
        let output = Command::new(self.rustc())
            .args(["--print", "target-libdir", "--target", name])
            .current_dir(dir)
            .stderr(Stdio::inherit())
            .output();
        // Cargo itself reports a compiler that cannot be run.
        let Ok(output) = output else { return Ok(()) };
        let libraries = String::from_utf8_lossy(&output.stdout);
        if output.status.success() && !Path::new(libraries.trim()).is_dir() {
            let way = if target == BuildTarget::Unknown { "run cross/wasm-target.sh, or " } else { "" };
            bail!("this Rust toolchain has no target {name}: {way}`rustup target add {name}`");
        }
        Ok(())
    }
}

/// Runs cargo, and returns the path of the module.
fn compile(dir: &Path, build: manifest::Build, toolchain: &Toolchain) -> anyhow::Result<PathBuf> {
    // With the linker's default of 1 MiB every function would start with 17 pages of memory, which every run must clear.
    let stack = format!("-Clink-arg=-zstack-size={}", build.stack_bytes);
    let mut flags = vec![&*stack, STACK_POINTER];
    let mut cargo = Command::new(&toolchain.cargo);
    cargo.args(["build", "--release", "--message-format=json-render-diagnostics", "--target", build.target.name()]);
    if toolchain.builds_std {
        flags.push("-Clinker=wasm-ld-19");
        cargo.args(["-Z", "build-std=std,panic_abort"]).env("RUSTC_BOOTSTRAP", "1").env("RUSTC", toolchain.rustc());
    }
    cargo
        .current_dir(dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // For small components, without a word in the function's Cargo.toml.
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = match cargo.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "cannot find `{}`: install Rust (https://rustup.rs), run cross/wasm-target.sh, or name another cargo in SEDGE_GUEST_CARGO",
            toolchain.cargo.to_string_lossy()
        ),
        Err(error) => return Err(error).context("failed to start cargo"),
    };
    let messages = child.stdout.take().context("cargo has no output")?;
    let manifest_path = dir.join("Cargo.toml").canonicalize()?;
    let module = read_artifact(messages, &manifest_path)?;
    if !child.wait()?.success() {
        bail!("cargo could not build {}: its messages are above", dir.display());
    }
    module.with_context(|| {
        format!("{} produces no wasm module: add `[lib]` with `crate-type = [\"cdylib\"]`", manifest_path.display())
    })
}

/// Reads cargo's messages to their end, and returns the `cdylib` of this crate.
fn read_artifact(messages: impl Read, manifest_path: &Path) -> anyhow::Result<Option<PathBuf>> {
    #[derive(Deserialize)]
    struct Artifact {
        manifest_path: PathBuf,
        filenames: Vec<PathBuf>,
    }
    let mut module = None;
    for line in BufReader::new(messages).lines() {
        // Only artifacts have file names.
        let line = line.context("failed to read cargo's messages")?;
        let Ok(artifact) = serde_json::from_str::<Artifact>(&line) else { continue };
        if artifact.manifest_path == manifest_path {
            module =
                artifact.filenames.into_iter().find(|file| file.extension().is_some_and(|e| e == "wasm")).or(module);
        }
    }
    Ok(module)
}
