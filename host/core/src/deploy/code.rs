//! Native code as a file, for boards without a compiler.
//!
//! ```text
//! sedge-code 1\n
//! {"target":"aarch64","wasmtime":48,"settings":2,"class":"small","wasm":"<sha256 of the component>"}\n
//! <native code>
//! ```
//!
//! Native code cannot be checked against its component. It is loaded only with the consent of somebody who may run programs
//! on the board: a signature of a key with `native_code`, or `functions.native_code` for folders.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::isa::{Class, Isa, SETTINGS_VERSION, WASMTIME_VERSION};
use crate::message::Digest;

const MAGIC: &[u8] = b"sedge-code 1\n";
/// A header has about 170 bytes.
const MAX_HEADER_BYTES: usize = 1024;

/// The engine that code was compiled for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abi {
    /// An [`Isa`], or a name that this program does not know.
    pub target: Box<str>,
    pub wasmtime: u32,
    pub settings: u32,
    pub class: Class,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    target: Box<str>,
    wasmtime: u32,
    settings: u32,
    class: Class,
    /// Digest of the component.
    pub wasm: Digest,
}

#[derive(Clone, Debug)]
pub struct Code {
    pub header: Header,
    pub bytes: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum CodeError {
    #[error("not compiled code: it starts with {start:02x?}; use the file that `sedge compile` wrote")]
    NotCode { start: Vec<u8> },
    #[error("the header of the compiled code is damaged: {0}")]
    Header(String),
    #[error("the code is for {found}, and this board runs {host}: compile it for that with sedge {version}", version = env!("CARGO_PKG_VERSION"))]
    Misfit { found: Abi, host: Abi },
    #[error("this build of sedge does not know its processor and runs only code that it compiled itself")]
    NoTarget,
}

/// What this host can run: modules, if it has a compiler, and code that was compiled for it elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    pub has_compiler: bool,
    /// The engine for scripts is there: compiled here, or brought by the package.
    pub runs_scripts: bool,
    /// `None` for a processor that this program does not know.
    pub target: Option<Isa>,
}

impl Capabilities {
    /// Whether it runs a module as it is pushed: a script, or a component that it compiles.
    pub fn takes_module(self, is_script: bool) -> bool {
        self.has_compiler || self.runs_scripts && is_script
    }

    /// The code that this host runs.
    pub fn abi(self, class: Class) -> Option<Abi> {
        Some(Abi::of(self.target?, class))
    }
}

impl Abi {
    /// What this program compiles for the target.
    pub fn of(target: Isa, class: Class) -> Self {
        Self { target: target.as_str().into(), wasmtime: WASMTIME_VERSION, settings: SETTINGS_VERSION, class }
    }
}

impl Header {
    pub fn abi(&self) -> Abi {
        let Self { target, wasmtime, settings, class, .. } = self;
        Abi { target: target.clone(), wasmtime: *wasmtime, settings: *settings, class: *class }
    }
}

impl Code {
    pub fn new(target: Isa, class: Class, wasm: Digest, bytes: Bytes) -> Self {
        let Abi { target, wasmtime, settings, class } = Abi::of(target, class);
        Self { header: Header { target, wasmtime, settings, class, wasm }, bytes }
    }

    pub fn to_bytes(&self) -> Bytes {
        let header = serde_json::to_vec(&self.header).expect("a header has only string keys");
        [MAGIC, &header, b"\n", &self.bytes].concat().into()
    }

    pub fn parse(file: &Bytes) -> Result<Self, CodeError> {
        let Some(rest) = file.strip_prefix(MAGIC) else {
            return Err(CodeError::NotCode { start: file[..file.len().min(4)].to_vec() });
        };
        let Some(end) = rest.iter().take(MAX_HEADER_BYTES).position(|byte| *byte == b'\n') else {
            return Err(CodeError::Header(format!("the header does not end within {MAX_HEADER_BYTES} bytes")));
        };
        let header = serde_json::from_slice(&rest[..end]).map_err(|error| CodeError::Header(error.to_string()))?;
        Ok(Self { header, bytes: file.slice(MAGIC.len() + end + 1..) })
    }

    /// The bytes to load, if they were compiled for `host`.
    pub fn fitting(self, host: Option<Abi>) -> Result<Bytes, CodeError> {
        let (host, found) = (host.ok_or(CodeError::NoTarget)?, self.header.abi());
        if found == host { Ok(self.bytes) } else { Err(CodeError::Misfit { found, host }) }
    }
}

impl fmt::Display for Abi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, wasmtime, settings, class } = self;
        write!(f, "{target} (Wasmtime {wasmtime}, settings {settings}, class {})", class.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code() -> Code {
        Code::new(Isa::Aarch64, Class::Small, Digest([7; 32]), Bytes::from_static(b"native\ncode"))
    }

    #[test]
    fn a_file_is_read_as_it_was_written() {
        let file = code().to_bytes();
        let header = format!(
            "sedge-code 1\n{{\"target\":\"aarch64\",\"wasmtime\":{WASMTIME_VERSION},\"settings\":{SETTINGS_VERSION},\"class\":\"small\",\
             \"wasm\":\"{}\"}}\n",
            "07".repeat(32)
        );
        assert_eq!(file, [header.as_bytes(), b"native\ncode"].concat());
        let read = Code::parse(&file).unwrap();
        assert_eq!((read.header, read.bytes), (code().header, code().bytes));
    }

    #[test]
    fn a_file_that_is_not_code_is_refused() {
        let file = code().to_bytes();
        let check = |bytes: Vec<u8>, expected: &str| {
            let error = Code::parse(&bytes.into()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(b"\0asm\x0d\0\x01\0".to_vec(), "not compiled code: it starts with [00, 61, 73, 6d]");
        check(Vec::new(), "not compiled code");
        check(file[..MAGIC.len() + 20].to_vec(), "does not end");
        check([MAGIC, b"{}\n"].concat(), "missing field");
        check([MAGIC, &[b' '; 1 << 20], b"\n"].concat(), "does not end within 1024 bytes");
        let text = String::from_utf8(file.to_vec()).unwrap();
        check(text.replace("\"class\"", "\"size\":1,\"class\"").into_bytes(), "unknown field");
        check(text.replace("small", "tiny").into_bytes(), "unknown variant");
    }

    #[test]
    fn only_code_for_this_engine_fits() {
        let host = Abi::of(Isa::Aarch64, Class::Small);
        assert_eq!(code().fitting(Some(host.clone())).unwrap(), "native\ncode");
        for other in [
            Abi { target: "pulley32".into(), ..host.clone() },
            Abi { wasmtime: WASMTIME_VERSION + 1, ..host.clone() },
            Abi { settings: SETTINGS_VERSION + 1, ..host.clone() },
            Abi { class: Class::Large, ..host.clone() },
        ] {
            let error = code().fitting(Some(other.clone())).unwrap_err().to_string();
            assert!(error.contains(&host.to_string()) && error.contains(&other.to_string()), "{error}");
        }
        assert!(matches!(code().fitting(None), Err(CodeError::NoTarget)));
    }
}
