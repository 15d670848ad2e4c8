//! Lists the files of the SDK, which the program carries: `sedge new` writes them where there is no checkout.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let sdk = Path::new("../../guest-sdk").canonicalize()?;
    let mut files = vec![sdk.join("Cargo.toml")];
    collect(&sdk.join("src"), &mut files)?;
    collect(&sdk.join("wit"), &mut files)?;
    let mut list = String::from("[\n");
    for file in files.iter().filter(|file| !file.ends_with("tests.rs")) {
        println!("cargo::rerun-if-changed={}", file.display());
        let name = file.strip_prefix(&sdk).map_err(io::Error::other)?.display().to_string();
        writeln!(list, "    ({name:?}, include_bytes!({:?})),", file.display().to_string())
            .map_err(io::Error::other)?;
    }
    list.push(']');
    // New files.
    println!("cargo::rerun-if-changed={}", sdk.join("src").display());
    let out = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("OUT_DIR is set by Cargo"))?;
    fs::write(PathBuf::from(out).join("sdk.rs"), list)
}

/// All files below a folder, in the order of their names.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut entries =
        fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
    entries.sort();
    for path in entries {
        if path.is_dir() { collect(&path, files)? } else { files.push(path) }
    }
    Ok(())
}
