//! The instruction sets that functions are compiled for.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The names are published, in orders and as parts of file names: never rename one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    Aarch64,
    X86_64,
    /// Wasmtime's interpreter, for 32-bit ARM, which Cranelift does not support.
    Pulley32,
}

impl Isa {
    pub const ALL: [Self; 3] = [Self::Aarch64, Self::X86_64, Self::Pulley32];

    /// The instruction set of this program. `None` on architectures without a name here.
    pub const HOST: Option<Self> = if cfg!(target_arch = "aarch64") {
        Some(Self::Aarch64)
    } else if cfg!(target_arch = "x86_64") {
        Some(Self::X86_64)
    } else if cfg!(target_arch = "arm") {
        Some(Self::Pulley32)
    } else {
        None
    };

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Aarch64 => "aarch64",
            Self::X86_64 => "x86_64",
            Self::Pulley32 => "pulley32",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "use aarch64, x86_64 or pulley32; or the board's architecture: armv7, armv6, arm; or a target triple, such as \
     aarch64-unknown-linux-gnu"
)]
pub struct UnknownIsa;

impl FromStr for Isa {
    type Err = UnknownIsa;

    /// Accepts a board's architecture, or the target triple of its programs.
    fn from_str(text: &str) -> Result<Self, UnknownIsa> {
        let (architecture, rest) = text.split_once('-').unwrap_or((text, ""));
        // Windows and macOS have other calling conventions.
        if !rest.is_empty() && !rest.split('-').any(|part| part == "linux") {
            return Err(UnknownIsa);
        }
        match architecture {
            "aarch64" | "arm64" | "armv8" => Ok(Self::Aarch64),
            "x86_64" | "amd64" => Ok(Self::X86_64),
            "pulley32" | "arm" | "armv6" | "armv6l" | "armv7" | "armv7l" | "armhf" | "armel" => Ok(Self::Pulley32),
            _ => Err(UnknownIsa),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Version of the settings in `config` and of the way that components are compiled. Precompiled code names the version it
/// was made with. Raise it when a test says so.
pub const SETTINGS_VERSION: u32 = 3;

/// Wasmtime's major version. Precompiled code names it, because Wasmtime refuses code of another one.
pub const WASMTIME_VERSION: u32 = 48;

/// A size class of functions. Each has its own engine, because the size of a slot is part of the compiled code. Small
/// functions do not pay for large ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Up to 4 MiB: everything written for Sedge.
    Small,
    /// Up to 64 MiB: functions with an interpreter inside.
    Large,
}

impl Class {
    pub fn for_memory(bytes: usize) -> Self {
        if bytes <= Self::Small.memory_bytes() { Self::Small } else { Self::Large }
    }

    pub const fn memory_bytes(self) -> usize {
        match self {
            Self::Small => 4 << 20,
            Self::Large => 64 << 20,
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Large => "large",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_names_are_accepted() {
        for (words, expected) in [
            ("aarch64 arm64 aarch64-unknown-linux-gnu aarch64-unknown-linux-musl", Isa::Aarch64),
            ("x86_64 amd64 x86_64-unknown-linux-gnu x86_64-unknown-linux-musl", Isa::X86_64),
            (
                "pulley32 arm armv6 armv7 armhf armv7-unknown-linux-gnueabihf arm-unknown-linux-musleabihf",
                Isa::Pulley32,
            ),
        ] {
            for word in words.split(' ') {
                assert_eq!(word.parse(), Ok(expected), "{word}");
            }
        }
        for target in Isa::ALL {
            assert_eq!(target.as_str().parse(), Ok(target));
        }
    }

    #[test]
    fn other_names_are_refused() {
        for word in ["", "riscv64", "Aarch64", "aarch64-apple-darwin", "x86_64-pc-windows-msvc", "pulley64", "-linux"] {
            assert_eq!(word.parse::<Isa>(), Err(UnknownIsa), "{word}");
        }
    }
}
