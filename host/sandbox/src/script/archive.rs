//! The files of a script as one archive: what is pushed, signed and stored in place of a component.
//!
//! ```text
//! archive := "sedge-script 1\n" file+      the first file is the one that exports `handle`
//! file    := length of the name:u32le, length of the content:u32le, name, content
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

const MAGIC: &[u8] = b"sedge-script 1\n";
/// Name of the first file in a function's folder, unless the manifest names another.
pub const MAIN: &str = "function.js";
/// The same in TypeScript.
pub const MAIN_TYPESCRIPT: &str = "function.ts";
/// Most bytes of all files. A decoder of 3,000 lines has 100 KB.
const MAX_BYTES: usize = 1 << 20;
const MAX_FILES: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("failed to read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is not text in UTF-8")]
    NotText { path: PathBuf },
    #[error("{}", needs_erasing(.path))]
    TypeScript { path: PathBuf },
    /// The place of each problem, with a line for each if there are several.
    #[error("{0}")]
    Types(String),
    #[error("the files of the script have {found} bytes, the limit is {MAX_BYTES}: leave out what it does not need")]
    TooLarge { found: usize },
    #[error("the script has more than {MAX_FILES} files: bundle them into one")]
    TooMany,
    #[error("the archive of the script is damaged: {0}")]
    Damaged(&'static str),
}

/// Whether the bytes are the archive of a script, and not a component.
pub fn is_script(module: &[u8]) -> bool {
    module.starts_with(MAGIC)
}

pub use sedge_core::manifest::is_script_file as is_source;
pub use sedge_core::manifest::is_typescript_file as is_typescript;

/// Overwrites the types in the source of a file, or returns all problems, each as `line:column: what is wrong`.
pub type EraseTypes = fn(&str) -> Result<String, Vec<String>>;

/// Explains why a file in TypeScript is not read here.
pub fn needs_erasing(path: &Path) -> String {
    format!(
        "{} is TypeScript, and boards run JavaScript: `sedge push` of a full build erases its types; in a folder of \
         functions.paths it cannot stay as it is",
        path.display()
    )
}

/// Packs a script and the files that it names. Without `erase`, a file in TypeScript is an error. Files keep their names, which
/// errors of the engine have.
///
/// Every text between quotes that begins with `./` or `../` and is the path of a file in the folder of `main` or below counts, in
/// the files found so as well. That finds each file that can be imported, without reading the language: an `import` needs such a
/// text.
pub fn pack(main: &Path, erase: Option<EraseTypes>) -> Result<Bytes, ArchiveError> {
    let root = main.parent().unwrap_or(Path::new(""));
    let name = main.file_name().and_then(|name| name.to_str()).unwrap_or(MAIN).to_owned();
    let mut waiting = vec![name.clone()];
    let mut files = BTreeMap::new();
    while let Some(name) = waiting.pop() {
        if files.contains_key(&name) {
            continue;
        }
        let path = root.join(&name);
        let content = fs::read(&path).map_err(|source| ArchiveError::Read { path: path.clone(), source })?;
        let Ok(mut content) = String::from_utf8(content) else { return Err(ArchiveError::NotText { path }) };
        if is_typescript(&path) {
            let erase = erase.ok_or(ArchiveError::TypeScript { path })?;
            content = erase(&content).map_err(|problems| types_error(&name, &problems))?;
        }
        let named = relative_paths(&content).filter_map(|path| resolve(&name, path));
        waiting.extend(named.filter(|name| root.join(name).is_file()));
        files.insert(name, content);
        if files.len() > MAX_FILES {
            return Err(ArchiveError::TooMany);
        }
    }
    let found = files.values().map(String::len).sum();
    if found > MAX_BYTES {
        return Err(ArchiveError::TooLarge { found });
    }
    let content = files.remove(&name).expect("the first file was read");
    let mut archive = MAGIC.to_vec();
    for (name, content) in [(name, content)].into_iter().chain(files) {
        archive.extend(entry(&name, &content));
    }
    Ok(archive.into())
}

/// A file, as it is in an archive.
pub(crate) fn entry(name: &str, content: &str) -> Vec<u8> {
    let lengths = [name, content].map(|part| (part.len() as u32).to_le_bytes());
    [lengths.as_flattened(), name.as_bytes(), content.as_bytes()].concat()
}

fn types_error(name: &str, problems: &[String]) -> ArchiveError {
    const SHOWN: usize = 20;
    if let [problem] = problems {
        return ArchiveError::Types(format!("{name}:{problem}"));
    }
    let lines: Vec<_> = problems.iter().take(SHOWN).map(|problem| format!("\n  {name}:{problem}")).collect();
    let more = match problems.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!("\n  and {more} more"),
    };
    ArchiveError::Types(format!("{} problems{}{more}", problems.len(), lines.concat()))
}

/// Texts between quotes that begin like a relative path.
fn relative_paths(source: &str) -> impl Iterator<Item = &str> {
    source.match_indices(['"', '\'', '`']).filter_map(|(at, quote)| {
        let text = &source[at + 1..];
        let end = text.find(quote).filter(|end| *end < 512)?;
        let text = &text[..end];
        (text.starts_with("./") || text.starts_with("../")).then_some(text)
    })
}

