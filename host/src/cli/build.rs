//! `sedge build`: a function's Rust crate, compiled and made into a component beside its `function.toml`.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::manifest::{self, Manifest};
use crate::sandbox::{Grants, compile};
use crate::{component, deploy};

const TARGET: &str = "wasm32-unknown-unknown";

/// Memory is what an invocation costs: with the linker's own stack of 1 MiB every function would begin with 17 pages.
const STACK: &str = "-Clink-arg=-zstack-size=16384";

#[derive(Clone, Debug, clap::Args)]
pub struct BuildArgs {
    /// A folder with `function.toml` and `Cargo.toml`
    pub dir: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// What was built.
#[derive(Clone, Debug, Serialize)]
pub struct Built {
    pub name: String,
    pub component: PathBuf,
    /// SHA-256 of the component, in hex.
    pub digest: String,
    pub size_bytes: usize,
    pub imports: Vec<String>,
    pub memory_bytes: u64,
    pub core_instances: u32,
}

pub fn run(args: &BuildArgs) -> anyhow::Result<()> {
    let built = build(&args.dir)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, &built)?;
        writeln!(out)?;
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

/// Builds the function in a folder. Cargo's progress and its complaints go to stderr.
pub fn build(dir: &Path) -> anyhow::Result<Built> {
    let manifest = read_manifest(dir)?;
    if !dir.join("Cargo.toml").is_file() {
        bail!(
            "no Cargo.toml in {}: `sedge build` compiles Rust crates; for other languages, put the component that function.toml names into the folder",
            dir.display()
        );
    }
    let toolchain = Toolchain::from_environment();
    toolchain.check_target(dir)?;
    let module_path = compile(dir, &toolchain)?;
    let module = fs::read(&module_path).with_context(|| format!("cannot read {}", module_path.display()))?;
    let wasm = component::from_module(&module).with_context(|| module_path.display().to_string())?;
    let anatomy = component::anatomy(&wasm)?;

    for import in &anatomy.imports {
        // The board would refuse it.
        Grants::from(&manifest.allow).check_name(import).with_context(|| manifest.name.to_string())?;
    }
    let component = deploy::component_path(dir, &manifest);
    // Renamed into place: a running daemon that reads the folder never sees half a component.
    let unfinished = component.with_extension("wasm.part");
    fs::write(&unfinished, &wasm).with_context(|| format!("cannot write {}", unfinished.display()))?;
    fs::rename(&unfinished, &component).with_context(|| format!("cannot write {}", component.display()))?;
    Ok(Built {
        name: manifest.name.to_string(),
        component,
        digest: deploy::digest(&wasm).to_string(),
        size_bytes: wasm.len(),
        imports: anatomy.imports,
        memory_bytes: anatomy.memory_bytes,
        core_instances: if compile::is_one_module(&wasm) { 1 } else { anatomy.core_instances },
    })
}

/// The manifest, with every problem in it, as `sedge check` tells them.
fn read_manifest(dir: &Path) -> anyhow::Result<Manifest> {
    if !dir.join(manifest::FILE_NAME).exists() {
        bail!(
            "no function.toml in {}: name the folder of a function, which has function.toml and Cargo.toml",
            dir.display()
        )
    }
    Ok(Manifest::load(dir)?)
}

/// Which cargo compiles functions. `cross/wasm-target.sh` says what to set.
struct Toolchain {
    /// `SEDGE_GUEST_CARGO`, or `cargo`.
    cargo: OsString,
    /// `SEDGE_GUEST_TOOLCHAIN=debian`: Debian's `rustc-web`, which has the standard library's source but not its wasm build.
    builds_std: bool,
}

impl Toolchain {
    fn from_environment() -> Self {
        let builds_std = env::var_os("SEDGE_GUEST_TOOLCHAIN").is_some_and(|name| name == "debian");
        let usual = if builds_std { "/usr/bin/cargo" } else { "cargo" };
        Self { cargo: env::var_os("SEDGE_GUEST_CARGO").unwrap_or_else(|| usual.into()), builds_std }
    }

    /// The compiler that belongs to the cargo: beside it, or what the path has.
    fn rustc(&self) -> PathBuf {
        let beside = Path::new(&self.cargo).with_file_name("rustc");
        if beside.is_absolute() { beside } else { "rustc".into() }
    }

    /// Without the target cargo says that `core` cannot be found, which helps nobody.
    fn check_target(&self, dir: &Path) -> anyhow::Result<()> {
        if self.builds_std {
            return Ok(());
        }
        let asked = Command::new(self.rustc())
            .args(["--print", "target-libdir", "--target", TARGET])
            .current_dir(dir)
            .stderr(Stdio::inherit())
            .output();
        // A compiler that cannot be asked is left to cargo's own message.
        let Ok(answer) = asked else { return Ok(()) };
        let libraries = String::from_utf8_lossy(&answer.stdout);
        if answer.status.success() && !Path::new(libraries.trim()).is_dir() {
            bail!(
                "this Rust toolchain has no target {TARGET}: run cross/wasm-target.sh, or `rustup target add {TARGET}`"
            );
        }
        Ok(())
    }
}

/// Runs cargo and returns the module that it made.
fn compile(dir: &Path, toolchain: &Toolchain) -> anyhow::Result<PathBuf> {
    let mut flags = vec![STACK];
    let mut cargo = Command::new(&toolchain.cargo);
    cargo.args(["build", "--release", "--message-format=json-render-diagnostics", "--target", TARGET]);
    if toolchain.builds_std {
        flags.push("-Clinker=wasm-ld-19");
        cargo.args(["-Z", "build-std=std,panic_abort"]).env("RUSTC_BOOTSTRAP", "1").env("RUSTC", toolchain.rustc());
    }
    cargo
        .current_dir(dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // What a component on a small board wants, so that no function's Cargo.toml has to say it.
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = match cargo.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "cannot find `{}`: functions are compiled with Rust; install it (https://rustup.rs), run cross/wasm-target.sh, or name another cargo in SEDGE_GUEST_CARGO",
            toolchain.cargo.to_string_lossy()
        ),
        Err(error) => return Err(error).context("cannot start cargo"),
    };
    let messages = child.stdout.take().context("cargo has no output")?;
    let manifest_path = dir.join("Cargo.toml").canonicalize()?;
    let module = read_artifact(messages, &manifest_path)?;
    if !child.wait()?.success() {
        bail!("cargo could not build {}: its messages are above", dir.display());
    }
    module.with_context(|| {
        format!("{} makes no wasm module: add `[lib]` with `crate-type = [\"cdylib\"]`", manifest_path.display())
    })
}

/// Reads cargo's messages to their end and finds the `cdylib` of this crate among the artifacts.
fn read_artifact(messages: impl Read, manifest_path: &Path) -> anyhow::Result<Option<PathBuf>> {
    #[derive(Deserialize)]
    struct Artifact {
        manifest_path: PathBuf,
        filenames: Vec<PathBuf>,
    }
    let mut module = None;
    for line in BufReader::new(messages).lines() {
        // Every message has a `reason`, and only artifacts have file names.
        let line = line.context("cannot read cargo's messages")?;
        let Ok(artifact) = serde_json::from_str::<Artifact>(&line) else { continue };
        if artifact.manifest_path == manifest_path {
            module =
                artifact.filenames.into_iter().find(|file| file.extension().is_some_and(|e| e == "wasm")).or(module);
        }
    }
    Ok(module)
}
