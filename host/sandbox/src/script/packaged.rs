//! Compiled code of the engine that came with the package, for boards without a compiler.
//!
//! Native code cannot be checked, so the file counts only if nobody but root could have written it: whoever may do that can
//! replace the program as well. Its header names the processor, the version of Wasmtime and the engine that it was compiled from.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::engine::DIGEST;
use sedge_core::deploy::code::{Abi, Code, CodeError};
use sedge_core::isa::{Class, Isa};

/// Folder of the package.
const FOLDER: &str = "/usr/lib/sedge";
/// Far above the size of the engine's code, about 2.5 MB.
const MAX_BYTES: u64 = 32 << 20;
const ROOT: u32 = 0;
const WRITABLE_BY_OTHERS: u32 = 0o022;

#[derive(Debug, thiserror::Error)]
pub(crate) enum PackagedError {
    #[error("this build of sedge does not know its processor, and runs no scripts without a compiler")]
    NoTarget,
    #[error(
        "this build of sedge has no compiler, and {path} cannot be read ({error}): install the package of sedge {version}, which brings \
         the engine for scripts, or a full build",
        version = env!("CARGO_PKG_VERSION")
    )]
    Read { path: PathBuf, error: io::Error },
    #[error("{path} is not used: {why}; it is native code, and must belong to root and be writable by root only")]
    Untrusted { path: PathBuf, why: &'static str },
    #[error("{path} is not used: {error}")]
    Code { path: PathBuf, error: CodeError },
    #[error("{path} was compiled from another engine: install the package of sedge {version}", version = env!("CARGO_PKG_VERSION"))]
    OtherEngine { path: PathBuf },
    #[error(
        "this build of sedge has no compiler, and its package brings the engine for scripts with up to {limit} bytes of memory: lower \
         limits.memory_bytes in function.toml to that, or install a full build",
        limit = Class::Small.memory_bytes()
    )]
    Class,
}

/// Whether the board has the engine.
pub(crate) fn is_there() -> bool {
    load(Class::Small).is_ok()
}

/// Reads the code for this board.
pub(crate) fn load(class: Class) -> Result<Bytes, PackagedError> {
    load_from(Path::new(FOLDER), class, Isa::HOST, ROOT)
}

fn load_from(folder: &Path, class: Class, host: Option<Isa>, owner: u32) -> Result<Bytes, PackagedError> {
    let target = host.ok_or(PackagedError::NoTarget)?;
    if class != Class::Small {
        return Err(PackagedError::Class);
    }
    let path = folder.join(format!("script-engine.{target}.code"));
    let failed = |error| PackagedError::Read { path: path.clone(), error };
    let file = File::open(&path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let why = if !metadata.is_file() {
        Some("it is not a file")
    } else if metadata.uid() != owner {
        Some("it belongs to another user")
    } else if metadata.mode() & WRITABLE_BY_OTHERS != 0 {
        Some("others may write to it")
    } else {
        None
    };
    if let Some(why) = why {
        return Err(PackagedError::Untrusted { path, why });
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    let code = Code::parse(&bytes.into()).map_err(|error| PackagedError::Code { path: path.clone(), error })?;
    if code.header.wasm != *DIGEST {
        return Err(PackagedError::OtherEngine { path });
    }
    code.fitting(Some(Abi::of(target, class))).map_err(|error| PackagedError::Code { path, error })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use sedge_core::message::Digest;

    const HOST: Isa = Isa::Aarch64;

    #[track_caller]
    fn check(folder: &Path, owner: u32, expected: &str) {
        let error = load_from(folder, Class::Small, Some(HOST), owner).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn only_what_its_owner_alone_can_write_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("script-engine.aarch64.code");
        let own = fs::metadata(dir.path()).unwrap().uid();
        check(dir.path(), own, "script-engine.aarch64.code cannot be read");
        let write = |code: Code| {
            let _ = fs::remove_file(&path);
            fs::write(&path, code.to_bytes()).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        };
        let code = |target, wasm| Code::new(target, Class::Small, wasm, Bytes::from_static(b"native"));
        write(code(HOST, *DIGEST));
        assert_eq!(load_from(dir.path(), Class::Small, Some(HOST), own).unwrap(), "native");
        check(dir.path(), own + 1, "it belongs to another user");
        for mode in [0o664, 0o646, 0o666] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            check(dir.path(), own, "others may write to it");
        }
        write(code(Isa::X86_64, *DIGEST));
        check(dir.path(), own, "the code is for x86_64");
        write(code(HOST, Digest([7; 32])));
        check(dir.path(), own, "another engine");
        fs::write(&path, "text").unwrap();
        check(dir.path(), own, "not compiled code");
        let large = load_from(dir.path(), Class::Large, Some(HOST), own).unwrap_err().to_string();
        assert!(large.contains("lower limits.memory_bytes in function.toml"), "{large}");
        assert!(matches!(load_from(dir.path(), Class::Small, None, own), Err(PackagedError::NoTarget)));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        check(dir.path(), own, "it is not a file");
    }
}