/// The name of a file, seen from the folder of the script. `None` if it lies outside of it.
fn resolve(importer: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = importer.split('/').collect();
    parts.pop();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The files of an archive, as the engine reads them, if it is well-formed.
pub fn files(archive: &[u8]) -> Result<&[u8], ArchiveError> {
    let files = archive.strip_prefix(MAGIC).ok_or(ArchiveError::Damaged("it does not begin as one"))?;
    if files.len() > MAX_BYTES + MAX_FILES * 1024 {
        return Err(ArchiveError::TooLarge { found: files.len() });
    }
    let (mut rest, mut names) = (files, BTreeSet::new());
    while !rest.is_empty() {
        let (name_len, after) = length(rest)?;
        let (content_len, after) = length(after)?;
        let (name, after) = after.split_at_checked(name_len).ok_or(ArchiveError::Damaged("a name is cut off"))?;
        let (content, after) = after.split_at_checked(content_len).ok_or(ArchiveError::Damaged("a file is cut off"))?;
        let is_name = str::from_utf8(name).is_ok_and(|name| {
            !name.is_empty() && name.len() <= 512 && !name.contains('\0') && resolve("", name).as_deref() == Some(name)
        });
        if !is_name || !names.insert(name) {
            return Err(ArchiveError::Damaged("the name of a file is not one, or occurs twice"));
        }
        if str::from_utf8(content).is_err() {
            return Err(ArchiveError::Damaged("a file is not text in UTF-8"));
        }
        if names.len() > MAX_FILES {
            return Err(ArchiveError::TooMany);
        }
        rest = after;
    }
    if names.is_empty() { Err(ArchiveError::Damaged("it has no file")) } else { Ok(files) }
}

fn length(bytes: &[u8]) -> Result<(usize, &[u8]), ArchiveError> {
    let (length, rest) = bytes.split_first_chunk().ok_or(ArchiveError::Damaged("it is cut off"))?;
    Ok((u32::from_le_bytes(*length) as usize, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(archive: &[u8]) -> Vec<String> {
        let mut rest = files(archive).unwrap();
        let mut names = Vec::new();
        while !rest.is_empty() {
            let (name_len, after) = length(rest).unwrap();
            let (content_len, after) = length(after).unwrap();
            names.push(String::from_utf8(after[..name_len].to_vec()).unwrap());
            rest = &after[name_len + content_len..];
        }
        names
    }

    #[test]
    fn the_files_that_are_named_are_packed_with_the_first_in_front() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        write(
            "function.js",
            "import './a.js'\nimport x from \"./lib/b.js\"; // \"./gone.js\", '../outside.js', 'c.js'",
        );
        write("a.js", "let q = `./a.js`");
        write("lib/b.js", "import '../table.json' with { type: 'json' }");
        write("table.json", "{}");
        write("c.js", "");
        let archive = pack(&dir.path().join(MAIN), None).unwrap();
        assert!(is_script(&archive) && !is_script(b"\0asm\x0d\0\x01\0"));
        assert_eq!(names(&archive), ["function.js", "a.js", "lib/b.js", "table.json"]);
        assert_eq!(pack(&dir.path().join(MAIN), None).unwrap(), archive);
    }

    #[test]
    fn types_are_erased_where_somebody_can_and_refused_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join(MAIN_TYPESCRIPT);
        fs::write(&main, "import './a.mts'; let TYPES './types.ts'").unwrap();
        fs::write(dir.path().join("a.mts"), "TYPES").unwrap();
        fs::write(dir.path().join("types.ts"), "TYPES").unwrap();
        let erase: EraseTypes = |source| Ok(source.replace("TYPES './types.ts'", " ").replace("TYPES", "     "));
        let archive = pack(&main, Some(erase)).unwrap();
        assert_eq!(names(&archive), ["function.ts", "a.mts"]);
        assert!(!String::from_utf8_lossy(&archive).contains("TYPES"));
        let error = pack(&main, None).unwrap_err().to_string();
        assert!(error.contains("function.ts is TypeScript") && error.contains("sedge push"), "{error}");
        let refuse: EraseTypes =
            |source| if source == "TYPES" { Err(vec!["1:2: no".into(); 22]) } else { Ok(source.into()) };
        let error = pack(&main, Some(refuse)).unwrap_err().to_string();
        assert!(error.contains("types.ts:1:2: no\n") && error.ends_with("and 2 more"), "{error}");
    }

    #[test]
    fn a_damaged_archive_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(MAIN), "export function handle() {}").unwrap();
        let archive = pack(&dir.path().join(MAIN), None).unwrap();
        for end in 0..archive.len() {
            assert!(files(&archive[..end]).is_err(), "{end} bytes");
        }
        assert!(files(&[&archive, &archive[MAGIC.len()..]].concat()).unwrap_err().to_string().contains("twice"));
        for name in ["../x.js", "/x.js", "a//x.js", "./x.js", "a/../x.js", ""] {
            let lengths = [(name.len() as u32).to_le_bytes(), 0_u32.to_le_bytes()].concat();
            assert!(files(&[MAGIC, &lengths, name.as_bytes()].concat()).is_err(), "{name}");
        }
        fs::write(dir.path().join(MAIN), vec![b' '; MAX_BYTES + 1]).unwrap();
        assert!(matches!(pack(&dir.path().join(MAIN), None), Err(ArchiveError::TooLarge { .. })));
        fs::write(dir.path().join(MAIN), b"\xff").unwrap();
        assert!(matches!(pack(&dir.path().join(MAIN), None), Err(ArchiveError::NotText { .. })));
    }
}
