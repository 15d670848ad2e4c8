//! The test functions, compiled by the program under test.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use super::daemon::SEDGE;

/// The folder of a test function, compiled.
pub(crate) fn guest(name: &str) -> PathBuf {
    build(&root().join("tests/guests").join(name))
}

/// The folder of an example function, compiled.
pub(crate) fn example(name: &str) -> PathBuf {
    build(&root().join("examples").join(name))
}

/// A copy of a compiled function with another name, other topics and changes to its manifest.
pub(crate) fn variant(
    folder: &Path,
    into: &Path,
    name: &str,
    subscribe: &str,
    change: impl FnOnce(String) -> String,
) -> PathBuf {
    let manifest = fs::read_to_string(folder.join("function.toml")).expect("read function.toml");
    let mut is_except = false;
    let lines = manifest.lines().filter_map(|line| {
        // What the original leaves out is not what the copy hears.
        let is_left_out = is_except || line.starts_with("except =");
        is_except = is_left_out && !line.ends_with(']');
        let line = match line.split(" =").next() {
            Some("name") => format!("name = {name:?}"),
            Some("subscribe") => format!("subscribe = [{subscribe:?}]"),
            _ => line.to_owned(),
        };
        (!is_left_out).then_some(line)
    });
    let manifest = change(lines.collect::<Vec<_>>().join("\n"));
    let original = folder.file_name().expect("a folder has a name").to_string_lossy().into_owned();
    let copy = into.join(name);
    fs::create_dir_all(&copy).expect("make a folder for the function");
    fs::write(copy.join("function.toml"), manifest).expect("write function.toml");
    fs::copy(folder.join(format!("{original}.wasm")), copy.join(format!("{name}.wasm"))).expect("copy the component");
    copy
}

fn build(folder: &Path) -> PathBuf {
    static BUILT: Mutex<BTreeMap<PathBuf, ()>> = Mutex::new(BTreeMap::new());
    let mut built = BUILT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if built.contains_key(folder) {
        return folder.to_owned();
    }
    // A test runner with one process per test builds the same function several times at once.
    let lock =
        File::create(root().join("target").join("guests.lock")).or_else(|_| File::create("/tmp/sedge-guests.lock"));
    let lock = lock.expect("make a lock file");
    lock.lock().expect("lock the guests");
    let output = Command::new(SEDGE).arg("build").arg(folder).output().expect("run sedge build");
    assert!(
        output.status.success(),
        "sedge build {} failed:\n{}",
        folder.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    built.insert(folder.to_owned(), ());
    folder.to_owned()
}

/// The workspace.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the package lies in the workspace").to_owned()
}
