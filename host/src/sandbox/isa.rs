//! What compiled code is made for: the processors that functions run on without a compiler of their own.

use std::fmt;
use std::str::FromStr;

/// The names are published, in orders and as parts of file names: never rename one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    Aarch64,
    X86_64,
    /// Instructions of Wasmtime's interpreter: Cranelift makes none for 32-bit ARM.
    Pulley32,
}

impl Isa {
    pub const ALL: [Self; 3] = [Self::Aarch64, Self::X86_64, Self::Pulley32];

    /// What this program runs. `None` where there is no name for it.
    pub const HOST: Option<Self> = if cfg!(target_arch = "aarch64") {
        Some(Self::Aarch64)
    } else if cfg!(target_arch = "x86_64") {
        Some(Self::X86_64)
    } else if cfg!(target_arch = "arm") {
        Some(Self::Pulley32)
    } else {
        None
    };

    /// What this build has compilers for (`host/Cargo.toml`): a PC for all, a board for itself and the interpreter.
    #[cfg(feature = "compiler")]
    pub const COMPILED: &[Self] = if cfg!(all(feature = "operator", target_arch = "x86_64")) {
        &Self::ALL
    } else if cfg!(target_arch = "x86_64") {
        &[Self::X86_64, Self::Pulley32]
    } else if cfg!(target_arch = "aarch64") {
        &[Self::Aarch64, Self::Pulley32]
    } else {
        &[Self::Pulley32]
    };

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Aarch64 => "aarch64",
            Self::X86_64 => "x86_64",
            Self::Pulley32 => "pulley32",
        }
    }

    /// As Wasmtime calls it. Code calls no C library, so it is the same for all of them.
    #[cfg(feature = "compiler")]
    pub(super) const fn triple(self) -> &'static str {
        match self {
            Self::Aarch64 => "aarch64-unknown-linux-gnu",
            Self::X86_64 => "x86_64-unknown-linux-gnu",
            Self::Pulley32 => "pulley32",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "use aarch64, x86_64 or pulley32; or a board's word for it: armv7, armv6, arm; or a whole one, such as \
     aarch64-unknown-linux-gnu"
)]
pub struct UnknownIsa;

impl FromStr for Isa {
    type Err = UnknownIsa;

    /// Takes what a person knows of a board: its architecture, or the target that its programs are built for.
    fn from_str(text: &str) -> Result<Self, UnknownIsa> {
        let (architecture, rest) = text.split_once('-').unwrap_or((text, ""));
        // Code for Windows or macOS calls the host otherwise.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_that_people_know() {
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
    fn what_no_board_is() {
        for word in ["", "riscv64", "Aarch64", "aarch64-apple-darwin", "x86_64-pc-windows-msvc", "pulley64", "-linux"] {
            assert_eq!(word.parse::<Isa>(), Err(UnknownIsa), "{word}");
        }
    }
}
