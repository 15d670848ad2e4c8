//! Files that a person writes, to see when they change.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Time and length of files.
pub(crate) type Files = BTreeMap<PathBuf, (Option<SystemTime>, u64)>;

/// All files of the folders but what tools write. `except`: a file that the command itself writes.
pub(crate) fn files(dirs: &[PathBuf], except: Option<&Path>) -> Files {
    let mut files = BTreeMap::new();
    let mut folders = dirs.to_vec();
    let except = except.and_then(|path| path.canonicalize().ok());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let is_built =
                path.extension().is_some_and(|it| it == "wasm" || it == "code" || it == "part" || it == "lock");
            if is_built || name == "target" || name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if except.is_none() || path.canonicalize().ok() != except {
                add(&mut files, path);
            }
        }
    }
    files
}

/// A file that is not there is left out.
pub(crate) fn add(files: &mut Files, path: PathBuf) {
    if let Ok(metadata) = fs::metadata(&path) {
        files.insert(path, (metadata.modified().ok(), metadata.len()));
    }
}
