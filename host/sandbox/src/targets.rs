//! The processors that this build compiles for.

use sedge_core::isa::Isa;

/// The targets of this build's compiler (`Cargo.toml`): all on a PC, its own and the interpreter on a board.
pub(crate) const COMPILED: &[Isa] = if cfg!(all(feature = "operator", target_arch = "x86_64")) {
    &Isa::ALL
} else if cfg!(target_arch = "x86_64") {
    &[Isa::X86_64, Isa::Pulley32]
} else if cfg!(target_arch = "aarch64") {
    &[Isa::Aarch64, Isa::Pulley32]
} else {
    &[Isa::Pulley32]
};

/// The name in Wasmtime. Code calls no C library, so one triple serves glibc and musl.
pub(super) const fn triple(isa: Isa) -> &'static str {
    match isa {
        Isa::Aarch64 => "aarch64-unknown-linux-gnu",
        Isa::X86_64 => "x86_64-unknown-linux-gnu",
        Isa::Pulley32 => "pulley32",
    }
}
